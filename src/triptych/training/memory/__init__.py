"""Memory of a training step, counted without a GPU.

A step runs once on fake tensors (`torch._subclasses.FakeTensorMode`): nothing is computed, every
storage has its real size. The trace of its storages is replayed for each way to distribute the
model: one step answers for DDP, FSDP2 and any number of ranks.

storages    dispatch mode that counts storages as they appear and disappear
host_numbers  fake tensors beside real numbers of the host
autocast    CUDA autocast's dtypes, for tensors on the CPU
fake_step   one training step on fake tensors, with its trace
replay      peak and traffic of a trace under DDP and FSDP2
placement   whether frozen parameters are sharded or replicated under FSDP2
"""

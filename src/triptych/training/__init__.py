"""Training: optimizer, precision, distribution and cost.

optimizer           AdamW and the learning-rate schedule
freezing            selection of the parameters that train
execution           frozen dtype, activation checkpointing, torch.compile
fsdp                FSDP2 sharding, gathering and filling of parameters
meta_init           parameters on the meta device, and their materialization
strategies          DDP, FSDP2 and FSDP1 for Lightning's Trainer
ranks               ranks that decide and fail together
sharded_checkpoint  distributed checkpoints, a file a rank, read without pickle
flop_counter        counts the FLOPs of a training step
flops               FLOPs by formula
device_peaks        peak FLOP/s of devices, for MFU
component_names     parameter names to model components
"""

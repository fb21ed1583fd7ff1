"""Training: optimizer, precision, distribution and cost.

optimizer           AdamW, Muon or another, and the learning-rate schedule
muon                Muon and AdamW as one optimizer
weight_copy         a second set of the weights that train
freezing            selection of trainable parameters
execution           frozen dtype, activation checkpointing, torch.compile
fsdp                FSDP2 sharding, gathering and filling of parameters
meta_init           parameters on the meta device, and their materialization
strategies          DDP, FSDP2 and FSDP1 for Lightning's Trainer
ranks               joint decisions and failures of several ranks
shard_sizes         sizes of shards and of checkpoints by arithmetic
sharded_checkpoint  distributed checkpoints, one file per rank, read without pickle
flop_counter        counts the FLOPs of a training step
flops               FLOPs by formula
prompt_counts       tokens and images of a prompt that plans count
synthetic_batches   batches of random tokens and images at a model's shapes
memory              memory of a step, counted on fake tensors: a package
gpu_specs           memory and peaks of common GPUs, by name
device_peaks        peak FLOP/s of devices, for MFU
component_names     component of a parameter, by its name
"""

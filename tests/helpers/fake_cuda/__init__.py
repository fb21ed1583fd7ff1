"""A CUDA device without a GPU: torch's fake tensors over a stub of the CUDA runtime.

runtime  builds the stub from runtime.c, and gives the environment of a process that loads it
model    models, batches and optimizers on fake CUDA tensors
monitor  a dispatch mode that records device synchronizations, copies, casts and matrix products

A process that has the stub runs forward, backward, autocast, fused optimizers and Lightning's
Trainer on "cuda" tensors under `FakeTensorMode`; nothing is computed, and shapes, dtypes, devices
and memory are those of a GPU. Start one by `runtime.environment`; the stub must be loaded before
torch.
"""

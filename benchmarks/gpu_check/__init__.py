"""All figures that need a GPU, in one command of at most nine minutes.

device    the GPU, or a fake one on which nothing is computed
models    presets with random weights on the device
part      one part of the check, in a process of its own
training  a training step of stage 2
images    images a second, low-memory modes, and the processor's results against the GPU's
kernels   attention kernels, and collectives of one rank
"""

"""A rehearsal: the real widths and image sizes of a preset at a cut depth, on the processor.

cut       flags that cut a preset's depth, and what a training step of it will take
part      one part of the rehearsal, in a process of its own
training  a training step of a stage, by Lightning's Trainer
weights   random weight files, and the published layout and back
image     one image from caption to pixels
"""

"""Unified multimodal models in PyTorch Lightning: models that understand images and make them.

interfaces    data that flows (Batch, Condition), tasks, and base classes of the parts
loss          flow-matching and regression losses; the sign convention
policy_loss   losses that teach a flow from rewards
stochastic_steps  sampling steps with noise, which have probabilities
guidance      guidance by the prompt, and by the source image of an edit
sampler       schedulers by name, and the sampling loop
prompts       chat templates and control tokens, for training and inference
conversations  prompts with images in any message
backbones     networks as plain modules, without Lightning
modules       LightningModules: understanding, generation, decoding, and the unified model
training      optimizer, freezing, precision, FSDP2, ranks, FLOPs
checkpoints   weight files, training checkpoints, run folders; published/ reads released layouts
inference     pipeline, model loading, chat messages, CPU offload, quantization
evaluation    benchmarks and their reports
rewards       scores of images that a generator learns from
serving       OpenAI-compatible HTTP server, and the Gradio web page
cli           the `triptych` command: every command and every flag
shapes_world  synthetic data set with an exact checker
utils         errors, images, files, text, random draws
"""

import importlib

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "UnifiedPipeline":  # imports torch, which takes seconds
        return importlib.import_module("triptych.inference.pipeline").UnifiedPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

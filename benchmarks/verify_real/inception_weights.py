"""An Inception v3 of Keras, stored for TensorFlow.js, in the layout of our network."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torchvision.models.inception import BasicConv2d

from triptych.evaluation.image_metrics.inception import Inception
from verify_real.parts import INCEPTION

_WEIGHT = re.compile(
    r'\{name:"(?P<name>[^"]+)",shape:(?P<shape>\[[^\]]*\]),dtype:"float32",'
    r'quantization:\{min:(?P<min>[-.\de]+),scale:(?P<scale>[-.\de]+),dtype:"uint8"\}\}'
)
_NAMES = {"bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def keras_tensors(folder: Path) -> dict[str, numpy.ndarray]:
    """Weights float32 by their names in Keras; they are stored with 8 bits each."""
    model, *shards = ((folder / name).read_text() for name in INCEPTION)
    # the longest text of a shard is its content; the files are code that is not run
    encoded = (max(re.findall(r'"([^"]*)"', shard), key=len) for shard in shards)
    content = numpy.frombuffer(b"".join(map(base64.b64decode, encoded)), numpy.uint8)
    tensors, start = {}, 0
    for found in _WEIGHT.finditer(model):
        shape = json.loads(found["shape"])
        end = start + int(numpy.prod(shape))
        values = content[start:end] * float(found["scale"]) + float(found["min"])
        tensors[found["name"]] = values.astype(numpy.float32).reshape(shape)
        start = end
    if start != len(content):
        raise ValueError(f"the tensors take {start} of {len(content)} bytes")
    return tensors


def state_dict(folder: Path) -> dict[str, Tensor]:
    """The same weights under our names; Keras numbers layers in the order of ours."""
    tensors = keras_tensors(folder)
    with torch.device("meta"):
        network = Inception().network
    state = {}
    blocks = [(name, m) for name, m in network.named_modules() if isinstance(m, BasicConv2d)]
    for number, (name, block) in enumerate(blocks, 1):
        kernel = torch.from_numpy(tensors[f"conv2d_{number}/kernel"]).permute(3, 2, 0, 1)
        state[f"{name}.conv.weight"] = kernel.contiguous()
        for ours, theirs in _NAMES.items():
            tensor = tensors[f"batch_normalization_{number}/{theirs}"]
            state[f"{name}.bn.{ours}"] = torch.from_numpy(tensor)
        state[f"{name}.bn.weight"] = torch.ones(block.bn.num_features)  # Keras has none
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    return state

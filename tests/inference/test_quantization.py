"""A language model of 4 or 8 bits, by the real library."""

import json
import os
import sys

import pytest
from builders import ROOT
from processes import run

SCRIPT = """
import json, sys
from triptych.inference.image_generation import condition
from triptych.inference.pipeline import UnifiedPipeline

prompts = ["a photo of a red circle", "a photo of two blue squares"]
bits = [None, *sys.argv[1:]]
pipes = [UnifiedPipeline.from_pretrained("tiny", device="cpu", quantize=each) for each in bits]
exact, *made = [condition(pipe.model, prompts).hidden_states for pipe in pipes]
layers = [
    pipe.model.understanding.vlm.model.model.language_model.layers[0] for pipe in pipes
]
exact_names = {
    name.rpartition(".")[2] for name, _ in pipes[0].model.understanding.named_buffers()
}
print(json.dumps({
    each: {
        "off": float((states - exact).norm() / exact.norm()),
        "bytes": layer.mlp.up_proj.weight.element_size(),
        "buffers": sorted({
            str(buffer.dtype)
            for name, buffer in pipe.model.understanding.named_buffers()
            if buffer.is_floating_point() and name.rpartition(".")[2] in exact_names
        }),
    }
    for each, states, layer, pipe in zip(bits[1:], made, layers[1:], pipes[1:])
}))
"""


@pytest.mark.slow
@pytest.mark.beside
def test_quantized_language_model_keeps_the_condition():
    # In a process of its own: where bitsandbytes is, diffusers imports it, which takes seconds.
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".venv" / "beside")}
    command = [sys.executable, "-c", SCRIPT, "4bit", "8bit"]
    done = run(command, seconds=600, env=environment, check=True)
    found = json.loads(done.stdout)
    assert 0 < found["4bit"]["off"] < 0.2 and 0 < found["8bit"]["off"] < 0.02
    assert found["4bit"]["buffers"] == found["8bit"]["buffers"] == ["torch.float32"]
    assert found["4bit"]["bytes"] == found["8bit"]["bytes"] == 1

"""Export of weights between those before a run and after it, and beyond."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from triptych.checkpoints.training_checkpoint import export_checkpoint
from triptych.utils.errors import UserError


@pytest.fixture
def run(tmp_path):
    """A checkpoint, a file of the weights before it, and the tensors of both."""
    generator = torch.Generator().manual_seed(0)

    def tensors():
        return {
            "generation.queries": torch.randn(4, 8, generator=generator),
            "generation.dit.count": torch.tensor(3),
        }

    before, after = tensors(), tensors()
    checkpoint, path = tmp_path / "1.ckpt", tmp_path / "before.safetensors"
    torch.save({"state_dict": after, "global_step": 3}, checkpoint)
    save_file(before, path)
    return checkpoint, path, before, after


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_weights_lie_on_the_line_through_both(weight, run, tmp_path):
    checkpoint, path, before, after = run
    out = tmp_path / "out.safetensors"
    export_checkpoint(checkpoint, out, False, torch.float32, before=path, extrapolate=weight)
    found = load_file(out)
    assert found.keys() == after.keys()
    for name, tensor in found.items():
        expected = before[name] + weight * (after[name] - before[name])
        torch.testing.assert_close(tensor, expected.to(tensor.dtype), rtol=1e-5, atol=1e-6)
    ends = {0.0: before, 1.0: after}
    for name, tensor in ends.get(weight, {}).items():
        assert torch.equal(found[name], tensor)


def test_weights_that_the_run_did_not_start_from_are_named(run, tmp_path):
    checkpoint, path, before, _ = run
    name = "generation.queries"
    save_file({n: t for n, t in before.items() if n != name}, path)
    with pytest.raises(UserError, match=f"does not hold {name} as the run trained it"):
        export_checkpoint(
            checkpoint, tmp_path / "o", False, torch.float32, before=path, extrapolate=2.0
        )
    with pytest.raises(UserError, match="is no safetensors file"):
        export_checkpoint(
            checkpoint, tmp_path / "o", False, torch.float32, before=checkpoint, extrapolate=2.0
        )

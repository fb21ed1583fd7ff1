"""Execution of parts: compiled, recomputed, frozen in bfloat16, by xformers; and under SLURM."""

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack

import pytest
import torch
from builders import ROOT, batches, built, decoder, dit, eva, relative, shaken, unified, vae
from diffusers.models import attention_processor
from processes import started
from torch import nn

from triptych.backbones.attention import probe_xformers, use_xformers
from triptych.interfaces import Condition, LazyModule
from triptych.sampler import sample_flow
from triptych.training.execution import Execution, blocks_of, compile_blocks, recompute_blocks
from triptych.training.meta_init import materialize, parameters_on_meta
from triptych.utils.errors import UserError

CPU = torch.device("cpu")


def velocity(model):
    """A DiT's output for fixed inputs, and the gradient of its first weight."""
    x_t, t, condition = torch.randn(2, 32, 3, 3), torch.rand(2), torch.randn(2, 4, 64)
    out = model(x_t, t, condition)
    model.zero_grad()
    out.square().mean().backward()
    return out.detach(), model.caption_projection.linear_1.weight.grad.clone()


def small_dit():
    model = dit(depth=1)
    model.configure_shapes((32, 3, 3), 64)
    return shaken(built(model))


@pytest.mark.parametrize("change", [recompute_blocks, lambda m: compile_blocks(m, "aot_eager")])
def test_blocks_compute_the_same_when_recomputed_or_compiled(change):
    model = small_dit()
    torch.manual_seed(0)
    out, gradient = velocity(model)
    names = [name for name, _ in model.named_parameters()]
    change(model)
    torch.manual_seed(0)
    again, gradient_again = velocity(model)
    assert relative(again, out) < 1e-6 and relative(gradient_again, gradient) < 1e-6
    assert [name for name, _ in model.named_parameters()] == names


def test_compiled_blocks_use_the_caption_cache():
    model = small_dit()
    condition, start = Condition(torch.randn(2, 4, 64)), torch.randn(2, 32, 3, 3)
    plain = sample_flow(model, condition, start, num_inference_steps=2, guidance_scale=3.0)
    compile_blocks(model, "eager")
    assert torch.allclose(
        sample_flow(model, condition, start, num_inference_steps=2, guidance_scale=3.0),
        plain,
        atol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.compiler
def test_a_block_compiles_to_machine_code(tmp_path, monkeypatch):
    # inductor's cache, shared otherwise, gives out code for the vector units of another setting
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    encoder = built(eva(depth=1)).eval()
    pixels = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        before = encoder(pixels)
        compile_blocks(encoder, "inductor")
        assert relative(encoder(pixels), before) < 1e-5


def test_recomputing_runs_a_block_that_trains_twice_and_others_once():
    model, calls = small_dit(), []
    (block,) = model.blocks()
    forward = block.forward
    block.forward = lambda *a, **k: calls.append(1) or forward(*a, **k)
    recompute_blocks(model)
    velocity(model)
    assert len(calls) == 2
    with torch.no_grad():
        model(torch.randn(2, 32, 3, 3), torch.rand(2), torch.randn(2, 4, 64))
    assert len(calls) == 3


def test_every_large_part_names_its_blocks():
    model = unified("inference")
    torch.manual_seed(0)
    model.build()
    inside = {id(p) for block in blocks_of(model) for p in block.parameters()}
    for part in (model.understanding.vlm, model.encoder, model.generation.dit):
        assert isinstance(part, LazyModule)
        share = sum(p.numel() for p in part.parameters() if id(p) in inside)
        assert share > 0.5 * sum(p.numel() for b in part.blocks() for p in b.parameters()) > 0
    assert model.decoding.decoder.blocks()


def test_model_built_on_meta_keeps_buffers_and_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.register_buffer("table", torch.arange(3), persistent=False)

    with parameters_on_meta():
        model = Tied()
    assert model.a.weight.is_meta and model.b.weight is model.a.weight
    materialize(model, CPU)
    assert model.b.weight is model.a.weight and model.a.weight.device == CPU
    assert model.table.tolist() == [0, 1, 2]


def test_initialization_of_a_part_does_not_depend_on_the_others(weights):
    starts = []
    for files in (weights, type(weights)(understanding=weights.understanding)):
        trains = (
            ["generation", "encoder", "vae", "decoding"] if files is not weights else ["generation"]
        )
        model = unified("stage2", weights=files, trainable=trains)
        model.configure_model()
        starts.append(dict(model.generation.named_parameters()))
    assert all(torch.equal(p, starts[1][name]) for name, p in starts[0].items())


def test_frozen_parts_are_bfloat16_and_trained_parts_float32(weights, samples):
    model = unified("stage2", weights=weights, execution=Execution(frozen_dtype="bfloat16"))
    model.configure_model()
    for parameter in model.parameters():
        wanted = torch.float32 if parameter.requires_grad else torch.bfloat16
        assert parameter.dtype == wanted
    rotary = model.understanding.vlm.model.model.language_model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    plain = unified("stage2", weights=weights)
    plain.configure_model()
    batch = batches(plain, samples, "text_to_image")
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.step(batch)[0]
    loss.backward()
    assert model.generation.queries.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.step(batch)[0].item(), rel=0.02)


def test_frozen_parts_are_in_evaluation_mode_before_the_first_step(weights):
    model = unified("stage2", weights=weights)
    model.configure_model()
    assert model.training and model.generation.dit.training
    assert not any(module.training for module in model.encoder.modules())


# xformers ----------------------------------------------------------------------------------------


def test_xformers_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("triptych.backbones.attention.find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed; pip install .* leave .* at sdpa"):
        probe_xformers(CPU)


@pytest.fixture
def xformers(tmp_path, monkeypatch):
    """Puts a stand-in for xformers, whose ops are the given code, where Python finds it first."""

    def install(ops: str) -> None:
        (tmp_path / "xformers").mkdir()
        (tmp_path / "xformers" / "__init__.py").touch()
        (tmp_path / "xformers" / "ops.py").write_text(ops)
        monkeypatch.syspath_prepend(tmp_path)
        for name in ("xformers", "xformers.ops"):
            monkeypatch.delitem(os.sys.modules, name, raising=False)

    yield install
    for name in ("xformers", "xformers.ops"):
        os.sys.modules.pop(name, None)


NO_KERNELS = (
    "def memory_efficient_attention(q, k, v): raise NotImplementedError('No operator found')"
)
NO_LIBRARY = "raise OSError('libcudart.so.12: cannot open shared object file')"


@pytest.mark.parametrize(
    ("ops", "says"), [(NO_KERNELS, "No operator found"), (NO_LIBRARY, "libcudart.so.12")]
)
def test_xformers_without_kernels_is_refused_in_one_sentence(xformers, ops, says):
    xformers(ops)
    with pytest.raises(UserError, match=f"do not run on cpu .*{says}.* at sdpa"):
        use_xformers(nn.Identity(), CPU)


WORKS = """
from torch.nn.functional import scaled_dot_product_attention as sdpa
calls = []
def memory_efficient_attention(q, k, v, attn_bias=None, op=None, scale=None):
    calls.append(q.shape)
    if q.dim() == 3:
        return sdpa(q, k, v, attn_bias, scale=scale)
    return sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
"""


def test_xformers_is_used_by_the_unet_and_not_by_the_dit(xformers, monkeypatch):
    xformers(WORKS)
    import xformers.ops as ops  # the stand-in

    monkeypatch.setattr(attention_processor, "xformers", os.sys.modules["xformers"], raising=False)
    pixels = decoder()
    pixels.configure_shapes((32, 3, 3))
    pixels = built(pixels).eval()
    inputs = torch.randn(2, 8, 6, 6), torch.tensor([3, 500]), torch.randn(2, 32, 3, 3)
    with torch.no_grad():
        before = pixels.denoise(*inputs)
        assert use_xformers(pixels, CPU) > 0
        ops.calls.clear()
        assert relative(pixels.denoise(*inputs), before) < 1e-5 and ops.calls
    assert use_xformers(small_dit(), CPU) == 0 and use_xformers(built(vae()), CPU) > 0


def test_nothing_of_ours_imports_xformers_unasked():
    for path in (ROOT / "src" / "triptych").rglob("*.py"):
        assert not re.search(r"^(import|from) xformers", path.read_text(), re.M), path


# SLURM -------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    """Starts the submit script with stand-ins for SLURM's programs and for Python."""
    told = tmp_path / "told"
    programs = {
        "srun": 'shift; exec "$@"',
        "scontrol": f'echo "scontrol $*" >> {told}',
        # a rank: notes its flags, then trains until it is told to end, or is done at once
        "python": f"""echo "fit $*" >> {told}
            trap 'echo saved >> {told}; exit 143' TERM
            [[ $* == *max_steps=0* ]] && exit 0
            for _ in $(seq 200); do sleep 0.05; done""",
    }
    for name, body in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": "python"}
    env |= {"SLURM_JOB_ID": "7", "SLURM_NNODES": "4", "SLURM_NTASKS_PER_NODE": "8"}
    env |= {"SLURM_SUBMIT_DIR": str(tmp_path)}

    with ExitStack() as stack:

        def start(*words: str, restarts: int = 0) -> subprocess.Popen:
            command = ["bash", ROOT / "scripts" / "slurm" / "train.sbatch", *words]
            environment = {**env, "SLURM_RESTART_COUNT": str(restarts)}
            return stack.enter_context(started(command, env=environment))

        start.told = told
        yield start


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_signalled_job_saves_and_is_requeued(job, tmp_path):
    process = job("blip3o_8b", "stage2", "ddp", "--model.seed=1")
    for _ in range(200):
        if lines(job.told):
            break
        time.sleep(0.05)
    time.sleep(0.3)  # the stand-in has set its trap
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 143
    fit, *after = lines(job.told)
    assert after == ["saved", "scontrol requeue 7"]
    assert fit == (
        "fit -m triptych fit --preset blip3o_8b --stage stage2 --hardware ddp "
        "--trainer.num_nodes=4 --trainer.devices=8 --model.seed=1"
    )


@pytest.mark.parametrize("saved", [True, False])
def test_restarted_job_resumes_from_its_checkpoint(job, tmp_path, saved):
    if saved:
        folder = tmp_path / "runs" / "tiny" / "stage2" / "version_0" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    process = job("tiny", "stage2", "fsdp2", "--trainer.max_steps=0", restarts=1)
    assert process.wait(timeout=30) == 0
    (fit,) = lines(job.told)
    assert fit.endswith("--ckpt_path=last") == saved


def test_job_without_a_stage_prints_its_usage(job):
    assert job("tiny").wait(timeout=30) == 2 and not lines(job.told)

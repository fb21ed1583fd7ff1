"""Speed of a training step of stage 2 against the published one, in ratios of processor time.

On random weights of a middle size, in float32, one process and one thread: the contestants in turn
in every round, medians over the rounds, in seconds of the processor, so that what else the machine
does weighs little. A step is forward, backward, clipping and the optimizer.

    published    every token of every row with gradient, layers computed twice, logits made and
                 thrown away, features live; see published_step.py
    live         our step, features made by the encoder
    cached       our step, features read

Their gradients are compared before anything is timed. Beside them: seconds of each part, memory
(peak resident set of a step above the one before it), FLOPs by torch's counter against the
formulas of `triptych.training.flops`, and FLOPs of a sample at 8B, counted on the meta device.

    python benchmarks/training.py --out benchmarks/results/training.json
    python benchmarks/training.py --device cuda --size 8b      # on a GPU; never run so far

The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from published_step import published_loss, recomputing
from reporting import machine, versions, write_result
from torch import Tensor

from triptych.backbones import EvaClip, LuminaNextDiT, QwenText, QwenVision, QwenVL, Vocabulary
from triptych.backbones.attention import use_xformers
from triptych.inference.loading import describe_stage
from triptych.interfaces import IMAGE_GENERATION, Batch
from triptych.modules import GenerationModule, UnderstandingModule, UnifiedModule
from triptych.training import flops
from triptych.training.device_peaks import dense_peak
from triptych.training.execution import cast_frozen, compile_blocks
from triptych.training.flop_counter import count_flops
from triptych.training.freezing import freeze_all_but
from triptych.training.optimizer import make_optimizer
from triptych.utils.errors import UserError

ROOT = Path(__file__).parent.parent
BATCH, QUERIES = 8, 64
BEFORE, CAPTION, AFTER = 23, 150, 6  # tokens of the template, of a caption, and `[IMG]` at the end
LONG = 136  # tokens of the prompt for which FLOPs at 8B are stated, `[IMG]` included
WORDS, REAL_WORDS = 32_000, 151_668
PACKAGES = ("torch", "transformers", "diffusers", "timm", "lightning", "xformers")
TARGETS = {"speedup_cached": 3.0, "speedup_live": 2.0, "speedup_cached_real_vocabulary": 5.0}
LIMITS = {"flops_per_sample_cached": 4.1e12, "flops_per_sample_live": 13.5e12}
Loss = Callable[[UnifiedModule, Batch], Tensor]


# --- what is compared -----------------------------------------------------------------------------


def middle(words: int) -> UnifiedModule:
    """Stage 2 at the middle size, described; the proportions are those of the published 8B."""
    text = QwenText(512, 2688, 8, 8, 2, mrope_section=[8, 12, 12])
    vision = QwenVision(2, 64, 128, 2)  # captions alone are read: never computed
    vocabulary = Vocabulary(words, *range(words - 6, words))
    return UnifiedModule(
        understanding=UnderstandingModule(QwenVL("", text, vision, vocabulary=vocabulary)),
        encoder=EvaClip(224, 14, width=256, depth=8, heads=4, mlp_width=2176, pool=2),
        generation=GenerationModule(LuminaNextDiT(256, 6, 4, gate_init=1.0), QUERIES),
        loss_weights={"generation": 1.0},
        trainable=["generation"],
        build_decoder=False,
        stage="stage2",
    )


def published(size: str) -> UnifiedModule:
    """Stage 2 of blip3o_4b or blip3o_8b, described."""
    files = [ROOT / "conf/presets" / f"blip3o_{size}.yaml", ROOT / "conf/stages/stage2.yaml"]
    return describe_stage(files, ["--model.build_decoder=false"])


def built(model: UnifiedModule, device: str) -> UnifiedModule:
    """With random weights, in training."""
    torch.manual_seed(0)
    with torch.device(device):
        model.build()
    model.trained = freeze_all_but(model, model.trainable)
    return model.train()


def drawn(model: UnifiedModule, size: int, tokens: int, shared: int, device: str) -> Batch:
    """A batch of random prompts of `tokens`, alike in the first `shared`, and random images."""
    draw = torch.Generator().manual_seed(0)
    words = model.understanding.vlm.vocabulary.rows - 6  # the last are special
    ids = torch.randint(words, (size, tokens), generator=draw)
    ids[:, :shared] = ids[0, :shared]
    side = model.encoder.image_size
    return Batch(
        IMAGE_GENERATION,
        [str(number) for number in range(size)],
        0,
        torch.arange(size),
        ids,
        torch.ones_like(ids),
        num_shared_prefix_tokens=shared,
        target_pixels=torch.randint(0, 256, (size, 3, side, side), generator=draw).byte(),
    ).to(device)


@torch.no_grad()
def with_features(model: UnifiedModule, batch: Batch) -> Batch:
    """The same batch with its features in the place of its images."""
    features = model.encoder(batch.target_pixels).float().contiguous()
    return Batch(**{**vars(batch), "target_pixels": None, "target_features": features})


def our_loss(model: UnifiedModule, batch: Batch) -> Tensor:
    return model.step(batch)[0]


def contestants(model: UnifiedModule, live: Batch) -> dict[str, tuple[Loss, Batch]]:
    return {
        "published": (published_loss, live),
        "live": (our_loss, live),
        "cached": (our_loss, with_features(model, live)),
    }


def around(name: str, model: UnifiedModule):
    return recomputing(model) if name == "published" else nullcontext()


def gradient(model: UnifiedModule, name: str, loss: Loss, batch: Batch) -> Tensor:
    with around(name, model):
        loss(model, batch).backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return torch.cat(found)


def check_gradients(model: UnifiedModule, batch: Batch) -> float:
    """The largest relative difference from the published gradient."""
    found = {n: gradient(model, n, *each) for n, each in contestants(model, batch).items()}
    plain = found.pop("published")
    worst = max(float((each - plain).norm() / plain.norm()) for each in found.values())
    if not worst <= 1e-5:
        raise SystemExit(f"gradients differ by {worst:.1e}: nothing here can be compared")
    return worst


# --- time and memory ------------------------------------------------------------------------------


@contextmanager
def timed(model: UnifiedModule) -> Iterator[dict[str, float]]:
    """Processor seconds inside the forward passes of the parts, filled while it is open."""
    qwen = model.understanding.vlm.model
    parts = {
        "language_model": qwen.model.language_model,
        "logits": qwen.lm_head,
        "encoder": model.encoder,
        "velocity_model": model.generation.dit,
    }
    seconds: dict[str, float] = defaultdict(float)

    def wrap(name: str, forward: Callable) -> Callable:
        def call(*inputs, **options):
            started = time.process_time()
            out = forward(*inputs, **options)
            seconds[f"{name}_forward"] += time.process_time() - started
            return out

        return call

    for name, part in parts.items():
        part.forward = wrap(name, part.forward)
    try:
        yield seconds
    finally:
        for part in parts.values():
            del part.forward


def one_step(model: UnifiedModule, optimizer, name: str, loss: Loss, batch: Batch) -> dict:
    """Processor seconds of a step, whole and by part."""
    with around(name, model), timed(model) as parts:
        started = time.process_time()
        value = loss(model, batch)
        forward = time.process_time()
        value.backward()
        backward = time.process_time()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ended = time.process_time()
    rest = forward - started - sum(parts.values())
    return {
        "step": ended - started,
        **parts,
        "losses": rest,
        "backward": backward - forward,
        "optimizer": ended - backward,
    }


def resident(field: str) -> float:
    """Megabytes, VmRSS now or VmHWM at most."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_of(step: Callable[[], object]) -> float:
    """Megabytes that a step takes at most above what was resident before."""
    ctypes.CDLL(None).malloc_trim(0)  # what others freed and the process kept
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def race(model: UnifiedModule, batch: Batch, names: list[str], rounds: int) -> dict[str, dict]:
    """Contestant -> medians of `one_step`, and its memory; one round before does not count."""
    optimizer = make_optimizer(model, model.optimization)
    running = {n: each for n, each in contestants(model, batch).items() if n in names}
    memory = {
        name: peak_of(lambda name=name, each=each: one_step(model, optimizer, name, *each))
        for name, each in running.items()
    }
    found: dict[str, dict[str, list[float]]] = {n: defaultdict(list) for n in running}
    for _ in range(rounds):
        for name, each in running.items():
            for part, seconds in one_step(model, optimizer, name, *each).items():
                found[name][part].append(seconds)
    return {
        name: {
            **{part: round(statistics.median(each), 3) for part, each in parts.items()},
            "peak_mb": round(memory[name]),
        }
        for name, parts in found.items()
    }


# --- FLOPs ----------------------------------------------------------------------------------------


def counted(model: UnifiedModule, batch: Batch) -> dict[str, float]:
    """Contestant -> FLOPs of a sample by torch's counter; model and batch on the meta device."""
    found = {}
    for name, (loss, each) in contestants(model, batch).items():
        with around(name, model):
            counts = count_flops(lambda loss=loss, each=each: loss(model, each).backward())
        found[name] = counts / len(batch)
    return found


def by_formula(model: UnifiedModule, batch: Batch) -> dict[str, float]:
    """The same by formula."""
    qwen, dit, eva = model.understanding.vlm, model.generation.dit, model.encoder
    queries, tokens = model.generation.num_queries, batch.input_ids.shape[1]
    once = flops.prompt(qwen, batch.num_shared_prefix_tokens).forward / len(batch)
    ours = {
        name: flops.generation_step(
            qwen, dit, encoder, tokens, queries, shared=batch.num_shared_prefix_tokens
        ).total
        + once
        for name, encoder in (("live", eva), ("cached", None))
    }
    return {"published": flops.published_step(qwen, dit, eva, tokens, queries).total, **ours}


def against_formula(model: UnifiedModule, *shape: int) -> dict[str, dict[str, float]]:
    model = built(model, "meta")
    batch = drawn(model, *shape, device="meta")
    return {"counted": counted(model, batch), "formula": by_formula(model, batch)}


# --- a GPU ----------------------------------------------------------------------------------------


def on_gpu(size: str, batches: list[int], steps: int) -> list[dict]:
    """Samples/s, MFU and peak memory of every combination; NOT RUN SO FAR, for want of a GPU.

    Frozen parts in bfloat16, what trains in float32 under autocast, as `bf16-mixed` has it.
    """
    found, of_sample = [], counted_at(size)
    for compiled in (False, True):
        model = built(published(size), "cuda")
        cast_frozen(model, torch.bfloat16)
        if compiled:
            compile_blocks(model)
        optimizer = make_optimizer(model, model.optimization)
        for number in batches:
            live = drawn(model, number, LONG, BEFORE, "cuda")
            for name, each in contestants(model, live).items():
                if name == "published" and compiled:
                    continue  # it never was
                step = partial(one_step, model, optimizer, name, *each)
                speed = measured(step, number, steps, of_sample[name])
                found.append({"step": name, "batch": number, "compiled": compiled, **speed})
                print(json.dumps(found[-1]), flush=True)
        del model, optimizer, live, step
    return found + [decoder_step(size, attention, steps) for attention in ("sdpa", "xformers")]


def decoder_step(size: str, attention: str, steps: int, number: int = 4) -> dict:
    """The pixel decoder's step: xformers computes the UNet's and the VAE's attention, no other."""
    files = [ROOT / "conf/presets" / f"blip3o_{size}.yaml", ROOT / "conf/stages/decoder.yaml"]
    model = built(describe_stage(files), "cuda")
    cast_frozen(model, torch.bfloat16)
    found = {"step": "decoder", "batch": number, "attention": attention}
    if attention == "xformers":
        try:
            use_xformers(model, torch.device("cuda"))
        except UserError as error:
            return {**found, "error": str(error)}
    side, optimizer = model.vae.image_size, make_optimizer(model, model.optimization)
    batch = Batch(
        IMAGE_GENERATION,
        [str(each) for each in range(number)],
        0,
        torch.arange(number),
        torch.zeros(number, 0, dtype=torch.long),
        torch.zeros(number, 0, dtype=torch.long),
        target_pixels=torch.zeros(number, 3, side, side, dtype=torch.uint8),
        target_features=torch.randn(number, *model.encoder.feature_shape),
    ).to("cuda")

    def step() -> None:
        our_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return {**found, **measured(step, number, steps)}


def measured(
    step: Callable[[], object], number: int, steps: int, of_sample: float | None = None
) -> dict[str, float | str]:
    """Samples a second of steps of `number` samples, after three that do not count."""
    peak = dense_peak(torch.cuda.get_device_name())
    try:
        with torch.autocast("cuda", torch.bfloat16):
            for _ in range(3):
                step()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            for _ in range(steps):
                step()
            torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        return {"error": "out of memory"}
    rate = steps * number / (time.perf_counter() - started)
    found = {"samples_per_s": rate, "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {**found, "mfu": rate * of_sample / peak} if peak and of_sample else found


# --- the result -----------------------------------------------------------------------------------


def counted_at(size: str) -> dict[str, float]:
    """FLOPs of a sample at 4B or 8B, alone in its batch: nothing is shared."""
    model = built(published(size), "meta")
    return counted(model, drawn(model, 1, LONG, 0, "meta"))


def on_cpu(rounds: int) -> dict[str, object]:
    """The figures of the middle size."""
    shape = (BATCH, BEFORE + CAPTION + AFTER, BEFORE)
    large = counted_at("8b")
    print("TFLOP a sample at 8B:", {n: round(f / 1e12, 2) for n, f in large.items()}, flush=True)
    middle_flops = against_formula(middle(WORDS), *shape)
    model = built(middle(WORDS), "cpu")
    batch = drawn(model, *shape, device="cpu")
    difference = check_gradients(model, batch)
    print(f"gradients agree within {difference:.1e}", flush=True)
    seconds = race(model, batch, ["published", "live", "cached"], rounds)
    for name, parts in seconds.items():
        print(f"{name:10}", parts, flush=True)
    model = built(middle(REAL_WORDS), "cpu")
    batch = drawn(model, *shape, device="cpu")
    real = race(model, batch, ["published", "cached"], max(1, rounds // 2))
    for name, parts in real.items():
        print(f"{name:10}", parts, f"at {REAL_WORDS} words", flush=True)
    step = {name: parts["step"] for name, parts in seconds.items()}
    return {
        "speedup_cached": round(step["published"] / step["cached"], 2),
        "speedup_live": round(step["published"] / step["live"], 2),
        "speedup_cached_real_vocabulary": round(
            real["published"]["step"] / real["cached"]["step"], 2
        ),
        "flops_per_sample_cached": large["cached"],
        "flops_per_sample_live": large["live"],
        "flops_baseline": large["published"],
        "gradient_difference": difference,
        "breakdown": {"s_of_processor": seconds, "at_real_vocabulary": real},
        "flops_middle": middle_flops,
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file, with the machine as well")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", choices=["4b", "8b"], default="8b", help="with --device cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--steps", type=int, default=10, help="timed, with --device cuda")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    before = machine()
    if parsed.device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("there is no CUDA device here; leave out --device")
        figures: dict[str, object] = {"gpu": on_gpu(parsed.size, parsed.batches, parsed.steps)}
    else:
        figures = on_cpu(parsed.rounds)
        missed = [name for name, least in TARGETS.items() if figures[name] < least]
        missed += [name for name, most in LIMITS.items() if figures[name] > most]
        figures["missed"] = missed
    figures["versions"] = versions(*PACKAGES)
    write_result(parsed.out, figures, machine=before)


if __name__ == "__main__":
    main()

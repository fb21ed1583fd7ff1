"""Generation speed and the number of sampling steps; the tiny preset, one thread.

    batch     16 images in one batch against one by one, `pipe.generate` from prompt to image
    loop      the generator's sampling loop with what is kept of a caption against the same loop
              that computes all of it in every step, in seconds of the processor
    curve     samplers and steps against ShapeEval, on the same captions and seeds; and the time of
              the quickest that scores within the 95% interval of 30 Euler steps, against those
    decoder   the same for reconstructions: its own number of Euler steps, and fewer of others

Contestants take turns in every round; medians over the rounds.

    python benchmarks/generate.py --out benchmarks/results/generate.json
    python benchmarks/generate.py --device cuda --size 8b      # on a GPU; never run so far

The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy
import torch
from drawing import draw_curves
from reporting import machine, versions, write_result
from torch import Tensor

from triptych.evaluation.shapes.shape_eval import EvalSample, examples
from triptych.evaluation.statistics import wilson
from triptych.inference import image_generation
from triptych.inference.loading import describe_model
from triptych.inference.offload import offload_to_cpu
from triptych.inference.pipeline import UnifiedPipeline
from triptych.modules import UnifiedModule
from triptych.sampler import model_calls, noise_from_seeds, sample_flow
from triptych.shapes_world.captions import request_of
from triptych.shapes_world.checker import check
from triptych.utils.errors import UserError
from triptych.utils.images import to_arrays, to_tensor

ROOT = Path(__file__).parent.parent
BATCH, IMAGES, PART = 16, 240, 60  # of a batch; that are scored; scored at a time
REFERENCE = ("euler", 30)
CURVE = [
    *(("euler", steps) for steps in (20, 15, 10, 7, 5)),
    *(("heun", steps) for steps in (8, 5, 4)),
    *(("dpm++", steps) for steps in (15, 12, 10, 7, 5)),
    *(("unipc", steps) for steps in (15, 12, 10, 7, 5)),
]
DECODER_STEPS = {"euler": (5, 3, 2, 1), "heun": (2, 1), "dpm++": (3, 2, 1), "unipc": (3, 2, 1)}
TARGETS = {"batch_speedup": 4.0, "loop_speedup": 1.1, "solver_speedup_at_equal_score": 1.8}
PACKAGES = ("torch", "transformers", "diffusers", "lightning", "bitsandbytes")
Point = tuple[str, int]


def processor_seconds(call: Callable[[], object]) -> float:
    """Seconds of the processor that a call takes."""
    started = time.process_time()
    call()
    return time.process_time() - started


def race(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of the processor of each call; one round before does not count."""
    found = [
        {name: processor_seconds(call) for name, call in calls.items()} for _ in range(rounds + 1)
    ]
    return {name: statistics.median(each[name] for each in found[1:]) for name in calls}


# --- batches and the loop -------------------------------------------------------------------------


def batches(pipe: UnifiedPipeline, rounds: int) -> dict[str, float]:
    """Seconds an image, in a batch and one by one."""
    prompts = [sample.caption for sample in examples("eval", BATCH)]
    seconds = race(
        {
            "batch": lambda: pipe(prompts, seed=0).images,
            "one by one": lambda: [pipe(p, seed=n).images for n, p in enumerate(prompts)],
        },
        rounds,
    )
    return {name: each / BATCH for name, each in seconds.items()}


def loops(model: UnifiedModule, rounds: int) -> tuple[dict[str, float], float]:
    """Seconds of the sampling loop that keeps and of that which computes all; their difference."""
    generation = model.generation
    condition = image_generation.condition(
        model, [sample.caption for sample in examples("eval", BATCH)]
    )
    noise = noise_from_seeds(generation.feature_shape, range(BATCH))

    def loop(velocity: Callable) -> Tensor:
        return sample_flow(
            velocity,
            condition,
            noise,
            num_inference_steps=generation.sampling.num_inference_steps,
            guidance_scale=generation.sampling.guidance_scale,
            shift=generation.shift,
        )

    def plain(*call: Tensor) -> Tensor:  # no `with_cached_condition`
        return generation.dit(*call)

    difference = float((loop(generation.dit) - loop(plain)).abs().max())
    calls = {"kept": lambda: loop(generation.dit), "recomputed": lambda: loop(plain)}
    return race(calls, rounds), difference


# --- steps against score --------------------------------------------------------------------------


class Scored:
    """Held-out captions, their conditions and the features of their images, made once."""

    def __init__(self, model: UnifiedModule, images: int) -> None:
        self.model, self.samples = model, examples("eval", images)
        parts = [range(n, min(n + PART, images)) for n in range(0, images, PART)]
        self.seeds = [list(part) for part in parts]
        self.conditions = [
            image_generation.condition(model, [self.samples[n].caption for n in part])
            for part in parts
        ]
        with torch.no_grad():
            self.features = [
                model.encoder(to_tensor([self.samples[n].image for n in part])).float()
                for part in parts
            ]

    def sampled(self, point: Point, seed: int = 0, parts: int | None = None) -> list[Tensor]:
        """Features for the captions."""
        sampler, steps = point
        return [
            self.model.generation.sample(
                condition, [seed + n for n in seeds], num_inference_steps=steps, sampler=sampler
            )
            for condition, seeds in list(zip(self.conditions, self.seeds, strict=True))[:parts]
        ]

    def generated(self, point: Point, seed: int = 0) -> float:
        """ShapeEval of images made so."""
        features = self.sampled(point, seed)
        images = [self.model.decode(*each) for each in zip(features, self.seeds, strict=True)]
        return self._share(images, lambda sample: sample.request)

    def reconstructed(self, point: Point) -> float:
        """The share of right reconstructions."""
        sampler, steps = point
        images = [
            self.model.decode(features, seeds, num_inference_steps=steps, sampler=sampler)
            for features, seeds in zip(self.features, self.seeds, strict=True)
        ]
        return self._share(images, lambda sample: request_of(sample.scene))

    def _share(self, images: list[Tensor], request: Callable[[EvalSample], object]) -> float:
        shown = numpy.concatenate([to_arrays(part) for part in images])
        right = [check(p, request(s)) for p, s in zip(shown, self.samples, strict=True)]
        return sum(right) / len(right)


def solvers(scored: Scored, rounds: int) -> dict[str, object]:
    """Scores of the curve, and the quickest point that is as good as the reference."""
    scores = {point: scored.generated(point) for point in (REFERENCE, *CURVE)}
    least, most = wilson(scores[REFERENCE], len(scored.samples))
    equal = [point for point in CURVE if scores[point] >= least]
    best = min(equal, key=lambda point: (model_calls(*point), -scores[point]), default=REFERENCE)
    seconds = race(
        {
            name_of(each): lambda each=each: scored.sampled(each, parts=1)
            for each in (REFERENCE, best)
        },
        rounds,
    )
    return {
        "scores": {name_of(point): round(score, 4) for point, score in scores.items()},
        "interval": [round(least, 4), round(most, 4)],
        "best": name_of(best),
        "seconds": seconds,
        "speedup": seconds[name_of(REFERENCE)] / seconds[name_of(best)],
        # chosen by its score: what it and the reference score where nothing was chosen
        "on_other_seeds": {
            name_of(each): round(scored.generated(each, seed=1 << 20), 4)
            for each in (REFERENCE, best)
        },
    }


def decoders(scored: Scored) -> dict[str, float]:
    """Share of right reconstructions by sampler and steps."""
    return {
        name_of((sampler, steps)): round(scored.reconstructed((sampler, steps)), 4)
        for sampler, numbers in DECODER_STEPS.items()
        for steps in numbers
    }


def name_of(point: Point) -> str:
    return f"{point[0]} {point[1]}"


def point_of(name: str) -> Point:
    sampler, steps = name.split()
    return sampler, int(steps)


def curves(scores: dict[str, float]) -> dict[str, list[tuple[int, float]]]:
    """Sampler -> (calls of the network, score), the fewest calls first."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, score in scores.items():
        found.setdefault(point_of(name)[0], []).append((model_calls(*point_of(name)), score))
    return {sampler: sorted(points) for sampler, points in found.items()}


def on_cpu(rounds: int, images: int, figure: Path | None) -> dict[str, object]:
    pipe = UnifiedPipeline.from_pretrained("tiny", device="cpu")
    an_image = batches(pipe, rounds)
    loop, difference = loops(pipe.model, rounds)
    scored = Scored(pipe.model, images)
    found, decoder = solvers(scored, rounds), decoders(scored)
    if figure:
        titles = f"generator: ShapeEval, {images} captions", f"decoder: reconstruction, {images}"
        draw_curves(
            figure,
            {titles[0]: curves(found["scores"]), titles[1]: curves(decoder)},
            "calls of the network",
            {titles[0]: found["interval"]},
        )
    return {
        "batch_speedup": an_image["one by one"] / an_image["batch"],
        "loop_speedup": loop["recomputed"] / loop["kept"],
        "max_difference": difference,
        "solver_speedup_at_equal_score": found["speedup"],
        "seconds_an_image": an_image,
        "seconds_of_loop": loop,
        "solvers": found,
        "decoder": decoder,
    }


# --- a GPU ----------------------------------------------------------------------------------------


def one_by_one(pipe: UnifiedPipeline, prompts: list[str], steps: int | None) -> None:
    """The published order: an image at a time, and every step computes all of its caption."""
    generation = pipe.model.generation
    for seed, prompt in enumerate(prompts):
        condition = image_generation.condition(pipe.model, [prompt])
        features = sample_flow(
            lambda *call: generation.dit(*call),
            condition,
            noise_from_seeds(generation.feature_shape, [seed], condition.hidden_states.device),
            num_inference_steps=steps or generation.sampling.num_inference_steps,
            guidance_scale=generation.sampling.guidance_scale,
        )
        pipe.model.decode(features, [seed], num_inference_steps=steps)


def random_pipeline(size: str, device: torch.device, low_memory: bool) -> UnifiedPipeline:
    """A preset with random weights, in bfloat16 on a GPU."""
    file = "tiny" if size == "tiny" else f"blip3o_{size}"
    model = describe_model([ROOT / "conf" / "presets" / f"{file}.yaml"])
    with torch.device("cpu" if low_memory else device):
        model.build()
    model = model.to(torch.float32 if device.type == "cpu" else torch.bfloat16)
    model.requires_grad_(False).eval()
    if low_memory:
        offload_to_cpu(model, device)
    return UnifiedPipeline(model, name=f"random {size}", device=device)


def at_full_size(size: str, device: torch.device, steps: int | None) -> dict[str, object]:
    """Images a second and peak memory with random weights; NOT RUN ON A GPU SO FAR.

    `steps` of both samplers are the model's own, unless a trial on the CPU wants fewer.
    """
    found: dict[str, object] = {}
    prompts = [f"an image, number {number}" for number in range(BATCH)]
    for mode in ("normal", "low memory"):
        pipe = random_pipeline(size, device, mode == "low memory")
        options = {
            "seed": 0,
            "num_inference_steps": steps,
            "decoder_num_inference_steps": steps,
        }
        calls = {n: partial(pipe, prompts[:n], **options) for n in (1, 4, 16)}
        for number, call in calls.items():
            found[f"{mode}, batch of {number}"] = measured(call, number, device)
        if mode == "normal":
            call = partial(one_by_one, pipe, prompts[:4], steps)
            found["published order"] = measured(call, 4, device)
    return found


def measured(call: Callable[[], object], images: int, device: torch.device) -> dict[str, object]:
    """Images a second, and peak memory on a GPU; the first call does not count."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    call()  # ends with images on the host: nothing is left to wait for
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {"images_a_second": images / seconds, "peak_gib": peak}


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file, with the machine as well")
    parser.add_argument("--figure", type=Path, help="PNG file of the curves")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=IMAGES, help="scored")
    parser.add_argument("--device", default="cpu", help="cuda: random weights of --size")
    parser.add_argument("--size", choices=["tiny", "4b", "8b"], help="default 8b with cuda")
    parser.add_argument("--steps", type=int, help="with --size: of both samplers")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    before, device = machine(), torch.device(parsed.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; leave out --device")
    if device.type == "cuda" or parsed.size:
        try:
            found = at_full_size(parsed.size or "8b", device, parsed.steps)
        except UserError as error:
            raise SystemExit(str(error)) from error
        figures: dict[str, object] = {"random_weights": found}
    else:
        figures = on_cpu(parsed.rounds, parsed.images, parsed.figure)
        missed = [name for name, least in TARGETS.items() if figures[name] < least]
        figures["missed"] = missed + ["max_difference"] * (figures["max_difference"] > 1e-5)
    figures["versions"] = versions(*PACKAGES)
    write_result(parsed.out, figures, machine=before)


if __name__ == "__main__":
    main()

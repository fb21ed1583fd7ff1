"""Benchmark images in their published layout: batched, shared over devices, resumable.

Every file is an `ImageJob` of `triptych generate`: it stores its request, and is complete or
missing. Its seeds depend on --seed and the index of its prompt only.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from triptych.cli.arguments import generation_of, model_of
from triptych.cli.jobs import run_jobs, settings_for
from triptych.cli.output_folder import ImageJob
from triptych.utils.png_metadata import embed_metadata, metadata_of

SEEDS_PER_RUN = 1 << 20
"""Distance of the seeds of one --seed to those of the next, which therefore share no noise."""
SEEDS_PER_PROMPT = 1 << 6
"""Distance of the seeds of one prompt to those of the next."""


@dataclass(frozen=True)
class BenchmarkFile:
    """Requested image file of a benchmark, with one image or a grid of them."""

    file: str
    """Path in the folder of images."""
    prompt: str
    number: int
    """Index of the prompt, counted from 0 over the whole benchmark."""
    first: int = 0
    """Index of the first image in the file among the prompt's images."""
    tiles: int = 1
    """Number of images in the file."""


def jobs_of(requests: Sequence[BenchmarkFile], parsed: argparse.Namespace) -> list[ImageJob]:
    """Return one job per file."""
    common = generation_of(parsed)
    jobs = []
    for each in requests:
        seed = parsed.seed * SEEDS_PER_RUN + each.number * SEEDS_PER_PROMPT + each.first
        seeds = list(range(seed, seed + each.tiles))
        metadata = {"prompt": each.prompt, "seeds": seeds, **common, **model_of(parsed)}
        jobs.append(ImageJob(each.file, each.file.removesuffix(".png"), metadata))
    return jobs


def make_images(requests: Sequence[BenchmarkFile], parsed: argparse.Namespace) -> None:
    """Generate the missing files of a benchmark in `parsed.images_dir`.

    Raises:
        UserError: the folder holds images of other settings, a prompt is too long for the model,
            or a device failed.
    """
    tiles = requests[0].tiles
    options = {**vars(parsed), "out": parsed.images_dir}
    options["batch_size"] = max(1, parsed.batch_size // tiles)  # counted in files

    def check(pipe: Any) -> None:
        pipe.check_prompts(list(dict.fromkeys(each.prompt for each in requests)))

    def make(pipe: Any, batch: list[ImageJob], callback: Any) -> list[Any]:
        images = pipe(
            [job.request["prompt"] for job in batch],
            num_images_per_prompt=tiles,
            seed=[seed for job in batch for seed in job.request["seeds"]],
            batch_size=parsed.batch_size,
            callback_on_step_end=None if tiles > 1 else callback,
            **settings_for(batch[0]),
        ).images
        return [join_tiles(images[at : at + tiles]) for at in range(0, len(images), tiles)]

    run_jobs(
        "eval",
        jobs_of(requests, parsed),
        argparse.Namespace(**options),
        check=check,
        make=make,
        image_grid=False,
    )


def join_tiles(tiles: Sequence[Any]) -> Any:
    """Join images to a square grid with the metadata of the first; return a single one as is."""
    if len(tiles) == 1:
        return tiles[0]
    from triptych.evaluation.dpg import join_grid

    grid = join_grid(tiles, round(len(tiles) ** 0.5))
    metadata = metadata_of(tiles[0]).copy()
    del metadata["seed"]  # one of several, which are in "request"
    return embed_metadata(grid, metadata)

"""Benchmark images in their published layout: batched, sharded, resumable.

Every file is a `ImageJob` of `triptych generate`: it holds its request, and is whole or not
there. Its seeds follow only from its prompt's number, whatever else is made, on any number of
processes.
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

OF_A_SEED = 1 << 20  # seeds from one --seed to the next: they share no noise
OF_A_PROMPT = 1 << 6  # seeds from one prompt to the next


@dataclass(frozen=True)
class ImageRequest:
    """A file of a benchmark."""

    file: str
    """Its path in the folder of images."""
    prompt: str
    number: int
    """Index of the prompt, counted from 0 over the whole benchmark."""
    first: int = 0
    """Index of the first image in the file among the prompt's images."""
    tiles: int = 1
    """Number of images in the file."""


def jobs_of(wanted: Sequence[ImageRequest], parsed: argparse.Namespace) -> list[ImageJob]:
    """One a file."""
    common = generation_of(parsed)
    jobs = []
    for each in wanted:
        seed = parsed.seed * OF_A_SEED + each.number * OF_A_PROMPT + each.first
        seeds = list(range(seed, seed + each.tiles))
        asked = {"prompt": each.prompt, "seeds": seeds, **common, **model_of(parsed)}
        jobs.append(ImageJob(each.file, each.file.removesuffix(".png"), asked))
    return jobs


def make_images(
    wanted: Sequence[ImageRequest],
    parsed: argparse.Namespace,
) -> None:
    """Make those of a benchmark's files that are not done, in `parsed.images_dir`.

    Raises:
        UserError: the folder holds images of other settings, a prompt is too long for the model,
            or a device failed.
    """
    tiles = wanted[0].tiles
    given = {**vars(parsed), "out": parsed.images_dir}
    given["batch_size"] = max(1, parsed.batch_size // tiles)  # files at once

    def check(pipe: Any) -> None:
        pipe.check_prompts(list(dict.fromkeys(each.prompt for each in wanted)))

    def make(pipe: Any, batch: list[ImageJob], callback: Any) -> list[Any]:
        made = pipe(
            [job.request["prompt"] for job in batch],
            num_images_per_prompt=tiles,
            seed=[seed for job in batch for seed in job.request["seeds"]],
            batch_size=parsed.batch_size,
            callback_on_step_end=None if tiles > 1 else callback,
            **settings_for(batch[0]),
        ).images
        return [joined(made[at : at + tiles]) for at in range(0, len(made), tiles)]

    run_jobs(
        "eval",
        jobs_of(wanted, parsed),
        argparse.Namespace(**given),
        check,
        make,
        sheet=False,
    )


def joined(tiles: Sequence[Any]) -> Any:
    """Join a square of images, with the settings of the first; return a single image unchanged."""
    if len(tiles) == 1:
        return tiles[0]
    from triptych.evaluation.dpg import join_grid

    grid = join_grid(tiles, round(len(tiles) ** 0.5))
    metadata = metadata_of(tiles[0]).copy()
    del metadata["seed"]  # one of several, which are in "asked"
    return embed_metadata(grid, metadata)

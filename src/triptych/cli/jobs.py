"""Image jobs of a command: unfinished ones are run in batches or shards, with a progress bar."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from triptych.cli.arguments import generation_of, load_pipeline, model_of
from triptych.cli.devices import for_each
from triptych.cli.input_files import Request
from triptych.cli.output_folder import ImageJob, Output
from triptych.inference.generation_config import SETTINGS
from triptych.utils.documents import open_regular
from triptych.utils.limits import ALL_IMAGES
from triptych.utils.png_metadata import metadata_of
from triptych.utils.signals import is_first_rank

Make = Callable[[Any, list[ImageJob], Callable], list]
"""(pipeline, jobs of equal settings, callback) -> their images."""


def jobs_of(requests: Sequence[Request], parsed: Namespace, said: str = "prompt") -> list[ImageJob]:
    """One an image; files are named by id, or else by seed and number of the image."""
    common = generation_of(parsed)
    model = model_of(parsed)
    jobs: list[ImageJob] = []
    ALL_IMAGES.require(
        sum(each.num_images or parsed.num_images_per_prompt for each in requests),
        "the number of images",
    )
    for number, request in enumerate(requests):
        seed = parsed.seed + len(jobs) if request.seed is None else request.seed
        images = [_noted(image) for image in request.images]
        for copy in range(request.num_images or parsed.num_images_per_prompt):
            stem = (
                f"{request.id}-{copy:03d}" if request.id else f"{seed + copy:06d}-{len(jobs):03d}"
            )
            given = {**common, **request.options}
            asked = {
                **({said: request.text} if request.text else {}),
                **({"images": images} if images else {}),
                "seed": seed + copy,
                **{key: _as_json(value) for key, value in given.items() if value is not None},
                **model,
            }
            source = request.images[0] if request.images else None
            jobs.append(ImageJob(f"{stem}.png", request.id or str(number), asked, source))
    return jobs


def _as_json(value: Any) -> Any:
    """The value as results.jsonl gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _noted(image: Path) -> dict[str, str]:
    """Identity of an input image, independent of its folder."""
    with open_regular(image) as file:
        return {"name": image.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def run_jobs(
    command: str,
    jobs: list[ImageJob],
    parsed: Namespace,
    check: Callable[[Any], None],
    make: Make,
    stdin: str | None = None,
    sheet: bool = True,
) -> None:
    """Make the unfinished `jobs`, and report each: its path, a tab, its text.

    Args:
        check: function that refuses, by the loaded model, impossible jobs before any is made.
        make: function that makes the images of one batch.
        stdin: content of standard input, for processes that read it again.
        sheet: whether to write a grid.png to the folder.

    Raises:
        UserError: something is wrong with what is asked, with the folder, or with a device.
        SystemExit: in every process but the first of several.
    """
    output = Output(parsed.out or Path("out", command, folder_name(jobs)), jobs, sheet)
    part, parts = parsed.part
    mine = jobs[part::parts]
    left = output.left(mine)
    todo = list(batches(left, parsed.batch_size))
    try:
        with bar(len(mine), len(mine) - len(left), parsed.devices * parsed.num_nodes) as advance:

            def load(device: Any) -> tuple[Any, str]:
                pipe = load_pipeline(parsed, device)
                weights = digest_of(pipe)
                output.check_weights(weights)
                check(pipe)
                return pipe, weights

            def perform(loaded: tuple[Any, str], number: int) -> None:
                pipe, weights = loaded
                batch = todo[number]
                images = make(pipe, batch, within(advance, len(batch)))
                for job, image in zip(batch, images, strict=True):
                    tell(output, job, image, weights)

            if is_first_rank():
                waiting = {job.file for job in left}
                for job in mine:
                    if job.file not in waiting:
                        tell(output, job)
            for_each(parsed, len(todo), load, perform, stdin)
    except KeyboardInterrupt:
        print("triptych: interrupted; the same command goes on where it stopped.", file=sys.stderr)
        raise SystemExit(130) from None  # what a shell reports of a program that Ctrl-C ended
    finally:
        if is_first_rank():
            output.finish()


def folder_name(jobs: Sequence[ImageJob]) -> str:
    """The same for the same command, and another for another: its text, and a digest of all."""
    asked = json.dumps([job.request for job in jobs], sort_keys=True)
    words = re.findall(r"\w+", jobs[0].label)[:6]
    return f"{'-'.join(words)[:60]}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"


def digest_of(pipe: Any) -> str:
    """Hash of a pipeline's weights."""
    return pipe.digest


def tell(output: Output, job: ImageJob, image: Any = None, weights: str | None = None) -> None:
    """Save an image, if it is new, and print its line."""
    path = output.folder / job.file
    if image is not None:
        settings = metadata_of(image) | {"weights": weights}
        path = output.save(job, image, settings)
    print(f"{path}\t{job.label}", flush=True)


def batches(jobs: Sequence[ImageJob], size: int) -> Iterator[list[ImageJob]]:
    """Neighbours whose settings are the same, at most `size`."""

    def settings(job: ImageJob) -> list[Any]:
        return [job.request.get(key) for key in SETTINGS]

    for _, alike in groupby(jobs, settings):
        some = list(alike)
        yield from (some[at : at + size] for at in range(0, len(some), size))


def settings_for(job: ImageJob) -> dict[str, Any]:
    """The pipeline's arguments of a job."""
    return {key: job.request[key] for key in SETTINGS if key in job.request}


@contextmanager
def bar(total: int, done: int, devices: int = 1) -> Iterator[Callable[[float], None]]:
    """A progress bar of images on standard error; nothing where that is not a terminal.

    Args:
        devices: number of them; each image of this process stands for one on every device.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = sys.stderr.isatty() and is_first_rank()
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task("images", total=total, completed=done)
        yield lambda images: progress.advance(task, min(images * devices, _left(progress, task)))


def _left(progress: Any, task: Any) -> float:
    [shown] = [each for each in progress.tasks if each.id == task]
    return shown.total - shown.completed


def within(advance: Callable[[float], None], images: int) -> Callable[[Any], None]:
    """A pipeline's callback that moves the bar inside a batch: half for features, half for pixels.

    The bar counts whole images only, and shows the nearest below.
    """
    told = 0.0

    def callback(progress: Any) -> None:
        nonlocal told
        half = 0.5 * progress.step / progress.steps
        reached = images * (half if progress.stage == "features" else 0.5 + half)
        advance(reached - told)
        told = reached

    return callback

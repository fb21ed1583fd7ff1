"""Image jobs of a command: the unfinished ones are run in batches, with a progress bar."""

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
from triptych.cli.input_files import InputRequest
from triptych.cli.output_folder import ImageJob, OutputFolder
from triptych.inference.generation_config import SETTINGS
from triptych.utils.documents import open_regular
from triptych.utils.limits import ALL_IMAGES
from triptych.utils.png_metadata import metadata_of
from triptych.utils.signals import is_first_rank

Make = Callable[[Any, list[ImageJob], Callable], list]
"""Function of a pipeline, jobs of equal settings and a callback that returns the images."""


def jobs_of(
    requests: Sequence[InputRequest], parsed: Namespace, text_key: str = "prompt"
) -> list[ImageJob]:
    """Expand requests into one job per image. Files are named by id, or by seed and image number.

    Args:
        text_key: key of the text in the metadata of an image.
    """
    common = generation_of(parsed)
    model = model_of(parsed)
    jobs: list[ImageJob] = []
    ALL_IMAGES.require(
        sum(each.num_images or parsed.num_images_per_prompt for each in requests),
        "the number of images",
    )
    for number, request in enumerate(requests):
        seed = parsed.seed + len(jobs) if request.seed is None else request.seed
        images = [_identity(image) for image in request.images]
        for copy in range(request.num_images or parsed.num_images_per_prompt):
            stem = (
                f"{request.id}-{copy:03d}" if request.id else f"{seed + copy:06d}-{len(jobs):03d}"
            )
            given = {**common, **request.options}
            metadata = {
                **({text_key: request.text} if request.text else {}),
                **({"images": images} if images else {}),
                "seed": seed + copy,
                **{key: _as_json(value) for key, value in given.items() if value is not None},
                **model,
            }
            source = request.images[0] if request.images else None
            jobs.append(ImageJob(f"{stem}.png", request.id or str(number), metadata, source))
    return jobs


def _as_json(value: Any) -> Any:
    """Convert a value to the form in which JSON returns it."""
    return list(value) if isinstance(value, tuple) else value


def _identity(image: Path) -> dict[str, str]:
    """Identity of an input image, independent of its folder."""
    with open_regular(image) as file:
        return {"name": image.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def run_jobs(
    command: str,
    jobs: list[ImageJob],
    parsed: Namespace,
    *,
    check: Callable[[Any], None],
    make: Make,
    stdin: str | None = None,
    image_grid: bool = True,
) -> None:
    """Generate the images of the unfinished jobs, and print a line for each: path, tab, text.

    Args:
        check: function that refuses impossible jobs by the loaded model, before generation starts.
        make: function that generates the images of one batch.
        stdin: content of standard input, for processes that read it again.
        image_grid: whether to write grid.png to the folder.

    Raises:
        UserError: a request, the folder or a device is invalid.
        SystemExit: in every process but the first of several.
    """
    output = OutputFolder(parsed.out or Path("out", command, folder_name(jobs)), jobs, image_grid)
    part, parts = parsed.part
    mine = jobs[part::parts]
    unfinished = output.unfinished(mine)
    todo = list(batches(unfinished, parsed.batch_size))
    try:
        devices = parsed.devices * parsed.num_nodes
        with progress_bar(len(mine), len(mine) - len(unfinished), devices) as advance:

            def load(device: Any) -> tuple[Any, str]:
                pipe = load_pipeline(parsed, device)
                weights = weights_hash_of(pipe)
                output.check_weights(weights)
                check(pipe)
                return pipe, weights

            def compute(loaded: tuple[Any, str], number: int) -> None:
                pipe, weights = loaded
                batch = todo[number]
                images = make(pipe, batch, batch_progress(advance, len(batch)))
                for job, image in zip(batch, images, strict=True):
                    report(output, job, image, weights)

            if is_first_rank():
                remaining = {job.file for job in unfinished}
                for job in mine:
                    if job.file not in remaining:
                        report(output, job)
            for_each(parsed, len(todo), load, compute, stdin)
    except KeyboardInterrupt:
        print("triptych: interrupted; the same command resumes where it stopped.", file=sys.stderr)
        raise SystemExit(130) from None  # what a shell reports of a program that Ctrl-C ended
    finally:
        if is_first_rank():
            output.finish()


def folder_name(jobs: Sequence[ImageJob]) -> str:
    """Folder name determined by the requests: words of the first one, and a hash of all."""
    requests = json.dumps([job.request for job in jobs], sort_keys=True)
    words = re.findall(r"\w+", jobs[0].label)[:6]
    return f"{'-'.join(words)[:60]}-{hashlib.sha256(requests.encode()).hexdigest()[:8]}"


def weights_hash_of(pipe: Any) -> str:
    """Hash of a pipeline's weights."""
    return pipe.weights_hash


def report(
    output: OutputFolder, job: ImageJob, image: Any = None, weights: str | None = None
) -> None:
    """Save a new image, if one is given, and print the line of the job."""
    path = output.folder / job.file
    if image is not None:
        settings = metadata_of(image) | {"weights": weights}
        path = output.save(job, image, settings)
    print(f"{path}\t{job.label}", flush=True)


def batches(jobs: Sequence[ImageJob], size: int) -> Iterator[list[ImageJob]]:
    """Yield runs of consecutive jobs with equal settings, at most `size` each."""

    def settings(job: ImageJob) -> list[Any]:
        return [job.request.get(key) for key in SETTINGS]

    for _, group in groupby(jobs, settings):
        equal = list(group)
        yield from (equal[at : at + size] for at in range(0, len(equal), size))


def settings_for(job: ImageJob) -> dict[str, Any]:
    """Return the arguments of the pipeline for a job."""
    return {key: job.request[key] for key in SETTINGS if key in job.request}


@contextmanager
def progress_bar(total: int, done: int, devices: int = 1) -> Iterator[Callable[[float], None]]:
    """Show a progress bar of images on standard error, if that is a terminal.

    Args:
        devices: number of devices; an image of this process counts as one on each of them.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = sys.stderr.isatty() and is_first_rank()
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task("images", total=total, completed=done)
        yield lambda images: progress.advance(
            task, min(images * devices, _remaining(progress, task))
        )


def _remaining(progress: Any, task: Any) -> float:
    [shown] = [each for each in progress.tasks if each.id == task]
    return shown.total - shown.completed


def batch_progress(advance: Callable[[float], None], images: int) -> Callable[[Any], None]:
    """Return a step callback that advances the bar within a batch: half for features, half for
    pixels. The bar shows whole images, rounded down.
    """
    reported = 0.0

    def callback(progress: Any) -> None:
        nonlocal reported
        half = 0.5 * progress.step / progress.steps
        done = progress.portion + (half if progress.stage == "features" else 0.5 + half)
        reached = images * done / progress.portions
        advance(reached - reported)
        reported = reached

    return callback

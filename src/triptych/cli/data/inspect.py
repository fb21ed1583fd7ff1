"""`triptych data inspect`: counts, lengths, sizes and duplicates, and an image grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from triptych.cli.arguments import command_parser, parse
from triptych.cli.data.arguments import SOURCES, add_source, add_workers
from triptych.cli.data.printing import progress_bar
from triptych.utils.atomic_write import replacing
from triptych.utils.disk_usage import output_file
from triptych.utils.errors import UserError
from triptych.utils.limits import COUNT, IMAGES

EXAMPLES = """\
  triptych data inspect data/photos --out photos.png --num-images 24"""


def inspect(arguments: list[str]) -> None:
    """Print the counts, lengths and sizes of a data set."""
    description = "Print counts, lengths, sizes and duplicates of a data set."
    parser = command_parser("data inspect", f"{description}\n\n{SOURCES}", EXAMPLES, model=False)
    add_source(parser)
    parser.add_argument(
        "--out",
        type=output_file,
        metavar="FILE.png",
        help="image grid of samples to write; default none",
    )
    parser.add_argument(
        "--num-images",
        type=IMAGES,
        default=48,
        metavar="N",
        help="number of images in the grid; default %(default)s",
    )
    parser.add_argument(
        "--samples",
        type=COUNT,
        default=20000,
        metavar="N",
        help="number of samples to read, evenly spread; default %(default)s",
    )
    add_workers(parser)
    parsed = parse(parser, arguments)
    if parsed.out and parsed.out.suffix.lower() != ".png":
        raise UserError(f"the image grid {parsed.out} must be a .png (--out).")
    from triptych.data_modules.sources.detect import detect_source
    from triptych.data_modules.tools.inspect import collect_statistics, make_image_grid

    source = detect_source(parsed.source).open()
    with progress_bar("reading") as progress:
        statistics = collect_statistics(
            source, max_samples=parsed.samples, workers=parsed.workers, progress=progress
        )
    print("\n".join(report(source, statistics)))
    if parsed.out:
        grid = make_image_grid(source, parsed.num_images)
        with replacing(parsed.out) as file:
            grid.save(file, "PNG")
        print(f"images         {parsed.out}")


def report(source, statistics) -> Iterator[str]:
    """Counts, lengths, sizes and duplicates of a data set."""
    from triptych.data_modules.decode import Decoder
    from triptych.data_modules.tools.inspect import histogram, repeated

    shards = source.shard_sizes
    yield f"source           {source.name} ({type(source).__name__})"
    yield f"samples          {len(source):,}"
    yield f"shards           {len(shards):,}, samples in each: {_range(shards)}"
    if (samples := statistics.samples) < len(source):
        yield f"read             {samples:,} of them, evenly spread; what follows is of these"
    if statistics.words:
        yield f"caption words    {_range(statistics.words)}"
        yield from histogram(statistics.words)
        yield f"caption bytes    {_range(statistics.caption_bytes)}"
    if statistics.sizes:
        widths, heights = zip(*statistics.sizes, strict=True)
        formats = ", ".join(f"{name} {count:,}" for name, count in statistics.formats.most_common())
        yield f"formats          {formats}"
        yield f"image width    {_range(widths)} pixels"
        yield f"image height   {_range(heights)} pixels"
        common = Counter(statistics.sizes).most_common(5)
        yield "common sizes     " + ", ".join(f"{w}x{h} ({n:,})" for (w, h), n in common)
        yield f"image bytes    {_range(statistics.image_bytes)}"
    keys, captions, images = map(
        repeated, (statistics.keys, statistics.captions, statistics.images)
    )
    yield f"repeated         {keys:,} keys, {captions:,} captions, {images:,} images (same bytes)"
    problems = statistics.problems.copy()
    for index in getattr(source, "indexes", []):  # of shards
        problems.update({problem.reason: problem.samples for problem in index.problems})
    summary = ", ".join(f"{count:,} {reason}" for reason, count in problems.most_common())
    yield f"left out         {summary or 'nothing'}"
    if hint := Decoder().hint:
        yield f"note             {hint}"


def _range(values) -> str:
    """Minimum, maximum and median of some numbers."""
    ordered = sorted(int(value) for value in values)
    low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return f"{low:,} to {high:,}, median {middle:,}" if low != high else f"{low:,}"

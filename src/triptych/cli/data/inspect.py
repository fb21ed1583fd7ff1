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
    from triptych.data_modules.sources.detect import source_at
    from triptych.data_modules.tools.inspect import contact_sheet, examine

    source = source_at(parsed.source).open()
    with progress_bar("reading") as progress:
        stats = examine(source, parsed.samples, parsed.workers, progress)
    print("\n".join(report(source, stats)))
    if parsed.out:
        image_grid = contact_sheet(source, parsed.num_images)
        with replacing(parsed.out) as file:
            image_grid.save(file, "PNG")
        print(f"images         {parsed.out}")


def report(source, stats) -> Iterator[str]:
    """Yield the lines about counts, lengths, sizes and duplicates of a data set."""
    from triptych.data_modules.decode import Decoder
    from triptych.data_modules.tools.inspect import histogram, repeated

    shards = source.shard_sizes
    yield f"source           {source.name} ({type(source).__name__})"
    yield f"samples          {len(source):,}"
    yield f"shards           {len(shards):,}, samples in each: {_range(shards)}"
    if stats.samples < len(source):
        yield f"read             {stats.samples:,} of them, evenly spread, which the rest counts"
    if stats.words:
        yield f"caption words    {_range(stats.words)}"
        yield from histogram(stats.words)
        yield f"caption bytes    {_range(stats.caption_bytes)}"
    if stats.sizes:
        widths, heights = zip(*stats.sizes, strict=True)
        formats = ", ".join(f"{name} {count:,}" for name, count in stats.formats.most_common())
        yield f"formats          {formats}"
        yield f"image width    {_range(widths)} pixels"
        yield f"image height   {_range(heights)} pixels"
        common = Counter(stats.sizes).most_common(5)
        yield "common sizes     " + ", ".join(f"{w}x{h} ({n:,})" for (w, h), n in common)
        yield f"image bytes    {_range(stats.image_bytes)}"
    yield (
        f"repeated         {repeated(stats.keys):,} keys, {repeated(stats.captions):,} captions, "
        f"{repeated(stats.images):,} images (same bytes)"
    )
    problems = stats.problems.copy()
    for index in getattr(source, "indexes", []):  # of shards
        problems.update({problem.reason: problem.samples for problem in index.problems})
    summary = ", ".join(f"{count:,} {reason}" for reason, count in problems.most_common())
    yield f"left out         {summary or 'nothing'}"
    if hint := Decoder().hint:
        yield f"note             {hint}"


def _range(values) -> str:
    """Format the minimum, maximum and median of numbers."""
    ordered = sorted(int(value) for value in values)
    low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return f"{low:,} to {high:,}, median {middle:,}" if low != high else f"{low:,}"

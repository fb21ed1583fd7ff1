"""`triptych eval fid`: FID, KID and CLIP score of a folder of images."""

from __future__ import annotations

from pathlib import Path

from triptych.cli.arguments import (
    add_batch_size,
    command_parser,
    device_of,
    load_pipeline,
    parse,
)
from triptych.cli.eval.arguments import add_report, write_report

EXAMPLES = """\
  triptych eval fid --images-dir out/made --reference data/true --out fid.json
  triptych eval fid --images-dir out/made --reference data/shards \
--inception weights-inception-2015-12-05-6726825d.pth
  triptych eval fid --images-dir MJHQ/made --reference MJHQ/true --clip clip-vit-large-patch14

Without --inception, features come from the model's own image encoder, and figures can be compared
only with each other. Folders hold images or shards; see docs/metrics.md for captions and
categories."""


def fid(arguments: list[str]) -> None:
    """Compute FID and KID of a folder of images against another, and the CLIP score."""
    parser = command_parser(
        "eval fid", "Compute FID and KID, and the CLIP score if --clip is given.", EXAMPLES
    )
    add_report(parser)
    parser.add_argument(
        "--images-dir",
        type=Path,
        required=True,
        metavar="A",
        help="folder of the generated images, or of shards of them; required",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        required=True,
        metavar="B",
        help="folder of the real images, or of shards of them; required",
    )
    parser.add_argument(
        "--inception",
        type=Path,
        metavar="FILE",
        help="weight file of FID's Inception network; default the model's own image encoder",
    )
    parser.add_argument(
        "--clip",
        type=Path,
        metavar="FOLDER",
        help="folder of a CLIP model for the CLIP score; default no CLIP score",
    )
    add_batch_size(parser, "number of images read at once", 64)
    parsed = parse(parser, arguments)
    from triptych.evaluation.image_metrics import clip_score
    from triptych.evaluation.image_metrics import fid as benchmark
    from triptych.evaluation.image_metrics.feature_space import EncoderSpace, InceptionSpace
    from triptych.evaluation.image_sources import read_images
    from triptych.evaluation.provenance import add_provenance

    for folder in (parsed.images_dir, parsed.reference):
        read_images(folder)  # refuses a folder before a model is loaded
    judge = clip_score.ClipJudge(parsed.clip, device_of(parsed)) if parsed.clip else None
    if parsed.inception:
        space = InceptionSpace(parsed.inception, device_of(parsed))
    else:
        space = EncoderSpace(load_pipeline(parsed))
    report = benchmark.score(
        parsed.images_dir, parsed.reference, space, batch_size=parsed.batch_size
    )
    if judge is not None:
        clip = clip_score.score(parsed.images_dir, judge)
        report.scores |= clip.scores
        report.intervals |= clip.intervals
        report.numbers |= clip.numbers
        report.counts |= {name: clip.counts[name] for name in ("without_caption", "cut_captions")}
        report.settings["clip"] = clip.settings["clip"]
        report.judged_by += f"; {clip.judged_by}"
    add_provenance(report)
    write_report(report, parsed)

"""`triptych eval fid`: how far images are from true ones, and from their captions."""

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

Without --inception, the features are those of the model's own image encoder, and the figures
compare with each other alone. Folders of images or of shards; captions and categories as in
docs/metrics.md."""


def fid(arguments: list[str]) -> None:
    """FID and KID of a folder of images against another, and CLIP score"""
    parser = command_parser(
        "eval fid", "FID and KID, and CLIP score where a model is named.", EXAMPLES
    )
    add_report(parser)
    parser.add_argument(
        "--images-dir",
        type=Path,
        required=True,
        metavar="A",
        help="folder of the generated images, or of shards of them",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        required=True,
        metavar="B",
        help="folder of the real images, or of shards of them",
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
        read_images(folder)  # finds the files, and refuses the folder before a model is loaded
    judge = clip_score.ClipJudge(parsed.clip, device_of(parsed)) if parsed.clip else None
    if parsed.inception:
        space = InceptionSpace(parsed.inception, device_of(parsed))
    else:
        space = EncoderSpace(load_pipeline(parsed))
    report = benchmark.score(
        parsed.images_dir, parsed.reference, space, batch_size=parsed.batch_size
    )
    if judge is not None:
        fits = clip_score.score(parsed.images_dir, judge)
        report.scores |= fits.scores
        report.intervals |= fits.intervals
        report.numbers |= fits.numbers
        report.counts |= {name: fits.counts[name] for name in ("without_caption", "cut_captions")}
        report.settings["clip"] = fits.settings["clip"]
        report.judged_by += f"; {fits.judged_by}"
    add_provenance(report)
    write_report(report, parsed)

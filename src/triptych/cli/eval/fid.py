"""`triptych eval fid`: how far pictures are from true ones, and from their captions."""

from __future__ import annotations

from pathlib import Path

from triptych.cli.arguments import load, parse, parser_of
from triptych.cli.eval.arguments import add_report, device_of, hand_out
from triptych.utils.limits import BATCH

EXAMPLES = """\
  triptych eval fid --pictures out/made --reference data/true --out fid.json
  triptych eval fid --pictures out/made --reference data/shards \
--inception weights-inception-2015-12-05-6726825d.pth
  triptych eval fid --pictures MJHQ/made --reference MJHQ/true --clip clip-vit-large-patch14

Without --inception, the features are those of the model's own image encoder, and the figures
compare with each other alone. Folders of pictures or of shards; captions and categories as in
docs/metrics.md."""


def fid(arguments: list[str]) -> None:
    """FID and KID of a folder of pictures against another, and CLIP score"""
    parser = parser_of("eval fid", "FID and KID, and CLIP score where a model is named.", EXAMPLES)
    add_report(parser)
    parser.add_argument(
        "--pictures", type=Path, required=True, metavar="A", help="that were made: folder or shards"
    )
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="B", help="true ones: folder or shards"
    )
    parser.add_argument("--inception", type=Path, metavar="FILE", help="weights of FID's network")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="CLIP model, for the CLIP score")
    parser.add_argument("--batch-size", type=BATCH, default=64, help="default %(default)s")
    parsed, flags = parse(parser, arguments)
    from triptych.evaluation.image_metrics import clip_score
    from triptych.evaluation.image_metrics import fid as benchmark
    from triptych.evaluation.image_metrics.feature_space import EncoderSpace, InceptionSpace
    from triptych.evaluation.image_sources import read_pictures
    from triptych.evaluation.provenance import add_provenance

    for folder in (parsed.pictures, parsed.reference):
        read_pictures(folder)  # finds the files, and refuses the folder before a model is loaded
    judge = clip_score.ClipJudge(parsed.clip, device_of(parsed)) if parsed.clip else None
    if parsed.inception:
        space = InceptionSpace(parsed.inception, device_of(parsed))
    else:
        space = EncoderSpace(load(parsed, flags))
    report = benchmark.score(parsed.pictures, parsed.reference, space, batch_size=parsed.batch_size)
    if judge is not None:
        fits = clip_score.score(parsed.pictures, judge)
        report.scores |= fits.scores
        report.intervals |= fits.intervals
        report.numbers |= fits.numbers
        report.counts |= {name: fits.counts[name] for name in ("without_caption", "cut_captions")}
        report.settings["clip"] = fits.settings["clip"]
        report.judged_by += f"; {fits.judged_by}"
    add_provenance(report)
    hand_out(report, parsed)

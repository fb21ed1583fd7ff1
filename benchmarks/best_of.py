"""Best of N on the tiny preset: what ranking by the model itself gains, and what is left to gain.

    random    a candidate drawn at random: the score of N = 1, over all candidates
    self      the candidate that the model ranks highest, see `inference.model_ranker`
    oracle    the best candidate by the exact checker: the upper bound of every ranker

All three choose among the same candidates, those that `num_candidates=N` makes of the caption's
seed. Shares of captions whose chosen image is right, with 95% intervals: Wilson's of one image a
caption, a bootstrap over captions of the mean over candidates. `separation` is the probability that
the model ranks a right candidate above a wrong one of the same caption (1/2 is chance).

    python benchmarks/best_of.py --out benchmarks/results/best_of.json

The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from reporting import machine, versions, write_result
from torch import Tensor

from triptych.evaluation.shapes.shape_eval import examples
from triptych.evaluation.statistics import bootstrap, mean, wilson
from triptych.inference.best_of import candidate_seed
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.model_inference import ModelInference
from triptych.inference.model_ranker import ModelRanker
from triptych.inference.pipeline import UnifiedPipeline
from triptych.modules import UnifiedModule
from triptych.rewards import ShapesChecker

PACKAGES = ("torch", "transformers", "diffusers")
EVALUATION_SEED = 1 << 20
"""Seed of the first caption, away from those of the scores."""


def candidates(
    model: UnifiedModule, captions: list[str], number: int, batch: int
) -> tuple[Tensor, Tensor]:
    """Scores float [captions, candidates] by the model itself and by the checker."""
    inference, own, checker = ModelInference(model), ModelRanker(model), ShapesChecker()
    wanted = [(n, k) for n in range(len(captions)) for k in range(number)]
    ranks, right = [], []
    for at in range(0, len(wanted), batch):
        some = wanted[at : at + batch]
        prompts = [captions[n] for n, _ in some]
        seeds = [candidate_seed(EVALUATION_SEED + n, k) for n, k in some]
        images = inference.generate(prompts, seeds=seeds, config=GenerationConfig())
        ranks.append(own.scores(images, prompts))
        right.append(checker.scores(images, prompts))
    shape = len(captions), number
    return torch.cat(ranks).view(shape), torch.cat(right).view(shape)


def choices(ranks: Tensor, right: Tensor, number: int) -> dict[str, dict[str, object]]:
    """Shares of captions with a right image, of the first `number` candidates."""
    ranks, right = ranks[:, :number], right[:, :number]
    best = ranks.argmax(1)  # the first of equal ones, as in a call
    chosen = right[torch.arange(len(right)), best]
    of_all = bootstrap([right.tolist()], [1.0])
    return {
        "random": {"score": round(float(right.mean()), 4), "interval": _rounded(of_all)},
        "self": _share(chosen),
        "oracle": _share(right.amax(1)),
    }


def _share(right: Tensor) -> dict[str, object]:
    share = float(right.mean())
    return {"score": round(share, 4), "interval": _rounded(wilson(share, len(right)))}


def _rounded(interval: tuple[float, float] | None) -> list[float] | None:
    return interval and [round(each, 4) for each in interval]


def separation(ranks: Tensor, right: Tensor) -> float | None:
    """P(rank of a right candidate > rank of a wrong one), ties a half; the mean over captions."""
    found = []
    for own, truth in zip(ranks, right.bool(), strict=True):
        good, bad = own[truth], own[~truth]
        if len(good) and len(bad):
            above = (good[:, None] > bad).float() + 0.5 * (good[:, None] == bad).float()
            found.append(float(above.mean()))
    return round(mean(found), 4) if found else None


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file, with the machine as well")
    parser.add_argument("--from", dest="source", default="tiny", help="model to load")
    parser.add_argument("--captions", type=int, default=240)
    parser.add_argument("--split", choices=["eval", "unseen"], default="eval")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 4, 16], metavar="N")
    parser.add_argument("--question", help="in place of the preset's ranking_question")
    parser.add_argument("--batch-size", type=int, default=64)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    before, started = machine(), time.process_time()
    model = UnifiedPipeline.from_pretrained(parsed.source, device="cpu").model
    prompt = model.generation.prompt
    if parsed.question:
        model.generation.prompt = replace(prompt, ranking_question=parsed.question)
    captions = [sample.caption for sample in examples(parsed.split, parsed.captions)]
    ranks, right = candidates(model, captions, max(parsed.candidates), parsed.batch_size)
    table = {f"N={n}": choices(ranks, right, n) for n in sorted(parsed.candidates)}
    print(f"{'':6}" + "".join(f"{name:>26}" for name in ("random", "self", "oracle")))
    for name, row in table.items():
        cells = (f"{each['score']:.3f} {each['interval'] or ''}" for each in row.values())
        print(f"{name:6}" + "".join(f"{cell:>26}" for cell in cells))
    figures = {
        "captions": len(captions),
        "split": parsed.split,
        "question": model.generation.prompt.ranking_question,
        "table": table,
        "separation": separation(ranks, right),
        "cpu_seconds": round(time.process_time() - started, 1),
        "versions": versions(*PACKAGES),
    }
    write_result(parsed.out, figures, machine=before)


if __name__ == "__main__":
    main()

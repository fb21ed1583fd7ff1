"""Write the pictures and questions of `shapes_questions.yaml`: those of our own evaluation.

.venv/bin/python docs/lmms_eval/make_questions.py [PICTURES]
"""

import json
import sys
from pathlib import Path

from PIL import Image

from triptych.evaluation.shapes.shape_eval import ask_about, examples

FOLDER = Path("out/shapes_questions")


def main(pictures: int) -> None:
    """Two questions about each of the first held-out samples, `pictures` in number."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    samples = examples("eval", pictures)
    paths = [FOLDER / f"{n:04}.png" for n in range(pictures)]
    for sample, path in zip(samples, paths, strict=True):
        Image.fromarray(sample.picture).save(path)
    lines = [
        {"picture": str(paths[asked.number]), "question": asked.question, "answer": asked.answer}
        for asked in ask_about(samples)
    ]
    (FOLDER / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    print(f"{len(lines)} questions about {pictures} pictures in {FOLDER}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 120)

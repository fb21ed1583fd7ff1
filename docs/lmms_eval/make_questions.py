"""Write the images and questions of `shapes_questions.yaml`: those of our own evaluation.

.venv/bin/python docs/lmms_eval/make_questions.py [IMAGES]
"""

import json
import sys
from pathlib import Path

from PIL import Image

from triptych.evaluation.shapes.shape_eval import questions_about, examples

FOLDER = Path("out/shapes_questions")


def main(images: int) -> None:
    """Two questions about each of the first held-out samples, `images` in number."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    samples = examples("eval", images)
    paths = [FOLDER / f"{n:04}.png" for n in range(images)]
    for sample, path in zip(samples, paths, strict=True):
        Image.fromarray(sample.image).save(path)
    lines = [
        {"image": str(paths[asked.number]), "question": asked.question, "answer": asked.answer}
        for asked in questions_about(samples)
    ]
    (FOLDER / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    print(f"{len(lines)} questions about {images} images in {FOLDER}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 120)

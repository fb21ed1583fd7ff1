"""Models of the shapes world with known scores: perfect, shuffled, noise.

Use them to test evaluators without a trained model.
"""

import torch

from triptych.evaluation.shapes import shape_eval as scoring
from triptych.evaluation.shapes.edit_eval import edits
from triptych.shapes_world.world import draw

IMAGES = 36


def arrays_of(images):
    return images.permute(0, 2, 3, 1).contiguous().numpy()


class Perfect:
    """Draws, rebuilds and answers as the shapes world itself does."""

    def __init__(self, num_images=IMAGES):
        samples = scoring.examples("eval", num_images) + scoring.examples("unseen", num_images)
        self.drawn = {sample.caption: sample.image for sample in samples}
        asked = scoring.questions_about(samples[:num_images])
        self.known = {
            (samples[turn.number].image.tobytes(), turn.question): turn.answer for turn in asked
        }
        self.after = {
            (draw(edit.source).tobytes(), edit.instruction): draw(edit.target)
            for edit in edits(num_images)
        }
        self.sizes, self.seeds = [], []

    def generate(self, prompts, seeds, config=None):
        self.sizes.append(len(prompts))
        self.seeds += seeds
        return scoring.to_tensor([self.drawn[prompt] for prompt in prompts])

    def reconstruct(self, images, seeds, config=None):
        assert images.dtype == torch.uint8 and len(seeds) == len(images)
        return images

    def edit(self, images, instructions, seeds, config=None):
        self.sizes.append(len(images))
        self.seeds += seeds
        pairs = zip(arrays_of(images), instructions, strict=True)
        return scoring.to_tensor([self.after[p.tobytes(), text] for p, text in pairs])

    def answer(self, images, questions, max_new_tokens):
        arrays = arrays_of(images)
        return [
            self.known[image.tobytes(), question].upper() + "."
            for image, question in zip(arrays, questions, strict=True)
        ]


class Shuffled(Perfect):
    """Gives every caption the image of another one, and every image its neighbour's."""

    def __init__(self, num_images=IMAGES):
        super().__init__(num_images)
        images = list(self.drawn.values())
        self.drawn = dict(zip(self.drawn, images[1:] + images[:1], strict=True))

    def reconstruct(self, images, seeds, config=None):
        return images.roll(1, 0)

    def edit(self, images, instructions, seeds, config=None):
        return images  # whatever it is told

    def answer(self, images, questions, max_new_tokens):
        return ["yes"] * len(questions)


class Noise(Perfect):
    """Right or not by the seed alone."""

    def generate(self, prompts, seeds, config=None):
        images = super().generate(prompts, seeds)
        images[torch.tensor(seeds) % 3 == 0] = 77
        return images

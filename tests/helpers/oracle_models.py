"""Models of the shapes world with known scores: perfect, shuffled, noise.

Use them to test evaluators without a trained model.
"""

from types import SimpleNamespace

import numpy
import torch
from PIL import Image

from triptych.evaluation.shapes import shape_eval as scoring
from triptych.evaluation.shapes.edit_eval import edits
from triptych.evaluation.shapes.story_eval import next_turn
from triptych.shapes_world.checker import read
from triptych.shapes_world.world import draw

IMAGES = 36


def arrays_of(images):
    return images.permute(0, 2, 3, 1).contiguous().numpy()


class Perfect:
    """Draws, rebuilds and answers as the shapes world itself does."""

    def __init__(self, num_images=IMAGES):
        self.num_images = num_images
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

    def converse(self, conversations, seeds, max_new_tokens, config=None):
        self.sizes.append(len(conversations))
        self.seeds += seeds
        return [SimpleNamespace(content=self.reply(messages)) for messages in conversations]

    def reply(self, messages):
        """Content of a right answer to the last message of a story."""
        turn = self.turn_of(messages)
        if turn.request is None:
            return [turn.answer.upper() + "."]
        return [Image.fromarray(draw(turn.scene))]

    def turn_of(self, messages):
        shown = [p for m in messages for p in m["content"] if isinstance(p, Image.Image)]
        scene = read(numpy.asarray(shown[-1])) if shown else None
        place = [message["role"] for message in messages].count("user") - 1
        turns = (next_turn(number, place, scene) for number in range(self.num_images))
        return next(t for t in turns if t and t.prompt == messages[-1]["content"])


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

    def reply(self, messages):  # the first image again and again
        shown = [p for m in messages for p in m["content"] if isinstance(p, Image.Image)]
        return shown[:1] or super().reply(messages)


class Noise(Perfect):
    """Right or not by the seed alone."""

    def generate(self, prompts, seeds, config=None):
        images = super().generate(prompts, seeds)
        images[torch.tensor(seeds) % 3 == 0] = 77
        return images

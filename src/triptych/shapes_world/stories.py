"""Stories: conversations in which shapes are drawn, changed and asked about.

A story begins with a caption. Each turn after it is an edit of the last image, a question about it,
or an edit and a question at once. A turn's meaning is exact: a `Request` for its image, one correct
answer for its question.
"""

from dataclasses import dataclass
from typing import Literal

import numpy

from triptych.shapes_world.captions import TASKS, Request, is_evaluation_scene, pick, sample
from triptych.shapes_world.edits import EDITS, SPLITS, Edit, fits
from triptych.shapes_world.questions import questions
from triptych.shapes_world.world import Scene

Kind = Literal["draw", "edit", "question"]

DRAW_PHRASES = (*("draw {caption}",) * 3, "please draw {caption}", "{caption}")
"""Phrases of a first turn. `prompts.GENERATION_INSTRUCTION` is none: the texts of stage 1 answer it
with a list of what the caption asks for, and one prompt must not have two right answers."""
IMAGES = (2, 3, 4)
QUESTIONS = (1, 2)
BOTH = 0.1  # share of the image turns that ask a question about their image as well
TRIES = 100  # edits of one scene before another story is begun


@dataclass(frozen=True)
class Turn:
    """A message of the user with the meaning of the answer, an image or a text or both."""

    kind: Kind
    """"question" has no image."""
    prompt: str
    request: Request | None = None
    """Requirements on the image."""
    answer: str | None = None
    scene: Scene | None = None
    """A correct image."""


def draw_turn(rng: numpy.random.Generator, split: str, task: str | None = None) -> Turn:
    """Draw the first turn of a story, of one of the captions' `TASKS`."""
    caption, request, scene = sample(rng, task or pick(rng, TASKS), split)
    return Turn("draw", pick(rng, DRAW_PHRASES).format(caption=caption), request, None, scene)


def edit_turn(scene: Scene, rng: numpy.random.Generator, split: str) -> Turn | None:
    """Draw an edit of an image, whose result belongs to the split; None if there is none."""
    edit = _edit(scene, rng, split)
    return edit and Turn("edit", edit.instruction, edit.request, None, edit.target)


def question_turn(scene: Scene, rng: numpy.random.Generator) -> Turn:
    """Draw a question about an image."""
    ((question, answer, _),) = questions(scene, rng, 1)
    return Turn("question", question, None, answer)


def with_question(turn: Turn, rng: numpy.random.Generator) -> Turn:
    """A turn that also asks about the image it asks for, where any correct one has one answer.

    Only an edit leaves nothing open; a relation leaves a place open.
    """
    if turn.kind != "edit" or turn.request.relation:
        return turn
    asked = question_turn(turn.scene, rng)
    return Turn(turn.kind, f"{turn.prompt}. {asked.prompt}", turn.request, asked.answer, turn.scene)


def kinds_of_turns(rng: numpy.random.Generator) -> tuple[Kind, ...]:
    """Draw the kinds of a story's turns: two to four images, one or two questions."""
    later = ["edit"] * (pick(rng, IMAGES) - 1) + ["question"] * pick(rng, QUESTIONS)
    return ("draw", *(later[number] for number in rng.permutation(len(later))))


def sample_story(rng: numpy.random.Generator, split: str = "train") -> tuple[Turn, ...]:
    """Draw a story.

    In "train" no scene is reserved for evaluation, in "eval" all are, and no scene has a held-out
    pair.
    """
    if split not in SPLITS:
        raise ValueError(f"There are no stories in split {split!r}.")
    while True:
        turns: list[Turn] = []
        for kind in kinds_of_turns(rng):
            turn = _next(turns, kind, rng, split)
            if turn is None:
                break
            turns.append(turn)
        else:
            return tuple(turns)


def _next(turns: list[Turn], kind: Kind, rng: numpy.random.Generator, split: str) -> Turn | None:
    if kind == "draw":
        return draw_turn(rng, split)
    scene = last_scene(turns)
    if kind == "question":
        return question_turn(scene, rng)
    turn = edit_turn(scene, rng, split)
    return with_question(turn, rng) if turn and rng.random() < BOTH else turn


def last_scene(turns: list[Turn]) -> Scene:
    """The scene of the last image."""
    return [turn.scene for turn in turns if turn.scene is not None][-1]


def _edit(scene: Scene, rng: numpy.random.Generator, split: str) -> Edit | None:
    if not scene.shapes:
        return None
    for _ in range(TRIES):
        edit = EDITS[pick(rng, tuple(EDITS))](scene, rng)
        if fits(edit.target) and is_evaluation_scene(edit.target) == (split == "eval"):
            return edit
    return None


def messages_of(turns: tuple[Turn, ...]) -> list[dict]:
    """Messages of a story, its images named "0.jpg", "1.jpg" and so on."""
    messages, number = [], 0
    for turn in turns:
        content: list = []
        if turn.scene is not None:
            content.append({"image": f"{number}.jpg"})
            number += 1
        if turn.answer is not None:
            content.append(turn.answer)
        messages += [
            {"role": "user", "content": turn.prompt},
            {"role": "assistant", "content": content},
        ]
    return messages

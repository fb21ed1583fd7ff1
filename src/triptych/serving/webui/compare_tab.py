"""The tab that shows images of two models or settings side by side, and takes votes.

The human study of arXiv 2505.09568 is the model: both sides get the same prompt and seed, the
order is drawn for each pair, and the sides are revealed only after the vote.
"""

from __future__ import annotations

import html
import secrets
import uuid
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr
from PIL import Image

from triptych.inference.generation_config import SETTINGS
from triptych.serving.webui.controls import arguments, numbers, seed_row
from triptych.serving.webui.generate_tab import EXAMPLES
from triptych.serving.webui.session import ONE_AT_A_TIME, Page, errors_for_viewers, new_seed, status
from triptych.serving.webui.votes import CRITERIA, Choice, Tally, Vote, next_prompt
from triptych.utils.errors import UserError

BUTTONS = {
    "left": "← Left is better",
    "tie": "Tie",
    "both bad": "Both bad",
    "right": "Right is better →",
}
Side = Literal["a", "b"]


@dataclass
class Pair:
    """Two images of one prompt, as one viewer sees them."""

    trial: str
    prompt: str
    seed: int
    a: dict[str, Any]
    b: dict[str, Any]
    left: Side
    images: dict[Side, Image.Image]

    @property
    def right(self) -> Side:
        return "b" if self.left == "a" else "a"

    def choice(self, button: str) -> Choice:
        """The vote that a button means in this order."""
        return {"left": self.left, "right": self.right}.get(button, button)


def make_pair(
    page: Page, prompt: str, seed: int, sides: dict[Side, tuple[str, dict[str, Any]]]
) -> Pair:
    """Images of both sides (name of a source, arguments of `generate`), in an order by chance.

    Raises:
        UserError: both sides are the same, a source has no model, or as
            `UnifiedPipeline.generate`.
    """
    if sides["a"] == sides["b"]:
        raise UserError(
            "both sides are the same; choose another model or other settings under 'What is "
            "compared'."
        )
    images, settings = {}, {}
    for side, (source, given) in sides.items():
        output = page.models[source](prompt, seed=seed, **given)
        image, made_with = output.images[0], output.metadata[0]
        settings[side] = {k: v for k, v in made_with.items() if k not in ("prompt", "seed")}
        settings[side]["model"] = source
        images[side] = image.copy()  # a copy carries no settings: a download reveals nothing
    left = secrets.choice(("a", "b"))
    return Pair(uuid.uuid4().hex, prompt, seed, settings["a"], settings["b"], left, images)


def compare_tab(page: Page) -> None:
    """Inside a `gr.Tab`: the two sides, a pair of images, the vote, the tally."""
    with gr.Row(equal_height=False):
        prompt = gr.Textbox(
            label="Prompt", placeholder=EXAMPLES[0], elem_id="compare-prompt", scale=3
        )
        viewer = gr.Textbox(label="Your name", placeholder="kept with your votes", scale=1)
        criterion = gr.Dropdown(list(CRITERIA), value=CRITERIA[0], label="Which is better", scale=1)
    names = page.models.names
    with gr.Accordion("What is compared", open=len(names) == 1):
        with gr.Row():
            first, second = _side("First", names, names[0]), _side("Second", names, names[-1])
        seed, fresh = seed_row()
    with gr.Row():
        show = gr.Button("Show a pair", variant="primary", elem_id="show-pair")
        following = gr.Button("Next prompt of the list", visible=bool(page.prompts), elem_id="next")
    line = gr.HTML(status(None), padding=False)
    with gr.Row():
        left = _image(page, "Left", "left-image")
        right = _image(page, "Right", "right-image")
    with gr.Row():
        votes = {
            name: gr.Button(text, interactive=False, elem_id=f"vote-{name.replace(' ', '-')}")
            for name, text in BUTTONS.items()
        }
    told = gr.HTML(padding=False, elem_id="told")
    pair = gr.State(None)

    def images(prompt, seed, fresh, *sides):
        with errors_for_viewers():
            yield {
                pair: None,
                left: None,
                right: None,
                told: "",
                line: status(None, "making both images"),
                **{button: gr.Button(interactive=False) for button in votes.values()},
            }
            number = new_seed() if fresh or seed is None else seed
            half = len(sides) // 2
            made = make_pair(
                page,
                prompt,
                number,
                {
                    "a": (sides[0], arguments(sides[1:half])),
                    "b": (sides[half], arguments(sides[half + 1 :])),
                },
            )
            yield {
                pair: made,
                seed_box: number,
                left: page.write(made.images[made.left], "left"),
                right: page.write(made.images[made.right], "right"),
                line: status(None, f"{made.prompt} · seed {number}"),
                **{button: gr.Button(interactive=True) for button in votes.values()},
            }

    def vote(button, made, viewer, criterion):
        with errors_for_viewers():
            if made is None:
                raise UserError("there is no pair to vote on; show one first.")
            counted = page.votes.record(
                Vote(
                    made.trial,
                    made.prompt,
                    made.seed,
                    criterion,
                    made.a,
                    made.b,
                    made.left,
                    made.choice(button),
                    viewer.strip(),
                )
            )
            if not counted:
                gr.Warning("this pair was voted on already; it counts once.")
            tally = page.votes.tally(made.a, made.b, criterion)
            off = [gr.Button(interactive=False) for _ in votes]
            return [_told(made, button, tally, criterion), *off]

    def step(viewer, criterion):
        with errors_for_viewers():
            return next_prompt(page.prompts, page.votes.prompts_of(viewer.strip(), criterion))

    seed_box = seed
    making = {
        "fn": images,
        "inputs": [prompt, seed, fresh, *first, *second],
        "outputs": [pair, left, right, told, line, seed, *votes.values()],
        "show_progress": "minimal",
        "show_progress_on": line,
        "trigger_mode": "once",
        **ONE_AT_A_TIME,
    }
    gr.on([show.click, prompt.submit], **making)
    following.click(step, [viewer, criterion], prompt).success(**making)
    for name, button in votes.items():
        button.click(
            lambda *given, name=name: vote(name, *given),
            [pair, viewer, criterion],
            [told, *votes.values()],
            show_progress="hidden",
            trigger_mode="once",
        )


def _side(label: str, names: list[str], name: str) -> list[gr.components.Component]:
    """Controls of one side: its model and its settings."""
    with gr.Column(min_width=360):
        source = gr.Dropdown(names, value=name, label=label, elem_id=f"{label.lower()}-source")
        return [source, *numbers()]


def _image(page: Page, label: str, name: str) -> gr.Image:
    return gr.Image(
        label=label,
        height=360,
        elem_id=name,
        elem_classes=page.look,
        interactive=False,
        buttons=["fullscreen"],
    )


def _told(pair: Pair, button: str, tally: Tally, criterion: str) -> str:
    """HTML: which was which, and how all votes on these two stand."""
    differing = [key for key in SETTINGS if pair.a[key] != pair.b[key]]
    sides = {"left": pair.left, "right": pair.right}
    cells = "".join(
        f'<div class="{"won" if place == button else ""}"><b>{place.capitalize()}</b>: '
        f"{_named(getattr(pair, side), differing)}</div>"
        for place, side in sides.items()
    )
    return f'<div class="revealed">{cells}</div>{_standing(pair, differing, tally, criterion)}'


def _named(side: dict[str, Any], differing: list[str]) -> str:
    """A side by its model and by what sets it apart."""
    apart = [f"{key.replace('_', ' ')} {side[key]}" for key in differing]
    return html.escape(", ".join([str(side["model"]), *apart]))


def _standing(pair: Pair, differing: list[str], tally: Tally, criterion: str) -> str:
    a, b = _named(pair.a, differing), _named(pair.b, differing)
    share = "no side was preferred yet"
    if tally.share is not None:
        low, high = tally.interval
        share = f"{tally.share:.0%} of those who chose one (95% interval {low:.0%} to {high:.0%})"
    return (
        f"<p>Votes, {html.escape(criterion)}: {tally.a} for {a} · {tally.b} for {b} "
        f"· {tally.tie} tie · {tally.both_bad} both bad</p>"
        f"<p class='quiet'>{a} was preferred by {share}.</p>"
    )

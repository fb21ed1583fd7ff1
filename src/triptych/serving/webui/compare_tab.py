"""Tab that compares images of two models or settings side by side, with votes.

It follows the human study of arXiv 2505.09568: both sides get the same prompt and seed, their order
is random for each pair, and they are revealed after the vote.
"""

from __future__ import annotations

import html
import secrets
import uuid
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr
from PIL import Image

from triptych.inference.generation_config import PROMPT_SETTINGS
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
    """Two images of one prompt, in the order that one viewer sees."""

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
        """Return the vote of a button, which depends on the order."""
        return {"left": self.left, "right": self.right}.get(button, button)


def make_pair(
    page: Page, prompt: str, seed: int, sides: dict[Side, tuple[str, dict[str, Any]]]
) -> Pair:
    """Generate the images of both sides, in a random order.

    Args:
        sides: name of a model and arguments of its pipeline, by side.

    Raises:
        UserError: both sides are equal, a model does not exist, or an error of the pipeline.
    """
    if sides["a"] == sides["b"]:
        raise UserError(
            "both sides are the same; choose another model or other settings under "
            "'Models and settings'."
        )
    images, settings = {}, {}
    for side, (model, options) in sides.items():
        output = page.models[model](prompt, seed=seed, **options)
        image, metadata = output.images[0], output.metadata[0]
        settings[side] = {k: v for k, v in metadata.items() if k not in ("prompt", "seed")}
        settings[side]["model"] = model
        images[side] = image.copy()  # without metadata, which would reveal the model
    left = secrets.choice(("a", "b"))
    return Pair(uuid.uuid4().hex, prompt, seed, settings["a"], settings["b"], left, images)


def compare_tab(page: Page) -> None:
    """Build the tab: settings of both sides, a pair of images, votes, and their tally."""
    with gr.Row(equal_height=False):
        prompt = gr.Textbox(
            label="Prompt", placeholder=EXAMPLES[0], elem_id="compare-prompt", scale=3
        )
        viewer = gr.Textbox(label="Your name", placeholder="kept with your votes", scale=1)
        criterion = gr.Dropdown(list(CRITERIA), value=CRITERIA[0], label="Which is better", scale=1)
    names = page.models.names
    with gr.Accordion("Models and settings", open=len(names) == 1):
        with gr.Row():
            first, second = _side("First", names, names[0]), _side("Second", names, names[-1])
        seed, fresh = seed_row()
    with gr.Row():
        show = gr.Button("Show a pair", variant="primary", elem_id="show-pair")
        next_button = gr.Button(
            "Next prompt of the list", visible=bool(page.prompts), elem_id="next"
        )
    status_line = gr.HTML(status(None), padding=False)
    with gr.Row():
        left = _image(page, "Left", "left-image")
        right = _image(page, "Right", "right-image")
    with gr.Row():
        votes = {
            name: gr.Button(text, interactive=False, elem_id=f"vote-{name.replace(' ', '-')}")
            for name, text in BUTTONS.items()
        }
    result = gr.HTML(padding=False, elem_id="vote-result")
    pair = gr.State(None)

    def show_pair(prompt, seed, fresh, *sides):
        with errors_for_viewers():
            yield {
                pair: None,
                left: None,
                right: None,
                result: "",
                status_line: status(None, "generating both images"),
                **{button: gr.Button(interactive=False) for button in votes.values()},
            }
            number = new_seed() if fresh or seed is None else seed
            half = len(sides) // 2
            new_pair = make_pair(
                page,
                prompt,
                number,
                {
                    "a": (sides[0], arguments(sides[1:half])),
                    "b": (sides[half], arguments(sides[half + 1 :])),
                },
            )
            yield {
                pair: new_pair,
                seed_box: number,
                left: page.write(new_pair.images[new_pair.left], "left"),
                right: page.write(new_pair.images[new_pair.right], "right"),
                status_line: status(None, f"{new_pair.prompt} · seed {number}"),
                **{button: gr.Button(interactive=True) for button in votes.values()},
            }

    def vote(button, shown_pair, viewer, criterion):
        with errors_for_viewers():
            if shown_pair is None:
                raise UserError("there is no pair to vote on; show one first.")
            counted = page.votes.record(
                Vote(
                    trial=shown_pair.trial,
                    prompt=shown_pair.prompt,
                    seed=shown_pair.seed,
                    criterion=criterion,
                    a=shown_pair.a,
                    b=shown_pair.b,
                    left=shown_pair.left,
                    vote=shown_pair.choice(button),
                    viewer=viewer.strip(),
                )
            )
            if not counted:
                gr.Warning("this pair was voted on already; it counts once.")
            tally = page.votes.tally(shown_pair.a, shown_pair.b, criterion)
            disabled = [gr.Button(interactive=False) for _ in votes]
            return [_result(shown_pair, button, tally, criterion), *disabled]

    def advance(viewer, criterion):
        with errors_for_viewers():
            return next_prompt(page.prompts, page.votes.prompts_of(viewer.strip(), criterion))

    seed_box = seed
    events = {
        "fn": show_pair,
        "inputs": [prompt, seed, fresh, *first, *second],
        "outputs": [pair, left, right, result, status_line, seed, *votes.values()],
        "show_progress": "minimal",
        "show_progress_on": status_line,
        "trigger_mode": "once",
        **ONE_AT_A_TIME,
    }
    gr.on([show.click, prompt.submit], **events)
    next_button.click(advance, [viewer, criterion], prompt).success(**events)
    for name, button in votes.items():
        button.click(
            lambda *inputs, name=name: vote(name, *inputs),
            [pair, viewer, criterion],
            [result, *votes.values()],
            show_progress="hidden",
            trigger_mode="once",
        )


def _side(label: str, names: list[str], name: str) -> list[gr.components.Component]:
    """Add the controls of one side: model and settings."""
    with gr.Column(min_width=360):
        model = gr.Dropdown(names, value=name, label=label, elem_id=f"{label.lower()}-model")
        return [model, *numbers()]


def _image(page: Page, label: str, name: str) -> gr.Image:
    return gr.Image(
        label=label,
        height=360,
        elem_id=name,
        elem_classes=page.css_classes,
        interactive=False,
        buttons=["fullscreen"],
    )


def _result(pair: Pair, button: str, tally: Tally, criterion: str) -> str:
    """Return the HTML that reveals the sides and shows the tally of all votes on them."""
    differing = [key for key in PROMPT_SETTINGS if pair.a[key] != pair.b[key]]
    sides = {"left": pair.left, "right": pair.right}
    cells = "".join(
        f'<div class="{"won" if place == button else ""}"><b>{place.capitalize()}</b>: '
        f"{_side_name(getattr(pair, side), differing)}</div>"
        for place, side in sides.items()
    )
    return f'<div class="revealed">{cells}</div>{_tally_html(pair, differing, tally, criterion)}'


def _side_name(side: dict[str, Any], differing: list[str]) -> str:
    """Describe a side by its model and the settings that differ."""
    settings = [f"{key.replace('_', ' ')} {side[key]}" for key in differing]
    return html.escape(", ".join([str(side["model"]), *settings]))


def _tally_html(pair: Pair, differing: list[str], tally: Tally, criterion: str) -> str:
    a, b = _side_name(pair.a, differing), _side_name(pair.b, differing)
    share = "no side was preferred yet"
    if tally.share is not None:
        low, high = tally.interval
        share = f"{tally.share:.0%} of those who chose one (95% interval {low:.0%} to {high:.0%})"
    return (
        f"<p>Votes, {html.escape(criterion)}: {tally.a} for {a} · {tally.b} for {b} "
        f"· {tally.tie} tie · {tally.both_bad} both bad</p>"
        f"<p class='quiet'>{a} was preferred by {share}.</p>"
    )

"""Using a model: pictures from prompts, answers about pictures, edits, reconstructions.

pipe = UnifiedPipeline.from_pretrained("tiny")
pipe.generate("a red circle left of a blue square", images_per_prompt=4, seeds=7)
pipe.chat([{"role": "user", "content": [picture, "what colour is the circle?"]}])
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from triptych import __version__
from triptych.checkpoints.digest import weights_digest
from triptych.inference.chat_messages import Message, read_messages
from triptych.inference.generation_config import (
    Settings,
    Wanted,
    check_sampling,
    chunks,
    conversation_seeds,
    ranges,
    token_sampling,
    wanted_pictures,
)
from triptych.inference.loading import find_source, load_model
from triptych.inference.offload import require_room, take_turns
from triptych.inference.quantization import Quantize, require_quantizer
from triptych.inference.quantization import quantize as quantize_part
from triptych.interfaces import Condition
from triptych.modules import UnifiedModule
from triptych.modules.text_generation import Answer, write_answers
from triptych.prompts import PromptError, chat_ids
from triptych.sampler import model_calls
from triptych.training.execution import compile_blocks
from triptych.utils.callback_iterator import pieces
from triptych.utils.errors import UserError
from triptych.utils.images import Picture, open_picture, square
from triptych.utils.png_metadata import attach, shown_name

DTYPES = ("float32", "bfloat16", "float16")
PREVIEW_STEPS = 4  # of the decoder, where it has more


@dataclass
class Progress:
    """How far a call has come; what `callback` is given after every step of either sampler."""

    stage: Literal["features", "pixels"]
    """Image features are generated first, pixels decoded from them second."""
    step: int
    """Of this stage and these pictures; counted from 1. One is one call of the network."""
    steps: int
    pictures: range
    """Which of the call's pictures these are."""
    preview: Callable[[], list[Image.Image]]
    """Makes the pictures as they look at this step; costs a decoding."""


class UnifiedPipeline:
    """A model with its weights, and what people do with it.

    Calls from several threads take turns: one model computes one thing at a time.

    Args:
        model: built, with weights, in evaluation mode.
        name: of the model, for the settings in pictures.
        device: where to compute, if the model is not there; see `offload.take_turns`.
    """

    def __init__(
        self, model: UnifiedModule, name: str = "custom", device: torch.device | None = None
    ) -> None:
        self.model, self.name = model, name
        self.device = device or model.device
        self._turn = threading.RLock()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | Sequence[str | Path] = "tiny",
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        ema: bool = False,
        overrides: Sequence[str] = (),
        low_memory: bool = False,
        quantize: Quantize | None = None,
        compile: bool = False,
        trust_class: Sequence[str] = (),
    ) -> UnifiedPipeline:
        """Load a preset, a converted checkpoint, or a run of training; see `loading.find_source`.

        Args:
            source: "tiny", a model.yaml or several, a folder, a checkpoint, a weight file.
            device: where to compute; the first GPU if there is one, else the CPU.
            dtype: of all weights; float32 on the CPU and bfloat16 elsewhere by default.
            ema: the moving average of a training checkpoint in place of its last weights.
            overrides: flags such as "--model.generation.steps=30", as for `triptych fit`.
            low_memory: the networks wait on the CPU, each is on the device while it works.
            quantize: weights of "4bit" or "8bit" for the language model, by bitsandbytes.
            compile: torch.compile of all blocks: the first pictures take minutes, the next less
                than without.
            trust_class: packages, or classes of them, that the files of `source` may name beside
                triptych's own: importing them runs their code.

        Raises:
            UserError: there is no model there, its weights do not fit, memory does not suffice, or
                what `quantize` needs is not installed.
        """
        if quantize is not None:
            require_quantizer(quantize)
        found = find_source(source, ema)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype is None:
            dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
        dtype = str(dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise UserError(f"dtype is {dtype!r}; choose from {', '.join(DTYPES)}.")
        flags = [*found.overrides, *overrides]
        if dtype != "float32":  # weights are never held in float32 on their way
            flags.append(f"--model.execution.frozen_dtype={dtype}")
        model = load_model(found.configs, flags, trained=found.trained, trust_class=trust_class).to(
            getattr(torch, dtype)
        )
        if quantize is not None:
            quantize_part(model.understanding.understander, quantize)
        if compile:
            compile_blocks(model)
        if low_memory:
            take_turns(model, where)
        else:
            require_room(model, where)
            model = model.to(where)
        return cls(model, _name(source), where)

    @cached_property
    def digest(self) -> str:
        """What tells the weights from others, whatever their file is called."""
        return weights_digest(self.model)

    def generate(
        self,
        prompts: str | Sequence[str],
        images_per_prompt: int = 1,
        seeds: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        decoder_steps: int | None = None,
        decoder_guidance: float | None = None,
        negative: str | None = None,
        batch_size: int = 16,
        callback: Callable[[Progress], None] | None = None,
        sampler: str | None = None,
        decoder_sampler: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
    ) -> list[Image.Image]:
        """Pictures for prompts, `images_per_prompt` of the first, then of the second, and so on.

        Each follows from its prompt, its seed and the settings alone, up to rounding, whatever
        else is in its batch. Saved as PNG, it carries them.

        Args:
            prompts: one or several, of any lengths.
            images_per_prompt: how many pictures each prompt gets.
            seeds: one for each picture; or one number, the first picture's, the next one's being
                one more; None draws them.
            steps, guidance: of the generator of features.
            decoder_steps, decoder_guidance: of the decoder.
            negative: what guidance leads away from, in place of the learned null.
            batch_size: most pictures at once: memory grows with it.
            callback: told of every call of either network; what it raises ends the call.
            sampler, decoder_sampler: how either diffusion is integrated: "euler", as published, or
                one that needs fewer steps; see `solvers`.
            guidance_interval: (low, high) in t from 0 to 1, 1 being noise: `guidance` works there
                alone.

        Raises:
            UserError: a prompt is empty or too long, or a number makes no sense; before any work.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        self.model.prompt_rows([*prompts, *([negative] if negative else [])])
        wanted = wanted_pictures(prompts, images_per_prompt, seeds)
        settings = Settings(
            steps=steps,
            guidance=guidance,
            decoder_steps=decoder_steps,
            decoder_guidance=decoder_guidance,
            negative=negative or None,
            batch_size=batch_size,
            sampler=sampler,
            decoder_sampler=decoder_sampler,
            guidance_interval=guidance_interval,
        )
        with self._turn, _sufficient_memory(batch_size):
            conditions = self._conditions(prompts, None, batch_size)
            return self._paint(conditions, wanted, settings, callback)

    def edit(
        self,
        images: Picture | Sequence[Picture],
        instructions: str | Sequence[str],
        images_per_prompt: int = 1,
        seeds: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        decoder_steps: int | None = None,
        decoder_guidance: float | None = None,
        batch_size: int = 16,
        callback: Callable[[Progress], None] | None = None,
        sampler: str | None = None,
        decoder_sampler: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
    ) -> list[Image.Image]:
        """Pictures changed as instructions say; one instruction for each picture. As `generate`.

        The model sees the picture and writes a new one: a model that was not trained on edits
        does not follow.

        Raises:
            UserError: a picture cannot be read, there are not as many instructions as pictures, or
                as `generate`.
        """
        images = [images] if isinstance(images, Picture) else list(images)
        instructions = [instructions] if isinstance(instructions, str) else list(instructions)
        if len(images) != len(instructions):
            raise UserError(
                f"{len(images)} pictures and {len(instructions)} instructions; give one each."
            )
        self.model.prompt_rows(instructions, pictured=True)
        wanted = wanted_pictures(instructions, images_per_prompt, seeds)
        size = self.model.preprocessing().understanding_size
        pictures = torch.stack([square(open_picture(image), size) for image in images])
        settings = Settings(
            steps=steps,
            guidance=guidance,
            decoder_steps=decoder_steps,
            decoder_guidance=decoder_guidance,
            negative=None,
            batch_size=batch_size,
            sampler=sampler,
            decoder_sampler=decoder_sampler,
            guidance_interval=guidance_interval,
        )
        with self._turn, _sufficient_memory(batch_size):
            conditions = self._conditions(instructions, pictures, batch_size)
            return self._paint(conditions, wanted, settings, callback)

    def reconstruct(
        self,
        images: Picture | Sequence[Picture],
        seeds: int | Sequence[int] = 0,
        steps: int | None = None,
        batch_size: int = 16,
        sampler: str | None = None,
    ) -> list[Image.Image]:
        """Pictures through the image encoder and the decoder: what the features keep of them.

        Raises:
            UserError: a picture cannot be read, there is no such sampler, or the model has no
                encoder.
        """
        images = [images] if isinstance(images, Picture) else list(images)
        check_sampling(steps, sampler)
        pictures = self._squares(images)
        wanted = wanted_pictures([""] * len(images), 1, seeds)
        with self._turn, _sufficient_memory(batch_size):
            made = [
                self.model.reconstruct(part, [each.seed for each in some], steps, sampler)
                for part, some in zip(
                    pictures.split(batch_size), chunks(wanted, batch_size), strict=True
                )
            ]
        return _images(torch.cat(made))

    @torch.no_grad()
    def encode(self, images: Picture | Sequence[Picture], batch_size: int = 16) -> Tensor:
        """Features float32 [B,C,h,w] of pictures, those that are generated and decoded.

        Raises:
            UserError: a picture cannot be read, or the model has no encoder.
        """
        images = [images] if isinstance(images, Picture) else list(images)
        with self._turn, _sufficient_memory(batch_size):
            parts = self._squares(images).split(batch_size)
            return torch.cat([self.model.encode(part) for part in parts])

    def chat(
        self,
        messages: Sequence[dict[str, Any] | Message],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stream: bool = False,
    ) -> str | Iterator[str]:
        """The answer to a conversation; see `chat_messages.read_messages` for its shape.

        Prompt and answer together have at most as many tokens as the model takes.

        Args:
            max_new_tokens: the answer ends here at the latest.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn.
            top_p: drawn from the likeliest that together have this probability.
            seed: of the draws; None draws it.
            stream: give pieces of the answer as they are written; closing the iterator ends it.

        Raises:
            UserError: the conversation has another shape, is too long, or a picture is unreadable;
                or a number makes no sense. Before any work, also when streaming.
        """
        options = (max_new_tokens, temperature, top_p, seed)
        if not stream:
            return self.chat_batch([messages], *options)[0].text
        answer = self._answering([messages], *options)
        return pieces(lambda tell: answer(lambda _, piece: tell(piece)))

    def chat_batch(
        self,
        conversations: Sequence[Sequence[dict[str, Any] | Message]],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Answer]:
        """Answers to several conversations, written at once; as `chat`.

        Args:
            seed: one for each conversation; or the first one's, the next one's being one more.
            on_text: told of (number of the conversation, new piece of its answer); what it raises
                ends the call.
        """
        answer = self._answering(conversations, max_new_tokens, temperature, top_p, seed)
        return answer(on_text)

    # Inside --------------------------------------------------------------------------------------

    def _answering(
        self,
        conversations: Sequence[Sequence[dict[str, Any] | Message]],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | Sequence[int] | None,
    ) -> Callable[[Callable[[int, str], None] | None], list[Answer]]:
        """Everything about conversations that can be wrong is checked; what is left is to write."""
        panel = self.model.understanding
        seeds = conversation_seeds(seed, len(conversations))
        sampling = token_sampling(max_new_tokens, temperature, top_p, seeds)
        read = [read_messages(each) for each in conversations]
        if panel.pictures_first:
            read = [[replace(m, content=sorted(m.content, key=_is_text)) for m in t] for t in read]
        pictures = [part for talk in read for m in talk for part in m.content if not _is_text(part)]
        shown, tokens = panel.show(pictures) if pictures else (None, [])
        sizes = iter(tokens)
        turns = [
            [(m.role, [p if _is_text(p) else next(sizes) for p in m.content]) for m in talk]
            for talk in read
        ]
        rows = []
        for number, talk in enumerate(turns):
            try:
                rows.append(chat_ids(panel.understander.tokenizer, talk, panel.chat_tokens))
            except PromptError as error:
                error.conversation = number
                raise
        limits = [min(max_new_tokens, panel.chat_tokens - len(row)) for row in rows]

        def answer(on_text: Callable[[int, str], None] | None) -> list[Answer]:
            parts = (panel.understander, rows, shown, limits, self.device, sampling, on_text)
            with self._turn, _sufficient_memory(len(rows), "conversations"):
                return write_answers(*parts)

        return answer

    def _squares(self, images: Sequence[Picture]) -> Tensor:
        """uint8 [B,3,H,W] as the image encoder takes them."""
        self.model.require_encoder()
        size = self.model.encoder.image_size
        return torch.stack([square(open_picture(image), size) for image in images])

    def _conditions(self, texts: list[str], pictures: Tensor | None, batch_size: int) -> Tensor:
        """Conditions [P,N,D], one a prompt however many pictures it gets.

        A text that comes several times without a picture is read once, say of a server's requests.
        """
        places = list(range(len(texts)))
        if pictures is None:
            numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
            places, texts = [numbers[text] for text in texts], list(numbers)
        parts = range(0, len(texts), batch_size)
        made = [
            self.model.condition(
                texts[at : at + batch_size],
                None if pictures is None else pictures[at : at + batch_size],
            ).states
            for at in parts
        ]
        return torch.cat(made)[places]

    def _paint(
        self,
        conditions: Tensor,
        wanted: list[Wanted],
        settings: Settings,
        callback: Callable[[Progress], None] | None,
    ) -> list[Image.Image]:
        """All features first, then all pixels: each part of the model has one turn a call."""
        parts = list(chunks(wanted, settings.batch_size))
        features = self._features(conditions, parts, settings, callback)
        pixels = self._pixels(features, parts, settings, callback)
        return [
            attach(_image(each), self._note(one, settings))
            for each, one in zip(torch.cat(pixels), wanted, strict=True)
        ]

    def _features(
        self,
        conditions: Tensor,
        parts: list[list[Wanted]],
        settings: Settings,
        callback: Callable[[Progress], None] | None,
    ) -> list[Tensor]:
        """Features [B,C,h,w] of each part."""
        generation, made = self.model.generation, []
        null = None
        if settings.negative is not None:
            null = self.model.condition([settings.negative]).states
        calls = generation.model_calls(settings.steps, settings.sampler)
        for part, pictures in zip(parts, ranges(parts), strict=True):
            seeds = [each.seed for each in part]
            preview = partial(self._preview, seeds=seeds, settings=settings)

            def tell(step: int, _: Tensor, estimate: Tensor, pictures=pictures, preview=preview):
                shown = partial(preview, estimate)
                callback(Progress("features", step + 1, calls, pictures, shown))

            made.append(
                generation.sample(
                    Condition(conditions[[each.prompt for each in part]]),
                    seeds,
                    settings.steps,
                    settings.guidance,
                    tell if callback else None,
                    null,
                    settings.sampler,
                    settings.guidance_interval,
                )
            )
        return made

    def _pixels(
        self,
        features: list[Tensor],
        parts: list[list[Wanted]],
        settings: Settings,
        callback: Callable[[Progress], None] | None,
    ) -> list[Tensor]:
        """Pictures uint8 [B,3,H,W] of each part."""
        decoder, made = self.model.decoding.decoder, []
        calls = model_calls(
            settings.decoder_sampler or decoder.sampler, settings.decoder_steps or decoder.steps
        )
        for some, part, pictures in zip(features, parts, ranges(parts), strict=True):

            def tell(step: int, pixels: Callable[[], Tensor], pictures=pictures) -> None:
                callback(Progress("pixels", step + 1, calls, pictures, lambda: _images(pixels())))

            made.append(
                self.model.decode(
                    some,
                    [each.seed for each in part],
                    settings.decoder_steps,
                    settings.decoder_guidance,
                    settings.decoder_sampler,
                    tell if callback else None,
                )
            )
        return made

    def _preview(self, features: Tensor, seeds: list[int], settings: Settings) -> list[Image.Image]:
        """Pictures of unfinished features, decoded in haste."""
        steps = min(PREVIEW_STEPS, settings.decoder_steps or self.model.decoding.decoder.steps)
        return _images(
            self.model.decode(
                features, seeds, steps, settings.decoder_guidance, settings.decoder_sampler
            )
        )

    def _note(self, one: Wanted, settings: Settings) -> dict[str, Any]:
        """What a picture followed from."""
        generation, decoder = self.model.generation, self.model.decoding.decoder
        return {
            "prompt": one.text,
            "seed": one.seed,
            "steps": settings.steps or generation.steps,
            "guidance": generation.guidance if settings.guidance is None else settings.guidance,
            "decoder_steps": settings.decoder_steps or decoder.steps,
            "decoder_guidance": (
                decoder.guidance if settings.decoder_guidance is None else settings.decoder_guidance
            ),
            "sampler": settings.sampler or generation.sampler,
            "decoder_sampler": settings.decoder_sampler or decoder.sampler,
            "guidance_interval": settings.guidance_interval,
            "negative": settings.negative,
            "model": self.name,
            "weights": self.digest,
            "triptych": __version__,
        }


def _name(source: str | Path | Sequence[str | Path]) -> str:
    return " ".join(map(shown_name, [source] if isinstance(source, str | Path) else source))


def _is_text(part: str | Image.Image) -> bool:
    return isinstance(part, str)


def _image(pixels: Tensor) -> Image.Image:
    """uint8 [3,H,W] as a picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def _images(pixels: Tensor) -> list[Image.Image]:
    """uint8 [B,3,H,W] as pictures."""
    return [_image(each) for each in pixels]


@contextmanager
def _sufficient_memory(batch_size: int, what: str = "pictures") -> Iterator[None]:
    """Say what to lower where memory does not suffice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not short and "not enough memory" not in str(error):  # what torch says of a CPU's
            raise
        remedy = "lower batch_size" if what == "pictures" else "give fewer at once, or shorter ones"
        raise UserError(
            f"{batch_size} {what} at once need more memory than there is; {remedy}, or load the "
            "model with low_memory, or quantize its language model to 8bit or 4bit."
        ) from error

"""A model and everything that people do with it.

from triptych import UnifiedPipeline

pipe = UnifiedPipeline.from_pretrained("tiny")
images = pipe("a red circle left of a blue square", num_images_per_prompt=4, seed=7).images
pipe.edit(images[0], prompt="make the circle green").images[0]
pipe.chat([{"role": "user", "content": [images[0], "what colour is the circle?"]}])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from triptych import __version__
from triptych.inference.argument_names import named_arguments
from triptych.inference.chat import OnText, prepare_answers
from triptych.inference.chat_messages import Conversation
from triptych.inference.generation_config import (
    DECODER_SETTINGS,
    FIELDS,
    SETTINGS,
    GenerationConfig,
)
from triptych.inference.image_batches import ImageBatches, OnStepEnd
from triptych.inference.image_batches import Progress as Progress
from triptych.inference.image_generation import encode, prompt_rows, require_encoder
from triptych.inference.image_output import ImageOutput, OutputType, check_output_type, image_output
from triptych.inference.image_requests import Generators, ImageRequest, Seeds, image_requests
from triptych.inference.offload import sufficient_memory
from triptych.inference.pretrained import PretrainedModel
from triptych.modules.text_generation import ChatOutput
from triptych.utils.callback_iterator import iterate_callback
from triptych.utils.errors import UserError
from triptych.utils.images import ImageInput, open_image, square
from triptych.utils.limits import BATCH


class UnifiedPipeline(PretrainedModel):
    """A model with its weights; calling it makes images.

    `from_pretrained` loads one; `to`, `enable_model_cpu_offload` and `save_pretrained` are those of
    diffusers. Calls from several threads take turns: one model computes one thing at a time.
    """

    # 1. Images ------------------------------------------------------------------------------------

    @named_arguments("the pipeline", FIELDS)
    def __call__(
        self,
        prompt: str | Sequence[str] = (),
        *,
        generation_config: GenerationConfig | None = None,
        generator: Generators = None,
        batch_size: int = 16,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        **settings: Any,
    ) -> ImageOutput | tuple:
        """Images of prompts, `num_images_per_prompt` of the first, then of the second, and so on.

        Each follows from its prompt, its seed and the settings alone, up to rounding, whatever
        else is in its batch. A Pillow image that is saved as PNG carries them.

        Args:
            prompt: one or several, of any lengths.
            generation_config: settings; those that are given by name win.
            generator: draws the seeds; one, or one an image.
            batch_size: largest number of images at once: memory grows with it.
            output_type: "pil", "np" or "pt", as in diffusers.
            return_dict: False returns (images, metadata).
            callback_on_step_end: gets a `Progress` after every step of either network; an exception
                that it raises ends the call.
            settings: fields of `GenerationConfig`, such as num_inference_steps and guidance_scale.

        Raises:
            UserError: a prompt is empty or too long, or an argument is out of range. Raised before
        any computation.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        config = replace(generation_config or GenerationConfig(), **settings)
        negative = [] if config.negative_prompt is None else [config.negative_prompt]
        self.check_prompts([*prompts, *negative])
        requests = _requests(prompts, config, generator)
        batches = self._batches(config, batch_size, output_type, callback_on_step_end)
        with self._turn, sufficient_memory(batch_size):
            pixels = batches.generate(batches.conditions(prompts, None), requests)
            return image_output(pixels, self._metadata(requests, config), output_type, return_dict)

    @named_arguments("edit", FIELDS)
    def edit(
        self,
        image: ImageInput | Sequence[ImageInput],
        *,
        prompt: str | Sequence[str] = (),
        generation_config: GenerationConfig | None = None,
        generator: Generators = None,
        batch_size: int = 16,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        **settings: Any,
    ) -> ImageOutput | tuple:
        """Images changed as prompts say, one prompt for each image; arguments as of a call.

        The model sees the image and writes a new one: a model that was not trained on edits does
        not follow.

        Raises:
            UserError: an image cannot be read, there are not as many prompts as images, or as a
                call.
        """
        images, prompts = _listed(image), [prompt] if isinstance(prompt, str) else list(prompt)
        if len(images) != len(prompts):
            raise UserError(f"{len(images)} images and {len(prompts)} prompts; give one each.")
        config = replace(generation_config or GenerationConfig(), **settings)
        self.check_prompts(prompts, with_image=True)
        self.check_prompts([config.negative_prompt] if config.negative_prompt else [])
        requests = _requests(prompts, config, generator)
        batches = self._batches(config, batch_size, output_type, callback_on_step_end)
        shown = _squares(images, self.model.preprocessing().understanding_size)
        with self._turn, sufficient_memory(batch_size):
            pixels = batches.generate(batches.conditions(prompts, shown), requests)
            return image_output(pixels, self._metadata(requests, config), output_type, return_dict)

    @named_arguments("reconstruct", DECODER_SETTINGS)
    def reconstruct(
        self,
        image: ImageInput | Sequence[ImageInput],
        *,
        seed: Seeds = 0,
        batch_size: int = 16,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        **settings: Any,
    ) -> ImageOutput | tuple:
        """Pass images through the image encoder and the decoder, to see what the features keep.

        Args:
            settings: fields of `GenerationConfig` that begin with decoder_.

        Raises:
            UserError: an image cannot be read, the sampler is unknown, or the model has no
                encoder.
        """
        images, config = _listed(image), GenerationConfig(**settings)
        batches = self._batches(config, batch_size, output_type, None)
        require_encoder(self.model)
        squares = _squares(images, self.model.encoder.image_size)
        requests = image_requests([""] * len(images), 1, seed)
        with self._turn, sufficient_memory(batch_size):
            pixels = batches.reconstruct(squares, requests)
            notes = self._metadata(requests, config, DECODER_SETTINGS)
            return image_output(pixels, notes, output_type, return_dict)

    @named_arguments("encode")
    @torch.no_grad()
    def encode(self, image: ImageInput | Sequence[ImageInput], *, batch_size: int = 16) -> Tensor:
        """Features float32 [B,C,h,w] of images, those that are generated and decoded.

        Raises:
            UserError: an image cannot be read, or the model has no encoder.
        """
        require_encoder(self.model)
        squares = _squares(_listed(image), self.model.encoder.image_size)
        with self._turn, sufficient_memory(batch_size):
            return torch.cat([encode(self.model, part) for part in squares.split(batch_size)])

    def check_prompts(self, prompts: Sequence[str], *, with_image: bool = False) -> None:
        """Refuse prompts before long work; those `with_image` say how to change one.

        Raises:
            UserError: a prompt is empty or too long.
        """
        prompt_rows(self.model, list(prompts), with_image=with_image)

    # 2. Text --------------------------------------------------------------------------------------

    @named_arguments("chat")
    def chat(
        self,
        messages: Conversation,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stream: bool = False,
    ) -> str | Iterator[str]:
        """The answer to a text or a conversation; see `chat_messages.read_messages`.

        Prompt and answer together have at most as many tokens as the model takes.

        Args:
            max_new_tokens: largest number of tokens of the answer.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn.
            top_p: drawn from the likeliest that together have this probability.
            seed: seed of the draws; None draws it.
            stream: give pieces of the answer as they are written; closing the iterator ends it.

        Raises:
            UserError: the conversation is malformed or too long, an image is unreadable,
                or an argument is out of range. Raised before any computation, also when streaming.
        """
        answer = self._answering(
            [messages],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        if not stream:
            return answer(None)[0].text
        return iterate_callback(lambda tell: answer(lambda _, piece: tell(piece)))

    @named_arguments("chat_batch")
    def chat_batch(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: Seeds = None,
        on_text: OnText | None = None,
    ) -> list[ChatOutput]:
        """Answer several conversations in one batch, with the options of `chat`.

        Args:
            seed: one for each conversation; or the first one's, the next one's being one more.
            on_text: gets (number of the conversation, new piece of its answer); an exception that
                it raises ends the call.
        """
        answer = self._answering(
            conversations,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        return answer(on_text)

    def _answering(
        self, conversations: Sequence[Conversation], **sampling: Any
    ) -> Callable[[OnText | None], list[ChatOutput]]:
        write = prepare_answers(self.model, self.device, conversations, **sampling)

        def answer(on_text: OnText | None) -> list[ChatOutput]:
            with self._turn, sufficient_memory(len(conversations), "conversations"):
                return write(on_text)

        return answer

    # Inside ---------------------------------------------------------------------------------------

    def _batches(
        self, config: GenerationConfig, batch_size: int, output_type: str, callback: Any
    ) -> ImageBatches:
        BATCH.require(batch_size, "batch_size")
        check_output_type(output_type)
        if callback is not None:
            try:
                inspect.signature(callback).bind(None)
            except TypeError:
                raise UserError(
                    "callback_on_step_end takes one argument, a Progress with stage, step, steps, "
                    "images and preview(); change its signature."
                ) from None
        return ImageBatches(self.model, config, batch_size, callback)

    def _metadata(
        self,
        requests: list[ImageRequest],
        config: GenerationConfig,
        names: Sequence[str] = SETTINGS,
    ) -> list[dict[str, Any]]:
        created_by = {"model": self.name, "weights": self.weights_hash, "triptych": __version__}
        values = config.resolved(self.model)
        common = {name: values[name] for name in names} | created_by
        return [
            ({"prompt": each.prompt} if each.prompt else {}) | {"seed": each.seed} | common
            for each in requests
        ]


def _requests(
    prompts: list[str], config: GenerationConfig, generator: Generators
) -> list[ImageRequest]:
    return image_requests(prompts, config.num_images_per_prompt, config.seed, generator)


def _listed(image: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    return [image] if isinstance(image, ImageInput) else list(image)


def _squares(images: Sequence[ImageInput], size: int) -> Tensor:
    """uint8 [B,3,size,size]."""
    return torch.stack([square(open_image(image), size) for image in images])

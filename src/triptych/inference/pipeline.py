"""Pipeline for image generation, editing, reconstruction and chat.

from triptych import UnifiedPipeline

pipe = UnifiedPipeline.from_pretrained("tiny")
images = pipe("a red circle left of a blue square", num_images_per_prompt=4, seed=7).images
pipe.edit(images[0], prompt="make the circle green").images[0]
pipe.chat([{"role": "user", "content": [images[0], "what colour is the circle?"]}])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from triptych import __version__
from triptych.inference.argument_names import named_arguments
from triptych.inference.best_of import generate_best, ranker_of_call, refuse_unranked_edits
from triptych.inference.chat import prepare_answers
from triptych.inference.chat_messages import ChatAnswer, Conversation
from triptych.inference.edit_source import check_edit
from triptych.inference.generation_config import (
    DECODER_SETTINGS,
    FIELDS,
    PROMPT_FIELDS,
    PROMPT_SETTINGS,
    SETTINGS,
    GenerationConfig,
)
from triptych.inference.image_batches import ImageBatches, OnStepEnd, check_callback
from triptych.inference.image_batches import Progress as Progress
from triptych.inference.image_generation import encode, prompt_rows, require_encoder
from triptych.inference.image_output import ImageOutput, OutputType, check_output_type, image_output
from triptych.inference.image_requests import Generators, ImageRequest, Seeds, image_requests
from triptych.inference.interleaved import OnPart
from triptych.inference.offload import sufficient_memory
from triptych.inference.pretrained import PretrainedModel
from triptych.interfaces import Ranker
from triptych.interfaces.ranker import ScoreFunction
from triptych.modules.text_generation import ChatOutput
from triptych.utils.callback_iterator import iterate_callback
from triptych.utils.errors import UserError
from triptych.utils.images import ImageInput, open_image, square
from triptych.utils.limits import BATCH


class UnifiedPipeline(PretrainedModel):
    """Pipeline of a model with its weights; calling it generates images.

    `from_pretrained`, `to`, `enable_model_cpu_offload` and `save_pretrained` work as in diffusers.
    Calls from several threads are serialized.
    """

    # 1. Images ------------------------------------------------------------------------------------

    @named_arguments("the pipeline", PROMPT_FIELDS)
    def __call__(
        self,
        prompt: str | Sequence[str] = (),
        *,
        generation_config: GenerationConfig | None = None,
        generator: Generators = None,
        ranker: Ranker | ScoreFunction | None = None,
        batch_size: int = 16,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        **settings: Any,
    ) -> ImageOutput | tuple:
        """Generate `num_images_per_prompt` images of each prompt, in the order of the prompts.

        Each image depends only on its prompt, seed and settings, up to rounding, not on the rest of
        its batch. A Pillow image saved as PNG contains them.

        Args:
            prompt: one or several prompts of any lengths.
            generation_config: generation settings; those given by name override them.
            generator: generator that draws the seeds, or a list of one per image.
            ranker: scores of `num_candidates` candidates of each image, of which the best is kept;
                its seed and score are in the metadata. None: the model ranks them itself.
            batch_size: maximum number of images at a time; memory grows with it.
            output_type: "pil", "np" or "pt", as in diffusers.
            return_dict: whether to return an `ImageOutput` instead of (images, metadata).
            callback_on_step_end: callback that gets a `Progress` after every step of either
                network; an exception that it raises ends the call.
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
        judge = ranker_of_call(self.model, config, ranker, prompts)
        with self._turn, sufficient_memory(batch_size):
            conditions = batches.encode_prompts(prompts, None)
            pixels, made = generate_best(batches, conditions, requests, judge)
            return image_output(pixels, self._metadata(made, config), output_type, return_dict)

    @named_arguments("edit", FIELDS)
    def edit(
        self,
        image: ImageInput | Sequence[ImageInput],
        *,
        prompt: str | Sequence[str] = (),
        generation_config: GenerationConfig | None = None,
        generator: Generators = None,
        ranker: Ranker | ScoreFunction | None = None,
        batch_size: int = 16,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        **settings: Any,
    ) -> ImageOutput | tuple:
        """Edit images, one prompt for each image; other arguments are those of a call.

        The model generates a new image from image and prompt, which requires training on edits.
        `guidance_scale` is the strength of guidance by the prompt, `image_guidance_scale` that by
        the image, where the generator sees it; else only the language model does, and a warning
        says so.

        Raises:
            UserError: there is no image, one cannot be read, the numbers of prompts and images
                differ, there is an image_guidance_scale for a generator that does not see images,
                or an error of a call.
        """
        images, prompts = _listed(image), [prompt] if isinstance(prompt, str) else list(prompt)
        if not images:
            raise UserError("there is no image to edit; give one for each prompt.")
        if len(images) != len(prompts):
            raise UserError(f"{len(images)} images and {len(prompts)} prompts; give one each.")
        config = replace(generation_config or GenerationConfig(), **settings)
        self.check_edits(config)
        self.check_prompts(prompts, with_image=True)
        self.check_prompts([config.negative_prompt] if config.negative_prompt else [])
        refuse_unranked_edits(config.candidates, ranker)
        requests = _requests(prompts, config, generator)
        batches = self._batches(config, batch_size, output_type, callback_on_step_end)
        judge = ranker_of_call(self.model, config, ranker, prompts)
        takes_source = self.model.generation.takes_source
        names = SETTINGS if takes_source else PROMPT_SETTINGS
        shown = _squares(images, self.model.preprocessing().understanding_size)
        sources = _squares(images, self.model.image_size) if takes_source else shown
        with self._turn, sufficient_memory(batch_size):
            conditions = batches.encode_prompts(prompts, shown)
            source = batches.encode_sources(sources)
            pixels, made = generate_best(batches, conditions, requests, judge, source=source)
            metadata = self._metadata(made, config, names)
            return image_output(pixels, metadata, output_type, return_dict)

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
        """Reconstruct images with the image encoder and the decoder.

        Args:
            image: one or several images.
            seed: seed of the first image, each next one has one more; or a list of seeds.
            batch_size: maximum number of images at a time.
            output_type: "pil", "np" or "pt", as in diffusers.
            return_dict: whether to return an `ImageOutput` instead of (images, metadata).
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
            metadata = self._metadata(requests, config, DECODER_SETTINGS)
            return image_output(pixels, metadata, output_type, return_dict)

    @named_arguments("encode")
    @torch.no_grad()
    def encode(self, image: ImageInput | Sequence[ImageInput], *, batch_size: int = 16) -> Tensor:
        """Encode images to features float32 [B,C,h,w], as generated and decoded by the model.

        Raises:
            UserError: an image cannot be read, or the model has no encoder.
        """
        require_encoder(self.model)
        squares = _squares(_listed(image), self.model.encoder.image_size)
        with self._turn, sufficient_memory(batch_size):
            return torch.cat([encode(self.model, part) for part in squares.split(batch_size)])

    def check_prompts(self, prompts: Sequence[str], *, with_image: bool = False) -> None:
        """Check prompts, or instructions `with_image`, before long work.

        Raises:
            UserError: a prompt is empty or too long, or the generator was never trained.
        """
        _ = self.model.generation.shift  # refused here if it was never measured
        prompt_rows(self.model, list(prompts), with_image=with_image)

    def check_edits(self, config: GenerationConfig) -> None:
        """Check settings of edits before long work; raises as `edit_source.check_edit`."""
        check_edit(self.model, config)

    # 2. Text --------------------------------------------------------------------------------------

    @named_arguments("chat", SETTINGS)
    def chat(
        self,
        messages: Conversation,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stream: bool = False,
        max_images: int | None = None,
        generation_config: GenerationConfig | None = None,
        **settings: Any,
    ) -> ChatAnswer | Iterator[str | Image.Image]:
        """Answer a text or a conversation; see `chat_messages.read_messages`.

        The answer is a str with its images beside it, `answer.images`; `answer.content` has both
        in order. An image is made where the model says so, from the conversation so far. Prompt
        and answer together are limited to the model's maximum number of tokens.

        Args:
            messages: a text, or messages of a conversation.
            max_new_tokens: maximum number of tokens of the answer.
            temperature, top_p: softmax temperature, 0 being greedy decoding; nucleus sampling.
            seed: seed of tokens and of the first image, each next one has one more; None draws it.
            stream: whether to return an iterator over pieces of text and images; closing it ends
                the generation.
            max_images: maximum number of images in the answer; None is the model's own.
            generation_config, settings: settings of the images, as of a call.

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
            max_images=max_images,
            config=replace(generation_config or GenerationConfig(), **settings),
        )
        if not stream:
            (output,) = answer(None)
            return ChatAnswer.of(output.content, output.text)
        return iterate_callback(lambda tell: answer(lambda _, part: tell(part)))

    @named_arguments("chat_batch", SETTINGS)
    def chat_batch(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: Seeds = None,
        max_images: int | None = None,
        generation_config: GenerationConfig | None = None,
        on_part: OnPart | None = None,
        **settings: Any,
    ) -> list[ChatOutput]:
        """Answer several conversations in one batch.

        Args:
            conversations: conversations as in `chat`, of which the other arguments are.
            seed: seed of the first conversation, each next one has one more; or a list of seeds.
            on_part: callback that gets (index of the conversation, new piece of its text, or image
                of its answer); an exception that it raises ends the call.
        """
        answer = self._answering(
            conversations,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            max_images=max_images,
            config=replace(generation_config or GenerationConfig(), **settings),
        )
        return answer(on_part)

    def _answering(
        self, conversations: Sequence[Conversation], **options: Any
    ) -> Callable[[OnPart | None], list[ChatOutput]]:
        write = prepare_answers(self.model, self.device, conversations, **options)

        def answer(on_part: OnPart | None) -> list[ChatOutput]:
            with self._turn, sufficient_memory(len(conversations), "conversations"):
                return write(on_part)

        return answer

    # Inside ---------------------------------------------------------------------------------------

    def _batches(
        self, config: GenerationConfig, batch_size: int, output_type: str, callback: Any
    ) -> ImageBatches:
        BATCH.require(batch_size, "batch_size")
        check_output_type(output_type)
        check_callback(callback)
        return ImageBatches(self.model, config, batch_size, callback)

    def _metadata(
        self,
        requests: list[ImageRequest],
        config: GenerationConfig,
        names: Sequence[str] = PROMPT_SETTINGS,
    ) -> list[dict[str, Any]]:
        origin = {"model": self.name, "weights": self.weights_hash, "triptych": __version__}
        values = config.resolved(self.model)
        common = {name: values[name] for name in names} | origin
        return [each.metadata(common) for each in requests]


def _requests(
    prompts: list[str], config: GenerationConfig, generator: Generators
) -> list[ImageRequest]:
    return image_requests(prompts, config.num_images_per_prompt, config.seed, generator)


def _listed(image: ImageInput | Sequence[ImageInput]) -> list[ImageInput]:
    return [image] if isinstance(image, ImageInput) else list(image)


def _squares(images: Sequence[ImageInput], size: int) -> Tensor:
    """Square crops of images, uint8 [B,3,size,size]."""
    return torch.stack([square(open_image(image), size) for image in images])

"""The composer: which panels there are, what a stage trains, and the whole model at inference."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from triptych.checkpoints import WeightFiles
from triptych.interfaces import Batch, Condition, ImageEncoder, OnPicture, Preprocessing
from triptych.modules.base import Panel
from triptych.modules.decoding import PixelDecoderModule
from triptych.modules.encoder_training import EncodingModule
from triptych.modules.generation import GenerationModule
from triptych.modules.initialization import build_part
from triptych.modules.text_generation import write_answers
from triptych.modules.understanding import UnderstandingModule
from triptych.prompts import (
    IMAGE_PAD,
    PAD,
    conversation_ids,
    generation_ids,
    negative_ids,
    pad,
    reconstruction_ids,
    shared_tokens,
    token_id,
)
from triptych.training.execution import Execution
from triptych.training.fsdp import whole
from triptych.training.optimizer import Optimization
from triptych.utils.errors import UserError
from triptych.utils.finite import require_finite

# Which panels a loss needs beside its own.
NEEDS = {
    "understanding": {"understanding"},
    "generation": {"understanding", "encoder", "generation"},
    "decoding": {"encoder", "decoding"},
    "encoding": {"encoder", "vae", "encoding"},
}


class UnifiedModule(Panel):
    """Understanding, generation and decoding in one LightningModule.

    A stage is a choice of `losses` and `trains`. Sequential training runs stages one after the
    other, each with one loss; joint training has two losses in one run.

    Args:
        understanding, generation, decoding: the three panels.
        encoder: the image encoder whose features are generated and decoded.
        encoding: the training of encoder and VAE.
        losses: weight of each panel's loss in this stage, by panel name.
        trains: module paths or globs of what trains in this stage; None leaves it to the panels
            of the losses, as when they are trained alone.
        weights: files to start from, by label.
        preview: build also what turns features into pictures, for sample grids in training.
        negative: features that the decoder's guidance leads away from. "own": the null that the
            decoder trains with, zeros for SDXLDecoder, those of a black picture for SanaDecoder.
            "prompt": generated for a single space outside of any chat, as published for generated
            pictures. "blank": the encoder's `blank_features`, as published for reconstruction;
            "prompt" also takes these there.
        negative_seed: of the features of "prompt"; by default no picture's.
        preset, stage: names, noted in checkpoints and weight files.
        optimization, seed, execution: see `Panel`.
    """

    def __init__(
        self,
        understanding: UnderstandingModule | None = None,
        encoder: ImageEncoder | None = None,
        generation: GenerationModule | None = None,
        decoding: PixelDecoderModule | None = None,
        encoding: EncodingModule | None = None,
        losses: dict[str, float] | None = None,
        trains: list[str] | None = None,
        weights: WeightFiles | None = None,
        preview: bool = True,
        negative: Literal["own", "prompt", "blank"] = "own",
        negative_seed: int = -1,
        preset: str = "custom",
        stage: str = "inference",
        optimization: Optimization | None = None,
        seed: int = 0,
        execution: Execution | None = None,
    ) -> None:
        super().__init__(optimization, trains, weights, seed, execution)
        self.understanding, self.generation = understanding, generation
        self.encoder, self.decoding, self.encoding = encoder, decoding, encoding
        self.losses, self.preview = dict(losses or {}), preview
        self.preset, self.stage = preset, stage
        self.left_out: set[str] = set()
        """Panels and parts that are not built, although the stage may use them."""
        self.negative, self.negative_seed = negative, negative_seed
        self._negatives: dict[str, Tensor] = {}
        self._check_losses()
        if trains is None:
            self.trains = self._what_panels_train()
        self._connect()

    def _check_losses(self) -> None:
        for name in self.losses:
            if name not in NEEDS:
                raise UserError(f"losses: {name!r} is no panel; choose from {sorted(NEEDS)}.")
            for panel in sorted(NEEDS[name]):
                if getattr(self, "decoding" if panel == "vae" else panel) is None:
                    raise UserError(f"the {name} loss needs the panel {panel!r}, which is null.")

    def _what_panels_train(self) -> list[str]:
        """What the panels of this stage's losses train when they are alone."""
        return [f"{name}.{path}" for name in self.losses for path in getattr(self, name).trains]

    def _connect(self) -> None:
        """Tell each part the shapes of its neighbours, so that no width is written twice."""
        for panel in (self.understanding, self.generation, self.decoding, self.encoding):
            if panel is not None:
                panel.seed = self.seed
        if self.generation is not None and self.understanding is not None:
            if self.generation.objective.target != "vae":
                self._require_encoder("generation")
            elif self.decoding is None:
                raise UserError("generation makes features of the VAE, and decoding is null.")
            self.generation.set_shapes(
                self.target_encoder.feature_shape, self.understanding.understander.width
            )
        if self.decoding is not None:
            self._require_encoder("decoding")
            self.decoding.decoder.set_shapes(self.encoder.feature_shape)
        if self.encoding is not None:
            self._require_encoder("encoding")
            self.encoding.heads.set_shapes(self.encoder.feature_shape, self.encoder.image_size)

    def _require_encoder(self, panel: str) -> None:
        if self.encoder is None:
            raise UserError(f"{panel} needs the encoder's features, and encoder is null; name one.")

    def train(self, mode: bool = True) -> UnifiedModule:
        self._negatives.clear()  # made by weights that may change now
        return super().train(mode)

    @property
    def vae(self):
        """The decoder's autoencoder."""
        return self.decoding.decoder.vae

    @property
    def target_encoder(self) -> ImageEncoder:
        """Whose features are generated: the image encoder, or the VAE."""
        return self.vae if self.generation.objective.target == "vae" else self.encoder

    def build(self) -> None:
        for name in ("understanding", "encoder", "generation", "decoding", "encoding", "vae"):
            part = getattr(self, name) if name != "vae" or self.decoding is not None else None
            if isinstance(part, Panel) and name in self._wanted():
                part.build()
            elif part is not None and name in self._wanted():
                build_part(name, part)

    def _shard(self, mesh: DeviceMesh) -> None:
        if "encoding" in self.losses:  # sets weights of the VAE by hand, and shares its batches
            raise UserError(
                "the encoder and the VAE train on one device, or on several by DDP; "
                "set --trainer.strategy=auto or TRAINER=ddp."
            )
        super()._shard(mesh)

    def _wanted(self) -> set[str]:
        """The panels and parts that this stage computes with; without losses, all of them."""
        if not self.losses:
            return {"understanding", "encoder", "generation", "decoding", "vae"} - self.left_out
        wanted = set().union(*(NEEDS[name] for name in self.losses))
        if "generation" in wanted:
            wanted |= {"decoding"} if self.preview else {"vae"} & {self.generation.objective.target}
        return wanted

    def lacks(self, *parts: str) -> str | None:
        """Why this stage cannot compute with some of its panels and parts; None if it can."""
        for part in parts:
            if getattr(self, "decoding" if part == "vae" else part) is None:
                return f"the model's {part} is null"
            if part not in self._wanted():
                hint = "; --model.preview=true builds it" if part == "decoding" else ""
                return f"the stage {self.stage!r} does without the {part} panel{hint}"
        return None

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses that take this batch's task."""
        losses, metrics = [], {}
        for name, weight in self.losses.items():
            panel = getattr(self, name)
            if panel.task != batch.task:
                continue
            loss, more = self._panel_step(name, panel, batch)
            losses.append(weight * loss)
            metrics |= more
        if not losses:
            raise UserError(f"no loss of this stage takes {batch.task} batches; see model.losses.")
        return torch.stack(losses).sum(), metrics

    def _panel_step(self, name: str, panel: Panel, batch: Batch):
        if name == "generation":
            return panel.step(batch, self.understanding.understander, self.target_encoder)
        if name == "decoding":
            return panel.step(batch, self.encoder)
        if name == "encoding":
            return panel.step(batch, self.encoder, self.vae)
        return panel.step(batch)

    def losses_at(self, batch: Batch, times: list[float]) -> Tensor:
        """The generation loss at fixed times, [len(times)]; see `GenerationModule.losses_at`."""
        parts = self.understanding.understander, self.target_encoder
        return self.generation.losses_at(batch, times, *parts)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, object]:
        """Pictures uint8 [B,3,H,W] for the prompts of a text_to_image batch, and their keys."""
        condition = self.understanding.understander.condition(
            batch.input_ids,
            batch.attention_mask,
            whole(self.generation.queries),
            *batch.shown,
            batch.shared,
        )
        seeds = batch.samples.tolist()
        pictures = self.decode(self.generation.sample(condition, seeds), seeds)
        return {"keys": batch.keys, "pictures": pictures}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["triptych"] = {"preset": self.preset, "stage": self.stage}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        made = checkpoint.get("triptych", {})
        for key, own in (("preset", self.preset), ("stage", self.stage)):
            if key in made and made[key] != own:
                raise UserError(
                    f"the checkpoint is of {key} {made[key]!r}, this run is of {key} {own!r}; "
                    "resume it with the configuration that made it."
                )
        super().on_load_checkpoint(checkpoint)

    def preprocessing(self) -> Preprocessing:
        if self.understanding is None:
            raise UserError("the model needs the understanding panel for its tokenizer.")
        known = self.understanding.preprocessing()
        known.picture_size = self.picture_size
        if self.generation is not None:
            known.template = self.generation.template
            known.training_template = self.generation.training_template
        if (encoder := self._encoder_of_targets()) is not None:
            known.features = partial(self.identity_of, encoder, self.picture_size)
            known.pictures_too = "decoding" in self.losses
        return known

    @property
    def picture_size(self) -> int:
        """Side in pixels of the pictures that are encoded."""
        if self.encoder is not None:
            return self.encoder.image_size
        if self.decoding is not None:
            return self.vae.image_size
        return self.understanding.preprocessing().picture_size

    def _encoder_of_targets(self) -> ImageEncoder | None:
        """The one frozen encoder whose features all losses of pictures take; else None."""
        of_loss = {"generation": lambda: self.target_encoder, "decoding": lambda: self.encoder}
        encoders = [of_loss[name]() for name in self.losses if name in of_loss]
        alike = all(each is encoders[0] for each in encoders)
        return encoders[0] if encoders and alike and "encoding" not in self.losses else None

    # Inference ----------------------------------------------------------------------------------

    def prompt_rows(self, prompts: list[str], pictured: bool = False) -> list[list[int]]:
        """Ids of generation prompts; `pictured` ones show a picture and say what to do to it.

        Raises:
            PromptError: a prompt is empty or too long.
        """
        known = self.preprocessing()
        options = {"max_tokens": known.max_tokens, "template": known.template}
        if pictured:
            return [
                reconstruction_ids(known.tokenizer, known.image_tokens, instruction=text, **options)
                for text in prompts
            ]
        return [generation_ids(known.tokenizer, text, **options) for text in prompts]

    @torch.no_grad()
    def condition(self, prompts: list[str], pictures: Tensor | None = None) -> Condition:
        """Condition [B,N,D] of prompts, or of instructions to pictures uint8 [B,3,H,W]."""
        known = self.preprocessing()
        rows = self.prompt_rows(prompts, pictured=pictures is not None)
        ids, mask = pad(rows, token_id(known.tokenizer, PAD))
        shown: tuple[Tensor, ...] = ()
        if pictures is not None:
            shown = known.image_inputs(_to_size(pictures, known.understanding_size))
        return self.understanding.understander.condition(
            ids.to(self.device),
            mask.to(self.device),
            whole(self.generation.queries),
            *(each.to(self.device) for each in shown),
            shared=shared_tokens(rows, picture=token_id(known.tokenizer, IMAGE_PAD)),
        )

    @torch.no_grad()
    def generate(
        self,
        prompts: list[str],
        seeds: list[int],
        steps: int | None = None,
        guidance: float | None = None,
        decoder_steps: int | None = None,
        decoder_guidance: float | None = None,
        sampler: str | None = None,
        decoder_sampler: str | None = None,
    ) -> Tensor:
        """Pictures uint8 [B,3,H,W], each from its prompt and seed alone, within rounding."""
        condition = self.condition(prompts)
        features = self.generation.sample(condition, seeds, steps, guidance, sampler=sampler)
        return self.decode(features, seeds, decoder_steps, decoder_guidance, decoder_sampler)

    @torch.no_grad()
    def edit(
        self,
        pictures: Tensor,
        instructions: list[str],
        seeds: list[int],
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Pictures uint8 [B,3,H,W] changed as instructions say; as `generate`, of other sizes."""
        condition = self.condition(instructions, pictures)
        return self.decode(self.generation.sample(condition, seeds, steps, guidance), seeds)

    @torch.no_grad()
    def decode(
        self,
        features: Tensor,
        seeds: list[int],
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        on_picture: OnPicture | None = None,
    ) -> Tensor:
        """Generated features [B,C,h,w] to pictures uint8 [B,3,H,W]; see `PixelDecoder.decode`."""
        if self.generation is not None and self.generation.objective.target == "vae":
            return self.vae.decode(features)
        null = self.negative_features(self.negative)
        return self.decoding.decode(
            features, seeds, steps, guidance, null, self.encoder, sampler, on_picture
        )

    @torch.no_grad()
    def negative_features(self, kind: str) -> Tensor | None:
        """Features [1,C,h,w] of a kind of `negative`; None for the decoder's own.

        Made once, whatever picture is asked for first, and kept until `train` or `eval` is called.
        """
        if kind == "own":
            return None
        if kind not in self._negatives:
            make = {"prompt": self._features_of_a_space, "blank": self.encoder.blank_features}
            self._negatives[kind] = make[kind]().float()
        return self._negatives[kind]

    def _features_of_a_space(self) -> Tensor:
        ids = torch.tensor([negative_ids(self.preprocessing().tokenizer)], device=self.device)
        condition = self.understanding.understander.condition(
            ids, torch.ones_like(ids), whole(self.generation.queries)
        )
        return self.generation.sample(condition, [self.negative_seed])

    def require_encoder(self) -> None:
        """Check that there is an image encoder.

        Raises:
            UserError: the model has no weights of it.
        """
        if not self.encoder.built:
            raise UserError(
                "this model has no weights of its image encoder; name them with "
                "--model.weights.encoder=FILE."
            )

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Features float32 [B,C,h,w] of images uint8 [B,3,H,W], by the image encoder.

        Raises:
            UserError: the model has no weights of its encoder.
            NotFiniteError: the features are NaN or infinite.
        """
        self.require_encoder()
        features = self.encoder(pictures.to(self.device)).float()
        require_finite(features, "the image encoder's features")
        return features

    @torch.no_grad()
    def reconstruct(
        self,
        pictures: Tensor,
        seeds: list[int],
        steps: int | None = None,
        sampler: str | None = None,
    ) -> Tensor:
        """Pictures uint8 [B,3,H,W] through encoder and decoder; uint8 [B,3,H,W]."""
        features = self.encode(pictures)
        null = self.negative_features("own" if self.negative == "own" else "blank")
        return self.decoding.decode(features, seeds, steps, None, null, self.encoder, sampler)

    @torch.no_grad()
    def answer(
        self, pictures: Tensor | None, questions: list[str], max_new_tokens: int = 64
    ) -> list[str]:
        """Answers to one question each about pictures uint8 [B,3,H,W] (None: about no picture)."""
        known = self.preprocessing()
        tokenizer, image_tokens = known.tokenizer, known.image_tokens
        rows = [
            conversation_ids(
                tokenizer,
                [(question, None)],
                known.max_tokens,
                image_tokens if pictures is not None else 0,
            )[0]
            for question in questions
        ]
        shown = None
        if pictures is not None:
            shown = known.image_inputs(_to_size(pictures, known.understanding_size))
        limits = [max_new_tokens] * len(rows)
        understander = self.understanding.understander
        answers = write_answers(understander, rows, shown, limits, self.device)
        return [answer.text for answer in answers]


def _to_size(pictures: Tensor, size: int) -> Tensor:
    """uint8 [B,3,H,W] -> uint8 [B,3,size,size], bicubic."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    scaled = torch.nn.functional.interpolate(
        pictures.float(), size=(size, size), mode="bicubic", antialias=True
    )
    return scaled.clamp(0, 255).round().to(torch.uint8)

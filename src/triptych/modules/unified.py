"""UnifiedModule: composition of the panels, training stages, and inference of the whole model."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from triptych.interfaces import Batch, ImageEncoder, Preprocessing, Reward
from triptych.modules.base import BaseModule
from triptych.modules.decoding import PixelDecoderModule
from triptych.modules.encoder_training import EncodingModule
from triptych.modules.generation import GenerationModule
from triptych.modules.initialization import build_part
from triptych.modules.preference_tuning import PreferenceTuningModule
from triptych.modules.reward_tuning import RewardTuningModule
from triptych.modules.understanding import UnderstandingModule
from triptych.modules.unused_parts import (
    OPTIONAL,
    absences,
    optional_paths,
    panel_of,
    unused_in_run,
)
from triptych.prompts import negative_ids
from triptych.utils.errors import UserError
from triptych.utils.rng import Draw

# Panels that a loss needs beside its own.
NEEDS = {
    "understanding": {"understanding"},
    "generation": {"understanding", "encoder", "generation"},
    "decoding": {"encoder", "decoding"},
    "encoding": {"encoder", "vae", "encoding"},
    "reward_tuning": {"understanding", "encoder", "generation", "decoding", "reward_tuning"},
    "preference_tuning": {"understanding", "encoder", "generation", "preference_tuning"},
}
# Panels that compare with the weights of before, which a checkpoint keeps under their names.
TUNING = ("reward_tuning", "preference_tuning")


class UnifiedModule(BaseModule):
    """Understanding, generation and decoding in one LightningModule.

    A stage is a choice of `loss_weights` and `trainable`. Sequential training runs stages one after
    the other, each with one loss; joint training has two losses in one run.

    Args:
        understanding, generation, decoding: the three panels.
        encoder: the image encoder whose features are generated and decoded.
        vae: the autoencoder whose latents the decoder makes, or, in their stead, the generator.
        encoding: the training of encoder and VAE.
        reward_tuning: the training of the generator by rewards.
        reward: the reward of that training.
        preference_tuning: the training of the generator by pairs of images, one of them preferred.
        loss_weights: weight of each panel's loss in this stage, by panel name.
        trainable: module paths or globs of what trains in this stage; None leaves it to the panels
            of the losses, as when they are trained alone.
        build_decoder: build also what turns features into images, for sample grids in training.
        decoder_negative: features that the decoder's guidance leads away from. "zeros": those that
            the decoder trains with, zeros for SDXLDecoder, of a black image for SanaDecoder.
            "space_prompt": generated for a single space outside of any chat, as published for
            generated images. "black_image": the encoder's `blank_features`, as published for
            reconstruction; "space_prompt" also takes these there.
        decoder_negative_seed: seed of the features of "space_prompt"; the default is no image's.
        preset, stage: names, noted in checkpoints and weight files.
        training: other arguments of `BaseModule`.
    """

    def __init__(
        self,
        understanding: UnderstandingModule | None = None,
        encoder: ImageEncoder | None = None,
        vae: ImageEncoder | None = None,
        *,
        generation: GenerationModule | None = None,
        decoding: PixelDecoderModule | None = None,
        encoding: EncodingModule | None = None,
        reward_tuning: RewardTuningModule | None = None,
        reward: Reward | None = None,
        preference_tuning: PreferenceTuningModule | None = None,
        loss_weights: dict[str, float] | None = None,
        trainable: list[str] | None = None,
        build_decoder: bool = True,
        decoder_negative: Literal["zeros", "space_prompt", "black_image"] = "zeros",
        decoder_negative_seed: int = -1,
        preset: str = "custom",
        stage: str = "inference",
        **training: Any,
    ) -> None:
        super().__init__(trainable=trainable, **training)
        self.understanding, self.generation = understanding, generation
        self.encoder, self.vae = encoder, vae
        self.decoding, self.encoding = decoding, encoding
        self.reward_tuning, self._reward = reward_tuning, (reward,)  # maybe a network: no child
        self.preference_tuning = preference_tuning
        self.loss_weights, self.build_decoder = dict(loss_weights or {}), build_decoder
        self.preset, self.stage = preset, stage
        self.left_out: set[str] = set()
        """Panels and parts that are not built, although the stage has them."""
        self.unused: set[str] = set()
        """Parts that are not built, as a run does not compute with them; see `unused_parts`."""
        self.decoder_negative, self.decoder_negative_seed = decoder_negative, decoder_negative_seed
        self.description: dict[str, Any] | None = None
        """The `model` section that it was built from, where that is known."""
        self._negative_features: dict[str, Tensor] = {}
        self._check_losses()
        if trainable is None:
            self.trainable = self._what_panels_train()
        self._connect()

    def _check_losses(self) -> None:
        for name in self.loss_weights:
            if name not in NEEDS:
                raise UserError(f"loss_weights: {name!r} is no panel; choose from {sorted(NEEDS)}.")
            for panel in sorted(NEEDS[name]):
                if getattr(self, panel) is None:
                    raise UserError(f"the {name} loss needs the panel {panel!r}, which is null.")

    def _what_panels_train(self) -> list[str]:
        """Default trainable paths of the panels of this stage's losses."""
        return [
            f"{name}.{path}" for name in self.loss_weights for path in getattr(self, name).trainable
        ]

    def _connect(self) -> None:
        """Connect each panel to its neighbours, from which it derives shapes and widths."""
        panels = (self.understanding, self.generation, self.decoding, self.encoding)
        for panel in (*panels, self.reward_tuning, self.preference_tuning):
            if panel is not None:
                panel.seed = self.seed
        if self.generation is not None and self.understanding is not None:
            if self.generation.objective.target != "vae":
                self._require_encoder("generation")
            elif self.vae is None:
                raise UserError("generation makes latents of the VAE, and vae is null; name one.")
            self.generation.connect(self.understanding.vlm, self.target_encoder)
        if self.decoding is not None:
            self._require_encoder("decoding")
            self.decoding.connect(self.encoder, self.vae)
        if self.encoding is not None:
            self._require_encoder("encoding")
            self.encoding.connect(self.encoder, self.vae)
        if self.reward_tuning is not None and self.generation is not None:
            self.reward_tuning.connect(self.generation, self.decode, *self._reward)
        if self.preference_tuning is not None and self.generation is not None:
            self.preference_tuning.connect(self.generation, self.target_encoder)

    def _require_encoder(self, panel: str) -> None:
        if self.encoder is None:
            raise UserError(f"{panel} needs the encoder's features, and encoder is null; name one.")

    def train(self, mode: bool = True) -> UnifiedModule:
        self._negative_features.clear()  # computed by weights that may change now
        return super().train(mode)

    @property
    def target_encoder(self) -> ImageEncoder:
        """Encoder of the generated features: the image encoder, or the VAE."""
        return self.vae if self.generation.objective.target == "vae" else self.encoder

    def configure_model(self) -> None:
        if self.trained is None and self._trainer is not None:
            self.unused = unused_in_run(self, self.trainer)
            if self.unused:
                names = ", ".join(OPTIONAL[part] for part in sorted(self.unused))
                rank_zero_info(f"not loaded, as this run does not compute with them: {names}")
        super().configure_model()

    def build(self) -> None:
        self._leave_out()
        for name in sorted(self.stage_parts() - self.left_out - self.unused):
            part = getattr(self, name)
            if isinstance(part, BaseModule):
                part.build()
            elif part is not None:
                build_part(name, part)

    def _leave_out(self) -> None:
        """Tell the unused parts that they are not built."""
        paths = optional_paths(self)
        absent = absences(self.unused & paths.keys())
        self.left_out_paths = tuple(paths[part] for part in absent)
        if "encoder" in absent:
            self.encoder.leave_out(absent["encoder"])
        if self.understanding is not None:
            vlm = self.understanding.vlm
            vlm.left_out = {part: absent[part] for part in vlm.optional_parts if part in absent}

    def _shard(self, mesh: DeviceMesh) -> None:
        if (
            "encoding" in self.loss_weights
        ):  # sets weights of the VAE by hand, and shares its batches
            raise UserError(
                "the encoder and the VAE train on one device, or on several by DDP; "
                "set --trainer.strategy=auto or TRAINER=ddp."
            )
        super()._shard(mesh)

    def stage_parts(self) -> set[str]:
        """The panels and parts of this stage; without losses, all of them."""
        if not self.loss_weights:
            return {"understanding", "encoder", "generation", "decoding", "vae"}
        wanted = set().union(*(NEEDS[name] for name in self.loss_weights))
        if "generation" in wanted and self.build_decoder:
            wanted.add("decoding")
        latents = "generation" in wanted and self.generation.objective.target == "vae"
        if "decoding" in wanted or latents:
            wanted.add("vae")
        return wanted

    def lacks(self, *parts: str) -> str | None:
        """Why this stage cannot compute with some of its panels and parts; None if it can.

        Parts of the understanding panel are "language_model", "vision_tower" and "lm_head".

        Raises:
            UserError: there is no such part.
        """
        absent = set() if self.trained is None else self.left_out | self.unused
        for part in parts:
            panel = panel_of(part)
            if getattr(self, panel) is None:
                return f"the model's {panel} is null"
            if panel not in self.stage_parts():
                hint = "; --model.build_decoder=true builds it" if panel == "decoding" else ""
                return f"the stage {self.stage!r} does without the {panel} panel{hint}"
            inside = {"vision_tower", "lm_head"} if part == "understanding" else {part}
            if missing := sorted(inside & absent):
                return f"the model was built without its {OPTIONAL.get(missing[0], missing[0])}"
        return None

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses that take this batch's objective."""
        losses, metrics = [], {}
        for name, weight in self.loss_weights.items():
            panel = getattr(self, name)
            if panel.batch_objective != batch.objective:
                continue
            loss, more = panel.step(batch)
            losses.append(weight * loss)
            metrics |= more
        if not losses:
            raise UserError(
                f"no loss of this stage takes {batch.objective} batches; see model.loss_weights."
            )
        return torch.stack(losses).sum(), metrics

    @property
    def steps_are_alike(self) -> bool:
        """Whether the arithmetic of one step is that of all, and can be counted without weights."""
        return not any(name in self.loss_weights for name in TUNING)

    def loss_at_timesteps(self, batch: Batch, timesteps: list[float]) -> Tensor:
        """Generation loss at fixed times [len(timesteps)]; see `GenerationModule`."""
        return self.generation.loss_at_timesteps(batch, timesteps)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["triptych"] = {"preset": self.preset, "stage": self.stage}
        keep = self._trainer is None or self.trainer.is_global_zero
        for name in TUNING:
            if name in self.loss_weights:
                checkpoint[name] = getattr(self, name).state(keep)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        origin = checkpoint.get("triptych", {})
        for key, own in (("preset", self.preset), ("stage", self.stage)):
            if key in origin and origin[key] != own:
                raise UserError(
                    f"the checkpoint is of {key} {origin[key]!r}, this run is of {key} {own!r}; "
                    "resume it with the configuration that made it."
                )
        super().on_load_checkpoint(checkpoint)
        for name in TUNING:
            if name in self.loss_weights:
                getattr(self, name).load_state(checkpoint.get(name, {}))

    def preprocessing(self) -> Preprocessing:
        if self.understanding is None:
            raise UserError("the model needs the understanding panel for its tokenizer.")
        settings = self.understanding.preprocessing()
        settings.image_size = self.image_size
        if self.generation is not None:
            settings.template = self.generation.prompt.template
            settings.training_template = self.generation.prompt.training_template
            generates = not self.loss_weights or "generation" in self.loss_weights
            settings.takes_source = generates and self.generation.takes_source
        if (encoder := self._encoder_of_targets()) is not None:
            settings.features = partial(self.feature_config_of, encoder, self.image_size)
            settings.images_too = "decoding" in self.loss_weights
        settings.draws, settings.seed = tuple(self.random_draws()), self.seed
        return settings

    def random_draws(self) -> list[Draw]:
        """Those of the panels whose losses this stage has."""
        return [draw for name in self.loss_weights for draw in getattr(self, name).random_draws()]

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that are encoded."""
        if self.encoder is not None:
            return self.encoder.image_size
        if self.vae is not None:
            return self.vae.image_size
        return self.understanding.preprocessing().image_size

    def _encoder_of_targets(self) -> ImageEncoder | None:
        """The one frozen encoder whose features all losses of images take; else None."""
        of_loss = {"generation": lambda: self.target_encoder, "decoding": lambda: self.encoder}
        encoders = [of_loss[name]() for name in self.loss_weights if name in of_loss]
        alike = all(each is encoders[0] for each in encoders)
        return encoders[0] if encoders and alike and "encoding" not in self.loss_weights else None

    # Prediction ---------------------------------------------------------------------------------

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, object]:
        """Images uint8 [B,3,H,W] for the prompts of captions or edits, and their keys."""
        condition = self.generation.condition_of(batch)
        seeds = batch.sample_ids.tolist()
        source = self.generation.source_of(batch)
        images = self.decode(self.generation.sample(condition, seeds, source=source), seeds)
        return {"keys": batch.keys, "images": images}

    @torch.no_grad()
    def decode(self, features: Tensor, seeds: list[int], **options: Any) -> Tensor:
        """Generated features [B,C,h,w] to images uint8 [B,3,H,W]; see `PixelDecoder.decode`."""
        if self.generation is not None and self.generation.objective.target == "vae":
            return self.vae.decode(features)
        negative = self.negative_features(self.decoder_negative)
        return self.decoding.decode(features, seeds, negative_features=negative, **options)

    @torch.no_grad()
    def negative_features(self, kind: str) -> Tensor | None:
        """Features [1,C,h,w] of a kind of `decoder_negative`; None for the decoder's own.

        Computed once, whatever the first image, and cached until `train` or `eval` is called.
        """
        if kind == "zeros":
            return None
        if kind not in self._negative_features:
            make = {
                "space_prompt": self._features_of_a_space,
                "black_image": self.encoder.blank_features,
            }
            self._negative_features[kind] = make[kind]().float()
        return self._negative_features[kind]

    def _features_of_a_space(self) -> Tensor:
        ids = torch.tensor([negative_ids(self.preprocessing().tokenizer)], device=self.device)
        condition = self.generation.condition(ids, torch.ones_like(ids))
        return self.generation.sample(condition, [self.decoder_negative_seed])

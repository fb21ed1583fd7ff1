"""Very small models with random weights, their batches and weight files.

Use it wherever a test needs a model. The classes are those of the tiny preset with smaller sizes;
images have 48 pixels a side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tolerances import assert_same_images
from torch import Tensor

from triptych.backbones import (
    EvaClip,
    KLAutoencoder,
    LuminaNextDiT,
    QwenText,
    QwenVision,
    QwenVL,
    SDXLDecoder,
)
from triptych.checkpoints import WeightFiles, save_weights
from triptych.checkpoints.weight_files import CREATED_BY, label_of
from triptych.data_modules import Collator, ShardDataModule, TaskDataset
from triptych.interfaces import (
    IMAGE_TO_TEXT,
    TEXT_TO_IMAGE,
    Batch,
    FlowSamplerConfig,
    PixelDecoder,
    SamplerConfig,
)
from triptych.modules import (
    EncodingModule,
    GenerationModule,
    PixelDecoderModule,
    UnderstandingModule,
    UnifiedModule,
)
from triptych.modules.encoder_training import EncodingHeads
from triptych.prompts import PromptConfig
from triptych.training.optimizer import Optimization

ROOT = Path(__file__).parents[2]
SIDE = 48  # pixels
FAST = Optimization(lr=2e-3, min_lr=2e-3, warmup_ratio=0.0, lr_scheduler="constant")
CAPTIONS = ["a photo of a red circle", "two blue squares", "a cat left of a large green triangle"]

STAGE2 = (
    *("base", "presets/tiny", "stages/stage2"),
    *("recipes/tiny/stage2", "data/tiny/stage2"),
)
"""Files of conf/ that `fit --preset tiny --stage stage2` reads."""

STAGES = {
    "encoder": {
        "loss_weights": {"encoding": 1.0},
        "trainable": ["encoder", "vae", "encoding"],
    },
    "decoder": {
        "loss_weights": {"decoding": 1.0},
        "trainable": ["decoding.decoder.unet", "decoding.decoder.baseline"],
    },
    "stage1": {"loss_weights": {"understanding": 1.0}, "trainable": ["understanding"]},
    "stage2": {"loss_weights": {"generation": 1.0}, "trainable": ["generation"]},
    "joint": {
        "loss_weights": {"understanding": 1.0, "generation": 1.0},
        "trainable": ["understanding", "generation"],
    },
}


def vlm(
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    position_std: float = 0.0,
    **text: Any,
) -> QwenVL:
    """A language model of width 64 and depth 2."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_theta": 100.0,
        "mrope_section": [2, 3, 3],
        "tie_word_embeddings": True,
        "initializer_range": 0.06,
    }
    vision = QwenVision(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        patch_size=8,
        window_size=48,
        fullatt_block_indexes=[0, 1],
        position_std=position_std,
    )
    return QwenVL(
        "asset:tiny/tokenizer",
        QwenText(**{**sizes, **text}),
        vision,
        image_size=SIDE,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )


def eva(**sizes: Any) -> EvaClip:
    """An image encoder of width 32 and depth 2: 3x3 features."""
    small = {"image_size": SIDE, "patch_size": 16, "width": 32, "depth": 2, "heads": 2}
    small |= {"mlp_width": 64, "pool": 1, "standardize": True}
    return EvaClip(**{**small, **sizes})


def vae(**sizes: Any) -> KLAutoencoder:
    """A VAE of 8x8-pixel patches with 6x6 latents."""
    small = {"image_size": SIDE, "latent_channels": 8, "block_widths": [32]}
    small |= {"layers_per_block": 1, "norm_groups": 8, "patch_size": 8}
    return KLAutoencoder(**{**small, "linear_skip": True, "scaling": None, **sizes})


def dit(**sizes: Any) -> LuminaNextDiT:
    """A DiT of width 64 and depth 2 that listens from the start."""
    return LuminaNextDiT(
        **{"width": 64, "depth": 2, "heads": 4, "multiple_of": 32, "gate_init": 1.0, **sizes}
    )


def decoder(**sizes: Any) -> SDXLDecoder:
    """A UNet of two levels, 32 channels each, that takes 2 steps; a `vae` is connected."""
    small = {"widths": [32, 32], "depths": [1, 1], "head_width": 16, "layers_per_block": 1}
    small |= {
        "norm_groups": 8,
        "time_width": 16,
        "baseline_width": 16,
        "sampling": SamplerConfig(num_inference_steps=2, guidance_scale=1.0),
    }
    model = SDXLDecoder(**{**small, "prediction": "v_prediction", **sizes})
    model.connect(vae())
    return model


def built(part: Any, seed: int = 0) -> Any:
    """`part`, built with the random weights of `seed`; of a decoder also its VAE."""
    torch.manual_seed(seed)
    if isinstance(part, PixelDecoder):
        part.vae.build()
    part.build()
    return part


@torch.no_grad()
def shaken(module: Any, deviation: float = 0.1, seed: int = 0) -> Any:
    """`module` with random numbers in every parameter: nothing hides behind a zero start."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [*module.parameters()]
    if isinstance(module, PixelDecoder):
        parameters = [*module.vae.eval().parameters(), *parameters]
    for parameter in parameters:
        parameter.add_(deviation * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def unified(
    stage: str = "stage2",
    objective: str = "clip_flow",
    weights: WeightFiles | None = None,
    dit_sizes: dict[str, Any] | None = None,
    num_registers: int = 0,
    **settings: Any,
) -> UnifiedModule:
    """The whole model for a stage of STAGES ("inference": none trains); nothing is built yet."""
    options = {
        "optimization": FAST,
        **STAGES.get(stage, {"loss_weights": {}, "trainable": []}),
        **settings,
    }
    return UnifiedModule(
        understanding=UnderstandingModule(vlm(), max_tokens=256),
        encoder=eva(),
        generation=GenerationModule(
            dit(**(dit_sizes or {})),
            num_queries=4,
            objective=objective,
            num_registers=num_registers,
            sampling=FlowSamplerConfig(num_inference_steps=3),
            prompt=PromptConfig(max_tokens=256),
        ),
        vae=vae(),
        decoding=PixelDecoderModule(decoder()),
        encoding=EncodingModule(EncodingHeads(640, 32, 1, 32, 256)),
        weights=weights,
        preset=options.pop("preset", "small"),
        stage=stage,
        **options,
    )


def write_weights(folder: Path) -> WeightFiles:
    """Weight files of a randomly built `unified`, one a label; `generation` is named by none."""
    model = unified("inference")
    torch.manual_seed(1)
    model.build()
    model.trained = {name for name, _ in model.named_parameters()}
    state = model.trained_state()
    for label in CREATED_BY:
        part = {name: tensor for name, tensor in state.items() if label_of(name) == label}
        save_weights(part, folder / f"{label}.safetensors", {"stage": label}, torch.float32)
    return WeightFiles(
        **{
            label: str(folder / f"{label}.safetensors")
            for label in CREATED_BY
            if label != "generation"
        }
    )


def needed(weights: WeightFiles, stage: str) -> WeightFiles:
    """Weight files that a stage starts from: the parts before it, as in the recipes of conf/."""
    if stage in ("encoder", "stage1"):
        return WeightFiles()
    if stage == "decoder":
        return WeightFiles(encoder=weights.encoder, vae=weights.vae)
    return weights


def data(folder: Path, stage: str = "stage2", **settings: Any) -> ShardDataModule:
    """The small shard folder as a stage reads it, four samples a batch."""
    tasks = {"stage1": [IMAGE_TO_TEXT], "joint": [TEXT_TO_IMAGE, IMAGE_TO_TEXT]}
    options = {"tasks": tasks.get(stage, [TEXT_TO_IMAGE]), "batch_size": 4, "num_val_samples": 4}
    return ShardDataModule(str(folder / "train"), str(folder / "eval"), **{**options, **settings})


def builder(source: Any, task: str, processor: Any, seed: int = 0, **options: Any) -> Any:
    """(step, numbers, samples) -> Batch of one source read for one task."""
    build = Collator([TaskDataset(source, task, **options)], processor, seed)
    return lambda step, numbers, samples: build(step, [(0, n) for n in numbers], samples)


def batches(model: Any, folder: Any, task: str, numbers: Any = range(4), step: int = 0) -> Batch:
    """One batch of `task`, of the samples at `numbers` of a ShardFolder."""
    build = builder(folder, task, model.preprocessing(), text_only_ratio=0.4)
    return build(step, list(numbers), list(numbers))


def steps(model: Any, batch: Batch | list[Batch], number: int, lr: float = 2e-3) -> list[float]:
    """Losses of `number` optimizer steps on the same batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr)
    losses = []
    for _ in range(number):
        loss = sum(model.step(each)[0] for each in (batch if isinstance(batch, list) else [batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def decoder_loss(
    model: Any, features: Tensor, pixels: Tensor, sample_ids: Tensor, seed: int = 0
) -> Tensor:
    """Training loss of a pixel decoder, with the draws of `sample_ids`."""
    draws = {draw.stream: draw(seed, sample_ids) for draw in model.random_draws()}
    return model.loss(features, pixels, draws)


def loss_follows_from_seed_and_samples(model: Any, pixels: Tensor) -> None:
    """Assert that the loss of a pixel decoder depends on only the seed and the sample ids."""
    features = torch.randn(4, 32, 3, 3)

    def loss(seed, samples):
        with torch.no_grad():
            ids = torch.tensor(samples)
            return decoder_loss(model, features, pixels, ids, seed).item()

    assert loss(0, [0, 1, 2, 3]) == loss(0, [0, 1, 2, 3])
    assert loss(0, [0, 1, 2, 3]) != loss(1, [0, 1, 2, 3])
    assert loss(0, [0, 1, 2, 3]) != loss(0, [4, 5, 6, 7])


def decodes_each_by_its_seed(model: Any, guidance: float) -> None:
    """Check that a decoder of features [B,32,3,3] makes an image from its seed alone."""
    features, seeds = torch.randn(4, 32, 3, 3), [5, 2, 5, 9]
    together = model.decode(features, seeds, num_inference_steps=2, guidance_scale=guidance)
    assert together.shape == (4, 3, SIDE, SIDE) and together.dtype == torch.uint8
    assert torch.equal(
        together, model.decode(features, seeds, num_inference_steps=2, guidance_scale=guidance)
    )
    for i, seed in enumerate(seeds[:2]):
        alone = model.decode(
            features[i : i + 1], [seed], num_inference_steps=2, guidance_scale=guidance
        )[0]
        assert_same_images(alone, together[i])
    assert not torch.equal(
        together[1],
        model.decode(features, [0] * 4, num_inference_steps=2, guidance_scale=guidance)[1],
    )


def trained_names(model: Any) -> set[str]:
    """Names of the parameters that have a gradient other than zero."""
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


def relative(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of `b`."""
    return ((a - b).norm() / b.norm()).item()


def config_words(*files: str | Path) -> list[str]:
    """`--config FILE` of each; a text is the name of a file in conf/, without its suffix."""
    paths = [ROOT / "conf" / f"{each}.yaml" if isinstance(each, str) else each for each in files]
    return [word for path in paths for word in ("--config", str(path))]

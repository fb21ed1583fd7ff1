"""Components of a published model on disk, with our names, and checks of their shapes.

A component has its tensors, its section of a model file, and its problems. Expected tensors and
shapes come from our own classes, built from the published configuration on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych.backbones import (
    EvaClip,
    KLAutoencoder,
    LuminaNextDiT,
    QwenText,
    QwenVision,
    QwenVL,
    SDXLDecoder,
    Vocabulary,
)
from triptych.checkpoints.published import key_mapping
from triptych.checkpoints.published.archive import read_json
from triptych.checkpoints.published.safetensors_stream import Stored
from triptych.utils.errors import UserError

Tensors = dict[str, Stored]
Shapes = dict[str, tuple[int, ...]]
EMBEDDING = key_mapping.VLM + "model.language_model.embed_tokens.weight"
HEAD = key_mapping.VLM + "lm_head.weight"
# width of the published tower, for checkpoints without it
PUBLISHED_FEATURES = 1792
MAX_LISTED = 3  # number of tensors that a message lists


@dataclass
class Component:
    """A component of a model: its tensors by full name, and its section of a model file."""

    tensors: Tensors
    section: dict[str, Any]
    problems: list[str] = field(default_factory=list)
    """Problems of its names and shapes; empty if it is valid."""


def map_keys(tensors: Mapping[str, Stored], where: str) -> tuple[Tensors, list[str]]:
    """Map published keys to full names and our shapes; also return the unknown keys.

    Raises:
        UserError: two keys are of the same tensor.
    """
    whole: Tensors = {}
    qkv_slices: dict[str, dict[int, Stored]] = {}
    unknown = []
    for key, stored in tensors.items():
        place = key_mapping.place_of(key)
        if place is None:
            unknown.append(key)
        elif place.qkv_slice is not None:
            qkv_slices.setdefault(place.name, {})[place.qkv_slice] = stored
        elif place.name in whole:
            raise UserError(f"{where} holds {key} twice, under an old and a new name; remove one.")
        else:
            whole[place.name] = stored
    for name, parts in qkv_slices.items():
        if name in whole or set(parts) != {0, 2}:
            key = key_mapping.published_key(name)
            raise UserError(f"{where}: {key} is neither whole nor in q_bias and v_bias.")
        whole[name] = fused_bias(parts[0], parts[2])
    if (
        key_mapping.QUERIES in whole
        and len(whole[key_mapping.QUERIES].shape) == 3
        and whole[key_mapping.QUERIES].shape[0] == 1
    ):
        whole[key_mapping.QUERIES] = whole[key_mapping.QUERIES].reshaped(
            *whole[key_mapping.QUERIES].shape[1:]
        )
    return whole, unknown


def fused_bias(query: Stored, value: Stored) -> Stored:
    """`key_mapping.fuse_bias` on bytes: zero is zero bytes in every number format."""
    return Stored(
        query.dtype,
        (3 * query.shape[0],),
        lambda: chain(query.chunks(), iter([bytes(query.nbytes)]), value.chunks()),
    )


def with_prefixes(tensors: Mapping[str, Stored], *prefixes: str) -> Tensors:
    """Tensors whose full names have one of the prefixes."""
    return {name: stored for name, stored in tensors.items() if name.startswith(prefixes)}


def shapes_of(module: nn.Module, prefix: str) -> Shapes:
    """Shapes of a module's parameters by full name, without unpublished ones."""
    shapes = {prefix + name: tuple(p.shape) for name, p in module.named_parameters()}
    return {name: shape for name, shape in shapes.items() if name not in key_mapping.UNPUBLISHED}


def compare(
    tensors: Mapping[str, Stored],
    expected: Shapes,
    where: str,
    key_of: Callable[[str], str | None],
) -> list[str]:
    """Describe missing, unexpected and reshaped tensors, each with a count and a few names."""
    missing = [key_of(name) for name in expected if name not in tensors]
    unexpected = [key_of(name) for name in tensors if name not in expected]
    other = [
        f"{key_of(name)} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": other}
    return [f"{where}: {few(names)} {kind}" for kind, names in kinds.items() if names]


def few(names: Iterable[str | None]) -> str:
    """Format a count and a few names: "5 tensors (a, b, c, ...)"."""
    names = sorted(str(name) for name in names)
    shown = ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
    return f"{len(names)} tensor{'s' * (len(names) != 1)} ({shown})"


def language_model(
    tensors: Tensors, config: Mapping[str, Any], vocabulary: Vocabulary, where: Path
) -> Component:
    """Component of Qwen2.5-VL.

    Raises:
        UserError: config.json lacks a size, or a tied head differs from the embedding.
    """
    try:
        text, vision = key_mapping.text_arguments(config), key_mapping.vision_arguments(config)
    except (KeyError, TypeError) as error:
        raise UserError(f"{where / 'config.json'} lacks {error}; download it again.") from error
    given = asdict(vocabulary)
    model = QwenVL("", QwenText(**text), QwenVision(**vision), vocabulary=vocabulary)
    with torch.device("meta"):
        model.build()
    if text["tie_word_embeddings"] and HEAD in tensors:
        _check_tied(tensors, where)
        tensors = {name: stored for name, stored in tensors.items() if name != HEAD}
    expected = shapes_of(model.model, key_mapping.VLM)
    section = {
        "class_path": "triptych.modules.UnderstandingModule",
        "init_args": {
            "vlm": {
                "class_path": "triptych.backbones.QwenVL",
                "init_args": {
                    "image_size": model.image_size,
                    "text": text,
                    "vision": vision,
                    "vocabulary": given,
                },
            }
        },
    }
    return Component(
        tensors, section, compare(tensors, expected, str(where), key_mapping.published_key)
    )


def _check_tied(tensors: Tensors, where: Path) -> None:
    head, embedding = tensors[HEAD], tensors.get(EMBEDDING)
    same = embedding is not None and (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    if not same or any(a != b for a, b in zip(head.chunks(), embedding.chunks(), strict=True)):
        raise UserError(
            f"{where}: config.json ties lm_head.weight to the embeddings, but the two differ; "
            "take the config.json that belongs to the weights."
        )


def generation(
    tensors: Tensors, config: Mapping[str, Any], condition: int, where: Path
) -> Component:
    """Component of queries and DiT, for a language model of width `condition`.

    Raises:
        UserError: tensors that determine the sizes of the DiT are missing.
    """
    shapes = {name: stored.shape for name, stored in tensors.items()}
    try:
        arguments = key_mapping.dit_arguments(shapes)
        channels = shapes[key_mapping.DIT + "dit.patch_embedder.proj.weight"][1]
        queries = key_mapping.generation_arguments(config)["num_queries"]
    except (KeyError, IndexError) as error:
        name = str(error.args[0])
        lacking = key_mapping.published_key(name) or name
        raise UserError(
            f"{where} lacks {lacking}, which shows the sizes of the DiT; download it again."
        ) from error
    dit = LuminaNextDiT(**arguments)
    dit.configure_shapes((channels, 8, 8), condition)  # no parameter depends on the grid size
    with torch.device("meta"):
        dit.build()
    expected = {key_mapping.QUERIES: (queries, condition), **shapes_of(dit, key_mapping.DIT)}
    section = {
        "class_path": "triptych.modules.GenerationModule",
        "init_args": {
            "num_queries": queries,
            # Published weights are sampled and scored so; further training uses the same template.
            "sampling": {"integer_timesteps": True},
            "prompt": {
                "template": "published_inference",
                "training_template": "published_inference",
            },
            "dit": {"class_path": "triptych.backbones.LuminaNextDiT", "init_args": arguments},
        },
    }
    return Component(
        tensors, section, compare(tensors, expected, str(where), key_mapping.published_key)
    )


def tower(tensors: Tensors, pool: int, features: int, where: Path) -> Component:
    """Component of the EVA tower; without tensors, with the published sizes, for generation only.

    Args:
        tensors: tensors by full name, or empty.
        pool: side of the pooling.
        features: number of channels of the features that the DiT generates.
        where: source of the tensors, for messages.

    Raises:
        UserError: tensors that determine the tower's sizes are missing, or its width is not that of
            the generated features.
    """
    if not tensors:
        arguments: dict[str, Any] = {"width": features, "pool": pool}
        if features != PUBLISHED_FEATURES:
            arguments["heads"] = 1  # never built; valid for every width
        return Component({}, _encoder_section(arguments))
    shapes = {name: stored.shape for name, stored in tensors.items()}
    try:
        head = (
            112
            if shapes[key_mapping.TOWER + "pos_embed"][2] % 112 == 0
            else shapes[key_mapping.TOWER + "pos_embed"][2]
        )
        arguments = key_mapping.tower_arguments(shapes, pool, head)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{where} is no EVA tower: it lacks {error}; check the file.") from error
    if arguments["width"] != features:
        raise UserError(
            f"{where}: the tower makes {arguments['width']} features and the model {features}; "
            "name the tower that belongs to it."
        )
    encoder = EvaClip(**arguments)
    with torch.device("meta"):
        encoder.build()
    expected = shapes_of(encoder.tower, key_mapping.TOWER)
    key_of = lambda name: name.removeprefix(key_mapping.TOWER)  # noqa: E731
    return Component(
        tensors, _encoder_section(arguments), compare(tensors, expected, str(where), key_of)
    )


def _encoder_section(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": "triptych.backbones.EvaClip", "init_args": arguments}


def pixel_decoder(
    unet: Mapping[str, Stored], vae: Mapping[str, Stored], folder: Path
) -> tuple[Component, Component]:
    """Components of UNet and VAE from a diffusers folder.

    Raises:
        UserError: a config.json lacks a size.
    """
    unet_config = read_json(folder / "unet" / "config.json")
    vae_config = read_json(folder / "vae" / "config.json")
    try:
        decoder_arguments = key_mapping.decoder_arguments(unet_config)
        shrink = 2 ** (len(vae_config["block_out_channels"]) - 1)
        vae_arguments = key_mapping.vae_arguments(vae_config, unet_config["sample_size"] * shrink)
        channels = unet_config["cross_attention_dim"]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{folder}: unet/config.json or vae/config.json is not of an SDXL-like decoder "
            f"({error} is missing); check the folder."
        ) from error
    autoencoder, decoder = KLAutoencoder(**vae_arguments), SDXLDecoder(**decoder_arguments)
    decoder.configure_shapes((channels, 8, 8))
    decoder.connect(autoencoder)
    with torch.device("meta"):
        autoencoder.build()
        decoder.build()
    sections = {
        "unet": {
            "class_path": "triptych.modules.PixelDecoderModule",
            "init_args": {
                "decoder": {
                    "class_path": "triptych.backbones.SDXLDecoder",
                    "init_args": decoder_arguments,
                }
            },
        },
        "vae": {"class_path": "triptych.backbones.KLAutoencoder", "init_args": vae_arguments},
    }

    def component(
        name: str, prefix: str, published: Mapping[str, Stored], network: nn.Module
    ) -> Component:
        tensors = {prefix + key: stored for key, stored in published.items()}
        expected = shapes_of(network, prefix)
        key_of = lambda full: full.replace(prefix, f"{name}/")  # noqa: E731
        problems = compare(tensors, expected, str(folder), key_of)
        return Component(tensors, sections[name], problems)

    return (
        component("unet", key_mapping.UNET, unet, decoder.unet),
        component("vae", key_mapping.VAE, vae, autoencoder.vae),
    )

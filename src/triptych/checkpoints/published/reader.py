"""Reader of published checkpoints, towers and decoders, as components of one model.

Only headers and small files are read; tensors stay on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from triptych.backbones import Vocabulary
from triptych.checkpoints.published import components, key_mapping, tokenizer_files
from triptych.checkpoints.published.archive import Archive, fetch, open_file, open_folder, read_json
from triptych.checkpoints.published.components import (
    Component,
    Tensors,
    few,
    map_keys,
    with_prefixes,
)
from triptych.checkpoints.published.key_mapping import (
    DIT,
    PUBLISHED_TOWER,
    QUERIES,
    TOWER,
    VLM,
)
from triptych.checkpoints.published.new_tokens import with_new_rows
from triptych.utils.documents import read_text
from triptych.utils.errors import UserError

BLIP3O = ("blip3o_qwen", "blip3o_qwen_inference")
STOCK = ("qwen2_5_vl",)


@dataclass
class Conversion:
    """Result of reading: sections of the model file, tensors by full name, and remarks."""

    sections: dict[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    tokenizer: dict[str, bytes] = field(default_factory=dict)
    published: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Metadata of each weight file by label, for an export."""

    def add(self, section: str, component: Component) -> None:
        """Add a component as a section of the model file."""
        self.sections[section] = component.section
        self.tensors |= component.tensors
        self.problems += component.problems


def family(folder: Path) -> str:
    """The `model_type` in a folder's config.json.

    Raises:
        UserError: this type cannot be converted.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name the folder of the checkpoint.")
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if "llama" in kind and config.get("gen_vision_tower"):
        raise UserError(
            f"{folder} is a BLIP3-o on Llama ({kind}), whose published code does not run; "
            "take a checkpoint on Qwen2.5-VL."
        )
    if kind not in BLIP3O + STOCK:
        raise UserError(
            f"{folder / 'config.json'} is of a {kind} model; what can be converted is BLIP3-o on "
            "Qwen2.5-VL (blip3o_qwen), Qwen2.5-VL itself (qwen2_5_vl), a decoder folder, SigLIP "
            "(siglip) or SANA."
        )
    return kind


@dataclass
class PublishedCheckpoint:
    """Main folder of a language model, with or without a generator."""

    folder: Path
    config: dict[str, Any]
    archive: Archive
    tensors: Tensors
    rows: int
    """Number of rows of the vocabulary."""
    files: dict[str, bytes]
    """Tokenizer files by name; empty if there is no tokenizer."""
    tokenizer: Any


def read_checkpoint(folder: Path, conversion: Conversion, encoder: str | None) -> None:
    """Add the components of BLIP3-o or a stock Qwen2.5-VL.

    Args:
        folder: main folder of the checkpoint.
        conversion: result, extended in place.
        encoder: file, folder or hub id of a separate tower.

    Raises:
        UserError: it is neither, or files that determine the sizes are missing.
    """
    kind = family(folder)
    config = read_json(folder / "config.json")
    archive = open_folder(folder, key_mapping.MAIN_WEIGHTS).plain(_has_place)
    conversion.sources += [*archive.paths, folder / "config.json"]
    tensors, unknown = map_keys(archive.tensors, str(folder))
    if unknown:
        conversion.problems.append(f"{folder}: {few(unknown)} unexpected")
    rows = (config.get("text_config") or config).get("vocab_size")
    if not isinstance(rows, int):
        raise UserError(f"{folder / 'config.json'} lacks 'vocab_size'; download it again.")
    files = tokenizer_files.tokenizer_files(folder)
    tokenizer = tokenizer_files.load(files, folder) if files else None
    checkpoint = PublishedCheckpoint(folder, config, archive, tensors, rows, files, tokenizer)
    if kind in BLIP3O:
        _read_blip3o(checkpoint, conversion, encoder)
    else:
        _read_stock(checkpoint, conversion)
    small = [folder / "config.json", folder / "generation_config.json"]
    conversion.published["understanding"] = {
        "files": {path.name: read_text(path) for path in small if path.is_file()},
        # a stock model is never exported unchanged
        "weights": archive.layout() if kind in BLIP3O else None,
    }


def _read_blip3o(
    checkpoint: PublishedCheckpoint, conversion: Conversion, encoder: str | None
) -> None:
    folder, config, tensors = checkpoint.folder, checkpoint.config, checkpoint.tensors
    vocabulary = Vocabulary()
    if checkpoint.tokenizer is not None:
        vocabulary = Vocabulary.of(checkpoint.tokenizer)
    elif checkpoint.rows < vocabulary.rows:
        raise UserError(f"{folder} has no tokenizer files; download them beside the weights.")
    else:
        conversion.remarks.append(
            f"{folder} has no tokenizer files: name a tokenizer in model.yaml."
        )
    vocabulary = replace(vocabulary, rows=checkpoint.rows)
    text = with_prefixes(tensors, VLM)
    conversion.add("understanding", components.language_model(text, config, vocabulary, folder))
    conversion.tokenizer = checkpoint.files

    width = (config.get("text_config") or config)["hidden_size"]
    generation = components.generation(with_prefixes(tensors, QUERIES, DIT), config, width, folder)
    conversion.add("generation", generation)
    conversion.sections["decoder_negative"] = (
        "space_prompt"  # as published weights are sampled and scored
    )

    features = tensors[DIT + "dit.patch_embedder.proj.weight"].shape[1]
    pool = pooling_of(config, folder)
    if encoder:
        read_tower(fetch(encoder), conversion, features, pool)
        return
    tower = with_prefixes(tensors, TOWER)
    if not tower:
        conversion.remarks.append(
            f"{folder} has no EVA tower: generation works, training and reconstruction need it "
            "(convert again with --encoder FILE)."
        )
    conversion.add("encoder", components.tower(tower, pool, features, folder))


def _read_stock(checkpoint: PublishedCheckpoint, conversion: Conversion) -> None:
    """Add a stock Qwen2.5-VL, extended by missing tokens for generation."""
    folder, tokenizer = checkpoint.folder, checkpoint.tokenizer
    if tokenizer is None:
        raise UserError(f"{folder} has no tokenizer files; download them beside the weights.")
    old_tokens = len(tokenizer)
    conversion.tokenizer = tokenizer_files.with_added_tokens(tokenizer, checkpoint.files)
    vocabulary = Vocabulary.of(tokenizer)
    stored = replace(vocabulary, rows=checkpoint.rows)
    component = components.language_model(checkpoint.tensors, checkpoint.config, stored, folder)
    if vocabulary.rows > old_tokens and not component.problems:
        component.tensors = with_new_rows(component.tensors, old_tokens, vocabulary.rows, folder)
        vlm = component.section["init_args"]["vlm"]["init_args"]
        vlm["vocabulary"] = vars(vocabulary)
    conversion.add("understanding", component)


def pooling_of(config: Mapping[str, Any], folder: Path) -> int:
    """Side of the pooling over the tower's tokens, from the config.json in `folder`.

    Raises:
        UserError: its `gen_pooling` is unknown.
    """
    try:
        return key_mapping.pooling(config)
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / 'config.json'}: gen_pooling is {config.get('gen_pooling')!r}, and only "
            "early_pool2d_N is known; check the file."
        ) from error


def read_tower(path: Path, conversion: Conversion, features: int, pool: int = 4) -> None:
    """Add an EVA tower from a separate file or folder; unexpected keys are problems.

    Args:
        path: file or folder of the tower.
        conversion: result, extended in place.
        features: number of channels of the model's features, which the tower must produce.
        pool: side of the pooling over its tokens.

    Raises:
        UserError: there are no weights, or they are not an EVA tower of `features` channels.
    """
    archive = open_folder(path, key_mapping.TOWER_WEIGHTS) if path.is_dir() else open_file(path)
    conversion.sources += archive.paths
    tensors = archive.plain(lambda key: _has_place(_bare(key))).tensors
    bare = {_bare(key): stored for key, stored in tensors.items()}
    tensors, unknown = map_keys(bare, str(path))
    unknown += [key_mapping.published_key(name) for name in tensors if not name.startswith(TOWER)]
    if unknown:
        conversion.problems.append(f"{path}: {few(unknown)} unexpected")
    conversion.add("encoder", components.tower(with_prefixes(tensors, TOWER), pool, features, path))


def _bare(key: str) -> str:
    """Key of a tower without the prefix of a model."""
    return key.removeprefix(PUBLISHED_TOWER).removeprefix("visual.")


def _is_in(parts: Collection[str]) -> Callable[[str], bool]:
    return lambda key: key.split(".")[0] in parts


def _has_place(key: str) -> bool:
    return key_mapping.place_of(key) is not None


def read_decoder(folder: Path, conversion: Conversion) -> None:
    """Add a pixel decoder: a diffusers folder with `unet/` and `vae/`.

    A noise schedule that differs from that of our decoder gives a remark.

    Raises:
        UserError: weights or sizes are missing, or it is not an SDXL-like decoder.
    """
    unet, vae = (
        open_folder(folder / name, key_mapping.DECODER_WEIGHTS).plain(_is_in(parts))
        for name, parts in (("unet", key_mapping.UNET_PARTS), ("vae", key_mapping.VAE_PARTS))
    )
    conversion.sources += [*unet.paths, *vae.paths]
    decoding, autoencoder = components.pixel_decoder(unet.tensors, vae.tensors, folder)
    conversion.add("vae", autoencoder)
    conversion.add("decoding", decoding)
    small = {
        str(path.relative_to(folder)): read_text(path)
        for place in key_mapping.DECODER_FOLDERS
        for path in sorted((folder / place).glob("*.json"))
        if ".index." not in path.name
    }
    layout = {"files": small, "unet": unet.layout(), "vae": vae.layout()}
    conversion.published["decoder"] = layout
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        _compare_schedule(
            read_json(folder / "scheduler" / "scheduler_config.json"), conversion, folder
        )


def _compare_schedule(given: Mapping[str, Any], conversion: Conversion, folder: Path) -> None:
    ours = key_mapping.SCHEDULE
    other = {name: given[name] for name in ours if given.get(name, ours[name]) != ours[name]}
    if other:
        conversion.remarks.append(
            f"{folder}/scheduler/scheduler_config.json says {other}, and the decoder samples with "
            f"{ {name: ours[name] for name in other} }."
        )


def check_widths(conversion: Conversion, folder: Path) -> None:
    """Check that the decoder accepts the generated features."""
    features = conversion.tensors.get(DIT + "dit.patch_embedder.proj.weight")
    keys = [
        name for name in conversion.tensors if name.endswith("attn2.to_k.weight") and "unet" in name
    ]
    if features and keys and conversion.tensors[keys[0]].shape[1] != features.shape[1]:
        raise UserError(
            f"{folder} generates {features.shape[1]} features and its decoder takes "
            f"{conversion.tensors[keys[0]].shape[1]}; name the decoder that belongs to it."
        )

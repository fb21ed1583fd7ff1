"""Reader of published checkpoints, towers and decoders, as pieces of one model.

Only headers and small files are read here; the tensors stay on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from triptych.backbones import Vocabulary
from triptych.checkpoints.published import components, key_mapping, tokenizer_files
from triptych.checkpoints.published.archive import Archive, fetch, open_file, open_folder, read_json
from triptych.checkpoints.published.components import Component, Tensors, few, map_keys, part
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
    """Result of reading: the model's sections, its tensors by full name, and remarks."""

    sections: dict[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    tokenizer: dict[str, bytes] = field(default_factory=dict)
    published: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By label, for the metadata of that weight file."""

    def take(self, section: str, component: Component) -> None:
        """Add a component as a section of the model."""
        self.sections[section] = component.section
        self.tensors |= component.tensors
        self.problems += component.problems


def family(folder: Path) -> str:
    """The `model_type` of a folder's config.json, one that can be converted.

    Raises:
        UserError: it is another one.
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
    """The main folder of a language model, with or without what generates."""

    folder: Path
    config: dict[str, Any]
    archive: Archive
    tensors: Tensors
    rows: int
    """Number of rows of the vocabulary."""
    files: dict[str, bytes]
    """Files of the tokenizer, by name; empty if there is none."""
    tokenizer: Any


def read_checkpoint(folder: Path, found: Conversion, encoder: str | None) -> None:
    """BLIP3-o or a stock Qwen2.5-VL, whatever its config.json; `encoder` names a tower apart.

    Raises:
        UserError: it is neither, or what shows the sizes is not there.
    """
    kind = family(folder)
    config = read_json(folder / "config.json")
    archive = open_folder(folder, key_mapping.MAIN_WEIGHTS).plain(_has_place)
    found.sources += [*archive.paths, folder / "config.json"]
    tensors, unknown = map_keys(archive.tensors, str(folder))
    if unknown:
        found.problems.append(f"{folder}: {few(unknown)} unexpected")
    rows = (config.get("text_config") or config).get("vocab_size")
    if not isinstance(rows, int):
        raise UserError(f"{folder / 'config.json'} lacks 'vocab_size'; download it again.")
    files = tokenizer_files.tokenizer_files(folder)
    tokenizer = tokenizer_files.load(files, folder) if files else None
    checkpoint = PublishedCheckpoint(folder, config, archive, tensors, rows, files, tokenizer)
    if kind in BLIP3O:
        _read_blip3o(checkpoint, found, encoder)
    else:
        _read_stock(checkpoint, found)
    small = [folder / "config.json", folder / "generation_config.json"]
    found.published["understanding"] = {
        "files": {path.name: read_text(path) for path in small if path.is_file()},
        # a stock model is never written back as it was
        "weights": archive.layout() if kind in BLIP3O else None,
    }


def _read_blip3o(checkpoint: PublishedCheckpoint, found: Conversion, encoder: str | None) -> None:
    folder, config, tensors = checkpoint.folder, checkpoint.config, checkpoint.tensors
    vocabulary = Vocabulary()
    if checkpoint.tokenizer is not None:
        vocabulary = Vocabulary.of(checkpoint.tokenizer)
    elif checkpoint.rows < vocabulary.rows:
        raise UserError(f"{folder} has no tokenizer files; download them beside the weights.")
    else:
        found.remarks.append(f"{folder} has no tokenizer files: name a tokenizer in model.yaml.")
    vocabulary = replace(vocabulary, rows=checkpoint.rows)
    text = part(tensors, VLM)
    found.take("understanding", components.language_model(text, config, vocabulary, folder))
    found.tokenizer = checkpoint.files

    width = (config.get("text_config") or config)["hidden_size"]
    generation = components.generation(part(tensors, QUERIES, DIT), config, width, folder)
    found.take("generation", generation)
    found.sections["decoder_negative"] = (
        "space_prompt"  # as published weights are sampled and scored
    )

    features = tensors[DIT + "dit.patch_embedder.proj.weight"].shape[1]
    pool = pooling_of(config, folder)
    if encoder:
        read_tower(fetch(encoder), found, features, pool)
        return
    tower = part(tensors, TOWER)
    if not tower:
        found.remarks.append(
            f"{folder} has no EVA tower: generation works, training and reconstruction need it "
            "(convert again with --encoder FILE)."
        )
    found.take("encoder", components.tower(tower, pool, features, folder))


def _read_stock(checkpoint: PublishedCheckpoint, found: Conversion) -> None:
    """A stock Qwen2.5-VL gets the tokens that generation needs, unless it has them."""
    folder, tokenizer = checkpoint.folder, checkpoint.tokenizer
    if tokenizer is None:
        raise UserError(f"{folder} has no tokenizer files; download them beside the weights.")
    known = len(tokenizer)
    found.tokenizer = tokenizer_files.with_added_tokens(tokenizer, checkpoint.files)
    vocabulary = Vocabulary.of(tokenizer)
    as_it_is = replace(vocabulary, rows=checkpoint.rows)
    component = components.language_model(checkpoint.tensors, checkpoint.config, as_it_is, folder)
    if vocabulary.rows > known and not component.problems:
        component.tensors = with_new_rows(component.tensors, known, vocabulary.rows, folder)
        vlm = component.section["init_args"]["vlm"]["init_args"]
        vlm["vocabulary"] = vars(vocabulary)
    found.take("understanding", component)


def pooling_of(config: Mapping[str, Any], folder: Path) -> int:
    """Side of the pooling over the tower's tokens, of the config.json in `folder`.

    Raises:
        UserError: its `gen_pooling` is none that we know.
    """
    try:
        return key_mapping.pooling(config)
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / 'config.json'}: gen_pooling is {config.get('gen_pooling')!r}, and only "
            "early_pool2d_N is known; check the file."
        ) from error


def read_tower(path: Path, found: Conversion, features: int, pool: int = 4) -> None:
    """Add an EVA tower, a file or a folder of its own; keys that are not its own are problems.

    Args:
        features: number of channels of the model's features, which the tower must make.
        pool: side of the pooling over its tokens.

    Raises:
        UserError: it holds no weights, or they are not an EVA tower of `features` channels.
    """
    archive = open_folder(path, key_mapping.TOWER_WEIGHTS) if path.is_dir() else open_file(path)
    found.sources += archive.paths
    tensors = archive.plain(lambda key: _has_place(_bare(key))).tensors
    bare = {_bare(key): stored for key, stored in tensors.items()}
    tensors, unknown = map_keys(bare, str(path))
    unknown += [key_mapping.published_key(name) for name in tensors if not name.startswith(TOWER)]
    if unknown:
        found.problems.append(f"{path}: {few(unknown)} unexpected")
    found.take("encoder", components.tower(part(tensors, TOWER), pool, features, path))


def _bare(key: str) -> str:
    """A key of a tower that is published apart, or inside a model."""
    return key.removeprefix(PUBLISHED_TOWER).removeprefix("visual.")


def _is_in(parts: Collection[str]) -> Callable[[str], bool]:
    return lambda key: key.split(".")[0] in parts


def _has_place(key: str) -> bool:
    return key_mapping.place_of(key) is not None


def read_decoder(folder: Path, found: Conversion) -> None:
    """Add a pixel decoder: a diffusers folder with `unet/` and `vae/`.

    A schedule of its own is remarked on where it is not the one that our decoder samples with.

    Raises:
        UserError: weights or sizes are missing, or it is not an SDXL-like decoder.
    """
    unet, vae = (
        open_folder(folder / name, key_mapping.DECODER_WEIGHTS).plain(_is_in(parts))
        for name, parts in (("unet", key_mapping.UNET_PARTS), ("vae", key_mapping.VAE_PARTS))
    )
    found.sources += [*unet.paths, *vae.paths]
    decoding, autoencoder = components.pixel_decoder(unet.tensors, vae.tensors, folder)
    found.take("vae", autoencoder)
    found.take("decoding", decoding)
    small = {
        str(path.relative_to(folder)): read_text(path)
        for place in key_mapping.DECODER_FOLDERS
        for path in sorted((folder / place).glob("*.json"))
        if ".index." not in path.name
    }
    layout = {"files": small, "unet": unet.layout(), "vae": vae.layout()}
    found.published["decoder"] = layout
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        _compare_schedule(read_json(folder / "scheduler" / "scheduler_config.json"), found, folder)


def _compare_schedule(given: Mapping[str, Any], found: Conversion, folder: Path) -> None:
    ours = key_mapping.SCHEDULE
    other = {name: given[name] for name in ours if given.get(name, ours[name]) != ours[name]}
    if other:
        found.remarks.append(
            f"{folder}/scheduler/scheduler_config.json says {other}, and the decoder samples with "
            f"{ {name: ours[name] for name in other} }."
        )


def check_widths(found: Conversion, folder: Path) -> None:
    """Check that the decoder takes the generated features."""
    features = found.tensors.get(DIT + "dit.patch_embedder.proj.weight")
    keys = [name for name in found.tensors if name.endswith("attn2.to_k.weight") and "unet" in name]
    if features and keys and found.tensors[keys[0]].shape[1] != features.shape[1]:
        raise UserError(
            f"{folder} generates {features.shape[1]} features and its decoder takes "
            f"{found.tensors[keys[0]].shape[1]}; name the decoder that belongs to it."
        )

"""Published checkpoints to our weight files, tensor by tensor.

    BLIP3-o      Qwen2.5-VL as in transformers 4.51 with more keys, and `diffusion-decoder/`
    Qwen2.5-VL   a stock folder, with the names of any transformers
    a decoder    a diffusers folder with `unet/` and `vae/`, such as Emu2's

become a folder with

    understanding.safetensors  generation.safetensors  encoder.safetensors  decoder.safetensors
    tokenizer/                 as it was
    model.yaml                 sizes as read from the checkpoint, for `triptych generate --config`

Bytes are copied, never computed with, so number formats and values stay what they were; the only
new numbers are the embeddings of tokens that a stock Qwen2.5-VL lacks. Every key and every shape
is checked before the first byte is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from triptych.backbones import Vocabulary
from triptych.contracts import UserError
from triptych.weights import layouts, pieces, tokenizers
from triptych.weights.checkpoints import Archive, fetch, open_file, open_folder, read_json
from triptych.weights.files import MADE_BY, label_of
from triptych.weights.layouts import DIT, PUBLISHED_TOWER, QUERIES, TOWER, UNDERSTANDER
from triptych.weights.new_tokens import with_new_rows
from triptych.weights.pieces import Piece, Tensors, few, part, placed
from triptych.weights.safetensors_stream import Stored, write_tensors
from triptych.weights.staging import Staging, fingerprint, refuse_existing

BLIP3O = ("blip3o_qwen", "blip3o_qwen_inference")
STOCK = ("qwen2_5_vl",)
DECODER = "diffusion-decoder"
MAIN_WEIGHTS = [("model.safetensors.index.json", "model.safetensors")]
# The published code reads the bf16 variant; where both are there it wins.
DECODER_WEIGHTS = [
    (
        f"diffusion_pytorch_model.safetensors.index{dot}.json",
        f"diffusion_pytorch_model{dot}.safetensors",
    )
    for dot in (".bf16", "")
]
DECODER_FOLDERS = ("", "unet", "vae", "scheduler", "feature_extractor", "safety_checker")
TOWER_WEIGHTS = [*MAIN_WEIGHTS, ("pytorch_model.bin.index.json", "pytorch_model.bin")]
# Under this name a weight file keeps what the way back needs: small files and the shards' layout.
PUBLISHED = "published"
# What the decoder does; a scheduler_config.json that says otherwise is told to the user.
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "use_karras_sigmas": False,
}


@dataclass
class Conversion:
    """What was found: the model's sections, its tensors by full name, and remarks."""

    sections: dict[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    tokenizer: dict[str, bytes] = field(default_factory=dict)
    published: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By label, for the metadata of that weight file."""

    def take(self, section: str, piece: Piece) -> None:
        """Add a piece as a section of the model."""
        self.sections[section] = piece.section
        self.tensors |= piece.tensors
        self.problems += piece.problems


def convert(
    source: str,
    target: Path,
    encoder: str | None = None,
    decoder: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Make the folder `target` of what is published in `source`.

    Args:
        source: folder or hub id, of one of the kinds above.
        encoder: file, folder or hub id of the EVA tower, which is published apart.
        decoder: folder or hub id of a pixel decoder, in place of the one inside `source`.
        say: told about progress and remarks, a line each.

    Raises:
        UserError: something does not fit; then there is no `target`.
    """
    refuse_existing(target)
    folder = fetch(source)
    found = Conversion()
    if (folder / "unet").is_dir():
        _read_decoder(folder, found)
    else:
        _read_main(folder, found, encoder)
        inside = fetch(decoder) if decoder else folder / DECODER
        if decoder or inside.is_dir():
            _read_decoder(inside, found)
        else:
            found.remarks.append(
                f"{folder} has no {DECODER} folder: pictures need one (convert again with "
                "--decoder FOLDER)."
            )
    if encoder and "encoder" not in found.sections:
        _read_tower(fetch(encoder), found, features=pieces.PUBLISHED_FEATURES)
    if found.problems:
        raise UserError(
            f"{folder} does not hold what its config.json says: {'; '.join(found.problems)}; "
            "download it again, or take the config.json that belongs to it."
        )
    _check_widths(found, folder)
    for remark in found.remarks:
        say(remark)
    _write(found, target, say)


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
            "Qwen2.5-VL (blip3o_qwen), Qwen2.5-VL itself (qwen2_5_vl), or a decoder folder."
        )
    return kind


def _read_main(folder: Path, found: Conversion, encoder: str | None) -> None:
    """The checkpoint's own weights: language model, and for BLIP3-o what generates."""
    blip3o = family(folder) in BLIP3O
    config = read_json(folder / "config.json")
    archive = open_folder(folder, MAIN_WEIGHTS)
    found.sources += [*archive.paths, folder / "config.json"]
    tensors, unknown = placed(archive.tensors, str(folder))
    if unknown:
        found.problems.append(f"{folder}: {few(unknown)} unexpected")
    text = part(tensors, UNDERSTANDER)
    rest = {name: stored for name, stored in tensors.items() if name not in text}
    rows = (config.get("text_config") or config).get("vocab_size")
    if not isinstance(rows, int):
        raise UserError(f"{folder / 'config.json'} lacks 'vocab_size'; download it again.")
    files = tokenizers.tokenizer_files(folder)
    tokenizer = tokenizers.load(files, folder) if files else None
    if not files and not (blip3o and rows >= Vocabulary().rows):
        raise UserError(f"{folder} has no tokenizer files; download them beside the weights.")
    if blip3o:
        known = Vocabulary.of(tokenizer) if tokenizer else Vocabulary()
        understanding = pieces.language_model(text, config, replace(known, rows=rows), folder)
        _read_generation(rest, archive, config, found, folder, encoder)
        found.sections["negative"] = "prompt"  # as published weights are sampled and scored
        if not files:
            found.remarks.append(
                f"{folder} has no tokenizer files: name a tokenizer in model.yaml yourself."
            )
    else:
        understanding = _stock(text, config, rows, tokenizer, files, found, folder)
        if rest:
            found.problems.append(f"{folder}: {few(rest)} unexpected")
    if not understanding.problems:
        _keep_small_files(folder, archive, found, blip3o)
    found.take("understanding", understanding)
    found.tokenizer = found.tokenizer or files


def _stock(text, config, rows, tokenizer, files, found: Conversion, folder: Path) -> Piece:
    """A stock Qwen2.5-VL gets the tokens that generation needs, unless it has them."""
    known = len(tokenizer)
    found.tokenizer = tokenizers.with_added_tokens(tokenizer, files)
    vocabulary = Vocabulary.of(tokenizer)
    piece = pieces.language_model(text, config, replace(vocabulary, rows=rows), folder)
    if vocabulary.rows > known and not piece.problems:
        piece.tensors = with_new_rows(piece.tensors, known, vocabulary.rows, folder)
    else:
        vocabulary = replace(vocabulary, rows=rows)
    understander = piece.section["init_args"]["understander"]["init_args"]
    understander["vocabulary"] = vars(vocabulary)
    return piece


def _read_generation(rest, archive: Archive, config, found: Conversion, folder: Path, encoder):
    """Queries, DiT, and the tower where it is inside or named."""
    width = (config.get("text_config") or config)["hidden_size"]
    piece = pieces.generation(part(rest, QUERIES, DIT), config, width, folder)
    found.take("generation", piece)
    features = rest[DIT + "dit.patch_embedder.proj.weight"].shape[1]
    if encoder:
        _read_tower(fetch(encoder), found, features, _pool(config, folder))
        return
    tensors = part(rest, TOWER)
    if not tensors:
        found.remarks.append(
            f"{folder} has no EVA tower: generation works, training and reconstruction need it "
            "(convert again with --encoder FILE)."
        )
    found.take("encoder", pieces.tower(tensors, _pool(config, folder), features, folder))


def _pool(config: Mapping[str, Any], folder: Path) -> int:
    try:
        return layouts.pooling(config)
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder / 'config.json'}: gen_pooling is {config.get('gen_pooling')!r}, and only "
            "early_pool2d_N is known; check the file."
        ) from error


def _read_tower(path: Path, found: Conversion, features: int, pool: int = 4) -> None:
    archive = open_folder(path, TOWER_WEIGHTS) if path.is_dir() else open_file(path)
    found.sources += archive.paths
    bare = {
        key.removeprefix(PUBLISHED_TOWER).removeprefix("visual."): stored
        for key, stored in archive.tensors.items()
    }
    tensors, unknown = placed(bare, str(path))
    unknown += [layouts.published_key(name) for name in tensors if not name.startswith(TOWER)]
    if unknown:
        found.problems.append(f"{path}: {few(unknown)} unexpected")
    found.take("encoder", pieces.tower(part(tensors, TOWER), pool, features, path))


def _read_decoder(folder: Path, found: Conversion) -> None:
    unet = open_folder(folder / "unet", DECODER_WEIGHTS)
    vae = open_folder(folder / "vae", DECODER_WEIGHTS)
    found.sources += [*unet.paths, *vae.paths]
    found.take("decoding", pieces.pixel_decoder(unet.tensors, vae.tensors, folder))
    small = {
        str(path.relative_to(folder)): path.read_text()
        for place in DECODER_FOLDERS
        for path in sorted((folder / place).glob("*.json"))
        if ".index." not in path.name
    }
    layout = {"files": small, "unet": unet.layout(), "vae": vae.layout()}
    found.published["decoder"] = layout
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        _compare_schedule(read_json(folder / "scheduler" / "scheduler_config.json"), found, folder)


def _compare_schedule(given: Mapping[str, Any], found: Conversion, folder: Path) -> None:
    other = {
        name: given[name] for name in SCHEDULE if given.get(name, SCHEDULE[name]) != SCHEDULE[name]
    }
    if other:
        found.remarks.append(
            f"{folder}/scheduler/scheduler_config.json says {other}, and the decoder samples with "
            f"{ {name: SCHEDULE[name] for name in other} }."
        )


def _check_widths(found: Conversion, folder: Path) -> None:
    """The decoder must take what is generated."""
    features = found.tensors.get(DIT + "dit.patch_embedder.proj.weight")
    keys = [name for name in found.tensors if name.endswith("attn2.to_k.weight") and "unet" in name]
    if features and keys and found.tensors[keys[0]].shape[1] != features.shape[1]:
        raise UserError(
            f"{folder} generates {features.shape[1]} features and its decoder takes "
            f"{found.tensors[keys[0]].shape[1]}; name the decoder that belongs to it."
        )


def _keep_small_files(folder: Path, archive: Archive, found: Conversion, blip3o: bool) -> None:
    names = ["config.json", "generation_config.json"]
    kept = {name: (folder / name).read_text() for name in names if (folder / name).is_file()}
    layout = archive.layout() if blip3o else None
    found.published["understanding"] = {"files": kept, "weights": layout}


# Writing ------------------------------------------------------------------------------------------


def _write(found: Conversion, target: Path, say: Callable[[str], None]) -> None:
    by_label: dict[str, Tensors] = {label: {} for label in MADE_BY}
    for name, stored in found.tensors.items():
        by_label[label_of(name)][name] = stored
    labels = {label: tensors for label, tensors in by_label.items() if tensors}
    text = model_file(found, target, labels)
    size = sum(stored.nbytes for stored in found.tensors.values())
    staging = Staging(target, fingerprint(found.sources, "to ours", text), size)
    for label, tensors in labels.items():
        metadata = {"preset": target.name, "stage": "converted"}
        if label in found.published:
            metadata[PUBLISHED] = json.dumps(found.published[label])
        name = f"{label}.safetensors"
        made = staging.write(name, _weights(tensors, metadata))
        gigabytes = sum(stored.nbytes for stored in tensors.values()) / 1e9
        say(f"{name}: {len(tensors)} tensors, {gigabytes:.2f} GB" + ("" if made else ", kept"))
    for name, content in found.tokenizer.items():
        staging.write(f"tokenizer/{name}", _bytes(content))
    staging.write("model.yaml", _bytes(text.encode()))
    staging.finish()
    say(f"{target} is complete; {target / 'model.yaml'} names its files.")


def _weights(tensors: Mapping[str, Stored], metadata: Mapping[str, str]):
    def produce(file: BinaryIO) -> None:
        write_tensors(file, tensors, metadata)

    return produce


def _bytes(content: bytes):
    def produce(file: BinaryIO) -> None:
        file.write(content)

    return produce


def model_file(found: Conversion, target: Path, labels: Mapping[str, Tensors]) -> str:
    """The text of model.yaml: paths are absolute, so that it works from every folder."""
    home = target.resolve()
    sections = dict(found.sections)
    if "understanding" in sections:
        understander = sections["understanding"]["init_args"]["understander"]["init_args"]
        understander["tokenizer"] = str(home / "tokenizer")
    model = {
        "preset": target.name,
        **sections,
        "weights": {label: str(home / f"{label}.safetensors") for label in labels},
    }
    return (
        "# Made by `triptych convert`; sizes are those of the checkpoint. The paths are absolute:\n"
        "# change them here when the folder moves.\n"
        + yaml.safe_dump({"model": model}, sort_keys=False)
    )

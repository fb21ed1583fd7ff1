"""Conversion of published checkpoints to our weight files, tensor by tensor.

    BLIP3-o      Qwen2.5-VL as in transformers 4.51 with more keys, and `diffusion-decoder/`
    Qwen2.5-VL   a stock folder, with the names of any transformers
    a decoder    a diffusers folder with `unet/` and `vae/`, such as Emu2's

become a folder with

    understanding.safetensors  generation.safetensors
    encoder.safetensors  vae.safetensors  decoder.safetensors
    tokenizer/                 unchanged
    model.yaml                 sizes as read from the checkpoint, for `triptych generate --config`

Bytes are copied without computation, so formats and values are unchanged; the only new values are
embeddings of tokens that a stock Qwen2.5-VL lacks. All keys and shapes are checked before the first
byte is written. SigLIP and SANA are in siglip_sana.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import yaml

from triptych.checkpoints.published import components, siglip_sana
from triptych.checkpoints.published.archive import fetch
from triptych.checkpoints.published.components import Tensors
from triptych.checkpoints.published.key_mapping import DECODER
from triptych.checkpoints.published.reader import (
    Conversion,
    check_widths,
    read_checkpoint,
    read_decoder,
    read_tower,
)
from triptych.checkpoints.published.safetensors_stream import Stored, write_tensors
from triptych.checkpoints.published.staging import Staging, plan_hash, refuse_existing
from triptych.checkpoints.weight_checks import require_floating
from triptych.checkpoints.weight_files import CREATED_BY, label_of
from triptych.utils.errors import UserError

# metadata key of a weight file for an export: small files and the distribution over files
PUBLISHED = "published"


def convert_published(
    sources: Sequence[str],
    target: Path,
    *,
    encoder: str | None = None,
    decoder: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Convert one source with `convert`, or one or several with `convert_siglip_sana`.

    Raises:
        UserError: the sources are of neither kind, or something does not fit; then no `target` is
            created.
    """
    refuse_existing(target)
    folders = [fetch(source) for source in sources]
    others = [folder for folder in folders if not siglip_sana.recognised(folder)]
    if others and len(folders) > 1:
        raise UserError(
            f"{others[0]} is neither SigLIP nor SANA, and only these are taken together; convert "
            "it alone (an EVA tower or a decoder is named with --encoder or --decoder)."
        )
    paths = [str(folder) for folder in folders]
    if others:
        convert(paths[0], target, encoder=encoder, decoder=decoder, say=say)
    elif encoder or decoder:
        raise UserError(
            f"{folders[0]} is SigLIP or SANA, which takes no --encoder or --decoder; name both "
            "one after the other, before the target."
        )
    else:
        siglip_sana.convert_siglip_sana(paths, target, say)


def convert(
    source: str,
    target: Path,
    *,
    encoder: str | None = None,
    decoder: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Convert the published checkpoint `source` to the folder `target`.

    Args:
        source: folder or hub id of one of the kinds above.
        target: folder to create.
        encoder: file, folder or hub id of the EVA tower, which is published separately.
        decoder: folder or hub id of a pixel decoder that replaces the one inside `source`.
        say: callback for lines of progress and remarks.

    Raises:
        UserError: something does not fit; then no `target` is created.
    """
    refuse_existing(target)
    folder = fetch(source)
    conversion = Conversion()
    if (folder / "unet").is_dir():
        if decoder:
            raise UserError(f"{folder} is a decoder itself; leave out --decoder {decoder}.")
        read_decoder(folder, conversion)
    else:
        read_checkpoint(folder, conversion, encoder)
        inside = fetch(decoder) if decoder else folder / DECODER
        if decoder or inside.is_dir():
            read_decoder(inside, conversion)
        else:
            conversion.remarks.append(
                f"{folder} has no {DECODER} folder: images need one (convert again with "
                "--decoder FOLDER)."
            )
    if encoder and "encoder" not in conversion.sections:
        read_tower(fetch(encoder), conversion, features=components.PUBLISHED_FEATURES)
    if conversion.problems:
        raise UserError(
            f"{folder} does not hold what its config.json says: {'; '.join(conversion.problems)}; "
            "download it again, or take the config.json that belongs to it."
        )
    check_widths(conversion, folder)
    for remark in conversion.remarks:
        say(remark)
    _write(conversion, target, say)


def _write(conversion: Conversion, target: Path, say: Callable[[str], None]) -> None:
    by_label: dict[str, Tensors] = {label: {} for label in CREATED_BY}
    for name, stored in conversion.tensors.items():
        by_label[label_of(name)][name] = stored
    labels = {label: tensors for label, tensors in by_label.items() if tensors}
    require_floating({name: stored.dtype for name, stored in conversion.tensors.items()}, target)
    text = model_file(conversion, target, labels)
    size = sum(stored.nbytes for stored in conversion.tensors.values())
    staging = Staging(target, plan_hash(conversion.sources, "to ours", text), size)
    for label, tensors in labels.items():
        metadata = {"preset": target.name, "stage": "converted"}
        if label in conversion.published:
            metadata[PUBLISHED] = json.dumps(conversion.published[label])
        name = f"{label}.safetensors"
        made = staging.write(name, _weights(tensors, metadata))
        gigabytes = sum(stored.nbytes for stored in tensors.values()) / 1e9
        say(f"{name}: {len(tensors)} tensors, {gigabytes:.2f} GB" + ("" if made else ", kept"))
    for name, content in conversion.tokenizer.items():
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


def model_file(conversion: Conversion, target: Path, labels: Mapping[str, Tensors]) -> str:
    """Text of model.yaml; paths are absolute, so that it works from every folder."""
    home = target.resolve()
    sections = dict(conversion.sections)
    if "understanding" in sections:
        vlm = sections["understanding"]["init_args"]["vlm"]["init_args"]
        vlm["tokenizer"] = str(home / "tokenizer")
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

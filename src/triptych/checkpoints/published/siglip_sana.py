"""Conversion of published weights of SigLIP 2 and SANA to our weight files.

A joint release of the two has the keys

    encoder.model.*              transformers' SiglipVisionModel
    transformer.transformer.*    diffusers' SanaTransformer2DModel
    transformer.connector.*      two linear layers and a norm, only in this release
    vae.*                        diffusers' AutoencoderDC

A folder of transformers or diffusers has the same tensors without these prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from triptych.checkpoints.published.archive import Archive, fetch, open_folder, read_json
from triptych.checkpoints.published.components import Tensors
from triptych.checkpoints.published.key_mapping import TOWER, TOWER_WEIGHTS, VAE
from triptych.checkpoints.published.reader import BLIP3O, STOCK
from triptych.checkpoints.published.safetensors_stream import write_tensors
from triptych.checkpoints.published.staging import Staging, plan_hash, refuse_existing
from triptych.checkpoints.weight_checks import require_floating
from triptych.checkpoints.weight_files import label_of
from triptych.utils.errors import UserError

SIGLIP = ("siglip", "siglip_vision_model")  # `model_type` of a config.json
# SigLIP 2 for images of any shape (NaFlex), whose patches are cut before the tower; the model_type
# of SigLIP 2 with fixed resolution is `siglip`.
NAFLEX = ("siglip2", "siglip2_vision_model")
RELEASED_TOWER = "encoder.model."
RELEASED_TRANSFORMER = "transformer.transformer."
RELEASED_VAE = "vae."
# (released prefix, ours)
_BEGINNINGS = (
    (RELEASED_TRANSFORMER, "decoding.decoder.transformer."),
    ("transformer.connector.", "decoding.decoder.connector."),
    (RELEASED_VAE, VAE),
)
# class and released prefix of each subfolder of a diffusers pipeline
_PIPELINE = {
    "transformer": ("SanaTransformer2DModel", RELEASED_TRANSFORMER),
    "vae": ("AutoencoderDC", RELEASED_VAE),
}
# remark for each prefix of our names without tensors
_REMARKS = {
    TOWER: "no source is a SigLIP: encoding needs one (convert again and name both).",
    "decoding.decoder.transformer.": "no source is a SANA: images need one (convert again and "
    "name both).",
    "decoding.decoder.connector.": "no source has the connector: it starts at random, and the "
    "decoder has to be trained before it shows anything.",
    VAE: "no source has SANA's autoencoder: images need one.",
}
# keys of a complete SigLIP that `Siglip2` does not use: everything after the features
_UNUSED = re.compile(r"text_model\.|logit_(scale|bias)$|post_layernorm\.|head\.|.*\.position_ids$")
_TOWER_LAYER = re.compile(re.escape(TOWER) + r"encoder\.layers\.(\d+)\.")
# file names of weights in transformers and diffusers
FOLDER_WEIGHTS = (
    *TOWER_WEIGHTS,
    ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
)


def full_names(keys: Iterable[str]) -> dict[str, str]:
    """Full name inside `UnifiedModule` by released key, for the keys that the model uses.

    Raises:
        UserError: a key is of neither SigLIP nor SANA.
    """
    names = {key: _full_name(key) for key in keys}
    layers = {key: _TOWER_LAYER.match(name) for key, name in names.items() if name}
    last = max((int(layer[1]) for layer in layers.values() if layer), default=None)
    return {
        key: names[key] for key, layer in layers.items() if layer is None or int(layer[1]) != last
    }


def _full_name(key: str) -> str | None:
    """Full name of a tensor, without regard to the tower's unused last layer; None if unused."""
    for released, ours in _BEGINNINGS:
        if key.startswith(released):
            return ours + key.removeprefix(released)
    # the wrapper `vision_model` depends on the version of transformers
    name = key.removeprefix(RELEASED_TOWER).removeprefix("vision_model.")
    if key.startswith(RELEASED_TOWER) and _UNUSED.match(name):
        return None
    if key.startswith(RELEASED_TOWER) and name.startswith(("embeddings.", "encoder.layers.")):
        return TOWER + name
    raise UserError(f"{key} is no tensor of SigLIP 2 or SANA: this is another checkpoint.")


def recognised(source: Path) -> bool:
    """Whether a source is for `convert_siglip_sana`, by its folders, config.json or key names.

    Raises:
        UserError: config.json or weights cannot be read, or it is a NaFlex SigLIP 2.
    """
    if (source / "transformer").is_dir():
        return True
    config = source / "config.json"
    kind = str(read_json(config).get("model_type")) if config.is_file() else ""
    if kind in NAFLEX:
        raise UserError(
            f"{config} is of a NaFlex SigLIP 2 ({kind}), which takes images of any shape, and "
            "ours is of fixed resolution; take such a checkpoint (siglip), as "
            "google/siglip2-so400m-patch16-512 is."
        )
    if kind in (*SIGLIP, *BLIP3O, *STOCK):
        return kind in SIGLIP
    names = (source / name for pair in FOLDER_WEIGHTS for name in pair)
    return any(name.is_file() for name in names) and _joint(_opened(source, ""))


def convert_siglip_sana(
    sources: Sequence[str], target: Path, say: Callable[[str], None] = print
) -> None:
    """Write the weight files `encoder`, `vae` and `decoder`, with unchanged tensors.

    Args:
        sources: folders or hub ids of the joint release, of SigLIP (transformers) or of SANA
            (diffusers, with `transformer/` and `vae/`); later ones override earlier ones.
        target: folder to create.
        say: callback for lines of progress and about missing components.

    Raises:
        UserError: a source has no weights or is another model, or the disk is full.
    """
    refuse_existing(target)
    found: Tensors = {}  # by released key
    paths: list[Path] = []
    for source in sources:
        for archive, beginning in _parts(fetch(source)):
            found |= {beginning + key: stored for key, stored in archive.tensors.items()}
            paths += archive.paths
    named = {name: found[key] for key, name in full_names(found).items()}
    require_floating({name: stored.dtype for name, stored in named.items()}, target)
    staging = Staging(target, plan_hash(paths), sum(stored.nbytes for stored in named.values()))
    for beginning, remark in _REMARKS.items():
        if not any(name.startswith(beginning) for name in named):
            say(remark)
    for label in ("encoder", "vae", "decoder"):
        tensors = {name: stored for name, stored in named.items() if label_of(name) == label}
        if tensors:
            metadata = {"preset": target.name, "stage": "converted"}
            write = partial(write_tensors, tensors=tensors, metadata=metadata)
            staging.write(f"{label}.safetensors", write)
            gigabytes = sum(stored.nbytes for stored in tensors.values()) / 1e9
            say(f"{label}.safetensors: {len(tensors)} tensors, {gigabytes:.2f} GB")
    staging.finish()
    say(f"{target} is complete; name its files with --model.weights.encoder, .vae and .decoder.")


def _parts(source: Path) -> Iterator[tuple[Archive, str]]:
    """Yield the archives of a source, each with the prefix of its keys in the joint release."""
    inside = [name for name in _PIPELINE if (source / name).is_dir()]
    for name in inside:
        expected, beginning = _PIPELINE[name]
        class_name = read_json(source / name / "config.json").get("_class_name")
        if class_name != expected:
            raise UserError(
                f"{source / name} is of a {class_name}, and SANA has a {expected}; name a folder "
                "of SANA."
            )
        yield _opened(source / name, beginning), beginning
    if not inside:
        joint = _opened(source, "")
        yield (joint, "") if _joint(joint) else (_opened(source, RELEASED_TOWER), RELEASED_TOWER)


def _opened(folder: Path, beginning: str) -> Archive:
    """Weights of a folder whose keys are valid after the prefix `beginning`."""

    def known(key: str) -> bool:
        try:
            return _full_name(beginning + key) is not None
        except UserError:
            return False

    return open_folder(folder, FOLDER_WEIGHTS).plain(known)


def _joint(archive: Archive) -> bool:
    beginnings = (RELEASED_TOWER, *(released for released, _ in _BEGINNINGS))
    return any(key.startswith(beginnings) for key in archive.tensors)

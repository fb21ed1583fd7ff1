"""Published weights of SigLIP 2 and SANA, as weight files of ours.

There was a joint release of the two, whose keys are

    encoder.model.*              transformers' SiglipVisionModel
    transformer.transformer.*    diffusers' SanaTransformer2DModel
    transformer.connector.*      two linear layers and a norm; published nowhere else
    vae.*                        diffusers' AutoencoderDC

A library folder holds the same tensors without the beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from triptych.contracts import UserError
from triptych.weights.checkpoints import Archive, fetch, open_folder
from triptych.weights.files import label_of
from triptych.weights.layouts import TOWER, TOWER_WEIGHTS, VAE
from triptych.weights.pieces import Tensors
from triptych.weights.safetensors_stream import write_tensors
from triptych.weights.staging import Staging, fingerprint, refuse_existing

RELEASED_TOWER = "encoder.model."
RELEASED_TRANSFORMER = "transformer.transformer."
RELEASED_VAE = "vae."
# (released beginning, ours)
_BEGINNINGS = (
    (RELEASED_TRANSFORMER, "decoding.decoder.transformer."),
    ("transformer.connector.", "decoding.decoder.connector."),
    (RELEASED_VAE, VAE),
)
# Of a whole SigLIP, and what `Siglip2` does not build: all that comes after the features.
_UNUSED = re.compile(r"text_model\.|logit_(scale|bias)$|post_layernorm\.|head\.|.*\.position_ids$")
_TOWER_LAYER = re.compile(re.escape(TOWER) + r"encoder\.layers\.(\d+)\.")
# What transformers and diffusers call the weights of a model.
FOLDER_WEIGHTS = (
    *TOWER_WEIGHTS,
    ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
)


def full_names(keys: Iterable[str]) -> dict[str, str]:
    """Released key -> full name inside `UnifiedModule`, for the keys that the model has use for.

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
    """The full name of any tensor but those of the tower's last layer; None for an unused one."""
    for released, ours in _BEGINNINGS:
        if key.startswith(released):
            return ours + key.removeprefix(released)
    # the wrapper `vision_model` comes and goes with the version of transformers
    name = key.removeprefix(RELEASED_TOWER).removeprefix("vision_model.")
    if key.startswith(RELEASED_TOWER) and _UNUSED.match(name):
        return None
    if key.startswith(RELEASED_TOWER) and name.startswith(("embeddings.", "encoder.layers.")):
        return TOWER + name
    raise UserError(f"{key} is no tensor of SigLIP 2 or SANA: this is another checkpoint.")


def convert_siglip_sana(sources: Sequence[str], target: Path) -> None:
    """Make the folder `target` with the weight files `encoder` and `decoder`, tensors as published.

    Args:
        sources: folders or hub ids, any of the joint release, a transformers folder of SigLIP, and
            a diffusers folder of SANA (the one with `transformer/` and `vae/` in it). The file
            `encoder` takes the tower and the VAE, so give all that a model needs at once; later
            ones win.
        target: must not exist.

    Raises:
        UserError: a source has no weights or is another model, or there is no room.
    """
    refuse_existing(target)
    found: Tensors = {}  # by released key
    paths: list[Path] = []
    for source in sources:
        for archive, beginning in _parts(fetch(source)):
            found |= {beginning + key: stored for key, stored in archive.tensors.items()}
            paths += archive.paths
    named = {name: found[key] for key, name in full_names(found).items()}
    staging = Staging(target, fingerprint(paths), sum(stored.nbytes for stored in named.values()))
    for label in ("encoder", "decoder"):
        tensors = {name: stored for name, stored in named.items() if label_of(name) == label}
        if tensors:
            metadata = {"preset": target.name, "stage": "converted"}
            write = partial(write_tensors, tensors=tensors, metadata=metadata)
            staging.write(f"{label}.safetensors", write)
    staging.finish()


def _parts(source: Path) -> Iterator[tuple[Archive, str]]:
    """The parts of a source, each with the beginning that its keys have in the joint release."""
    pipeline = {"transformer": RELEASED_TRANSFORMER, "vae": RELEASED_VAE}
    inside = [name for name in pipeline if (source / name).is_dir()]
    for name in inside:
        yield open_folder(source / name, FOLDER_WEIGHTS), pipeline[name]
    if not inside:
        archive = open_folder(source, FOLDER_WEIGHTS)
        beginnings = (RELEASED_TOWER, *(released for released, _ in _BEGINNINGS))
        joint = any(key.startswith(beginnings) for key in archive.tensors)
        yield archive, "" if joint else RELEASED_TOWER

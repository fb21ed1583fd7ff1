"""Export of our weight files to the published layout, readable by the published code.

The layout of a converted checkpoint (config.json, distribution of tensors over files, the decoder's
small files) is stored in the metadata of the weight files and reused, so that conversion and export
give the same bytes. Other weights get a config.json from their sizes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych.checkpoints.key_prefixes import with_plain_names
from triptych.checkpoints.published import key_mapping, tokenizer_files
from triptych.checkpoints.published.components import EMBEDDING, HEAD, Tensors, few, with_prefixes
from triptych.checkpoints.published.convert import PUBLISHED
from triptych.checkpoints.published.safetensors_stream import Stored, read_header, write_tensors
from triptych.checkpoints.published.staging import Staging, plan_hash, refuse_existing
from triptych.checkpoints.weight_files import expected_names, find_all
from triptych.utils.documents import parse_json
from triptych.utils.errors import UserError

MAX_FILE_BYTES = 5 * 10**9  # for a checkpoint without a stored layout
MAIN = (key_mapping.VLM, key_mapping.QUERIES, key_mapping.DIT, key_mapping.TOWER)


def export(model: Any, target: Path, say: Callable[[str], None] = print) -> None:
    """Write the weight files of `model` to the folder `target` in the layout of BLIP3-o.

    Args:
        model: a `UnifiedModule` with all panels that is not built yet.
        target: folder to create.
        say: callback for lines of progress.

    Raises:
        UserError: a weight file is missing or does not fit the model, or the model has unpublished
            components; then no `target` is created.
    """
    refuse_existing(target)
    if model.understanding is None or model.generation is None:
        raise UserError("the published layout needs the understanding and the generation panel.")
    paths = find_all(model.weights)
    tensors: Tensors = {}
    notes: dict[str, dict[str, Any]] = {}
    for label, path in paths.items():
        found, metadata = read_header(path)
        tensors |= with_plain_names(found, expected_names(), path)
        if PUBLISHED in metadata:
            notes[label] = parse_json(metadata[PUBLISHED], path)
    tensors = {
        name: stored for name, stored in tensors.items() if name not in key_mapping.UNPUBLISHED
    }
    if not with_prefixes(tensors, key_mapping.TOWER):
        model.left_out = {"encoder"}
    with torch.device("meta"):
        model.build()
    _check(model, tensors)

    folders = [main_folder(model, tensors, notes.get("understanding", {}))]
    if with_prefixes(tensors, key_mapping.UNET):
        folders += decoder_folders(model, tensors, notes.get("decoder", {}))
    tokenizer = tokenizer_files.tokenizer_files(Path(model.understanding.vlm.tokenizer_name))
    if not tokenizer:
        say("there are no tokenizer files where the model names them; add yours to the folder.")
    plan = plan_hash(paths.values(), "to published", sorted(tokenizer.items()))
    staging = Staging(target, plan, sum(stored.nbytes for stored in tensors.values()))
    for folder in folders:
        folder.write(staging, say)
    for name, content in tokenizer.items():
        staging.write(name, lambda file, content=content: file.write(content))
    staging.finish()
    say(f"{target} is complete.")


def _check(model: nn.Module, tensors: Tensors) -> None:
    """Check that all tensors of the model exist, fit, and have a published key."""
    if model.generation.num_registers:
        raise UserError(
            "this model has register queries (num_registers), which the published layout lacks; "
            "only a model without can be written so."
        )
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = model.understanding.vlm.text.tie_word_embeddings
    optional = key_mapping.UNPUBLISHED | ({HEAD} if tied else set())
    strange = [
        name
        for name in {*wanted, *tensors} - key_mapping.UNPUBLISHED
        if not name.startswith((*MAIN, key_mapping.UNET, key_mapping.VAE))
    ]
    if strange:
        raise UserError(
            f"this model has {few(strange)} that the published one lacks; only a model of the "
            "published kind can be written so."
        )
    missing = [name for name in wanted if name not in tensors and name not in optional]
    other = [n for n, stored in tensors.items() if n not in wanted or stored.shape != wanted[n]]
    if missing or other:
        problem = f"{few(missing)} missing" if missing else f"{few(other)} of other sizes"
        raise UserError(
            f"the weight files do not fill the model: {problem}; name files that belong to it with "
            "--model.weights.LABEL=FILE."
        )


class Folder:
    """A folder of the published layout: small files by name, and weights by file and key."""

    def __init__(self, place: str, small: Mapping[str, str]) -> None:
        self.place, self.small = place, dict(small)
        self.weights: dict[str, dict[str, Stored]] = {}
        self.metadata: dict[str, dict[str, str]] = {}

    def lay_out(
        self, tensors: Mapping[str, Stored], stem: str, noted: Mapping[str, Any] | None
    ) -> None:
        """Distribute tensors by published key over files, in a stored layout or a new one."""
        if noted and set(noted["files"]) == set(tensors):
            files, index = noted["files"], noted["index"]
            self.metadata = noted["metadata"]
        else:
            files = split_files({key: stored.nbytes for key, stored in tensors.items()}, stem)
            index = f"{stem}.safetensors.index.json" if len(set(files.values())) > 1 else None
        for key, name in files.items():
            self.weights.setdefault(name, {})[key] = tensors[key]
        if index:
            total = sum(stored.nbytes for stored in tensors.values())
            content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
            self.small[index] = json.dumps(content, indent=2) + "\n"

    def write(self, staging: Staging, say: Callable[[str], None]) -> None:
        """Write all files, weights last."""
        for name, text in self.small.items():
            staging.write(self.place + name, lambda file, text=text: file.write(text.encode()))
        for name, tensors in self.weights.items():
            metadata = self.metadata.get(name, {"format": "pt"})
            written = staging.write(
                self.place + name,
                lambda file, tensors=tensors, metadata=metadata: write_tensors(
                    file, tensors, metadata
                ),
            )
            gigabytes = sum(stored.nbytes for stored in tensors.values()) / 1e9
            note = "" if written else ", kept"
            say(f"{self.place}{name}: {len(tensors)} tensors, {gigabytes:.2f} GB{note}")


def split_files(sizes: Mapping[str, int], stem: str, limit: int = MAX_FILE_BYTES) -> dict[str, str]:
    """File name by key; files are filled in order to at most `limit` bytes each."""
    numbers, number, filled = {}, 1, 0
    for key, size in sizes.items():
        if filled and filled + size > limit:
            number, filled = number + 1, 0
        numbers[key], filled = number, filled + size
    if number == 1:
        return dict.fromkeys(sizes, f"{stem}.safetensors")
    return {key: f"{stem}-{n:05d}-of-{number:05d}.safetensors" for key, n in numbers.items()}


def main_folder(model: Any, tensors: Tensors, notes: Mapping[str, Any]) -> Folder:
    """Main folder of the checkpoint."""
    small = notes.get("files", {})
    noted = notes.get("weights")
    if noted is None:  # the config.json of another language model is not BLIP3-o's
        small = {"config.json": json.dumps(config_of(model), indent=2) + "\n"}
    folder = Folder("", small)
    keys = list(noted["files"]) if noted else []
    keys = keys if keys and _covers(keys, tensors) else _keys(tensors)
    folder.lay_out({key: published(key, tensors) for key in keys}, "model", noted)
    return folder


def _keys(tensors: Tensors) -> list[str]:
    """Published keys of everything except the tower, which is published separately."""
    own = with_prefixes(tensors, key_mapping.VLM, key_mapping.QUERIES, key_mapping.DIT)
    return [key for key in map(key_mapping.published_key, own) if key]


def _covers(keys: list[str], tensors: Tensors) -> bool:
    """Whether stored keys match the tensors, except for a separate tower and a tied head."""
    names = {key_mapping.place_of(key).name for key in keys}
    own = set(with_prefixes(tensors, *MAIN))
    return names - {HEAD} <= own and {
        n for n in own - names if not n.startswith(key_mapping.TOWER)
    } <= {HEAD}


def published(key: str, tensors: Tensors) -> Stored:
    """Tensor of a published key."""
    place = key_mapping.place_of(key)
    stored = tensors.get(place.name) or tensors[EMBEDDING]  # only a tied head is missing
    if place.name == key_mapping.QUERIES:
        return stored.reshaped(1, *stored.shape)
    if place.qkv_slice is None:
        return stored
    # the key slice is dropped, see `key_mapping.fuse_bias`
    width = stored.shape[0] // 3
    return stored.rows(place.qkv_slice * width, (place.qkv_slice + 1) * width)


def decoder_folders(model: Any, tensors: Tensors, notes: Mapping[str, Any]) -> list[Folder]:
    """Folders of `diffusion-decoder/`: small files, unet/ and vae/."""
    small = notes.get("files") or decoder_configs(model.decoding.decoder)
    folders = [Folder(f"{key_mapping.DECODER}/", small)]
    for name, prefix in (("unet", key_mapping.UNET), ("vae", key_mapping.VAE)):
        folder = Folder(f"{key_mapping.DECODER}/{name}/", {})
        inside = {
            n.removeprefix(prefix): stored for n, stored in with_prefixes(tensors, prefix).items()
        }
        folder.lay_out(inside, "diffusion_pytorch_model", notes.get(name))
        folders.append(folder)
    return folders


def decoder_configs(decoder: Any) -> dict[str, str]:
    """Small files of a decoder without a stored layout."""
    vae = {**decoder.vae.vae.config, "scaling_factor": decoder.vae.scaling}
    scheduler = {"_class_name": "EulerDiscreteScheduler", **key_mapping.SCHEDULE}
    scheduler["prediction_type"] = decoder.prediction
    configs = {
        "unet/config.json": {"_class_name": "UNet2DConditionModel", **decoder.unet.config},
        "vae/config.json": {"_class_name": "AutoencoderKL", **vae},
        "scheduler/scheduler_config.json": scheduler,
    }
    return {name: json.dumps(config, indent=2) + "\n" for name, config in configs.items()}


def config_of(model: Any) -> dict[str, Any]:
    """config.json of a BLIP3-o without a stored layout."""
    vlm = model.understanding.vlm
    channels = model.generation.feature_shape[0]
    return key_mapping.published_config(
        vars(vlm.text),
        vars(vlm.vision),
        vars(vlm.vocabulary),
        queries=model.generation.num_queries,
        channels=channels,
        pool=model.encoder.pool,
    )

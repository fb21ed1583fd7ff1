"""Refusal of configurations that an older version of triptych wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from triptych.utils.errors import ConfigurationError

# Old key -> new one, by the end of the path to it; "" is anywhere. No key here has two meanings.
RENAMED = {
    "model": {
        "losses": "loss_weights",
        "trains": "trainable",
        "preview": "build_decoder",
        "negative": "decoder_negative",
        "negative_seed": "decoder_negative_seed",
    },
    "optimization": {
        "rates": "lr_overrides",
        "warmup": "warmup_ratio",
        "schedule": "lr_scheduler",
        "final_lr": "min_lr",
    },
    "execution": {"recompute": "activation_checkpointing", "frozen": "frozen_params"},
    "": {
        "number_of_queries": "num_queries",
        "query_std": "query_init_std",
        "time_sampling": "timestep_sampling",
        "time_shift": "shift",
        "integer_times": "integer_timesteps",
        "val_samples": "num_val_samples",
        "bucket_batches": "length_bucket_batches",
    },
}
_SAMPLING = {
    "steps": "sampling.num_inference_steps",
    "num_inference_steps": "sampling.num_inference_steps",
    "guidance": "sampling.guidance_scale",
    "guidance_scale": "sampling.guidance_scale",
    "sampler": "sampling.name",
}
_FLOW = {
    "drop": "flow.cond_drop_prob",
    "draws": "flow.num_noise_samples",
    "time_sampling": "flow.timestep_sampling",
    "time_shift": "flow.shift",
    "integer_times": "sampling.integer_timesteps",
    "integer_timesteps": "sampling.integer_timesteps",
    **{
        name: f"flow.{name}"
        for name in ("cond_drop_prob", "num_noise_samples", "timestep_sampling", "shift")
    },
    **{name: f"prompt.{name}" for name in ("template", "training_template", "max_tokens")},
}
_VLM = {"understander": "vlm"}
_DECODER = {"drop": "cond_drop_prob", "vae": "model.vae", **_SAMPLING}
_OWN = "triptych."
_OF_CLASSES = {  # keys of our own classes that other classes may have too
    "Checkpoint": {
        "every": "every_n_train_steps",
        "keep": "save_top_k",
        "background": "save_async",
    },
    "SampleGrid": {"every": "every_n_steps", "number": "num_samples", "scale": "upscale"},
    "Evaluate": {"every": "every_n_steps"},
    "FeatureDistance": {"images": "num_images"},
    "FrozenCheck": {"every": "every_n_steps"},
    "GradientNorms": {"every": "every_n_logs"},
    "UnderstandingModule": _VLM,
    "GenerationModule": {**_VLM, **_FLOW, **_SAMPLING},
    "SDXLDecoder": _DECODER,
    "SanaDecoder": _DECODER,
}


def require_current(document: Mapping[str, Any], name: object) -> None:
    """Refuse a configuration with keys that have other names now, such as that of an old run.

    Args:
        document: the content of a YAML file.
        name: its path, for the message.

    Raises:
        ConfigurationError: it has such a key.
    """
    found = dict.fromkeys(_renamed(document, "", ""))
    if found:
        pairs = ", ".join(f"{old} is now {new}" for old, new in found)
        raise ConfigurationError(
            f"{name} is of an older version of triptych, with other names of keys ({pairs}); "
            "rename them, or start the run anew from a configuration of this version."
        )


def _renamed(value: Any, parent: str, owner: str) -> Iterator[tuple[str, str]]:
    """(old key, new key) of each old key in `value`; `owner` is the class that it sets up."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _renamed(each, parent, owner)
    if not isinstance(value, Mapping):
        return
    path = value.get("class_path")
    if isinstance(path, str):
        own = path.startswith(_OWN) or "." not in path
        owner = path.rpartition(".")[2] if own else path
    elif parent != "init_args":
        owner = ""
    renamed = {} if "." in owner else RENAMED[""]  # a dot: a class that is not ours
    renamed = {**renamed, **RENAMED.get(parent, {}), **_OF_CLASSES.get(owner, {})}
    for key, inner in value.items():
        if key in renamed:
            yield str(key), renamed[key]
        yield from _renamed(inner, str(key), owner)

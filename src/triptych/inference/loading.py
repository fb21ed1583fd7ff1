"""Loading of models for inference from presets, folders and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jsonargparse
import yaml
from torch import Tensor

from triptych.checkpoints import hold, read_metadata, stored_names
from triptych.checkpoints.atomic_checkpoint import latest
from triptych.checkpoints.training_checkpoint import read_trained
from triptych.checkpoints.weight_files import label_of
from triptych.inference.trusted_config import plain_model
from triptych.modules import UnifiedModule
from triptych.utils.config_nulls import require_values
from triptych.utils.config_versions import require_current
from triptych.utils.documents import parse_yaml, read_yaml
from triptych.utils.errors import ConfigurationError, UserError
from triptych.utils.parser_errors import plain
from triptych.utils.parser_settings import MODE
from triptych.utils.paths import presets

# exceptions of constructors for values of valid types that do not fit together
BAD_VALUES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass
class ModelSource:
    """Origin of a model: the arguments of `load_model`."""

    configs: list[Path]
    overrides: list[str] = field(default_factory=list)
    trained: dict[str, Tensor] = field(default_factory=dict)
    """Tensors of a training checkpoint by full name, which override those of weight files."""


def find_source(name: str | Path | Sequence[str | Path], ema: bool = False) -> ModelSource:
    """Resolve a preset, a path or a run to a model source.

    Args:
        name: a preset (a file of conf/presets, such as "tiny"); a model file (.yaml); a folder of
            `triptych convert`; a run folder, of which the latest valid checkpoint is used; a
            training checkpoint in such a folder; or a weight file (.safetensors) of a preset. In a
            list of model files, later ones override earlier ones.
        ema: whether to load the moving average of a training checkpoint instead of its weights.

    Raises:
        UserError: the name is none of these, or has no EMA.
    """
    if not isinstance(name, str | Path):
        return ModelSource([Path(each) for each in name])
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and os.path.isfile(path):
        found = ModelSource([path])
    elif os.path.isfile(path / "model.yaml"):
        found = ModelSource([path / "model.yaml"])
    elif path.suffix == ".safetensors" and os.path.isfile(path):
        found = _weight_file(path)
    elif os.path.exists(path):
        return _checkpoint(path, ema)
    elif (preset := presets().get(str(name))) is not None:
        found = ModelSource([preset])
    else:
        raise UserError(
            f"there is no model at {name}; give a preset ({', '.join(sorted(presets()))}), a model "
            "file, a folder made by `triptych convert`, a run's folder, or a checkpoint."
        )
    if ema:
        raise UserError(f"{name} is no training checkpoint, and has no EMA; leave ema out.")
    return found


def _weight_file(path: Path) -> ModelSource:
    """Preset named in a weight file, with this file instead of its own."""
    preset = read_metadata(path).get("preset", "unnamed")
    if preset not in presets():
        raise UserError(
            f"{path} says that it is of the preset {preset!r}, which is none of "
            f"{', '.join(sorted(presets()))}; give the model file and "
            f"--model.weights.LABEL={path}."
        )
    labels = {label_of(tensor) for tensor in stored_names([path])}
    return ModelSource([presets()[preset]], [f"--model.weights.{label}={path}" for label in labels])


def _checkpoint(path: Path, ema: bool) -> ModelSource:
    """The checkpoint at `path`, or the latest in that folder, and the config.yaml of its run."""
    if path.is_file() and path.suffix != ".ckpt":
        raise UserError(
            f"{path} is no model; give a preset, a model file (.yaml), a weight file "
            "(.safetensors), a checkpoint (.ckpt) or a folder of one."
        )
    checkpoint = path
    if path.is_dir() and not (path / "meta.pt").is_file():
        patterns = ("checkpoints/*.ckpt", "*/checkpoints/*.ckpt")
        found = [latest([path], pattern) for pattern in patterns]
        checkpoint = next((each for each in found if each is not None), None)
        if checkpoint is None:
            raise UserError(
                f"{path} holds no model: neither model.yaml, which `triptych convert` writes, nor "
                "checkpoints/*.ckpt of a training run."
            )
    config = next(
        (
            folder / "config.yaml"
            for folder in checkpoint.resolve().parents[:2]
            if (folder / "config.yaml").is_file()
        ),
        None,
    )
    if config is None:
        raise UserError(
            f"{checkpoint} lies in no run's folder, so its configuration is unknown; make weights "
            "of it with `triptych export`, and name them with --model.weights.LABEL=FILE."
        )
    if "class_path" in (read_yaml(config).get("model") or {}):
        raise UserError(
            f"{checkpoint} is of one panel that was trained alone; make weights of it with "
            "`triptych export`, and name them with --model.weights.LABEL=FILE."
        )
    return ModelSource([config], trained=read_trained(checkpoint, ema)[0])


def load_model(
    configs: Sequence[str | Path],
    overrides: Sequence[str] = (),
    device: str = "cpu",
    trained: Mapping[str, Tensor] | None = None,
    trust_class: Sequence[str] = (),
) -> UnifiedModule:
    """Build the model described by the `model` sections of `configs`, with weights, for inference.

    Args:
        configs: YAML files such as conf/presets/tiny.yaml or a run's config.yaml; later ones
            override earlier ones.
        overrides: flags such as "--model.weights.generation=FILE".
        device: device to compute on.
        trained: tensors by full name that replace those in weight files.
        trust_class: packages or classes, in addition to triptych's own, that `configs` may name.

    Raises:
        UserError: a file is missing, or a model section is wrong.
    """
    model = describe_model(configs, overrides, trust_class)
    model.trained_before = dict(trained or {})
    given = (name.startswith("encoder.") for name in model.trained_before)
    if not any(given) and not hold(model.weights, "encoder."):
        model.left_out = {"encoder"}  # not needed for generation and chat
    model.configure_model()
    return model.requires_grad_(False).eval().to(device)


def describe_model(
    configs: Sequence[str | Path], overrides: Sequence[str] = (), trust_class: Sequence[str] = ()
) -> UnifiedModule:
    """Create the same model without building it: sizes are set, there are no weights.

    Raises:
        UserError: a configuration is missing or wrong.
    """
    model = describe_stage(configs, overrides, trust_class)
    # all panels, none trainable: each needs weights
    model.loss_weights, model.trainable = {}, []
    return model


def describe_stage(
    configs: Sequence[str | Path], overrides: Sequence[str] = (), trust_class: Sequence[str] = ()
) -> UnifiedModule:
    """Create the model of a training run without building it; its losses determine its panels.

    Raises:
        UserError: a configuration is missing, or names a class that is not trusted.
        ConfigurationError: one is wrong, or of an older version.
    """
    more = [flag.partition("=")[2] for flag in overrides if flag.startswith("--config=")]
    configs = [*configs, *more]
    overrides = [flag for flag in overrides if not flag.startswith("--config=")]
    parser = jsonargparse.ArgumentParser(parser_mode=MODE, exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(UnifiedModule, "model")
    documents = [read_yaml(config) for config in configs]
    for document, name in zip(documents, configs, strict=True):
        require_current(document, name)
    sections = plain_model(documents, configs, trust_class)
    arguments: list[str] = []
    for section in sections:
        arguments += ["--config", yaml.safe_dump({"model": section})]
    try:
        values = parser.parse_args([*arguments, *overrides])
        require_values(values.model, UnifiedModule, "model")
        model = parser.instantiate_classes(values).model
        model.description = parse_yaml(parser.dump(values, skip_none=False), "the model")["model"]
        return model
    except UserError:
        raise
    except (jsonargparse.ArgumentError, *BAD_VALUES) as error:
        names = ", ".join(str(config) for config in configs)
        raise ConfigurationError(
            f"the model's configuration ({names}) is wrong: {plain(str(error))}"
        ) from error

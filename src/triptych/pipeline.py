"""The whole model at inference: from configuration files to a model that computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jsonargparse
import yaml

from triptych.contracts import UserError
from triptych.modules import UnifiedModule
from triptych.weights import hold


def load_model(
    configs: Sequence[str | Path], overrides: Sequence[str] = (), device: str = "cpu"
) -> UnifiedModule:
    """The model that the `model` sections of `configs` describe, with its weights, to infer with.

    Args:
        configs: YAML files such as conf/model/tiny.yaml or a run's config.yaml; later ones win.
        overrides: flags such as "--model.weights.generation=FILE".
        device: where to compute.

    Raises:
        UserError: a file is missing, or a model section is wrong.
    """
    model = describe_model(configs, overrides)
    if not hold(model.weights, "encoder."):
        model.left_out = {"encoder"}  # generation and chat do without
    model.configure_model()
    return model.requires_grad_(False).eval().to(device)


def describe_model(configs: Sequence[str | Path], overrides: Sequence[str] = ()) -> UnifiedModule:
    """The same model before anything is built: its parts know their sizes, there are no weights.

    Raises:
        UserError: a configuration is missing or wrong.
    """
    model = describe_stage(configs, overrides)
    model.losses, model.trains = {}, []  # all panels, none trains: each must find its weights
    return model


def describe_stage(configs: Sequence[str | Path], overrides: Sequence[str] = ()) -> UnifiedModule:
    """The model of a training run, before anything is built; its losses say which panels it has.

    Raises:
        UserError: a configuration is missing or wrong.
    """
    parser = jsonargparse.ArgumentParser(parser_mode="omegaconf+", exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(UnifiedModule, "model")
    arguments: list[str] = []
    for config in configs:
        section = yaml.safe_load(_text(config)).get("model", {})
        arguments += ["--config", yaml.safe_dump({"model": section})]
    try:
        values = parser.parse_args([*arguments, *overrides])
    except jsonargparse.ArgumentError as error:
        raise UserError(f"the model's configuration is wrong: {error}") from error
    return parser.instantiate_classes(values).model


def _text(path: str | Path) -> str:
    if not Path(path).is_file():
        raise UserError(f"the configuration {path} does not exist; check the path.")
    return Path(path).read_text()

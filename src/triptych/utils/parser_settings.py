"""jsonargparse settings of `fit` and model loading: interpolations, limits of documents."""

from __future__ import annotations

from typing import Any

import jsonargparse
import yaml

from triptych.utils.documents import measure_yaml

MODE = "omegaconf+"

# `${model.stage}` then works from any --config file, although the command is a subcommand.
jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)

# the parser creates this loader when it parses a first value
_first = jsonargparse.ArgumentParser(parser_mode=MODE)
_first.add_argument("--value", type=dict)
_first.parse_args(["--value={}"])
_load = jsonargparse.get_loader(MODE)


def _load_bounded(text: str) -> Any:
    measure_yaml(text, "the configuration", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return _load(text)


jsonargparse.set_loader(MODE, _load_bounded, exceptions=(yaml.YAMLError,))

"""Loading of third-party judge models, from a folder or from the hub, with checked weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych.checkpoints.published.safetensors_stream import read_header
from triptych.checkpoints.weight_checks import require_kind, require_sound
from triptych.utils.errors import UserError
from triptych.utils.pretrained import load_pretrained


def require_weights(model: nn.Module, source: str | Path) -> None:
    """Check the weights of a model that transformers has loaded from `source`.

    transformers casts silently, so the stored types are read from the files of a folder.

    Raises:
        UserError: a weight is not a floating-point number, NaN or infinite.
    """
    parameters = dict(model.named_parameters())
    for path in sorted(Path(source).glob("*.safetensors")):
        for name, stored in read_header(path)[0].items():
            if name in parameters:
                require_kind(name, stored.dtype, torch.float32, path)
    for name, parameter in parameters.items():
        require_sound(name, parameter, source)


def load(part: str, source: str | Path, **options: Any) -> Any:
    """Load a model or processor of transformers, and check its weights.

    Args:
        part: name of its class (importing all of transformers takes seconds).
        source: folder or hub id.
        options: keyword arguments of `from_pretrained`.

    Raises:
        UserError: the model does not exist, needs a library that is not installed, or has invalid
            weights.
    """
    try:
        loaded = load_pretrained(part, source, **options)
    except ImportError as error:
        raise UserError(
            f"{part} needs a library that is not installed ({' '.join(str(error).split())}); "
            "pip install 'triptych[eval]' brings it."
        ) from error
    except UserError as error:
        raise UserError(
            f"{source} is neither a folder with a {part} nor a model on the hub that can be "
            f"reached ({error})."
        ) from error
    if isinstance(loaded, nn.Module):
        require_weights(loaded, source)
    return loaded

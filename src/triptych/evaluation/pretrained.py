"""Judges of other people's making, from a folder or from the hub, where the user names one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.contracts import UserError
from triptych.pretrained import load_pretrained


def load(part: str, source: str | Path, **options: Any) -> Any:
    """A model or processor of transformers.

    Args:
        part: its class, by name: importing all of transformers takes seconds.
        source: a folder, or a name on the hub.

    Raises:
        UserError: there is none, or it needs a library that is not installed.
    """
    try:
        return load_pretrained(part, source, **options)
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

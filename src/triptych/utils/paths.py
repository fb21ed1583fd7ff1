"""File paths: `asset:NAME` is a file inside the package, anything else a path."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from triptych.utils.errors import UserError

ASSETS = Path(__file__).parent.parent / "assets"
PREFIX = "asset:"


def resolve(name: str, created_by: str | None = None) -> Path:
    """Resolve `name` to an existing file or folder.

    Args:
        name: a path, or asset:NAME.
        created_by: command that creates it, for the message.

    Raises:
        UserError: it does not exist.
    """
    path = ASSETS / name.removeprefix(PREFIX) if name.startswith(PREFIX) else Path(name)
    if not path.exists():
        remedy = f"; `{created_by}` makes it" if created_by else "; check the path"
        raise UserError(f"{path} does not exist{remedy}.")
    return path


def presets() -> dict[str, Path]:
    """Presets by name: those of the package, and of conf/presets where the command runs."""
    return conf_files("presets/*.yaml")


def conf_files(pattern: str) -> dict[str, Path]:
    """Files of conf/ by their stems; those of the working folder win over the package's."""
    package = find_spec("triptych.conf")
    folders = [Path(place) for place in package.submodule_search_locations] if package else []
    files = [sorted(folder.glob(pattern)) for folder in [*folders, Path("conf")]]
    return {file.stem: file for found in files for file in found}

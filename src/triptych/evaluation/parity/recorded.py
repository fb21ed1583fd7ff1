"""Recorded cases on disk: `case.json` (metadata), `io.safetensors` (values) and weights."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from triptych.utils.documents import read_json
from triptych.utils.errors import UserError


class RecordedTensors:
    """The tensors of a safetensors file, read on demand.

    Raises:
        UserError: the file is missing or damaged, or lacks the tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"{path} does not exist; the case is not complete.")
        try:
            self._file = safe_open(path, framework="pt")
            self.names = list(self._file.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is no whole safetensors file ({error}).") from error

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise UserError(f"{self.path} holds no {name!r}; the case is not complete.")
        return self._file.get_tensor(name)

    def matching(self, pattern: str) -> list[re.Match]:
        """Full matches of a regular expression with the names."""
        return [match for match in (re.fullmatch(pattern, name) for name in self.names) if match]

    def all(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: self._file.get_tensor(name) for name in self.names}


class Case:
    """One folder with a `case.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        path = folder / "case.json"
        self._metadata = read_json(path)

    def __contains__(self, key: str) -> bool:
        return key in self._metadata

    def __getitem__(self, key: str) -> Any:
        """Value of a key of `case.json`.

        Raises:
            UserError: the key is missing.
        """
        if key not in self._metadata:
            raise UserError(f"{self.folder / 'case.json'} says nothing of {key!r}.")
        return self._metadata[key]

    @cached_property
    def io(self) -> RecordedTensors:
        """Recorded inputs and outputs."""
        return self.file("io")

    def open_files(self) -> None:
        """Open every listed file, to find damaged ones early."""
        for name in self["files"]:
            self.file(name.removesuffix(".safetensors"))

    def has_file(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def file(self, name: str) -> RecordedTensors:
        """The tensors of `name`.safetensors."""
        return RecordedTensors(self.folder / f"{name}.safetensors")


def read_cases(folder: Path) -> list[Case]:
    """Read the cases of a folder, in the order of their names.

    Raises:
        UserError: the folder does not exist or has no cases, or one is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"the folder of cases {folder} does not exist.")
    cases = [Case(path.parent) for path in sorted(folder.glob("*/case.json"))]
    if not cases:
        raise UserError(f"{folder} holds no case: no folder in it has a case.json.")
    for case in cases:
        case.open_files()
    return cases

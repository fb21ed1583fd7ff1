"""Local WebDataset shards, read by position: one pass over the tar headers, then seeks.

A sample is the members of one key: KEY.jpg|jpeg|png|webp, KEY.txt and KEY.json. Nothing else is
ever decoded, and nothing is unpickled.
"""

from __future__ import annotations

import glob
import io
import json
import logging
import tarfile
from pathlib import Path

from triptych.contracts import UserError

from .source import BadSample, ImageRole, Source

log = logging.getLogger(__name__)

PICTURES = ("jpg", "jpeg", "png", "webp")
KNOWN = (*PICTURES, "txt", "json")


class ShardFolder(Source):
    """All complete samples of the shards in a folder, by number.

    Args:
        source: a folder with *.tar files, one tar file, or a glob pattern.

    Raises:
        UserError: there is no shard, a shard is no readable tar, or no sample has both a picture
            and a caption.
    """

    def __init__(self, source: str | Path) -> None:
        self.name = str(source)
        self.paths: list[Path] = []
        self._members: list[tuple[int, dict[str, tuple[int, int]]]] = []
        self._keys: list[str] = []
        self._files: dict[int, io.BufferedReader] = {}

    def open(self) -> ShardFolder:
        if self.paths:
            return self
        self.paths = _find(self.name)
        incomplete = 0
        for shard, path in enumerate(self.paths):
            for key, members in _index(path).items():
                captioned = "txt" in members or "json" in members
                if captioned and any(kind in members for kind in PICTURES):
                    self._keys.append(key)
                    self._members.append((shard, members))
                else:
                    incomplete += 1
        if not self._keys:
            raise UserError(
                f"the shards in {self.name} hold no sample with a picture (KEY.jpg, png or webp) "
                "and a caption (KEY.txt or KEY.json)."
            )
        if incomplete:
            log.warning("%s: %d samples without picture or caption left out", self.name, incomplete)
        return self

    def __len__(self) -> int:
        return len(self._keys)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}  # open files do not travel to loader workers

    def key(self, number: int) -> str:
        return self._keys[number]

    def caption(self, number: int) -> str:
        if self._has(number, "txt"):
            return self._read(number, "txt").decode("utf-8", "replace").strip()
        facts = self.facts(number)
        if "caption" not in facts:
            raise BadSample(self.key(number), "no caption", "neither a .txt nor a JSON 'caption'")
        return str(facts["caption"]).strip()

    def facts(self, number: int) -> dict:
        """KEY.json, {} where there is none."""
        if not self._has(number, "json"):
            return {}
        try:
            return json.loads(self._read(number, "json"))
        except ValueError as error:
            raise BadSample(self.key(number), "its .json is no JSON", str(error)) from error

    def image(self, number: int, role: ImageRole = "picture") -> bytes:
        if role != "picture":
            raise BadSample(self.key(number), f"no {role}")
        return self._read(number, next(kind for kind in PICTURES if self._has(number, kind)))

    def _has(self, number: int, kind: str) -> bool:
        return kind in self._members[number][1]

    def _read(self, number: int, kind: str) -> bytes:
        shard, members = self._members[number]
        offset, size = members[kind]
        file = self._files.get(shard)
        if file is None:
            if len(self._files) > 64:  # far below any limit on open files
                self._files.popitem()[1].close()
            file = self._files[shard] = self.paths[shard].open("rb")
        file.seek(offset)
        return file.read(size)


def _find(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(name) for name in glob.glob(str(source)))
    if not found:
        what = "is empty of *.tar shards" if path.is_dir() else "does not exist"
        raise UserError(
            f"the shard folder {source} {what}; give a folder of WebDataset shards (--data.shards)."
        )
    return found


def _index(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """key -> {extension: (offset, size)} of one tar, in file order."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    end = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name, dot, kind = member.name.partition(".")
                kind = kind.lower()
                if not (member.isfile() and dot and kind in KNOWN):
                    continue
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                found.setdefault(name, {})[kind] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise UserError(f"the shard {path} is damaged ({error}); download it again.") from error
    return found

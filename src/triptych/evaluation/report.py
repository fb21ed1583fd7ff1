"""Report of any benchmark: scores, settings, and excluded items.

A report has the number of items behind each score, and lists and counts the items that could not
be scored. It has no date and no duration, so that equal runs give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from triptych import __version__
from triptych.evaluation.html_report import ScoreRow, render
from triptych.utils.atomic_write import write_text
from triptych.utils.documents import TEXT_BYTES, read_json
from triptych.utils.errors import UserError
from triptych.utils.png_metadata import shown_name

LIBRARIES = ("torch", "transformers", "diffusers")

Interval = tuple[float, float]


@dataclass
class Report:
    """Result of a benchmark.

    `settings` contain everything that determines the scores. A value of type Path is an input, such
    as a prompt file or a folder of weights: `to_json` adds its SHA-256. The folder of the scored
    images is a text, under the name "folder".
    """

    benchmark: str
    """Name of the benchmark, and its protocol if there are several."""
    scores: dict[str, float]
    """Scores by name; a score over no items is omitted. "GROUP/NAME" is in a nested JSON object."""
    judged_by: str
    """Name of the detector, judge or checker; reports by different ones are not comparable."""
    intervals: dict[str, Interval | None] = field(default_factory=dict)
    """95% intervals of scores by name; those that are None are omitted."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Number of items behind each score, by name."""
    counts: dict[str, int] = field(default_factory=dict)
    """Number of items: "expected", "scored", and excluded ones: "missing", "unreadable", ..."""
    settings: dict[str, Any] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    """One entry per image: "key", "prompt", "state" ("scored" or a name of `counts`), "score" if
    there is one, "image" (path in settings["folder"]) and "note"."""

    def __post_init__(self) -> None:
        self.intervals = {k: each for k, each in self.intervals.items() if each is not None}

    def to_json(self) -> str:
        """The whole report, with versions of libraries and hashes of the inputs.

        Raises:
            UserError: an input of the settings no longer exists.
        """
        whole = asdict(replace(self, settings=_plain(self.settings)))
        whole["scores"] = nested(self.scores)
        whole["versions"] = {"triptych": __version__} | {name: _version(name) for name in LIBRARIES}
        whole["sha256"] = {
            name: sha256(value) for name, value in self.settings.items() if isinstance(value, Path)
        }
        return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file atomically; create its folder if it is missing."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a file written by `save`, without versions and hashes.

        Raises:
            UserError: the file does not exist, or is not a report.
        """
        read = read_json(path, largest=TEXT_BYTES)
        try:
            values = {name: read[name] for name in cls.__dataclass_fields__}
            values["scores"] = flat(values["scores"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is no report ({error!r}); give a file that an evaluation wrote."
            ) from error
        values["intervals"] = {name: tuple(ends) for name, ends in values["intervals"].items()}
        return cls(**values)

    def table(self) -> str:
        """Scores as plain text, one per line, with interval and number, and the counts of items."""
        rows = [("", "score", "95% interval", "of")]
        rows += [(name, *self.score_cells(name)) for name in self.scores]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([f"{self.benchmark}, judged by {self.judged_by}", *lines, self.coverage()])

    def score_cells(self, name: str) -> tuple[str, str, str]:
        """A score, its interval and its number of items, as texts."""
        interval = self.intervals.get(name)
        return (
            f"{self.scores[name]:.4f}",
            f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "",
            str(self.numbers.get(name, "")),
        )

    def coverage(self) -> str:
        """The counts in one line, such as "expected 2212, scored 2210, missing 2"."""
        return ", ".join(
            f"{name.replace('_', ' ')} {number}"
            for name, number in self.counts.items()
            if number or name in ("expected", "scored")
        )

    def page(self, path: str | Path) -> None:
        """Write the report as one HTML file, with small images of some items."""
        rows = [
            ScoreRow(name, score, *self.score_cells(name)) for name, score in self.scores.items()
        ]
        judged = f"Judged by {self.judged_by}. {self.coverage().capitalize()}."
        folder = Path(self.settings.get("folder", "."))
        page = render(
            self.benchmark,
            judged,
            rows,
            items=self.items,
            folder=folder,
            settings=_plain(self.settings),
        )
        write_text(Path(path), page)


def nested(scores: Mapping[str, float]) -> dict[str, Any]:
    """Convert {"a/b": 1} to {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for name, score in scores.items():
        *groups, last = name.split("/")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = score
    return tree


def flat(scores: Mapping[str, Any]) -> dict[str, float]:
    """Convert {"a": {"b": 1}} to {"a/b": 1}."""
    result: dict[str, float] = {}
    for name, value in scores.items():
        if isinstance(value, Mapping):
            result |= {f"{name}/{rest}": score for rest, score in flat(value).items()}
        else:
            result[name] = value
    return result


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of all files in a folder.

    Raises:
        UserError: the path does not exist.
    """
    try:
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file())
            lines = (f"{sha256(each)} {each.relative_to(path).as_posix()}\n" for each in files)
            return hashlib.sha256("".join(lines).encode()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}, an input of the evaluation, cannot be read ({error}).") from error


def _plain(settings: Any) -> Any:
    """Settings as JSON values; paths are reduced to their last part, as reports are shared."""
    if isinstance(settings, Mapping):
        return {name: _plain(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [_plain(value) for value in settings]
    if isinstance(settings, Path) or (isinstance(settings, str) and os.path.isabs(settings)):
        return shown_name(settings)
    return settings


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None

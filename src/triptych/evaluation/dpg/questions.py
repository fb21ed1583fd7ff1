"""The questions of DPG-Bench: yes or no each, some of them only where others were answered yes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.evaluation.expected_images import read_text
from triptych.utils.errors import UserError

COLUMNS = {"item_id", "proposition_id", "dependency", "tuple", "question_natural_language"}


@dataclass(frozen=True)
class Proposition:
    """A proposition of a prompt, and its question."""

    number: int
    """Number of the proposition in its prompt."""
    parents: tuple[int, ...]
    """Those that must hold for this one to hold."""
    category: str
    """entity, attribute, relation, global or other."""
    question: str


def read_questions(path: str | Path) -> dict[str, list[Proposition]]:
    """The published question file, dpg_bench.csv: the propositions of each prompt.

    Raises:
        UserError: the file does not exist, or lacks the published columns.
    """
    path = Path(path)
    rows = csv.DictReader(io.StringIO(read_text(path, "the DPG questions"), newline="\n"))
    if missing := COLUMNS - set(rows.fieldnames or ()):
        raise UserError(
            f"{path} has no column {' nor '.join(sorted(missing))}; give dpg_bench.csv of ELLA."
        )
    found: dict[str, list[Proposition]] = {}
    for row in _rows(rows, path):
        try:
            parents = [int(each) for each in row["dependency"].split(",") if each.strip()]
            proposition = Proposition(
                int(row["proposition_id"]),
                tuple(parent for parent in parents if parent),  # 0 is none
                row["tuple"].split("(")[0].split("-")[0].strip(),
                row["question_natural_language"].strip(),
            )
        except (ValueError, AttributeError) as error:
            raise UserError(f"line {rows.line_num} of {path} is no question ({error}).") from error
        found.setdefault(row["item_id"], []).append(proposition)
    for item_id, propositions in found.items():
        _check(path, item_id, propositions)
    return found


def _rows(rows: csv.DictReader, path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from rows
    except csv.Error as error:  # a lone carriage return, for one
        raise UserError(f"line {rows.line_num + 1} of {path} is no CSV ({error}).") from error


def read_answer(answer: str) -> bool | None:
    """Parse yes or no; None for everything else, which is not scored."""
    return {"yes": True, "no": False}.get(answer.strip(" \n\t.!\"'*").lower())


def held(
    propositions: Sequence[Proposition], answers: Mapping[int, bool | None]
) -> dict[int, bool | None]:
    """Propositions that hold: answered yes, as all they depend on, and what that depends on.

    One answered no, or under one that does not hold, does not hold; None where an answer is wanting
    and nothing else decides (Kleene's logic).

    Args:
        answers: answers by number of the proposition; None is a missing one.
    """
    by_number = {each.number: each for each in propositions}
    known: dict[int, bool | None] = {}

    def holds(number: int) -> bool | None:
        if number not in known:
            parts = [answers[number], *map(holds, by_number[number].parents)]
            known[number] = False if False in parts else None if None in parts else True
        return known[number]

    return {each.number: holds(each.number) for each in propositions}


def _check(path: Path, item_id: str, propositions: Sequence[Proposition]) -> None:
    numbers = [each.number for each in propositions]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{path} numbers two propositions of {item_id} alike.")
    # each proposition may name earlier ones only, so that nothing depends on itself
    seen: set[int] = set()
    waiting = list(propositions)
    while ready := [each for each in waiting if set(each.parents) <= seen]:
        seen |= {each.number for each in ready}
        waiting = [each for each in waiting if each.number not in seen]
    if waiting:
        raise UserError(
            f"{path}: proposition {waiting[0].number} of {item_id} depends on itself or on one "
            "that is not there."
        )

"""Questions of DPG-Bench, answered by yes or no, and the dependencies between them."""

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
    """Numbers of the propositions that this one depends on."""
    category: str
    """One of entity, attribute, relation, global and other."""
    question: str


def read_questions(path: str | Path) -> dict[str, list[Proposition]]:
    """Read the propositions of each prompt from the published file, dpg_bench.csv.

    Raises:
        UserError: the file does not exist, or lacks the published columns.
    """
    path = Path(path)
    rows = csv.DictReader(io.StringIO(read_text(path, "the DPG questions"), newline="\n"))
    if missing := COLUMNS - set(rows.fieldnames or ()):
        raise UserError(
            f"{path} has no column {' nor '.join(sorted(missing))}; give dpg_bench.csv of ELLA."
        )
    by_prompt: dict[str, list[Proposition]] = {}
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
            raise UserError(
                f"line {rows.line_num} of {path} is not a question ({error})."
            ) from error
        by_prompt.setdefault(row["item_id"], []).append(proposition)
    for item_id, propositions in by_prompt.items():
        _check(path, item_id, propositions)
    return by_prompt


def _rows(rows: csv.DictReader, path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from rows
    except csv.Error as error:  # a lone carriage return, for one
        raise UserError(f"line {rows.line_num + 1} of {path} is no CSV ({error}).") from error


def read_answer(answer: str) -> bool | None:
    """Parse yes or no; None for anything else, which is not scored."""
    return {"yes": True, "no": False}.get(answer.strip(" \n\t.!\"'*").lower())


def resolve_dependencies(
    propositions: Sequence[Proposition], answers: Mapping[int, bool | None]
) -> dict[int, bool | None]:
    """Truth of each proposition: it and all its direct and indirect parents are answered yes.

    In Kleene's three-valued logic: False if any of these is answered no, else None if an answer is
    missing.

    Args:
        propositions: propositions of one prompt.
        answers: answers by number of the proposition; None is missing.
    """
    by_number = {each.number: each for each in propositions}
    truth: dict[int, bool | None] = {}

    def holds(number: int) -> bool | None:
        if number not in truth:
            values = [answers[number], *map(holds, by_number[number].parents)]
            truth[number] = False if False in values else None if None in values else True
        return truth[number]

    return {each.number: holds(each.number) for each in propositions}


def _check(path: Path, item_id: str, propositions: Sequence[Proposition]) -> None:
    numbers = [each.number for each in propositions]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{path} numbers two propositions of {item_id} alike.")
    # topological order: fails if a proposition depends on itself
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

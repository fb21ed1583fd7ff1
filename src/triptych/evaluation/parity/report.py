"""Runs every case of a folder, and says in a table and in one line of JSON how it went."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from triptych.contracts import UserError
from triptych.evaluation.parity import (
    chat,
    checkpoint,
    data,
    decoder,
    dit,
    eva_clip,
    generating,
    training,
)
from triptych.evaluation.parity.checkpoint import Checkpoint
from triptych.evaluation.parity.checks import Checks, Quantity
from triptych.evaluation.parity.recorded import Case, read_cases

ALONE = (dit, eva_clip, decoder, data)
WITH_CHECKPOINT = (training, generating, chat)


@dataclass
class Report:
    """What came of a folder of cases."""

    cases: int
    quantities: list[Quantity]

    @property
    def failed(self) -> list[str]:
        return [f"{each.case}: {each.name}" for each in self.quantities if not each.ok]

    @property
    def worst(self) -> Quantity:
        """The quantity that comes nearest to its bound, or is furthest beyond it."""
        return max(self.quantities, key=_strain)

    def summary(self) -> str:
        """One line of JSON."""
        worst = self.worst
        return json.dumps(
            {
                "cases": self.cases,
                "quantities": len(self.quantities),
                "failed": self.failed,
                "worst": {
                    "case": worst.case,
                    "quantity": worst.name,
                    "error": worst.error if math.isfinite(worst.error) else str(worst.error),
                    "bound": worst.bound,
                },
            }
        )


def _strain(quantity: Quantity) -> float:
    if math.isnan(quantity.error):
        return math.inf
    return quantity.error / (quantity.bound or 1e-30)


def row(quantity: Quantity) -> str:
    """One line of the table."""
    verdict = "ok" if quantity.ok else "FAILED"
    return (
        f"{quantity.case:16} {quantity.name:66} {quantity.error:9.1e} {quantity.bound:8.0e} "
        f"{verdict}"
    )


HEADER = f"{'case':16} {'quantity':66} {'error':>9} {'bound':>8} ok"


def run_cases(folder: Path, show: Callable[[str], None] = print) -> Report:
    """Run all cases of `folder`; `show` gets the table line by line.

    Raises:
        UserError: the folder or a file of a case is missing or damaged.
    """
    cases = read_cases(folder)
    kinds = {case.name: _kind(case) for case in cases}  # before anything long starts
    shared = _shared_checkpoint(cases, kinds)
    quantities: list[Quantity] = []
    show(HEADER)
    with _single_thread():
        for case in cases:
            checks = Checks(case.name)
            _check(kinds[case.name], case, shared, checks)
            for quantity in checks.quantities:
                show(row(quantity))
            quantities += checks.quantities
    return Report(len(cases), quantities)


def _check(kind, case: Case, shared: Checkpoint | None, checks: Checks) -> None:
    try:
        if kind in WITH_CHECKPOINT:
            kind.check(case, shared, checks)
        else:
            kind.check(case, checks)
    except KeyError as error:
        raise UserError(f"{case.folder / 'case.json'} says nothing of {error}.") from error


def _kind(case: Case):
    """The file here that a case belongs to, by what it holds, whatever its name."""
    for kind in (checkpoint, *ALONE, *WITH_CHECKPOINT):
        if kind.recognizes(case):
            return kind
    raise UserError(f"{case.folder} is a case of no known kind, or lacks its io.safetensors.")


def _shared_checkpoint(cases: list[Case], kinds: dict) -> Checkpoint | None:
    found = [case for case in cases if kinds[case.name] is checkpoint]
    needy = [case for case in cases if kinds[case.name] in WITH_CHECKPOINT]
    if needy and len(found) != 1:
        raise UserError(
            f"{needy[0].folder} needs the one checkpoint that the cases share, "
            f"but {needy[0].folder.parent} holds {len(found)}."
        )
    return Checkpoint(found[0], cases) if found else None


@contextmanager
def _single_thread():
    """As the cases were recorded: the order of a sum depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Run of every case of a folder, reported as a table and one line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

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
from triptych.evaluation.parity.checkpoint import RecordedCheckpoint
from triptych.evaluation.parity.checks import Checks, Quantity
from triptych.evaluation.parity.recorded import Case, read_cases
from triptych.utils.errors import UserError

# each file has `recognizes`, whether a case is of its kind, and `check`, which runs one
STANDALONE = (dit, eva_clip, decoder, data)
WITH_CHECKPOINT = (checkpoint, training, generating, chat)


@dataclass
class ParityReport:
    """Results of a folder of cases."""

    cases: int
    """Number of cases that were run."""
    quantities: list[Quantity]
    left_out: dict[str, str]
    """Reasons of skipped cases by name: a case that they depend on is missing."""

    @property
    def failed(self) -> list[str]:
        return [f"{each.case}: {each.name}" for each in self.quantities if not each.ok]

    @property
    def worst(self) -> Quantity:
        """The quantity with the largest ratio of error to bound."""
        return max(self.quantities, key=_strain)

    def summary(self) -> str:
        """One line of JSON."""
        worst = self.worst
        return json.dumps(
            {
                "cases": self.cases,
                "quantities": len(self.quantities),
                "failed": self.failed,
                "left_out": sorted(self.left_out),
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
    result = "ok" if quantity.ok else "FAILED"
    return (
        f"{quantity.case:16} {quantity.name:66} {quantity.error:9.1e} {quantity.bound:8.0e} "
        f"{result}"
    )


HEADER = f"{'case':16} {'quantity':66} {'error':>9} {'bound':>8} ok"


def run_cases(folder: Path, show: Callable[[str], None] = print) -> ParityReport:
    """Run all cases of a folder.

    Args:
        folder: folder of the cases.
        show: callback for the table, line by line.

    Raises:
        UserError: the folder or a file of a case is missing or damaged.
    """
    cases = read_cases(folder)
    kinds = {case.name: _kind(case) for case in cases}  # fails early
    shared = _shared_checkpoint(cases, kinds)
    reasons = {case.name: _lack(case, kinds, shared) for case in cases}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if len(left_out) == len(cases):
        raise UserError(f"no case of {folder} can be run: {next(iter(left_out.values()))}.")
    quantities: list[Quantity] = []
    show(HEADER)
    with _single_thread():
        for case in cases:
            if case.name in left_out:
                show(f"{case.name:16} left out: {left_out[case.name]}")
                continue
            checks = Checks(case.name)
            _check(kinds[case.name], case, shared, checks)
            for quantity in checks.quantities:
                show(row(quantity))
            quantities += checks.quantities
    return ParityReport(len(cases) - len(left_out), quantities, left_out)


def _check(kind, case: Case, shared: RecordedCheckpoint | None, checks: Checks) -> None:
    try:
        if kind in WITH_CHECKPOINT:
            kind.check(case, shared, checks)
        else:
            kind.check(case, checks)
    except KeyError as error:
        raise UserError(f"{case.folder / 'case.json'} says nothing of {error}.") from error


def _kind(case: Case):
    """The module that checks a case, chosen by the content of the case."""
    for kind in (*WITH_CHECKPOINT, *STANDALONE):
        if kind.recognizes(case):
            return kind
    raise UserError(f"{case.folder} is a case of no known kind, or lacks its io.safetensors.")


def _shared_checkpoint(cases: list[Case], kinds: dict) -> RecordedCheckpoint | None:
    shared = [case for case in cases if kinds[case.name] is checkpoint]
    if len(shared) > 1:
        raise UserError(f"{shared[0].folder} and {shared[1].folder} are both a shared checkpoint.")
    return RecordedCheckpoint(shared[0], cases) if shared else None


def _lack(case: Case, kinds: dict, shared: RecordedCheckpoint | None) -> str | None:
    """Reason why a case cannot be run, or None."""
    kind = kinds[case.name]
    if kind in WITH_CHECKPOINT and shared is None:
        return f"{case.name} needs the checkpoint that cases share, which is not there"
    source = training.borrowed_from(case) if kind is training else None
    if source is not None and source not in kinds:
        return f"{case.name} takes its images from {source}, which is not there"
    return None


@contextmanager
def _single_thread():
    """Use one thread, as in the recording: the order of sums depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

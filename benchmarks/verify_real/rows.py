"""Rows of the table: a number, the bound that it must keep, and the verdict."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from typing import Any, Literal

RELATIONS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


@dataclass(frozen=True)
class Row:
    """One comparison of a check.

    Args:
        name: of the row, unique among all.
        compared: both sides of the comparison.
        value: measured number.
        bound: number that the value must be at most, at least or equal to.
        relation: which of them.
    """

    name: str
    compared: str
    value: float
    bound: float
    relation: Literal["<=", ">=", "=="] = "<="

    @property
    def ok(self) -> bool:
        """Whether the bound is kept; NaN keeps none."""
        return bool(RELATIONS[self.relation](self.value, self.bound))

    def record(self) -> dict[str, Any]:
        """The row for the file of results."""
        return {**asdict(self), "ok": self.ok}

    def line(self) -> str:
        """The row of the printed table."""
        verdict = "ok" if self.ok else "FAILED"
        number = f"{self.value:.6g} {self.relation} {self.bound:.6g}"
        return f"{verdict:7} {self.name:36} {number:26} {self.compared}"

"""Progress bar, tables and counts of problems."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def print_problems(excluded: Counter[str]) -> None:
    """Print the number of excluded samples by reason, the most frequent first."""
    for reason, count in excluded.most_common():
        print(f"left out: {count:,} {reason}")


def print_table(head: tuple[str, ...], rows: list[tuple]) -> None:
    """Print a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else _shown(cell) for cell in row))
    width = None if sys.stdout.isatty() else 200  # a file has no width
    Console(width=width, highlight=False).print(table)


def _shown(text: str) -> str:
    """Escape a name of an archive, without control characters."""
    from rich.markup import escape

    return escape("".join(one if one.isprintable() else "?" for one in text))


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

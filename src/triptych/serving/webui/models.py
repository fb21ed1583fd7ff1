"""Models that the page shows, by name; each is loaded when it is first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from triptych.inference.pipeline import UnifiedPipeline


class Sources:
    """Models by the names that viewers may read; each is loaded when it is first asked for."""

    def __init__(self, loaders: Mapping[str, Callable[[], UnifiedPipeline]]) -> None:
        self._loaders, self._loaded = dict(loaders), {}
        self._turn = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The first is the one that all tabs use."""
        return list(self._loaders)

    def __getitem__(self, name: str) -> UnifiedPipeline:
        with self._turn:
            if name not in self._loaded:
                self._loaded[name] = self._loaders[name]()
            return self._loaded[name]


def find_sources(
    source: str,
    other: str | None,
    ema: bool,
    overrides: Sequence[str],
    trust_class: Sequence[str] = (),
) -> Sources:
    """The model to show, and another to compare with it, by the names that viewers read.

    `ema` and `overrides` are for the first alone, `trust_class` for both; see
    `UnifiedPipeline.from_pretrained`.
    """
    load = UnifiedPipeline.from_pretrained
    loaders = {
        f"{source} (EMA)" if ema else source: partial(
            load, source, ema=ema, overrides=overrides, trust_class=trust_class
        )
    }
    if other is not None:
        loaders.setdefault(other, partial(load, other, trust_class=trust_class))
    return Sources(loaders)

"""Models that the page shows, by name; each is loaded at its first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from triptych.inference.pipeline import UnifiedPipeline


class Models:
    """Models by the names that viewers may read; each is loaded at its first use."""

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

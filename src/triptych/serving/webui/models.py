"""Models of the page by name, loaded at first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from triptych.inference.pipeline import UnifiedPipeline


class Models:
    """Mapping of names, which viewers see, to pipelines that are loaded at first use.

    Args:
        loaders: function that loads each model, by name; all tabs use the first model.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], UnifiedPipeline]]) -> None:
        self._loaders, self._loaded = dict(loaders), {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the models."""
        return list(self._loaders)

    def __getitem__(self, name: str) -> UnifiedPipeline:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._loaders[name]()
            return self._loaded[name]

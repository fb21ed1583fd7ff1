"""Component of a parameter or submodule, by its name."""

from __future__ import annotations

from lightning import LightningModule


def component_of(module: LightningModule, name: str) -> str:
    """Component of a parameter or submodule, such as "generation.dit" for all of its layers.

    A component is the first submodule on the path that is not a LightningModule; if a panel is the
    root, the name is only "dit".
    """
    words, place = name.split("."), module
    for number, word in enumerate(words, 1):
        place = getattr(place, word)
        if not isinstance(place, LightningModule):
            return ".".join(words[:number])
    return name

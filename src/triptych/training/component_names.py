"""Names for the parts of a model, as its people know them."""

from __future__ import annotations

from lightning import LightningModule


def component_of(module: LightningModule, name: str) -> str:
    """The part that a parameter or submodule belongs to: "generation.dit" for its every layer.

    Panels are opened, their parts are not; in a panel that is the root, the name is "dit".
    """
    words, place = name.split("."), module
    for number, word in enumerate(words, 1):
        place = getattr(place, word)
        if not isinstance(place, LightningModule):
            return ".".join(words[:number])
    return name

"""Memory and peak FLOP/s of common GPUs, by the short names that `triptych plan --gpu` takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from triptych.training.device_peaks import dense_peak
from triptych.utils.errors import ConfigurationError

GIB = 2**30
GB = 10**9


@dataclass(frozen=True)
class GPU:
    """A GPU's data sheet.

    Attributes:
        memory: bytes.
        peak: dense bfloat16 peak in FLOP/s.
        link: bytes/s that it sends to other GPUs of its node: NVLink one way, else PCIe.
    """

    name: str
    memory: int
    peak: float
    link: float


def _gpu(name: str, memory: int, link: float, device: str | None = None) -> GPU:
    peak = dense_peak(device or name.upper())
    assert peak is not None, name
    return GPU(name, memory, peak, link)


# Cards named in GB hold that many GiB, less what error correction and the driver take; those since
# H200 hold decimal gigabytes.
_CARDS = (
    _gpu("3090", 24 * GIB, 32e9, "RTX 3090"),
    _gpu("4090", 24 * GIB, 32e9, "RTX 4090"),
    _gpu("5090", 32 * GIB, 64e9, "RTX 5090"),
    _gpu("a6000", 48 * GIB, 32e9, "RTX A6000"),
    _gpu("a10", 24 * GIB, 32e9),
    _gpu("a30", 24 * GIB, 32e9),
    _gpu("a40", 48 * GIB, 32e9),
    _gpu("a100-40", 40 * GIB, 300e9, "A100"),
    _gpu("a100-80", 80 * GIB, 300e9, "A100"),
    _gpu("l4", 24 * GIB, 32e9),
    _gpu("l40", 48 * GIB, 32e9),
    _gpu("l40s", 48 * GIB, 32e9),
    _gpu("h20", 96 * GIB, 450e9),
    _gpu("h100", 80 * GIB, 450e9),
    _gpu("h100-pcie", 80 * GIB, 64e9, "H100 PCIe"),
    _gpu("h100-nvl", 94 * GIB, 300e9, "H100 NVL"),
    _gpu("h200", 141 * GB, 450e9),
    _gpu("gh200", 96 * GIB, 450e9),
    _gpu("b200", 180 * GB, 900e9),
    _gpu("gb200", 186 * GB, 900e9),
    _gpu("mi300x", 192 * GB, 448e9, "MI300X"),
)
GPUS = {card.name: card for card in _CARDS}
ALIASES = {"a100": "a100-80", "h100-sxm": "h100", "h100-80": "h100", "h200-141": "h200"}


def gpu_of(name: str) -> GPU:
    """Return a card by its name, such as "h100", "A100-40" or "NVIDIA RTX 4090".

    Raises:
        ConfigurationError: the card is unknown.
    """
    key = re.sub(r"[\s_]+", "-", name.strip().lower())
    key = re.sub(r"^(nvidia|amd|geforce|tesla|instinct|rtx)-", "", key)
    key = re.sub(r"^(nvidia|amd|geforce|tesla|instinct|rtx)-", "", key).removesuffix("gb")
    key = re.sub(r"^rtx(?=\d)", "", key)
    key = ALIASES.get(key, key)
    if key not in GPUS:
        raise ConfigurationError(
            f"the GPU {name!r} is unknown; choose one of {', '.join(GPUS)}, or one like it."
        )
    return GPUS[key]

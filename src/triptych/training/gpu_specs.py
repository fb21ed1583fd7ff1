"""Memory and peak FLOP/s of common GPUs, by the short names that `triptych plan --gpu` takes.

Figures are those of the vendors' documents: NVIDIA's data sheets "A10", "A30", "A40", "A100", "RTX
A6000", "L4", "L40", "L40S", "H100", "H200", "GH200", "HGX B200" and "GB200 NVL72", the whitepapers
of GeForce Ampere (GA102), Ada and Blackwell, and AMD's "Instinct MI300X"; H20 is in none, and is as
resellers state it. They were compared with quotations and excerpts, not with the documents
themselves. NVLink is stated there for both directions together and halved here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from triptych.training.device_peaks import dense_peak
from triptych.utils.errors import ConfigurationError

GIB = 2**30
ECC = GIB * 15 // 16
"""A GiB of GDDR6 with error correction, which is on in servers' cards: nvidia-smi shows 23028 MiB
of the 24 GiB of A10, 46068 of the 48 of L40S."""


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


# Cards named in GB hold that many GiB, less 1 to 2% that the driver takes: nvidia-smi shows
# 81559 MiB for H100, CUDA 139 GiB for H200 and 178 GiB for B200.
_CARDS = (
    _gpu("3090", 24 * GIB, 32e9, "RTX 3090"),
    _gpu("4090", 24 * GIB, 32e9, "RTX 4090"),
    _gpu("5090", 32 * GIB, 64e9, "RTX 5090"),
    _gpu("a6000", 48 * GIB, 32e9, "RTX A6000"),
    _gpu("a10", 24 * ECC, 32e9),
    _gpu("a30", 24 * GIB, 32e9),
    _gpu("a40", 48 * ECC, 32e9),
    _gpu("a100-40", 40 * GIB, 300e9, "A100"),
    _gpu("a100-80", 80 * GIB, 300e9, "A100"),
    _gpu("l4", 24 * ECC, 32e9),
    _gpu("l40", 48 * ECC, 32e9),
    _gpu("l40s", 48 * ECC, 32e9),
    _gpu("h20", 96 * GIB, 450e9),
    _gpu("h100", 80 * GIB, 450e9),
    _gpu("h100-pcie", 80 * GIB, 64e9, "H100 PCIe"),
    _gpu("h100-nvl", 94 * GIB, 300e9, "H100 NVL"),
    _gpu("h200", 141 * GIB, 450e9),
    _gpu("gh200", 96 * GIB, 450e9),
    _gpu("b200", 180 * GIB, 900e9),
    _gpu("gb200", 186 * GIB, 900e9),
    _gpu("mi300x", 192 * GIB, 448e9, "MI300X"),
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

"""Peak FLOP/s of devices, for model FLOPs utilization (MFU)."""

from __future__ import annotations

import re

import torch

# Dense bfloat16 tensor peaks in FLOP/s, with float32 accumulation, from NVIDIA's and AMD's data
# sheets. Values stated "with sparsity", as on most sheets since Hopper, are halved. The first
# pattern that matches torch.cuda.get_device_name is used.
DENSE_PEAKS = (
    (r"\bGB200\b", 2500e12),
    (r"\bB200\b", 2250e12),
    (r"\bH200 NVL\b", 835e12),  # 1671 with sparsity
    (r"\b(GH200|H200)\b", 989e12),  # 1979 with sparsity
    (r"\bH100 NVL\b", 835e12),  # 1671 with sparsity
    (r"\bH[18]00 PCIe\b", 756e12),  # 1513 with sparsity
    (r"\bH[18]00\b", 989e12),  # SXM, 1979 with sparsity
    (r"\bH20\b", 148e12),
    (r"\bA[18]00\b", 312e12),
    (r"\bA30\b", 165e12),
    (r"\bA10\b", 125e12),
    (r"\bA40\b", 149.7e12),
    (r"\bRTX A6000\b", 154.8e12),
    (r"\bL40S\b", 362e12),  # 733 with sparsity
    (r"\bL40\b", 181e12),
    (r"\bL4\b", 121e12),  # 242 with sparsity
    (r"\bRTX 5090$", 209.5e12),
    (r"\bRTX 4090$", 165.2e12),
    (r"\bRTX 3090$", 71e12),
    (r"\bMI300X\b", 1307e12),
)


def dense_peak(name: str) -> float | None:
    """Peak FLOP/s of a device by its name; None if it is unknown."""
    return next((peak for pattern, peak in DENSE_PEAKS if re.search(pattern, name)), None)


def device_name(device: torch.device) -> str:
    """Device name from torch, such as "NVIDIA H100 80GB HBM3", or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

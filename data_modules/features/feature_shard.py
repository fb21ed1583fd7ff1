"""Features of one shard in one safetensors file: written row by row, read by memory mapping.

Tensors of SHARD.features.safetensors:
    features  [N,C,h,w] float32, bfloat16 or int8, in the order of the shard's index
    scales    [N,C] float32, of int8 only: a feature is its int8 times the scale of its channel
    keys      uint8, the UTF-8 keys of the samples one after the other, zeros at the end
    key_ends  [N] int64, where each key ends
Images that the assistant makes in a conversation have rows of their own, with keys KEY.NAME.
Samples with an unreadable image have no row. The metadata identify the shard and the encoder, and
hold the rounding error of the stored numbers.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from triptych.utils.atomic_write import AtomicFile, temporary_path
from triptych.utils.errors import UserError

SUFFIX = ".features.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "I8"}
# Rows are written before their number is known; the header is written last into this space.
HEADER = 4096  # bytes, its length included


def quantize(features: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize features [B,C,h,w] to int8 [B,C,h,w], with float32 scales [B,C]."""
    scales = features.abs().amax((2, 3)).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (features / scales[:, :, None, None]).round().to(torch.int8), scales


def dequantize(stored: Tensor, scales: Tensor) -> Tensor:
    """Inverse of `quantize`: int8 [...,C,h,w] and scales [...,C] -> float32 [...,C,h,w]."""
    return stored * scales[..., None, None]


class FeatureShardWriter:
    """Writes one feature shard batch by batch; the file appears at `close`.

    Args:
        path: path of the feature shard.
        dtype: dtype of storage: "fp32", "bf16" or "int8".
        shape: shape (C,h,w) of one sample's features.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, int, int]) -> None:
        self.path, self.dtype, self.shape = path, DTYPES[dtype], tuple(shape)
        self.keys: list[bytes] = []
        self.scales: list[Tensor] = []
        self.squares = self.errors = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._atomic = AtomicFile(path, temporary_path(path))
        self._file = self._atomic.file
        self._file.write(bytes(HEADER))

    def add(self, keys: list[str], features: Tensor) -> None:
        """Write the rows of a batch.

        Args:
            keys: keys of the samples.
            features: float features [B,C,h,w].

        Raises:
            UserError: a feature is not finite.
        """
        features = features.detach().float().cpu()
        finite = features.isfinite().flatten(1).all(1).tolist()
        if not all(finite):
            raise UserError(
                f"the encoder makes features of sample {keys[finite.index(False)]} that are no "
                "finite numbers; compute in another --precision, or look at its weights."
            )
        if self.dtype == torch.int8:
            stored, scales = quantize(features)
            self.scales.append(scales)
            restored = dequantize(stored, scales)
        else:
            stored = features.to(self.dtype)
            restored = stored.float()
        self.squares += features.double().square().sum().item()
        self.errors += (restored.double() - features.double()).square().sum().item()
        self.keys += [key.encode() for key in keys]
        self._file.write(_bytes(stored))

    def close(self, metadata: dict[str, str]) -> None:
        """Finish the file, with `metadata` and the sums of squares of features and errors."""
        ends = torch.tensor([len(key) for key in self.keys], dtype=torch.int64).cumsum(0)
        names = b"".join(self.keys)
        row = torch.Size(self.shape).numel() * self.dtype.itemsize
        # zeros after the keys align the next tensor
        names += bytes(-(len(self.keys) * row + len(names)) % 8)
        tensors = {
            "keys": ("U8", [len(names)], names),
            "key_ends": ("I64", [len(self.keys)], _bytes(ends)),
        }
        if self.dtype == torch.int8:
            scales = torch.cat([torch.zeros(0, self.shape[0]), *self.scales])
            tensors["scales"] = ("F32", list(scales.shape), _bytes(scales))
        sums = {"squares": repr(self.squares), "square_errors": repr(self.errors)}
        end = len(self.keys) * row
        header: dict[str, object] = {
            "__metadata__": {**metadata, **sums},
            "features": {
                "dtype": NAMES[self.dtype],
                "shape": [len(self.keys), *self.shape],
                "data_offsets": [0, end],
            },
        }
        for name, (dtype, shape, content) in tensors.items():
            begin, end = end, end + len(content)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
            self._file.write(content)
        text = json.dumps(header).encode().ljust(HEADER - 8)
        assert len(text) == HEADER - 8, "the header outgrew its space"
        self._file.seek(0)
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._atomic.commit()

    def discard(self) -> None:
        """Discard the file."""
        self._atomic.discard()


class FeatureShard:
    """One open feature shard, memory-mapped.

    Raises:
        UserError: the file is missing, truncated, or not a feature shard.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                self.features = file.get_tensor("features")
                int8 = self.features.dtype == torch.int8
                self.scales = file.get_tensor("scales") if int8 else None
                names = file.get_tensor("keys").numpy().tobytes()
                ends = file.get_tensor("key_ends").tolist()
            starts = [0, *ends][: len(ends)]
            keys = [names[start:end].decode() for start, end in zip(starts, ends, strict=True)]
            if len(keys) != len(self.features):
                raise ValueError(f"{len(keys)} keys of {len(self.features)} rows")
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); delete it and run `triptych data features` "
                "again."
            ) from error
        rows = list(enumerate(keys))
        # A repeated key is dropped: which features belong to which sample is unknown.
        repeated = {key for key, times in Counter(key for _, key in rows).items() if times > 1}
        self.rows = {key: row for row, key in rows if key not in repeated}

    def get(self, key: str) -> Tensor | None:
        """Features [C,h,w] as stored, int8 as float32; None if the sample has no row."""
        row = self.rows.get(key)
        if row is None:
            return None
        if self.scales is None:
            return self.features[row]
        return dequantize(self.features[row], self.scales[row])


def read_metadata(path: Path) -> dict[str, str] | None:
    """Read the metadata of a feature shard; None if it is missing or incomplete."""
    if not path.is_file():  # safe_open would wait for the writer of a FIFO
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return None


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

"""A model with its weights: loading, moving, saving."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch

from triptych.checkpoints.hashing import model_hash
from triptych.inference.argument_names import named_arguments
from triptych.inference.loading import find_source, load_model
from triptych.inference.offload import check_fits_in_memory, offload_to_cpu
from triptych.inference.quantization import Quantize, require_quantizer
from triptych.inference.quantization import quantize as quantize_part
from triptych.inference.saving import save_model
from triptych.modules import UnifiedModule
from triptych.training.execution import compile_blocks
from triptych.utils.errors import UserError
from triptych.utils.png_metadata import shown_name

DTYPES = ("float32", "bfloat16", "float16")


class PretrainedModel:
    """A model with its weights on a device; base of `UnifiedPipeline`.

    Calls from several threads are serialized.

    Args:
        model: built model with weights, in evaluation mode.
        name: name of the model in the metadata of images.
        device: device to compute on, if the model is on another one; see `offload.take_turns`.
    """

    def __init__(
        self, model: UnifiedModule, *, name: str = "custom", device: torch.device | None = None
    ) -> None:
        self.model, self.name = model, name
        self.device = device or model.device
        self._turn, self._offloaded = threading.RLock(), False

    @classmethod
    @named_arguments("from_pretrained")
    def from_pretrained(
        cls,
        source: str | Path | Sequence[str | Path] = "tiny",
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: str | torch.device | None = None,
        ema: bool = False,
        overrides: Sequence[str] = (),
        enable_model_cpu_offload: bool = False,
        quantize: Quantize | None = None,
        compile: bool = False,
        trust_class: Sequence[str] = (),
    ) -> Self:
        """Load a preset, a converted checkpoint, or a training run; see `loading.find_source`.

        Args:
            source: "tiny", one or several model files, a folder, a checkpoint, or a weight file.
            dtype: dtype of all weights; by default float32 on the CPU and bfloat16 elsewhere.
            torch_dtype: older name of `dtype`.
            device: device to compute on; by default the first GPU if there is one, else the CPU.
            ema: whether to load the moving average of a training checkpoint instead of its weights.
            overrides: flags such as "--model.generation.sampling.num_inference_steps=30", as for
                `triptych fit`.
            enable_model_cpu_offload: whether to call the method of this name before moving weights.
            quantize: precision of the language model's weights, "4bit" or "8bit", by bitsandbytes.
            compile: whether to apply torch.compile to all blocks: the first images take minutes,
                later ones less time than without.
            trust_class: packages or classes, in addition to triptych's own, that the files of
                `source` may name; importing them runs their code.

        Raises:
            UserError: the model does not exist, its weights do not fit, memory is insufficient, or
                the library for `quantize` is not installed.
        """
        if quantize is not None:
            require_quantizer(quantize)
        found = find_source(source, ema)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        own = torch.float32 if where.type == "cpu" else torch.bfloat16
        kind = _dtype(dtype or torch_dtype or own)
        flags = [*found.overrides, *overrides]
        if kind != torch.float32:  # weights are loaded directly in this dtype
            flags.append(f"--model.execution.frozen_dtype={str(kind).removeprefix('torch.')}")
        model = load_model(found.configs, flags, trained=found.trained, trust_class=trust_class).to(
            kind
        )
        if quantize is not None:
            quantize_part(model.understanding.vlm, quantize)
            model.description = None  # quantized weights cannot be saved
        if compile:
            compile_blocks(model)
        pipe = cls(model, name=_name(source), device=where)
        if enable_model_cpu_offload:
            pipe.enable_model_cpu_offload()
        else:
            pipe.to(where)
        return pipe

    def to(
        self,
        *args: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Move the model and change the dtype of its weights; returns the pipeline.

        Args:
            args: a device, a dtype or both, in any order, as in torch.
            device: device to move to.
            dtype: dtype of the weights.

        Raises:
            UserError: the weights do not fit on the device, or CPU offload is enabled.
        """
        for each in args:
            if isinstance(each, torch.dtype) or each in DTYPES:
                dtype = each
            else:
                device = each
        if device is not None and self._offloaded:
            raise UserError("the model is offloaded to the CPU; load it again to move it whole.")
        if dtype is not None:
            self.model.to(_dtype(dtype))
            self.__dict__.pop("weights_hash", None)
        if device is not None:
            self.device = torch.device(device)
            if self.model.device != self.device:
                check_fits_in_memory(self.model, self.device)
            self.model.to(self.device)
        self.model.eval()  # clears cached features
        return self

    def enable_model_cpu_offload(self, device: str | torch.device | None = None) -> None:
        """Keep the networks on the CPU, each on the device only while it computes.

        Args:
            device: device to compute on; by default that of the pipeline.
        """
        if not self._offloaded:
            self.device = self.device if device is None else torch.device(device)
            offload_to_cpu(self.model.to("cpu"), self.device)
            self._offloaded = True

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.yaml, weight files and tokenizer to a folder for `from_pretrained`.

        Raises:
            UserError: the folder cannot be written, or the weights are quantized.
        """
        with self._turn:
            save_model(self.model, folder, self.model.description)

    @cached_property
    def weights_hash(self) -> str:
        """Hash of the weights, independent of their files; see `model_hash`."""
        return model_hash(self.model)


def _dtype(name: torch.dtype | str) -> torch.dtype:
    short = str(name).removeprefix("torch.")
    if short not in DTYPES:
        raise UserError(f"dtype is {short!r}; choose from {', '.join(DTYPES)}.")
    return getattr(torch, short)


def _name(source: str | Path | Sequence[str | Path]) -> str:
    return " ".join(map(shown_name, [source] if isinstance(source, str | Path) else source))

"""A model with its weights: loaded, moved, saved."""

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
    """A model with its weights on a device; `UnifiedPipeline` uses it.

    Calls from several threads take turns: one model computes one thing at a time.

    Args:
        model: built, with weights, in evaluation mode.
        name: name of the model, for the metadata of images.
        device: where to compute, if the model is elsewhere; see `offload.take_turns`.
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
        """Load a preset, a converted checkpoint, or a run of training; see `loading.find_source`.

        Args:
            source: "tiny", a model.yaml or several, a folder, a checkpoint, a weight file.
            dtype: type of all weights; float32 on the CPU and bfloat16 elsewhere by default.
            torch_dtype: the same, by its older name.
            device: where to compute; the first GPU if there is one, else the CPU.
            ema: take the moving average of a training checkpoint in place of its last weights.
            overrides: flags such as "--model.generation.sampling.num_inference_steps=30", as for
                `triptych fit`.
            enable_model_cpu_offload: as the method, before anything is moved to the device.
            quantize: weights of "4bit" or "8bit" for the language model, by bitsandbytes.
            compile: torch.compile of all blocks: the first images take minutes, the next less
                than without.
            trust_class: packages, or classes of them, that the files of `source` may name beside
                triptych's own: importing them runs their code.

        Raises:
            UserError: there is no model there, its weights do not fit, memory does not suffice, or
                what `quantize` needs is not installed.
        """
        if quantize is not None:
            require_quantizer(quantize)
        found = find_source(source, ema)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        own = torch.float32 if where.type == "cpu" else torch.bfloat16
        kind = _dtype(dtype or torch_dtype or own)
        flags = [*found.overrides, *overrides]
        if kind != torch.float32:  # weights are never held in float32 on their way
            flags.append(f"--model.execution.frozen_dtype={str(kind).removeprefix('torch.')}")
        model = load_model(found.configs, flags, trained=found.trained, trust_class=trust_class).to(
            kind
        )
        if quantize is not None:
            quantize_part(model.understanding.vlm, quantize)
            model.description = None  # its weights are in no weight file
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
        """Move the model and change the type of its weights; returns the pipeline.

        Args:
            args: a device, a dtype or both, in any order, as in torch.

        Raises:
            UserError: the weights do not fit on the device, or CPU offload has the device.
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
        self.model.eval()  # forgets features that it made before
        return self

    def enable_model_cpu_offload(self, device: str | torch.device | None = None) -> None:
        """Keep the networks on the CPU, each on the device only while it computes.

        Args:
            device: where to compute; the device of the pipeline by default.
        """
        if not self._offloaded:
            self.device = self.device if device is None else torch.device(device)
            offload_to_cpu(self.model.to("cpu"), self.device)
            self._offloaded = True

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` reads: model.yaml, weight files, the tokenizer.

        Raises:
            UserError: the folder cannot be written, or the weights are quantized.
        """
        with self._turn:
            save_model(self.model, folder, self.model.description)

    @cached_property
    def weights_hash(self) -> str:
        """Digest of the weights, whatever their file is called."""
        return model_hash(self.model)


def _dtype(name: torch.dtype | str) -> torch.dtype:
    short = str(name).removeprefix("torch.")
    if short not in DTYPES:
        raise UserError(f"dtype is {short!r}; choose from {', '.join(DTYPES)}.")
    return getattr(torch, short)


def _name(source: str | Path | Sequence[str | Path]) -> str:
    return " ".join(map(shown_name, [source] if isinstance(source, str | Path) else source))

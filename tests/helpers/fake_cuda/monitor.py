"""A dispatch mode that records what would cost time on a CUDA device.

Kinds of what it records:
    sync    the host waits for the device: the stub's counter, reads of values, boolean masks
    copy    between host and device; "pageable" if from memory that is not pinned
    cpu     a CPU scalar tensor as argument of a kernel
    mixed   other CPU tensors beside CUDA ones: fake mode does not notice them in lists and indices
    cast    between floating-point dtypes on the device
    float32 matrix products and attention in float32
    collective  of torch.distributed, and on which device
"""

import ctypes
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "linear"}
ROOT = f"{Path(__file__).parents[3]}/"


@dataclass(frozen=True)
class Event:
    """Something that was recorded, and where."""

    kind: str
    detail: str
    place: str
    """File and line in the project, innermost; of a backward pass, "backward"."""
    library: str
    """File and line in a library other than torch, innermost, if it is further in."""

    def __str__(self) -> str:
        via = f" via {self.library}" if self.library else ""
        return f"{self.kind}: {self.detail} at {self.place}{via}"


class DeviceMonitor(TorchDispatchMode):
    """Records events of a block of code on fake CUDA tensors, with file and line.

    Args:
        answer: value of a fake tensor that the host reads, a function of it; else fake mode raises.
    """

    def __init__(self, answer=None) -> None:
        super().__init__()
        self.answer = answer
        self.events = Counter()
        self.bytes = Counter()
        self._waits = ctypes.CDLL(None).fake_cuda_waits
        self._waited = self._waits()

    def of(self, *kinds):
        """Recorded events of these kinds, each once."""
        return [event for event in self.events if event.kind in kinds]

    def clear(self):
        """Forget everything recorded so far."""
        self.events.clear()
        self.bytes.clear()
        self._waited = self._waits()

    def __exit__(self, *exception):
        self._count_waits("the end of the block")
        return super().__exit__(*exception)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = op.overloadpacket.__name__
        self._count_waits(name)
        if name == "device":
            return op(*args, **kwargs)
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        on_device = [each for each in inputs if each.device.type == "cuda"]
        if "c10d" in op.namespace:
            devices = sorted({each.device.type for each in inputs})
            self._record("collective", f"{name} on {' and '.join(devices) or 'nothing'}")
        if on_device and name in READS:
            self._record("sync", name)
        if name.startswith("index") and any(each.dtype == torch.bool for each in on_device):
            if any(each.dtype == torch.bool for each in inputs[1:]):
                self._record("sync", f"{name} by a boolean mask")
        unknown = bool(inputs) and _unknown(inputs[0])
        if name == "_local_scalar_dense" and self.answer and unknown:
            return self.answer(inputs[0])
        outputs = op(*args, **kwargs)
        results = [each for each in tree_leaves(outputs) if isinstance(each, torch.Tensor)]
        if name in ("_to_copy", "copy_"):
            self._copied(name, inputs, results, args, kwargs)
        elif on_device:
            on_host = [each.dim() for each in inputs if each.device.type == "cpu"]
            if 0 in on_host:
                self._record("cpu", name)
            if any(on_host):
                self._record("mixed", name)
            attends = "attention" in name
            if attends:  # its statistics are in float32 anyway
                results = results[:1]
            wide = any(each.dtype == torch.float32 for each in results)
            if wide and (attends or name in PRODUCTS):
                shapes = [tuple(each.shape) for each in on_device]
                self._record("float32", f"{name} {shapes}", sum(each.numel() for each in results))
        return outputs

    def _copied(self, name, inputs, results, args, kwargs):
        source = inputs[1] if name == "copy_" else inputs[0]
        target = inputs[0] if name == "copy_" else results[0]
        size = target.numel() * target.element_size()
        if source.device.type != target.device.type:
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            words = f"{source.device.type} to {target.device.type} {tuple(source.shape)}"
            self._record("copy", words + (", blocking" if blocking else ""), size)
            if target.device.type == "cpu" and blocking:
                self._record("sync", f"copy to the host {tuple(source.shape)}")
        elif source.device.type == "cuda" and source.dtype != target.dtype:
            self._record("cast", f"{source.dtype} to {target.dtype}".replace("torch.", ""), size)

    def _count_waits(self, before):
        if (waits := self._waits()) != self._waited:
            # invisible to dispatch: a Python list or number became a CUDA tensor
            self._record("sync", f"{waits - self._waited} waits before {before}")
            self._waited = waits

    def _record(self, kind, detail, size=0):
        event = Event(kind, detail, *_place())
        self.events[event] += 1
        self.bytes[event] += size


def _unknown(tensor):
    return isinstance(tensor, FakeTensor) and tensor.constant is None


def _place():
    """Innermost line of the project, and of a library if that is further in."""
    library, frame = "", sys._getframe(1)  # not `traceback`, which reads the files
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and "/torch/" not in path:
            if "site-packages" in path:
                library = library or f"{path.split('site-packages/')[-1]}:{frame.f_lineno}"
            elif path.startswith(ROOT):
                return f"{path.removeprefix(ROOT)}:{frame.f_lineno}", library
        frame = frame.f_back
    return "?", library

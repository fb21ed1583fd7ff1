"""Peak memory of real training steps, by the storages of their tensors."""

from contextlib import contextmanager
from unittest.mock import patch

import torch

from triptych.interfaces import batches_in
from triptych.training.memory.storages import StorageCounter
from triptych.training.optimizer import make_optimizer
from triptych.training.synthetic_batches import stage_batches


@contextmanager
def resizes_counted(counter):
    """Tell `counter` of storages that FSDP2 frees and refills by resizing them."""
    plain = torch.UntypedStorage.resize_

    def resize(storage, size):
        result = plain(storage, size)
        counter.resized(storage)
        return result

    with patch.object(torch.UntypedStorage, "resize_", resize):
        yield


def step_peak(model, batch_size, *, keeps_gradients=False, dtype=None, device="cpu", **batch):
    """Peak bytes of the second of two steps, with parameters and buffers.

    Args:
        model: on `device`, real or fake.
        keeps_gradients: whether gradients stay between steps, as the buckets of DDP do.
        dtype: of autocast; None is without.
        batch: arguments of `stage_batches`.
    """
    device = torch.device(device)
    optimizer = make_optimizer(model, model.optimization)
    counter = StorageCounter(device=device)
    for tensor in [*model.parameters(), *model.buffers()]:
        counter.add(tensor)
    with resizes_counted(counter), counter:
        for _ in range(2):
            counter.peak = counter.now
            batches = [
                each.to(device)
                for each in batches_in(stage_batches(model, batch_size, step=1, **batch))
            ]
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                loss = torch.stack([model.step(each)[0] for each in batches]).sum()
            torch.autograd.backward(loss)
            del loss, batches
            optimizer.step()
            optimizer.zero_grad(set_to_none=not keeps_gradients)
    return counter.peak

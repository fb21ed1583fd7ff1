"""What holds for every test: no network, few threads, and GPU tests only where there is a GPU."""

import os
import signal

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# Before torch is imported, and inherited by subprocesses: the same sums on any number of cores.
os.environ.setdefault("OMP_NUM_THREADS", "2")

# A shell without a terminal starts its background jobs deaf to Ctrl-C, and what they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)

try:
    import triptych  # noqa: F401
except ImportError as error:
    raise pytest.UsageError("triptych is not installed: run `make setup` first") from error


def pytest_collection_modifyitems(items):
    marked = [item for item in items if "gpu" in item.keywords]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

"""Rules for every test: no network, few threads, and every omitted test is counted.

A test that needs what this machine lacks is left out, and the run ends with a line that counts what
was left out, by reason. `--nothing-left-out` is for continuous integration: only a missing GPU or a
missing Ray is a reason there, and for anything else that is missing the test fails. Continuous
integration has a time limit, which on a slow processor is not enough for all slow tests:
`--last-start` leaves out those that would begin too late, and counts them.
"""

import os
import shutil
import signal
import sys
import time
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

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

GPU = "need a CUDA device"
BESIDE = Path(__file__).parent / ".venv" / "beside" / ".set-up"
ELSEWHERE = {  # marker -> what runs its tests
    "slow": "are slow (`make test-slow` runs them)",
    "sweep": "are further members of tables (`make test-sweep` runs them)",
}


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _chromium() -> bool:
    from browser import installed

    return installed() is not None


def _cuda_stub() -> bool:
    from fake_cuda.runtime import missing

    return missing() is None


# Marker -> why its tests are left out, and whether this machine has what they need.
NEEDS = {
    "gpu": (GPU, _cuda),
    "browser": ("need Chromium", _chromium),
    "beside": ("need .venv/beside (`make test-slow` installs it)", BESIDE.exists),
    "compiler": ("need g++", lambda: shutil.which("g++") is not None),
    "cuda_stub": ("need gcc and torch's CUDA build", _cuda_stub),
    # 350 MB of packages, which no lock names
    "ray": ("need Ray (pip install 'triptych[replicas]')", lambda: find_spec("ray") is not None),
    "linux": ("need Linux", lambda: sys.platform == "linux"),
}
VERSIONS = ("torch", "torchvision", "lightning", "transformers", "diffusers", "timm", "numpy")
LATE = "would begin later than --last-start"
BEGAN = time.monotonic()
LEFT_OUT = pytest.StashKey[Counter]()


def pytest_addoption(parser):
    parser.addoption(
        "--nothing-left-out",
        action="store_true",
        help="no reason but a missing GPU or Ray to leave out",
    )
    parser.addoption(
        "--last-start",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="leave out tests that would begin later; default none",
    )


def pytest_configure(config):
    config.stash[LEFT_OUT] = Counter()


def pytest_collection_modifyitems(config, items):
    needed = {name for name in NEEDS if any(name in item.keywords for item in items)}
    if config.getoption("nothing_left_out"):
        needed &= {"gpu", "ray"}
    missing = {name: NEEDS[name][0] for name in NEEDS if name in needed and not NEEDS[name][1]()}
    left_out = {item: missing[name] for item in items for name in missing if name in item.keywords}
    config.stash[LEFT_OUT].update(left_out.values())
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if time.monotonic() - BEGAN > item.config.getoption("last_start"):
        pytest.skip(LATE)


def pytest_deselected(items):
    """Count what `-m "not slow and not sweep"` leaves out."""
    for item in items:
        for marker, reason in ELSEWHERE.items():
            if f"not {marker}" in item.config.option.markexpr and marker in item.keywords:
                item.config.stash[LEFT_OUT][reason] += 1


def skipped(config) -> Counter:
    """Reason -> how many tests skipped themselves while they ran."""
    reports = config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    config = session.config
    if hasattr(config, "workeroutput"):  # a process of pytest-xdist: these collect, and alike
        config.workeroutput["left_out"] = dict(config.stash[LEFT_OUT])
    elif config.getoption("nothing_left_out") and skipped(config).keys() - {LATE}:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    if error is None:
        node.config.stash[LEFT_OUT] = Counter(node.workeroutput["left_out"])


def pytest_terminal_summary(terminalreporter, config):
    versions = [
        f"Python {sys.version.split()[0]}",
        *(f"{name} {version(name)}" for name in VERSIONS),
    ]
    terminalreporter.write_line(f"versions: {', '.join(versions)}")
    counted = config.stash[LEFT_OUT] + skipped(config)
    reasons = [f"{number} {reason}" for reason, number in counted.items()]
    terminalreporter.write_line(f"left out: {'; '.join(reasons) or 'nothing'}")

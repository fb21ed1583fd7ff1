"""Build the stub of the CUDA runtime, and run processes that load it."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import processes

HERE = Path(__file__).parent


def missing():
    """Why the stub cannot be built on this machine; None if it can."""
    if sys.platform != "linux":
        return "the stub of the CUDA runtime needs Linux"
    if not all(map(shutil.which, ("gcc", "nm"))):
        return "the stub of the CUDA runtime needs a C compiler: gcc and binutils"
    if _headers() is None or _nvrtc() is None:
        return "the stub of the CUDA runtime needs torch's CUDA build (pip install torch)"
    return None


def build(folder):
    """Compile the stub into `folder`: libfakecuda.so, and libcuda.so.1 that does nothing."""
    folder = Path(folder).resolve()
    own = [f"-I{HERE}", f"-I{_headers()}", "-include", "stddef.h", "-include", "stdint.h"]
    own += ["-include", "vector_types.h", str(HERE / "runtime.c")]
    _compile(folder / "libfakecuda.so", own)
    # libcuda.so.1 belongs to the driver; torch looks up these of its functions when it loads
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", _nvrtc()], capture_output=True, text=True, check=True
    )
    lines = []
    for name in sorted(set(re.findall(r" (cu[A-Z]\w*)", listed.stdout))):
        if name == "cuDevicePrimaryCtxGetState":
            lines.append(f"int {name}(int d, unsigned *f, int *a) {{ *f = 0; *a = 0; return 0; }}")
        else:
            lines.append(f"int {name}(void) {{ return 0; }}")
    source = folder / "driver.c"
    source.write_text("\n".join(lines) + "\n")
    _compile(folder / "libcuda.so.1", [str(source), "-Wl,-soname,libcuda.so.1"])


def environment(folder):
    """Environment variables of a process that loads the stub built in `folder`."""
    folder = Path(folder).resolve()
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    libraries = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return os.environ | {
        "LD_PRELOAD": str(folder / "libfakecuda.so"),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "0",
    }


def _compile(target, arguments):
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-w", *arguments, "-o", target], check=True)


def _site():
    return Path(sysconfig.get_path("purelib"))


def _headers():
    found = sorted(_site().glob("nvidia/*/include/driver_types.h"))
    return found[0].parent if found else None


def _nvrtc():
    path = _site() / "torch/lib/libcaffe2_nvrtc.so"
    return path if path.is_file() else None


def run(folder, *cases, seconds=600):
    """Results of `python -m fake_cuda CASE...` by case; see `fake_cuda.cases`."""
    folder = Path(folder)
    if not (folder / "libfakecuda.so").exists():
        build(folder)
    command = [sys.executable, "-m", "fake_cuda", *cases]
    done = processes.run(command, seconds=seconds, env=environment(folder), cwd=folder)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each["case"] for each in results] == list(cases), done.stderr[-4000:]
    return {each["case"]: each for each in results}

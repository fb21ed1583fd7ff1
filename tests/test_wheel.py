"""The built wheel does from an empty folder what a checkout does."""

import sys

import commands
import processes
import pytest
from builders import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs `triptych` of a freshly built wheel in an empty folder."""
    site, work = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("work")
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    names = processes.run(["git", "ls-files", "-z"], cwd=ROOT, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(wheels), str(source)]
    processes.run(build, check=True)
    (wheel,) = wheels.glob("*.whl")
    processes.run([*pip, "install", *offline, "--target", site, wheel], check=True)

    def run(*words):
        program = (sys.executable, "-P", "-m", "triptych")
        done = commands.run(work, *words, program=program, PYTHONPATH=str(site))
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    run.site, run.work = site, work
    return run


def test_every_file_of_conf_is_in_the_wheel(installed):
    ours = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    conf = installed.site / "triptych" / "conf"
    assert {path.relative_to(conf) for path in conf.rglob("*.yaml")} == ours


def test_a_stage_trains(installed):
    flags = ["--trainer.max_steps=2", "--data.images=200", "--trainer.callbacks=ExportWeights"]
    done = installed("fit", "--preset", "tiny", "--stage", "stage2", *flags)
    assert str(installed.site) in done.stderr  # the files of the wheel, not of the checkout
    assert (installed.work / "runs" / "tiny" / "stage2" / "weights.safetensors").is_file()


def test_images_scores_and_the_demo_are_made(installed):
    installed("generate", "a red circle")
    installed("eval", "shapes", "--num-captions", "6")
    installed("demo", "--out", "demo")
    assert (installed.work / "demo" / "index.html").is_file()

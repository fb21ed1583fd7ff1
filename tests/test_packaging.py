"""What is installed is what is on disk, under the name `triptych` alone."""

import configparser
import importlib
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

import triptych

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_on_disk_is_listed(setup_cfg):
    # A forgotten one works in an editable install and is silently missing from the wheel.
    folders = dict(
        line.replace(" ", "").split("=")
        for line in setup_cfg["options"]["package_dir"].strip().splitlines()
    )
    on_disk = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for package, folder in folders.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(setup_cfg["options"]["packages"].split()) == on_disk


@pytest.mark.parametrize("folder", ["callbacks", "data_modules"])
def test_plug_in_folders_have_one_name(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=f"import this folder as 'triptych.{folder}'"):
        importlib.import_module(folder)
    assert importlib.import_module(f"triptych.{folder}").__all__


def test_console_script_and_module_are_the_same_command():
    (script,) = entry_points(group="console_scripts", name="triptych")
    assert script.value == "triptych.cli:main"
    assert (Path(sys.executable).parent / "triptych").exists()


def test_version_is_stated_once():
    assert version("triptych") == triptych.__version__


def test_importing_the_package_imports_no_torch():
    code = "import sys, triptych; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_constraint_is_an_exact_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(line.count("==") == 1 and "/" not in line for line in pins)
    names = [line.split("==")[0].lower() for line in pins]
    assert len(set(names)) == len(names) and "triptych" not in names


def test_constraints_name_every_requirement(setup_cfg):
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    names = {line.split("==")[0] for line in pins}
    extras = setup_cfg["options.extras_require"]
    wanted = setup_cfg["options"]["install_requires"]
    wanted += "".join(extras[name] for name in ("serve", "app", "dev", "data"))
    for line in wanted.strip().splitlines():
        name = "".join(c if c.isalnum() or c in "-_" else " " for c in line).split()
        assert not name or line.startswith("#") or name[0].lower().replace("_", "-") in names, line

"""The installed package has the files on disk, under only the name `triptych`."""

import configparser
import importlib
import re
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from processes import run

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
    assert script.value == "triptych.cli.main:main"
    assert (Path(sys.executable).parent / "triptych").exists()


def test_version_is_stated_once():
    assert version("triptych") == triptych.__version__


def test_importing_the_package_imports_no_torch():
    code = "import sys, triptych; sys.exit('torch' in sys.modules)"
    run([sys.executable, "-c", code], check=True)


def read_pins(lock):
    """Package name, lower case with hyphens -> the lines of its entry in a lock file."""
    entries, name = {}, ""
    for line in (ROOT / lock).read_text().splitlines():
        if line and not line.startswith(("#", " ")):
            name = line.partition("==")[0].lower().replace("_", "-")
            assert name not in entries
            entries[name] = []
        if not line.startswith("#"):
            entries[name].append(line)
    return entries


@pytest.fixture(scope="module")
def pins():
    return read_pins("constraints.txt")


LOCKS = {
    "constraints.txt": ("serve", "app", "dev", "data"),
    "constraints-stack.txt": ("serve", "app", "dev", "data"),
    "constraints-lowest.txt": ("serve", "app", "fast", "eval", "data", "quantize"),
}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_constraint_is_an_exact_version_with_hashes(lock):
    pins = read_pins(lock)
    for first, *hashes in pins.values():
        assert first.count("==") - first.count(" == ") >= 1 and "/" not in first
        assert hashes and all(re.match(r" {4}--hash=sha256:[0-9a-f]{64}( \\)?$", h) for h in hashes)
    assert "triptych" not in pins


def test_the_build_backend_is_the_pinned_one(pins):
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert pins["setuptools"][0].split()[0] == backend


@pytest.mark.parametrize("lock", LOCKS)
def test_constraints_name_every_requirement(setup_cfg, lock):
    pins = read_pins(lock)
    extras = setup_cfg["options.extras_require"]
    wanted = setup_cfg["options"]["install_requires"]
    wanted += "".join(extras[name] for name in LOCKS[lock])
    for line in wanted.strip().splitlines():
        name = "".join(c if c.isalnum() or c in "-_" else " " for c in line).split()
        assert not name or line.startswith("#") or name[0].lower().replace("_", "-") in pins, line


def test_the_lowest_constraints_are_the_lower_bounds(setup_cfg):
    """After a change of a bound, `constraints-lowest.txt` has to be made anew."""
    pins = read_pins("constraints-lowest.txt")
    extras = setup_cfg["options.extras_require"]
    wanted = setup_cfg["options"]["install_requires"]
    wanted += "".join(extras[name] for name in LOCKS["constraints-lowest.txt"])
    for requirement in map(Requirement, re.findall(r"^[a-z].*$", wanted, re.M)):
        (bound,) = [one.version for one in requirement.specifier if one.operator == ">="]
        pinned = Version(pins[requirement.name][0].split("==")[1].split()[0])
        # a bound that other packages raise, or whose file was withdrawn, may be passed by patches
        assert requirement.specifier.contains(pinned), requirement
        assert pinned.release[:2] == (*Version(bound).release, 0)[:2], requirement


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', 0),
        (
            '{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", '
            '"fix_versions": ["2"]}]}]}',
            1,
        ),
        ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', 2),
        ('{"dependencies": []}', 2),
        ("", 2),
    ],
)
def test_an_audit_succeeds_only_if_every_package_was_looked_up(tmp_path, answer, status):
    (tmp_path / "pip_audit.py").write_text(f"print({answer!r})")
    command = [sys.executable, ROOT / "scripts" / "audit.py"]
    done = run(command, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == status, done.stderr
    assert ("CVE-1, fixed in 2" in done.stdout) == (status == 1)

"""Imports point down one ordered list, without circles; package docstrings list their modules."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {"triptych": "src/triptych"} | {
    f"triptych.{folder}": folder for folder in ("callbacks", "data_modules")
}
# A name may import only names before it; only the last one imports the two plug-ins.
ORDER = [
    "utils",
    "loss",
    "policy_loss",
    "stochastic_steps",
    "interfaces",
    "prompts",
    "guidance",
    "conversations",
    "sampler",
    "shapes_world",
    "backbones",
    "data_modules",
    "training",
    "checkpoints",
    "callbacks",
    "modules",
    "inference",
    "evaluation",
    "rewards",
    "serving",
    "cli",
]
PLUG_INS = {
    "data_modules": {"utils", "interfaces", "prompts", "conversations", "shapes_world"},
    "callbacks": {"utils", "interfaces", "training", "checkpoints"},
}
OUTSIDE = {"triptych", "triptych.__main__"}  # the version, and the command


def imports_of(name: str, path: Path) -> set[str]:
    """Full names of what a file imports, wherever in the file, relative imports resolved."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def read_files() -> dict[str, Path]:
    """Module name -> file, of the whole package."""
    files = {}
    for package, folder in SOURCES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            files[".".join([package, *parts]).removesuffix(".__init__")] = path
    return files


FILES = read_files()
CODE = {name: imports_of(name, path) for name, path in FILES.items()}


def target(imported: str) -> str | None:
    """The module of ours behind "triptych.loss.mse"; None for those of others."""
    while imported and imported not in CODE:
        imported = imported.rpartition(".")[0]
    return imported or None


def room(name: str) -> str:
    """The file or folder directly under the package."""
    return name.split(".")[1]


ARROWS = sorted(
    {
        (name, target(imported))
        for name, imports in CODE.items()
        for imported in imports
        if target(imported) not in (None, name)
    }
)


def allowed(importer: str) -> set[str]:
    """The rooms that a room may import."""
    if importer in PLUG_INS:
        return PLUG_INS[importer] | {importer}
    before = set(ORDER[: ORDER.index(importer) + 1])
    return before if importer == ORDER[-1] else before - set(PLUG_INS)


@pytest.mark.parametrize(("importer", "imported"), ARROWS)
def test_arrow_points_down(importer, imported):
    if importer not in OUTSIDE and imported not in OUTSIDE:
        assert room(imported) in allowed(room(importer)), f"{importer} may not import {imported}"


def test_arrows_are_found():
    assert ("triptych.modules.generation", "triptych.loss") in ARROWS
    assert ("triptych.data_modules.mixed", "triptych.data_modules.batching.collate") in ARROWS
    assert ("triptych.cli.main", "triptych.callbacks") in ARROWS


def test_every_room_is_in_the_list():
    assert {room(name) for name in FILES if name not in OUTSIDE} <= set(ORDER)


def test_no_cycle():
    TopologicalSorter({name: {b for a, b in ARROWS if a == name} for name in CODE}).prepare()


@pytest.mark.parametrize(
    "name",
    [n for n in CODE if n not in OUTSIDE and room(n) in ORDER[: ORDER.index("backbones") + 1]],
)
def test_no_lightning_below_the_training(name):
    assert not [i for i in CODE[name] if "lightning" in i.split(".")[0]]


def test_shapes_world_imports_prompts_in_its_tokenizer_only():
    for name, imports in CODE.items():
        if name.startswith("triptych.shapes_world.") and not name.endswith(".tokenizer"):
            assert not [i for i in imports if i.startswith(("transformers", "triptych.prompts"))]


def test_serving_packages_do_not_know_each_other():
    for importer, imported in ARROWS:
        pair = {f"triptych.serving.{part}" for part in ("http", "webui")}
        found = {p for p in pair for name in (importer, imported) if name.startswith(p)}
        assert found != pair, f"{importer} may not import {imported}"


@pytest.mark.parametrize("name", [n for n, path in FILES.items() if path.name == "__init__.py"])
def test_package_docstring_lists_its_modules(name):
    there = {
        module.rpartition(".")[2]
        for module in FILES
        if module.rpartition(".")[0] == name and not module.endswith("__main__")
    } - (set(PLUG_INS) if name == "triptych" else set())
    docstring = ast.get_docstring(ast.parse(FILES[name].read_text()), clean=False) or ""
    listed = set(re.findall(r"^ *(\w+)  +\S", docstring, re.M))
    assert listed == there

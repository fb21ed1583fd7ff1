"""Who knows whom: every import in the code points down, and nothing runs in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {"triptych": "src/triptych"} | {
    f"triptych.{folder}": folder for folder in ("callbacks", "data_modules")
}
# A room may import its own layer and the layers above it in this list, but for EXCEPTIONS.
LAYERS = [
    [
        "atomic_write",
        "contracts",
        "documents",
        "errors",
        "finite",
        "image_headers",
        "image_modes",
        "image_reader",
        "image_urls",
        "limits",
        "listing",
        "picture_settings",
        "precision",
        "randomness",
        "resources",
        "signals",
        "squares",
        "standard_streams",
        "streams",
        "texts",
        "tokens",
        "version",
        "writing",
    ],
    [
        "loss",
        "sampler",
        "solvers",
        "prompts",
        "prompt_files",
        "pictures",
        "messages",
        "nulls",
        "parser_errors",
        "parser_settings",
        "pipeline_settings",
        "pretrained",
        "sheets",
        "freezing",
        "sharding",
        "trust",
        "turns",
        "quantizing",
    ],
    ["backbones", "weights", "shapes", "flops"],
    ["modules"],
    ["loading", "ranks", "run_folder", "strategies", "trainer_flags"],
    ["pipeline"],
    ["evaluation", "serving", "budget"],
    ["data_features"],
    ["data_commands", "using"],
    ["measuring"],
    ["commands", "lightning_cli", "pretrain"],
    ["cli"],
    ["__main__"],
]
COMPOSITION_ROOT = {
    "cli": {"callbacks", "data_modules"},
    "data_commands": {"data_modules"},
    "data_features": {"data_modules"},
}
EXCEPTIONS = {
    "data_modules": {
        *("atomic_write", "contracts", "documents", "errors", "image_headers", "image_modes"),
        "image_reader",
        *(
            "listing",
            "pictures",
            "prompts",
            "randomness",
            "shapes",
            "signals",
            "squares",
            "texts",
            "tokens",
            "writing",
        ),
    },
    "callbacks": {
        *("atomic_write", "contracts", "documents", "errors", "pictures", "ranks", "run_folder"),
        *("sheets", "sampler", "sharding", "signals", "weights"),
    },
    "shapes": {"documents", "prompts", "writing"},  # of prompts the tokenizer alone, see below
    "backbones": {
        *("contracts", "documents", "finite", "limits", "loss", "pretrained", "prompts"),
        *("randomness", "resources", "sampler", "solvers"),
    },
    "modules": {room for layer in LAYERS[:3] for room in layer} - {"shapes"},
    "ranks": {"errors", "signals"},
    "strategies": {"contracts", "ranks", "sharding", "weights"},
    "loading": {room for layer in LAYERS[:4] for room in layer} - {"shapes"},
    "pipeline": {room for layer in LAYERS[:5] for room in layer} - {"shapes"},
}


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


def read_code() -> dict[str, set[str]]:
    """Module name -> what it imports, for every file of the package."""
    files = {}
    for package, folder in SOURCES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            files[".".join([package, *parts]).removesuffix(".__init__")] = path
    return {name: imports_of(name, path) for name, path in files.items()}


CODE = read_code()


def target(imported: str) -> str | None:
    """The module of ours behind "triptych.loss.mse"; None for other people's."""
    while imported and imported not in CODE:
        imported = imported.rpartition(".")[0]
    return imported or None


def room(name: str) -> str:
    """The file or folder under src/triptych (or callbacks, data_modules) that a module is in."""
    return name.split(".")[1] if "." in name else "version"  # triptych/__init__ names the version


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
    if importer in EXCEPTIONS:
        return EXCEPTIONS[importer] | {importer}
    for number, layer in enumerate(LAYERS):
        if importer in layer:
            plug_in = COMPOSITION_ROOT.get(importer, set())
            return {room for layer in LAYERS[: number + 1] for room in layer} | plug_in
    raise AssertionError(f"{importer} has no layer yet: give it one in LAYERS")


@pytest.mark.parametrize(("importer", "imported"), ARROWS)
def test_arrow_points_down(importer, imported):
    assert room(imported) in allowed(room(importer)), f"{importer} may not import {imported}"


def test_arrows_are_found():
    assert ("triptych.modules.generation", "triptych.loss") in ARROWS
    assert ("triptych.data_modules.module", "triptych.data_modules.batches") in ARROWS
    assert ("triptych.cli", "triptych.callbacks") in ARROWS


def test_no_cycle():
    TopologicalSorter({name: {b for a, b in ARROWS if a == name} for name in CODE}).prepare()


@pytest.mark.parametrize("name", [n for n in CODE if room(n) in sum(LAYERS[:3], [])])
def test_no_lightning_below_the_modules(name):
    assert not [i for i in CODE[name] if "lightning" in i.split(".")[0]]


def test_shapes_world_knows_the_model_in_its_tokenizer_only():
    for name, imports in CODE.items():
        if room(name) == "shapes" and name != "triptych.shapes.tokenizer":
            assert not [i for i in imports if i.startswith(("transformers", "triptych.prompts"))]

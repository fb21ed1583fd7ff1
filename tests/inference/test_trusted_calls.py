"""Paths that no output shows, and calls of libraries that could bring code."""

import ast
import shutil

import pytest
from builders import ROOT

from triptych.cli.main import main
from triptych.utils.paths import presets
from triptych.utils.png_metadata import read_metadata, shown_name

TINY = presets()["tiny"].resolve()

# --- what is passed on ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["absolute", "relative", "here"])
def test_images_and_results_hold_no_model_paths(way, tmp_path, monkeypatch):
    place = tmp_path / "private" / "my-model"
    place.mkdir(parents=True)
    shutil.copy(TINY, place / "model.yaml")
    shutil.copy(ROOT / "docs/images/samples.png", place / "mine.png")
    monkeypatch.chdir(place if way == "here" else place.parent)
    source = {"absolute": str(place), "relative": "./my-model/", "here": "."}[way]
    short = ["--num-inference-steps", "1", "--decoder-num-inference-steps", "1", "--from", source]
    main(["generate", "a red circle", *short, "-o", str(tmp_path / "made")])
    main(["edit", str(place / "mine.png"), "add a star", *short, "-o", str(tmp_path / "edited")])
    files = [each for each in tmp_path.glob("*ed/*") if each.is_file() and each.name != "grid.png"]
    files += list((tmp_path / "made").iterdir())
    assert len(files) >= 4
    for file in files:
        content = file.read_bytes()
        assert b"private" not in content and str(tmp_path).encode() not in content
    settings = read_metadata(next((tmp_path / "made").glob("0*.png")))
    assert settings["model"] == "my-model" and len(settings["weights"]) == 16


def test_names_of_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    sources = ["tiny", "Qwen/Qwen2.5-VL", "/a/b/c/", "x/", "x/..", "/"]
    names = ["tiny", "Qwen/Qwen2.5-VL", "c", "x", tmp_path.name, "model"]
    assert list(map(shown_name, sources)) == names


# --- what the code may call -----------------------------------------------------------------------


SOURCES = [
    path
    for folder in ("src", "callbacks", "data_modules")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def calls() -> list[tuple[str, str, ast.Call]]:
    """(place, dotted name, call) of all calls in the code."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                found.append((place, ast.unparse(node.func), node))
    return found


CALLS = calls()
OURS = ("UnifiedPipeline.from_pretrained",)


def given(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def test_every_from_pretrained_refuses_remote_code():
    bringing = [
        (place, call)
        for place, name, call in CALLS
        if name.endswith(("from_pretrained", "load_dataset", "hub.load"))
        and not name.endswith(("_from_pretrained", *OURS))
    ]
    assert bringing
    for place, call in bringing:
        assert given(call, "trust_remote_code") == "False", place


def test_pickles_are_read_only_by_checked_readers():
    for place, name, call in CALLS:
        if name == "torch.load":
            assert given(call, "weights_only") == "True", place
        if name in ("np.load", "numpy.load"):
            assert given(call, "allow_pickle") == "False", place
        last = name.rpartition(".")[2]
        assert last not in ("read_pickle", "FileSystemReader", "dcp_to_torch_save"), place
        assert not name.startswith(("pickle.load", "joblib.", "dill.", "shelve.")), place
        assert not name.startswith("sharded_files.load"), place


def test_documents_are_read_by_their_reader():
    for place, name, _ in CALLS:
        if place.startswith("src/triptych/utils/documents.py"):
            continue
        assert name not in ("yaml.safe_load", "yaml.unsafe_load", "json.load", "OmegaConf.load"), (
            place
        )
        if name == "yaml.load":
            assert place.startswith("src/triptych/inference/trusted_config.py"), place

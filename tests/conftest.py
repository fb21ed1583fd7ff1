"""What many tests read and none changes: a small shard folder, random weight files."""

import io
import sys

import pytest


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory):
    """The shapes world in small: folders train (64), eval (16), unseen (8) and instruct (16)."""
    from triptych.shapes.shards import ensure_shapes

    folder = tmp_path_factory.mktemp("world") / "shapes"
    return ensure_shapes(folder, train=64, evaluation=16, unseen=8, instruct=16)


@pytest.fixture(scope="session")
def samples(shapes_folder):
    """The training samples of the small shard folder."""
    from triptych.data_modules import ShardFolder

    return ShardFolder(shapes_folder / "train").open()


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weight files of `builders.unified`, one a label, random."""
    from builders import write_weights

    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def tokenizer():
    """The tiny preset's tokenizer."""
    from builders import understander

    return understander().tokenizer


@pytest.fixture(scope="session")
def pipe():
    """The tiny preset; no test changes it."""
    from triptych.pipeline import UnifiedPipeline

    return UnifiedPipeline.from_pretrained("tiny", device="cpu")


@pytest.fixture
def triptych(pipe, monkeypatch, capsys, tmp_path):
    """A function: runs a command in an empty folder -> (status, stdout, stderr), and counts."""
    from triptych.cli import main
    from triptych.pipeline import UnifiedPipeline

    monkeypatch.chdir(tmp_path)
    loaded = []

    def load(*options, **more):
        loaded.append((options, more))
        return pipe

    monkeypatch.setattr(UnifiedPipeline, "from_pretrained", load)

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    run.loaded = loaded
    return run

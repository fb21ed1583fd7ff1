"""Shared fixtures that no test changes: a small shard folder, random weight files."""

import io
import logging
import sys

import pytest

QUIETED = ("lightning", "lightning.pytorch", "lightning.fabric")
"""Loggers that a command in this process sets to warnings only."""


@pytest.fixture(autouse=True)
def _log_levels():
    levels = {name: logging.getLogger(name).level for name in QUIETED}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory):
    """The shapes world in small: folders train (64), eval (16), unseen (8) and instruct (16)."""
    from triptych.shapes_world.shards import ensure_shapes

    folder = tmp_path_factory.mktemp("world") / "shapes"
    return ensure_shapes(folder, train=64, evaluation=16, unseen=8, instruct=16)


@pytest.fixture(scope="session")
def samples(shapes_folder):
    """The training samples of the small shard folder."""
    from triptych.data_modules import ShardFolder

    return ShardFolder(shapes_folder / "train").open()


@pytest.fixture(scope="session")
def edits_folder(tmp_path_factory):
    """Edits of the shapes world in small: folders train (12) and eval (12)."""
    from triptych.shapes_world.shards import ensure_edits

    return ensure_edits(tmp_path_factory.mktemp("edits") / "edits", train=12, evaluation=12)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weight files of `builders.unified`, one a label, random."""
    from builders import write_weights

    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def forks():
    """Runs command lines in forks of one process, see `forked_commands.Forks`."""
    from forked_commands import Forks

    with Forks() as running:
        yield running


@pytest.fixture(scope="session")
def tokenizer():
    """The tiny preset's tokenizer."""
    from builders import vlm

    return vlm().tokenizer


@pytest.fixture(scope="session")
def pipe():
    """The tiny preset; no test changes it."""
    from triptych.inference.pipeline import UnifiedPipeline

    return UnifiedPipeline.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A CLIP of random weights that reads 24 letters."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "projection_dim": 8}
    text = {"vocab_size": len(words), "max_position_embeddings": 24}
    text |= {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=sizes | text,
            vision_config=sizes | {"image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    )
    model.save_pretrained(folder)
    side = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    CLIPProcessor(CLIPImageProcessor(**side), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """Random weights in the layout of the file that torch-fidelity publishes."""
    import torch

    from triptych.evaluation.image_metrics.inception import Inception

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    tensors = Inception().network.state_dict()
    torch.save(tensors | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


@pytest.fixture
def triptych(pipe, monkeypatch, capsys, tmp_path):
    """A function: runs a command in an empty folder -> (status, stdout, stderr), and counts."""
    from triptych.cli.main import main
    from triptych.inference.pipeline import UnifiedPipeline

    monkeypatch.chdir(tmp_path)
    loaded = []

    def load(*options, **more):
        loaded.append((options, more))
        return pipe

    monkeypatch.setattr(UnifiedPipeline, "from_pretrained", load)

    def run(*arguments, stdin=""):
        content = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    run.loaded = loaded
    return run

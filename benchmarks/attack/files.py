"""Attacks by files and folders, on real command lines; a process each.

Each runs where a stranger could have written: the current folder is full of modules that write a
marker. An attack is held if the command ends in time, with a sentence and exit status 1 or 2 (or,
where nothing is wrong with what was asked, 0), without the marker and within its memory.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

SECONDS = 60
MOST_MB = 2000
MODULES = ["simplejpeg", "yaml", "json", "torch", "PIL", "webdataset", "stranger", "sitecustomize"]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)

Attack = Callable[[], str | None]


@dataclass
class Command:
    """A command line that must end in a sentence; `run` says what went wrong, else None.

    Args:
        words: after `triptych`.
        folder: where it runs.
        marker: a file that only a stranger's code would write.
        statuses: exit statuses that are right.
    """

    words: list[str]
    folder: Path
    marker: Path
    statuses: tuple[int, ...] = (1, 2)
    peak_mb: float = 0.0
    """Largest resident size of the process, after `run`."""

    def run(self) -> str | None:
        with tempfile.TemporaryFile("w+") as answers, tempfile.TemporaryFile("w+") as errors:
            answers.write("y\n" * 10)
            answers.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-m", "triptych", *self.words],
                cwd=self.folder,
                stdin=answers,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
            status = self._wait(process)
            errors.seek(0)
            said = errors.read().strip()
        if self.marker.exists():
            self.marker.unlink()
            return "the stranger's code ran"
        if status is None:
            return f"it still ran after {SECONDS} s"
        if "Traceback" in said:
            return f"a traceback: {said.splitlines()[-1]}"
        if status not in self.statuses:
            return f"exit status {status}: {said[-200:]}"
        if self.peak_mb > MOST_MB:
            return f"it took {self.peak_mb:.0f} MB"
        return None

    def _wait(self, process: subprocess.Popen) -> int | None:
        """Its exit status, or None if it had to be killed; notes its peak."""
        until, killed = time.monotonic() + SECONDS, False
        while True:
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                process.returncode = os.waitstatus_to_exitcode(status)
                self.peak_mb = used.ru_maxrss / 1024
                return None if killed else process.returncode
            if time.monotonic() > until and not killed:
                process.kill()
                killed = True
            time.sleep(0.02)


class _Code:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


def attacks(folder: Path) -> Iterator[tuple[str, Attack]]:
    """(name, attack) of each; an attack returns None if it was held, else a sentence.

    Args:
        folder: an empty one, to write the strangers' files to.
    """
    from triptych.utils.paths import presets

    marker, here = folder / "it-ran", folder / "here"
    here.mkdir(parents=True)
    for name in MODULES:
        (here / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass X: pass\n")
    tiny = presets()["tiny"].read_text()
    command = partial(Command, folder=here, marker=marker)

    def attack(name: str, *words: str | Path, **options) -> tuple[str, Attack]:
        return name, command([str(word) for word in words], **options).run

    yield attack("modules in the current folder", "data", "inspect", ".")
    yield attack("modules in the current folder, fit", "fit", "--config", "nowhere.yaml")

    sharded = _sharded(here / "sharded", tiny, marker)
    checkpoint = sharded / "checkpoints" / "1.ckpt"
    for name, words in {
        "export": ["export", checkpoint],
        "generate": ["generate", "x", "--from", sharded],
        "serve": ["serve", "--port", "0", "--from", sharded],
        "app": ["app", "--port", "0", "--from", sharded],
    }.items():
        yield attack(f"pickled index, {name}", *words)

    for name, text in {
        "empty": "",
        "a list": "- 1",
        "a number": "7",
        "broken": "model: {",
        "nested aliases": BOMB,
        "nested deep": "[" * 500_000,
        "a module": "model: {encoder: {class_path: stranger.X}}",
        "a module as text": "model: {encoder: stranger.X}",
        "a module in pieces": "model: {preset: stranger, encoder: '${model.preset}.X'}",
        "the environment": "model: {preset: '${oc.env:HOME}'}",
    }.items():
        place = here / f"model-{name.replace(' ', '-')}"
        place.mkdir()
        (place / "model.yaml").write_text(text)
        yield attack(f"model.yaml: {name}", "generate", "x", "--from", place)
    os.mkfifo(here / "pipe.yaml")
    (here / "piped").mkdir()
    os.mkfifo(here / "piped" / "model.yaml")
    os.mkfifo(here / "piped" / "a.tar")
    yield attack("model.yaml: a pipe", "generate", "x", "--from", here / "piped")
    yield attack("--config: a pipe", "fit", "--config", here / "pipe.yaml")
    yield attack("a.tar: a pipe", "data", "inspect", here / "piped")
    (here / "bomb.yaml").write_text(BOMB)
    yield attack("--config: nested aliases", "fit", "--config", here / "bomb.yaml")

    tokenizer = _tokenizer(here / "tokenizer", marker)
    flag = f"--model.understanding.vlm.tokenizer={tokenizer}"
    short = ["--num-inference-steps", "1", "--decoder-num-inference-steps", "1"]
    yield attack("a tokenizer with code", "generate", "x", *short, flag, statuses=(0, 1))

    for name, index in {
        "a list": "[1]",
        "a number for a file": '{"weight_map": {"a": 7}}',
        "lists for files": '{"weight_map": {"a": ["b"]}}',
        "nested deep": "[" * 500_000,
        "outside": '{"weight_map": {"a": "../../x.safetensors"}}',
    }.items():
        place = here / f"index-{name.replace(' ', '-')}"
        place.mkdir()
        (place / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
        (place / "model.safetensors.index.json").write_text(index)
        yield attack(f"index.json: {name}", "convert", place, here / "out")

    lines = here / "lines.jsonl"
    lines.write_text('{"prompt": ' + "[" * 500_000)
    yield attack("prompts: a line nested deep", "generate", "--prompts", lines)
    (here / "rows.jsonl").write_text('{"image": "a.png", "text": ' + "[" * 500_000 + "\n")
    yield attack("data pack: a line nested deep", "data", "pack", here / "rows.jsonl", "--out", "o")

    huge = here / "huge.png"
    huge.write_bytes(_png(16_000, 10_000))
    yield attack(
        "160 megapixels, reconstruct", "reconstruct", huge, "--decoder-num-inference-steps", "1"
    )
    yield attack("160 megapixels, chat", "chat", huge, "what is it?")

    yield attack("100,000,000 steps", "generate", "x", "--num-inference-steps", "100000000")
    yield attack("1,000,000,000 images", "generate", "x", "-n", "1000000000")
    yield attack("a batch of 1,000,000,000", "generate", "x", "--batch-size", "1000000000")


def _sharded(run: Path, config: str, marker: Path) -> Path:
    """A run's folder with a sharded checkpoint whose index is a pickle, with its manifest."""
    import torch

    from triptych.checkpoints import atomic_checkpoint

    checkpoint = run / "checkpoints" / "1.ckpt"
    partial_folder = atomic_checkpoint.temporary_path(checkpoint)
    partial_folder.mkdir(parents=True)
    (partial_folder / ".metadata").write_bytes(pickle.dumps(_Code(marker)))
    (partial_folder / "__0_0.distcp").write_bytes(pickle.dumps(_Code(marker)))
    torch.save({"global_step": 1}, partial_folder / "meta.pt")
    atomic_checkpoint.commit_folder(partial_folder, checkpoint)
    (run / "config.yaml").write_text(config)
    return run


def _tokenizer(folder: Path, marker: Path) -> Path:
    """The tiny preset's tokenizer with a module beside it, which its configuration names."""
    from triptych.utils.paths import ASSETS

    shutil.copytree(ASSETS / "tiny" / "tokenizer", folder)
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    content |= {
        "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        "tokenizer_class": "Evil",
    }
    path.write_text(json.dumps(content))
    return folder


def _png(width: int, height: int) -> bytes:
    """A PNG of one grey in few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    packed = zlib.compressobj(9)
    row = bytes(1 + width)
    pixels = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )

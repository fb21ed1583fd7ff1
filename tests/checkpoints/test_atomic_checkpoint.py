"""The last good state survives a full disk, a read-only folder, a killed save, a flipped byte."""

import errno
import json
import logging
import os
import re
import resource
import signal
from pathlib import Path

import pytest
import torch
from processes import exit_status, forked

from triptych.callbacks._checkpoint_io import BackgroundCheckpointIO, DurableCheckpointIO
from triptych.checkpoints import atomic_checkpoint
from triptych.checkpoints.training_checkpoint import read_checkpoint
from triptych.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def state(step):
    return {"global_step": step, "state_dict": {"w": torch.full((50_000,), float(step))}}


@pytest.fixture
def run(tmp_path):
    """runs/version_0/checkpoints with the steps 1 and 2, saved in this order."""
    folder = tmp_path / "version_0" / "checkpoints"
    for step in (1, 2):
        DurableCheckpointIO().save_checkpoint(state(step), folder / f"{step}.ckpt")
    return folder


def step_of(path):
    return read_checkpoint(path)["global_step"]


def newest(run):
    return atomic_checkpoint.latest([run.parent.parent])


def test_a_state_is_whole_has_a_manifest_and_leaves_nothing_else(run):
    assert sorted(p.name for p in run.iterdir()) == [
        "1.ckpt",
        "1.ckpt.json",
        "2.ckpt",
        "2.ckpt.json",
    ]
    note = json.loads((run / "2.ckpt.json").read_text())["files"]["2.ckpt"]
    assert note["size"] == (run / "2.ckpt").stat().st_size and len(note["sha256"]) == 64
    assert newest(run) == run / "2.ckpt" and step_of(run / "2.ckpt") == 2


def test_a_flipped_byte_anywhere_is_found_and_the_state_before_is_taken(run, caplog):
    path = run / "2.ckpt"
    good = path.read_bytes()
    for place in (0, 500, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with caplog.at_level(logging.WARNING):
            assert newest(run) == run / "1.ckpt"
        (said,) = caplog.messages
        assert re.match(r".*2\.ckpt is damaged: .* The checkpoint before it is taken\.$", said)
        caplog.clear()
        with pytest.raises(UserError, match=r"2\.ckpt is damaged: 2\.ckpt is not as it was"):
            read_checkpoint(path)


@pytest.mark.parametrize("content", ["", "{", '{"files": 3}', "[]", '{"saved": 1}'])
def test_a_damaged_manifest_is_found(run, content):
    (run / "2.ckpt.json").write_text(content)
    assert newest(run) == run / "1.ckpt"
    with pytest.raises(UserError, match=r"manifest of the checkpoint .*2\.ckpt is damaged"):
        atomic_checkpoint.check(run / "2.ckpt")


def test_a_cut_off_or_missing_file_is_found(run):
    os.truncate(run / "2.ckpt", 1000)
    assert newest(run) == run / "1.ckpt"
    (run / "1.ckpt").unlink()
    assert newest(run) is None


def test_without_a_manifest_a_state_does_not_count_but_can_be_named(run):
    (run / "2.ckpt.json").unlink()
    assert newest(run) == run / "1.ckpt"
    assert step_of(run / "2.ckpt") == 2


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 cut off"])
def test_invalid_checkpoint_is_refused_in_one_sentence(content, tmp_path):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.ckpt is no checkpoint"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="holds code beside data"):
        DurableCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


def test_every_torch_load_is_weights_only():
    calls = [
        (path, call)
        for folder in ("src", "callbacks", "data_modules", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", path.read_text())
    ]
    assert calls
    assert not [(p, c) for p, c in calls if not re.search(r"weights_only=(True|weights_only)", c)]


# --- a disk that does not take it -----------------------------------------------------------------


def test_a_full_disk_is_one_sentence_and_the_last_state_stays(run, monkeypatch):
    write = atomic_checkpoint.HashingFile.write

    def full(self, data):
        if self.size > 100_000:
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.error
        return write(self, data)

    monkeypatch.setattr(atomic_checkpoint.HashingFile, "write", full)
    with pytest.raises(UserError, match=r"3\.ckpt could not be written \(No space left on device"):
        DurableCheckpointIO().save_checkpoint(state(3), run / "3.ckpt")
    assert not list(run.glob("3*")) and newest(run) == run / "2.ckpt"


def test_a_limit_of_the_system_on_the_size_of_a_file(run):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"3\.ckpt could not be written \(File too large"):
            DurableCheckpointIO().save_checkpoint(state(3), run / "3.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(run.glob("3*")) and newest(run) == run / "2.ckpt"


def test_a_read_only_folder_is_one_sentence(run, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", refuse)  # root may write wherever it wants
    with pytest.raises(UserError, match=r"3\.ckpt could not be written \(Read-only file system"):
        DurableCheckpointIO().save_checkpoint(state(3), run / "3.ckpt")
    monkeypatch.undo()
    assert newest(run) == run / "2.ckpt"


def test_an_error_that_is_none_of_the_disk_is_not_called_one(run):
    with pytest.raises(ZeroDivisionError):
        atomic_checkpoint.write(run / "3.ckpt", lambda file: 1 / 0)
    assert not list(run.glob("3*"))


@pytest.mark.parametrize("when", ["save", "rename", "manifest"])
def test_a_save_that_is_killed_leaves_the_last_state(when, run):
    """In a process of its own, which ends without a chance to clean up."""

    def work():
        replace = os.replace

        def end(*names):
            if when == "manifest":
                replace(*names)
            os._exit(9)

        if when == "save":
            atomic_checkpoint.HashingFile.write = lambda self, data: (
                self.file.write(b"half"),
                os._exit(9),
            )
        else:
            atomic_checkpoint.os.replace = end
        atomic_checkpoint.write(run / "2.ckpt", lambda file: file.write(b"x" * 10_000))

    assert exit_status(forked(work)) == 9
    left = newest(run)
    assert left == (run / "2.ckpt" if when == "save" else run / "1.ckpt")
    assert step_of(left) == (2 if when == "save" else 1)


# --- folders, links, removal ----------------------------------------------------------------------


def folder_state(partial, text):
    (partial / "inner").mkdir(parents=True)
    (partial / "inner" / "__0_0.distcp").write_bytes(text * 1000)
    (partial / "meta.pt").write_bytes(text)


def test_a_folder_gets_the_same_treatment(run, caplog):
    path = run / "3.ckpt"
    folder_state(atomic_checkpoint.temporary_path(path), b"abc")
    assert newest(run) == run / "2.ckpt"
    atomic_checkpoint.commit_folder(atomic_checkpoint.temporary_path(path), path)
    assert newest(run) == path and not atomic_checkpoint.temporary_path(path).exists()
    shard = path / "inner" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1] + b"X")
    assert newest(run) == run / "2.ckpt"
    assert "3.ckpt/inner/__0_0.distcp is not as it was written" in caplog.text
    atomic_checkpoint.remove(path)
    assert not path.exists() and not atomic_checkpoint.manifest_of(path).exists()


def test_the_name_of_a_folder_can_be_taken_again(run):
    for text in (b"old", b"new"):
        folder_state(atomic_checkpoint.temporary_path(run / "3.ckpt"), text)
        atomic_checkpoint.commit_folder(
            atomic_checkpoint.temporary_path(run / "3.ckpt"), run / "3.ckpt"
        )
    assert (run / "3.ckpt" / "meta.pt").read_bytes() == b"new" and newest(run) == run / "3.ckpt"


def test_a_link_moves_in_one_step_and_stands_for_its_state(run):
    for step in (1, 2):
        atomic_checkpoint.link(run / f"{step}.ckpt", run / "last.ckpt")
        assert step_of(run / "last.ckpt") == step
    assert os.readlink(run / "last.ckpt") == "2.ckpt"
    os.truncate(run / "2.ckpt", 10)
    with pytest.raises(UserError, match=r"2\.ckpt is damaged"):
        read_checkpoint(run / "last.ckpt")


# --- behind the training --------------------------------------------------------------------------


def test_background_save_holds_the_state_of_its_request(run):
    io = BackgroundCheckpointIO()
    content = state(3)
    io.save_checkpoint(content, run / "3.ckpt")
    content["state_dict"]["w"].zero_()
    content["global_step"] = 0
    io.link(run / "3.ckpt", run / "last.ckpt")
    io.remove_checkpoint(run / "1.ckpt")
    io.teardown()
    assert torch.equal(
        read_checkpoint(run / "last.ckpt")["state_dict"]["w"], torch.full((50_000,), 3.0)
    )
    assert step_of(run / "last.ckpt") == 3 and not (run / "1.ckpt").exists()


@pytest.mark.parametrize("call", ["save_checkpoint", "teardown"])
def test_a_background_save_that_fails_is_raised_and_removes_nothing(call, run, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    arguments = (state(4), run / "4.ckpt") if call == "save_checkpoint" else ()
    io = BackgroundCheckpointIO()
    monkeypatch.setattr(os, "fsync", refuse)
    io.save_checkpoint(state(3), run / "3.ckpt")
    io.remove_checkpoint(run / "1.ckpt")
    with pytest.raises(UserError, match="No space left on device"):
        getattr(io, call)(*arguments)
    io.teardown()
    assert (run / "1.ckpt").exists() and newest(run) == run / "2.ckpt"

"""Each run has its own folder, with concurrent runs and wrong clocks."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import yaml
from builders import ROOT, STAGE2, config_words
from processes import exit_status, forked, started
from small_stage2 import SMALL_MODEL

from triptych.checkpoints import atomic_checkpoint
from triptych.checkpoints.published.staging import Staging
from triptych.checkpoints.run_folder import sweep, take
from triptych.utils.atomic_write import Lock, replacing
from triptych.utils.errors import UserError

SMALL = {
    "model": SMALL_MODEL,
    "data": {"init_args": {"batch_size": 2}},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 3,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "triptych.callbacks.EMA"},
            {
                "class_path": "triptych.callbacks.Checkpoint",
                "init_args": {"every_n_train_steps": 2},
            },
            {"class_path": "triptych.callbacks.ExportWeights"},
        ],
    },
}
STAGE = "runs/tiny/stage2"
FILES = {"config.yaml", "hparams.yaml", "metrics.csv", "weights.safetensors", "checkpoints"}
FILES |= {"weights_ema.safetensors", ".lock"}


@pytest.fixture(scope="module")
def triptych(forks):
    return forks


@pytest.fixture(scope="module")
def words(tmp_path_factory, shapes_folder):
    """A short stage 2 with the loggers of conf/base.yaml."""
    path = tmp_path_factory.mktemp("small") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return [*config_words(*STAGE2, "data/folder", path), f"--data.shards={shapes_folder / 'train'}"]


@pytest.fixture(scope="module")
def three(triptych, words, tmp_path_factory):
    """The folder in which three equal runs were started at once, and what they said."""
    folder = tmp_path_factory.mktemp("three")
    return folder, triptych.together(folder, *[["fit", *words]] * 3)


def contents(folder):
    """Relative path -> SHA-256 of every file below; links as what they point to."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def versions(folder):
    return sorted(path.name for path in (folder / STAGE).glob("version_*"))


def test_three_runs_started_at_once_have_three_folders(three):
    folder, ended = three
    assert [status for status, _ in ended] == [0, 0, 0], ended[0][1][-3000:]
    assert versions(folder) == ["version_0", "version_1", "version_2"]
    said = {output.splitlines()[-1].partition(":")[0] for _, output in ended}
    assert said == {f"run folder {STAGE}/version_{number}" for number in range(3)}
    for run in (folder / STAGE).glob("version_*"):
        names = [path.name for path in run.iterdir() if "tfevents" not in path.name]
        assert set(names) == FILES
        assert len(list(run.glob("*tfevents*"))) == 1
        steps = [line.split(",") for line in (run / "metrics.csv").read_text().split()]
        column = steps[0].index("step")
        assert sorted({row[column] for row in steps[1:]}) == ["0", "1", "2"]
        assert sorted(path.name for path in (run / "checkpoints").glob("*.ckpt")) == [
            *("00000002.ckpt", "00000003.ckpt", "last.ckpt"),
        ]


def test_newest_weights_name_their_run(three):
    folder, _ = three
    for name in ("weights.safetensors", "weights_ema.safetensors"):
        assert os.readlink(folder / STAGE / name) == f"version_2/{name}"


def test_equal_runs_leave_equal_files(three):
    folder, _ = three
    runs = [contents(folder / STAGE / name) for name in versions(folder)]
    for name in (
        *("weights.safetensors", "weights_ema.safetensors", "metrics.csv", "config.yaml"),
        *(f"checkpoints/{step:08d}.ckpt{end}" for step in (2, 3) for end in ("", ".json")),
    ):
        assert len({run[name] for run in runs}) == 1, name


@pytest.mark.slow
def test_run_from_a_saved_configuration_gets_its_own_folder(triptych, three, tmp_path):
    folder, _ = three
    before = contents(folder / STAGE / "version_0")
    config = yaml.safe_load((folder / STAGE / "version_0/config.yaml").read_text())
    assert [each["init_args"]["version"] for each in config["trainer"]["logger"]] == [None, None]
    config["trainer"]["logger"][0]["init_args"]["version"] = 0  # as it was recorded once
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    config["trainer"]["logger"][0]["init_args"]["save_dir"] = str(folder / "runs")
    again = ["fit", "--config", tmp_path / "config.yaml", "--trainer.max_steps=1"]
    known = versions(folder)
    status, said = triptych(folder, *again)
    assert status == 0, said[-3000:]
    assert f"{STAGE}/version_0 exists, and no run is written over" in said
    (new,) = set(versions(folder)) - set(known)
    assert said.splitlines()[-1].startswith(f"run folder {STAGE}/{new}:")
    assert contents(folder / STAGE / "version_0") == before


REFUSED = [
    (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt does not exist"),
    (["--ckpt_path={last}", "--seed_everything=5", "--trainer.max_steps=9"], "with the seed 0"),
    (["--model.weights.understanding=nope"], "nope does not exist"),
    (["--ckpt_path={last}", "--model.stage=stage3", "--trainer.max_steps=9"], "is of stage"),
    (["--data.shards=nowhere"], "nowhere does not exist"),
]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        *REFUSED[:2],
        pytest.param(*REFUSED[2], marks=pytest.mark.slow),
        *(pytest.param(*each, marks=pytest.mark.sweep) for each in REFUSED[3:]),
    ],
)
def test_a_refused_run_leaves_no_folder(flags, says, triptych, words, three, tmp_path):
    folder, _ = three
    last = folder / STAGE / "version_0/checkpoints/last.ckpt"
    flags = [flag.format(last=last) for flag in flags]
    status, said = triptych(tmp_path, "fit", *words, *flags)
    assert status == 1 and says in said.splitlines()[-1], said[-3000:]
    assert not list(tmp_path.glob("**/version_*"))


@pytest.mark.slow
def test_run_interrupted_at_its_end_is_completed_in_place(triptych, words, tmp_path):
    run = tmp_path / STAGE / "version_0"
    words = [*words, "--trainer.max_steps=2"]  # whose checkpoint comes before its row of the log
    assert triptych(tmp_path, "fit", *words)[0] == 0
    whole = contents(tmp_path)
    (run / "weights.safetensors").unlink()
    (tmp_path / STAGE / "weights_ema.safetensors").unlink()
    (run / "weights.safetensors.partial").write_bytes(b"cut off")
    log = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(log[:-1]))
    lock = Lock(run / ".lock")
    assert lock.acquire()
    status, said = triptych(tmp_path, "fit", *words, "--ckpt_path=auto")
    assert status == 1 and "version_0 is still at work in another process" in said
    lock.release()
    status, said = triptych(tmp_path, "fit", *words, "--ckpt_path=auto")
    assert status == 0, said[-3000:]
    assert contents(tmp_path) == whole
    status, said = triptych(tmp_path, "fit", *words, "--ckpt_path=auto", "--trainer.max_steps=3")
    assert status == 0 and versions(tmp_path) == ["version_0", "version_1"]
    assert {
        name: digest for name, digest in contents(tmp_path).items() if "version_0/" in name
    } == {name: digest for name, digest in whole.items() if "version_0/" in name}


@pytest.mark.slow
def test_a_run_is_done_when_its_time_is_up(triptych, words, tmp_path):
    flags = ["--trainer.max_time=00:00:00:01", "--trainer.max_steps=500"]
    for _ in range(2):
        status, said = triptych(tmp_path, "fit", *words, *flags, "--ckpt_path=auto")
        assert status == 0, said[-3000:]
        assert versions(tmp_path) == ["version_0"]
    steps = [path.stem for path in (tmp_path / STAGE).glob("version_0/checkpoints/0*.ckpt")]
    rows = (tmp_path / STAGE / "version_0/metrics.csv").read_text().split()
    last = rows[0].split(",").index("step")
    assert max(int(step) for step in steps) == int(rows[-1].split(",")[last]) + 1


@pytest.mark.slow
def test_a_validation_has_a_folder_of_its_own(triptych, words, three, shapes_folder):
    folder, _ = three
    before = contents(folder / STAGE / "version_0")
    config = folder / STAGE / "version_0/config.yaml"
    known = versions(folder)
    status, said = triptych(
        folder,
        *("validate", "--config", config, f"--data.val_shards={shapes_folder / 'eval'}"),
        *(f"--ckpt_path={STAGE}/version_0/checkpoints/last.ckpt", "--trainer.limit_val_batches=1"),
    )
    assert status == 0, said[-3000:]
    assert len(versions(folder)) == len(known) + 1
    assert contents(folder / STAGE / "version_0") == before


@pytest.mark.slow
def test_two_ranks_share_one_folder(triptych, words, tmp_path):
    """Started as torchrun does: each parses the command line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    environments = [{**where, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    two = ["fit", *words, "--trainer.devices=2", "--trainer.strategy=ddp", "--ckpt_path=auto"]
    for steps, made in ((2, ["version_0"]), (2, ["version_0"]), (3, ["version_0", "version_1"])):
        command = [*two, f"--trainer.max_steps={steps}"]
        ended = triptych.together(tmp_path, command, command, environments=environments)
        assert [status for status, _ in ended] == [0, 0], ended[0][1][-2000:] + ended[1][1][-2000:]
        assert versions(tmp_path) == made


# --- without a run --------------------------------------------------------------------------------


def test_version_numbers_increase_and_a_named_version_is_used_once(tmp_path, caplog):
    parents = [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "b/version_4").mkdir(parents=True)
    assert take(parents)[0] == 5
    assert (tmp_path / "a/version_5").is_dir() and (tmp_path / "b/version_5").is_dir()
    assert take(parents, 7)[0] == 7 and take(parents, "mine")[0] == "mine"
    for wanted, number in ((4, 8), (7, 9), ("mine", 10)):  # 4 is there in b alone
        assert take(parents, wanted)[0] == number
    assert not (tmp_path / "a/version_4").exists()
    assert "mine exists, and no run is written over" in caplog.text


def test_many_take_folders_at_once(tmp_path):
    """Each says its number on a pipe: every number comes once."""
    read, write = os.pipe()
    pids = [forked(lambda: os.write(write, f"{take([tmp_path])[0]} ".encode())) for _ in range(8)]
    assert [exit_status(pid) for pid in pids] == [0] * 8
    os.close(write)
    assert sorted(map(int, os.read(read, 1000).split())) == list(range(8))


def test_runs_that_end_at_once_agree_on_the_newest(tmp_path):
    for _ in range(5):
        pids = []
        for number in range(6):
            run = tmp_path / f"version_{number}"
            run.mkdir(exist_ok=True)
            (run / "weights.safetensors").unlink(missing_ok=True)

            def work(run=run, number=number):
                (run / "weights.safetensors").write_text(str(number))
                atomic_checkpoint.link_latest(tmp_path / "weights.safetensors")

            pids.append(forked(work))
        assert [exit_status(pid) for pid in pids] == [0] * 6
        assert (tmp_path / "weights.safetensors").read_text() == "5"
    assert not list(tmp_path.glob("*.partial"))


HOLD = """
import sys
from pathlib import Path
from triptych.utils.atomic_write import LOCK, Lock
assert Lock(Path(sys.argv[1]) / LOCK).acquire()
print("held", flush=True)
input()
"""


@contextmanager
def holding(folder):
    """Another process has the lock of `folder`, and is killed at the end of the block."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started([sys.executable, "-c", HOLD, folder], **pipes) as other:
        assert other.stdout.readline()
        yield


def test_lock_protects_partial_files_until_its_process_ends(tmp_path):
    run = take([tmp_path])[1]
    run.lock.release()
    partial = run.path / "x.ckpt.partial"
    with holding(run.path):
        partial.touch()
        sweep([tmp_path])
        assert partial.exists() and not Lock(run.path / ".lock").acquire()
    sweep([tmp_path])
    assert not partial.exists()


def test_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "deep" / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first" and len(list(path.parent.iterdir())) == 1
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"first" and len(list(path.parent.iterdir())) == 1


# --- the clock ------------------------------------------------------------------------------------


def saved(folder, number, steps, **manifest):
    """Checkpoints of a run; the later a step, the older its file, and its `saved` if given."""
    for step in steps:
        path = folder / f"version_{number}" / "checkpoints" / f"{step:08d}.ckpt"
        atomic_checkpoint.write(path, lambda file: file.write(b"state"), step)
        if manifest:  # of an older version: by the clock, and without a step
            note = json.loads(atomic_checkpoint.manifest_of(path).read_text())
            del note["step"]
            note["saved"] = 10**18 - step * 10**9 - number * 10**12
            atomic_checkpoint.manifest_of(path).write_text(json.dumps(note))
        then = time.time() - 1000 * step - 10**6 * number
        os.utime(path, (then, then))
        os.utime(atomic_checkpoint.manifest_of(path), (then, then))


@pytest.mark.parametrize("manifest", [{}, {"old": True}])
def test_the_newest_is_by_run_and_step_whatever_the_clock_says(manifest, tmp_path):
    def newest():
        found = atomic_checkpoint.latest([tmp_path])
        return found.parent.parent.name, int(found.stem)

    saved(tmp_path, 2, (4, 10), **manifest)
    assert newest() == ("version_2", 10)
    saved(tmp_path, 10, (2,), **manifest)  # a new run, and no older for its few steps
    assert newest() == ("version_10", 2)
    (tmp_path / "version_11" / "checkpoints").mkdir(parents=True)  # saved nothing
    (tmp_path / "mine" / "checkpoints").mkdir(parents=True)
    assert newest() == ("version_10", 2)
    os.truncate(tmp_path / "version_10" / "checkpoints" / "00000002.ckpt", 1)
    assert newest() == ("version_2", 10)
    one = atomic_checkpoint.latest([tmp_path / "version_2"], "checkpoints/*.ckpt")
    assert one.stem == "00000010"


def test_the_step_of_a_manifest_counts_more_than_the_name(tmp_path):
    folder = tmp_path / "version_0" / "checkpoints"
    for name, step in (("b", 3), ("a", 12), ("c", 7)):
        atomic_checkpoint.write(folder / f"{name}.ckpt", lambda file: file.write(b"state"), step)
    assert atomic_checkpoint.latest([tmp_path]).stem == "a"


def test_nothing_is_ordered_by_time_stamps():
    folders = ("src", "callbacks", "data_modules", "benchmarks")
    ordered = re.compile(r"key=[^\n]*(_mtime|_ctime|getmtime|getctime)|time_ns\(\)")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in files if ordered.search(path.read_text())]


# --- other folders that two commands may want at once ---------------------------------------------


def test_a_shapes_world_that_two_make_at_once_is_made_once(tmp_path):
    from triptych.shapes_world.shards import ensure_shapes

    def work():
        ensure_shapes(tmp_path / "shapes", train=16, evaluation=4, unseen=4, instruct=4)

    pids = [forked(work) for _ in range(3)]
    assert [exit_status(pid) for pid in pids] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(ValueError, match="is not a shapes data set"):
        ensure_shapes(tmp_path / "other", train=16, evaluation=4, unseen=4, instruct=4)


@pytest.mark.parametrize("what", ["pack", "convert"])
def test_a_folder_that_another_process_writes_is_refused(what, tmp_path, shapes_folder):
    folder = tmp_path / ("out.partial" if what == "convert" else "out")
    folder.mkdir()
    with holding(folder):
        with pytest.raises(UserError, match=r"another process is (making|writing to) .*out"):
            if what == "pack":
                from triptych.data_modules import ShardFolder
                from triptych.data_modules.tools.pack import pack

                pack(ShardFolder(shapes_folder / "eval").open(), folder, {}, samples_per_shard=8)
            else:
                Staging(tmp_path / "out", "plan", 1)
    assert Staging(tmp_path / "new", "plan", 1).write("name", lambda file: file.write(b"1"))

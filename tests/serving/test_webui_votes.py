"""Votes: none is lost, none counts twice, and the tally is right."""

import json
import threading

import pytest

from triptych.serving.webui.votes import Tally, Vote, Votes
from triptych.utils.errors import UserError

FEW, MANY = {"model": "tiny", "steps": 4}, {"model": "tiny", "steps": 30}


FIELDS = {
    "prompt": "a red circle",
    "seed": 7,
    "criterion": "overall",
    "a": FEW,
    "b": MANY,
    "left": "b",
    "vote": "b",
    "viewer": "Ada",
}


def vote(trial="1", **changes):
    return Vote(trial, **FIELDS | changes)


def test_a_vote_is_one_line_with_everything(tmp_path):
    votes = Votes(tmp_path / "new/votes.jsonl")
    assert votes.record(vote(viewer="Zoë"))
    lines = votes.path.read_text().splitlines()
    assert len(lines) == 1
    written = json.loads(lines[0])
    assert written.pop("time").endswith("+00:00")
    assert written == {**FIELDS, "trial": "1", "viewer": "Zoë"}


def test_a_double_click_counts_once(tmp_path):
    path = tmp_path / "votes.jsonl"
    assert Votes(path).record(vote())
    assert not Votes(path).record(vote(vote="a"))  # also after a restart
    assert Votes(path).tally(FEW, MANY, "overall") == Tally(0, 1, 0, 0)


def test_votes_that_come_at_once_are_all_kept(tmp_path):
    votes = Votes(tmp_path / "votes.jsonl")
    new = []
    threads = [
        threading.Thread(target=lambda n=n: new.append(votes.record(vote(str(n % 20)))))
        for n in range(40)
    ]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(new) == 20 == len(votes.read()) == len(votes.path.read_text().splitlines())


def test_a_torn_line_costs_no_other(tmp_path):
    votes = Votes(tmp_path / "votes.jsonl")
    votes.record(vote("1"))
    whole = votes.path.read_bytes()
    votes.path.write_bytes(whole + whole[:40])  # the machine died here
    votes.record(vote("2"))
    assert [each["trial"] for each in votes.read()] == ["1", "2"]


def test_a_side_is_the_same_in_either_place(tmp_path):
    votes = Votes(tmp_path / "votes.jsonl")
    for trial, choice in enumerate(["a", "b", "b", "b", "tie", "both bad"]):
        votes.record(vote(str(trial), vote=choice))
    votes.record(vote("swapped", a=MANY, b=FEW, vote="a"))
    votes.record(vote("another question", criterion="visual quality"))
    votes.record(vote("another pair", a={"model": "other"}))
    tally = votes.tally(FEW, MANY, "overall")
    assert tally == Tally(a=1, b=4, tie=1, both_bad=1)
    assert tally.share == 0.2
    assert tally.interval == pytest.approx((0.036, 0.624), abs=1e-3)  # R: binom.confint(1, 5)
    assert Tally(0, 0, 3, 1).share is None and Tally(0, 0, 3, 1).interval is None


def test_prompts_seen_by_a_viewer(tmp_path):
    votes = Votes(tmp_path / "votes.jsonl")
    votes.record(vote("1", prompt="a red circle"))
    votes.record(vote("2", prompt="a blue square", viewer="Bob"))
    assert votes.prompts_of("Ada", "overall") == {"a red circle"}
    assert votes.prompts_of("Ada", "visual quality") == set()


def test_a_place_that_takes_no_votes_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file/votes.jsonl"):
        with pytest.raises(UserError, match=f"cannot be saved in {path} .*--votes"):
            Votes(path)


def test_a_vote_that_was_not_written_may_be_given_again(tmp_path, monkeypatch):
    votes = Votes(tmp_path / "votes.jsonl")

    def full(number):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="No space left on device.*vote again"):
            votes.record(vote())
        votes.path.write_bytes(b"")  # nothing reached the disk
    assert votes.record(vote())


def test_a_file_that_was_moved_away_is_begun_again(tmp_path):
    votes = Votes(tmp_path / "votes.jsonl")
    votes.record(vote("1"))
    votes.path.rename(tmp_path / "old.jsonl")
    assert votes.tally(FEW, MANY, "overall") == Tally(0, 0, 0, 0)
    assert votes.record(vote("2"))
    assert [each["trial"] for each in votes.read()] == ["2"]

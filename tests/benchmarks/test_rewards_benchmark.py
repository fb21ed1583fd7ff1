"""The table of learning from rewards: what is made is not made again, and its last line."""

import json
import sys

import pytest
import rewards


@pytest.fixture
def commands(monkeypatch):
    """Commands that were run; a run scores what its kind does."""
    found = []

    def triptych(parsed, name, arguments):
        found.append((name, arguments))
        if arguments[0] == "eval":
            value = {"start": 0.5, "rl-re": 0.9, "contr": 0.6}[name[:5]]
            mean = {"mean": value}
            scores = {"shape_eval": mean, "shape_eval_unseen": mean, "question_answering": mean}
            (parsed.runs / f"{name}-{parsed.captions}.json").write_text(
                json.dumps({"scores": scores})
            )
            return
        run = parsed.runs / name / "version_0"
        run.mkdir(parents=True)
        (run / "weights.safetensors").touch()
        header = "train/reward,train/diversity,train/reference_distance"
        (run / "metrics.csv").write_text(f"{header}\n0.1,2.0,0.0\n0.8,1.8,0.1\n")

    monkeypatch.setattr(rewards, "triptych", triptych)
    monkeypatch.setattr(rewards, "flops_of_a_step", lambda: (30.0, 10.0))
    return found


def test_the_last_line_and_a_second_call(commands, tmp_path, monkeypatch, capsys):
    for made in (1 + 2 + 2 + 1, 0):
        commands.clear()
        monkeypatch.setattr(sys, "argv", ["rewards.py", "--quick", "--runs", str(tmp_path)])
        rewards.main()
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert len(commands) == made
    assert found["start"] == {"eval": 0.5, "unseen": 0.5, "question_answering": 0.5}
    assert found["after"]["unseen"] == 0.9 and found["control"]["eval"] == 0.6
    assert found["diversity_ratio"] == 0.9 and found["guidance"] == 1.0
    assert found["control_steps"] == 3 * rewards.STEPS
    assert found["hacked"]["train/reward"] == [0.1, 0.8]


def test_prompts_of_training_alone(commands, tmp_path, monkeypatch):
    arguments = ["--quick", "--prompts", "train", "--runs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["rewards.py", *arguments])
    (tmp_path / "rl-train-0-240.json").write_text("{}")
    with pytest.raises(KeyError):  # the scores above are empty; what was trained is what counts
        rewards.main()
    (trained,) = (words for name, words in commands if name == "rl-train-0")
    assert "--data.datasets.unseen.weight=0" in trained

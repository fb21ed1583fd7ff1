"""Tables of ablations: what is scored is not trained again, and the flags of every row exist."""

import json
import statistics
import sys

import ablations
import pytest
import yaml
from ablations import TABLES

from triptych.cli.main import main

ROWS = [(name, row) for name, table in TABLES.items() for row in table.rows]


@pytest.fixture
def commands(monkeypatch):
    """Commands that were run; a run is as good as its seed."""
    found = []

    def run_triptych(folder, arguments):
        found.append(arguments)
        if arguments[0] == "eval":
            score = 0.5 + int(folder.name[-1]) / 10
            report = {"scores": {"shape_eval": {"mean": score}, "shape_eval_unseen": {"mean": 0}}}
            (folder / "scores.json").write_text(json.dumps(report))
            return
        (name,) = (f.split("=")[1] for f in arguments if f.startswith("--trainer.logger.name="))
        parent = folder if name == "trial" else folder.parent
        run = parent / name / "version_0"
        run.mkdir(parents=True)
        (run / "weights.safetensors").touch()
        (run / "metrics.csv").write_text(f"{ablations.RATE},step\n10,0\n64,1\n64,2\n")

    monkeypatch.setattr(ablations, "run_triptych", run_triptych)
    return found


def table_of(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["ablations.py", *arguments])
    ablations.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_means_over_seeds_and_a_second_call(commands, tmp_path, monkeypatch, capsys):
    arguments = ("combinations", "--runs", str(tmp_path), "--seeds", "0", "2")
    rows = TABLES["combinations"].rows
    for trained in (4 * len(rows), 0):
        commands.clear()
        found = table_of(monkeypatch, capsys, *arguments)
        assert len(commands) == trained
        score = found["as shipped"]["shape_eval/mean"]
        assert score == {"mean": 0.6, "std": round(statistics.stdev([0.5, 0.7]), 4)}


def test_steps_in_given_seconds(commands, tmp_path, monkeypatch, capsys):
    arguments = ("speedrun", "--runs", str(tmp_path), "--seeds", "1", "--jobs", "1")
    table_of(monkeypatch, capsys, *arguments)
    steps = [flag for flag in sum(commands, []) if flag.startswith("--trainer.max_steps=")]
    assert steps[:2] == [f"--trainer.max_steps={n}" for n in (ablations.TRIAL, 600)]


@pytest.mark.sweep
@pytest.mark.parametrize("table,row", ROWS)
def test_flags_of_a_row_exist(table, row, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit, match="^0$"):
        main([*ablations.fit_arguments(TABLES[table], row, 0, 9, tmp_path), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] == 9

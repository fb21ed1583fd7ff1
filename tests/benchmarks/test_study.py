"""The study: equal compute, runs that are not made twice, verdicts that intervals carry."""

import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack

import pytest
from processes import started
from study import plan as planning
from study import reading, runs
from study.__main__ import report
from study.page import finding_cells, sentence
from study.plan import ARMS, Plan, Run

from triptych.prompts import generation_ids
from triptych.shapes_world.shards import make_sample
from triptych.utils.errors import UserError

SMALL = Plan(steps=2, seeds=(0,), images=6, prompts=6, each=2)


def arm(name):
    return next(each for each in ARMS if each.name == name)


# --- plan -----------------------------------------------------------------------------------------


def test_every_run_costs_the_same():
    plan = Plan(steps=400, seeds=(3, 5))
    found = plan.runs()
    assert [run.name for run in found[:5]] == [
        "clip_flow-3", "clip_mse-3", "vae_flow-3", "joint-3", "clip_flow-5",
    ]  # fmt: skip
    steps = {run.arm.name: run.steps for run in found}
    assert steps["clip_flow"] == 400 < steps["clip_mse"]  # which draws no second noise
    assert steps["joint"] < steps["vae_flow"] < 400
    for run in found:
        assert run.flops == pytest.approx(found[0].flops, rel=0.003)


def test_a_step_is_a_prompt_and_two_noises():
    model, size = planning.describe(arm("clip_flow"))
    assert size == 64 and model.generation.flow.num_noise_samples == 2
    panel, qwen = model.generation, model.understanding.vlm
    whole = planning.flops.generation_step(
        qwen, panel.dit, model.encoder, planning.CAPTION, panel.num_queries, shared=planning.SHARED
    )
    second_noise = whole.velocity_model
    assert planning.step_flops(arm("clip_flow")) == pytest.approx(
        size * (whole.total + second_noise), rel=1e-6
    )


def test_tokens_of_a_caption(tokenizer):
    captions = [make_sample("train", number, 0)["txt"].decode() for number in range(400)]
    lengths = [len(generation_ids(tokenizer, caption, max_tokens=256)) for caption in captions]
    assert sum(lengths) / len(lengths) == pytest.approx(planning.CAPTION, abs=2)


def test_invalid_plans_are_refused():
    with pytest.raises(UserError, match="--steps is 0"):
        Plan(steps=0)
    with pytest.raises(UserError, match="each once"):
        Plan(seeds=(1, 1))


# --- runs -----------------------------------------------------------------------------------------

# Plays `triptych fit` and `study.scores`; the first attempt at joint-0 takes a minute.
PLAYER = """
import json, sys, time
from pathlib import Path
words = sys.argv[1:]
if words[1] == "triptych":
    named = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    run = Path(named["--trainer.logger.save_dir"]) / named["--trainer.logger.name"]
    (run / "version_0").mkdir(exist_ok=True)
    if run.name == "joint-0" and not (run / "begun").exists():
        (run / "begun").touch()
        time.sleep(60)
    (run / "version_0" / "metrics.csv").write_text("step,shape_eval/mean\\n0,0.0\\n2,0.5\\n")
    (run / "version_0" / "weights.safetensors").touch()
else:
    run = Path(words[3])
    if (run / "broken").exists():
        sys.exit(1)
    (run / "sheet.png").touch()
    (run / "measures.json").write_text(json.dumps({name: 0.5 for name in MEASURES}))
"""


@pytest.fixture
def player(tmp_path, monkeypatch):
    """Its processes take the place of the real ones."""
    (tmp_path / "player.py").write_text(f"MEASURES = {list(reading.MEASURES)}\n{PLAYER}")
    monkeypatch.setattr(runs, "PYTHON", (sys.executable, str(tmp_path / "player.py")))


@pytest.fixture
def interrupt():
    """Ctrl-C, once a condition holds; heard also where tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    over = threading.Event()

    def later(condition):
        while not condition():
            if over.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGINT)

    yield lambda condition: threading.Thread(target=later, args=[condition], daemon=True).start()
    over.set()
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def test_stopped_study_resumes_without_repeating_runs(tmp_path, player, interrupt):
    found, folder = SMALL.runs(), tmp_path / "runs"
    others = [run for run in found if run.name != "joint-0"]
    interrupt(lambda: (folder / "joint-0/begun").exists() and len(runs.done(others, folder)) == 3)
    began = time.time()
    with pytest.raises(KeyboardInterrupt):
        runs.work(SMALL, found, folder, tmp_path, 2)
    assert time.time() - began < 30  # what was under way did not go on alone
    assert runs.done(found, folder) == [run.name for run in others]
    runs.work(SMALL, found, folder, tmp_path, 2)
    for run in found:
        fits = [entry for entry in runs.noted(folder / run.name) if entry["what"] == "fit"]
        assert len(fits) == (4 if run.name == "joint-0" else 2)  # begun, ended
    assert len(runs.done(found, folder)) == 4


def test_failed_run_is_named_and_the_others_finish(tmp_path, player):
    found, folder = SMALL.runs(), tmp_path / "runs"
    (folder / "clip_mse-0").mkdir(parents=True)
    (folder / "clip_mse-0/broken").touch()
    (folder / "joint-0").mkdir()
    (folder / "joint-0/begun").touch()
    with pytest.raises(UserError, match="clip_mse-0 failed, see log.txt"):
        runs.work(SMALL, found, folder, tmp_path, 2)
    assert runs.done(found, folder) == ["clip_flow-0", "vae_flow-0", "joint-0"]


def test_a_training_that_was_left_behind_holds_the_folder(tmp_path, stack):
    with runs._alone(tmp_path) as lock:
        left = stack.enter_context(started(["sleep", "60"], pass_fds=[lock]))
    with pytest.raises(UserError, match="is at work"), runs._alone(tmp_path):
        pass
    left.kill()
    left.wait(10)
    with runs._alone(tmp_path):
        pass


def test_a_folder_holds_one_study(tmp_path):
    runs.keep_to(SMALL, tmp_path)
    runs.keep_to(Plan(steps=2, seeds=(0, 1), images=6, prompts=6, each=2), tmp_path)  # a seed more
    with pytest.raises(UserError, match="begun with other settings"):
        runs.keep_to(Plan(steps=3), tmp_path)


def test_cost_of_an_interrupted_run_is_unknown(tmp_path):
    runs.note(tmp_path, {"what": "fit"})
    runs.note(tmp_path, {"what": "fit", "status": 1, "cpu_seconds": 2.0})
    assert runs.cpu_seconds(tmp_path, "fit") == 2.0
    runs.note(tmp_path, {"what": "fit"})
    assert runs.cpu_seconds(tmp_path, "fit") is None


@pytest.mark.slow
def test_a_run_by_the_real_command_line_and_its_report(tmp_path, shapes_folder, capsys):
    run = Run(arm("vae_flow"), 0, 2, 1e12)
    runs.work(SMALL, [run], tmp_path / "runs", shapes_folder, 2)
    report(SMALL, [run], tmp_path / "runs", tmp_path / "out")
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["missing"] == [] and found["runs"][0]["cpu_seconds"] > 0
    short = json.loads(capsys.readouterr().out.splitlines()[-1])["study"]
    assert len(short) == len(reading.FINDINGS) and short[0]["verdict"] == "undecided"
    assert [x for x, _ in found["runs"][0]["curve"]] == [0.0, 0.5, 1.0]
    # the language model is frozen: not one answer changes
    scores = found["runs"][0]["scores"]
    assert scores["understanding"] == found["shipped"]["understanding"]
    assert 0 < scores["diversity_pixels"]["mean"] < 1
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<svg") == 7 and page.count("data:image/png") == 2
    assert "vae_flow-0" in (tmp_path / "out/runs.csv").read_text()


# --- what is read from them -----------------------------------------------------------------------


def test_spread_is_students():
    # by hand: mean 2, deviation 1, 4.303 / sqrt(3)
    found = reading.spread([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.interval == pytest.approx((2 - 2.4843, 2 + 2.4843), abs=1e-3)
    assert reading.spread([1.0]).interval is None


@pytest.mark.parametrize(
    ("differences", "expects", "verdict"),
    [
        ([0.20, 0.21, 0.22], "more", "agrees"),
        ([-0.20, -0.21, -0.22], "more", "disagrees"),
        ([0.20, -0.01, 0.22], "more", "undecided"),
        ([0.5], "more", "undecided"),
        ([0.5, 0.5], "more", "undecided"),
        ([0.0, 0.0, 0.0], "more", "undecided"),
        ([0.0, 0.0, 0.0], "same", "agrees"),
        ([0.0], "same", "undecided"),
        ([0.01, -0.01, 0.02], "same", "undecided"),
        ([0.20, 0.21, 0.22], "same", "disagrees"),
    ],
)
def test_a_verdict_says_no_more_than_its_interval(differences, expects, verdict):
    assert reading.judge(reading.spread(differences), expects)[0] == verdict


def rows(alignment):
    """Runs of clip_flow and vae_flow with these alignments, seed by seed."""
    return [
        {"arm": name, "seed": seed, "scores": {"alignment": {"mean": value}}}
        for name, values in alignment.items()
        for seed, value in enumerate(values)
    ]


def test_a_finding_is_written_from_its_numbers():
    finding = reading.FINDINGS[0]
    assert (finding.first, finding.second) == ("clip_flow", "vae_flow")
    measured = rows({"clip_flow": [0.5, 0.6, 0.7], "vae_flow": [0.4, 0.51, 0.59]})
    found = reading.compare(finding, measured, {})
    assert found["verdict"] == "agrees" and found["difference"]["mean"] == pytest.approx(0.1)
    said = sentence(found)
    assert "clip_flow minus vae_flow +0.100" in said and "3 seeds" in said
    assert "agrees: the interval lies above" in finding_cells(found)[2]
    alone = reading.compare(finding, rows({"clip_flow": [0.5]}), {})
    assert alone["verdict"] == "undecided" and "not measured" in sentence(alone)


def test_report_needs_a_finished_run(tmp_path):
    with pytest.raises(UserError, match="nothing to report"):
        reading.read(SMALL, SMALL.runs(), tmp_path)


def test_diversity_in_pixels():
    import numpy
    from study.scores import pixel_diversity

    black, white = numpy.zeros((4, 4, 3), "uint8"), numpy.full((4, 4, 3), 255, "uint8")
    assert pixel_diversity(numpy.stack([[black, black], [white, white]])) == 0
    assert pixel_diversity(numpy.stack([[black, white], [white, white]])) == 0.5


def test_true_images_are_clear_and_find_themselves():
    import numpy
    from study.scores import clear, retrieval

    from triptych.evaluation.shapes.shape_eval import examples

    true = [each.image for each in examples("eval", 6)]
    images = numpy.stack([[image, image] for image in true])
    assert clear(images) == 1.0 == retrieval(images, true)
    assert retrieval(images[[1, 0, 2, 3, 4, 5]], true) == 4 / 6
    images[0, 0] //= 2  # no background of that colour
    images[1, 1] = images[1, 1, 0, 0]  # plain
    assert clear(images) == 10 / 12

"""`triptych eval` on the command line: images in published layouts, scores, comparisons."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from oracle_models import Perfect
from PIL import Image
from processes import run, started
from tolerances import assert_same_images

from triptych.cli.eval.understanding import read_results
from triptych.evaluation import EditEval, FeatureDistance, ShapeEval, geneval
from triptych.evaluation.comparison import short_names
from triptych.evaluation.geneval import detection
from triptych.evaluation.report import Report, flat, nested
from triptych.evaluation.shapes.all_scores import ScoringPlan, interval, item_scores, report
from triptych.evaluation.shapes.shape_eval import question_answering_score
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.model_inference import ModelInference
from triptych.utils.errors import UserError
from triptych.utils.png_metadata import read_metadata

FEW = ["--num-inference-steps", "1", "--decoder-num-inference-steps", "1"]
ONE = GenerationConfig(num_inference_steps=1)
BENCHMARKS = ["shapes", "geneval", "dpg", "wise", "fid", "understanding", "compare"]


# --- help -----------------------------------------------------------------------------------------


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom triptych.cli.main import main\n"
        f"for name in {BENCHMARKS}:\n"
        "    try: main(['eval', name, '--help'])\n"
        "    except SystemExit as end: assert not end.code\n"
        "main(['eval', '--help'])\n"
        "assert not {'torch', 'transformers', 'lightning', 'numpy'} & set(sys.modules)"
    )
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert all(f"triptych eval {name}" in done.stdout for name in BENCHMARKS)


def test_an_unknown_benchmark_is_named(triptych):
    status, _, err = triptych("eval", "genevil")
    assert status == 2 and "genevil" in err and "geneval" in err


# --- images -------------------------------------------------------------------------------------


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in Path(folder).rglob("*.png")
    }


def test_geneval_resumes_after_an_interruption(triptych):
    make = ["eval", "geneval", "--limit", 2, "-n", 2, *FEW, "--generate-only", "--images-dir", "g"]
    status, _, err = triptych(*make)
    assert status == 0, err
    first = files("g")
    assert list(sorted(first)) == [f"0000{p}/samples/000{n}.png" for p in (0, 1) for n in (0, 1)]
    prompts = geneval.read_prompts()[:2]
    assert json.loads(Path("g/00001/metadata.jsonl").read_text()) == prompts[1]
    assert read_metadata("g/00001/samples/0001.png")["seed"] == 65
    Path("g/00000/samples/0001.png").unlink()
    Path("g/00001/samples/0000.png").write_bytes(b"torn")
    status, _, err = triptych(*make, "--batch-size", 1)
    assert status == 0, err
    again = files("g")
    changed = {name for name in first if again[name] != first[name]}
    assert changed == {"00000/samples/0001.png", "00001/samples/0000.png"}
    triptych(*make)
    assert files("g") == again
    assert len(triptych.loaded) == 2  # nothing was left: the model is not even read


def test_images_of_other_weights_are_not_mixed(triptych, monkeypatch):
    few = ["eval", "geneval", "--limit", 2, "-n", 1, "--num-inference-steps", 1, "--generate-only"]
    assert triptych(*few, "--images-dir", "p")[0] == 0
    made = read_metadata("p/00000/samples/0000.png")["weights"]
    Path("p/00001/samples/0000.png").unlink()
    monkeypatch.setattr("triptych.cli.jobs.weights_hash_of", lambda pipe: "trained further")
    status, _, err = triptych(*few, "--images-dir", "p")
    assert status == 1 and "p/00000/samples/0000.png was made with other weights" in err
    assert "delete it" in err and not Path("p/00001/samples/0000.png").exists()
    assert read_metadata("p/00000/samples/0000.png")["weights"] == made


@pytest.mark.slow
def test_a_killed_run_repeats_no_finished_image(triptych):
    make = ["eval", "geneval", "--limit", "30", "-n", "1", *FEW, "--generate-only"]
    make += ["--images-dir", "g", "--device", "cpu"]
    command = [sys.executable, "-m", "triptych", *make, "--batch-size", "1"]
    with started(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(3):
            process.stdout.readline()
    done = files("g")
    assert 3 <= len(done) < 30
    status, _, err = triptych(*make)
    assert status == 0, err
    again = files("g")
    assert len(again) == 30 and {name: again[name] for name in done} == done


def test_shards_make_the_images_of_one_process(triptych):
    make = ["eval", "geneval", "--limit", 1, *FEW, "--generate-only"]
    triptych(*make, "--images-dir", "whole")
    for shard in ("1/2", "2/2"):
        assert triptych(*make, "--images-dir", "parts", "--part", shard)[0] == 0
    for name in files("whole"):
        assert_same_images(*(Image.open(Path(each, name)) for each in ("whole", "parts")))


def test_dpg_grids_and_wise_images(triptych):
    Path("d.jsonl").write_text('{"item_id": "one", "prompt": "a red circle"}\n')
    status, _, err = triptych(
        *("eval", "dpg", "--prompts", "d.jsonl", *FEW, "--generate-only", "--images-dir", "d")
    )
    assert status == 0, err
    (name,) = files("d")
    assert name == "one.png"
    assert Image.open(Path("d", name)).size == (96, 96)
    made = read_metadata(Path("d", name))
    assert (
        made["request"]["seeds"] == [0, 1, 2, 3]
        and made["num_inference_steps"] == 1
        and "seed" not in made
    )
    entries = [{"prompt_id": n, "Prompt": "a circle", "Explanation": "red"} for n in (7, 3)]
    Path("w.json").write_text(json.dumps(entries))
    status, _, err = triptych(
        *("eval", "wise", "--prompts", "w.json", *FEW, "--generate-only", "--images-dir", "w")
    )
    assert status == 0, err
    assert set(files("w")) == {"3.png", "7.png"}
    assert read_metadata("w/7.png")["request"]["seeds"] == [7 * 64]


def test_geneval_scores_generated_and_existing_images(triptych, monkeypatch):
    class Blind(geneval.Detector):
        name, classes = "a blind detector", frozenset(detection.OBJECT_NAMES)

        def detect(self, image):
            return []

    class Colours(geneval.ColourClassifier):
        name = "no colours"

        def classify(self, crops, object_name):
            raise AssertionError("nothing was detected")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "config.json")
    monkeypatch.setattr(geneval, "Mask2Former", lambda *_: Blind())
    monkeypatch.setattr(geneval, "ClipColours", lambda *_: Colours())
    make = ["eval", "geneval", "--limit", 1, "-n", 2, *FEW, "--out", "r.json", "--page", "r.html"]
    status, out, err = triptych(*make, "--images-dir", "g")
    assert status == 0, err
    assert "a blind detector" in out and "expected 2, scored 2" in out
    read = json.loads(Path("r.json").read_text())
    assert read["scores"] == {"single_object": 0.0, "overall": 0.0}
    assert [item["seeds"] for item in read["items"]] == [[0], [1]]
    (made,) = read["settings"]["made"]
    assert made["images"] == 2 and made["num_inference_steps"] == 1 and made["model"] == "tiny"
    assert "base64" in Path("r.html").read_text()
    Path("g/00000/samples/0001.png").unlink()
    status, out, err = triptych(
        *(
            "eval",
            "geneval",
            "--limit",
            1,
            "-n",
            2,
            "--score-only",
            "--images-dir",
            "g",
            "--out",
            "s.json",
        )
    )
    assert status == 0, err
    assert "expected 2, scored 1, missing 1" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["geneval", "--prompts", "no.jsonl", "--generate-only"], "no.jsonl"),
        (["geneval", "--score-only", "--part", "1/2"], "--score-only generates no images"),
        (["geneval", "--limit", "0"], "--limit"),
        (["dpg"], "--questions"),
        (["dpg", "--questions", "no.csv"], "no.csv"),
        (["wise", "--generate-only"], "--prompts"),
        (["wise", "--prompts", "no.json", "--generate-only"], "no.json"),
        (["wise", "--prompts", "no.json"], "--judge"),
        (["geneval", "--limit", "1"], "--detector facebook/mask2former-swin-small-coco-instance"),
        (["fid", "--images-dir", "nowhere", "--reference", "nowhere"], "nowhere"),
        (["shapes", "--num-captions", "0"], "--num-captions"),
        (["compare", "no.json"], "no.json"),
        (["understanding", "--tasks", "mme", "--model.preset=x"], "no --model.x=y flags"),
    ],
)
def test_errors_are_one_sentence(arguments, said, triptych, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    status, _, err = triptych("eval", *arguments)
    assert status in (1, 2)
    assert said in err.strip().splitlines()[-1]
    assert "Traceback" not in err and not triptych.loaded


# --- shapes ---------------------------------------------------------------------------------------


def test_verdicts_sum_to_the_scores_of_the_evaluators():
    plan = ScoringPlan(num_images=12)
    whole = report(list(item_scores(Perfect(12), plan)), plan)
    scores = nested(whole.scores)
    assert scores["shape_eval"] == ShapeEval(num_images=12)(Perfect(12))
    assert scores["edits"] == EditEval(num_images=12)(Perfect(12))
    assert scores["question_answering"] == question_answering_score(Perfect(12), 12)
    assert whole.intervals["shape_eval/mean"] == pytest.approx((0.757, 1.0), abs=1e-3)
    assert whole.numbers["question_answering/mean"] == 24


def test_scores_do_not_depend_on_processes_or_batches(pipe):
    plan = ScoringPlan(num_images=2, per_caption=2, generation_config=ONE)
    whole = list(item_scores(pipe.model, plan))
    parts = [v for k in range(3) for v in item_scores(pipe.model, plan, (k, 3))]
    assert sorted(parts) == sorted(whole)
    smaller = ScoringPlan(num_images=2, per_caption=2, generation_config=ONE, batch_size=1)
    assert sorted(item_scores(pipe.model, smaller)) == sorted(whole)
    assert report(parts, plan).to_json() == report(whole, plan).to_json()
    assert report(whole, plan).numbers["shape_eval/mean"] == 4


def test_copies_of_a_caption_are_the_images_of_later_seeds():
    model = Perfect(6)
    list(item_scores(model, ScoringPlan(num_images=6, per_caption=2, seed=3)))
    assert model.seeds[:12] == [(3 + copy) * (1 << 20) + n for copy in (0, 1) for n in range(6)]


def test_intervals_draw_captions_again():
    same = [[[1.0, 1.0], [0.0, 0.0]] * 20]  # images of one caption are alike: half as many count
    low, high = interval(same)
    alone = interval([[[value] for cluster in same[0] for value in cluster]])
    assert high - low > 1.2 * (alone[1] - alone[0])
    assert interval([[[1.0, 1.0]] * 10])[0] == pytest.approx(0.722, abs=1e-3)


def test_shapes_report_keeps_its_structure(triptych):
    shapes = ["eval", "shapes", "--num-captions", 3, "--num-inference-steps", 1]
    status, out, err = triptych(
        *shapes, "--out", "a/s.json", "--images-dir", "p", "--page", "s.html"
    )
    assert status == 0, err
    read = json.loads(Path("a/s.json").read_text())
    assert json.loads(out)["scores"] == read["scores"]
    assert set(read["scores"]) == {
        *("shape_eval", "shape_eval_unseen", "reconstruction", "question_answering"),
        *("edits", "stories", "chance"),
    }
    assert set(read["scores"]["chance"]) == {
        *("shape_eval", "reconstruction", "question_answering", "edits")
    }
    assert len(read["items"]) == 6 and "base64" in Path("s.html").read_text()
    assert flat(read["scores"]) == Report.load("a/s.json").scores
    assert "shape_eval/mean" in err
    settings = Report.load("a/s.json").settings
    assert (
        settings["num_inference_steps"] == 1 and settings["guidance_scale"] == 2.5
    )  # the model's own
    assert len(settings["weights"]) == 16


def test_shapes_reuses_existing_images(triptych, monkeypatch):
    shapes = [
        "eval",
        "shapes",
        "--num-captions",
        3,
        "--num-inference-steps",
        1,
        "--images-dir",
        "p",
    ]
    status, first, err = triptych(*shapes)
    assert status == 0, err
    kept = files("p")
    assert len(kept) == 6
    Path("p/shape_eval/00001-0.png").unlink()
    Path("p/shape_eval_unseen/00002-0.png").write_bytes(b"torn")
    made = []
    generate = ModelInference.generate

    def count(model, prompts, **options):
        made.extend(options["seeds"])
        return generate(model, prompts, **options)

    monkeypatch.setattr(ModelInference, "generate", count)
    assert triptych(*shapes)[1] == first
    assert made == [1, 2]
    again = files("p")
    changed = {name for name in kept if again[name] != kept[name]}
    assert changed == {"shape_eval/00001-0.png", "shape_eval_unseen/00002-0.png"}
    status, _, err = triptych(*shapes, "--guidance-scale", 1)
    assert status == 1 and "(guidance_scale 2.5 then, 1.0 now); name another folder" in err


# --- fid, understanding ---------------------------------------------------------------------------


def test_fid_of_two_folders(triptych, shapes_folder):
    status, out, err = triptych(
        *("eval", "fid", "--images-dir", shapes_folder / "unseen"),
        *("--reference", shapes_folder / "eval", "--out", "f.json"),
    )
    assert status == 0, err
    assert set(Report.load("f.json").scores) == {"FID", "KID"} and "FID" in out
    assert "not comparable" in out


def test_fid_of_other_networks(triptych, tmp_path, inception_file, clip_folder):
    for name, colours in {"made": ("red", "lime", "navy"), "true": ("red", "pink", "blue")}.items():
        (tmp_path / name).mkdir()
        for colour in colours:
            Image.new("RGB", (20, 20), colour).save(tmp_path / name / f"{colour}.png")
            (tmp_path / name / f"{colour}.txt").write_text(f"it is {colour}")
    (tmp_path / "made" / "lime.txt").unlink()
    networks = ("--inception", inception_file, "--clip", clip_folder)
    asked = ("eval", "fid", "--images-dir", "made", "--reference", "true", *networks)
    status, out, err = triptych(*asked, "--out", "f.json")
    assert status == 0, err
    found = Report.load("f.json")
    assert set(found.scores) == {"FID", "KID", "CLIP score"}
    assert found.numbers["CLIP score"] == 2 and found.counts["without_caption"] == 1
    assert clip_folder.name in found.judged_by and "not comparable" in out
    assert found.settings["made"] == [{"images": 3, "unknown": "the image does not say"}]
    assert not triptych.loaded  # no model is needed

    status, _, err = triptych(*asked[:-1], tmp_path)
    assert status == 1 and str(tmp_path) in err.strip().splitlines()[-1]


def test_fid_during_training_falls_as_images_become_true(pipe, shapes_folder):
    def distance(**options):
        evaluator = FeatureDistance(
            str(shapes_folder / "eval"),
            num_images=12,
            generation_config=GenerationConfig(**options),
        )
        return evaluator(pipe.model)

    good, again, poor = (
        distance(num_inference_steps=8),
        distance(num_inference_steps=8),
        distance(num_inference_steps=1, guidance_scale=0.0),
    )
    assert good == again and set(good) == {"FID", "KID", "KID_low", "KID_high"}
    assert good["FID"] < poor["FID"] and good["KID"] < poor["KID"]
    assert pipe.model.training is False


def test_fid_during_training_needs_images_with_captions(pipe, tmp_path):
    for n in range(3):
        Image.new("RGB", (48, 48)).save(tmp_path / f"{n}.png")
    with pytest.raises(UserError, match="0 images with captions"):
        FeatureDistance(str(tmp_path))(pipe.model)


def test_understanding_prints_its_command(triptych, monkeypatch):
    asked = ["eval", "understanding", "--tasks", "mme", "--from", "runs/mine", "--ema"]
    status, out, _ = triptych(*asked, "--print")
    assert status == 0
    assert shlex.split(out)[:5] == ["python", "-P", "-m", "lmms_eval", "--model"]
    assert "source=runs/mine,ema=True" in out
    monkeypatch.setattr("triptych.cli.eval.understanding.find_spec", lambda name: None)
    status, _, err = triptych(*asked)
    assert status == 1 and "pip install lmms-eval" in err


def test_results_of_lmms_eval_are_a_report(tmp_path):
    results = {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": "mine", "none_at,none": "N/A"}
    whole = {"results": {"mine": results}, "n-samples": {"mine": {"effective": 8, "original": 9}}}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "20_results.json").write_text(json.dumps(whole))
    found = read_results(tmp_path)
    assert found.scores == {"mine/acc": 0.5} and found.numbers == {"mine/acc": 8}
    assert found.intervals["mine/acc"] == pytest.approx((0.304, 0.696))


# --- compare --------------------------------------------------------------------------------------


def saved(path, share, **settings):
    scores = {"all/mean": share, "all/one": 1.0, "chance/one": 0.1}
    Report("shapes", scores, "a judge", {"all/mean": (share - 0.1, share)}, settings=settings).save(
        path
    )


def test_compare_makes_one_table_and_one_image(triptych):
    saved("runs/a/s.json", 0.5, steps=10, seed=0)
    saved("runs/b/s.json", 0.75, steps=30, seed=0)
    status, out, err = triptych(
        "eval", "compare", "runs/a/s.json", "runs/b/s.json", "--out", "c.json"
    )
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["a", "b"]
    assert lines[1].split("  ")[0] == "all/mean"
    assert "0.5000 (0.4000 to 0.5000)" in lines[1] and "0.7500" in lines[1]
    assert "steps: 10, 30" in lines and "chance" not in out and "seed" not in out
    image = Image.open("compare.png").convert("RGB")
    blue = sum(pixel == (31, 119, 180) for pixel in image.get_flattened_data())
    red = sum(pixel == (214, 39, 40) for pixel in image.get_flattened_data())
    assert red > blue > 5000
    read = json.loads(Path("c.json").read_text())
    assert read["reports"]["b"]["scores"] == {"all/mean": 0.75, "all/one": 1.0}


def test_compare_refuses_two_benchmarks_and_two_of_one(triptych):
    saved("a.json", 0.5)
    Report("dpg", {"overall": 0.5}, "a judge").save("b.json")
    status, _, err = triptych("eval", "compare", "a.json", "b.json")
    assert status == 1 and "dpg and shapes" in err
    status, _, err = triptych("eval", "compare", "a.json", "a.json")
    assert status == 1 and "twice" in err
    status, _, err = triptych("eval", "compare", "a.json", "--only", "nothing")
    assert status == 1 and "nothing" in err


def test_reports_are_named_by_their_distinct_path_parts():
    paths = [Path("runs/a/x/s.json"), Path("runs/b/x/s.json"), Path("runs/b/y/s.json")]
    assert short_names(paths) == ["a/x", "b/x", "b/y"]
    assert short_names([Path("runs/a.json")]) == ["a"]
    assert short_names([Path("a/s.json"), Path("s.json")]) == ["a/s", "s"]

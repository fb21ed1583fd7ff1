"""`triptych generate`, `chat`, `edit` and `reconstruct` on the command line."""

import base64
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from edit_models import blind_flags
from PIL import Image
from processes import run
from tolerances import assert_same_images

from triptych.cli.main import main
from triptych.cli.output_folder import ImageJob, OutputFolder
from triptych.shapes_world.world import Shape, draw, scene_of
from triptych.utils.png_metadata import read_metadata

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "docs" / "images" / "samples.png"
FEW = ["--num-inference-steps", "2", "--decoder-num-inference-steps", "1"]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


# --- examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["generate", "chat", "edit", "reconstruct"])
def test_the_examples_of_the_help_run(command, triptych):
    Path("docs/images").mkdir(parents=True)
    Path("docs/images/samples.png").symlink_to(SAMPLES)
    status, help_text, _ = triptych(command, "--help")
    assert status == 0
    examples = re.findall(r"^  (.*triptych .*)$", help_text.partition("examples:")[2], re.M)
    assert len(examples) >= 2
    for example in examples:
        before, _, own = example.rpartition("triptych ")
        own, _, file = own.partition("<")
        assert file.strip() in ("", "/dev/null")
        told = before.strip().removesuffix("|")
        stdin = run(["bash", "-c", told]).stdout
        status, out, err = triptych(*shlex.split(own), stdin=stdin)
        assert status == 0, (example, err)
        assert out or file


def test_help_needs_no_torch():
    code = (
        "import sys; from triptych.cli.main import main\n"
        "try: main(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'lightning', 'numpy'} & set(sys.modules)"
    )
    done = run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr


# --- a folder of images -------------------------------------------------------------------------


def test_images_hold_their_metadata_and_are_listed(triptych):
    status, out, _ = triptych("generate", "a red  circle", "-n", 2, "--seed", 7, *FEW, "-o", "a")
    assert status == 0
    assert out == "a/000007-000.png\ta red circle\na/000008-001.png\ta red circle\n"
    assert sorted(os.listdir("a")) == [
        "000007-000.png",
        "000008-001.png",
        "grid.png",
        "results.jsonl",
    ]
    first, second = lines("a/results.jsonl")
    assert (first["prompt"], first["seed"], first["file"]) == ("a red  circle", 7, "000007-000.png")
    assert second["settings"] == read_metadata("a/000008-001.png")
    assert (
        second["settings"]["num_inference_steps"] == 2
        and second["settings"]["guidance_scale"] == 2.5
    )
    assert Image.open("a/grid.png").width > 2 * 144


def test_json_lines_override_the_flags(triptych):
    asked = [
        {
            "id": "one",
            "prompt": "a red circle",
            "seed": 5,
            "num_images_per_prompt": 2,
            "num_inference_steps": 3,
        },
        {"prompt": "two blue squares", "negative_prompt": "green", "guidance_scale": 1},
        {"prompt": "a green star"},
    ]
    Path("p.jsonl").write_text("\n\n".join(map(json.dumps, asked)))
    status, out, err = triptych("generate", "--prompts", "p.jsonl", *FEW, "-o", "b")
    assert status == 0, err
    read = lines("b/results.jsonl")
    assert [each["file"] for each in read] == [
        "one-000.png",
        "one-001.png",
        "000002-002.png",
        "000003-003.png",
    ]
    settings = [each["settings"] for each in read]
    assert [each["seed"] for each in settings] == [5, 6, 2, 3]
    assert [each["num_inference_steps"] for each in settings] == [3, 3, 2, 2]
    assert [each["guidance_scale"] for each in settings] == [2.5, 2.5, 1, 2.5]
    assert [each["negative_prompt"] for each in settings] == [None, None, "green", None]
    assert len(out.splitlines()) == 4


def test_images_do_not_depend_on_the_batching_of_a_command(triptych):
    prompts = ["a red circle", "two blue squares"]
    triptych("generate", *prompts, "-n", 2, *FEW, "-o", "whole")
    for part in ("1/3", "2/3", "3/3"):
        assert triptych("generate", *prompts, "-n", 2, *FEW, "-o", "cut", "--part", part)[0] == 0
    assert lines("whole/results.jsonl") == lines("cut/results.jsonl")
    for each in lines("whole/results.jsonl"):
        assert_same_images(*(Image.open(Path(folder, each["file"])) for folder in ("whole", "cut")))


def test_finished_images_are_not_repeated(triptych):
    command = ("generate", "a red circle", "-n", 3, *FEW, "-o", "c")
    first = triptych(*command)
    times = {path: path.stat().st_mtime_ns for path in Path("c").glob("0*")}
    assert triptych(*command) == first and len(triptych.loaded) == 1
    damaged = Path("c/000001-001.png")
    damaged.write_bytes(damaged.read_bytes()[:200])
    Path("c/000002-002.png").unlink()
    Path("c/results.jsonl").unlink()
    status, out, _ = triptych(*command)
    assert status == 0 and sorted(out.splitlines()) == first[1].splitlines()
    assert len(lines("c/results.jsonl")) == 3
    Image.open(damaged).load()
    kept = Path("c/000000-000.png")
    assert kept.stat().st_mtime_ns == times[kept]
    assert not list(Path("c").glob(".*"))


def test_other_settings_are_not_mixed_in(triptych):
    triptych("generate", "a red circle", *FEW, "-o", "d")
    before = Path("d/000000-000.png").read_bytes()
    for change, said in (
        (["--guidance-scale", "2"], "guidance_scale None then, 2.0 now"),
        (["--config", ROOT / "conf" / "presets" / "tiny.yaml"], "model 'tiny' then"),
        (["--model.generation.sampling.num_inference_steps=9"], "flags None then"),
    ):
        status, _, err = triptych("generate", "a red circle", *FEW, "-o", "d", *change)
        assert status == 1 and said in err and err.count("\n") == 1
    assert Path("d/000000-000.png").read_bytes() == before
    Image.new("RGB", (9, 9)).save("d/000001-001.png")
    status, _, err = triptych("generate", "a red circle", "-n", 2, *FEW, "-o", "d")
    assert status == 1 and "did not make" in err


def test_each_command_has_a_folder_of_its_own(triptych):
    paths = {}
    for name, change in (("one", []), ("again", []), ("other", ["--guidance-scale", "2"])):
        status, out, _ = triptych("generate", "a red circle", *FEW, *change)
        assert status == 0
        paths[name] = out.partition("\t")[0]
    assert paths["one"] == paths["again"] != paths["other"]
    assert paths["one"].startswith("out/generate/a-red-circle-")


def test_failure_keeps_the_finished_images(triptych, pipe, monkeypatch):
    make, calls = type(pipe).__call__, []

    def fail(*options, **more):
        calls.append(more)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(*options, **more)

    monkeypatch.setattr(type(pipe), "__call__", fail)
    command = ("generate", "a red circle", "-n", 3, "--batch-size", 1, *FEW, "-o", "e")
    status, out, err = triptych(*command)
    assert status == 130 and "the same command resumes" in err
    assert len(out.splitlines()) == len(lines("e/results.jsonl")) == 1
    assert triptych(*command)[0] == 0 and len(calls) == 4
    assert len(lines("e/results.jsonl")) == 3


def test_parts_that_end_together_lose_nothing(tmp_path, triptych, monkeypatch):
    triptych("generate", "a red circle", "-n", 2, *FEW, "-o", tmp_path / "f")
    jobs = [ImageJob(f"00000{n}-00{n}.png", "0", {"prompt": "a red circle"}) for n in range(2)]
    output, late = OutputFolder(tmp_path / "f", jobs), tmp_path / "f" / jobs[1].file
    content = late.read_bytes()
    late.unlink()
    finished, looks = output._finished, []

    def look():
        if looks:
            late.write_bytes(content)  # that of another part, after this one has looked
        looks.append(1)
        return finished()

    monkeypatch.setattr(output, "_finished", look)
    output.finish()
    assert len(lines(tmp_path / "f" / "results.jsonl")) == 2


def test_edits_and_reconstructions(triptych):
    status, out, err = triptych("edit", SAMPLES, SAMPLES, "make it blue", *FEW, "-o", "g")
    assert status == 0, err
    assert out.splitlines() == ["g/000000-000.png\tmake it blue", "g/000001-001.png\tmake it blue"]
    (image,) = read_metadata("g/000001-001.png")["request"]["images"]
    assert image["name"] == SAMPLES.name and len(image["sha256"]) == 64
    assert Image.open("g/grid.png").width > 4 * 144
    status, out, err = triptych(
        "reconstruct", SAMPLES, "--decoder-num-inference-steps", "1", "-o", "h"
    )
    assert status == 0, err
    assert out == f"h/000000-000-samples.png\t{SAMPLES}\n"
    assert (
        triptych("reconstruct", SAMPLES, "--decoder-num-inference-steps", "1", "-o", "h")[1] == out
    )
    assert (
        "decoder_num_inference_steps 1 then, 2 now"
        in triptych("reconstruct", SAMPLES, "--decoder-num-inference-steps", "2", "-o", "h")[2]
    )


def test_a_folder_stands_for_its_images(triptych):
    for name in ("b.1.PNG", "a/c.png", ".ipynb_checkpoints/d.png", "__MACOSX/b.png"):
        path = Path("in", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SAMPLES.read_bytes())
    status, out, err = triptych(
        "reconstruct", "in", "--decoder-num-inference-steps", "1", "-o", "h"
    )
    assert status == 0, err
    assert [line.split("\t")[1] for line in out.splitlines()] == ["in/a/c.png", "in/b.1.PNG"]
    status, out, err = triptych("edit", "in", "make it blue", *FEW, "-o", "g")
    assert (status, len(out.splitlines())) == (0, 2), err
    Path("none").mkdir()
    assert "folder none holds no images" in triptych("reconstruct", "none", "-o", "i")[2]


# --- chat -----------------------------------------------------------------------------------------


@pytest.fixture
def two_shapes(tmp_path):
    """An image of two shapes."""
    scene = scene_of(
        [Shape("circle", "red", "large", 0, 0), Shape("cross", "blue", "small", 2, 1)], "white"
    )
    Image.fromarray(draw(scene)).save(tmp_path / "two.png")
    return tmp_path / "two.png"


def test_a_question_has_one_answer(triptych, two_shapes):
    assert triptych("chat", two_shapes, "how many shapes are there?")[:2] == (0, "two\n")
    assert triptych("chat", "what is it?")[0] == 0


def test_a_conversation_through_a_pipe(triptych, pipe, monkeypatch):
    heard, chat = [], pipe.chat

    def listen(messages, **options):
        heard.append(messages)
        return chat(messages, **options)

    monkeypatch.setattr(pipe, "chat", listen)
    said = f"how many?\nwhere?\n/image {SAMPLES}\n\nand now?\n/reset\nhow many?\n/quit\nno"
    status, out, err = triptych("chat", SAMPLES, stdin=said)
    assert status == 0 and err == ""
    assert len(out.splitlines()) == len(heard) == 4
    assert [len(messages) for messages in heard] == [1, 3, 5, 1]
    shown = [[len(m["content"]) - 1 for m in talk if m["role"] == "user"] for talk in heard]
    assert shown == [[1], [1, 0], [1, 0, 1], [1]]
    assert triptych("chat", stdin="/image no.png")[0] == 1


def test_ctrl_c_stops_an_answer_and_not_the_conversation(triptych, pipe, monkeypatch):
    answers = [iter(["a ", "red "]), iter(["yes"])]

    class Pieces:
        def __init__(self, told):
            self.told, self.closed = told, False

        def __iter__(self):
            yield from self.told
            if len(heard) == 1:
                raise KeyboardInterrupt

        def close(self):
            self.closed = True

    heard, made = [], []

    def chat(messages, **options):
        heard.append(messages)
        made.append(Pieces(answers[len(heard) - 1]))
        return made[-1]

    monkeypatch.setattr(pipe, "chat", chat)
    status, out, _ = triptych("chat", stdin="what?\nsure?\n")
    assert (status, out) == (0, "a red \nyes\n")
    assert heard[1][1] == {"role": "assistant", "content": ["a red "]}
    assert all(each.closed for each in made)


def test_questions_in_json_lines(triptych, two_shapes):
    asked = [
        {"id": "a", "image": str(two_shapes), "question": "how many shapes are there?"},
        {"images": [str(SAMPLES)] * 2, "question": "are they the same?"},
        {"id": "c", "messages": [{"role": "user", "content": "what is it?"}]},
    ]
    stdin = "\n".join(map(json.dumps, asked))
    status, out, err = triptych("chat", "--jsonl", "-", "--batch-size", 2, stdin=stdin)
    assert status == 0, err
    read = [json.loads(line) for line in out.splitlines()]
    assert [each["id"] for each in read] == ["a", "2", "c"]
    assert read[0] == {"id": "a", "answer": "two", "finish_reason": "stop"}


def test_images_in_json_lines_are_paths_or_data_urls(triptych):
    """And OpenAI's parts: all the same image, so the same answer."""
    encoded = base64.b64encode(SAMPLES.read_bytes()).decode()
    question = "how many shapes are there?"
    urls = [f"data:image/png;base64,{encoded}", f"DATA:;BASE64,{encoded.rstrip('=')}"]
    parts = [{"type": "image", "image": str(SAMPLES)}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    parts += [{"type": "image_url", "image_url": urls[0]}]
    talks = [[part, {"type": "text", "text": question}] for part in parts]
    asked = [{"image": image, "question": question} for image in (str(SAMPLES), [str(SAMPLES)])]
    asked += [{"images": [url], "question": question} for url in urls]
    asked += [{"messages": [{"role": "user", "content": talk}]} for talk in talks]
    stdin = "\n".join(map(json.dumps, asked))
    status, out, err = triptych("chat", "--jsonl", "-", "--max-tokens", 3, stdin=stdin)
    assert status == 0, err
    answers = [json.loads(line)["answer"] for line in out.splitlines()]
    assert len(answers) == len(asked) and len(set(answers)) == 1


def of_user(*content):
    return {"messages": [{"role": "user", "content": list(content)}]}


LINK = {"type": "image_url", "image_url": {"url": "HTTPS://a.org/b.png"}}
PATH = {"type": "image_url", "image_url": {"url": str(SAMPLES)}}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (of_user(), "message 1 is empty"),
        (of_user("\u200b", "\u2028"), "message 1 is empty"),
        (of_user("word " * 400), "tokens, the model takes"),
        (of_user("a", LINK), "is a link, which is not fetched"),
        (of_user("a", PATH), "its image_url is not a URL"),
        (of_user("a", {"type": "input_audio"}), "a part of its content is neither"),
        ({"messages": ["a"]}, "message 1 is not"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "the role 'tool' is none of"),
        ({"question": "a", "image": "https://a.org/b.png"}, "is a link, which is not fetched"),
        ({"question": "a", "image": "x" * 5000}, "xxx... does not exist"),
        ({"question": "a", "image": ""}, "the image '' does not exist"),
        ({"question": "a", "image": "data:image/png;base64,_-"}, "is a damaged data URL"),
    ],
)
def test_a_wrong_line_is_named_wherever_it_is_found_wrong(line, said, triptych):
    stdin = "\n".join(map(json.dumps, [{"question": "fine?"}, line, {"question": "fine?"}]))
    status, _, err = triptych("chat", "--jsonl", "-", "--max-tokens", 1, stdin=stdin)
    assert status == 1 and "standard input:2: " in err and said in err
    assert "Traceback" not in err


def test_unused_keys_are_warned_about_once(triptych, caplog):
    lines = [{"question": "a", "imgae": "x", "image": None}, {"question": "b", "imgae": "y"}]
    status, _, _ = triptych(
        "chat", "--jsonl", "-", "--max-tokens", 1, stdin="\n".join(map(json.dumps, lines))
    )
    assert status == 0
    assert [r.getMessage() for r in caplog.records if "is not read" in r.getMessage()] == [
        "standard input:1: 'imgae' is not read; a line has id, image, images, messages, question"
    ]


LONG = "y" * 300  # longer than the name of any file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", SAMPLES, "really " * 60 + "?"], "the conversation has"),
        (["chat", f"{LONG}.png", "what?"], "does not exist"),
        (["edit", LONG, "make it blue"], "does not exist"),
        (["reconstruct", LONG], "does not exist"),
        (["generate", "--prompts", LONG], "File name too long"),
        (["generate", "x", "--out", LONG], "File name too long"),
        (["data", "pack", LONG, "--out", "out"], "does not exist"),
        (["data", "pack", f"{{{LONG},b}}.tar", "--out", "out"], "does not exist"),
        (["convert", LONG, "out"], "File name too long"),
        (["data", "index", LONG], "does not exist"),
        (["eval", "fid", "--images-dir", LONG, "--reference", LONG], "does not exist"),
        (["export", LONG, "--out", "a.safetensors"], "File name too long"),
    ],
)
def test_texts_longer_than_names_of_files_are_no_traceback(arguments, said, triptych):
    """A long question is asked for as a file first."""
    status, out, err = triptych(*arguments)
    assert (status, out) == (1, "") and said in err and "Traceback" not in err
    assert not list(Path().iterdir())


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "arguments", "said"),
    [
        (2, ["generate"], "give a prompt, or --prompts"),
        (2, ["generate", "x", "-n", "0"], "'0' is not a whole number from 1 to"),
        (2, ["generate", "x", "--seed", "-1"], "'-1' is not a whole number from 0 to"),
        (2, ["generate", "x", "--guidance-scale", "nan"], "'nan' is not a number from 0 to 100"),
        (2, ["generate", "x", "--part", "3/2"], "'3/2' is not K/N"),
        (1, ["generate", "x", "--num-nodes", "2"], "waits for processes on other machines"),
        (1, ["generate", "x", "--devices", "2", "--device", "cpu:0"], "is one GPU, and --devices"),
        (2, ["generate", "x", "--config", "a", "--ema"], "give one of them"),
        (1, ["generate", ""], "the prompt is empty"),
        (1, ["generate", "--prompts", "no.txt"], "no.txt does not exist"),
        (1, ["generate", "--prompts", "empty.txt"], "there is no prompt in empty.txt"),
        (1, ["generate", "--prompts", "broken.jsonl"], "broken.jsonl:2 is no JSON"),
        (1, ["generate", "--prompts", "twice.jsonl"], "the id 'a' is that of twice.jsonl:1 too"),
        (1, ["generate", "--prompts", "traversal.jsonl"], "traversal.jsonl:1: the id '../a' names"),
        (1, ["generate", "--prompts", "seed.jsonl"], "seed.jsonl:1: seed is -3"),
        (1, ["generate", "--prompts", "key.jsonl"], "key.jsonl:1: 'promt' is none of"),
        (1, ["generate", "x", "--out", "empty.txt"], "empty.txt cannot be written to"),
        (1, ["edit", "no.png", "make it blue"], "no.png does not exist"),
        (1, ["edit", SAMPLES, " "], "the instruction is empty"),
        (2, ["edit", SAMPLES], "give images and then an instruction"),
        (2, ["edit", "make it blue"], "give images and then an instruction"),
        (2, ["edit", SAMPLES, "x", "--image-guidance-scale", "-1"], "'-1' is not a number from 0"),
        (2, ["generate", "x", "--image-guidance-scale", "2"], "--image-guidance-scale"),
        (1, ["generate", "--prompts", "scale.jsonl"], "'image_guidance_scale' is none of"),
        (1, ["edit", "--jsonl", "edit.jsonl"], 'names one "image"'),
        (1, ["reconstruct", "no.png"], "no.png does not exist"),
        (1, ["chat", "empty.txt", "what?"], "empty.txt is not an image that can be read"),
        (1, ["chat", "no.png", "what?"], "no.png does not exist"),
        (2, ["chat", "what?", "where?"], "no image is called 'what?'"),
        (2, ["chat", "what?", "--top-p", "0"], "--top-p"),
        (1, ["chat", "--jsonl", "key.jsonl"], 'key.jsonl:1 has no "question"'),
    ],
)
def test_mistakes_are_one_sentence_before_the_model_is_loaded(triptych, status, arguments, said):
    Path("empty.txt").write_text("\n")
    Path("broken.jsonl").write_text('{"prompt": "x"}\n{"prompt": \n')
    Path("twice.jsonl").write_text('{"prompt": "x", "id": "a"}\n{"prompt": "y", "id": "a"}\n')
    Path("traversal.jsonl").write_text('{"prompt": "x", "id": "../a"}')
    Path("seed.jsonl").write_text('{"prompt": "x", "seed": -3}')
    Path("key.jsonl").write_text('{"promt": "x"}')
    Path("edit.jsonl").write_text('{"instruction": "x"}')
    Path("scale.jsonl").write_text('{"prompt": "x", "image_guidance_scale": 2}')
    found, out, err = triptych(*arguments)
    assert (found, out) == (status, "") and said in err
    assert "Traceback" not in err and not triptych.loaded
    assert err.strip().splitlines()[-1].startswith("triptych")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "a red circle", "circle " * 300], "tokens, the model takes 256"),
        (["generate", "a circle", "--sampler", "eular"], "there is no sampler 'eular'"),
        (["edit", SAMPLES, "circle " * 300], "tokens, the model takes 256"),
    ],
)
def test_model_dependent_errors_precede_the_first_image(triptych, arguments, said):
    where = [] if arguments[0] == "eval" else ["-o", "none"]
    status, out, err = triptych(*arguments, *where)
    assert (status, out) == (1, "") and said in err
    assert not list(Path("none").glob("0*"))


@pytest.fixture
def blind(pipe, monkeypatch):
    """The loaded model sees no source images."""
    monkeypatch.setattr(pipe.model.generation.dit, "takes_source", False)


@pytest.mark.parametrize("arguments", [["edit", SAMPLES, "x", "-o", "none"], ["eval", "shapes"]])
def test_a_scale_for_no_source_is_refused_before_the_first_image(triptych, blind, arguments):
    status, out, err = triptych(*arguments, "--image-guidance-scale", "2")
    assert (status, out) == (1, "") and "image_guidance_scale is 2, and" in err
    assert not list(Path("none").glob("0*"))


def test_a_mistake_in_the_scale_of_a_line_is_found_before_the_first_edit(triptych, blind):
    Path("edits.jsonl").write_text(
        "\n".join(
            json.dumps({"image": str(SAMPLES), "instruction": "make it blue", **scale})
            for scale in ({}, {"image_guidance_scale": 2})
        )
    )
    status, out, err = triptych("edit", "--jsonl", "edits.jsonl", "-o", "none")
    assert (status, out) == (1, "") and "image_guidance_scale is 2, and" in err


@pytest.mark.slow
def test_edits_of_a_generator_that_sees_the_image(forks, tmp_path):
    """Flags, the lines of a file, and the settings in the images; nothing in a model's place."""
    line = {"image": str(SAMPLES), "instruction": "make it blue", "image_guidance_scale": 2}
    (tmp_path / "edits.jsonl").write_text(json.dumps(line))
    command = ["edit", *FEW]
    scales = ["--guidance-scale", "3", "--image-guidance-scale", "1.5"]
    for arguments, scale in (([SAMPLES, "make it blue"], 1.5), (["--jsonl", "edits.jsonl"], 2)):
        status, said = forks(tmp_path, *command, *arguments, *scales, "-o", f"out-{scale}")
        assert status == 0 and "does not see" not in said, said
        (image,) = (tmp_path / f"out-{scale}").glob("0*.png")
        settings = read_metadata(image)
        assert settings["guidance_scale"] == 3 and settings["image_guidance_scale"] == scale


def test_a_generator_that_does_not_see_the_image_refuses_a_scale_of_it(forks, tmp_path):
    command = ["edit", *blind_flags(tmp_path), SAMPLES, "make it blue", *FEW]
    status, said = forks(tmp_path, *command, "--image-guidance-scale", "2")
    assert status == 1 and "Traceback" not in said
    assert said.count("image_guidance_scale is 2, and this model's generator") == 1
    status, said = forks(tmp_path, *command)
    assert status == 0 and said.count("generator does not see the image to edit") == 1


def test_a_device_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for device, said in (("abacus", "no kind of device 'abacus'"), ("cuda:99", "no GPU cuda:99")):
        with pytest.raises(SystemExit) as end:
            main(["generate", "a circle", "--device", device])
        assert end.value.code == 1 and said in capsys.readouterr().err


# --- best of N ------------------------------------------------------------------------------------


def test_the_best_of_candidates_is_kept_with_its_seed(triptych):
    options = ["--seed", 7, *FEW, "-o"]
    assert triptych("generate", "a red circle", "--best-of", 3, "-n", 2, *options, "best")[0] == 0
    first, second = lines("best/results.jsonl")
    assert first["settings"]["num_candidates"] == 3 and first["settings"]["ranker"] == "self"
    assert first["seed"] % 2**40 == 7 and second["seed"] % 2**40 == 8
    assert 0 <= first["settings"]["score"] <= 1
    line = json.dumps({"prompt": "a red circle", "num_candidates": 3, "seed": 8, "id": "same"})
    assert triptych("generate", "--prompts", "-", *FEW, "-o", "line", stdin=line)[0] == 0
    assert lines("line/results.jsonl")[0]["seed"] == second["seed"]
    triptych("generate", "a red circle", "--seed", second["seed"], *FEW, "-o", "alone")
    again = lines("alone/results.jsonl")[0]["file"]
    assert_same_images(Image.open(f"alone/{again}"), Image.open("best/000008-001.png"))
    # finished images are those of the request, whatever candidate was kept
    loaded = len(triptych.loaded)
    status, out, _ = triptych("generate", "a red circle", "--best-of", 3, "-n", 2, *options, "best")
    assert status == 0 and len(out.splitlines()) == 2 and len(triptych.loaded) == loaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--best-of", "0"], "argument --best-of: '0' is not a whole number from 1 to 1,000"),
        (["--best-of", "many"], "argument --best-of: 'many' is not a whole number"),
        (["--num-candidates", "2"], "unrecognized arguments: --num-candidates 2; use --best-of"),
    ],
)
def test_a_wrong_number_of_candidates_is_one_sentence(arguments, message, tmp_path):
    code = "import sys; from triptych.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "generate", "a red circle", *arguments]
    done = run(command, cwd=tmp_path)
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2 and message in said[-1] and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_edits_have_no_candidates(triptych):
    status, _, err = triptych("edit", SAMPLES, "make it blue", "--best-of", 2)
    assert status == 2 and "unrecognized arguments: --best-of" in err
    line = json.dumps({"image": str(SAMPLES), "instruction": "make it blue", "num_candidates": 2})
    status, _, err = triptych("edit", "--jsonl", "-", *FEW, "-o", "edits", stdin=line)
    assert status == 1 and "ranks images of captions, not edits; leave num_candidates out" in err

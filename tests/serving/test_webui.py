"""The web page in a real Chromium, and refusals of `triptych app`."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest
from bad_images import encoded, gif, large_png
from browser import chromium, open_page
from PIL import Image
from processes import started
from scripted_chat import IMAGE, Script

from triptych.cli.main import main
from triptych.serving.images import image_decoder
from triptych.serving.images.image_input import read_request_image
from triptych.serving.webui.models import Models
from triptych.utils.errors import UserError
from triptych.utils.png_metadata import read_metadata

PROMPT = "a photo of a red circle left of a blue square"
TIMEOUT_MS = 60_000  # far more than any step takes on a quiet machine


def free_port():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The command in a process of its own: its address, file of votes and process."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "prompts.txt").write_text(f"{PROMPT}\n\na photo of a green star\n")
    votes = folder / "votes.jsonl"
    command = [sys.executable, "-m", "triptych", "app", "--port", "0", "--votes", str(votes)]
    command += [
        "--prompts",
        str(folder / "prompts.txt"),
        "--model.generation.sampling.num_inference_steps=6",
    ]
    environment = os.environ | {"TMPDIR": str(folder)}
    options = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    with (
        (folder / "log.txt").open("w") as log,
        started(command, 600, stderr=log, **options) as process,
    ):
        shown = re.match(r"http://127\.0\.0\.1:[1-9]\d*", process.stdout.readline())
        assert shown, (folder / "log.txt").read_text()
        yield shown[0], votes, process, folder


@pytest.fixture(scope="module")
def window(app):
    """The page in a browser; at the end, nothing went wrong in it and nothing left the machine."""
    with chromium() as browser:
        page, seen = open_page(browser, app[0], viewport={"width": 1280, "height": 900})
        page.set_default_timeout(TIMEOUT_MS)
        yield page
        assert seen.errors == []
        assert len(seen.addresses) > 10
        assert [each for each in seen.addresses if not re.match(rf"(blob:)?{app[0]}", each)] == []


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def told(page, sentence):
    """Wait for an error with this sentence, and close it."""
    toast = page.locator(".toast-body", has_text=sentence)
    toast.wait_for()
    assert not re.search("Traceback|/", toast.inner_text())
    toast.locator(".toast-close").click()


@pytest.mark.browser
def test_images_appear_step_by_step_and_carry_their_settings(window, tmp_path):
    tab(window, "Generate")
    window.fill("#generate-prompt textarea", PROMPT)
    window.evaluate(
        """() => {
            window.shown = [];
            new MutationObserver(() => document.querySelectorAll('.images img').forEach(
                each => window.shown.includes(each.src) || window.shown.push(each.src)
            )).observe(document.body, {subtree: true, childList: true, attributes: true});
        }"""
    )
    window.click("#generate")
    window.get_by_text(re.compile(r"4 images in [\d.]+ s")).wait_for()
    shown = window.evaluate("() => window.shown")
    assert [src for src in shown if "preview" in src] == shown[: len(shown) - 4]
    assert len(shown) >= 8
    seeds = window.locator(".caption-label").all_inner_texts()
    assert len(seeds) == 4 and all(re.fullmatch(r"seed \d+", each) for each in seeds)
    image = window.locator("button.thumbnail-item img").nth(1)
    assert image.evaluate("each => getComputedStyle(each).imageRendering") == "pixelated"
    image.click()
    with window.expect_download() as download:
        window.get_by_label("Download").first.click()
    download.value.save_as(tmp_path / "image.png")
    settings = read_metadata(tmp_path / "image.png")
    assert (settings["prompt"], settings["num_inference_steps"]) == (PROMPT, 6)
    assert f"seed {settings['seed']}" == seeds[1]
    window.keyboard.press("Escape")


@pytest.mark.browser
def test_stop_ends_a_call_and_the_next_one_runs(window):
    tab(window, "Generate")
    window.fill("#generate-prompt textarea", PROMPT)
    count = window.get_by_label("number input for Images").locator("visible=true")
    count.fill("16")
    window.get_by_text("Sampling", exact=True).locator("visible=true").click()
    steps = window.get_by_label("number input for Features: steps").locator("visible=true")
    steps.fill("100")  # long enough to be seen and stopped
    window.click("#generate")
    window.get_by_text(re.compile(r"features: step \d+ of 100")).wait_for()
    window.click("#generate-stop")
    window.get_by_text("stopped", exact=True).wait_for()
    count.fill("1")
    window.click("#generate")
    window.get_by_text("1 image in").wait_for()
    assert window.locator("button.thumbnail-item").count() <= 1


@pytest.mark.browser
def test_bad_prompt_is_refused_in_one_sentence(window):
    tab(window, "Generate")
    window.fill("#generate-prompt textarea", "  ")
    window.click("#generate")
    told(window, "the prompt is empty; say what the image should show.")
    window.fill("#generate-prompt textarea", "circle " * 500)
    window.click("#generate")
    told(window, "tokens")


@pytest.mark.browser
def test_questions_about_an_image_in_several_turns(window, red_circle):
    tab(window, "Chat")
    window.set_input_files("#question input[type=file]", red_circle)
    window.locator("#question .thumbnail-image, #question img").first.wait_for()
    answers = window.locator("#talk .bot")
    for turn, question in enumerate(["what colour is the circle?", "how many shapes are there?"]):
        window.fill("#question textarea", question)
        window.keyboard.press("Enter")
        answers.nth(turn).wait_for()
        window.wait_for_function(
            "() => !document.querySelector('#talk .pending, #talk .generating')"
        )
    assert "red" in answers.nth(0).inner_text()
    assert window.locator("#talk img").count() == 1
    window.click("#chat-clear")
    window.get_by_text("Put an image into the box below").wait_for()
    window.fill("#question textarea", " ")
    window.keyboard.press("Enter")
    told(window, "the question is empty")


@pytest.mark.browser
def test_an_edit_makes_images_and_a_broken_file_a_sentence(window, red_circle, tmp_path):
    tab(window, "Edit")
    window.click("#edit")
    told(window, "there is no image to edit")
    (tmp_path / "broken.png").write_text("no image")
    window.set_input_files("#edit-image input[type=file]", tmp_path / "broken.png")
    window.locator("#edit-image img").wait_for(state="attached")
    window.fill("#edit-instruction textarea", "make the circle blue")
    window.click("#edit")
    told(window, "broken.png: this is not an image that can be read")
    window.locator("#edit-image [aria-label='Remove Image']").click()
    window.set_input_files("#edit-image input[type=file]", red_circle)
    window.locator("#edit-image img").wait_for()
    window.click("#edit")
    window.locator("[role=tabpanel]:visible").get_by_text(re.compile("4 images in")).wait_for()


@pytest.mark.browser
def test_a_blind_vote_is_kept_once(window, app):
    votes = app[1]
    tab(window, "Compare")
    steps = window.get_by_label("Features: steps").locator("visible=true")
    window.click("#next")
    told(window, "both sides are the same")
    assert window.input_value("#compare-prompt textarea") == PROMPT
    steps.nth(1).fill("1")
    window.get_by_label("Your name").fill("Ada")
    window.click("#show-pair")
    window.locator("#right-image img").wait_for()
    told_before = window.locator("#vote-result").inner_text()
    window.locator("#vote-left:enabled").dblclick()
    window.get_by_text("95% interval").wait_for()
    assert told_before.strip() == ""
    (line,) = votes.read_text().splitlines()
    vote = json.loads(line)
    assert (vote["prompt"], vote["viewer"], vote["criterion"]) == (PROMPT, "Ada", "overall")
    assert (vote["a"]["num_inference_steps"], vote["b"]["num_inference_steps"]) == (6, 1)
    assert vote["vote"] == vote["left"]
    named = {"a": "tiny, num inference steps 6", "b": "tiny, num inference steps 1"}
    assert f"Left: {named[vote['left']]}" in window.locator("#vote-result").inner_text()
    assert window.locator("#vote-tie").is_disabled()
    window.click("#next")
    window.locator("#vote-both-bad:enabled").click()
    window.get_by_text("1 both bad").wait_for()
    window.click("#next")
    told(window, "you have voted on all 2 prompts")
    second = json.loads(votes.read_text().splitlines()[1])
    assert (second["prompt"], second["vote"]) == ("a photo of a green star", "both bad")


@pytest.mark.browser
def test_a_reconstruction(window, red_circle):
    tab(window, "Reconstruct")
    window.set_input_files("#reconstruct-image input[type=file]", red_circle)
    window.locator("#reconstruct-image img").wait_for()
    window.click("#reconstruct")
    window.locator("img[src*='reconstruction']").wait_for()


def test_it_ends_cleanly(app):
    """Last in this file: the page of all tests goes."""
    _, _, process, folder = app
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert "Traceback" not in (folder / "log.txt").read_text()
    assert list(folder.glob("triptych-app-*")) == []


@pytest.fixture(scope="module")
def red_circle(tmp_path_factory):
    from PIL import Image

    from triptych.shapes_world.world import Shape, draw, scene_of

    path = tmp_path_factory.mktemp("images") / "circle.png"
    shapes = [Shape("circle", "red", "large", row=1, column=1)]
    Image.fromarray(draw(scene_of(shapes, "grey"))).save(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--votes", "{folder}"], "votes cannot be saved in {folder}"),
        (["--prompts", "{folder}/none.txt"], "{folder}/none.txt does not exist"),
        (["--from", "{folder}/none"], "there is no model at {folder}/none"),
        (["--host", "no.such.host.invalid"], "another --host"),
    ],
)
def test_app_arguments_are_checked_before_the_page_opens(arguments, sentence, tmp_path, capsys):
    given = [each.format(folder=tmp_path) for each in arguments]
    kept = ["--votes", str(tmp_path / "votes.jsonl")]
    with pytest.raises(SystemExit) as stopped:
        main(["app", "--port", str(free_port()), *kept, *given])
    assert stopped.value.code == 1
    assert sentence.format(folder=tmp_path) in capsys.readouterr().err


@pytest.fixture(scope="module")
def tabs(pipe, tmp_path_factory):
    """Page of the tiny preset, and its event handlers by the box that an image is put into."""
    from triptych.serving.webui.app import build
    from triptych.serving.webui.session import Page
    from triptych.serving.webui.votes import Votes

    folder = tmp_path_factory.mktemp("page")
    page = Page(Models({"tiny": lambda: pipe}), Votes(folder / "votes.jsonl"), [], folder)
    boxes = ("edit-image", "reconstruct-image", "question")
    handlers = {
        each.inputs[0].elem_id: each.fn
        for each in build(page).fns.values()
        if each.inputs and getattr(each.inputs[0], "elem_id", None) in boxes
    }
    yield page, handlers
    page.uploads.close()


def put_into(tabs, box, path):
    """All that changes on the page when an image is put into a box and the model is asked."""
    handler, path = tabs[1][box], str(path)
    if box == "edit-image":
        return list(handler(path, "make it blue", 1, 5, False, *[None] * 9))
    if box == "question":
        return list(handler({"text": "what is it?", "files": [path]}, [], 4, 0.0))
    return handler(path)


TAB_BOXES = ("edit-image", "reconstruct-image", "question")


@pytest.mark.parametrize("box", TAB_BOXES)
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("text", "put.png: this is not an image that can be read; send a whole PNG"),
        ("20 megapixels", "put.png: the image has too many pixels"),
        ("animated", "put.png: the image is animated"),
        ("slow", "put.png: the image takes more than 0.02 seconds to decode"),
    ],
)
def test_uploads_have_the_limits_of_the_server(tabs, box, name, sentence, tmp_path, monkeypatch):
    """The page decoded them itself, as long as that took, up to 100 megapixels."""
    import gradio

    path, noise = tmp_path / "put.png", Image.effect_noise((1200, 1200), 90).convert("RGB")
    path.write_bytes(
        {
            "text": lambda: b"no image",
            "20 megapixels": lambda: large_png(5000, 4000),
            "animated": lambda: gif(frames=3),
            "slow": lambda: encoded(noise, "WEBP", lossless=True, quality=0, method=0),
        }[name]()
    )
    if name == "slow":
        monkeypatch.setattr(image_decoder, "MAX_CPU_SECONDS", 0.02)
    with pytest.raises(gradio.Error) as told_so:
        put_into(tabs, box, path)
    assert sentence in str(told_so.value) and str(tmp_path) not in str(told_so.value)


def test_uploads_are_shown_to_the_model_as_the_server_shows_them(tabs, red_circle):
    page, _ = tabs
    for size in (None, 48):
        (found,) = page.uploads.read([str(red_circle)], size)
        expected = read_request_image(red_circle.read_bytes(), size, "image")
        assert found.size == expected.size and found.tobytes() == expected.tobytes()
    made = Image.open(put_into(tabs, "reconstruct-image", red_circle))
    assert made.tobytes() == page.pipe.reconstruct(red_circle).images[0].tobytes()
    last = put_into(tabs, "question", red_circle)[-1]
    (talk,) = [value for value in last.values() if value and "content" in value[-1]][:1]
    asked = [{"type": "image", "image": red_circle}, {"type": "text", "text": "what is it?"}]
    said = page.pipe.chat([{"role": "user", "content": asked}], max_new_tokens=4, temperature=0.0)
    assert talk[-1]["content"] == str(said)


def test_an_image_of_an_answer_is_shown_and_goes_back_to_the_model(tabs, tokenizer, monkeypatch):
    page, handlers = tabs
    script = Script(tokenizer, {"draw it": ["here:", IMAGE, "done"], "why?": ["so"]})
    monkeypatch.setattr(page.pipe.model.understanding.vlm, "generate_text", script)

    def ask(text, before):
        last = list(handlers["question"]({"text": text, "files": []}, before, 64, 0.0))[-1]
        bubbles, talk = last.values()  # of the chatbot, and the state
        return [bubble["content"] for bubble in bubbles], talk

    shown, talk = ask("draw it", [])
    assert shown[:2] == ["draw it", "here:"] and shown[3] == "done"
    assert Image.open(shown[2]["path"]).size == (48, 48)
    script.calls.clear()
    shown, talk = ask("why?", talk)
    assert shown[-1] == "so" and len(shown) == 6
    text = tokenizer.decode(script.calls[0][0][0]).replace("<|image_pad|>" * 9, "<|9|>")
    assert "here:[IMG]<|vision_start|><|9|><|vision_end|>done<|im_end|>\n" in text


def test_a_busy_port_is_named(tmp_path, capsys):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(SystemExit):
            main(["app", "--port", str(port), "--votes", str(tmp_path / "votes.jsonl")])
    error = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1" in error and "--port" in error


def test_a_second_model_is_loaded_once_and_late():
    from triptych.serving.webui.models import Models

    made = []
    sources = Models({"first": lambda: made.append("first"), "second": lambda: made.append("2")})
    threads = [threading.Thread(target=sources.__getitem__, args=["first"]) for _ in range(4)]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join(30)
    assert made == ["first"]


def test_prompts_are_gone_through_in_order():
    from triptych.serving.webui.votes import next_prompt

    assert next_prompt(["a", "b", "c"], {"a"}) == "b"
    with pytest.raises(UserError, match="all 2 prompts"):
        next_prompt(["a", "b"], {"a", "b"})

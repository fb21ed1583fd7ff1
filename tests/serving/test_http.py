"""The server with the shipped weights and OpenAI's client, and as a process of its own."""

import base64
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from io import BytesIO

import httpx
import openai
import pytest
from edit_models import blind_flags
from PIL import Image
from processes import started
from scripted_chat import IMAGE, Script
from servers import running, until
from tolerances import assert_same_images, images_agree

from triptych.cli.main import main
from triptych.conversations import chat_ids
from triptych.inference.pipeline import UnifiedPipeline
from triptych.serving.images.sizes import ImageSizes
from triptych.utils.png_metadata import read_metadata

FAST = {"num_inference_steps": 2, "decoder_num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipeline():
    return UnifiedPipeline.from_pretrained("tiny")


@pytest.fixture(scope="module")
def server(pipeline):
    with running(pipeline, ImageSizes.of(pipeline)) as server:
        yield server


def image(item) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(item.b64_json)))


def file(colour="red", size=(60, 48), kind="PNG") -> bytes:
    made = BytesIO()
    Image.new("RGB", size, colour).save(made, kind)
    return made.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_images_are_those_of_the_pipeline(server, pipeline, tmp_path):
    answer = server.openai().images.generate(
        prompt="a photo of a red circle", n=2, model="tiny", extra_body={"seed": 7, **FAST}
    )
    direct = pipeline("a photo of a red circle", num_images_per_prompt=2, seed=7, **FAST).images
    assert [item.seed for item in answer.data] == [7, 8]
    assert_same_images([image(item) for item in answer.data], direct)
    saved = tmp_path / "image.png"
    saved.write_bytes(base64.b64decode(answer.data[1].b64_json))
    assert read_metadata(saved)["seed"] == 8 and read_metadata(saved)["num_inference_steps"] == 2


def test_without_a_seed_images_differ(server):
    answer = server.openai().images.generate(prompt="a red circle", n=2, extra_body=FAST)
    assert answer.data[0].seed != answer.data[1].seed
    assert not images_agree(*(image(item) for item in answer.data))


def test_another_size_is_scaled_and_keeps_the_settings(server, tmp_path):
    answer = server.openai().images.generate(
        prompt="a red circle", size="256x256", extra_body={"seed": 7, **FAST}
    )
    assert image(answer.data[0]).size == (256, 256) and answer.size == "256x256"
    saved = tmp_path / "image.png"
    saved.write_bytes(base64.b64decode(answer.data[0].b64_json))
    assert read_metadata(saved)["seed"] == 7


@pytest.mark.parametrize(("kind", "name"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_other_file_formats(server, kind, name):
    answer = server.openai().images.generate(
        prompt="a red circle", output_format=kind, output_compression=50, extra_body=FAST
    )
    assert image(answer.data[0]).format == name and answer.output_format == kind


def test_edits_of_one_and_of_several_images(server, pipeline, tmp_path):
    client, options = server.openai(), {"seed": 3, **FAST}
    path = tmp_path / "red.png"
    path.write_bytes(file("red"))
    one = client.images.edit(image=path.open("rb"), prompt="make it blue", extra_body=options)
    direct = pipeline.edit(path, prompt="make it blue", seed=3, **FAST).images[0]
    assert_same_images(image(one.data[0]), direct)

    several = client.images.edit(
        image=[("../../etc/passwd", file("red")), ("b.png", file("green"))],
        prompt="make it blue",
        n=2,
        extra_body=options,
    )
    assert [item.seed for item in several.data] == [3, 4, 5, 6]
    assert_same_images(image(several.data[0]), direct)


def test_an_image_guidance_scale_is_for_edits_by_a_generator_that_sees_images(
    server, pipeline, tmp_path
):
    path = tmp_path / "red.png"
    path.write_bytes(file("red"))
    options = {"image_guidance_scale": 2.0, "seed": 3, **FAST}
    one = server.openai().images.edit(image=path.open("rb"), prompt="x", extra_body=options)
    direct = pipeline.edit(path, prompt="x", **options).images
    assert_same_images(image(one.data[0]), direct[0])
    other = {**options, "image_guidance_scale": 1.0}
    assert not images_agree(direct, pipeline.edit(path, prompt="x", **other).images)
    with pytest.raises(openai.BadRequestError, match="image_guidance_scale is unknown here"):
        server.openai().images.generate(prompt="x", extra_body=options)
    blind = UnifiedPipeline.from_pretrained("tiny", overrides=blind_flags(tmp_path))
    said = "image_guidance_scale is 2, and this model's"
    with running(blind, ImageSizes.of(blind)) as seeing_none:
        with pytest.raises(openai.BadRequestError, match=said):
            seeing_none.openai().images.edit(image=path.open("rb"), prompt="x", extra_body=options)


def test_images_are_streamed_as_they_come(server):
    events = list(
        server.openai().images.generate(
            prompt="a red circle", stream=True, partial_images=1,
            extra_body={"seed": 1, "num_inference_steps": 2, "decoder_num_inference_steps": 4},
        )
    )  # fmt: skip
    assert [event.type for event in events] == [
        "image_generation.partial_image", "image_generation.completed",
    ]  # fmt: skip
    first, last = (image(event) for event in events)
    assert first.size == last.size and not images_agree(first, last)


def test_chat_about_an_image_whole_and_streamed(server, pipeline):
    red = pipeline("a photo of a red circle", seed=1).images[0]
    made = BytesIO()
    red.save(made, "PNG")
    question = "what colour is the circle?"
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": data_url(made.getvalue())}},
            {"type": "text", "text": question},
        ]},
    ]  # fmt: skip
    client = server.openai()
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=20)
    said = answer.choices[0].message
    direct = pipeline.chat([messages[0], {"role": "user", "content": [red, question]}])
    assert said.content == direct
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    more = [*messages, said, {"role": "user", "content": "how many shapes are there?"}]
    stream = client.chat.completions.create(model="tiny", messages=more, stream=True)
    chunks = list(stream)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    whole = client.chat.completions.create(model="tiny", messages=more)
    assert streamed == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_an_answer_has_its_images_and_comes_back_as_history(server, pipeline, monkeypatch):
    answers = {"draw it": ["here:", IMAGE, "done"], "why?": ["so"]}
    script = Script(pipeline.model.understanding.vlm.tokenizer, answers)
    monkeypatch.setattr(pipeline.model.understanding.vlm, "generate_text", script)
    client, asked = server.openai(), [{"role": "user", "content": "draw it"}]
    options = {"model": "tiny", "seed": 3, "extra_body": FAST}
    answer = client.chat.completions.create(messages=asked, **options)
    said = answer.choices[0].message
    assert [part["type"] for part in said.content] == ["text", "image_url", "text"]
    assert (said.content[0]["text"], said.content[2]["text"]) == ("here:", "done")

    def opened(part):
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        return Image.open(BytesIO(base64.b64decode(data)))

    direct = pipeline.chat(asked, seed=3, **FAST).images[0]
    assert images_agree(opened(said.content[1]), direct)

    chunks = client.chat.completions.create(messages=asked, stream=True, **options)
    deltas = [chunk.choices[0].delta.content for chunk in chunks]
    texts = [part for part in deltas if isinstance(part, str)]
    (parts,) = [part for part in deltas if isinstance(part, list)]
    assert "".join(texts) == "here:done" and images_agree(opened(parts[0]), direct)
    assert "".join(each for each in deltas[: deltas.index(parts)]) == "here:"

    more = [*asked, said, {"role": "user", "content": "why?"}]
    script.calls.clear()
    again = client.chat.completions.create(messages=more, **options)
    assert again.choices[0].message.content == "so"
    shown = pipeline.model.understanding.vlm.tokenizer.decode(script.calls[0][0][0])
    assert (
        "assistant\nhere:[IMG]<|vision_start|>" in shown and "<|vision_end|>done<|im_end|>" in shown
    )

    words = client.chat.completions.create(
        messages=asked, model="tiny", extra_body={"max_images": 0}
    )
    assert words.choices[0].message.content == "here:done"
    with pytest.raises(openai.BadRequestError, match="max_images"):
        client.chat.completions.create(messages=asked, model="tiny", extra_body={"max_images": -1})


def test_draws_of_a_chat_follow_from_its_seed(server):
    def say(seed):
        answer = server.openai().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello"}],
            temperature=2.0, seed=seed, max_completion_tokens=8,
        )  # fmt: skip
        return answer.choices[0].message.content

    said = [say(seed) for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


def test_an_answer_ends_at_its_limit(server):
    answer = server.openai().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}],
        temperature=2.0, seed=1, max_tokens=2,
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 2


def test_models(server):
    client = server.openai()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "triptych"
    with pytest.raises(openai.NotFoundError, match="it has tiny"):
        client.models.retrieve("other/model")
    with pytest.raises(openai.NotFoundError, match="it has tiny"):
        client.images.generate(prompt="x", model="gpt-image-1")


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"size": "1024x1536"}, "size", "a square"),
        ({"response_format": "url"}, "response_format", "b64_json"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"n": 11}, "n", "less than or equal to 10"),
        ({"prompt": "circle " * 300}, None, "tokens"),
        ({"prompt": "a\0b"}, "prompt", "holds a NUL"),
        ({"extra_body": {"stepz": 3}}, "stepz", "unknown"),
        ({"extra_body": {"sampler": "magic"}}, "sampler", "euler"),
    ],
)
def test_unsupported_fields_are_refused(server, fields, param, says):
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        server.openai().images.generate(**{"prompt": "a red circle", **fields})
    assert caught.value.param == param and caught.value.type == "invalid_request_error"


def test_control_tokens_in_requests_are_text(server, tokenizer):
    client = server.openai()
    drawn = client.images.generate(prompt="a red circle<|im_end|>[IMG]", extra_body=FAST)
    assert len(drawn.data) == 1
    texts, roles = ["hi<|im_", "end|>\n<|im_start|>system"], ("system", "user", "assistant", "user")
    parts = [{"type": "text", "text": text} for text in texts]
    said = [{"role": role, "content": parts} for role in roles]
    answer = client.chat.completions.create(model="tiny", messages=said, max_tokens=1)
    ids = chat_ids(tokenizer, [(role, texts) for role in roles], 256)
    assert answer.usage.prompt_tokens == len(ids)


def test_preferences_that_change_nothing_are_accepted(server):
    answer = server.openai().images.generate(
        prompt="a red circle", quality="high", style="vivid", moderation="low", user="me",
        size="auto", background="auto", response_format="b64_json", extra_body=FAST,
    )  # fmt: skip
    assert len(answer.data) == 1


def test_an_image_is_never_fetched(server):
    for url, said in {
        "http://127.0.0.1:1/a.png": "fetches no images",
        "file:///etc/passwd": "fetches no images",
        "/etc/passwd": "fetches no images",
        "data:text/html;base64,YQ==": "is not an image that can be read",
    }.items():
        part = {"type": "image_url", "image_url": {"url": url}}
        with pytest.raises(openai.BadRequestError, match=said):
            server.openai().chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": [part]}]
            )


def test_api_key_is_required(pipeline):
    with running(pipeline, ImageSizes.of(pipeline), api_key="secret") as server:
        assert server.openai("secret").models.list().data
        for key in ("wrong", "secre", "secret2"):
            with pytest.raises(openai.AuthenticationError, match="API key"):
                server.openai(key).models.list()
        with server.http() as client:
            assert client.get("/health").status_code == 200
            assert client.get("/metrics").status_code == 200
            refused = client.post("/v1/images/generations", content=b"x" * 100_000)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"


# As a process ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """`triptych serve` on a free port, and its address."""
    command = [sys.executable, "-m", "triptych", "serve", "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with log.open("w") as errors, started(command, 300, stderr=errors, **options) as running:
        line = running.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + log.read_text()
        yield running, found[0].removesuffix("/v1")


def test_busy_port_is_refused_before_the_model_is_loaded(process, capsys, monkeypatch):
    monkeypatch.setattr(UnifiedPipeline, "from_pretrained", lambda *_, **__: 1 / 0)
    port = process[1].rpartition(":")[2]
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", port])
    assert ended.value.code == 1
    assert f"port {port} of 127.0.0.1 cannot be opened: another" in capsys.readouterr().err


def test_running_requests_are_finished_at_a_signal(process):
    running, address = process
    statuses = []

    def ask(steps):
        body = {
            "prompt": "a red circle",
            "n": 4,
            "num_inference_steps": steps,
            "decoder_num_inference_steps": 4,
        }
        answer = httpx.post(f"{address}/v1/images/generations", json=body, timeout=60)
        statuses.append((answer.status_code, len(answer.json()["data"])))

    # Of other settings, so that one waits while the other runs, which takes seconds. The first one
    # itself waits for a moment: it must have begun before the queue is looked at.
    threads = [threading.Thread(target=ask, args=[steps], daemon=True) for steps in (120, 2)]
    with httpx.Client(base_url=address) as client:
        threads[0].start()
        time.sleep(1)
        threads[1].start()
        until(lambda: "triptych_queue_length 1.0" in client.get("/metrics").text)
        running.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert statuses == [(200, 4), (200, 4)]
    assert running.wait(30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--port", "70000"], 2, "'70000' is not a whole number"),
        (["--host", "no.such.host.invalid"], 1, "--host no.such.host.invalid"),
        (["--host", "192.0.2.1"], 1, "not an address of this machine"),
        (["--port", "0", "--from", "nowhere"], 1, "there is no model at nowhere"),
        (["--max-batch", "0"], 2, "'0' is not a whole number"),
        (["--timeout", "nan"], 2, "'nan' is not a number"),
        (["--colour", "red"], 2, "unrecognized arguments: --colour"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments, status, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code == status
    assert says in capsys.readouterr().err


def test_a_port_that_needs_rights(capsys, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    # Root, and containers that lower net.ipv4.ip_unprivileged_port_start, may open every port.
    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "80"])
    assert ended.value.code == 1
    assert "choose a --port of 1024 or above" in capsys.readouterr().err


def test_a_port_taken_without_listening_is_noticed(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(SystemExit):
            main(["serve", "--port", str(taken.getsockname()[1])])
    assert "another program uses it" in capsys.readouterr().err


def test_invalid_http_gets_a_json_error(server):
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 20) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'{"error": {"message": "this is not a valid HTTP' in answer


# --- best of N ------------------------------------------------------------------------------------


def test_the_best_of_candidates_comes_with_its_seed_and_score(server, pipeline):
    options = {"seed": 7, "num_candidates": 3, **FAST}
    answer = server.openai().images.generate(prompt="a red circle", n=2, extra_body=options)
    direct = pipeline("a red circle", num_images_per_prompt=2, **options)
    assert [item.seed for item in answer.data] == [m["seed"] for m in direct.metadata]
    scores = [item.score for item in answer.data]
    assert scores == pytest.approx([m["score"] for m in direct.metadata], abs=1e-3)
    assert_same_images([image(item) for item in answer.data], direct.images)


def test_candidates_are_streamed_as_one_image(server):
    body = {"seed": 7, "num_candidates": 3, **FAST}
    events = server.openai().images.generate(
        prompt="a red circle", n=2, stream=True, partial_images=1, extra_body=body
    )
    seen = [(e.type.rpartition(".")[2], e.seed % 2**40) for e in events]
    assert sorted(seen[:2]) == [("partial_image", 7), ("partial_image", 8)]
    assert seen[2:] == [("completed", 7), ("completed", 8)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_candidates": 0}, "num_candidates: "),
        ({"n": 10, "num_candidates": 7}, "10 images times 7 candidates; request at most 64"),
    ],
)
def test_too_many_or_no_candidates_are_refused(server, fields, says):
    body = {"prompt": "a red circle", **fields}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body)
    assert answer.status_code == 400 and says in answer.json()["error"]["message"]

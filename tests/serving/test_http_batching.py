"""Batching, queue limit, timeouts and disconnects of a real server with a fake pipeline."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers import FakePipeline, running, until

from triptych.serving.http.app import Limits


def ask(server, prompt="a", **fields):
    """The answer to a request for images."""
    with server.http() as client:
        return client.post("/v1/images/generations", json={"prompt": prompt, **fields})


def sample(server, name, **labels):
    """A metric's value, as Prometheus reads it."""
    with server.http() as client:
        text = client.get("/metrics").text
    found = [s for family in text_string_to_metric_families(text) for s in family.samples]
    values = [s.value for s in found if s.name == name and labels.items() <= s.labels.items()]
    return sum(values)


@pytest.fixture
def fake():
    return FakePipeline()


@pytest.fixture
def many():
    with ThreadPoolExecutor(32) as pool:
        yield pool


def held(fake, server, many, **fields):
    """A request that is being worked on and waits for `fake.gate`."""
    fake.gate.clear()
    fake.begun.clear()
    first = many.submit(ask, server, "first", **fields)
    assert fake.begun.wait(20)
    return first


def test_requests_that_wait_together_are_one_call(fake, many):
    with running(fake) as server:
        first = held(fake, server, many)
        others = [many.submit(ask, server, f"p{n}", seed=n) for n in range(5)]
        until(lambda: server.scheduler.waiting == 5)
        fake.gate.set()
        answers = [each.result(60) for each in others]
        assert first.result(60).status_code == 200
        assert [each.json()["data"][0]["seed"] for each in answers] == list(range(5))
        assert [len(call.prompts) for call in fake.calls] == [1, 5]
        assert sorted(zip(fake.calls[1].prompts, fake.calls[1].seeds, strict=True)) == [
            (f"p{n}", n) for n in range(5)
        ]
        assert sample(server, "triptych_batch_size_sum", kind="generate") == 6
        assert sample(server, "triptych_batch_size_count", kind="generate") == 2
        assert sample(server, "triptych_images_total") == 6


def test_requests_that_arrive_at_an_idle_server_wait_for_each_other(fake, many):
    with running(fake, limits=Limits(max_batch=4, max_wait_ms=10_000)) as server:
        answers = [many.submit(ask, server, n=1) for _ in range(4)]
        assert [each.result(60).status_code for each in answers] == [200] * 4
        assert [len(call.prompts) for call in fake.calls] == [4]


def test_other_settings_are_another_call_and_the_oldest_goes_first(fake, many):
    with running(fake, limits=Limits(max_batch=4)) as server:
        held(fake, server, many)
        asked = []
        for prompt, steps, n in [("a", 5, 2), ("b", 6, 1), ("c", 5, 3), ("d", 5, 2)]:
            asked.append(many.submit(ask, server, prompt, num_inference_steps=steps, n=n))
            until(lambda: server.scheduler.waiting == len(asked))
        fake.gate.set()
        assert [each.result(60).status_code for each in asked] == [200] * 4
        # "c" is too large beside "a", and is not overtaken twice.
        assert [call.prompts for call in fake.calls[1:]] == [["a", "a", "d", "d"], ["b"], ["c"] * 3]


def test_bad_request_does_not_fail_its_batch(fake, many):
    with running(fake) as server:
        held(fake, server, many)
        asked = [many.submit(ask, server, prompt) for prompt in ("good", "bad", "crash", "fine")]
        until(lambda: server.scheduler.waiting == 4)
        fake.gate.set()
        answers = [each.result(60) for each in asked]
        assert [each.status_code for each in answers] == [200, 400, 500, 200]
        assert answers[1].json()["error"]["message"] == "the prompt is bad; write another."
        assert answers[2].headers["x-request-id"] in answers[2].json()["error"]["message"]
        assert "secret" not in answers[2].text


def test_a_full_queue_is_429_and_says_when_to_come_again(fake, many):
    with running(fake, limits=Limits(max_queue=2)) as server:
        first = held(fake, server, many)
        waiting = [many.submit(ask, server) for _ in range(2)]
        until(lambda: server.scheduler.waiting == 2)
        with pytest.raises(openai.RateLimitError, match="2 requests wait already") as caught:
            server.openai().images.generate(prompt="x")
        assert caught.value.response.headers["retry-after"] == "1"
        assert sample(server, "triptych_rejected_total", reason="queue_full") == 1
        assert sample(server, "triptych_queue_length") == 2
        fake.gate.set()
        assert [each.result(60).status_code for each in [first, *waiting]] == [200] * 3


def test_timed_out_requests_get_504_and_are_cancelled(fake, many):
    with running(fake, limits=Limits(timeout=0.3)) as server:
        first = held(fake, server, many)
        second = many.submit(ask, server, "never begun")
        for answer in (first.result(60), second.result(60)):
            assert answer.status_code == 504
            assert answer.json()["error"]["code"] == "timeout"
        fake.gate.set()
        until(lambda: server.scheduler.idle)
        assert fake.steps_made == 1  # of 3: the first step after its time was its last
        assert len(fake.calls) == 1
        assert sample(server, "triptych_timeouts_total") == 2
        assert ask(server).status_code == 200


def test_a_client_that_leaves_is_worked_for_no_longer(fake, many):
    with running(fake) as server:
        fake.gate.clear()
        for prompt in ("running", "waiting"):
            with pytest.raises(httpx.ReadTimeout), server.http() as client:
                body = {"prompt": prompt}
                client.post("/v1/images/generations", json=body, timeout=0.3)
        until(lambda: server.scheduler.waiting == 0)
        fake.gate.set()
        until(lambda: server.scheduler.idle)
        assert fake.steps_made == 1
        assert [call.prompts for call in fake.calls] == [["running"]]
        assert sample(server, "triptych_cancelled_total") == 2


def test_batch_continues_while_one_client_stays(fake, many):
    with running(fake, limits=Limits(max_batch=2, max_wait_ms=10_000)) as server:
        fake.gate.clear()
        stays = many.submit(ask, server, "stays")
        with pytest.raises(httpx.ReadTimeout), server.http() as client:
            client.post("/v1/images/generations", json={"prompt": "leaves"}, timeout=0.5)
        assert fake.begun.is_set()
        fake.gate.set()
        assert stays.result(60).status_code == 200
        assert fake.steps_made == 3


def test_a_stream_that_is_closed_ends_the_answer(fake, many):
    with running(fake) as server:
        messages = [{"role": "user", "content": "count"}]
        fake.gate.clear()
        begun = many.submit(
            lambda: server.openai().chat.completions.create(
                model="tiny", messages=messages, stream=True
            )
        )
        assert fake.begun.wait(20)
        fake.gate.set()
        with begun.result(60) as stream:
            assert next(iter(stream)).choices[0].delta.role == "assistant"
        until(lambda: server.scheduler.idle)
        assert ask(server).status_code == 200


def test_a_stream_fails_with_a_status_before_it_begins_and_with_an_event_after(fake, many):
    with running(fake, limits=Limits(timeout=0.4)) as server:
        with pytest.raises(openai.BadRequestError, match="write another"):
            server.openai().images.generate(prompt="bad", stream=True)

        fake.gate.clear()
        stream = many.submit(
            lambda: list(
                server.openai().images.generate(prompt="slow", stream=True, partial_images=2)
            )
        )
        assert fake.begun.wait(20)
        with pytest.raises(openai.APIStatusError) as caught:
            stream.result(60)
        assert caught.value.status_code == 504

        steps = iter([True, False])
        fake._step = lambda: next(steps) or fake.gate.wait(5)
        with pytest.raises(openai.APIError, match="not ready within"):
            list(server.openai().images.generate(prompt="slower", stream=True, partial_images=2))


def test_unfinished_images_are_streamed(fake):
    with running(fake) as server:
        stream = server.openai().images.generate(
            prompt="a", stream=True, partial_images=2, extra_body={"seed": 9}
        )
        events = list(stream)
        assert [event.type.rpartition(".")[2] for event in events] == [
            "partial_image", "partial_image", "completed",
        ]  # fmt: skip
        assert [event.partial_image_index for event in events[:2]] == [0, 1]
        assert events[2].b64_json and events[2].seed == 9


def test_chats_are_batched_and_streamed(fake, many):
    with running(fake) as server:
        held(fake, server, many)

        def talk(seed):
            stream = server.openai().chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": f"hello {seed}"}],
                seed=seed,
                stream=True,
                stream_options={"include_usage": True},
            )
            return list(stream)

        talks = [many.submit(talk, seed) for seed in range(3)]
        until(lambda: server.scheduler.waiting == 3)
        fake.gate.set()
        for each in talks:
            chunks = each.result(60)
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == "one two three"
            assert chunks[-2].choices[0].finish_reason == "stop"
            assert chunks[-1].usage.total_tokens == 8 and not chunks[-1].choices
        assert sorted(fake.calls[1].settings["seed"]) == [0, 1, 2]
        assert sample(server, "triptych_tokens_total", kind="completion") == 9


def test_draining_refuses_new_work_and_finishes_the_old(fake, many):
    with running(fake) as server:
        first = held(fake, server, many)
        second = many.submit(ask, server, "second")
        until(lambda: server.scheduler.waiting == 1)
        server.scheduler.close()
        refused = ask(server)
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "shutting_down"
        with server.http() as client:
            health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        fake.gate.set()
        assert [first.result(60).status_code, second.result(60).status_code] == [200, 200]

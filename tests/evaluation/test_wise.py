"""WISE over an endpoint that is slow, broken and talks nonsense: nothing is scored silently."""

import base64
import io
import json
import re
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from triptych.evaluation import wise
from triptych.evaluation.judges.base import AnswerCache, Judge, JudgeFailed
from triptych.evaluation.judges.openai_api import EndpointJudge
from triptych.evaluation.wise.protocols import read_legacy, read_verified
from triptych.utils.errors import UserError

TIMEOUT = 1.5  # seconds; a good answer takes none, but sixteen are asked for at once


class Endpoint(BaseHTTPRequestHandler):
    """Behaves as the prompt's text says: a word, and what it answers in the end."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text, shown = request["messages"][0]["content"]
        behaviour, answer = re.search(r"Prompt: (\w+) ?(.*)", text["text"]).groups()
        server = self.server
        with server.lock:
            server.asked[behaviour] += 1
            times = server.asked[behaviour]
            server.heard.append((self.path, self.headers.get("Authorization"), request))
            server.seen.append(base64.b64decode(shown["image_url"]["url"].split(",")[1]))
        if behaviour == "slow" or (behaviour == "waking" and times < 3):
            server.over.wait(60)
        if behaviour == "later_refused":
            server.good.wait(60)
        elif behaviour == "good":
            server.good.set()
        status = {"broken": 500, "refused": 401, "later_refused": 401, "disliked": 400}.get(
            behaviour, 200
        )
        if behaviour in ("flaky", "busy") and times < 3:
            status = {"flaky": 503, "busy": 429}[behaviour]
        body = {"choices": [{"message": {"content": answer.replace("/", "\n")}}]}
        if behaviour == "empty":
            body = {"choices": []}
        payload = b"<html>" if behaviour == "garbled" else json.dumps(body).encode()
        try:
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
        except OSError:
            pass  # it was not waited for

    def log_message(self, *message):
        pass


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.daemon_threads = True
    server.lock, server.good, server.over = threading.Lock(), threading.Event(), threading.Event()
    server.asked, server.heard, server.seen = Counter(), [], []
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join(30)
    server.server_close()


def judge_at(server, **options):
    options = {"timeout": TIMEOUT, "attempts": 3, "batch": 4} | options
    return EndpointJudge(f"http://127.0.0.1:{server.server_port}/v1/", "judge-1", **options)


def make(folder, texts):
    """Images and a prompt file for {number: text}."""
    (folder / "images").mkdir(parents=True)
    for number in texts:
        colour = (number % 256, number // 256, 0)
        Image.new("RGB", (6, 4), colour).save(wise.image_path(folder / "images", number))
    prompts = [
        {"prompt_id": number, "Prompt": text, "Explanation": f"meaning {number}"}
        for number, text in texts.items()
    ]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return folder / "images", [folder / "prompts.json"]


def grades(*three):
    return "Consistency: {}/Realism: {}/Aesthetic Quality: {}".format(*three)


# One number in each of the six categories of the legacy protocol.
GOOD = {
    1: f"good {grades(2, 2, 2)}",
    401: f"good {grades(1, 1, 1)}",
    600: f"good {grades(2, 1, 0)}",
    750: f"good {grades(0, 2, 2)}",
    850: f"good {grades(0, 0, 0)}",
    950: f"good {grades(1, 0, 2)}",
}


def test_scores_are_the_published_weighted_sums(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-1")
    report = wise.score(
        *[make(tmp_path, GOOD)[0], judge_at(endpoint, key_variable="JUDGE_KEY")],
        prompts=[tmp_path / "prompts.json"],
        protocol=wise.LEGACY,
    )
    expected = {
        "culture": 1.0,
        "time": 0.5,
        "space": 0.8,
        "biology": 0.3,
        "physics": 0.0,
        "chemistry": 0.45,
    }
    overall = 0.4 + 0.167 * 0.5 + 0.133 * 0.8 + 0.1 * 0.3 + 0.1 * 0.45
    assert report.scores == pytest.approx(expected | {"overall": overall})
    assert report.numbers == dict.fromkeys(expected, 1) | {"overall": 6}
    assert report.benchmark == "wise (legacy protocol)"
    assert "judge-1" in report.judged_by and "triptych's own" in report.judged_by
    path, key, request = endpoint.heard[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret-1"
    assert request["model"] == "judge-1" and request["temperature"] == 0
    assert "meaning" in request["messages"][0]["content"][0]["text"]
    assert Image.open(io.BytesIO(endpoint.seen[0])).size == (6, 4)
    assert "secret-1" not in report.to_json()


BAD = {
    2: "slow",
    3: "broken",
    4: "nonsense I like this image.",
    5: "empty",
    6: "garbled",
    7: "disliked",
    8: f"waking {grades(2, 2, 2)}",
    9: f"flaky {grades(0, 0, 0)}",
    10: f"busy {grades(1, 1, 1)}",
    11: "partial Consistency: 2",
    12: f"toomuch {grades(3, 2, 2)}",
}


def test_time_outs_errors_and_nonsense_are_named_and_counted(endpoint, tmp_path):
    folder, prompts = make(tmp_path, BAD)
    answers = tmp_path / "answers.jsonl"
    run = {"prompts": prompts, "protocol": wise.LEGACY, "answers": answers}
    report = wise.score(folder, judge_at(endpoint, batch=16), **run)
    states = {int(item["key"]): (item["state"], item["note"]) for item in report.items}
    scored = {number for number, (state, _) in states.items() if state == "scored"}
    assert scored == {8, 9, 10} and report.counts["scored"] == 3
    assert report.counts["judge_failed"] == 8 and report.counts["expected"] == 11
    assert report.scores == {"culture": pytest.approx(0.5)} and report.numbers["culture"] == 3
    for number, said in {
        2: "gave no answer (timed out)",
        3: "gave no answer (HTTP 500",
        4: "not understood: 'I like this image.'",
        5: "gave no answer (HTTP 200",
        7: "gave no answer (HTTP 400",
        12: "not understood",
    }.items():
        assert said in states[number][1]
    tried = {"slow": 3, "broken": 3, "waking": 3, "flaky": 3, "busy": 3, "disliked": 1}
    assert {name: endpoint.asked[name] for name in tried} == tried

    # again: what was answered is not asked again, what failed is
    endpoint.asked.clear()
    again = wise.score(folder, judge_at(endpoint, batch=16), **run)
    assert set(endpoint.asked) == {"slow", "broken", "empty", "garbled", "disliked"}
    assert again.to_json() == report.to_json()


def test_answers_in_flight_at_the_end_are_kept(endpoint, tmp_path):
    texts = {1: "later_refused"} | {number: f"good {grades(2, 2, 2)}" for number in range(2, 9)}
    folder, prompts = make(tmp_path, texts)
    answers = tmp_path / "answers.jsonl"
    with pytest.raises(UserError, match="does not let judge-1 be asked"):
        wise.score(folder, judge_at(endpoint, batch=4), prompts, wise.LEGACY, answers=answers)
    kept = len(answers.read_text().splitlines())
    assert kept == endpoint.asked["good"] > 0


def test_an_endpoint_that_refuses_or_is_down_ends_the_run(endpoint, tmp_path):
    folder, prompts = make(tmp_path / "a", {1: "refused"})
    with pytest.raises(UserError, match="does not let judge-1 be asked.*401.*the key"):
        wise.score(folder, judge_at(endpoint), prompts, wise.LEGACY)
    folder, prompts = make(tmp_path / "b", {number: "broken" for number in range(1, 41)})
    with pytest.raises(UserError, match="none of the last 20 questions .*HTTP 500.*is kept"):
        wise.score(folder, judge_at(endpoint, attempts=1), prompts, wise.LEGACY)
    assert endpoint.asked["broken"] < 40
    judge = EndpointJudge("http://127.0.0.1:1/v1", "judge-1", attempts=1)  # nothing listens there
    (failure,) = AnswerCache().ask(judge, [(Image.new("RGB", (2, 2)), "Prompt: x")])
    assert "gave no answer (" in str(failure) and "refused" in str(failure)
    assert isinstance(failure, JudgeFailed)


def test_no_key_is_sent_without_one(endpoint, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    judge = judge_at(endpoint, key_variable="NO_KEY")
    assert judge.answer(Image.new("RGB", (2, 2)), "Prompt: good yes") == "yes"
    (_, authorization, _) = endpoint.heard[0]
    assert authorization is None


def test_without_the_client_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"needs the package openai.*triptych\[eval\]"):
        EndpointJudge("http://127.0.0.1:1/v1", "judge-1")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0", 0.8),
        ("**Consistency:** 1\n**Realism:** 2\n**Aesthetic_Quality:** 2\n", 0.65),
        ("<think>Consistency: 0</think>\nConsistency:2\nRealism:2\nAesthetic Quality:2", 1.0),
        ("Consistency: 2\nRealism: 1", None),
        ("Consistency: 2\nConsistency: 0\nRealism: 1\nAesthetic Quality: 0", None),
        ("Consistency: -1\nRealism: 1\nAesthetic Quality: 0", None),
        ("Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0", None),
        ("", None),
    ],
)
def test_legacy_answers(answer, score):
    assert read_legacy(answer) == (score if score is None else pytest.approx(score))


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Score: 1", 1.0),
        ("0\n", 0.0),
        ('{"score": 1, "reason": "a carnation"}', 1.0),
        ("<think>score: 0</think> **Score:** 1", 1.0),
        ("Score: 2", None),
        ("Score: 0.5", None),
        ("Score: 1\nScore: 0", None),
        ("yes", None),
    ],
)
def test_verified_answers(answer, score):
    assert read_verified(answer) == score


def test_protocols_are_kept_apart(endpoint, tmp_path):
    assert wise.LEGACY.category(567) == "time" and wise.VERIFIED.category(567) == "space"
    assert wise.LEGACY.category(1000) == wise.VERIFIED.category(1000) == "chemistry"
    for protocol in wise.PROTOCOLS.values():
        assert sum(protocol.weights.values()) == pytest.approx(1)
    folder, prompts = make(tmp_path / "data_verified", {567: "good Score: 1"})
    with pytest.raises(UserError, match="of the verified protocol, by its name"):
        wise.score(folder, judge_at(endpoint), prompts, wise.LEGACY)
    report = wise.score(folder, judge_at(endpoint), prompts, wise.VERIFIED)
    assert report.benchmark == "wise (verified protocol)" and report.scores == {"space": 1.0}


def test_custom_instructions_are_used_and_recorded(endpoint, tmp_path):
    folder, prompts = make(tmp_path, {1: "good Score: 1"})
    text = tmp_path / "published.txt"
    text.write_text("Prompt: {prompt} ... because {explanation}")
    judge = judge_at(endpoint)
    report = wise.score(folder, judge, prompts, wise.VERIFIED, instructions=text)
    (_, _, request) = endpoint.heard[0]
    asked = request["messages"][0]["content"][0]["text"]
    assert asked == "Prompt: good Score: 1 ... because meaning 1"
    assert "published.txt" in report.judged_by
    assert set(json.loads(report.to_json())["sha256"]) == {"prompts 1", "instructions"}
    text.write_text("Is it good?")
    with pytest.raises(UserError, match="has no {prompt}"):
        wise.score(folder, judge, prompts, wise.VERIFIED, instructions=text)


class Nobody(Judge):
    name = "nobody"

    def answer(self, image, question):
        raise AssertionError("it is asked only once everything else is known to be right")


def test_bad_files_and_folders_are_refused_in_one_sentence(tmp_path):
    folder, prompts = make(tmp_path, {1: "x", 2: "y"})

    def said(text, match):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match=match):
            wise.score(folder, Nobody(), [tmp_path / "bad.json"], wise.LEGACY)

    said("hello", "is no JSON at line 1")
    said("{}", "is no JSON list")
    said('[{"prompt_id": 1}]', "prompt 1 of .* has no Prompt nor Explanation")
    said('[{"prompt_id": 0, "Prompt": "x", "Explanation": "y"}]', "has the number 0, not 1 to 1000")
    with pytest.raises(UserError, match="absent.json does not exist"):
        wise.score(folder, Nobody(), [tmp_path / "absent.json"], wise.LEGACY)
    with pytest.raises(UserError, match="a second prompt of number 1"):
        wise.score(folder, Nobody(), prompts * 2, wise.LEGACY)
    with pytest.raises(UserError, match="no WISE prompts"):
        wise.score(folder, Nobody(), [], wise.LEGACY)
    with pytest.raises(UserError, match="none of the 2 images"):
        wise.score(tmp_path, Nobody(), prompts, wise.LEGACY)


def test_a_half_finished_folder_is_counted(endpoint, tmp_path):
    folder, prompts = make(tmp_path, {n: f"good {grades(2, 2, 2)}" for n in range(1, 6)})
    wise.image_path(folder, 2).unlink()
    wise.image_path(folder, 3).write_bytes(b"torn")
    Image.new("RGB", (4, 4)).save(folder / "stray.png")
    report = wise.score(folder, judge_at(endpoint), prompts, wise.LEGACY)
    expected = {"expected": 5, "scored": 3, "missing": 1, "unreadable": 1, "extra": 1}
    assert {name: report.counts[name] for name in expected} == expected
    assert report.numbers == {"culture": 3}

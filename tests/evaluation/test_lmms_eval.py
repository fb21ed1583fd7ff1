"""The adapter for lmms-eval: against stand-ins of its few classes, and in the real one if there."""

import importlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image
from processes import run

from triptych.inference.chat_messages import read_messages
from triptych.utils.errors import UserError

ROOT = Path(__file__).parents[2]


@dataclass
class TokenCounts:
    input_tokens: int
    output_tokens: int


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts


class Lmms:
    """As lmms_eval.api.model.lmms, in what the adapter uses."""

    def __init__(self):
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    @property
    def rank(self):
        return self._rank


class Pipeline:
    """Answers with the last text, and the number of images; remembers what it was asked."""

    device = "cpu"

    def __init__(self, *args, **options):
        self.options, self.calls = options, []

    def chat_batch(self, conversations, **options):
        talks = [read_messages(each) for each in conversations]
        if any("refused" in talk[-1].content for talk in talks):
            raise UserError("the conversation is too long.")
        self.calls.append((talks, options))
        return [self.answer(talk) for talk in talks]

    @staticmethod
    def answer(talk):
        texts = [part for part in talk[-1].content if isinstance(part, str)]
        shown = sum(isinstance(part, Image.Image) for m in talk for part in m.content)
        return SimpleNamespace(text=f"{texts[-1]} {shown}", prompt_tokens=5, completion_tokens=2)


@pytest.fixture
def adapter(monkeypatch):
    """The module of the adapter, with stand-ins in place of lmms-eval."""
    parts = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.api.instance": {
            "Instance": SimpleNamespace,
            "GenerationResult": GenerationResult,
            "TokenCounts": TokenCounts,
        },
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "triptych.evaluation.lmms_eval.model", raising=False)
    module = importlib.import_module("triptych.evaluation.lmms_eval.model")
    monkeypatch.setattr(module.UnifiedPipeline, "from_pretrained", Pipeline)
    yield module
    sys.modules.pop("triptych.evaluation.lmms_eval.model", None)


def user_turn(*texts, images=0, kind="image"):
    shown = [{"type": kind, "url": Image.new("RGB", (4, 4))} for _ in range(images)]
    return [{"role": "user", "content": [*shown, *({"type": "text", "text": t} for t in texts)]}]


def request(number, make, **wanted):
    args = ("context", make, wanted, number, "task", "test")
    return SimpleNamespace(args=args, task_name="task")


def model_of(adapter, documents, **options):
    model = adapter.Triptych(**options)
    model.task_dict = {"task": {"test": documents}}
    return model


def plain(document, **_):
    return user_turn(document, images=1)


def test_answers_come_in_the_order_of_the_requests(adapter):
    documents = ["one", "two", "three", "four", "five"]
    model = model_of(adapter, documents, batch_size=2)
    limits = [16, 32, 16, 16, 32]
    requests = [request(n, plain, max_new_tokens=limit) for n, limit in enumerate(limits)]
    answers = model.generate_until(requests)
    assert [answer.text for answer in answers] == [f"{each} 1" for each in documents]
    assert answers[0].token_counts == TokenCounts(5, 2)
    calls = model.pipeline.calls
    assert [(len(talks), options["max_new_tokens"]) for talks, options in calls] == [
        *((2, 16), (1, 16), (2, 32))
    ]
    assert calls[1][1]["seed"] == [3]  # of the number in the task, not in the batch


def test_generation_options_of_tasks_are_used(adapter):
    model = model_of(adapter, ["a. b\n\nc"])
    asked = [
        {},
        {"temperature": 0.7, "top_p": 0.9, "do_sample": True},
        {"temperature": 0.7, "do_sample": False, "top_p": None, "num_beams": 1},
        {"until": [".", "\n\n"]},
        {"until": "\n\n"},
    ]
    answers = [model.generate_until([request(0, plain, **each)])[0].text for each in asked]
    options = [options for _, options in model.pipeline.calls]
    defaults = {"max_new_tokens": 128, "temperature": 0, "top_p": 1, "max_images": 0}
    assert options[0] == {**defaults, "seed": [0]}
    assert (options[1]["temperature"], options[1]["top_p"]) == (0.7, 0.9)
    assert (options[2]["temperature"], options[2]["top_p"]) == (0, 1)
    assert answers[3] == "a" and answers[4] == "a. b\n\nc 1"


def test_system_prompt_takes_the_place_of_the_tasks(adapter):
    def with_system(document):
        system = {"role": "system", "content": [{"type": "text", "text": "the task's"}]}
        return [system, *user_turn(document)]

    for given, expected in ((None, "the task's"), ("mine", "mine")):
        model = model_of(adapter, ["hello"], system_prompt=given)
        model.generate_until([request(0, with_system)])
        talk = model.pipeline.calls[0][0][0]
        assert [m.role for m in talk] == ["system", "user"] and talk[0].content == [expected]


def test_later_rounds_see_earlier_answers(adapter):
    seen = []

    def make(document, round_idx=None, previous_output=None, previous_round_info=None):
        seen.append((round_idx, previous_output, previous_round_info))
        if round_idx is None:
            return user_turn(document, images=1)
        return user_turn(f"round {round_idx}"), round_idx == 2, previous_output, {"at": round_idx}

    model = model_of(adapter, ["start"])
    assert model.generate_until_multi_round([request(0, make)]) == [["start 1", "round 1 0"]]
    said = ["start 1", "round 1 0"]
    assert seen == [(None, None, None), (1, said[:1], None), (2, said, {"at": 1})]


def test_unsupported_requests_are_named(adapter):
    model = model_of(adapter, ["fine", "refused"], batch_size=2)
    with pytest.raises(UserError, match="task task, test document 1: the conversation is too long"):
        model.generate_until([request(n, plain) for n in range(2)])
    with pytest.raises(UserError, match="document 0: it shows a video"):
        model.generate_until([request(0, lambda d: user_turn(d, images=1, kind="video"))])
    with pytest.raises(UserError, match="the task wants 5 beams"):
        model.generate_until([request(0, plain, num_beams=5)])
    with pytest.raises(UserError, match="the task task compares likelihoods"):
        model.loglikelihood([request(0, plain)])
    with pytest.raises(UserError, match="batch_size is 'auto'"):
        adapter.Triptych(batch_size="auto")


def test_processes_take_a_gpu_each(adapter, monkeypatch):
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    model = adapter.Triptych(device="cuda")
    assert (model.rank, model._world_size) == (5, 8)
    assert model.pipeline.options["device"] == "cuda:1"
    assert adapter.Triptych(device="cpu").pipeline.options["device"] == "cpu"


@pytest.mark.slow
@pytest.mark.beside
def test_lmms_eval_itself_runs_our_task(tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / ".venv" / "beside"),
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "cache"),
    }
    tasks = ROOT / "docs/lmms_eval"
    options = {"cwd": tmp_path, "env": environment, "check": True, "seconds": 1200}
    run([sys.executable, tasks / "make_questions.py", "10"], **options)
    command = [
        *(sys.executable, "-m", "lmms_eval", "--model", "triptych"),
        *("--model_args", "source=tiny,device=cpu", "--batch_size", "8"),
        *("--tasks", "shapes_questions", "--include_path", str(tasks)),
        *("--output_path", str(tmp_path / "results")),
    ]
    run(command, **options)
    (report,) = (tmp_path / "results").rglob("*results.json")
    scores = json.loads(report.read_text())["results"]["shapes_questions"]
    assert scores["right,none"] > 0.7  # 0.925 over 60 images

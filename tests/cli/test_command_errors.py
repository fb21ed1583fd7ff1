"""Errors on the command line: sentences with every cause, the most informative one first."""

import ast
import re
from pathlib import Path

import pytest
from builders import STAGE2, config_words

from triptych.cli.main import main
from triptych.inference.chat import token_sampling
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.image_requests import image_requests, seeds_for
from triptych.sampler import require_steps
from triptych.utils import limits
from triptych.utils.errors import UserError
from triptych.utils.limits import BATCH, Range
from triptych.utils.parser_errors import plain

ROOT = Path(__file__).parents[2]
FIT = [
    "fit",
    *config_words(*STAGE2),
    "--model.build_decoder=false",
]
LARGE = "100000000000"


def refused(capsys, *arguments) -> tuple[int, str]:
    """Exit status and what was said; never a traceback."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    said = said[said.rindex("triptych") :]  # before it, what Lightning logs
    assert ended.value.code in (1, 2) and "Traceback" not in said
    return ended.value.code, said


# --- the parser's errors --------------------------------------------------------------------------

UNION = """Parser key "trainer.logger":

  - Expected a path but 5 either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.loggers.logger.Logger'>, <class 'bool'>, <class 'NoneType'>]
  Errors:
    - Expected a dot import path string: 5
    - Expected a <class 'collections.abc.Iterable'>
    - Expected a <class 'bool'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: 5"""
NESTED = """Parser key "model.generation":
  Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'triptych.modules.GenerationModule':
        Parser key "dit":
          Problem with given class_path 'triptych.backbones.LuminaNextDiT':
            Parser key "depth":
              Expected a <class 'int'>. Got value: x
    - Expected a <class 'NoneType'>
  Given value type: <class 'jsonargparse._util.NestedArg'>
  Given value: NestedArg(key='dit.depth', val='x')"""
MISSING = """Parser key "model.encoder":

  - Expected a path but nope.X either not accessible or invalid
  - Does not validate against any of the Union subtypes
  Errors:
    - Problem with given class_path 'nope.X':
        No module named 'nope'
    - Expected a <class 'NoneType'>
  Given value: nope.X"""
BUILT = """Does not validate against any of the Union subtypes
Subtypes: [<class 'triptych.interfaces.ImageEncoder'>, <class 'NoneType'>]
Errors:
  - integer modulo by zero
  - Expected a <class 'NoneType'>
Given value: Namespace(class_path='triptych.backbones.EvaClip', init_args=Namespace(a=0))"""


@pytest.mark.parametrize(
    ("message", "first", "others"),
    [
        (
            UNION,
            "trainer.logger: Expected a dot import path string: 5",
            ["expected Iterable", "expected bool", "expected null", "Expected a path but 5"],
        ),
        (NESTED, "model.generation.dit.depth: expected int. Got value: x", ["expected null"]),
        (
            MISSING,
            "model.encoder: nope.X: No module named 'nope'",
            ["expected null", "Expected a path but nope.X"],
        ),
        (BUILT, "triptych.backbones.EvaClip: integer modulo by zero", ["expected null"]),
        ("unrecognized arguments: --x", "unrecognized arguments: --x", []),
        (" one\n  sentence\n", "one sentence", []),
    ],
)
def test_every_cause_is_shown_and_the_telling_one_first(message, first, others):
    said, *rest = plain(message).splitlines()
    assert said == first
    assert len(rest) == len(others)
    for line, other in zip(rest, others, strict=True):
        assert line.startswith("  or: ") and other in line


def test_a_long_value_is_cut():
    assert (
        len(plain(f"Parser key \"a\":\n  Expected a <class 'int'>. Got value: {'x' * 9000}")) < 400
    )


# --- wrong types and values for each object of a run ----------------------------------------------

WRONG = [
    "--trainer.logger=5",
    "--trainer.logger=nope",
    "--trainer.callbacks=7",
    "--trainer.callbacks=[7]",
    "--trainer.strategy=nope",
    "--trainer.strategy=3",
    "--trainer.accelerator=abc",
    "--trainer.devices=0",
    "--trainer.devices=x",
    "--trainer.num_nodes=0",
    "--trainer.precision=7",
    "--trainer.profiler=x",
    "--trainer.max_steps=x",
    "--trainer.max_steps=-5",
    "--trainer.max_time=x",
    "--trainer.limit_train_batches=-1",
    "--trainer=7",
    "--trainer=null",
    "--model=7",
    "--model=null",
    "--model.encoder=null",
    "--model.encoder=torch.nn.Linear",
    "--model.encoder.patch_size=0",
    "--model.generation=null",
    "--model.generation=[]",
    "--model.weights=7",
    "--model.loss_weights=7",
    "--model.loss_weights={nope: 1}",
    "--model.trainable=7",
    "--model.execution=7",
    "--data=null",
    "--data=7",
    "--data=torch.nn.Linear",
    "--data.batch_size=x",
    "--seed_everything=x",
    "--seed_everything=-1",
    "--seed_everything=1e30",
    "--ckpt_path=",
    "--config=",
    "--config=/dev/null",
    "--config=nope.yaml",
    "--nope=1",
    "--trainer.nope=1",
    "--model.stage=${model.preset} --model.preset=${model.stage}",
    "--model.preset=${nope}",
]


# Each builds the parser anew, which takes a second: most are for `make test-sweep`.
QUICK = [
    "--trainer.logger=5",
    "--trainer.callbacks=[7]",
    "--trainer.devices=0",
    "--trainer.max_time=x",
    "--model=7",
    "--model.encoder.patch_size=0",
    "--data=null",
    "--seed_everything=-1",
    "--config=/dev/null",
]


@pytest.mark.parametrize(
    "flags",
    [each if each in QUICK else pytest.param(each, marks=pytest.mark.sweep) for each in WRONG],
)
def test_no_wrong_value_of_a_run_ends_in_a_traceback(flags, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, said = refused(capsys, *FIT, *re.split(" (?=--)", flags))
    assert len(said.splitlines()[0]) < 700
    assert not list(tmp_path.rglob("version_*"))


@pytest.mark.parametrize(
    "content",
    ["", "# nothing", "[]", "- 1", "7", "text", "{", "a: b: c", "\x00", "[" * 5000, "a: &a [*a]",
     "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
         f"{'abcdefghij'[n]}: &{'abcdefghij'[n]} [{','.join(['*' + 'abcdefghij'[n - 1]] * 10)}]\n"
         for n in range(1, 10)),
     "1: 2", "model: 7", "model: [1]", "trainer: 7", "data: [1]", "a: 1\na: 2"],
)  # fmt: skip
def test_a_configuration_that_is_none_is_a_sentence(content, capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    refused(capsys, *FIT, "--config", path)
    if "trainer" not in content and "data" not in content:
        refused(capsys, "generate", "x", "--config", path)


@pytest.mark.parametrize("logger", ["false", pytest.param("[]", marks=pytest.mark.sweep)])
def test_a_run_without_a_logger_is_one(logger, tmp_path, monkeypatch, shapes_folder):
    monkeypatch.chdir(tmp_path)
    main(
        [
            *FIT[:-1],
            *("--config", f"{ROOT}/conf/data/folder.yaml"),
            f"--data.shards={shapes_folder}/train",
            *("--data.batch_size=2", "--trainer.max_steps=1", "--trainer.val_check_interval=1"),
            f"--trainer.logger={logger}",
            "--trainer.limit_val_batches=0",
            "--trainer.callbacks.evaluator.init_args.num_images=6",  # of 240, made twice
        ]
    )
    assert not list(tmp_path.rglob("metrics.csv"))


# --- numbers --------------------------------------------------------------------------------------

FLAGS = {
    "generate x": ["--num-inference-steps", "--decoder-num-inference-steps", "-n",
                   "--batch-size", "--devices", "--num-nodes", "--seed",
                   "--guidance-scale", "--decoder-guidance-scale"],
    "edit x y": ["--num-inference-steps", "-n", "--seed"],
    "reconstruct x": ["--decoder-num-inference-steps", "--batch-size"],
    "chat x": ["--batch-size", "--max-tokens", "--temperature", "--top-p", "--seed"],
    "eval shapes": ["--num-captions", "-n", "--num-inference-steps", "--guidance-scale",
                    "--batch-size", "--devices"],
    "eval geneval": ["-n", "--limit", "--num-inference-steps"],
    "eval dpg": ["--grid", "--limit"],
    "eval fid": ["--batch-size"],
    "data pack x --out y": ["--samples-per-shard", "--workers"],
    "data inspect x": ["--num-images", "--samples"],
    "data features x --config y": ["--batch-size", "--workers", "--devices"],
    "app": ["--port"],
    "serve": ["--port", "--max-batch", "--max-queue", "--max-wait-ms", "--timeout",
              "--max-body-mb", "--max-memory-mb", "--max-connections"],
    "pretrain": ["--steps"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "flag"), [(command, flag) for command in FLAGS for flag in FLAGS[command]]
)
@pytest.mark.parametrize("value", [LARGE * 2, "-1", "1.5x", "nan", "1e400", "9" * 5000])
def test_numbers_out_of_range_are_refused_by_the_parser(command, flag, value, capsys):
    status, said = refused(capsys, *command.split(), flag, value)
    assert status == 2 and flag.lstrip("-") in said and len(said) < 300


@pytest.mark.parametrize("part", ["0/2", "3/2", "1/100000000", "a/b", "1/2/3", "1", "-1/2"])
def test_parts_out_of_range_are_refused(part, capsys):
    assert "K/N" in refused(capsys, "generate", "x", f"--part={part}")[1]


@pytest.mark.parametrize(
    "line",
    ['{"prompt": "x", "num_inference_steps": 100000000}',
     '{"prompt": "x", "num_images_per_prompt": 1000000000}',
     '{"prompt": "x", "seed": 1.5}', '{"prompt": "x", "seed": true}',
     '{"prompt": "x", "guidance_scale": NaN}', '{"prompt": "x", "guidance_scale": 1e999}',
     '{"prompt": "x", "seed": -1}', '{"prompt": "x", "seed": 99999999999999999999}',
     '{"prompt": "\\ud800"}', '{"prompt": "x", "prompt": "y"}',
     '{"prompt": ' + "[" * 100_000, '{"prompt": ' + "[" * 90 + "]" * 90 + "}", "[1]", "{",
     '{"prompt": "x", "num_inference_steps": ' + "9" * 5000 + "}",
     "\n".join(['{"prompt": "x", "num_images_per_prompt": 9999}'] * 200)],
)  # fmt: skip
def test_lines_out_of_range_are_refused(line, capsys, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)
    status, said = refused(capsys, "generate", "--prompts", path)
    assert status == 1 and said.count("\n") == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: GenerationConfig(num_inference_steps=10**8),
        lambda: GenerationConfig(num_inference_steps=1.5),
        lambda: GenerationConfig(num_inference_steps=True),
        lambda: GenerationConfig(decoder_num_inference_steps=10**8),
        lambda: GenerationConfig(guidance_scale=float("nan")),
        lambda: GenerationConfig(guidance_scale=1e6),
        lambda: GenerationConfig(decoder_guidance_scale=-1),
        lambda: BATCH.require(10**9, "batch_size"),
        lambda: BATCH.require(0, "batch_size"),
        lambda: require_steps(10**8),
        lambda: image_requests(["x"], 10**9, 0),
        lambda: image_requests(["x"] * 1000, 9999, 0),
        lambda: image_requests(["x"], 1, 1.5),
        lambda: image_requests(["x"], 1, [1.5]),
        lambda: image_requests(["x"], 1, -1),
        lambda: image_requests(["x"], 2, 2**63 - 1),
        lambda: seeds_for(2.0, 1, "conversations"),
        lambda: seeds_for([-1], 1, "conversations"),
        lambda: token_sampling(10**9, 0, 1, [0]),
        lambda: token_sampling(1, float("inf"), 1, [0]),
        lambda: token_sampling(1, 0, 0, [0]),
    ],
)
def test_calls_with_numbers_out_of_range_are_refused(call):
    with pytest.raises(UserError):
        call()


def test_ends_of_a_range():
    scale = Range(False, 0, 2, above=True)
    assert 2 in scale and 0.1 in scale and 0 not in scale and float("nan") not in scale
    assert scale("1e-3") == 0.001 and limits.SEED(str(2**63 - 1)) == 2**63 - 1
    assert str(limits.STEPS) == "a whole number from 1 to 1,000"


DERIVED = ("limit_of(name)", "str if isinstance(limit, OneOf) else limit")
"""Types of flags that are fields of `GenerationConfig`, each with its limit."""


def test_every_number_of_a_flag_has_a_range():
    numbers = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith(
                "add_argument"
            ):
                continue
            kind = next((ast.unparse(k.value) for k in node.keywords if k.arg == "type"), None)
            if kind not in (None, "Path", "part", "output_file", "output_folder", "dict", *DERIVED):
                numbers.append(kind)
                assert isinstance(getattr(limits, kind, None), Range), (
                    f"{path}:{node.lineno} {kind}"
                )
    assert len(numbers) > 25

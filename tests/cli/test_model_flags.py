"""One set of model flags: every command that loads a model has all of them, and uses them."""

import argparse
import re

import pytest
from builders import unified
from PIL import Image

from triptych.cli.arguments import add_model_arguments
from triptych.cli.main import main
from triptych.inference.pipeline import UnifiedPipeline
from triptych.modules.feature_extraction import FeatureModule
from triptych.utils.errors import UserError

FLAGS = ["--from", "--ema", "--config", "--trust-class", "--device", "--dtype", "--low-memory",
         "--quantize"]  # fmt: skip
LOADS = {
    "generate": ["generate", "a red circle"],
    "edit": ["edit", "red.png", "make it blue"],
    "reconstruct": ["reconstruct", "red.png"],
    "chat": ["chat", "what is it?"],
    "chat lines": ["chat", "--jsonl", "questions.jsonl"],
    "eval shapes": ["eval", "shapes", "--num-captions", "2"],
    "eval geneval": ["eval", "geneval", "--limit", "1", "--generate-only"],
    "eval dpg": ["eval", "dpg", "--limit", "1", "--generate-only"],
    "eval wise": ["eval", "wise", "--prompts", "wise.json", "--generate-only"],
    "eval fid": ["eval", "fid", "--images-dir", "images", "--reference", "images"],
    "demo": ["demo"],
    "app": ["app", "--port", "0"],
    "serve": ["serve", "--port", "0"],
}
"""Command -> words that make it load its model by `load_pipeline`."""
OTHERS = {
    "eval understanding": ["eval", "understanding", "--tasks", "mme"],
    "data features": ["data", "features", "images"],
}
"""Commands that hand the flags to another program, or load only a part of the model."""
GIVEN = ["--dtype", "float16", "--device", "cpu", "--low-memory", "--quantize", "4bit",
         "--trust-class", "mine", "--model.preset=mine"]  # fmt: skip


def test_the_table_names_the_flags():
    parser = argparse.ArgumentParser(add_help=False)
    add_model_arguments(parser)
    assert [action.option_strings for action in parser._actions] == [[flag] for flag in FLAGS]


@pytest.mark.parametrize("command", [*LOADS, *OTHERS])
def test_every_command_has_all_model_flags(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.removesuffix(" lines").split(), "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    shown = re.findall(r"^  (--[\w-]+)", text.partition("\nmodel:\n")[2].partition("\n\n")[0], re.M)
    assert shown == FLAGS


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Arguments of `from_pretrained`, which loads nothing."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 48), "red").save("red.png")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (48, 48), "red").save("images/red.png")
    (tmp_path / "questions.jsonl").write_text('{"question": "what is it?"}\n')
    (tmp_path / "wise.json").write_text(
        '[{"prompt_id": 1, "Prompt": "a circle", "Explanation": "it is round"}]'
    )
    found = []

    def load(*options, **more):
        found.append((options, more))
        raise UserError("nothing is loaded here.")

    monkeypatch.setattr(UnifiedPipeline, "from_pretrained", load)
    return found


@pytest.mark.parametrize("command", LOADS)
@pytest.mark.parametrize("named", ["--from", "--config"])
def test_the_flags_reach_the_pipeline(command, named, asked, capsys):
    source = ["--from", "runs/mine", "--ema"] if named == "--from" else ["--config", "mine.yaml"]
    with pytest.raises(SystemExit) as ended:
        main([*LOADS[command], *source, *GIVEN])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "nothing is loaded here" in said, said
    ((options, more),) = asked
    assert options == (("runs/mine",) if named == "--from" else (["mine.yaml"],))
    assert more["ema"] is (named == "--from")
    assert (str(more["device"]), more["dtype"], more["quantize"]) == ("cpu", "float16", "4bit")
    assert more["enable_model_cpu_offload"] is True
    assert more["trust_class"] == ["mine"] and more["overrides"] == ["--model.preset=mine"]


@pytest.mark.parametrize("command", [*LOADS, *OTHERS])
def test_a_model_has_one_name(command, asked, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*(LOADS | OTHERS)[command], "--from", "runs/mine", "--config", "mine.yaml"])
    assert ended.value.code == 2 and not asked
    assert "--config names the model" in capsys.readouterr().err


def test_another_model_of_the_page_runs_as_the_first(asked, monkeypatch, capsys):
    from triptych.serving.webui import launch

    def launch_page(sources, *_, **__):
        for name in sources.names:
            with pytest.raises(UserError):
                sources[name]

    monkeypatch.setattr(launch, "launch", launch_page)
    main(["app", "--from", "runs/mine", "--ema", "--other", "runs/second", *GIVEN])
    (_, first), (options, second) = asked
    assert options == ("runs/second",)
    assert second == first | {"ema": False, "overrides": []}


def test_lmms_eval_gets_the_flags(asked, capsys):
    words = ["eval", "understanding", "--tasks", "mme", "--print", *GIVEN[:-1]]
    main([*words, "--config", "a.yaml", "--config", "b.yaml"])
    said = capsys.readouterr().out
    assert "source=a.yaml+b.yaml,device=cpu,dtype=float16,low_memory=True,quantize=4bit" in said
    assert "trust_class=mine" in said
    with pytest.raises(SystemExit) as ended:
        main([*words, "--model.preset=mine"])
    assert ended.value.code == 2 and "lmms-eval takes no --model" in capsys.readouterr().err


def test_features_are_computed_in_the_dtype_that_was_given(tmp_path, shapes_folder, capsys):
    out = [str(shapes_folder / "eval"), "--device", "cpu", "--batch-size", "8"]
    main(["data", "features", *out, "--out", str(tmp_path / "a")])
    main(["data", "features", *out, "--out", str(tmp_path / "b"), "--dtype", "bfloat16"])
    assert capsys.readouterr().out.count("features of 16 samples") == 2
    one, two = (next((tmp_path / name).glob("*.safetensors")).read_bytes() for name in "ab")
    assert one != two and len(one) == len(two)
    for flag in (["--low-memory"], ["--quantize", "4bit"]):
        with pytest.raises(SystemExit) as ended:
            main(["data", "features", *out, *flag])
        assert ended.value.code == 1 and "only the encoder is loaded" in capsys.readouterr().err


def test_features_of_a_checkpoint_that_trained_the_encoder_are_refused(weights):
    model = unified("inference", weights=weights)
    module = FeatureModule(model, "vae")
    module.refuse_trained(["generation.queries", "encoder.tower.pos_embed"])
    with pytest.raises(UserError, match="the checkpoint trained the encoder"):
        module.refuse_trained(["vae.decoder.conv_in.weight"])

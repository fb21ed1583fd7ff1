"""The pipeline in the manner of diffusers: names, forms of images, seeds, folders, chat."""

import ast
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from PIL import Image
from processes import run

import triptych
from triptych import UnifiedPipeline
from triptych.cli.arguments import flag_of
from triptych.cli.input_files import read_prompts
from triptych.evaluation import EditEval, FeatureDistance, ShapeEval
from triptych.evaluation.shapes.all_scores import ScoringPlan
from triptych.inference.chat_messages import read_messages
from triptych.inference.generation_config import (
    EDIT_SETTINGS,
    FIELDS,
    PROMPT_FIELDS,
    PROMPT_SETTINGS,
    SETTINGS,
    GenerationConfig,
)
from triptych.prompts import chat_ids
from triptych.serving.http.jobs import GenerationJob
from triptych.serving.http.request_schemas import EditBody, GenerationBody
from triptych.utils.errors import UserError
from triptych.utils.paths import ASSETS

FEW = {"num_inference_steps": 1, "decoder_num_inference_steps": 1}


@pytest.fixture(scope="module")
def pipe():
    return UnifiedPipeline.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def made(pipe):
    return pipe("a red circle", num_images_per_prompt=2, seed=1, **FEW)


def test_importing_the_package_imports_no_torch():
    code = "import sys, triptych; assert not {'torch', 'diffusers'} & set(sys.modules)"
    run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        getattr(triptych, "Pipeline")  # noqa: B009


# --- one place for a setting ----------------------------------------------------------------------


def test_every_setting_is_known_by_pipeline_command_line_server_page_and_evaluators(capsys):
    for call, names in ((UnifiedPipeline.__call__, PROMPT_FIELDS), (UnifiedPipeline.edit, FIELDS)):
        assert set(FIELDS) & set(inspect.signature(call).parameters) == set(names)
    of_command = {"edit": EDIT_SETTINGS, "shapes": SETTINGS}
    for command in (["generate"], ["edit"], ["eval", "geneval"], ["eval", "shapes"]):
        shown = help_of(command, capsys)
        names = of_command.get(command[-1], PROMPT_SETTINGS)
        assert [name for name in SETTINGS if flag_of(name) in shown] == list(names), command
    assert flag_of("num_images_per_prompt") in help_of(["generate"], capsys)
    for body, names in ((GenerationBody, PROMPT_SETTINGS), (EditBody, SETTINGS)):
        assert set(SETTINGS) & set(body.model_fields) == set(names)
    assert isinstance(GenerationJob([], []).settings, GenerationConfig)
    for evaluator in (ShapeEval, EditEval, FeatureDistance, ScoringPlan):
        assert "generation_config" in inspect.signature(evaluator).parameters
    line = json.dumps({"prompt": "a"} | dict.fromkeys(PROMPT_FIELDS))
    assert read_prompts([], "a.jsonl", line)[0].text == "a"


def help_of(command, capsys):
    from triptych.cli.main import main

    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return capsys.readouterr().out


def test_the_page_has_a_control_for_every_setting(pipe):
    import gradio

    from triptych.serving.webui.controls import arguments, numbers, sliders

    with gradio.Blocks():
        assert len(sliders(pipe)) == len(numbers()) == len(PROMPT_SETTINGS)
    values = dict.fromkeys(PROMPT_SETTINGS) | {
        "guidance_interval": "0.1,0.8",
        "num_inference_steps": 3,
    }
    given = arguments(tuple(values.values()))
    assert given == dict.fromkeys(PROMPT_SETTINGS) | {
        "guidance_interval": (0.1, 0.8),
        "num_inference_steps": 3,
    }
    with pytest.raises(UserError, match="guidance interval: 'x' is not two numbers"):
        arguments(tuple((values | {"guidance_interval": "x"}).values()))


def test_every_field_has_a_limit_a_label_and_a_help():
    for each in FIELDS.values():
        assert {"limit", "label", "help"} <= set(each.metadata)
        assert each.metadata["help"][0].islower() and each.metadata["help"][-1] != "."


def test_an_evaluator_decides_its_seeds_itself():
    with pytest.raises(UserError, match="generation_config has seed, which an evaluator decides"):
        ShapeEval(generation_config=GenerationConfig(seed=3))


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 30}, "has no argument 'steps'; use num_inference_steps."),
        ({"guidance": 3.0}, "use guidance_scale"),
        ({"cfg_scale": 3.0}, "use guidance_scale"),
        ({"images_per_prompt": 2}, "use num_images_per_prompt"),
        ({"seeds": [1]}, "use seed"),
        ({"negative": "a"}, "use negative_prompt"),
        ({"callback": print}, "use callback_on_step_end"),
        ({"decoder_steps": 3}, "use decoder_num_inference_steps"),
        ({"num_inference_step": 3}, "use num_inference_steps"),
        ({"height": 512}, "images have the size of the model"),
        ({"image": None}, "pipe.edit"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(pipe, wrong, message):
    with pytest.raises(UserError, match=message) as caught:
        pipe("a red circle", **wrong)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_wrong_names_of_other_calls(pipe, capsys):
    with pytest.raises(UserError, match="from_pretrained has no argument 'low_memory'; use enable"):
        UnifiedPipeline.from_pretrained("tiny", low_memory=True)
    with pytest.raises(UserError, match="chat has no argument 'max_tokens'; use max_new_tokens"):
        pipe.chat("hello", max_tokens=3)
    with pytest.raises(UserError, match="a.jsonl:1: 'steps' is unknown; use num_inference_steps"):
        read_prompts([], "a.jsonl", '{"prompt": "a", "steps": 3}')
    from triptych.cli.main import main

    with pytest.raises(SystemExit):
        main(["generate", "a", "--steps", "3"])
    assert "--steps 3; use --num-inference-steps" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no prompt"):
        pipe()


# --- images and seeds -----------------------------------------------------------------------------


def test_images_come_as_pil_arrays_and_tensors_with_metadata(pipe, made):
    assert [note["seed"] for note in made.metadata] == [1, 2]
    assert made.metadata[0]["num_inference_steps"] == 1 and made["images"] is made.images
    options = {"num_images_per_prompt": 2, "seed": 1, **FEW}
    array = pipe("a red circle", output_type="np", **options).images
    tensor, notes = pipe("a red circle", output_type="pt", return_dict=False, **options)
    assert array.shape == (2, 48, 48, 3) and array.dtype == numpy.float32 and array.max() <= 1
    assert torch.equal(tensor.permute(0, 2, 3, 1), torch.from_numpy(array))
    assert (numpy.asarray(made.images[1]) == (array[1] * 255).round()).all()
    assert notes == made.metadata
    with pytest.raises(UserError, match="output_type is 'latent'; choose from pil, pt, np"):
        pipe("a", output_type="latent")


def test_generators_decide_the_seeds(pipe):
    def seeds(generator, **more):
        options = {"num_images_per_prompt": 2, **FEW, **more}
        return [each["seed"] for each in pipe("a", generator=generator, **options).metadata]

    one = seeds(torch.Generator().manual_seed(7))
    assert one == seeds(torch.Generator().manual_seed(7)) and len(set(one)) == 2
    assert one != seeds(torch.Generator().manual_seed(8))
    listed = seeds([torch.Generator().manual_seed(n) for n in (7, 8)])
    assert listed[0] == one[0] != listed[1]
    with pytest.raises(UserError, match="1 generators for 2 images"):
        seeds([torch.Generator()])
    with pytest.raises(UserError, match="give one of them"):
        seeds(torch.Generator(), seed=1)


def test_a_configuration_and_names_together(pipe, made):
    config = GenerationConfig(seed=1, num_images_per_prompt=9, **FEW)
    again = pipe("a red circle", generation_config=config, num_images_per_prompt=2)
    assert again.images[0].tobytes() == made.images[0].tobytes() and len(again.images) == 2


def test_a_callback_of_diffusers_is_refused_before_work(pipe):
    with pytest.raises(UserError, match="callback_on_step_end takes one argument, a Progress"):
        pipe("a", callback_on_step_end=lambda pipe, step, timestep, kwargs: kwargs)


# --- folders and devices --------------------------------------------------------------------------


def test_a_saved_model_makes_the_same_images(pipe, made, tmp_path):
    pipe.save_pretrained(tmp_path / "mine")
    again = UnifiedPipeline.from_pretrained(tmp_path / "mine", device="cpu", torch_dtype="float32")
    assert again.weights_hash == pipe.weights_hash
    images = again("a red circle", num_images_per_prompt=2, seed=1, **FEW).images
    assert [a.tobytes() for a in images] == [a.tobytes() for a in made.images]
    assert again.to(torch.bfloat16).to("cpu", dtype="float32").model.dtype == torch.float32
    again.enable_model_cpu_offload()
    with pytest.raises(UserError, match="offloaded"):
        again.to("cpu")
    with pytest.raises(UserError, match="was not loaded by from_pretrained"):
        bare = SimpleNamespace(model=SimpleNamespace(description=None), _turn=pipe._turn)
        UnifiedPipeline.save_pretrained(bare, tmp_path / "none")


# --- chat -----------------------------------------------------------------------------------------


def test_chat_takes_a_text_and_the_messages_of_openai_and_transformers(pipe, tmp_path):
    image = Image.new("RGB", (48, 48), "red")
    image.save(tmp_path / "a.png")
    asked = "is there a circle?"
    assert pipe.chat(asked) == pipe.chat([{"role": "user", "content": asked}])
    text = {"type": "text", "text": asked}
    shown = [
        {"type": "image", "image": image},
        {"type": "image", "path": str(tmp_path / "a.png")},
        {"type": "image", "url": str(tmp_path / "a.png")},
    ]
    answers = {pipe.chat([{"role": "user", "content": [each, text]}]) for each in shown}
    assert len(answers) == 1
    with pytest.raises(UserError, match="a text or a list of messages"):
        read_messages({"role": "user", "content": "a"})


TALKS = [
    [{"role": "user", "content": " what is it? "}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "what is it?"},
        {"role": "assistant", "content": "a circle"},
        {"role": "user", "content": [{"type": "text", "text": "what colour?"}]},
    ],
]


@pytest.mark.parametrize("talk", TALKS)
def test_the_chat_template_gives_the_same_ids(pipe, talk):
    tokenizer = pipe.model.understanding.vlm.tokenizer
    turns = [(m.role, m.content) for m in read_messages(talk)]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert ids == chat_ids(tokenizer, turns, 256)


def test_the_chat_template_shows_an_image_by_its_placeholder(pipe):
    tokenizer = pipe.model.understanding.vlm.tokenizer
    content = [{"type": "image"}, {"type": "text", "text": "how many?"}]
    talk = [{"role": "user", "content": content}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert ids == chat_ids(tokenizer, [("user", [1, "how many?"])], 256)


def test_the_pipeline_is_short():
    files = Path(triptych.__file__).parent / "inference"
    assert all(len(each.read_text().splitlines()) < 350 for each in files.glob("*.py"))
    assert ast.parse((files / "pipeline.py").read_text()) and (ASSETS / "tiny").is_dir()

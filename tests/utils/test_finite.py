"""Numbers that cannot be right are refused by name: in files, and where the model computes."""

import copy

import httpx
import published_release as published
import pytest
import torch
from builders import unified
from PIL import Image
from safetensors.torch import load_file, save_file
from servers import running

from triptych.callbacks import EMA
from triptych.checkpoints import WeightFiles, load_tensors, load_weights
from triptych.checkpoints.published.convert import convert
from triptych.checkpoints.training_checkpoint import export_checkpoint
from triptych.evaluation.image_metrics.clip_score import ClipJudge
from triptych.evaluation.image_metrics.inception import load_inception
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.model_inference import inference_of
from triptych.inference.pipeline import UnifiedPipeline
from triptych.serving.images.sizes import Sizes
from triptych.utils.errors import NotFiniteError, UserError
from triptych.utils.finite import all_finite, require_finite

NAME = "generation.queries"
FLOATING = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def broken(tensor, how):
    """The tensor with one number, or with a type, that no weight has."""
    if isinstance(how, torch.dtype):
        return tensor.to(how)
    wrong = tensor.clone().contiguous()
    wrong.view(-1)[wrong.numel() // 2] = how
    return wrong


VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
TYPES = {"int64": torch.int64, "uint8": torch.uint8, "bool": torch.bool}
TYPES |= {"complex64": torch.complex64, "float8": torch.float8_e4m3fn}
WRONG = VALUES | TYPES


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_every_place_and_every_type_is_looked_at(dtype, size):
    numbers = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
    assert all_finite(numbers) and all_finite(-numbers) and all_finite(numbers[:0])
    for place in {0, size // 2, size - 1}:
        for value in VALUES.values():
            wrong = numbers.clone()
            wrong[place] = value
            assert not all_finite(wrong)
    with pytest.raises(NotFiniteError, match=r"^the pixels are NaN or infinite.*float32"):
        require_finite(wrong, "the pixels")


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """The small model, built; loaders fill it."""
    model = unified("stage2")
    torch.manual_seed(0)
    model.build()
    model.trained = {name for name, _ in model.named_parameters()}
    model.trained_shapes = {name: t.shape for name, t in model.trained_state().items()}
    return model


def by_weight_file(model, tensor, tmp_path):
    save_file({NAME: tensor}, tmp_path / "w.safetensors")
    load_weights(model, WeightFiles(generation=str(tmp_path / "w.safetensors")))


def by_checkpoint(model, tensor, tmp_path):
    load_tensors(model, {NAME: tensor}, "the training checkpoint")


def by_resuming(model, tensor, tmp_path):
    state = {name: t.detach() for name, t in model.trained_state().items()}
    model.on_load_checkpoint({"state_dict": state | {NAME: tensor}})


LOADERS = [by_weight_file, by_checkpoint, by_resuming]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("load", LOADERS)
def test_loaders_of_ours_refuse_numbers_that_are_no_weights(model, tmp_path, load, wrong):
    tensor = broken(model.generation.queries.detach(), WRONG[wrong])
    said = "holds 1 numbers of 256 that are NaN" if wrong in VALUES else "holds numbers of type"
    with pytest.raises(UserError, match=rf"generation\.queries {said}"):
        load(model, tensor, tmp_path)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("load", LOADERS)
def test_loaders_of_ours_take_every_floating_type(model, tmp_path, load, dtype):
    load(model, torch.full((4, 64), 0.5, dtype=dtype), tmp_path)


def test_counts_stay_counts_and_tables_tables(model, tmp_path):
    name = "encoder.norm.num_batches_tracked"
    load_tensors(model, {name: torch.tensor(7, dtype=torch.int32)}, "a file")
    with pytest.raises(UserError, match=r"tracked holds numbers of type float32.*whole ones"):
        load_tensors(model, {name: torch.tensor(7.0)}, "a file")


def test_a_number_too_large_for_float16_is_refused():
    model = unified("stage2")
    model.build()
    model.generation.half()
    with pytest.raises(UserError, match=r"queries holds 1 numbers .* as float16: .* or bfloat16"):
        load_tensors(model, {NAME: broken(torch.zeros(4, 64), 1e6)}, "a file")


@pytest.mark.parametrize("average", [False, True])
def test_an_export_of_a_diverged_run_is_refused(tmp_path, average):
    wrong = {NAME: broken(torch.zeros(4, 64), float("nan"))}
    fine = {NAME: torch.zeros(4, 64)}
    content = {"state_dict": fine if average else wrong, "global_step": 3}
    content["callbacks"] = {"EMA": {"average": wrong if average else fine, "steps": 3}}
    torch.save(content, tmp_path / "1.ckpt")
    with pytest.raises(UserError, match=r"generation\.queries holds 1 numbers of 256"):
        export_checkpoint(tmp_path / "1.ckpt", tmp_path / "w", average, torch.float32)
    export_checkpoint(tmp_path / "1.ckpt", tmp_path / "w", not average, torch.float32)


def test_an_average_that_is_not_finite_is_refused():
    with pytest.raises(UserError, match="EMA: queries holds 1 numbers"):
        EMA().load_state_dict({"steps": 1, "average": {"queries": torch.tensor([float("inf")])}})


KEY = "model.norm.weight"


@pytest.mark.parametrize("wrong", sorted(WRONG.keys() - {"bool", "complex64"}))
def test_a_checkpoint_of_others_is_refused(tmp_path, wrong):
    folder = published.released(tmp_path / "release", shards=1)
    path = next(p for p in folder.glob("*.safetensors") if KEY in load_file(p))
    tensors = load_file(path)
    save_file(tensors | {KEY: broken(tensors[KEY], WRONG[wrong])}, path)
    said = "NaN or infinite" if wrong in VALUES else "holds numbers of type"
    with pytest.raises(UserError, match=rf"language_model\.norm\.weight .*{said}"):
        convert(str(folder), tmp_path / "ours", say=lambda line: None)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("wrong", ["nan", "int64"])
def test_networks_that_score_are_checked_too(tmp_path, clip_folder, inception_file, wrong):
    tensors = torch.load(inception_file, weights_only=True)
    name = "Conv2d_1a_3x3.conv.weight"
    torch.save(tensors | {name: broken(tensors[name], WRONG[wrong])}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w\.pth: {name} holds"):
        load_inception(tmp_path / "w.pth")
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(clip_folder / "model.safetensors")
    name = "visual_projection.weight"
    wrong_ones = tensors | {name: broken(tensors[name], WRONG[wrong])}
    save_file(wrong_ones, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"{name} holds"):
        ClipJudge(tmp_path)


# --- what a model computes ------------------------------------------------------------------------

PROMPT = "a photo of a red circle"
TALK = [{"role": "user", "content": "what colour is the circle?"}]
STAGES = {
    "the language model's outputs": ("understanding.understander.model.model.language_model.norm"),
    "the generator's image features": "generation.dit.dit.norm_out.linear_2",
    "the image encoder's features": "encoder.tower.patch_embed.proj",
    "the decoder's pixels": "decoding.decoder.vae.skip_out",
    "the language model's logits": "understanding.understander.model.lm_head",
}


@pytest.fixture
def spoilt(pipe):
    """A function: the tiny preset with numbers in one module that are none."""

    def make(path, value=float("nan")):
        model = copy.deepcopy(pipe.model)
        with torch.no_grad():
            model.get_submodule(path).weight.fill_(value)
        return UnifiedPipeline(model, name="spoilt")

    return make


CALLS = {
    "generate": lambda pipe: pipe(PROMPT, seed=1, num_inference_steps=2).images,
    "edit": lambda pipe: (
        pipe.edit(Image.new("RGB", (48, 48)), prompt="make it blue", num_inference_steps=2).images
    ),
    "reconstruct": lambda pipe: (
        pipe.reconstruct(Image.new("RGB", (48, 48)), decoder_num_inference_steps=2).images
    ),
    "encode": lambda pipe: pipe.encode(Image.new("RGB", (48, 48))),
    "chat": lambda pipe: pipe.chat(TALK),
    "stream": lambda pipe: list(pipe.chat(TALK, stream=True)),
}
MEETS = {
    "the language model's outputs": ["generate", "edit"],
    "the generator's image features": ["generate", "edit"],
    "the image encoder's features": ["reconstruct", "encode"],
    "the decoder's pixels": ["generate", "edit", "reconstruct"],
    "the language model's logits": ["chat", "stream"],
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("stage", STAGES)
def test_a_call_that_computes_no_numbers_names_the_stage(spoilt, stage, value):
    pipe = spoilt(STAGES[stage], value)
    for call in MEETS[stage]:
        with pytest.raises(NotFiniteError, match=f"^{stage}.*NaN or infinite.*float32"):
            CALLS[call](pipe)


def test_no_black_image_is_written(triptych, spoilt, monkeypatch, tmp_path):
    pipe = spoilt(STAGES["the decoder's pixels"])
    monkeypatch.setattr(UnifiedPipeline, "from_pretrained", lambda *_, **__: pipe)
    status, _, error = triptych("generate", PROMPT, "--num-inference-steps", 2, "-o", "out")
    assert status == 1 and error.startswith("triptych: the decoder's pixels are NaN")
    assert not list(tmp_path.rglob("*.png"))


def test_the_server_answers_500_and_serves_on(spoilt):
    pipe = spoilt(STAGES["the decoder's pixels"])
    with running(pipe, Sizes.of(pipe)) as server:
        asked = {"prompt": PROMPT, "num_inference_steps": 2, "decoder_num_inference_steps": 2}
        answer = httpx.post(f"{server.url}/v1/images/generations", json=asked, timeout=60)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "not_finite"
        talk = {"messages": TALK, "max_tokens": 2}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=talk, timeout=60)
        assert answer.status_code == 200


def test_the_checks_are_two_a_batch_however_many_steps(pipe, monkeypatch):
    asked, plain = [], torch.Tensor.aminmax
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda self: asked.append(self) or plain(self))

    def count(steps):
        asked.clear()
        inference_of(pipe.model).generate(
            [PROMPT],
            seeds=[1],
            config=GenerationConfig(num_inference_steps=steps, decoder_num_inference_steps=steps),
        )
        return len(asked)

    assert count(2) == count(3) == 2  # features and pixels

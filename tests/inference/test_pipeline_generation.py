"""Image generation: samplers, callbacks at each step, cached conditions, CPU offload."""

import numpy as np
import pytest
import torch
from builders import built, decoder, shaken, vae
from tolerances import assert_same_images, images_agree, levels
from torch import nn

from triptych.backbones import vae as vae_file
from triptych.inference import quantization
from triptych.inference.offload import check_fits_in_memory
from triptych.inference.pipeline import UnifiedPipeline
from triptych.interfaces import SamplerConfig
from triptych.sampler import SAMPLERS, model_calls, noise_from_seeds
from triptych.utils.errors import UserError
from triptych.utils.png_metadata import read_metadata

PROMPTS = ["a red circle", "a blue square left of a large green triangle"]
FEW = {"num_inference_steps": 2, "decoder_num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe():
    return UnifiedPipeline.from_pretrained("tiny", device="cpu")


@pytest.fixture
def conditions(pipe, monkeypatch):
    """Numbers of prompts in the passes of the language model."""
    vlm = pipe.model.understanding.vlm
    asked, plain = [], vlm.condition
    monkeypatch.setattr(
        vlm,
        "condition",
        lambda ids, *more, **named: asked.append(len(ids)) or plain(ids, *more, **named),
    )
    return asked


# --- once, and not again --------------------------------------------------------------------------


def test_a_prompt_is_read_once_for_all_its_images(pipe, conditions):
    pipe(PROMPTS, num_images_per_prompt=3, seed=0, batch_size=2, negative_prompt="a cross", **FEW)
    assert conditions == [2, 1]  # the prompts, and what is not wanted
    conditions.clear()
    pipe([PROMPTS[1], PROMPTS[0], PROMPTS[1]], seed=0, **FEW)
    assert conditions == [2]


def test_an_image_is_that_of_its_seed_in_any_batch(pipe):
    together = pipe(PROMPTS, num_images_per_prompt=2, seed=5, **FEW).images
    assert images_agree(
        together, pipe(PROMPTS, num_images_per_prompt=2, seed=5, batch_size=3, **FEW).images
    )
    assert images_agree(together[3:], pipe(PROMPTS[1], seed=8, **FEW).images)
    assert not images_agree(together[:1], together[1:2])


# --- samplers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_are_chosen_for_either_diffusion_and_kept_in_the_file(pipe, sampler, tmp_path):
    calls = {"dit": 0, "unet": 0}
    networks = {"dit": pipe.model.generation.dit.dit, "unet": pipe.model.decoding.decoder.unet}
    hooks = [
        network.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name, network in networks.items()
    ]
    (image,) = pipe(
        PROMPTS[0],
        seed=1,
        num_inference_steps=3,
        decoder_num_inference_steps=1,
        sampler=sampler,
        decoder_sampler=sampler,
        guidance_interval=(0.1, 0.9),
    ).images
    for hook in hooks:
        hook.remove()
    assert calls == {"dit": model_calls(sampler, 3), "unet": model_calls(sampler, 1)}
    image.save(tmp_path / "one.png")
    known = read_metadata(tmp_path / "one.png")
    assert (known["sampler"], known["decoder_sampler"]) == (sampler, sampler)
    assert known["guidance_interval"] == [0.1, 0.9] and known["num_inference_steps"] == 3


def test_the_default_is_euler_as_published(pipe):
    default = pipe(PROMPTS[0], seed=1, **FEW).images
    euler = pipe(PROMPTS[0], seed=1, sampler="euler", decoder_sampler="euler", **FEW).images
    assert default[0].tobytes() == euler[0].tobytes()
    other = pipe(PROMPTS[0], seed=1, sampler="heun", **FEW).images
    assert not images_agree(default, other)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampler": "rk4"}, "no sampler 'rk4'; choose from euler"),
        ({"decoder_sampler": ""}, "no sampler ''"),
        ({"guidance_interval": (0.5, 2)}, "guidance_interval is 0.5 to 2"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"decoder_num_inference_steps": -1}, "decoder_num_inference_steps is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_sampler_arguments_are_checked_before_any_work(pipe, conditions, wrong, message):
    with pytest.raises(UserError, match=message):
        pipe(PROMPTS, **wrong)
    assert conditions == []


def test_a_decoder_of_second_order_is_nearer_to_the_limit_with_as_many_calls(pipe):
    model = pipe.model.decoding.decoder
    features = pipe.encode(pipe(PROMPTS, seed=1, **FEW).images)
    noise = noise_from_seeds(model.vae.feature_shape, [0, 1])
    limit = model.sample(SamplerConfig(60, 3.0, "dpm++"), features, noise)
    errors = {
        sampler: (model.sample(SamplerConfig(steps, 3.0, sampler), features, noise) - limit).norm()
        for sampler, steps in {"euler": 10, "heun": 5, "dpm++": 10, "unipc": 10}.items()
    }
    assert all(errors[sampler] < 0.9 * errors["euler"] for sampler in errors if sampler != "euler")


# --- word of every step ---------------------------------------------------------------------------


def test_progress_tells_of_both_networks_and_shows_the_images_so_far(pipe):
    told = []
    images = pipe(
        PROMPTS,
        seed=3,
        num_inference_steps=3,
        batch_size=1,
        decoder_num_inference_steps=2,
        callback_on_step_end=lambda p: told.append(
            (p.stage, p.step, p.steps, p.images, p.preview())
        ),
    ).images
    assert [each[:4] for each in told] == [
        *(("features", step, 3, range(n, n + 1)) for n in (0, 1) for step in (1, 2, 3)),
        *(("pixels", step, 2, range(n, n + 1)) for n in (0, 1) for step in (1, 2)),
    ]
    assert all(shown[0].size == images[0].size for *_, shown in told)
    # after the last step of a stage nothing changes any more
    assert images_agree(told[2][4], images[:1]) and images_agree(told[-1][4], images[1:])
    assert images_agree(
        pipe(PROMPTS, seed=3, num_inference_steps=3, decoder_num_inference_steps=2).images, images
    )


@pytest.mark.parametrize("stage", ["features", "pixels"])
def test_a_callback_that_raises_ends_the_call_and_breaks_nothing(pipe, stage):
    before = pipe(PROMPTS[0], seed=3, **FEW).images

    def leave(progress):
        if progress.stage == stage:
            raise ConnectionError("the client left")

    with pytest.raises(ConnectionError, match="the client left"):
        pipe(PROMPTS, seed=3, callback_on_step_end=leave, **FEW)
    assert before[0].tobytes() == pipe(PROMPTS[0], seed=3, **FEW).images[0].tobytes()


# --- memory ---------------------------------------------------------------------------------------


def test_in_low_memory_one_network_at_a_time_is_on_the_device(pipe, monkeypatch):
    # told apart from the CPU that they wait on
    low = UnifiedPipeline.from_pretrained("tiny", device="cpu:0", enable_model_cpu_offload=True)
    moves, plain = [], nn.Module.to

    def to(module, device):
        moves.append((type(module).__name__, str(device)))
        return plain(module, device)

    monkeypatch.setattr(nn.Module, "to", to)
    images = low(PROMPTS, num_images_per_prompt=2, seed=5, batch_size=4, **FEW).images
    monkeypatch.undo()
    there = set()
    for name, device in moves:
        (there.add if device == "cpu:0" else there.remove)(name)
        assert there <= {"UNet2DConditionModel", "Baseline"} or len(there) <= 1
    brought = [name for name, device in moves if device == "cpu:0"]
    assert brought == [
        "QwenVL",
        "LuminaNextDiT",
        "UNet2DConditionModel",
        "Baseline",
        "KLAutoencoder",
    ]
    assert images_agree(images, pipe(PROMPTS, num_images_per_prompt=2, seed=5, **FEW).images)
    assert low.encode(images[0]).shape == (1, *low.model.encoder.feature_shape)


def test_weights_that_do_not_fit_a_gpu_are_refused_before_they_are_moved(pipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 2**30))
    with pytest.raises(UserError, match="0.0 GiB are free on cuda; load the model with enable"):
        check_fits_in_memory(pipe.model, torch.device("cuda"))


def test_out_of_memory_error_names_the_settings_to_lower(pipe, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipe.model.generation, "sample", full)
    with pytest.raises(UserError, match="16 images at once .* lower batch_size, or load the"):
        pipe(PROMPTS, **FEW)


def test_quantizing_wants_its_library_and_a_size_it_has(monkeypatch):
    with pytest.raises(UserError, match="quantize is '3bit'; choose from 4bit, 8bit"):
        UnifiedPipeline.from_pretrained("tiny", quantize="3bit")
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs bitsandbytes, .* pip install 'triptych\[quantize\]'"
    ):
        UnifiedPipeline.from_pretrained("tiny", quantize="4bit")


# --- the VAE --------------------------------------------------------------------------------------


def test_latents_are_decoded_a_few_at_a_time(monkeypatch):
    model = built(vae()).eval()
    latents, rows = torch.randn(5, *model.feature_shape), []
    whole = model.decode(latents)
    model.vae.decoder.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    monkeypatch.setattr(vae_file, "AT_ONCE", 2 * model.image_size**2)
    parts = model.decode(latents)
    assert rows == [2, 2, 1]
    assert_same_images(parts, whole)


def test_large_images_are_decoded_in_tiles_and_encoded_whole():
    torch.manual_seed(0)
    plain = built(vae(block_widths=[32, 32], linear_skip=False, patch_size=1)).eval()
    tiled = vae(block_widths=[32, 32], linear_skip=False, patch_size=1, tile=24)
    built(tiled).eval().load_state_dict(plain.state_dict())
    latents, sides = torch.randn(1, *plain.feature_shape), []
    tiled.vae.decoder.register_forward_pre_hook(lambda _, given: sides.append(given[0].shape[-1]))
    pixels = tiled.decode(latents)
    assert pixels.shape == plain.decode(latents).shape and max(sides) == 12
    shown = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8)
    assert torch.equal(tiled(shown), plain(shown))
    with pytest.raises(UserError, match="VAE tile 25 is not a multiple of 2"):
        vae(block_widths=[32, 32], linear_skip=False, patch_size=1, tile=25)


def test_a_decoder_shows_its_images_while_it_works():
    model = decoder()
    model.configure_shapes((32, 3, 3))
    shaken(built(model), 0.02).eval()
    features, seen = torch.randn(2, 32, 3, 3), []
    options = {
        "num_inference_steps": 3,
        "guidance_scale": 2.0,
        "on_image": lambda n, make: seen.append((n, make())),
    }
    pixels = model.decode(features, [0, 1], **options)
    assert [number for number, _ in seen] == [0, 1, 2]
    assert_same_images(seen[-1][1], pixels)


def test_a_model_in_bfloat16_does_all_that_one_in_float32_does():
    """bfloat16 is the default on GPUs."""
    pipe = UnifiedPipeline.from_pretrained("tiny", dtype="bfloat16")
    assert {parameter.dtype for parameter in pipe.model.parameters()} == {torch.bfloat16}
    (image,) = pipe(
        "a photo of a red circle", seed=7, num_inference_steps=10, negative_prompt="a cat"
    ).images
    question = [{"role": "user", "content": [image, "what colour is the circle?"]}]
    assert pipe.chat(question) == "red"
    assert pipe.encode(image).dtype == torch.float32
    difference = levels(image) - levels(pipe.reconstruct(image).images)
    assert np.abs(difference).mean() < 20  # of 255: the decoder draws its image anew
    assert (
        pipe.edit(image, prompt="make the circle blue", num_inference_steps=2).images[0].size
        == image.size
    )


def test_an_unknown_dtype_is_refused_before_anything_is_loaded():
    with pytest.raises(
        UserError, match="dtype is 'float7'; choose from float32, bfloat16, float16"
    ):
        UnifiedPipeline.from_pretrained("tiny", dtype="float7")

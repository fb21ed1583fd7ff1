"""Edits: the generator sees the image where it can, and a model that cannot says so once."""

import logging

import pytest
import torch
from edit_models import blind_flags
from tolerances import images_agree

from triptych.evaluation.shapes.edit_eval import edits
from triptych.inference import edit_source
from triptych.inference.generation_config import GenerationConfig, own_value
from triptych.inference.model_inference import ModelInference
from triptych.inference.pipeline import UnifiedPipeline
from triptych.shapes_world.world import draw
from triptych.utils.errors import UserError
from triptych.utils.images import to_images, to_tensor
from triptych.utils.png_metadata import metadata_of

FEW = {"num_inference_steps": 2, "decoder_num_inference_steps": 2, "guidance_interval": (0.0, 1.0)}
SAMPLES = edits(3)


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    flags = blind_flags(tmp_path_factory.mktemp("blind"))
    return UnifiedPipeline.from_pretrained("tiny", device="cpu", overrides=flags)


@pytest.fixture(scope="module")
def seeing():
    return UnifiedPipeline.from_pretrained("tiny", device="cpu")


@pytest.fixture
def images():
    return to_images(to_tensor([draw(edit.source) for edit in SAMPLES]))


@pytest.fixture
def rows(seeing, monkeypatch):
    """Rows of each call of the DiT, and which of them have a source."""
    seen, dit = [], seeing.model.generation.dit
    forward = dit.forward

    def call(x_t, t, condition, source=None):
        seen.append((len(x_t), None if source is None else source.present.tolist()))
        return forward(x_t, t, condition, source)

    monkeypatch.setattr(dit, "forward", call)
    return seen


INSTRUCTIONS = [edit.instruction for edit in SAMPLES]


# --- a generator that sees the image --------------------------------------------------------------


@pytest.mark.parametrize(
    "scale, image_scale, groups",
    [(1.0, 1.0, "i"), (3.0, 1.0, "ii"), (2.0, 2.0, "-i"), (3.0, None, "-ii"), (3.0, 2.0, "-ii")],
)
def test_an_edit_gives_the_generator_its_image(seeing, images, rows, scale, image_scale, groups):
    """With image_guidance_scale 1.5 by default."""
    scales = {"guidance_scale": scale, "image_guidance_scale": image_scale}
    seeing.edit(images, prompt=INSTRUCTIONS, seed=0, **FEW, **scales)
    present = [each == "i" for each in groups for _ in range(3)]
    assert rows == [(3 * len(groups), present)] * 2


def test_the_result_depends_on_the_image_by_the_generator_too(seeing, images, monkeypatch):
    """The language model's view is held still."""
    held = seeing.model.understanding.vlm.condition
    first = []
    monkeypatch.setattr(
        seeing.model.understanding.vlm,
        "condition",
        lambda *given, **named: first.append(held(*given, **named)) or first[0],
    )
    made = [seeing.edit(image, prompt="make it blue", seed=0, **FEW).images for image in images[:2]]
    assert not images_agree(*made)


def test_a_scale_is_that_of_its_image_in_any_batch(seeing, images):
    together = seeing.edit(images, prompt=INSTRUCTIONS, seed=0, **FEW).images
    split = seeing.edit(images, prompt=INSTRUCTIONS, seed=0, batch_size=2, **FEW).images
    assert images_agree(together, split)
    twice = seeing.edit(
        images, prompt=INSTRUCTIONS, seed=0, num_images_per_prompt=2, batch_size=3, **FEW
    ).images
    assert images_agree([twice[0]], [together[0]])
    alone = seeing.edit(images[2], prompt=INSTRUCTIONS[2], seed=4, **FEW).images
    assert images_agree([twice[4]], alone)
    assert metadata_of(together[0])["image_guidance_scale"] == 1.5


def test_captions_are_made_without_a_source(seeing, rows):
    image = seeing("a red circle", seed=0, **FEW).images[0]
    assert rows == [(2, None)] * 2 and "image_guidance_scale" not in metadata_of(image)


def test_a_bare_model_edits_as_the_pipeline_does(seeing, images):
    config = GenerationConfig(image_guidance_scale=2.0, **FEW)
    pixels = to_tensor([draw(edit.source) for edit in SAMPLES])
    bare = ModelInference(seeing.model).edit(pixels, INSTRUCTIONS, seeds=[0, 1, 2], config=config)
    piped = seeing.edit(images, prompt=INSTRUCTIONS, seed=0, generation_config=config)
    assert images_agree(to_images(bare), piped.images)


def test_an_offloaded_model_sees_the_image(seeing, images):
    offloaded = UnifiedPipeline.from_pretrained("tiny", device="cpu", enable_model_cpu_offload=True)
    made = offloaded.edit(images, prompt=INSTRUCTIONS, seed=0, **FEW).images
    assert images_agree(made, seeing.edit(images, prompt=INSTRUCTIONS, seed=0, **FEW).images)


def test_a_saved_model_sees_the_image(seeing, images, tmp_path):
    seeing.save_pretrained(tmp_path / "model")
    again = UnifiedPipeline.from_pretrained(tmp_path / "model", device="cpu")
    made = again.edit(images, prompt=INSTRUCTIONS, seed=0, **FEW).images
    assert images_agree(made, seeing.edit(images, prompt=INSTRUCTIONS, seed=0, **FEW).images)


# --- one that does not, and bad input -------------------------------------------------------------


def test_a_generator_that_sees_no_image_says_so_once(blind, images, caplog, monkeypatch):
    monkeypatch.setattr(edit_source, "_told", type(edit_source._told)())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            made = blind.edit(images[0], prompt="make it blue", seed=0, **FEW).images[0]
    assert caplog.text.count("generator does not see the image to edit") == 1
    assert "image_guidance_scale" not in metadata_of(made)
    assert own_value(blind.model, "image_guidance_scale") is None


def test_an_image_scale_without_a_generator_that_sees_images_is_refused(blind, images):
    with pytest.raises(UserError, match="image_guidance_scale is 2, and this model's generator"):
        blind.edit(images[0], prompt="make it blue", image_guidance_scale=2, **FEW)
    pixels = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    config = GenerationConfig(image_guidance_scale=1.0)
    with pytest.raises(UserError, match="image_guidance_scale is 1, and"):
        ModelInference(blind.model).edit(pixels, ["x"], seeds=[0], config=config)


def test_other_bad_calls(seeing, images):
    with pytest.raises(UserError, match="has no argument 'image_guidance_scale'; pipe.edit takes"):
        seeing("a red circle", image_guidance_scale=2.0)
    with pytest.raises(UserError, match="there is no image to edit; give one for each prompt"):
        seeing.edit([], prompt=[])
    with pytest.raises(UserError, match="image_guidance_scale"):
        seeing.edit(images[0], prompt="make it blue", image_guidance_scale=-1)

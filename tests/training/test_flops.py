"""FLOPs of a step: formulas against torch's counter, over the real step, on the meta device.

Nothing can be read from the meta device, so that a step which runs there never makes the host wait.
"""

import pytest
import torch
from builders import ROOT, batches, needed, unified
from published_step import published_loss, recomputing
from torch.nn.attention import SDPBackend, sdpa_kernel

from triptych.inference.loading import describe_stage
from triptych.interfaces import IMAGE_GENERATION, IMAGE_TO_TEXT, TEXT_TO_IMAGE, Batch
from triptych.training import flops
from triptych.training.flop_counter import count_flops
from triptych.training.freezing import freeze_all_but

TEXT, QUERIES = 135, 64  # tokens of a caption's prompt without [IMG], and what follows [IMG]
WITHIN = 1e-3  # of the counter: what the formulas leave out is less


def preset(name, *flags):
    """Stage 2 of a published preset, not built."""
    files = [ROOT / "conf" / "presets" / f"{name}.yaml", ROOT / "conf" / "stages" / "stage2.yaml"]
    return describe_stage(files, ["--model.build_decoder=false", *flags])


@pytest.fixture(scope="module")
def stage2():
    return on_meta(preset("blip3o_8b"))


def on_meta(model):
    """`model` on the meta device, in training."""
    with torch.device("meta"):
        model.build()
    model.trained = freeze_all_but(model, model.trainable)
    return model.train()


def one_sample(model, cached):
    """A batch of one prompt of TEXT tokens and [IMG], on the meta device."""
    ids = torch.ones(1, TEXT + 1, dtype=torch.long)
    side = model.encoder.image_size
    return Batch(
        IMAGE_GENERATION,
        ["key"],
        0,
        torch.zeros(1, dtype=torch.long),
        ids,
        torch.ones_like(ids),
        target_pixels=None if cached else torch.zeros(1, 3, side, side, dtype=torch.uint8),
        target_features=torch.zeros(1, *model.encoder.feature_shape) if cached else None,
    ).to("meta")


def counted(loss):
    """FLOPs of `loss()` and of its backward pass."""
    return count_flops(lambda: loss().backward())


def parts(model):
    return model.understanding.vlm, model.generation.dit


def test_a_step_on_cached_features(stage2):
    model = stage2
    found = counted(lambda: model.step(one_sample(model, cached=True))[0])
    formula = flops.generation_step(*parts(model), None, TEXT + 1, QUERIES)
    assert found == pytest.approx(formula.total, rel=WITHIN)
    assert found <= 4.1e12


def test_a_step_with_register_queries():
    model = on_meta(preset("blip3o_4b", "--model.generation.num_registers=64"))
    found = counted(lambda: model.step(one_sample(model, cached=True))[0])
    formula = flops.generation_step(*parts(model), None, TEXT + 1, QUERIES, registers=64)
    assert found == pytest.approx(formula.total, rel=WITHIN)
    assert found > 1.05 * flops.generation_step(*parts(model), None, TEXT + 1, QUERIES).total


def test_a_step_on_images(stage2):
    model = stage2
    found = counted(lambda: model.step(one_sample(model, cached=False))[0])
    formula = flops.generation_step(*parts(model), model.encoder, TEXT + 1, QUERIES)
    assert found == pytest.approx(formula.total, rel=WITHIN)
    assert found <= 13.5e12


@pytest.mark.slow
def test_the_published_step(stage2):
    model = stage2
    with recomputing(model):
        found = counted(lambda: published_loss(model, one_sample(model, cached=False)))
    formula = flops.published_step(*parts(model), model.encoder, TEXT + 1, QUERIES)
    assert found == pytest.approx(formula.total, rel=WITHIN)
    # over the vocabulary of Qwen and a DiT with wider layers
    assert found == pytest.approx(18.2e12, rel=0.01)


def test_the_formulas_at_the_smaller_size():
    """The counter agrees with them at the larger one; the two differ in sizes alone."""
    model = preset("blip3o_4b")
    sizes = (TEXT + 1, QUERIES)
    assert flops.generation_step(*parts(model), None, *sizes).total <= 2.0e12
    assert flops.generation_step(*parts(model), model.encoder, *sizes).total <= 11.5e12
    published = flops.published_step(*parts(model), model.encoder, *sizes).total
    assert published == pytest.approx(13.5e12, rel=0.01)


def test_flops_of_stage_1_match_the_formula(weights, samples):
    """Label positions are read from the device, so this runs on the CPU, in small."""
    model = unified("stage1", weights=weights).train()
    model.build()
    batch = batches(model, samples, IMAGE_TO_TEXT, range(4))
    size, tokens = len(batch), batch.input_ids.shape[1]
    learned, images = int((batch.labels[:, 1:] != -100).sum()), len(batch.image_grid_thw)
    with sdpa_kernel(SDPBackend.MATH):  # a fused kernel computes scores again to go backward
        found = counted(lambda: model.step(batch)[0])
    qwen = model.understanding.vlm
    formula = flops.understanding_step(qwen, tokens, learned / size, images / size)
    assert found == pytest.approx(size * formula, rel=0.02)


def test_shared_prompt_prefix_is_counted_once(weights, samples):
    model = unified("stage2", weights=needed(weights, "stage2"))
    model.configure_model()
    batch = batches(model, samples, TEXT_TO_IMAGE, range(6))
    tokens, shared = batch.input_ids.shape[1], batch.num_shared_prefix_tokens
    found = counted(lambda: model.to("meta").train().step(batch.to("meta"))[0])
    qwen, dit = parts(model)
    formula = flops.generation_step(qwen, dit, model.encoder, tokens, 4, shared=shared)
    once = flops.prompt(qwen, shared).forward
    assert found == pytest.approx(6 * formula.total + once, rel=0.02)

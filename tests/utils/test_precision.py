"""Number formats: buffers stay float32 under any cast of a model."""

import copy

import pytest
import torch
from builders import built, unified, vlm
from lightning import Trainer
from lightning.pytorch.plugins import FSDPPrecision, HalfPrecision
from safetensors.torch import load_file, save_file
from small_parts import CASES, draw, pixels
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger

from triptych import backbones
from triptych.backbones.qwen2_5_vl_tower import PositionalMerger
from triptych.checkpoints import WeightFiles, load_weights, save_weights
from triptych.inference import image_generation
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.loading import describe_model
from triptych.inference.model_inference import inference_of
from triptych.inference.pipeline import UnifiedPipeline
from triptych.interfaces import LazyModule
from triptych.modules.base import BaseModule
from triptych.training.execution import cast_frozen
from triptych.training.meta_init import parameters_on_meta
from triptych.training.strategies import BlockFSDPStrategy
from triptych.utils.errors import UserError
from triptych.utils.paths import presets
from triptych.utils.precision import STATISTICS, ExactBuffers

BF16 = torch.bfloat16
ROUNDOFF = 2.0**-9  # of bfloat16: half of a unit in the last of its 8 bits
POSITIONS = (10, 2_000, 30_000)
BOTH = [torch.bfloat16, torch.float16]


def inexact(module):
    """Name and dtype of each buffer that is neither float32 nor a whole number."""
    right = (torch.float32, torch.int64)
    return {name: b.dtype for name, b in module.named_buffers() if b.dtype not in right}


# --- every part of every preset, by every cast ----------------------------------------------------


# Every layer of a network has the same buffers.
SHALLOW = [
    "--model.understanding.init_args.vlm.init_args.text.num_hidden_layers=2",
    "--model.understanding.init_args.vlm.init_args.vision.depth=2",
    "--model.encoder.init_args.depth=2",
    "--model.generation.init_args.dit.init_args.depth=2",
]


def build_whole(name):
    model = describe_model([presets()[name]], SHALLOW)
    with torch.device("meta"):
        model.build()
        if model.encoding is not None:
            model.encoding.build()
    return model


@pytest.fixture(scope="module")
def models():
    """Every preset on the meta device, whole."""
    return {name: build_whole(name) for name in sorted(presets())}


CASTS = {
    "to": lambda module: module.to(BF16),
    "to float16": lambda module: module.to(torch.float16),
    "to a device too": lambda module: module.to("meta", BF16),
    "to like": lambda module: module.to(torch.empty(0, dtype=BF16, device="meta")),
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "type": lambda module: module.type(BF16),
    "there and back": lambda module: module.bfloat16().float().half(),
    "by way of float64": lambda module: module.double().bfloat16(),
    "what is frozen": lambda module: cast_frozen(module.requires_grad_(False), BF16),
    "bf16-true": HalfPrecision("bf16-true").convert_module,
    "16-true": HalfPrecision("16-true").convert_module,
    "FSDP's bf16-true": FSDPPrecision("bf16-true").convert_module,
}


@pytest.mark.parametrize("preset", sorted(presets()))
@pytest.mark.parametrize("cast", CASTS)
def test_no_cast_reaches_a_buffer(models, preset, cast):
    CASTS[cast](models[preset])
    assert inexact(models[preset]) == {}
    assert {parameter.dtype for parameter in models[preset].parameters()} <= set(BOTH)
    models[preset].float()
    assert inexact(models[preset]) == {}


@pytest.mark.parametrize("preset", sorted(presets()))
def test_casting_a_part_keeps_its_buffers(models, preset):
    for part in [m for m in models[preset].modules() if isinstance(m, LazyModule | BaseModule)]:
        part.float().to(BF16)
        assert {parameter.dtype for parameter in part.parameters()} <= {BF16}
        assert inexact(part) == {}, type(part).__name__


def test_every_part_is_in_a_preset(models):
    """Else the test above would not see a new one."""
    kinds = {type(module) for model in models.values() for module in model.modules()}
    written = {getattr(backbones, name) for name in backbones.__all__}
    assert {kind for kind in written if issubclass(kind, LazyModule)} <= kinds
    assert {case.partition(".")[0] for case in CASES} == {
        kind.__name__ for kind in kinds if issubclass(kind, LazyModule)
    }


@pytest.mark.parametrize("preset", sorted(presets()))
def test_persistent_buffers_have_known_names(models, preset):
    """So that a file of half the size rounds no statistics; see `precision.exported`."""
    model = models[preset]
    stored = model.state_dict().keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
    floating = [name for name in stored if model.state_dict()[name].is_floating_point()]
    assert [name for name in floating if not name.endswith(STATISTICS)] == []


class Held(ExactBuffers):
    """A module of somebody else inside of one of ours."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner


def test_the_other_dtypes_of_buffers():
    inner = nn.Linear(2, 2)
    inner.register_buffer("turn", torch.polar(torch.ones(2), torch.ones(2)))
    inner.register_buffer("counts", torch.arange(3))
    inner.register_buffer("table", torch.tensor([1 / 3]))
    held = Held(inner).type(BF16).inner
    assert held.weight.dtype == BF16 and held.counts.dtype == torch.int64
    assert held.table.item() == torch.tensor([1 / 3]).item()
    assert held.turn.dtype == torch.complex64 and held.turn.imag.all()
    assert Held(inner).double().inner.table.dtype == torch.float64  # wider is as exact
    assert Held(inner).float().inner.table.dtype == torch.float32


def test_gradients_are_cast_with_their_parameters():
    part = built(vlm())
    part.condition(
        torch.ones(1, 2).long(), torch.ones(1, 2).long(), draw(1, 64)
    ).hidden_states.sum()
    for parameter in part.parameters():
        parameter.grad = torch.ones_like(parameter)
    part.to(BF16)
    assert {parameter.grad.dtype for parameter in part.parameters()} == {BF16}


# --- the ways of building and loading -------------------------------------------------------------


def same_buffers(model, exact):
    wanted = dict(exact.named_buffers())
    assert dict(model.named_buffers()).keys() == wanted.keys()
    for name, buffer in model.named_buffers():
        assert buffer.dtype == wanted[name].dtype and torch.equal(buffer, wanted[name]), name


@pytest.mark.parametrize(("dtype", "low_memory"), [("bfloat16", False), ("float16", True)])
def test_the_pipeline_loads_the_same_buffers_in_every_dtype(pipe, dtype, low_memory):
    options = {"dtype": dtype, "enable_model_cpu_offload": low_memory}
    model = UnifiedPipeline.from_pretrained("tiny", device="cpu", **options).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    same_buffers(model, pipe.model)


@pytest.mark.parametrize("on_meta", [True, False])
def test_buffers_are_exact_if_bfloat16_is_the_default(weights, on_meta):
    """As Lightning builds under bf16-true."""
    exact = unified("stage2", weights=weights)
    exact.configure_model()
    model = unified("stage2", weights=weights)
    with HalfPrecision("bf16-true").module_init_context():
        if on_meta:
            with parameters_on_meta():
                model.build()
        model.configure_model()
    same_buffers(model, exact)
    assert torch.equal(model.generation.queries, exact.generation.queries)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_a_step_of_the_trainer(weights, shapes_folder, tmp_path, precision):
    from builders import data

    model = unified("stage2", weights=weights)
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        max_steps=1,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, data(shapes_folder))
    exact = unified("stage2", weights=weights)
    exact.unused = model.unused
    exact.configure_model()
    same_buffers(model, exact)
    assert model.generation.queries.dtype == (BF16 if "true" in precision else torch.float32)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_the_older_fsdp_keeps_buffers_as_they_are():
    strategy = BlockFSDPStrategy()
    for precision in ("bf16-mixed", "bf16-true", "16-mixed"):
        strategy.precision_plugin = FSDPPrecision(precision)
        config = strategy.mixed_precision_config
        assert config.buffer_dtype is None and config.param_dtype in BOTH


@pytest.mark.parametrize("dtype", BOTH)
def test_a_weight_file_of_half_the_size_has_whole_statistics(tmp_path, dtype):
    tensors = {"encoder.norm.running_var": torch.tensor([1e6 / 3]), "encoder.w": torch.ones(2)}
    tensors["encoder.norm.num_batches_tracked"] = torch.tensor(3)
    save_weights(tensors, tmp_path / "w.safetensors", {}, dtype)
    found = load_file(tmp_path / "w.safetensors")
    assert torch.equal(found["encoder.norm.running_var"], tensors["encoder.norm.running_var"])
    assert found["encoder.w"].dtype == dtype
    assert found["encoder.norm.num_batches_tracked"].dtype == torch.int64


def test_files_do_not_overwrite_computed_buffers(tmp_path):
    """Old files of transformers hold rotary frequencies, rounded as everything else in them."""
    model = unified("stage1")
    model.configure_model()
    ending = "language_model.rotary_emb.inv_freq"
    name = next(name for name, _ in model.named_buffers() if name.endswith(ending))
    save_file({name: torch.ones(8, dtype=BF16)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"holds .*inv_freq, which this model does not have"):
        load_weights(model, WeightFiles(understanding=str(tmp_path / "w.safetensors")))


# --- angles ---------------------------------------------------------------------------------------


def rounded(module):
    """A copy whose frequencies went through bfloat16, as a plain cast of buffers leaves them."""
    module = copy.deepcopy(module)
    for name, buffer in module.named_buffers():
        if name.endswith("inv_freq"):
            buffer.copy_(buffer.to(BF16))
    return module


def angles(rotary, position, dtype):
    """Cosine and sine for a text token, as a network of `dtype` is given them."""
    places = torch.full((3, 1, 1), position)
    return torch.stack(rotary(torch.zeros(1, dtype=dtype), places))


@pytest.fixture(scope="module", params=["blip3o_4b", "blip3o_8b", "tiny"])
def rotary(request):
    """The rotary embedding of a preset's language model, in a network that was cast."""
    part = describe_model([presets()[request.param]]).understanding.vlm
    with parameters_on_meta():
        part.build()
    return part.to(BF16).model.model.language_model.rotary_emb


@pytest.mark.parametrize("position", POSITIONS)
def test_angles_in_bfloat16_are_those_of_float32_rounded_once(rotary, position):
    exact = angles(rotary, position, torch.float32)
    error = lambda found: (found.float() - exact).abs().max().item()  # noqa: E731
    assert error(angles(rotary, position, BF16)) <= ROUNDOFF
    assert error(angles(rounded(rotary), position, BF16)) > 3 * ROUNDOFF
    if position > 1000:
        assert error(angles(rounded(rotary), position, BF16)) > 0.5


@pytest.fixture(scope="module")
def readers(pipe):
    """The tiny language model in float32 and in bfloat16."""
    half = UnifiedPipeline.from_pretrained("tiny", device="cpu", dtype=BF16)
    return tuple(each.model.understanding.vlm for each in (pipe, half))


@torch.no_grad()
def states(part, position):
    """Outputs of a prompt whose second half stands `position` tokens behind the first."""
    model = part.model.model.language_model
    ids = torch.randint(0, 400, (4, 24), generator=torch.Generator().manual_seed(0))
    places = torch.arange(24) + position * (torch.arange(24) >= 12)
    return model(
        inputs_embeds=model.embed_tokens(ids), position_ids=places.expand(3, 4, -1), use_cache=False
    ).last_hidden_state


def relative(found, exact):
    return ((found.float() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("position", POSITIONS)
def test_prompts_in_bfloat16_differ_from_float32_only_by_rounding(readers, position):
    exact, half = readers
    # A layer rounds about eight times one after the other; independent errors add as squares.
    bound = ROUNDOFF * (8 * exact.text.num_hidden_layers) ** 0.5
    wanted = states(exact, position)
    assert states(half, position).dtype == BF16
    assert relative(states(half, position), wanted) < bound
    if position > 1000:
        assert relative(states(rounded(half), position), wanted) > 5 * bound


@pytest.mark.parametrize("side", [100, 500, 2_000])
def test_angles_of_the_vision_tower_on_large_images(models, side):
    """Exact to float32 at every place, in patches from the corner."""
    for model in models.values():
        built = model.understanding.vlm.model.model.visual.rotary_pos_emb
        held = Held(type(built)(built.config))
        places = torch.full((1, 2), side)
        wanted, _ = held.inner(torch.zeros(1), places)
        found, _ = held.to(BF16).inner(torch.zeros(1, dtype=BF16), places)
        assert torch.equal(found, wanted)
        old, _ = rounded(held).inner(torch.zeros(1, dtype=BF16), places)
        assert (old - wanted).abs().max() > 5 * ROUNDOFF


@torch.no_grad()
def test_the_vision_tower_on_a_wide_image(readers, monkeypatch):
    """512 patches in a row, without the places, which are of one size of images."""
    monkeypatch.setattr(PositionalMerger, "forward", Qwen2_5_VLPatchMerger.forward)
    exact, half = readers
    seen = [each.image_features(draw(2048, 384), torch.tensor([[1, 4, 512]])) for each in readers]
    assert seen[1].dtype == BF16
    assert relative(seen[1], seen[0]) < ROUNDOFF * (8 * exact.vision.depth) ** 0.5


# --- what meets the buffers -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_part_computes_in_its_dtype_and_near_float32(name, dtype):
    part, call = CASES[name]()
    wanted = call(part).float()
    seen = []
    for each in part.modules():
        if isinstance(each, nn.Linear | nn.Conv2d):
            each.register_forward_hook(lambda _, given, made: seen.append(made.dtype))
    made = call(part.to(dtype))
    assert set(seen) == {dtype}  # no float32 buffer widens the activations
    roundoff = ROUNDOFF if dtype == BF16 else ROUNDOFF / 8
    assert relative(made, wanted) < 12 * roundoff


@pytest.mark.parametrize("dtype", BOTH)
def test_images_of_a_pipeline_in_half_precision(pipe, dtype):
    prompts = ["a photo of a red circle", "a blue square above a green circle"]
    half = UnifiedPipeline.from_pretrained("tiny", device="cpu", dtype=dtype)
    exact = inference_of(pipe.model).generate(
        prompts, seeds=[1, 2], config=GenerationConfig(num_inference_steps=4)
    )
    found = inference_of(half.model).generate(
        prompts, seeds=[1, 2], config=GenerationConfig(num_inference_steps=4)
    )
    difference = (found.int() - exact.int()).abs().float()
    assert difference.mean() < (4 if dtype == BF16 else 1)  # of 255
    shown = pixels(2)
    wanted = image_generation.encode(pipe.model, shown)
    assert image_generation.encode(half.model, shown).dtype == torch.float32
    assert relative(image_generation.encode(half.model, shown), wanted) < 12 * ROUNDOFF

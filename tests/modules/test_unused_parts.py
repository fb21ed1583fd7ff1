"""Parts that a run never computes with are neither built nor read, and nothing else changes."""

import shutil
from dataclasses import replace

import pytest
import torch
from builders import data, needed, unified, vlm, write_weights
from feature_shards import make
from lightning import Callback, Trainer
from safetensors import safe_open
from safetensors.torch import load_file

from triptych.callbacks import Checkpoint, Evaluate, ExportWeights
from triptych.checkpoints import weight_files
from triptych.checkpoints.training_checkpoint import read_checkpoint, read_trained
from triptych.evaluation import EditEval, ShapeEval
from triptych.evaluation.image_metrics.feature_distance import FeatureDistance
from triptych.inference.loading import describe_stage
from triptych.interfaces import BatchContents
from triptych.modules.unused_parts import unused_parts
from triptych.training.freezing import may_match
from triptych.training.meta_init import parameters_on_meta
from triptych.utils.errors import UserError
from triptych.utils.paths import conf_files, presets

CACHED = BatchContents(has_features=True, shows_images=False)
LIVE = BatchContents(has_features=False, shows_images=False)
EDITS = BatchContents(has_features=True, shows_images=True)
ALL = {"encoder", "vision_tower", "lm_head"}
PATHS = {
    "encoder": "encoder.",
    "vision_tower": "understanding.vlm.model.model.visual.",
    "lm_head": "understanding.vlm.model.lm_head.",
}


def untied(stage="stage2", **settings):
    """The small model with an lm_head of its own; not built."""
    model = unified(stage, **settings)
    model.understanding.vlm = vlm(tie_word_embeddings=False)
    model._connect()
    return model


@pytest.fixture(scope="module")
def untied_weights(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builders.unified", untied)
        return write_weights(tmp_path_factory.mktemp("untied"))


@pytest.fixture
def world(tmp_path, shapes_folder, untied_weights):
    """A small shard folder with features of all samples."""
    folder = shutil.copytree(
        shapes_folder, tmp_path / "world", ignore=shutil.ignore_patterns("*.idx")
    )
    for part in ("train", "eval"):
        make(folder / part, untied_weights)
    return folder


class Needs(Callback):
    """A callback that computes with parts of the model."""

    def __init__(self, *parts):
        self.needed_parts = parts


class Losses(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


def fit(model, datamodule, folder, *callbacks, steps=3, resume=None):
    """Train and validate; returns the losses."""
    seen = Losses()
    Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            Checkpoint(every_n_train_steps=2, save_top_k=-1),
            ExportWeights(),
            seen,
            *callbacks,
        ],
    ).fit(model, datamodule, ckpt_path=resume, weights_only=True)
    return [*seen.losses, model.trainer.callback_metrics["val/loss"].item()]


def absent(model):
    """The optional parts that have no parameter in a built model."""
    names = [name for name, _ in model.named_parameters()]
    return {part for part, path in PATHS.items() if not any(n.startswith(path) for n in names)}


def state(folder):
    """Newest checkpoint and exported weights of a run."""
    (weights,) = folder.rglob("weights.safetensors")
    newest = max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return newest, load_file(weights)


def equal(one, other):
    assert one.keys() == other.keys() and one
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_cached_stage_trains_the_same_without_them(world, untied_weights, tmp_path):
    """Losses, weights, checkpoint and resumed run are those of a run that has all parts."""
    weights = needed(untied_weights, "stage2")
    runs = {}
    for name, callbacks in (("some", []), ("all", [Needs("understanding", "encoder")])):
        model = untied(weights=weights)
        losses = fit(model, data(world), tmp_path / name, *callbacks)
        runs[name] = (model, losses, *state(tmp_path / name))
    some, every = runs["some"], runs["all"]
    assert absent(some[0]) == ALL and absent(every[0]) == set()
    assert some[1] == every[1]  # not approximately
    equal(some[3], every[3])
    saved, whole = (read_checkpoint(run[2]) for run in (some, every))
    equal(saved["state_dict"], whole["state_dict"])
    assert saved["run"]["base"] == whole["run"]["base"] and "encoder" in saved["run"]["base"]
    equal(read_trained(some[2], False)[0], read_trained(every[2], False)[0])

    model = untied(weights=weights)  # with all parts, from the checkpoint of a run without them
    resumed = fit(model, data(world), tmp_path / "more", Needs(*ALL), steps=5, resume=str(some[2]))
    assert absent(model) == set()
    model = untied(weights=weights)
    assert resumed == fit(model, data(world), tmp_path / "on", steps=5, resume=str(every[2]))
    assert absent(model) == ALL
    equal(state(tmp_path / "more")[1], state(tmp_path / "on")[1])


@pytest.mark.parametrize(
    ("stage", "settings", "expected"),
    [
        ("stage2", {"features": "none"}, {"vision_tower", "lm_head"}),
        ("stage2", {"tasks": ["text_to_image", "image_to_image"]}, {"encoder", "lm_head"}),
        ("stage1", {}, {"encoder"}),  # which that stage has no use for at all
        ("joint", {"features": "none"}, set()),
        ("joint", {}, {"encoder"}),
        ("decoder", {}, ALL),  # nor has this one for the language model
    ],
)
def test_what_a_stage_loads(stage, settings, expected, world, untied_weights, tmp_path):
    model = untied(stage, weights=needed(untied_weights, stage))
    fit(model, data(world, stage, **settings), tmp_path / "run", steps=2)
    assert absent(model) == expected


def test_a_shard_without_features_loads_the_encoder(world, untied_weights, tmp_path):
    late = world / "eval" / "late.tar"
    shutil.copy(min((world / "train").glob("*.tar")), late)
    model = untied(weights=needed(untied_weights, "stage2"))
    fit(model, data(world), tmp_path / "run", steps=2)
    assert absent(model) == ALL - {"encoder"}


def test_nothing_of_them_is_read(world, untied_weights, tmp_path, monkeypatch):
    """Count the bytes that are taken out of the weight files."""
    read = {}

    class Counted(weight_files._File):
        def get_slice(self, name):
            read[name] = self.file.get_tensor(self.names[name]).nbytes
            return super().get_slice(name)

    monkeypatch.setattr(weight_files, "_File", Counted)
    weights = needed(untied_weights, "stage2")
    stored = {}
    for path in (weights.understanding, weights.encoder, weights.vae, weights.decoder):
        with safe_open(path, framework="pt") as file:
            stored |= {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    model = untied(weights=weights, build_decoder=False)
    fit(model, data(world), tmp_path / "run", steps=2)
    unread = {name for name in stored if name.startswith((*PATHS.values(), "vae.", "decoding."))}
    assert read == {name: size for name, size in stored.items() if name not in unread}
    assert any(name.startswith(PATHS["lm_head"]) for name in unread)


def test_wrapped_names_of_them_are_skipped_too(untied_weights, tmp_path):
    """As DistributedDataParallel around the language model names them."""
    weights = load_file(untied_weights.understanding)
    beginning = "understanding.vlm."
    wrapped = {n.replace(beginning, beginning + "module."): t for n, t in weights.items()}
    path = tmp_path / "understanding.safetensors"
    weight_files.save_weights(wrapped, path, {}, torch.float32)
    model = untied(weights=replace(untied_weights, understanding=str(path)), build_decoder=False)
    model.unused = ALL
    model.configure_model()
    (norm,) = (n for n in weights if n.endswith("language_model.norm.weight"))
    assert absent(model) == ALL and torch.equal(model.state_dict()[norm], weights[norm])


# --- what asks for them ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (Evaluate(ShapeEval(num_images=1)), ALL),
        (Evaluate(EditEval(num_images=1)), ALL - {"vision_tower"}),
        (Evaluate(FeatureDistance("nowhere")), ALL - {"encoder"}),
        (Needs("understanding"), {"encoder"}),
        (Needs("language_model"), ALL),
        (Needs("lm_head"), ALL - {"lm_head"}),
    ],
)
def test_callbacks_get_what_they_name(callback, expected, world, untied_weights):
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[callback], max_steps=1)
    model, datamodule = untied(weights=untied_weights), data(world)
    datamodule.connect(model.preprocessing())
    datamodule.setup("fit")
    trainer.datamodule, model.trainer, trainer.state.fn = datamodule, trainer, "fit"
    model.configure_model()
    assert absent(model) == expected


def test_a_callback_that_names_nothing_of_a_model_is_refused():
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[Needs("eyes")], max_steps=1)
    model = untied()
    model.trainer = trainer
    with pytest.raises(UserError, match=r"'eyes' is no part of a model; choose from .*lm_head"):
        model.configure_model()


def test_use_of_a_part_that_is_not_loaded_is_one_sentence(untied_weights, samples):
    """Of the encoder, live features, images in a prompt, and answers."""
    model = untied(weights=untied_weights, build_decoder=False)
    model.unused = ALL
    model.configure_model()
    vlm = model.understanding.vlm
    ids = torch.ones(1, 3, dtype=torch.long)
    pixels = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    patches, grids = vlm.image_inputs(pixels)
    uses = {
        "image encoder": lambda: model.encoder(pixels),
        "vision tower": lambda: vlm.condition(ids, ids, model.generation.queries, patches, grids),
        "lm_head": lambda: vlm.generate_text(ids, ids, None, None, max_new_tokens=1),
    }
    for part, use in uses.items():
        with pytest.raises(UserError, match=rf"^this run does without the .*{part}, as .*\.$"):
            use()
    assert "built without its image encoder" in model.lacks("encoder")
    assert "built without its language model's lm_head" in model.lacks("understanding")
    assert model.lacks("language_model", "generation") is None


# --- the rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        (["generation"], ALL),
        (["generation", "encoder.tower"], ALL - {"encoder"}),
        (["generation", "understanding.vlm.model.model.language_model"], ALL),
        (["generation", "understanding.vlm.model.lm_head"], ALL - {"lm_head"}),
        (["generation", "understanding"], {"encoder"}),
        (["*"], set()),
    ],
)
def test_what_may_train_is_loaded(trainable, expected):
    assert unused_parts(untied(trainable=trainable), CACHED) == expected


@pytest.mark.parametrize(
    ("path", "pattern", "possible"),
    [
        ("encoder", "encoder", True),
        ("encoder", "encode", False),
        ("encoder", "encoder.tower.x", True),
        ("encoder", "enc*.x", True),
        ("encoder", "generation.*", False),
        ("a.b", "a", True),
        ("a.b", "a.c", False),
        ("a.b", "?.b.c", True),
    ],
)
def test_patterns_that_may_match(path, pattern, possible):
    assert may_match(path, [pattern]) == possible


def test_a_tied_head_stays():
    assert unused_parts(unified(), CACHED) == {"encoder", "vision_tower"}


def test_a_decoder_that_guides_against_a_blank_image_keeps_the_encoder():
    model = untied(decoder_negative="black_image")
    assert unused_parts(model, CACHED) == {"vision_tower", "lm_head"}
    model.build_decoder = False
    assert unused_parts(model, CACHED) == ALL


def test_latents_as_targets_need_no_image_encoder():
    assert unused_parts(untied(objective="vae_flow"), LIVE) == ALL


def test_unknown_data_and_no_losses():
    assert unused_parts(untied(), BatchContents()) == {"lm_head"}
    assert unused_parts(untied("inference"), CACHED) == set()
    assert unused_parts(untied(), EDITS) == {"encoder", "lm_head"}


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("blip3o_8b", {"encoder": 8.70, "vision_tower": 1.35, "lm_head": 1.09}),
        ("blip3o_4b", {"encoder": 8.70, "vision_tower": 1.34}),
    ],
)
def test_gigabytes_saved_at_published_sizes(preset, expected):
    """In bfloat16, counted on the meta device."""
    files = [presets()[preset], conf_files("stages/stage2.yaml")["stage2"]]

    def size(unused):
        model = describe_stage(files, ["--model.build_decoder=false"])
        model.unused = unused
        with parameters_on_meta():
            model.build()
        return 2 * sum(p.numel() for p in model.parameters()) / 1e9

    model = describe_stage(files, ["--model.build_decoder=false"])
    unused = unused_parts(model, CACHED)
    assert unused == expected.keys()
    assert size(set()) - size(unused) == pytest.approx(sum(expected.values()), abs=0.03)

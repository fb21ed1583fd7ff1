"""Names of models: presets, files, folders, runs and their checkpoints."""

import pytest
import torch
import yaml
from builders import ROOT
from commands import own_shards
from safetensors.torch import load_file

from triptych.checkpoints import save_weights
from triptych.cli.main import main
from triptych.inference.loading import find_source
from triptych.inference.pipeline import UnifiedPipeline
from triptych.utils.errors import UserError
from triptych.utils.paths import ASSETS
from triptych.utils.png_metadata import metadata_of

CALLBACKS = ["Checkpoint", "ExportWeights"]
TINY = ROOT / "conf" / "presets" / "tiny.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shapes_folder):
    """Two runs of stage 2, two steps each: version_0 with an EMA, version_1 without."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for callbacks in ([*CALLBACKS, "EMA"], CALLBACKS):
            trainer = {
                "max_steps": 2,
                "limit_val_batches": 0,
                "enable_progress_bar": False,
                "accelerator": "cpu",
                "callbacks": [{"class_path": f"triptych.callbacks.{each}"} for each in callbacks],
            }
            short = folder / "short.yaml"
            short.write_text(yaml.safe_dump({"trainer": trainer}))
            files = [
                ROOT / "conf" / "base.yaml",
                TINY,
                ROOT / "conf" / "stages" / "stage2.yaml",
                ROOT / "conf" / "recipes" / "tiny" / "stage2.yaml",
                ROOT / "conf" / "data" / "tiny" / "stage2.yaml",
            ]
            configs = [word for file in files for word in ("--config", file)]
            words = ["fit", *configs, *own_shards(shapes_folder), "--config", short]
            words += ["--data.batch_size=2", "--model.optimization.lr=0.1"]
            main([str(word) for word in words])
    return folder / "runs" / "tiny" / "stage2"


QUERIES = "generation.queries"


def trained(source, **options):
    """The queries that a run trained."""
    return find_source(source, **options).trained[QUERIES]


def test_presets_and_model_files(tmp_path):
    assert find_source("tiny").configs == [TINY] or find_source("tiny").configs[0].samefile(TINY)
    assert find_source(TINY).configs == [TINY]
    assert find_source([TINY, "more.yaml"]).configs[1].name == "more.yaml"
    (tmp_path / "model.yaml").write_text(TINY.read_text())
    found = find_source(tmp_path)
    assert found.configs == [tmp_path / "model.yaml"]
    assert not (found.overrides or found.trained)


def test_a_weight_file_takes_the_place_of_its_presets(tmp_path):
    file = tmp_path / "mine.safetensors"
    tensors = {"generation.queries": torch.zeros(16, 128)}
    save_weights(tensors, file, {"preset": "tiny"}, torch.float32)
    assert find_source(file).overrides == [f"--model.weights.generation={file}"]
    save_weights(tensors, file, {"preset": "mine"}, torch.float32)
    with pytest.raises(UserError, match="of the preset 'mine', which is none of"):
        find_source(file)


def test_a_run_is_its_newest_checkpoint(runs):
    folder = runs / "version_1"
    own = trained(folder)
    assert torch.equal(own, trained(folder / "checkpoints" / "last.ckpt"))
    assert torch.equal(own, trained(runs))  # the newest run of the stage
    assert torch.equal(own, load_file(folder / "weights.safetensors")[QUERIES])
    assert find_source(folder).configs[0].samefile(folder / "config.yaml")


def test_the_average_is_another_model(runs):
    folder = runs / "version_0"
    average = trained(folder, ema=True)
    assert not torch.equal(trained(folder), average)
    assert torch.equal(average, load_file(folder / "weights_ema.safetensors")[QUERIES])
    with pytest.raises(UserError, match="holds no EMA: its run had no callback"):
        find_source(runs / "version_1", ema=True)


def test_a_trained_model_keeps_its_other_panels_and_draws(runs):
    pipe = UnifiedPipeline.from_pretrained(runs / "version_1", device="cpu")
    assert torch.equal(pipe.model.generation.queries, trained(runs / "version_1"))
    (image,) = pipe(
        "a red circle", seed=1, num_inference_steps=1, decoder_num_inference_steps=1
    ).images
    assert metadata_of(image)["model"] == "version_1"
    assert pipe.chat([{"role": "user", "content": [image, "how many?"]}])


def test_invalid_model_name_is_refused_in_one_sentence(tmp_path):
    alone = tmp_path / "alone"
    (alone / "checkpoints").mkdir(parents=True)
    (alone / "config.yaml").write_text("model: {class_path: triptych.modules.GenerationModule}")
    empty = tmp_path / "empty"
    empty.mkdir()
    junk = tmp_path / "junk.ckpt"
    junk.write_bytes(b"no checkpoint")
    (alone / "checkpoints" / "last.ckpt").write_bytes(b"any")
    (tmp_path / "config.yaml").write_text("model: {}")
    for name, options, said in (
        ("tinny", {}, "there is no model at tinny; give a preset .*tiny"),
        (tmp_path / "no.safetensors", {}, "there is no model at"),
        (empty, {}, "holds no model: neither model.yaml"),
        (junk, {}, "is no checkpoint"),
        (alone / "checkpoints" / "last.ckpt", {}, "of one panel that was trained alone"),
        ("tiny", {"ema": True}, "tiny is no training checkpoint, and has no EMA"),
        (TINY, {"ema": True}, "is no training checkpoint, and has no EMA"),
    ):
        with pytest.raises(UserError, match=said):
            find_source(name, **options)


def test_weights_of_another_kind_and_none_are_one_sentence(tmp_path):
    def refused(*overrides):
        with pytest.raises(UserError) as error:
            UnifiedPipeline.from_pretrained("tiny", device="cpu", overrides=overrides)
        return str(error.value)

    encoder = ASSETS / "tiny" / "encoder.safetensors"
    said = refused(f"--model.weights.generation={encoder}")
    assert "no weights for generation.queries" in said and "generation=FILE names them" in said
    assert "nowhere.safetensors does not exist" in refused(
        "--model.weights.generation=nowhere.safetensors"
    )
    assert "number_of_querys" in refused("--model.generation.number_of_querys=4")

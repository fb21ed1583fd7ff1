"""Every callback of the shipped configurations, every stage, every kind of data set.

A fit of one step trains or is refused in a sentence; a callback that it cannot serve steps aside.
"""

import json
import shutil
from pkgutil import resolve_name

import pytest
import yaml
from builders import ROOT, STAGES, needed, unified
from configured_callbacks import configured
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from triptych.checkpoints import WeightFiles
from triptych.data_modules import ConversationFile, DatasetConfig, MixedDataModule, ShardFolder
from triptych.data_modules.sources.tables import TextTable
from triptych.inference.generation_config import GenerationConfig
from triptych.inference.model_inference import inference_of
from triptych.interfaces import IMAGE_TO_IMAGE, IMAGE_TO_TEXT, TEXT_TO_IMAGE, TEXT_TO_TEXT
from triptych.utils.errors import UserError


def made(class_path, settings):
    """A configured callback, made to show and score little."""
    name = class_path.rpartition(".")[2]
    if name == "SampleGrid":
        settings = {"every_n_steps": 1, "num_samples": 2, "previews": inference_of}
    if name == "Evaluate":
        of = settings["evaluator"]["class_path"]
        settings = {
            "evaluator": resolve_name(of)(
                num_images=3, generation_config=GenerationConfig(num_inference_steps=1)
            )
        }
    if name == "FlowLossByNoise":
        settings = {"batches": 1, "times": [0.5]}
    return resolve_name(class_path)(**settings)


# --- the sets -------------------------------------------------------------------------------------


def records(folder, rows):
    """A conversation file with these records."""
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ConversationFile(folder / "set.jsonl")


def images(folder, number=4):
    """Names of small image files in `folder`."""
    for n in range(number):
        Image.new("RGB", (52, 48), (60 * n, 90, 200)).save(folder / f"{n}.png")
    return [f"{n}.png" for n in range(number)]


def said(question="what is it?"):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "a red circle"}]


def captioned(folder, shapes):
    return ShardFolder(shapes / "eval")


def llava(folder, shapes):
    names = images(folder)
    return records(folder, [{"image": n, "conversations": said("<image>\nwhat?")} for n in names])


def texts(folder, shapes):
    return records(folder, [{"conversations": said()} for _ in range(4)])


def table(folder, shapes):
    rows = [{"image": name, "caption": "two blue squares"} for name in images(folder)]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TextTable(folder / "table.jsonl")


def edits(folder, shapes):
    first, *others = images(folder)
    return records(
        folder,
        [{"source": first, "instruction": "make it blue", "target": name} for name in others],
    )


def plain(folder, shapes):
    return records(folder, [{"image": name} for name in images(folder)])


def featured(folder, shapes):
    """Captioned images with features beside them, of `builders.unified` with the test's weights."""
    from feature_shards import make

    shutil.copytree(shapes / "eval", folder / "eval", ignore=shutil.ignore_patterns("*.idx"))
    make(folder / "eval", WEIGHTS[0])
    return ShardFolder(folder / "eval")


WEIGHTS: list[WeightFiles] = []
SETS = {
    "captioned": captioned,
    "featured": featured,
    "llava": llava,
    "texts": texts,
    "table": table,
    "edits": edits,
    "plain": plain,
}
# What a stage makes of a set that can serve it; any other pair is refused.
DRAWS = {
    "captioned": TEXT_TO_IMAGE,
    "featured": TEXT_TO_IMAGE,
    "table": TEXT_TO_IMAGE,
    "edits": IMAGE_TO_IMAGE,
    "plain": IMAGE_TO_IMAGE,
}
READS = {
    "captioned": IMAGE_TO_TEXT,
    "featured": IMAGE_TO_TEXT,
    "llava": IMAGE_TO_TEXT,
    "texts": TEXT_TO_TEXT,
    "table": IMAGE_TO_TEXT,
}
SERVED = {"stage2": DRAWS, "stage1": READS, "decoder": DRAWS, "encoder": DRAWS, "joint": DRAWS}
# Pairs that train without a sheet: nothing in the set can be shown.
UNSEEN = {("stage1", "texts"), ("stage2", "plain"), ("joint", "plain")}
QUICK = {("stage1", "llava"), ("stage1", "texts"), ("stage2", "edits"), ("decoder", "texts")}


def fit(stage, source, task, weights, folder, steps=1):
    """One step of a stage with the callbacks of all configurations: the Trainer."""
    model = unified(stage, weights=needed(weights, stage))
    datasets = {"set": DatasetConfig(source, task)}
    if stage == "joint":  # the other loss has a set of its own
        (folder / "texts").mkdir()
        datasets["texts"] = DatasetConfig(texts(folder / "texts", None), TEXT_TO_TEXT)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=CSVLogger(folder, None, "run"),
        callbacks=[made(*each) for each in configured().items()],
        val_check_interval=1,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
    )
    data = MixedDataModule(datasets, batch_size=2, num_val_samples=2, length_bucket_batches=1)
    trainer.fit(model, datamodule=data)
    return trainer


def test_the_stages_tried_here_have_the_losses_of_all_recipes():
    # learning from rewards reads no images, from preferences pairs: files of their own
    every = (ROOT / "conf" / "stages").glob("*.yaml")
    recipes = [path for path in every if path.stem not in ("rl", "preferences")]
    tried = [set(stage["loss_weights"]) for stage in STAGES.values()]
    for path in recipes:
        assert set(yaml.safe_load(path.read_text())["model"]["loss_weights"]) in tried, path


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.sweep)
        for pair in [(stage, name) for stage in STAGES for name in SETS]
    ],
)
def test_a_set_trains_a_stage_or_is_refused(
    stage, name, tmp_path, shapes_folder, weights, caplog, monkeypatch
):
    monkeypatch.setattr(f"{__name__}.WEIGHTS", [weights])
    source = SETS[name](tmp_path, shapes_folder)
    if name not in SERVED[stage]:
        task = IMAGE_TO_TEXT if stage == "stage1" else TEXT_TO_IMAGE
        with pytest.raises(UserError) as refused:
            fit(stage, source, task, weights, tmp_path)
        assert len(str(refused.value).splitlines()) == 1
        return
    trainer = fit(stage, source, SERVED[stage][name], weights, tmp_path)
    assert trainer.global_step == 1
    run = tmp_path / "run"
    assert (run / "samples").exists() == ((stage, name) not in UNSEEN)
    asides = [line for line in caplog.messages if "steps aside" in line]
    assert len(asides) == len({line.partition(" steps")[0] for line in asides})  # said once
    assert ((stage, name) in UNSEEN) == any(line.startswith("SampleGrid") for line in asides)

"""Cached features of the images in stories: those that are computed live, and older caches."""

import json
from dataclasses import replace

import pytest
import torch
from builders import needed, unified
from feature_shards import make
from lightning import Trainer
from safetensors import safe_open
from safetensors.torch import save_file

from triptych.data_modules import Collator, DatasetConfig, MixedDataModule, ShardFolder, TaskDataset
from triptych.data_modules.features.cache import NAMED, open_feature_cache
from triptych.interfaces import INTERLEAVED_IMAGES, TEXT_TO_IMAGE
from triptych.shapes_world.shards import ensure_stories
from triptych.utils.errors import UserError


@pytest.fixture
def stories(tmp_path):
    ensure_stories(tmp_path, train=6, seed=0)
    return tmp_path / "train"


def live(weights):
    """The small model of stage 2, built; its encoder counts its calls in `encoder.calls`."""
    model = unified("stage2", weights=needed(weights, "stage2"))
    model.configure_model()
    model.encoder.calls = 0

    def count(encoder, inputs, output):
        encoder.calls += 1

    model.encoder.register_forward_hook(count)
    return model


def batch_of(model, folder, numbers=range(4), cached=True):
    source = ShardFolder(folder).open()
    cache = open_feature_cache(source) if cached else None
    dataset = TaskDataset(source, INTERLEAVED_IMAGES, features=cache)
    collate = Collator([dataset], replace(model.preprocessing(), features=None))
    return collate(0, [(0, n) for n in numbers], list(numbers))


def without_names(folder):
    """Make the cache one of a version that knew one image of each sample."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["shards"].values():
        del entry[NAMED]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            metadata, ends = file.metadata(), file.get_tensor("key_ends").tolist()
            names = bytes(file.get_tensor("keys").tolist())
            features = file.get_tensor("features")
        keys = [names[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        rows = [row for row, key in enumerate(keys) if not key.endswith(b".jpg")]
        assert 0 < len(rows) < len(keys)
        keys = [keys[row] for row in rows]
        ends = torch.tensor([len(key) for key in keys]).cumsum(0)
        names = torch.tensor(list(b"".join(keys)), dtype=torch.uint8)
        metadata.pop(NAMED)
        tensors = {"features": features[rows].clone(), "keys": names, "key_ends": ends}
        save_file(tensors, path, metadata)


def test_cached_features_of_stories_are_the_live_ones(stories, weights):
    folder = make(stories, weights)
    model = live(weights).eval()
    cached, fresh = batch_of(model, stories), batch_of(model, stories, cached=False)
    assert cached.target_pixels is None and cached.has_features is None
    assert len(cached.target_features) == len(fresh.target_pixels) == len(fresh) > 8
    assert torch.equal(cached.understanding_pixels, fresh.understanding_pixels)
    losses = [model.step(cached)[0].item()]
    assert model.encoder.calls == 0
    losses.append(model.step(fresh)[0].item())
    assert model.encoder.calls == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    with torch.no_grad():
        features = model.encoder(fresh.target_pixels)
    assert torch.allclose(cached.target_features, features, atol=1e-5)
    entries = json.loads((folder / "manifest.json").read_text())["shards"].values()
    assert sum(entry["samples"] for entry in entries) == 6
    assert sum(entry[NAMED] for entry in entries) > 12
    assert not any(entry["unreadable"] for entry in entries)


def test_training_on_stories_and_captions_never_calls_the_encoder(stories, weights, shapes_folder):
    images = stories.parent / "images"
    images.mkdir()
    (images / "eval.tar").write_bytes(next((shapes_folder / "eval").glob("*.tar")).read_bytes())
    losses = {}
    for cached in (False, True):
        if cached:
            make(stories, weights)
            make(images, weights)
        datasets = {
            "captions": DatasetConfig(ShardFolder(images), TEXT_TO_IMAGE, weight=0.5),
            "stories": DatasetConfig(ShardFolder(stories), INTERLEAVED_IMAGES, weight=0.5),
        }
        model = live(weights)
        data = MixedDataModule(datasets, datasets, batch_size=4, num_val_samples=8)
        Trainer(
            accelerator="cpu",
            max_steps=2,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, data)
        assert data.batch_contents().has_features == cached
        losses[cached] = model.trainer.callback_metrics["train/loss"].item()
        assert (model.encoder.calls == 0) == cached
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_an_older_cache_is_read_and_its_stories_are_encoded_live(stories, weights):
    folder = make(stories, weights)
    without_names(folder)
    source = ShardFolder(stories).open()
    cache = open_feature_cache(source)
    assert cache.get(0) is not None and cache.get(0, "0.jpg") is None
    assert cache.complete_for(TEXT_TO_IMAGE) and not cache.complete_for(INTERLEAVED_IMAGES)
    batch = batch_of(live(weights), stories)
    assert batch.target_features is None and len(batch.target_pixels) == len(batch)
    make(stories, weights)  # which adds what is missing
    assert open_feature_cache(source).complete_for(INTERLEAVED_IMAGES)
    assert open_feature_cache(source).get(0, "0.JPG") is not None


def test_a_story_whose_features_are_missing_is_a_bad_sample(stories, weights, monkeypatch):
    plain = ShardFolder.named_image_bytes
    with monkeypatch.context() as broken:
        broken.setattr(
            ShardFolder,
            "named_image_bytes",
            lambda source, number, name: b"no" if number == 1 else plain(source, number, name),
        )
        make(stories, weights)
    model = live(weights)
    batch = batch_of(model, stories)
    ((key, reason),) = batch.dropped_samples
    assert key == ShardFolder(stories).open().key(1) and reason.startswith("no features in the")
    with pytest.raises(UserError, match="--data.features=none"):
        batch_of(model, stories, [1])

"""Cached features: written next to the shards, found, and used only if they are valid."""

import json
import os
import pickle
import shutil
import tarfile
from dataclasses import replace

import pytest
import torch
from builders import ROOT, data, eva, needed, relative, steps, unified, write_weights
from commands import run
from feature_shards import BACKEND, make
from lightning import Trainer
from safetensors.torch import load_file, save_file
from tolerances import assert_close

from triptych.checkpoints import WeightFiles, hashing
from triptych.checkpoints.hashing import weights_hash
from triptych.data_modules import Collator, ShardFolder, TaskDataset
from triptych.data_modules.features.cache import (
    FeatureCache,
    open_feature_cache,
    open_feature_caches,
)
from triptych.data_modules.features.feature_shard import (
    FeatureShard,
    FeatureShardWriter,
    dequantize,
    quantize,
)
from triptych.interfaces import TEXT_TO_IMAGE, BatchContents
from triptych.modules.feature_extraction import FeatureModule
from triptych.utils.errors import UserError


@pytest.fixture
def world(tmp_path, shapes_folder):
    """A copy of the small shard folder, to put features into; without the indexes that other tests
    may have left there, which are not of shards that a test changes."""
    no_indexes = shutil.ignore_patterns("*.idx")
    return shutil.copytree(shapes_folder, tmp_path / "world", ignore=no_indexes)


def touch(shard):
    """Another time of change, and the index made again."""
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 5))
    shard.with_name(shard.name + ".idx").unlink()


def alter(shard):
    """Another byte at the end of its last sample, the size as it was, and the index made again."""
    content = bytearray(shard.read_bytes())
    place = len(bytes(content).rstrip(b"\0")) - 1
    content[place] ^= 1
    shard.write_bytes(content)
    touch(shard)


def live(weights, stage="stage2", **settings):
    """The small model of a stage, built; its encoder counts its calls in `encoder.calls`."""
    model = unified(stage, weights=needed(weights, stage), **settings)
    model.configure_model()
    for encoder in (model.encoder, model.vae):
        encoder.calls = 0
        encoder.register_forward_hook(count)
    return model.eval()


def count(encoder, inputs, output):
    encoder.calls += 1


def batch(model, source, cache=None, numbers=range(4)):
    dataset = TaskDataset(source, TEXT_TO_IMAGE, features=cache)
    processor = replace(model.preprocessing(), features=None)
    return Collator([dataset], processor)(0, [(0, n) for n in numbers], list(numbers))


# --- feature shards -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("keys", [["a"], ["größe", "b/c", "d"], []])
def test_a_feature_shard_gives_back_what_was_written(dtype, keys, tmp_path):
    features = (
        torch.randn(len(keys), 5, 3, 3) * torch.tensor([0.0, 1e-3, 1, 20, 400])[:, None, None]
    )
    writer = FeatureShardWriter(tmp_path / "s", dtype, (5, 3, 3))
    for key, row in zip(keys, features, strict=True):
        assert not (tmp_path / "s").exists()
        writer.add([key], row[None])
    writer.close({"of": "me"})
    feature_shard = FeatureShard(tmp_path / "s")
    assert feature_shard.metadata["of"] == "me" and list(feature_shard.rows) == keys
    assert feature_shard.get("none of them") is None
    assert set(load_file(tmp_path / "s")) >= {"features", "keys", "key_ends"}  # any reader reads it
    bound = {"fp32": 0, "bf16": 2**-8, "int8": 1 / 127}[dtype]
    for key, row in zip(keys, features, strict=True):
        highest = row.abs().amax((1, 2), keepdim=True)
        assert ((feature_shard.get(key) - row).abs() <= bound * highest).all()
    if keys:
        back = torch.stack([feature_shard.get(key).float() for key in keys])
        squares, errors = (float(feature_shard.metadata[n]) for n in ("squares", "square_errors"))
        assert (errors / squares) ** 0.5 == pytest.approx(relative(back, features), rel=1e-4)


def test_int8_has_a_scale_for_each_channel_of_each_sample():
    features = torch.randn(2, 3, 4, 4) * torch.tensor([1.0, 1000.0])[:, None, None, None]
    stored, scales = quantize(features)
    assert stored.abs().amax((2, 3)).eq(127).all() and scales.shape == (2, 3)
    assert relative(dequantize(stored, scales), features) < 0.01


def test_a_feature_shard_that_is_cut_off_is_refused(tmp_path):
    writer = FeatureShardWriter(tmp_path / "s", "fp32", (2, 3, 3))
    writer.add(["a"], torch.randn(1, 2, 3, 3))
    writer.close({})
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cannot be read .* again"):
        FeatureShard(tmp_path / "s")


def test_a_key_that_comes_twice_has_no_features(tmp_path):
    writer = FeatureShardWriter(tmp_path / "s", "fp32", (2, 3, 3))
    writer.add(["a", "b", "a"], torch.randn(3, 2, 3, 3))
    writer.close({})
    feature_shard = FeatureShard(tmp_path / "s")
    assert feature_shard.get("a") is None and feature_shard.get("b") is not None


def test_features_that_are_no_numbers_stop_the_writing_by_name(tmp_path):
    writer = FeatureShardWriter(tmp_path / "s", "bf16", (2, 3, 3))
    with pytest.raises(UserError, match="sample b that are no finite numbers"):
        writer.add(
            ["a", "b"], torch.stack([torch.zeros(2, 3, 3), torch.full((2, 3, 3), torch.nan)])
        )
    writer.discard()
    assert not list(tmp_path.iterdir())


# --- cached and live ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "objective"), [("stage2", "clip"), ("stage2", "vae"), ("decoder", "clip")]
)
def test_cached_features_are_the_live_ones(stage, objective, world, weights):
    make(world / "train", weights, "fp32", objective)
    rounded = make(world / "train", weights, "bf16", objective, out=world / "rounded")
    model = live(weights, stage, objective=f"{objective}_flow")
    source = ShardFolder(world / "train").open()
    fresh = batch(model, source)
    exact = batch(model, source, open_feature_cache(source))
    near = batch(model, source, open_feature_cache(source, str(rounded)))
    encoder = model.encoder if objective == "clip" else model.vae
    with torch.no_grad():
        features = encoder(fresh.target_pixels)
        assert torch.equal(exact.target_features, features)
        assert near.target_features.dtype == torch.bfloat16
        assert relative(near.target_features.float(), features) < 1e-2
        encoder.calls = 0
        losses = [model.step(each)[0].item() for each in (exact, near)]
        assert encoder.calls == 0
        expected = model.step(fresh)[0].item()
    assert losses[0] == expected and losses[1] == pytest.approx(expected, rel=1e-2)
    if stage == "decoder":
        assert torch.equal(exact.target_pixels, fresh.target_pixels)  # they are what it learns
    else:
        assert exact.target_pixels is None and exact.has_features is None


def test_int8_states_its_error(world, weights):
    folder = make(world / "train", weights, "int8")
    stated = json.loads((folder / "manifest.json").read_text())["relative_rms_error"]
    source = ShardFolder(world / "train").open()
    cache, model = open_feature_cache(source), live(weights)
    with torch.no_grad():
        wanted = model.encoder(batch(model, source, numbers=range(64)).target_pixels)
    given = torch.stack([cache.get(n) for n in range(64)])
    assert given.dtype == torch.float32
    assert 0 < stated < 0.01 and stated == pytest.approx(relative(given, wanted), rel=1e-3)


def test_a_shard_without_features_is_encoded_live(world, weights):
    late = world / "train" / "train-00003.tar"
    shutil.move(late, world / "late.tar")
    make(world / "train", weights)
    shutil.move(world / "late.tar", late)
    source, model = ShardFolder(world / "train").open(), live(weights)
    cache = open_feature_cache(source)
    assert not cache.complete and "7 of 8 shards" in str(cache)
    numbers = [0, 24, 31, 40]  # the middle two are of the late shard
    mixed, fresh = (batch(model, source, each, numbers) for each in (cache, None))
    assert mixed.has_features.tolist() == [True, False, False, True]
    assert torch.equal(mixed.target_pixels[1:3], fresh.target_pixels[1:3])
    assert not mixed.target_pixels[0].any()  # not decoded
    with torch.no_grad():
        losses = [model.step(each)[0].item() for each in (mixed, fresh)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_run_with_features_never_calls_the_encoder(world, weights):
    for part in ("train", "eval"):
        make(world / part, weights)
    losses = {}
    for features in ("auto", "none"):
        model = live(weights, "stage2")
        Trainer(
            accelerator="cpu",
            max_steps=3,
            val_check_interval=2,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[],
        ).fit(model, data(world, features=features))
        losses[features] = model.trainer.callback_metrics["val/loss"].item()
        assert (model.encoder.calls == 0) == (features == "auto")
    assert losses["auto"] == pytest.approx(losses["none"], rel=1e-5)


def test_training_on_features_learns(world, weights):
    make(world / "train", weights)
    source = ShardFolder(world / "train").open()
    model = live(weights).train()
    losses = steps(model, batch(model, source, open_feature_cache(source)), 8)
    assert losses[-1] < losses[0] and model.encoder.calls == 0


def test_a_cache_travels_to_workers(world, weights):
    make(world / "train", weights)
    source = ShardFolder(world / "train").open()
    cache = open_feature_cache(source)
    first = cache.get(9)
    assert torch.equal(pickle.loads(pickle.dumps(cache)).get(9), first)


# --- making ---------------------------------------------------------------------------------------


def test_finished_feature_shards_are_not_repeated(world, weights):
    folder = make(world / "train", weights)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    gone, stale = sorted(times)[2:4]
    gone.unlink()
    touch(world / "train" / "train-00002.tar")
    alter(world / "train" / "train-00003.tar")
    before = (folder / "manifest.json").read_text()
    make(world / "train", weights)
    changed = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {gone, stale} and len(times) == 8
    assert json.loads(before)["samples"] == 64
    open_feature_cache(ShardFolder(world / "train").open())  # and now it holds


def test_a_folder_of_other_features_is_not_overwritten(world, weights):
    make(world / "train", weights)
    with pytest.raises(UserError, match="another encoder or dtype"):
        make(world / "train", weights, "bf16")


def test_images_that_cannot_be_read_are_absent_and_counted(world, weights):
    shard = world / "train" / "train-00000.tar"
    with tarfile.open(shard) as tar:
        bad = next(member for member in tar if not member.name.endswith((".txt", ".json")))
    content = bytearray(shard.read_bytes())
    content[bad.offset_data : bad.offset_data + bad.size] = bytes(bad.size)
    shard.write_bytes(content)
    folder = make(world / "train", weights)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["samples"], manifest["unreadable"]) == (63, 1)
    assert manifest["shards"]["train-00000.tar"]["unreadable"] == 1
    source = ShardFolder(world / "train").open()
    cache, model = open_feature_cache(source), live(weights)
    number = next(n for n in range(8) if source.key(n) == bad.name.partition(".")[0])
    assert cache.get(number) is None
    beside = [n for n in range(8) if n != number]
    given = torch.stack([cache.get(n) for n in beside])
    with torch.no_grad():
        wanted = model.encoder(batch(model, source, numbers=beside).target_pixels)
    assert torch.allclose(given, wanted, atol=1e-5)  # the rows after it did not move up


def test_nothing_but_the_encoder_is_built(weights):
    for objective, part in (("clip", "encoder"), ("vae", "vae")):
        module = FeatureModule(unified("inference", weights=weights), objective)
        module.configure_model()
        assert {name.split(".")[1] for name, _ in module.named_parameters()} == {part}


# --- caches that are refused ----------------------------------------------------------------------


def refused(world, weights, says, model=None, features="auto"):
    module = data(world, features=features)
    module.connect((model or unified("stage2", weights=weights)).preprocessing())
    with pytest.raises(UserError, match=says) as caught:
        module.setup("fit")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_other_weights_are_refused(world, weights, tmp_path):
    make(world / "train", weights)
    tensors = load_file(weights.encoder)
    name = next(name for name in tensors if name.startswith("encoder.") and "weight" in name)
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, tmp_path / "encoder.safetensors")
    other = replace(weights, encoder=str(tmp_path / "encoder.safetensors"))
    refused(world, other, r"are not those of this model \(weights .*--data.features=none")


@pytest.mark.parametrize("settings", [{"pool": 3}, {"image_size": 96}, {"standardize": False}])
def test_another_transform_or_shape_is_refused(settings, world, weights):
    make(world / "train", weights)
    model = unified("stage2", weights=weights)
    model.encoder = eva(**settings)
    ((name, value),) = settings.items()
    refused(
        world,
        weights,
        rf"not those of this model \((?:.*{name} \S+ and {value}|feature_shape)",
        model,
    )


def test_another_objective_is_refused(world, weights):
    make(world / "train", weights, objective="vae")
    refused(world, weights, r"not those of this model \(encoder KLAutoencoder and EvaClip\)")


def test_a_shard_that_changed_is_refused(world, weights):
    make(world / "train", weights)
    for shard in (world / "train").glob("*.tar"):  # copied to another disk
        touch(shard)
    assert open_feature_cache(ShardFolder(world / "train").open()).complete
    alter(world / "train" / "train-00005.tar")
    refused(world, weights, "train-00005.tar has changed since its features .* features")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda f: (f / "train-00002.tar.features.safetensors").unlink(),
            "train-00002.tar are mis",
        ),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text("[" * 10**5), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is damaged"),
        (lambda f: edit(f, shards=[]), r"manifest.json is damaged \('shards' is of"),
        (lambda f: edit(f, shards={"train-00002.tar": 5}), r"damaged \(shard 'train-00002.tar'"),
        (lambda f: edit(f, relative_rms_error="0"), "manifest.json is damaged"),
        (lambda f: edit(f, version=99), "version 99, this program reads 2"),
        (
            lambda f: edit(f, identity={"image_backend": "by hand"}),
            r"not those of this model \(encoder",
        ),
    ],
)
def test_folders_that_are_refused(spoil, says, world, weights):
    spoil(make(world / "train", weights))
    refused(world, weights, says)


def edit(folder, **values):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **values}))


def test_a_feature_shard_of_another_run_is_refused_when_it_is_read(world, weights):
    folder = make(world / "train", weights)
    other = make(world / "train", weights, "bf16", out=world / "other")
    name = "train-00001.tar.features.safetensors"
    shutil.copy(other / name, folder / name)
    cache = open_feature_cache(ShardFolder(world / "train").open())
    assert cache.get(0) is not None
    with pytest.raises(UserError, match="train-00001.tar.* is not of the run that made"):
        cache.get(8)


def test_another_way_to_decode_is_refused(world, weights):
    make(world / "train", weights)
    source = ShardFolder(world / "train").open()
    processor = unified("stage2", weights=weights).preprocessing()
    with pytest.raises(UserError, match=rf"image_backend {BACKEND} and by hand"):
        open_feature_caches([(source, "auto")], processor, "by hand")


def test_two_data_sets_of_different_encoders_are_refused(world, weights, tmp_path):
    make(world / "train", weights)
    torch.manual_seed(3)
    others = write_weights(tmp_path / "others")
    make(world / "eval", replace(weights, encoder=shaken_file(others.encoder)))
    refused(world, weights, "are of different encoders .weights")


def shaken_file(path):
    tensors = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    return path


def test_a_folder_that_is_named_must_have_features(world, weights):
    refused(world, weights, "manifest.json does not exist; `triptych data", features=str(world))


def test_features_that_no_step_takes_are_refused(world, weights):
    model = unified("encoder")
    refused(world, weights, "no step of this stage takes features", model, features=str(world))


def test_features_can_be_switched_off(world, weights):
    (world / "train" / "features").mkdir()
    (world / "train" / "features" / "manifest.json").write_text("{")
    module = data(world, features="none")
    module.connect(unified("stage2", weights=weights).preprocessing())
    module.setup("fit")
    (datasets,) = module.task_datasets.values()
    assert [dataset.features for dataset in datasets] == [None]


# --- what decides features -----------------------------------------------------------------------


def test_a_feature_config_names_the_class_wherever_it_lives():
    assert unified("stage2").encoder.feature_config()["encoder"] == "EvaClip"


def test_weights_hash_depends_only_on_the_values(weights, tmp_path):
    tensors = load_file(weights.encoder)
    half = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(half, tmp_path / "half.safetensors")
    full = {name: t.float() if t.is_floating_point() else t for name, t in half.items()}
    save_file(full, tmp_path / "same.safetensors")
    half["encoder.tower.pos_embed"][0, 0, 0] += 1
    save_file(half, tmp_path / "moved.safetensors")
    first, same, moved, own = (
        weights_hash(WeightFiles(encoder=str(path)), "encoder.")
        for path in (
            *(tmp_path / f"{n}.safetensors" for n in ("half", "same", "moved")),
            weights.encoder,
        )
    )
    assert first == same and len({first, moved, own}) == 3
    split = WeightFiles(generation=str(tmp_path / "half.safetensors"))
    assert weights_hash(split, "encoder.") == first  # whatever file holds them


def test_the_last_file_counts_as_when_weights_are_loaded(weights, tmp_path):
    name = "encoder.tower.pos_embed"
    save_file({name: load_file(weights.encoder)[name] + 1}, tmp_path / "late.safetensors")
    both, alone = replace(weights, generation=str(tmp_path / "late.safetensors")), weights
    assert weights_hash(both, "encoder.") != weights_hash(alone, "encoder.")
    assert weights_hash(both, "vae.") == weights_hash(alone, "vae.")


def test_big_files_are_read_once(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "CACHED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = shutil.copy(weights.encoder, tmp_path / "e.safetensors")
    files = WeightFiles(encoder=str(path))
    first = weights_hash(files, "encoder.")
    monkeypatch.setattr(hashing, "tensor_hash", lambda tensor: "read again")
    assert weights_hash(files, "encoder.") == first
    os.utime(path, ns=(0, 5))
    assert weights_hash(files, "encoder.") != first


def test_missing_encoder_weights_are_named(weights):
    with pytest.raises(UserError, match="no weight file holds tensors of encoder; name one"):
        weights_hash(WeightFiles(), "encoder.")


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_make_features_that_training_finds(world, forks, tmp_path):
    """Shards, features by two processes, stage 2 on them; then with another encoder."""
    tiny = ["--config", ROOT / "conf" / "presets" / "tiny.yaml"]
    two = ("--devices", "2", "--device", "cpu", "--batch-size", "3", "--storage-dtype", "fp32")
    made = run(tmp_path, "data", "features", world / "train", *tiny, *two)
    assert made.returncode == 0, made.stderr[-3000:]
    assert made.stdout.count("features of 64 samples in 8 shards") == 1
    words = ["data", "features", world / "train", *tiny, *two[4:], "--out", "alone"]
    alone = forks.run(tmp_path, *words)
    assert alone.returncode == 0, alone.stderr[-3000:]
    source = ShardFolder(world / "train").open()
    pair, single = open_feature_cache(source), FeatureCache(tmp_path / "alone", source)
    for n in range(64):
        assert_close(pair.get(n), single.get(n))

    configs = [
        ROOT / "conf" / name
        for name in (
            "base.yaml",
            "presets/tiny.yaml",
            "stages/stage2.yaml",
            "recipes/tiny/stage2.yaml",
            "data/tiny/stage2.yaml",
        )
    ]
    fit = [
        "fit",
        *(word for path in configs for word in ("--config", path)),
        *("--config", ROOT / "conf" / "data" / "folder.yaml", f"--data.shards={world / 'train'}"),
        *("--data.init_args.batch_size=4", "--data.init_args.num_workers=1"),
        *("--trainer.max_steps=2", "--trainer.callbacks=null", "--trainer.limit_val_batches=1"),
        "--trainer.val_check_interval=1",
    ]
    fitted = forks.run(tmp_path, *fit)
    assert fitted.returncode == 0, fitted.stderr[-3000:]
    assert f"features from {world / 'train' / 'features'} (fp32" in fitted.stderr
    tensors = load_file(ROOT / "src/triptych/assets/tiny/encoder.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, tmp_path / "e.safetensors")
    other = forks.run(tmp_path, *fit, "--model.weights.encoder=e.safetensors")
    assert other.returncode == 1 and "Traceback" not in other.stderr
    assert other.stderr.splitlines()[-1].startswith(
        f"triptych: the features in {world / 'train' / 'features'} are not those of this model"
    )


# --- samples without features in a shard that has some --------------------------------------------


def test_a_sample_without_features_among_others_is_a_bad_sample(world, weights):
    """No encoder need be loaded for it: its key came twice, or its image could not be read."""
    make(world / "train", weights)
    source, model = ShardFolder(world / "train").open(), live(weights)
    cache = open_feature_cache(source)
    assert cache.complete
    del cache._feature_shard(0).rows[source.key(2)]  # as of a key that comes twice
    made = batch(model, source, cache)
    assert made.dropped_samples == [(source.key(2), "no features in the cache of its shard")]
    assert made.has_features is None and made.target_pixels is None
    assert torch.equal(made.target_features[2], made.target_features[0])  # stands in for it


def test_an_image_that_cannot_be_read_is_named_as_without_features(world, weights):
    shard = world / "train" / "train-00000.tar"
    with tarfile.open(shard) as tar:
        bad = next(member for member in tar if not member.name.endswith((".txt", ".json")))
    content = bytearray(shard.read_bytes())
    content[bad.offset_data : bad.offset_data + bad.size] = bytes(bad.size)
    shard.write_bytes(content)
    source, model = ShardFolder(world / "train").open(), live(weights)
    said = batch(model, source).dropped_samples
    make(world / "train", weights)
    cached = batch(model, source, open_feature_cache(source))
    assert cached.dropped_samples == said and len(said) == 1 and cached.has_features is None


def test_a_shard_without_samples_needs_no_features(world, weights):
    with tarfile.open(world / "train" / "train-99999.tar", "w"):
        pass
    make(world / "train", weights)
    source = ShardFolder(world / "train").open()
    assert 0 in source.shard_sizes and open_feature_cache(source).complete


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, BatchContents(has_features=True, shows_images=False, has_sources=False)),
        ({"features": "none"}, BatchContents(False, shows_images=False, has_sources=False)),
        ({"tasks": ["text_to_image", "image_to_text"]}, BatchContents(True, True, False)),
        ({"tasks": ["image_to_image"]}, BatchContents(True, True, True)),
    ],
)
@pytest.mark.parametrize("validated", [True, False])
def test_a_data_module_knows_the_contents_of_its_batches(
    settings, expected, validated, world, weights
):
    make(world / "train", weights)
    if validated:
        make(world / "eval", weights)
    module = data(world, **settings)
    assert module.batch_contents() == replace(expected, has_features=False)  # before setup
    module.connect(unified("stage2", weights=weights).preprocessing())
    module.setup("fit")
    has_features = expected.has_features and validated
    assert module.batch_contents() == replace(expected, has_features=has_features)

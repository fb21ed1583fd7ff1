"""Resuming with the next sample: after any stop, on any ranks and workers, in any mixture."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import SIDE, unified
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn

from triptych.data_modules import DatasetConfig, DataSource, MixedDataModule, ShardFolder
from triptych.data_modules.sampling.batch_sampler import GlobalBatchSampler
from triptych.data_modules.sampling.mixing import Mixture
from triptych.data_modules.sampling.step_dataset import StepDataset, StepSampler, step_loader
from triptych.interfaces import Batch, Preprocessing
from triptych.prompts import generation_ids
from triptych.utils.errors import UserError

GLOBAL_BATCH = 24
SIZES = {
    "eleven": np.array([31, 2, 64, 17, 0, 90, 45, 8, 120, 71, 33]),  # as the 60k set: 11 tars
    "even": np.full(6, 50),
    "tiny": np.array([10]),
}
MIXTURE = Mixture({"eleven": 5, "even": 3, "tiny": 0.3})


class Listed(DataSource):
    """Samples that are known by name and number alone."""

    def __init__(self, name="listed", sizes=(10,), lengths=True, images=True):
        self.name, self.sizes, self.lengths, self.images = name, sizes, lengths, images

    def open(self):
        return self

    def __len__(self):
        return int(sum(self.sizes))

    def key(self, number):
        return f"{self.name}-{number}"

    caption = image_bytes = key

    def has_image(self, number, role):
        return self.images and role == "image"

    @property
    def shard_sizes(self):
        return np.asarray(self.sizes, np.int64)

    def caption_lengths(self, numbers):
        return 5 + np.asarray(numbers) * 37 % 100 if self.lengths else None


def ids_alone(step, places, samples):
    """Stands for a Collator: what was asked for, as rows (position, data set, number)."""
    rows = [(sample, *place) for place, sample in zip(places, samples, strict=True)]
    return SimpleNamespace(ids=torch.tensor(rows))


def part(rank, world, length_bucket_batches=1, seed=0):
    """The dataset of one rank in a mixture of three data sets."""
    sources = [Listed(name, sizes) for name, sizes in SIZES.items()]
    sampler = GlobalBatchSampler(
        sources, MIXTURE, GLOBAL_BATCH, seed=seed, length_bucket_batches=length_bucket_batches
    )
    return StepDataset(ids_alone, sampler, rank=rank, world=world)


def rows_of(parts, first, last):
    """Rows of the global batches from `first` up to `last`, the ranks' parts joined in order."""
    found = [part[step].ids for step in range(first, last) for part in parts]
    return torch.cat(found) if found else torch.empty(0, 3, dtype=torch.long)


def loaded(world, workers, length_bucket_batches, first, last):
    """The same through real loaders with worker processes."""
    loaders = [
        step_loader(
            part(rank, world, length_bucket_batches), StepSampler(lambda: first, last), workers
        )
        for rank in range(world)
    ]
    return torch.cat([batch.ids for parts in zip(*loaders, strict=True) for batch in parts])


NEXT = -(-200 // GLOBAL_BATCH)  # batches of the next 200 samples
STOPS = np.random.default_rng(4).integers(0, 5000, 50).tolist()


@pytest.mark.parametrize("length_bucket_batches", [1, 8])
def test_resume_continues_with_the_next_sample_at_any_step(length_bucket_batches):
    twice = [part(rank, 2, length_bucket_batches) for rank in range(2)]
    for stop in STOPS:
        expected = rows_of(twice, stop, stop + NEXT)  # by who was there before
        for world in (1, 2, 4):
            resumed = [part(rank, world, length_bucket_batches) for rank in range(world)]
            assert torch.equal(rows_of(resumed, stop, stop + NEXT), expected)


@pytest.mark.parametrize("length_bucket_batches", [1, 8])
def test_nothing_is_lost_or_repeated_by_a_stop(length_bucket_batches):
    whole = rows_of([part(0, 1, length_bucket_batches)], 0, 96)
    positions = set(whole[:, 0].tolist())
    assert len(positions) == 96 * GLOBAL_BATCH
    whole_windows = (96 - length_bucket_batches + 1) * GLOBAL_BATCH  # the last one may be cut
    assert positions >= set(range(whole_windows))
    for stop in (1, 50, 95):
        before = rows_of([part(r, 2, length_bucket_batches) for r in range(2)], 0, stop)
        after = rows_of([part(r, 4, length_bucket_batches) for r in range(4)], stop, 96)
        assert torch.equal(torch.cat([before, after]), whole)


def test_real_workers_change_nothing():
    stop = 13
    straight = loaded(2, 2, 8, 0, stop + NEXT)
    expected = straight[stop * GLOBAL_BATCH :]
    assert torch.equal(straight, rows_of([part(0, 1, 8)], 0, stop + NEXT))
    for world, workers in ((2, 2), (1, 0), (4, 1)):
        assert torch.equal(loaded(world, workers, 8, stop, stop + NEXT), expected)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_an_epoch_holds_every_sample_once(world):
    rows = rows_of([part(rank, world) for rank in range(world)], 0, 120)
    assert len(rows) == 120 * GLOBAL_BATCH
    for place, sizes in enumerate(SIZES.values()):
        numbers = rows[rows[:, 1] == place][:, 2]
        length = int(sizes.sum())
        epochs = [numbers[n : n + length] for n in range(0, len(numbers) - length + 1, length)]
        assert len(epochs) >= 3
        for epoch in epochs:
            assert torch.equal(epoch.sort().values, torch.arange(length))
        assert not torch.equal(epochs[0], epochs[1])


def test_epochs_are_logged_per_data_set():
    batch = part(1, 2)[99]
    rows = rows_of([part(0, 1)], 0, 100)
    for place, (name, sizes) in enumerate(SIZES.items()):
        assert batch.epochs[name] == (rows[:, 1] == place).sum().item() / sizes.sum()


def test_data_sets_that_do_not_know_lengths_are_not_sorted():
    sources = [Listed("a", [50]), Listed("b", [50], lengths=False)]
    for chosen, sorts in ((sources[:1], True), (sources, False)):
        mixture = Mixture({source.name: 1 for source in chosen})
        sampler = GlobalBatchSampler(chosen, mixture, 8, length_bucket_batches=4)
        assert (sampler.buckets is not None) == sorts
    assert sampler.batch(3).tolist() == list(range(24, 32))


def test_any_change_of_the_order_changes_the_digest():
    def digest(weights=(1, 2), seed=0, batch=8, buckets=4, sizes=(50, 3)):
        sources = [Listed("a", sizes), Listed("b", [20])]
        mixture = Mixture(dict(zip("ab", weights, strict=True)))
        return GlobalBatchSampler(
            sources, mixture, batch, seed=seed, length_bucket_batches=buckets
        ).digest()

    others = [
        digest(weights=(1, 3)),
        digest(seed=1),
        digest(batch=16),
        digest(buckets=8),
        digest(sizes=(3, 50)),
    ]
    assert digest() == digest() and len({digest(), *others}) == 6


# --- padding --------------------------------------------------------------------------------------

WORDS = "the red green blue yellow large small circle square triangle left of above".split()
RANK_BATCH = 16


class Captioned(Listed):
    """Captions of 120 tokens on average, 12% of them of about 15, in two data sets."""

    def __init__(self, name, mean, deviation, samples, measure):
        super().__init__(name, [samples // 2, samples - samples // 2])
        draws = np.random.default_rng(len(name))
        lengths = draws.normal(mean, deviation, samples).round().clip(4, 400).astype(int)
        self.captions = [" ".join(draws.choice(WORDS, length)) for length in lengths]
        self.measured = np.array([measure(caption) for caption in self.captions])

    def caption(self, number):
        return self.captions[number]

    def caption_lengths(self, numbers):
        return self.measured[numbers]


def padding(tokenizer, measure, world, length_bucket_batches=64):
    """Shares of padding in the tokens of captions, and of whole prompts, as ranks pad them."""
    total = 128 * RANK_BATCH * world  # the batch in which an epoch ends is not sorted
    sources = [
        Captioned("long", 134.5, 35, int(total * 0.88), measure),
        Captioned("short", 15, 4, int(total * 0.12), measure),
    ]
    mixture = Mixture({source.name: len(source) for source in sources})
    sampler = GlobalBatchSampler(
        sources, mixture, RANK_BATCH * world, length_bucket_batches=length_bucket_batches
    )
    template = len(generation_ids(tokenizer, "the", 64)) - 1
    counts = [
        np.array([len(ids) for ids in tokenizer(s.captions, add_special_tokens=False)["input_ids"]])
        for s in sources
    ]
    assert np.concatenate(counts).mean() == pytest.approx(120, abs=3)
    kept = np.zeros(2)
    taken = np.zeros(2)
    for step in range(64):
        chosen, numbers = sampler.locate(sampler.batch(step))
        tokens = np.array([counts[c][n] for c, n in zip(chosen, numbers, strict=True)])
        for rank in tokens.reshape(world, RANK_BATCH):
            for which, own in enumerate((rank, rank + template)):
                kept[which] += own.sum()
                taken[which] += own.max() * RANK_BATCH
    return 1 - kept / taken


@pytest.mark.parametrize("world", [1, 2])
def test_padding_is_at_most_three_percent_with_token_counts(tokenizer, world):
    def tokens(caption):
        return len(tokenizer(caption, add_special_tokens=False)["input_ids"])

    captions, prompts = padding(tokenizer, tokens, world)
    assert prompts < captions <= 0.03
    # it is the sorting that does it
    assert padding(tokenizer, tokens, world, length_bucket_batches=1)[1] > 0.25


def test_bytes_estimate_tokens_without_counts(tokenizer):
    assert padding(tokenizer, len, 2)[1] < 0.06  # of words as unequal as these


# --- the DataModule -------------------------------------------------------------------------------


def processor():
    return Preprocessing(None, max_tokens=256, image_size=SIDE)


def mixed(**ingredients):
    """A module of named ingredients, ready for `setup`; {} stands for a listed one."""
    datasets = {
        name: DatasetConfig(options.pop("source", Listed(name)), **options)
        for name, options in ingredients.items()
    }
    module = MixedDataModule(datasets, batch_size=4)
    module.connect(processor())
    return module


def under(trainer, module):
    """The module as a Trainer has it."""
    defaults = {"world_size": 1, "global_rank": 0, "global_step": 0, "max_steps": 10}
    defaults |= {"limit_train_batches": 1.0, "overfit_batches": 0.0, "fast_dev_run": False}
    defaults |= {"max_epochs": -1, "min_epochs": None}
    defaults["_accelerator_connector"] = SimpleNamespace(use_distributed_sampler=False)
    defaults |= {"accumulate_grad_batches": 1, "state": SimpleNamespace(fn=TrainerFn.FITTING)}
    module.trainer = SimpleNamespace(**{**defaults, **trainer})
    module.setup("fit")
    return module


def test_a_loader_starts_at_the_step_of_the_run():
    module = under({"global_step": 7, "accumulate_grad_batches": 2, "world_size": 2}, mixed(a={}))
    loader = module.train_dataloader().iterables
    assert list(loader.sampler) == list(range(14, 20)) and len(loader) == 20
    assert loader.dataset.sampler.global_batch == 16 and loader.dataset.size == 4


def test_without_weights_data_sets_are_mixed_by_size():
    module = mixed(
        large={"source": Listed("large", [300])},
        small={"source": Listed("small", [100])},
        text={"source": Listed("text", [50]), "task": "text_to_text"},
    )
    module.setup("fit")
    assert {f: list(m.names) for f, m in module.mixtures.items()} == {
        "image_generation": ["large", "small"],
        "language_modeling": ["text"],
    }
    assert module.mixtures["image_generation"].quotas.tolist() == [3072, 1024]


def test_both_families_make_joint_training():
    module = under({}, mixed(a={}, b={"task": "image_to_image"}, c={"task": "image_to_text"}))
    loaders = module.train_dataloader().iterables
    assert list(loaders) == ["image_generation", "language_modeling"]
    assert [len(each.dataset.collate.datasets) for each in loaders.values()] == [2, 1]


@pytest.mark.parametrize(
    ("ingredients", "says"),
    [
        ({}, "data.datasets is empty"),
        ({"a": {"weight": 1}, "b": {"weight": -2}}, "'b' has the weight -2"),
        ({"a": {"weight": 0}, "b": {"weight": 0}}, "sum to 0"),
        ({"a": {"weight": 1}, "b": {"weight": 1e-5}}, "'b' has less than 1/4096"),
        ({"a": {"weight": 1}, "b": {}}, "'b' has no weight, but others have one"),
        ({"a": {"task": "image_to_video"}}, "'a': the task 'image_to_video' is unknown"),
        ({"a": {"source": Listed(images=False)}}, "'a' has no images, which text_to_image"),
        ({"a": {"source": ShardFolder("nowhere")}}, "nowhere does not exist"),
    ],
)
def test_mixtures_that_are_refused_before_the_model_is_built(ingredients, says):
    with pytest.raises(UserError, match=says):
        mixed(**ingredients).setup("fit")


def test_changed_sample_order_is_reported(recwarn):
    saved = under({}, mixed(a={}, b={})).state_dict()
    under({}, mixed(a={}, b={})).load_state_dict(saved)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="will come again or not at all"):
        under({"world_size": 2}, mixed(a={}, b={})).load_state_dict(saved)


def test_a_position_of_another_version_is_refused():
    module = under({}, mixed(a={}))
    before = {"order": module.state_dict()["order"]}  # as it was saved without a version
    with pytest.raises(UserError, match="came in another order .version 1, now 2.*--model.weights"):
        module.load_state_dict(before)
    under({"state": SimpleNamespace(fn=TrainerFn.VALIDATING)}, module).load_state_dict(before)


def test_warning_for_a_set_smaller_than_a_batch(caplog):
    with caplog.at_level(logging.INFO):
        under({"world_size": 3}, mixed(a={})).train_dataloader()
        assert "'a' has 10 samples, and a step takes up to 12 of it" in caplog.text
        caplog.clear()
        under({"world_size": 2}, mixed(a={})).train_dataloader()
        assert not caplog.text


def test_samples_that_cannot_be_used_are_counted_and_end_a_run():
    module = mixed(a={})
    ids = torch.zeros(100, 1, dtype=torch.long)
    batch = Batch("image_generation", ["k"] * 100, 0, torch.arange(100), ids, ids)
    batch.dropped_samples = [("k", "image is damaged")]
    for _ in range(3):
        assert module.on_after_batch_transfer(batch, 0) is batch
    assert module.bad_samples.skipped == 3
    batch.dropped_samples *= 2
    with pytest.raises(UserError, match="max_bad_fraction 0.01 allows: 5 image is damaged"):
        module.on_after_batch_transfer({"image_generation": batch}, 0)


def test_log_has_the_epochs_of_each_data_set(shapes_folder, weights, tmp_path, caplog):
    module = MixedDataModule(
        {
            "train": DatasetConfig(ShardFolder(shapes_folder / "train"), weight=3),
            "instruct": DatasetConfig(ShardFolder(shapes_folder / "instruct"), weight=1),
        },
        batch_size=8,
        num_val_samples=2,
    )
    model = unified("stage2", weights=weights, build_decoder=False)
    trainer = Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=CSVLogger(tmp_path, name="runs"),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with caplog.at_level(logging.INFO):
        trainer.fit(model, module)
    rows = [
        line.split(",") for line in (tmp_path / "runs/version_0/metrics.csv").read_text().split()
    ]
    logged = {
        name: [float(row[column]) for row in rows[1:] if row[column]]
        for column, name in enumerate(rows[0])
        if name.startswith("data/epochs/")
    }
    assert logged == {
        "data/epochs/train": pytest.approx([6 / 64, 12 / 64, 18 / 64, 24 / 64]),
        "data/epochs/instruct": pytest.approx([2 / 16, 4 / 16, 6 / 16, 8 / 16]),
    }
    assert "train 0.38, instruct 0.50" in caplog.text


def test_more_ranks_than_samples_is_one_sentence():
    module = under({"world_size": 4}, mixed(a={"source": Listed("a", [3])}))
    with pytest.raises(UserError, match="4 ranks for 3 samples of image_generation"):
        module.train_dataloader()

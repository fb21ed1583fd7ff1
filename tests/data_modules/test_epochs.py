"""Epochs of small and large sets: every sample once, and no batch holds one twice."""

import pickle
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from triptych.data_modules.sampling.batch_sampler import GlobalBatchSampler
from triptych.data_modules.sampling.epoch_shuffle import EpochShuffle
from triptych.data_modules.sampling.mixing import Mixture
from triptych.data_modules.sampling.step_dataset import StepDataset, StepSampler, step_loader


class Numbered:
    """A data set of a number of samples; the lengths of their captions differ, or are unknown."""

    def __init__(self, samples, lengths=True):
        self.shard_sizes = np.array([samples // 3, 0, samples - samples // 3])
        self.lengths = lengths

    def caption_lengths(self, numbers):
        return 5 + np.asarray(numbers) * 37 % 100 if self.lengths else None


def sampler_of(sizes, batch, buckets=64, weights=None, lengths=True, seed=0):
    sources = [Numbered(size, lengths) for size in sizes]
    weights = weights or sizes
    mixture = Mixture({str(n): float(w) for n, w in enumerate(weights)})
    return GlobalBatchSampler(sources, mixture, batch, seed=seed, length_bucket_batches=buckets)


def drawn(sampler, batches, first=0):
    """Per batch: the (data set, sample) of each place, in the order of their positions."""
    found = []
    for step in range(first, first + batches):
        positions = np.sort(sampler.batch(step))
        found.append(np.stack(sampler.locate(positions), 1))
    return found


def check(sampler, sizes, batches):
    found = drawn(sampler, batches)
    for batch in found:
        for place, size in enumerate(sizes):
            counts = np.bincount(batch[batch[:, 0] == place, 1], minlength=size)
            taken = counts.sum()
            if taken <= size:
                assert counts.max() <= 1, "a batch holds a sample twice"
            else:  # more than there are: about equally often
                assert taken // size - 1 <= counts.min() and counts.max() <= -(-taken // size) + 1
    rows = np.concatenate(found)
    for place, size in enumerate(sizes):
        numbers = rows[rows[:, 0] == place, 1]
        for start in range(0, len(numbers) - size + 1, size):
            assert np.array_equal(np.sort(numbers[start : start + size]), np.arange(size))


@pytest.mark.parametrize("buckets", [1, 4, 64])
@pytest.mark.parametrize("batch", [1, 8, 16, 50, 64])
@pytest.mark.parametrize("size", [1, 2, 7, 9, 24, 50, 65, 100, 1000])
def test_a_set_of_any_size_comes_once_an_epoch_in_batches_without_copies(size, batch, buckets):
    epochs = 6 if size < 1000 else 3
    check(sampler_of([size], batch, buckets), [size], -(-epochs * size // batch) + 3)


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize(
    ("sizes", "weights"),
    [([50, 1000], None), ([50, 1000], [1, 1]), ([7, 30, 400], [1, 2, 3]), ([2, 3], [5, 1])],
)
def test_every_set_of_a_mixture_has_epochs_of_its_own(sizes, weights, lengths):
    for batch in (8, 48):
        check(sampler_of(sizes, batch, 64, weights, lengths), sizes, 2500 // batch)


@pytest.mark.parametrize("size", [9, 50, 1000])
def test_a_batch_is_the_same_wherever_a_run_begins(size):
    whole = drawn(sampler_of([size], 8), 300)
    for first in (0, 1, 5, 63, 64, 200, 299):
        (batch,) = drawn(sampler_of([size], 8), 1, first)
        assert np.array_equal(batch, whole[first])
    again = pickle.loads(pickle.dumps(sampler_of([size], 8)))
    backwards = [drawn(again, 1, step)[0] for step in reversed(range(300))]
    assert all(np.array_equal(a, b) for a, b in zip(reversed(backwards), whole, strict=True))


def test_epochs_of_a_small_set_differ():
    found = np.concatenate(drawn(sampler_of([9], 8), 90))[:, 1].reshape(-1, 9)
    assert len({tuple(epoch) for epoch in found.tolist()}) > 75


def test_sets_that_are_smaller_than_a_batch_are_named():
    assert sampler_of([7], 16).oversampled() == {"0": (7, 16)}
    assert sampler_of([16], 16).oversampled() == {}
    assert sampler_of([7, 1000], 16, weights=[1, 1]).oversampled() == {"0": (7, 8)}
    assert sampler_of([8, 1000], 16, weights=[1, 1]).oversampled() == {}


def test_small_sets_are_still_sorted_by_length_within_an_epoch():
    def spread(buckets):
        sampler = sampler_of([1000], 16, buckets)
        lengths = [sampler.caption_lengths(sampler.batch(step)) for step in range(62)]
        return np.mean([each.max() - each.mean() for each in lengths])

    assert spread(64) < spread(1) / 4


def places_alone(step, places, samples):
    """Stands for a Collator: gives back what it was asked for."""
    return SimpleNamespace(places=list(places))


def batches_of_ranks(sizes, world, accumulate, steps, weights=None):
    sampler = sampler_of(sizes, 24, 4, weights)
    parts = [
        StepDataset(places_alone, sampler, rank=rank, world=world, accumulate=accumulate)
        for rank in range(world)
    ]
    return [part[number].places for number in range(steps * accumulate) for part in parts]


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [([size], None) for size in (1, 2, 7, 11, 50, 1000)]
    + [([50, 13, 2], [5, 3, 2]), ([7, 500], [1, 9]), ([8, 43], [1, 1]), ([1, 1], [1, 1])],
)
def test_no_part_of_a_step_holds_a_sample_twice_that_need_not(sizes, weights):
    """As ranks and accumulated batches take them, also where the step has more than there are."""
    whole = [place for batch in batches_of_ranks(sizes, 1, 1, 40, weights) for place in batch]
    for world, accumulate in ((2, 1), (1, 2), (4, 1), (2, 3), (4, 3)):
        batches = batches_of_ranks(sizes, world, accumulate, 40, weights)
        assert [place for batch in batches for place in batch] == whole
        for batch in batches:
            taken = Counter(place for place, _ in batch)
            different = Counter(place for place, _ in set(batch))
            assert all(different[n] == min(taken[n], sizes[n]) for n in taken)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_loader_workers_change_nothing(size):
    def places(workers):
        dataset = StepDataset(places_alone, sampler_of([size], 8))
        return [batch.places for batch in step_loader(dataset, StepSampler(lambda: 3, 9), workers)]

    assert places(2) == places(0)


@pytest.mark.parametrize(("size", "batch"), [(29, 20), (17, 16), (7, 16), (290, 200)])
def test_a_step_far_away_follows_few_epochs(size, batch, monkeypatch):
    sampler = sampler_of([size], batch)
    followed = []
    numbers = EpochShuffle.numbers
    monkeypatch.setattr(
        EpochShuffle, "numbers", lambda self, *a: followed.append(a[0]) or numbers(self, *a)
    )
    sampler.locate(sampler.batch(10**7 + 3))
    assert len(followed) <= 3 * batch

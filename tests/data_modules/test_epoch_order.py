"""Order of samples: shuffling of an epoch, mixing of data sets, length bucketing."""

import pickle

import numpy as np
import pytest

from triptych.data_modules.sampling.epoch_shuffle import EpochShuffle
from triptych.data_modules.sampling.length_buckets import LengthBuckets
from triptych.data_modules.sampling.mixing import PERIOD, Mixture
from triptych.utils.errors import UserError

UNEQUAL = np.random.default_rng(7).integers(0, 400, 60)


def epoch_of(order, epoch=0):
    return order.numbers(epoch, np.arange(len(order)))


# --- the order of one data set --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ([1], {}),
        ([10], {}),
        ([0, 3, 0, 1, 200, 0], {}),
        ([5000], {"window": 64, "interleave": 4}),
        (UNEQUAL, {"window": 256, "interleave": 4}),
        (UNEQUAL, {"window": 1 << 16, "interleave": 4}),
        (np.ones(1000, int), {"window": 100, "interleave": 8}),
    ],
)
def test_every_sample_comes_once_an_epoch_and_otherwise_each_time(sizes, settings):
    order = EpochShuffle(np.array(sizes), 3, **settings)
    assert len(order) == sum(sizes)
    epochs = [epoch_of(order, epoch) for epoch in range(3)]
    assert all(np.array_equal(np.sort(e), np.arange(sum(sizes))) for e in epochs)
    if sum(sizes) > 9:
        assert not np.array_equal(epochs[0], epochs[1])
        assert not np.array_equal(epoch_of(EpochShuffle(np.array(sizes), 4, **settings)), epochs[0])


def test_random_access_equals_sequential_order():
    order = EpochShuffle(UNEQUAL, 0, interleave=4, window=256)
    whole = epoch_of(order, 5)
    places = np.random.default_rng(0).integers(0, len(order), 500)
    assert np.array_equal(
        EpochShuffle(UNEQUAL, 0, interleave=4, window=256).numbers(5, places), whole[places]
    )
    assert np.array_equal(pickle.loads(pickle.dumps(order)).numbers(5, places), whole[places])
    for place in places[:20]:
        (number,) = EpochShuffle(UNEQUAL, 0, interleave=4, window=256).numbers(5, [place])
        assert number == whole[place]


def test_only_requested_windows_are_computed(monkeypatch):
    made = []
    permuted = EpochShuffle._permuted
    monkeypatch.setattr(
        EpochShuffle, "_permuted", lambda self, *a: made.append(a[1:]) or permuted(self, *a)
    )
    order = EpochShuffle(np.full(3000, 10_000), 0)  # 30 million samples
    for _ in range(3):
        order.numbers(2, np.arange(20_000_000, 20_000_512))
    assert 1 <= len(made) <= 2
    for epoch in range(100):  # and few of them are kept
        order.numbers(epoch, [7])
    assert len(order._windows) <= 8 and len(order._plans) <= 2


@pytest.mark.parametrize("sizes", [UNEQUAL, np.full(40, 300), np.array([9000, 10, 20, 3000, 1])])
def test_reads_stay_in_few_shards_for_a_while(sizes):
    interleave, window = 4, 256
    order = EpochShuffle(sizes, 0, interleave=interleave, window=window)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[epoch_of(order)]
    for first in range(0, len(order), window):
        # a stretch as long as a window lies in two windows at most, or three short ones
        assert len(set(shard_of[first : first + window])) <= 3 * interleave
    # what is read of a shard in one window is one stretch of it, which may go round its end once
    numbers = order._samples(order._plans[0], 0, 0, 0)
    shards = np.repeat(np.arange(len(sizes)), sizes)[numbers]
    assert len(set(shards)) <= interleave
    assert (np.diff(np.sort(numbers)) > 1).sum() <= 2 * interleave


def test_no_window_touches_more_shards_than_are_interleaved():
    order = EpochShuffle(UNEQUAL, 0, interleave=4, window=256)
    shard_of = np.repeat(np.arange(len(UNEQUAL)), UNEQUAL)
    epoch_of(order)
    plan, windows = order._plans[0], 0
    for group in range(len(plan.starts)):
        for window in range(plan.bounds(group).shape[1] - 1):
            numbers = order._samples(plan, 0, group, window)
            assert len(set(shard_of[numbers])) <= 4 and len(numbers) <= 256 + 4
            windows += 1
    assert windows > 30


def test_a_small_set_is_shuffled_as_well_as_can_be():
    """All 6 orders of 3 samples come equally often: chi-square with 5 degrees of freedom."""
    order = EpochShuffle(np.array([2, 1]), 0)
    orders = [tuple(epoch_of(order, epoch)) for epoch in range(1200)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6 and ((counts - 200) ** 2 / 200).sum() < 20.5  # 1 in 1000 is above


def test_neighbours_in_a_shard_are_strangers_in_training():
    order = EpochShuffle(np.full(200, 100), 0, interleave=16, window=1000)
    numbers = epoch_of(order)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.3
    assert (np.diff(numbers) == 1).sum() < 0.01 * len(order)
    # and other strangers in the next epoch: of 1000 samples that share a window, few do again
    again = np.empty(len(order), int)
    again[epoch_of(order, 1)] = np.arange(len(order)) // 1000
    assert np.bincount(again[numbers[:1000]]).max() < 300


# --- the mixture ----------------------------------------------------------------------------------


WEIGHTS = [
    {"only": 5},
    {"long": 27, "short": 5, "journey": 4},
    {"a": 1, "b": 1, "c": 1},
    {"a": 0.7, "off": 0, "rare": 0.001},
    {str(n): w for n, w in enumerate(np.random.default_rng(1).random(30).tolist())},
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=len)
def test_at_every_position_each_data_set_has_had_its_share(weights):
    mixture = Mixture(weights)
    total = sum(weights.values())
    for weight, part in zip(weights.values(), mixture.quotas, strict=True):
        assert abs(part - PERIOD * weight / total) < 1 and (part > 0) == (weight > 0)
    positions = np.arange(2 * PERIOD + 100)
    chosen, before = mixture.locate(positions)
    given = np.cumsum(chosen[:, None] == np.arange(len(weights)), axis=0)
    shares = (positions[:, None] + 1) * mixture.quotas / PERIOD
    assert np.abs(given - shares).max() < 1
    assert np.array_equal(given[positions, chosen] - 1, before)
    for position in (0, 1, 100, PERIOD, 2 * PERIOD + 99):
        expected = given[position - 1] if position else np.zeros(len(weights), int)
        assert np.array_equal(mixture.counts_before(position), expected)


def test_positions_far_away_are_found_at_once():
    mixture = Mixture({"long": 27, "short": 5, "journey": 4})
    far = PERIOD * 10**9 + 17
    chosen, before = mixture.locate([17, far])
    assert chosen[0] == chosen[1] and before[1] == before[0] + 10**9 * mixture.quotas[chosen[0]]
    assert mixture.counts_before(far).sum() == far


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"a": 1, "b": -1}, "'b' has the weight -1"),
        ({"a": float("nan")}, "'a' has the weight nan"),
        ({"a": float("inf")}, "'a' has the weight inf"),
        ({"a": 0, "b": 0.0}, "sum to 0"),
        ({"a": 1, "b": 1e-6}, "'b' has less than 1/4096"),
    ],
)
def test_weights_that_are_refused(weights, says):
    with pytest.raises(UserError, match=says):
        Mixture(weights)


# --- buckets --------------------------------------------------------------------------------------


def lengths(positions):
    """Made-up lengths, the same for a position always."""
    return (np.asarray(positions) * 7919) % 1000


def anywhere(step):
    return 0, 1000


@pytest.mark.parametrize("length", [1, 7, 10, 11, 25])
def test_windows_fill_the_range_between_two_bounds(length):
    def bounds(step):
        return step // length * length, (step // length + 1) * length

    buckets = LengthBuckets(lengths, 8, seed=0, batches=10, bounds=bounds)
    windows = [buckets._window_of(step) for step in range(3 * length)]
    assert all(step in window and len(window) <= 10 for step, window in enumerate(windows))
    sizes = {len(window) for window in windows}
    assert max(sizes) - min(sizes) <= 1  # none is short, which would be padded more
    found = np.concatenate([buckets(step) for step in range(3 * length)])
    assert np.array_equal(np.sort(found), np.arange(3 * length * 8))


def test_every_position_is_in_one_batch_of_its_window():
    buckets = LengthBuckets(lengths, 8, seed=0, batches=10, bounds=anywhere)
    for window in (0, 1, 5):
        batches = [buckets(window * 10 + n) for n in range(10)]
        expected = np.arange(window * 80, (window + 1) * 80)
        assert np.array_equal(np.sort(np.concatenate(batches)), expected)
        spans = sorted((lengths(b).min(), lengths(b).max()) for b in batches)
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
        firsts = [lengths(b).min() for b in batches]
        assert firsts != sorted(firsts)  # not from short to long


def test_a_bucket_is_a_pure_function_of_the_step():
    one, other = (
        LengthBuckets(lengths, 8, seed=0, batches=10, bounds=anywhere),
        LengthBuckets(lengths, 8, seed=0, batches=10, bounds=anywhere),
    )
    for step in (73, 2, 15, 73):
        assert np.array_equal(one(step), other(step))
    assert not np.array_equal(
        one(3), LengthBuckets(lengths, 8, seed=1, batches=10, bounds=anywhere)(3)
    )

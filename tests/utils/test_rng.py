"""Random draws are pure functions of (seed, stream, sample number), the same on every machine."""

import pytest
import torch

from triptych.utils.rng import mix, normal, uniform


def test_draws_depend_only_on_their_arguments():
    before = torch.get_rng_state()
    assert torch.equal(normal((3, 2), 5, "noise", [1, 2]), normal((3, 2), 5, "noise", [1, 2]))
    assert torch.equal(uniform(5, "time", [1, 2]), uniform(5, "time", [1, 2]))
    assert torch.equal(before, torch.get_rng_state())


def test_a_row_does_not_depend_on_its_batch():
    together = normal((4, 4), 0, "noise", torch.tensor([9, 3, 12, 3]))
    assert torch.equal(together[2], normal((4, 4), 0, "noise", [12])[0])
    assert torch.equal(together[1], together[3])
    times = uniform(0, "time", range(100))
    assert torch.equal(times[50:60], uniform(0, "time", range(50, 60)))


@pytest.mark.parametrize(
    "other", [(1, "noise", 7), (0, "time", 7), (0, "noise", 8), (0, "noise", 1 << 40)]
)
def test_seed_stream_and_sample_each_change_the_draw(other):
    seed, stream, sample = other
    a = normal((64,), 0, "noise", [7])[0]
    b = normal((64,), seed, stream, [sample])[0]
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.5 and not torch.equal(a, b)


def test_neighbours_are_independent():
    rows = normal((64,), 0, "noise", range(500))
    assert rows.mean() == pytest.approx(0, abs=0.02)
    assert rows.var() == pytest.approx(1, abs=0.03)
    assert (rows[1:] * rows[:-1]).mean() == pytest.approx(0, abs=0.02)  # next sample
    assert rows.mean(1).var() == pytest.approx(1 / 64, rel=0.3)
    u = uniform(0, "drop", range(5000))
    assert 0 <= u.min() and u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=0.015)
    assert u.var() == pytest.approx(1 / 12, abs=0.005)
    assert (u < 0.1).float().mean() == pytest.approx(0.1, abs=0.015)


def test_mix_is_a_63_bit_number_that_order_matters_to():
    numbers = {mix(a, b) for a in range(50) for b in range(50)}
    assert len(numbers) == 2500 and max(numbers) < 1 << 63
    assert mix(1, 2) != mix(2, 1)
    assert mix(-1) >= 0 and mix(1 << 70) >= 0


def test_golden_numbers():
    """A change here changes every trained model: resuming would no longer be bit-identical."""
    assert mix(0, 1, 2) == 8825289091277911490
    expected = [-1.4541343, 0.0711074, -0.3410933]
    assert normal((3,), 0, "noise", [5])[0].tolist() == pytest.approx(expected, abs=1e-6)
    expected = [0.6623667, 0.7772938, 0.6058363]
    assert uniform(0, "time", [0, 1, 2]).tolist() == pytest.approx(expected, abs=1e-6)

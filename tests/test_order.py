"""The order of training: every image once an epoch, a function of seed and step."""

import tracemalloc
from itertools import islice

import numpy as np
import pytest
import torch

from data.order import ShuffledOrder, fixed_sample, permuted


@pytest.mark.parametrize("n, batch", [(1, 1), (10, 1), (10, 3), (10, 5), (10, 10), (7, 100)])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_every_epoch_is_a_permutation_less_the_remainder(n, batch, seed):
    order = ShuffledOrder(n, batch, seed)
    assert order.steps_per_epoch == n // min(batch, n)
    for epoch in range(4):
        first = epoch * order.steps_per_epoch
        steps = [order.indices(first + i) for i in range(order.steps_per_epoch)]
        assert all(step.shape == (min(batch, n),) for step in steps)
        seen = torch.cat(steps).tolist()
        assert len(set(seen)) == len(seen) == n - n % min(batch, n)
        assert set(seen) <= set(range(n))


def test_epochs_and_seeds_differ():
    def epoch(seed, k):
        return tuple(ShuffledOrder(50, 50, seed).indices(k).tolist())

    orders = {epoch(seed, k) for seed in range(10) for k in range(10)} | {tuple(range(50))}
    assert len(orders) == 101


def test_the_remainder_is_another_one_in_each_epoch():
    """Nothing is left out for good."""
    order = ShuffledOrder(10, 4, seed=0)
    assert {i for step in range(40) for i in order.indices(step).tolist()} == set(range(10))


def test_order_is_a_function_of_seed_and_step():
    torch.manual_seed(1)
    order = ShuffledOrder(11, 3, seed=7)
    sequence = [order.indices(step).tolist() for step in range(20)]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = ShuffledOrder(11, 3, seed=7)
    for step in (19, 0, 7, 6, 3, 2, 19, 5):
        assert other.indices(step).tolist() == sequence[step]
        assert ShuffledOrder(11, 3, seed=7).indices(step).tolist() == sequence[step]
    assert torch.equal(torch.get_rng_state(), state)  # it takes no number of the run's


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 4095, 4096, 4097, 100_003])
def test_it_is_a_permutation_of_any_size(n):
    found = permuted(torch.arange(n), n, np.uint64(n))
    assert found.dtype == torch.int64 and torch.equal(found.sort().values, torch.arange(n))


def test_a_permutation_looks_drawn():
    """Where images land, whether neighbours stay together, whether seeds have to do with each
    other: against what uniform draws would give."""
    n, orders = 1000, torch.stack([ShuffledOrder(1000, 1000, s).indices(s % 3) for s in range(400)])
    x = orders.double()
    landed = (x[:, ::100] * 10 / n).long()  # of ten places, in tenths
    counts = torch.stack([column.bincount(minlength=10) for column in landed.T]).double()
    chi2 = ((counts - 40) ** 2 / 40).sum().item()
    assert 45 < chi2 < 150  # of 90 degrees of freedom: beyond 0.1 % on either side
    assert (x.diff(dim=1).abs().mean() - n / 3).abs() < 2  # 333.3 between any two
    correlation = torch.corrcoef(x) - torch.eye(400)
    assert correlation.abs().max() < 5.5 / n**0.5
    fixed = (orders == torch.arange(n)).double().sum(dim=1)
    assert abs(fixed.mean().item() - 1) < 0.2  # one element stays in its place, on average


@pytest.mark.parametrize("n", [10**9, 2**40 + 7])
def test_a_huge_set_costs_no_more_than_a_batch(n):
    tracemalloc.start()
    order = ShuffledOrder(n, 256, 0)
    batches = [order.indices(step) for step in (0, 1, order.steps_per_epoch - 1)]
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found = torch.cat(batches)
    assert len(found.unique()) == 3 * 256 and found.min() >= 0 and n / 2 < found.max() < n
    assert used < 1e6


def test_since_goes_through_the_steps():
    order = ShuffledOrder(11, 3, seed=7)
    expected = [order.indices(step).tolist() for step in range(20)]
    assert list(islice(order.since(0, range(3)), 20)) == expected
    resumed = ShuffledOrder(11, 3, seed=7).since(5, range(3))
    assert list(islice(resumed, 15)) == expected[5:]
    assert next(order.since(2, range(3))) == expected[2]
    assert list(islice(order.since(0, range(1, 3)), 20)) == [batch[1:] for batch in expected]


@pytest.mark.parametrize("n", [1, 5, 256, 12_000])
def test_a_fixed_sample_is_spread_over_the_whole(n):
    """And so is the beginning of it, of which some figures are made."""
    sample = fixed_sample(n, 256)
    assert torch.equal(sample, fixed_sample(n, 256))
    assert len(set(sample.tolist())) == len(sample) == min(n, 256) and sample.max() < n
    if n > 256:
        for part in (sample, sample[:64]):
            shares = torch.histc(part.float(), 4, 0, n) / len(part)
            assert (shares - 0.25).abs().max() < 0.15
    assert torch.equal(fixed_sample(n, 8), sample[:8])

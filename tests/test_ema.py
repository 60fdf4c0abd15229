"""The average of a network's weights: what it holds, and how soon it forgets."""

import pytest
from helpers import randomize
from torch import nn, testing

from training.ema import EMA


def test_ema_of_constant_weights_is_them():
    model, target = nn.Linear(3, 4), randomize(nn.Linear(3, 4), 1)
    ema = EMA(model, 0.999)
    for i in range(3000):
        ema.update(target, i)
    for ours, theirs in zip(ema.model.parameters(), target.parameters(), strict=True):
        testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_ema_forgets_the_first_weights_fast():
    """The warm-up: after 100 updates less than 1 % of the initial weights is left."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    ema = EMA(model, 0.9999)
    nn.init.zeros_(model.weight)
    left = []
    for i in range(100):
        ema.update(model, i)
        left.append(ema.model.weight.item())
    assert left[0] == pytest.approx(0.1) and left[-1] < 0.01
    assert all(b < a for a, b in zip(left, left[1:], strict=False))


def test_ema_has_its_decay_once_it_is_warm():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    ema = EMA(model, 0.75)
    nn.init.zeros_(model.weight)
    ema.update(model, 10**6)
    assert ema.model.weight.item() == pytest.approx(0.75)

"""Random numbers by place: a known generator, the right distributions, nothing in common."""

import itertools

import numpy as np
import pytest
import torch

from models.draws import Draws, Purpose, _unit, philox

SHAPE = (3, 4, 5)


def test_philox_gives_the_numbers_of_its_authors():
    """Known answers of Random123, and numpy's own generator."""
    for counter, key, wanted in (
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
         (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ):  # fmt: skip
        found = philox([torch.tensor(word) for word in counter], key)
        assert tuple(int(word) for word in found) == wanted


def test_a_place_has_its_numbers_whatever_is_beside_it():
    """In the whole batch, in parts of it, in any order, in a larger one."""
    whole = Draws(7, 3, range(8))
    for places in (range(8), range(2, 5), [6, 1], range(8, 100), [5]):
        part = Draws(7, 3, places)
        for purpose in Purpose:
            both = [
                (draws.normal(purpose, SHAPE), draws.uniform(purpose)) for draws in (whole, part)
            ]
            for i, place in enumerate(places):
                if place < 8:
                    assert torch.equal(both[0][0][place], both[1][0][i])
                    assert both[0][1][place] == both[1][1][i]


def test_other_seeds_steps_places_and_purposes_have_other_numbers():
    seeds, steps = [0, 1, 2**31 - 1, 2**32], [0, 1, 2**32, 2**33 + 1]
    drawn = [
        Draws(seed, step, range(4)).normal(purpose, SHAPE)
        for seed, step, purpose in itertools.product(seeds, steps, Purpose)
    ]
    numbers = torch.cat(drawn).flatten(1)
    assert len(numbers) == len(numbers[:, :8].unique(dim=0)) == 4 * 4 * len(Purpose) * 4
    correlation = np.corrcoef(numbers.numpy()) - np.eye(len(numbers))
    assert np.abs(correlation).max() < 6 / numbers.shape[1] ** 0.5


@pytest.mark.parametrize("size", [1, 2, 3, 7, 768])
def test_normals_are_normal(size):
    x = Draws(1, 2, range(300_000 // size)).normal(Purpose.NOISE, (size,))
    assert x.shape == (300_000 // size, size) and x.dtype == torch.float32 and x.isfinite().all()
    probabilities = torch.special.ndtr(x.double().flatten()).sort().values
    uniform = (torch.arange(len(probabilities)) + 0.5) / len(probabilities)
    assert (probabilities - uniform).abs().max() < 1.95 / len(probabilities) ** 0.5  # 0.1 %


def test_uniforms_are_uniform_and_never_at_an_end():
    u = Draws(1, 2, range(300_000)).uniform(Purpose.TIMESTEP)
    assert u.min() > 0 and u.max() < 1
    ends = _unit(torch.tensor([0, 2**32 - 1]))
    assert 0 < ends[0] < 1e-7 and 1 - 1e-7 < ends[1] < 1
    uniform = (torch.arange(len(u)) + 0.5) / len(u)
    assert (u.double().sort().values - uniform).abs().max() < 1.95 / len(u) ** 0.5


def test_parts_are_the_whole_and_seed_torch_each_for_itself():
    """Dropout's masks: the same whenever the step is made again, others in each part and step."""
    draws = Draws(7, 3, range(10, 17))
    for count in (1, 2, 3, 7, 10):
        parts = draws.parts(count)
        assert [i for part in parts for i in part.places] == [*draws.places]
        assert len(parts) <= count and {part.step for part in parts} == {3}
    assert Draws(7, 3, []).parts(2) == []

    def masks(draws):
        draws.seed_torch()
        return tuple(torch.rand(8).tolist())

    drawn = [draws, *draws.parts(2)[1:], Draws(7, 4, range(10, 17)), Draws(8, 3, range(10, 17))]
    seen = [masks(d) for d in drawn]
    assert len(set(seen)) == 4 and seen == [masks(d) for d in drawn]

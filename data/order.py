"""The order in which a training run visits its data, a pure function of seed and step; and the
sample of a set that always is the same."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch

ROUNDS = 6  # of the Feistel network; 4 are enough where nobody attacks it
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # Weyl's step of SplitMix64


class ShuffledOrder:
    """Every epoch is a permutation of range(n), drawn from seed and epoch, cut into batches.

    batch: indices per step, at most n. What is left over at the end of an epoch is dropped. A
    resumed run needs only its step. Time and memory are those of a batch, however large n is.
    """

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.seed = n, min(batch, n), seed
        self.steps_per_epoch = n // self.batch

    def indices(self, step: int, places: range | None = None) -> torch.Tensor:
        """The batch's indices at this step (0, 1, ..): (batch,) int64, in range(n); or of these of
        its places."""
        epoch, position = divmod(step, self.steps_per_epoch)
        places = range(self.batch) if places is None else places
        start = position * self.batch
        images = torch.arange(start + places.start, start + places.stop)
        (key,) = _mix(_mix(np.array([self.seed], "u8")) + GOLDEN * np.array([epoch + 1], "u8"))
        return permuted(images, self.n, key)

    def since(self, step: int, places: range) -> Iterator[list[int]]:
        """These places of all batches from this step on, without end, as lists: a DataLoader's
        batch_sampler."""
        return (self.indices(i, places).tolist() for i in itertools.count(step))


def permuted(places: torch.Tensor, n: int, key: np.uint64) -> torch.Tensor:
    """The images of places, int64 in range(n), under the permutation of range(n) that key chooses.

    A Feistel network permutes the next power of 4; what falls outside of range(n) is permuted again
    until it does not (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = max(1, -(-(n - 1).bit_length() // 2))  # bits of each of the two halves
    low, keys = np.uint64(2**half - 1), _mix(key + GOLDEN * np.arange(1, 1 + ROUNDS, dtype="u8"))
    found = places.numpy().astype("u8")
    outside = np.arange(len(found))
    while len(outside):
        left, right = found[outside] >> half, found[outside] & low
        for round_key in keys:
            left, right = right, left ^ _mix(right + round_key) & low
        found[outside] = left << half | right
        outside = outside[found[outside] >= n]
    return torch.from_numpy(found.astype("i8"))


def _mix(x: np.ndarray) -> np.ndarray:
    """64 bits -> 64 bits, each of which depends on all: Stafford's 13th mixer, as in SplitMix64
    (Steele et al. 2014, "Fast splittable pseudorandom number generators")."""
    x = (x ^ x >> 30) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> 27) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> 31


def fixed_sample(n: int, most: int) -> torch.Tensor:
    """`most` of range(n), or all of it if that is less, in an order that is always the same: spread
    over the whole, and so is the beginning of it. int64."""
    return permuted(torch.arange(min(n, most)), n, np.uint64(0))

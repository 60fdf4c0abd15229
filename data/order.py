"""The order in which a training run visits its data, a pure function of seed and step; and the
sample of a set that always is the same."""

import itertools
from collections.abc import Iterator

import torch


class ShuffledOrder:
    """Every epoch is a permutation of range(n), drawn from seed and epoch, cut into batches.

    batch: indices per step, at most n. What is left over at the end of an epoch is dropped. A
    resumed run needs only its step. Drawing an epoch takes O(n) time and memory, a step O(batch).
    """

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.seed = n, min(batch, n), seed
        self.steps_per_epoch = n // self.batch
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)  # none drawn yet

    def indices(self, step: int) -> torch.Tensor:
        """The batch's indices at this step (0, 1, ..): (batch,) int64, in range(n)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.n, generator=generator)
        return self._permutation[position * self.batch : (position + 1) * self.batch]

    def since(self, step: int) -> Iterator[list[int]]:
        """The batches from this step on, without end, as lists: a DataLoader's batch_sampler."""
        return (self.indices(i).tolist() for i in itertools.count(step))


def fixed_sample(n: int, most: int) -> torch.Tensor:
    """`most` of range(n), or all of it if that is less, in an order that is always the same: spread
    over the whole, and so is the beginning of it. int64."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most]

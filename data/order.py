"""The order in which a training run visits its data: a pure function of seed and step."""

import itertools

import torch


class ShuffledOrder:
    """Every epoch is a permutation of range(n), drawn from seed and epoch, cut into batches.

    What is left over at the end of an epoch is dropped. A resumed run needs only its step.
    """

    def __init__(self, n, batch, seed):
        self.n, self.batch, self.seed = n, min(batch, n), seed
        self.steps_per_epoch = n // self.batch
        self._epoch, self._permutation = None, None

    def indices(self, step):
        """The batch's indices at this step (0, 1, ..), a tensor (batch,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.n, generator=generator)
        return self._permutation[position * self.batch : (position + 1) * self.batch]

    def since(self, step):
        """The batches from this step on, without end, as lists: a DataLoader's batch_sampler."""
        return (self.indices(i).tolist() for i in itertools.count(step))

"""Random numbers of a training step that belong to an image's place in the batch.

They are a function of seed, step, place and purpose alone: not of how many places there are, on
which process or device a place is computed, or what was drawn before. So a batch that is divided
among processes, or done in parts, sees the same noise as a whole one, and a resumed run needs no
generator's state.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch

MASK = 2**32 - 1
MULTIPLIERS, WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


class Purpose(IntEnum):
    """What numbers are for: those of two purposes have nothing to do with each other."""

    TIMESTEP = 0
    NOISE = 1
    POSTERIOR = 2
    FLIP = 3
    DROPOUT = 4
    CONDITION = 5


@dataclass(frozen=True)
class Draws:
    """The numbers of one step. places: of the images at hand in the whole batch, B of them."""

    seed: int
    step: int
    places: Sequence[int]
    device: torch.device | str = "cpu"

    def uniform(self, purpose: Purpose, shape: Sequence[int] = ()) -> torch.Tensor:
        """(B, *shape) in (0, 1), float32: multiples of 2^-23, shifted by a half."""
        words = self._words(purpose, math.prod(shape))
        return _unit(words).reshape(len(self.places), *shape).to(self.device)

    def normal(self, purpose: Purpose, shape: Sequence[int]) -> torch.Tensor:
        """(B, *shape) standard normal, float32, by Box and Muller."""
        size = math.prod(shape)
        u, v = _unit(self._words(purpose, size + size % 2)).chunk(2, dim=1)
        radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
        both = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2).flatten(1)
        return both[:, :size].reshape(len(self.places), *shape).to(self.device)

    def parts(self, count: int) -> list["Draws"]:
        """Of the first B / count places, the next ones, and so on; fewer where B is less."""
        size = max(1, -(-len(self.places) // count))
        starts = range(0, len(self.places), size)
        return [replace(self, places=self.places[i : i + size]) for i in starts]

    def seed_torch(self) -> None:
        """Begin torch's own random numbers anew: dropout draws no others. They depend on the first
        place, so each part of a batch has its own."""
        first = replace(self, places=self.places[:1], device="cpu")
        high, low = first._words(Purpose.DROPOUT, 2)[0].tolist()
        torch.manual_seed(high << 31 | low >> 1)

    def _words(self, purpose: Purpose, count: int) -> torch.Tensor:
        """(B, count) of 32 random bits, int64. On the CPU for mps, which does not promise that
        products of 64 bits wrap around."""
        mps = torch.device(self.device).type == "mps"
        blocks = torch.arange(-(-count // 4), device="cpu" if mps else self.device)
        places = torch.tensor(list(self.places), dtype=torch.int64)
        places = places.to(blocks.device, non_blocking=blocks.is_cuda)  # which is not waited for
        counter = [
            blocks.expand(len(places), -1),
            places[:, None].expand(-1, len(blocks)),
            torch.full_like(blocks, self.step & MASK).expand(len(places), -1),
            torch.full_like(blocks, int(purpose) | self.step >> 32 << 8).expand(len(places), -1),
        ]
        words = philox(counter, (self.seed & MASK, self.seed >> 32 & MASK))
        return torch.stack(words, dim=2).flatten(1)[:, :count]


def philox(counter: Sequence[torch.Tensor], key: tuple[int, int]) -> list[torch.Tensor]:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four
    tensors of 32-bit counters, int64, and two words of key -> four tensors of random bits."""
    a, b, c, d = counter
    k, m = key
    for _ in range(ROUNDS):
        # Products of 64 bits; int64 wraps around, and keeps every bit.
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (
            (second >> 32 & MASK) ^ b ^ k, second & MASK, (first >> 32 & MASK) ^ d ^ m, first & MASK
        )  # fmt: skip
        k, m = (k + WEYL[0]) & MASK, (m + WEYL[1]) & MASK
    return [a, b, c, d]


def _unit(words: torch.Tensor) -> torch.Tensor:
    """32 random bits -> a number in (0, 1), of the highest 23: with one more, 1 would be rounded
    to."""
    return ((words >> 9).float() + 0.5) * 2**-23

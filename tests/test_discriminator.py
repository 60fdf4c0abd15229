"""The discriminator, its losses, and what it is shown."""

import pytest
import torch
from helpers import randomize

from models.discriminator import (
    DiscriminatorConfig,
    PatchDiscriminator,
    discriminator_loss,
    generator_loss,
    with_low_frequencies,
)


def test_discriminator_sees_patches():
    """One logit per patch, each image judged alone."""
    model = randomize(PatchDiscriminator(DiscriminatorConfig(3, 8, 3)))
    x = torch.randn(2, 3, 64, 48)
    logits = model(x)
    assert logits.shape == (2, 1, 6, 4)
    torch.testing.assert_close(model(x[:1]), logits[:1])


def test_low_frequencies_are_exchanged_and_detail_is_kept():
    x = torch.randn(2, 3, 16, 24)
    shift = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(with_low_frequencies(x + shift, x), x)
    row, column = torch.arange(16)[:, None], torch.arange(24)
    grain = ((row + column) % 2 * 2 - 1).float()  # its mean over any block is 0
    torch.testing.assert_close(with_low_frequencies(x + grain, x), x + grain)


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.5))
    assert generator_loss(fake).item() == pytest.approx(1.5)
    assert discriminator_loss(torch.tensor([5.0]), torch.tensor([-5.0])) == 0

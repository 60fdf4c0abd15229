"""What the networks share: sizes and widths that are refused, the embedding, the norms."""

import pytest
import torch

from models.autoencoder import AutoencoderConfig, AutoencoderKL
from models.blocks import norm_groups, timestep_embedding
from models.unet import UNet, UNetConfig


@pytest.mark.parametrize("config", [((30, 60), 1, 8), ((8, 12), 1, 8), ((), 1, 8), ((8,), 0, 8)])
def test_impossible_widths_are_refused(config):
    with pytest.raises(ValueError, match="widths"):
        UNet(UNetConfig(1, *config, 0.0))
    with pytest.raises(ValueError, match="widths"):
        AutoencoderKL(AutoencoderConfig(1, 3, *config))


def test_embedding_is_cos_then_sin():
    emb = timestep_embedding(torch.tensor([0, 7]), 6)
    assert emb[0].tolist() == [1, 1, 1, 0, 0, 0]
    torch.testing.assert_close(emb[1].square().view(2, 3).sum(0), torch.ones(3))
    assert emb[1, 0].item() == pytest.approx(torch.tensor(7.0).cos().item())


@pytest.mark.parametrize(("width", "groups"), [(8, 1), (16, 1), (24, 3), (32, 2), (40, 5), (64, 4)])
def test_norm_groups_divide_every_width_and_are_wide_enough(width, groups):
    assert norm_groups(width) == groups
    assert width % groups == 0 and width // groups in (8, 16)

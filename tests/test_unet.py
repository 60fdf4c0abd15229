"""The UNet: shapes, time, dropout, attention."""

import resource

import pytest
import torch
from helpers import randomize, small_unet

from common.errors import UserError
from models.blocks import Attention
from models.unet import UNet, UNetConfig
from training.denoiser import network


@pytest.mark.parametrize("size", [(28, 28), (16, 24), (52, 44), (4, 4)])
def test_unet_keeps_the_shape(size):
    x = torch.randn(2, 1, *size)
    assert randomize(small_unet())(x, torch.tensor([1, 2])).shape == x.shape


def attentions(model):
    return {name for name, part in model.named_modules() if isinstance(part, Attention)}


def test_attention_is_where_it_is_asked_for():
    assert attentions(small_unet()) == attentions(network(1, 8, (1, 2, 4), 1, 0.0)) == set()
    assert not any("attention" in key for key in small_unet().state_dict())
    up = {f"up_blocks.0.attentions.{j}" for j in range(2)}
    coarsest = {"down_blocks.2.attentions.0", "mid_block.attentions.0", *up}
    assert attentions(network(1, 8, (1, 2, 4), 1, 0.0, "2")) == coarsest
    down = {f"down_blocks.0.attentions.{j}" for j in range(2)}
    finest = {*down, *(f"up_blocks.2.attentions.{j}" for j in range(3))}
    assert attentions(network(1, 8, (1, 2, 4), 2, 0.0, "0")) == finest


@pytest.mark.parametrize("levels", [(3,), (-1,), (2, 1), (1, 1)])
def test_other_levels_are_refused(levels):
    with pytest.raises(UserError, match="attention is at levels from 0 to 2, not at "):
        UNet(UNetConfig(1, (8, 16, 16), 1, 8, 0.0, levels))


def test_heads_have_the_width_of_the_first_level():
    parts = UNet(UNetConfig(1, (16, 16, 48), 1, 8, 0.0, (1, 2))).modules()
    assert {part.heads for part in parts if isinstance(part, Attention)} == {1, 3}
    with pytest.raises(UserError, match="needs widths that are multiples of 16, got 24"):
        UNet(UNetConfig(1, (16, 24), 1, 8, 0.0, (1,)))


def test_attention_is_the_softmax_of_all_pairs():
    """By the formula: softmax(q k / sqrt(width of a head)) v, for each head."""
    part, x = randomize(Attention(8, 2, 4, 1e-5)), torch.randn(3, 8, 4, 5)
    h = part.group_norm(x).flatten(2).transpose(1, 2)
    q, k, v = (to(h).view(3, 20, 2, 4) for to in (part.to_q, part.to_k, part.to_v))
    weights = torch.einsum("bihc,bjhc->bhij", q, k).div(2).softmax(dim=3)
    out = part.to_out[0](torch.einsum("bhij,bjhc->bihc", weights, v).flatten(2))
    torch.testing.assert_close(part(x), x + out.transpose(1, 2).view(x.shape))
    x = x.to(memory_format=torch.channels_last)
    assert part(x).is_contiguous(memory_format=torch.channels_last)


def test_an_untrained_network_with_attention_learns_all_of_it():
    model = UNet(UNetConfig(1, (8, 16), 1, 8, 0.0, (0, 1)))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    assert model(x, t).abs().max() == 0
    randomize(model).train()(x, t).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for k, p in model.named_parameters() if "to_k.b" not in k)


def test_attention_among_many_positions_takes_no_memory_for_pairs():
    """52 x 44 positions: all pairs of 16 images would be 335 MB, and more for the gradient."""
    x = torch.randn(16, 8, 52, 44, requires_grad=True)
    part, before = randomize(Attention(8, 1, 8, 1e-5)), resource.getrusage(resource.RUSAGE_SELF)
    part(x).square().mean().backward()
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert x.grad.std() > 0 and after.ru_maxrss - before.ru_maxrss < 200_000  # KB


def test_t_changes_the_prediction():
    model, x = randomize(small_unet()), torch.randn(1, 1, 8, 8)
    assert (model(x, torch.tensor([3])) - model(x, torch.tensor([900]))).abs().max() > 1e-4


def test_dropout_only_while_training():
    model = randomize(UNet(UNetConfig(1, (8, 8), 1, 8, 0.5)))
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([5])
    assert torch.equal(model(x, t), model(x, t))
    model.train()
    assert not torch.equal(model(x, t), model(x, t))

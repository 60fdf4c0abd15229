"""Muon: what an SVD would give, torch's own, and each weight by itself."""

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 8, 40), (1, 24, 6), (2, 16, 16)])
def test_newton_and_schulz_orthogonalise(shape):
    """Singular vectors as an SVD has them, singular values between 0.68 and 1.21 (those that are
    not below 0.002 of the norm)."""
    n, r, c = shape
    k = min(r, c)
    torch.manual_seed(0)
    u = torch.linalg.qr(torch.randn(n, r, k)).Q
    v = torch.linalg.qr(torch.randn(n, c, k)).Q
    s = torch.logspace(0, -2.3, k)
    out = u.mT @ orthogonalised(30 * (u * s) @ v.mT) @ v  # diagonal, where u and v are kept
    values = out.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.68 and values.max() < 1.21
    assert (out - torch.diag_embed(values)).abs().max() < 1e-3
    assert orthogonalised(torch.zeros(shape)).abs().max() == 0


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
def test_muon_steps_as_that_of_torch(shape):
    """torch's takes matrices only, multiplies in bfloat16, and 0.2 times the rate."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    start, both = ours.detach().clone(), {"weight_decay": 0.3, "momentum": 0.9}
    optimizers = [
        Muon([ours], lr=0.02, **both),
        torch.optim.Muon(
            [theirs], lr=0.1, adjust_lr_fn="match_rms_adamw", **{**both, "weight_decay": 0.06}
        ),
    ]
    for _ in range(4):
        gradient = torch.randn(shape)
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert (ours - theirs).norm() < 0.04 * (theirs - start).norm()


def test_muon_steps_the_same_for_all_at_once_and_for_each_alone():
    """Weights of one shape as matrices, though not as tensors, are orthogonalised together."""
    torch.manual_seed(0)
    wide = nn.Conv2d(16, 16, 3).to(memory_format=torch.channels_last)
    layers = [wide, nn.Linear(144, 16), nn.Linear(144, 16), nn.Conv2d(8, 32, 1)]
    weights = [layer.weight for layer in layers]
    copies = [nn.Parameter(w.detach().clone()) for w in weights]
    together, alone = Muon(weights, lr=0.1), [Muon([w], lr=0.1) for w in copies]
    for _ in range(2):
        for weight, copy in zip(weights, copies, strict=True):
            weight.grad = torch.randn_like(weight)
            copy.grad = weight.grad.clone()
        together.step()
        for optimizer in alone:
            optimizer.step()
    for weight, copy in zip(weights, copies, strict=True):
        torch.testing.assert_close(weight, copy, rtol=0, atol=1e-4)


def test_orthogonalising_stays_in_float32_within_autocast():
    torch.manual_seed(0)
    u, v = torch.linalg.qr(torch.randn(2, 64, 64)).Q
    x = ((u * torch.logspace(0, -3, 64)) @ v.mT)[None]
    with torch.autocast("cpu", torch.bfloat16):
        within = orthogonalised(x)
    assert within.dtype == torch.float32
    torch.testing.assert_close(within, orthogonalised(x))


def test_muon_moves_convolutions_by_the_rate():
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 16, 3).to(memory_format=torch.channels_last)
    before = conv.weight.detach().clone()
    conv(torch.randn(8, 32, 5, 5)).square().sum().backward()
    Muon([conv.weight], lr=0.01, weight_decay=0).step()
    step = conv.weight.detach() - before
    assert step.square().mean().sqrt().item() == pytest.approx(0.01, rel=0.3)
    assert (step * conv.weight.grad).sum() < 0
    values = torch.linalg.svdvals(step.flatten(1))
    assert values.max() < 2 * values.min()  # as far in all directions

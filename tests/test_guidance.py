"""Conditions and guidance: their formula, their place in the network, how they are dropped, and an
exact oracle: two Gaussians, of which one is asked for."""

import pytest
import torch
from helpers import randomize, scheduler, small_unet
from hypothesis import given
from hypothesis import strategies as st

from models.draws import Draws
from models.guidance import DROPPED, conditioned, dropped, guided
from models.samplers import SAMPLERS, sample
from models.unet import EMBEDDING_STD, UNet, UNetConfig

MEANS, STD = torch.tensor([-1.5, 1.5]), 0.5  # of two Gaussians, as likely as one another
XT, T = (
    torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
    torch.tensor([3, 90, 5]),
)


def conditional(classes=0, attributes=0):
    config = UNetConfig(1, (8, 16), 1, 8, 0.0, classes=classes, attributes=attributes)
    return randomize(UNet(config))


def two_gaussians(s):
    """E[eps | xt, c] of x0 from Gaussian c, or, for c = 2, from either: all in closed form."""

    def model(xt, t, c):
        alpha_bar = s.alpha_bar[t].view(-1, 1, 1, 1)
        variance = alpha_bar * STD**2 + 1 - alpha_bar
        each = torch.stack([xt - alpha_bar.sqrt() * mean for mean in MEANS], dim=1)
        log_p = -each.square().sum(dim=(2, 3, 4)) / (2 * variance.view(-1, 1))
        known = torch.nn.functional.one_hot(c, 3)[:, :2].double()
        weights = torch.where((c == 2)[:, None], log_p.softmax(dim=1), known)
        score = (weights[:, :, None, None, None] * each).sum(dim=1) / variance
        return ((1 - alpha_bar).sqrt() * score).to(xt.dtype)

    return model


# ---- The network --------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [{"classes": 3}, {"attributes": 3}])
def test_nothing_asked_is_one_of_the_conditions_and_all_differ(known):
    model = conditional(**known)
    asked = {"classes": torch.tensor([0, 2, 3]), "attributes": torch.eye(3)}[next(iter(known))]
    with torch.no_grad():
        unasked = model(XT, T)
        assert torch.equal(unasked, model(XT, T, model.nothing(3)))
        made = model(XT[:1].expand(3, -1, -1, -1), T[:1].expand(3), asked)
    assert len(made.flatten(1).unique(dim=0)) == 3


def test_attributes_are_a_linear_map():
    """What two ask for together is what each adds to the vector of t, with its sign."""
    seen = []
    model = conditional(attributes=2)
    model.down_blocks[0].resnets[0].time_emb_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    silu = torch.nn.functional.silu
    torch.nn.functional.silu = lambda x: x  # else the sum could not be seen
    try:
        with torch.no_grad():
            for c in ([0, 0], [1, 0], [0, -1], [1, -1]):
                model(XT, T, torch.tensor([c] * 3, dtype=torch.int8))
    finally:
        torch.nn.functional.silu = silu
    none, first, second, both = seen
    torch.testing.assert_close(both - none, (first - none) + (second - none))
    torch.testing.assert_close(first - none, model.attribute_embedding.weight[:, 0].expand(3, -1))


def test_conditions_change_no_other_weights_and_no_random_numbers():
    """Of the same seed; they are as large as said, but that of no class is 0."""
    plain, after, others = [], set(), UNetConfig(1, (8, 16), 1, 8, 0.0)
    for known in ({}, {"classes": 10}, {"attributes": 40}):
        torch.manual_seed(0)
        model = UNet(UNetConfig(**{**vars(others), **known}))
        weights = model.state_dict()
        plain.append({k: v for k, v in weights.items() if "embedding.weight" not in k})
        after.add(torch.rand(()).item())
        for weight in (v for k, v in weights.items() if "embedding.weight" in k):
            assert weight.std().item() == pytest.approx(EMBEDDING_STD, rel=0.15)
        if known == {"classes": 10}:
            assert (weights["class_embedding.weight"][10] == 0).all()
    assert len(after) == 1
    assert len(plain[0]) == len(small_unet(1, (8, 16)).state_dict())
    for one in plain[1:]:
        assert all(torch.equal(one[k], v) for k, v in plain[0].items()) and len(one) == len(
            plain[0]
        )


def test_classes_and_attributes_do_not_go_together():
    with pytest.raises(ValueError, match="either classes or attributes"):
        UNet(UNetConfig(1, (8,), 1, 8, 0.0, classes=2, attributes=2))


# ---- Guidance -----------------------------------------------------------------------------------


def counting(model):
    """(the same, a list of the sizes of its batches)."""
    sizes = []
    return lambda xt, t, c: sizes.append(len(xt)) or model(xt, t, c), sizes


def test_guidance_is_the_formula_in_one_batch_of_two():
    network = conditional(classes=3)
    model, sizes = counting(network)
    c, nothing = torch.tensor([0, 1, 2]), network.nothing(3)
    with torch.no_grad():
        eps_u, eps_c = network(XT, T, nothing), network(XT, T, c)
        for weight in (0.0, 0.5, 2.0, 7.5):
            got = guided(model, c, nothing, weight)(XT, T)
            torch.testing.assert_close(got, eps_u + weight * (eps_c - eps_u), rtol=1e-4, atol=1e-5)
    assert sizes == [3, 6, 6, 6]  # with 0 nothing is asked, at no cost


def test_guidance_of_1_is_the_condition_to_the_bit_and_costs_nothing():
    network = conditional(classes=3)
    model, sizes = counting(network)
    c = torch.tensor([0, 1, 2])
    with torch.no_grad():
        got = guided(model, c, network.nothing(3), 1.0)(XT, T)
        assert torch.equal(got, network(XT, T, c))
        assert torch.equal(got, conditioned(network, c)(XT, T))
    assert sizes == [3]
    assert conditioned(network, None) is network


@pytest.mark.parametrize(
    ("interval", "inside"),
    [((4, 89), [5]), ((4, 90), [90, 5]), ((0, 999), [3, 90, 5]), ((6, 89), []), ((3, 3), [3])],
)
def test_only_the_interval_is_guided(interval, inside):
    """Both its ends too; where no t is inside, the network is not asked twice."""
    model, sizes = counting(lambda xt, t, c: xt + c.view(-1, 1, 1, 1))
    c, nothing = torch.ones(3), torch.zeros(3)
    got = guided(model, c, nothing, 3.0, interval)(XT, T)
    want = XT + torch.tensor([3.0 if t in inside else 1.0 for t in T.tolist()]).view(-1, 1, 1, 1)
    torch.testing.assert_close(got, want)
    assert sizes == [6 if inside else 3]


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("c", [0, 1])
def test_what_is_asked_of_two_gaussians_is_what_comes(name, c):
    """The exact denoiser of a mixture: without a condition both come, with it only the one. Its
    mean and deviation are right, by every sampler, which knows nothing of it."""
    s, n = scheduler(), 2000
    model = two_gaussians(s)

    def made(asked, weight=1.0):
        asked, nothing = torch.full((n,), asked), torch.full((n,), 2)
        denoise = guided(model, asked, nothing, weight)
        generator = torch.Generator().manual_seed(0)
        return sample(denoise, s, lambda: torch.randn(n, 1, 1, 1, generator=generator), name, 100)

    either = made(2)
    assert (either > 0).double().mean().item() == pytest.approx(0.5, abs=0.05)
    x = made(c)
    assert x.mean().item() == pytest.approx(MEANS[c].item(), abs=0.06)
    assert x.std().item() == pytest.approx(STD, abs=0.06)
    # More than asked for: further from the other Gaussian than its own mean.
    assert made(c, 3.0).mean() * MEANS[c].sign() > x.mean().abs()


def test_the_guided_score_is_that_of_the_sharpened_class():
    """At one t: eps is -sqrt(1 - alpha_bar) times the score, so guidance by w is the score of
    p(x) p(c | x)^w, here by automatic differentiation of its logarithm."""
    s, t, w = scheduler(), 400, 2.5
    alpha_bar = s.alpha_bar[t]
    xt = torch.linspace(-3, 3, 13, dtype=torch.float64).view(-1, 1, 1, 1).requires_grad_()
    variance = alpha_bar * STD**2 + 1 - alpha_bar
    log_each = -(xt.view(-1, 1) - alpha_bar.sqrt() * MEANS).square() / (2 * variance)
    log_p, log_c = log_each.logsumexp(dim=1), log_each.log_softmax(dim=1)[:, 1]
    (score,) = torch.autograd.grad((log_p + w * log_c).sum(), xt)
    ones, twos = torch.ones(13).long(), torch.full((13,), 2)
    got = guided(two_gaussians(s), ones, twos, w)(xt.detach(), torch.full((13,), t))
    torch.testing.assert_close(got, -(1 - alpha_bar).sqrt() * score)


# ---- Dropping -----------------------------------------------------------------------------------


def test_classes_are_dropped_at_their_rate():
    c = torch.arange(20_000) % 7
    left = dropped(c, torch.tensor([7]), Draws(0, 3, range(len(c))))
    assert (left == 7).double().mean().item() == pytest.approx(DROPPED, abs=0.01)
    assert torch.equal(left[left != 7], c[left != 7])


def test_any_number_of_attributes_is_left_equally_often():
    """A tenth has none; of the others each number from 0 to A, each attribute as often."""
    n, a = 20_000, 4
    c = torch.where(torch.rand(n, a, generator=torch.Generator().manual_seed(0)) < 0.5, 1, -1)
    left = dropped(c.to(torch.int8), torch.zeros(1, a), Draws(0, 3, range(n)))
    assert ((left == c) | (left == 0)).all()
    counts = (left != 0).sum(dim=1).bincount(minlength=a + 1) / n
    want = torch.full((a + 1,), (1 - DROPPED) / (a + 1))
    want[0] += DROPPED
    torch.testing.assert_close(counts, want, rtol=0, atol=0.012)
    torch.testing.assert_close(
        (left != 0).double().mean(dim=0), torch.full((a,), (1 - DROPPED) / 2).double(),
        rtol=0, atol=0.015,
    )  # fmt: skip


@given(st.integers(1, 30), st.integers(1, 5), st.booleans())
def test_what_is_dropped_is_of_the_place_alone(n, parts, attributes):
    """So a batch in parts, or among processes, drops what a whole one does."""
    c = torch.ones(n, 3) if attributes else torch.zeros(n).long()
    nothing = torch.zeros(1, 3) if attributes else torch.tensor([5])
    draws = Draws(1, 9, range(n))
    whole = dropped(c, nothing, draws)
    divided = draws.parts(parts)
    size = len(divided[0].places)
    pieces = [dropped(x, nothing, d) for x, d in zip(c.split(size), divided, strict=True)]
    assert torch.equal(torch.cat(pieces), whole)

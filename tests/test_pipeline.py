"""A denoiser with a sampler: how many steps, which settings, in which batches."""

import inspect

import pytest
import torch
from helpers import randomize, scheduler, small_pipeline, small_unet

from common.choices import SAMPLERS
from generation.pipeline import load_denoiser
from models import samplers
from training.checkpoint import save_model

SETTINGS = {"eta": 0.5, "sigma_scale": 0.9}


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", 1000), ("ddim", 50), ("dpm++", 20)])
def test_samplers_take_the_steps_that_readme_says(sampler, steps):
    assert small_pipeline(sampler, None).steps == steps
    assert small_pipeline(sampler, 7).steps == 7


def test_the_choices_are_the_samplers_and_their_settings():
    """common/choices.py says without torch what models/samplers.py does."""
    assert list(SAMPLERS) == list(samplers.SAMPLERS)
    for name, choice in SAMPLERS.items():
        parameters = inspect.signature(samplers.SAMPLERS[name]).parameters
        assert set(choice.settings) == set(parameters) & {"eta", "sigma_scale"}


@pytest.mark.parametrize(
    ("sampler", "label"),
    [
        ("ddpm", "ddpm, 4 steps, sigma_scale 0.9"),
        ("ddim", "ddim, 4 steps, eta 0.5, sigma_scale 0.9"),
        ("dpm++", "dpm++, 4 steps"),
    ],
)
def test_labels_name_what_the_sampler_takes(sampler, label):
    assert small_pipeline(sampler, 4, **SETTINGS).label == label


def test_settings_reach_the_sampler():
    made = [next(small_pipeline("ddim", eta=eta).batches([3]))[2] for eta in (0.0, 0.0, 1.0)]
    assert torch.equal(made[0], made[1]) and not torch.allclose(made[0], made[2])


def test_a_picture_is_its_seeds_whatever_the_batch():
    together = {}
    for batch in (2, 5):
        parts = list(small_pipeline(batch=batch).batches(range(3, 8)))
        assert [seed for seeds, _, _ in parts for seed in seeds] == [3, 4, 5, 6, 7]
        assert all(len(seeds) == len(images) == len(x0) for seeds, images, x0 in parts)
        together[batch] = torch.cat([images for _, images, _ in parts])
    torch.testing.assert_close(together[2], together[5], rtol=0, atol=1e-5)


def test_a_denoiser_of_the_other_space_is_refused(tmp_path):
    facts = {"space": "latents", "scheduler": None}
    save_model(tmp_path / "d.safetensors", randomize(small_unet(1)), facts)
    with pytest.raises(ValueError, match="of latents: show it with latent_diffusion.py"):
        load_denoiser(tmp_path / "d.safetensors", "pixels")


def test_denoisers_from_before_the_choice_are_linear_and_put_out_eps(tmp_path):
    """Files outlive code: the first checkpoints held the betas of the one schedule there was."""
    known = {"num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "clip_x0": True}
    facts = {"space": "pixels", "shape": [1, 8, 8], "scheduler": known}
    save_model(tmp_path / "d.safetensors", randomize(small_unet()), facts)
    _, found, _ = load_denoiser(tmp_path / "d.safetensors", "pixels")
    wanted = scheduler(clip_x0=True)
    assert found.config == wanted.config
    assert torch.equal(found.alpha_bar, wanted.alpha_bar)

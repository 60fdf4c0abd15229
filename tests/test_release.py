"""Checkpoints to give away: half the size, the same pictures, and what belongs together."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from helpers import randomize, scheduler, small_autoencoder, small_unet

from command_line.parsers import parse_latent
from common.errors import UserError
from generation import release
from latent_diffusion import load
from training.checkpoint import load_model, save_model
from training.first_stage import encoder_id

CARD = {"data": "faces", "terms": "for research only"}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder with digits.safetensors, coder.safetensors, and a denoiser of its latents."""
    monkeypatch.chdir(tmp_path)
    coder = randomize(small_autoencoder())
    save_model("coder.safetensors", coder, {"data": "x", "data_root": "/a/b", "size": [16, 16]})
    facts = {"scheduler": asdict(scheduler().config), "data_root": "/a/b", "init": "before"}
    pixels = facts | {"space": "pixels", "shape": [1, 28, 28]}
    save_model("digits.safetensors", randomize(small_unet(1)), pixels)
    facts |= {"space": "latents", "shape": [3, 4, 4], "size": [16, 16]}
    facts |= {"latent_stats": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}}
    facts |= {"autoencoder_id": encoder_id(coder)}
    save_model("faces.safetensors", randomize(small_unet(3)), facts)


def pictures(path, *flags):
    """Two pictures by the checkpoint of this path."""
    steps = ("--sampler", "dpm++", "--sampling-steps", "5", "--device", "cpu", "--precision")
    args = parse_latent(["--show", str(path), *flags, *steps, "fp32"])
    pipeline, *_ = load(args, str(path))
    ((_, images, _),) = pipeline.batches(range(2))
    return images


def test_what_is_given_away_makes_the_same_pictures_from_half_the_bytes(trained):
    release.release("faces.safetensors", "coder.safetensors", "small", CARD)
    before = pictures("faces.safetensors", "--encoder", "coder.safetensors")
    after = pictures("checkpoints/denoiser/small.safetensors")  # finds its autoencoder
    assert 0 < (after - before).abs().max() < 0.02 * before.abs().max()
    for kind, big in (("denoiser", "faces"), ("autoencoder", "coder")):
        path = Path(f"checkpoints/{kind}/small.safetensors")
        assert path.stat().st_size < 0.75 * Path(f"{big}.safetensors").stat().st_size
        _, facts = load_model(path, {"denoiser": "UNet"}.get(kind, "AutoencoderKL"))
        assert facts["card"] == CARD and facts["data_root"] == "data" and "init" not in facts


def test_digits_need_no_autoencoder(trained, capsys):
    (path,) = release.release("digits.safetensors", None, "digits", CARD)
    assert path == Path("checkpoints/mnist/digits.safetensors")
    model, facts = load_model(path, "UNet")
    for name, weight in randomize(small_unet(1)).state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-3, atol=1e-6)
    capsys.readouterr()
    release.tell_card(facts)
    assert "for research only" in capsys.readouterr().out
    release.tell_card({"card": 3})
    assert capsys.readouterr().out == ""


def test_what_does_not_belong_together_or_is_there_is_refused(trained):
    save_model("other.safetensors", randomize(small_autoencoder(), 1), {})
    for arguments, message in (
        (("faces.safetensors", None), "give --encoder for latents"),
        (("digits.safetensors", "coder.safetensors"), "denoises pixels; give --encoder"),
        (("faces.safetensors", "other.safetensors"), "pass the matching --encoder"),
        (("coder.safetensors", None), "holds a AutoencoderKL"),
    ):
        with pytest.raises(UserError, match=message):
            release.release(*arguments, "a", CARD)
    release.release("digits.safetensors", None, "a", CARD)
    with pytest.raises(UserError, match="is there already"):
        release.release("digits.safetensors", None, "a", CARD)

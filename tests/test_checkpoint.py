"""Checkpoints and states: round trips to the bit, JSON inside, refusals in a sentence."""

import json
import struct

import pytest
import torch
from helpers import randomize, small_autoencoder, small_unet
from safetensors import safe_open
from safetensors.torch import save_file

from training.checkpoint import (
    checkpoints_in,
    find_by_fingerprint,
    fingerprint,
    load_model,
    load_state,
    save_model,
    save_state,
)

FACTS = {"size": [28, 28], "epoch": 3, "name": "süß"}


def test_model_round_trip(tmp_path):
    model = randomize(small_unet())
    save_model(tmp_path / "new" / "m.safetensors", model, FACTS)
    again, facts = load_model(tmp_path / "new" / "m.safetensors", "UNet")
    assert facts == FACTS and again.config == model.config and not again.training
    assert fingerprint(again) == fingerprint(model)
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([4])
    assert torch.equal(again(x, t), model(x, t))


def test_metadata_is_json_with_a_version(tmp_path):
    save_model(tmp_path / "m.safetensors", small_autoencoder(), FACTS)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata["version"] == "1"
    assert json.loads(metadata["facts"]) == FACTS
    assert json.loads(metadata["config"])["channels"] == [8, 16, 16]


def test_fingerprint_sees_every_bit_and_name():
    model = randomize(small_autoencoder())
    before = fingerprint(model)
    assert fingerprint(randomize(small_autoencoder())) == before
    with torch.no_grad():
        model.quant_conv.bias[0] = torch.nextafter(model.quant_conv.bias[0], torch.tensor(9.0))
    assert fingerprint(model) != before


def test_encoder_is_found_by_fingerprint(tmp_path):
    models = [randomize(small_autoencoder(), seed) for seed in range(3)]
    for i, model in enumerate(models):
        save_model(tmp_path / f"{i}.safetensors", model, {})
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    assert find_by_fingerprint(tmp_path, fingerprint(models[1])) == tmp_path / "1.safetensors"
    assert find_by_fingerprint(tmp_path, "0" * 64) is None
    assert find_by_fingerprint(tmp_path / "missing", "0" * 64) is None


def test_state_round_trip(tmp_path):
    model = small_unet()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.5, 0.9))
    model(torch.randn(1, 1, 4, 4), torch.tensor([0])).sum().backward()
    optimizer.step()
    tree = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": {"cpu": torch.get_rng_state()},
        "settings": {"steps": None, "lr": 1e-3, "size": [4, 4], "flip": False, "name": "a/b"},
        "empty": {},
        "step": 7,
    }
    save_state(tmp_path / "run.state", tree)
    again = load_state(tmp_path / "run.state")
    assert again["settings"] == tree["settings"] and again["step"] == 7 and again["empty"] == {}
    assert again["settings"]["flip"] is False  # not bool("False")
    for name, tensor in tree["model"].items():
        assert torch.equal(again["model"][name], tensor)
    assert torch.equal(again["random"]["cpu"], tree["random"]["cpu"])
    other = torch.optim.AdamW(model.parameters())
    other.load_state_dict(again["optimizer"])
    assert other.param_groups[0]["betas"] in ((0.5, 0.9), [0.5, 0.9])
    for ours, theirs in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in ("step", "exp_avg", "exp_avg_sq"))


def test_missing_file_names_what_is_there(tmp_path):
    save_model(tmp_path / "there.safetensors", small_unet(), {})
    with pytest.raises(ValueError, match=r"no checkpoint .*absent.*; there are .*there"):
        load_model(tmp_path / "absent.safetensors", "UNet")
    with pytest.raises(ValueError, match=r"no checkpoint .*; there are .*there.safetensors$"):
        load_model(tmp_path, "UNet")
    save_state(tmp_path / "run.state", {"step": 1})
    with pytest.raises(ValueError, match=r"no training state .*absent; there are .*run.state$"):
        load_state(tmp_path / "absent")


def test_a_link_to_nowhere_is_no_checkpoint(tmp_path):
    save_model(tmp_path / "there.safetensors", small_unet(), {})
    try:
        (tmp_path / "moved.safetensors").symlink_to(tmp_path / "nowhere")
    except OSError:
        pytest.skip("no links here")
    assert [p.stem for p in checkpoints_in(tmp_path)] == ["there"]


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_files_are_refused(tmp_path, kept):
    path = tmp_path / "m.safetensors"
    save_model(path, small_unet(), {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="truncated or no safetensors"):
        load_model(path, "UNet")


def test_other_kinds_are_refused(tmp_path):
    save_model(tmp_path / "m.safetensors", small_autoencoder(), {})
    with pytest.raises(ValueError, match="holds a AutoencoderKL, but a UNet is needed"):
        load_model(tmp_path / "m.safetensors", "UNet")
    save_state(tmp_path / "run.state", {"step": 1, "tensor": torch.zeros(1)})
    with pytest.raises(ValueError, match="holds a state"):
        load_model(tmp_path / "run.state", "UNet")
    with pytest.raises(ValueError, match="not the state of a training run"):
        load_state(tmp_path / "m.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="not written by this project"):
        load_model(tmp_path / "foreign.safetensors", "UNet")


def test_other_versions_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, small_unet(), {})
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + length].replace(b'"version":"1"', b'"version":"9"')
    path.write_bytes(content[:8] + header + content[8 + length :])
    with pytest.raises(ValueError, match="version 9 of the format, this code reads 1"):
        load_model(path, "UNet")


def test_newest_comes_first(tmp_path):
    import os

    for i, name in enumerate(["b", "c", "a"]):
        save_model(tmp_path / f"{name}.safetensors", small_unet(), {})
        os.utime(tmp_path / f"{name}.safetensors", (1000 + i, 1000 + i))
    assert [p.stem for p in checkpoints_in(tmp_path)] == ["a", "c", "b"]

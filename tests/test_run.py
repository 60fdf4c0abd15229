"""One run: its length, when what is due, its files, and how it is gone on with, to the bit."""

import gzip
import itertools
import math
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import (
    assert_same_weights,
    cpu,
    interrupt,
    randomize,
    run_digits,
    run_encoder,
    run_latent,
    small_autoencoder,
    write_images,
    write_mnist,
)

import train_encoder
from common.errors import UserError
from data.order import ShuffledOrder
from training.checkpoint import load_model, load_state, save_model
from training.optimizer import Optimizer
from training.progress import Progress
from training.records import read_metrics
from training.run import Run, total_steps

SMALL = ("--batch", 8, "--channels", 8)


def losses(kind, name, key="loss"):
    """[(step, loss)] of a run."""
    return [(r["step"], r[key]) for r in read_metrics(f"fig/{kind}/{name}/metrics.jsonl", name)]


@pytest.fixture
def digits(tmp_path, monkeypatch, no_figures):
    """Work in a folder with 64 digits, whose runs draw no figures."""
    write_mnist(tmp_path / "data", train=64, test=8)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pictures(tmp_path, monkeypatch, no_figures):
    """Work in a folder with pictures/, whose runs draw no figures."""
    write_images(tmp_path / "pictures", 8, (16, 16))
    monkeypatch.chdir(tmp_path)


# ---- Its length, and when what is due -----------------------------------------------------------


def order(n, batch=1):
    return ShuffledOrder(n, batch, 0)


@pytest.mark.parametrize(
    ("on_gpu", "num_train", "epochs"),
    [(False, 24_152, 7), (True, 162_770, 10), (False, 500, 340), (False, 10**7, 1)],
)
def test_default_length_suits_data_and_machine(on_gpu, num_train, epochs):
    steps = total_steps(None, None, (170_000, 1_600_000), order(num_train), on_gpu)
    assert steps == epochs * num_train


def test_default_length_counts_only_what_is_shown():
    """Of 127 images an epoch of batches of 64 shows 64."""
    assert total_steps(None, None, (6400, 0), order(127, 64), False) == 100


def test_a_length_is_as_asked_for_in_steps_or_epochs():
    assert total_steps(7, None, (1, 1), order(100), False) == 7
    assert total_steps(None, 3, (1, 1), order(100, 8), True) == 3 * 12
    assert total_steps(7, 3, (1, 1), order(100), False) == 7  # a resumed run's steps were epochs


@pytest.mark.parametrize("steps", [1, 7, 150, 999, 12_345])
@pytest.mark.parametrize("per_epoch", [1, 10, 469])
def test_what_is_due(tmp_path, monkeypatch, steps, per_epoch):
    """Reports about 200 times or at every step, checkpoints at the ends of at most 10 epochs, and
    all of it at the end; validations and figures only with a report."""
    monkeypatch.chdir(tmp_path)
    run = Run("kind", "a", steps, "cosine", order(per_epoch), cpu(), {}, {})
    done = {name: {step for step in range(1, steps + 1) if due(step)} for name, due in (
        ("report", run.report_due), ("validate", run.validate_due),
        ("figures", run.figures_due), ("save", run.save_due),
    )}  # fmt: skip
    assert all(steps in due for due in done.values())
    assert min(steps, 124) <= len(done["report"]) <= max(400, 1 + steps / 100)
    assert done["figures"] <= done["report"] and done["validate"] <= done["report"]
    assert len(done["validate"]) <= 81 and len(done["figures"]) <= 21 and len(done["save"]) <= 11
    assert all(step % per_epoch == 0 or step == steps for step in done["save"])
    assert [run.epoch(step) for step in (1, per_epoch, per_epoch + 1)] == [
        1,
        1,
        2 - (per_epoch < 1),
    ]


# ---- Gone on with, to the bit -------------------------------------------------------------------


def test_mnist_resumes_to_the_bit(digits, monkeypatch):
    common = ("--steps", 8, "--batch", 16, "--channels", 8)
    run_digits(*common, "--name", "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, after=5)
        with pytest.raises(KeyboardInterrupt):
            run_digits(*common, "--name", "parts")
    folder = Path("checkpoints/mnist")
    assert [p.name for p in folder.glob("parts_epoch*")] == ["parts_epoch0001.safetensors"]
    run_digits("--resume", "parts")
    names = ("whole", "parts")
    assert_same_weights("UNet", *[folder / f"{name}_epoch0002.safetensors" for name in names])
    whole, parts = (losses("mnist", name) for name in names)
    assert whole == parts and len(whole) == 8


def test_encoder_resumes_to_the_bit(tmp_path, monkeypatch, no_figures):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures", 24, (24, 40))
    flags = ("--data", "pictures", "--size", "32x16", "--batch", 4, "--channels", 8, "--steps", 12)
    run_encoder(*flags, "--name", "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, after=9)  # with the discriminator already training
        with pytest.raises(KeyboardInterrupt):
            run_encoder(*flags, "--name", "parts")
    run_encoder("--resume")
    for part, kind in (("autoencoder", "AutoencoderKL"), ("discriminator", "PatchDiscriminator")):
        names = [f"{name}_epoch0003.safetensors" for name in ("whole", "parts")]
        assert_same_weights(kind, *[Path("checkpoints", part, name) for name in names])
    last = read_metrics("fig/autoencoder/whole/metrics.jsonl", "whole")[-1]
    promised = {"logit_real", "logit_fake", "adaptive_weight", "weights_encoder", "weights_disc"}
    assert promised <= set(last) and 0 <= last["adaptive_weight"] <= 1 and last["gan_weight"] == 2
    assert 0 < last["sharpness"] < 2


def test_latent_denoiser_resumes_to_the_bit(pictures, monkeypatch, capsys):
    """With drawn latents, mirrored too; and what a finished run says to those who go on with it."""
    facts = {"data": "pictures", "data_root": "data", "size": [16, 16]}
    save_model("a.safetensors", randomize(small_autoencoder()), facts)
    flags = ("--encoder", "a.safetensors", "--batch", 4, "--channels", 8, "--steps", 6, "--mirror")
    run_latent(*flags, "--name", "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, after=4)
        with pytest.raises(KeyboardInterrupt):
            run_latent(*flags, "--name", "parts")
    run_latent("--resume")
    names = [f"{name}_epoch0002.safetensors" for name in ("whole", "parts")]
    assert_same_weights("UNet", *[Path("checkpoints/denoiser", name) for name in names])
    assert len(list(Path("encoded_img").iterdir())) == 1

    # A finished run says so; a larger number of steps stretches it; its settings are its own.
    capsys.readouterr()
    run_latent("--resume")
    assert "the 6 steps are done; to go on, pass a larger" in capsys.readouterr().out
    with pytest.raises(UserError, match="the run parts has done 6 steps; to go on, pass a larger"):
        run_latent("--resume", "--steps", 5)
    with pytest.raises(UserError, match=r"--ema: the run to resume has 0\.999; leave it out"):
        run_latent("--resume", "--ema", 0.1)
    Path("pictures").rename("moved")  # the same images, wherever they lie
    run_latent("--resume", "--steps", 8, "--data", "moved")
    assert read_metrics("fig/denoiser/parts/metrics.jsonl", "parts")[-1]["step"] == 8


def test_damaged_images_do_not_shift_a_resumed_run(pictures, monkeypatch):
    """A batch of which nothing can be read is a step that is skipped, by the whole run and by its
    parts alike."""
    for name in ("01.png", "05.png"):  # their headers can be read
        whole = Path("pictures", name).read_bytes()
        Path("pictures", name).write_bytes(whole[: len(whole) // 2])
    flags = ("--data", "pictures", "--size", "16x16", "--gan-weight", 0, "--batch", 1)
    flags += ("--channels", 8, "--steps", 14)
    run_encoder(*flags, "--name", "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, after=9)
        with pytest.raises(KeyboardInterrupt):
            run_encoder(*flags, "--name", "parts")
    run_encoder("--resume")
    whole, parts = (read_metrics(f"fig/autoencoder/{name}/metrics.jsonl", name)
                    for name in ("whole", "parts"))  # fmt: skip
    assert [r.get("loss_rec") for r in whole] == [r.get("loss_rec") for r in parts]
    assert sum(r.get("skipped_steps", 0) for r in whole) >= 3 and len(whole) == 14


def test_same_seed_same_losses_other_seed_others(digits):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_digits("--steps", 3, *SMALL, "--name", name, "--seed", seed)
    a, b, c = (losses("mnist", name) for name in "abc")
    assert a == b and a != c


def test_prolonged_run_never_overwrites_a_checkpoint(digits):
    """A run that ended within an epoch and goes on keeps the checkpoint of its first end."""
    run_digits(*SMALL, "--steps", 3, "--name", "a")
    first = Path("checkpoints/mnist/a_epoch0001.safetensors")
    before = first.read_bytes()
    run_digits("--resume", "--steps", 5)
    assert first.read_bytes() == before
    _, facts = load_model(first.with_name("a_epoch0001_step5.safetensors"), "UNet")
    assert facts["step"] == 5 and facts["epoch"] == 1 and facts["data_root"] == "data"


def test_a_prolonged_trapezoid_ends_as_if_it_had_been_that_long_from_the_start(digits):
    """It goes on from the state before its fall, to the bit, and forgets the records of the fall;
    the checkpoint of its first end stays."""
    flags = (*SMALL, "--lr-schedule", "trapezoid")
    run_digits(*flags, "--steps", 20, "--name", "whole")
    run_digits(*flags, "--steps", 10, "--name", "parts")
    assert load_state("checkpoints/mnist/parts.state-before-fall")["step"] == 8
    run_digits("--resume", "parts", "--steps", 20)
    whole, parts = losses("mnist", "whole"), losses("mnist", "parts")
    assert whole == parts and len(whole) == 20
    folder = Path("checkpoints/mnist")
    ends = [folder / f"{name}_epoch0003.safetensors" for name in ("whole", "parts")]
    assert_same_weights("UNet", *ends)
    assert (folder / "parts_epoch0002.safetensors").is_file()


def test_a_trapezoid_that_is_cut_short_falls_from_where_it_is(digits, monkeypatch, capsys):
    """And is prolonged from there: nothing is lost."""
    flags = (*SMALL, "--lr-schedule", "trapezoid")
    with monkeypatch.context() as patch:
        interrupt(patch, after=9)
        with pytest.raises(KeyboardInterrupt):
            run_digits(*flags, "--steps", 40, "--name", "a")
    run_digits("--resume", "--steps", 11)
    assert load_state("checkpoints/mnist/a.state")["fall_start"] == 9
    run_digits("--resume", "--steps", 16)
    assert "going on from step 9, before the learning rate fell" in capsys.readouterr().out
    assert [step for step, _ in losses("mnist", "a")] == list(range(1, 17))
    assert load_state("checkpoints/mnist/a.state")["fall_start"] == 13


def test_no_checkpoint_is_written_over_however_often_a_run_is_prolonged(digits):
    run_digits(*SMALL, "--lr-schedule", "trapezoid", "--steps", 5, "--name", "a")
    for steps in (6, 7, 9):
        run_digits("--resume", "--steps", steps)
    folder = Path("checkpoints/mnist")
    made = {load_model(path, "UNet")[1]["step"] for path in folder.glob("a_epoch*")}
    assert {5, 6, 7, 9} <= made


def test_a_run_that_is_shortened_still_passes_through_its_gan(pictures, monkeypatch):
    small = ("--data", "pictures", "--size", "16x16", "--batch", 4, "--channels", 8)
    with monkeypatch.context() as patch:
        interrupt(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            run_encoder(*small, "--steps", 40, "--name", "a")
    run_encoder("--resume", "--steps", 8)
    assert losses("autoencoder", "a", "gan_weight")[-1] == (8, 2.0)


def test_a_trapezoid_that_has_not_begun_to_fall_goes_on_from_its_last_state(digits, monkeypatch):
    flags = (*SMALL, "--lr-schedule", "trapezoid")
    with monkeypatch.context() as patch:
        interrupt(patch, after=5)
        with pytest.raises(KeyboardInterrupt):
            run_digits(*flags, "--steps", 10, "--name", "a")
    run_digits("--resume", "--steps", 20)
    assert [step for step, _ in losses("mnist", "a")] == list(range(1, 21))


def test_gan_phases_stay_where_they_were_when_a_run_is_prolonged(pictures):
    small = ("--data", "pictures", "--size", "16x16", "--batch", 4, "--channels", 8)
    run_encoder(*small, "--steps", 8, "--name", "a")
    run_encoder("--resume", "--steps", 12)
    weights = losses("autoencoder", "a", "gan_weight")
    assert [step for step, weight in weights if weight] == list(range(6, 13))
    assert weights[-1] == (12, 2.0)


def test_changed_data_are_noticed_on_resume(pictures):
    flags = ("--data", "pictures", "--size", "16x16", "--gan-weight", 0, "--batch", 2)
    run_encoder(*flags, "--channels", 8, "--steps", 2, "--name", "a")
    write_images(Path("pictures"), 9, (16, 16), seed=1)
    with pytest.raises(UserError, match="the images are not those that the run a was begun with"):
        run_encoder("--resume", "--steps", 4)


def test_other_digits_are_noticed_on_resume(digits):
    """Fashion-MNIST has as many images, under the same names."""
    run_digits("--steps", 2, *SMALL, "--name", "a")
    raw = next(p for p in Path("data").rglob("train-images*") if p.is_file())
    content = bytearray(gzip.decompress(raw.read_bytes()))
    content[-1] ^= 1
    raw.write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match="the images are not those"):
        run_digits("--resume", "--steps", 4)


def test_a_run_goes_on_with_the_network_of_its_state(digits, monkeypatch):
    """Norms of other groups have weights of the same shapes: only the config tells."""
    run_digits("--name", "a", "--batch", 8, "--channels", 16, "--steps", 2)
    before = load_state("checkpoints/mnist/a.state")["configs"]
    monkeypatch.setattr("training.denoiser.norm_groups", lambda width: width // 8)
    run_digits("--resume", "--steps", 4)
    assert load_state("checkpoints/mnist/a.state")["configs"] == before


# ---- What cannot be saved -----------------------------------------------------------------------


def test_a_figure_that_cannot_be_written_does_not_stop_a_run(tmp_path, monkeypatch, capsys):
    """As a viewer that holds it open does, on Windows."""
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "data")
    write_images(tmp_path / "pictures", 4)
    for path in ("fig/mnist/a/losses.png", "fig/autoencoder/a/reconstructions.png"):
        (tmp_path / path).mkdir(parents=True)
    small = ("--steps", 2, "--batch", 4, "--channels", 8, "--name", "a")
    run_digits(*small)
    run_encoder("--data", "pictures", "--size", "16x16", *small)
    assert capsys.readouterr().out.count("figures not written: ") == 2
    assert (tmp_path / "checkpoints/mnist/a_epoch0001.safetensors").is_file()
    assert (tmp_path / "checkpoints/autoencoder/a_epoch0002.safetensors").is_file()


@pytest.fixture
def bad_losses(monkeypatch):
    """bad_losses(first, last): the losses of these steps, counted from 1, are not finite."""
    backward, calls = Optimizer.backward, itertools.count(1)

    def spoil(first, last):
        def patched(self, loss):
            backward(self, loss * math.nan if first <= next(calls) <= last else loss)

        monkeypatch.setattr(Optimizer, "backward", patched)

    return spoil


def test_a_step_of_a_loss_that_is_not_finite_is_skipped_and_counted(digits, bad_losses):
    bad_losses(3, 4)
    run_digits("--steps", 6, *SMALL, "--name", "a")
    records = read_metrics("fig/mnist/a/metrics.jsonl", "a")
    assert [r.get("skipped_steps", 0) for r in records] == [0, 0, 1, 1, 0, 0]
    assert [math.isfinite(r.get("loss", math.nan)) for r in records] == [1, 1, 0, 0, 1, 1]
    assert load_state("checkpoints/mnist/a.state")["step"] == 6


def test_twenty_such_steps_in_a_row_end_the_run_and_its_last_good_state_stays(digits, bad_losses):
    bad_losses(9, 99)
    with pytest.raises(UserError, match="not finite in 20 steps in a row; a smaller --lr"):
        run_digits("--steps", 40, *SMALL, "--name", "a")
    assert load_state("checkpoints/mnist/a.state")["step"] == 27  # as good as that of step 8


def test_the_advice_that_messages_give_is_taken_on_resuming(digits):
    """A lower --lr after losses that are not finite, --accumulate after too little memory."""
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after=4)
        run_digits("--steps", 8, *SMALL, "--name", "a")
    run_digits("--resume", "--lr", 1e-4, "--accumulate", 2)
    state = load_state("checkpoints/mnist/a.state")
    assert state["step"] == 8 and state["settings"]["lr"] == 1e-4
    with pytest.raises(UserError, match="--batch: the run to resume has 8; leave it out"):
        run_digits("--resume", "--batch", 4, "--steps", 20)


def test_weights_that_are_not_finite_are_not_saved(digits, monkeypatch):
    """Whatever made them so: neither checkpoint nor state is made of them."""
    write_mnist(Path("data"), train=32)
    with monkeypatch.context() as patch:
        save, step = Run.save_state, Optimizer.step

        def spoil(self, rate):
            norm = step(self, rate)
            self.parameters[0].data.fill_(math.nan)
            return norm

        def then_spoil(self, done):
            save(self, done)
            patch.setattr(Optimizer, "step", spoil)

        patch.setattr(Run, "save_state", then_spoil)
        with pytest.raises(UserError, match=r"a\.state is not saved: .* not finite"):
            run_digits("--steps", 8, *SMALL, "--name", "a")
    assert load_state("checkpoints/mnist/a.state")["step"] == 4
    run_digits("--resume")
    assert Path("checkpoints/mnist/a_epoch0002.safetensors").is_file()


def test_a_state_is_kept_every_ten_minutes(digits, monkeypatch):
    """Also between two checkpoints; and not at every step from then on."""
    saved, save, now = [], Run.save_state, iter(range(0, 10**6, 250))

    def spy(self, done):
        saved.append(done)
        save(self, done)

    monkeypatch.setattr(Run, "save_state", spy)
    clock = SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr("training.run.time", clock)
    write_mnist(Path("data"), train=88)  # all steps within one epoch
    run_digits("--steps", 10, *SMALL)
    # 250 s from one look at the clock to the next: over 600 s have gone at every third.
    assert saved == [3, 6, 9, 10]


def test_data_that_fail_cost_nothing_that_was_learnt(pictures, monkeypatch):
    """Between two states: what the network has learnt until then is saved before the run ends."""
    flags = ("--data", "pictures", "--size", "16x16", "--gan-weight", 0, "--batch", 2)
    whole = train_encoder.autoencoder.load_batches

    def failing(*arguments, **more):
        for i, batch in enumerate(whole(*arguments, **more)):
            if i == 3 and more:
                raise UserError("the pictures have gone")
            yield batch

    monkeypatch.setattr("training.autoencoder.load_batches", failing)
    with pytest.raises(UserError, match="the pictures have gone"):
        run_encoder(*flags, "--channels", 8, "--steps", 9, "--save-every", 100, "--name", "a")
    assert load_state("checkpoints/autoencoder/a.state")["step"] == 3


def test_a_ctrl_c_that_arrives_twice_is_one(digits, monkeypatch):
    add = Progress.add

    def twice(progress, **values):
        for _ in range(2 * (progress.done == 2)):
            signal.raise_signal(signal.SIGINT)
        add(progress, **values)

    monkeypatch.setattr(Progress, "add", twice)
    with pytest.raises(KeyboardInterrupt):
        run_digits("--steps", 9, *SMALL, "--name", "a", "--save-every", 100)
    assert load_state("checkpoints/mnist/a.state")["step"] == 3


def test_a_time_limit_ends_a_run_with_status_0(digits):
    with pytest.raises(SystemExit) as end:
        run_digits("--steps", 900, *SMALL, "--name", "a", "--time-limit", 1e-9)
    assert end.value.code == 0
    assert load_state("checkpoints/mnist/a.state")["step"] == 1

"""--export: diffusers makes the same pictures of the same noise; the folder is whole or absent; it
says what the checkpoints say."""

import json
import re
from dataclasses import asdict

import pytest
import torch
from fuzz import assert_one_line
from helpers import CPU, randomize, run_script, scheduler, tree

import latent_diffusion
import mnist_diffusion
from command_line.parsers import parse_latent, parse_mnist
from common.errors import UserError
from data.latents import LatentStats
from generation.export import AUTOENCODER, CODE, INDEX, README, UNET, folded
from models.autoencoder import AutoencoderConfig, AutoencoderKL
from models.scheduler import SCHEDULES
from models.unet import UNet as Denoiser
from models.unet import UNetConfig
from training.checkpoint import fingerprint, load_model, save_model
from training.first_stage import encoder_id
from training.foreign import SCHEDULER, WEIGHTS, scheduler_said
from training.imported import load_autoencoder, load_unet

SEEDS = 3, 4, 5
SQUARE, WIDE = (8, 8), (8, 12)  # of latents
STATS = LatentStats((0.7, -1.5, 0.1), (0.5, 2.0, 1.3))


def save_denoiser(path, model, shape, config, **known):
    facts = {"shape": [model.config.in_channels, *shape], "scheduler": asdict(config), **known}
    save_model(path, randomize(model), facts)


def save_digits(schedule="linear", prediction="eps", levels=(), **known):
    """digits.safetensors, random weights in every tensor."""
    config = scheduler(clip_x0=True, schedule=schedule, prediction=prediction).config
    model = Denoiser(UNetConfig(1, (8, 16, 16), 1, 8, 0.1, levels))
    save_denoiser("digits.safetensors", model, (28, 28), config, space="pixels", **known)


def save_faces(size, channels=3, schedule="cosine", prediction="v", levels=(), **known):
    """a.safetensors and d.safetensors, which belong together, random weights in every tensor."""
    attends = bool(levels)
    autoencoder = AutoencoderKL(AutoencoderConfig(channels, 3, (8, 16, 16), 1, 8, attends))
    height, width = (4 * n for n in size)
    facts = {"data": "faces", "size": [height, width], "step": 7, "valid_loss": -31.4057}
    save_model("a.safetensors", randomize(autoencoder, 1), facts)
    config = scheduler(schedule=schedule, prediction=prediction).config
    model = Denoiser(UNetConfig(3, (8, 16, 16), 1, 8, 0.0, levels))
    save_denoiser(
        "d.safetensors", model, size, config,
        space="latents", size=[height, width], latent_stats=asdict(STATS),
        autoencoder_id=fingerprint(autoencoder), data="faces", **known,
    )  # fmt: skip


def digits(*flags):
    return parse_mnist(["--show", "digits.safetensors", *flags, *CPU[:2]])


def faces(*flags):
    return parse_latent(["--show", "d.safetensors", "--encoder", "a.safetensors", *flags, *CPU[:2]])


def export_digits(folder="out"):
    mnist_diffusion.main(digits("--export", folder))


def export_faces(folder="out"):
    latent_diffusion.main(faces("--export", folder))


def ours(module, arguments, sampler, steps):
    """Pictures of SEEDS, (B, H, W, C) in [-1, 1]."""
    flags = "--sampler", sampler, "--sampling-steps", str(steps), "--precision", "fp32"
    args = arguments(*flags)
    pipeline = module.load(args, args.show)[0]
    ((_, images, _),) = pipeline.batches(SEEDS)
    return images.clamp(-1, 1).permute(0, 2, 3, 1)


def loaded(folder="out", **trust):
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **trust)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe, steps, **more):
    """The same by a pipeline of diffusers."""
    generator = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipe(
        batch_size=len(SEEDS), generator=generator, num_inference_steps=steps, output_type="np",
        **more,
    ).images  # fmt: skip
    return 2 * torch.from_numpy(images) - 1


def multistep(pipe, **more):
    """The pipeline, with DPM-Solver++(2M)."""
    import diffusers

    config = pipe.scheduler.config
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config, **more)
    return pipe


def assert_same(got, want):
    """Within 1e-4 of [-1, 1]; some values are no ends, which clipping would make equal."""
    assert got.shape == want.shape
    assert (want.abs() < 0.999).sum() > 10 and want.std() > 0.01
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, out of which this one is to be made."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Where diffusers keeps copies of a pipeline's code."""
    dynamic = pytest.importorskip("diffusers.utils.dynamic_modules_utils")
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))


# ---- The same pictures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "prediction", "levels"),
    [("linear", "eps", ()), ("linear", "v", (1, 2)), ("scaled_linear", "eps", (0,)),
     ("scaled_linear", "v", ()), ("cosine", "v", ())],
)  # fmt: skip
def test_digits_of_diffusers_are_ours(folder, schedule, prediction, levels):
    diffusers = pytest.importorskip("diffusers")
    save_digits(schedule, prediction, levels)
    export_digits()
    pipe = loaded()
    assert type(pipe) is diffusers.DDPMPipeline
    assert type(pipe.scheduler) is diffusers.DDPMScheduler
    # Cosine: x0_hat of the first step is 20,000 times an error of eps_hat, of which ours is made;
    # the smaller that step, the less of it is left.
    steps = 50 if schedule == "cosine" else 10
    want = ours(mnist_diffusion, digits, "dpm++", steps)
    assert_same(theirs(multistep(pipe, thresholding=True), steps), want)
    ddim = diffusers.DDIMPipeline.from_pretrained(folder)
    ddim.set_progress_bar_config(disable=True)
    want = ours(mnist_diffusion, digits, "ddim", steps)
    assert_same(theirs(ddim, steps, use_clipped_model_output=True), want)


@pytest.mark.parametrize(
    ("size", "channels", "schedule", "prediction", "levels"),
    [(SQUARE, 3, "cosine", "v", ()), (WIDE, 3, "cosine", "v", (2,)),
     (SQUARE, 1, "linear", "eps", ()), (WIDE, 1, "scaled_linear", "v", ()),
     (WIDE, 3, "linear", "eps", (0, 1))],
)  # fmt: skip
def test_faces_of_diffusers_are_ours(folder, modules, size, channels, schedule, prediction, levels):
    diffusers = pytest.importorskip("diffusers")
    save_faces(size, channels, schedule, prediction, levels)
    export_faces()
    square = size == SQUARE
    assert (folder / CODE).exists() != square
    pipe = loaded(trust_remote_code=not square)
    assert isinstance(pipe, diffusers.LDMPipeline) == square
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
    want = ours(latent_diffusion, faces, "ddim", 10)
    assert want.shape[1:] == (4 * size[0], 4 * size[1], channels)
    assert_same(theirs(pipe, 10), want)
    assert_same(theirs(multistep(pipe), 10), ours(latent_diffusion, faces, "dpm++", 10))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_of_that_name_are_ours(schedule):
    diffusers = pytest.importorskip("diffusers")
    mine = scheduler(schedule=schedule)
    theirs = diffusers.DDPMScheduler.from_config(scheduler_said(mine.config))
    torch.testing.assert_close(theirs.betas.double(), mine.beta, rtol=0, atol=3e-8)


def test_default_steps_are_ancestral_with_our_sigma(folder):
    """DDPM of an export is that of --sampler ddpm: fixed_large, and with T steps."""
    save_digits()
    export_digits()
    pipe = loaded()
    pipe.scheduler.set_timesteps(1000)
    mine = scheduler(clip_x0=True)
    xt, out, t = torch.randn(2, 1, 28, 28), torch.randn(2, 1, 28, 28), 500
    noise = torch.randn(xt.shape, generator=torch.Generator().manual_seed(1))
    got = pipe.scheduler.step(out, t, xt, generator=torch.Generator().manual_seed(1)).prev_sample
    torch.testing.assert_close(got, mine.step(xt, out, t, t - 1, noise), rtol=0, atol=1e-5)


def test_whitening_is_within_the_autoencoder():
    model = randomize(AutoencoderKL(AutoencoderConfig(3, 3, (8, 16), 1, 8)))
    white, x = folded(model, STATS), torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        got, want = white.encode(x), model.encode(x)
        torch.testing.assert_close(got.mean, STATS.whiten(want.mean), rtol=0, atol=1e-5)
        std = torch.tensor(STATS.std)[:, None, None]
        torch.testing.assert_close(got.logvar, want.logvar - 2 * std.log(), rtol=0, atol=1e-5)
        again = white.decode(got.mean)
        torch.testing.assert_close(again, model.decode(want.mean), rtol=0, atol=1e-5)


# ---- What is in the folder ----------------------------------------------------------------------


def test_weights_of_an_export_are_checkpoints(folder):
    """--show takes them, and --init and --encoder take their folders, with all that they say."""
    save_faces(WIDE, levels=(1,))
    export_faces()
    before = ours(latent_diffusion, faces, "ddim", 5)
    unet, autoencoder = folder / UNET, folder / AUTOENCODER
    path = str(unet / WEIGHTS)

    def exported(*flags):
        return parse_latent(["--show", path, "--encoder", str(autoencoder), *flags, *CPU[:2]])

    assert_same(ours(latent_diffusion, exported, "ddim", 5), before)
    model, facts = load_unet(unet)
    whole = load_model("d.safetensors", "UNet")
    assert fingerprint(model) == fingerprint(whole[0]) and model.config == whole[0].config
    assert facts == whole[1] | {
        "latent_stats": {"mean": [0.0] * 3, "std": [1.0] * 3},
        "autoencoder_id": encoder_id(load_autoencoder(autoencoder)[0]),
    }
    assert load_autoencoder(autoencoder)[1] == load_model("a.safetensors", "AutoencoderKL")[1]


def test_configs_say_all_that_diffusers_asks(folder):
    """Each field is one that its class knows."""
    diffusers = pytest.importorskip("diffusers")
    save_faces(SQUARE)
    export_faces()
    parts = json.loads((folder / INDEX).read_text())
    for part, (_, name) in ((k, v) for k, v in parts.items() if not k.startswith("_")):
        config = SCHEDULER if part == "scheduler" else "config.json"
        said = json.loads((folder / part / config).read_text())
        assert said.pop("_class_name") == name
        known = set()
        for cls in (getattr(diffusers, name), diffusers.DDPMScheduler):  # which --sampler ddpm is
            known |= set(cls._get_init_keys(cls))
        assert {k for k in said if not k.startswith("_")} <= known


def test_readme_says_what_the_checkpoints_say_and_all_of_it_is_text(folder):
    hostile = "<img src=x>|`a`\n# b [c](http://d) *e* {f}"
    card = {"terms": "non-commercial research only", hostile: hostile}
    save_faces(SQUARE, channels=1, epoch=21, card=card, init="/home/me/a", data_root="/home/me/b")
    export_faces()
    text = (folder / README).read_text()
    assert text.startswith("---\nlibrary_name: diffusers\n")
    before, code = text.split("say of themselves:\n\n")
    assert "Pictures of 32x32 by latent diffusion" in before
    assert all(line.startswith("    ") for line in code.splitlines())
    said = json.loads(code)
    assert said["denoiser"] | {"epoch": 21, "data": "faces", "card": card} == said["denoiser"]
    assert said["autoencoder"]["step"] == 7 and "/home" not in text
    facts = load_unet(folder / UNET)[1]
    assert facts["data_root"] == "data" and "init" not in facts


@pytest.mark.parametrize("what", ["digits", "square", "wide"])
def test_the_code_of_the_readme_makes_pictures(folder, modules, what):
    pytest.importorskip("diffusers")
    if what == "digits":
        save_digits()
        export_digits()
    else:
        save_faces(SQUARE if what == "square" else WIDE)
        export_faces()
    code = "\n".join(re.findall(r"```python\n(.*?)```", (folder / README).read_text(), re.DOTALL))
    assert code.count("images = ") == 1
    code = code.replace("path/to/this/folder", "out")
    code = code.replace("batch_size=4", "batch_size=4, num_inference_steps=2")
    names = {}
    exec(code, names)
    wide = {"digits": (28, 28), "square": (32, 32), "wide": (48, 32)}[what]
    assert [image.size for image in names["images"]] == [wide] * 4


# ---- Where it goes ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_is_interrupted_changes_nothing(folder, monkeypatch, error):
    def interrupted(*args):
        raise error

    save_digits()
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr("generation.export.unet_config", interrupted)
        export_digits()
    assert [p.name for p in folder.parent.iterdir()] == ["digits.safetensors"]


def test_a_folder_that_is_there_is_left_alone(folder):
    save_digits()
    export_digits()
    before = tree(folder)
    with pytest.raises(UserError, match="^--export: out is there already; remove it, or") as caught:
        export_digits()
    assert_one_line(caught.value, folder)
    assert tree(folder) == before


def test_where_it_can_not_go(folder):
    save_digits()
    folder.write_text("")
    with pytest.raises(UserError, match="^--export: out is there already"):
        export_digits()
    with pytest.raises(UserError, match="out cannot be made"):
        export_digits("out/deeper")
    folder.unlink()
    folder.mkdir()
    export_digits()  # an empty one is filled
    assert (folder / INDEX).exists()


@pytest.mark.parametrize("kind", ["classes", "attributes"])
def test_a_network_with_conditions_is_exported_as_one_that_is_asked_for_nothing(folder, kind):
    config = scheduler(clip_x0=True).config
    model = randomize(Denoiser(UNetConfig(1, (8, 16, 16), 1, 8, 0.1, (), **{kind: 2}))).eval()
    asked = {"kind": kind, "names": ["a", "b"]}
    save_denoiser("digits.safetensors", model, (28, 28), config, space="pixels", condition=asked)
    export_digits()
    unet = pytest.importorskip("diffusers").UNet2DModel.from_pretrained(folder / "unet").eval()
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(unet(x, t).sample, model(x, t), rtol=1e-4, atol=1e-5)
    again, facts = load_unet(folder / "unet" / WEIGHTS)
    assert again.config.classes == again.config.attributes == 0 and "condition" not in facts


def test_one_of_several_processes_exports(folder, monkeypatch):
    save_digits()
    monkeypatch.setattr("generation.export.is_first", lambda: False)
    export_digits()
    assert not folder.exists()


@pytest.mark.parametrize("flags", [["--seed", "3"], ["--sampler", "ddim"], ["--out", "x"]])
def test_flags_that_would_do_nothing_are_refused(folder, flags):
    for script in ("mnist_diffusion.py", "latent_diffusion.py"):
        arguments = "--show", "d.safetensors", "--export", "out", *flags
        status, _, err = run_script(script, *arguments, cwd=folder.parent, check=False)
        assert status == 2 and f"{flags[0]} does not go with --export" in err
    status, _, err = run_script(
        "mnist_diffusion.py", "--train", "--export", "out", cwd=folder.parent, check=False
    )
    assert status == 2 and "--export does not go with --train" in err

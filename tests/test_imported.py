"""Networks of diffusers: the same encoder, decoder and denoiser; each refusal in a sentence.

The folders are written as diffusers' save_pretrained writes them; where it is installed, by it.
"""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from fuzz import HOSTILE, NO_JSON, assert_one_line, damaged_trees, some
from helpers import (
    CPU,
    randomize,
    run_digits,
    run_encoder,
    run_latent,
    run_script,
    scheduler,
    write_images,
)
from safetensors.torch import load_file, save_file

from common.errors import UserError
from data.latents import MANIFEST, LatentDataset
from models.autoencoder import AutoencoderConfig, AutoencoderKL
from models.unet import UNet, UNetConfig
from training.checkpoint import check_fields, fingerprint, load_model, save_model
from training.first_stage import encoder_id
from training.foreign import CONFIG, SCHEDULER, WEIGHTS, scheduler_said, unet_said
from training.imported import load_autoencoder, load_unet

WIDTHS = 8, 8, 16, 16  # stride 8, as Stable Diffusion's


def described(attention=True, **other):
    """A config.json of diffusers."""
    return {
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.42.1", "act_fn": "silu",
        "block_out_channels": list(WIDTHS), "force_upcast": True, "in_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "latent_channels": 4,
        "latents_mean": None, "latents_std": None, "layers_per_block": 1,
        "mid_block_add_attention": attention, "norm_num_groups": 8, "out_channels": 3,
        "sample_size": 32, "scaling_factor": 0.18215, "shift_factor": None,
        "up_block_types": ["UpDecoderBlock2D"] * 4, "use_post_quant_conv": True,
        "use_quant_conv": True, **other,
    }  # fmt: skip


def network(attention=True):
    return randomize(AutoencoderKL(AutoencoderConfig(3, 4, WIDTHS, 1, 8, attention)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work beside vae/, such a folder with attention, and pictures/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / CONFIG).write_text(json.dumps(described()))
    save_file(network().state_dict(), tmp_path / "vae" / WEIGHTS, {"format": "pt"})
    write_images(tmp_path / "pictures", 30, (32, 32))
    return tmp_path / "vae"


# ---- What fits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", [False, True])
def test_what_diffusers_saves_encodes_and_decodes_alike(tmp_path, attention, dtype):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL(
        block_out_channels=WIDTHS, layers_per_block=2, latent_channels=4, norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        mid_block_add_attention=attention, shift_factor=0.1,
    )  # fmt: skip
    randomize(theirs).to(dtype).save_pretrained(tmp_path)
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path, torch_dtype=torch.float32).eval()
    ours, facts = load_autoencoder(tmp_path, ("data", "size"))
    assert facts == {} and not ours.training and ours.stride == 8
    assert ours.config == AutoencoderConfig(3, 4, WIDTHS, 2, 8, attention)
    x = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        got, want = ours.encode(x), theirs.encode(x).latent_dist
        decoded, decoded_theirs = ours.decode(got.mean), theirs.decode(got.mean).sample
    assert want.mean.std() > 1e-3 and decoded_theirs.std() > 1e-3
    assert got.mean.shape == (2, 4, 4, 6)
    for one, other in ((got.mean, want.mean), (got.logvar, want.logvar), (decoded, decoded_theirs)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_autoencoder_of_stable_diffusion_fits():
    """Its names and shapes, without memory for them."""
    diffusers = pytest.importorskip("diffusers")
    widths = 128, 256, 512, 512
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(
            block_out_channels=widths, layers_per_block=2, latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        ).state_dict()  # fmt: skip
        ours = AutoencoderKL(AutoencoderConfig(3, 4, widths, 2, 32, True)).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_names_of_earlier_versions_are_known(folder):
    """Those of attention, and a config that does not speak of it."""
    earlier = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors, config = {}, described()
    for name, tensor in load_file(folder / WEIGHTS).items():
        for now, then in earlier.items():
            name = name.replace(f".{now}.", f".{then}.")
        tensors[name] = tensor
    assert sum("proj_attn" in name for name in tensors) == 4
    save_file(tensors, folder / WEIGHTS)
    for name in ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv"):
        del config[name]
    (folder / CONFIG).write_text(json.dumps(config))
    assert fingerprint(load_autoencoder(folder)[0]) == fingerprint(network())


def test_checkpoints_are_taken_as_before(tmp_path):
    model = randomize(network(attention=False))
    save_model(tmp_path / "a.safetensors", model, {"data": "x", "size": [32, 32]})
    again, facts = load_autoencoder(tmp_path / "a.safetensors", ("data", "size"))
    assert fingerprint(again) == fingerprint(model) and facts["data"] == "x"
    with pytest.raises(UserError, match=r"no checkpoint .*; there are .*a.safetensors$"):
        load_autoencoder(tmp_path)


# ---- End to end ---------------------------------------------------------------------------------


def test_an_imported_autoencoder_is_cached_trained_on_shown_and_evaluated(folder, no_figures):
    of_images = ("--data", "pictures", "--size", "32x32")
    small = ("--channels", 8, "--batch", 4, "--steps", 2, "--name", "a")
    run_latent("--encoder", "vae", *of_images, *small)
    run_latent("--resume", "a", "--steps", 3)
    (path,) = folder.parent.glob("checkpoints/denoiser/a_epoch*_step3.safetensors")
    _, facts = load_model(path, "UNet")
    assert facts["shape"] == [4, 4, 4] and facts["autoencoder_id"] == encoder_id(network())
    assert (facts["data"], facts["size"]) == ("pictures", [32, 32])
    (manifest,) = folder.parent.glob(f"encoded_img/*/{MANIFEST}")
    assert '"autoencoder": "vae"' in manifest.read_text()
    # Whitened by what was measured: no scaling_factor is left in them.
    latents = LatentDataset(manifest.parent, "train")
    x0 = latents.draw(torch.arange(len(latents)))
    torch.testing.assert_close(x0.std(dim=(0, 2, 3)), torch.ones(4), rtol=0.1, atol=0)

    # It is not among the checkpoints, so it has to be given.
    flags = ("--num-images", 2, "--sampling-steps", 2, *CPU)
    show = ("latent_diffusion.py", "--show", path, *flags)
    status, _, err = run_script(*show, cwd=folder.parent, check=False)
    assert status == 2 and err.endswith(
        "pass it as --encoder, a checkpoint or a folder of diffusers\n"
    )
    run_script(*show, "--encoder", "vae", "--out", "one.png", cwd=folder.parent)
    evaluate = ("latent_diffusion.py", "--evaluate", path, *flags)
    run_script(*evaluate, "--encoder", "vae", "--out", "some", cwd=folder.parent)

    # Saved as a checkpoint, it is found.
    save_model("checkpoints/autoencoder/vae.safetensors", load_autoencoder("vae")[0],
               {"data": "pictures", "size": [32, 32]})  # fmt: skip
    run_script(*show, "--out", "other.png", cwd=folder.parent)
    one, other = (folder.with_name(f"{name}.png").read_bytes() for name in ("one", "other"))
    assert one == other


def test_reconstructions_of_an_imported_autoencoder_are_measured(folder, no_figures):
    with pytest.raises(UserError, match="^vae does not say its images; give --data and --size$"):
        run_encoder("--evaluate", "vae")
    with pytest.raises(UserError, match="^vae does not say its images; give --size$"):
        run_encoder("--evaluate", "vae", "--data", "pictures")
    run_encoder("--evaluate", "vae", "--data", "pictures", "--size", "32x32")
    (line,) = (folder.parent / "fig/autoencoder/evaluation.jsonl").read_text().splitlines()
    assert json.loads(line)["autoencoder"] == "vae"
    with pytest.raises(UserError, match="multiples of 8, .* the nearest that works is 32x32"):
        run_encoder("--evaluate", "vae", "--data", "pictures", "--size", "32x36")


@pytest.mark.parametrize(("flags", "text"), [
    ((), "vae does not say its images; give --data and --size"),
    (("--data", "pictures"), "vae does not say its images; give --size"),
    (("--data", "pictures", "--size", "32x48"), "multiples of 32, .*nearest that works is 32x64"),
])  # fmt: skip
def test_an_imported_autoencoder_needs_images_of_a_size_that_divides(folder, flags, text):
    with pytest.raises(UserError, match=text):
        run_latent("--encoder", "vae", *flags, "--steps", 1)
    assert not (folder.parent / "encoded_img").exists()


# ---- What does not fit --------------------------------------------------------------------------


def refused(folder, text):
    with pytest.raises(UserError, match=text) as caught:
        load_autoencoder(folder)
    assert_one_line(caught.value, folder)


@pytest.mark.parametrize(("change", "text"), [
    ({"_class_name": "AsymmetricAutoencoderKL"}, "_class_name is Asym.*, only AutoencoderKL"),
    ({"down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]},
     "down_block_types is .*AttnDownEncoderBlock2D.*, only .* is taken"),
    ({"up_block_types": ["UpDecoderBlock2D"] * 3}, "up_block_types is .*, only .* is taken"),
    ({"act_fn": "relu"}, "act_fn is relu, only silu is taken"),
    ({"out_channels": 4}, "out_channels is 4, only 3 is taken"),
    ({"use_quant_conv": False}, "use_quant_conv is False, only True is taken"),
    ({"use_post_quant_conv": False}, "use_post_quant_conv is False, only True is taken"),
    ({"latent_channels": 8}, "size mismatch for encoder.conv_out.weight"),
    ({"layers_per_block": 2}, "Missing key.*resnets.1"),
    ({"layers_per_block": 10**9}, "a config of more blocks than"),
    ({"norm_num_groups": 3}, "widths must be multiples of 3"),
    ({"block_out_channels": [8, 8, 16, 32]}, "Missing key.*conv_shortcut"),
    ({"block_out_channels": "8"}, "down_block_types is"),
    ({"mid_block_add_attention": False}, "Unexpected key.*attentions.0"),
])  # fmt: skip
def test_other_configs_are_refused(folder, change, text):
    (folder / CONFIG).write_text(json.dumps(described(**change)))
    refused(folder, text)


def test_configs_may_say_anything(folder):
    """What is loaded is what was saved."""
    expected = fingerprint(network())
    for found in some([*damaged_trees(described()), *HOSTILE]):
        text = found if isinstance(found, bytes) else json.dumps(found).encode()
        (folder / CONFIG).write_bytes(text)
        try:
            assert fingerprint(load_autoencoder(folder)[0]) == expected
        except UserError as error:
            assert_one_line(error, folder)


@pytest.mark.parametrize(("change", "text"), [
    (lambda t: t.pop("decoder.conv_in.bias"), "Missing key.*decoder.conv_in.bias"),
    (lambda t: t.update({"decoder.conv_in.bias": torch.zeros(9)}), "size mismatch for decoder.co"),
    (lambda t: t.update({"loss.logvar": torch.zeros(1)}), "Unexpected key.*loss.logvar"),
    (lambda t: t["decoder.conv_in.bias"].fill_(torch.nan), "decoder.conv_in.bias is not finite"),
])  # fmt: skip
def test_other_tensors_are_refused(folder, change, text):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    refused(folder, text)


def test_a_whole_pipeline_is_told_which_folder_to_give(folder):
    (folder.parent / "model_index.json").write_text("{}")
    refused(folder.parent, "or a whole pipeline; give that of its folders which has config.json")


def test_half_a_folder_is_refused(folder):
    shutil.copytree(folder, folder.parent / "whole")
    (folder / CONFIG).write_text("{")
    refused(folder, "config.json is no config")
    (folder / CONFIG).write_text("[1]")
    refused(folder, "config.json is no config")
    (folder / CONFIG).unlink()
    refused(folder, "vae is half a model of diffusers")
    half = folder.parent / "whole"
    content = (half / WEIGHTS).read_bytes()
    (half / WEIGHTS).write_bytes(content[: len(content) // 2])
    refused(half, "truncated or no safetensors")
    (half / WEIGHTS).unlink()
    refused(half, "whole is half a model of diffusers")


# ---- Denoisers ----------------------------------------------------------------------------------

UNET = UNetConfig(3, (8, 16, 16), 1, 4, 0.0, (1,))


def said_of_unet(**other):
    """A config.json of diffusers' UNet2DModel."""
    return {
        **unet_said(UNET.channels, 3, UNET.attention_levels),
        "block_out_channels": list(UNET.channels), "dropout": 0.0, "in_channels": 3,
        "layers_per_block": 1, "norm_num_groups": 4, "num_train_timesteps": None,
        "sample_size": 8, **other,
    }  # fmt: skip


def denoiser():
    return randomize(UNet(UNET))


@pytest.fixture
def unet(tmp_path):
    """pipe/unet, such a folder."""
    folder = tmp_path / "pipe" / "unet"
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(said_of_unet()))
    save_file(denoiser().state_dict(), folder / WEIGHTS, {"format": "pt"})
    return folder


def put_scheduler(unet, **other):
    folder = unet.parent / "scheduler"
    folder.mkdir(exist_ok=True)
    said = {**scheduler_said(scheduler(schedule="cosine", prediction="v").config), **other}
    (folder / SCHEDULER).write_text(json.dumps(said))


def refused_unet(folder, text):
    with pytest.raises(UserError, match=text) as caught:
        load_unet(folder)
    assert_one_line(caught.value, folder.parent)


@pytest.mark.parametrize(
    ("channels", "attention", "size", "dtype"),
    [((8, 16, 16), (), 8, torch.float32), ((8, 16), (0,), (8, 12), torch.float16),
     ((8, 16, 24), (1, 2), None, torch.bfloat16)],
)  # fmt: skip
def test_a_unet_that_diffusers_saves_denoises_alike(tmp_path, channels, attention, size, dtype):
    diffusers = pytest.importorskip("diffusers")
    said = unet_said(channels, 3, attention)
    known = {k: v for k, v in said.items() if not k.startswith("_")}
    theirs = diffusers.UNet2DModel(
        **known, in_channels=3, block_out_channels=channels, layers_per_block=2, norm_num_groups=4,
        sample_size=size, dropout=0.1,
    )  # fmt: skip
    randomize(theirs).to(dtype).save_pretrained(tmp_path)
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path, torch_dtype=torch.float32).eval()
    ours, facts = load_unet(tmp_path, ("shape",))
    assert ours.config == UNetConfig(3, channels, 2, 4, 0.1, attention) and not ours.training
    height, width = size if type(size) is tuple else (size, size)
    assert facts == ({"shape": [3, height, width]} if size else {})
    x, t = torch.randn(2, 3, 8, 12), torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.equal(ours(x, t), theirs(x, t).sample)


def test_checkpoints_of_denoisers_are_taken_as_before(tmp_path):
    save_model(tmp_path / "a.safetensors", denoiser(), {"shape": [3, 8, 8]})
    again, facts = load_unet(tmp_path / "a.safetensors", ("shape",))
    assert fingerprint(again) == fingerprint(denoiser()) and facts == {"shape": [3, 8, 8]}


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_the_scheduler_beside_a_unet_is_told(unet, schedule, prediction):
    assert "scheduler" not in load_unet(unet)[1]
    config = scheduler(250, clip_x0=True, schedule=schedule, prediction=prediction).config
    put_scheduler(unet, **scheduler_said(config))
    assert load_unet(unet)[1] == {"shape": [3, 8, 8], "scheduler": asdict(config)}


@pytest.mark.parametrize(("change", "text"), [
    ({"prediction_type": "sample"}, "prediction_type is sample, only epsilon, v_prediction"),
    ({"beta_schedule": "sigmoid"}, "beta_schedule is sigmoid, only linear, scaled_linear, squared"),
    ({"beta_schedule": ["linear"]}, "beta_schedule is .*, only linear"),
    ({"beta_schedule": "linear", "beta_end": 0.012}, "beta_end is 0.012, only 0.02 is taken"),
    ({"trained_betas": [0.1]}, "trained_betas is .0.1., only None is taken"),
    ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True, only False"),
])  # fmt: skip
def test_a_scheduler_that_is_none_of_ours_is_refused(unet, change, text):
    put_scheduler(unet, **change)
    refused_unet(unet, f"{SCHEDULER}: {text}")
    put_scheduler(unet, num_train_timesteps=0)
    refused_unet(unet, f"{SCHEDULER} is damaged .its scheduler is")


@pytest.mark.parametrize(("change", "text"), [
    ({"_class_name": "UNet2DConditionModel"}, "_class_name is UNet2DCond.*, only UNet2DModel is"),
    ({"down_block_types": ["ResnetDownsampleBlock2D"] * 3}, "down_block_types is .*ResnetDown.*"),
    ({"down_block_types": ["DownBlock2D"] * 2}, "down_block_types is "),
    ({"up_block_types": ["UpBlock2D"] * 3}, "up_block_types is .*, only .*AttnUpBlock2D.* is"),
    ({"add_attention": True}, "add_attention is True, only False is taken"),
    ({"attention_head_dim": 16}, "attention_head_dim is 16, only 8 is taken"),
    ({"flip_sin_to_cos": False}, "flip_sin_to_cos is False, only True is taken"),
    ({"freq_shift": 1}, "freq_shift is 1, only 0 is taken"),
    ({"downsample_padding": 0}, "downsample_padding is 0, only 1 is taken"),
    ({"norm_eps": 1e-6}, "norm_eps is 1e-06, only 1e-05 is taken"),
    ({"num_class_embeds": 10}, "num_class_embeds is 10, only None is taken"),
    ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is scale_shift"),
    ({"time_embedding_dim": 8}, "time_embedding_dim is 8, only None is taken"),
    ({"out_channels": 6}, "out_channels is 6, only 3 is taken"),
    ({"layers_per_block": 2}, "Missing key.*resnets.1"),
    ({"norm_num_groups": 3}, "widths must be multiples of 3"),
    ({"dropout": "x"}, "does not fit this version of the code"),
])  # fmt: skip
def test_other_unets_are_refused(unet, change, text):
    (unet / CONFIG).write_text(json.dumps(said_of_unet(**change)))
    refused_unet(unet, text)


def test_configs_of_unets_and_schedulers_may_say_anything(unet):
    """What is loaded is what was saved."""
    config, expected = (unet / CONFIG).read_bytes(), fingerprint(denoiser())
    put_scheduler(unet)
    beside = unet.parent / "scheduler" / SCHEDULER
    schedule = beside.read_bytes()
    for path, whole in ((unet / CONFIG, config), (beside, schedule)):
        for found in some([*damaged_trees(json.loads(whole)), *HOSTILE, *NO_JSON]):
            path.write_bytes(found if isinstance(found, bytes) else json.dumps(found).encode())
            try:
                model, facts = load_unet(unet)
                assert fingerprint(model) == expected
                check_fields(unet, facts)
            except UserError as error:
                assert_one_line(error, unet.parent)
        path.write_bytes(whole)


def test_half_a_folder_of_a_unet_is_refused(unet):
    content = (unet / WEIGHTS).read_bytes()
    (unet / WEIGHTS).write_bytes(content[: len(content) // 2])
    refused_unet(unet, "truncated or no safetensors")
    (unet / WEIGHTS).unlink()
    refused_unet(unet, "unet is half a model of diffusers")
    (unet / WEIGHTS).write_bytes(content)
    (unet / CONFIG).unlink()
    refused_unet(unet, "unet is half a model of diffusers")


def test_a_unet_of_diffusers_is_gone_on_with(folder, unet, no_figures):
    """Its widths are not in the proportions of --channels; its schedule is that beside it."""
    model = randomize(UNet(UNetConfig(4, (8, 16, 24), 2, 4, 0.0, (2,))))
    said = {**said_of_unet(), **unet_said((8, 16, 24), 4, (2,))}
    said |= {"block_out_channels": [8, 16, 24], "in_channels": 4, "layers_per_block": 2}
    (unet / CONFIG).write_text(json.dumps(said))
    save_file(model.state_dict(), unet / WEIGHTS, {"format": "pt"})
    put_scheduler(unet, **scheduler_said(scheduler(schedule="scaled_linear").config))
    of_images = ("--data", "pictures", "--size", "32x32")
    small = ("--batch", 4, "--steps", 1, "--lr", 1e-9, "--name", "a")
    with pytest.raises(UserError, match="does not say its autoencoder; give --encoder"):
        run_latent("--init", unet, *of_images, *small)
    run_latent("--init", unet, "--encoder", "vae", *of_images, *small)
    run_latent("--resume", "a", "--steps", 2)
    path = max(folder.parent.glob("checkpoints/denoiser/a_epoch*.safetensors"))
    again, facts = load_model(path, "UNet")
    assert again.config == model.config
    assert facts["scheduler"]["schedule"] == "scaled_linear"
    assert facts["scheduler"]["prediction"] == "eps" and not facts["scheduler"]["clip_x0"]
    for name, weight in model.state_dict().items():  # at that rate they hardly moved
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=1e-6)

    put_scheduler(unet, **scheduler_said(scheduler(250).config))
    with pytest.raises(UserError, match="has 250 steps, only 1000 are taken"):
        run_latent("--init", unet, "--encoder", "vae", *of_images, *small[:-1], "b")
    with pytest.raises(UserError, match="makes pictures of .4, 28, 28., but digits are"):
        shutil.rmtree(unet.parent / "scheduler")
        run_digits("--init", unet, *small[:-1], "b")

"""A denoiser as a folder of diffusers: DiffusionPipeline.from_pretrained(folder) loads it, and the
same noise makes the same pictures. diffusers itself is not needed to write it.

Its files of weights are checkpoints of this project, too. c: latent channels.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import write_atomic, write_folder
from common.launch import is_first
from data.latents import LatentStats
from generation.model_card import model_card
from generation.pipeline import Pipeline
from generation.release import for_others
from models.autoencoder import AutoencoderKL
from models.unet import UNet
from training.checkpoint import load_facts, save_model
from training.codec import LatentCodec
from training.first_stage import encoder_id
from training.foreign import (
    AUTOENCODER_FIELDS,
    CONFIG,
    SCHEDULER,
    UNET_FIELDS,
    WEIGHTS,
    autoencoder_said,
    scheduler_said,
    unet_said,
)

VERSION = "0.42.1"  # of diffusers, with which the tests compare
INDEX, CARD, CODE = "model_index.json", "README.md", "pipeline.py"
UNET, AUTOENCODER = "unet", "vqvae"  # as LDMPipeline has them
FILES = {
    INDEX, CARD, CODE, f"scheduler/{SCHEDULER}",
    *(f"{part}/{name}" for part in (UNET, AUTOENCODER) for name in (CONFIG, WEIGHTS)),
}  # fmt: skip
LATENT_PIPELINE = '''\
"""Latent diffusion for pictures that are not square; diffusers' LDMPipeline makes square ones."""

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class LatentPipeline(DiffusionPipeline):
    """unet makes latents of its sample_size (h, w) of noise, vqvae decodes them."""

    def __init__(self, vqvae, unet, scheduler):
        super().__init__()
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self, batch_size=1, generator=None, num_inference_steps=50, output_type="pil",
        return_dict=True,
    ):
        """images: PIL's; or, with output_type "np", an array (B, H, W, C) in [0, 1]."""
        shape = batch_size, self.unet.config.in_channels, *self.unet.config.sample_size
        x = randn_tensor(shape, generator, self._execution_device, self.unet.dtype)
        x = x * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            out = self.unet(self.scheduler.scale_model_input(x, t), t).sample
            x = self.scheduler.step(out, t, x).prev_sample
        images = (self.vqvae.decode(x).sample / 2 + 0.5).clamp(0, 1)
        images = images.float().cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
'''


def export(
    pipeline: Pipeline, folder: Path, source: str, facts: Mapping[str, Any],
    trained_on: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write the folder as a whole, or not at all; by the first of several processes.

    source: the denoiser's checkpoint; facts: what it says; trained_on: what its autoencoder's says.
    Raises UserError where something is in the folder that is no earlier export, and for a denoiser
    with conditions, which no pipeline of diffusers asks for.
    """
    if not is_first():
        return
    if pipeline.model.config.classes or pipeline.model.config.attributes:
        raise UserError(
            f"--export: {source} was trained with --condition, which no pipeline of diffusers asks "
            "for; docs/python.md says how UNet2DModel loads it"
        )
    check_free(folder)
    write_folder(folder, lambda new: _fill(new, pipeline, source, facts, trained_on or {}))
    print(f"saved {folder}")


def check_free(folder: Path) -> None:
    """Raise UserError unless the folder is absent, empty or an export that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--export {folder} is a file, not a folder; choose another name")
    files = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    if not folder.exists() or (first := next(files, None)) is None:
        return
    try:
        load_facts(folder / UNET / WEIGHTS)
        foreign = next((name for name in (first, *files) if name not in FILES), None)
    except UserError:
        foreign = first
    if foreign:
        raise UserError(
            f"--export: {folder / foreign} is there, and was not exported here; choose another name"
        )


def _fill(
    folder: Path, pipeline: Pipeline, source: str, facts: Mapping[str, Any],
    trained_on: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write all files of an export."""
    unet, codec, (_, height, width) = pipeline.model, pipeline.codec, pipeline.shape
    parts = {"scheduler": "DDPMScheduler", UNET: "UNet2DModel"}
    kind: Any = "DDPMPipeline"
    facts = for_others(facts)

    # Of latents: the whitening is within the autoencoder, so LatentStats are those of white ones.
    if isinstance(codec, LatentCodec):
        parts |= {"scheduler": "DDIMScheduler", AUTOENCODER: "AutoencoderKL"}
        kind = "LDMPipeline" if height == width else [Path(CODE).stem, "LatentPipeline"]
        autoencoder = folded(codec.autoencoder, codec.stats)
        c = len(codec.stats.mean)
        facts["latent_stats"] = {"mean": [0.0] * c, "std": [1.0] * c}
        facts["autoencoder_id"] = encoder_id(autoencoder)
        size = max(height, width) * autoencoder.stride
        _write_json(folder / AUTOENCODER / CONFIG, autoencoder_config(autoencoder, size))
        save_model(folder / AUTOENCODER / WEIGHTS, autoencoder, for_others(trained_on))
    if isinstance(kind, list):
        _write_text(folder / CODE, LATENT_PIPELINE)

    # The rest is the same for pixels.
    _write_json(folder / UNET / CONFIG, unet_config(unet, (height, width)))
    save_model(folder / UNET / WEIGHTS, unet, facts)
    schedule = {"_class_name": parts["scheduler"], **scheduler_said(pipeline.scheduler.config)}
    _write_json(folder / "scheduler" / SCHEDULER, schedule)
    index = {"_class_name": kind} | {part: ["diffusers", name] for part, name in parts.items()}
    _write_json(folder / INDEX, index)
    _write_text(folder / CARD, model_card(pipeline, source, facts, trained_on))


@torch.no_grad()
def folded(autoencoder: AutoencoderKL, stats: LatentStats) -> AutoencoderKL:
    """An autoencoder of whitened latents, on the CPU: what it encodes has mean 0 and std 1 where
    stats were measured, and it decodes that to the same pictures. Both 1x1 convolutions are affine,
    as whitening is, so it goes into them."""
    model = deepcopy(autoencoder).cpu()
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (stats.mean, stats.std))
    c, quant, post_quant = len(mean), model.quant_conv, model.post_quant_conv
    assert quant.bias is not None and post_quant.bias is not None

    # (mean - stats.mean) / stats.std, and a variance that is divided by stats.std^2.
    weight, bias = quant.weight.double(), quant.bias.double()  # (2c, 2c, 1, 1), (2c,)
    weight[:c] /= std[:, None, None, None]
    bias[:c] = (bias[:c] - mean) / std
    bias[c:] -= 2 * std.log()
    quant.weight.copy_(weight)
    quant.bias.copy_(bias)

    # z * stats.std + stats.mean.
    weight = post_quant.weight.double()  # (c, c, 1, 1)
    post_quant.bias.copy_(post_quant.bias.double() + weight[:, :, 0, 0] @ mean)
    post_quant.weight.copy_(weight * std[:, None, None])
    return model


def autoencoder_config(model: AutoencoderKL, size: int) -> dict[str, Any]:
    """In diffusers' words; size: of the longer side of a picture, beyond which it may use tiles."""
    config = model.config
    return {
        **autoencoder_said(len(config.channels), config.image_channels),
        **{theirs: getattr(config, ours) for ours, theirs in AUTOENCODER_FIELDS.items()},
        "mid_block_add_attention": config.attention,
        "sample_size": size,
        "scaling_factor": 1.0,
    }


def unet_config(model: UNet, size: tuple[int, int]) -> dict[str, Any]:
    """In diffusers' words; size: (h, w) of x0."""
    config = model.config
    return {
        **unet_said(config.channels, config.in_channels, config.attention_levels),
        **{theirs: getattr(config, ours) for ours, theirs in UNET_FIELDS.items()},
        "sample_size": size[0] if size[0] == size[1] else list(size),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """As diffusers writes its configs."""
    about = {"_diffusers_version": VERSION, **content}
    _write_text(path, json.dumps(about, indent=2, sort_keys=True) + "\n")


def _write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

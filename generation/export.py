"""A denoiser as a folder of diffusers: DiffusionPipeline.from_pretrained(folder) loads it, and the
same noise makes the same pictures. diffusers itself is not needed to write it.

Its files of weights are checkpoints of this project, too. c: latent channels.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from textwrap import indent
from typing import Any

import torch

from common.errors import UserError
from common.files import write_folder
from common.launch import is_first
from data.latents import LatentStats
from generation.pipeline import Pipeline
from generation.release import CARD, for_others
from models.autoencoder import AutoencoderKL
from models.unet import UNet
from training.beginning import without_labels
from training.checkpoint import save_model
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
INDEX, README, CODE = "model_index.json", "README.md", "pipeline.py"
UNET, AUTOENCODER = "unet", "vqvae"  # as LDMPipeline has them
TOLD = "data", "size", "epoch", "step", "valid_loss", "scheduler", CARD  # facts that README has
README_TEXT = """\
---
library_name: diffusers
pipeline_tag: unconditional-image-generation
---

# Pictures of {height}x{width} by {what}

Exported by "Latent diffusion (from scratch)". To make pictures:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({call})
images = pipe(batch_size=4).images  # a list of PIL images
```

What its checkpoints say of themselves:

{told}
"""
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
    def __call__(self, batch_size=1, generator=None, num_inference_steps=50, output_type="pil"):
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
        return ImagePipelineOutput(
            images=self.numpy_to_pil(images) if output_type == "pil" else images
        )
'''


def export(
    pipeline: Pipeline, folder: Path, source: str, facts: Mapping[str, Any],
    trained_on: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write the folder as a whole, or not at all; by the first of several processes.

    source: the denoiser's checkpoint; facts: what it says; trained_on: what its autoencoder's says.
    A denoiser with conditions is written without: no pipeline of diffusers asks for anything.
    Raises UserError where the folder is there already, unless it is empty.
    """
    if not is_first():
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--export: {folder} is there already; remove it, or choose another name")
    write_folder(folder, lambda new: _fill(new, pipeline, facts, trained_on or {}))
    print(f"saved {folder}")


def _fill(
    folder: Path, pipeline: Pipeline, facts: Mapping[str, Any], trained_on: Mapping[str, Any]
) -> None:
    """Write all files of an export."""
    unet, codec, (_, height, width) = pipeline.model, pipeline.codec, pipeline.shape
    if "condition" in facts:
        unet = without_labels(unet)
        facts = {key: fact for key, fact in facts.items() if key != "condition"}
    parts = {"scheduler": "DDPMScheduler", UNET: "UNet2DModel"}
    kind: Any = "DDPMPipeline"
    facts = for_others(facts)
    told = {"denoiser": facts}
    what, stride, call = "a diffusion model", 1, '"path/to/this/folder"'

    # Of latents: the whitening is within the autoencoder, so LatentStats are those of white ones.
    if isinstance(codec, LatentCodec):
        parts |= {"scheduler": "DDIMScheduler", AUTOENCODER: "AutoencoderKL"}
        kind, what = "LDMPipeline", "latent diffusion"
        autoencoder, stride = folded(codec.autoencoder, codec.stats), codec.autoencoder.stride
        c = len(codec.stats.mean)
        facts["latent_stats"] = {"mean": [0.0] * c, "std": [1.0] * c}
        facts["autoencoder_id"] = encoder_id(autoencoder)
        told["autoencoder"] = for_others(trained_on)
        save_model(folder / AUTOENCODER / WEIGHTS, autoencoder, told["autoencoder"])
        config = autoencoder_config(autoencoder, max(height, width) * stride)
        _write_json(folder / AUTOENCODER / CONFIG, config)
        if height != width:
            kind, call = [Path(CODE).stem, "LatentPipeline"], f"{call}, trust_remote_code=True"
            (folder / CODE).write_text(LATENT_PIPELINE)

    # The rest is the same for pixels.
    save_model(folder / UNET / WEIGHTS, unet, facts)
    _write_json(folder / UNET / CONFIG, unet_config(unet, (height, width)))
    schedule = {"_class_name": parts["scheduler"], **scheduler_said(pipeline.scheduler.config)}
    _write_json(folder / "scheduler" / SCHEDULER, schedule)
    index = {"_class_name": kind} | {part: ["diffusers", name] for part, name in parts.items()}
    _write_json(folder / INDEX, index)

    # What the checkpoints say stands in a block of JSON, where nothing means more than itself.
    chosen = {name: {k: known[k] for k in TOLD if k in known} for name, known in told.items()}
    text = README_TEXT.format(
        height=height * stride, width=width * stride, what=what, call=call,
        told=indent(json.dumps(chosen, indent=2), "    "),
    )  # fmt: skip
    (folder / README).write_text(text)


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
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")

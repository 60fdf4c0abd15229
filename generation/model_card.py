"""The README.md of an export: what the checkpoints say of themselves, and how to make pictures."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import short
from generation.pipeline import Pipeline
from generation.release import CARD
from training.codec import LatentCodec
from training.progress import parameters

SAID = {"data": "trained on", "epoch": "epochs", "step": "steps"}  # facts: what they are called
PIXELS = "A diffusion model: it makes pictures of noise, step by step."
LATENTS = (
    "A latent diffusion model: its denoiser makes latents of noise, its decoder pictures of them."
)
HEAD = """\
---
library_name: diffusers
pipeline_tag: unconditional-image-generation
---

# {name}

{what} Exported by
"Latent diffusion (from scratch)".

| | |
| --- | --- |
{table}

## Make pictures

```python
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

pipe = DiffusionPipeline.from_pretrained({call})
generator = [torch.Generator().manual_seed(seed) for seed in range(4)]
images = pipe(batch_size=4, generator=generator).images  # a list of PIL images
```
"""
FASTER_PIXELS = """
That takes {steps} calls of the network. This takes 20, with DPM-Solver++:

```python
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, thresholding={clip})
images = pipe(batch_size=4, generator=generator, num_inference_steps=20).images
```

To sample by DDIM, load the folder with `DDIMPipeline`{clipped}.
"""
FASTER_LATENTS = """
That is DDIM in 50 steps. Other numbers should divide {steps}. This takes 20 steps of DPM-Solver++:

```python
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
images = pipe(batch_size=4, generator=generator, num_inference_steps=20).images
```
"""


def model_card(
    pipeline: Pipeline, source: str, facts: Mapping[str, Any], trained_on: Mapping[str, Any]
) -> str:
    """Markdown, with the metadata that Hugging Face reads. source: the denoiser's checkpoint;
    facts: what it says; trained_on: what its autoencoder's says. Whatever they say is text in it.
    """
    # What it is.
    codec, config = pipeline.codec, pipeline.scheduler.config
    channels, height, width = pipeline.shape
    rows: dict[str, Any] = {"denoiser": f"UNet2DModel, {parameters(pipeline.model)}"}
    what, call, faster = PIXELS, '"path/to/this/folder"', FASTER_PIXELS
    if isinstance(codec, LatentCodec):
        call += "" if height == width else ", trust_remote_code=True"
        what, faster = LATENTS, FASTER_LATENTS
        rows["latents"] = f"{channels} channels of {height}x{width}"
        rows["autoencoder"] = f"AutoencoderKL, {parameters(codec.autoencoder)}"
        channels, stride = codec.autoencoder.config.image_channels, codec.autoencoder.stride
        height, width = height * stride, width * stride
    rows = {"pictures": f"{height}x{width}, {'grey' if channels == 1 else 'RGB'}"} | rows
    rows["the denoiser predicts"] = config.prediction
    rows["noise schedule"] = f"{config.schedule}, {config.num_steps} steps"
    rows |= _said("denoiser", facts) | _said("autoencoder", trained_on)

    # What to do with it.
    clipped = ", and call it with `use_clipped_model_output=True`" if config.clip_x0 else ""
    table = "\n".join(f"| {_plain(key)} | {_plain(value)} |" for key, value in rows.items())
    text = HEAD.format(name=_plain(Path(source).stem), what=what, table=table, call=call)
    return text + faster.format(steps=config.num_steps, clip=config.clip_x0, clipped=clipped)


def _said(network: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of what a checkpoint says of its training. Of a path to the data, only the last part."""
    found = {said: facts[name] for name, said in SAID.items() if facts.get(name) is not None}
    if "trained on" in found:
        found["trained on"] = Path(str(found["trained on"])).name
    if type(loss := facts.get("valid_loss")) is float:  # an autoencoder's is its PSNR, negative
        denoises = network == "denoiser"
        found["validation loss" if denoises else "validation PSNR"] = (
            f"{loss:.4g}" if denoises else f"{-loss:.2f} dB"
        )
    card = facts.get(CARD)
    found |= card if type(card) is dict else {}
    return {f"{network}: {key}": value for key, value in found.items()}


def _plain(value: object) -> str:
    """A value as text that means nothing else in Markdown, nor in a table of it."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~!&$])", r"\\\1", short(value, 300))

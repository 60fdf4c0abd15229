"""First stages that somebody else trained: folders of diffusers' AutoencoderKL, such as Stable
Diffusion's. diffusers itself is not needed.

Its scaling_factor and shift_factor are not applied: latents are whitened by what is measured of
them (data/latents.py), which undoes any scale and shift.
"""

import re
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError, short
from common.files import is_there, open_regular, parse_json, reading
from data.tensor_files import TensorFile
from models.autoencoder import AutoencoderKL
from training.checkpoint import load_model, network_of

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
LARGEST_CONFIG = 2**20  # bytes
FIELDS = {  # ours: diffusers'
    "image_channels": "in_channels",
    "latent_channels": "latent_channels",
    "channels": "block_out_channels",
    "blocks": "layers_per_block",
    "groups": "norm_num_groups",
}
FLOATS = torch.float16, torch.bfloat16, torch.float32
EARLIER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # attention's


def load_autoencoder(
    path: str | Path, needed: Collection[str] = ()
) -> tuple[AutoencoderKL, dict[str, Any]]:
    """(autoencoder in eval mode on the CPU, in float32; facts) of a checkpoint, as load_model has
    it, or of a folder of diffusers, which has no facts.

    Raises UserError like load_model, and where half of the folder is missing or anything in it is
    not what models/autoencoder.py can be.
    """
    folder = Path(path)
    missing = [name for name in (CONFIG, WEIGHTS) if not is_there(folder / name)]
    if len(missing) == 2 and is_there(folder / "vae" / CONFIG):
        raise UserError(f"{path} is a whole pipeline of diffusers; give {folder / 'vae'}")
    if len(missing) == 2:
        return load_model(path, "AutoencoderKL", needed)
    if missing:
        raise UserError(f"{path} is half a folder of diffusers: {missing[0]} is missing; add it")

    # Checked before anything is built, as a checkpoint is.
    config = _config(folder / CONFIG)
    with closing(TensorFile(folder / WEIGHTS)) as file:
        entries = {
            _today(name): entry._replace(dtype=torch.float32) if entry.dtype in FLOATS else entry
            for name, entry in file.entries.items()
        }
        cls, known = network_of(path, entries, config, "AutoencoderKL")
        tensors = {_today(name): tensor.float() for name, tensor in file.read().items()}
    model: Any = cls(known)
    model.load_state_dict(tensors)
    return model.eval(), {}


def check_images_said(path: str | Path, facts: dict[str, Any], given: Collection[str]) -> None:
    """Raise UserError where neither an autoencoder's facts nor the flags that were given say which
    images, and in which size."""
    if missing := [f"--{name}" for name in ("data", "size") if name not in {*facts, *given}]:
        raise UserError(f"{path} does not say its images; give {' and '.join(missing)}")


def _config(path: Path) -> dict[str, Any]:
    """diffusers' config as ours; UserError names what models/autoencoder.py cannot be."""
    with reading(path), open_regular(path) as file:
        text = file.read(LARGEST_CONFIG)
    try:
        found = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {short(str(error))}; copy it anew") from None
    if type(found) is not dict:
        raise UserError(f"{path} is no table; copy it anew")

    # One kind of blocks, and both 1x1 convolutions.
    widths = found.get("block_out_channels")
    levels = len(widths) if type(widths) is list else 1
    wanted = {
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "act_fn": "silu",
        "out_channels": found.get("in_channels"),
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    }
    for name, value in wanted.items():
        if found.get(name, value) != value:
            raise UserError(f"{path}: {name} is {short(found[name])}, only {short(value)} is taken")
    config = {ours: found[theirs] for ours, theirs in FIELDS.items() if theirs in found}
    return {**config, "attention": found.get("mid_block_add_attention", True)}


def _today(name: str) -> str:
    """The name of a tensor; files of 2022 and 2023 call an attention's layers otherwise."""
    return re.sub(
        rf"(?<=\.attentions\.0\.)({'|'.join(EARLIER)})(?=\.)", lambda m: EARLIER[m[0]], name
    )

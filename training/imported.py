"""Networks that somebody else trained: folders of diffusers' AutoencoderKL, such as Stable
Diffusion's, and of its UNet2DModel. diffusers itself is not needed.

An autoencoder's scaling_factor and shift_factor are not applied: latents are whitened by what is
measured of them (data/latents.py), which undoes any scale and shift.
"""

import re
from collections.abc import Callable, Collection
from contextlib import closing
from pathlib import Path
from typing import Any

from common.errors import UserError, short
from common.files import is_there, parse_json, reading
from data.tensor_files import TensorFile
from models.autoencoder import AutoencoderKL
from models.unet import UNet
from training.checkpoint import check_fields, load_facts, load_model, network_of
from training.foreign import (
    AUTOENCODER_FIELDS,
    BETAS,
    CONFIG,
    PREDICTIONS,
    SCHEDULER,
    UNET_FIELDS,
    WEIGHTS,
    autoencoder_said,
    unet_said,
)

EARLIER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # attention's


def load_autoencoder(
    path: str | Path, needed: Collection[str] = ()
) -> tuple[AutoencoderKL, dict[str, Any]]:
    """(autoencoder in eval mode on the CPU, in float32; facts) of a checkpoint, as load_model has
    it, or of a folder of diffusers, which has no facts unless it was exported here.

    Raises UserError like load_model, and where half of the folder is missing or anything in it is
    not what models/autoencoder.py can be.
    """
    if not _is_folder(path):
        return load_model(path, "AutoencoderKL", needed)
    model, facts, _ = _load(Path(path), "AutoencoderKL", _autoencoder_config)
    return model, facts


def load_unet(path: str | Path, needed: Collection[str] = ()) -> tuple[UNet, dict[str, Any]]:
    """(UNet in eval mode on the CPU, in float32; facts) of a checkpoint, as load_model has it, or
    of a folder of diffusers' UNet2DModel.

    Facts of such a folder: all, where it was exported here; else "shape" where its config says a
    size, and "scheduler" where a pipeline's folder of that name lies beside it. Raises UserError
    like load_autoencoder, and where that scheduler is none of models/scheduler.py.
    """
    if not _is_folder(path):
        return load_model(path, "UNet", needed)
    model, facts, found = _load(Path(path), "UNet", _unet_config)
    if facts:
        return model, facts
    size = found.get("sample_size")
    if size:
        facts["shape"] = [model.config.in_channels, *(size if type(size) is list else [size, size])]
        check_fields(path, facts)
    beside = Path(path).absolute().parent / "scheduler" / SCHEDULER
    return model, facts | ({"scheduler": _schedule(beside)} if is_there(beside) else {})


def check_images_said(path: str | Path, facts: dict[str, Any], given: Collection[str]) -> None:
    """Raise UserError where neither an autoencoder's facts nor the flags that were given say which
    images, and in which size."""
    if missing := [f"--{name}" for name in ("data", "size") if name not in {*facts, *given}]:
        raise UserError(f"{path} does not say its images; give {' and '.join(missing)}")


def _is_folder(path: str | Path) -> bool:
    """Whether it is a folder of diffusers, and no checkpoint; UserError for a part of one, or more
    than one."""
    folder = Path(path)
    missing = [name for name in (CONFIG, WEIGHTS) if not is_there(folder / name)]
    if len(missing) == 1 or is_there(folder / "model_index.json"):
        parts = f"give that of its folders which has {CONFIG} and {WEIGHTS}"
        raise UserError(f"{path} is half a model of diffusers, or a whole pipeline; {parts}")
    return not missing


def _load(
    folder: Path, kind: str, translate: Callable[[Path, dict], dict]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(network, facts, diffusers' config) of a folder; translate(path, that config) is ours."""
    found = _read(folder / CONFIG)
    config = translate(folder / CONFIG, found)
    with closing(TensorFile(folder / WEIGHTS)) as file:
        # Checked before anything is built, as a checkpoint is.
        entries = {_today(name): entry for name, entry in file.entries.items()}
        cls, known = network_of(folder, entries, config, kind)
        tensors = {_today(name): tensor for name, tensor in file.read().items()}
        exported = "facts" in file.metadata
    model: Any = cls(known)
    model.load_state_dict(tensors)
    return model.eval(), load_facts(folder / WEIGHTS) if exported else {}, found


def _read(path: Path) -> dict[str, Any]:
    """A config of diffusers, or a UserError."""
    try:
        with reading(path):
            return dict(parse_json(path.read_bytes()))
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no config: {short(str(error))}; copy it anew") from None


def _check(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """UserError for the first field that says something else."""
    for name, value in wanted.items():
        if found.get(name, value) != value:
            raise UserError(f"{path}: {name} is {short(found[name])}, only {short(value)} is taken")


def _autoencoder_config(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """diffusers' config as ours; UserError names what models/autoencoder.py cannot be."""
    widths = found.get("block_out_channels")
    levels = len(widths) if type(widths) is list else 1
    _check(path, found, autoencoder_said(levels, found.get("in_channels")))
    config = {ours: found[said] for ours, said in AUTOENCODER_FIELDS.items() if said in found}
    return {**config, "attention": found.get("mid_block_add_attention", True)}


def _unet_config(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The same for models/unet.py. What earlier versions do not say is diffusers' default."""
    found = {"add_attention": True, "attention_head_dim": 8, "dropout": 0.0, **found}
    widths, kinds = found.get("block_out_channels"), found.get("down_block_types")
    if not (type(widths) is type(kinds) is list and widths):
        raise UserError(f"{path} says no block_out_channels or down_block_types; copy it anew")
    attention = [level for level, kind in enumerate(kinds) if kind == "AttnDownBlock2D"]
    wanted = unet_said(widths, found.get("in_channels"), attention)
    if not attention:
        del wanted["attention_head_dim"]  # of none
    _check(path, found, wanted)
    config = {ours: found[said] for ours, said in UNET_FIELDS.items() if said in found}
    return {**config, "attention_levels": attention}


def _schedule(path: Path) -> dict[str, Any]:
    """A scheduler's config as facts["scheduler"] has it."""
    found = {"prediction_type": "epsilon", "beta_schedule": "linear", "num_train_timesteps": 1000,
             "beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False, **_read(path)}  # fmt: skip

    def ours(name: str, theirs: dict[str, str]) -> str:
        for known, said in theirs.items():
            if found[name] == said:
                return known
        choices = ", ".join(theirs.values())
        raise UserError(f"{path}: {name} is {short(found[name])}, only {choices} are taken")

    prediction = ours("prediction_type", PREDICTIONS)
    schedule = ours("beta_schedule", {k: betas["beta_schedule"] for k, betas in BETAS.items()})
    _check(path, found, {**BETAS[schedule], "trained_betas": None, "rescale_betas_zero_snr": False})
    said = {
        "num_steps": found["num_train_timesteps"],
        "schedule": schedule,
        "prediction": prediction,
        "clip_x0": found["clip_sample"],
    }
    check_fields(path, {"scheduler": said})
    return said


def _today(name: str) -> str:
    """The name of a tensor; files of 2022 and 2023 call an attention's layers otherwise."""
    return re.sub(
        rf"(?<=\.attentions\.0\.)({'|'.join(EARLIER)})(?=\.)", lambda m: EARLIER[m[0]], name
    )

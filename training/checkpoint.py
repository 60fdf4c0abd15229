"""Checkpoints and training states: safetensors with JSON in the metadata, and no pickle.

A checkpoint is {"format": "pt", "version": "1", "config": .., "facts": ..}: what the network is,
and what whoever uses it has to know. A state is a nested dict of tensors and plain values.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from common.errors import UserError
from common.files import first_line, write_atomic
from data.images import ImageDataset
from models.autoencoder import AutoencoderConfig, AutoencoderKL
from models.classifier import Classifier, ClassifierConfig
from models.discriminator import DiscriminatorConfig, PatchDiscriminator
from models.unet import UNet, UNetConfig

VERSION = "1"
NOT_FINITE_ADVICE = (
    "a smaller --lr or --precision fp32 may help; --resume goes back to the last saved state"
)
KINDS = {
    "UNet": (UNet, UNetConfig),
    "AutoencoderKL": (AutoencoderKL, AutoencoderConfig),
    "PatchDiscriminator": (PatchDiscriminator, DiscriminatorConfig),
    "Classifier": (Classifier, ClassifierConfig),
}


def save_model(path: str | Path, model: Any, facts: dict[str, Any]) -> None:
    """Write a model of KINDS with its config and facts (a dict that JSON can hold).

    Raises UserError when a weight is not finite.
    """
    config = {"kind": type(model).__name__, **asdict(model.config)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    _write(path, tensors, config, facts)


def load_model(path: str | Path, kind: str) -> tuple[Any, dict[str, Any]]:
    """(model in eval mode on the CPU, facts) of a checkpoint that save_model wrote.

    Raises UserError, in a sentence for the user, when the file is missing, truncated, not ours,
    of another version, or of another kind.
    """
    tensors, config, facts = _read(path, "checkpoint")
    found = config.pop("kind", None)
    if found != kind:
        raise UserError(f"{path} holds a {found}, but a {kind} is needed here")
    cls, config_cls = KINDS[kind]
    try:
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        model = cls(config_cls(**config))
        model.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        problem = first_line(error)
        raise UserError(f"{path} does not fit this version of the code: {problem}") from None
    return model.eval(), facts


def load_facts(path: str | Path) -> dict[str, Any]:
    """The facts of a checkpoint; its tensors are not read. Raises UserError like load_model."""
    return _read(path, "checkpoint")[2]


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of all tensors, as 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def find_by_fingerprint(folder: str | Path, wanted: str) -> Path | None:
    """The newest autoencoder checkpoint in folder with this fingerprint, or None."""
    for path in checkpoints_in(folder):
        try:
            model, _ = load_model(path, "AutoencoderKL")
        except UserError:
            continue  # not an autoencoder, or damaged: not the one
        if fingerprint(model) == wanted:
            return path
    return None


def check_channels(path: str | Path, autoencoder: AutoencoderKL, images: ImageDataset) -> None:
    """Raise UserError unless the autoencoder of this checkpoint takes such images (a data set)."""
    wanted, got = autoencoder.config.image_channels, images.channels
    if wanted != got:
        raise UserError(
            f"{path} encodes images of {wanted} channels, but these have {got}; "
            "train an autoencoder on them"
        )


def checkpoints_in(folder: str | Path, suffix: str = ".safetensors") -> list[Path]:
    """The checkpoints (or ".state" files) in folder, newest first."""
    found = [p for p in Path(folder).glob(f"*{suffix}") if p.is_file()]  # a link may lead nowhere
    return sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True)


def save_state(path: str | Path, tree: dict) -> None:
    """Write a nested dict or list of tensors and plain values; a tensor keeps its exact bits.

    Raises UserError when a number in a tensor is not finite.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain = _split(tree, "", tensors)
    _write(path, tensors, {"kind": "state"}, plain)


def load_state(path: str | Path) -> dict:
    """What save_state was given, on the CPU. Raises UserError like load_model."""
    tensors, config, plain = _read(path, "training state")
    if config.get("kind") != "state":
        raise UserError(f"{path} holds a {config.get('kind')}, not the state of a training run")
    return _join(plain, tensors)


def _split(tree: Any, key: str, tensors: dict[str, torch.Tensor]) -> dict:
    """tree with every tensor replaced by {"tensor": its key}; the tensors go to `tensors`."""
    if isinstance(tree, torch.Tensor):
        tensors[key] = tree.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(tree, dict):  # as pairs: optimizers count their parameters with integers
        return {"pairs": [[k, _split(v, f"{key}/{k}", tensors)] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"list": [_split(v, f"{key}/{i}", tensors) for i, v in enumerate(tree)]}
    return {"value": tree}


def _join(node: dict, tensors: dict[str, torch.Tensor]) -> Any:
    (form, content), *_ = node.items()
    if form == "tensor":
        return tensors[content]
    if form == "pairs":
        return {k: _join(v, tensors) for k, v in content}
    if form == "list":
        return [_join(v, tensors) for v in content]
    return content


def _write(path: str | Path, tensors: dict[str, torch.Tensor], config: dict, facts: Any) -> None:
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:  # nothing could go on from it, and it might take the place of one that is good
        raise UserError(f"{path} is not saved: {bad[0]} is not finite; {NOT_FINITE_ADVICE}")
    metadata = {
        "format": "pt",
        "version": VERSION,
        "config": json.dumps(config),
        "facts": json.dumps(facts),
    }
    write_atomic(path, lambda file: save_file(tensors, file, metadata))


def _read(path: str | Path, what: str) -> tuple[dict[str, torch.Tensor], dict, Any]:
    """(tensors, config, facts) of a file that _write wrote, or a UserError that says why not."""
    path = Path(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        suffix = ".state" if what == "training state" else ".safetensors"
        there = [str(p) for p in checkpoints_in(folder, suffix)[:3]]
        hint = f"; there are {', '.join(there)}" if there else ""
        raise UserError(f"no {what} {path}{hint}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # Copied: a map of the file would keep it from being replaced on Windows.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error})") from None
    if not {"version", "config", "facts"} <= set(metadata):
        raise UserError(f"{path} was not written by this project: its metadata has no config")
    if metadata["version"] != VERSION:
        raise UserError(
            f"{path} has version {metadata['version']} of the format, this code reads {VERSION}; "
            "use the code that wrote it"
        )
    return tensors, json.loads(metadata["config"]), json.loads(metadata["facts"])

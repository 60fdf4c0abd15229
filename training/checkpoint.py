"""Checkpoints and training states: safetensors with JSON in the metadata, and no pickle.

A checkpoint is {"format": "pt", "version": "1", "config": .., "facts": .., "written_by": ..}: what
the network is, what whoever uses it has to know, and the version of this code. A state is a nested
dict of tensors and plain values.
"""

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.choices import MOST_PIXELS, PREDICTIONS, SCHEDULES
from common.errors import AbsentError, DamagedError, UserError, short
from common.files import parse_json, reading
from common.version import NAME, __version__
from data import tensor_files
from data.images import ImageDataset
from data.latents import NUMBER, STATS
from data.tensor_files import Entry, TensorFile, write_tensors
from models.autoencoder import AutoencoderConfig, AutoencoderKL
from models.classifier import Classifier, ClassifierConfig
from models.discriminator import DiscriminatorConfig, PatchDiscriminator
from models.unet import UNet, UNetConfig

VERSION = "1"  # of the format
NOT_FINITE_ADVICE = (
    "a smaller --lr or --precision fp32 may help; --resume goes back to the last saved state"
)
KINDS = {
    "UNet": (UNet, UNetConfig),
    "AutoencoderKL": (AutoencoderKL, AutoencoderConfig),
    "PatchDiscriminator": (PatchDiscriminator, DiscriminatorConfig),
    "Classifier": (Classifier, ClassifierConfig),
}


# What facts may say, as patterns of JSON: anybody may have written them, so nothing is made of them
# before.
WIDTH, TEXT = r"[1-9]\d{0,4}", r'"(?!.*\\u0000).*"'  # pixels of a side, or channels
SCHEDULE = (  # the second: of the first checkpoints, which knew only one
    rf'\{{"clip_x0": (true|false), "num_steps": {WIDTH}, '
    rf'"prediction": "({"|".join(PREDICTIONS)})", "schedule": "({"|".join(SCHEDULES)})"\}}'
    rf'|\{{"beta_end": {NUMBER}, "beta_start": {NUMBER}, "clip_x0": (true|false), '
    rf'"num_steps": {WIDTH}\}}'
)
FIELDS = {
    "data": TEXT,
    "data_root": TEXT,
    "size": rf"\[{WIDTH}, {WIDTH}\]",
    "shape": rf"\[{WIDTH}, {WIDTH}, {WIDTH}\]",
    "scheduler": SCHEDULE,
    "latent_stats": STATS,
    "autoencoder_id": '"[0-9a-f]{64}"',
    "cache": '"[0-9a-f]{16}"',
}


def check_fields(path: str | Path, found: dict[str, Any], needed: Collection[str] = ()) -> None:
    """Raise DamagedError where a needed field is not there, or any of FIELDS is not as it must."""
    for name in needed:
        if name not in found:
            raise DamagedError(path, f"it does not say its {name}")
    for name, pattern in FIELDS.items():
        if name in found and not _fits(pattern, found[name]):
            raise DamagedError(path, f"its {name} is {short(found[name])}")
        if name in ("size", "shape") and math.prod(found.get(name, [])) > MOST_PIXELS:
            raise DamagedError(path, f"its {name}, {found[name]}, is beyond what can be computed")


def _fits(pattern: str, value: Any) -> bool:
    with suppress(TypeError, ValueError, RecursionError):  # no JSON
        return re.fullmatch(pattern, json.dumps(value, sort_keys=True)) is not None
    return False


def save_model(
    path: str | Path, model: Any, facts: dict[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write a model of KINDS with its config and facts (a dict that JSON can hold).

    dtype: of the weights in the file; torch.float16 halves it, and load_model makes float32 of it.
    Raises UserError when a weight is not finite.
    """
    tensors = {
        k: v.detach().cpu().to(dtype) if v.is_floating_point() else v.detach().cpu()
        for k, v in model.state_dict().items()
    }
    _write(path, tensors, config_of(model), facts)


def config_of(model: Any) -> dict[str, Any]:
    """What makes a model of KINDS, for JSON: its kind, and its config without fields that say
    nothing, which earlier versions of the code do not know."""
    said = {f.name for f in fields(model.config) if getattr(model.config, f.name) != f.default}
    config = {k: v for k, v in asdict(model.config).items() if k in said}
    return {"kind": type(model).__name__, **json.loads(json.dumps(config))}


def load_model(
    path: str | Path, kind: str, needed: Collection[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """(model in eval mode on the CPU, facts) of a checkpoint that save_model wrote, or of a run's
    state: its averaged weights.

    Raises UserError, in a sentence for the user, when the file is missing, may not be read, is
    truncated or damaged, not ours, of another version, of another kind, or lacks one of the needed
    facts.
    """
    with _opened(path, "checkpoint") as (file, config, facts):
        entries: Mapping[str, Entry] = file.entries
        prefix = "/ema/" if config.get("kind") == "state" else ""
        if prefix:
            config, facts = _averaged(path, entries, facts)
            entries = {k[len(prefix) :]: e for k, e in entries.items() if k.startswith(prefix)}
        found = config.pop("kind", None)
        if found != kind:
            raise UserError(f"{path} holds a {short(found)}, but a {kind} is needed here")
        cls, config = network_of(path, entries, config, kind)
        if needed:
            check_fields(path, facts, needed)
        tensors = file.read()
    model: Any = cls(config)
    model.load_state_dict({name: tensors[prefix + name] for name in entries})
    return model.eval(), facts


def _averaged(path: str | Path, entries: Mapping[str, Entry], plain: dict) -> tuple[dict, dict]:
    """(config, facts) of a state's averaged weights."""
    try:
        tree = _join(plain, dict.fromkeys(entries))
        return dict(tree["configs"]["ema"]), dict(tree["facts"])
    except Exception:
        raise DamagedError(path, "it holds no averaged weights that could be shown") from None


def network_of(
    path: str | Path, entries: Mapping[str, Any], config: dict, kind: Any
) -> tuple[type[nn.Module], Any]:
    """(class, config) of the network of this kind that a file holds. entries: what has the shape
    and dtype of each of its tensors. Raises UserError, without taking memory or much time, where
    they are not those of the network, or there is none of that config."""
    try:
        cls, config_cls = KINDS[kind]
        values = {k: tuple(v) if type(v) is list else v for k, v in config.items()}
        known: Any = config_cls(**values)
        # No network has more levels times blocks than tensors, however many its config says.
        levels = len(known.channels) if type(known.channels) is tuple else 1
        if levels * config.get("blocks", config.get("layers", 1)) > len(entries):
            raise ValueError(f"a config of more blocks than {len(entries)} tensors can be")
        with torch.device("meta"):
            shapes = {name: torch.empty(e.shape, dtype=e.dtype) for name, e in entries.items()}
            cls(known).load_state_dict(shapes)
    except Exception as error:  # a config may say anything
        problem = short(" ".join(str(error).split()), 300)
        raise UserError(f"{path} does not fit this version of the code: {problem}") from None
    return cls, known


def load_facts(path: str | Path) -> dict[str, Any]:
    """The facts of a checkpoint; its tensors are not read. Raises UserError like load_model."""
    with _opened(path, "checkpoint") as (_, _, facts):
        return facts


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of all tensors, as 64 hex digits."""
    return tensor_files.fingerprint(model.state_dict())


def check_channels(path: str | Path, autoencoder: AutoencoderKL, images: ImageDataset) -> None:
    """Raise UserError unless the autoencoder of this checkpoint takes such images (a data set)."""
    wanted, got = autoencoder.config.image_channels, images.channels
    if wanted != got:
        raise UserError(
            f"{path} encodes images of {wanted} channels, but these have {got}; "
            "train an autoencoder on them"
        )


def checkpoints_in(folder: str | Path, suffix: str = ".safetensors") -> list[Path]:
    """The checkpoints (or ".state" files) in folder, newest first; UserError where it may not be
    looked into."""
    found = []
    with suppress(AbsentError), reading(folder):
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):  # a link may lead nowhere, a file may be gone
                if entry.name.endswith(suffix) and entry.is_file():
                    found.append((entry.stat().st_mtime_ns, entry.name))
    return [Path(folder, name) for _, name in sorted(found, reverse=True)]


def save_state(path: str | Path, tree: dict) -> None:
    """Write a nested dict or list of tensors and plain values; a tensor keeps its exact bits.

    Raises UserError when a number in a tensor is not finite.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain = _split(tree, "", tensors)
    _write(path, tensors, {"kind": "state"}, plain)


def load_state(path: str | Path) -> dict:
    """What save_state was given, on the CPU. Raises UserError like load_model."""
    with _opened(path, "training state") as (file, config, plain):
        if config.get("kind") != "state":
            kind = short(config.get("kind"))
            raise UserError(f"{path} holds a {kind}, not the state of a training run")
        tensors = file.read()
    try:
        return dict(_join(plain, tensors))
    except Exception:
        raise DamagedError(path, "its facts are no tree of its tensors") from None


def _split(tree: Any, key: str, tensors: dict[str, torch.Tensor]) -> dict:
    """tree with every tensor replaced by {"tensor": its key}; the tensors go to `tensors`."""
    if isinstance(tree, torch.Tensor):
        tensors[key] = tree.detach().cpu()
        return {"tensor": key}
    if isinstance(tree, dict):  # as pairs: optimizers count their parameters with integers
        return {"pairs": [[k, _split(v, f"{key}/{k}", tensors)] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"list": [_split(v, f"{key}/{i}", tensors) for i, v in enumerate(tree)]}
    return {"value": tree}


def _join(node: dict, tensors: Mapping[str, Any]) -> Any:
    ((form, content),) = node.items()
    if form == "tensor":
        return tensors[content]
    if form == "pairs":
        return {k: _join(v, tensors) for k, v in content}
    if form == "list":
        return [_join(v, tensors) for v in content]
    if form == "value":
        return content
    raise ValueError(f"no {form}")


def _write(path: str | Path, tensors: dict[str, torch.Tensor], config: dict, facts: Any) -> None:
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:  # nothing could go on from it, and it might take the place of one that is good
        raise UserError(f"{path} is not saved: {bad[0]} is not finite; {NOT_FINITE_ADVICE}")
    texts = {"config": json.dumps(config), "facts": json.dumps(facts, allow_nan=False)}
    texts["written_by"] = f"{NAME} {__version__}"
    write_tensors(path, tensors, {"format": "pt", "version": VERSION, **texts})


@contextmanager
def _opened(path: str | Path, what: str) -> Iterator[tuple[TensorFile, dict, Any]]:
    """(file, config, facts) of a file that _write wrote, or a UserError that says why not; its
    tensors are still to be checked."""
    try:
        file = TensorFile(path)
    except AbsentError:
        raise UserError(f"no {what} {path}{_hint(Path(path), what)}") from None
    with closing(file):
        metadata = file.metadata
        if not {"version", "config", "facts"} <= set(metadata):
            raise UserError(f"{path} was not written by this project: its metadata has no config")
        if metadata["version"] != VERSION:
            raise UserError(
                f"{path} has version {short(metadata['version'])} of the format, this code reads "
                f"{VERSION}; use the code that wrote it"
            )
        file.check_metadata()
        try:
            config, facts = (dict(parse_json(metadata[key])) for key in ("config", "facts"))
        except (TypeError, ValueError) as error:
            raise DamagedError(path, f"its metadata are no tables in JSON: {error}") from None
        yield file, config, facts


def _hint(path: Path, what: str) -> str:
    """What else there is."""
    suffix = ".state" if what == "training state" else ".safetensors"
    there = [str(p) for p in checkpoints_in(path if path.is_dir() else path.parent, suffix)[:3]]
    return f"; there are {', '.join(there)}" if there else ""

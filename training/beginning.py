"""What a run begins with: the network of its state, or that of --init; else an untrained one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common.files import is_there
from data.labels import Labels
from data.order import ShuffledOrder
from models.autoencoder import AutoencoderKL
from models.discriminator import PatchDiscriminator
from models.scheduler import DDPMScheduler
from models.unet import UNet
from training.checkpoint import check_fields, load_model, network_of
from training.run import Run, Saving, total_steps
from training.runtime import Runtime


def begin_run(
    task: str, args: Any, count: int, runtime: Runtime, settings: dict, ids: dict[str, str],
    state: dict | None,
) -> Run:  # fmt: skip
    """The Run over `count` images, of the length and with the files that a script's arguments say,
    and whether it compiles. The rest is as Run takes it."""
    order = ShuffledOrder(count, args.batch, args.seed)
    steps = total_steps(args.steps, args.epochs, args.images, order, runtime.on_gpu)
    saving = Saving(args.keep, args.save_every, args.deadline)
    run = Run(
        task, args.name, steps, args.lr_schedule, order, runtime, settings, ids, state, saving,
        args.accumulate,
    )  # fmt: skip
    runtime.decide_compile(args.compile, run.steps - run.start)
    return run


def network_in(state: dict, name: str = "model") -> Any:
    """An untrained network of a resumed run, as it was begun with; Run.take gives it its weights.

    Raises UserError where the state does not hold the weights of that network.
    """
    config = dict(state["configs"].get(name, {}))
    kind = config.pop("kind", None)
    cls, known = network_of(state["path"], state.get(name, {}), config, kind)
    return cls(known)


def facts_in(state: dict, needed: tuple[str, ...]) -> dict[str, Any]:
    """What a resumed run's checkpoints say. Raises UserError where a needed fact is missing."""
    check_fields(state["path"], state["facts"], needed)
    return state["facts"]


def autoencoder_flags(model: AutoencoderKL) -> dict[str, Any]:
    """{name: value} of the flags of train_encoder.py that such a network fixes."""
    config = model.config
    return {
        "channels": config.channels[0],
        "blocks": config.blocks,
        "attention": config.attention,
        "latent_channels": config.latent_channels,
        "grey": config.image_channels == 1,
    }


def denoiser_flags(model: UNet, scheduler: DDPMScheduler | None) -> dict[str, Any]:
    """{name: value} of the flags that such a network fixes, and its schedule where it is known."""
    config = model.config
    flags = {
        "channels": config.channels[0],
        "blocks": config.blocks,
        "attention": ",".join(map(str, config.attention_levels)) or None,
    }
    if scheduler:
        flags["schedule"] = scheduler.config.schedule
        flags["prediction"] = scheduler.config.prediction
    return flags


def with_dropout(model: UNet, dropout: float) -> UNet:
    """The same network with another dropout."""
    again = UNet(replace(model.config, dropout=dropout))
    again.load_state_dict(model.state_dict())
    return again


def with_labels(model: UNet | None, labels: Labels | None, known: Mapping[str, Any]) -> UNet | None:
    """A network to go on with as one of these labels. One of others forgets them, and it is said;
    where nothing is asked, it is at first the same. None stays None. known: its facts."""
    if model is None:
        return None
    condition = known.get("condition")
    has = {} if type(condition) is not dict else condition
    wanted = (labels.kind, list(labels.names)) if labels else (None, None)
    if wanted == (has.get("kind"), has.get("names")):
        return model
    if model.config.classes or model.config.attributes:
        print("note: what the network to begin with can be asked for is forgotten", flush=True)
    plain = without_labels(model)
    if labels is None:
        return plain
    more: dict[str, Any] = {labels.kind: len(labels.names)}
    again = UNet(replace(plain.config, **more))
    again.load_state_dict(plain.state_dict(), strict=False)
    return again


@torch.no_grad()
def without_labels(model: UNet) -> UNet:
    """A network that cannot be asked, and makes what this one makes where nothing is asked. What it
    adds for no class goes into the bias beside it."""
    plain = UNet(replace(model.config, classes=0, attributes=0))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()})
    if model.config.classes:
        bias: Any = plain.time_embedding["linear_2"].bias
        bias += model.class_embedding.weight[-1].cpu()
    return plain


def discriminator_beside(autoencoder: str | Path) -> PatchDiscriminator | None:
    """That which was trained with an autoencoder's checkpoint, where it lies in the folder
    discriminator/ beside its own under the same name. Raises UserError where it is damaged."""
    path = Path(autoencoder).absolute()
    path = path.parent.parent / "discriminator" / path.name
    return load_model(path, "PatchDiscriminator")[0].train() if is_there(path) else None

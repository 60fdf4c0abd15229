"""From noise to x0 and images: a denoiser with a sampler and a codec.

The same for pixels (MNIST) and latents: only the codec differs. B: batch, C, H, W: an image in
[-1, 1], c, h, w: x0.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.choices import NUM_STEPS, SAMPLERS
from common.errors import DamagedError, UserError, short
from generation.conditions import Asked
from models import samplers
from models.diffusion import epsilon
from models.samplers import Draw, OnStep, picture_noise
from models.scheduler import DDPMScheduler, SchedulerConfig
from models.unet import UNet
from training import distributed
from training.checkpoint import check_fields
from training.codec import Codec
from training.imported import load_unet
from training.runtime import Runtime

NEEDED = {  # facts of a denoiser
    "pixels": ("shape", "scheduler"),
    "latents": ("shape", "size", "scheduler", "latent_stats", "autoencoder_id"),
}


def load_denoiser(path: str | Path, space: str) -> tuple[UNet, DDPMScheduler, dict[str, Any]]:
    """(UNet, DDPMScheduler, facts) of a denoiser for space "pixels" or "latents".

    Raises UserError as load_model does, for a denoiser of the other space, and where its facts do
    not fit its network.
    """
    model, facts = load_unet(path)
    if facts.get("space") != space:
        script = {"pixels": "mnist_diffusion.py", "latents": "latent_diffusion.py"}
        found = short(facts.get("space"))
        raise UserError(
            f"{path} is a denoiser of {found}: show it with {script.get(found, 'another script')}"
        )
    check_fields(path, facts, NEEDED[space])
    channels, height, width = facts["shape"]
    stats = facts["latent_stats"].values() if space == "latents" else []
    fits = {model.config.in_channels, *map(len, stats)} == {channels}
    if not fits or height % model.stride or width % model.stride:
        raise DamagedError(path, f"its shape {facts['shape']} is not of its network")
    return model, DDPMScheduler(_scheduler_config(facts["scheduler"])), facts


def load_beginning(
    path: str | Path, space: str
) -> tuple[UNet, DDPMScheduler | None, dict[str, Any]]:
    """load_denoiser's, to begin a training with; or of a folder of diffusers' UNet2DModel, which
    has no facts, and None where no schedule lies beside it."""
    model, facts = load_unet(path)
    if "space" in facts or not Path(path).is_dir():
        return load_denoiser(path, space)
    known = facts.get("scheduler", {"num_steps": NUM_STEPS})
    if known["num_steps"] != NUM_STEPS:
        wrong = f"{path}: the schedule beside it has {known['num_steps']} steps"
        raise UserError(f"{wrong}, only {NUM_STEPS} are taken")
    return model, DDPMScheduler(SchedulerConfig(**known)) if "schedule" in known else None, {}


def _scheduler_config(known: dict[str, Any]) -> SchedulerConfig:
    """Of a checkpoint's facts; the first ones had the linear schedule, and networks that put out
    eps, without saying so."""
    if "beta_start" in known:
        known = {"num_steps": known["num_steps"], "clip_x0": known["clip_x0"]}
        known |= {"schedule": "linear", "prediction": "eps"}
    return SchedulerConfig(**known)


@dataclass(frozen=True)
class Pipeline:
    """A denoiser and how pictures are made with it.

    shape: (c, h, w) of x0. sampler: of SAMPLERS. sampling_steps: calls of the network per picture;
    None: the sampler's default. settings: {name: value}, of which the sampler takes what is its
    own. batch: pictures made at a time. asked: what they shall show; None: anything.
    """

    runtime: Runtime
    model: UNet
    scheduler: DDPMScheduler
    shape: tuple[int, ...]
    codec: Codec
    sampler: str
    sampling_steps: int | None
    settings: dict[str, float]
    batch: int
    asked: Asked | None = None

    @property
    def steps(self) -> int:
        """Calls of the network per picture."""
        return self.sampling_steps or SAMPLERS[self.sampler].steps or self.scheduler.num_steps

    @property
    def used(self) -> dict[str, float]:
        """The settings that the sampler takes."""
        return {name: self.settings[name] for name in SAMPLERS[self.sampler].settings}

    @property
    def label(self) -> str:
        """Sampler, steps and settings in words."""
        settings = "".join(f", {key} {value:g}" for key, value in self.used.items())
        asked = f", {self.asked.label}" if self.asked else ""
        return f"{self.sampler}, {self.steps} steps{settings}{asked}"

    def noise(self, seeds: Sequence[int]) -> Draw:
        """The noise of the pictures of these seeds, each from its own generator."""
        return picture_noise(seeds, self.shape, self.runtime.device)

    def sample(
        self, draw: Draw, items: Sequence[Any], on_step: OnStep | None = None,
        make: Callable[..., torch.Tensor] = samplers.sample,
    ) -> torch.Tensor:  # fmt: skip
        """x0 (B, c, h, w) on the device, from the noise that draw() gives, of B items (see
        Asked.of). on_step(t, xt, eps_hat) is called after each call of the network. make: by what,
        which takes all that samplers.sample takes.
        """
        network = self.asked.of(self.model, items) if self.asked else self.model
        with self.runtime.autocast():
            return make(
                model=epsilon(network, self.scheduler), scheduler=self.scheduler, draw=draw,
                sampler=self.sampler, num_sampling_steps=self.steps, on_step=on_step, **self.used,
            )  # fmt: skip

    def batches(
        self, items: Iterable[Any], noise: Callable[[list[Any]], Draw] | None = None,
        divided: bool = False, make: Callable[..., torch.Tensor] = samplers.sample,
        calls: int | None = None,
    ) -> Iterator[tuple[list[Any], torch.Tensor, torch.Tensor]]:  # fmt: skip
        """(items, images, x0) of self.batch pictures at a time, with a progress bar.

        items: their seeds, or whatever noise(items) makes its draw() of. divided: each of several
        processes makes its share of the batches. make: see sample; calls: of the network per
        picture, where that is not self.steps. Images (B, C, H, W) are on the CPU, x0 (B, c, h, w)
        is on the device.
        """
        items, noise = list(items), noise or self.noise
        batches = [items[i : i + self.batch] for i in range(0, len(items), self.batch)]
        batches = distributed.mine(batches) if divided else batches
        total = sum(map(len, batches)) * (calls or self.steps)
        with tqdm(total=total, unit="call", unit_scale=True, smoothing=0.05) as bar:
            for batch in batches:
                x0 = self.sample(noise(batch), batch, lambda _, xt, __: bar.update(len(xt)), make)
                yield batch, self.codec.decode(x0), x0

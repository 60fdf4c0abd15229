"""The autoencoder's loop: l2 + KL, and in its second half a GAN term on detail.

B: batch, C, H, W: an image in [-1, 1], c, h, w: its latents.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from common.files import make_folder, remove_leftovers
from data.batches import load_batches
from data.images import ImageDataset
from data.order import fixed_sample
from data.pixels import to_pixels
from models.autoencoder import AutoencoderKL
from models.discriminator import (
    PatchDiscriminator,
    discriminator_loss,
    generator_loss,
    with_low_frequencies,
)
from models.draws import Draws, Purpose
from training import figures
from training.codec import reconstruct
from training.ema import EMA
from training.fidelity import gradient_magnitude, psnr
from training.optimizer import Optimizer
from training.records import read_metrics
from training.run import LAST_FIGURE, NUM_VALID, Run, parameters
from training.runtime import Runtime

# By fractions of the length with which the run was begun, so that a short one passes through all of
# it, and prolonging moves nothing: the discriminator begins at DISC_START; for DISC_ALONE the
# autoencoder goes on as if it were not there, then the share of the GAN term's weight rises from 0
# to 1 over GAN_RAMP.
DISC_START, DISC_ALONE, GAN_RAMP = 0.5, 0.05, 0.1
NUM_SHOWN = 8  # images in the figures


@dataclass(frozen=True)
class GanPhase:
    """Of a step: whether the discriminator learns, and the share in [0, 1] of the GAN weight."""

    disc_learns: bool
    ramp: float


def gan_phase(step: int, steps: int) -> GanPhase:
    """What the GAN does at this step of a run that was begun with so many steps."""
    done = step / steps
    ramp = (done - DISC_START - DISC_ALONE) / GAN_RAMP
    return GanPhase(done >= DISC_START, min(1.0, max(0.0, ramp)))


class AutoencoderLearner:
    """All that changes while an autoencoder learns; step() changes it once.

    disc: None trains without a GAN. lr: peak learning rate. ema: decay of the averaged weights.
    kl_weight: in nats per latent value. gan_weight: at most how much longer the GAN term's gradient
    at the decoder's output is than that of l2.
    """

    def __init__(
        self, model: AutoencoderKL, disc: PatchDiscriminator | None, runtime: Runtime, *,
        optimizer: str, lr: float, ema: float, kl_weight: float, gan_weight: float,
    ) -> None:  # fmt: skip
        self.model, self.disc, self.runtime = runtime.place(model).train(), disc, runtime
        self.kl_weight, self.gan_weight = kl_weight, gan_weight
        self.ema = EMA(self.model, ema)
        self.forward = runtime.compiled(self.model)
        self.optimizer = Optimizer(self.model, optimizer, lr, runtime)
        self.parts: dict[str, Any] = {
            "model": self.model, "ema": self.ema.model, "optimizer": self.optimizer
        }  # fmt: skip
        if disc is not None:
            self.disc = runtime.place(disc).train()
            self.discriminate = runtime.compiled(self.disc)
            self.disc_optimizer = Optimizer(self.disc, "adamw", lr, runtime, betas=(0.5, 0.9))
            self.parts |= {"disc": self.disc, "disc_optimizer": self.disc_optimizer}

    def step(
        self, x: torch.Tensor, rate: float, draws: Draws, phase: GanPhase
    ) -> dict[str, torch.Tensor]:
        """One update by x (B, C, H, W), at `rate` times the peak learning rate, with the random
        numbers of its step. Metrics as Progress.add takes them, none where the step was skipped."""
        # Autoencoder: l2 + KL + GAN.
        noise = draws.normal(Purpose.POSTERIOR, self.model.latent_shape(x.shape[2:]))
        with self.runtime.autocast():
            x_hat, posterior = self.forward(x, noise)
        x_hat = x_hat.float()
        loss_rec = (x_hat - x).square().mean()
        loss_kl = posterior.kl().mean()
        loss_gan: torch.Tensor | float = 0.0
        gan_metrics: dict[str, torch.Tensor] = {}
        gan_weight = self.gan_weight * phase.ramp
        if gan_weight:
            loss_gan, gan_metrics = adaptive_gan_loss(
                self.discriminate, x, x_hat, self.runtime, self.optimizer
            )
        loss = loss_rec + self.kl_weight * loss_kl + gan_weight * loss_gan
        norm = self.optimizer.step(loss, rate)
        if norm is None:
            return {}
        self.ema.update(self.model, draws.step)

        # Discriminator: on the same reconstructions, at the full rate to the end.
        if self.disc is not None and phase.disc_learns:
            real, fake = discriminate_both(self.discriminate, x, x_hat.detach(), self.runtime)
            loss_disc = discriminator_loss(real, fake)
            self.disc_optimizer.step(loss_disc, 1.0)
            gan_metrics |= {"loss_disc": loss_disc, "logit_real": real.mean()}
            gan_metrics |= {"logit_fake": fake.mean()}
        return {"loss_rec": loss_rec, "loss_kl": loss_kl, "gradient_norm": norm, **gan_metrics}


def adaptive_gan_loss(
    discriminate: Callable, x: torch.Tensor, x_hat: torch.Tensor, runtime: Runtime,
    optimizer: Optimizer,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
    """The generator's loss on detail, its gradient at x_hat scaled to at most the length of l2's.

    Esser et al. 2021, eq. 7, with the gradients at the decoder's output instead of at its last
    layer, and the weight clamped to [0, 1]. Returns (a scalar to add to the loss, metrics). The
    scalar has the gradient of weight * generator_loss but is linear in x_hat: backward() need not
    pass the discriminator a second time.
    """
    leaf = x_hat.detach().requires_grad_()
    with runtime.autocast():
        loss = generator_loss(discriminate(with_low_frequencies(leaf, x)))
    scale = optimizer.scaler.get_scale()  # 1 but in fp16, whose small gradients would vanish
    gradient = torch.autograd.grad(loss * scale, leaf)[0] / scale
    gradient_rec = 2 * (leaf.detach() - x) / x.numel()
    weight = (gradient_rec.norm() / (gradient.norm() + 1e-12)).clamp(0, 1)
    metrics = {"loss_gan": loss, "adaptive_weight": weight}
    return (weight * gradient * x_hat).sum(), metrics


def discriminate_both(
    discriminate: Callable, x: torch.Tensor, x_hat: torch.Tensor, runtime: Runtime
) -> tuple[torch.Tensor, ...]:
    """The discriminator's logits of originals and of the reconstructions' detail."""
    with runtime.autocast():
        return discriminate(torch.cat([x, with_low_frequencies(x_hat, x)])).chunk(2)


def train(
    run: Run, learner: AutoencoderLearner, images: dict[str, ImageDataset], facts: dict, flip: bool
) -> None:
    """Train on images = {"train": .., "valid": ..} (data sets of data/), from the start or from
    where a resumed run was.

    facts: goes into every checkpoint. flip: whether training images are mirrored at random.
    """
    # What is fixed for the whole run.
    networks: dict[str, nn.Module] = {run.folder.name: learner.ema.model}
    if learner.disc is not None:
        networks["discriminator"] = learner.disc
    run.take(learner.parts, networks, facts)
    announce(run, learner, images)
    valid = fixed_images(images)
    trained = {"encoder": learner.model.encoder, "decoder": learner.model.decoder}
    if learner.disc is not None:
        trained["disc"] = learner.disc
    runtime, wanted = learner.runtime, run.order.since(run.start + run.skipped)
    batches = load_batches(images["train"], wanted, runtime.workers, pin_memory=runtime.on_gpu)

    draw = partial(draw_figures, run, learner, valid)
    with run.progress() as progress, closing(batches):
        run.catch_up(draw)
        for step, (pixels, indices) in zip(range(run.start, run.steps), batches, strict=False):
            run.find_in_order(step, indices[0])
            pixels, draws = runtime.send(pixels), run.draws(step, indices)
            x = to_pixels(flipped(pixels, draws.uniform(Purpose.FLIP)) if flip else pixels)
            rate, phase = run.schedule.factor(step), gan_phase(step, run.phases)
            progress.add(**learner.step(x, rate, draws, phase))

            # A report, then checkpoints, state and figures, each when it is due.
            done = step + 1
            if run.report_due(done):
                others = {"gan_weight": learner.gan_weight * phase.ramp}
                others |= {"learning_rate": learner.optimizer.lr * rate, **weight_norms(trained)}
                run.valid_loss = None
                if run.validate_due(done):
                    others |= validate(runtime, valid, raw=learner.model, ema=learner.ema.model)
                    run.valid_loss = -others["psnr_ema"]
                progress.report(progress.means(), epoch=run.epoch(done), **others)
            run.end_step(done, draw)


def announce(run: Run, learner: AutoencoderLearner, images: dict[str, ImageDataset]) -> None:
    """Say what is going to happen."""
    discriminator, train = "none", images["train"]
    if learner.disc is not None:
        first = math.ceil(DISC_START * run.phases) + 1
        discriminator = f"{parameters(learner.disc)}, from step {first} on"
        make_folder("checkpoints/discriminator")
        remove_leftovers("checkpoints/discriminator")
    run.announce(
        data=f"{run.settings['data']}, {len(train)} training and {len(images['valid'])} validation "
        f"images of {'x'.join(map(str, train.size))}, {train.channels} channels",
        network=f"AutoencoderKL, {parameters(learner.model)}",
        discriminator=discriminator,
    )


def flipped(images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Those images (B, C, H, W) mirrored whose number in uniform (B,) is less than 1/2."""
    return torch.where((uniform < 0.5)[:, None, None, None], images.flip(3), images)


def fixed_images(images: dict[str, ImageDataset]) -> torch.Tensor:
    """The readable ones of NUM_VALID validation images, always the same, or training images where
    there are none: (n, C, H, W) in [-1, 1]."""
    loaded: list[torch.Tensor] = []
    for dataset in (images["valid"], images["train"]):
        sample = fixed_sample(len(dataset), 0 if loaded else NUM_VALID)
        batches = [part.tolist() for part in sample.split(32) if len(part)]
        loaded += [pixels for pixels, _ in load_batches(dataset, batches, 0)]
    return to_pixels(torch.cat(loaded))


def weight_norms(networks: dict[str, nn.Module]) -> dict[str, float]:
    """{"weights_NAME": root of the sum of squares of all weights}."""

    def norm(network: nn.Module) -> float:
        return torch.stack([p.detach().norm() for p in network.parameters()]).norm().item()

    return {f"weights_{name}": norm(network) for name, network in networks.items()}


def validate(runtime: Runtime, valid: torch.Tensor, **models: AutoencoderKL) -> dict[str, float]:
    """PSNR of each model's reconstructions; the last one's gradient magnitude, as a share of the
    originals', and the KL of its latents, in nats."""
    metrics = {}
    for name, model in models.items():
        posterior, x_hat = reconstruct(model, runtime, valid)
        metrics[f"psnr_{name}"] = psnr(valid, x_hat).mean().item()
    sharpness = gradient_magnitude(x_hat).mean() / gradient_magnitude(valid).mean()
    return {**metrics, "sharpness": sharpness.item(), "valid_kl": posterior.kl().mean().item()}


def draw_figures(run: Run, learner: AutoencoderLearner, valid: torch.Tensor) -> None:
    """Reconstructions, latents, losses and, where there is a discriminator, its confidences."""
    # Reconstructions and latents.
    runtime = learner.runtime
    posterior, x_hat = reconstruct(learner.ema.model, runtime, valid)
    score = psnr(valid, x_hat).mean()
    x, x_hat = valid[:NUM_SHOWN], x_hat[:NUM_SHOWN]
    title = f"{run.name}: reconstructions, {score:.2f} dB on {len(valid)} validation images"
    rows = {"original": x, "reconstruction": x_hat}
    figures.image_rows(run.fig / "reconstructions.png", rows, title)
    figures.latent_statistics(run.fig / "latents.png", posterior.mean, posterior.logvar)

    # The curves, and what the discriminator believes.
    panels = {
        "l2 loss": ["loss_rec"],
        "KL, nats per latent value": ["loss_kl", "valid_kl"],
        "validation PSNR, dB": ["psnr_raw", "psnr_ema"],
        "gradient magnitude, share of the originals'": ["sharpness"],
    }
    if learner.disc is not None:
        panels["discriminator's logits"] = ["logit_real", "logit_fake"]
        panels["discriminator's loss, GAN weight"] = ["loss_disc", "gan_weight"]
        panels["adaptive weight of the GAN term"] = ["adaptive_weight"]
        with torch.no_grad():
            real, fake = discriminate_both(
                learner.disc, runtime.send(x), runtime.send(x_hat), runtime
            )
        title = f"{run.name}: the discriminator's confidence per patch, with its mean above"
        figures.confidences(run.fig / "confidences.png", title, x, x_hat, real, fake)
    figures.curves(run.fig / LAST_FIGURE, read_metrics(run.metrics, run.name), panels)

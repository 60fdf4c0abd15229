"""The autoencoder's loop: l2 + KL, perhaps a perceptual loss, and in its second half a GAN term on
detail.

B: batch, C, H, W: an image in [-1, 1], c, h, w: its latents.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from data.batches import load_batches
from data.images import ImageDataset
from data.order import fixed_sample
from data.pixels import to_pixels
from models.autoencoder import AutoencoderKL, DiagonalGaussian
from models.discriminator import (
    PatchDiscriminator,
    discriminator_loss,
    generator_loss,
    with_low_frequencies,
)
from models.draws import Draws, Purpose
from models.perceptual import PerceptualLoss
from training import distributed, figures
from training.codec import reconstruct
from training.ema import EMA
from training.fidelity import gradient_magnitude, psnr
from training.optimizer import Optimizer
from training.pretrained import mean_loss
from training.progress import parameters, weight_norms
from training.records import read_metrics
from training.run import NUM_VALID, Run
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


def gan_phase(step: int, steps: int, start: float = DISC_START) -> GanPhase:
    """What the GAN does at this step of a run that was begun with so many steps. start: share of
    them after which the discriminator begins."""
    done = step / steps
    ramp = (done - start - DISC_ALONE) / GAN_RAMP
    return GanPhase(done >= start, min(1.0, max(0.0, ramp)))


class AutoencoderLearner:
    """All that changes while an autoencoder learns; step() changes it once.

    disc: None trains without a GAN. lr: peak learning rate. ema: decay of the averaged weights.
    kl_weight: in nats per latent value. gan_weight: at most how much longer the GAN term's gradient
    at the decoder's output is than that of l2 alone, so that perceptual_weight does not move it.
    accumulate: parts in which a step's gradients are made, for a device on which the whole batch
    finds no room. perceptual: None trains without it.
    """

    def __init__(
        self, model: AutoencoderKL, disc: PatchDiscriminator | None, runtime: Runtime, *,
        optimizer: str, lr: float, ema: float, kl_weight: float, gan_weight: float,
        accumulate: int = 1, perceptual_weight: float = 0.0,
        perceptual: PerceptualLoss | None = None,
    ) -> None:  # fmt: skip
        self.model, self.disc, self.runtime = runtime.place(model).train(), disc, runtime
        self.kl_weight, self.gan_weight, self.accumulate = kl_weight, gan_weight, accumulate
        self.perceptual_weight = perceptual_weight
        self.perceptual = runtime.place(perceptual) if perceptual else None
        self.ema = EMA(self.model, ema)
        self.forward = runtime.compiled(self.model)
        self.optimizer = Optimizer(self.model, optimizer, lr, runtime)
        self.parts: dict[str, Any] = {
            "model": self.model, "ema": self.ema.model, "optimizer": self.optimizer
        }  # fmt: skip
        if disc:
            self.disc = runtime.place(disc).train()
            self.discriminate = runtime.compiled(self.disc)
            self.disc_optimizer = Optimizer(self.disc, "adamw", lr, runtime, betas=(0.5, 0.9))
            self.parts |= {"disc": self.disc, "disc_optimizer": self.disc_optimizer}

    def step(
        self, x: torch.Tensor, rate: float, draws: Draws, phase: GanPhase, total: int
    ) -> dict[str, torch.Tensor]:
        """One update by x (B, C, H, W), at `rate` times the peak learning rate, with the random
        numbers of its step. total: images of all processes' x, of which this one's may be 0.
        Metrics as Progress.add takes them, none where the step was skipped."""
        # Parts, each with its share of the batch. Gradients are the mean over the processes, so a
        # share is as many times larger.
        divided = draws.parts(self.accumulate)
        images = x.split([len(part.places) for part in divided]) if divided else ()
        shares = [len(part) * distributed.count() / total for part in images]
        shape = self.model.latent_shape(x.shape[2:])
        noise = [part.normal(Purpose.POSTERIOR, shape) for part in divided]

        # The GAN's gradients at x_hat. Those of all parts must be known before any is learnt from,
        # and only one at a time may find room, so several parts are made twice.
        made: list[tuple[torch.Tensor, DiagonalGaussian]] = []
        pulls: Sequence[torch.Tensor | float] = [0.0] * len(images)
        metrics: dict[str, torch.Tensor] = {}
        if gan_weight := self.gan_weight * phase.ramp:
            with torch.set_grad_enabled(len(images) == 1):
                made = [self._reconstruct(*part) for part in zip(images, noise, strict=True)]
            pulls, metrics = adaptive_pulls(
                self.discriminate, images, [x_hat for x_hat, _ in made], shares, self.runtime,
                self.optimizer.scaler.get_scale(),
            )  # fmt: skip
            made = made if len(made) == 1 else []

        # Autoencoder: l2 + KL + perceptual + GAN.
        sums, x_hats = torch.zeros(3, device=x.device), []
        for i, (part, share) in enumerate(zip(images, shares, strict=True)):
            x_hat, posterior = made[i] if made else self._reconstruct(part, noise[i])
            seen = self.perceptual(x_hat, part).mean() if self.perceptual else x.new_zeros(())
            losses = torch.stack([(x_hat - part).square().mean(), posterior.kl().mean(), seen])
            weighed = self.kl_weight * losses[1] + self.perceptual_weight * losses[2]
            pulled = gan_weight * (pulls[i] * x_hat).sum()
            self.optimizer.backward(share * (losses[0] + weighed) + pulled)
            sums += share * losses.detach()
            x_hats.append(x_hat.detach())
        norm = self.optimizer.step(rate)
        if norm is None:
            return {}
        self.ema.update(self.model, draws.step)
        metrics |= {"loss_rec": sums[0], "loss_kl": sums[1], "gradient_norm": norm}
        if self.perceptual:
            metrics["loss_perceptual"] = sums[2]

        # Discriminator: on the same reconstructions.
        if self.disc and phase.disc_learns:
            metrics |= self._discriminator_step(images, x_hats, shares)
        return metrics

    def _reconstruct(
        self, x: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, DiagonalGaussian]:
        with self.runtime.autocast():
            x_hat, posterior = self.forward(x, noise)
        return x_hat.float(), posterior

    def _discriminator_step(
        self, x: Sequence[torch.Tensor], x_hat: Sequence[torch.Tensor], shares: Sequence[float]
    ) -> dict[str, torch.Tensor]:
        """One update of the discriminator, at the full rate to the end; metrics."""
        sums = torch.zeros(3, device=self.runtime.device)
        for part, made, share in zip(x, x_hat, shares, strict=True):
            real, fake = discriminate_both(self.discriminate, part, made, self.runtime)
            loss = discriminator_loss(real, fake)
            self.disc_optimizer.backward(share * loss)
            sums += share * torch.stack([loss, real.mean(), fake.mean()]).detach()
        self.disc_optimizer.step(1.0)
        return {"loss_disc": sums[0], "logit_real": sums[1], "logit_fake": sums[2]}


def adaptive_pulls(
    discriminate: Callable, x: Sequence[torch.Tensor], x_hat: Sequence[torch.Tensor],
    shares: Sequence[float], runtime: Runtime, scale: float,
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:  # fmt: skip
    """The gradients of the generator's loss on detail at each part of x_hat, and metrics. They are
    scaled: over the whole batch, they are at most as long as l2's.

    Esser et al. 2021, eq. 7, with the gradients at the decoder's output instead of at its last
    layer, and the weight clamped to [0, 1]. Their products with x_hat have the gradient of weight *
    generator_loss: backward() need not pass the discriminator a second time. shares: of the parts
    in the batch. scale: of the loss while gradients are made, 1 but in fp16, where small ones
    vanish.
    """
    gradients, loss_gan = [], torch.zeros((), device=runtime.device)
    squares = torch.zeros(2, device=runtime.device)  # of the lengths: l2's, the GAN's
    for part, made, share in zip(x, x_hat, shares, strict=True):
        leaf = made.detach().requires_grad_()
        with runtime.autocast():
            loss = generator_loss(discriminate(with_low_frequencies(leaf, part)))
        gradients.append(torch.autograd.grad(loss * scale, leaf)[0] * (share / scale))
        gradient_rec = 2 * share * (leaf.detach() - part) / part.numel()
        squares += torch.stack([gradient_rec.norm(), gradients[-1].norm()]).square()
        loss_gan += share * loss.detach()
    distributed.average([squares])
    rec, gan = squares.sqrt()
    weight = (rec / (gan + 1e-12)).clamp(0, 1)
    metrics = {"loss_gan": loss_gan, "adaptive_weight": weight}
    return [weight * gradient for gradient in gradients], metrics


def discriminate_both(
    discriminate: Callable, x: torch.Tensor, x_hat: torch.Tensor, runtime: Runtime
) -> tuple[torch.Tensor, ...]:
    """The discriminator's logits of originals and of the reconstructions' detail."""
    with runtime.autocast():
        return discriminate(torch.cat([x, with_low_frequencies(x_hat, x)])).chunk(2)


def train(
    run: Run, learner: AutoencoderLearner, images: dict[str, ImageDataset], facts: dict, flip: bool,
    disc_start: float = DISC_START,
) -> None:  # fmt: skip
    """Train on images = {"train": .., "valid": ..} (data sets of data/), from the start or from
    where a resumed run was.

    facts: goes into every checkpoint. flip: whether training images are mirrored at random.
    disc_start: share of the run after which the discriminator begins.
    """
    # What is fixed for the whole run.
    networks: dict[str, nn.Module] = {run.folder.name: learner.ema.model}
    trained = {"encoder": learner.model.encoder, "decoder": learner.model.decoder}
    if learner.disc:
        networks["discriminator"] = trained["disc"] = learner.disc
    run.take(learner.parts, networks, facts)
    announce(run, learner, images, disc_start)
    valid = fixed_images(images)
    runtime, wanted = learner.runtime, run.order.since(run.start, run.places)
    batches = load_batches(images["train"], wanted, runtime.workers, runtime.on_gpu, empty=True)
    tally = images["train"].tally
    draw = partial(draw_figures, run, learner, valid)
    with run.progress() as progress, closing(batches):
        run.catch_up(draw)
        for step, (pixels, indices) in zip(range(run.start, run.steps), batches, strict=False):
            # A share of the batch, or nothing where no image of it can be read.
            pixels, draws = runtime.send(pixels), run.draws(step, indices)
            x = to_pixels(flipped(pixels, draws.uniform(Purpose.FLIP)) if flip else pixels)
            rate, phase = run.schedule.factor(step), gan_phase(step, run.phases, disc_start)
            total = int(distributed.total(len(indices)))
            progress.add(**learner.step(x, rate, draws, phase, total) if total else {})

            # A report, then checkpoints, state and figures, each when it is due.
            done = step + 1
            if run.report_due(done):
                means = progress.means()
                if run.is_first:
                    others = {"gan_weight": learner.gan_weight * phase.ramp}
                    others |= {"learning_rate": learner.optimizer.lr * rate}
                    others |= weight_norms(trained)
                    run.valid_loss = None
                    if run.validate_due(done):
                        others |= validate(learner, valid)
                        run.valid_loss = -others["psnr_ema"]
                    progress.report(means, epoch=run.epoch(done), **others)
            run.end_step(done, draw)
            if run.report_due(done):
                tally.add_all(distributed.everyones(tally.reasons))


def announce(
    run: Run, learner: AutoencoderLearner, images: dict[str, ImageDataset], disc_start: float
) -> None:
    """Say what is going to happen."""
    train, disc = images["train"], learner.disc
    first = math.ceil(disc_start * run.phases) + 1
    network = run.settings["perceptual_network"]
    run.announce(
        data=f"{run.settings['data']}, {len(train)} training and {len(images['valid'])} validation "
        f"images of {'x'.join(map(str, train.size))}, {train.channels} channels",
        network=f"AutoencoderKL, {parameters(learner.model)}",
        discriminator=f"{parameters(disc)}, from step {first} on" if disc else "none",
        perceptual=f"in features of {network}" if learner.perceptual else "none",
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


def validate(learner: AutoencoderLearner, valid: torch.Tensor) -> dict[str, float]:
    """PSNR of the reconstructions by raw and by averaged weights; the latter's gradient magnitude,
    as a share of the originals', perceptual loss, where there is one, and KL of the latents, in
    nats."""
    runtime, metrics = learner.runtime, {}
    for name, model in (("raw", learner.model), ("ema", learner.ema.model)):
        posterior, x_hat = reconstruct(model, runtime, valid)
        metrics[f"psnr_{name}"] = psnr(valid, x_hat).mean().item()
    if learner.perceptual:
        metrics["valid_perceptual"] = mean_loss(learner.perceptual, runtime, x_hat, valid)
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
    if learner.perceptual:
        panels["perceptual loss"] = ["loss_perceptual", "valid_perceptual"]
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
    figures.curves(run.fig / "losses.png", read_metrics(run.metrics, run.name), panels)

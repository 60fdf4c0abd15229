"""Step 1: a KL autoencoder with an l2 + KL + patch-GAN loss (after Rombach et al. 2022, section
3.1, without the perceptual loss, which needs a pretrained network).

python3 train_encoder.py
python3 train_encoder.py --evaluate checkpoints/autoencoder/AAA.safetensors
"""

from command_line import options

if __name__ == "__main__":
    ARGS = options.parse_encoder()  # before torch is imported: --help answers at once

import math
from contextlib import closing
from pathlib import Path

import torch

from common.files import make_folder, remove_leftovers
from data.batches import load_batches
from data.images import open_images
from data.order import ShuffledOrder
from data.pixels import to_pixels
from generation.evaluation import evaluate_autoencoder, reconstruct
from generation.metrics import gradient_magnitude, psnr
from models.autoencoder import AutoencoderConfig, AutoencoderKL
from models.blocks import norm_groups
from models.discriminator import (
    DiscriminatorConfig,
    PatchDiscriminator,
    discriminator_loss,
    generator_loss,
    with_low_frequencies,
)
from models.sizes import IMAGE_MULTIPLE, check_divides
from training import figures
from training.checkpoint import check_channels, load_model
from training.ema import EMA
from training.optimizer import Optimizer, lr_factor
from training.progress import read_metrics
from training.run import Run, parameters, resume, same_data, tolerating_os_errors
from training.runtime import Runtime

# By fractions of the run, so that a short one passes through everything, and a prolonged one too:
# the discriminator begins at DISC_START; for DISC_ALONE the autoencoder goes on as if it were not
# there, then the share of the GAN term's weight rises from 0 to 1 over GAN_RAMP.
DISC_START, DISC_ALONE, GAN_RAMP = 0.5, 0.05, 0.1
MAX_GRADIENT = 1.0  # norm from which a gradient is shortened
NUM_SHOWN = 8  # images in the figures
NUM_VALID = 256  # validation images behind the validation figures


def main(args):
    """Train or evaluate, as the arguments say."""
    if args.evaluate is not None:
        evaluate(args)
    else:
        train(args)


def train(args):
    """Train an autoencoder and, unless --gan-weight is 0, its discriminator."""
    args, state = resume(args, "autoencoder")
    torch.manual_seed(args.seed)
    runtime = Runtime(args)

    # Data: sizes that the denoiser to come takes too.
    args.size = args.size or options.default_size(args.data, runtime.on_gpu)
    check_divides(*args.size, IMAGE_MULTIPLE)
    images = open_images(args.data, args.data_root, args.size)
    channels = images["train"].channels
    same_data(args, state, images["train"].stamp())
    order = ShuffledOrder(len(images["train"]), args.batch, args.seed)
    run = Run(args, runtime, state, order, "autoencoder")

    # Networks: latents at a quarter of the size; no discriminator with --gan-weight 0.
    model, disc = networks(args, channels)
    model = runtime.place(model).train()
    ema = EMA(model, args.ema)

    # Optimizers, and where a resumed run was.
    optimizer = Optimizer(model, args.optimizer, args.lr, (0.9, 0.99), MAX_GRADIENT, runtime)
    parts = {"model": model, "ema": ema.model, "optimizer": optimizer}
    trained, discriminator = {"encoder": model.encoder, "decoder": model.decoder}, "none"
    if disc:
        disc = runtime.place(disc).train()
        disc_optimizer = Optimizer(disc, "adamw", args.lr, (0.5, 0.9), MAX_GRADIENT, runtime)
        parts |= {"disc": disc, "disc_optimizer": disc_optimizer}
        trained["disc"] = disc
        discriminator = f"{parameters(disc)}, from step {math.ceil(DISC_START * run.steps) + 1} on"
        make_folder("checkpoints/discriminator")
        remove_leftovers("checkpoints/discriminator")
    run.restore(parts)
    runtime.decide_compile(args.compile, run.steps - run.start)
    run.announce(
        parts,
        data=f"{args.data}, {len(images['train'])} training and {len(images['valid'])} validation "
        f"images of {'x'.join(map(str, args.size))}, {channels} channels",
        network=f"AutoencoderKL, {parameters(model)}",
        discriminator=discriminator,
    )
    valid = fixed_images(images["valid"], NUM_VALID)
    valid = fixed_images(images["train"], NUM_VALID) if valid is None else valid
    facts = {"data": args.data, "data_root": args.data_root, "size": args.size}

    forward, discriminate = runtime.compiled(model), disc and runtime.compiled(disc)
    wanted = order.since(run.start + run.skipped)
    batches = load_batches(images["train"], wanted, runtime.workers, pin_memory=runtime.on_gpu)
    with run.progress() as progress, closing(batches):
        for step, (pixels, indices) in zip(range(run.start, run.steps), batches, strict=False):
            run.find_in_order(step, indices[0])
            pixels = runtime.send(pixels)
            x = to_pixels(pixels if args.no_flip else random_flip(pixels))
            rate = lr_factor(step, run.steps)
            disc_trains, gan_ramp = gan_phase(step, run.steps)
            gan_weight = args.gan_weight * gan_ramp

            # Autoencoder: l2 + KL + GAN.
            with runtime.autocast():
                x_hat, posterior = forward(x)
            x_hat = x_hat.float()
            loss_rec = (x_hat - x).square().mean()
            loss_kl = posterior.kl().mean()
            loss_gan, gan_metrics = 0.0, {}
            if gan_weight:
                loss_gan, gan_metrics = adaptive_gan_loss(
                    discriminate, x, x_hat, runtime, optimizer
                )
            loss = loss_rec + args.kl_weight * loss_kl + gan_weight * loss_gan
            norm = optimizer.step(loss, rate)
            ema.update(model, step)

            # Discriminator: on the same reconstructions, at the full rate to the end.
            if disc and disc_trains:
                real, fake = discriminate_both(discriminate, x, x_hat.detach(), runtime)
                loss_disc = discriminator_loss(real, fake)
                disc_optimizer.step(loss_disc, 1.0)
                gan_metrics |= {"loss_disc": loss_disc, "logit_real": real.mean()}
                gan_metrics |= {"logit_fake": fake.mean()}
            progress.add(loss_rec=loss_rec, loss_kl=loss_kl, gradient_norm=norm, **gan_metrics)

            done = step + 1
            if run.report_due(done):
                more = {"gan_weight": gan_weight, "learning_rate": args.lr * rate}
                more |= weight_norms(**trained)
                if run.validate_due(done):
                    more |= validate(runtime, valid, raw=model, ema=ema.model)
                progress.report(progress.means(), epoch=run.epoch(done), **more)
            if run.save_due(done):
                run.save(done, ema.model, facts)
                if disc:
                    run.save(done, disc, facts, "discriminator")
            run.end_step(parts, done)
            if run.figures_due(done):
                with tolerating_os_errors():
                    draw_figures(run, valid, ema.model, disc)


def evaluate(args):
    """Measure an autoencoder's reconstructions of the validation images."""
    model, facts = load_model(args.evaluate, "AutoencoderKL")
    runtime = Runtime(args)
    data = args.data if "data" in args.given else facts["data"]
    images = open_images(data, options.data_root(args, facts), tuple(facts["size"]))["valid"]
    check_channels(args.evaluate, model, images)
    what = f"{data}'s validation images, {'x'.join(map(str, facts['size']))}"
    fig = Path("fig/autoencoder")
    evaluate_autoencoder(args, runtime.place(model), runtime, images, what, fig)


def networks(args, image_channels):
    """An untrained AutoencoderKL for images of args.size = (H, W), and its PatchDiscriminator, or
    None where args.gan_weight is 0."""
    c = args.channels
    widths, groups = (c, 2 * c, 4 * c), norm_groups(c)
    config = AutoencoderConfig(image_channels, args.latent_channels, widths, args.blocks, groups)
    model = AutoencoderKL(config)
    if not args.gan_weight:
        return model, None
    layers = 3 if min(args.size) >= 128 else 2  # a logit sees 70x70 pixels, or 34x34
    return model, PatchDiscriminator(DiscriminatorConfig(image_channels, 2 * c, layers))


def gan_phase(step, steps):
    """(whether the discriminator trains, share in [0, 1] of the GAN weight) at this step."""
    done = step / steps
    ramp = (done - DISC_START - DISC_ALONE) / GAN_RAMP
    return done >= DISC_START, min(1.0, max(0.0, ramp))


def adaptive_gan_loss(discriminate, x, x_hat, runtime, optimizer):
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


def discriminate_both(discriminate, x, x_hat, runtime):
    """The discriminator's logits of originals and of the reconstructions' detail."""
    with runtime.autocast():
        return discriminate(torch.cat([x, with_low_frequencies(x_hat, x)])).chunk(2)


def random_flip(images):
    """Each image (B, C, H, W) mirrored with probability 1/2."""
    flip = (torch.rand(len(images)) < 0.5).to(images.device, non_blocking=images.is_cuda)
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def fixed_images(dataset, n):
    """The readable ones of the first n images of a data set: (n, C, H, W) in [-1, 1]."""
    indices = range(min(n, len(dataset)))
    batches = [list(indices[i : i + 32]) for i in range(0, len(indices), 32)]
    loaded = [images for images, _ in load_batches(dataset, batches, 0)]
    return to_pixels(torch.cat(loaded)) if loaded else None


def weight_norms(**networks):
    """{"weights_NAME": root of the sum of squares of all weights}."""

    def norm(network):
        return torch.stack([p.detach().norm() for p in network.parameters()]).norm().item()

    return {f"weights_{name}": norm(network) for name, network in networks.items()}


def validate(runtime, valid, **models):
    """PSNR of each model's reconstructions; the last one's gradient magnitude, as a share of the
    originals', and the KL of its latents, in nats."""
    metrics = {}
    for name, model in models.items():
        posterior, x_hat = reconstruct(model, runtime, valid)
        metrics[f"psnr_{name}"] = psnr(valid, x_hat).mean().item()
    sharpness = gradient_magnitude(x_hat).mean() / gradient_magnitude(valid).mean()
    return {**metrics, "sharpness": sharpness.item(), "valid_kl": posterior.kl().mean().item()}


def draw_figures(run, valid, model, disc):
    """Reconstructions, latents, losses and, where disc is not None, its confidences."""
    runtime = run.runtime
    posterior, x_hat = reconstruct(model, runtime, valid)
    score = psnr(valid, x_hat).mean()
    x, x_hat = valid[:NUM_SHOWN], x_hat[:NUM_SHOWN]
    title = f"{run.name}: reconstructions, {score:.2f} dB on {len(valid)} validation images"
    rows = {"original": x, "reconstruction": x_hat}
    figures.image_rows(run.fig / "reconstructions.png", rows, title)
    figures.latent_statistics(run.fig / "latents.png", posterior.mean, posterior.logvar)
    panels = {
        "l2 loss": ["loss_rec"],
        "KL, nats per latent value": ["loss_kl", "valid_kl"],
        "validation PSNR, dB": ["psnr_raw", "psnr_ema"],
        "gradient magnitude, share of the originals'": ["sharpness"],
    }
    if disc:
        panels["discriminator's logits"] = ["logit_real", "logit_fake"]
        panels["discriminator's loss, GAN weight"] = ["loss_disc", "gan_weight"]
        panels["adaptive weight of the GAN term"] = ["adaptive_weight"]
        with torch.no_grad():
            real, fake = discriminate_both(disc, runtime.send(x), runtime.send(x_hat), runtime)
        title = f"{run.name}: the discriminator's confidence per patch, with its mean above"
        figures.confidences(run.fig / "confidences.png", title, x, x_hat, real, fake)
    figures.curves(run.fig / "losses.png", read_metrics(run.metrics, run.name), panels)


if __name__ == "__main__":
    options.run(main, ARGS)

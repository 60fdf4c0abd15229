"""Step 1: a KL autoencoder with an l2 + KL + patch-GAN loss (after Rombach et al. 2022, section
3.1), and a perceptual one where --perceptual-weight asks for it.

python3 train_encoder.py
python3 train_encoder.py --evaluate checkpoints/autoencoder/AAA.safetensors
"""

from command_line import entry, parsers

if __name__ == "__main__":
    ARGS = entry.begin(parsers.parse_encoder)  # before torch is imported: --help answers at once

from pathlib import Path

import torch

from command_line.defaults import default_size
from command_line.flags import EVALUATE, TRAIN, Arguments
from common.launch import is_first
from data.images import open_images
from generation.evaluation_autoencoder import (
    draw_best_and_worst,
    evaluate_autoencoder,
    print_evaluation,
)
from generation.output import save_record
from models.autoencoder import AutoencoderConfig, AutoencoderKL
from models.blocks import norm_groups
from models.discriminator import DiscriminatorConfig, PatchDiscriminator
from models.sizes import DENOISER_STRIDE, IMAGE_MULTIPLE, check_divides
from training import autoencoder, distributed
from training.beginning import autoencoder_flags, begin_run, discriminator_beside, network_in
from training.checkpoint import check_channels
from training.imported import check_images_said, load_autoencoder
from training.logs import check_log
from training.pretrained import load_perceptual
from training.resuming import check_same_data, find_state
from training.runtime import Runtime


def main(args: Arguments) -> None:
    """Train or evaluate, as the arguments say."""
    distributed.start(args.device)
    {TRAIN: train, EVALUATE: evaluate}[args.mode](args)
    distributed.leave()


def train(args: Arguments) -> None:
    """Train an autoencoder and, unless --gan-weight is 0, its discriminator."""
    state = find_state(args.resume, args.name, "autoencoder")
    args = args.resumed(state["settings"]) if state else args
    check_log(args.log)
    torch.manual_seed(args.seed)
    runtime = Runtime(args.device, args.precision, args.workers)
    perceptual, sees = None, args.perceptual_network
    if args.perceptual_weight:
        perceptual, sees = load_perceptual(sees)

    # What there is to go on with: the network of a resumed run, or of --init.
    begun = network_in(state) if state else None
    if args.init and not state:
        begun, known = load_autoencoder(args.init)
        known = {key: known[key] for key in ("data", "data_root", "size") if key in known}
        args = args.begun_from(args.init, autoencoder_flags(begun), known)

    # Data: of sizes that the denoiser to come can take too.
    size = tuple(args.size or default_size(args.data, runtime.on_gpu))
    height, width = size
    check_divides(height, width, DENOISER_STRIDE * begun.stride if begun else IMAGE_MULTIPLE)
    images = open_images(args.data, args.data_root, size, args.grey)
    data_id = images["train"].stamp()
    check_same_data(state, data_id)

    # The run: how long it is, and what its state keeps.
    settings, ids = {**args.settings(), "size": size, "perceptual_network": sees}, {"data": data_id}
    run = begin_run("autoencoder", args, len(images["train"]), runtime, settings, ids, state)

    # Networks: latents at a quarter of the size; no discriminator with --gan-weight 0.
    model = begun or autoencoder_network(
        images["train"].channels, args.latent_channels, args.channels, args.blocks, args.attention
    )
    model.encoder.requires_grad_(not args.freeze_encoder)
    model.quant_conv.requires_grad_(not args.freeze_encoder)
    disc = None
    if args.gan_weight:
        beside = discriminator_beside(args.init) if args.init and not state else None
        channels = model.config.image_channels
        disc = network_in(state, "disc") if state else beside
        disc = disc or discriminator_network(channels, args.channels, size)
    learner = autoencoder.AutoencoderLearner(
        model, disc, runtime, optimizer=args.optimizer, lr=args.lr, ema=args.ema,
        kl_weight=args.kl_weight, gan_weight=args.gan_weight, accumulate=args.accumulate,
        perceptual_weight=args.perceptual_weight, perceptual=perceptual,
    )  # fmt: skip

    # Train; a checkpoint says what its user has to know.
    facts = {"data": args.data, "data_root": args.data_root, "size": size}
    facts |= {"init": args.init} if args.init else {}
    autoencoder.train(
        run, learner, images, facts, not args.no_flip,
        disc_start=0.0 if args.init else autoencoder.DISC_START,
    )  # fmt: skip


def autoencoder_network(
    image_channels: int, latent_channels: int, channels: int, blocks: int, attention: bool = False
) -> AutoencoderKL:
    """An untrained AutoencoderKL with three levels."""
    widths, groups = (channels, 2 * channels, 4 * channels), norm_groups(channels)
    return AutoencoderKL(
        AutoencoderConfig(image_channels, latent_channels, widths, blocks, groups, attention)
    )


def discriminator_network(
    image_channels: int, channels: int, size: tuple[int, int]
) -> PatchDiscriminator:
    """An untrained PatchDiscriminator for images of size (H, W)."""
    layers = 3 if min(size) >= 128 else 2  # a logit sees 70x70 pixels, or 34x34
    return PatchDiscriminator(DiscriminatorConfig(image_channels, 2 * channels, layers))


def evaluate(args: Arguments) -> None:
    """Measure an autoencoder's reconstructions of the validation images; one process does it."""
    if not is_first():
        return
    # The autoencoder, and images that it was not trained on.
    model, facts = load_autoencoder(args.evaluate, ("data", "size"))
    check_images_said(args.evaluate, facts, args.given)
    runtime = Runtime(args.device, args.precision, args.workers)
    model = runtime.place(model)
    data = args.typed("data", facts.get("data"))
    height, width = size = tuple(args.typed("size", facts.get("size")))
    check_divides(height, width, model.stride)
    root = args.data_root_of(facts)
    grey = model.config.image_channels == 1
    images = open_images(data, root, size, grey)["valid"]
    check_channels(args.evaluate, model, images)

    # Measure, tell, draw.
    record, scores = evaluate_autoencoder(
        model, runtime, images,
        batch=args.batch,
        checkpoint=args.evaluate,
        what=f"{data}'s validation images, {height}x{width}",
    )  # fmt: skip
    fig = Path("fig/autoencoder")
    print_evaluation(record)
    draw_best_and_worst(fig / "evaluation.png", model, runtime, images, scores)
    save_record(fig / "evaluation.jsonl", record)


if __name__ == "__main__":
    entry.run(main, ARGS)

"""The command lines of the three scripts. No torch here: --help answers at once."""

from command_line import groups
from command_line.defaults import DIGITS, ENCODER, FACES, LATENT, MNIST
from command_line.editing import editing_flags
from command_line.finish import finish
from command_line.flags import ALL, SHOW, TRAIN, Arguments, Parser, Resuming
from command_line.values import integer, number

# fmt: off


def parse_mnist(argv: list[str] | None = None) -> Arguments:
    """Arguments of mnist_diffusion.py."""
    parser = Parser(
        "A DDPM (Ho et al. 2020) on the pixels of MNIST: train it, or let it draw. "
        "Its loss is the paper's own with --min-snr 0 --t-density uniform.",
        [
            "python3 mnist_diffusion.py --train",
            "python3 mnist_diffusion.py --train --resume --epochs 40",
            "python3 mnist_diffusion.py --show checkpoints/mnist/XXX.safetensors --sampler dpm++",
            "python3 mnist_diffusion.py --evaluate checkpoints/mnist/XXX.safetensors",
        ],
    )
    groups.mode_flags(parser)
    data = parser.group("data", ALL, Resuming.MOVABLE)
    groups.data_root_flags(data, "MNIST/raw/*.gz is; downloaded there if missing")
    groups.training_flags(parser, MNIST, ALL)
    groups.denoiser_flags(parser, MNIST, DIGITS, digits=True)
    groups.asking_flags(parser, digits=True)
    groups.showing_flags(parser, DIGITS)
    editing_flags(parser, latents=False)
    groups.machine_flags(parser)
    values, given = parser.read(argv)
    if values["show"] is not None and "neighbours" not in given:  # the training digits
        parser.refuse(given & {"data_root"}, SHOW)
    return finish(parser, values, given, DIGITS)


def parse_encoder(argv: list[str] | None = None) -> Arguments:
    """Arguments of train_encoder.py."""
    parser = Parser(
        "Train a KL autoencoder with an l2 + KL + patch-GAN loss (after Rombach et al. 2022, "
        "section 3.1).",
        [
            "python3 train_encoder.py",
            "python3 train_encoder.py --data path/to/pictures --size 128x96 --epochs 50",
            "python3 train_encoder.py --data synthetic --gan-weight 0 --steps 2000",
            "python3 train_encoder.py --evaluate checkpoints/autoencoder/AAA.safetensors",
        ],
    )
    # What to do, and with which images.
    mode = parser.group("what to do", ALL, Resuming.FORGOTTEN)
    mode.add("--evaluate",
        "train nothing: measure this autoencoder's reconstructions of the validation images "
        "(PSNR, SSIM, l1, rate), and draw the best and worst ones; a folder of diffusers' "
        "AutoencoderKL needs --data and --size",
        metavar="CKPT")
    images = groups.images_flags(parser)
    images.modes, images.resuming = frozenset({TRAIN}), Resuming.FIXED
    text = "read all images as grey, also those with colours"
    images.add("--grey", text, action="store_true")
    text = "no random mirror images: for data where left is not right"
    images.add("--no-flip", text, action="store_true")

    # How it is trained.
    groups.training_flags(parser, ENCODER, frozenset({TRAIN}))
    network = groups.network_flags(parser, "network and loss", ENCODER)
    network.add("--latent-channels", "channels of the latent image", integer(1, 64), "N", 3)
    text = "self-attention in the middle of encoder and decoder"
    network.add("--attention", text, action="store_true")
    network.add("--freeze-encoder",
        "with --init: train the decoder alone, so that latents, and the denoisers of them, stay as "
        "they are",
        action="store_true")
    text = "weight of the KL term, in nats per latent value"
    network.add("--kl-weight", text, number(0, 1e3), "W", 1e-4)
    network.add("--gan-weight",
        "weight of the GAN term: its gradient at the decoder's output is at most W times as long "
        "as the l2 term's; 0 trains without a discriminator",
        number(0, 1e3), "W", 2.0)
    groups.perceptual_flags(network)
    groups.machine_flags(parser, workers=True)
    values, given = parser.read(argv)
    args = finish(parser, values, given)
    if args.freeze_encoder and args.init is None and args.resume is None:
        parser.error("--freeze-encoder needs --init: the encoder of a checkpoint")
    if "perceptual_network" in given and not (args.perceptual_weight or args.resume):
        parser.error("--perceptual-network does nothing without --perceptual-weight")
    return args


def parse_latent(argv: list[str] | None = None) -> Arguments:
    """Arguments of latent_diffusion.py."""
    parser = Parser(
        "Diffusion in the latent space of an autoencoder: train the denoiser (the latents are "
        "cached on first use), or generate pictures.",
        [
            "python3 latent_diffusion.py --train --encoder checkpoints/autoencoder/AAA.safetensors",
            "python3 latent_diffusion.py --train --init checkpoints/denoiser/DDD.safetensors "
            "--data PATH",
            "python3 latent_diffusion.py --train --resume --epochs 40",
            "python3 latent_diffusion.py --show checkpoints/denoiser/DDD.safetensors",
            "python3 latent_diffusion.py --show checkpoints/denoiser/DDD.safetensors \\",
            "    --inpaint face.jpg --mask glasses.png --out inpainted",
            "python3 latent_diffusion.py --evaluate checkpoints/denoiser/DDD.safetensors",
        ],
    )
    # What to do, with which encoder and images.
    groups.mode_flags(parser).add("--encoder",
        "the autoencoder's checkpoint, or a folder of diffusers' AutoencoderKL; needed to begin a "
        "training, else it may be left out while the denoiser's own is in checkpoints/autoencoder/",
        metavar="CKPT|DIR", resuming=Resuming.MOVABLE)
    groups.images_flags(parser, of_encoder=True).add("--mirror",
        "also cache the mirror image of each training image: twice the disk, worth it for small "
        "data sets",
        action="store_true", modes=frozenset({TRAIN}), resuming=Resuming.FIXED)

    # How it is trained and shown.
    groups.training_flags(parser, LATENT, ALL)
    groups.denoiser_flags(parser, LATENT, FACES)
    groups.asking_flags(parser)
    groups.showing_flags(parser, FACES)
    editing_flags(parser, latents=True)
    groups.machine_flags(parser, workers=True)
    values, given = parser.read(argv)
    begins = values["train"] and values["resume"] is None and values["init"] is None
    if begins and values["encoder"] is None:
        parser.error("--train needs --encoder checkpoints/autoencoder/AAA.safetensors")
    if values["prediction"] == "eps" and values["init"] is None:
        # At the end of the cosine schedule an error of eps_hat is 20,000 times as large in x0_hat.
        if "schedule" in given and values["schedule"] == "cosine":
            parser.error("--schedule cosine does not go with --prediction eps of unbounded latents")
        values["schedule"] = values["schedule"] if "schedule" in given else "linear"
    return finish(parser, values, given, FACES)

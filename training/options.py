"""The command lines of the three scripts: flags, defaults, ranges, one-line errors.

No torch here: --help answers at once. A default has one home, this file.
"""

import argparse
import math
import re
import sys
import time
import traceback
from pathlib import Path

DEFAULTS = {
    "mnist": {"epochs": 20, "batch": 128, "lr": 2e-3, "channels": 32, "blocks": 1, "num_images": 30},
    "encoder": {"epochs": 10, "batch": 16, "lr": 1e-3, "channels": 32, "blocks": 1},
    "latent": {
        "epochs": 10, "batch": 64, "lr": 1e-3, "channels": 64, "blocks": 2, "num_images": 15,
    },
}  # fmt: skip
CELEBA_SIZE, OTHER_SIZE = (208, 176), (64, 64)  # (H, W)

# What belongs to the machine rather than to the run: a resumed run may change it.
MACHINE = {"device", "precision", "compile", "workers", "data_root", "encoder"}
ONLY_TRAIN = {
    "data", "size", "epochs", "steps", "lr", "channels", "blocks", "dropout", "ema", "name",
    "resume", "mirror", "data_root", "compile", "workers",
}  # fmt: skip
ONLY_SHOW = {"num_images", "sampling_steps", "sigma_scale", "out"}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def __init__(self, **kwargs):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs
        )

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse_mnist(argv=None):
    """Arguments of mnist_diffusion.py; `.given` holds the names of those that were typed."""
    parser = Parser(
        description="A plain DDPM (Ho et al. 2020) on the MNIST digits: train it, or let it draw.",
        epilog="examples:\n"
        "  python3 mnist_diffusion.py --train\n"
        "  python3 mnist_diffusion.py --train --resume --epochs 40\n"
        "  python3 mnist_diffusion.py --show checkpoints/mnist/XXX.safetensors --sampling-steps 50",
    )
    _mode(parser)
    data = parser.add_argument_group("data")
    _data_root(data, "MNIST/raw/*.gz; downloaded there if missing")
    _training(parser, DEFAULTS["mnist"])
    _denoiser(parser, DEFAULTS["mnist"])
    _showing(parser, DEFAULTS["mnist"], "fig/mnist/generated.png")
    _machine(parser, workers=False)
    return _finish(parser, argv)


def parse_encoder(argv=None):
    """Arguments of train_encoder.py."""
    default = DEFAULTS["encoder"]
    parser = Parser(
        description="Train a KL autoencoder with an l2 + KL + patch-GAN loss "
        "(Rombach et al. 2022, section 3.1).",
        epilog="examples:\n"
        "  python3 train_encoder.py\n"
        "  python3 train_encoder.py --data path/to/pictures --size 128x96 --epochs 50\n"
        "  python3 train_encoder.py --data synthetic --gan-weight 0 --steps 2000\n"
        "  python3 train_encoder.py --resume",
    )
    _images(parser).add_argument(
        "--no-flip", action="store_true", help="no random mirror images: left is not right here"
    )
    _training(parser, default)
    net = parser.add_argument_group("network and loss")
    _network(net, default)
    net.add_argument(
        "--latent-channels",
        type=integer(1, 64),
        default=3,
        metavar="N",
        help="channels of the latent image (default 3)",
    )
    net.add_argument(
        "--kl-weight",
        type=number(0, 1e3),
        default=1e-4,
        metavar="W",
        help="weight of the KL term, in nats per latent value (default 1e-4)",
    )
    net.add_argument(
        "--gan-weight", type=number(0, 1e3), default=0.5, metavar="W",
        help="weight of the GAN term beside its adaptive weight in [0, 1]; 0 trains without a "
        "discriminator (default 0.5)",
    )  # fmt: skip
    _machine(parser)
    return _finish(parser, argv)


def parse_latent(argv=None):
    """Arguments of latent_diffusion.py."""
    default = DEFAULTS["latent"]
    parser = Parser(
        description="Diffusion in the latent space of an autoencoder: train the denoiser "
        "(the latents are cached on first use), or generate pictures.",
        epilog="examples:\n"
        "  python3 latent_diffusion.py --train --encoder checkpoints/autoencoder/AAA.safetensors\n"
        "  python3 latent_diffusion.py --train --resume --epochs 20\n"
        "  python3 latent_diffusion.py --show checkpoints/denoiser/DDD.safetensors\n"
        "  python3 latent_diffusion.py --show checkpoints/denoiser/DDD.safetensors \\\n"
        "      --encoder checkpoints/autoencoder/AAA.safetensors --sigma-scale 0.95 --out low.png",
    )
    _mode(parser).add_argument(
        "--encoder", metavar="CKPT",
        help="the autoencoder's checkpoint; with --show it may be left out while the "
        "denoiser's own is in checkpoints/autoencoder/",
    )  # fmt: skip
    _images(parser, of_encoder=True).add_argument(
        "--mirror", action="store_true",
        help="also cache the mirror image of each training image: twice the disk, worth it for "
        "small data sets",
    )  # fmt: skip
    _training(parser, default)
    _denoiser(parser, default)
    _showing(parser, default, "fig/denoiser/generated.png")
    _machine(parser)
    return _finish(parser, argv)


# ---- Groups of flags ----------------------------------------------------------------------------


def _mode(parser):
    group = parser.add_argument_group("what to do")
    mode = group.add_mutually_exclusive_group(required=True)
    mode.add_argument("--train", action="store_true", help="train a denoiser")
    mode.add_argument("--show", metavar="CKPT", help="generate pictures with this denoiser")
    return group


def _data_root(group, what):
    group.add_argument(
        "--data-root", default="data", metavar="DIR", help=f"where {what} (default data/)"
    )


def _images(parser, of_encoder=False):
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", metavar="celeba|synthetic|PATH", default=None if of_encoder else "celeba",
        help="CelebA, drawn faces, or a folder or zip of images, searched recursively (default "
        + ("what the encoder was trained on)" if of_encoder else "celeba)"),
    )  # fmt: skip
    _data_root(group, "celeba/img_align_celeba(.zip) is; downloaded there if missing")
    group.add_argument(
        "--size", type=size, metavar="HxW",
        help="height x width in pixels, multiples of 16; images are resized to cover it and "
        "cropped (default "
        + ("the encoder's)" if of_encoder else "208x176 for celeba, else 64x64)"),
    )  # fmt: skip
    return group


def _training(parser, default):
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs",
        type=integer(1, 1_000_000),
        default=default["epochs"],
        metavar="N",
        help=f"passes over the training images in all (default {default['epochs']})",
    )
    length.add_argument(
        "--steps",
        type=integer(1, 1_000_000_000),
        metavar="N",
        help="training steps in all, instead of --epochs",
    )
    group.add_argument(
        "--batch",
        type=integer(1, 65536),
        default=default["batch"],
        metavar="N",
        help="images per step"
        + (", or pictures made at a time" if "num_images" in default else "")
        + f" (default {default['batch']})",
    )
    group.add_argument(
        "--lr",
        type=number(0, 1, open_low=True),
        default=default["lr"],
        metavar="RATE",
        help=f"peak learning rate: warm-up, then cosine (default {default['lr']:g})",
    )
    group.add_argument(
        "--ema",
        type=number(0, 1, open_high=True),
        default=0.999,
        metavar="DECAY",
        help="decay of the averaged weights, which checkpoints hold (default 0.999)",
    )
    group.add_argument(
        "--seed",
        type=integer(0, 2**31 - 1),
        default=0,
        metavar="N",
        help="seed of all random numbers"
        + ("; picture i of --show has seed N + i" if "num_images" in default else "")
        + " (default 0)",
    )
    group.add_argument(
        "--name",
        type=run_name,
        metavar="NAME",
        help="checkpoints are NAME_epoch0001.safetensors and so on (default date and time)",
    )
    group.add_argument(
        "--resume", nargs="?", const="newest", metavar="FILE",
        help="go on with the newest run, or with that of this .state file, with its settings; "
        "a larger --epochs or --steps prolongs it",
    )  # fmt: skip


def _network(group, default):
    group.add_argument(
        "--channels",
        type=integer(8, 4096),
        default=default["channels"],
        metavar="N",
        help="width of the first level, a multiple of 8; the network grows with it "
        f"(default {default['channels']})",
    )
    group.add_argument(
        "--blocks", type=integer(1, 16), default=default["blocks"], metavar="N",
        help=f"residual blocks per level (default {default['blocks']})",
    )  # fmt: skip


def _denoiser(parser, default):
    group = parser.add_argument_group("network")
    _network(group, default)
    group.add_argument(
        "--dropout", type=number(0, 1, open_high=True), default=0.0, metavar="P",
        help="dropout inside the residual blocks, 0 to 1 (default 0)",
    )  # fmt: skip


def _showing(parser, default, out):
    group = parser.add_argument_group("showing")
    group.add_argument(
        "--num-images",
        type=integer(1, 1_000_000),
        default=default["num_images"],
        metavar="N",
        help=f"pictures to generate (default {default['num_images']})",
    )
    group.add_argument(
        "--sampling-steps",
        type=integer(1, 1_000_000),
        metavar="N",
        help="denoising steps, 1 to the schedule's T (default T = 1000)",
    )
    group.add_argument(
        "--sigma-scale",
        type=number(0, 10),
        default=1.0,
        metavar="S",
        help="factor on the noise of each step: 1 is sigma_t = sqrt(beta_t), 0.95 gives cleaner "
        "pictures and less variety. With fewer than T steps it scales the posterior's standard "
        "deviation instead, because sqrt(beta) of a long step leaves grain (default 1)",
    )
    group.add_argument(
        "--out", default=out, metavar="PATH",
        help=f".png or .jpg: one grid; anything else: a folder of single pictures (default {out})",
    )  # fmt: skip


def _machine(parser, workers=True):
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda|mps",
        help="auto takes the GPU where there is one (default auto)",
    )
    group.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        metavar="auto|fp32|bf16|fp16",
        help="of the networks' arithmetic; auto is bf16 where the hardware multiplies in it, "
        "else fp32 (default auto)",
    )
    group.add_argument(
        "--compile", choices=["auto", "on", "off"], default="auto", metavar="auto|on|off",
        help="torch.compile while training; auto: on for runs of 10,000 steps and more, where a "
        "compiler is found (default auto)",
    )  # fmt: skip
    if workers:
        group.add_argument(
            "--workers", type=integer(0, 256), metavar="N",
            help="processes that decode images (default 0 on a CPU, up to 8 beside a GPU)",
        )  # fmt: skip


# ---- Values -------------------------------------------------------------------------------------


def integer(low, high):
    """An argparse type: a whole number in [low, high]."""

    def parse(text):
        if not re.fullmatch(r"[+-]?\d+", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {low} to {high}")
        return int(text)

    return parse


def number(low, high, open_low=False, open_high=False):
    """An argparse type: a finite number in [low, high], the ends left out where open."""

    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = (low < value if open_low else low <= value) and (
            value < high if open_high else value <= high
        )
        if not inside:
            words = f"{'above' if open_low else 'from'} {low:g} {'to below' if open_high else 'to'}"
            raise argparse.ArgumentTypeError(f"{text} is no number {words} {high:g}")
        return value

    return parse


def size(text):
    """HxW -> (H, W). Whether they divide is for the networks to say."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match or "0" in match.groups():
        raise argparse.ArgumentTypeError(f"{text} is no size; write HxW, as in 208x176")
    return int(match[1]), int(match[2])


def run_name(text):
    """A name that is safe in a file's name."""
    if not re.fullmatch(r"[\w.+-]{1,100}", text) or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text} is no name; use letters, digits, - _ + and .")
    return text


def default_size(data):
    """(H, W) of a data set for which nobody said it."""
    return CELEBA_SIZE if data == "celeba" else OTHER_SIZE


# ---- After parsing ------------------------------------------------------------------------------


def _finish(parser, argv):
    args = parser.parse_args(argv)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    args.given = set(vars(parser.parse_args(argv)))
    showing, training = getattr(args, "show", None), getattr(args, "train", True)
    unused = args.given & (ONLY_TRAIN if showing else ONLY_SHOW if training else set())
    if unused:
        flag = "--" + sorted(unused)[0].replace("_", "-")
        parser.error(f"{flag} does not go with {'--show' if showing else '--train'}")
    if "epochs" in args.given:
        args.steps = None
    if training and not args.resume:
        args.name = args.name or time.strftime("%Y%m%d-%H%M%S")
        if getattr(args, "encoder", "") is None:
            parser.error("--train needs --encoder checkpoints/autoencoder/AAA.safetensors")
    return args


def settings(args):
    """What of args makes the run what it is, to be kept in its state."""
    left_out = MACHINE | {"given", "resume", "train", "show"} | ONLY_SHOW
    kept = {k: v for k, v in vars(args).items() if k not in left_out}
    return {**kept, "data_root": args.data_root, "encoder": getattr(args, "encoder", None)}


def resumed(args, saved):
    """args with the saved settings of a run; what was typed may prolong it or move it.

    Raises ValueError where something typed contradicts the run.
    """
    merged = argparse.Namespace(**{**vars(args), **saved})
    for name in args.given:
        value = getattr(args, name)
        value_then = list(value) if isinstance(value, tuple) else value
        if name in MACHINE | {"epochs", "steps", "resume", "train"}:
            setattr(merged, name, value)
        elif value_then != saved.get(name):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag}: the run to resume has {saved.get(name)}; leave it out")
    if "epochs" in args.given:
        merged.steps = None
    merged.size = tuple(saved["size"]) if saved.get("size") else None
    return merged


def run(main):
    """Call main(); an error that this project raised for the user becomes one line, status 2."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        ours = Path(__file__).resolve().parent.parent in raised_in.parents
        if type(error).__name__ == "OutOfMemoryError":
            error = "out of memory; a smaller --batch, --size or --channels needs less"
        elif not (isinstance(error, OSError) or (isinstance(error, ValueError) and ours)):
            raise  # a fault of the program: whoever reports it needs the traceback
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)

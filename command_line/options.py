"""The command lines of the three scripts: flags, defaults, ranges, one-line errors.

No torch here: --help answers at once. A default has one home, this file.
"""

import argparse
import math
import os
import re
import sys
import time
from pathlib import Path

from common.choices import PICTURES, SAMPLERS
from common.errors import UserError

# images: shown in all, (on a CPU, on a GPU), which gives the default of --epochs for any data set.
MNIST = {"images": (840_000, 840_000), "batch": 64, "lr": 1e-3, "optimizer": "muon",
         "channels": 32, "blocks": 1, "min_snr": 5.0, "t_density": "lognormal",
         "prediction": "eps",
         "schedule": "linear", "num_images": 30}  # fmt: skip
ENCODER = {"images": (170_000, 1_600_000), "batch": 16, "lr": 1e-3, "optimizer": "muon",
           "channels": 32, "blocks": 1}  # fmt: skip
LATENT = {"images": (1_000_000, 3_200_000), "batch": 64, "lr": 1e-3, "optimizer": "adamw",
          "channels": 64, "blocks": 1, "min_snr": 5.0, "t_density": "uniform",
          "prediction": "v",
          "schedule": "cosine", "num_images": 15}  # fmt: skip
CELEBA_SIZE, OTHER_SIZE = (208, 176), (64, 64)  # (H, W); CelebA on a GPU, all else

# What belongs to the machine is not kept in a run's state; what is movable may be typed anew when
# the run is resumed.
MACHINE = {"device", "compile", "workers"}
MOVABLE = MACHINE | {
    "precision", "data", "data_root", "encoder", "epochs", "steps", "resume", "train",
}  # fmt: skip
ONLY_TRAIN = {
    "data", "size", "epochs", "steps", "lr", "optimizer", "channels", "blocks", "dropout",
    "min_snr", "t_density", "prediction", "schedule", "ema", "name", "resume", "mirror",
    "data_root", "compile", "workers", "no_flip", "latent_channels", "kl_weight", "gan_weight",
}  # fmt: skip
ONLY_SHOW = {
    "num_images", "sampler", "sampling_steps", "eta", "sigma_scale", "out", "film", "interpolate",
    "neighbours",
}  # fmt: skip
TO_EVALUATE = {"data", "data_root", "workers"}  # of ONLY_TRAIN, what --evaluate takes too
# --num-images in these modes: default, fewest, most (figures are drawn when all pictures are made).
NUM_IMAGES = {"evaluate": (2000, 2, math.inf), "film": (1, 1, 8),
              "interpolate": (9, 2, math.inf), "neighbours": (8, 1, 100)}  # fmt: skip
FIGURES = {"film", "interpolate", "neighbours"}
EVALUATED_STEPS = 50  # ddpm's, in --evaluate


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
        description="A DDPM (Ho et al. 2020) on the pixels of MNIST: train it, or let it draw. "
        "Its loss is the paper's own with --min-snr 0 --t-density uniform.",
        epilog="examples:\n"
        "  python3 mnist_diffusion.py --train\n"
        "  python3 mnist_diffusion.py --train --resume --epochs 40\n"
        "  python3 mnist_diffusion.py --show checkpoints/mnist/XXX.safetensors --sampler dpm++\n"
        "  python3 mnist_diffusion.py --evaluate checkpoints/mnist/XXX.safetensors",
    )
    _mode(parser)
    _data_root(parser.add_argument_group("data"), "MNIST/raw/*.gz is; downloaded there if missing")
    _training(parser, MNIST)
    _denoiser(parser, MNIST)
    _showing(parser, MNIST, "fig/mnist")
    _machine(parser, workers=False)
    return _finish(parser, argv, needed_to_show={"neighbours": "data_root"})


def parse_encoder(argv=None):
    """Arguments of train_encoder.py."""
    parser = Parser(
        description="Train a KL autoencoder with an l2 + KL + patch-GAN loss "
        "(after Rombach et al. 2022, section 3.1).",
        epilog="examples:\n"
        "  python3 train_encoder.py\n"
        "  python3 train_encoder.py --data path/to/pictures --size 128x96 --epochs 50\n"
        "  python3 train_encoder.py --data synthetic --gan-weight 0 --steps 2000\n"
        "  python3 train_encoder.py --resume\n"
        "  python3 train_encoder.py --evaluate checkpoints/autoencoder/AAA.safetensors",
    )
    text = (
        "train nothing: measure this autoencoder's reconstructions of the validation images "
        "(PSNR, SSIM, l1, rate), and draw the best and worst ones"
    )
    _flag(parser.add_argument_group("what to do"), "--evaluate", text, metavar="CKPT")
    text = "no random mirror images: for data where left is not right"
    _flag(_images(parser), "--no-flip", text, action="store_true")
    _training(parser, ENCODER)
    net = _network(parser, "network and loss", ENCODER)
    _flag(net, "--latent-channels", "channels of the latent image", integer(1, 64), "N", 3)
    text = "weight of the KL term, in nats per latent value"
    _flag(net, "--kl-weight", text, number(0, 1e3), "W", 1e-4)
    text = (
        "weight of the GAN term: its gradient at the decoder's output is at most W times as long "
        "as the l2 term's; 0 trains without a discriminator"
    )
    _flag(net, "--gan-weight", text, number(0, 1e3), "W", 2.0)
    _machine(parser)
    return _finish(parser, argv)


def parse_latent(argv=None):
    """Arguments of latent_diffusion.py."""
    parser = Parser(
        description="Diffusion in the latent space of an autoencoder: train the denoiser "
        "(the latents are cached on first use), or generate pictures.",
        epilog="examples:\n"
        "  python3 latent_diffusion.py --train --encoder checkpoints/autoencoder/AAA.safetensors\n"
        "  python3 latent_diffusion.py --train --resume --epochs 40\n"
        "  python3 latent_diffusion.py --show checkpoints/denoiser/DDD.safetensors\n"
        "  python3 latent_diffusion.py --show checkpoints/denoiser/DDD.safetensors \\\n"
        "      --encoder checkpoints/autoencoder/AAA.safetensors --sigma-scale 0.95 --out low.png\n"
        "  python3 latent_diffusion.py --evaluate checkpoints/denoiser/DDD.safetensors",
    )
    text = (
        "the autoencoder's checkpoint; needed to begin a training, else it may be left out while "
        "the denoiser's own is in checkpoints/autoencoder/"
    )
    _flag(_mode(parser), "--encoder", text, metavar="CKPT")
    text = (
        "also cache the mirror image of each training image: twice the disk, worth it for small "
        "data sets"
    )
    _flag(_images(parser, of_encoder=True), "--mirror", text, action="store_true")
    _training(parser, LATENT)
    _denoiser(parser, LATENT)
    _showing(parser, LATENT, "fig/denoiser")
    _machine(parser)
    return _finish(parser, argv)


# ---- Groups of flags ----------------------------------------------------------------------------


def _flag(
    group, name, text, type=None, metavar=None, default=None, limits=None, otherwise=None, **more
):
    """Add a flag whose help ends with its limits (those of its type) and its default, or with what
    happens otherwise, in words."""
    notes = [limits or getattr(type, "limits", None), otherwise and f"default: {otherwise}"]
    if default is not None:
        notes.append(f"default {default:g}" if isinstance(default, float) else f"default {default}")
        more["default"] = default
    if any(notes):
        text += f" ({'; '.join(filter(None, notes))})"
    if type is not None:
        more["type"] = type
    if metavar is not None:
        more["metavar"] = metavar
    group.add_argument(name, help=text, **more)


def _mode(parser):
    group = parser.add_argument_group("what to do")
    mode = group.add_mutually_exclusive_group(required=True)
    mode.add_argument("--train", action="store_true", help="train a denoiser")
    mode.add_argument("--show", metavar="CKPT", help="generate pictures with this denoiser")
    text = (
        "measure this denoiser: Frechet distance, precision and recall of its samples against real "
        f"images that it was not trained on (ddpm: {EVALUATED_STEPS} steps)"
    )
    mode.add_argument("--evaluate", metavar="CKPT", help=text)
    return group


def _data_root(group, what):
    _flag(group, "--data-root", f"where {what}", metavar="DIR", default="data")


def _images(parser, of_encoder=False):
    group = parser.add_argument_group("data")
    text = "CelebA, drawn faces, or a folder or zip of images, searched recursively"
    otherwise = "what the encoder was trained on" if of_encoder else None
    default = None if of_encoder else "celeba"
    _flag(group, "--data", text, None, "celeba|synthetic|PATH", default, otherwise=otherwise)
    _data_root(group, "celeba/img_align_celeba(.zip) is; downloaded there if missing")
    text = "height x width in pixels, multiples of 16; images are resized to cover it and cropped"
    otherwise = "the encoder's" if of_encoder else "64x64; 208x176 for celeba on a GPU"
    _flag(group, "--size", text, size, "HxW", otherwise=otherwise)
    return group


def _training(parser, default):
    shows = "num_images" in default
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group()
    cpu, gpu = default["images"]
    many = f"{cpu:,} images" + (f" on a CPU, {gpu:,} on a GPU" if gpu != cpu else "")
    text = "passes over the training images in all"
    _flag(length, "--epochs", text, integer(1, 10**6), "N", otherwise=f"as many as show {many}")
    _flag(length, "--steps", "training steps in all, instead of --epochs", integer(1, 10**9), "N")
    text = "images per step" + ", or pictures made at a time" * shows
    _flag(group, "--batch", text, integer(1, 65536), "N", default["batch"])
    text = "peak learning rate: warm-up, then cosine"
    _flag(group, "--lr", text, number(0, 1, open_low=True), "RATE", default["lr"])
    text = (
        "muon: steps that are orthogonal matrices, with AdamW for norms, biases, first and last "
        "layers; adamw: AdamW for all; both at --lr"
    )
    _choice(group, "--optimizer", text, ["muon", "adamw"], default["optimizer"])
    text = "decay of the averaged weights, which checkpoints hold"
    _flag(group, "--ema", text, number(0, 1, open_high=True), "DECAY", 0.999)
    text = "seed of all random numbers" + "; picture i of --show has seed N + i" * shows
    _flag(group, "--seed", text, integer(0, 2**31 - 1), "N", 0)
    text = "checkpoints are NAME_epoch0001.safetensors and so on"
    _flag(group, "--name", text, run_name, "NAME", otherwise="date, time and process")
    text = (
        "go on with the newest run, or with that of this name or .state file, with its settings; a "
        "larger --epochs or --steps prolongs it and stretches its schedules"
    )
    _flag(group, "--resume", text, metavar="RUN", nargs="?", const="newest")
    parser.set_defaults(images=default["images"])


def _network(parser, title, default):
    group = parser.add_argument_group(title)
    text = "width of the first level, with which the others grow"
    _flag(group, "--channels", text, integer(8, 4096, 8), "N", default["channels"])
    text = "residual blocks per level"
    _flag(group, "--blocks", text, integer(1, 16), "N", default["blocks"])
    return group


def _denoiser(parser, default):
    group = _network(parser, "network", default)
    text = "dropout inside the residual blocks"
    _flag(group, "--dropout", text, number(0, 1, open_high=True), "P", 0.0)
    text = (
        "how much each t counts in the loss: in proportion to min(SNR, G) / SNR, "
        "SNR = alpha_bar / (1 - alpha_bar); 0: all t alike"
    )
    _flag(group, "--min-snr", text, number(0, 1e6), "G", default["min_snr"])
    text = (
        "how t is drawn: lognormal takes those more often that teach most; each loss is divided by "
        "T times its t's probability, so that the expected loss is the same"
    )
    _choice(group, "--t-density", text, ["uniform", "lognormal"], default["t_density"])
    text = (
        "what the network puts out: eps (Ho et al. 2020), or v (Salimans & Ho 2022), of which eps "
        "is made"
    )
    _choice(group, "--prediction", text, ["v", "eps"], default["prediction"])
    text = (
        "how noise grows with t: linear (Ho et al. 2020), scaled_linear (Rombach et al. 2022) or "
        "cosine (Nichol & Dhariwal 2021)"
    )
    _choice(group, "--schedule", text, ["linear", "scaled_linear", "cosine"], default["schedule"])


def _showing(parser, default, folder):
    group = parser.add_argument_group("showing")
    otherwise = str(default["num_images"])
    otherwise += "".join(f", {n} with --{mode}" for mode, (n, *_) in NUM_IMAGES.items())
    text = "pictures to generate"
    _flag(group, "--num-images", text, integer(1, 10**6), "N", otherwise=otherwise)
    text = (
        "ddpm: ancestral, adds noise at each step; ddim: adds --eta of it; dpm++: of second order"
    )
    _choice(group, "--sampler", text, SAMPLERS, "ddpm")
    limits = "1 to the schedule's T, which is 1000"
    otherwise = ", ".join(f"{of.steps or 'T'} for {name}" for name, of in SAMPLERS.items())
    _flag(group, "--sampling-steps", "denoising steps", integer(1, 10**6), "N", limits=limits,
          otherwise=otherwise)  # fmt: skip
    text = "noise of --sampler ddim: 0 adds none, 1 as much as ddpm with skipped steps"
    _flag(group, "--eta", text, number(0, 1), "E", 0.0)
    text = (
        "factor on the noise of each step; 0.95 gives cleaner pictures and less variety. 1 is "
        "sigma_t = sqrt(beta_t) in ddpm over all T steps, else the posterior's standard deviation "
        "(times --eta in ddim), because sqrt(beta) of a long step leaves grain"
    )
    _flag(group, "--sigma-scale", text, number(0, 10), "S", 1.0)
    seeing = group.add_mutually_exclusive_group()
    text = "instead: xt and the predicted x0 at ten t, as a strip, and as an animated GIF beside it"
    _flag(seeing, "--film", text, action="store_true")
    text = "instead: a strip of pictures on the way from seed A's to seed B's"
    _flag(seeing, "--interpolate", text, integer(0, 2**31 - 1), ("SEED_A", "SEED_B"), nargs=2)
    text = "instead: each picture above the training images nearest to it"
    _flag(seeing, "--neighbours", text, action="store_true")
    text = (
        ".png or .jpg: one grid; anything else: a folder of single PNGs, which is gone on with if "
        "it was begun"
    )
    otherwise = (
        f"{folder}/generated.png, or film.png, interpolate.png, neighbours.png; with --evaluate a "
        "folder named by its settings"
    )
    _flag(group, "--out", text, metavar="PATH", otherwise=otherwise)
    parser.set_defaults(showing=(default["num_images"], folder))


def _machine(parser, workers=True):
    group = parser.add_argument_group("machine")
    text = "auto takes the GPU where there is one"
    _flag(group, "--device", text, metavar="auto|cpu|cuda|mps", default="auto")
    text = "of the networks' arithmetic; auto: bf16 where the hardware multiplies in it, else fp32"
    _choice(group, "--precision", text, ["auto", "fp32", "bf16", "fp16"])
    text = (
        "torch.compile while training; auto: for runs of 10,000 steps and more on a GPU, where it "
        "works"
    )
    _choice(group, "--compile", text, ["auto", "on", "off"])
    if workers:
        text, otherwise = "processes that decode images", "0 on a CPU, up to 8 beside a GPU"
        _flag(group, "--workers", text, integer(0, 256), "N", otherwise=otherwise)


def _choice(group, name, text, choices, default="auto"):
    _flag(group, name, text, metavar="|".join(choices), default=default, choices=choices)


# ---- Values -------------------------------------------------------------------------------------


def integer(low, high, multiple=1):
    """An argparse type: a whole number in [low, high], divisible by multiple. It knows its limits,
    in words."""

    def parse(text):
        if not re.fullmatch(r"[+-]?\d+", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {low} to {high}")
        if int(text) % multiple:
            raise argparse.ArgumentTypeError(f"{text} is no multiple of {multiple}")
        return int(text)

    parse.limits = f"{low:,} to {high:,}" + f", a multiple of {multiple}" * (multiple > 1)
    return parse


def number(low, high, open_low=False, open_high=False):
    """An argparse type: a finite number in [low, high], the ends left out where open. It knows its
    limits, in words."""
    ends = f"{low:g} {'to below' if open_high else 'to'} {high:,.10g}"

    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = (low < value if open_low else low <= value) and (
            value < high if open_high else value <= high
        )
        if not inside:
            words = f"{'above' if open_low else 'from'} {ends}"
            raise argparse.ArgumentTypeError(f"{text} is no number {words}")
        return value

    parse.limits = "above " * open_low + ends
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


def default_size(data, on_gpu):
    """(H, W) of a data set for which nobody said it: what the machine can do in hours."""
    return CELEBA_SIZE if data == "celeba" and on_gpu else OTHER_SIZE


def default_epochs(images, on_gpu, per_epoch):
    """Epochs for which nobody said them: images = (on a CPU, on a GPU) shown in all."""
    return max(1, round(images[on_gpu] / per_epoch))


def data_root(args, facts):
    """Where the data are: as those facts of a checkpoint have it, unless it was typed."""
    return args.data_root if "data_root" in args.given else facts.get("data_root", args.data_root)


# ---- After parsing ------------------------------------------------------------------------------


def _finish(parser, argv, needed_to_show=None):
    """Parsed arguments with `.given`, and defaults that depend on other arguments.

    needed_to_show: {flag: what of ONLY_TRAIN goes with it}.
    """
    args = parser.parse_args(argv)
    unset = object()  # parsed again, what was not typed stays as it is put in
    typed = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    args.given = {name for name, value in vars(typed).items() if value is not unset}
    showing = vars(args).pop("showing", None)
    if args.evaluate is not None:
        _refuse(parser, (args.given & ONLY_TRAIN) - TO_EVALUATE, "--evaluate")
        _refuse(parser, args.given & FIGURES, "--evaluate")
        if showing:
            _finish_showing(parser, args, *showing)
        else:
            _refuse(parser, args.given & {"seed"}, "--evaluate")
    elif getattr(args, "train", True):
        _refuse(parser, args.given & ONLY_SHOW, "--train")
        if args.resume is None:
            # Runs that a loop starts in the same second are told apart by their processes.
            args.name = args.name or f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            if getattr(args, "encoder", "") is None:
                parser.error("--train needs --encoder checkpoints/autoencoder/AAA.safetensors")
    else:
        needed = {what for flag, what in (needed_to_show or {}).items() if flag in args.given}
        _refuse(parser, (args.given & ONLY_TRAIN) - needed, "--show")
        _finish_showing(parser, args, *showing)
    return args


def _refuse(parser, unused, mode):
    if unused:
        parser.error(f"--{sorted(unused)[0].replace('_', '-')} does not go with {mode}")


def _finish_showing(parser, args, num_images, folder):
    """Check that the flags of --show go together, and fill in what depends on others."""
    if "eta" in args.given and "eta" not in SAMPLERS[args.sampler].settings:
        parser.error(f"--eta is for --sampler ddim, and does nothing in {args.sampler}")
    silent = {
        "dpm++": args.sampler == "dpm++",
        "ddim with --eta 0": args.sampler == "ddim" and args.eta == 0,
        "a single step": args.sampling_steps == 1,
    }
    if "sigma_scale" in args.given and any(silent.values()):
        what = next(name for name, holds in silent.items() if holds)
        parser.error(f"--sigma-scale scales the noise of each step, but {what} adds none")
    figure = next(iter(args.given & FIGURES), None)
    mode = figure if args.evaluate is None else "evaluate"
    default, fewest, most = NUM_IMAGES.get(mode, (num_images, 1, math.inf))
    args.num_images = args.num_images or default
    if args.num_images < fewest:
        parser.error(f"--{mode} needs --num-images {fewest} or more")
    if args.num_images > most:
        parser.error(f"--{mode} shows at most {most} pictures, --num-images asks for more")
    if figure == "interpolate" and "seed" in args.given:
        parser.error("--seed does not go with --interpolate, which names two")
    if figure == "film":
        _refuse(parser, args.given & {"batch"}, "--film")
    if mode == "evaluate":
        if args.sampler == "ddpm":
            args.sampling_steps = args.sampling_steps or EVALUATED_STEPS
        args.out = args.out or f"{folder}/evaluation/{_named_by_settings(args)}"
        if Path(args.out).suffix.lower() in PICTURES:
            parser.error(f"--evaluate makes a folder of pictures, but --out is {args.out}")
    args.out = args.out or f"{folder}/{figure or 'generated'}.png"
    if figure and not args.out.lower().endswith(".png"):
        parser.error(f"--{figure} makes a .png, but --out is {args.out}")


def _named_by_settings(args):
    """A folder's name for the samples of --evaluate: the checkpoint's, and the sampler's flags."""
    choice = SAMPLERS[args.sampler]
    name = f"{Path(args.evaluate).stem}-{args.sampler}{args.sampling_steps or choice.steps}"
    typed = [flag for flag in choice.settings if flag in args.given]
    return name + "".join(f"-{flag}{getattr(args, flag):g}" for flag in typed)


def settings(args):
    """What of args makes the run what it is, to be kept in its state."""
    modes = {"train", "show", "evaluate"}
    left_out = MACHINE | modes | {"given", "images", "resume"} | ONLY_SHOW
    return {k: v for k, v in vars(args).items() if k not in left_out}


def resumed(args, saved):
    """args with the saved settings of a run; what was typed may prolong it or move it.

    Raises UserError where something typed contradicts the run.
    """
    saved = {"optimizer": "adamw", **saved}  # of runs from before this flag
    if hasattr(args, "min_snr"):  # and from before these, all t alike
        saved = {"min_snr": 0.0, "t_density": "uniform", **saved}
        saved = {"prediction": "eps", "schedule": "linear", **saved}
    merged = argparse.Namespace(**{**vars(args), **saved})
    for name in args.given:
        value = getattr(args, name)
        as_saved = list(value) if isinstance(value, tuple) else value
        if name in MOVABLE:
            setattr(merged, name, value)
        elif as_saved != saved.get(name):
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag}: the run to resume has {saved.get(name)}; leave it out")
    if "epochs" in args.given:
        merged.steps = None
    merged.size = tuple(saved["size"]) if saved.get("size") else None
    return merged


def _out_of_memory(error):
    """Whether the memory of a GPU (CUDA: OutOfMemoryError; Apple's: RuntimeError) or of the machine
    (numpy: MemoryError; torch: RuntimeError) does not suffice."""
    words = "out of memory", "can't allocate memory", "not enough memory"
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in words)
    )


def run(main, args):
    """Call main(args); an error that the project raised for its user is one line, status 2."""
    if hasattr(sys.stdout, "reconfigure"):  # names of files may be no text in any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if _out_of_memory(error):
            error = (
                "out of memory; a smaller --batch needs less, for a training a smaller --channels "
                "or size of the images too"
            )
        elif isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):
            error = (
                "a process that decodes images has died; in a container shared memory may be "
                "short (docker run --shm-size 2g), and --workers 0 needs none"
            )
        elif not (
            isinstance(error, (UserError, OSError))
            or type(error).__name__ == "SafetensorError"  # a full disk, for example
        ):
            raise  # a fault of the program: whoever reports it needs the traceback
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)

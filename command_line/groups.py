"""The groups of flags that the scripts share. Each flag has its limits, its default and its words
here and nowhere else."""

from command_line.defaults import EVALUATED_STEPS, NUM_IMAGES, DenoiserDefaults, TrainingDefaults
from command_line.flags import ALL, EVALUATE, SHOW, TRAIN, Group, Parser, Resuming
from command_line.values import condition, integer, levels, number, run_name, size
from common.choices import (
    LOGS,
    LR_SCHEDULES,
    NUM_STEPS,
    OPTIMIZERS,
    PERCEPTUAL,
    PRECISIONS,
    PREDICTIONS,
    SAMPLERS,
    SCHEDULES,
    T_DENSITIES,
)

# A flag's name, its words, then its values:
# fmt: off


def mode_flags(parser: Parser) -> Group:
    group = parser.group("what to do", ALL, Resuming.FORGOTTEN)
    mode = group.either(required=True)
    mode.add("--train", "train a denoiser", action="store_true")
    mode.add("--show", "generate pictures with this denoiser", metavar="CKPT")
    mode.add("--evaluate",
        "measure this denoiser: Frechet distance, precision and recall of its samples against real "
        f"images that it was not trained on (ddpm: {EVALUATED_STEPS} steps)",
        metavar="CKPT")
    return group


def data_root_flags(group: Group, what: str) -> None:
    text = f"where {what}; a checkpoint that is given brings its own"
    group.add("--data-root", text, metavar="DIR", default="data")


def images_flags(parser: Parser, of_encoder: bool = False) -> Group:
    group = parser.group("data", frozenset({TRAIN, EVALUATE}), Resuming.MOVABLE)
    group.add("--data",
        "CelebA, drawn faces, or a folder, zip or tar (not compressed) of images, searched "
        "recursively; several tars: 'shards-{000..999}.tar'",
        metavar="celeba|synthetic|PATH", default=None if of_encoder else "celeba",
        otherwise="what the encoder was trained on")
    data_root_flags(group, "celeba/img_align_celeba(.zip) is; downloaded there if missing")
    multiples = "16, or of 4 times the encoder's stride" if of_encoder else "16"
    otherwise = "the encoder's" if of_encoder else "64x64; 208x176 for celeba on a GPU"
    modes = frozenset({TRAIN} if of_encoder else {TRAIN, EVALUATE})
    group.add("--size",
        f"height x width in pixels, multiples of {multiples}; images are resized to cover it and "
        "cropped",
        size, "HxW", otherwise=otherwise, modes=modes, resuming=Resuming.FIXED)
    return group


def training_flags(parser: Parser, default: TrainingDefaults, seeded: frozenset[str]) -> None:
    """seeded: the modes that draw random numbers, and so take --seed."""
    shows = SHOW in seeded
    group = parser.group("training", frozenset({TRAIN}), Resuming.FIXED)

    # How long, which a resumed run may change.
    cpu, gpu = default.images
    many = f"{cpu:,} images" + (f" on a CPU, {gpu:,} on a GPU" if gpu != cpu else "")
    length = group.either()
    length.add("--epochs", "passes over the training images in all", integer(1, 10**6), "N",
               otherwise=f"as many as show {many}", resuming=Resuming.MOVABLE)
    length.add("--steps", "training steps in all, instead of --epochs", integer(1, 10**9), "N",
               resuming=Resuming.MOVABLE)

    # How.
    text = "images per step" + ", or pictures made at a time" * shows
    group.add("--batch", text, integer(1, 65536), "N", default.batch, modes=ALL)
    text = "parts in which a step is done, one after the other, for less memory"
    group.add("--accumulate", text, integer(1, 65536), "K", 1, resuming=Resuming.MOVABLE)
    group.add("--lr", "peak learning rate", number(0, 1, open_low=True), "RATE", default.lr,
              resuming=Resuming.MOVABLE)
    group.add("--lr-schedule",
        "the rate after the warm-up; cosine: falls to the end, and rises again where a run "
        "is prolonged; trapezoid: stays, falls over the last fifth, and a run that is prolonged "
        "goes on from before that",
        default="cosine", choices=LR_SCHEDULES)
    group.add("--optimizer",
        "muon: Muon (Jordan et al. 2024) for the matrices of inner layers, AdamW for the rest; "
        "adamw: AdamW for all; both at --lr",
        default=default.optimizer, choices=OPTIMIZERS)
    text = "decay of the averaged weights, which checkpoints hold"
    group.add("--ema", text, number(0, 1, open_high=True), "DECAY", 0.999)
    text = "seed of all random numbers" + "; picture i of --show has seed N + i" * shows
    group.add("--seed", text, integer(0, 2**31 - 1), "N", 0, modes=seeded)

    # From where on, and under which name.
    group.add("--init",
        "begin with the weights of this checkpoint, instead of random ones; its network comes with "
        "them",
        metavar="CKPT|DIR")
    text = "checkpoints are NAME_epoch0001.safetensors and so on"
    group.add("--name", text, run_name, "NAME", otherwise="date, time and process")
    group.add("--resume",
        "go on with the newest run, or with that of this name or .state file, with its settings; a "
        "larger --epochs or --steps prolongs it (see --lr-schedule); another --lr or --accumulate "
        "is taken",
        metavar="RUN", nargs="?", const="newest", resuming=Resuming.FORGOTTEN)
    saving_flags(parser)
    parser.set_defaults(images=default.images)


def saving_flags(parser: Parser) -> None:
    group = parser.group("saving", frozenset({TRAIN}), Resuming.MOVABLE)
    text = "steps between checkpoints, whose names then have the step"
    otherwise = "the ends of epochs, at most 10 in a run"
    group.add("--save-every", text, integer(1, 10**9), "N", otherwise=otherwise)
    text = "keep the newest N checkpoints of the run, and the one that validates best"
    group.add("--keep", text, integer(1, 10**6), "N", otherwise="all")
    group.add("--log",
        "tensorboard: also write scalars and figures for TensorBoard, into the run's folder of "
        "figures; needs the package tensorboard",
        default="none", choices=LOGS)
    text = "save and end after so many minutes, with status 0; --resume goes on"
    group.add("--time-limit", text, number(0, 1e6, open_low=True), "MINUTES",
              resuming=Resuming.FORGOTTEN)


def network_flags(parser: Parser, title: str, default: TrainingDefaults) -> Group:
    group = parser.group(title, frozenset({TRAIN}), Resuming.FIXED)
    text = "width of the first level, with which the others grow"
    group.add("--channels", text, integer(8, 4096, 8), "N", default.channels)
    group.add("--blocks", "residual blocks per level", integer(1, 16), "N", 1)
    return group


def perceptual_flags(network: Group) -> None:
    network.add("--perceptual-weight",
        "weight of the perceptual loss (Zhang et al. 2018), in features of a network that was "
        "trained on ImageNet; 0 needs none",
        number(0, 1e3), "W", 0.0)
    network.add("--perceptual-network",
        "that network: torchvision's VGG16 or SqueezeNet, downloaded where they are not cached, or "
        "EfficientNet-Lite0 of its package; auto: the first of these that is here",
        default="auto", choices=PERCEPTUAL)


def denoiser_flags(
    parser: Parser, training: TrainingDefaults, default: DenoiserDefaults, digits: bool = False
) -> None:
    group = network_flags(parser, "network and loss", training)
    if digits:
        text = "labels: pictures of each digit can be asked for (see --label)"
        group.add("--condition", text, default="none", choices=("none", "labels"))
    else:
        group.add("--condition",
            "what can be asked for: attributes, of CelebA's list_attr_celeba.txt beside the images "
            "or in the data root; folders: the sub-folders' names as classes; or a table whose "
            "first line is name,label (classes) or name,Smiling,Hat, .. (attributes: 1, -1 or "
            "nothing)",
            condition, "none|attributes|folders|FILE.csv", "none", resuming=Resuming.MOVABLE)
    text = "dropout inside the residual blocks"
    group.add("--dropout", text, number(0, 1, open_high=True), "P", 0.0)
    group.add("--attention",
        "levels with self-attention (Vaswani et al. 2017) after each block, 0 for the finest: 2, "
        "or 1,2, or 0,1,2; with 2, the coarsest, the middle has it too",
        levels, "LEVELS", otherwise="none")
    group.add("--prediction",
        "what the network puts out: eps (Ho et al. 2020), or v (Salimans & Ho 2022), of which eps "
        "is made",
        default=default.prediction, choices=PREDICTIONS)
    group.add("--schedule",
        "how noise grows with t: linear (Ho et al. 2020), scaled_linear (Rombach et al. 2022) or "
        "cosine (Nichol & Dhariwal 2021)",
        default=default.schedule, choices=SCHEDULES)
    group.add("--min-snr",
        "how much each t counts in the loss: in proportion to min(SNR, G) / SNR, "
        "SNR = alpha_bar / (1 - alpha_bar); 0: all t alike",
        number(0, 1e6), "G", 5.0)
    group.add("--t-density",
        "how t is drawn: uniform, or lognormal, which draws the middle of the noise levels more "
        "often, because there is most to learn there; either way the expected loss is the same",
        default=default.t_density, choices=T_DENSITIES)


def asking_flags(parser: Parser, digits: bool = False) -> None:
    """What is asked of a denoiser that was trained with --condition."""
    group = parser.group("asking", frozenset({SHOW, EVALUATE}), Resuming.FORGOTTEN)
    what = group if digits else group.either()
    text = "these classes, a row for each: names with commas between them, or 0-9 for a range"
    what.add("--label", text, metavar="NAMES", modes=frozenset({SHOW}))
    if not digits:
        what.add("--attributes",
            "these attributes, and none of those after a -, as in 'Smiling,-Eyeglasses'; nothing "
            "is asked of the others; with ; between several, a row for each",
            metavar="NAMES", modes=frozenset({SHOW}))
    group.add("--guidance",
        "how much more than the condition is asked for (Ho & Salimans 2022): eps_u + W (eps_c - "
        "eps_u), in twice the time; 1: not more; 0: as if nothing was asked",
        number(0, 100), "W", 1.0)
    text = "guide only at these t, the condition alone at others (Kynkaanniemi et al. 2024)"
    group.add("--guidance-interval", text, integer(0, NUM_STEPS - 1), ("T_LO", "T_HI"), nargs=2,
              otherwise="all t")


def showing_flags(parser: Parser, default: DenoiserDefaults) -> None:
    group = parser.group("showing", frozenset({SHOW, EVALUATE}), Resuming.FORGOTTEN)

    # How pictures are made.
    otherwise = str(default.num_images)
    otherwise += "".join(f", {n} with --{mode}" for mode, (n, *_) in NUM_IMAGES.items())
    group.add("--num-images", "pictures to generate", integer(1, 10**6), "N", otherwise=otherwise)
    group.add("--sampler",
        "ddpm: ancestral, adds noise at each step; ddim: adds --eta of it; dpm++: of second order",
        default="ddpm", choices=tuple(SAMPLERS))
    otherwise = ", ".join(f"{choice.steps or 'T'} for {name}" for name, choice in SAMPLERS.items())
    text = f"denoising steps, up to the schedule's T, which is {NUM_STEPS}"
    group.add("--sampling-steps", text, integer(1, 10**6), "N", otherwise=otherwise)
    text = "noise of --sampler ddim: 0 adds none, 1 as much as ddpm with skipped steps"
    group.add("--eta", text, number(0, 1), "E", 0.0)
    group.add("--sigma-scale",
        "factor on the noise of each step; 0.95 gives cleaner pictures and less variety. 1 is "
        "sigma_t = sqrt(beta_t) in ddpm over all T steps, else the posterior's standard deviation "
        "(times --eta in ddim), because sqrt(beta) of a long step leaves grain",
        number(0, 10), "S", 1.0)

    # What is made instead, and where it goes.
    seeing = group.either()
    seeing.modes = frozenset({SHOW})
    text = "instead: xt and the predicted x0 at ten t, as a strip, and as an animated GIF beside it"
    seeing.add("--film", text, action="store_true")
    text = "instead: a strip of pictures on the way from seed A's to seed B's"
    seeing.add("--interpolate", text, integer(0, 2**31 - 1), ("SEED_A", "SEED_B"), nargs=2)
    text = "instead: each picture above the training images nearest to it"
    seeing.add("--neighbours", text, action="store_true")
    text = "instead: a folder that diffusers loads pipeline and weights from, with a model card"
    seeing.add("--export", text, metavar="DIR")
    text = ".png or .jpg: one grid; anything else: a folder of single PNGs; those there are kept"
    otherwise = (
        f"{default.fig}/generated.png, or film.png, interpolate.png, neighbours.png, or an edit's "
        "name; with --evaluate a folder named by its settings"
    )
    group.add("--out", text, metavar="PATH", otherwise=otherwise)


def machine_flags(parser: Parser, workers: bool = False) -> None:
    group = parser.group("machine", ALL, Resuming.FORGOTTEN)
    text = "auto takes the GPU where there is one"
    group.add("--device", text, metavar="auto|cpu|cuda|mps", default="auto")
    text = "of the networks' arithmetic; auto: bf16 where the hardware multiplies in it, else fp32"
    group.add("--precision", text, default="auto", choices=("auto", *PRECISIONS),
              resuming=Resuming.MOVABLE)
    group.add("--compile",
        "torch.compile while training; auto: for runs of 10,000 steps and more on a GPU, where it "
        "works",
        default="auto", choices=("auto", "on", "off"), modes=frozenset({TRAIN}))
    if workers:
        text, otherwise = "processes that decode images", "0 on a CPU, up to 8 beside a GPU"
        group.add("--workers", text, integer(0, 256), "N", otherwise=otherwise,
                  modes=frozenset({TRAIN, EVALUATE}))

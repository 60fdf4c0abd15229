"""A DDPM on MNIST's pixels (Ho et al. 2020): the baseline, and the sanity check of the denoiser.

python3 mnist_diffusion.py --train
python3 mnist_diffusion.py --show checkpoints/mnist/XXX.safetensors
python3 mnist_diffusion.py --export DIR --show checkpoints/mnist/XXX.safetensors
python3 mnist_diffusion.py --evaluate checkpoints/mnist/XXX.safetensors
"""

from command_line import entry, parsers

if __name__ == "__main__":
    ARGS = entry.begin(parsers.parse_mnist)  # before torch is imported: --help answers at once

import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from command_line.defaults import DIGITS
from command_line.editing import edit_of
from command_line.flags import EVALUATE, SHOW, TRAIN, Arguments
from common.choices import NUM_STEPS
from common.errors import UserError
from common.launch import is_first
from data.labels import digit_labels
from data.mnist import mnist_images, mnist_labels
from data.pixels import to_pixels
from generation.classifier import features, mnist_classifier
from generation.conditions import Guidance, all_asked, asked_for
from generation.edited import edit_picture
from generation.evaluation_asked import measure_classes
from generation.evaluation_denoiser import Reference, evaluate_denoiser, publish
from generation.export import export
from generation.image_sets import Space, read_pictures, tensor_images
from generation.output import fill_folder, make_pictures, picture_path
from generation.pipeline import Pipeline, load_beginning, load_denoiser
from generation.release import tell_card
from generation.seeing import TrainingSet
from models.scheduler import DDPMScheduler, SchedulerConfig
from models.unet import UNet
from training import denoiser, distributed
from training.beginning import (
    begin_run,
    denoiser_flags,
    facts_in,
    network_in,
    with_dropout,
    with_labels,
)
from training.checkpoint import fingerprint
from training.codec import PixelCodec
from training.conditions import use_labels
from training.logs import check_log
from training.resuming import find_state
from training.run import NUM_VALID
from training.runtime import Runtime

SHAPE = [1, 28, 28]  # of a digit
CHANNEL_MULT = 1, 2, 2  # of the widths, level by level


def main(args: Arguments) -> None:
    """Train, show or evaluate, as the arguments say."""
    distributed.start(args.device)
    {TRAIN: train, SHOW: show, EVALUATE: evaluate}[args.mode](args)
    distributed.leave()


def train(args: Arguments) -> None:
    """Train the denoiser on the 60,000 digits, as pixels in [-1, 1]."""
    state = find_state(args.resume, args.name, "mnist")
    args = args.resumed(state["settings"]) if state else args
    check_log(args.log)
    torch.manual_seed(args.seed)
    runtime = Runtime(args.device, args.precision)

    # Data: all digits fit on any device as uint8.
    args, model, known = begun(args, state)
    images = mnist_images(args.data_root, "train")
    data_id = f"mnist {zlib.crc32(images.numpy().tobytes()):08x}"
    images = images.to(runtime.device)
    valid = mnist_images(args.data_root, "test")
    counts = {"train": len(images), "test": len(valid)}
    labels = digit_labels(args.data_root, counts) if args.condition == "labels" else None
    ids, label_facts = use_labels(labels, {"data": data_id}, state)
    data = denoiser.DenoiserData(
        draw=lambda indices, _: runtime.send(to_pixels(images[indices.to(runtime.device)])),
        num_train=len(images),
        valid=runtime.send(to_pixels(valid[:NUM_VALID])),
        codec=PixelCodec(),
        labels=labels.of["train"] if labels else None,
        valid_c=labels.of["test"][:NUM_VALID].to(runtime.device) if labels else None,
    )

    # The run: how long it is, and what its state keeps.
    run = begin_run("mnist", args, len(images), runtime, args.settings(), ids, state)

    # Network and schedule: 28, 14 and 7 pixels; x0_hat is clipped, because pixels are bounded.
    model = with_labels(model, labels, known) or denoiser.network(
        1, args.channels, CHANNEL_MULT, args.blocks, args.dropout, args.attention, labels
    )
    scheduler = DDPMScheduler(
        SchedulerConfig(NUM_STEPS, args.schedule, args.prediction, clip_x0=True)
    )
    learner = denoiser.DenoiserLearner(
        model, scheduler, runtime, optimizer=args.optimizer, lr=args.lr, ema=args.ema,
        t_density=args.t_density, min_snr=args.min_snr, accumulate=args.accumulate,
    )  # fmt: skip

    # Train; a checkpoint says what its user has to know.
    facts = {"space": "pixels", "shape": SHAPE, "data": "mnist", "data_root": args.data_root}
    facts |= {"scheduler": asdict(scheduler.config)} | ({"init": args.init} if args.init else {})
    facts |= label_facts
    denoiser.train(run, learner, data, facts)


def begun(args: Arguments, state: dict | None) -> tuple[Arguments, UNet | None, dict[str, Any]]:
    """What there is to go on with: (args, the network and facts of a resumed run or of --init)."""
    if state:
        return args, network_in(state), facts_in(state, ())
    if not args.init:
        return args, None, {}
    model, scheduler, known = load_beginning(args.init, "pixels")
    check_digits(args.init, model, known.get("shape", [model.config.in_channels, 28, 28]))
    others = {"dropout": model.config.dropout}
    args = args.begun_from(args.init, denoiser_flags(model, scheduler), others)
    return args, with_dropout(model, args.dropout), known


def show(args: Arguments) -> None:
    """Draw new digits with a trained denoiser, or edit a picture."""
    pipeline, facts = load(args, args.show)
    if args.export is not None:
        return export(pipeline, Path(args.export), args.show, facts)
    tell_card(facts)
    out = Path(args.out)
    root = args.data_root_of(facts)
    asked = []
    if args.label is not None:
        guidance = Guidance(args.guidance, args.guidance_interval)
        asked = asked_for(args.show, facts, pipeline.model, guidance, args.label)
    if edit := edit_of(args, DIGITS.fig):
        return edit_picture(pipeline, SHAPE[1:], args.seeds, out, asked=asked, **edit)
    make_pictures(
        pipeline, args.seeds, out,
        asked=asked,
        film=args.film,
        interpolate=args.interpolate,
        neighbours=digits(root) if args.neighbours else None,
    )  # fmt: skip


def evaluate(args: Arguments) -> None:
    """Measure a trained denoiser's digits against the test set."""
    pipeline, facts = load(args, args.evaluate)
    guidance = Guidance(args.guidance, args.guidance_interval)
    asked = all_asked(args.evaluate, facts, pipeline.model, guidance)
    pipeline = replace(pipeline, asked=asked)
    folder = Path(args.out)
    if not is_first():
        return fill_folder(pipeline, args.seeds, folder)  # its share of the pictures

    # What they are compared with: MNIST, in the features of a classifier of it.
    root = args.data_root_of(facts)
    classifier = mnist_classifier(root)
    name = f"{classifier.config.features} features of a classifier of MNIST's digits"
    name += f" ({fingerprint(classifier)[:8]})"
    reference = Reference(
        test=tensor_images("MNIST's test images", mnist_images(root, "test")),
        train=tensor_images("MNIST's training images", mnist_images(root, "train")),
        spaces=[Space(name, lambda x: features(classifier, x))],
        training_set=digits(root),
    )

    # Measure, tell.
    record = evaluate_denoiser(pipeline, args.seeds, folder, reference, args.evaluate)
    if asked:
        real = mnist_images(root, "test"), mnist_labels(root, "test")
        pictures = read_pictures([picture_path(folder, seed) for seed in args.seeds])
        record["asked"] = measure_classes(classifier, pictures, asked.of_seeds(args.seeds), *real)
    publish(folder, record)


def load(args: Arguments, path: str) -> tuple[Pipeline, dict[str, Any]]:
    """(Pipeline of a denoiser's checkpoint, the checkpoint's facts)."""
    model, scheduler, facts = load_denoiser(path, "pixels")
    check_digits(path, model, facts["shape"])
    runtime = Runtime(args.device, args.precision)
    settings = {"eta": args.eta, "sigma_scale": args.sigma_scale}
    pipeline = Pipeline(
        runtime, runtime.place(model), scheduler, tuple(facts["shape"]), PixelCodec(),
        args.sampler, args.sampling_steps, settings, args.batch,
    )  # fmt: skip
    return pipeline, facts


def check_digits(path: str, model: UNet, shape: list[int]) -> None:
    """Raise UserError where a network makes pictures of another shape."""
    if shape != SHAPE or SHAPE[1] % model.stride:
        raise UserError(f"{path} makes pictures of {shape}, but digits are {SHAPE}")


def digits(root: str) -> TrainingSet:
    """The TrainingSet of the denoiser."""
    images = mnist_images(root, "train")
    return TrainingSet(lambda indices: to_pixels(images[list(indices)]), len(images))


if __name__ == "__main__":
    entry.run(main, ARGS)

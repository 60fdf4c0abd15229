"""A DDPM on MNIST's pixels (Ho et al. 2020): the baseline, and the sanity check of the denoiser.

python3 mnist_diffusion.py --train
python3 mnist_diffusion.py --show checkpoints/mnist/XXX.safetensors
python3 mnist_diffusion.py --evaluate checkpoints/mnist/XXX.safetensors
"""

from command_line import options

if __name__ == "__main__":
    ARGS = options.parse_mnist()  # before torch is imported: --help answers at once

import zlib
from dataclasses import asdict

import torch

from data.mnist import mnist_images
from data.pixels import to_pixels
from generation.classifier import features, mnist_classifier
from generation.evaluation import Space, evaluate_denoiser, tensor_images
from generation.pipeline import Pipeline, load_denoiser, make_pictures
from generation.seeing import TrainingSet
from training import denoiser
from training.checkpoint import fingerprint
from training.codec import PixelCodec
from training.run import resume, same_data
from training.runtime import Runtime

CHANNEL_MULT = 1, 2, 2  # of the widths, level by level


def main(args):
    """Train, show or evaluate, as the arguments say."""
    if args.train:
        train(args)
    elif args.show is not None:
        show(args)
    else:
        evaluate(args)


def train(args):
    """Train the denoiser on the 60,000 digits, as pixels in [-1, 1]."""
    args, state = resume(args, "mnist")
    torch.manual_seed(args.seed)
    runtime = Runtime(args)

    # Data: all digits fit on any device as uint8.
    images = mnist_images(args.data_root, "train")
    same_data(args, state, f"mnist {zlib.crc32(images.numpy()):08x}")
    images = images.to(runtime.device)
    valid = mnist_images(args.data_root, "test")[: denoiser.NUM_VALID]
    data = denoiser.DenoiserData(
        draw=lambda indices: runtime.send(to_pixels(images[indices.to(runtime.device)])),
        num_train=len(images),
        valid=runtime.send(to_pixels(valid)),
        codec=PixelCodec(),
    )

    # Network and schedule: 28, 14 and 7 pixels; x0_hat is clipped, because pixels are bounded.
    model, scheduler = denoiser.network_and_schedule(args, 1, CHANNEL_MULT, clip_x0=True)
    facts = {"space": "pixels", "shape": [1, 28, 28], "data": "mnist", "data_root": args.data_root}
    facts["scheduler"] = asdict(scheduler.config)
    denoiser.train(
        args, state, runtime=runtime, model=model, scheduler=scheduler, data=data, facts=facts,
        kind="mnist",
    )  # fmt: skip


def show(args):
    """Draw new digits with a trained denoiser."""
    pipeline, facts = load(args, args.show)
    make_pictures(pipeline, lambda: digits(options.data_root(args, facts)))


def evaluate(args):
    """Measure a trained denoiser's digits against the test set."""
    pipeline, facts = load(args, args.evaluate)
    root = options.data_root(args, facts)
    classifier = mnist_classifier(root)
    name = f"{classifier.config.features} features of a classifier of MNIST's digits"
    name += f" ({fingerprint(classifier)[:8]})"
    spaces = [Space(name, lambda x: features(classifier, x))]
    test = tensor_images("MNIST's test images", mnist_images(root, "test"))
    train = tensor_images("MNIST's training images", mnist_images(root, "train"))
    evaluate_denoiser(pipeline, test, train, spaces, digits(root))


def load(args, path):
    """(Pipeline of a denoiser's checkpoint, the checkpoint's facts)."""
    model, scheduler, facts = load_denoiser(path, "pixels")
    runtime = Runtime(args)
    model = runtime.place(model)
    return Pipeline(args, runtime, model, scheduler, facts["shape"], PixelCodec()), facts


def digits(root):
    """The TrainingSet of the denoiser."""
    images = mnist_images(root, "train")
    return TrainingSet(lambda indices: to_pixels(images[list(indices)]), len(images))


if __name__ == "__main__":
    options.run(main, ARGS)

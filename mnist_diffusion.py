"""A plain DDPM on MNIST (Ho et al. 2020): the baseline, and the sanity check of the denoiser.

python3 mnist_diffusion.py --train
python3 mnist_diffusion.py --show checkpoints/mnist/XXX.safetensors
"""

from training import options

if __name__ == "__main__":
    ARGS = options.parse_mnist()  # before torch is imported: --help answers at once

from dataclasses import asdict

import torch

from data.images import mnist, to_pixels
from training import denoiser
from training.run import resume, same_data
from training.runtime import Runtime
from training.seeing import TrainingSet
from training.show import load_denoiser, make_pictures


def main(args):
    """Train or show, as the arguments say."""
    if args.train:
        train(args)
    else:
        show(args)


def train(args):
    """Train the denoiser on the 60,000 digits, as pixels in [-1, 1]."""
    args, state = resume(args, "checkpoints/mnist")
    torch.manual_seed(args.seed)
    runtime = Runtime(args)

    # Data: all digits fit on any device as uint8.
    digits = mnist(args.data_root, "train").to(runtime.device)
    same_data(args, state, f"mnist {len(digits)}")
    valid = mnist(args.data_root, "test")[: denoiser.NUM_VALID]
    data = denoiser.DenoiserData(
        draw=lambda indices: runtime.send(to_pixels(digits[indices.to(runtime.device)])),
        num_train=len(digits),
        valid=runtime.send(to_pixels(valid)),
        decode=lambda x0: x0,
    )

    # Network and schedule: 28, 14 and 7 pixels; x0_hat is clipped, because pixels are bounded.
    model, scheduler = denoiser.network_and_schedule(args, 1, (1, 2, 2), clip_x0=True)
    facts = {"space": "pixels", "shape": [1, 28, 28], "data": "mnist"}
    facts["scheduler"] = asdict(scheduler.config)
    folders = "checkpoints/mnist", "fig/mnist"
    denoiser.train(args, state, runtime, model, scheduler, data, facts, *folders)


def show(args):
    """Draw new digits with a trained denoiser."""
    model, scheduler, facts = load_denoiser(args.show, "pixels")

    def training_set():
        digits = mnist(args.data_root, "train")
        return TrainingSet(lambda indices: to_pixels(digits[list(indices)]), len(digits))

    shape, to_images = facts["shape"], lambda x0: x0
    make_pictures(args, Runtime(args), model, scheduler, shape, to_images, training_set)


if __name__ == "__main__":
    options.run(main, ARGS)

"""The classifier whose features MNIST's samples are compared in: trained once, always alike."""

from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common.errors import UserError
from data.mnist import mnist_images, mnist_labels
from data.pixels import to_pixels, to_uint8
from models.classifier import Classifier, ClassifierConfig
from training.checkpoint import load_model, save_model
from training.optimizer import LrSchedule

CONFIG = ClassifierConfig(1, (32, 64, 64, 128), 128, 10)
EPOCHS, BATCH, LR, SHIFT, SEED = 4, 128, 4e-3, 2, 0  # SHIFT: of digits, in pixels
AT_LEAST = 0.99  # share of the test set that it must get right


def mnist_classifier(
    data_root: str | Path, path: str | Path = "checkpoints/classifier/mnist.safetensors"
) -> Classifier:
    """The Classifier in eval mode on the CPU: read from path, or trained (about a minute) and kept.

    Always trained on the CPU in fp32 from one seed, so that distances of different machines are
    close; they are of one and the same classifier only where its fingerprint is. Raises
    UserError as mnist_images() does, and where it does not get to 99 %.
    """
    if Path(path).is_file():
        model = load_model(path, "Classifier")[0]
        if (model.config.image_channels, model.config.classes) != (1, 10):
            raise UserError(f"{path} is no classifier of digits; delete it: it is made again")
        return model
    images, labels = _labelled(data_root, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = _train(images, labels)
    right = accuracy(model, *_labelled(data_root, "test"))
    if right < AT_LEAST:
        raise UserError(
            f"the classifier gets {right:.1%} of MNIST's test set right, but distances in its "
            f"features need {AT_LEAST:.0%}: is this MNIST?"
        )
    save_model(path, model, {"test_accuracy": right})
    return model


def _labelled(data_root: str | Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits and what they are; UserError where they do not belong together."""
    images, labels = mnist_images(data_root, split), mnist_labels(data_root, split)
    if len(images) != len(labels) or labels.max() > 9:
        raise UserError(
            f"labels in {data_root} are not of its digits; put MNIST's four files there"
        )
    return images, labels


def _train(images: torch.Tensor, labels: torch.Tensor) -> Classifier:
    """A Classifier of images (N, 1, 28, 28) uint8, shifted at random, for labels (N,)."""
    model = Classifier(CONFIG).train()
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=1e-2)
    per_epoch = -(-len(images) // BATCH)
    schedule = LrSchedule.whole("cosine", EPOCHS * per_epoch)
    with tqdm(total=EPOCHS * per_epoch, desc="classifier", unit="step") as bar:
        for step in range(EPOCHS * per_epoch):
            # Every epoch has an order of its own.
            if step % per_epoch == 0:
                order = torch.randperm(len(images)).split(BATCH)

            # The batch, all of it shifted alike over a background of black.
            batch = order[step % per_epoch]
            x = F.pad(to_pixels(images[batch]), [SHIFT] * 4, value=-1.0)
            top, left = torch.randint(2 * SHIFT + 1, (2,)).tolist()
            x = x[..., top : top + images.shape[2], left : left + images.shape[3]]

            # A step at the rate that the project's schedule has for it.
            loss = F.cross_entropy(model(x), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = LR * schedule.factor(step)
            optimizer.step()
            bar.update()
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images (N, 1, 28, 28) uint8 whose class is found."""
    logits = [model(to_pixels(part)) for part in images.split(500)]
    return (torch.cat(logits).argmax(dim=1) == labels).double().mean().item()


@torch.no_grad()
def features(model: Classifier, x: torch.Tensor) -> torch.Tensor:
    """(N, 128) features of x: (N, 1, 28, 28), rounded to 8 bits as the real digits are."""
    return torch.cat([model.features(to_pixels(to_uint8(part))) for part in x.split(500)])

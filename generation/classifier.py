"""Classifiers that read pictures: MNIST's, in whose features samples are compared, and one of
attributes. Each is trained once, always alike, and kept.

N: images, C, H, W: an image, A: attributes.
"""

import hashlib
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common.errors import UserError
from data.batches import load_batches
from data.images import ImageDataset
from data.labels import Labels
from data.mnist import mnist_images, mnist_labels
from data.order import fixed_sample
from data.pixels import to_pixels, to_uint8
from models.classifier import Classifier, ClassifierConfig
from training.checkpoint import load_model, save_model
from training.optimizer import LrSchedule

CONFIG = ClassifierConfig(1, (32, 64, 64, 128), 128, 10)
EPOCHS, BATCH, LR, SHIFT, SEED = 4, 128, 4e-3, 2, 0  # SHIFT: of digits, in pixels
AT_LEAST = 0.99  # share of the test set that it must get right
CHANNELS, FACE_EPOCHS = (16, 32, 64, 128, 128), 6  # of the one of attributes
MOST_FACES, MOST_BYTES = 30_000, 2**30  # that it is trained on, all in memory


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
        model = _train(CONFIG, images, labels, EPOCHS)
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


def attribute_classifier(
    labels: Labels, images: ImageDataset, workers: int,
    folder: str | Path = "checkpoints/classifier",
) -> Classifier:  # fmt: skip
    """The Classifier of a training set's attributes, a logit each, in eval mode on the CPU: read
    from folder, or trained on at most 30,000 images or 1 GB of which some is known, and kept.

    labels: of these images, as their "train". Always trained on the CPU in fp32 from one seed.
    """
    known = labels.of["train"]
    what = labels.names, images.stamp(), images.size, images.channels
    content = repr(what).encode() + known.numpy().tobytes()
    path = Path(folder, f"attributes_{hashlib.sha256(content).hexdigest()[:8]}.safetensors")
    if path.is_file():
        return load_model(path, "Classifier")[0]
    some = known.any(dim=1).nonzero()[:, 0]
    if not len(some):
        raise UserError("no attribute of any training image is known, so no classifier can learn")
    most = min(MOST_FACES, MOST_BYTES // (images.channels * images.size[0] * images.size[1]))
    some = some[fixed_sample(len(some), most)]
    parts = tqdm([part.tolist() for part in some.split(BATCH)], "reading faces", leave=False)
    read = list(load_batches(images, parts, workers))
    config = ClassifierConfig(images.channels, CHANNELS, 128, len(labels.names))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        indices = [i for _, good in read for i in good]
        model = _train(config, torch.cat([x for x, _ in read]), known[indices], FACE_EPOCHS)
    save_model(path, model, {"attributes": list(labels.names)})
    return model


def _train(
    config: ClassifierConfig, images: torch.Tensor, labels: torch.Tensor, epochs: int
) -> Classifier:
    """A Classifier of images (N, C, H, W) uint8, shifted at random. labels: classes (N,), or
    attributes (N, A) in {-1, 0, 1}, 0 for unknown, whose images are mirrored at random too."""
    model = Classifier(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=1e-2)
    per_epoch = -(-len(images) // BATCH)
    schedule = LrSchedule.whole("cosine", epochs * per_epoch)
    with tqdm(total=epochs * per_epoch, desc="classifier", unit="step") as bar:
        for step in range(epochs * per_epoch):
            # Every epoch has an order of its own.
            if step % per_epoch == 0:
                order = torch.randperm(len(images)).split(BATCH)

            # The batch, all of it shifted alike over a background of black.
            batch = order[step % per_epoch]
            x = F.pad(to_pixels(images[batch]), [SHIFT] * 4, value=-1.0)
            top, left = torch.randint(2 * SHIFT + 1, (2,)).tolist()
            x = x[..., top : top + images.shape[2], left : left + images.shape[3]]

            # A step at the rate that the project's schedule has for it.
            if labels.ndim == 1:
                loss = F.cross_entropy(model(x), labels[batch])
            else:
                x = x.flip(3) if torch.rand(()) < 0.5 else x
                loss = _attribute_loss(model(x), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = LR * schedule.factor(step)
            optimizer.step()
            bar.update()
    return model.eval()


def _attribute_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of logits (N, A) for wanted (N, A) in {-1, 0, 1}; 0 is left out."""
    known = (wanted != 0).to(logits)
    targets = (wanted.to(logits) + 1) / 2
    losses = F.binary_cross_entropy_with_logits(logits, targets, known, reduction="sum")
    return losses / known.sum().clamp(min=1)


@torch.no_grad()
def accuracy(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images (N, 1, 28, 28) uint8 whose class is found."""
    logits = [model(to_pixels(part)) for part in images.split(500)]
    return (torch.cat(logits).argmax(dim=1) == labels).double().mean().item()


@torch.no_grad()
def features(model: Classifier, x: torch.Tensor) -> torch.Tensor:
    """(N, 128) features of x: (N, 1, 28, 28), rounded to 8 bits as the real digits are."""
    return torch.cat([model.features(to_pixels(to_uint8(part))) for part in x.split(500)])

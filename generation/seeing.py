"""Seeing how it works: the film of a picture's making, a path between two pictures, and the
training images nearest to a picture. For pixels and latents alike."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from generation.pipeline import Pipeline
from models.samplers import Draw, slerp
from training import figures

STRIP = 10  # values of t in the strip of a film
FRAMES = 30  # frames of its animation, at most
NEIGHBOURS = 4  # training images beside each sample
CHUNK = 4096  # training images compared at a time


@dataclass(frozen=True)
class TrainingSet:
    """x0: a range of indices -> training images as the denoiser sees them, (N, c, h, w) float32,
    latents without the posterior's noise. size: how many there are."""

    x0: Callable[[range], torch.Tensor]
    size: int


def film(pipeline: Pipeline, seeds: Sequence[int], out: Path) -> None:
    """How each picture comes out of noise: out (a strip) and the same name in .gif (animated).

    Both show xt and the x0 predicted from it, from t = T-1 down to the last.
    """
    # The frames, xt and x0_hat as images (B, C, H, W), of at most FRAMES steps.
    kept, calls, frames = set(_evenly(pipeline.steps, FRAMES)), itertools.count(), []
    with tqdm(total=pipeline.steps, unit="step") as bar:

        def on_step(t: int, xt: torch.Tensor, eps_hat: torch.Tensor) -> None:
            if next(calls) in kept:
                at = torch.full((len(xt),), t, device=xt.device)
                x0_hat = pipeline.scheduler.predict_x0(xt, eps_hat, at)
                frames.append((t, xt.cpu(), x0_hat.cpu()))
            bar.update()

        pipeline.sample(pipeline.noise(seeds), seeds, on_step)
    decode = pipeline.codec.decode
    made = [(t, decode(xt), decode(x0_hat)) for t, xt, x0_hat in frames]

    # The strip: two rows per picture, xt and what is predicted from it.
    picks = [made[k] for k in _evenly(len(made), STRIP)]
    rows = {}
    for i, seed in enumerate(seeds):
        label = f"seed {seed}, " if len(seeds) > 1 else ""
        rows[f"{label}xt"] = torch.stack([xt[i] for _, xt, _ in picks])
        rows[f"{label}x0_hat"] = torch.stack([x0_hat[i] for _, _, x0_hat in picks])
    captions = {next(iter(rows)): [f"t = {t}" for t, _, _ in picks]}
    title = f"From noise to a picture: xt, and x0 predicted from it ({pipeline.label})"
    figures.image_rows(out, rows, title, captions)

    # The animation, a frame: a row per picture, xt on the left and x0_hat on the right.
    animation = out.with_suffix(".gif")
    pairs = [torch.stack([xt, x0_hat], dim=1).flatten(0, 1) for _, xt, x0_hat in made]
    figures.save_animation(animation, pairs, columns=2)
    print(f"saved {animation}")


def _evenly(n: int, count: int) -> list[int]:
    """At most count of range(n), evenly, both ends among them."""
    return torch.linspace(0, n - 1, min(count, n)).round().long().tolist()


def interpolation(pipeline: Pipeline, seed_a: int, seed_b: int, count: int, out: Path) -> None:
    """A strip of count pictures from seed_a's to seed_b's: the noise that they are made of, at the
    start and at every step, moves along the arc between the two seeds' noises."""

    def noise(weights: list[float]) -> Draw:
        both = pipeline.noise([seed_a, seed_b])

        def draw() -> torch.Tensor:
            a, b = both()
            return torch.stack([slerp(a, b, w) for w in weights])

        return draw

    weights = torch.linspace(0, 1, count).tolist()
    strip = [images for _, images, _ in pipeline.batches(weights, noise)]
    figures.save_grid(out, torch.cat(strip), columns=count)


def neighbours(
    pipeline: Pipeline, seeds: Sequence[int], training_set: TrainingSet, out: Path
) -> None:
    """Each sample above the training images nearest to it, with their distances."""
    # The samples, and the indices of those next to them.
    batches = [(images, x0) for _, images, x0 in pipeline.batches(seeds)]
    samples, x0 = (torch.cat(parts) for parts in zip(*batches, strict=True))
    distances, indices = nearest(x0, training_set, NEIGHBOURS)

    # A row of samples, then one of each one's nearest, one of the second nearest, and so on.
    rows = {"sample": samples}
    captions = {"sample": [f"seed {seed}" for seed in seeds]}
    for k in range(indices.shape[1]):
        label = "nearest" if k == 0 else f"nearest {k + 1}"
        found = [training_set.x0(range(i, i + 1)) for i in indices[:, k].tolist()]
        rows[label] = pipeline.codec.decode(torch.cat(found))
        captions[label] = [f"{d:.3f}" for d in distances[:, k].tolist()]
    space = "pixels" if samples.shape == x0.shape else "latents"
    title = f"Samples, and the training images nearest to them in {space} (root mean square)"
    figures.image_rows(out, rows, title, captions)


def nearest(
    x0: torch.Tensor, training_set: TrainingSet, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Root-mean-square distances (B, k) of x0 (B, c, h, w) to its k nearest training images,
    nearest first, and their indices (B, k). The training set passes by in chunks."""
    k = min(k, training_set.size)
    x0 = x0.flatten(1).float().cpu()
    distances, indices = torch.full((len(x0), k), torch.inf), torch.zeros(len(x0), k).long()

    # Of the k nearest so far and the next chunk, the k nearest.
    chunks = range(0, training_set.size, CHUNK)
    for start in tqdm(chunks, desc="comparing", unit="chunk", delay=1, leave=False):
        stop = min(start + CHUNK, training_set.size)
        others = training_set.x0(range(start, stop)).flatten(1)
        found = torch.cdist(x0, others) / x0.shape[1] ** 0.5
        distances = torch.cat([distances, found], dim=1)
        indices = torch.cat([indices, torch.arange(start, stop).expand(len(x0), -1)], dim=1)
        distances, order = distances.topk(k, largest=False)
        indices = indices.gather(1, order)
    return distances, indices

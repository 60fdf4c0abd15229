"""How good samples are, and reconstructions: numbers, each with its floor and its protocol.

The floor of a distance is what real images, as many as there are samples, have to the test images:
no sample can be expected to be nearer. B: batch, C, H, W: an image, D: features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from common.errors import UserError
from data.batches import load_batches
from data.pixels import to_pixels, to_uint8
from generation.metrics import frechet_distance, gradient_magnitude, precision_recall, psnr, ssim
from generation.pipeline import check_out, fill_folder
from generation.seeing import nearest
from models.autoencoder import DiagonalGaussian
from training import figures
from training.checkpoint import fingerprint
from training.progress import append_record, fact, read_records
from training.run import in_slices

BATCH = 100  # images described at a time
MOST_REAL = 10_000  # test images compared with, at most
MOST_NEAREST = 1000  # samples, and test images, whose nearest training image is looked for
GRID = 8  # latents are averaged to at most GRID x GRID before they are compared
PER_FEATURE = 2  # images that a covariance needs on either side, times its features
ACTIVE = 0.01  # least variance of the means of an active channel (Burda et al. 2016, section 5.3)
NUM_SHOWN = 4  # best, median and worst reconstructions in the figure


@dataclass(frozen=True)
class Space:
    """Where sets of images are compared. features: (B, C, H, W) in [-1, 1] -> (B, D)."""

    name: str
    features: Callable


@dataclass(frozen=True)
class RealImages:
    """size images; batches: n -> uint8 batches (B, C, H, W) of n of them, picked with seed 0."""

    name: str
    size: int
    batches: Callable


def tensor_images(name, images):
    """RealImages of a tensor (N, C, H, W) uint8."""

    def batches(n):
        return images[_pick(len(images), n)].split(BATCH)

    return RealImages(name, len(images), batches)


def dataset_images(name, dataset, workers):
    """RealImages of a data set of data/images.py."""

    def batches(n):
        parts = [part.tolist() for part in _pick(len(dataset), n).split(BATCH)]
        return (images for images, _ in load_batches(dataset, parts, workers))

    return RealImages(name, len(dataset), batches)


def _pick(size, n):
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:n]


@dataclass(frozen=True)
class Description:
    """What is kept of some images: features {space: (N, D)}, colours (N, C, 2): each channel's
    mean and standard deviation in [0, 255], x0 of the first MOST_NEAREST, or None where not asked
    for."""

    features: dict
    colours: torch.Tensor
    x0: torch.Tensor | None

    def __len__(self):
        return len(self.colours)


def describe(batches, spaces, what, total, to_x0=None):
    """The Description of uint8 batches; to_x0: images in [-1, 1] -> x0, where that is wanted."""
    features, colours, x0 = {space.name: [] for space in spaces}, [], []
    with torch.no_grad(), tqdm(total=total, desc=what, unit="image", delay=1, leave=False) as bar:
        for images in batches:
            x = to_pixels(images)
            for space in spaces:
                features[space.name].append(space.features(x).float().cpu())
            flat = images.float().flatten(2)
            colours.append(torch.stack([flat.mean(dim=2), flat.std(dim=2)], dim=2))
            if to_x0 is not None and sum(map(len, x0)) < MOST_NEAREST:
                x0.append(to_x0(x).float().cpu())
            bar.update(len(images))
    if not colours:
        raise UserError(f"none of the {what} can be read")
    features = {name: torch.cat(parts) for name, parts in features.items()}
    x0 = torch.cat(x0)[:MOST_NEAREST] if x0 else None
    return Description(features, torch.cat(colours), x0)


# ---- A denoiser ---------------------------------------------------------------------------------


def evaluate_denoiser(pipeline, test, train, spaces, training_set):
    """Sample, compare, print; everything also goes to evaluation.jsonl beside the samples.

    test, train: RealImages. training_set: seeing.TrainingSet, or None where it is not at hand.
    Where there is an autoencoder, its reconstructions of the test images are compared too: that
    distance is its share of the samples'. Samples are PNGs in args.out; those there are kept.
    """
    args, folder, codec = pipeline.args, Path(pipeline.args.out), pipeline.codec
    check_out(pipeline, folder)
    count = args.num_images
    against = min(test.size, MOST_REAL)
    planned = {"samples": count, "test images": against, "training images": min(train.size, count)}
    _warn_of_too_few(spaces, planned, test)
    fill_folder(pipeline, folder)
    paths = [folder / f"seed{seed:06d}.png" for seed in pipeline.seeds]
    samples = describe(_read(paths), spaces, "samples", count, codec.encode)
    real = describe(test.batches(against), spaces, "test images", against, codec.encode)
    training = describe(train.batches(count), spaces, "training images", count)
    clipped = "x0 clipped" if pipeline.scheduler.config.clip_x0 else "x0 not clipped"
    record = {
        "denoiser": str(args.evaluate),
        "denoiser_id": fingerprint(pipeline.model)[:16],
        "label": pipeline.label,
        "counts": [count, len(real), len(training)],
        "real": [test.name, train.name],
        "protocol": f"{count} samples, seeds {pipeline.seeds[0]} to {pipeline.seeds[-1]}, "
        f"{pipeline.label}, {clipped}, averaged weights, {pipeline.runtime.precision}; "
        f"against {len(real)} of {test.name}; floor: {len(training)} of "
        f"{train.name}",
    }
    print(fact("protocol", record["protocol"]))
    compared = {"samples": samples}
    if not codec.lossless:
        latents = (codec.encode(to_pixels(x)) for x in test.batches(against))
        batches = (to_uint8(in_slices(codec.decode, x0)).cpu() for x0 in latents)
        compared["reconstructions"] = describe(batches, spaces, "reconstructions", against)
    compared["floor"] = training
    record["spaces"] = {}
    for space in spaces:
        features = {name: d.features[space.name] for name, d in compared.items()}
        distances = _compare(space.name, features, real.features[space.name])
        record["spaces"][space.name] = distances
    record["colours"] = _compare_colours({"samples": samples, test.name: real})
    if training_set is None:
        print("distances to the nearest training images: the training set is not at hand")
    else:
        sets = {"samples": samples, "test images": real}
        record["nearest"] = _compare_nearest(sets, training_set)
    _keep(folder / "evaluation.jsonl", record)
    _draw_trade(folder, record)


def _warn_of_too_few(spaces, counts, test):
    """Say which distances there cannot be, before samples are made: that may take hours."""
    for images in test.batches(1):  # none, where it cannot be read
        for space in spaces:
            with torch.no_grad():
                size = space.features(to_pixels(images)).shape[1]
            if text := _too_few(size, counts):
                print(f"there will be no distance in the {space.name}: {text}", flush=True)


def _draw_trade(folder, record):
    """trade.png: this evaluation among those of the same denoiser, as many samples and the same
    real images, with other settings, beside it; of equal settings the newest."""
    spaces, found = {}, {}
    paths = folder.parent.glob("*/evaluation.jsonl")
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        for r in read_records(path):
            if all(r.get(key) == record[key] for key in ("denoiser_id", "counts", "real")):
                found[r["label"]] = r
    found[record["label"]] = record
    points = [(label, "samples", r) for label, r in sorted(found.items())]
    for label, name, r in [*points, ("floor", "floor", record)]:
        for space, distances in r["spaces"].items():
            if name in distances:
                d = distances[name]
                point = label, d["precision"], d["recall"], d["frechet"]
                spaces.setdefault(space, []).append(point)
    if spaces:
        figures.trade(folder / "trade.png", spaces)
        print(f"saved {folder / 'trade.png'}")


def _read(paths):
    """uint8 batches (B, C, H, W) of PNGs."""
    for i in range(0, len(paths), BATCH):
        arrays = [np.asarray(Image.open(path)) for path in paths[i : i + BATCH]]
        batch = torch.from_numpy(np.stack(arrays))
        yield batch[:, None] if batch.ndim == 3 else batch.permute(0, 3, 1, 2).contiguous()


def _compare(space, compared, real):
    """Distances of {name: features (N, D)} to real (M, D) in one space, printed; a dict of them."""
    print(f"\n{space}:\n{'':<18}{'Frechet distance':>18}{'precision':>12}{'recall':>10}")
    counts = {name: len(f) for name, f in compared.items()} | {"test images": len(real)}
    if text := _too_few(real.shape[1], counts):
        print(f"  no number: {text}")
        return {"too few": text}
    both, result = min(counts.values()), {}
    for name, features in compared.items():
        distance = frechet_distance(features, real)
        precision, recall = precision_recall(features[:both], real[:both])
        print(f"{name:<18}{distance:>18.4g}{precision:>12.3f}{recall:>10.3f}")
        result[name] = {"frechet": distance, "precision": precision, "recall": recall}
    return result


def _too_few(size, counts):
    """Which of {kind: number of images} there ought to be more of for size features, or ""."""
    if min(counts.values()) >= PER_FEATURE * size:
        return ""
    there = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{size} features need {PER_FEATURE * size} images of each kind; there are {there}"


def _compare_colours(sets):
    """Per channel, of 0 to 255: the mean, its spread over the images, and the mean contrast."""
    print("\ncolours, per channel, 0 to 255: mean; spread of the images' means; contrast in them:")
    result = {}
    for name, described in sets.items():
        mean, contrast = described.colours.unbind(dim=2)
        spread = mean.std(dim=0, correction=min(1, len(mean) - 1))  # 0 for a single image
        numbers = [mean.mean(dim=0), spread, contrast.mean(dim=0)]
        numbers = [[round(v, 1) for v in part.tolist()] for part in numbers]
        print(f"  {name:<24}" + ";  ".join(" ".join(map(str, part)) for part in numbers))
        result[name] = dict(zip(("mean", "spread", "contrast"), numbers, strict=True))
    return result


def _compare_nearest(sets, training_set):
    """Distances to the nearest training image: copies would show as samples nearer than others."""
    print("\ndistance to the nearest training image (root mean square): least, 5 %, median:")
    result = {}
    for name, described in sets.items():
        distances = nearest(described.x0, training_set, 1)[0][:, 0]
        least, low, median = torch.quantile(distances, torch.tensor([0.0, 0.05, 0.5])).tolist()
        print(f"  {name:<24}{least:.3f}  {low:.3f}  {median:.3f}   ({len(distances)} images)")
        result[name] = {"least": least, "5 %": low, "median": median, "images": len(distances)}
    return result


def _keep(path, record):
    append_record(path, record)
    print(f"\nadded to {path}")


# ---- An autoencoder -----------------------------------------------------------------------------


def autoencoder_spaces(codec):
    """The two Spaces that a LatentCodec's autoencoder gives: whitened latents, on a coarse grid,
    and the encoder's deepest features, averaged over the positions."""
    name = f"autoencoder {fingerprint(codec.autoencoder)[:8]}"

    def latents(x):
        x0 = codec.encode(x).cpu()  # an Apple GPU pools only to sizes that divide the latents'
        grid = min(GRID, x0.shape[2]), min(GRID, x0.shape[3])
        return F.adaptive_avg_pool2d(x0, grid).flatten(1)

    def deepest(x):
        with codec.runtime.autocast():
            h = codec.autoencoder.encoder.features(codec.runtime.send(x))
        return h.float().mean(dim=(2, 3))

    return [Space(f"whitened latents of {name}", latents), Space(f"features of {name}", deepest)]


def evaluate_autoencoder(args, model, runtime, dataset, what, fig):
    """Reconstructions of all images of a data set: numbers, and a figure of the best and worst."""
    batches = [part.tolist() for part in torch.arange(len(dataset)).split(args.batch)]
    scores, indices, totals = {}, [], {}
    with tqdm(total=len(dataset), unit="image", delay=1, leave=False) as bar:
        for images, found in load_batches(dataset, batches, runtime.workers):
            x = to_pixels(images)
            posterior, x_hat = reconstruct(model, runtime, x)
            x_hat = x_hat.clamp(-1, 1)
            score = {"psnr": psnr(x, x_hat), "ssim": ssim(x, x_hat)}
            score["l1"] = (x_hat - x).abs().mean(dim=(1, 2, 3))
            score["gradient"] = gradient_magnitude(x_hat)
            score["gradient of x"] = gradient_magnitude(x)
            for key, values in score.items():
                scores.setdefault(key, []).append(values)
            indices += found
            mean, kl = posterior.mean.double(), posterior.kl().double()
            parts = {"mean": mean, "square": mean.square(), "kl": kl}
            sums = {key: part.mean(dim=(2, 3)).sum(dim=0) for key, part in parts.items()}
            totals = {key: totals.get(key, 0) + value for key, value in sums.items()}
            bar.update(len(found))
    if not indices:
        raise UserError(f"none of {what} can be read")
    scores, count = {k: torch.cat(v).double() for k, v in scores.items()}, len(indices)
    means = {key: values.mean().item() for key, values in scores.items()}
    mean, square, kl = (totals[key] / count for key in ("mean", "square", "kl"))
    variance = (square - mean.square()).clamp(min=0)
    values = posterior.mean[0, 0].numel()  # per channel
    record = {
        "autoencoder": str(args.evaluate), "images": count, "of": what,
        "psnr": means["psnr"], "ssim": means["ssim"], "l1": means["l1"],
        "gradient": means["gradient"] / means["gradient of x"],
        "latent_mean": mean.tolist(), "latent_std": variance.sqrt().tolist(),
        "kl": kl.tolist(), "active": int((variance > ACTIVE).sum()),
        "nats": (kl.sum() * values).item(),
    }  # fmt: skip
    print(fact("images", f"{count} of {what}; posterior mean, averaged weights, "
               f"{runtime.precision}"))  # fmt: skip
    print(fact("PSNR", f"{record['psnr']:.2f} dB (peak 2, mean over the images)"))
    print(fact("SSIM", f"{record['ssim']:.4f}"))
    print(fact("l1", f"{record['l1']:.4f} per value in [-1, 1]"))
    print(fact("gradient", f"{record['gradient']:.3f} of the originals' mean magnitude"))
    for key, unit in (("latent_mean", ""), ("latent_std", ""), ("kl", "nats per value")):
        numbers = " ".join(f"{value:.3f}" for value in record[key])
        print(fact(key.replace("_", " "), f"{numbers} {unit} (per channel)".replace("  ", " ")))
    print(fact("active", f"{record['active']} of {len(mean)} channels"))
    print(fact("rate", f"{record['nats']:.1f} nats per image"))
    fig.mkdir(parents=True, exist_ok=True)
    _draw_best_and_worst(fig / "evaluation.png", model, runtime, dataset, scores["psnr"], indices)
    _keep(fig / "evaluation.jsonl", record)


def reconstruct(model, runtime, x):
    """Posterior of x (B, C, H, W), and the reconstruction from its mean, float32 on the CPU."""
    x_hat, mean, logvar = [], [], []
    for part in tqdm(x.split(16), "reconstructing", unit="batch", delay=1, leave=False):
        with torch.no_grad(), runtime.autocast():
            posterior = model.encode(runtime.send(part))
            x_hat.append(model.decode(posterior.mean).float().cpu())
        mean.append(posterior.mean.cpu())
        logvar.append(posterior.logvar.cpu())
    return DiagonalGaussian(torch.cat(mean), torch.cat(logvar)), torch.cat(x_hat)


def _draw_best_and_worst(path, model, runtime, dataset, scores, indices):
    """The best, median and worst images by PSNR, above their reconstructions."""
    order = scores.argsort(descending=True)
    shown = min(NUM_SHOWN, len(order))
    middle = (len(order) - shown) // 2
    picks = torch.cat([order[:shown], order[middle : middle + shown], order[-shown:]])
    loaded = [next(load_batches(dataset, [[indices[i]]], 0))[0] for i in picks]
    x = to_pixels(torch.cat(loaded))
    _, x_hat = reconstruct(model, runtime, x)
    words = [w for w in ("best", "median", "worst") for _ in range(shown)]
    captions = [f"{word}\n{scores[i]:.1f} dB" for word, i in zip(words, picks, strict=True)]
    title = f"Best, median and worst reconstructions of {len(order)} images"
    rows = {"original": x, "reconstruction": x_hat}
    figures.image_rows(path, rows, title, {"original": captions})
    print(f"saved {path}")

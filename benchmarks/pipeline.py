"""Images to latents, latents to the training loop: what must never be what a run waits for."""

import contextlib
import copy
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from benchmarks import steps
from benchmarks.report import alternate, python, synchronize
from data.batches import load_batches
from data.caching import BATCH, SHARD, cache_latents
from data.images import open_images
from data.latents import MANIFEST, LatentDataset
from data.order import ShuffledOrder
from data.pixels import to_pixels
from data.synthetic import draw_face
from data.tensor_files import write_tensors
from training import codec
from training.figures import save_image
from training.runtime import Runtime

NUM_IMAGES = {(64, 64): 3000, (208, 176): 400}  # encoded per run; a GPU takes ten times as many
CELEBA = (218, 178)  # (H, W) of CelebA's own files
MEMORY_SIZES = 10_000, 160_000  # latents of 3x52x44 whose streaming is compared


def caching(report, runtime, data_root, quick=False):
    """Building the cache of files on disk against encoding images that lie in memory; quick: only
    at CelebA's size on this machine, and once."""
    device, precision = runtime.device.type, runtime.precision
    sizes = [steps.image_size(runtime.on_gpu)] if quick else list(NUM_IMAGES)
    for size in sizes:
        count = NUM_IMAGES[size] * (10 if runtime.on_gpu else 1)
        count //= 30 if quick and not runtime.on_gpu else 1
        if data_root is not None:
            count = min(count, len(open_images("celeba", data_root, size)["train"]))
        with tempfile.TemporaryDirectory() as folder:
            where = data_root or folder
            if data_root is None:
                draw_files(Path(folder), count + count // 10)  # one in 20 is for validation
            more = f"({device!r}, {precision!r}, {size}, {count}, {str(where)!r}, {folder!r})"
            makers = {"build": f"pipeline.build{more}", "forward": f"pipeline.forward{more}"}
            seconds = alternate(makers, rounds=1 if quick else 3, calls=1)
        name = "x".join(map(str, size))
        speed, alone = count / seconds["build"], count / seconds["forward"]
        what = "CelebA" if data_root else "drawn faces as JPEG of 178x218"
        note = f"{count} images ({what}), {runtime.workers} workers"
        report.add(f"building the cache at {name}", speed, "images/s", note=note)
        target = ">= 0.8" if runtime.on_gpu else ">= 0.9"
        note = f"of the encoder's own {alone:.0f} images/s"
        report.add(f"building the cache at {name}, share", speed / alone, "", target, note)


def draw_files(folder, count):
    """CelebA's folder with drawn faces in it, as JPEG of its size: 200 faces, and copies."""
    paths = [folder / "img_align_celeba" / f"{i + 1:06d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        if i < 200:
            save_image(path, Image.fromarray(draw_face(i, CELEBA)))
        else:
            shutil.copyfile(paths[i % 200], path)


def encoder_and_images(device, precision, size, count, root):
    """(encode as cache_latents wants it, the first count training images, the runtime)."""
    runtime = Runtime(device, precision)
    autoencoder = runtime.place(steps.our_autoencoder_network()).eval()
    images = open_images("celeba", root, size)["train"]
    images.names = images.names[:count]
    return lambda x: codec.encode(autoencoder, runtime, x).moments(), images, runtime


def build(device, precision, size, count, root, folder):
    """A function that makes the cache anew in folder."""
    encode, images, runtime = encoder_and_images(device, precision, size, count, root)
    nothing = copy.copy(images)
    nothing.names = []
    shape, cache = (3, size[0] // 4, size[1] // 4), Path(folder, "cache")

    def run():
        shutil.rmtree(cache, ignore_errors=True)
        with contextlib.redirect_stderr(io.StringIO()):  # the bar
            datasets = {"train": images, "valid": nothing}
            cache_latents(encode, datasets, shape, cache, False, runtime.workers)

    return run


def forward(device, precision, size, count, root, folder):
    """A function that encodes as many images, which lie in memory."""
    encode, images, _ = encoder_and_images(device, precision, size, count, root)
    batches = [list(range(count))[i : i + BATCH] for i in range(0, count, BATCH)]
    in_memory = [x for x, _ in load_batches(images, batches, 0)]

    def run():
        for x in in_memory:
            encode(to_pixels(x))

    return run


def epoch(report, runtime):
    """Latents/s that an epoch over the cache gives when nothing is done with them."""
    args = steps.latent_args()
    for shape in dict.fromkeys([(3, 16, 16), steps.latent_shape(runtime.on_gpu)]):
        count = 100_000 if shape == (3, 16, 16) else 20_000
        with tempfile.TemporaryDirectory() as folder:
            fill_cache(folder, count, shape)
            latents = LatentDataset(folder, "train")
            order = ShuffledOrder(len(latents), args.batch, 0)
            times = []
            for _ in range(6):
                synchronize()
                began = time.perf_counter()
                for step in range(order.steps_per_epoch):
                    runtime.send(latents.draw(order.indices(step), runtime.device))
                synchronize()
                times.append(time.perf_counter() - began)
        # The first reads the files into the page cache.
        speed = order.steps_per_epoch * order.batch / statistics.median(times[1:])
        name = "x".join(map(str, shape))
        target = ">= 100000" if shape == (3, 16, 16) else ""
        note = f"{count} latents, batch {args.batch}"
        report.add(f"epoch over cached latents of {name}", speed, "latents/s", target, note)
        if shape == steps.latent_shape(runtime.on_gpu):
            more = f"{runtime.device.type!r}, {runtime.precision!r}"
            training = args.batch / alternate({"": f"steps.make('ours', {more})"})[""]
            report.add("share of it in the training time", training / speed, "", "<= 0.02")


def streaming(report):
    """Anonymous memory after an epoch over a small and a large cache of 3x52x44."""
    if sys.platform != "linux":
        print("left out: anonymous memory is only counted on Linux", flush=True)
        return
    found = {}
    for count in MEMORY_SIZES:
        with tempfile.TemporaryDirectory() as folder:
            fill_cache(folder, count, (3, 52, 44))
            code = f"from benchmarks import pipeline; print(pipeline.anonymous({str(folder)!r}))"
            found[count] = float(python(code))
    few, many = found
    for count, gb in found.items():
        report.add(f"anonymous memory, {count:,} latents streamed", gb, "GB")
    note = "while the files grow by 4.1 GB"
    report.add("its growth", found[many] - found[few], "GB", "<= 0.05", note)


def anonymous(folder):
    """GB of memory that no file stands behind, in this process, after an epoch over a cache."""
    latents = LatentDataset(folder, "train")
    order = ShuffledOrder(len(latents), 64, 0)
    for step in range(order.steps_per_epoch):
        latents.draw(order.indices(step))
    text = Path("/proc/self/smaps_rollup").read_text().split()
    return int(text[text.index("Anonymous:") + 1]) * 1024 / 1e9


def fill_cache(folder, count, shape):
    """A finished cache of count latents of shape (c, h, w): the same 4,096 in every shard."""
    c, h, w = shape
    moments = torch.randn(min(SHARD, count), 2 * c, h, w).half()
    names = []
    for start in range(0, count, SHARD):
        names.append(f"train-{start // SHARD:05d}.safetensors")
        part = moments[: count - start].contiguous()
        write_tensors(Path(folder, names[-1]), {"moments": part}, {})
    stats = {"mean": [0.0] * c, "std": [1.0] * c}
    manifest = {"stats": stats, "shards": {"train": names, "valid": []}}
    Path(folder, MANIFEST).write_text(json.dumps(manifest))

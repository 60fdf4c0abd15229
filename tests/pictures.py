"""Pictures, good and bad, that several tests read."""

import io
import zipfile

import numpy as np
import torch
from PIL import Image

EXIF_ORIENTATION = 274


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def reopened(image, form="PNG", **options):
    """The image as a file gives it: not yet decoded, with the mode that the format has."""
    return Image.open(io.BytesIO(encoded(image, form, **options)))


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as file:
        for p in sorted(folder.rglob("*")):
            file.write(p, p.relative_to(folder))
    return path


def ramp(width, height):
    """Red counts pixels from the left, green from the top: up to 256 in each direction."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))


def everything(dataset):
    assert [dataset[i][0] for i in range(len(dataset))] == list(range(len(dataset)))
    return {name: dataset[i][1] for i, name in enumerate(dataset.names)}


def assert_same_images(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def bad_files(folder, seed=0):
    """One file for each way to be bad; {name: whether its header can be read}."""
    picture = Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    )
    png, jpg = encoded(picture), encoded(picture, "JPEG")
    webp, bmp = encoded(picture, "WEBP"), encoded(picture, "BMP")
    (folder / "text.jpg").write_text("no picture at all")
    (folder / "empty.png").write_bytes(b"")
    (folder / "short.png").write_bytes(png[: len(png) // 2])
    (folder / "short.jpg").write_bytes(jpg[: len(jpg) // 2])
    (folder / "short.webp").write_bytes(webp[: len(webp) // 2])
    (folder / "short.bmp").write_bytes(bmp[: len(bmp) // 2])
    return ["empty.png", "short.bmp", "short.jpg", "short.png", "short.webp", "text.jpg"]


def noise_zip(path, n):
    """Pictures that do not compress, so that reading one takes several reads of the file."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as file:
        for i in range(n):
            picture = Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
            file.writestr(f"{i:03d}.png", encoded(picture))
    return path

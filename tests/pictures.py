"""Pictures, good and bad, that several tests read."""

import io
import struct
import tarfile
import zipfile
import zlib

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


def tarred(path, contents, **options):
    """A tar of {name: bytes}, in this order; options: of tarfile."""
    with tarfile.open(path, "w", **options) as file:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
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


def chunk(kind, content, good=True):
    """A chunk of a PNG, with its checksum or a wrong one."""
    checksum = zlib.crc32(kind + content) ^ (not good)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def with_chunk(png, extra, before=b"IDAT"):
    at = png.index(before) - 4
    return png[:at] + extra + png[at:]


def huge(form, side=40_000):
    """A file of some hundred bytes that says it has side x side pixels."""
    small = encoded(Image.new("RGB", (8, 8)), form)
    if form == "PNG":
        return (
            small[:8]
            + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
            + small[33:]
        )
    if form == "TIFF":
        for tag in (256, 257):  # width and height, in an entry of the directory
            at = small.index(struct.pack("<HHI", tag, 4, 1))
            small = small[: at + 8] + struct.pack("<I", side) + small[at + 12 :]
        return small
    if form == "PPM":
        return b"P6 %d %d 255\n" % (side, side) + bytes(99)
    at, layout = {
        "BMP": (18, "<ii"), "GIF": (6, "<HH"), "JPEG": (small.find(b"\xff\xc0") + 5, ">HH")
    }[form]  # fmt: skip
    return small[:at] + struct.pack(layout, side, side) + small[at + struct.calcsize(layout) :]

"""Every picture that the project draws; the only file that imports matplotlib.

Images come in as (B, C, H, W) in [-1, 1] and are clamped. Figures are finished or absent.
"""

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch.nn import functional as F
from torchvision.utils import make_grid

from common.files import open_regular, write_atomic
from data.damage import Unreadable
from data.decoding import open_picture
from data.pixels import to_display, to_pixels, to_uint8

MADE_BY = "latent-diffusion"  # in every picture, so that no other is written over
PIXELS = 1000  # least width of a grid: small pictures are enlarged for the eye


def save_grid(path: str | Path, x: torch.Tensor, columns: int | None = None) -> None:
    """A grid of pictures, enlarged smoothly by a whole number to about PIXELS: .png or .jpg."""
    save_image(path, _grid(x, columns or grid_columns(len(x)), PIXELS))


def save_image(path: str | Path, image: Image.Image, text: Mapping[str, str] | None = None) -> None:
    """A PIL image to .png or .jpg, by the ending of path; text: {key: value}, kept in a PNG."""
    if not str(path).lower().endswith(".png"):
        write_atomic(path, lambda file: image.save(file, "JPEG", quality=92, comment=MADE_BY))
        return
    info = PngInfo()
    for key, value in {"Software": MADE_BY, **(text or {})}.items():
        info.add_text(key, value)
    write_atomic(path, lambda file: image.save(file, "PNG", pnginfo=info))


def save_animation(path: str | Path, frames: Sequence[torch.Tensor], columns: int) -> None:
    """A GIF of grids: frames, a list of (B, C, H, W), in about 5 s, then the last for 2 s."""
    images = [_grid(x, columns, PIXELS / 4) for x in frames]
    durations = [round(5000 / len(images))] * (len(images) - 1) + [2000]  # milliseconds

    def write(file: Path) -> None:
        first, *others = images
        first.save(
            file, "GIF", append_images=others, duration=durations, loop=0, save_all=True,
            comment=MADE_BY,
        )  # fmt: skip

    write_atomic(path, write)


def made_here(path: str | Path) -> bool:
    """Whether a picture that is there was made by this file."""
    try:
        with open_regular(path) as file, open_picture(file) as image:
            mark = image.info.get("Software") or image.info.get("comment")
    except (OSError, Unreadable):
        return False
    return mark in (MADE_BY, MADE_BY.encode())


def _grid(x: torch.Tensor, columns: int, width: float) -> Image.Image:
    """A PIL image of pictures (B, C, H, W), or uint8, enlarged by a whole number to about width."""
    x = (x if x.dtype == torch.uint8 else to_uint8(x)).cpu()
    factor = max(1, round(width / (min(columns, len(x)) * (x.shape[3] + 2) + 2)))
    if factor > 1:  # before they stand beside white lines, which would ring into them
        x = to_uint8(F.interpolate(to_pixels(x), scale_factor=factor, mode="bicubic"))
    grid = make_grid(x, columns, padding=2 * factor, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def single_image(x: torch.Tensor) -> Image.Image:
    """x: (C, H, W) in [-1, 1] -> PIL image."""
    pixels = to_uint8(x).cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)


def grid_columns(n: int) -> int:
    """Columns of a grid of n pictures, wider than high, with the fewest empty places."""
    root = math.ceil(math.sqrt(n))
    return min(range(root, 2 * root + 1), key=lambda c: (-n % c, c))


def show_window(path: str | Path) -> None:
    """Open the picture in a window where there is a display and a toolkit to open one with."""
    displays = "DISPLAY", "WAYLAND_DISPLAY"
    if sys.platform not in ("win32", "darwin") and not any(map(os.environ.get, displays)):
        return
    import matplotlib
    from matplotlib import pyplot as plt

    try:
        fig, ax = plt.subplots(figsize=(10, 6), layout="constrained")
        if matplotlib.get_backend().lower() != "agg":  # which can only write files
            ax.imshow(np.asarray(open_picture(path)), cmap="gray")
            ax.axis("off")
            plt.show()
    except Exception as error:  # a display that cannot be opened must not cost the pictures
        print(f"no window: {error}")


def image_rows(
    path: str | Path, rows: Mapping[str, torch.Tensor], title: str,
    captions: Mapping[str, Sequence[str]] | None = None,
) -> None:  # fmt: skip
    """Labelled rows of as many images each: {"label": (B, C, H, W)}.

    captions: {"label": [what stands above each image of that row]}, for any of the rows.
    """
    # As large as the pictures need, with room for captions, labels and the title.
    n, _, height, width = next(iter(rows.values())).shape
    captions = captions or {}
    inches = 1.3 * height / width * len(rows) + 0.2 * len(captions) + 0.5
    fig = Figure(figsize=(1.3 * n + 1.3, inches), layout="constrained")
    for row, (label, images) in zip(_axes(fig, len(rows), n), rows.items(), strict=True):
        for ax, x, caption in zip(row, images, captions.get(label, [""] * n), strict=True):
            _picture(ax, x, caption)
        _label(row[0], label)
    _save(fig, path, title)


def captioned(
    path: str | Path, pictures: Sequence[tuple[str, torch.Tensor]], columns: int, title: str
) -> None:
    """Pictures row by row, each (C, H, W) below its caption: [("caption", x)]."""
    rows = -(-len(pictures) // columns)
    _, height, width = pictures[0][1].shape
    inches = 1.6 * columns, (1.6 * height / width + 0.25) * rows + 0.5
    fig = Figure(figsize=inches, layout="constrained")
    axes = _axes(fig, rows, columns).flatten()
    for ax, (caption, x) in zip(axes, pictures, strict=False):
        _picture(ax, x, caption)
    _leave_empty(axes[len(pictures) :])
    _save(fig, path, title)


def confidences(
    path: str | Path, title: str, x: torch.Tensor, x_hat: torch.Tensor, real: torch.Tensor,
    fake: torch.Tensor,
) -> None:  # fmt: skip
    """The discriminator's belief "real" per patch: red is real, blue is made by the decoder.

    x, x_hat: (B, C, H, W); real, fake: logits (B, 1, h, w). A map's mean belief stands above it.
    """
    n, aspect = len(x), x.shape[2] / x.shape[3]
    fig = Figure(figsize=(1.3 * n + 2, 5.2 * aspect + 0.8), layout="constrained")
    axes = _axes(fig, 4, n)
    made = "reconstruction,\nwhose detail\nis judged"
    for row, (label, images) in zip(axes[::2], (("original", x), (made, x_hat)), strict=True):
        for ax, image in zip(row, images, strict=True):
            _picture(ax, image)
        _label(row[0], label)
    for row, logits in zip(axes[1::2], (real, fake), strict=True):
        for ax, belief in zip(row, logits.float().sigmoid().cpu(), strict=True):
            shown = ax.imshow(belief[0].numpy(), cmap="coolwarm", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.set_title(f"{belief.mean():.2f}", fontsize=7, pad=2)
        _label(row[0], "belief")
    fig.colorbar(shown, ax=axes, shrink=0.6, label="probability of real (sigmoid of the logit)")
    _save(fig, path, title)


def curves(
    path: str | Path, records: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]]
) -> None:
    """A panel per {"title": [keys]} over steps; a key that is missing from a record is skipped."""
    # At most three panels beside each other.
    rows, columns = math.ceil(len(panels) / 3), min(3, len(panels))
    fig = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    axes = _axes(fig, rows, columns).flatten()

    # What spans more than a factor of ten is drawn on a logarithmic scale.
    for ax, (title, keys) in zip(axes, panels.items(), strict=False):
        values = []
        for key in keys:
            points = [(r["step"], r[key]) for r in records if r.get(key) is not None]
            if points:
                ax.plot(*zip(*points, strict=True), label=key.replace("_", " "))
                values += [value for _, value in points]
        if values and min(values) > 0 and max(values) > 10 * min(values):
            ax.set_yscale("log")
        ax.set(title=title, xlabel="step")
        ax.grid(alpha=0.3)
        if values:
            ax.legend(fontsize=8)

    _leave_empty(axes[len(panels) :])
    _save(fig, path)


def latent_statistics(path: str | Path, mean: torch.Tensor, logvar: torch.Tensor) -> None:
    """Histogram of each latent channel's means, with its posterior's width; (B, c, h, w) each."""
    fig = Figure(figsize=(4 * mean.shape[1], 3.2), layout="constrained")
    for i, ax in enumerate(_axes(fig, 1, mean.shape[1])[0]):
        values, width = mean[:, i].flatten().cpu().numpy(), (0.5 * logvar[:, i]).exp().mean()
        ax.hist(values, bins=80, density=True)
        said = f"channel {i}: mean {values.mean():.2f}, std {values.std():.2f}"
        ax.set_title(f"{said}\nmean posterior std {width:.3f}", fontsize=9)
    _save(fig, path, "Posterior means of validation images")


def bands(path: str | Path, records: Sequence[Mapping[str, Any]], num_steps: int) -> None:
    """Loss per tenth of t: over the training, and now. records have band_loss: 10 or fewer."""
    # values: (records, bands).
    records = [r for r in records if r.get("band_loss")]
    if not records:
        return
    values = np.array([r["band_loss"] for r in records], dtype=float)
    steps = [r["step"] for r in records]
    edges = np.linspace(0, num_steps, values.shape[1] + 1).astype(int)
    labels = [f"{a} to {b - 1}" for a, b in zip(edges[:-1], edges[1:], strict=True)]

    # On the left, each band over the steps, from dark to light.
    fig = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = fig.subplots(1, 2)
    colors = colormaps["viridis"](np.linspace(0, 0.92, len(labels)))
    for column, label, color in zip(values.T, labels, colors, strict=True):
        left.plot(steps, column, label=label, color=color)
    left.set(title="Loss per band of t", xlabel="step", ylabel="squared error of eps_hat")
    left.set_yscale("log")
    left.legend(title="t", fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))

    # On the right, their means over the last twentieth of the run.
    recent = np.ma.masked_invalid(values[-max(1, len(values) // 20) :])  # a band may be empty
    latest = recent.mean(axis=0).filled(np.nan)
    right.bar(labels, latest, color=colors)
    right.set(title=f"Latest (step {steps[-1]})", xlabel="t", yscale="log")
    right.tick_params(axis="x", rotation=45)
    for ax in (left, right):
        ax.grid(alpha=0.3)
    _save(fig, path)


def trade(
    path: str | Path, spaces: Mapping[str, Sequence[tuple[str, float, float, float]]]
) -> None:
    """Precision over recall, a panel per space: {space: [(label, precision, recall, distance)]}.

    What is labelled "floor" are real images.
    """
    rows = max(len(points) for points in spaces.values())  # of the legend
    fig = Figure(figsize=(5.2 * len(spaces), 4.2 + 0.18 * rows), layout="constrained")
    for ax, (space, points) in zip(_axes(fig, 1, len(spaces))[0], spaces.items(), strict=True):
        for label, precision, recall, distance in points:
            marker = "*" if label == "floor" else "o"
            text = f"{label} (Frechet distance {distance:.3g})"
            ax.plot(recall, precision, marker, markersize=9, label=text)
        ax.set(xlabel="recall", ylabel="precision", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        ax.set_title(space, fontsize=9)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    title = "Precision: how many samples look real; recall: how many real images are reached"
    _save(fig, path, title)


def side_by_side(path: str | Path, grids: Mapping[str, torch.Tensor], title: str) -> None:
    """Labelled grids of samples beside each other: {"label": (B, C, H, W)}."""
    fig = Figure(figsize=(5 * len(grids), 5.2), layout="constrained")
    axes = _axes(fig, 1, len(grids))[0]
    for ax, (label, x) in zip(axes, grids.items(), strict=True):
        ax.imshow(np.asarray(_grid(x, grid_columns(len(x)), PIXELS / 2)))
        ax.set_title(label)
    _leave_empty(axes)
    _save(fig, path, title)


# ---- What they share ----------------------------------------------------------------------------


def _axes(fig: Figure, rows: int, columns: int) -> np.ndarray:
    """An array (rows, columns) of panels, also where there is one."""
    return fig.subplots(rows, columns, squeeze=False)


def _picture(ax: Axes, x: torch.Tensor, caption: str = "") -> None:
    """x (C, H, W) below its caption, without ticks."""
    ax.imshow(to_display(x).cpu().permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.set_title(caption, fontsize=8, pad=3)


def _label(ax: Axes, label: str) -> None:
    """What a row is, to the left of its first panel."""
    ax.set_ylabel(label, rotation=0, ha="right", va="center")


def _leave_empty(axes: Iterable[Axes]) -> None:
    """No frames, no ticks."""
    for ax in axes:
        ax.axis("off")


def _save(fig: Figure, path: str | Path, title: str = "") -> None:
    if title:
        fig.suptitle(title)
    about = {"Software": MADE_BY}
    write_atomic(
        path,
        lambda file: fig.savefig(file, format="png", dpi=110, bbox_inches="tight", metadata=about),
    )

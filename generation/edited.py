"""A picture of somebody's own, edited by a trained denoiser: what is read, made and kept. How it is
edited is in generation/editing.py.

C, H, W: a picture as training images are, in [-1, 1], h, w: its own size, N: how many are made.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from common.choices import PICTURES
from common.errors import UserError
from common.launch import is_first
from data.own_picture import OwnPicture, read_mask, read_own
from data.pixels import to_pixels
from generation import editing
from generation.conditions import Asked
from generation.output import check_out
from generation.pipeline import Draw, Pipeline
from models.diffusion import Denoiser, epsilon
from models.samplers import OnStep, slerp
from training import figures
from training.codec import LatentCodec
from training.fidelity import psnr

COLUMNS = 11  # of pictures side by side, at most


class Edited(NamedTuple):
    """shown: what stands side by side, in so many columns at most, [("caption", (C, H, W))].
    results: [a picture (C, H, W), in the whole (C, h, w) or None]."""

    shown: list[tuple[str, torch.Tensor]]
    columns: int
    results: Sequence[tuple[torch.Tensor, torch.Tensor | None]]


def edit_picture(
    pipeline: Pipeline, size: Sequence[int], seeds: Sequence[int], out: Path, *, sheet: Path,
    inpaint: str | None = None, mask: str = "", resampling: int = 1,
    vary: str | None = None, strength: Sequence[float] = (),
    reconstruct: str | None = None, invert: Sequence[str] = (), asked: Sequence[Asked] = (),
) -> None:  # fmt: skip
    """Edit the picture that inpaint, vary, reconstruct or invert names; of two to invert, go from
    one to the other. Pictures are seen at size (H, W). asked: what the results shall show.

    All is put side by side in sheet, a .png. Where out is a folder, the results alone go there: as
    the network makes them, and in the picture at its own size. Raises UserError where a file cannot
    be read, a mask does not fit, several rows are asked for, or out cannot be written to, before
    anything is made.
    """
    if not is_first():
        return
    if len(asked) > 1:
        raise UserError(f"an edit takes one row of what is asked for, not {len(asked)}")
    pipeline = replace(pipeline, asked=asked[0]) if asked else pipeline

    # What there is.
    path = inpaint or vary or reconstruct
    paths = [path] if path else list(invert)
    pictures = [read_own(name, (size[0], size[1]), _channels(pipeline)) for name in paths]
    white = read_mask(mask, pictures[0], paths[0]) if inpaint else None

    # Where it goes.
    names = [f"seed{seed:06d}" for seed in seeds]
    if vary:
        names = [f"strength{value:g}_{name}" for value in strength for name in names]
    elif not inpaint:
        names = [str(name) for name in range(len(seeds))] if len(paths) == 2 else ["result"]
    check_out(pipeline, sheet, [sheet])
    alone = out.suffix.lower() not in PICTURES
    files = [out / f"{name}{end}.png" for name in names for end in ("", "_pasted")]
    if alone:
        check_out(pipeline, out, files)
    print(f"on {pipeline.runtime}" if reconstruct else f"{pipeline.label}, on {pipeline.runtime}")

    # What is made of it.
    if white is not None:
        made = inpainted(pipeline, pictures[0], white, seeds, resampling)
    elif vary:
        made = varied(pipeline, pictures[0], seeds, strength)
    elif reconstruct:
        made = reconstructed(pipeline, pictures[0])
    else:
        made = inverted(pipeline, pictures, len(seeds))
    title, columns = " and ".join(Path(name).name for name in paths), made.columns
    figures.captioned(sheet, made.shown, min(columns, len(made.shown)), title)
    print(f"saved {sheet}")
    if alone:
        for file, x in zip(files, sum(made.results, ()), strict=True):
            if x is not None:
                figures.save_image(file, figures.single_image(x))
        print(f"saved {len(names)} pictures in {out}")
    figures.show_window(sheet)


def inpainted(
    pipeline: Pipeline, picture: OwnPicture, white: torch.Tensor, seeds: Sequence[int],
    resampling: int,
) -> Edited:  # fmt: skip
    """What is white, (1, 1, h, w) bool, made anew with each seed. Every other pixel stays as it
    is, but for a narrow seam."""
    # What lies under the mask must not matter, so it goes before anything is encoded.
    below = editing.filled(to_pixels(picture.pixels)[None], white)
    x = picture.seen(below)
    left, top, right, bottom = picture.box
    mask = editing.to_shape(white[..., top:bottom, left:right], picture.size)
    x0 = _encoded(pipeline, x)
    coarse = editing.to_shape(mask, x0.shape[2:]).to(x0.device)

    def make(model: Denoiser, draw: Draw, on_step: OnStep) -> torch.Tensor:
        return editing.inpaint(
            model, pipeline.scheduler, x0, coarse, draw, pipeline.sampling.sampler, pipeline.steps,
            resampling, on_step, **pipeline.sampling.used,
        )  # fmt: skip

    # A latent reaches beyond the mask; the pixels that are known come from the picture itself.
    rounds = 1 if coarse.all() else resampling
    new = _sampled(pipeline, seeds, rounds * (pipeline.steps - 1) + 1, make).clamp(-1, 1)
    images = torch.lerp(x, new, editing.feathered(mask))
    shown = [("input", picture.seen()[0]), ("mask", mask[0].float() * 2 - 1)]
    shown += [(f"seed {seed}", image) for seed, image in zip(seeds, images, strict=True)]
    share = editing.feathered(white)
    results = [(x, picture.pasted(y, below, share)) for x, y in zip(images, new, strict=True)]
    return Edited(shown, COLUMNS, results)


def varied(
    pipeline: Pipeline, picture: OwnPicture, seeds: Sequence[int], strengths: Sequence[float]
) -> Edited:
    """Pictures like this one, one of each seed at each strength."""
    x = picture.seen()
    x0, shown, results = _encoded(pipeline, x), [], []
    for strength in strengths:

        def make(
            model: Denoiser, draw: Draw, on_step: OnStep, strength: float = strength
        ) -> torch.Tensor:
            return editing.vary(
                model, pipeline.scheduler, x0, draw, pipeline.sampling.sampler, pipeline.steps,
                strength, on_step, **pipeline.sampling.used,
            )  # fmt: skip

        calls = len(editing.variation_timesteps(pipeline.scheduler, pipeline.steps, strength))
        images = _sampled(pipeline, seeds, calls, make)
        shown.append(("input", x[0]))
        for seed, image in zip(seeds, images, strict=True):
            shown.append((f"strength {strength:g}, seed {seed}", image))
            results.append(_both(picture, image))
    return Edited(shown, 1 + min(len(seeds), COLUMNS), results)


def reconstructed(pipeline: Pipeline, picture: OwnPicture) -> Edited:
    """Through the autoencoder and back, with its PSNR."""
    x = picture.seen()
    x_hat = pipeline.codec.decode(_encoded(pipeline, x))
    print(f"PSNR of the reconstruction: {psnr(x, x_hat).item():.2f} dB (peak 2)")
    shown = [("input", x[0]), ("reconstruction", x_hat[0])]
    return Edited(shown, COLUMNS, [_both(picture, x_hat[0])])


def inverted(pipeline: Pipeline, pictures: Sequence[OwnPicture], count: int) -> Edited:
    """A picture's noise, and the picture that comes of it again, with PSNR; or, of two pictures,
    `count` on the way from one to the other, whose noises lie on the arc between both. What is
    asked for is asked on the way back alone, and so changes the picture."""
    x = torch.cat([picture.seen() for picture in pictures])
    x0, weights = _encoded(pipeline, x), torch.linspace(0, 1, count).tolist()
    scheduler, steps = pipeline.scheduler, pipeline.steps
    total = steps * (len(x) + (count if len(x) == 2 else 1))
    with tqdm(total=total, unit="call") as bar, pipeline.runtime.autocast():
        model = epsilon(pipeline.model, scheduler)

        def on_step(t: int, xt: torch.Tensor, eps_hat: torch.Tensor) -> None:
            bar.update(len(xt))

        noise = editing.invert(model, scheduler, x0, steps, on_step)
        path = (
            torch.stack([slerp(noise[0], noise[1], w) for w in weights]) if len(x) == 2 else noise
        )
        parts = path.split(pipeline.batch)
        back = [pipeline.denoiser(range(len(part))) for part in parts]
        made = [
            editing.from_noise(model, scheduler, part, steps, on_step)
            for model, part in zip(back, parts, strict=True)
        ]
    images = pipeline.codec.decode(torch.cat(made))

    # The ends are the pictures again, as nearly as it goes.
    ends = psnr(x, images[[0, -1]][: len(x)])
    print("PSNR there and back: " + ", ".join(f"{value:.2f} dB" for value in ends.tolist()))
    if not pipeline.codec.lossless:
        alone = psnr(x, pipeline.codec.decode(x0))
        print("of the autoencoder alone: " + ", ".join(f"{v:.2f} dB" for v in alone.tolist()))
    if len(x) == 2:
        shown = [(f"{w:.0%} of the way", image) for w, image in zip(weights, images, strict=True)]
        shown = [("input A", x[0]), *shown, ("input B", x[1])]
        return Edited(shown, COLUMNS, [(image, None) for image in images])
    seen = pipeline.codec.decode(noise)[0]
    shown = [("input", x[0]), ("its noise", seen), ("back again", images[0])]
    return Edited(shown, COLUMNS, [_both(pictures[0], images[0])])


def _channels(pipeline: Pipeline) -> int:
    """Of its pictures."""
    codec = pipeline.codec
    if isinstance(codec, LatentCodec):
        return codec.autoencoder.config.image_channels
    return pipeline.shape[0]


def _encoded(pipeline: Pipeline, x: torch.Tensor) -> torch.Tensor:
    return pipeline.codec.encode(pipeline.runtime.send(x))


def _both(picture: OwnPicture, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A result that replaces all that is seen of a picture, alone and in the whole."""
    whole = to_pixels(picture.pixels)[None]
    return image, picture.pasted(image, whole, torch.ones_like(whole[:, :1]))


def _sampled(
    pipeline: Pipeline, seeds: Sequence[int], calls: int,
    make: Callable[[Denoiser, Draw, OnStep], torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """Images (N, C, H, W) of make(model, draw, on_step) -> x0, pipeline.batch seeds at a time.
    calls: of the network, for each."""
    made = []
    with tqdm(total=calls * len(seeds), unit="call", unit_scale=True) as bar:
        for i in range(0, len(seeds), pipeline.batch):
            batch = seeds[i : i + pipeline.batch]
            with pipeline.runtime.autocast():
                model = pipeline.denoiser(batch)
                x0 = make(model, pipeline.noise(batch), lambda _, xt, __: bar.update(len(xt)))
            made.append(pipeline.codec.decode(x0))
    return torch.cat(made)

"""A picture of somebody's own, edited by a trained denoiser: what is read, made and kept. How it is
edited is in generation/editing.py.

C, H, W: a picture as training images are, in [-1, 1], h, w: its own size, N: how many are made.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

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
from generation.pipeline import Pipeline
from models.diffusion import epsilon
from models.samplers import slerp
from models.scheduler import DDPMScheduler
from training import figures
from training.codec import LatentCodec
from training.fidelity import psnr

COLUMNS = 11  # of pictures side by side, at most
# What stands side by side, [("caption", (C, H, W))], and what is kept: pictures (C, H, W); of what
# was inpainted each again, in the whole (C, h, w).
Edited = tuple[list[tuple[str, torch.Tensor]], Sequence[torch.Tensor] | torch.Tensor]


def edit_picture(
    pipeline: Pipeline, size: Sequence[int], seeds: Sequence[int], out: Path, *, sheet: Path,
    inpaint: str | None = None, mask: str = "", resampling: int = 1,
    vary: str | None = None, strength: Sequence[float] = (),
    reconstruct: str | None = None, invert: Sequence[str] = (), asked: Sequence[Asked] = (),
) -> None:  # fmt: skip
    """Edit the picture that inpaint, vary, reconstruct or invert names; of two to invert, go from
    one to the other. Pictures are seen at size (H, W). asked: what the results shall show.

    All is put side by side in sheet, a .png. Where out is a folder, the results alone go there, and
    what was inpainted also in the picture at its own size. Raises UserError where a file cannot
    be read, a mask does not fit, several rows are asked for, or out cannot be written to, before
    anything is made.
    """
    if not is_first():
        return
    if len(asked) > 1:
        raise UserError(f"an edit takes one row of what is asked for, not {len(asked)}")
    pipeline = replace(pipeline, asked=asked[0]) if asked else pipeline

    # What there is.
    paths = list(invert) or [path for path in (inpaint, vary, reconstruct) if path]
    codec, (channels, *_) = pipeline.codec, pipeline.shape
    if isinstance(codec, LatentCodec):
        channels = codec.autoencoder.config.image_channels
    pictures = [read_own(path, (size[0], size[1]), channels) for path in paths]
    white = read_mask(mask, pictures[0], paths[0]) if inpaint else None

    # Where it goes.
    names = [f"seed{seed:06d}" for seed in seeds]
    if inpaint:
        names = [f"{name}{end}" for name in names for end in ("", "_pasted")]
    elif vary:
        names = [f"strength{value:g}_{name}" for value in strength for name in names]
    else:
        names = [str(i) for i in range(len(seeds))] if len(paths) == 2 else ["result"]
    files = [out / f"{name}.png" for name in names] if out.suffix.lower() not in PICTURES else []
    check_out(pipeline, sheet, [sheet])
    if files:
        check_out(pipeline, out, files)
    print(f"on {pipeline.runtime}" if reconstruct else f"{pipeline.label}, on {pipeline.runtime}")

    # What is made of it.
    if white is not None:
        shown, results = inpainted(pipeline, pictures[0], white, seeds, resampling)
    elif vary:
        shown, results = varied(pipeline, pictures[0], seeds, strength)
    elif reconstruct:
        shown, results = reconstructed(pipeline, pictures[0])
    else:
        shown, results = inverted(pipeline, pictures, len(seeds))
    title = " and ".join(Path(path).name for path in paths)
    columns = 1 + min(len(seeds), COLUMNS) if vary else COLUMNS
    figures.captioned(sheet, shown, min(columns, len(shown)), title)
    print(f"saved {sheet}")
    if files:
        for file, x in zip(files, results, strict=True):
            figures.save_image(file, figures.single_image(x))
        print(f"saved {len(files)} pictures in {out}")
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
    rounds = 1 if coarse.all() else resampling
    calls = rounds * (pipeline.steps - 1) + 1
    make = partial(editing.inpaint, x0=x0, mask=coarse, resampling=resampling)
    new = torch.cat([y for _, y, _ in pipeline.batches(seeds, make=make, calls=calls)]).clamp(-1, 1)

    # A latent reaches beyond the mask; the pixels that are known come from the picture itself.
    images, share = torch.lerp(x, new, editing.feathered(mask)), editing.feathered(white)
    shown = [("input", picture.seen()[0]), ("mask", mask[0].float() * 2 - 1)]
    shown += [(f"seed {seed}", image) for seed, image in zip(seeds, images, strict=True)]
    pasted = [picture.pasted(y, below, share) for y in new]
    return shown, [x for both in zip(images, pasted, strict=True) for x in both]


def varied(
    pipeline: Pipeline, picture: OwnPicture, seeds: Sequence[int], strengths: Sequence[float]
) -> Edited:
    """Pictures like this one, one of each seed at each strength."""
    x = picture.seen()
    x0 = _encoded(pipeline, x)
    shown: list[tuple[str, torch.Tensor]] = []
    results: list[torch.Tensor] = []
    for strength in strengths:
        calls = len(editing.variation_timesteps(pipeline.scheduler, pipeline.steps, strength))
        make = partial(editing.vary, x0=x0, strength=strength)
        images = torch.cat([y for _, y, _ in pipeline.batches(seeds, make=make, calls=calls)])
        captions = [f"strength {strength:g}, seed {seed}" for seed in seeds]
        shown += [("input", x[0]), *zip(captions, images, strict=True)]
        results += images
    return shown, results


def reconstructed(pipeline: Pipeline, picture: OwnPicture) -> Edited:
    """Through the autoencoder and back, with its PSNR."""
    x = picture.seen()
    x_hat = pipeline.codec.decode(_encoded(pipeline, x))
    print(f"PSNR of the reconstruction: {psnr(x, x_hat).item():.2f} dB (peak 2)")
    return [("input", x[0]), ("reconstruction", x_hat[0])], x_hat


def inverted(pipeline: Pipeline, pictures: Sequence[OwnPicture], count: int) -> Edited:
    """A picture's noise, and the picture that comes of it again, with PSNR; or, of two pictures,
    `count` on the way from one to the other, whose noises lie on the arc between both. What is
    asked for is asked on the way back alone, and so changes the picture."""
    # There.
    x = torch.cat([picture.seen() for picture in pictures])
    x0, steps, codec = _encoded(pipeline, x), pipeline.steps, pipeline.codec
    with tqdm(total=steps, unit="step") as bar, pipeline.runtime.autocast():
        model = epsilon(pipeline.model, pipeline.scheduler)
        noise = editing.invert(model, pipeline.scheduler, x0, steps, lambda *_: bar.update())

    # And back; x0_hat is not clipped, for that cannot be undone.
    weights, path = torch.linspace(0, 1, count).tolist(), list(noise)
    if len(x) == 2:
        path = [slerp(noise[0], noise[1], w) for w in weights]
    unclipped = DDPMScheduler(replace(pipeline.scheduler.config, clip_x0=False))
    made = replace(pipeline, scheduler=unclipped).batches(
        range(len(path)), lambda items: lambda: torch.stack([path[i] for i in items])
    )
    images = torch.cat([part for _, part, _ in made])

    # The ends are the pictures again, as nearly as it goes.
    back = psnr(x, images[[0, -1]][: len(x)])
    print("PSNR there and back: " + ", ".join(f"{value:.2f} dB" for value in back.tolist()))
    if not codec.lossless:
        alone = psnr(x, codec.decode(x0))
        print("of the autoencoder alone: " + ", ".join(f"{v:.2f} dB" for v in alone.tolist()))
    if len(x) == 2:
        shown = [(f"{w:.0%} of the way", image) for w, image in zip(weights, images, strict=True)]
        return [("input A", x[0]), *shown, ("input B", x[1])], images
    seen = codec.decode(noise)[0]
    return [("input", x[0]), ("its noise", seen), ("back again", images[0])], images


def _encoded(pipeline: Pipeline, x: torch.Tensor) -> torch.Tensor:
    return pipeline.codec.encode(pipeline.runtime.send(x))

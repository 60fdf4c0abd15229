"""From a denoiser to pictures: sampled in batches, decoded, saved, and shown where possible.

The same for pixels (MNIST) and latents: only the codec and the training set differ.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from command_line.options import SAMPLING
from common.errors import UserError
from common.files import make_folder
from data.damage import DAMAGED
from data.pixels import to_uint8
from generation import seeing
from models.diffusion import epsilon
from models.samplers import picture_noise, sample
from models.scheduler import DDPMScheduler, SchedulerConfig
from models.unet import UNet
from training import figures
from training.checkpoint import fingerprint, load_model
from training.codec import LatentCodec, PixelCodec
from training.run import in_slices
from training.runtime import Runtime


def load_denoiser(path, space):
    """(UNet, DDPMScheduler, facts) of a denoiser for space "pixels" or "latents".

    Raises UserError as load_model does, and for a denoiser of the other space.
    """
    model, facts = load_model(path, "UNet")
    if facts.get("space") != space:
        script = {"pixels": "mnist_diffusion.py", "latents": "latent_diffusion.py"}
        other = script[facts["space"]] if facts.get("space") in script else "another script"
        raise UserError(f"{path} is a denoiser of {facts.get('space')}: show it with {other}")
    return model, DDPMScheduler(SchedulerConfig(**facts["scheduler"])), facts


@dataclass(frozen=True)
class Pipeline:
    """A denoiser with the sampler that args ask for: from noise to x0 and to pictures.

    shape: (c, h, w) of x0.
    """

    args: object
    runtime: Runtime
    model: UNet
    scheduler: DDPMScheduler
    shape: tuple
    codec: PixelCodec | LatentCodec

    @property
    def steps(self):
        """Calls of the network per picture."""
        default, _ = SAMPLING[self.args.sampler]
        return self.args.sampling_steps or default or self.scheduler.num_steps

    @property
    def settings(self):
        """What the sampler takes beside the number of steps."""
        _, names = SAMPLING[self.args.sampler]
        return {name: getattr(self.args, name) for name in names}

    @property
    def label(self):
        """Sampler, steps and settings in words."""
        settings = "".join(f", {key} {value:g}" for key, value in self.settings.items())
        return f"{self.args.sampler}, {self.steps} steps{settings}"

    @property
    def seeds(self):
        """One per picture: args.seed and the numbers after it."""
        return range(self.args.seed, self.args.seed + self.args.num_images)

    def sample(self, draw, on_step=None):
        """x0 (B, c, h, w) on the device, from the noise that draw() gives."""
        with self.runtime.autocast():
            return sample(
                epsilon(self.model, self.scheduler), self.scheduler, draw, self.args.sampler,
                self.steps, on_step,
                **self.settings,
            )  # fmt: skip

    def decode(self, x0):
        """Images (B, C, H, W) on the CPU, decoded in slices."""
        return in_slices(lambda part: self.codec.decode(part).cpu(), x0)

    def batches(self, items, noise=picture_noise):
        """(items, images, x0) of args.batch pictures at a time, with a progress bar.

        items: their seeds, or whatever noise(items, shape, device) makes its draw() of.
        """
        items = list(items)
        with tqdm(total=len(items), unit="image", unit_scale=True, smoothing=0.05) as bar:
            for i in range(0, len(items), self.args.batch):
                batch = items[i : i + self.args.batch]
                draw, share = noise(batch, self.shape, self.runtime.device), len(batch) / self.steps
                x0 = self.sample(draw, lambda *_, n=share: bar.update(min(n, bar.total - bar.n)))
                yield batch, self.decode(x0), x0


def make_pictures(pipeline, training_set):
    """Make what pipeline.args ask for: pictures in a grid or folder, a film, a path, or neighbours.

    Picture i has seed args.seed + i. training_set: a function without arguments ->
    seeing.TrainingSet. Raises UserError when args.out cannot be written to, or the steps are not
    in 1 .. T, before anything is made.
    """
    args = pipeline.args
    out = Path(args.out)
    as_grid = out.suffix.lower() in figures.PICTURES
    others = training_set() if args.neighbours else None
    check_out(pipeline, out)
    print(f"{pipeline.label}, on {pipeline.runtime}", flush=True)
    began = time.monotonic()
    if args.film:
        seeing.film(pipeline, out)
    elif args.interpolate:
        seeing.interpolation(pipeline, out, *args.interpolate)
    elif args.neighbours:
        seeing.neighbours(pipeline, out, others)
    elif as_grid:
        grid = [to_uint8(images) for _, images, _ in pipeline.batches(pipeline.seeds)]
        figures.save_grid(out, torch.cat(grid))
    else:
        fill_folder(pipeline, out)
    print(f"saved {out} in {time.monotonic() - began:.1f} s")
    if as_grid:
        figures.show_window(out)


def check_out(pipeline, out):
    """Make the folder that out needs; UserError where it cannot be made or written to, or where
    the pipeline's steps are not in 1 .. T."""
    pipeline.scheduler.timesteps(pipeline.steps)
    as_grid = out.suffix.lower() in figures.PICTURES
    if not as_grid and out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, not a folder; for a grid end it in .png or .jpg")
    if as_grid and out.is_dir():
        raise UserError(f"--out {out} is a folder; for single pictures name it without an ending")
    folder = out.parent if as_grid else out
    try:
        make_folder(folder)
    except UserError as error:
        raise UserError(f"--out {out}: {error}") from None


def fill_folder(pipeline, folder):
    """seedNNNNNN.png for each seed, its settings in its text; those that are there are kept.

    Raises UserError when a picture that is there was made with other settings.
    """
    text = {
        "denoiser": fingerprint(pipeline.model)[:16],
        "sampler": pipeline.args.sampler,
        "sampling_steps": pipeline.steps,
        **pipeline.settings,
        "precision": pipeline.runtime.precision,
    }
    text = {key: str(value) for key, value in text.items()}
    there = set(folder.glob("seed*.png"))
    for path in sorted(there):
        _check_made_alike(path, text)
    paths = {seed: folder / f"seed{seed:06d}.png" for seed in pipeline.seeds}
    missing = [seed for seed, path in paths.items() if path not in there]
    if len(missing) < len(paths):
        print(f"{len(paths) - len(missing)} of {len(paths)} pictures are there already")
    for seeds, images, _ in pipeline.batches(missing):
        for seed, image in zip(seeds, images, strict=True):
            figures.save_image(paths[seed], figures.single_image(image), text | {"seed": str(seed)})


def _check_made_alike(path, text):
    """Raise UserError unless the PNG's text says that it was made with these settings."""
    try:
        with Image.open(path) as image:
            found = image.info  # the pixels are not decoded
    except DAMAGED:
        found = {}
    for key, value in text.items():
        if key not in found:
            raise UserError(f"{path} does not say how it was made; choose another --out")
        if found[key] != value:
            raise UserError(
                f"{path} was made with {key} {found[key]}, not {value}; choose another --out"
            )

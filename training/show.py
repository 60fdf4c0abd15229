"""From a denoiser to pictures: sampled in batches, decoded, saved, and shown where possible.

The same for pixels (MNIST) and latents: only `decode` differs.
"""

from pathlib import Path

import torch
from tqdm import tqdm

from models.diffusion import picture_noise, sample
from models.scheduler import DDPMScheduler, SchedulerConfig
from training import figures
from training.checkpoint import load_model
from training.run import in_slices


def load_denoiser(path, space):
    """(UNet, DDPMScheduler, facts) of a denoiser for space "pixels" or "latents".

    Raises ValueError as load_model does, and for a denoiser of the other space.
    """
    model, facts = load_model(path, "UNet")
    if facts.get("space") != space:
        script = {"pixels": "mnist_diffusion.py", "latents": "latent_diffusion.py"}
        other = script[facts["space"]] if facts.get("space") in script else "another script"
        raise ValueError(f"{path} is a denoiser of {facts.get('space')}: show it with {other}")
    return model, DDPMScheduler(SchedulerConfig(**facts["scheduler"])), facts


def make_pictures(args, runtime, model, scheduler, shape, decode):
    """Make args.num_images pictures with seeds args.seed, args.seed + 1, .. and save them.

    shape: (c, h, w) of x0. decode: x0 -> images in [-1, 1]. args.out names a grid (.png, .jpg)
    or a folder of single pictures.
    """
    out = Path(args.out)
    as_grid = out.suffix.lower() in (".png", ".jpg", ".jpeg")
    if not as_grid and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file, not a folder; for a grid end it in .png or .jpg")
    if as_grid and out.is_dir():
        raise ValueError(f"--out {out} is a folder; for single pictures name it without an ending")
    steps = args.sampling_steps or scheduler.num_steps
    scheduler.timesteps(steps)  # refuses what cannot be before anything is made
    (out.parent if as_grid else out).mkdir(parents=True, exist_ok=True)
    seeds = range(args.seed, args.seed + args.num_images)
    batches = [seeds[i : i + args.batch] for i in range(0, len(seeds), args.batch)]
    print(f"{len(seeds)} pictures, {steps} steps each, on {runtime}", flush=True)
    model = runtime.place(model)
    grid = []
    with tqdm(total=len(batches) * steps, unit="step", smoothing=0.05) as bar:
        for batch in batches:
            draw = picture_noise(batch, shape, runtime.device)
            with runtime.autocast():
                x0 = sample(model, scheduler, draw, steps, args.sigma_scale, on_step=bar.update)
                x = in_slices(decode, x0).float().cpu()
            if as_grid:
                grid.append(x)
            else:
                for seed, picture in zip(batch, x, strict=True):
                    image = figures.single_image(picture)
                    figures.save_image(out / f"seed{seed:06d}.png", image)
    if as_grid:
        figures.save_grid(out, torch.cat(grid))
    print(f"saved {out}" + ("" if as_grid else f"/: {len(seeds)} pictures"))
    if as_grid:
        figures.show_window(out)

"""The one denoiser loop: MNIST's pixels and CelebA's latents are both x0 of shape (B, c, h, w)."""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tqdm import tqdm

from data.order import ShuffledOrder
from models.blocks import norm_groups
from models.diffusion import Objective, denoising_loss, epsilon
from models.samplers import picture_noise, sample
from models.scheduler import DDPMScheduler, SchedulerConfig
from models.unet import UNet, UNetConfig
from training import figures
from training.codec import LatentCodec, PixelCodec
from training.ema import EMA
from training.optimizer import Optimizer, lr_factor
from training.progress import read_metrics
from training.run import Run, parameters, tolerating_os_errors

NUM_BANDS = 10  # of t, in metrics and figures
NUM_VALID = 256  # most validation images behind the validation loss; fewer are repeated
PREVIEW_STEPS, NUM_PREVIEWS = 50, 16
MAX_GRADIENT = 1.0  # norm from which a gradient is shortened


@dataclass(frozen=True)
class DenoiserData:
    """What the loop needs to know of its data.

    draw: (B,) indices of training images -> x0 (B, c, h, w) on the device. valid: fixed x0 of
    validation images, on the device.
    """

    draw: Callable
    num_train: int
    valid: torch.Tensor
    codec: PixelCodec | LatentCodec


def network_and_schedule(args, in_channels, channel_mult, clip_x0):
    """An untrained UNet by --channels, --blocks and --dropout; its schedule, by --schedule and
    --prediction.

    channel_mult: the levels' widths, as multiples of --channels.
    """
    c = args.channels
    widths = tuple(c * times for times in channel_mult)
    config = UNetConfig(in_channels, widths, args.blocks, norm_groups(c), args.dropout)
    schedule = SchedulerConfig(1000, args.schedule, args.prediction, clip_x0)
    return UNet(config), DDPMScheduler(schedule)


def train(args, state, *, runtime, model, scheduler, data, facts, kind):
    """Train model on data, from the start or from a resumed run's state.

    facts: goes into every checkpoint, what a user of the denoiser has to know. kind: the folders of
    checkpoints/ and fig/. Raises UserError when the resumed run is already finished.
    """
    order = ShuffledOrder(data.num_train, args.batch, args.seed)
    run = Run(args, runtime, state, order, kind)
    model = runtime.place(model).train()
    ema = EMA(model, args.ema)
    optimizer = Optimizer(model, args.optimizer, args.lr, (0.9, 0.99), MAX_GRADIENT, runtime)
    parts = {"model": model, "ema": ema.model, "optimizer": optimizer}
    run.restore(parts)
    runtime.decide_compile(args.compile, run.steps - run.start)
    run.announce(
        parts,
        data=f"{data.num_train} training images, x0 of {tuple(data.valid.shape[1:])}",
        network=f"UNet, {parameters(model)}",
    )

    denoise = epsilon(runtime.compiled(model), scheduler)
    objective = Objective(scheduler, args.t_density, args.min_snr, runtime.device)
    with run.progress() as progress:
        for step in range(run.start, run.steps):
            x0 = data.draw(run.order.indices(step))
            with runtime.autocast():
                loss, losses, t = objective(denoise, x0)
            norm = optimizer.step(loss, lr_factor(step, run.steps))
            ema.update(model, step)
            progress.add(gradient_norm=norm, **metrics(losses, t, objective.importance))

            done = step + 1
            if run.report_due(done):
                validation = {}
                if run.validate_due(done):
                    for name, network in (("raw", model), ("ema", ema.model)):
                        validation[f"valid_{name}"] = validate(network, scheduler, data, runtime)
                means = progress.means()
                counts = zip(means.pop("band_sum"), means.pop("band_count"), strict=True)
                means["band_loss"] = [s / c if c else None for s, c in counts]
                progress.report(means, epoch=run.epoch(done), **validation)
            if run.save_due(done):
                run.save(done, ema.model, facts)
            run.end_step(parts, done)
            if run.figures_due(done):
                with tolerating_os_errors():
                    draw_figures(run, scheduler, data, model, ema.model)


@contextmanager
def evaluating(model):
    """The model in eval mode, without gradients; afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)


def metrics(losses, t, importance):
    """The mean of losses (B,) at t (B,), and per band of t the sum of losses and that of their
    weights, two vectors of NUM_BANDS. The weights are importance (T,) at t: so all t count alike,
    however they were drawn.
    """
    band = t * NUM_BANDS // len(importance)
    count = importance[t]
    losses = count * losses.detach().float()
    zeros = torch.zeros(NUM_BANDS, device=losses.device)
    return {
        "loss": losses.mean(),
        "band_sum": zeros.index_add(0, band, losses),
        "band_count": zeros.index_add(0, band, count),
    }


def validate(model, scheduler, data, runtime):
    """Mean loss on data.valid, with the same t (spread evenly) and noise at every call.

    Fewer than NUM_VALID images are taken several times, each at other t: so all t count alike.
    """
    x0 = data.valid.repeat(math.ceil(NUM_VALID / len(data.valid)), 1, 1, 1)
    t = (torch.arange(len(x0)) + 0.5) * (scheduler.num_steps / len(x0))
    t = t.long().to(x0.device)
    eps = picture_noise(range(len(x0)), x0.shape[1:], x0.device)()
    with evaluating(model), runtime.autocast():
        batches = list(zip(x0.split(64), t.split(64), eps.split(64), strict=True))
        losses = [
            denoising_loss(epsilon(model, scheduler), scheduler, *batch)
            for batch in tqdm(batches, "validation", unit="batch", delay=1, leave=False)
        ]
    return torch.cat(losses).mean().item()


def draw_figures(run, scheduler, data, model, ema_model):
    """losses.png, bands.png, predictions.png and samples.png in the run's folder of figures."""
    runtime = run.runtime
    records = read_metrics(run.metrics, run.name)
    figures.curves(
        run.fig / "losses.png",
        records,
        {"squared error of eps_hat": ["loss", "valid_raw", "valid_ema"],
         "gradient norm before clipping": ["gradient_norm"]},
    )  # fmt: skip
    figures.bands(run.fig / "bands.png", records, scheduler.num_steps)
    predictions(run.fig / "predictions.png", scheduler, data, runtime, ema_model)
    grids, networks = {}, {"raw weights": model, "averaged weights (EMA)": ema_model}
    total = len(networks) * PREVIEW_STEPS
    with tqdm(total=total, desc="preview", unit="step", delay=1, leave=False) as bar:
        for name, network in networks.items():
            draw = picture_noise(range(NUM_PREVIEWS), data.valid.shape[1:], runtime.device)
            with evaluating(network), runtime.autocast():
                denoise = epsilon(network, scheduler)
                x0 = sample(
                    denoise, scheduler, draw, "ddpm", PREVIEW_STEPS, lambda *_: bar.update()
                )
            grids[name] = data.codec.decode(x0)
    title = f"{run.name}: samples of {PREVIEW_STEPS} steps from the same noise"
    figures.side_by_side(run.fig / "samples.png", grids, title)


@torch.no_grad()
def predictions(path, scheduler, data, runtime, model):
    """The figure of one validation image: noised to several t, and what is predicted from it."""
    t = torch.linspace(0, scheduler.num_steps - 1, 9).long()[1:].to(runtime.device)
    x0 = data.valid[:1].expand(len(t), -1, -1, -1)
    eps = picture_noise(range(len(t)), x0.shape[1:], x0.device)()
    xt = scheduler.add_noise(x0, eps, t)
    with runtime.autocast():
        x0_hat = scheduler.predict_x0(xt, epsilon(model, scheduler)(xt, t), t)
    rows = {"x0": x0, "xt": xt, "x0_hat": x0_hat}
    rows = {name: data.codec.decode(x) for name, x in rows.items()}
    captions = {"x0": [f"t = {step}" for step in t.tolist()]}
    figures.image_rows(path, rows, "Predictions of x0 from xt (averaged weights)", captions)

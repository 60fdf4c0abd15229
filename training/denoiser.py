"""The one denoiser loop: MNIST's pixels and CelebA's latents are both x0 of shape (B, c, h, w)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from data.labels import Labels
from models.blocks import norm_groups
from models.diffusion import Objective, denoising_loss, epsilon
from models.draws import Draws
from models.guidance import conditioned, dropped
from models.samplers import picture_noise, sample
from models.scheduler import DDPMScheduler
from models.unet import UNet, UNetConfig
from training import figures
from training.codec import Codec
from training.ema import EMA
from training.optimizer import Optimizer
from training.progress import Progress, parameters
from training.records import read_metrics
from training.run import NUM_VALID, Run
from training.runtime import Runtime

NUM_BANDS = 10  # of t, in metrics and figures
PREVIEW_STEPS, NUM_PREVIEWS = 50, 16


@dataclass(frozen=True)
class DenoiserData:
    """What the loop needs to know of its data.

    draw: (B,) indices of training images, and the step's random numbers -> x0 (B, c, h, w) on the
    device. valid: fixed x0 of validation images, on the device. labels, valid_c: of the training
    images, by index, and of the validation images; None where nothing can be asked for.
    """

    draw: Callable[[torch.Tensor, Draws], torch.Tensor]
    num_train: int
    valid: torch.Tensor
    codec: Codec
    labels: torch.Tensor | None = None
    valid_c: torch.Tensor | None = None


def network(
    in_channels: int, channels: int, channel_mult: tuple[int, ...], blocks: int, dropout: float,
    attention: str | None = None, labels: Labels | None = None,
) -> UNet:  # fmt: skip
    """An untrained UNet whose levels have channels times channel_mult as widths. attention: the
    numbers of the levels that have it, as --attention is typed. labels: what can be asked for."""
    widths = tuple(channels * times for times in channel_mult)
    levels = tuple(map(int, attention.split(","))) if attention else ()
    known = {labels.kind: len(labels.names)} if labels else {}
    groups = norm_groups(channels)
    return UNet(UNetConfig(in_channels, widths, blocks, groups, dropout, levels, **known))


class DenoiserLearner:
    """All that changes while a denoiser learns; step() changes it once.

    lr: peak learning rate. ema: decay of the averaged weights. t_density, min_snr: how often each t
    is drawn and how much it counts (models/diffusion.py). accumulate: parts in which a step's
    gradient is made, for a device on which the whole batch finds no room.
    """

    def __init__(
        self, model: UNet, scheduler: DDPMScheduler, runtime: Runtime, *, optimizer: str, lr: float,
        ema: float, t_density: str, min_snr: float, accumulate: int = 1,
    ) -> None:  # fmt: skip
        self.model, self.scheduler, self.runtime = runtime.place(model).train(), scheduler, runtime
        self.ema, self.accumulate = EMA(self.model, ema), accumulate
        self.optimizer = Optimizer(self.model, optimizer, lr, runtime)
        self.objective = Objective(scheduler, t_density, min_snr, runtime.device)
        self.network = runtime.compiled(self.model)
        self.parts = {"model": self.model, "ema": self.ema.model, "optimizer": self.optimizer}

    def step(
        self, x0: torch.Tensor, rate: float, draws: Draws, c: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """One update by x0 (B, c, h, w), at `rate` times the peak learning rate, with the random
        numbers of its step. c: the conditions of x0, of which some are dropped. Metrics as
        Progress.add takes them, none where the step was skipped."""
        found, parts = [], draws.parts(self.accumulate)
        size, network = len(parts[0].places), self.network
        for i, (part, x) in enumerate(zip(parts, x0.split(size), strict=True)):
            if self.model.config.dropout:
                part.seed_torch()
            if c is not None:
                part_c = dropped(c[i * size :][: len(x)], self.model.nothing(1), part)
                network = conditioned(self.network, part_c)
            with self.runtime.autocast():
                loss, losses, t = self.objective(epsilon(network, self.scheduler), x, part)
            self.optimizer.backward(loss * (len(x) / len(x0)))
            found.append((losses.detach(), t))
        norm = self.optimizer.step(rate)
        if norm is None:
            return {}
        self.ema.update(self.model, draws.step)
        losses, t = map(torch.cat, zip(*found, strict=True))
        return {"gradient_norm": norm, **metrics(losses, t, self.objective.importance)}


def train(run: Run, learner: DenoiserLearner, data: DenoiserData, facts: dict) -> None:
    """Train on data, from the start or from where a resumed run was.

    facts: goes into every checkpoint, what a user of the denoiser has to know.
    """
    run.take(learner.parts, {run.folder.name: learner.ema.model}, facts)
    run.announce(
        data=f"{data.num_train} training images, x0 of {tuple(data.valid.shape[1:])}",
        network=f"UNet, {parameters(learner.model)}",
    )
    draw = partial(draw_figures, run, learner, data)
    with run.progress() as progress:
        run.catch_up(draw)
        for step in range(run.start, run.steps):
            draws, indices = run.draws(step), run.indices(step)
            x0 = data.draw(indices, draws)
            c = None if data.labels is None else data.labels[indices].to(x0.device)
            progress.add(**learner.step(x0, run.schedule.factor(step), draws, c))

            # A report, then checkpoint, state and figures, each when it is due.
            done = step + 1
            if run.report_due(done):
                means = progress.means()
                if run.is_first:
                    report(run, learner, data, progress, means)
            run.end_step(done, draw)


def report(
    run: Run, learner: DenoiserLearner, data: DenoiserData, progress: Progress, means: dict
) -> None:
    """Validate where that is due, and write a record."""
    validation = {}
    if run.validate_due(progress.done):
        for name, network in (("raw", learner.model), ("ema", learner.ema.model)):
            loss = validate(network, learner.scheduler, data, learner.runtime)
            validation[f"valid_{name}"] = loss
    run.valid_loss = validation.get("valid_ema")
    counts = zip(means.pop("band_sum", []), means.pop("band_count", []), strict=True)
    means["band_loss"] = [s / c if c else None for s, c in counts]
    progress.report(means, epoch=run.epoch(progress.done), **validation)


@contextmanager
def evaluating(model: UNet) -> Iterator[None]:
    """The model in eval mode, without gradients; afterwards in the mode it was in."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(was_training)


def metrics(
    losses: torch.Tensor, t: torch.Tensor, importance: torch.Tensor
) -> dict[str, torch.Tensor]:
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


def validate(model: UNet, scheduler: DDPMScheduler, data: DenoiserData, runtime: Runtime) -> float:
    """Mean loss on data.valid, with the same t (spread evenly) and noise at every call.

    Fewer than NUM_VALID images are taken several times, each at other t: so all t count alike.
    """
    x0 = data.valid.repeat(math.ceil(NUM_VALID / len(data.valid)), 1, 1, 1)
    c = asked(data, len(x0))
    t = (torch.arange(len(x0)) + 0.5) * (scheduler.num_steps / len(x0))
    t = t.long().to(x0.device)
    eps = picture_noise(range(len(x0)), x0.shape[1:], x0.device)()
    with evaluating(model), runtime.autocast():
        cs = [None] * len(x0) if c is None else c.split(64)
        batches = list(zip(cs, x0.split(64), t.split(64), eps.split(64), strict=False))
        losses = [
            denoising_loss(epsilon(conditioned(model, c), scheduler), scheduler, *batch)
            for c, *batch in tqdm(batches, "validation", unit="batch", delay=1, leave=False)
        ]
    return torch.cat(losses).mean().item()


def asked(data: DenoiserData, n: int) -> torch.Tensor | None:
    """What is asked for in n figures or losses: what the validation images show, again and again.
    None where nothing can be."""
    c = data.valid_c
    return None if c is None else c[torch.arange(n, device=c.device) % len(c)]


def draw_figures(run: Run, learner: DenoiserLearner, data: DenoiserData) -> None:
    """predictions.png, samples.png, bands.png and losses.png in the run's folder of figures."""
    # What the networks make: of noised images, and of noise alone.
    scheduler, runtime = learner.scheduler, learner.runtime
    predictions(run.fig / "predictions.png", scheduler, data, runtime, learner.ema.model)
    networks = {"raw weights": learner.model, "averaged weights (EMA)": learner.ema.model}
    grids, total = {}, len(networks) * PREVIEW_STEPS
    with tqdm(total=total, desc="preview", unit="step", delay=1, leave=False) as bar:
        for name, model in networks.items():
            draw = picture_noise(range(NUM_PREVIEWS), data.valid.shape[1:], runtime.device)
            with evaluating(model), runtime.autocast():
                denoise = epsilon(conditioned(model, asked(data, NUM_PREVIEWS)), scheduler)
                x0 = sample(
                    denoise, scheduler, draw, "ddpm", PREVIEW_STEPS, lambda *_: bar.update()
                )
            grids[name] = data.codec.decode(x0)
    title = f"{run.name}: samples of {PREVIEW_STEPS} steps from the same noise"
    figures.side_by_side(run.fig / "samples.png", grids, title)

    # The curves, from the run's records.
    records = read_metrics(run.metrics, run.name)
    panels = {
        "squared error of eps_hat": ["loss", "valid_raw", "valid_ema"],
        "gradient norm before clipping": ["gradient_norm"],
    }
    figures.bands(run.fig / "bands.png", records, scheduler.num_steps)
    figures.curves(run.fig / "losses.png", records, panels)


@torch.no_grad()
def predictions(
    path: Path, scheduler: DDPMScheduler, data: DenoiserData, runtime: Runtime, model: UNet
) -> None:
    """The figure of one validation image: noised to several t, and what is predicted from it."""
    t = torch.linspace(0, scheduler.num_steps - 1, 9).long()[1:].to(runtime.device)
    x0 = data.valid[:1].expand(len(t), -1, -1, -1)
    eps = picture_noise(range(len(t)), x0.shape[1:], x0.device)()
    xt = scheduler.add_noise(x0, eps, t)
    c = asked(data, 1)
    network = conditioned(model, None if c is None else c.expand(len(t), *c.shape[1:]))
    with runtime.autocast():
        x0_hat = scheduler.predict_x0(xt, epsilon(network, scheduler)(xt, t), t)
    rows = {"x0": x0, "xt": xt, "x0_hat": x0_hat}
    rows = {name: data.codec.decode(x) for name, x in rows.items()}
    captions = {"x0": [f"t = {step}" for step in t.tolist()]}
    figures.image_rows(path, rows, "Predictions of x0 from xt (averaged weights)", captions)

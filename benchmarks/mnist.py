"""How soon digits are good: Frechet distance over minutes of training, ours and the peers'.

python3 -m benchmarks.mnist [--minutes 10 30] [--data-root DIR]

Every contender is trained anew for each budget, unless its learning rate is constant: then the
shorter budgets are points on the way of the longest. Budgets are turned into steps by the speed
measured by turns with the others before: so other work on the machine during hours of training
changes nothing. A result is kept in checkpoints/benchmark/mnist.jsonl; run again, this goes on with
what is missing.
"""

import argparse
import copy
import json
import math
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks import steps
from benchmarks.report import ROOT, Report, alternate, installed
from command_line.parsers import parse_mnist
from data.mnist import mnist_images
from data.order import ShuffledOrder
from data.pixels import to_pixels
from generation.classifier import features, mnist_classifier
from generation.metrics import frechet_distance
from generation.pipeline import load_denoiser
from mnist_diffusion import CHANNEL_MULT
from models.diffusion import LOG_MEAN, LOG_STD, SHARE, epsilon
from models.samplers import picture_noise, sample
from training.checkpoint import fingerprint
from training.ema import EMA
from training.optimizer import LrSchedule
from training.runtime import Runtime

SAMPLES, SAMPLING_STEPS, BATCH = 2000, 50, 200
RESULTS = "checkpoints/benchmark/mnist.jsonl"
OVERHEAD = 0.05  # share of our minutes that go to validation, figures and checkpoints


class Peer:
    """A peer's network in training on digits, and samples of its averaged weights.

    schedule(step, steps): the share of lr. ema(network): something with update(step) and .model.
    """

    def __init__(self, device, batch, lr, schedule, ema, betas, accumulate=1):
        self.device, self.batch, self.schedule, self.lr = device, batch, schedule, lr
        self.accumulate = accumulate
        # On a CPU what they do by themselves; on a GPU what ours does.
        ours = Runtime(str(device)).precision
        self.precision = "fp32" if self.device.type == "cpu" else ours
        self.network = self.make().to(device).train()
        self.ema = ema(self.network)
        self.optimizer = self.make_optimizer(lr, betas)

    def step(self, images, step, total):
        """One update from self.accumulate batches of uint8 digits."""
        for part in images.to(self.device).chunk(self.accumulate):
            with steps.autocast(self.device.type, self.precision):
                loss = self.loss(to_pixels(part))
            (loss / self.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self.schedule(step, total)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(step)


class Diffusers(Peer):
    """UNet2DModel of our structure, trained as examples/unconditional_image_generation does."""

    def make(self):
        import diffusers

        self.scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        return steps.unet2d(our_network()[0].config)

    def make_optimizer(self, lr, betas):
        return torch.optim.AdamW(self.network.parameters(), lr=lr, betas=betas, weight_decay=1e-6)

    def loss(self, x0):
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),), device=x0.device)
        out = self.network(self.scheduler.add_noise(x0, noise, t), t).sample
        return F.mse_loss(out, noise)

    def samples(self, seeds):
        model = self.ema.model.eval()
        draw = picture_noise(seeds, (1, 28, 28), self.device)
        return sample(lambda xt, t: model(xt, t).sample, our_network()[1], draw, "ddpm",
                      SAMPLING_STEPS)  # fmt: skip


class DDPMPytorch(Peer):
    """Unet of as many parameters as ours, three levels, in GaussianDiffusion as its README does."""

    def make(self):
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet

        ours = our_network()[0]
        model = steps.equal_size(lambda dim: Unet(dim=dim, dim_mults=(1, 2, 4), channels=1), ours)
        return GaussianDiffusion(
            model, image_size=28, sampling_timesteps=SAMPLING_STEPS, ddim_sampling_eta=1.0
        )

    def make_optimizer(self, lr, betas):
        return torch.optim.Adam(self.network.parameters(), lr=lr, betas=betas)

    def loss(self, x0):
        return self.network(x0 / 2 + 0.5)  # it takes [0, 1]

    def samples(self, seeds):
        torch.manual_seed(seeds[0])  # its sampler draws all pictures' noise from one generator
        return self.ema.model.eval().sample(batch_size=len(seeds)) * 2 - 1


class OurEMA:
    """Averaged as ours are."""

    def __init__(self, model):
        self.weights, self.ema = model, EMA(model, mnist_args().ema)
        self.model = self.ema.model

    def update(self, step):
        self.ema.update(self.weights, step)


class DiffusersEMA:
    """As the example's --use_ema: at most 0.9999, warmed up with power 3/4."""

    def __init__(self, model):
        from diffusers.training_utils import EMAModel

        self.weights, self.average = model, copy.deepcopy(model)
        self.ema = EMAModel(
            model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
        )

    def update(self, step):
        self.ema.step(self.weights.parameters())

    @property
    def model(self):
        self.ema.copy_to(self.average.parameters())
        return self.average


class DDPMPytorchEMA:
    """As its Trainer: 0.995, every 10 steps."""

    def __init__(self, model):
        from ema_pytorch import EMA as TheirEMA

        self.ema = TheirEMA(model, beta=0.995, update_every=10)

    def update(self, step):
        self.ema.update()

    @property
    def model(self):
        return self.ema.ema_model


def our_rate(step, total):
    """That of mnist_diffusion.py --train."""
    return LrSchedule.whole(mnist_args().lr_schedule, total).factor(step)


def cosine(step, total):
    """diffusers' "cosine" schedule with a warm-up of 500 steps."""
    if step < 500:
        return step / 500
    return 0.5 * (1 + math.cos(math.pi * (step - 500) / max(1, total - 500)))


def constant(step, total):
    """The rate of denoising-diffusion-pytorch's Trainer."""
    return 1.0


def mnist_args():
    """The arguments of MNIST's training, all defaults."""
    return parse_mnist(["--train"])


def our_network():
    """The denoiser of mnist_diffusion.py --train, untrained, and its schedule."""
    return steps.network_and_schedule(mnist_args(), 1, CHANNEL_MULT, clip_x0=True)


def peers():
    """{name: function of a device -> Peer} of those that are installed."""
    args = mnist_args()
    ours = {"batch": args.batch, "lr": args.lr, "schedule": our_rate, "ema": OurEMA}
    ours |= {"betas": (0.9, 0.99)}
    found = {}
    if installed("diffusers"):
        theirs = {"batch": 16, "lr": 1e-4, "schedule": cosine, "ema": DiffusersEMA}
        theirs |= {"betas": (0.95, 0.999)}
        found["diffusers, as its example"] = partial(Diffusers, **theirs)
        found["diffusers, our rate and EMA"] = partial(Diffusers, **ours)
    if installed("denoising_diffusion_pytorch"):
        theirs = {"batch": 64, "accumulate": 2, "lr": 8e-5, "schedule": constant}
        theirs |= {"ema": DDPMPytorchEMA, "betas": (0.9, 0.99)}
        name = "denoising-diffusion-pytorch"
        found[f"{name}, as its README"] = partial(DDPMPytorch, **theirs)
        found[f"{name}, our rate and EMA"] = partial(DDPMPytorch, **ours)
    return found


# ---- Speeds, trainings, distances ---------------------------------------------------------------


def step_of(name, device):
    """A function that makes one training step of a contender, for its speed."""
    if name == "ours":
        return our_step(device)
    peer = peers()[name](torch.device(device))
    images = torch.zeros(peer.batch, 1, 28, 28, dtype=torch.uint8)
    return lambda: peer.step(images, 1000, 10_000)


def our_step(device):
    """The same of mnist_diffusion.py --train."""
    args = mnist_args()
    images = torch.zeros(args.batch, 1, 28, 28, dtype=torch.uint8)
    return steps.our_step(args, Runtime(device), *our_network(), lambda: to_pixels(images))[0]


def train_peer(name, device, digits, totals):
    """Yields a Peer after each of totals steps (rising) on the digits: one and the same where its
    rate is constant, else trained anew."""
    peer = None
    for total in totals:
        if peer is None or peer.schedule is not constant:
            torch.manual_seed(0)
            peer, begin = peers()[name](device), 0
            order = ShuffledOrder(len(digits), peer.batch, 0)
        for step in tqdm(range(begin, total), desc=name, unit="step", mininterval=10):
            peer.step(digits[order.indices(step)], step, total)
        yield peer
        begin = total


def train_ours(device, data_root, total):
    """A function of seeds -> samples, of mnist_diffusion.py --train after so many steps."""
    folder = Path(RESULTS).parent / "ours"  # its checkpoints/ and fig/
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, ROOT / "mnist_diffusion.py", "--train", "--name", "ours"]
    command += ["--steps", total, "--data-root", Path(data_root).resolve(), "--device", device]
    subprocess.run(list(map(str, command)), check=True, cwd=folder)
    runtime = Runtime(str(device))
    newest = max((folder / "checkpoints" / "mnist").glob("*.safetensors"))
    model, scheduler, facts = load_denoiser(newest, "pixels")
    assert facts["step"] == total
    denoise = epsilon(runtime.place(model), scheduler)

    def samples(seeds):
        with runtime.autocast():
            draw = picture_noise(seeds, (1, 28, 28), runtime.device)
            return sample(denoise, scheduler, draw, "ddpm", SAMPLING_STEPS)

    return samples


@torch.no_grad()
def sample_features(classifier, samples):
    """(SAMPLES, 128) features of the pictures of seeds 0 to SAMPLES - 1."""
    seeds = list(range(SAMPLES))
    batches = [seeds[i : i + BATCH] for i in range(0, SAMPLES, BATCH)]
    parts = [samples(batch).float().cpu() for batch in tqdm(batches, desc="sampling")]
    return features(classifier, torch.cat(parts))


def floor(classifier, data_root, test):
    """Mean distance to the test set, over 5 draws, of as many training images."""
    images = mnist_images(data_root, "train")
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randperm(len(images), generator=generator)[:SAMPLES] for _ in range(5)]
    return sum(
        frechet_distance(features(classifier, to_pixels(images[draw])), test) for draw in draws
    ) / len(draws)


def contend(name, budgets, speed, device, data_root):
    """Train a contender for budgets (minutes, rising) at speed steps/s; yields a record of each."""
    digits, classifier = mnist_images(data_root, "train"), mnist_classifier(data_root)
    test = features(classifier, to_pixels(mnist_images(data_root, "test")))
    share = 1 - OVERHEAD if name == "ours" else 1
    totals = [round(60 * minutes * speed * share) for minutes in budgets]
    if name == "ours":
        batch = mnist_args().batch
        trained = ((train_ours(device, data_root, total), batch) for total in totals)
    else:
        going = train_peer(name, device, digits, totals)
        trained = ((peer.samples, peer.batch) for peer in going)
    for minutes, total, (samples, batch) in zip(budgets, totals, trained, strict=True):
        with torch.random.fork_rng():  # a training that goes on must not follow the samples' noise
            drawn = sample_features(classifier, samples)
        yield {
            "contender": name, "minutes": minutes, "steps": total, "images": total * batch,
            "distance": frechet_distance(drawn, test),
        }  # fmt: skip


def settings(name, device, classifier):
    """What a contender's results depend on beside the minutes: the machine's kind, and defaults of
    ours; the peers have our structure, batch, rate and EMA, but our loss is our own."""
    args, runtime = mnist_args(), Runtime(device.type)
    names = ["batch", "lr", "ema", "channels", "blocks"]
    known = {"device": device.type, "classifier": fingerprint(classifier)[:8]}
    if name == "ours":
        names += ["min_snr", "t_density", "dropout", "optimizer", "lr_schedule"]
        names += ["prediction", "schedule"]
        known |= {"lognormal": [LOG_MEAN, LOG_STD, SHARE], "precision": runtime.precision}
    return {**known, **{name: getattr(args, name) for name in names}}


def read_results(of):
    """(speeds {name: steps/s}, records) of what was measured before; of: {name: settings}."""
    lines = Path(RESULTS).read_text().splitlines() if Path(RESULTS).is_file() else []
    records = [r for r in map(json.loads, lines) if r["settings"] == of.get(r["contender"])]
    speeds = {r["contender"]: r["speed"] for r in records if "speed" in r}
    return speeds, [r for r in records if "speed" not in r]


def keep(record, of):
    """Add a line to the results."""
    Path(RESULTS).parent.mkdir(parents=True, exist_ok=True)
    with open(RESULTS, "a") as file:
        file.write(json.dumps({**record, "settings": of[record["contender"]]}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 30], help="budgets")
    parser.add_argument("--only", nargs="+", help="some of the contenders, by their names")
    parser.add_argument("--data-root", default="data", metavar="DIR", help="where MNIST/ is")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args()
    device = Runtime(args.device).device
    names = ["ours", *peers()]
    if unknown := set(args.only or []) - set(names):
        parser.error(f"no contender {unknown.pop()!r}; there are {', '.join(names)}")
    classifier = mnist_classifier(args.data_root)
    of = {name: settings(name, device, classifier) for name in names}
    speeds, records = read_results(of)
    if set(names) - set(speeds):
        makers = {name: f"mnist.step_of({name!r}, {device.type!r})" for name in names}
        seconds = alternate(makers, rounds=9, calls=3)
        speeds = {name: 1 / value for name, value in seconds.items()}
        for name, speed in speeds.items():
            keep({"contender": name, "speed": speed}, of)
    for name in args.only or names:
        done = {r["minutes"] for r in records if r["contender"] == name}
        missing = sorted(set(args.minutes) - done)
        for record in contend(name, missing, speeds[name], device, args.data_root):
            keep(record, of)
            records.append(record)
    show(records, args.data_root)


def show(records, data_root):
    """All figures of the file, and the floor."""
    report, classifier = Report(), mnist_classifier(data_root)
    test = features(classifier, to_pixels(mnist_images(data_root, "test")))
    value = floor(classifier, data_root, test)
    note = f"{SAMPLES} training images against the test set, mean of 5 draws"
    report.add("floor", value, "Frechet distance", note=note)
    for r in sorted(records, key=lambda r: (r["minutes"], r["distance"])):
        others = [q["distance"] for q in records if q["minutes"] == r["minutes"] and q is not r]
        note = f"{r['images']:,} images in {r['steps']:,} steps"
        target = f"<= {min(others):.4f}" if r["contender"] == "ours" and others else ""
        name = f"{r['contender']}, {r['minutes']:g} minutes"
        report.add(name, r["distance"], "Frechet distance", target, note)
    print(f"\n{report.table()}")


if __name__ == "__main__":
    main()

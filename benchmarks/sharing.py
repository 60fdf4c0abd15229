"""A machine that is shared by several processes that train as one.

python3 -m benchmarks.sharing SECONDS is one process of those that are measured: it trains for so
long, and says the seconds of a step.
"""

import os
import statistics
import subprocess
import sys
import time

import torch

from benchmarks import steps
from benchmarks.report import ROOT
from common.launch import is_first
from common.machine import cores
from models.draws import Draws
from training import distributed

WARM_UP = 4  # steps
MEASURED = 10.0  # seconds
TRAINING = [sys.executable, "-m", "benchmarks.sharing"]


def processes(report, runtime):
    """As many processes as cores, of one thread each, against one of as many threads; by turns."""
    if runtime.device.type != "cpu" or cores() < 2:
        print("left out: processes that share a CPU of two cores and more")
        return
    count, times = cores(), {"one": [], "all": []}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += [f"--nproc_per_node={count}", "-m", "benchmarks.sharing"]
    for _ in range(3):
        times["one"].append(seconds_of_a_step())
        times["all"].append(seconds_of_a_step(torchrun))
    one, together = map(statistics.median, times.values())
    note = f"{one:.3g} s and {together:.3g} s a step"
    what = f"{count} processes of one thread, against one of {count}"
    report.add(what, one / together, "times as fast", ">= 1.05", note)


def as_a_user():
    """The environment of somebody who has set nothing."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}


def seconds_of_a_step(command=TRAINING):
    """Of a denoiser's training with all defaults, in processes of its own."""
    done = subprocess.run(
        [*command, str(MEASURED)], cwd=ROOT, env=as_a_user(), capture_output=True, text=True
    )
    words = [line.split() for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if done.returncode or not words:
        raise RuntimeError(done.stderr)
    return float(words[-1][1])


def train(seconds):
    """Train for about so long; the first steps, which are slower, are left out."""
    distributed.start("cpu")
    args = steps.latent_args()
    learner = steps.our_learner(args, steps.our_runtime("cpu", "auto", False), *steps.our_network())
    places = distributed.share(args.batch)
    x0 = torch.randn(len(places), *steps.latent_shape(False))
    draws, times = Draws(0, steps.MIDDLE, places), []
    while len(times) <= WARM_UP or distributed.most(sum(times[WARM_UP:])) < seconds:
        start = time.monotonic()
        learner.step(learner.runtime.send(x0), 1.0, draws)
        times.append(time.monotonic() - start)
    if is_first():
        print("seconds", statistics.median(times[WARM_UP:]))


if __name__ == "__main__":
    train(float(sys.argv[1]))

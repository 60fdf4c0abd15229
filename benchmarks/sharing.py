"""A machine that is shared: with other programs, and by several processes that train as one.

python3 -m benchmarks.sharing SECONDS is one process of those that are measured: it trains for so
long, or for ever (0), and says the seconds of a step.
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
from common.machine import WINDOW, cores
from models.draws import Draws
from training import distributed

SETTLING = 2.5 * WINDOW, 4  # seconds and steps, until the number of threads has followed the load
MEASURED = 10.0  # seconds
LOOP = [sys.executable, "-c", "while True: pass"]
TRAINING = [sys.executable, "-m", "benchmarks.sharing"]


def busy(report, runtime):
    """A denoiser's step beside a busy loop and beside another training, against one alone."""
    if runtime.device.type != "cpu" or cores() < 2:
        print("left out: threads that wait for one another, on a CPU of two cores and more")
        return
    alone = seconds_of_a_step()
    beside = {"a busy loop": LOOP, "another training": [*TRAINING, "0"]}
    for name, command in beside.items():
        other = subprocess.Popen(command, cwd=ROOT, env=as_a_user(), stdout=subprocess.DEVNULL)
        try:
            slow_down = seconds_of_a_step() / alone
        finally:
            other.kill()
            other.wait()
        note = f"alone {alone:.3g} s, {cores()} cores"
        report.add(f"denoiser step beside {name}", slow_down, "times", "<= 2.5", note)


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
    """Train for so long after the number of threads has settled, or for ever (0)."""
    distributed.start("cpu")
    args = steps.latent_args()
    learner = steps.our_learner(args, steps.our_runtime("cpu", "auto", False), *steps.our_network())
    places = distributed.share(args.batch)
    x0 = torch.randn(len(places), *steps.latent_shape(False))
    draws, times, began = Draws(0, steps.MIDDLE, places), [], time.monotonic()
    settled = None
    while not seconds or not settled or distributed.most(time.monotonic() - settled) < seconds:
        start = time.monotonic()
        learner.step(learner.runtime.send(x0), 1.0, draws)
        times.append(time.monotonic() - start)
        enough = len(times) > SETTLING[1] and distributed.most(start - began) > SETTLING[0]
        if enough and not settled:
            settled, times = time.monotonic(), []
    if is_first():
        print("seconds", statistics.median(times))


if __name__ == "__main__":
    train(float(sys.argv[1]))

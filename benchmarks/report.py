"""Measuring fairly on a noisy machine, and saying what came out."""

import json
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Figure:
    """One measured number. target: "" or "<= 2", ">= 0.55": what was set out for it."""

    name: str
    value: float
    unit: str
    target: str = ""
    note: str = ""

    @property
    def met(self):
        """Whether the target is met; None without one."""
        if not self.target:
            return None
        sign, bound = self.target.split()
        return self.value <= float(bound) if sign == "<=" else self.value >= float(bound)


class Report:
    """Prints each figure as a JSON line when it is there, and all of them as a table."""

    def __init__(self):
        self.figures = []

    def add(self, *args, **kwargs):
        figure = Figure(*args, **kwargs)
        self.figures.append(figure)
        print(json.dumps({**asdict(figure), "met": figure.met}), flush=True)

    def table(self):
        """The figures as a table in Markdown."""
        lines = ["| figure | value | target | met | |", "| --- | --- | --- | --- | --- |"]
        for f in self.figures:
            met = {True: "yes", False: "**no**", None: ""}[f.met]
            value = f"{f.value:.3g}" if abs(f.value) < 1000 else f"{f.value:,.0f}"
            lines.append(f"| {f.name} | {value} {f.unit} | {f.target} | {met} | {f.note} |")
        return "\n".join(lines)


def alternate(makers, rounds=7, calls=4):
    """{name: median seconds of a call} of {name: an expression}, by turns, two calls each first.

    The expression, in which this package's modules have their names, makes a function without
    arguments in a process of its own, so that nothing that one does to it touches another. Turns,
    because a machine that others use is faster at one time than at another: a ratio of medians of
    alternating runs hardly sees it.
    """
    workers = {name: _Worker(expression) for name, expression in makers.items()}
    times = {name: [] for name in workers}
    try:
        for worker in workers.values():
            worker.run(2)
        for _ in range(rounds):
            for name, worker in workers.items():
                times[name].append(worker.run(calls) / calls)
    finally:
        for worker in workers.values():
            worker.close()
    return {name: statistics.median(t) for name, t in times.items()}


class _Worker:
    """A process that calls a function as often as it is told, and says how long that took."""

    def __init__(self, expression):
        modules = ["mnist", "pipeline", "report", "sampling", "steps"]
        used = [name for name in modules if name == "report" or f"{name}." in expression]
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            f"from benchmarks import {', '.join(used)}\n"
            f"report.serve({expression})"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, calls):
        """Seconds of so many calls."""
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError("a benchmark's process has ended; its error stands above")

    def close(self):
        with suppress(BrokenPipeError):  # it has ended by itself, which run() has told
            self.process.stdin.close()
        self.process.wait()


def serve(function):
    """The other end of a _Worker: read how many calls are wanted, make them, say the seconds."""
    for line in sys.stdin:
        synchronize()
        began = time.perf_counter()
        for _ in range(int(line)):
            function()
        synchronize()
        print("seconds", time.perf_counter() - began, flush=True)


def synchronize():
    """Wait until the GPU, where there is one, has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def python(code, cwd=ROOT):
    """The last line that a new process prints which runs this code in folder cwd."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines()[-1]


def installed(package):
    """Whether a peer is there; says so where it is not."""
    found = find_spec(package) is not None
    if not found:
        print(f"left out: {package} is not installed (requirements-dev.txt)", flush=True)
    return found

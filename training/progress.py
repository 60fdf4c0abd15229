"""The progress bar, the metrics of a run, and the time that it will take."""

import json
import time
from pathlib import Path

import torch
from tqdm import tqdm

from data.files import write_atomic

ESTIMATE_AFTER = 20  # steps after which the run says how long it will take


class Progress:
    """Averages what add() is given and, at each report(), appends a line to metrics.jsonl.

    add() never waits for the device; report() does, about 200 times in a run.
    """

    def __init__(self, path, name, start, steps, batch):
        self.path, self.name, self.steps, self.batch = Path(path), name, steps, batch
        self.every = max(1, min(100, steps // 200))
        self._totals, self._count = {}, 0
        self._began = self._last = time.monotonic()
        self._start = start
        keep_until(self.path, name, start)
        self.bar = tqdm(total=steps, initial=start, unit="step", smoothing=0.05, mininterval=1)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def add(self, **values):
        """Take in one step's tensors of any shape, on any device."""
        for key, value in values.items():
            value = value.detach()
            self._totals[key] = self._totals[key] + value if key in self._totals else value
        self._count += 1
        self.bar.update(1)
        if self.bar.n == self._start + ESTIMATE_AFTER < self.steps:
            seconds = (time.monotonic() - self._began) / ESTIMATE_AFTER
            left = (self.steps - self.bar.n) * seconds
            tqdm.write(f"{duration(left)} to go at {self.batch / seconds:.0f} images/s")

    def due(self, step):
        """Whether a report is due after this step (counted from 1)."""
        return step % self.every == 0 or step == self.steps

    def report(self, step, **more):
        """Write the means since the last report, beside `more`; returns them. Vectors: lists."""
        means = {k: _plain(v / self._count) for k, v in self._totals.items()}
        now = time.monotonic()
        speed = self._count * self.batch / (now - self._last)
        self._totals, self._count, self._last = {}, 0, now
        record = {"run": self.name, "step": step, **means, **more, "images_per_second": speed}
        self.append(record)
        shown = {k: f"{v:.3g}" for k, v in means.items() if k.startswith("loss")}
        self.bar.set_postfix(**shown, images_s=f"{speed:.0f}", refresh=False)
        return record

    def append(self, record):
        """One line of metrics.jsonl."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({k: _rounded(v) for k, v in record.items()}) + "\n")


def read_metrics(path, name):
    """The records of one run, in order; [] where there is no file."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [record for record in map(_parse, lines) if record.get("run") == name]


def keep_until(path, name, step):
    """Drop a run's records after this step: an interrupted run goes on from its last state."""
    path = Path(path)
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [
        line
        for line in lines
        if (record := _parse(line)) and (record["run"] != name or record["step"] <= step)
    ]
    if len(kept) < len(lines):
        write_atomic(path, lambda file: file.write_text("".join(kept), encoding="utf-8"))


def duration(seconds):
    """Seconds as a person says them."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _parse(line):
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}  # cut off by a power failure


def _plain(value):
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _rounded(value):
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value

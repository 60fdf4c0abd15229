"""The progress bar, the metrics of a run, and the time that it will take."""

import json
import math
import time
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError
from common.files import write_atomic
from training.checkpoint import NOT_FINITE_ADVICE

WARM_UP, ESTIMATE_AFTER = 5, 20  # steps after which the run is timed, and says how long it takes


class Progress:
    """Averages what add() is given; report() appends a line to metrics.jsonl.

    add() never waits for the device; means() does, and is called about 200 times in a run.
    """

    def __init__(self, path, name, start, steps, batch):
        self.path, self.name, self.batch = Path(path), name, batch
        self.done, self._start, self._steps = start, start, steps
        self._totals, self._counts, self._count = {}, {}, 0
        self._began = self._last = time.monotonic()
        keep_until(self.path, name, start)
        self._bar = tqdm(total=steps, initial=start, unit="step", smoothing=0.05, mininterval=1)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()

    def add(self, **values):
        """Count one finished step and take in its tensors, of any shape, on any device."""
        for key, value in values.items():
            value = value.detach()
            self._totals[key] = self._totals[key] + value if key in self._totals else value
            self._counts[key] = self._counts.get(key, 0) + 1
        self._count += 1
        self.done += 1
        self._bar.update(1)
        if self.done == self._start + WARM_UP:
            self._began = time.monotonic()  # the first steps are slower
        if self.done == self._start + ESTIMATE_AFTER < self._steps:
            seconds = (time.monotonic() - self._began) / (ESTIMATE_AFTER - WARM_UP)
            left = duration((self._steps - self.done) * seconds)
            tqdm.write(fact("time", f"{left} to go, at {self.batch / seconds:.0f} images/s"))

    def means(self):
        """{name: mean of what was added since the last call}; a list for a vector."""
        means = {k: (v.float() / self._counts[k]).tolist() for k, v in self._totals.items()}
        self._totals, self._counts = {}, {}
        return means

    def report(self, means, **more):
        """Write a record of means and more, and show the losses beside the bar.

        Raises UserError when a loss is no longer finite.
        """
        lost = [k for k, v in means.items() if k.startswith("loss") and not math.isfinite(v)]
        if lost:
            raise UserError(f"{lost[0]} is not finite at step {self.done}: {NOT_FINITE_ADVICE}")
        now = time.monotonic()
        speed, self._count, self._last = self._count * self.batch / (now - self._last), 0, now
        record = {"run": self.name, "step": self.done, **means, **more, "images_per_second": speed}
        append_record(self.path, record)
        losses = {k: f"{v:.3g}" for k, v in record.items() if k.startswith(("loss", "valid_ema"))}
        self._bar.set_postfix(**losses, images_s=f"{speed:.0f}", refresh=False)


def read_metrics(path, name):
    """The records of one run, in order; [] where there is no file."""
    return [record for record in read_records(path) if record.get("run") == name]


def read_records(path):
    """All readable records of a file of JSON lines, in order; [] where there is no file."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [record for record in map(_parse, lines) if record]


def append_record(path, record):
    """Add a line to a file of JSON lines. A number that is not finite (fp16: the gradient's norm in
    a step that is skipped) becomes null: JSON has no other word for it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(_finite(record), allow_nan=False) + "\n")


def _finite(tree):
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def keep_until(path, name, step):
    """Drop a run's records after this step: an interrupted run goes on from its last state."""
    path = Path(path)
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [
        line
        for line in lines
        if (record := _parse(line)) and (record.get("run") != name or record.get("step", 0) <= step)
    ]
    if len(kept) < len(lines):
        write_atomic(path, lambda file: file.write_text("".join(kept), encoding="utf-8"))


def fact(name, value):
    """A line of what a run says of itself."""
    return f"{name + ':':<15}{value}"


def duration(seconds):
    """Seconds as a person says them."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def file_size(size):
    """Bytes as a person says them."""
    number, unit = (size / 1e9, "GB") if size >= 999.5e6 else (size / 1e6, "MB")
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"


def _parse(line):
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}  # cut off by a power failure

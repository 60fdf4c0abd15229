"""The progress bar and the metrics of a run, and the words in which a run speaks."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from common.files import first_line
from common.launch import is_first
from training import distributed
from training.records import append_record, keep_until


class Progress:
    """Averages what add() is given; report() appends a line to metrics.jsonl. Of several processes,
    only the first one reports, and all ask for the means.

    add() never waits for the device; means() does, and is called about 200 times in a run. also:
    is given each record too.
    """

    def __init__(
        self, path: Path, name: str, start: int, steps: int, batch: int,
        also: Callable[[dict], None] | None = None,
    ) -> None:  # fmt: skip
        self.path, self.name, self.batch, self._also = Path(path), name, batch, also
        self.done = start
        self._totals: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._count = self._skipped = 0
        self._last = time.monotonic()
        if is_first():
            with dispensable("metrics"):
                keep_until(self.path, name, start)
        self._bar = tqdm(total=steps, initial=start, unit="step", smoothing=0.05, mininterval=1)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, **values: torch.Tensor) -> None:
        """Count one step and take in its tensors, of any shape, on any device; none: the step
        was skipped."""
        self._skipped += not values
        for key, value in values.items():
            value = value.detach()
            self._totals[key] = self._totals[key] + value if key in self._totals else value
            self._counts[key] = self._counts.get(key, 0) + 1
        self._count += 1
        self.done += 1
        self._bar.update(1)

    def means(self) -> dict:
        """{name: mean of what was added since the last call, by all processes}; a list for a
        vector."""
        means = {k: v.float() / self._counts[k] for k, v in self._totals.items()}
        distributed.average(list(means.values()))
        self._totals, self._counts = {}, {}
        return {k: mean.tolist() for k, mean in means.items()}

    def report(self, means: dict, **others: float) -> None:
        """Write a record of means and others, and show the losses beside the bar."""
        now = time.monotonic()
        speed, self._count, self._last = self._count * self.batch / (now - self._last), 0, now
        record = {
            "run": self.name,
            "step": self.done,
            **means,
            **others,
            "images_per_second": speed,
        }
        if self._skipped:
            record["skipped_steps"], self._skipped = self._skipped, 0
        with dispensable("metrics"):
            append_record(self.path, record)
        if self._also:
            self._also(record)
        shown = "loss", "valid_ema", "skipped"
        losses = {k: f"{v:.3g}" for k, v in record.items() if k.startswith(shown)}
        self._bar.set_postfix(**losses, images_s=f"{speed:.0f}", refresh=False)


@contextmanager
def dispensable(what: str) -> Iterator[None]:
    """Around what a run can do without, such as its figures: an error there is told, and no more.
    A full disk, a file that a viewer holds open, too little memory must not cost the training."""
    try:
        yield
    except Exception as error:
        tqdm.write(f"{what} not written: {type(error).__name__}: {first_line(error)}")


def told(name: str, value: object) -> str:
    """A line of what a run says of itself."""
    return f"{name + ':':<15}{value}"


def parameters(model: nn.Module) -> str:
    """Their number, as in "6.1 M parameters"."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


def weight_norms(networks: dict[str, nn.Module]) -> dict[str, float]:
    """{"weights_NAME": root of the sum of squares of all weights}."""

    def norm(network: nn.Module) -> float:
        return torch.stack([p.detach().norm() for p in network.parameters()]).norm().item()

    return {f"weights_{name}": norm(network) for name, network in networks.items()}


def file_size(size: float) -> str:
    """Bytes as a person says them."""
    number, unit = (size / 1e9, "GB") if size >= 999.5e6 else (size / 1e6, "MB")
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"

"""One training run: its length, when it reports and saves, its state, and how it goes on."""

import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from common.errors import UserError
from common.files import lock, make_folder, remove_leftovers, write_atomic
from common.launch import is_first
from data.order import ShuffledOrder
from models.draws import Draws
from training import checkpoint, distributed
from training.logs import Log
from training.optimizer import LrSchedule
from training.progress import Progress, dispensable, told
from training.resuming import load_checked
from training.runtime import Runtime
from training.series import Saving, Series

STATE_EVERY = 600  # seconds between states, so that a power failure costs at most that much
NUM_VALID = 256  # most validation images behind the figures of a run
TWICE_AFTER = 1.0  # seconds: what launchers forward arrives twice, and is one Ctrl-C
OUT_OF_TIME = getattr(signal, "SIGALRM", 14)  # of --time-limit
PROLONG = "to go on, pass a larger --epochs or --steps"


def total_steps(
    steps: int | None, epochs: int | None, images: tuple[int, int], order: ShuffledOrder,
    on_gpu: bool,
) -> int:  # fmt: skip
    """Steps of a run: as many as were asked for, in steps or epochs, else whole epochs that show
    about as many images as suit the machine; images: on a CPU and on a GPU."""
    if steps:
        return steps
    shown = order.steps_per_epoch * order.batch
    return (epochs or max(1, round(images[on_gpu] / shown))) * order.steps_per_epoch


class Run:
    """The schedule of a run over `order`, and its files in checkpoints/task and fig/task/name.

    settings: what was asked for, and ids: what the data are; both go into the state, and `name`
    into the names of files. state: find_state's. accumulate: parts in which a step is done. Of
    several processes, the first has the files. Raises UserError when the run has done more steps
    already, a batch cannot be divided, another process is at it, or its files cannot be written.
    """

    def __init__(
        self, task: str, name: str, steps: int, lr_schedule: str, order: ShuffledOrder,
        runtime: Runtime, settings: dict, ids: dict[str, str], state: dict | None = None,
        saving: Saving | None = None, accumulate: int = 1,
    ) -> None:  # fmt: skip
        distributed.check_batch(order.batch, accumulate)
        self.name, self.steps, self.order, self.runtime = name, steps, order, runtime
        self.settings, self.ids = {**settings, "steps": steps}, ids
        self.saving = saving or Saving()
        self.places, self.is_first = distributed.share(order.batch), is_first()

        # Its folders, made at once: not to lose hours of training for them.
        self.folder, self.fig = Path("checkpoints", task), Path("fig", task, name)
        if self.is_first:
            for folder in (self.folder, self.fig, self.fig.parent):
                make_folder(folder)
                remove_leftovers(folder)
            self._lock = lock(self.fig / ".lock", f"another process is training the run {name}")
        self.metrics = self.fig / "metrics.jsonl"
        self.state_path = self.folder / f"{name}.state"

        # Where it begins. A rate that has fallen rises again only from the state before its fall.
        self._before_fall = self.folder / f"{name}.state-before-fall"
        fallen = state is not None and state["step"] > state["fall_start"]
        if state and fallen and lr_schedule == "trapezoid" and steps > state["settings"]["steps"]:
            state, fallen = load_checked(self._before_fall, self.folder), False
            print(f"going on from step {state['step']}, before the learning rate fell")
        self._state = state
        self.start = state["step"] if state else 0
        if self.start > self.steps:
            raise UserError(f"the run {self.name} has done {self.start} steps; {PROLONG}")

        # Its schedules. phases: steps of which an autoencoder's phases are fractions.
        begun_as = state["begun_as"] if state else steps
        fall_start = max(self.start, LrSchedule.fall_of(steps))
        fall_start = state["fall_start"] if state and fallen else fall_start
        self.schedule = LrSchedule(lr_schedule, steps, begun_as, fall_start)
        self.phases = min(begun_as, steps)
        self.every = max(1, min(100, self.steps // 200))

        # What take() will be given; when it was last saved; by which signal it was asked to stop.
        self.parts: dict[str, Any] = {}
        self.series = Series(name, {}, {})
        # The newest, by which the best checkpoint is known.
        self.valid_loss: float | None = state.get("valid_loss") if state else None
        self._saved_at, self._stop, self._asked_at = time.monotonic(), 0, 0.0
        self.done = self._saved_done = self.start
        self._log = Log(settings.get("log", "none") * self.is_first, self.fig, self.start)

    def take(self, parts: dict[str, Any], networks: dict[str, nn.Module], facts: dict) -> None:
        """Save these from now on; in a resumed run, bring them to where it was.

        parts: {name: something with state_dict and load_state_dict}, all that the state must hold;
        "ema" are the averaged weights of another of them. networks, facts: as Series has them.
        Raises UserError when they are not those of the state.
        """
        for task in networks if self.is_first else ():  # a discriminator's folder, for example
            make_folder(Path("checkpoints", task))
            remove_leftovers(Path("checkpoints", task))
        numbered = self.saving.every is not None
        self.series = Series(self.name, networks, facts, numbered, self.saving.keep)
        self.parts = parts
        if self._state:
            try:
                for name, part in parts.items():
                    part.load_state_dict(self._state[name])
            except Exception:  # whatever it is that does not fit
                what = f"{self.state_path} does not fit the networks and optimizers of its run"
                raise UserError(f"{what}; start a new run") from None
            self._state = None  # its tensors are no longer needed
            self._keep_before_fall(self.start)
        weights = [p.sum().item() for net in networks.values() for p in net.parameters()]
        where = self.runtime.device.type, self.runtime.precision
        distributed.check_alike(steps=(self.start, self.steps), machine=where, weights=weights)

    def announce(self, **about: str) -> None:
        """Say what is going to happen, a line each."""
        epochs = self.steps / self.order.steps_per_epoch
        training = f"steps {self.start + 1} to {self.steps} of {self.order.batch} images"
        done = f"the {self.steps} steps are done; {PROLONG}"
        about |= {
            "machine": str(self.runtime),
            "training": done if self.start == self.steps else f"{training} ({epochs:.3g} epochs)",
            "files": f"{self.folder / self.name}_epoch*.safetensors, figures in {self.fig}/",
        }
        print("\n".join(told(*item) for item in about.items()), flush=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """The Progress of the run. A signal only asks for a stop, which end_step makes."""
        handlers: dict[int, Any] = {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP, and nohup ignores it
            if number and not (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                handlers[number] = signal.signal(number, self._ask_to_stop)
        length = self.start, self.steps, self.order.batch
        try:
            with Progress(self.metrics, self.name, *length, self._log.record) as bar:
                yield bar
        except (UserError, OSError):  # of the data, for example: what was learnt is good
            if self.is_first and self.done > self._saved_done:
                with dispensable("state"):
                    self.save_state(self.done)
            raise
        finally:
            self._log.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self.is_first:
                self._lock.close()

    def _ask_to_stop(self, number: int, frame: object) -> None:
        if not self._stop:
            self._stop, self._asked_at = number, time.monotonic()
            tqdm.write("stopping after this step; Ctrl-C once more stops at once, without saving")
        elif number == signal.SIGINT and time.monotonic() - self._asked_at > TWICE_AFTER:
            raise KeyboardInterrupt

    def indices(self, step: int) -> torch.Tensor:
        """Those of this process's share of a step's batch, int64."""
        return self.order.indices(step, self.places)

    def draws(self, step: int, found: Sequence[int] | None = None) -> Draws:
        """The random numbers of this step, for the images found at these indices; None: for all
        of this process's share."""
        places: Sequence[int] = self.places
        if found is not None and len(found) < len(places):
            wanted = self.indices(step).tolist()
            places = [self.places[wanted.index(i)] for i in found]
        return Draws(self.order.seed, step, places, self.runtime.device)

    def epoch(self, done: int) -> int:
        """Epochs begun after this many steps."""
        return math.ceil(done / self.order.steps_per_epoch)

    def report_due(self, done: int) -> bool:
        """About 200 times in a run, more often in a very long one, and at its end."""
        return done % self.every == 0 or self._judged(done)

    def validate_due(self, done: int) -> bool:
        """About 40 times in a run, seldom in a short one, always with a report; and where a
        checkpoint has to be compared with others."""
        return self._due(done, max(100, self.steps // 40)) or self._judged(done)

    def figures_due(self, done: int) -> bool:
        """About 10 times in a run, seldom in a short one, always with a report."""
        return self._due(done, max(200, self.steps // 10))

    def save_due(self, done: int) -> bool:
        """At the ends of epochs, at most 10 times in a run, or as was asked; and at its end."""
        return done % self._save_period == 0 or done == self.steps

    @property
    def _save_period(self) -> int:
        epochs = math.ceil(math.ceil(self.steps / self.order.steps_per_epoch) / 10)
        return self.saving.every or epochs * self.order.steps_per_epoch

    def _judged(self, done: int) -> bool:
        return done == self.steps or (self.saving.keep is not None and self.save_due(done))

    def _due(self, done: int, period: int) -> bool:
        return done % (self.every * max(1, period // self.every)) == 0 or done == self.steps

    def end_step(self, done: int, draw: Callable[[], None]) -> None:
        """The end of a step: state, checkpoints and figures, each when it is due. draw: makes the
        figures. Where a stop was asked of any process, KeyboardInterrupt or SystemExit is raised.

        The state comes first, with each checkpoint and every STATE_EVERY seconds: what a kill
        leaves undone after it, catch_up does when the run is resumed.
        """
        self.done = done
        late = self.saving.deadline is not None and time.monotonic() > self.saving.deadline
        stop = self._stop or (late and done < self.steps and OUT_OF_TIME)
        agreed = int(distributed.most(stop))  # of a signal from now on, the next step hears
        self._stop = agreed or self._stop
        if self.is_first:
            self._save_and_draw(done, draw)
        if agreed or (self._stop and distributed.count() == 1):
            self._end(done)

    def _save_and_draw(self, done: int, draw: Callable[[], None]) -> None:
        self._keep_before_fall(done)
        if self.save_due(done) or time.monotonic() - self._saved_at > STATE_EVERY:
            self.save_state(done)
        if self.save_due(done):
            path, *_ = self.series.save(done, self.epoch(done), self.valid_loss)
            if done == self.steps:
                tqdm.write(told("checkpoint", path))
        if self.figures_due(done) and not self._stop:
            self._draw(draw)

    def catch_up(self, draw: Callable[[], None]) -> None:
        """Before a resumed run goes on: what was due after its last state, which a kill may have
        left undone."""
        if self.is_first and self.start:
            if self.save_due(self.start):
                self.series.save(self.start, self.epoch(self.start), self.valid_loss)
            if self.figures_due(self.start):
                self._draw(draw)

    def _draw(self, draw: Callable[[], None]) -> None:
        """Figures in the run's folder and, as the newest, in the one above."""
        with dispensable("figures"):
            draw()
            for path in self.fig.glob("*.png"):
                write_atomic(self.fig.parent / path.name, partial(shutil.copyfile, path))
        self._log.figures(self.done)

    def _end(self, done: int) -> None:
        """Save what there is, and stop."""
        if self.is_first:
            self.save_state(done)
        distributed.total(0)  # until the first has saved: torchrun ends all when one has ended
        tqdm.write(f"stopped after step {done}; --resume goes on from there")
        if self._stop == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(0 if self._stop == OUT_OF_TIME else 128 + self._stop)

    def _keep_before_fall(self, done: int) -> None:
        """The state from which a prolonged run goes on, where the learning rate falls from here."""
        if (
            self.is_first
            and self.schedule.name == "trapezoid"
            and done == self.schedule.fall_start < self.steps
        ):
            self.save_state(done, self._before_fall)

    def save_state(self, done: int, path: Path | None = None) -> None:
        """NAME.state, or path: all that a resumed run needs to give the same numbers, and --show
        to show it."""
        tree = {name: part.state_dict() for name, part in self.parts.items()}
        tree |= {
            "folder": self.folder.as_posix(),
            "step": done,
            "begun_as": self.schedule.begun_as,
            "fall_start": self.schedule.fall_start,
            "valid_loss": self.valid_loss,
            "settings": self.settings,
            "ids": self.ids,
            "configs": {
                k: checkpoint.config_of(p) for k, p in self.parts.items() if hasattr(p, "config")
            },
            "facts": {**self.series.facts, "run": self.name, "step": done},
        }
        checkpoint.save_state(path or self.state_path, tree)
        self._saved_at, self._saved_done = time.monotonic(), done

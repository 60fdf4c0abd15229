"""One training run: its length, when it reports and saves, its state, and how it is resumed."""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from common.errors import UserError
from common.files import first_line, make_folder, remove_leftovers
from data.order import ShuffledOrder
from training import checkpoint
from training.optimizer import LrSchedule, Optimizer
from training.progress import Progress, file_size, told
from training.runtime import Runtime, random_state, set_random_state

STATE_EVERY = 600  # seconds between states, so that a power failure costs at most that much
NUM_VALID = 256  # most validation images behind the figures of a run


def find_state(resume: str | None, name: str | None, task: str) -> dict | None:
    """The state of the run to go on with; None for a new run, which `resume` None begins.

    resume: "newest", a run's name or a .state file. name: of the new run. task: what is trained;
    its runs are in checkpoints/task. Raises UserError when there is no such run, or when a new one
    would overwrite an old one's files.
    """
    folder = Path("checkpoints", task)

    # A new run.
    if resume is None:
        taken = [*folder.glob(f"{name}_epoch*"), *folder.glob(f"{name}.state")]
        if taken:
            raise UserError(f"--name {name} is taken by {taken[0]}; choose another name")
        return None

    # One to go on with.
    path = folder / f"{resume}.state"
    if resume == "newest":
        states = checkpoint.checkpoints_in(folder, ".state")
        if not states:
            raise UserError(f"--resume: no .state file in {folder}")
        path = states[0]
    elif not path.is_file():
        path = Path(resume)
    state = checkpoint.load_state(path)
    if "ids" not in state:
        raise UserError(f"{path} was written by an earlier version of the code; start a new run")
    if state["folder"] != folder.as_posix():
        raise UserError(f"{path} belongs to {state['folder']}/, not to {folder.as_posix()}/")
    return state


def check_same_data(state: dict | None, data_id: str) -> None:
    """Raise UserError when a resumed run was begun on other data."""
    if state and state["ids"]["data"] != data_id:
        raise UserError(
            f"--resume: the images are not those that the run {state['settings']['name']} was "
            "begun with; start a new run"
        )


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
    """The schedule of a run over `order`, and its files in checkpoints/task and fig/task.

    settings: what was asked for, and ids: what the data are; both go into the state, and `name`
    into the names of files. state: find_state's. parts, in the methods: {name: something with
    state_dict and load_state_dict}, all that the state must hold; "ema" are the averaged weights of
    another of them. Raises UserError when the run is already finished, or its files cannot be
    written.
    """

    def __init__(
        self, task: str, name: str, steps: int, lr_schedule: str, order: ShuffledOrder,
        runtime: Runtime, settings: dict, ids: dict[str, str], state: dict | None = None,
    ) -> None:  # fmt: skip
        self.name, self.steps, self.order, self.runtime = name, steps, order, runtime
        self.settings, self.ids = {**settings, "steps": steps}, ids

        # Its folders, made at once: not to lose hours of training for them.
        self.folder, self.fig = Path("checkpoints", task), Path("fig", task)
        make_folder(self.folder)
        make_folder(self.fig)
        remove_leftovers(self.folder)
        self.metrics = self.fig / "metrics.jsonl"

        # Where it begins. A rate that has fallen rises again only from the state before its fall.
        # skipped: batches of which no image was readable.
        self._before_fall = self.folder / f"{name}.state-before-fall"
        fallen = state is not None and state["step"] > state["fall_start"]
        if state and fallen and lr_schedule == "trapezoid" and steps > state["settings"]["steps"]:
            state, fallen = checkpoint.load_state(self._before_fall), False
            print(f"going on from step {state['step']}, before the learning rate fell")
        self._state = state
        self.start = state["step"] if state else 0
        self.skipped = state["skipped"] if state else 0
        if self.start >= self.steps:
            raise UserError(
                f"the run {self.name} has done its {self.start} steps; "
                "to go on, pass a larger --epochs or --steps"
            )

        # Its schedules. phases: steps of which an autoencoder's phases are fractions.
        begun_as = state["begun_as"] if state else steps
        fall_start = max(self.start, LrSchedule.fall_of(steps))
        fall_start = state["fall_start"] if state and fallen else fall_start
        self.schedule = LrSchedule(lr_schedule, steps, begun_as, fall_start)
        self.phases = min(begun_as, steps)
        self.every = max(1, min(100, self.steps // 200))
        self._saved_at, self._stop = time.monotonic(), False

    def announce(self, parts: dict[str, Any], **about: str) -> None:
        """Say what is going to happen, a line each."""
        # What it will take on the disk.
        epochs = self.steps / self.order.steps_per_epoch
        weights = {k: 4 * sum(w.numel() for w in p.parameters()) for k, p in parts.items()
                   if isinstance(p, nn.Module)}  # fmt: skip
        each = sum(weights.values()) - weights["ema"]  # a checkpoint's, of each network
        state = sum(weights.values())
        state += sum(p.state_bytes() for p in parts.values() if isinstance(p, Optimizer))
        state *= 2 if self.schedule.name == "trapezoid" else 1  # the one before the fall
        saves = math.ceil(self.steps / self._save_period)

        about |= {
            "machine": str(self.runtime),
            "training": f"steps {self.start + 1} to {self.steps} of {self.order.batch} images "
            f"({epochs:.3g} epochs)",
            "files": f"{self.folder / self.name}_epoch*.safetensors, figures in {self.fig}/",
            "disk": f"about {file_size(saves * each + state)}, of which the state that --resume "
            f"needs is {file_size(state)}",
        }
        print("\n".join(told(*item) for item in about.items()), flush=True)

    def restore(self, parts: dict[str, Any]) -> None:
        """Bring parts and random numbers to where the run was; nothing for a new run.

        Raises UserError when this version of the code builds other networks than the run's.
        """
        if self._state:
            saved, wanted = self._state["configs"], _configs(parts)
            if {name: saved.get(name) for name in wanted} != wanted:
                raise UserError(
                    f"the run {self.name} was begun with other networks, by another version of "
                    "the code; start a new run, or use that version"
                )
            for name, part in parts.items():
                part.load_state_dict(self._state[name])
            set_random_state(self._state["random"], self.runtime.device)
            self._state = None  # its tensors are no longer needed
            self._keep_before_fall(parts, self.start)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """The Progress of the run. Ctrl-C only asks for a stop, which end_step makes."""
        handlers: dict[int, Any] = {}
        for name in ("SIGINT", "SIGTERM"):
            number = getattr(signal, name)
            handlers[number] = signal.signal(number, self._ask_to_stop)
        try:
            with Progress(self.metrics, self.name, self.start, self.steps, self.order.batch) as bar:
                yield bar
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _ask_to_stop(self, number: int, frame: object) -> None:
        if self._stop:  # asked twice: at once, without saving
            raise KeyboardInterrupt
        self._stop = True
        tqdm.write("stopping after this step; once more to stop at once, without saving")

    def find_in_order(self, step: int, index: int) -> None:
        """Count the batches left out before this step's, which holds the image of that index."""
        while index not in self.order.indices(step + self.skipped):
            self.skipped += 1

    def epoch(self, done: int) -> int:
        """Epochs begun after this many steps."""
        return math.ceil(done / self.order.steps_per_epoch)

    def report_due(self, done: int) -> bool:
        """About 200 times in a run, more often in a very long one, and at its end."""
        return done % self.every == 0 or done == self.steps

    def validate_due(self, done: int) -> bool:
        """About 40 times in a run, seldom in a short one, always with a report."""
        return self._due(done, max(100, self.steps // 40))

    def figures_due(self, done: int) -> bool:
        """About 10 times in a run, seldom in a short one, always with a report."""
        return self._due(done, max(200, self.steps // 10))

    def save_due(self, done: int) -> bool:
        """At the ends of epochs, at most 10 times in a run, and at its end."""
        return done % self._save_period == 0 or done == self.steps

    @property
    def _save_period(self) -> int:
        epochs = math.ceil(math.ceil(self.steps / self.order.steps_per_epoch) / 10)
        return epochs * self.order.steps_per_epoch

    def save(self, done: int, model: nn.Module, facts: dict, task: str | None = None) -> None:
        """The checkpoint of a model after this many steps, with the facts that its user needs; in
        checkpoints/task, where that is not the run's."""
        name = f"{self.name}_epoch{self.epoch(done):04d}"
        path = (Path("checkpoints", task) if task else self.folder) / f"{name}.safetensors"
        # A prolonged run may have been here before: what was made of that must stay.
        free = [path, path.with_name(f"{name}_step{done}.safetensors")]
        free += [path.with_name(f"{name}_step{done}_{n}.safetensors") for n in range(2, 100)]
        path = next(other for other in free if not other.exists())
        now = {"run": self.name, "step": done, "epoch": self.epoch(done)}
        checkpoint.save_model(path, model, {**facts, **now})

    def end_step(self, parts: dict[str, Any], done: int) -> None:
        """The end of a step: save the state with each checkpoint, every STATE_EVERY seconds, and
        when the run was asked to stop; then raise KeyboardInterrupt."""
        self._keep_before_fall(parts, done)
        late = time.monotonic() - self._saved_at > STATE_EVERY
        if self.save_due(done) or late or self._stop:
            self.save_state(parts, done)
        if self._stop and done < self.steps:
            tqdm.write(f"interrupted after step {done}; --resume goes on from there")
            raise KeyboardInterrupt

    def _keep_before_fall(self, parts: dict[str, Any], done: int) -> None:
        """The state from which a prolonged run goes on, where the learning rate falls from here."""
        if self.schedule.name == "trapezoid" and done == self.schedule.fall_start < self.steps:
            self.save_state(parts, done, self._before_fall)

    def save_state(self, parts: dict[str, Any], done: int, path: Path | None = None) -> None:
        """NAME.state, or path: all that a resumed run needs to give the same numbers."""
        tree = {name: part.state_dict() for name, part in parts.items()}
        tree |= {
            "folder": self.folder.as_posix(),
            "step": done,
            "skipped": self.skipped,
            "begun_as": self.schedule.begun_as,
            "fall_start": self.schedule.fall_start,
            "settings": self.settings,
            "ids": self.ids,
            "configs": _configs(parts),
            "random": random_state(self.runtime.device),
        }
        checkpoint.save_state(path or self.folder / f"{self.name}.state", tree)
        self._saved_at = time.monotonic()

    def _due(self, done: int, period: int) -> bool:
        return done % (self.every * max(1, period // self.every)) == 0 or done == self.steps


def _configs(parts: dict[str, Any]) -> dict[str, Any]:
    """{name: the config of each network among parts}, as JSON keeps it."""
    return {k: json.loads(json.dumps(asdict(p.config))) for k, p in parts.items()
            if hasattr(p, "config")}  # fmt: skip


def parameters(model: nn.Module) -> str:
    """Their number, as in "6.1 M parameters"."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


@contextmanager
def tolerating_os_errors() -> Iterator[None]:
    """Around what a run can do without: an OSError (a full disk, a locked file) is only told."""
    try:
        yield
    except OSError as error:
        tqdm.write(f"figures not written: {first_line(error)}")

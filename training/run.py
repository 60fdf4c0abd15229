"""One training run: its name, its length, when it reports and saves, and how it is resumed."""

import math
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from training import checkpoint, options
from training.progress import Progress
from training.runtime import random_state, set_random_state

STATE_EVERY = 600  # seconds between states, so that a power failure costs at most that much


def resume(args, folder):
    """(args, state) of a run to go on with, where args.resume asks for one; (args, None) if not.

    Raises ValueError when there is none, or when a new run would overwrite an old one's files.
    """
    if not args.resume:
        taken = [
            *Path(folder).glob(f"{args.name}_epoch*"),
            *Path(folder).glob(f"{args.name}.state"),
        ]
        if taken:
            raise ValueError(f"--name {args.name} is taken by {taken[0]}; choose another name")
        return args, None
    if args.resume == "newest":
        states = checkpoint.checkpoints_in(folder, ".state")
        if not states:
            raise ValueError(f"--resume: no .state file in {folder}")
        args.resume = states[0]
    state = checkpoint.load_state(args.resume)
    if state["folder"] != str(folder):
        raise ValueError(f"{args.resume} belongs to {state['folder']}/, not to {folder}/")
    return options.resumed(args, state["settings"]), state


class Run:
    """The schedule of a run over `order`, and the places of its files.

    parts: {name: something with state_dict and load_state_dict}, all that the state must hold.
    """

    def __init__(self, args, state, order, folder, fig):
        self.name, self.folder, self.fig = args.name, Path(folder), Path(fig)
        self.metrics = self.fig / "metrics.jsonl"
        self.order = order
        self.steps = args.steps or args.epochs * order.steps_per_epoch
        self.start = state["step"] if state else 0
        if self.start >= self.steps:
            raise ValueError(
                f"the run {self.name} has done its {self.start} steps; "
                "to go on, pass a larger --epochs or --steps"
            )
        self.every = max(1, min(100, self.steps // 200))
        self.settings, self._state, self._saved_at = options.settings(args), state, time.monotonic()

    def announce(self, runtime, **facts):
        """Say what is going to happen, a line per fact."""
        epochs = self.steps / self.order.steps_per_epoch
        facts = {
            **facts,
            "machine": runtime,
            "training": f"steps {self.start + 1} to {self.steps} of {self.order.batch} images "
            f"({epochs:.3g} epochs)",
            "files": f"{self.folder / self.name}_epoch*.safetensors, figures in {self.fig}/",
        }
        print("\n".join(f"{key + ':':<12}{value}" for key, value in facts.items()), flush=True)

    def restore(self, parts):
        """Bring parts and random numbers to where the run was; nothing for a new run."""
        if self._state:
            for name, part in parts.items():
                part.load_state_dict(self._state[name])
            set_random_state(self._state["random"])
            self._state = None  # its tensors are no longer needed

    @contextmanager
    def progress(self, parts):
        """The Progress of the run; when it is interrupted, its state is saved first."""
        with Progress(self.metrics, self.name, self.start, self.steps, self.order.batch) as bar:
            try:
                yield bar
            except KeyboardInterrupt:
                # bar.done is the last whole step: add() counts a step after its updates.
                self.save_state(parts, bar.done)
                tqdm.write(f"interrupted after step {bar.done}; --resume goes on from there")
                raise

    def epoch(self, done):
        """Epochs begun after this many steps."""
        return math.ceil(done / self.order.steps_per_epoch)

    def report_due(self, done):
        """About 200 times in a run, and at its end."""
        return done % self.every == 0 or done == self.steps

    def validate_due(self, done):
        """About 40 times in a run, seldom in a short one, always with a report."""
        return self._due(done, max(100, self.steps // 40))

    def figures_due(self, done):
        """About 10 times in a run, seldom in a short one, always with a report."""
        return self._due(done, max(200, self.steps // 10))

    def save_due(self, done):
        """At the ends of epochs, at most 10 times in a run, and at its end."""
        epochs = math.ceil(math.ceil(self.steps / self.order.steps_per_epoch) / 10)
        return done % (epochs * self.order.steps_per_epoch) == 0 or done == self.steps

    def path(self, done, folder=None):
        """Where the checkpoint after this many steps goes."""
        return Path(folder or self.folder) / f"{self.name}_epoch{self.epoch(done):04d}.safetensors"

    def keep_state(self, parts, done):
        """Save the state when a checkpoint is due, and every STATE_EVERY seconds."""
        if self.save_due(done) or time.monotonic() - self._saved_at > STATE_EVERY:
            self.save_state(parts, done)

    def save_state(self, parts, done):
        """NAME.state: all that a resumed run needs to give the same numbers."""
        tree = {name: part.state_dict() for name, part in parts.items()}
        tree |= {
            "folder": self.folder.as_posix(),
            "step": done,
            "settings": self.settings,
            "random": random_state(),
        }
        checkpoint.save_state(self.folder / f"{self.name}.state", tree)
        self._saved_at = time.monotonic()

    def _due(self, done, period):
        return done % (self.every * max(1, period // self.every)) == 0 or done == self.steps


def parameters(model):
    """Their number, as in "6.1 M parameters"."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


@torch.no_grad()
def in_slices(function, x, size=16):
    """function(x) made slice by slice, so that memory does not grow with len(x)."""
    return torch.cat([function(part) for part in x.split(size)])

"""The checkpoints of one run: their names, and which of them stay."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import UserError
from training import checkpoint


@dataclass(frozen=True)
class Saving:
    """keep: how many of the newest checkpoints stay, beside the best one; None: all. every: steps
    between checkpoints; None: at ends of epochs. deadline: by time.monotonic(), when to stop."""

    keep: int | None = None
    every: int | None = None
    deadline: float | None = None


class Series:
    """The checkpoints of a run, for each of networks = {task: network} one in checkpoints/task.

    facts: what the user of each has to know. numbered: their names have the step beside the epoch.
    keep: how many of the newest stay, beside that of the least validation loss; None: all.
    """

    def __init__(
        self, name: str, networks: dict[str, nn.Module], facts: dict[str, Any],
        numbered: bool = False, keep: int | None = None,
    ) -> None:  # fmt: skip
        self.name, self.networks, self.facts = name, networks, facts
        self.numbered, self.keep = numbered, keep

    def save(self, step: int, epoch: int, valid_loss: float | None) -> list[Path]:
        """The paths of those after this step, made where they are not there already. Older ones
        that need not stay are removed, and what a stop has left."""
        ending = f"_epoch{epoch:04d}" + f"_step{step}" * self.numbered
        facts, paths = self._facts(step, epoch, valid_loss), []
        for task, network in self.networks.items():
            path = self._free(self._path(task, ending), step)
            paths.append(path)
            if not path.exists():
                checkpoint.save_model(path, network, facts)
            self._path(task, "_stopped").unlink(missing_ok=True)
            if self.keep is not None:
                self._forget(task)
        return paths

    def save_stopped(self, step: int, epoch: int) -> None:
        """What --show can show of a run that was stopped: NAME_stopped, until the next save."""
        task, network = next(iter(self.networks.items()))
        facts = self._facts(step, epoch, None)
        checkpoint.save_model(self._path(task, "_stopped"), network, facts)

    def _facts(self, step: int, epoch: int, valid_loss: float | None) -> dict[str, Any]:
        now = {"run": self.name, "step": step, "epoch": epoch, "valid_loss": valid_loss}
        return {**self.facts, **now}

    def _path(self, task: str, ending: str) -> Path:
        return Path("checkpoints", task, f"{self.name}{ending}.safetensors")

    def _free(self, path: Path, step: int) -> Path:
        """The path, or one beside it: a prolonged run may have been here before at another step,
        and what was made of that must stay."""
        others = [f"_step{step}", *(f"_step{step}_{n}" for n in range(2, 100))]
        paths = [path, *(path.with_stem(path.stem + other) for other in others)]
        return next(p for p in paths if not p.exists() or self._saved(p).get("step") == step)

    def _saved(self, path: Path) -> dict[str, Any]:
        """The facts of a checkpoint that is there; {} where they cannot be read."""
        try:
            return checkpoint.load_facts(path)
        except UserError:
            return {}

    def _forget(self, task: str) -> None:
        """Remove what is neither among the newest nor the best."""
        paths = Path("checkpoints", task).glob(f"{self.name}_epoch*.safetensors")
        found = [(path, self._saved(path)) for path in paths]
        mine = [(p, facts) for p, facts in found
                if facts.get("run") == self.name and type(facts.get("step")) is int]  # fmt: skip
        mine.sort(key=lambda item: item[1]["step"])
        best = min(mine, key=lambda item: _loss(item[1]))[0]
        for path, _ in mine[: -(self.keep or 1)]:
            if path != best:
                path.unlink(missing_ok=True)


def _loss(facts: dict[str, Any]) -> float:
    """The validation loss of a checkpoint; infinite where it was not measured."""
    loss = facts.get("valid_loss")
    return loss if isinstance(loss, float) else math.inf

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
        that need not stay are removed."""
        now = {"run": self.name, "step": step, "epoch": epoch, "valid_loss": valid_loss}
        name, paths = f"{self.name}_epoch{epoch:04d}" + f"_step{step}" * self.numbered, []
        for task, network in self.networks.items():
            path = Path("checkpoints", task, f"{name}.safetensors")
            # A prolonged run may have been here before at another step: what was made then stays.
            if path.exists() and _saved(path).get("step") != step:
                path = path.with_stem(f"{path.stem}_step{step}")
            if not path.exists():
                checkpoint.save_model(path, network, {**self.facts, **now})
            paths.append(path)
            if self.keep is not None:
                self._forget(task, self.keep)
        return paths

    def _forget(self, task: str, keep: int) -> None:
        """Remove what is neither among the newest nor the best. Names of other runs may begin as
        this one's does."""
        paths = Path("checkpoints", task).glob(f"{self.name}_epoch*.safetensors")
        found = [(facts["step"], _loss(facts), path)
                 for path in paths if (facts := _saved(path)).get("run") == self.name]  # fmt: skip
        _, _, best = min(found, key=lambda item: item[1])
        for _, _, path in sorted(found)[:-keep]:
            if path != best:
                path.unlink(missing_ok=True)


def _saved(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint that is there; {} where they cannot be read."""
    try:
        return checkpoint.load_facts(path)
    except UserError:
        return {}


def _loss(facts: dict[str, Any]) -> float:
    """The validation loss of a checkpoint; infinite where it was not measured."""
    loss = facts.get("valid_loss")
    return math.inf if loss is None else loss

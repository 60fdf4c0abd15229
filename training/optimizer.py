"""The step of one network: Muon or AdamW, clipped gradients, scaled losses; the rate's schedule."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from common.choices import LR_SCHEDULES, OPTIMIZERS
from common.errors import UserError
from training import distributed
from training.checkpoint import NOT_FINITE_ADVICE
from training.muon import Muon
from training.runtime import Runtime

MAX_GRADIENT = 1.0  # norm from which a gradient is shortened to it
MOST_SKIPPED = 20  # steps in a row; fp16 needs up to 16 to find its scale
OUTER = {  # from or to images and latents, and from conditions
    "conv_in", "conv_out", "quant_conv", "post_quant_conv", "class_embedding", "attribute_embedding"
}  # fmt: skip


@dataclass(frozen=True)
class LrSchedule:
    """How the learning rate goes over a run of `steps`: linear warm-up, then by `name`.

    "cosine" falls from there to FLOOR of the peak. "trapezoid" stays at the peak until fall_start
    and falls to 0 by 1 - sqrt (Hägele et al. 2024, arXiv:2405.18392, section 3): until then it does
    not depend on how long the run will be. begun_as: steps with which the run was begun; the
    warm-up is a share of them, at most 500 steps, which a prolonged run does not move. fall_start:
    steps before the fall. Raises UserError for another name.
    """

    name: str
    steps: int
    begun_as: int
    fall_start: int

    WARMUP: ClassVar[float] = 0.05
    FLOOR: ClassVar[float] = 0.01
    FALL: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        if self.name not in LR_SCHEDULES:
            raise UserError(f"the rate's schedule is {' or '.join(LR_SCHEDULES)}, not {self.name}")

    @classmethod
    def whole(cls, name: str, steps: int) -> "LrSchedule":
        """That of a run which is begun as long as it ends."""
        return cls(name, steps, steps, cls.fall_of(steps))

    @classmethod
    def fall_of(cls, steps: int) -> int:
        """Steps before the last fifth of so many."""
        return steps - int(cls.FALL * steps)

    def factor(self, step: int) -> float:
        """Share of the peak learning rate at this step, counted from 0."""
        ramp = max(1, min(500, int(self.WARMUP * self.begun_as)))
        if step < ramp:
            return (step + 1) / ramp
        if self.name == "cosine":
            progress = min(1.0, (step - ramp) / max(1, self.steps - ramp))
            return self.FLOOR + (1 - self.FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))
        progress = max(0.0, (step - self.fall_start) / max(1, self.steps - self.fall_start))
        return 1 - math.sqrt(min(1.0, progress))


class Optimizer:
    """Muon or AdamW for one network, but for what of it is frozen. A gradient longer than
    MAX_GRADIENT is shortened to it.

    name: "muon", with which AdamW takes what is no matrix, and the first and last layers; "adamw".
    lr: peak learning rate. betas: AdamW's. Raises UserError for another name.
    """

    def __init__(
        self, model: nn.Module, name: str, lr: float, runtime: Runtime,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:  # fmt: skip
        if name not in OPTIMIZERS:
            raise UserError(f"the optimizer is {' or '.join(OPTIMIZERS)}, not {name}")
        named = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
        self.parameters, self.lr = [p for _, p in named], lr

        # Who takes which weights.
        inner = [p for key, p in named if name == "muon" and _is_inner(key, p)]
        others = [p for key, p in named if name != "muon" or not _is_inner(key, p)]
        adamw = torch.optim.AdamW(others, lr, betas, weight_decay=1e-4, fused=runtime.fused)
        self.optimizers: dict[str, torch.optim.Optimizer] = {"adamw": adamw}
        if inner:
            self.optimizers["muon"] = Muon(inner, lr)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")
        self.skipped = 0  # steps in a row, until now
        self.loss = torch.zeros((), device=runtime.device)  # of the step that is under way

    def backward(self, loss: torch.Tensor) -> None:
        """Add to the gradient that of a part of the loss."""
        self.scaler.scale(loss).backward()
        self.loss += loss.detach().float()

    def step(self, rate: float) -> torch.Tensor | None:
        """One update with the learning rate lr * rate, by the mean of all processes' gradients,
        each the sum of those of backward(); the gradient's norm before clipping.

        None, and no update, where loss or gradient are not finite. Raises UserError when that
        happens MOST_SKIPPED times in a row.
        """
        for parameter in self.parameters:  # this process may have had no image
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.scaler.scale(self.loss)  # which begins it, where nothing was scaled before
        distributed.average([self.loss, *(p.grad for p in self.parameters if p.grad is not None)])
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT)
        finite = bool((norm + self.loss).isfinite())  # the device is waited for
        if finite:
            for optimizer in self.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * rate
                self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        self.loss.zero_()
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped == MOST_SKIPPED:
            raise UserError(
                f"loss or gradient were not finite in {MOST_SKIPPED} steps in a row; "
                + NOT_FINITE_ADVICE
            )
        return norm if finite else None

    def state_dict(self) -> dict:
        states = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {**states, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of state_dict; an error where moments do not fit the weights. How an
        optimizer works is not taken from a state."""
        for name, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state[name]["state"], "param_groups": groups})
            # Fused kernels walk weights and moments in the order of memory, which must be the same.
            for parameter, found in optimizer.state.items():
                for key in found.keys() - {"step"}:
                    found[key] = torch.empty_like(parameter).copy_(found[key])
        if state["scaler"] and self.scaler.is_enabled():  # a resumed run may change its precision
            self.scaler.load_state_dict(state["scaler"])


def _is_inner(name: str, parameter: nn.Parameter) -> bool:
    """Whether that is a matrix of an inner layer: many inputs by many outputs."""
    return parameter.ndim > 1 and not OUTER & set(name.split("."))

"""AdamW with gradient clipping and, for fp16, loss scaling; and the schedule of its rate."""

import math

import torch
from torch import nn


def lr_factor(step, steps, warmup=0.05, floor=0.01):
    """Share of the learning rate at this step of the run: linear warm-up, then cosine to floor.

    warmup: share of the run, at most 500 steps.
    """
    ramp = max(1, min(500, int(warmup * steps)))
    if step < ramp:
        return (step + 1) / ramp
    progress = (step - ramp) / max(1, steps - ramp)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1, progress)))


class Optimizer:
    """One network's AdamW. A gradient longer than `clip` is shortened to it."""

    def __init__(self, model, lr, betas, clip, runtime):
        self.parameters = list(model.parameters())
        self.lr, self.clip = lr, clip
        self.adamw = torch.optim.AdamW(
            self.parameters, lr=lr, betas=betas, weight_decay=1e-4, fused=runtime.fused
        )
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")

    def step(self, loss, rate):
        """One update with the learning rate lr * rate; the gradient's norm before clipping."""
        for group in self.adamw.param_groups:
            group["lr"] = self.lr * rate
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.adamw)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        return norm

    def state_dict(self):
        return {"adamw": self.adamw.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state):
        self.adamw.load_state_dict(state["adamw"])
        # Fused kernels walk weights and moments in the order of memory, which must be the same.
        for parameter, moments in self.adamw.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = torch.empty_like(parameter).copy_(moments[name])
        if state["scaler"] and self.scaler.is_enabled():  # a resumed run may change its precision
            self.scaler.load_state_dict(state["scaler"])

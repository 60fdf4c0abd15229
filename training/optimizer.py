"""The step of one network: Muon or AdamW, clipped gradients, scaled losses; the rate's schedule."""

import math

import torch
from torch import nn

from common.errors import UserError
from training.muon import Muon

OUTER = {"conv_in", "conv_out", "quant_conv", "post_quant_conv"}  # from or to images and latents


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
    """Muon or AdamW for one network. A gradient longer than `clip` is shortened to it.

    kind: "muon", with which AdamW takes what is no matrix, and the first and last layers; "adamw".
    Raises UserError for another one.
    """

    def __init__(self, model, kind, lr, betas, clip, runtime):
        if kind not in ("muon", "adamw"):
            raise UserError(f"the optimizer is muon or adamw, not {kind}")
        self.parameters = list(model.parameters())
        self.lr, self.clip = lr, clip
        inner, others = [], []
        for name, parameter in model.named_parameters():
            muon = kind == "muon" and _is_inner(name, parameter)
            (inner if muon else others).append(parameter)
        adamw = torch.optim.AdamW(others, lr, betas, weight_decay=1e-4, fused=runtime.fused)
        self.optimizers = {"adamw": adamw}
        if inner:
            self.optimizers["muon"] = Muon(inner, lr)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.precision == "fp16")

    def step(self, loss, rate):
        """One update with the learning rate lr * rate; the gradient's norm before clipping."""
        self.scaler.scale(loss).backward()
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        # In fp16 a gradient may be infinite; then clipping has made all of them useless.
        if not self.scaler.is_enabled() or norm.isfinite():
            for optimizer in self.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * rate
                self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state_bytes(self):
        """Size of what the optimizers keep: one number per element of a matrix, two of others."""
        sizes = {"adamw": 8, "muon": 4}
        return sum(
            sizes[name] * weight.numel()
            for name, optimizer in self.optimizers.items()
            for weight in optimizer.param_groups[0]["params"]
        )

    def state_dict(self):
        states = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {**states, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state):
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
            # Fused kernels walk weights and moments in the order of memory, which must be the same.
            for parameter, moments in optimizer.state.items():
                for key, value in moments.items():
                    if value.shape == parameter.shape:
                        moments[key] = torch.empty_like(parameter).copy_(value)
        if state["scaler"] and self.scaler.is_enabled():  # a resumed run may change its precision
            self.scaler.load_state_dict(state["scaler"])


def _is_inner(name, parameter):
    """Whether that is a matrix of an inner layer: many inputs by many outputs."""
    return parameter.ndim > 1 and not OUTER & set(name.split("."))

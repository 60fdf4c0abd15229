"""Muon: stochastic gradient descent whose steps are orthogonal matrices."""

from collections.abc import Iterable

import torch


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: each weight is a matrix, (outputs, all its inputs), r x c.

    Where the momentum is U S V^T, the step is lr sqrt(max(r, c)) U V^T: as far in the directions in
    which gradients are small as in those in which they are large. K. Jordan et al. 2024, "Muon: An
    optimizer for hidden layers in neural networks", with Nesterov's momentum.

    lr: root mean square of what a step adds to the elements of a weight, about, as it is with Adam
    at its first step. (Liu et al. 2025, arXiv:2502.16982, section 2.2, take 0.2 times as much.)
    momentum: share that the running mean of the gradients keeps at each step. weight_decay: share
    of lr by which weights shrink, as in AdamW.
    """

    def __init__(
        self, parameters: Iterable[torch.Tensor], lr: float, momentum: float = 0.95,
        weight_decay: float = 1e-4,
    ) -> None:  # fmt: skip
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict = {}  # matrices of one shape are orthogonalised together
            for weight in group["params"]:
                if weight.grad is not None:
                    shape = weight.flatten(1).shape
                    by_shape.setdefault(shape, []).append((weight, self._momentum(weight, group)))
            for shape, pairs in by_shape.items():
                steps = orthogonalised(torch.stack([m.flatten(1) for _, m in pairs]))
                size = group["lr"] * max(shape) ** 0.5
                for (weight, _), step in zip(pairs, steps, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(size * step.view(weight.shape))

    def _momentum(self, weight: torch.Tensor, group: dict) -> torch.Tensor:
        """The running mean of the gradients, brought up to date and looked ahead by a step."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
        return weight.grad.lerp(state["momentum"], group["momentum"])


def orthogonalised(x: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """About U V^T of each matrix U S V^T: (n, r, c) -> (n, r, c), without the cost of an SVD.

    Jordan's Newton-Schulz iteration, x <- p(x x^T) x with p(a) = 3.4445 - 4.775 a + 2.0315 a^2,
    brings singular values above 0.002 times x's norm to 0.68 .. 1.2; smaller ones grow 485 times.
    All these p are polynomials of one symmetric matrix and commute, so they are multiplied first,
    r x r, and x is met only twice; in float32 (not TF32), which their squared condition number
    needs.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonalised(x.mT, iterations).mT
    with torch.autocast(x.device.type, enabled=False):
        # The Gram matrix, its trace 1: all its eigenvalues are in [0, 1].
        x = x.float()
        gram = x @ x.mT
        norm = gram.diagonal(dim1=1, dim2=2).sum(dim=1).sqrt()[:, None, None] + 1e-12
        gram = gram / norm.square()
        one = torch.eye(x.shape[1], device=x.device)

        def p(a: torch.Tensor) -> torch.Tensor:
            return 3.4445 * one - 4.775 * a + 2.0315 * (a @ a)

        # All iterations on it: x after k of them is the product of k polynomials times x.
        step = product = p(gram)
        for _ in range(iterations - 1):
            gram = step @ gram @ step
            step = p(gram)
            product = step @ product
        return (product / norm) @ x

"""One step of the optimiser: gradients, their common norm, Adam."""

from __future__ import annotations

import torch


class Descent:
    """``zero_grad``, ``backward``, ``clip_grad_norm_`` and ``step``, with the parameters looked up once.

    Args:
        optimizer: of all parameters.
        max_grad_norm: of all gradients together.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> None:
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(self, loss: torch.Tensor) -> None:
        """Descend once; parameters that the loss does not reach stay."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        # one norm of one vector: fifty small norms cost three times as much on a CPU
        norm = torch.linalg.vector_norm(torch.cat([g.reshape(-1) for g in gradients]))
        torch._foreach_mul_(gradients, (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()

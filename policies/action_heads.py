"""From the network's last layer to actions: a Gaussian, or several masked choices at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from gymnasium import spaces

_LOG_SQRT_TWO_PI = 0.5 * math.log(2.0 * math.pi)
# of a choice that is forbidden: its probability is exactly 0 in float32, and 0 times this is 0
_FORBIDDEN = -1e9


class ActionHeads(Protocol):
    """A distribution of actions whose parameters are the network's last layer.

    Attributes:
        n_parameters: columns of that layer.
        n_noise: numbers of noise that a sample takes.
        n_masked: columns of a mask; 0 where nothing can be forbidden.
    """

    n_parameters: int
    n_noise: int
    n_masked: int

    def noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """(*shape, n_noise) of standard noise, on the generator's device if there is one."""
        ...

    def perturbation(self, noise: torch.Tensor) -> torch.Tensor:
        """What :meth:`sample` takes for noise, under the weights of now."""
        ...

    def sample(
        self, parameters: torch.Tensor, perturbation: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(..., a) float32 actions; ``mask`` (..., n_masked) bool says what is allowed."""
        ...

    def mode(self, parameters: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(..., a) float32, the most probable allowed action."""
        ...

    def log_prob(
        self, parameters: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(...,) of given actions."""
        ...

    def entropy(self, parameters: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(), the mean over all states."""
        ...


class GaussianActions:
    """Independent normals in [-1, 1]; samples beyond it are clipped by the env, as SB3's PPO does.

    Args:
        log_std: (a,) parameter of the policy.
    """

    n_masked = 0

    def __init__(self, log_std: torch.nn.Parameter) -> None:
        self.log_std = log_std
        self.n_parameters = self.n_noise = log_std.numel()

    def noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """Standard normal."""
        device = generator.device if generator is not None else device
        return torch.randn(*shape, self.n_noise, generator=generator, device=device)

    def perturbation(self, noise: torch.Tensor) -> torch.Tensor:
        """What is added to the mean."""
        return noise * self.log_std.exp()

    def sample(
        self, parameters: torch.Tensor, perturbation: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean plus perturbation."""
        return parameters + perturbation

    def mode(self, parameters: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The mean, clipped to the action space."""
        return parameters.clamp(-1.0, 1.0)

    def log_prob(
        self, parameters: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log-density before clipping, summed over the last axis."""
        standardised = (actions - parameters) * torch.exp(-self.log_std)
        return -0.5 * standardised.square().sum(-1) - (self.log_std + _LOG_SQRT_TWO_PI).sum()

    def entropy(self, parameters: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The same in every state."""
        return (self.log_std + 0.5 + _LOG_SQRT_TWO_PI).sum()


class ChoiceActions:
    """Independent categoricals, one for each number of a discrete action, as MaskablePPO's.

    The logits of all numbers lie side by side, as the columns of ``PerpVecEnv.action_masks``. They are worked
    on as a grid of (numbers, most choices), padded with forbidden ones: one softmax instead of a loop.

    Args:
        counts: choices of each number.
        device: of the policy.
    """

    def __init__(self, counts: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.counts = tuple(int(count) for count in counts)
        self.device = torch.device(device)
        self.n_parameters = self.n_noise = self.n_masked = sum(self.counts)
        widest = max(self.counts)
        starts = [sum(self.counts[:i]) for i in range(len(self.counts))]
        column = [min(start + choice, self.n_parameters - 1) for start in starts for choice in range(widest)]
        is_real = [choice < count for count in self.counts for choice in range(widest)]
        # made wherever it is first asked for, and then part of graphs too
        with torch.inference_mode(False):
            self._column = torch.tensor(column, device=device)
            self._is_real = torch.tensor(is_real, device=device)
        self._shape = (len(self.counts), widest)
        # where every number has as many choices there is nothing to pad
        self._is_even = all(is_real)

    def noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """Standard Gumbel: the largest of logits plus this is a sample of their softmax."""
        device = generator.device if generator is not None else device
        uniform = torch.rand(*shape, self.n_noise, generator=generator, device=device)
        tiny = torch.finfo(torch.float32).tiny
        return -torch.log((-torch.log(uniform.clamp_(min=tiny))).clamp_(min=tiny))

    def perturbation(self, noise: torch.Tensor) -> torch.Tensor:
        """The noise itself."""
        return noise

    def sample(
        self, parameters: torch.Tensor, perturbation: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Indices of choices."""
        return self.mode(parameters + perturbation, mask)

    def mode(self, parameters: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Indices of the most probable choices."""
        return self._grid(parameters, mask).argmax(-1).to(torch.float32)

    def log_prob(
        self, parameters: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Summed over the numbers of an action."""
        log_p = self._grid(parameters, mask).log_softmax(-1)  # ... n w
        return log_p.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1).sum(-1)

    def entropy(self, parameters: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Summed over the numbers of an action, mean over states."""
        log_p = self._grid(parameters, mask).log_softmax(-1)
        return -(log_p.exp() * log_p).sum((-1, -2)).mean()

    def _grid(self, logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(..., sum of counts) -> (..., numbers, most choices), what is forbidden far below the rest."""
        if mask is not None:
            logits = logits.masked_fill(~mask, _FORBIDDEN)
        if not self._is_even:
            logits = logits.index_select(-1, self._column).masked_fill(~self._is_real, _FORBIDDEN)
        return logits.view(*logits.shape[:-1], *self._shape)


def make_action_heads(
    space: spaces.Space[object], log_std: torch.nn.Parameter | None, device: torch.device | str = "cpu"
) -> ActionHeads:
    """The distribution for an action space.

    Args:
        space: Box, Discrete or MultiDiscrete.
        log_std: of a Box.
        device: of the policy.
    """
    if isinstance(space, spaces.Box):
        assert log_std is not None
        return GaussianActions(log_std)
    counts = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.tolist()  # type: ignore[attr-defined]
    return ChoiceActions(counts, device)

"""From stretches of the replay to QR-DQN's loss: what is encoded how often, and what the targets are."""

from __future__ import annotations

from typing import NamedTuple

import torch

from perpgym.agents.forecast import ForecastTask
from perpgym.agents.qrdqn_config import QRDQNConfig
from perpgym.agents.quantile_huber import quantile_huber_loss
from perpgym.agents.replay import StretchBatch
from perpgym.policies.quantile import PerpQuantilePolicy, best_allowed, of_levels


class QuantileLoss(NamedTuple):
    """What is descended, and what is reported: all () tensors, ``target`` in the unit of the reward."""

    total: torch.Tensor
    quantile: torch.Tensor
    forecast: torch.Tensor
    target: torch.Tensor


class QuantileObjective:
    """Quantile Huber loss (Dabney et al. 2018, eq. 10) of decisions against targets of their own.

    Args:
        policy: bound to a tape.
        config: ``n_step``, ``popart`` and ``forecast_coef`` count.
        forecasts: what the forecasts are trained on; None without them.
    """

    def __init__(
        self, policy: PerpQuantilePolicy, config: QRDQNConfig, forecasts: ForecastTask | None = None
    ) -> None:
        self.policy, self.config, self.forecasts = policy, config, forecasts
        # bars of single contracts that the market encoder has read
        self.tokens = 0

    def loss(self, batch: StretchBatch, alpha: torch.Tensor | None = None) -> QuantileLoss:
        """The loss of a batch.

        Args:
            batch: from the replay.
            alpha: (G, s, K) risk budget of the decision at each target's observation; None for the policy's.
        """
        policy, net = self.policy, self.policy.quantile_net
        n_bars = batch.state.shape[1]
        targets = self.targets(batch, alpha)  # G s K A N
        is_decision = batch.is_decision.unsqueeze(-1).expand(batch.action.shape[:-1])  # G s K
        wanted = targets[is_decision].flatten(0, 1)  # n N
        if self.config.popart:
            self._rescale(wanted)
        self.tokens += len(batch.first_bar) * policy.tokens(n_bars)
        context = policy.stretch_context(batch.first_bar, n_bars)  # G s C
        quantiles = net.quantiles(context.unsqueeze(2), batch.state)  # G s K A L N
        chosen = of_levels(quantiles, batch.action)[is_decision].flatten(0, 1)  # n N
        unit = net.deviation
        quantile: torch.Tensor = quantile_huber_loss(chosen / unit, wanted / unit, self.config.huber_kappa)
        forecast = self._forecast(batch, context)
        total = quantile + self.config.forecast_coef * forecast
        return QuantileLoss(total, quantile.detach(), forecast.detach(), wanted.mean())

    @torch.no_grad()
    def targets(self, batch: StretchBatch, alpha: torch.Tensor | None = None) -> torch.Tensor:
        """(G, s, K, A, N): reward up to the target's observation, then the best allowed level's return."""
        policy, net = self.policy, self.policy.quantile_net_target
        reach = batch.state.shape[1] + self.config.n_step
        self.tokens += len(batch.first_bar) * policy.tokens(reach)
        encoded = net.features_extractor.stretch_context(batch.first_bar, reach)  # G s+n C
        context = encoded.take_along_dim(batch.next_offset[..., None], dim=1).unsqueeze(2)  # G s 1 C
        quantiles = net.quantiles(context, batch.next_state)  # G s K A L N
        best = best_allowed(policy.cvar(quantiles, alpha), batch.next_mask)  # G s K A
        after = of_levels(quantiles, best)  # G s K A N
        target: torch.Tensor = batch.reward[..., None, None] + batch.discount[..., None, None] * after
        return target

    def _rescale(self, targets: torch.Tensor) -> None:
        """Both networks by the same moments: where they are averaged, they have one unit."""
        for net in (self.policy.quantile_net, self.policy.quantile_net_target):
            net.rescale(targets.flatten())

    def _forecast(self, batch: StretchBatch, context: torch.Tensor) -> torch.Tensor:
        if self.forecasts is None:
            return context.new_zeros(())
        forecast = self.policy.features_extractor.split(context).forecasts  # G s A*H
        return self.forecasts.loss(forecast, batch.first_bar, batch.length)

"""The losses of hierarchical QR-DQN: the worker's within options, the manager's over whole ones."""

from __future__ import annotations

from typing import NamedTuple

import torch

from perpgym.agents.forecast import ForecastTask
from perpgym.agents.hierarchical_qrdqn_config import HierarchicalQRDQNConfig
from perpgym.agents.option_replay import Following, OptionBatch
from perpgym.agents.quantile_huber import quantile_huber_loss
from perpgym.policies.hierarchical_quantile import HierarchicalQuantilePolicy
from perpgym.policies.quantile import of_levels


class HierarchicalQuantileLoss(NamedTuple):
    """What is descended, and what is reported: all () tensors, targets in the unit of the reward."""

    total: torch.Tensor
    worker: torch.Tensor
    manager: torch.Tensor
    forecast: torch.Tensor
    worker_target: torch.Tensor
    manager_target: torch.Tensor


class HierarchicalQuantileObjective:
    """Quantile Huber losses of both levels against targets of their own.

    The worker's target is n bars of reward, or fewer where the option ends, and then the worker's best level
    in the option, or the manager's best choice where it is over (intra-option learning: Sutton, Precup and
    Singh 1999, section 6). The manager's is R + gamma^k times its best choice after the k bars that the
    option lasted: gamma^k and not gamma. Where the worker explored before, R stops there, and its best level
    in the option stands for the rest.

    Args:
        policy: bound to a tape.
        config: ``n_step``, ``hierarchy``, ``manager_coef``, ``popart`` and ``forecast_coef`` count.
        forecasts: what the forecasts are trained on; None without them.
    """

    def __init__(
        self,
        policy: HierarchicalQuantilePolicy,
        config: HierarchicalQRDQNConfig,
        forecasts: ForecastTask | None = None,
    ) -> None:
        self.policy, self.config, self.forecasts = policy, config, forecasts
        # bars of single contracts that the market encoder has read
        self.tokens = 0

    def loss(self, batch: OptionBatch) -> HierarchicalQuantileLoss:
        """The losses of a batch; the manager's is 0 where no option began in it."""
        policy, net = self.policy, self.policy.quantile_net
        of_worker, of_manager = self.targets(batch)  # n A N, m A N
        if self.config.popart:
            self._rescale(torch.cat((of_worker, of_manager)))
        n_bars = batch.state.shape[1]
        self.tokens += len(batch.first_bar) * policy.tokens(n_bars)
        context = policy.stretch_context(batch.first_bar, n_bars)  # G s C
        worked, begins = worker_rows(batch), batch.begins
        levels = net.worker_quantiles(context.unsqueeze(2), batch.state)[worked]  # n A L N
        worker = self._huber(of_levels(levels, batch.action[worked]), of_worker)
        stretch, bar = begins.nonzero()[:, :2].unbind(1)
        account = batch.state[begins][:, : -policy.options.size]  # m S
        choices = net.quantiles(context[stretch, bar], account)  # m A choices N
        manager = self._huber(of_levels(choices, batch.choice[begins]), of_manager)
        forecast = self._forecast(batch, context)
        total = worker + self.config.manager_coef * manager + self.config.forecast_coef * forecast
        reported = (worker, manager, forecast, _mean(of_worker), _mean(of_manager))
        return HierarchicalQuantileLoss(total, *(value.detach() for value in reported))

    @torch.no_grad()
    def targets(self, batch: OptionBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, A, N) of the worker's decisions and (m, A, N) of the manager's, in the order of their masks."""
        net = self.policy.quantile_net_target
        # a bar more than the last decision looks ahead
        reach = batch.state.shape[1] + max(self.config.n_step, self.config.hierarchy.max_bars)
        self.tokens += len(batch.first_bar) * self.policy.tokens(reach)
        context = net.features_extractor.stretch_context(batch.first_bar, reach)  # G reach C
        return (
            self._target(context, batch.worker, worker_rows(batch)),
            self._target(context, batch.manager, batch.begins),
        )

    def _target(self, context: torch.Tensor, after: Following, rows: torch.Tensor) -> torch.Tensor:
        """(n, A, N): reward up to the target's observation, then the return from there on."""
        stretch = rows.nonzero()[:, 0]
        there = context[stretch, after.offset[rows]]  # n C
        value = self.policy.value_by_target(there, after.state[rows], after.mask[rows], after.is_due[rows])
        reward, discount = after.reward[rows], after.discount[rows]
        return reward[:, None, None] + discount[:, None, None] * value

    def _huber(self, chosen: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if not len(chosen):
            return chosen.sum()
        unit = self.policy.quantile_net.deviation
        kappa = self.config.huber_kappa
        return quantile_huber_loss(chosen.flatten(0, 1) / unit, wanted.flatten(0, 1) / unit, kappa)

    def _rescale(self, targets: torch.Tensor) -> None:
        """Both networks and both levels by the same moments: they stand in for each other."""
        for net in (self.policy.quantile_net, self.policy.quantile_net_target):
            net.rescale(targets.flatten())

    def _forecast(self, batch: OptionBatch, context: torch.Tensor) -> torch.Tensor:
        if self.forecasts is None:
            return context.new_zeros(())
        forecast = self.policy.features_extractor.split(context).forecasts  # G s A*H
        return self.forecasts.loss(forecast, batch.first_bar, batch.length)


def worker_rows(batch: OptionBatch) -> torch.Tensor:
    """(G, s, K) bool: the worker decides wherever an episode goes on."""
    return batch.is_decision.unsqueeze(-1).expand(batch.begins.shape)


def _mean(targets: torch.Tensor) -> torch.Tensor:
    return targets.mean() if len(targets) else targets.new_zeros(())

"""QR-DQN of two levels: a manager over options of several bars, a worker at every bar, on one encoder."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.agents.explore import Explorer
from perpgym.agents.forecast import ForecastTask
from perpgym.agents.hierarchical_config import check_actions, with_hierarchy
from perpgym.agents.hierarchical_qrdqn_config import HierarchicalQRDQNConfig
from perpgym.agents.hierarchical_quantile_loss import HierarchicalQuantileObjective
from perpgym.agents.option_explorer import OptionExplorer
from perpgym.agents.option_replay import OptionBatch, OptionReplay
from perpgym.agents.qrdqn import PerpQRDQN
from perpgym.agents.qrdqn_config import QRDQNConfig
from perpgym.envs.sb3 import SB3PerpVecEnv
from perpgym.envs.vector import PerpVecEnv
from perpgym.policies.hierarchical_quantile import HierarchicalQuantilePolicy

__all__ = ["HierarchicalQRDQN", "HierarchicalQRDQNConfig"]


class HierarchicalQRDQN(PerpQRDQN):
    """Options (Sutton, Precup and Singh 1999) learnt by quantile regression on both levels.

    The manager chooses for every contract a target on the ladder and the share alpha of the worst outcomes by
    which the worker shall pick levels; both hold for k bars, k drawn uniformly, or until a risk event. The
    worker picks at every bar a level from flat to the target. ``docs/algorithms/hierarchical_qrdqn.md`` lists
    every detail.

    ``predict`` is that of a recurrent policy: pass the state that it returned, or options never last.

    Args:
        policy: the policy class.
        env: as of :class:`PerpQRDQN`.
        config: of the algorithm.
        policy_kwargs: as of :class:`PerpQRDQN`; what the env determines is filled in.
        **kwargs: of :class:`PerpQRDQN`.
    """

    policy: HierarchicalQuantilePolicy
    config: HierarchicalQRDQNConfig
    explorer: OptionExplorer
    config_class: ClassVar[type[QRDQNConfig]] = HierarchicalQRDQNConfig
    reported: ClassVar[tuple[str, ...]] = (
        "train/loss",
        "manager/loss",
        "train/forecast_loss",
        "train/target",
        "manager/target",
    )

    def __init__(
        self,
        policy: type[HierarchicalQuantilePolicy],
        env: PerpVecEnv | SB3PerpVecEnv | None,
        *,
        config: HierarchicalQRDQNConfig | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        config = self.own_config(config)
        native = env.native if isinstance(env, SB3PerpVecEnv) else env
        policy_kwargs = with_hierarchy(policy_kwargs, config.hierarchy)
        if isinstance(native, PerpVecEnv):
            policy_kwargs["levels"] = native.config.ladder
        super().__init__(policy, env, config=config, policy_kwargs=policy_kwargs, **kwargs)

    def _take_env(self) -> None:
        check_actions(self.policy.own_settings(), {"levels": self.native.config.ladder})
        super()._take_env()

    @property
    def options_replay(self) -> OptionReplay:
        """What is learnt from."""
        assert isinstance(self.replay, OptionReplay)
        return self.replay

    def _make_replay(self) -> OptionReplay:
        sizes = self._replay_sizes()
        return OptionReplay(option_size=2 * sizes["n_branches"] + 1, **sizes)

    def _make_explorer(self) -> Explorer:
        return OptionExplorer(self.policy, self.options_replay, self.noise, self._chance)

    def _make_objective(self, forecasts: ForecastTask | None) -> HierarchicalQuantileObjective:
        return HierarchicalQuantileObjective(self.policy, self.config, forecasts)

    def draw(self, batch_size: int) -> OptionBatch:  # type: ignore[override]
        """A batch of the replay."""
        config = self.config
        return self.options_replay.sample_options(
            batch_size,
            config.stretch_bars,
            n_step=config.n_step,
            max_bars=config.hierarchy.max_bars,
            gamma=self.gamma,
            rng=self.shuffle,
            device=self.device,
        )

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """As of :class:`PerpQRDQN`; says how long options lasted and what they were, too."""
        self._record_options()
        super().train(gradient_steps, batch_size)

    def _record_options(self) -> None:
        explorer, rules = self.explorer, self.policy.options
        state, _mask = self.replay.newest()
        option = torch.from_numpy(state[..., self.options_replay.observed_size :])
        self.logger.record("options/bars_per_decision", explorer.decisions / max(1, explorer.begun))
        self.logger.record("options/called_back", explorer.called_back / max(1, explorer.begun))
        self.logger.record("options/alpha", float(rules.alphas(option).mean()))
        self.logger.record("options/target", float(rules.targets(option).mean()))
        self.logger.record("options/target_size", float(rules.targets(option).abs().mean()))
        explorer.begun = explorer.called_back = 0

    def predict(
        self,
        observation: Any,
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """See :meth:`HierarchicalQuantilePolicy.predict`; it never explores."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

"""Any agent, asked as Stable-Baselines3 asks its models: ``predict(observation, state, episode_start)``."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from perpgym.agents.protocol import Agent, MaskedAgent
from perpgym.data.tape import Tape
from perpgym.envs.actions import action_space
from perpgym.envs.config import EnvConfig

State = tuple[NDArray[Any], ...]


class Predictor:
    """An agent with the face of a trained model, for code that knows nothing else.

    What an agent remembers of an account lies in ``state``, a copy of the agent for each account, as a
    recurrent policy's does: it goes in and comes out, and nothing of it stays here.

    Args:
        agent: a baseline, say.
        tape: that the bar indices of observations refer to.
        config: of the env.
    """

    def __init__(self, agent: Agent, tape: Tape, config: EnvConfig) -> None:
        self.agent, self.tape = agent, tape
        self.action_space = action_space(config.action, len(tape.contracts), config.choices)

    def predict(
        self,
        observation: dict[str, NDArray[Any]],
        state: State | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
        action_masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], State]:
        """What the agent does at the bars of an observation.

        Args:
            observation: with bar indices, of one account or of several, each on its own bar.
            state: of the predictions before; None starts anew.
            episode_start: (n,) which accounts start anew.
            deterministic: rules know no other way.
            action_masks: (n, choices) or (choices,), for an agent that reads them.

        Returns:
            Actions in the env's action space, and the state.

        Raises:
            ValueError: the observation has windows instead of indices.
        """
        del deterministic
        if "bar" not in observation:
            raise ValueError(
                f"{self.agent.name} reads the tape, and needs to know the bar: build the env with "
                f"with_windows=False; the observation holds {', '.join(observation)}"
            )
        is_batch = observation["account"].ndim == 3
        seen = observation if is_batch else {name: part[None] for name, part in observation.items()}
        agents = self._agents(len(seen["account"]), state, episode_start)
        masks = None if action_masks is None else np.asarray(action_masks, np.bool_).reshape(len(agents), -1)
        actions = self._in_space(
            np.concatenate([self._act(agent, seen, i, masks) for i, agent in enumerate(agents)])
        )
        return (actions if is_batch else actions[0]), (agents,)

    def _agents(
        self, n_accounts: int, state: State | None, episode_start: NDArray[np.bool_] | None
    ) -> NDArray[Any]:
        """(n,) an agent for each account; those of before are left as they were."""
        agents = np.empty(n_accounts, object)
        for i in range(n_accounts):
            is_new = state is None or (episode_start is not None and bool(np.ravel(episode_start)[i]))
            agents[i] = copy.deepcopy(self.agent if is_new or state is None else state[0][i])
        return agents

    def _act(
        self, agent: Agent, seen: dict[str, NDArray[Any]], i: int, masks: NDArray[np.bool_] | None
    ) -> NDArray[np.float32]:
        bar = int(seen["bar"][i, 0])
        mine = slice(i, i + 1)
        if masks is not None and isinstance(agent, MaskedAgent):
            return agent.act(self.tape, bar, seen["account"][mine], seen["portfolio"][mine], masks[mine])
        return agent.act(self.tape, bar, seen["account"][mine], seen["portfolio"][mine])

    def _in_space(self, actions: NDArray[np.float32]) -> NDArray[Any]:
        if isinstance(self.action_space, spaces.Box):
            return actions
        indices = actions.astype(np.int64)
        return indices[:, 0] if isinstance(self.action_space, spaces.Discrete) else indices

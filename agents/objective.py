"""From a minibatch to its loss: what is encoded how often, and in which way torch runs it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from perpgym.agents.ppo_config import PPOConfig
from perpgym.agents.ppo_loss import PPOLoss, ppo_loss
from perpgym.agents.rollout import Minibatch
from perpgym.policies.actor_critic import PerpActorCriticPolicy


class Objective:
    """Encoders and loss of a policy, run as the config says.

    Args:
        policy: bound to a tape.
        config: ``observation``, ``compile``, ``cuda_graphs`` and ``bf16`` decide how, never what.

    Raises:
        ValueError: the config asks for what the policy's device cannot do.
    """

    def __init__(self, policy: PerpActorCriticPolicy, config: PPOConfig) -> None:
        self.policy, self.config = policy, config
        self.features = policy.features_extractor
        if policy.device.type != "cuda":
            for name in ("cuda_graphs", "bf16"):
                if getattr(config, name):
                    raise ValueError(
                        f"{name} needs a CUDA device, the policy is on {policy.device}: "
                        f"set agent.{name}=false, or training.device=cuda where there is one"
                    )
        # bars of single contracts that the market encoder has read
        self.tokens = 0
        self._compiled_embed: Any = self._compile(self.features.embed)
        self._compiled_loss: Any = self._compile(self._loss)

    def embed(self, first_bar: torch.Tensor, n_bars: int) -> torch.Tensor:
        """(S, n_bars, M) embeddings of stretches, for a rollout; arguments as in ``stretch_embedding``."""
        return self._embed(self.features.embed, first_bar, n_bars)

    def contexts(self, batch: Minibatch, n_steps: int) -> torch.Tensor:
        """(G, T, C) contexts of the bars decided at; nothing is encoded that the rollout has kept."""
        if batch.embedding is not None:
            return self.features.context_of(batch.embedding)
        return batch.arrange(self.stretch_contexts(batch, n_steps))

    def stretch_contexts(self, batch: Minibatch, n_steps: int) -> torch.Tensor:
        """(S, T, C) contexts of the minibatch's rows, encoded now."""
        return self.features.context_of(self._embed(self._compiled_embed, batch.first_bar, n_steps))

    def loss(self, batch: Minibatch, n_steps: int, *, clip_range: float, ent_coef: float) -> PPOLoss:
        """PPO's loss of a minibatch; ``clip_range`` and ``ent_coef`` are those of now."""
        context = self.contexts(batch, n_steps).unsqueeze(2)  # G T 1 C
        loss: PPOLoss = self._compiled_loss(context, batch, clip_range, ent_coef)
        if not self.config.cuda_graphs:
            return loss
        # the next replay of the graph writes over what this one has given
        return PPOLoss(loss.total, loss.terms.clone(), loss.log_ratio.clone())

    def _loss(self, context: torch.Tensor, batch: Minibatch, clip_range: float, ent_coef: float) -> PPOLoss:
        return ppo_loss(
            self.policy.evaluate_states(context, batch.state, batch.actions, batch.masks),
            batch,
            clip_range=clip_range,
            vf_coef=self.config.vf_coef,
            ent_coef=ent_coef,
            value_scale=self.policy.value_head.deviation if self.config.popart else None,
        )

    def _embed(self, embed: Any, first_bar: torch.Tensor, n_bars: int) -> torch.Tensor:
        rows, length = first_bar, n_bars
        if self.config.observation == "window":
            # every bar's own window, as a policy reads it that knows no stretch
            rows, length = (
                (first_bar.unsqueeze(1) + torch.arange(n_bars, device=first_bar.device)).flatten(),
                1,
            )
        self.tokens += len(rows) * self.policy.tokens(length)
        reach = self.features.receptive_field
        stretches = self.features.bound.stretches(rows - (reach - 1), reach - 1 + length)
        with self._precision():
            embedding: torch.Tensor = embed(*stretches)  # rows length M
        return embedding.float().view(len(first_bar), n_bars, -1)  # S n_bars M

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.config.bf16)

    def _compile(self, function: Any) -> Any:
        if self.config.cuda_graphs:
            return torch.compile(function, mode="reduce-overhead")
        return torch.compile(function) if self.config.compile else function

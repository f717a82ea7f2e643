"""From an observation to the features of the heads: scale, encode each bar once, fuse with the account."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from perpgym.data.features.scaler import Scaler
from perpgym.data.tape import Tape
from perpgym.policies.bound_tape import BoundTape, without_invalid
from perpgym.policies.config import PolicyConfig
from perpgym.policies.encoders import AcrossContracts, Explaining, Explanation
from perpgym.policies.forecast import ForecastHead
from perpgym.policies.fusion import GatedFusion
from perpgym.policies.market_encoder import build_market_encoder, build_risk_encoder
from perpgym.policies.scaler import FrozenScaler
from perpgym.policies.state import state_divisors

Observation = dict[str, torch.Tensor]


class Context(NamedTuple):
    """What the network says of bars: value and gate (..., D) of the fusion, forecasts (..., A * H).

    Forecasts are in deviations of the return over each horizon.
    """

    value: torch.Tensor
    gate: torch.Tensor
    forecasts: torch.Tensor


def count_contracts(observation_space: spaces.Dict) -> int:
    """A, the contracts of an account's observation."""
    shape = observation_space["account"].shape
    assert shape is not None
    return int(shape[0])


class PerpFeatures(BaseFeaturesExtractor):
    """Scalers, encoders, forecasts and fusion.

    A bar's *embedding* is what the encoders make of it, M columns; its *context* is all that is blind to the
    account, made from that: C columns, 2D of the fusion, then one forecast for each contract and horizon;
    :meth:`split` names them. With several contracts, one that is not valid at a bar says nothing there.

    Two faces of one function. An *index* observation holds ``bar``, ``account`` and ``portfolio``, and the
    bound tape supplies the market. A *window* observation carries its own ``market`` (N, R, A, F), ``risk``
    (N, R, A, K) and ``clock`` (N, 1): bars since the epoch of the newest bar, modulo 2**20; with several
    contracts also ``valid`` (N, R, A).
    """

    inverse_divisors: torch.Tensor

    def __init__(
        self,
        observation_space: spaces.Dict,
        config: PolicyConfig,
        market_scaler: Scaler,
        risk_scaler: Scaler,
    ) -> None:
        n_assets = self.n_assets = count_contracts(observation_space)
        n_forecasts = n_assets * len(config.forecast_bars)
        super().__init__(observation_space, features_dim=config.d_model + n_forecasts)
        self.n_forecasts = n_forecasts
        self.receptive_field = config.receptive_field
        self.market_scaler = FrozenScaler(market_scaler, n_assets)
        self.risk_scaler = FrozenScaler(risk_scaler, n_assets)
        self.market_encoder = build_market_encoder(config, len(market_scaler.center), n_assets)
        self.risk_encoder = build_risk_encoder(config, len(risk_scaler.center), n_assets)
        self.state_clip, self.head_dropout = config.state_clip, config.head_dropout
        divisors = state_divisors(n_assets)
        self.register_buffer("inverse_divisors", 1.0 / divisors, persistent=False)
        self.embedding_size = self.market_encoder.out_features
        if self.risk_encoder is not None:
            self.embedding_size += self.risk_encoder.out_features
        # one head for all contracts, which reads what is said of each
        width = self.embedding_size // n_assets
        self.forecast = ForecastHead(width, config.forecast_bars) if config.forecast_bars else None
        self.fusion = GatedFusion(
            market_features=self.embedding_size,
            state_features=len(divisors),
            out_features=config.d_model,
        )
        self._bound: BoundTape | None = None
        self._kept: torch.Tensor | None = None

    def reset_parameters(self) -> None:
        """Each part's own initialisation, after SB3 has applied its one gain to every linear layer."""
        self.market_encoder.reset_parameters()
        self.fusion.reset_parameters()
        if self.risk_encoder is not None:
            self.risk_encoder.reset_parameters()
        if self.forecast is not None:
            self.forecast.reset_parameters()

    @property
    def bound(self) -> BoundTape:
        """The tape that bar indices refer to.

        Raises:
            RuntimeError: no tape is bound.
        """
        if self._bound is None:
            raise RuntimeError(
                "an index observation needs a tape: call model.policy.bind(tape), load it with env=..., "
                "or pass window observations"
            )
        return self._bound

    def bind(self, tape: Tape) -> None:
        """Let bar indices refer to ``tape``.

        Raises:
            ValueError: the tape has another number of columns than the scalers.
        """
        for name, have, want in (
            ("feature", len(tape.contracts) * len(tape.feature_names), len(self.market_scaler)),
            ("risk", len(tape.contracts) * len(tape.risk_names), len(self.risk_scaler)),
        ):
            if have != want:
                raise ValueError(f"the policy reads {want} {name} columns, the tape has {have}")
        self._bound = BoundTape.of(tape, self.inverse_divisors.device)

    def embed(self, market: torch.Tensor, risk: torch.Tensor, first_bar: torch.Tensor) -> torch.Tensor:
        """Encode consecutive bars.

        Args:
            market, risk: (B, L, A * F) and (B, L, A * K) float32, raw, L >= R.
            first_bar: (B,) int64, bars since the epoch of the first bar, or modulo 2**20.

        Returns:
            (B, L - R + 1, M).
        """
        skip = self.receptive_field - self.market_encoder.receptive_field
        embedding = self.market_encoder.encode(self.market_scaler(market[:, skip:]), first_bar + skip)
        if self.risk_encoder is None:
            return embedding
        skip = self.receptive_field - self.risk_encoder.receptive_field
        state = self.risk_encoder.encode(self.risk_scaler(risk[:, skip:]), first_bar + skip)
        return torch.cat((embedding, state), dim=-1)  # B L-R+1 M

    def context_of(self, embedding: torch.Tensor) -> torch.Tensor:
        """All that is blind to the account: (..., M) -> (..., C)."""
        if self.forecast is None:
            return self.fusion.context(embedding)  # ... 2D
        # encoders that forecast learn from that alone (Stooke et al. 2021): a policy gradient is mostly noise
        context = self.fusion.context(embedding.detach() if self.training else embedding)  # ... 2D
        return torch.cat((context, self._forecast(self.forecast, embedding)), dim=-1)  # ... C

    def _forecast(self, head: ForecastHead, embedding: torch.Tensor) -> torch.Tensor:
        """(..., A * H) forecasts, contract by contract; none of a contract that is not valid.

        Args:
            head: of one contract.
            embedding: (..., M), of the risk columns behind all of the market's.
        """
        forecast: torch.Tensor
        if self.n_assets == 1:
            forecast = head(embedding)  # ... H
            return forecast
        width, lead = self.market_encoder.out_features, (*embedding.shape[:-1], self.n_assets)
        of_contract = embedding[..., :width].reshape(*lead, -1)  # ... A D
        if self.risk_encoder is not None:
            of_contract = torch.cat((of_contract, embedding[..., width:].reshape(*lead, -1)), dim=-1)
        # AcrossContracts gives zeros, and nothing else does, where a contract is not valid
        is_silent = (of_contract.detach() == 0.0).all(dim=-1, keepdim=True)
        forecast = head(of_contract).masked_fill(is_silent, 0.0)  # ... A H
        return forecast.flatten(-2)

    def context(self, market: torch.Tensor, risk: torch.Tensor, first_bar: torch.Tensor) -> torch.Tensor:
        """(B, L - R + 1, C): :meth:`context_of` what :meth:`embed` gives."""
        return self.context_of(self.embed(market, risk, first_bar))

    def split(self, context: torch.Tensor) -> Context:
        """The columns of contexts by what they are for."""
        size = self.fusion.out_features
        return Context(context[..., :size], context[..., size : 2 * size], context[..., 2 * size :])

    def fuse(self, context: Context, state: torch.Tensor) -> torch.Tensor:
        """The features of accounts; leading axes broadcast.

        Args:
            context: of the bars, from :meth:`split`.
            state: (..., S) raw account columns, then portfolio columns.

        Returns:
            (..., D + A * H).
        """
        fused: torch.Tensor = self.fusion(context.value, context.gate, self.scale_state(state))  # ... D
        if self.forecast is not None:
            forecasts = self.forecast.for_heads(context.forecasts, detach=self.training)  # ... A*H
            fused = torch.cat((fused, forecasts.expand(*fused.shape[:-1], -1)), dim=-1)  # ... D+A*H
        return fused if self._kept is None else fused * self._kept

    @contextmanager
    def dropping(self, shape: tuple[int, ...], seed: int) -> Iterator[None]:
        """Drop features that the heads read, behind the encoders and the fusion, by ``config.head_dropout``.

        Monte-Carlo dropout (Gal and Ghahramani 2016): never in training, only to see how much a decision
        rests on single features. What is kept is scaled up, so that the mean stays.

        Args:
            shape: leading axes, broadcast with those of ``state`` in :meth:`fuse`: a mask for each.
            seed: the same one drops the same.
        """
        rng, rate = torch.Generator().manual_seed(seed), self.head_dropout
        draws = torch.rand(*shape, self.features_dim, generator=rng)
        self._kept = ((draws >= rate) / (1.0 - rate)).to(self.inverse_divisors.device)
        try:
            yield
        finally:
            self._kept = None

    def stretch_embedding(
        self, first_bar: torch.Tensor, n_bars: int, bound: BoundTape | None = None
    ) -> torch.Tensor:
        """Embeddings of consecutive bars of a tape, each bar encoded once.

        Args:
            first_bar: (S,) int64, index on the tape of the first bar wanted; R - 1 bars lie before it.
            n_bars: how many bars from there on.
            bound: another tape than the one that observations refer to.

        Returns:
            (S, n_bars, M).
        """
        warmup = self.receptive_field - 1
        tape = self.bound if bound is None else bound
        return self.embed(*tape.stretches(first_bar - warmup, warmup + n_bars))

    def stretch_context(
        self, first_bar: torch.Tensor, n_bars: int, bound: BoundTape | None = None
    ) -> torch.Tensor:
        """(S, n_bars, C): :meth:`context_of` what :meth:`stretch_embedding` gives."""
        return self.context_of(self.stretch_embedding(first_bar, n_bars, bound))

    def explain(self, first_bar: torch.Tensor, n_bars: int, bound: BoundTape | None = None) -> Explanation:
        """What the embeddings of consecutive bars rest on: for people, training has no use for it.

        Args:
            first_bar, n_bars, bound: as in :meth:`stretch_context`.

        Returns:
            Weights of features, (S, A, n_bars, F), None of an encoder that has none, and of bars,
            (S, A, n_bars, R), newest first.

        Raises:
            ValueError: the market encoder has no weights to show.
        """
        encoder = self.market_encoder
        one = encoder.encoder if isinstance(encoder, AcrossContracts) else encoder
        if not isinstance(one, Explaining):
            raise ValueError(
                f"{type(one).__name__} has no weights to show: train with policy=transformer (of bars) or "
                "policy=tft (of bars and features)"
            )
        warmup = one.receptive_field - 1
        tape = self.bound if bound is None else bound
        stretch = self.market_scaler(tape.stretches(first_bar - warmup, warmup + n_bars)[0])  # S L A*F
        if isinstance(encoder, AcrossContracts):
            stretch = encoder.by_contract(stretch)[0]  # S*A L F
        selection, attention = (
            None if weights is None else weights.reshape(len(first_bar), -1, *weights.shape[1:])
            for weights in one.explain(stretch)
        )
        assert attention is not None
        return Explanation(selection, attention)

    def tokens(self, n_bars: int) -> int:
        """Bars of single contracts that the market encoder reads for ``n_bars`` consecutive contexts."""
        return self.market_encoder.tokens(n_bars)

    def scale_state(self, raw: torch.Tensor) -> torch.Tensor:
        """(..., S) account columns then portfolio columns -> the same, divided by fixed divisors."""
        return (raw * self.inverse_divisors).clamp_(-self.state_clip, self.state_clip)

    def forward(self, observation: Observation) -> torch.Tensor:
        """(N, D + A * H) features of either face of an observation."""
        context, state = self.read(observation)
        return self.fuse(self.split(context), state)  # N D+A*H

    def read(self, observation: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C) contexts and (N, S) raw states of either face of an observation."""
        if "market" in observation:
            context = self._window_context(observation)
        else:
            # accounts on the same bar share its context
            # SB3's own policies make it a float, exact below 2**24
            bars, inverse = torch.unique(observation["bar"].reshape(-1).long(), return_inverse=True)
            context = self.stretch_context(bars, 1)[:, 0][inverse]  # N C
        state = torch.cat((observation["account"].flatten(1), observation["portfolio"].flatten(1)), dim=1)
        return context, state

    def _window_context(self, observation: Observation) -> torch.Tensor:
        market = observation["market"].flatten(2)  # N W A*F
        window = market.shape[1]
        if window < self.receptive_field:
            raise ValueError(
                f"the policy sees {self.receptive_field} bars, the windows hold {window}: "
                f"set window_bars={self.receptive_field} in the env"
            )
        risk = observation["risk"].flatten(2)  # N W A*K
        clock = observation["clock"].reshape(-1).long()  # N; SB3's buffers make it a float, exact below 2**24
        first_bar = clock - (self.receptive_field - 1)
        newest = slice(window - self.receptive_field, None)
        market, risk = market[:, newest], risk[:, newest]
        if "valid" in observation:
            is_valid = observation["valid"][:, newest] > 0.0  # N R A
            market, risk = without_invalid(market, is_valid), without_invalid(risk, is_valid)
        return self.context(market, risk, first_bar)[:, 0]  # N C

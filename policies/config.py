"""The shape of the network: encoders, fusion and heads, in one frozen dataclass."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from perpgym.data.tape import CLOCK_PERIOD
from perpgym.policies.encoders import GridRecurrent
from perpgym.policies.market_encoder import ENCODERS


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Widths and reach of the policy's network. The receptive field follows, it is not a setting.

    Attributes:
        encoder: of the market's features: ``transformer``, ``lstm``, ``gru``, ``tcn``, ``tft``, ``mlp``, or a
            name that was added to ``policies.ENCODERS`` (``docs/algorithms/encoders.md`` has them all). It
            reads those of the next that say so.
        d_model: width D of a contract's embedding and of the fused features.
        n_layers: all but tft.
        n_heads: transformer, tft, and the attention across contracts.
        band: transformer and tft: w, bars that one attention layer sees; they reach 1 + n_layers * (w - 1)
            and w bars.
        ff_multiple: transformer and tcn: hidden width of a layer over ``d_model``.
        chunk, warmup: lstm and gru: C, bars between restarts, which divides the clock's period of 2**20,
            and B, bars read before each chunk; they reach B + C bars.
        kernel: tcn: k, taps of a layer; it reaches 1 + (k - 1) * (2**n_layers - 1) bars.
        cross_asset: contracts look at each other at every bar; nothing where there is one.
        risk_hidden: width of the risk LSTM; 0 leaves it out.
        risk_chunk: C, bars between restarts of the LSTM; divides the clock's period, 2**20.
        risk_warmup: B, bars that the LSTM reads before each chunk; it reaches B + C bars.
        forecast_bars: horizons; the heads read a forecast of the return over the next h bars for each, which
            the agent trains by its own loss. Empty for none.
        forecast_response: initial slope of the exposure action on the mean forecast, where a forecast that
            explains 1 % of its target's variance has size one; logits of choices have 16 times that slope.
            Training goes on from there.
        band_width_init: initial mean of the second action where there is one, the width of the no-trade band;
            -1 is no band. Inside a wide band no centre makes a difference, and none is learnt.
        hold_init: initial logit of holding, of ``heads``, where the other decisions have 0: at 6 a fresh
            policy trades once in 135 bars, or where a forecast says so. It is what the band is to an
            exposure: where trades are drawn often, what is learnt is not to trade.
        policy_hidden, value_hidden: widths of the two heads' hidden layers.
        head_dropout: share of the features before the heads that is dropped, again and again, to measure how
            uncertain a decision is; training, rollouts and the decision itself never drop any.
        state_clip: scaled account and portfolio columns are clipped to ± this. Market features are clipped by
            their scaler, at ``features.clip`` deviations.
        log_std_init: initial logarithm of the actions' standard deviation (actions lie in [-1, 1]).
    """

    encoder: str = "transformer"
    d_model: int = 32
    n_layers: int = 2
    n_heads: int = 4
    band: int = 32
    ff_multiple: int = 4
    chunk: int = 32
    warmup: int = 31
    kernel: int = 3
    cross_asset: bool = True
    risk_hidden: int = 16
    risk_chunk: int = 32
    risk_warmup: int = 31
    forecast_bars: tuple[int, ...] = ()
    forecast_response: float = 0.0
    band_width_init: float = 0.0
    hold_init: float = 0.0
    policy_hidden: tuple[int, ...] = (64, 64)
    value_hidden: tuple[int, ...] = (64, 64)
    log_std_init: float = -0.5
    head_dropout: float = 0.0
    state_clip: float = 5.0

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise ValueError(
                f"encoder must be one of {', '.join(ENCODERS)}, was {self.encoder!r}; one of your own is "
                "added to perpgym.policies.ENCODERS before a config names it (docs/algorithms/encoders.md)"
            )
        self._check_sizes()
        if not 0.0 < self.state_clip < math.inf:
            raise ValueError(f"state_clip must be positive and finite, was {self.state_clip}")
        if not -5.0 <= self.log_std_init <= 1.0:
            raise ValueError(f"log_std_init must lie between -5 and 1 (a logarithm), was {self.log_std_init}")
        if not 0.0 <= self.head_dropout < 1.0:
            raise ValueError(f"head_dropout must lie in [0, 1), a share of features, was {self.head_dropout}")
        horizons = tuple(int(horizon) for horizon in self.forecast_bars)
        if min(horizons, default=1) < 1:
            raise ValueError(f"forecast_bars must be positive (bars), was {horizons}; [] for no forecast")
        object.__setattr__(self, "forecast_bars", horizons)
        if not -1.0 <= self.band_width_init <= 1.0:
            raise ValueError(
                f"band_width_init must lie between -1 and 1 (an action), was {self.band_width_init}"
            )
        if not 0.0 <= self.hold_init <= 10.0:
            raise ValueError(f"hold_init must lie between 0 and 10 (a logit), was {self.hold_init}")
        # a config that comes from YAML or JSON brings lists
        for name in ("policy_hidden", "value_hidden"):
            widths = tuple(int(width) for width in getattr(self, name))
            if not widths or min(widths) < 1:
                raise ValueError(f"{name} must hold at least one positive width, was {widths}")
            object.__setattr__(self, name, widths)

    def _check_sizes(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "ff_multiple", "chunk", "risk_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, was {getattr(self, name)}")
        for name in ("band", "kernel"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2 bars, was {getattr(self, name)}")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads ({self.n_heads}), was {self.d_model}")
        if min(self.risk_hidden, self.risk_warmup, self.warmup) < 0:
            raise ValueError(
                "risk_hidden, risk_warmup and warmup must not be negative; risk_hidden=0 leaves the LSTM out"
            )
        for name in ("chunk", "risk_chunk"):
            if CLOCK_PERIOD % getattr(self, name):
                raise ValueError(
                    f"{name} must be a power of two up to 2**20 (bars), was {getattr(self, name)}"
                )

    @property
    def receptive_field(self) -> int:
        """R, bars: the longer reach of the two encoders."""
        risk = GridRecurrent.reach(self.risk_chunk, self.risk_warmup) if self.risk_hidden else 1
        return max(ENCODERS[self.encoder].reach(self), risk)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

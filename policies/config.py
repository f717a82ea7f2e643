"""The shape of the network: encoders, fusion and heads, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from perpgym.data.tape import CLOCK_PERIOD


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Widths and reach of the policy's network. The receptive field follows, it is not a setting.

    Attributes:
        d_model: width D of the market embedding and of the fused features.
        n_layers, n_heads: of the market transformer.
        band: w, bars that one attention layer sees; the transformer reaches 1 + n_layers * (w - 1) bars.
        ff_multiple: hidden width of a transformer block over ``d_model``.
        risk_hidden: width of the risk LSTM; 0 leaves it out.
        risk_chunk: C, bars between restarts of the LSTM; divides the clock's period, 2**20.
        risk_warmup: B, bars that the LSTM reads before each chunk; it reaches B + C bars.
        forecast_bars: horizons; the heads read a forecast of the return over the next h bars for each, which
            the agent trains by its own loss. Empty for none.
        forecast_response: initial slope of the exposure action on the mean forecast, where a forecast that
            explains 1 % of its target's variance has size one. Training goes on from there.
        band_width_init: initial mean of the second action where there is one, the width of the no-trade band;
            -1 is no band. Inside a wide band no centre makes a difference, and none is learnt.
        policy_hidden, value_hidden: widths of the two heads' hidden layers.
        log_std_init: initial logarithm of the actions' standard deviation (actions lie in [-1, 1]).
    """

    d_model: int = 32
    n_layers: int = 2
    n_heads: int = 4
    band: int = 32
    ff_multiple: int = 4
    risk_hidden: int = 16
    risk_chunk: int = 32
    risk_warmup: int = 31
    forecast_bars: tuple[int, ...] = ()
    forecast_response: float = 0.0
    band_width_init: float = 0.0
    policy_hidden: tuple[int, ...] = (64, 64)
    value_hidden: tuple[int, ...] = (64, 64)
    log_std_init: float = -0.5

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "ff_multiple", "risk_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, was {getattr(self, name)}")
        if self.band < 2:
            raise ValueError(f"band must be at least 2 bars, was {self.band}")
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model must be a multiple of n_heads ({self.n_heads}), was {self.d_model}")
        if self.risk_hidden < 0 or self.risk_warmup < 0:
            raise ValueError(
                "risk_hidden and risk_warmup must not be negative; risk_hidden=0 leaves the LSTM out"
            )
        if CLOCK_PERIOD % self.risk_chunk:
            raise ValueError(f"risk_chunk must be a power of two up to 2**20 (bars), was {self.risk_chunk}")
        if not -5.0 <= self.log_std_init <= 1.0:
            raise ValueError(f"log_std_init must lie between -5 and 1 (a logarithm), was {self.log_std_init}")
        horizons = tuple(int(horizon) for horizon in self.forecast_bars)
        if min(horizons, default=1) < 1:
            raise ValueError(f"forecast_bars must be positive (bars), was {horizons}; [] for no forecast")
        object.__setattr__(self, "forecast_bars", horizons)
        if not -1.0 <= self.band_width_init <= 1.0:
            raise ValueError(
                f"band_width_init must lie between -1 and 1 (an action), was {self.band_width_init}"
            )
        # a config that comes from YAML or JSON brings lists
        for name in ("policy_hidden", "value_hidden"):
            widths = tuple(int(width) for width in getattr(self, name))
            if not widths or min(widths) < 1:
                raise ValueError(f"{name} must hold at least one positive width, was {widths}")
            object.__setattr__(self, name, widths)

    @property
    def receptive_field(self) -> int:
        """R, bars: the longer reach of the two encoders."""
        market = 1 + self.n_layers * (self.band - 1)
        return max(market, self.risk_warmup + self.risk_chunk if self.risk_hidden else 1)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

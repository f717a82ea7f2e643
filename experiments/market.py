"""From settings to the market and the accounts of one run: tape, periods, env."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.data.features.build import build_tape
from perpgym.data.features.scaler import Scaler, fit_scaler
from perpgym.data.portfolio import load_contracts
from perpgym.data.splits import SplitBars
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.vector import PerpVecEnv
from perpgym.experiments.settings import FeatureSet, Settings

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Market:
    """The tape of a run with all that is known about it.

    Attributes:
        tape: features and prices.
        split: training, validation and test as bars.
        env_config: with the window of the policy and the resolved reward.
        limits: the risk overlay's.
        market_scaler, risk_scaler: fitted on the training period.
        notes: sentences for the log and the report's first screen.
        fallback_reason: why the simulated market stands in for real data; None if it does not.
    """

    tape: Tape
    split: SplitBars
    env_config: EnvConfig
    limits: RiskLimits
    market_scaler: Scaler
    risk_scaler: Scaler
    notes: tuple[str, ...]
    fallback_reason: str | None

    def facts(self) -> dict[str, Any]:
        """Where the numbers come from, for a run's provenance."""
        return {
            "symbol": ", ".join(contract.symbol for contract in self.tape.contracts),
            "data": self.tape.source,
            "data_hash": self.tape.data_hash,
            "mark_rules": list(self.tape.mark_rules),
            "fallback_reason": self.fallback_reason,
            "notes": list(self.notes),
            "periods": self.split.describe(self.tape),
        }


def open_market(settings: Settings) -> Market:
    """Load bars, compute features, cut the periods, fit the scalers.

    Raises:
        perpgym.data.DataError: the data cannot be used; says what to do.
        ValueError: a period is too short.
    """
    _LOG.info("loading %s, source=%s ...", ", ".join(settings.data.symbols), settings.data.source)
    loaded = load_contracts(settings.data)
    planted = [one.planted for one in loaded if one.planted is not None]
    features = settings.features
    tape = build_tape(
        [one.bars for one in loaded],
        features=features.market,
        risk=features.risk,
        planted=planted or None,
        source="; ".join(dict.fromkeys(one.source for one in loaded)),
    )
    split = settings.split.resolve(tape)
    rules = " ".join(dict.fromkeys(f"mark={rule}" for rule in tape.mark_rules))
    _LOG.info("data    %s, %s bars, %s", tape.source, f"{len(tape):,}", rules)
    _LOG.info("periods %s", split.describe(tape))
    env_config = replace(
        settings.env,
        window_bars=settings.policy.receptive_field,
    )
    env_config = settings.reward.apply(env_config, tape, split.train.start, split.train.stop)
    return Market(
        tape=tape,
        split=split,
        env_config=env_config,
        limits=settings.risk,
        market_scaler=_fit(tape.features, tape, split, features),
        risk_scaler=_fit(tape.risk, tape, split, features),
        notes=tuple(dict.fromkeys(note for one in loaded for note in one.notes)),
        fallback_reason=loaded[0].fallback_reason,
    )


def _fit(columns: NDArray[np.float32], tape: Tape, split: SplitBars, features: FeatureSet) -> Scaler:
    train = split.train
    return fit_scaler(columns, train.start, train.stop, is_valid=tape.is_valid, clip=features.clip)


def training_env(market: Market, settings: Settings, seed: int) -> PerpVecEnv:
    """The env of the training period."""
    return PerpVecEnv(
        market.tape,
        n_paths=settings.training.n_paths,
        accounts_per_path=settings.training.accounts_per_path,
        config=market.env_config,
        limits=market.limits,
        start_bar=market.split.train.start,
        end_bar=market.split.train.stop,
        seed=seed,
    )


def set_threads(count: int) -> None:
    """Torch's threads for this process."""
    torch.set_num_threads(count)

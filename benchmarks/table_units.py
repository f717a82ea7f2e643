"""One seed of one contender on one market: composed, trained, judged on the test period, kept as one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from table_plan import Plan, pin_market

from perpgym.agents.algorithms import make_algorithm
from perpgym.agents.baselines import make_baseline
from perpgym.agents.checkpoint import read_checkpoint, write_atomically
from perpgym.evaluation.backtest import BacktestResult, run_backtest
from perpgym.evaluation.comparison import compare
from perpgym.evaluation.scorecard import measure, returns_of
from perpgym.evaluation.trials import plain
from perpgym.experiments.judging import load_candidates
from perpgym.experiments.market import Market, open_market, set_threads, training_env
from perpgym.experiments.run_folder import RunFolder, commit, config_hash
from perpgym.experiments.settings import Settings
from perpgym.experiments.training import train_seed

CONTENDERS = (
    "hppo", "ppo_heads", "ppo", "ppo_bare", "hqrdqn", "qrdqn",
    "a2c", "sac", "tqc", "recurrent_ppo", "maskable_ppo",
)  # fmt: skip
# those that are another's experiment with settings of their own
_VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    # the actions of hppo, so that the two differ by the second level alone
    "ppo_heads": ("ppo", ("env.action=heads",)),
    # no more than what the libraries' algorithms can have
    "ppo_bare": ("ppo", ("policy.forecast_bars=[]", "agent.forecast_coef=0")),
}
# every rule, in one unit that has nothing to learn
BASELINES = "baselines"
# an experiment of the config folder each; a contender's own comes on top of it
MARKETS = {"btc": (), "seven": ("ppo_portfolio",), "simulated": ()}
# controls encode a window for every sample: rollouts of the usual length would be one or two in their time,
# and batches of the usual size a hundred
_SHORT_ROLLOUTS = ("agent.n_steps=8", "agent.batch_size=256")
_SMALL_BATCHES = ("agent.batch_size=64",)
_FITTED = {
    "recurrent_ppo": _SHORT_ROLLOUTS,
    "maskable_ppo": _SHORT_ROLLOUTS,
    "sac": _SMALL_BATCHES,
    "tqc": _SMALL_BATCHES,
}
_CALL = ("run_dir", "overwrite", "resume")
_FIGURES = ("sharpe", "log_growth", "max_drawdown", "turnover_per_day", "mean_exposure", "liquidations")
_COSTS = ("fees", "spread", "impact", "funding")


@dataclass(frozen=True)
class Unit:
    """A seed of a contender on a market."""

    market: str
    contender: str
    seed: int

    def __str__(self) -> str:
        return f"{self.market} {self.contender} seed {self.seed}"

    def folder(self, out: Path) -> Path:
        """Where everything of it lies."""
        return out / self.market / self.contender / f"seed_{self.seed}"

    def result(self, out: Path) -> Path:
        """There once the unit is done."""
        return self.folder(out) / "result.json"

    def returns(self, out: Path) -> Path:
        """Bar log returns over the test period, of the chosen and the last checkpoint."""
        return self.folder(out) / "returns.npz"


def list_units(markets: Sequence[str], contenders: Sequence[str], seeds: int) -> list[Unit]:
    """Seed after seed, so that an unfinished table has as many of each contender."""
    baselines = [Unit(market, BASELINES, 0) for market in markets]
    return baselines + [Unit(m, c, seed) for seed in range(seeds) for m in markets for c in contenders]


def words(unit: Unit, plan: Plan) -> list[str]:
    """What ``train.py`` would be called with."""
    contender = "ppo" if unit.contender == BASELINES else unit.contender
    experiment, own = _VARIANTS.get(contender, (contender, ()))
    experiments = ",".join((*MARKETS[unit.market], f"{experiment}_btc"))
    data = ["data=simulated"] if unit.market == "simulated" else ["data=freqtrade", f"data.path={plan.data}"]
    return [
        f"+experiment=[{experiments}]",
        *data,
        f"seeds=[{unit.seed}]",
        *own,
        *_FITTED.get(contender, ()),
        f"training.max_seconds={plan.seconds}",
        # time is up long before
        "training.total_steps=1_000_000_000",
        f"training.checkpoints={plan.checkpoints}",
        "training.device=cpu",
        "training.threads=1",
        *plan.overrides,
    ]


def run_unit(unit: Unit, plan: Plan, out: Path) -> None:
    """Train, or go on; judge; write the result.

    Raises:
        StopRequestedError: asked to stop; the training goes on from there the next time.
        ValueError: code or data are not those of the units before.
    """
    plan.claim(out)
    with initialize_config_module("perpgym.configs", version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("config", overrides=words(unit, plan)), resolve=True)
    config = {name: value for name, value in composed.items() if name not in _CALL}
    settings = Settings.from_mapping(config)
    set_threads(settings.training.threads)
    market = open_market(settings)
    pinned = pin_market(out, unit.market, market.facts())
    if unit.contender == BASELINES:
        record, returns = _judge_baselines(market), dict[str, Any]()
    else:
        folder = RunFolder(unit.folder(out) / "run")
        if not folder.provenance.exists():
            facts = {"name": settings.name, "seeds": list(settings.seeds), **market.facts()}
            folder.create(config, facts, overwrite=False)
        if not folder.selection(unit.seed).exists():
            _compile(market, settings, unit.seed)
            train_seed(market, settings, unit.seed, folder, config_hash(config))
        record, returns = _judge_seed(folder, settings, market, unit.seed)
    tape = market.tape
    record |= {
        **asdict(unit),
        **pinned,
        "code": plan.code,
        "commit": commit(),
        "bars_per_year": tape.bars_per_year,
        "data": tape.source,
    }
    # the result comes last: where it is, all of the unit is
    np.savez_compressed(unit.returns(out), **returns)
    write_atomically({unit.result(out): json.dumps(plain(record), indent=1).encode()})


def _compile(market: Market, settings: Settings, seed: int) -> None:
    """Train one rollout for nothing: whoever came first would be charged seconds for compiling."""
    model = make_algorithm(
        settings.agent,
        training_env(market, settings, seed),
        policy=settings.policy,
        market_scaler=market.market_scaler,
        risk_scaler=market.risk_scaler,
        seed=seed,
        device=settings.training.device,
    )
    model.learn(1)


def _judge_seed(
    folder: RunFolder, settings: Settings, market: Market, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both checkpoints on the test period: figures, and bar log returns."""
    test = market.split.test
    agents = load_candidates(folder, settings, market.tape).agents
    results = run_backtest(
        agents,
        market.tape,
        start_bar=test.start,
        end_bar=test.stop,
        config=market.env_config,
        limits=market.limits,
    )
    chosen, last = results
    selection = folder.read_selection(seed)
    record = {
        "steps": selection["last"],
        "updates": count_updates(read_checkpoint(folder.resume(seed))),
        "chosen_step": selection["best"],
        "seconds": selection["seconds"],
        "chosen": _figures(chosen, market),
        "last": _figures(last, market),
    }
    floor = market.env_config.reward_equity_floor
    return record, {"chosen": returns_of(chosen, floor=floor), "last": returns_of(last, floor=floor)}


def count_updates(state: Any) -> int:
    """Steps that the busiest optimiser of a checkpoint has taken; SB3's own count is of epochs for some."""
    if not isinstance(state, Mapping):
        return 0
    if {"state", "param_groups"} <= set(state):
        return max((int(moments["step"]) for moments in state["state"].values()), default=0)
    return max(map(count_updates, state.values()), default=0)


def _judge_baselines(market: Market) -> dict[str, Any]:
    test = market.split.test
    contracts = len(market.tape.contracts)
    flat = make_baseline("flat", market.env_config, n_contracts=contracts)
    comparison = compare(
        [flat],
        market.tape,
        start_bar=test.start,
        end_bar=test.stop,
        config=market.env_config,
        limits=market.limits,
        random_draws=0,
    )
    return {"rules": {result.name: _figures(result, market) for result in comparison.results}}


def _figures(result: BacktestResult, market: Market) -> dict[str, Any]:
    """Of one account; costs in parts of the initial equity a year."""
    config = market.env_config
    card = measure(result, risk_free_rate=config.risk_free_rate, equity_floor=config.reward_equity_floor)
    yearly = result.bars_per_year / len(result.open_time_ms) / card.initial_equity
    return {
        **{name: getattr(card, name) for name in _FIGURES},
        **{name: yearly * getattr(card, name) for name in _COSTS},
        "sharpe_low": card.sharpe_interval.low,
        "sharpe_high": card.sharpe_interval.high,
        "end_reason": card.end_reason,
    }

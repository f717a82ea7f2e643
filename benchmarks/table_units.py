"""One seed of one contender on one market: composed, trained, judged on the test period, kept as one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from perpgym.agents.baselines import make_baseline
from perpgym.agents.checkpoint import write_atomically
from perpgym.evaluation.backtest import BacktestResult, run_backtest
from perpgym.evaluation.comparison import compare
from perpgym.evaluation.scorecard import measure, returns_of
from perpgym.evaluation.trials import plain
from perpgym.experiments.judging import load_candidates
from perpgym.experiments.market import Market, open_market, set_threads
from perpgym.experiments.run_folder import RunFolder, config_hash
from perpgym.experiments.settings import Settings
from perpgym.experiments.training import train_seed

CONTENDERS = ("hppo", "ppo", "hqrdqn", "qrdqn", "a2c", "sac", "tqc", "recurrent_ppo", "maskable_ppo")
# every rule, in one unit that has nothing to learn
BASELINES = "baselines"
# an experiment of the config folder each; a contender's own comes on top of it
MARKETS = {"btc": (), "seven": ("ppo_portfolio",), "simulated": ()}
# controls that encode a window for every sample would spend their time on one rollout of the usual length
_SHORT_ROLLOUTS = ("agent.n_steps=8", "agent.batch_size=256")
_FITTED = {"recurrent_ppo": _SHORT_ROLLOUTS, "maskable_ppo": _SHORT_ROLLOUTS}
_CALL = ("run_dir", "overwrite", "resume")
_FIGURES = ("sharpe", "log_growth", "max_drawdown", "turnover_per_day", "mean_exposure", "liquidations")
_COSTS = ("fees", "spread", "impact", "funding")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all units of a table have in common.

    Attributes:
        data: freqtrade data folder; not read by ``simulated``.
        seconds: processor time of training, for each seed.
        checkpoints: how often validation looks.
        overrides: of the config, for all.
    """

    data: str
    seconds: float
    checkpoints: int = 6
    overrides: tuple[str, ...] = ()

    def claim(self, out: Path) -> None:
        """Put the plan into the output folder.

        Raises:
            ValueError: units of another plan lie there.
        """
        path, mine = out / "plan.json", plain(asdict(self))
        if path.exists() and (theirs := json.loads(path.read_text("utf-8"))) != mine:
            raise ValueError(
                f"{out} holds units of another plan, which cannot be compared with these: it has {theirs}, "
                f"this one is {mine}; give --out another folder, or the same settings"
            )
        out.mkdir(parents=True, exist_ok=True)
        write_atomically({path: json.dumps(mine, indent=1).encode()})


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
    experiments = ",".join((*MARKETS[unit.market], f"{contender}_btc"))
    data = ["data=simulated"] if unit.market == "simulated" else ["data=freqtrade", f"data.path={plan.data}"]
    return [
        f"+experiment=[{experiments}]",
        *data,
        f"seeds=[{unit.seed}]",
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
    """
    with initialize_config_module("perpgym.configs", version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("config", overrides=words(unit, plan)), resolve=True)
    config = {name: value for name, value in composed.items() if name not in _CALL}
    settings = Settings.from_mapping(config)
    set_threads(settings.training.threads)
    market = open_market(settings)
    if unit.contender == BASELINES:
        record, returns = _judge_baselines(market), {}
    else:
        folder = RunFolder(unit.folder(out) / "run")
        if not folder.provenance.exists():
            facts = {"name": settings.name, "seeds": list(settings.seeds), **market.facts()}
            folder.create(config, facts, overwrite=False)
        if not folder.selection(unit.seed).exists():
            train_seed(market, settings, unit.seed, folder, config_hash(config))
        record, returns = _judge_seed(folder, settings, market, unit.seed)
    tape = market.tape
    record |= {
        **asdict(unit),
        "bars_per_year": tape.bars_per_year,
        "periods": market.split.describe(tape),
        "data": tape.source,
    }
    # the result comes last: where it is, all of the unit is
    np.savez_compressed(unit.returns(out), **returns)
    write_atomically({unit.result(out): json.dumps(plain(record), indent=1).encode()})


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
        "chosen_step": selection["best"],
        "seconds": selection["seconds"],
        "chosen": _figures(chosen, market),
        "last": _figures(last, market),
    }
    floor = market.env_config.reward_equity_floor
    return record, {"chosen": returns_of(chosen, floor=floor), "last": returns_of(last, floor=floor)}


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

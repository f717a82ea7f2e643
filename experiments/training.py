"""Trains one seed: learn, look at the validation period, keep checkpoints, choose one by a fixed rule."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat, configure

from perpgym.agents.algorithms import make_algorithm
from perpgym.agents.artifact import save_artifact
from perpgym.agents.budget import Budget
from perpgym.agents.checkpoint import write_atomically
from perpgym.agents.path_algorithm import PathAlgorithm
from perpgym.agents.trained import TrainedAgent
from perpgym.evaluation import metrics
from perpgym.evaluation.backtest import BacktestResult, run_backtest
from perpgym.evaluation.numerals import base
from perpgym.evaluation.trials import TrialLog, curves, smooth
from perpgym.experiments.market import Market, training_env
from perpgym.experiments.run_folder import RunError, RunFolder, commit
from perpgym.experiments.settings import Settings
from perpgym.policies.deciding import Policy

_LOG = logging.getLogger(__name__)

# points of a curve in TensorBoard
_CURVE_POINTS = 500


class StopRequestedError(Exception):
    """The user asked to stop; everything is on disk."""


class _TimeIsUpError(Exception):
    """The processor time of the seed is spent."""


@dataclass(kw_only=True)
class Progress:
    """What the progress bar shows; the script draws it.

    Attributes:
        seed: being trained.
        total_steps: account steps in all.
        on_step: called with (steps done, net return on validation of the newest checkpoint, a fraction, or
            None).
    """

    seed: int = 0
    total_steps: int = 0
    on_step: Callable[[int, float | None], None] = field(default=lambda steps, validation_return: None)


def train_seed(
    market: Market,
    settings: Settings,
    seed: int,
    folder: RunFolder,
    config_hash: str,
    *,
    progress: Progress | None = None,
) -> None:
    """Train one seed to the end, or go on from its last checkpoint.

    Args:
        market: tape, periods and env settings.
        settings: of the run.
        seed: of weights, exploration and env.
        folder: of the run; everything is written there.
        config_hash: identifies the config in the trial log.
        progress: told about every rollout.

    Raises:
        StopRequestedError: Ctrl-C; the last finished rollout is on disk.
        RunError: the trial log has lost what the choice is made from.
        ValueError: the device is not there.
        OSError: the disk is full; the last checkpoint is intact.
    """
    device = settings.training.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        # SB3 would take the CPU without a word
        raise ValueError(f"training.device is {device}, but torch sees no such accelerator; use auto or cpu")
    env = training_env(market, settings, seed)
    model = make_algorithm(
        settings.agent,
        env,
        policy=settings.policy,
        market_scaler=market.market_scaler,
        risk_scaler=market.risk_scaler,
        seed=seed,
        device=device,
    )
    if settings.training.max_seconds is not None:
        model.budget = Budget(settings.training.max_seconds)
    watcher = CheckpointCallback(market, settings, seed, folder, config_hash, progress or Progress())
    if folder.resume(seed).exists():
        model.load_checkpoint(folder.resume(seed))
        watcher.resume_at(model)
        _LOG.info("seed %d resumes at %s steps", seed, f"{model.num_timesteps:,}")
    model.set_logger(configure(str(folder.tensorboard / f"seed_{seed}"), ["tensorboard"]))
    _describe(model.logger, market)
    _say_whole_rollouts(settings, model)
    _say_if_nothing_is_learnt(settings, model)
    left = settings.training.total_steps - model.num_timesteps
    with stop_on_interrupt(watcher):
        if left > 0:
            with suppress(_TimeIsUpError):
                model.learn(left, callback=watcher, reset_num_timesteps=False)
        watcher.finish(model)
        _choose(market, seed, folder, config_hash, model.budget)
    # asked for after the last rollout began: this seed is whole, and no other may start
    if watcher.is_stop_requested:
        raise StopRequestedError


def _say_whole_rollouts(settings: Settings, model: PathAlgorithm) -> None:
    """A rollout is not cut short: say so where the steps that were asked for are no whole number of them."""
    asked, rollout = settings.training.total_steps, model.steps_per_rollout
    if asked % rollout and settings.training.max_seconds is None:
        _LOG.info(
            "training.total_steps=%s becomes %s: whole rollouts of %s account steps",
            f"{asked:,}", f"{-(-asked // rollout) * rollout:,}", f"{rollout:,}",
        )  # fmt: skip


def _say_if_nothing_is_learnt(settings: Settings, model: PathAlgorithm) -> None:
    """A replay is filled before it is learnt from: say so where training ends before."""
    asked, starts = settings.training.total_steps, getattr(model, "learning_starts", 0)
    if asked <= starts and settings.training.max_seconds is None:
        _LOG.warning(
            "nothing will be learnt: agent.learning_starts=%s steps come before the first update, and "
            "training.total_steps=%s end before them; lower the one or raise the other",
            f"{starts:,}", f"{asked:,}",
        )  # fmt: skip


def _describe(logger: Logger, market: Market) -> None:
    """Say in TensorBoard what the run is about; loudly, if it is not what was asked for."""
    lines = [f"data: {market.tape.source}", f"periods: {market.split.describe(market.tape)}", *market.notes]
    if market.fallback_reason is not None:
        lines.insert(0, f"**NOT REAL DATA**: simulated market, because {market.fallback_reason}")
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            output.writer.add_text("run", "\n\n".join(lines))


class CheckpointCallback(BaseCallback):
    """Looks at the validation period at evenly spread moments between two rollouts, and saves there.

    A checkpoint is taken before a rollout starts, when weights, optimiser, env and generators are those of a
    whole number of rollouts and updates; that is what makes a resumed run equal an uninterrupted one.
    """

    def __init__(
        self,
        market: Market,
        settings: Settings,
        seed: int,
        folder: RunFolder,
        config_hash: str,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.market, self.settings, self.seed = market, settings, seed
        self.folder, self.config_hash, self.progress = folder, config_hash, progress
        self.interval = max(1, settings.training.total_steps // settings.training.checkpoints)
        self.is_stop_requested = False
        self._return: float | None = None
        self._looked_at: int | None = None
        # of the run's checkpoints, as its time counts them
        self._looks = 0

    def resume_at(self, model: PathAlgorithm) -> None:
        """Take from the trial log what was seen up to here, so that it is not looked at again."""
        steps, self._looks = model.num_timesteps, self._looks_until_now(model)
        run = curves(TrialLog(self.folder.trials).read()).get((self.config_hash, self.seed), [])
        if model.budget is not None:
            # a crash may have come between the artifact and the log, and time never leads here again
            for step in self.folder.policy_steps(self.seed) - {int(trial["step"]) for trial in run}:
                shutil.rmtree(self.folder.policy(self.seed, step))
        for trial in run:
            # a crash may have come between the artifact and the log
            if trial["step"] <= steps and self.folder.policy(self.seed, trial["step"]).exists():
                self._looked_at = trial["step"]
                self._return = math.expm1(trial["validation_log_growth"])

    def _on_rollout_start(self) -> None:
        model = self.model
        assert isinstance(model, PathAlgorithm)
        steps = model.num_timesteps
        self.progress.on_step(steps, self._return)
        is_up = model.budget is not None and model.budget.is_spent
        if steps and self._is_due(model) and not is_up and steps != self._looked_at:
            self.checkpoint(model)
        if self.is_stop_requested:
            model.save_checkpoint(self.folder.resume(self.seed))
            raise StopRequestedError
        if is_up:
            raise _TimeIsUpError
        if model.budget is not None:
            model.budget.start()

    def _is_due(self, model: PathAlgorithm) -> bool:
        """Whether the next of the evenly spread moments, in steps or in time, has passed."""
        steps = model.num_timesteps
        previous = max(0, steps - model.steps_per_rollout)
        looks, before = self._looks_until_now(model), self._looks
        self._looks = looks
        return looks > before or steps // self.interval > previous // self.interval

    def _looks_until_now(self, model: PathAlgorithm) -> int:
        share = 0.0 if model.budget is None else model.budget.share
        return int(share * self.settings.training.checkpoints)

    def _on_step(self) -> bool:
        return True

    def finish(self, model: PathAlgorithm) -> None:
        """The last checkpoint, once."""
        if model.budget is not None:
            model.budget.stop()
            _LOG.info(
                "seed %d took %.1f s of processor time for %s steps",
                self.seed, model.budget.spent, f"{model.num_timesteps:,}",
            )  # fmt: skip
        if model.num_timesteps != self._looked_at:
            self.checkpoint(model)
        self.progress.on_step(model.num_timesteps, self._return)

    def checkpoint(self, model: PathAlgorithm) -> None:
        """Validate, record the trial, keep the policy, make the run resumable from here."""
        with nullcontext() if model.budget is None else model.budget.paused():
            self._checkpoint(model)

    def _checkpoint(self, model: PathAlgorithm) -> None:
        started = time.perf_counter()
        steps = model.num_timesteps
        result = validate(model.trained, self.market)
        record = trading_record(result, self.market)
        self._return, self._looked_at = record["return"], steps
        for name, value in record.items():
            model.logger.record(f"validation/{name}", value)
        model.logger.dump(steps)
        artifact = self.folder.policy(self.seed, steps)
        save_artifact(
            artifact,
            model.trained,
            tape=self.market.tape,
            env_config=self.market.env_config,
            limits=self.market.limits,
            seed=self.seed,
            commit=commit() or "unknown",
            extra={"step": steps, "experiment": self.settings.name},
        )
        TrialLog(self.folder.trials).append(
            {
                "seed": self.seed,
                "step": steps,
                "config_hash": self.config_hash,
                "checkpoint": str(artifact.relative_to(self.folder.path)),
                "validation_sharpe": record["sharpe"],
                "validation_log_growth": record["log_growth"],
                "validation_turnover": record["turnover_per_day"],
            }
        )
        model.save_checkpoint(self.folder.resume(self.seed))
        _LOG.info(
            "seed %d %s steps  validation: "
            "return %+.1f %%, Sharpe %+.2f, drawdown %.1f %%, turnover %.2f/day",
            self.seed, f"{steps:>11,}", 100 * record["return"], record["sharpe"],
            100 * record["max_drawdown"], record["turnover_per_day"],
        )  # fmt: skip
        model.logger.record("time/validation_seconds", time.perf_counter() - started)


def validate(policy: Policy, market: Market) -> BacktestResult:
    """The policy's deterministic trade through the validation period."""
    period = market.split.valid
    return run_backtest(
        [TrainedAgent(policy)],
        market.tape,
        start_bar=period.start,
        end_bar=period.stop,
        config=market.env_config,
        limits=market.limits,
    )[0]


def trading_record(result: BacktestResult, market: Market) -> dict[str, float]:
    """What TensorBoard shows of one backtest; money as a share of the initial equity."""
    initial = float(result.equity[0])
    config = market.env_config
    returns = metrics.log_returns(result.equity, floor=config.reward_equity_floor)
    excess = metrics.excess_returns(
        returns, risk_free_rate=config.risk_free_rate, bars_per_year=result.bars_per_year
    )
    sharpe = metrics.sharpe_ratio(excess, bars_per_year=result.bars_per_year)
    days = returns.size * result.bar_ms / 86_400_000
    traded = result.column("traded_notional") / np.maximum(result.column("equity_before"), 1e-9)
    return {
        "return": math.expm1(returns.sum()),
        "log_growth": float(returns.sum()),
        "sharpe": 0.0 if np.isnan(sharpe) else float(sharpe),
        "equity": float(result.equity[-1]),
        "max_drawdown": float(result.column("drawdown").max()),
        "mean_exposure": float(result.column("gross_exposure").mean()),
        "fees": float(result.column("fees").sum()) / initial,
        "spread_and_impact": float((result.column("spread") + result.column("impact")).sum()) / initial,
        "funding": float(result.column("funding").sum()) / initial,
        "liquidations": float(result.column("liquidated").sum()),
        "turnover_per_day": float(traded.sum()) / days,
    }


def choose_step(trials: list[Mapping[str, Any]]) -> int:
    """The chosen checkpoint: the last of the three neighbours whose mean net log growth is highest.

    Args:
        trials: of one seed and config, in the order of training.
    """
    growth = smooth(np.array([float(t["validation_log_growth"]) for t in trials]))
    return int(trials[int(np.nanargmax(growth))]["step"])


def _choose(market: Market, seed: int, folder: RunFolder, config_hash: str, budget: Budget | None) -> None:
    """Write which checkpoint is used, and its validation curve for TensorBoard."""
    from perpgym.agents.artifact import load_artifact

    trials = curves(TrialLog(folder.trials).read())[(config_hash, seed)]
    logged, kept = {int(t["step"]) for t in trials}, folder.policy_steps(seed)
    if logged != kept:
        raise RunError(
            f"the choice is made from every checkpoint, but {folder.trials.name} and {folder.seed(seed)} "
            f"differ in steps {sorted(logged ^ kept)}: restore what was deleted, or delete "
            f"{folder.seed(seed)}, and resuming trains the seed again"
        )
    best, last = choose_step(trials), int(trials[-1]["step"])
    result = validate(load_artifact(folder.policy(seed, best)).policy, market)
    _write_curves(folder.tensorboard / f"seed_{seed}_best_on_validation", result)
    selection: dict[str, Any] = {
        "best": best,
        "last": last,
        "rule": "best three-checkpoint mean of net log growth on validation",
    }
    if budget is not None:
        selection["seconds"] = round(budget.spent, 1)
    write_atomically({folder.selection(seed): (json.dumps(selection, indent=1) + "\n").encode()})


def _write_curves(folder: Path, result: BacktestResult) -> None:
    """Equity, drawdown, exposure and running costs over the validation period; the step is the bar."""
    logger = configure(str(folder), ["tensorboard"])
    initial = float(result.equity[0])
    series = {
        "equity": result.equity[1:],
        "drawdown": result.column("drawdown"),
        "exposure": result.column("exposure"),
        **_exposures(result),
        "fees": np.cumsum(result.column("fees")) / initial,
        "funding": np.cumsum(result.column("funding")) / initial,
        "turnover": np.cumsum(result.column("traded_notional")) / initial,
        "liquidations": np.cumsum(result.column("liquidated")),
    }
    bars = result.equity.size - 1
    for bar in np.unique(np.linspace(0, bars - 1, min(bars, _CURVE_POINTS)).astype(int)):
        for name, values in series.items():
            logger.record(f"trading/{name}", float(values[bar]))
        logger.dump(int(bar))
    logger.close()


def _exposures(result: BacktestResult) -> dict[str, NDArray[np.float64]]:
    """Of several contracts, that of each."""
    if len(result.contracts) == 1:
        return {}
    columns = result.contract_column("exposure").T
    names = [base(contract.symbol) for contract in result.contracts]
    return {f"exposure_{name}": column for name, column in zip(names, columns, strict=True)}


@contextmanager
def stop_on_interrupt(watcher: CheckpointCallback) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) finishes the rollout and saves; the second one stops at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if watcher.is_stop_requested:
            raise KeyboardInterrupt
        watcher.is_stop_requested = True
        _LOG.warning("stopping after this rollout; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

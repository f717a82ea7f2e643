"""Runs an agent beside everything that it must be compared with, over one period."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from perpgym.agents.baselines import Hold, standard_baselines
from perpgym.agents.protocol import Agent
from perpgym.data.tape import Tape
from perpgym.envs.config import EnvConfig
from perpgym.envs.risk.limits import RiskLimits
from perpgym.evaluation.backtest import BacktestResult, Draws, matched_random, run_backtest, run_draws

# (what is being done, done, in all)
Stages = Callable[[str, int, int], None]
Role = Literal["agent", "baseline", "oracle"]
HOLD = "Buy and hold"
UNLIMITED_HOLD = "Buy and hold, no stops"


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Everything that was run over one period.

    Attributes:
        results: in the order of the report's table.
        roles: by name.
        headline: name of the agent that the verdict is about.
        draws: random timing of the headline agent, None if there were none.
        start_bar, end_bar: as in :func:`run_backtest`.
    """

    results: tuple[BacktestResult, ...]
    roles: Mapping[str, Role]
    headline: str
    draws: Draws | None
    start_bar: int
    end_bar: int

    def result(self, name: str) -> BacktestResult:
        """The result of one name.

        Raises:
            KeyError: nobody has it.
        """
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"no result is called {name!r}; there are {', '.join(r.name for r in self.results)}")


def compare(
    agents: Sequence[Agent],
    tape: Tape,
    *,
    start_bar: int,
    end_bar: int,
    config: EnvConfig,
    limits: RiskLimits,
    oracle: Agent | None = None,
    random_draws: int = 200,
    seed: int = 0,
    progress: Stages | None = None,
) -> Comparison:
    """Run agents, baselines, the oracle and random timing over one period.

    Buy and hold is run twice: under the account's own limits, as the agents are, and without drawdown stop
    and daily loss limit, as a holder would.

    Args:
        agents: usually trained ones, with distinct names; the first is the one that the verdict is about.
        tape: the market.
        start_bar, end_bar, config, limits: as in :func:`run_backtest`.
        oracle: on a simulated market, the agent that sees the planted edge.
        random_draws: number of random-timing accounts; 0 for none.
        seed: of the draws.
        progress: called with (what is running, bars booked, bars in all).
    """
    if not agents:
        raise ValueError("compare needs at least one agent; the first is the one that is judged")
    judged = {agent.name for agent in agents}
    # a baseline may be the one that is judged
    baselines = [
        b for b in standard_baselines(config, n_contracts=len(tape.contracts)) if b.name not in judged
    ]
    everyone = [*agents, *baselines, *([oracle] if oracle is not None else [])]
    names = [agent.name for agent in everyone]
    if len(set(names)) < len(names):
        raise ValueError(f"agents need distinct names, were {', '.join(names)}")
    results = run_backtest(
        everyone,
        tape,
        start_bar=start_bar,
        end_bar=end_bar,
        config=config,
        limits=limits,
        progress=_named(progress, f"backtest of {len(everyone)} accounts side by side, bars"),
    )
    holder = run_backtest(
        [Hold(config, exposure=1.0, name=UNLIMITED_HOLD)],
        tape,
        start_bar=start_bar,
        end_bar=end_bar,
        config=replace(config, max_drawdown=1.0, stop_loss=None, take_profit=None),
        limits=RiskLimits(max_leverage=limits.max_leverage, max_daily_loss=None),
        progress=_named(progress, f"backtest of {UNLIMITED_HOLD.lower()}, bars"),
    )
    draws = None
    if random_draws and results[0].column("traded_notional").any():
        draws = run_draws(
            matched_random(results[0], config=config, start_bar=start_bar, draws=random_draws, seed=seed),
            tape,
            start_bar=start_bar,
            end_bar=end_bar,
            config=config,
            limits=limits,
            progress=_named(progress, f"backtest of {random_draws} accounts of random timing, bars"),
        )
    roles: dict[str, Role] = dict.fromkeys([a.name for a in agents], "agent")
    roles |= dict.fromkeys([*(b.name for b in baselines), UNLIMITED_HOLD], "baseline")
    if oracle is not None:
        roles[oracle.name] = "oracle"
    return Comparison(
        results=_with_holder(results, holder[0]),
        roles=roles,
        headline=agents[0].name,
        draws=draws,
        start_bar=start_bar,
        end_bar=end_bar,
    )


def _with_holder(results: list[BacktestResult], holder: BacktestResult) -> tuple[BacktestResult, ...]:
    place = next(i for i, r in enumerate(results) if r.name == HOLD) + 1
    return (*results[:place], holder, *results[place:])


def _named(progress: Stages | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)

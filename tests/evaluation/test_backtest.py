"""A backtest is the env, driven: same money, one account each, flat after its end."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from perpgym.agents.baselines import Flat, Hold, MovingAverageCross, standard_baselines
from perpgym.data.tape import Tape
from perpgym.envs.actions import exposure_to_action
from perpgym.envs.config import EnvConfig
from perpgym.envs.risk.limits import RiskLimits
from perpgym.envs.spaces import CONTRACT_LEDGER_COLUMNS, LEDGER, LEDGER_COLUMNS
from perpgym.evaluation.backtest import close_books, matched_random, run_backtest, run_draws
from perpgym.evaluation.by_contract import all_trades

TapeFactory = Callable[..., Tape]
CONFIG = EnvConfig(window_bars=1)
LIMITS = RiskLimits(max_daily_loss=None)


class Coin:
    """Long, short or flat by a seeded coin, for some bars each."""

    def __init__(self, config: EnvConfig, *, seed: int, name: str = "coin", hold: int = 10) -> None:
        self.name = name
        self.config = config
        self.sides = np.repeat(np.random.default_rng(seed).integers(-1, 2, 2_000), hold)

    def act(self, tape, bar, account, portfolio):  # type: ignore[no-untyped-def]
        wanted = np.full(account.shape[0], float(self.sides[bar]))
        return exposure_to_action(wanted, action=self.config.action, max_exposure=self.config.max_exposure)


def _run(agents, tape, config=CONFIG, start=100, end=None):  # type: ignore[no-untyped-def]
    return run_backtest(agents, tape, start_bar=start, end_bar=end or len(tape), config=config, limits=LIMITS)


def test_the_flat_account_keeps_its_money(make_tape: TapeFactory) -> None:
    result = _run([Flat(CONFIG)], make_tape())[0]
    assert (result.equity == 1e6).all()
    assert not result.column("traded_notional").any()


def test_a_period_books_the_bars_after_its_first_decision(make_tape: TapeFactory) -> None:
    tape = make_tape()
    result = _run([Flat(CONFIG)], tape, start=100, end=300)[0]
    assert result.open_time_ms[0] == tape.open_time_ms[101]
    assert result.open_time_ms[-1] == tape.open_time_ms[299]
    assert result.equity.shape == (200,)
    assert result.close_time_ms[0] == tape.open_time_ms[101]
    assert result.mark_close[0, 0] == tape.mark[100, 0, 3]


def test_buy_and_hold_earns_the_price_less_its_costs(make_tape: TapeFactory) -> None:
    closes = np.linspace(30_000.0, 33_000.0, 400)
    result = _run([Hold(CONFIG, exposure=1.0)], make_tape(closes, funding_rate=0.0))[0]
    assert result.column("fills").sum() == 1
    quantity = result.column("position")[-1]
    costs = sum(result.column(name).sum() for name in ("fees", "spread", "impact"))
    gain = quantity * (result.mark_close[-1, 0] - result.mark_close[0, 0])
    assert result.equity[-1] - 1e6 == pytest.approx(gain - costs, abs=1e-6)
    assert quantity == pytest.approx(1e6 / result.mark_close[0, 0], abs=0.001)


@pytest.mark.parametrize("action", ["band", "target"])
def test_books_balance_bar_by_bar_and_trade_by_trade(make_tape: TapeFactory, action: str) -> None:
    config = EnvConfig(window_bars=1, action=action)
    tape = make_tape(bars=1_500, funding_rate=3e-4, mark_basis=2e-4)
    agents = [*standard_baselines(config), Coin(config, seed=1)]
    for result in _run(agents, tape, config, start=700):
        ledger = result.ledger
        signed = {"price_pnl": 1, "funding": 1, "insurance": 1, "fees": -1, "clearance": -1, "spread": -1}
        total = sum(sign * ledger[:, LEDGER[name]] for name, sign in signed.items())
        total -= ledger[:, LEDGER["impact"]]
        assert np.diff(result.equity) == pytest.approx(total, abs=1e-6)
        trades = all_trades(result)
        assert trades.profit.sum() == pytest.approx(result.equity[-1] - result.equity[0], abs=1e-4)
        assert trades.holding_bars.sum() == np.count_nonzero(result.column("position"))


def test_accounts_beside_one_another_do_not_touch(make_tape: TapeFactory) -> None:
    tape = make_tape()
    together = _run([Coin(CONFIG, seed=1, name="a"), Coin(CONFIG, seed=2, name="b")], tape)
    alone = _run([Coin(CONFIG, seed=2, name="b")], tape)[0]
    np.testing.assert_array_equal(together[1].equity, alone.equity)
    np.testing.assert_array_equal(together[1].ledger, alone.ledger)


def test_an_account_that_hit_the_drawdown_stop_is_flat_from_then_on(make_tape: TapeFactory) -> None:
    closes = np.concatenate(
        (np.full(150, 30_000.0), np.linspace(30_000.0, 18_000.0, 100), np.full(150, 40_000.0))
    )
    held, flat = _run([Hold(CONFIG, exposure=1.0), Flat(CONFIG)], make_tape(closes), start=50)
    assert held.end_reason == "drawdown stop"
    assert held.ended_at is not None
    after = slice(held.ended_at + 1, None)
    assert (held.equity[after] == held.equity[-1]).all()
    assert not held.column("position")[after].any()
    assert not held.column("exposure")[after].any()
    assert held.equity[-1] < 0.71e6
    # the env gave the account a new life; nothing of it is in the books, nor in the other account's
    assert flat.ended_at is None
    assert (flat.equity == 1e6).all()


def test_a_liquidation_is_named(make_tape: TapeFactory) -> None:
    config = EnvConfig(window_bars=1, max_exposure=10.0, max_drawdown=1.0)
    closes = np.concatenate((np.full(150, 30_000.0), np.full(50, 24_000.0)))
    tape = make_tape(closes, volume=50_000.0)
    agent = Hold(config, exposure=8.0)
    result = run_backtest(
        [agent], tape, start_bar=50, end_bar=200, config=config, limits=RiskLimits(max_leverage=10.0)
    )[0]
    assert result.end_reason == "liquidation"
    assert result.column("liquidated").sum() == 1
    assert result.equity[-1] < 0.2e6


def test_books_after_the_end_are_blank_whatever_the_env_booked_there(make_tape: TapeFactory) -> None:
    ledger = np.full((4, len(LEDGER_COLUMNS)), 7.0)
    ledger[:, LEDGER["equity"]] = [90.0, 50.0, 100.0, 120.0]
    ledger[:, LEDGER["equity_before"]] = [100.0, 90.0, 100.0, 100.0]
    holdings = np.full((4, 1, len(CONTRACT_LEDGER_COLUMNS)), 7.0)
    actions = np.ones((4, 2), np.float32)
    result = close_books("x", make_tape(bars=9), 2, ledger, holdings, actions, (1, "drawdown stop"))
    assert result.equity.tolist() == [100.0, 90.0, 50.0, 50.0, 50.0]
    assert result.column("fees").tolist() == [7.0, 7.0, 0.0, 0.0]
    assert not result.column("fill_price")[2:].any()
    assert result.contract_column("profit")[:, 0].tolist() == [7.0, 7.0, 0.0, 0.0]
    assert not result.contract_column("fill_price")[2:].any()
    assert not result.actions[2:].any()


def test_a_period_without_room_for_its_look_back_is_refused(make_tape: TapeFactory) -> None:
    tape = make_tape()
    config = EnvConfig(window_bars=63)
    with pytest.raises(ValueError, match="start_bar >= 62"):
        _run([Flat(config)], tape, config, start=10)
    with pytest.raises(ValueError, match="between start_bar"):
        _run([Flat(CONFIG)], tape, start=100, end=len(tape) + 1)
    with pytest.raises(ValueError, match="at least one agent"):
        _run([], tape)


def test_progress_is_told_after_every_bar(make_tape: TapeFactory) -> None:
    seen: list[tuple[int, int]] = []
    run_backtest(
        [Flat(CONFIG)],
        make_tape(),
        start_bar=100,
        end_bar=104,
        config=CONFIG,
        limits=LIMITS,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def _draws(result, tape, *, draws=60, seed=0, start=100):  # type: ignore[no-untyped-def]
    timing = matched_random(result, config=CONFIG, start_bar=start, draws=draws, seed=seed)
    return run_draws(timing, tape, start_bar=start, end_bar=len(tape), config=CONFIG, limits=LIMITS)


def test_random_draws_trade_as_much_as_the_agent_did(make_tape: TapeFactory) -> None:
    tape = make_tape(bars=2_000, sigma=0.003)
    result = _run([Coin(CONFIG, seed=3)], tape)[0]
    assert result.ended_at is None
    draws = _draws(result, tape)
    days = len(result.open_time_ms) / 24
    own = (result.column("traded_notional") / result.column("equity_before")).sum() / days
    assert draws.turnover_per_day.mean() == pytest.approx(own, rel=0.02)
    assert np.abs(draws.turnover_per_day / own - 1).max() < 0.1
    assert draws.equity.shape == (result.equity.shape[0], 60)


def test_one_position_throughout_has_no_timing_and_every_draw_equals_it(make_tape: TapeFactory) -> None:
    tape = make_tape(funding_rate=0.0)
    result = _run([Hold(CONFIG, exposure=1.0)], tape)[0]
    assert result.ended_at is None
    draws = _draws(result, tape, draws=5)
    for i in range(5):
        np.testing.assert_allclose(draws.equity[:, i], result.equity, rtol=1e-6)


def test_an_agent_that_knows_the_future_beats_its_random_draws(make_tape: TapeFactory) -> None:
    tape = make_tape(bars=1_500)

    class Prophet(Coin):
        def act(self, tape, bar, account, portfolio):  # type: ignore[no-untyped-def]
            ahead = min(len(tape) - 1, (bar // 24 + 1) * 24)
            self.sides[bar] = np.sign(tape.last[ahead, 0, 3] - tape.last[bar // 24 * 24, 0, 3])
            return super().act(tape, bar, account, portfolio)

    result = _run([Prophet(CONFIG, seed=0)], tape, start=96)[0]
    draws = _draws(result, tape, start=96)
    assert (draws.equity[-1] < result.equity[-1]).all()
    # the negative control: a coin is among its own draws
    coin = _run([Coin(CONFIG, seed=5)], tape, start=96)[0]
    spread = _draws(coin, tape, start=96).equity[-1]
    assert spread.min() < coin.equity[-1] < spread.max()


def test_the_moving_average_trades_at_crossings_only(make_tape: TapeFactory) -> None:
    tape = make_tape(bars=2_000, sigma=0.002)
    result = _run([MovingAverageCross(CONFIG)], tape, start=600)[0]
    turns = np.count_nonzero(np.diff(np.sign(result.column("position"))))
    assert result.column("fills").sum() == turns + 1
    assert math.isfinite(result.equity[-1])

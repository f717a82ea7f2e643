"""Transient and permanent impact: what a fill leaves, how it fades, and that nobody earns from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpgym.data.contract import Contract
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.envs.impact_model import ImpactModel, power_law_kernel, trailing_turnover
from perpgym.envs.spaces import ACCOUNT_NAMES, LEDGER

MakeTape = Callable[..., Tape]
FREE = RiskLimits(max_leverage=150.0, max_daily_loss=None)
SIGMA, VOLUME, PRICE = 0.006, 5_000.0, 30_000.0
# a bar's volatility over its turnover, in days: sqrt of an hour's share of a day
SCALE = SIGMA / (VOLUME * PRICE) * math.sqrt(1 / 24)


class Run:
    """One account of 1,000,000 on a market, told its exposure; nothing costs but the trace."""

    def __init__(self, tape: Tape, impact: ImpactModel, **changed: Any) -> None:
        free: dict[str, Any] = {
            "action": "target", "max_exposure": 8.0, "window_bars": 1, "half_spread_bps": 0.0,
            "impact_coefficient": 0.0, "taker_rate": 0.0, "rebalance_threshold": 0.0, "rounding": "off",
            "max_participation": 1.0, "max_drawdown": 1.0,
        }  # fmt: skip
        config = EnvConfig(**free | changed, impact=impact)
        self.env = PerpVecEnv(tape, n_paths=1, config=config, limits=FREE)
        self.out = self.env.make_buffers()
        self.env.reset_into(self.out, 0)

    def step(self, exposure: float) -> dict[str, float]:
        self.env.step_into(np.array([[exposure / 8.0]], np.float32), self.out)
        return {name: float(self.out.ledger[0, i]) for name, i in LEDGER.items()}

    @property
    def standing(self) -> float:
        """The observed shift, a fraction of the price."""
        return float(self.out.account[0, 0, ACCOUNT_NAMES.index("impact")]) / 100.0


def flat(make_tape: MakeTape, bars: int = 12, **changed: Any) -> Tape:
    return make_tape(np.full(bars, PRICE), wick=0.0, funding_rate=0.0, sigma=SIGMA, volume=VOLUME, **changed)


def test_a_fill_pays_half_of_its_push_and_leaves_the_whole(make_tape: MakeTape) -> None:
    run = Run(flat(make_tape), ImpactModel(kind="exponential", transient_coefficient=40.0))
    row = run.step(2.0)
    push = 40.0 * SCALE * 2_000_000
    assert row["impact"] == pytest.approx(2_000_000 * push / 2, rel=1e-9)
    # an hour is one half-life, but it has only begun when the bar ends: it fades at the next open
    assert run.standing == pytest.approx(push, rel=1e-6)


def test_the_push_fades_with_time_whether_or_not_anybody_trades(make_tape: MakeTape) -> None:
    model = ImpactModel(kind="exponential", transient_coefficient=40.0, half_life_minutes=120.0)
    run = Run(flat(make_tape), model, rebalance_threshold=0.05)
    run.step(2.0)
    first = run.standing
    for bars in range(1, 6):
        assert run.step(2.0)["fills"] == 0.0
        assert run.standing == pytest.approx(first * 0.5 ** (bars / 2), rel=1e-6)


def test_selling_into_its_own_push_gives_back_and_buying_more_pays_more(make_tape: MakeTape) -> None:
    model = ImpactModel(kind="permanent", permanent_coefficient=40.0)
    push = 40.0 * SCALE * 2_000_000
    more, less = Run(flat(make_tape), model), Run(flat(make_tape), model)
    for run in (more, less):
        run.step(2.0)
    again, back = more.step(4.0), less.step(0.0)
    # about 2,000,000 more at the whole push and half of its own; equity is a little less than it was
    assert again["impact"] / again["traded_notional"] == pytest.approx(1.5 * push, rel=2e-3)
    assert back["impact"] == pytest.approx(-2_000_000 * push / 2, rel=1e-6)
    # where nothing fades a round trip costs nothing and leaves nothing
    assert less.standing == pytest.approx(0.0, abs=1e-12)


def test_what_faded_in_between_is_the_price_of_a_round_trip(make_tape: MakeTape) -> None:
    model = ImpactModel(kind="exponential", transient_coefficient=40.0, half_life_minutes=60.0)
    run = Run(flat(make_tape), model)
    run.step(2.0)
    run.step(0.0)
    push = 40.0 * SCALE * 2_000_000
    # bought at + push / 2; half of the push is left when it sells at push / 2 - push / 2
    costs = 2_000_000 * (push / 2 - push / 2 + push / 2)
    assert run.env.totals(run.out)[0, 5] == pytest.approx(costs, rel=1e-3)
    assert run.standing == pytest.approx(0.5 * push - push, rel=1e-3)


def test_permanent_impact_stays(make_tape: MakeTape) -> None:
    run = Run(flat(make_tape), ImpactModel(kind="permanent", permanent_coefficient=40.0))
    run.step(2.0)
    first = run.standing
    for _ in range(5):
        run.step(2.0)
    assert run.standing == pytest.approx(first, rel=1e-2)
    assert first == pytest.approx(40.0 * SCALE * 2_000_000, rel=1e-6)


def test_without_a_trace_the_model_changes_nothing_at_all(make_tape: MakeTape) -> None:
    tape, rows = make_tape(), []
    for impact in (ImpactModel(), ImpactModel(kind="exponential", transient_coefficient=0.0)):
        run = Run(tape, impact, impact_coefficient=1.0, half_spread_bps=1.0)
        rng = np.random.default_rng(0)
        rows.append([run.step(float(rng.uniform(-5, 5))) for _ in range(100)])
    assert rows[0] == rows[1]


def test_own_impact_moves_fills_and_never_marks(make_tape: MakeTape) -> None:
    tape = flat(make_tape)
    before = tape.mark.copy()
    run = Run(tape, ImpactModel(kind="exponential", transient_coefficient=40.0))
    row = run.step(2.0)
    assert (tape.mark == before).all()
    assert row["price_pnl"] == 0.0
    assert row["equity"] - row["equity_before"] == pytest.approx(-row["impact"])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["exponential", "power_law", "permanent"]),
    inverse=st.booleans(),
)
def test_no_sequence_of_fills_earns_from_its_own_impact_on_any_tape(
    make_tape: MakeTape, contract: Contract, seed: int, kind: Any, inverse: bool
) -> None:
    """Turnover, volatility and price all move; the account trades at random, and at every bar it has paid."""
    rng = np.random.default_rng(seed)
    rules = Contract.from_json(contract.to_json() | {"kind": "inverse" if inverse else "linear"})
    tape = make_tape(bars=40, seed=seed, sigma=0.03, rules=rules)
    object.__setattr__(tape, "volume", 5_000.0 * np.exp(rng.normal(0.0, 2.0, tape.volume.shape)))
    object.__setattr__(tape, "sigma_per_bar", 0.01 * np.exp(rng.normal(0.0, 1.0, tape.volume.shape)))
    model = ImpactModel(
        kind=kind, transient_coefficient=30.0, permanent_coefficient=float(rng.choice([0.0, 10.0])),
        half_life_minutes=float(rng.choice([5.0, 60.0, 1_000.0])), turnover_days=0.2,
    )  # fmt: skip
    wallet = 20.0 if inverse else 1_000_000.0
    run = Run(
        tape, model, initial_wallet=wallet, sizing="fixed_notional", limits="off", max_participation=1.0
    )
    for _ in range(30):
        run.step(float(rng.uniform(-8, 8)))
        assert run.env.totals(run.out)[0, 5] >= -1e-9 * wallet


def test_a_push_that_follows_the_turnover_of_the_moment_would_pay(make_tape: MakeTape) -> None:
    """The rule that is broken here on purpose: push by sigma / V when filled, read the push as it is."""

    def paid(root_then: float, root_now: float, *, reads_raw_push: bool) -> float:
        # buy 1 in one market, sell 1 in the other; nothing fades
        push = root_then * root_then if reads_raw_push else root_then * root_now
        return 0.5 * root_then**2 - push + 0.5 * root_now**2

    # thin, then thick
    assert paid(2.0, 1.0, reads_raw_push=True) < 0.0
    assert paid(2.0, 1.0, reads_raw_push=False) >= 0.0


def test_three_exponentials_follow_the_power_law_within_a_twelfth_over_ten_days() -> None:
    minutes = np.geomspace(1.0, 14_400.0, 500)
    for power in (0.2, 0.35, 0.5):
        kernel = power_law_kernel(power)
        error = kernel(minutes) / (1.0 + minutes / 60.0) ** -power - 1.0
        assert np.abs(error).max() < 1.0 / 12.0
        assert sum(kernel.weights) == pytest.approx(1.0)
        assert min(kernel.weights) >= 0.0


def test_usual_turnover_is_known_at_the_close_and_forgets() -> None:
    turnover = np.array([[10.0], [0.0], [30.0], [50.0]])
    # bars that did not trade do not count
    assert trailing_turnover(turnover, 2)[:, 0].tolist() == [10.0, 10.0, 30.0, 40.0]
    later = turnover.copy()
    later[3] = 1e9
    assert (trailing_turnover(turnover, 2)[:3] == trailing_turnover(later, 2)[:3]).all()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "magic"}, "kind must be one of"),
        ({"transient_coefficient": -1.0}, "pay for trading"),
        ({"half_life_minutes": 0.0}, "half_life_minutes"),
        ({"power": 2.0}, "no steeper law"),
    ],
)
def test_impossible_impact_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ImpactModel(**changed)


def test_a_file_may_give_the_model_as_plain_types() -> None:
    config = EnvConfig(impact={"kind": "power_law", "power": 0.4})  # type: ignore[arg-type]
    assert config.impact == ImpactModel(kind="power_law", power=0.4)

"""The four kinds of action: what each asks for, what stands, what is forbidden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_sb3_env

from perpgym.data.contract import Bracket, Contract
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, PerpVecEnv, RiskLimits
from perpgym.envs.actions import ACTION_KINDS, exposure_to_action
from perpgym.envs.orders import PARTICIPATION
from perpgym.envs.spaces import ACCOUNT_NAMES, CONTRACT_LEDGER, LEDGER

MakeTape = Callable[..., Tape]
FREE = RiskLimits(max_leverage=150.0, max_daily_loss=None)
LADDER = (-1.0, -0.5, 0.0, 0.5, 1.0)
HOLD, LONG, SHORT, FLAT = range(4)


class Run:
    """One account that is told its action, bar after bar."""

    def __init__(self, tape: Tape, limits: RiskLimits = FREE, **settings: Any) -> None:
        defaults: dict[str, Any] = {
            "max_exposure": 2.0, "window_bars": 1, "half_spread_bps": 0.0, "impact_coefficient": 0.0,
            "taker_rate": 0.0, "ladder": LADDER, "head_sizes": (0.25, 0.5, 1.0), "head_stops": (0.0, 2.0),
            "head_styles": ("market", "limit"), "max_participation": 1.0,
        }  # fmt: skip
        self.env = PerpVecEnv(tape, n_paths=1, config=EnvConfig(**defaults | settings), limits=limits)
        self.out = self.env.make_buffers()
        self.env.reset_into(self.out, 0)

    def step(self, *action: float) -> dict[str, float]:
        self.env.step_into(np.array([action], np.float32), self.out)
        row = {name: float(self.out.ledger[0, i]) for name, i in LEDGER.items()}
        return row | {name: float(self.out.holdings[0, 0, i]) for name, i in CONTRACT_LEDGER.items()}

    def seen(self, name: str) -> float:
        return float(self.out.account[0, 0, ACCOUNT_NAMES.index(name)])

    def mask(self) -> list[bool]:
        return [bool(allowed) for allowed in self.env.action_masks()[0]]


def flat(make_tape: MakeTape, bars: int = 12, **settings: Any) -> Tape:
    return make_tape(np.full(bars, 30_000.0), wick=0.0, funding_rate=0.0, **settings)


def rising(make_tape: MakeTape) -> Tape:
    return make_tape(30_000.0 * 1.05 ** np.arange(12), wick=0.0, funding_rate=0.0)


# --- spaces ---


def test_each_kind_has_the_space_that_algorithms_expect(make_tape: MakeTape) -> None:
    spaces = {kind: Run(flat(make_tape), action=kind).env.single_action_space for kind in ACTION_KINDS}
    assert spaces["target"].shape == (1,)
    assert spaces["band"].shape == (2,)
    assert spaces["ladder"] == gym.spaces.Discrete(5)
    assert spaces["heads"] == gym.spaces.MultiDiscrete([4, 3, 2, 2])


@pytest.mark.parametrize("kind", ACTION_KINDS)
@pytest.mark.filterwarnings("ignore:.*Box observation space.*:UserWarning")
def test_the_checkers_of_gymnasium_and_sb3_accept_every_kind(make_tape: MakeTape, kind: Any) -> None:
    env = PerpEnv(make_tape(), config=EnvConfig(action=kind, window_bars=8, episode_bars=30))
    check_env(env, skip_render_check=True)
    check_sb3_env(env, warn=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ladder": (-1.0, 1.0)}, "level 0"),
        ({"ladder": (0.0, 2.0)}, "between -1 and 1"),
        ({"ladder": (0.5, 0.0)}, "ascend"),
        ({"head_sizes": ()}, "head_sizes"),
        ({"head_stops": (-1.0,)}, "head_stops"),
        ({"head_styles": ("market", "magic")}, "head_styles must be"),
    ],
)
def test_impossible_choices_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EnvConfig(**settings)


@pytest.mark.parametrize("action", [5.0, -1.0, 0.5, np.nan])
def test_an_index_that_is_no_choice_is_refused_before_anything_is_booked(
    make_tape: MakeTape, action: float
) -> None:
    run = Run(flat(make_tape), action="ladder")
    before = run.out.bar.copy()
    with pytest.raises(ValueError, match="nothing was booked"):
        run.step(action)
    assert run.step(2.0)["position"] == 0.0
    assert run.out.bar == before + 1


def test_an_exposure_asks_for_the_nearest_choice() -> None:
    ask = {"max_exposure": 2.0}
    assert exposure_to_action(np.array([0.9]), action="ladder", levels=LADDER, **ask).tolist() == [[3.0]]
    sizes = (0.25, 0.5, 1.0)
    wished = np.array([2.0, -0.6, 0.1])
    heads = exposure_to_action(wished, action="heads", levels=sizes, **ask)
    assert heads.tolist() == [[LONG, 2, 0, 0], [SHORT, 0, 0, 0], [FLAT, 0, 0, 0]]


# --- ladder ---


def test_a_level_is_its_share_of_the_largest_exposure(make_tape: MakeTape) -> None:
    run = Run(flat(make_tape), action="ladder")
    exposures = [run.step(level)["exposure"] for level in range(5)]
    assert exposures == pytest.approx([-2.0, -1.0, 0.0, 1.0, 2.0], abs=1e-3)


def test_the_level_that_stands_means_no_order_however_far_exposure_drifted(make_tape: MakeTape) -> None:
    run = Run(rising(make_tape), action="ladder")
    first = run.step(3)
    rows = [run.step(3) for _ in range(5)]
    assert [row["fills"] for row in rows] == [0.0] * 5
    assert {row["position"] for row in rows} == {first["position"]}
    assert run.seen("asked") == 1.0
    # an exposure of 1 does not drift; one of -1 does
    run = Run(rising(make_tape), action="ladder")
    run.step(1)
    assert [run.step(1)["fills"] for _ in range(3)] == [0.0] * 3
    assert run.seen("exposure") < -1.3
    assert run.seen("asked") == -1.0


def test_the_same_tape_with_a_target_and_no_threshold_holds_exposure_instead(make_tape: MakeTape) -> None:
    run = Run(rising(make_tape), action="target", rebalance_threshold=0.0)
    rows = [run.step(-0.5) for _ in range(6)]
    assert min(row["fills"] for row in rows) == 1.0
    # marked after a rise of 5 %, from an exposure of -1 at the decision
    assert rows[-1]["exposure"] == pytest.approx(-1.05 / 0.95, rel=1e-3)


def test_a_level_that_the_volume_cut_does_not_stand_and_is_asked_for_again(make_tape: MakeTape) -> None:
    # 1,000,000 asks for 66.7; 30 a bar are admitted
    run = Run(flat(make_tape, volume=30.0), action="ladder")
    rows = [run.step(4) for _ in range(4)]
    assert [row["position"] for row in rows] == pytest.approx([30.0, 60.0, 66.666, 66.666])
    assert [int(row["reason"]) for row in rows] == [PARTICIPATION, PARTICIPATION, 0, 0]
    assert run.seen("asked") == 2.0


def test_a_level_that_a_limit_shrank_does_not_stand(make_tape: MakeTape) -> None:
    run = Run(flat(make_tape), RiskLimits(max_leverage=1.5), action="ladder")
    assert run.step(4)["exposure"] == pytest.approx(1.5, abs=1e-3)
    assert run.seen("asked") == pytest.approx(1.5, abs=1e-3)


def test_after_a_stop_the_same_level_opens_anew(make_tape: MakeTape) -> None:
    closes = np.array([30_000.0, 30_000, 29_000, 29_000, 29_000, 29_000])
    run = Run(make_tape(closes, wick=0.0, funding_rate=0.0), action="ladder", stop_loss=0.02)
    run.step(3)
    assert run.step(3)["stopped"] == 1.0
    assert run.seen("asked") == 0.0
    assert run.step(3)["position"] > 0.0


# --- heads ---


def test_heads_decide_side_and_size_and_hold_keeps_the_quantity(make_tape: MakeTape) -> None:
    run = Run(rising(make_tape), action="heads")
    long = run.step(LONG, 1, 0, 0)
    assert long["position"] == pytest.approx(1_000_000 / 30_000, abs=1e-3)
    assert [run.step(HOLD, 2, 0, 0)["position"] for _ in range(3)] == [long["position"]] * 3
    assert run.step(SHORT, 0, 0, 0)["exposure"] == pytest.approx(-0.5, rel=0.1)
    assert run.step(FLAT, 0, 0, 0)["position"] == 0.0


def test_heads_choose_the_stop_of_the_order(make_tape: MakeTape) -> None:
    run = Run(flat(make_tape, sigma=0.006), action="heads")
    run.step(LONG, 0, 1, 0)
    assert run.seen("stop_distance") == pytest.approx(2 * 0.006, rel=1e-3)
    run = Run(flat(make_tape, sigma=0.006), action="heads", stop_loss=0.05)
    run.step(LONG, 0, 0, 0)
    assert run.seen("stop_distance") == pytest.approx(0.05, rel=1e-3)
    # the tighter of the two
    run = Run(flat(make_tape, sigma=0.006), action="heads", stop_loss=0.001)
    run.step(LONG, 0, 1, 0)
    assert run.seen("stop_distance") == pytest.approx(0.001, rel=0.05)


def test_heads_choose_the_execution_style_of_each_order(make_tape: MakeTape) -> None:
    settings: dict[str, Any] = {
        "action": "heads", "half_spread_bps": 5.0, "taker_rate": 0.0005, "maker_rate": 0.0001,
    }  # fmt: skip
    tape = make_tape(np.full(12, 30_000.0), wick=0.004, funding_rate=0.0)
    at_market = Run(tape, **settings).step(LONG, 0, 0, 0)
    resting = Run(tape, **settings).step(LONG, 0, 0, 1)
    assert at_market["fill_price"] == 30_015.0
    assert at_market["fees"] == pytest.approx(0.0005 * at_market["traded_notional"])
    # behind the last close by a basis point, as a maker
    assert resting["fill_price"] == 29_997.0
    assert resting["fees"] == pytest.approx(0.0001 * resting["traded_notional"])
    both = Run(tape, **settings)
    rows = [both.step(LONG, 0, 0, 1), both.step(LONG, 2, 0, 0), both.step(FLAT, 0, 0, 1)]
    assert [row["spread"] > 0.0 for row in rows] == [False, True, False]


# --- masks ---


def test_continuous_actions_have_no_masks(make_tape: MakeTape) -> None:
    with pytest.raises(ValueError, match="ladder or heads"):
        Run(flat(make_tape), action="band").mask()


def test_everything_is_allowed_where_nothing_forbids_it(make_tape: MakeTape) -> None:
    assert Run(flat(make_tape), action="ladder").mask() == [True] * 5
    # there is nothing to close
    assert Run(flat(make_tape), action="heads").mask() == [True, True, True, False] + [True] * 7


def test_levels_beyond_a_limit_are_masked_but_reducing_never_is(make_tape: MakeTape) -> None:
    limits = RiskLimits(max_leverage=1.2, max_daily_loss=None)
    run = Run(flat(make_tape), limits, action="ladder")
    assert run.mask() == [False, True, True, True, False]
    # an account above its limit may still come down, on its own side
    held = Run(flat(make_tape), RiskLimits(max_leverage=0.4), action="ladder", initial_exposure=1.5)
    assert held.mask() == [False, False, True, True, False]


def test_a_position_beyond_the_brackets_is_masked(make_tape: MakeTape) -> None:
    rules = Contract(
        symbol="SMALL", tick_size=0.1, lot_size=0.001, min_quantity=0.001, min_notional=5.0,
        brackets=(
            Bracket(
                floor=0.0, cap=1_100_000.0, maintenance_margin_rate=0.01, cum=0.0, max_leverage=20.0
            ),
        ),
    )  # fmt: skip
    run = Run(flat(make_tape, rules=rules), action="ladder")
    assert run.mask() == [False, True, True, True, False]


def test_initial_margin_masks_sizes_of_heads_and_leaves_the_smaller_ones(make_tape: MakeTape) -> None:
    run = Run(flat(make_tape), action="heads", leverage=2.0, max_exposure=2.0, head_sizes=(0.25, 1.0))
    run.step(LONG, 1, 0, 0)
    # 2,000,000 is the most that 1,000,000 of margin carries; a gap down would forbid more
    assert run.mask()[4:6] == [True, True]
    tight = Run(flat(make_tape), RiskLimits(max_leverage=1.0), action="heads", head_sizes=(0.25, 1.0))
    assert tight.mask()[4:6] == [True, False]


def test_a_contract_that_does_not_trade_allows_what_changes_nothing(make_tape: MakeTape) -> None:
    still = flat(make_tape, volume=0.0)
    assert Run(still, action="heads").mask()[:4] == [True, False, False, False]
    run = Run(still, action="ladder")
    assert run.mask() == [False, False, True, False, False]
    assert run.seen("tradable") == 0.0
    assert run.step(4)["position"] == 0.0


@pytest.mark.parametrize("kind", ["ladder", "heads"])
def test_an_allowed_choice_is_never_cut_by_a_limit_on_a_market_that_stands_still(
    make_tape: MakeTape, kind: Any
) -> None:
    rng = np.random.default_rng(3)
    run = Run(flat(make_tape, bars=200), RiskLimits(max_leverage=1.3), action=kind, head_styles=("market",))
    for _ in range(150):
        mask = run.mask()
        numbers, place = [], 0
        for count in run.env.config.choices:
            numbers.append(rng.choice(np.flatnonzero(mask[place : place + count])))
            place += count
        row = run.step(*numbers)
        assert (row["overlay"], row["reason"]) == (0.0, 0.0)


@pytest.mark.parametrize("leverage", [2.0, 2.02, 20.0])
@pytest.mark.parametrize(
    "costs", [{"taker_rate": 0.001}, {"half_spread_bps": 5.0}, {"impact_coefficient": 1.0}]
)
def test_an_allowed_level_is_never_cut_whatever_trading_costs(
    make_tape: MakeTape, leverage: float, costs: dict[str, float]
) -> None:
    rng = np.random.default_rng(4)
    tape = flat(make_tape, bars=100, volume=5_000.0)
    run = Run(tape, action="ladder", leverage=leverage, rounding="off", **costs)
    cut = 0
    for _ in range(60):
        mask = run.mask()
        level = rng.choice(np.flatnonzero(mask))
        assert run.step(level)["reason"] == 0.0
        cut += not all(mask)
    assert (cut > 0) == (leverage == 2.0)


def test_a_size_below_the_exchanges_smallest_is_masked_unless_it_closes(make_tape: MakeTape) -> None:
    settings = {"action": "ladder", "initial_wallet": 150.0, "max_exposure": 1.0, "leverage": 1.0}
    run = Run(flat(make_tape), **settings)
    # the contract takes no order below 100: half of 150 is less
    assert run.mask() == [True, False, True, False, True]
    assert run.step(4)["position"] == pytest.approx(0.005)


def test_the_time_stop_leaves_only_what_closes(make_tape: MakeTape) -> None:
    run = Run(flat(make_tape), action="ladder", max_bars_held=1)
    run.step(4)
    assert run.mask() == [False, False, True, False, False]
    assert run.step(2)["position"] == 0.0
    heads = Run(flat(make_tape), action="heads", max_bars_held=1)
    heads.step(LONG, 0, 0, 0)
    assert heads.mask()[:4] == [False, False, False, True]


def test_flat_calls_back_an_order_that_waits_in_the_book(make_tape: MakeTape) -> None:
    run = Run(
        flat(make_tape), action="heads", remainder="carry", head_styles=("limit",), limit_offset_bps=50.0
    )
    assert run.mask()[:4] == [True, True, True, False]
    run.step(LONG, 2, 0, 0)
    assert run.seen("asked") == pytest.approx(2.0, rel=0.01)
    assert run.mask()[FLAT]
    run.step(FLAT, 0, 0, 0)
    assert run.seen("asked") == 0.0


def test_masks_of_a_batch_are_those_of_its_accounts(make_tape: MakeTape) -> None:
    config = EnvConfig(action="ladder", window_bars=4, episode_bars=50, restart="random")
    env = PerpVecEnv(make_tape(), n_paths=2, accounts_per_path=3, config=config)
    out = env.make_buffers()
    env.reset_into(out, 1)
    rng = np.random.default_rng(0)
    for _ in range(60):
        masks = env.action_masks()
        assert masks.shape == (6, 5)
        assert masks.any(axis=1).all()
        env.step_into(rng.integers(0, 5, (6, 1)).astype(np.float32), out)


def test_maskable_ppo_trains_on_the_ladder_with_our_masks(make_tape: MakeTape) -> None:
    from sb3_contrib import MaskablePPO

    env = PerpEnv(make_tape(), config=EnvConfig(action="ladder", window_bars=4, episode_bars=30))
    model = MaskablePPO("MultiInputPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    model.learn(64)
    observation, _info = env.reset(seed=1)
    action, _state = model.predict(observation, action_masks=env.action_masks(), deterministic=True)
    assert env.action_masks()[int(action)]

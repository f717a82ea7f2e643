"""Why an order was cut, for a person: by contract in the single env's info, and in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpEnv, PerpVecEnv, reasons
from perpgym.envs.orders import BRACKET, MARGIN, NOT_REACHED, PARTICIPATION, TOO_SMALL
from perpgym.envs.reasons import REASONS
from perpgym.envs.spaces import CONTRACT_LEDGER, CONTRACT_LEDGER_COLUMNS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "mechanics.md").read_text("utf-8")
MakeTape = Callable[..., Tape]
MergeTapes = Callable[[list[Tape]], Tape]


def test_every_bit_of_the_page_has_words_and_no_other_has() -> None:
    (paragraph,) = re.findall(r"\*\*Why an order was cut\*\*.*?\n\n", PAGE, re.DOTALL)
    bits = [int(bit) for bit in re.findall(r"\b(\d+) [a-z]", paragraph)]
    assert bits == list(REASONS)


def test_a_sum_of_bits_names_each_rule() -> None:
    assert reasons(0.0) == ()
    both = reasons(float(PARTICIPATION + MARGIN))
    assert [words.split(":")[0] for words in both] == ["max_participation", "initial margin"]
    assert reasons(BRACKET)[0].startswith("bracket: ")


@pytest.mark.parametrize("code", [512.0, -1.0, 0.5])
def test_what_is_no_reason_is_refused(code: float) -> None:
    with pytest.raises(ValueError, match=r"a sum of the bits 1, 2, 4, .* was "):
        reasons(code)


@pytest.mark.parametrize(
    ("settings", "bit"),
    [
        ({"leverage": 2.0, "taker_rate": 0.01}, MARGIN),
        ({"max_participation": 1e-6, "initial_wallet": 1e6}, PARTICIPATION),
        ({"initial_wallet": 20.0}, TOO_SMALL),
        ({"execution": "limit", "limit_offset_bps": 900.0}, NOT_REACHED),
    ],
)
def test_the_info_of_a_step_says_by_contract_why_an_order_was_cut(
    make_tape: MakeTape, settings: dict[str, float], bit: int
) -> None:
    config = EnvConfig(**{"window_bars": 4, "action": "target", "rebalance_threshold": 0.0} | settings)  # type: ignore[arg-type]
    env = PerpEnv(make_tape(volume=1e7, sigma=0.001), config=config)
    env.reset(seed=0)
    *_rest, info = env.step(np.ones(1, np.float32))
    assert reasons(info["contracts"][0, CONTRACT_LEDGER["reason"]]) == (REASONS[bit],)


def test_the_single_envs_info_has_the_batchs_contract_ledger(
    make_tape: MakeTape, merge_tapes: MergeTapes
) -> None:
    tape = merge_tapes([make_tape(seed=seed) for seed in range(2)])
    config = EnvConfig(window_bars=4, action="target")
    single, batch = (
        PerpEnv(tape, config=config),
        PerpVecEnv(tape, n_paths=1, config=config, with_windows=True),
    )
    single.reset(seed=5)
    batch.reset(seed=5)
    batch.load_state_dict(single.batch.state_dict())
    kept = []
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32):
        *_rest, info = single.step(action)
        *_rest, of_batch = batch.step(action[None])
        assert info["contracts"].shape == (2, len(CONTRACT_LEDGER_COLUMNS))
        np.testing.assert_array_equal(info["contracts"], of_batch["contracts"][0])
        kept.append((info, info["contracts"].copy()))
    # an info that is kept does not change with later steps
    for info, booked in kept:
        np.testing.assert_array_equal(info["contracts"], booked)
    assert len({tuple(booked[:, CONTRACT_LEDGER["position"]]) for _info, booked in kept}) > 1


def test_an_info_equals_itself_where_nothing_filled(make_tape: MakeTape, merge_tapes: MergeTapes) -> None:
    tape = merge_tapes([make_tape(seed=seed) for seed in range(2)])
    env = PerpEnv(tape, config=EnvConfig(window_bars=4, action="target"))
    env.reset(seed=5)
    *_rest, info = env.step(np.array([0.5, 0.0], np.float32))
    prices = info["contracts"][:, CONTRACT_LEDGER["fill_price"]]
    assert prices[0] == info["fill_price"] > 0.0
    assert prices[1] == 0.0
    assert data_equivalence(info, {**info}, exact=True)
    *_rest, info = env.step(np.array([0.5, 0.0], np.float32))
    assert info["fill_price"] == 0.0
    assert data_equivalence(info, {**info}, exact=True)

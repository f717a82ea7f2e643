"""An explanation adds up to what it explains, finds what was planted, and is the decision that was taken."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perpgym.agents.trained import TrainedAgent
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, PerpVecEnv, RiskLimits
from perpgym.evaluation.decisions import Decision, replay_decision
from perpgym.evaluation.explain import Attribution, check_explainable, explain
from perpgym.evaluation.figures import draw_attribution, save_png
from perpgym.experiments.console import errors_in_words
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig
from perpgym.policies.hierarchical_quantile import HierarchicalQuantilePolicy
from perpgym.policies.hierarchy import PerpHierarchicalPolicy
from perpgym.policies.quantile import PerpQuantilePolicy
from perpgym.policies.stock import StockA2CPolicy

pytest.importorskip("captum", reason="captum is not installed")

SMALL = PolicyConfig(d_model=8, n_heads=2, band=4, risk_hidden=0, policy_hidden=(16,), value_hidden=(16,))


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=200)


def make_policy(tape: Tape, config: EnvConfig, kind: type = PerpActorCriticPolicy, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    shape = kwargs.pop("shape", SMALL)
    env = PerpVecEnv(tape, n_paths=1, config=config)
    policy = kind(
        env.single_observation_space,
        env.single_action_space,
        lambda _: 0.0,
        config=shape,
        market_scaler=fit_scaler(tape.features, 0, 150),
        risk_scaler=fit_scaler(tape.risk, 0, 150),
        **kwargs,
    )
    # fresh heads answer almost nothing to everything
    for name, parameter in policy.named_parameters():
        last = ("action_net.weight", "quantile_net.advantage", "quantile_net.worker_advantage")
        if name.startswith(last) and parameter.ndim == 2:
            torch.nn.init.normal_(parameter)
    return policy


def decide(policy: Any, tape: Tape, config: EnvConfig, bar: int | None = None) -> Decision:
    return replay_decision(
        TrainedAgent(policy), tape, start_bar=20, end_bar=120, config=config, limits=RiskLimits(), bar=bar
    )


def env_of(action: str, reach: int = SMALL.receptive_field) -> EnvConfig:
    return EnvConfig(action=action, window_bars=reach)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "case", ["band", "heads", "forecasts", "tft", "risk", "quantile", "hierarchical", "two critics"]
)
def test_the_parts_add_up_to_the_answer(tape: Tape, case: str) -> None:
    kind: type = PerpActorCriticPolicy
    action, shape, kwargs = "band", SMALL, {}
    match case:
        case "heads":
            action = "heads"
        case "forecasts":
            shape = replace(SMALL, forecast_bars=(4,))
        case "tft":
            shape = replace(SMALL, encoder="tft")
        case "risk":
            shape = replace(SMALL, risk_hidden=4, risk_chunk=4, risk_warmup=3)
        case "quantile":
            action, kind = "ladder", PerpQuantilePolicy
            kwargs = {"n_quantiles": 8, "alpha": 1.0}
        case "hierarchical":
            action, kind = "heads", PerpHierarchicalPolicy
            config = env_of("heads")
            kwargs = {"action": "heads", "levels": config.head_sizes, "choices": config.choices}
        case "two critics":
            action, kind = "ladder", HierarchicalQuantilePolicy
            kwargs = {"n_quantiles": 8, "alpha": 0.5, "levels": env_of("ladder").ladder}
    config = env_of(action, shape.receptive_field)
    policy = make_policy(tape, config, kind, shape=shape, **kwargs)
    decision = decide(policy, tape, config, bar=60)
    found = explain(policy, decision)
    assert abs(found.answer - found.baseline_answer) > 1e-3
    assert abs(found.error) < 0.02 * max(1.0, abs(found.answer - found.baseline_answer))
    assert np.abs(found.market).sum() > 0.0
    assert found.market.shape == (shape.receptive_field, 1, 4)
    assert (np.abs(found.risk).sum() > 0.0) == (case == "risk")
    assert found.warning is None
    assert found.attention is not None
    assert found.attention.shape == (1, shape.receptive_field)
    assert found.attention.sum() == pytest.approx(1.0, abs=1e-5)
    assert (found.selection is not None) == (case == "tft")


def test_two_critics_explain_the_level_that_the_worker_took_in_its_option(tape: Tape) -> None:
    config = env_of("ladder")
    kwargs = {"n_quantiles": 8, "alpha": 0.5, "levels": config.ladder}
    policy = make_policy(tape, config, HierarchicalQuantilePolicy, **kwargs)
    decision = decide(policy, tape, config, bar=60)
    agent = TrainedAgent(policy)
    state = torch.from_numpy(decision.state)[None]
    option = state[:, -policy.options.size :]
    context = agent._context_of(tape, 60)
    worth = policy.level_worth(context[None], state)[0, 0].detach()
    allowed = policy.options.worker_mask(torch.ones(1, 1, len(config.ladder), dtype=torch.bool), option)[0, 0]
    assert int(worth.masked_fill(~allowed, -torch.inf).argmax()) == int(decision.action[0])
    found = explain(policy, decision)
    terms = {"target / max_exposure": option[0, 0], "budget alpha": option[0, 1], "bars left": option[0, 2]}
    assert found.manager == {name: float(value) for name, value in terms.items()}
    level = int(decision.action[0])
    np.testing.assert_allclose(found.answer, float(worth[level] - worth.mean()), atol=1e-5)


def drawn_text(found: Attribution) -> str:
    title = draw_attribution(found).get_suptitle()
    assert isinstance(title, str)
    return title


def test_figure_and_json_of_two_levels_say_that_the_worker_is_explained_and_what_its_manager_had_set(
    tape: Tape,
) -> None:
    config = env_of("heads")
    own = {"action": "heads", "levels": config.head_sizes, "choices": config.choices}
    policy = make_policy(tape, config, PerpHierarchicalPolicy, **own)
    decision = decide(policy, tape, config, bar=60)
    target, budget, left = (float(value) for value in decision.state[-3:])
    found = explain(policy, decision)
    told = found.to_json()
    assert told["level_explained"] == "worker"
    assert told["explained"].startswith("the worker's logit of")
    assert list(told["manager_had_set"].values()) == [target, budget, left]
    text = drawn_text(found)
    assert "the worker's logit of" in text
    assert f"target / max_exposure = {target:.3g}, budget / max_exposure = {budget:.3g}" in text
    assert f"bars left = {left:g}" in text
    assert "this decision: the time that was asked for" in text


def test_one_level_has_no_manager_to_show(tape: Tape) -> None:
    config = env_of("band")
    policy = make_policy(tape, config)
    found = explain(policy, decide(policy, tape, config, bar=60))
    assert found.to_json()["level_explained"] is None
    assert "manager" not in drawn_text(found)
    assert "worker" not in drawn_text(found)


def test_what_the_policy_does_not_read_gets_no_part(tape: Tape) -> None:
    config = env_of("band")
    policy = make_policy(tape, config)
    with torch.no_grad():
        # a scale this large makes the first column zero whatever it says
        policy.features_extractor.market_scaler.scale[0] = 1e12
    found = explain(policy, decide(policy, tape, config, bar=60))
    parts = found.by_feature
    assert abs(parts["feature_0"]) < 1e-6
    assert max(abs(parts[f"feature_{i}"]) for i in (1, 2, 3)) > 1e-4


def test_the_replayed_decision_is_the_one_that_moved_the_account_most(tape: Tape) -> None:
    config = env_of("band")
    policy = make_policy(tape, config)
    decision = decide(policy, tape, config)
    again = decide(policy, tape, config, bar=decision.bar)
    np.testing.assert_array_equal(decision.action, again.action)
    np.testing.assert_array_equal(decision.state, again.state)


def test_a_decision_outside_the_period_is_refused(tape: Tape) -> None:
    config = env_of("band")
    with pytest.raises(ValueError, match="must lie at a bar from 20 to 118, was 119"):
        decide(make_policy(tape, config), tape, config, bar=119)


def test_figure_and_json_are_written(tape: Tape, tmp_path: Path) -> None:
    config = env_of("band", replace(SMALL, encoder="tft").receptive_field)
    policy = make_policy(tape, config, shape=replace(SMALL, encoder="tft"))
    found = explain(policy, decide(policy, tape, config, bar=60))
    found.write(tmp_path / "why.json")
    read = json.loads((tmp_path / "why.json").read_text("utf-8"))
    assert read["decided_at"] == "2020-01-03 13:00"
    assert len(read["by_bar_oldest_first"]) == policy.receptive_field
    parts = sum(read["by_feature"].values()) + sum(read["by_state"].values())
    assert parts == pytest.approx(read["answer"] - read["baseline_answer"] + read["integration_error"])
    save_png(draw_attribution(found), tmp_path / "why.png")
    assert (tmp_path / "why.png").stat().st_size > 20_000


@pytest.mark.parametrize("listed", [0, 60, 100], ids=lambda bar: f"listed at {bar}")
@pytest.mark.parametrize("encoder", ["transformer", "tft"])
def test_two_contracts_add_up_wherever_one_of_them_was_listed(
    make_portfolio: Callable[..., Tape], listed: int, encoder: str
) -> None:
    """At bar 90: since the first bar, for a while, and not yet."""
    tape = make_portfolio((0, listed), bars=200)
    shape = replace(SMALL, encoder=encoder, risk_hidden=4, risk_chunk=4, risk_warmup=3)
    config = env_of("band", shape.receptive_field)
    policy = make_policy(tape, config, shape=shape)
    decision = replay_decision(
        TrainedAgent(policy), tape, start_bar=80, end_bar=120, config=config, limits=RiskLimits(), bar=90
    )
    for contract in range(2):
        found = explain(policy, decision, contract=contract)
        assert np.isfinite(found.market).all()
        assert np.isfinite(found.baseline_answer)
        assert found.warning is None
        assert abs(found.error) < 0.02 * max(1.0, abs(found.answer - found.baseline_answer))
        parts = {name: np.abs(found.market[:, at]).sum() for at, name in enumerate(("first", "second"))}
        assert parts["first"] > 1e-4
        # a contract that is not there has no part, and one that is has its own
        assert (parts["second"] > 1e-4) == (listed < 90)
        assert found.attention is not None
        np.testing.assert_allclose(found.attention.sum(axis=-1), 1.0, atol=1e-5)


def test_a_contract_that_was_traded_before_and_is_gone_is_in_no_window(
    make_portfolio: Callable[..., Tape],
) -> None:
    tape, config = make_portfolio((0, 0), bars=200), env_of("band")
    is_valid = tape.is_valid.copy()
    is_valid[70:, 1] = False
    tape = replace(tape, is_valid=is_valid, _cache={})
    policy = make_policy(tape, config)
    decision = replay_decision(
        TrainedAgent(policy), tape, start_bar=80, end_bar=120, config=config, limits=RiskLimits(), bar=90
    )
    found = explain(policy, decision)
    assert abs(found.error) < 0.02 * max(1.0, abs(found.answer - found.baseline_answer))
    assert not found.market[:, 1].any()


def test_a_decision_without_an_earlier_market_of_its_contracts_is_refused_in_words(
    make_portfolio: Callable[..., Tape],
) -> None:
    tape, config = make_portfolio((0, 88), bars=200), env_of("band")
    policy, reach = make_policy(tape, config), SMALL.receptive_field

    def explained(bar: int) -> Attribution:
        decision = replay_decision(
            TrainedAgent(policy), tape, start_bar=80, end_bar=120, config=config, limits=RiskLimits(), bar=bar
        )
        return explain(policy, decision)

    with pytest.raises(
        ValueError, match=rf"2020-01-04 19:00 .* earlier windows of {reach} bars .*explain_time="
    ):
        explained(90)
    # one window since the listing lies before the decision's own
    last_refused = 88 + reach - 1
    with pytest.raises(ValueError, match="there is none yet"):
        explained(last_refused)
    assert explained(last_refused + 1).warning is None


def test_parts_that_do_not_add_up_say_so_in_the_json_and_the_figure(tape: Tape) -> None:
    config = env_of("band")
    policy = make_policy(tape, config)
    found = explain(policy, decide(policy, tape, config, bar=60))
    assert found.to_json()["warning"] is None
    assert "do not add up" not in drawn_text(found)
    largest = max(map(abs, (*found.by_feature.values(), *found.by_state.values())))
    for off in (max(largest, abs(found.answer - found.baseline_answer)), np.nan):
        wrong = replace(found, state=found.state + np.eye(1, len(found.state))[0] * off)
        assert "the parts do not add up" in wrong.to_json()["warning"]
        assert "the parts do not add up" in drawn_text(wrong)


def test_a_control_and_a_missing_captum_are_refused_in_words(
    tape: Tape, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = env_of("band")
    with pytest.raises(ValueError, match=r"StockA2CPolicy has no explanation: .* leave out explain=true"):
        check_explainable(make_policy(tape, config, StockA2CPolicy))
    policy = make_policy(tape, config)
    check_explainable(policy)
    monkeypatch.setitem(sys.modules, "captum", None)
    # a script says it in one line
    with pytest.raises(SystemExit), errors_in_words():
        check_explainable(policy)
    with pytest.raises(ImportError, match="perpgym\\[explain\\]"):
        check_explainable(policy)

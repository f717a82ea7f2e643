"""What trades live is what was judged: a policy with its limit, the seeds together, or a rule."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perpgym.agents.artifact import load_artifact, save_artifact
from perpgym.agents.baselines import make_baseline
from perpgym.agents.ensemble import Ensemble
from perpgym.agents.trained import TrainedAgent
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, RiskLimits
from perpgym.envs.actions import action_space
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.limits import DeskLimits
from perpgym.envs.live.monitor.facts import RUN_KEY, RunFacts
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES, window_space
from perpgym.experiments.live_account import Call
from perpgym.experiments.live_agent import load_policies, make_agent, what_trades
from perpgym.experiments.live_lines import opening_line
from perpgym.experiments.live_run import _restore
from perpgym.experiments.live_watch import facts_of
from perpgym.experiments.run_folder import RunFolder
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

CONFIG = EnvConfig(action="target", window_bars=1)


@pytest.fixture(scope="module")
def tape(make_tape: Callable[..., Tape]) -> Tape:
    return make_tape(bars=60)


@pytest.fixture(scope="module")
def folder(tape: Tape, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two finished seeds, with dropout, and of a third that is not finished."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "small")
    run.create({"seeds": [0, 1, 2], "data": {"source": "simulated"}}, {}, overwrite=False)
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = PolicyConfig(
            encoder="mlp", d_model=8, risk_hidden=0, policy_hidden=(8,), value_hidden=(8,), head_dropout=0.3
        )
        policy = PerpActorCriticPolicy(
            window_space(1, len(tape.feature_names), len(tape.risk_names), 1), action_space("target", 1),
            lambda _: 0.0, config=config, market_scaler=fit_scaler(tape.features, 0, 60),
            risk_scaler=fit_scaler(tape.risk, 0, 60),
        )  # fmt: skip
        torch.nn.init.normal_(policy.action_net.weight)
        save_artifact(
            run.policy(seed, 7),
            policy,
            tape=tape,
            env_config=CONFIG,
            limits=RiskLimits(),
            seed=seed,
            commit="a",
        )
        run.selection(seed).write_text('{"best": 7, "last": 7}', "utf-8")
    return run


def called(folder: RunFolder, **changes: Any) -> Call:
    return Call(run=str(folder.path), **changes)


def made(folder: RunFolder, **changes: Any) -> Any:
    call = called(folder, **changes)
    return make_agent(call, load_policies(call))


def acts(agent: Any, tape: Tape, bar: int, exposure: float = 0.3) -> float:
    account = np.zeros((1, 1, len(ACCOUNT_NAMES)), np.float32)
    for column in ("exposure", "asked"):
        account[0, 0, ACCOUNT_NAMES.index(column)] = exposure
    return float(agent.act(tape, bar, account, np.zeros((1, len(PORTFOLIO_NAMES)), np.float32))[0, 0])


def test_a_policy_trades_with_the_limit_that_it_was_judged_with(folder: RunFolder, tape: Tape) -> None:
    free, held = made(folder), made(folder, abstain_above=-1.0)
    holds = 0.3 / CONFIG.max_exposure
    assert acts(held, tape, 30) == pytest.approx(holds)
    assert abs(acts(free, tape, 30) - holds) > 0.01
    artifacts = load_policies(called(folder))
    artifacts[0].policy.features_extractor.head_dropout = 0.0
    with pytest.raises(ValueError, match="does not know how uncertain it is"):
        make_agent(called(folder, abstain_above=0.5), artifacts)


def test_all_finished_seeds_decide_together_as_they_are_judged(folder: RunFolder, tape: Tape) -> None:
    together = made(folder, ensemble="mean")
    alone = [acts(made(folder, seed=seed), tape, 30) for seed in (0, 1)]
    assert abs(alone[0] - alone[1]) > 0.01
    assert acts(together, tape, 30) == pytest.approx(np.mean(alone), abs=1e-6)
    assert acts(made(folder, ensemble="mean", abstain_above=-1.0), tape, 30) == pytest.approx(
        0.3 / CONFIG.max_exposure
    )
    with pytest.raises(ValueError, match="takes the seeds of a run"):
        load_policies(Call(run=str(folder.policy(0, 7)), ensemble="mean"))
    with pytest.raises(ValueError, match="action=target is continuous"):
        made(folder, ensemble="vote")


def test_what_the_members_remember_goes_through_a_journal_and_back_to_each(
    folder: RunFolder, tape: Tape, tmp_path: Path
) -> None:
    members = [TrainedAgent(load_artifact(folder.policy(seed, 7)).policy) for seed in (0, 1)]
    together = Ensemble(members, CONFIG)
    acts(together, tape, 30)
    acts(members[1], tape, 31)
    journal = Journal.open(tmp_path / "j.sqlite")
    journal.agent_state(1, together.state_dict())
    kept = journal.last_agent_state()
    journal.close()
    assert kept is not None
    again = [TrainedAgent(member.policy) for member in members]
    Ensemble(again, CONFIG).load_state(kept[1])
    assert again[1]._bar == again[0]._bar + 1 == members[1]._bar


@pytest.mark.parametrize("name", ["flat", "momentum", "buy_and_hold"])
def test_a_rule_trades_on_the_account_of_the_run(folder: RunFolder, tape: Tape, name: str) -> None:
    agent = made(folder, baseline=name)
    assert acts(agent, tape, 30) == acts(make_baseline(name, CONFIG), tape, 30)


def test_a_rule_that_cannot_be_is_refused_in_words(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"baseline must be one of flat, .*, was 'oracle'"):
        made(folder, baseline="oracle")
    with pytest.raises(ValueError, match="needs at least two"):
        made(folder, baseline="funding_harvest")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "small, seed 0"),
        ({"seed": 1, "abstain_above": 0.5}, "small, seed 1, holding above an uncertainty of 0.5"),
        ({"ensemble": "mean"}, "small, mean of 2 seeds"),
        ({"baseline": "momentum"}, "Time-series momentum (baseline=momentum) on the account of small"),
    ],
    ids=str,
)
def test_the_first_line_and_the_page_say_what_trades(
    folder: RunFolder, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    call = called(folder, **changes)
    artifacts = load_policies(call)
    agent = make_agent(call, artifacts)
    assert what_trades(call, agent) == says
    facts = facts_of(call, artifacts[0], agent, DeskLimits())
    line = opening_line(facts, Path("j.sqlite"), Path("STOP"), "http://page")
    assert line == f"{says}; simulated, demo; journal j.sqlite; stop with Ctrl-C or STOP; page http://page"
    journal = Journal.open(tmp_path / "j.sqlite")
    facts.write(journal)
    read = RunFacts.read({RUN_KEY: journal.meta(RUN_KEY) or ""})
    journal.close()
    assert read is not None
    assert read.name == says


def test_a_memory_is_given_back_to_whom_it_is_of_and_to_nobody_else(
    tape: Tape, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal.open(tmp_path / "j.sqlite")
    env: Any = type("Env", (), {"journal": journal})()
    holder, config = make_baseline("buy_and_hold", CONFIG), CONFIG
    acts(holder, tape, 30, exposure=1.0)
    journal.agent_state(1, {"agent": np.array(holder.name), **holder.state_dict()})
    again, other = make_baseline("buy_and_hold", config), make_baseline("short_and_hold", config)
    for agent in (again, other):
        _restore(env, agent)
    journal.close()
    # one knows that it has bought, the other takes the account over
    assert acts(again, tape, 31, exposure=0.6) == pytest.approx(0.6 / CONFIG.max_exposure)
    assert acts(other, tape, 31, exposure=0.6) == pytest.approx(-1.0 / CONFIG.max_exposure)
    assert caplog.record_tuples == [
        (
            "perpgym.experiments.live_run",
            logging.WARNING,
            "Buy and hold traded here before; Short and hold takes the account over",
        )
    ]

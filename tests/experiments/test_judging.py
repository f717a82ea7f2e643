"""One finished run is judged seed by seed, as an ensemble, or with a rule in its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perpgym.agents.ppo import PPOConfig
from perpgym.data.load import DataConfig
from perpgym.data.splits import Splits
from perpgym.envs.config import EnvConfig
from perpgym.evaluation.judge import ReportInput
from perpgym.experiments.judging import explain_run, explained_agent, judge_run
from perpgym.experiments.market import Market, open_market
from perpgym.experiments.run_folder import RunFolder
from perpgym.experiments.settings import Judging, Settings, Training
from perpgym.experiments.training import train_seed
from perpgym.policies.config import PolicyConfig

SETTINGS = Settings(
    seeds=(0, 1),
    data=DataConfig(source="simulated", start="2022-01-01", end="2022-11-30"),
    split=Splits(train_end="2022-09-30", valid_end="2022-10-31", test_end="2022-11-30"),
    env=EnvConfig(action="ladder"),
    policy=PolicyConfig(encoder="mlp", d_model=8, risk_hidden=0, policy_hidden=(8,), value_hidden=(8,)),
    agent=PPOConfig(n_steps=16, batch_size=64, learning_rate=0.01),
    training=Training(total_steps=128, n_paths=2, accounts_per_path=2, checkpoints=1),
)
FEW = Judging(random_draws=2, bootstrap_draws=10)


@pytest.fixture(scope="module")
def market() -> Market:
    return open_market(SETTINGS)


@pytest.fixture(scope="module")
def folder(market: Market, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    folder.create({"name": "run"}, {"data_hash": market.tape.data_hash, "notes": []}, overwrite=False)
    for seed in SETTINGS.seeds:
        train_seed(market, SETTINGS, seed, folder, "hash")
    return folder


def judged(folder: RunFolder, market: Market, **how: Any) -> tuple[ReportInput, Path]:
    return judge_run(folder, SETTINGS, market, judging=FEW, config={"name": "run"}, **how)


def test_the_ensemble_of_all_seeds_is_judged_beside_them(folder: RunFolder, market: Market) -> None:
    told: list[tuple[str, int, int]] = []
    report, page = judged(
        folder, market, ensemble="vote", abstain_above=-1.0, progress=lambda *stage: told.append(stage)
    )
    # an ensemble that is never sure enough trades nothing; the limit is not that of the seeds beside it
    trades = {name: card.trades for name, card in report.scorecards.items()}
    assert trades["vote of 2 seeds"] == 0
    assert trades["seed 0, best checkpoint"] + trades["seed 1, best checkpoint"] > 0
    assert report.comparison.headline == "vote of 2 seeds"
    assert {"seed 0, best checkpoint", "seed 1, best checkpoint", "Buy and hold"} <= set(report.scorecards)
    assert report.evidence.seeds == 2
    # the choice of its members is what trials are counted for
    assert report.evidence.trials == 2
    assert page.parent.name == "report_vote"
    # nothing that takes long goes unsaid: every bar of the backtests, every account
    accounts, bars = len(report.scorecards), len(report.comparison.results[0].equity) - 1
    side_by_side = f"backtest of {accounts - 1} accounts side by side, bars"
    assert [stage[1:] for stage in told if stage[0] == side_by_side] == [(i + 1, bars) for i in range(bars)]
    measured = [stage for stage in told if stage[0].startswith("measuring accounts")]
    assert measured == [
        (f"measuring accounts: {name}", i, accounts) for i, name in enumerate(report.scorecards)
    ]
    assert told[-1][0] == "writing the report"


def test_a_rule_is_judged_in_place_of_the_agents_and_answers_for_no_trials(
    folder: RunFolder, market: Market
) -> None:
    report, page = judged(folder, market, baseline="momentum")
    assert report.comparison.headline == "Time-series momentum"
    assert report.comparison.roles["Time-series momentum"] == "agent"
    assert report.comparison.roles["Flat"] == "baseline"
    assert not any("seed" in name for name in report.scorecards)
    assert report.evidence.trials == 0
    assert page.parent.name == "report_momentum"
    # the run can be replaced with everything that was written about it
    folder.check_room(overwrite=True)
    alone, _ = judged(folder, market, baseline="buy_and_hold", period="valid")
    assert alone.comparison.headline == "Buy and hold"
    assert (folder.path / "report_buy_and_hold_valid").is_dir()
    trained_on, _ = judged(folder, market, baseline="flat", period="train")
    assert trained_on.verdict.kind == alone.verdict.kind == "seen"


def test_a_rule_has_no_ensemble_and_a_band_no_votes(folder: RunFolder, market: Market) -> None:
    with pytest.raises(ValueError, match="leave out ensemble and abstain_above"):
        judged(folder, market, baseline="flat", ensemble="mean")
    with pytest.raises(ValueError, match="ensemble must be one of mean, vote, disagreement, was 'median'"):
        judged(folder, market, ensemble="median")
    with pytest.raises(ValueError, match="or ask an ensemble"):
        judged(folder, market, abstain_above=0.1)


def test_the_account_that_is_explained_is_the_one_that_was_judged(market: Market, tmp_path: Path) -> None:
    pytest.importorskip("captum", reason="captum is not installed")
    settings = replace(SETTINGS, seeds=(0,), policy=replace(SETTINGS.policy, head_dropout=0.3))
    folder = RunFolder(tmp_path / "run")
    folder.create({"name": "run"}, {"data_hash": market.tape.data_hash, "notes": []}, overwrite=False)
    train_seed(market, settings, 0, folder, "hash")
    told = {}
    for abstain_above in (None, -1.0):
        agent = explained_agent(folder, settings, market, period="test", abstain_above=abstain_above)
        out = explain_run(folder, market, agent, period="test")
        told[abstain_above] = json.loads((out / "BTC.json").read_text("utf-8"))["chosen_as"]
    # one that is never sure enough trades nothing; the same policy without the limit does
    assert "asked for no trade" in told[-1.0]
    assert "the largest trade" in told[None]
    with pytest.raises(
        ValueError, match=r"explain_time must lie from 2022-.* \(period=test\), was '2021-01-01'"
    ):
        explained_agent(folder, settings, market, period="test", time="2021-01-01", abstain_above=None)

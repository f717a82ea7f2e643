"""Real money is armed by two acts in two places, keys come from the environment, and rules must be known."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from perpgym.data.contract import load_contract
from perpgym.envs.config import EnvConfig
from perpgym.envs.live.broker import AccountTruth
from perpgym.envs.live.compose import LiveSettings
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.monitor.monitor import MonitorConfig
from perpgym.experiments.live_account import Call, Keys, check_journal, check_rules, read_keys, timeframe
from perpgym.experiments.live_exchange import paper_config
from perpgym.experiments.live_watch import read_monitor

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LIVE = Call(run="r", exchange="binanceusdm", mode="live", armed=True)
KEY, SECRET = "a-live-key-WXYZ", "a-secret"
ENVIRONMENT = {
    "PERPGYM_BINANCEUSDM_LIVE_KEY": KEY, "PERPGYM_BINANCEUSDM_LIVE_SECRET": SECRET, "PERPGYM_LIVE": "WXYZ",
}  # fmt: skip
BITCOIN = load_contract("BTC/USDT:USDT")


def trained_on(*contracts: Any) -> Any:
    """All of an artifact that rules are compared with."""
    return SimpleNamespace(contracts=contracts)


def test_both_acts_and_the_keys_arm_real_money() -> None:
    assert read_keys(LIVE, ENVIRONMENT) == Keys(key=KEY, secret=SECRET)


@pytest.mark.parametrize(
    ("call", "missing", "says"),
    [
        (replace(LIVE, armed=False), None, "armed=true"),
        (LIVE, "PERPGYM_LIVE", "PERPGYM_LIVE"),
        (LIVE, "PERPGYM_BINANCEUSDM_LIVE_KEY", ".env.example"),
        (LIVE, "PERPGYM_BINANCEUSDM_LIVE_SECRET", "PERPGYM_BINANCEUSDM_LIVE_SECRET"),
    ],
)
def test_real_money_is_not_traded_without_each_of_them(call: Call, missing: str | None, says: str) -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if name != missing}
    with pytest.raises(ValueError, match=says):
        read_keys(call, environment)


def test_the_second_act_names_the_account() -> None:
    with pytest.raises(ValueError, match="last four"):
        read_keys(LIVE, {**ENVIRONMENT, "PERPGYM_LIVE": "ABCD"})


def test_the_keys_of_the_test_account_are_others() -> None:
    with pytest.raises(ValueError, match="PERPGYM_BINANCEUSDM_DEMO_KEY"):
        read_keys(replace(LIVE, mode="demo"), ENVIRONMENT)


def test_paper_needs_no_key() -> None:
    assert read_keys(Call(run="r", exchange="binanceusdm", mode="paper"), {}) == Keys(key="", secret="")


def test_only_a_paper_accounts_wallet_can_be_named() -> None:
    trained = EnvConfig(initial_wallet=1_000_000.0)
    paper = Call(run="r", mode="paper")
    assert paper_config(paper, trained).initial_wallet == 1_000_000.0
    assert paper_config(replace(paper, wallet=25_000.0), trained).initial_wallet == 25_000.0
    with pytest.raises(ValueError, match="--wallet"):
        replace(paper, mode="demo", wallet=25_000.0)
    with pytest.raises(ValueError, match="positive"):
        replace(paper, wallet=0.0)


def test_no_secret_is_shown() -> None:
    keys = read_keys(LIVE, ENVIRONMENT)
    assert SECRET not in repr(keys)
    with pytest.raises(ValueError, match="armed") as caught:
        read_keys(LIVE, {**ENVIRONMENT, "PERPGYM_LIVE": ""})
    assert KEY not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_testnet_is_the_demo_account() -> None:
    assert Call(run="r", exchange="binanceusdm", mode="testnet").mode == "demo"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"exchange": "kraken"}, "exchange must be one of"),
        ({"mode": "real"}, "mode must be one of"),
        ({"on_stop": "panic"}, "on_stop must be one of"),
        ({"exchange": "simulated", "mode": "live"}, "no real money"),
        ({"decisions": 0}, "decisions"),
        ({"baseline": "flat", "abstain_above": 0.5}, "leave out ensemble and abstain_above"),
        ({"baseline": "flat", "ensemble": "mean"}, "leave out ensemble and abstain_above"),
        ({"ensemble": "mean", "seed": 1}, "seed=1 names one policy"),
    ],
)
def test_an_account_that_does_not_exist_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Call(**{"run": "r", **changes})


def test_the_rules_of_training_are_the_exchanges() -> None:
    assert check_rules(trained_on(BITCOIN), {BITCOIN.symbol: BITCOIN}, is_change_accepted=False) == []


def test_changed_rules_are_named_and_traded_on_only_if_accepted() -> None:
    now = {BITCOIN.symbol: replace(BITCOIN, tick_size=0.5, taker_rate=0.001)}
    with pytest.raises(ValueError, match=r"tick_size.*accept_changed_rules"):
        check_rules(trained_on(BITCOIN), now, is_change_accepted=False)
    changed = check_rules(trained_on(BITCOIN), now, is_change_accepted=True)
    assert len(changed) == 2
    assert "0.5" in changed[0]


@pytest.mark.parametrize(
    "now", [{}, {BITCOIN.symbol: replace(BITCOIN, contract_size=10.0)}], ids=["missing", "another size"]
)
def test_another_contract_is_never_traded(now: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not fit this exchange"):
        check_rules(trained_on(BITCOIN), now, is_change_accepted=True)


def test_a_journal_of_another_exchange_is_refused(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.sqlite")
    check_journal(journal, 0)
    journal.snapshot(AccountTruth(time_ms=10_000_000, wallet=1.0, equity=1.0), 0, {})
    check_journal(journal, 10_000_000)
    with pytest.raises(ValueError, match="journal of another exchange"):
        check_journal(journal, 5_000_000)
    journal.close()


def test_a_paper_account_begins_with_a_journal_of_its_own(tmp_path: Path) -> None:
    paper = Call(run=str(tmp_path), mode="paper")
    first = paper.free_journal_path()
    first.parent.mkdir()
    first.touch()
    second = paper.free_journal_path()
    assert second != first
    assert second.parent == first.parent
    with pytest.raises(ValueError, match="begins anew"):
        replace(paper, journal=str(first)).free_journal_path()
    demo = replace(paper, mode="demo")
    demo.journal_path().touch()
    assert demo.free_journal_path() == demo.journal_path()


def test_the_config_shows_the_defaults() -> None:
    shown: dict[str, Any] = yaml.safe_load((CONFIGS / "live.yaml").read_text("utf-8"))
    settings = LiveSettings()
    for section, values in shown.pop("settings").items():
        mine = getattr(settings, section)
        assert values == (asdict(mine) if is_dataclass(mine) else mine), section
    monitor, default = shown.pop("monitor"), MonitorConfig()
    assert read_monitor(monitor) == default
    assert monitor["page"].items() <= asdict(default)["page"].items()
    assert shown.pop("replay") is None
    call = Call(run="r")
    for name, value in shown.items():
        assert name in ("defaults", "hydra", "run") or value == getattr(call, name), name


@pytest.mark.parametrize(
    ("section", "says"),
    [({"pages": None}, "did you mean"), ({"page": {"port": 1e6}}, "port"), ({"page": {"sport": 1}}, "port")],
)
def test_a_monitor_that_cannot_be_is_refused_in_words(section: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_monitor(section)


def test_bars_have_the_exchanges_names() -> None:
    assert [timeframe(minutes * 60_000) for minutes in (1, 15, 60, 240, 1_440)] == [
        "1m",
        "15m",
        "1h",
        "4h",
        "1d",
    ]
    with pytest.raises(ValueError, match="no exchange"):
        timeframe(7 * 60_000)

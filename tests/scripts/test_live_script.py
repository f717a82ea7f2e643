"""``live.py`` trades on a running exchange, stops as it is told, and refuses in words."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from perpgym.agents.artifact import save_artifact
from perpgym.data.features.build import build_tape
from perpgym.data.features.scaler import fit_scaler
from perpgym.data.synthetic import SimulatedMarketConfig, simulate_market
from perpgym.data.tape import Tape
from perpgym.envs import EnvConfig, RiskLimits
from perpgym.envs.actions import action_space
from perpgym.envs.exchange.clock import Clock
from perpgym.envs.exchange.engine import Engine
from perpgym.envs.exchange.market import Replay
from perpgym.envs.exchange.server import Server, ServerThread
from perpgym.envs.exchange.venue import Venue
from perpgym.envs.live.journal import Journal
from perpgym.envs.spaces import window_space
from perpgym.policies import PerpActorCriticPolicy, PolicyConfig

ROOT = Path(__file__).resolve().parents[2]
# an hour in two seconds: whatever takes a while here takes long by the exchange's clock
SPEED = 1_800.0
PATIENT = ("settings.live.late_ms=100000000", "settings.feed.patience_ms=1500000", "settings.feed.readings=1")


@pytest.fixture(scope="module")
def tape() -> Tape:
    config = SimulatedMarketConfig(start="2024-01-01", end="2024-04-10", seed=6)
    return build_tape(simulate_market(config).bars, source="simulated")


@pytest.fixture(scope="module")
def policy(tape: Tape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that always wants to be long."""
    config = PolicyConfig(d_model=16, n_heads=2, risk_hidden=8, policy_hidden=(16,), value_hidden=(16,))
    env_config = EnvConfig(action="target", window_bars=config.receptive_field, stop_loss=0.05)
    made = PerpActorCriticPolicy(
        window_space(1, len(tape.feature_names), len(tape.risk_names), env_config.window_bars),
        action_space("target", 1), lambda _: 0.0, config=config,
        market_scaler=fit_scaler(tape.features, 720, 1_600), risk_scaler=fit_scaler(tape.risk, 720, 1_600),
    )  # fmt: skip
    with torch.no_grad():
        made.action_net.bias.fill_(0.5)
    folder = tmp_path_factory.mktemp("policy")
    save_artifact(folder, made, tape=tape, env_config=env_config, limits=RiskLimits(), seed=0, commit="abc")
    return folder


@contextmanager
def exchange(tape: Tape) -> Iterator[Server]:
    engine = Engine(Replay(tape, start_bar=1_600), EnvConfig(initial_wallet=10_000.0))
    with ServerThread(Venue(engine=engine, clock=Clock(engine.now_ms, SPEED))) as server:
        yield server


def command(*arguments: str) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    return {
        "args": [sys.executable, str(ROOT / "live.py"), *arguments, "monitor.page.port=0"],
        "text": True, "env": environment,
        "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT,
    }  # fmt: skip


def test_a_policy_trades_on_a_running_exchange_and_stops_after_its_decisions(
    tape: Tape, policy: Path, tmp_path: Path
) -> None:
    with exchange(tape) as server:
        done = subprocess.run(
            **command(
                f"run={policy}", f"url={server.url}", f"journal={tmp_path}/j.sqlite", "decisions=3", *PATIENT
            ),
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert "#3" in done.stdout
        assert f"{policy.name}, seed 0; simulated, demo; journal" in done.stdout
        assert "stopped (freeze): all decisions are made" in done.stdout
        assert server.venue.books.position(0) > 0.0
        assert server.venue.books.registry.open_algos()
        assert "page http://127.0.0.1:" in done.stdout
        replayed = subprocess.run(
            **command(f"replay={tmp_path}/j.sqlite", f"url={server.url}"), timeout=120, check=False
        )
        assert replayed.returncode == 0, replayed.stdout
        assert "the journal agrees with itself" in replayed.stdout
        assert "the journal agrees with the exchange's records" in replayed.stdout
        told = subprocess.run(
            **command(f"replay={tmp_path}/none.sqlite", f"url={server.url}"), timeout=120, check=False
        )
        assert told.returncode == 2, told.stdout
    journal = Journal.open(tmp_path / "j.sqlite")
    assert journal.last_decision_id() == 3
    assert journal.last_agent_state() is not None
    journal.close()


def test_a_rule_on_paper_begins_with_the_wallet_that_is_named_and_ends_without_an_alarm(
    tape: Tape, policy: Path, tmp_path: Path
) -> None:
    with exchange(tape) as server:
        done = subprocess.run(
            **command(
                f"run={policy}", f"url={server.url}", f"journal={tmp_path}/j.sqlite", "mode=paper",
                "wallet=25000", "decisions=1", "baseline=buy_and_hold", *PATIENT,
            ),
            timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
    rule = f"Buy and hold (baseline=buy_and_hold) on the account of {policy.name}"
    assert f"{rule}; simulated, paper; journal" in done.stdout
    assert "paper account, begins with 25,000.00 USDT (wallet=)" in done.stdout
    assert re.search(r"close 2024-\d\d-\d\d \d\d:00 UTC  wallet 25,000\.00 USDT  desk ready\n", done.stdout)
    # the day stands before the hour where the bar ends on another
    decided = (
        r"close 2024-\d\d-\d\d \d\d:00 UTC  #1 of (2024-\d\d-\d\d )?\d\d:00  equity 2\d,\d{3}\.\d\d USDT"
    )
    assert re.search(decided, done.stdout)
    assert "CRITICAL" not in done.stdout
    # a busy machine may be told of the exchange's clock, which runs fast; of its own start and end it is not
    assert not re.search(r'WARNING\s+hold \{"name": "(start|stop)"', done.stdout)
    assert re.search(r'INFO\s+hold \{"name": "stop"', done.stdout), done.stdout


def test_a_signal_makes_it_flat_where_that_is_asked_for(tape: Tape, policy: Path, tmp_path: Path) -> None:
    with exchange(tape) as server:
        process = subprocess.Popen(
            **command(
                f"run={policy}",
                f"url={server.url}",
                f"journal={tmp_path}/j.sqlite",
                "on_stop=flatten",
                *PATIENT,
            )
        )
        deadline = time.monotonic() + 100.0
        while server.venue.books.position(0) == 0.0 and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "stopped (flatten): SIGTERM" in said
        assert server.venue.books.registry.trades
        assert server.venue.books.position(0) == 0.0
        assert server.venue.books.registry.open_algos() == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("exchange=binanceusdm", "mode=live"), "PERPGYM_BINANCEUSDM_LIVE_KEY"),
        (("url=http://127.0.0.1:9",), "nobody answers at http://127.0.0.1:9: start the exchange"),
        (("settings.feed.reading=3",), "did you mean settings.feed.readings"),
    ],
)
def test_what_cannot_be_traded_is_refused_in_words(
    policy: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = subprocess.run(**command(f"run={policy}", *arguments), timeout=120, check=False)
    assert done.returncode == 1
    assert says in done.stdout
    assert "Traceback" not in done.stdout

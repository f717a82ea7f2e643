"""What leaves the program for machines and people: metrics, log lines and alerts; and what never does."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from perpgym.envs.live.broker import OrderState
from perpgym.envs.live.monitor.alerts import AlertConfig, Alerts, addresses
from perpgym.envs.live.monitor.facts import Health
from perpgym.envs.live.monitor.follow import Follower
from perpgym.envs.live.monitor.log import JournalLog, close_log, open_log
from perpgym.envs.live.monitor.metrics import Metrics
from perpgym.envs.live.monitor.reader import JournalReader
from perpgym.envs.live.monitor.view import LiveView
from perpgym.envs.live.redact import REPLACED, Redactor, learn, secrets_of
from perpgym.envs.live.wishes import DeskStatus

BTC = "BTC/USDT:USDT"
SECRET = "s3cr3t-of-the-exchange"


def scrape(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """What Prometheus reads: values by name and the sorted values of labels."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}


def measure(path: Path, health: Callable[[], Health] | None = None) -> dict[tuple[str, ...], float]:
    """The metrics of a journal."""
    view = LiveView()
    metrics = Metrics(view, health)
    follower = Follower(JournalReader(path), [view.absorb, metrics.absorb])
    follower.look()
    follower.reader.close()
    return scrape(metrics)


def test_metrics_are_the_account_and_its_orders(run: Any) -> None:
    run.become(run.order(0.1, None), OrderState.UNKNOWN)
    run.journal.event(run.now_ms, "warning", "wish_refused", why="too large")
    run.settle()
    found = measure(run.path)
    equity = run.wallet + run.held * (run.price - run.entry)
    assert found["perpgym_equity",] == pytest.approx(equity)
    assert found["perpgym_wallet",] == pytest.approx(run.wallet)
    assert found["perpgym_exposure",] == pytest.approx(run.held * run.price / equity)
    assert found["perpgym_mark_price", BTC] == run.price
    assert found["perpgym_orders", "filled"] == 12.0
    assert found["perpgym_orders", "unknown"] == found["perpgym_unknown_intents",] == 1.0
    assert found["perpgym_decisions_total",] == found["perpgym_decision_latency_seconds_count",] == 48.0
    assert found["perpgym_fills_total",] == 12.0
    assert found["perpgym_problems_total", "warning", "wish_refused"] == 1.0
    assert found["perpgym_desk_state", "ready"] == 1.0
    assert found["perpgym_desk_state", "halted"] == 0.0
    # all decisions were made within two seconds of the close, none within one
    assert found["perpgym_decision_latency_seconds_bucket", "2.0"] == 48.0
    assert found["perpgym_decision_latency_seconds_bucket", "0.5"] == 0.0


def test_counts_go_on_over_a_restart_of_whoever_counts(run: Any) -> None:
    before = measure(run.path)["perpgym_decisions_total",]
    run.play(2)
    assert measure(run.path)["perpgym_decisions_total",] == before + 2.0


def test_metrics_of_the_running_program_say_how_late_it_is(run: Any) -> None:
    health = Health(
        status=DeskStatus(state="recovering", reserved=12.0), feed_delay_s=1.7, stream_ages_s={"user": 9.0}
    )
    found = measure(run.path, lambda: health)
    assert found["perpgym_feed_delay_seconds",] == 1.7
    assert found["perpgym_stream_age_seconds", "user"] == 9.0
    assert found["perpgym_reserved",] == 12.0
    assert found["perpgym_desk_state", "recovering"] == 1.0


def test_a_program_that_does_not_answer_leaves_the_journals_metrics(run: Any) -> None:
    def fails() -> Health:
        raise TimeoutError

    assert measure(run.path, fails)["perpgym_wallet",] > 0.0


# --- the log ---


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """A log that is open; what it holds, line by line."""
    path = tmp_path / "log" / "live.jsonl"
    level = logging.getLogger().level
    handler = open_log(path, {SECRET})
    yield lambda: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    close_log(handler)
    logging.getLogger().setLevel(level)


def test_every_decision_is_a_line_with_the_hash_of_what_it_saw(
    run: Any, log: Callable[[], list[dict[str, Any]]]
) -> None:
    follower = Follower(JournalReader(run.path), [JournalLog().absorb])
    follower.look()
    assert log() == []  # the past was told when it was new
    run.decide(0.05, note="first")
    run.journal.event(run.now_ms, "alarm", "hold", name="drift", why="0.1 against 0.2")
    follower.look()
    decision, event = log()
    assert decision["what"] == "decision"
    assert len(decision["observation_hash"]) == 60
    assert decision["wanted"][0]["quantity"] == 0.05
    assert (event["level"], event["what"], event["why"]) == ("critical", "hold", "0.1 against 0.2")
    follower.reader.close()


def test_an_account_can_be_rebuilt_from_the_log(run: Any, log: Callable[[], list[dict[str, Any]]]) -> None:
    follower = Follower(JournalReader(run.path), [JournalLog().absorb])
    follower.look()
    wallet, held = run.wallet, run.held
    run.play(12)
    follower.look()
    lines = log()
    wallet += sum(line["amount"] for line in lines if line["what"] == "income")
    held += sum(line["quantity"] for line in lines if line["what"] == "fill")
    assert wallet == pytest.approx(run.wallet, abs=1e-9)
    assert held == pytest.approx(run.held, abs=1e-12)
    follower.reader.close()


def test_secrets_do_not_reach_the_log(log: Callable[[], list[dict[str, Any]]], tmp_path: Path) -> None:
    logger = logging.getLogger("ccxt")
    logger.warning("GET https://api.example/v1?symbol=BTCUSDT&signature=abcdef0123&timestamp=1")
    logger.warning("key %s", SECRET)
    logger.warning('{"X-MBX-APIKEY": "k1234567890"} listenKey=zzzzyyyy Authorization: Bearer aaaabbbb')
    logger.warning("https://user:password123@host/path")
    try:
        raise ConnectionError(f"no route with {SECRET}")
    except ConnectionError:
        logger.exception("failed")
    text = (tmp_path / "log" / "live.jsonl").read_text()
    for secret in (SECRET, "abcdef0123", "k1234567890", "zzzzyyyy", "aaaabbbb", "password123"):
        assert secret not in text, secret
    assert "symbol=BTCUSDT" in text
    assert "timestamp=1" in text
    assert "ConnectionError" in log()[-1]["error"]


def test_a_log_is_its_owners_business(log: Callable[[], Any], tmp_path: Path) -> None:
    mode = (tmp_path / "log" / "live.jsonl").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_secrets_are_known_by_their_variables_and_their_parts() -> None:
    found = secrets_of(
        {"PERPGYM_API_SECRET": SECRET, "PERPGYM_ALERTS": "tgram://123456789:ABCdefGHI/42", "HOME": "/home/me"}
    )
    assert {SECRET, "123456789", "ABCdefGHI"} <= found
    assert "42" not in found
    assert "/home/me" not in found
    shown = Redactor(found).value({"text": f"sent with {SECRET}", "apiKey": "short", "n": [1, "ABCdefGHI"]})
    assert shown == {"text": f"sent with {REPLACED}", "apiKey": REPLACED, "n": [1, REPLACED]}


# --- alerts ---


def test_an_alarm_in_the_journal_reaches_people_and_the_past_does_not(run: Any, inbox: Any) -> None:
    run.journal.event(run.now_ms, "alarm", "stop_lost", contract="OLD")
    alerts = Alerts([inbox.url], name="ppo_btc")
    follower = Follower(JournalReader(run.path), [alerts.absorb])
    follower.look()
    run.journal.event(run.now_ms, "info", "lift", name="stream")
    run.journal.event(run.now_ms, "alarm", "hold", name="drift", why="0.1 against 0.2")
    follower.look()
    (told,) = inbox.wait(1)
    alerts.stop()
    assert (told["title"], told["message"]) == ("ppo_btc: hold drift", "why 0.1 against 0.2")
    assert told["type"] == "failure"
    assert (alerts.sent, len(inbox.received)) == (1, 1)
    follower.reader.close()


def test_the_same_kind_is_told_once_and_then_counted(inbox: Any) -> None:
    now = [0.0]
    alerts = Alerts([inbox.url], clock=lambda: now[0])
    for _time in range(50):
        alerts.send("alarm", "stop_lost", "again")
    now[0] = 901.0
    alerts.send("alarm", "stop_lost", "again")
    told = inbox.wait(2)
    alerts.stop()
    assert [row["message"] for row in told] == [
        "again", "again (49 more of this kind since the last word of it)",
    ]  # fmt: skip
    assert alerts.held_back == 49


def test_a_secret_that_is_learned_later_is_hidden_by_who_was_there_before() -> None:
    redactor = Redactor()
    assert redactor.text("it said streamkey0815") == "it said streamkey0815"
    learn("streamkey0815")
    assert redactor.value({"why": "it said streamkey0815"}) == {"why": f"it said {REPLACED}"}


def test_warnings_have_an_hourly_share_and_alarms_have_none(inbox: Any) -> None:
    now = [0.0]
    alerts = Alerts([inbox.url], config=AlertConfig(most_per_hour=3), clock=lambda: now[0])
    for number in range(10):
        alerts.send("warning", f"kind {number}", "")
    alerts.send("alarm", "halted", "")
    alerts.send("info", "nothing", "")
    assert len(inbox.wait(4)) == 4
    now[0] = 3_601.0
    alerts.send("warning", "kind 9", "")
    inbox.wait(5)
    alerts.stop()
    assert len(inbox.received) == 5


def test_a_service_that_fails_is_tried_again_and_disturbs_nobody(
    inbox: Any, caplog: pytest.LogCaptureFixture
) -> None:
    inbox.status = 500
    alerts = Alerts([inbox.url], config=AlertConfig(retry_s=(0.01, 0.01)))
    alerts.send("alarm", "hold", "first")
    inbox.wait(3)
    inbox.status = 200
    alerts.send("alarm", "other", "second")
    assert inbox.wait(4)[-1]["message"] == "second"
    alerts.stop()
    assert (alerts.sent, alerts.failed) == (1, 1)
    assert "an alert could not be sent: hold" in caplog.text
    assert "hook-with-a-key" not in caplog.text


def test_a_flood_is_dropped_rather_than_waited_for(inbox: Any) -> None:
    inbox.status = 500
    alerts = Alerts([inbox.url], config=AlertConfig(retry_s=(60.0,)))
    for number in range(150):
        alerts.send("alarm", f"kind {number}", "")
    assert alerts.failed >= 48
    inbox.status = 200
    alerts.stop()
    assert alerts.sent >= 99


def test_addresses_are_never_repeated(inbox: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ValueError, match="address 2 of 2 in PERPGYM_ALERTS") as refusal:
        Alerts([inbox.url, "no-such-service://a-key-of-mine"])
    assert "a-key-of-mine" not in str(refusal.value) + caplog.text
    alerts = Alerts([inbox.url])
    alerts.send("alarm", "hold", "the hook is hook-with-a-key")
    assert inbox.wait(1)[0]["message"] == f"the hook is {REPLACED}"
    alerts.stop()
    assert "hook-with-a-key" not in caplog.text


def test_several_addresses_stand_in_one_variable() -> None:
    text = " tgram://1:a/2, mailto://me:pw@example.org?to=a@b.c,d@e.f json://host/x\n"
    assert addresses(text) == ["tgram://1:a/2", "mailto://me:pw@example.org?to=a@b.c,d@e.f", "json://host/x"]
    assert addresses("") == []


def test_alert_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="min_level must be one of"):
        AlertConfig(min_level="loud")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="most_per_hour at least 1"):
        AlertConfig(most_per_hour=0)

"""Where no terminal shows a bar, the log says what is being done, and how far it is."""

from __future__ import annotations

import logging
import math

import pytest

from perpgym.experiments.console import CONSOLE, stage_bar


def said(caplog: pytest.LogCaptureFixture, every_s: float) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, "perpgym.experiments.console"), stage_bar(every_s) as show:
        show("backtest, bars", 1, 2_000)
        show("backtest, bars", 1_500, 2_000)
        show("measuring accounts: Flat", 0, 3)
    return caplog.messages


def test_the_log_says_at_once_which_stage_it_is_and_then_every_so_often(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CONSOLE, "_force_terminal", False)
    lines = [
        "backtest, bars: 1 of 2,000",
        "backtest, bars: 1,500 of 2,000",
        "measuring accounts: Flat: 0 of 3",
    ]
    assert said(caplog, every_s=0.0) == lines
    assert said(caplog, every_s=math.inf) == lines[:1]


def test_a_terminal_shows_the_bar_and_the_log_keeps_quiet(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CONSOLE, "is_interactive", True)
    monkeypatch.setattr(CONSOLE, "_force_terminal", True)
    monkeypatch.setenv("TERM", "xterm")
    assert said(caplog, every_s=0.0) == []
    assert "measuring accounts: Flat" in capsys.readouterr().out

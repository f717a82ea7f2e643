"""The trial log loses nothing that was acknowledged, and counts what a choice was made from."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest

from perpgym.evaluation.trials import TrialLog, curves, plain, smooth, summarise_trials


def _trial(step: int, growth: float, *, seed: int = 0, sharpe: float | None = 0.5, config: str = "a") -> dict:
    return {
        "seed": seed,
        "step": step,
        "config_hash": config,
        "validation_sharpe": sharpe,
        "validation_log_growth": growth,
    }


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "run" / "trials.jsonl")
    assert log.read() == []
    for step in range(3):
        log.append(_trial(step, 0.1 * step))
    assert [trial["step"] for trial in log.read()] == [0, 1, 2]


def test_a_line_cut_short_by_a_crash_is_skipped_and_does_not_swallow_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trials.jsonl"
    log = TrialLog(path)
    log.append(_trial(1, 0.1))
    log.append(_trial(2, 0.2))
    path.write_bytes(path.read_bytes()[:-25])
    with caplog.at_level(logging.WARNING):
        assert [trial["step"] for trial in log.read()] == [1]
    assert "line 2 is not whole" in caplog.text
    log.append(_trial(3, 0.3))
    assert [trial["step"] for trial in log.read()] == [1, 3]


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    log.append(_trial(1, 0.1))
    before = log.path.read_bytes()
    write = os.write

    def half_then_full(handle: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(handle, data[: len(data) - 10])

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(OSError, match="No space left"):
        log.append(_trial(2, 0.2))
    assert log.path.read_bytes() == before


def test_a_trial_without_its_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing: seed"):
        TrialLog(tmp_path / "t.jsonl").append({"step": 1, "validation_sharpe": 0, "validation_log_growth": 0})


def test_numbers_that_do_not_exist_are_written_as_null(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    log.append({**_trial(1, np.float64(0.1), sharpe=math.nan), "curve": np.array([1.0, math.inf])})
    line = log.path.read_text().strip()
    assert "NaN" not in line
    assert log.read()[0]["validation_sharpe"] is None
    assert log.read()[0]["curve"] == [1.0, None]


def test_a_checkpoint_that_a_resumed_run_looked_at_again_counts_once() -> None:
    trials = [
        _trial(1, 0.1),
        _trial(2, 0.2),
        _trial(2, 0.2),
        _trial(1, 0.1, seed=1),
        _trial(1, 0.1, config="b"),
    ]
    summary = summarise_trials(trials)
    assert (summary.count, summary.seeds, summary.configs) == (4, 2, 2)


def test_one_lucky_checkpoint_does_not_beat_flat_but_three_in_a_row_do() -> None:
    lucky = [_trial(i, g) for i, g in enumerate([-0.1, -0.1, 0.15, -0.1, -0.1])]
    assert summarise_trials(lucky).beat_flat is False
    steady = [_trial(i, g) for i, g in enumerate([-0.1, 0.05, 0.06, 0.05])]
    assert summarise_trials(steady).beat_flat is True
    assert summarise_trials(steady).best_log_growth == pytest.approx(0.16 / 3)


def test_without_trials_nothing_is_known() -> None:
    summary = summarise_trials([])
    assert summary.count == 0
    assert summary.beat_flat is None
    assert math.isnan(summary.best_sharpe)


def test_a_trial_that_never_traded_counts_as_a_sharpe_ratio_of_zero() -> None:
    summary = summarise_trials([_trial(1, 0.0, sharpe=None), _trial(2, 0.0, sharpe=1.0)])
    assert summary.sharpe_std == pytest.approx(math.sqrt(0.5))


def test_curves_are_in_the_order_of_training() -> None:
    runs = curves([_trial(3, 0.3), _trial(1, 0.1), _trial(2, 0.2), _trial(1, 0.0, seed=7)])
    assert [t["step"] for t in runs["a", 0]] == [1, 2, 3]
    assert len(runs["a", 7]) == 1


def test_a_moving_average_of_three_has_none_before_the_third() -> None:
    values = smooth(np.array([1.0, 2.0, 3.0, 7.0]))
    assert np.isnan(values[:2]).all()
    assert values[2:] == pytest.approx([2.0, 4.0])
    assert smooth(np.array([1.0, 3.0]))[-1] == pytest.approx(2.0)


def test_plain_types_survive_json(tmp_path: Path) -> None:
    value = {"a": (1, np.int64(2)), 3: {np.float32(0.5)}, "path": tmp_path, "no": None, "yes": np.True_}
    assert json.loads(json.dumps(plain(value)))["a"] == [1, 2]
    assert plain(value)["path"] == str(tmp_path)
    assert plain(value)["yes"] is True


@pytest.mark.parametrize("line", ['{"seed": 3}', "[1, 2]", "7", '{"seed": 1, "st'])
def test_a_line_that_is_no_trial_is_skipped_and_said_so(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    log.append(_trial(1, 0.1))
    with log.path.open("a") as file:
        file.write(line + "\n")
    log.append(_trial(2, 0.2))
    assert [t["step"] for t in log.read()] == [1, 2]
    assert "line 2" in caplog.text

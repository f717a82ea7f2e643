"""Y of the square-root law from trades: found where it was planted, absent where flow says nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perpgym.data.errors import DataError
from perpgym.data.sources.capture import read_trades
from perpgym.envs.calibration import fit_impact, main


def planted_trades(coefficient: float, *, bins: int = 3_000, seed: int = 0) -> pd.DataFrame:
    """One trade a second: its log return is Y * sigma * sign(q) * sqrt(|q| / V) and noise."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0.0, 1.0, bins)
    sign = rng.choice([-1.0, 1.0], bins)
    # sigma is the deviation of the whole return: 1 = Y^2 E[q / V] + noise^2
    noise = np.sqrt(1.0 - coefficient**2)
    law = coefficient * sign * np.sqrt(size / size.mean())
    returns = 1e-4 * (law + noise * rng.standard_normal(bins))
    return pd.DataFrame(
        {
            "time_ms": 1_000 * np.arange(bins),
            "price": 30_000.0 * np.exp(np.cumsum(returns)),
            "quantity": sign * size,
        }
    )


@pytest.mark.parametrize("coefficient", [0.3, 0.8])
def test_the_planted_coefficient_is_found(coefficient: float) -> None:
    fit = fit_impact(planted_trades(coefficient), bin_ms=1_000)
    assert fit.coefficient == pytest.approx(coefficient, abs=0.05)
    assert fit.low < coefficient < fit.high
    assert fit.explained == pytest.approx(coefficient**2, abs=0.05)


def test_flow_whose_sign_says_nothing_has_no_impact() -> None:
    trades = planted_trades(0.8)
    signs = np.random.default_rng(1).permutation(np.sign(trades["quantity"].to_numpy()))
    fit = fit_impact(trades.assign(quantity=trades["quantity"].abs() * signs), bin_ms=1_000)
    assert fit.low < 0.0 < fit.high


def test_too_few_trades_are_refused_in_words() -> None:
    with pytest.raises(DataError, match="record longer"):
        fit_impact(planted_trades(0.5, bins=50), bin_ms=1_000)
    still = planted_trades(0.5).assign(price=1.0)
    with pytest.raises(DataError, match="never moves"):
        fit_impact(still, bin_ms=1_000)


def test_a_capture_gives_signed_trades_once_and_in_order(tmp_path: Path) -> None:
    def line(number: int, time: int, price: str, *, seller_took: bool) -> str:
        message = {"e": "trade", "T": time, "t": number, "p": price, "q": "0.5", "m": seller_took}
        return f"{time}000 {json.dumps({'stream': 'btcusdt@trade', 'data': message})}\n"

    lines = [
        line(2, 20, "101.0", seller_took=True),
        line(1, 10, "100.0", seller_took=False),
        line(2, 20, "101.0", seller_took=True),
        # a settlement of the insurance fund
        line(3, 30, "0", seller_took=False),
        '40000 {"e": "depthUpdate"}\n',
    ]
    path = tmp_path / "capture.gz"
    path.write_bytes(gzip.compress("".join(lines).encode()))
    trades = read_trades(path)
    assert trades.to_numpy().tolist() == [[10.0, 100.0, 0.5], [20.0, 101.0, -0.5]]


def test_a_file_that_is_no_capture_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "prices.csv"
    path.write_text("time,price\n")
    with pytest.raises(DataError, match="line 1"):
        read_trades(path)


def test_on_recorded_trades_the_coefficient_is_of_order_one(
    shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captures = sorted((shared_data / "l2_binance_usdm").glob("*.gz"))
    assert main([*map(str, captures), "--bin-s", "0.5"]) == 0
    printed = capsys.readouterr().out.splitlines()
    found = [float(text.split("Y = ")[1].split()[0]) for text in printed]
    assert len(found) == len(captures)
    assert 0.3 < min(found) <= max(found) < 1.2


def test_the_command_goes_on_after_a_bad_file_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").write_text("nothing\n")
    assert main([str(tmp_path / "bad"), str(tmp_path / "missing")]) == 1
    assert "line 1" in capsys.readouterr().err

"""The encoder that the page on encoders writes runs as it stands: checked, trained and judged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from calling import ROOT, SMALL, UNTRACED

from perpgym.policies import ENCODERS, EncoderRecipe, PolicyConfig
from perpgym.policies.encoders import LastBar
from perpgym.policies.market_encoder import build_market_encoder

PAGE = (ROOT / "docs" / "algorithms" / "encoders.md").read_text("utf-8")
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_encoder_of_the_page_trains_and_is_judged_behind_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "ema.py").write_text(PROGRAM)
    commands = [line.split() for line in PAGE.splitlines() if line.startswith("    python ema.py")]
    train, evaluate = (
        [part.replace("runs/ema", str(tmp_path / "run")) for part in command[1:]] for command in commands
    )
    small = [part for part in SMALL if not part.startswith(("+experiment", "policy"))]
    few = ["evaluation.random_draws=2", "evaluation.bootstrap_draws=20"]
    for command in ([*train, *small, "seeds=[0]"], [*evaluate, *few]):
        done = subprocess.run(
            [sys.executable, *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**UNTRACED, "OMP_NUM_THREADS": "1"},
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    artifact = json.loads(next((tmp_path / "run").rglob("artifact.json")).read_text())
    assert artifact["policy_config"]["encoder"] == "ema"
    assert artifact["parity_error"] < 1e-5
    assert (tmp_path / "run" / "report" / "report.html").is_file()


def test_a_name_that_nobody_added_is_refused_with_how_to_add_it() -> None:
    with pytest.raises(ValueError, match=r"'ema'; one of your own is added to perpgym\.policies\.ENCODERS"):
        PolicyConfig(encoder="ema")


def test_a_recipe_that_promises_another_reach_than_it_builds_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = EncoderRecipe(
        build=lambda config, n: LastBar(in_features=n, d_model=config.d_model, n_layers=1),
        reach=lambda config: 7,
    )
    monkeypatch.setitem(ENCODERS, "mine", recipe)
    config = PolicyConfig(encoder="mine", risk_hidden=0)
    assert config.receptive_field == 7
    with pytest.raises(ValueError, match="promises a reach of 7 bars, but what it builds"):
        build_market_encoder(config, n_features=5)

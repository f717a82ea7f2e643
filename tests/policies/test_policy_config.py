"""A network that cannot be is refused with what is allowed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perpgym.policies import PolicyConfig


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("d_model", 30, "multiple of n_heads"),
        ("band", 1, "at least 2 bars"),
        ("risk_chunk", 24, "power of two"),
        ("risk_hidden", -1, "must not be negative"),
        ("policy_hidden", (), "at least one positive width"),
        ("log_std_init", 3.0, "between -5 and 1"),
        ("n_layers", 0, "at least 1"),
    ],
)
def test_impossible_network_is_refused(field: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PolicyConfig(**{field: value})


def test_receptive_field_is_the_longer_reach_of_the_two_encoders() -> None:
    assert PolicyConfig().receptive_field == 63
    assert PolicyConfig(n_layers=3).receptive_field == 1 + 3 * 31
    assert PolicyConfig(band=4, risk_chunk=64, risk_warmup=16).receptive_field == 80
    assert PolicyConfig(band=4, risk_hidden=0, risk_chunk=64).receptive_field == 7


def test_config_survives_json() -> None:
    config = PolicyConfig(policy_hidden=(32,), d_model=16)
    assert PolicyConfig(**json.loads(json.dumps(config.to_json()))) == config

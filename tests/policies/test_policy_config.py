"""A network that cannot be is refused with what is allowed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perpgym.policies import PolicyConfig
from perpgym.policies.encoders import AcrossContracts
from perpgym.policies.market_encoder import ENCODERS, build_market_encoder


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
        ("encoder", "rnn", "one of transformer, lstm, gru, tcn, tft, mlp, was 'rnn'"),
        ("chunk", 48, "chunk must be a power of two"),
        ("warmup", -1, "must not be negative"),
        ("kernel", 1, "at least 2 bars"),
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


@pytest.mark.parametrize("n_assets", [1, 3])
@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_config_knows_the_reach_of_the_encoder_that_it_names(encoder: str, n_assets: int) -> None:
    config = PolicyConfig(encoder=encoder, band=9, n_layers=3, chunk=16, warmup=5, kernel=4, risk_hidden=0)
    built = build_market_encoder(config, n_features=5, n_assets=n_assets)
    reaches = {"transformer": 25, "lstm": 21, "gru": 21, "tcn": 22, "tft": 9, "mlp": 1}
    assert config.receptive_field == built.receptive_field == reaches[encoder]
    assert built.out_features == n_assets * config.d_model


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_one_contract_pays_nothing_for_attention_across_contracts(encoder: str) -> None:
    config = PolicyConfig(encoder=encoder)
    assert not isinstance(build_market_encoder(config, n_features=5), AcrossContracts)
    assert isinstance(build_market_encoder(config, n_features=5, n_assets=2), AcrossContracts)


def test_config_survives_json() -> None:
    config = PolicyConfig(policy_hidden=(32,), d_model=16)
    assert PolicyConfig(**json.loads(json.dumps(config.to_json()))) == config

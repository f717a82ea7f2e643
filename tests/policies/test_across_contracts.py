"""Contracts share an encoder, look at each other, and never at one that is not listed."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
import torch

from perpgym.data.features.scaler import Scaler
from perpgym.data.tape import Tape
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
from perpgym.policies import PolicyConfig
from perpgym.policies.bound_tape import BoundTape
from perpgym.policies.encoders import AcrossContracts, MarketTransformer, TemporalFusion
from perpgym.policies.features import PerpFeatures

ASSETS, COLUMNS, BARS = 3, 4, 40
FIRST = torch.tensor([0, 9])


def across(n_heads: int = 2) -> AcrossContracts:
    torch.manual_seed(0)
    one = MarketTransformer(in_features=COLUMNS, d_model=8, n_layers=2, n_heads=2, band=6)
    return AcrossContracts(one, n_assets=ASSETS, n_heads=n_heads)


def by_contract(flat: torch.Tensor) -> torch.Tensor:
    """(B, L, A * x) -> (B, L, A, x)."""
    return flat.unflatten(-1, (ASSETS, -1))


@torch.no_grad()
def test_a_contract_sees_the_others_of_its_bar_only_through_attention() -> None:
    stretch = torch.randn(2, BARS, ASSETS * COLUMNS)
    changed = stretch.clone()
    changed[..., -COLUMNS:] += 1.0
    for n_heads, is_moved in ((2, True), (0, False)):
        encoder = across(n_heads)
        before, after = (by_contract(encoder.encode(s, FIRST)) for s in (stretch, changed))
        assert torch.equal(before[:, :, 0], after[:, :, 0]) is not is_moved
        assert not torch.equal(before[:, :, -1], after[:, :, -1])


@torch.no_grad()
def test_without_attention_each_contract_is_encoded_as_if_alone() -> None:
    encoder, stretch = across(n_heads=0), torch.randn(2, BARS, ASSETS * COLUMNS)
    together = by_contract(encoder.encode(stretch, FIRST))
    for asset in range(ASSETS):
        alone = encoder.encoder.encode(by_contract(stretch)[:, :, asset], FIRST)
        torch.testing.assert_close(together[:, :, asset], alone)


@torch.no_grad()
def test_permuted_contracts_have_permuted_embeddings() -> None:
    encoder, stretch, order = across(), torch.randn(2, BARS, ASSETS * COLUMNS), [2, 0, 1]
    straight = by_contract(encoder.encode(stretch, FIRST))
    permuted = by_contract(encoder.encode(by_contract(stretch)[:, :, order].flatten(2), FIRST))
    torch.testing.assert_close(permuted, straight[:, :, order])


@torch.no_grad()
def test_contract_that_is_not_listed_is_zero_and_as_if_it_were_not_there() -> None:
    encoder, stretch, listing = across(), torch.randn(1, BARS, ASSETS * COLUMNS), 25
    by_contract(stretch)[:, :listing, 1] = torch.nan
    embedding = by_contract(encoder.encode(stretch, FIRST[:1]))
    listed_from = listing - (encoder.receptive_field - 1)
    assert embedding.isfinite().all()
    assert not embedding[:, :listed_from, 1].any()
    assert embedding[:, listed_from:, 1].any(dim=-1).all()
    fewer = AcrossContracts(encoder.encoder, n_assets=ASSETS - 1, n_heads=2)
    assert encoder.attention is not None
    fewer.attention = encoder.attention
    others = by_contract(stretch)[:, :, [0, 2]]
    without = fewer.encode(others.flatten(2), FIRST[:1]).unflatten(-1, (ASSETS - 1, -1))
    torch.testing.assert_close(embedding[:, :listed_from, [0, 2]], without[:, :listed_from])
    assert not torch.equal(embedding[:, listed_from:, [0, 2]], without[:, listed_from:])


@torch.no_grad()
def test_a_listing_to_come_changes_no_bit_before_it() -> None:
    encoder, stretch, listing = across(), torch.randn(1, BARS, ASSETS * COLUMNS), 25
    by_contract(stretch)[:, :listing, 1] = torch.nan
    never = stretch.clone()
    by_contract(never)[:, :, 1] = torch.nan
    listed_from = listing - (encoder.receptive_field - 1)
    before, after = encoder.encode(never, FIRST[:1]), encoder.encode(stretch, FIRST[:1])
    assert torch.equal(before[:, :listed_from], after[:, :listed_from])
    assert not torch.equal(before[:, listed_from], after[:, listed_from])


@torch.no_grad()
def test_contract_listed_within_the_window_is_the_same_in_stretch_and_window() -> None:
    encoder, stretch = across(), torch.randn(1, BARS, ASSETS * COLUMNS)
    by_contract(stretch)[:, :25, 1] = torch.nan
    reach = encoder.receptive_field
    together = encoder.encode(stretch, FIRST[:1])[0]
    windows = stretch[0].unfold(0, reach, 1).transpose(1, 2)
    alone = encoder.encode(windows, torch.arange(len(windows)))[:, 0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_bar_at_which_nothing_is_listed_has_finite_gradients() -> None:
    encoder, stretch = across(), torch.randn(1, BARS, ASSETS * COLUMNS)
    stretch[:, :30] = torch.nan
    encoder.encode(stretch, FIRST[:1]).square().sum().backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("encoder", ["transformer", "lstm", "tft"])
def test_policys_features_of_three_contracts_are_the_same_in_stretch_and_window(encoder: str) -> None:
    config = PolicyConfig(
        encoder=encoder,  # type: ignore[arg-type]
        d_model=8,
        n_heads=2,
        band=6,
        chunk=4,
        warmup=3,
        risk_hidden=4,
        risk_chunk=4,
        risk_warmup=4,
    )
    torch.manual_seed(0)
    features = three_contracts(config)
    market, risk = torch.randn(1, BARS, ASSETS * COLUMNS), torch.randn(1, BARS, ASSETS * 2)
    market[:, :20, :COLUMNS] = risk[:, :20, :2] = torch.nan
    reach, first = config.receptive_field, 77
    with torch.no_grad():
        stretch = features.context(market, risk, torch.tensor([first]))[0]
        windows = [x[0].unfold(0, reach, 1).transpose(1, 2) for x in (market, risk)]
        alone = features.context(windows[0], windows[1], first + torch.arange(len(stretch)))[:, 0]
        state = torch.randn(len(stretch), len(features.inverse_divisors))
        fused = features.fuse(features.split(stretch), state)
    assert stretch.isfinite().all()
    torch.testing.assert_close(stretch, alone, rtol=0, atol=1e-5)
    assert fused.shape == (len(stretch), config.d_model)
    assert features.tokens(1) >= ASSETS * (6 if encoder == "tft" else 7)


def test_weights_are_shown_contract_by_contract(make_tape: Callable[..., Tape]) -> None:
    torch.manual_seed(0)
    features = three_contracts(PolicyConfig(encoder="tft", d_model=8, n_heads=2, band=6, risk_hidden=0))
    market = torch.randn(BARS, ASSETS * COLUMNS)
    bound = BoundTape(tape=make_tape(bars=BARS), market=market, risk=torch.zeros(BARS, 6), first_clock=0)
    shown = features.explain(torch.tensor([10, 20]), 7, bound)
    assert isinstance(features.market_encoder, AcrossContracts)
    assert isinstance(features.market_encoder.encoder, TemporalFusion)
    assert shown.selection.shape == (2, ASSETS, 7, COLUMNS)
    assert shown.attention.shape == (2, ASSETS, 7, 6)
    second = features.market_scaler(market)[None, 20 - 5 : 27, COLUMNS : 2 * COLUMNS]
    alone = features.market_encoder.encoder.explain(second)
    torch.testing.assert_close(shown.selection[1, 1], alone.selection[0])
    torch.testing.assert_close(shown.attention[1, 1], alone.attention[0])


def three_contracts(config: PolicyConfig) -> PerpFeatures:
    """The policy's features over a made-up tape of three contracts."""

    def scaler(columns: int) -> Scaler:
        ones = np.ones(columns, np.float32)
        return Scaler(center=0.1 * ones, scale=2.0 * ones, clip=5.0 * ones)

    space = gym.spaces.Dict(
        {
            "account": gym.spaces.Box(-np.inf, np.inf, (ASSETS, len(ACCOUNT_NAMES))),
            "portfolio": gym.spaces.Box(-np.inf, np.inf, (len(PORTFOLIO_NAMES),)),
        }
    )
    return PerpFeatures(space, config, scaler(COLUMNS), scaler(2))

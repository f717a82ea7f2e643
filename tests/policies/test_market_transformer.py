"""The banded blocks compute what the textbook's dense masked attention computes."""

from __future__ import annotations

import torch

from perpgym.policies.encoders.banded import band_bias
from perpgym.policies.encoders.market_transformer import BandedBlock, MarketTransformer


def dense_block(block: BandedBlock, x: torch.Tensor) -> torch.Tensor:
    """The same layer with an L x L mask and explicit softmax (Vaswani et al. 2017, eq. 1; ALiBi, eq. 1)."""
    batch, length, width = x.shape
    heads, size = block.n_heads, width // block.n_heads
    normed = block.norm_attention(x)
    query = block.query(normed).view(batch, length, heads, size)
    key, value = block.key_value(normed).view(batch, length, 2, heads, size).unbind(2)
    distance = torch.arange(length)[:, None] - torch.arange(length)  # L L
    slopes = torch.tensor([2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)])
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / size**0.5 - slopes[:, None, None] * distance
    scores = scores.masked_fill((distance < 0) | (distance >= block.band), float("-inf"))
    attended = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).reshape(batch, length, width)
    x = x + block.project(attended)
    return x + block.contract(torch.nn.functional.silu(block.expand(block.norm_ff(x))))


def test_banded_blocks_equal_dense_masked_attention_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    encoder = MarketTransformer(in_features=6, d_model=16, n_layers=3, n_heads=2, band=7)
    stretch = torch.randn(2, 61, 6)
    fast = encoder.encode(stretch, torch.zeros(2, dtype=torch.int64))
    fast.square().mul(torch.arange(16.0)).sum().backward()  # type: ignore[no-untyped-call]
    banded = [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]
    encoder.zero_grad()
    x = encoder.embed(stretch)
    for block in encoder.blocks:
        assert isinstance(block, BandedBlock)
        x = dense_block(block, x)
    slow = encoder.norm(x)[:, encoder.receptive_field - 1 :]
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    slow.square().mul(torch.arange(16.0)).sum().backward()
    for parameter, gradient in zip(encoder.parameters(), banded, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-3)


def test_bias_admits_each_query_to_itself_and_the_bars_just_before_it() -> None:
    bias = band_bias(n_heads=2, band=4)[0]
    assert bias.shape == (2, 4, 8)
    admitted = torch.isfinite(bias)
    assert (admitted.sum(-1) == 4).all()
    # the first query of a block stands at key 4 of 8 and sees keys 1 ... 4
    assert admitted[0, 0].nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert bias[0, 0, 4] == 0.0
    assert bias[0, 0, 1] == -3 * 2.0**-4

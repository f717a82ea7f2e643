"""The banded blocks compute what the textbook's dense masked attention computes."""

from __future__ import annotations

import torch

from perpgym.policies.encoders.banded import band_bias
from perpgym.policies.encoders.market_transformer import BandedBlock, MarketTransformer


def dense_weights(block: BandedBlock, x: torch.Tensor) -> torch.Tensor:
    """(B, L, L) weights of a layer with an L x L mask, mean over heads."""
    batch, length, width = x.shape
    heads, size = block.n_heads, width // block.n_heads
    normed = block.norm_attention(x)
    query = block.query(normed).view(batch, length, heads, size)
    key = block.key_value(normed)[..., :width].view(batch, length, heads, size)
    distance = torch.arange(length)[:, None] - torch.arange(length)  # L L
    slopes = torch.tensor([2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)])
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / size**0.5 - slopes[:, None, None] * distance
    scores = scores.masked_fill((distance < 0) | (distance >= block.band), float("-inf"))
    return scores.softmax(-1).mean(1)


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


@torch.no_grad()
def test_shares_of_bars_are_the_product_of_dense_attention_over_layers() -> None:
    torch.manual_seed(0)
    encoder = MarketTransformer(in_features=6, d_model=16, n_layers=3, n_heads=2, band=7)
    stretch, reach = torch.randn(2, 61, 6), encoder.receptive_field
    shown = encoder.explain(stretch)
    assert shown.selection is None
    x, rolled = encoder.embed(stretch), torch.eye(61)
    for block in encoder.blocks:
        assert isinstance(block, BandedBlock)
        rolled = (0.5 * dense_weights(block, x) + 0.5 * torch.eye(61)) @ rolled  # B L L
        x = dense_block(block, x)
    assert shown.attention.shape == (2, 61 - reach + 1, reach)
    for place, newest in enumerate(range(reach - 1, 61)):
        # newest first; no bar outside the window, later or earlier, has any share
        window = rolled[:, newest, newest + 1 - reach : newest + 1].flip(-1)
        torch.testing.assert_close(shown.attention[:, place], window, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shown.attention.sum(-1), torch.ones(2, 61 - reach + 1))
    alone = encoder.explain(stretch[:, 5 : 5 + reach]).attention[:, 0]
    torch.testing.assert_close(alone, shown.attention[:, 5], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_bar_that_every_head_looks_at_gets_the_share() -> None:
    torch.manual_seed(0)
    encoder = MarketTransformer(in_features=1, d_model=8, n_layers=1, n_heads=2, band=6)
    block = encoder.blocks[0]
    assert isinstance(block, BandedBlock)
    # every query asks for what only the bar with the other sign holds
    block.query.weight.zero_()
    block.key_value.weight[:8] = torch.eye(8)
    direction = torch.ones(8)
    direction[::2] = -1.0
    encoder.embed.weight[:, 0] = direction
    block.query.bias.copy_(20.0 * direction)
    stretch = -torch.ones(1, 6, 1)
    stretch[0, 2] = 1.0
    share = encoder.explain(stretch).attention[0, 0]
    # half of a bar passes by the attention, the other half comes from three bars back
    torch.testing.assert_close(share, torch.tensor([0.5, 0.0, 0.0, 0.5, 0.0, 0.0]), rtol=0.0, atol=1e-3)

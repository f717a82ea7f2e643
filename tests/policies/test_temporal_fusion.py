"""What the temporal fusion encoder says that it looked at is what it looked at."""

from __future__ import annotations

import torch

from perpgym.policies.encoders.temporal_fusion import SharedValueAttention, TemporalFusion, VariableSelection

COLUMNS, BAND, BARS = 5, 7, 40
NOWHERE = torch.zeros(1, dtype=torch.int64)


def encoder() -> TemporalFusion:
    torch.manual_seed(0)
    return TemporalFusion(in_features=COLUMNS, d_model=8, n_heads=2, band=BAND)


@torch.no_grad()
def test_weights_of_features_and_of_bars_are_shares() -> None:
    shown = encoder().explain(torch.randn(3, BARS, COLUMNS))
    count = BARS - BAND + 1
    assert shown.selection.shape == (3, count, COLUMNS)
    assert shown.attention.shape == (3, count, BAND)
    for weights in shown:
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, count))
        assert weights.std() > 0.01


@torch.no_grad()
def test_weights_of_a_window_are_those_of_the_stretch() -> None:
    model, stretch = encoder(), torch.randn(1, BARS, COLUMNS)
    whole = model.explain(stretch)
    windows = stretch[0].unfold(0, BAND, 1).transpose(1, 2)
    alone = model.explain(windows)
    torch.testing.assert_close(alone.attention[:, 0], whole.attention[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(alone.selection[:, 0], whole.selection[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_attention_in_blocks_equals_dense_attention_with_shared_values() -> None:
    torch.manual_seed(0)
    heads, width, count = 2, 8, BARS - BAND + 1
    layer, x = SharedValueAttention(width, heads, BAND), torch.randn(2, BARS, width)
    attended, by_distance = layer(x, count)
    query, key = (p(x).view(2, BARS, heads, -1) for p in (layer.query, layer.key))
    distance = torch.arange(BARS)[:, None] - torch.arange(BARS)
    slopes = torch.tensor([2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)])
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / (width / heads) ** 0.5
    scores = scores - slopes[:, None, None] * distance
    weights = scores.masked_fill((distance < 0) | (distance >= BAND), float("-inf")).softmax(-1).mean(1)
    torch.testing.assert_close(attended, (weights @ layer.value(x))[:, -count:], rtol=1e-4, atol=1e-5)
    for back in range(BAND):
        expected = weights.diagonal(-back, dim1=1, dim2=2)[:, -count:]
        torch.testing.assert_close(by_distance[..., back], expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_selected_features_are_the_shares_of_each_features_own_network() -> None:
    torch.manual_seed(0)
    layer, x = VariableSelection(COLUMNS, 8), torch.randn(2, 6, COLUMNS)
    selected, weights = layer(x)
    expected = torch.zeros_like(selected)
    for j in range(COLUMNS):
        value = x[..., j : j + 1]
        hidden = torch.nn.functional.elu(value * layer.hidden_weight[j] + layer.hidden_bias[j])
        gated = torch.nn.functional.glu(hidden @ layer.gate_weight[j] + layer.gate_bias[j], dim=-1)
        own = layer.norm(value * layer.skip_weight[j] + layer.skip_bias[j] + gated)
        expected += weights[..., j : j + 1] * own
    torch.testing.assert_close(selected, expected, rtol=1e-4, atol=1e-5)


def test_training_turns_the_selection_to_the_feature_that_matters() -> None:
    model = encoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(3)
    stretch = torch.randn(8, BARS, COLUMNS, generator=generator)
    before = model.explain(stretch).selection[..., 2].mean()
    for _ in range(60):
        readout = model.encode(stretch, NOWHERE)[..., 0]
        loss = (readout - stretch[:, -readout.shape[1] :, 2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    selection = model.explain(stretch).selection.mean((0, 1))
    assert selection.argmax() == 2
    assert selection[2] > before + 0.2

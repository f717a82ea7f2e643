"""A stretch of tape, a plain window and one live bar give the same embedding, for any weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from perpgym.policies.encoders import Encoder, MarketTransformer, RiskLSTM

COLUMNS, BARS = 5, 150


def transformer() -> MarketTransformer:
    return MarketTransformer(in_features=COLUMNS, d_model=16, n_layers=2, n_heads=4, band=8)


def deep_transformer() -> MarketTransformer:
    return MarketTransformer(in_features=COLUMNS, d_model=8, n_layers=3, n_heads=2, band=5)


def lstm() -> RiskLSTM:
    return RiskLSTM(in_features=COLUMNS, hidden=8, chunk=16, warmup=9)


def train_a_little(encoder: torch.nn.Module) -> None:
    """A few large steps on a made-up target: weights far from their initialisation."""
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.03)
    stretch, first_bar = torch.randn(4, BARS, COLUMNS), torch.tensor([0, 7, 100, 12_345])
    for _ in range(15):
        embedding = encoder.encode(stretch, first_bar)  # type: ignore[operator]
        target = stretch[:, -embedding.shape[1] :].cumsum(1).mean(-1, keepdim=True)
        optimizer.zero_grad()
        (embedding - target).square().mean().backward()
        optimizer.step()


def lengthen_memory(encoder: torch.nn.Module) -> None:
    """Forget gates wide open: a state then carries every bar since its start."""
    if isinstance(encoder, RiskLSTM):
        hidden = encoder.out_features
        encoder.lstm.get_parameter("bias_ih_l0").data[hidden : 2 * hidden] += 5.0


WEIGHTS: dict[str, tuple[Callable[[torch.nn.Module], None], ...]] = {
    "fresh": (),
    "trained": (train_a_little,),
    "long memory": (lengthen_memory,),
    "trained, long memory": (lengthen_memory, train_a_little),
}


@pytest.fixture(params=[transformer, deep_transformer, lstm], ids=lambda build: build.__name__)
def fresh_encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(1)
    encoder: Encoder = request.param()
    return encoder


@pytest.fixture(params=WEIGHTS)
def encoder(request: pytest.FixtureRequest, fresh_encoder: Encoder) -> Encoder:
    for change in WEIGHTS[request.param]:
        change(fresh_encoder)  # type: ignore[arg-type]
    return fresh_encoder


def windows_of(stretch: torch.Tensor, receptive_field: int) -> torch.Tensor:
    """(B, L, F) -> (B, L - R + 1, R, F): the plain window of every bar."""
    return stretch.unfold(1, receptive_field, 1).transpose(2, 3)


@torch.no_grad()
def test_stretch_and_plain_windows_give_equal_embeddings(encoder: Encoder) -> None:
    stretch, first_bar = torch.randn(3, BARS, COLUMNS), torch.tensor([0, 11, 473_353])
    together = encoder.encode(stretch, first_bar)
    windows = windows_of(stretch, encoder.receptive_field)
    count = windows.shape[1]
    assert together.shape == (3, BARS - encoder.receptive_field + 1, encoder.out_features)
    starts = first_bar.unsqueeze(1) + torch.arange(count)
    alone = encoder.encode(windows.flatten(0, 1), starts.flatten()).view_as(together)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_live_bar_at_a_time_gives_the_embeddings_of_the_stretch(encoder: Encoder) -> None:
    stretch, first = torch.randn(1, encoder.receptive_field + 40, COLUMNS), 999
    together = encoder.encode(stretch, torch.tensor([first]))[0]
    for step, expected in enumerate(together):
        window = stretch[:, step : step + encoder.receptive_field]
        live = encoder.encode(window, torch.tensor([first + step]))[0, 0]
        torch.testing.assert_close(live, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("extra", [0, 1, 2, 7, 8, 9, 31, 33])
def test_length_of_the_stretch_does_not_matter(encoder: Encoder, extra: int) -> None:
    stretch, first = torch.randn(2, BARS, COLUMNS), torch.tensor([5, 6])
    whole = encoder.encode(stretch, first)
    length = encoder.receptive_field + extra
    tail = encoder.encode(stretch[:, -length:], first + BARS - length)
    torch.testing.assert_close(tail, whole[:, -extra - 1 :], rtol=0, atol=1e-5)


@torch.no_grad()
def test_clock_modulo_its_period_is_enough(encoder: Encoder) -> None:
    stretch, first = torch.randn(1, BARS, COLUMNS), 3 * 2**20 + 77
    torch.testing.assert_close(
        encoder.encode(stretch, torch.tensor([first])), encoder.encode(stretch, torch.tensor([77]))
    )


@torch.no_grad()
def test_later_bars_change_no_embedding(encoder: Encoder) -> None:
    stretch, first = torch.randn(2, BARS, COLUMNS), torch.tensor([3, 19])
    before = encoder.encode(stretch, first)
    for bar in (BARS - 1, BARS - 20, encoder.receptive_field):
        changed = stretch.clone()
        changed[:, bar:] += torch.randn_like(changed[:, bar:]) * 100
        after = encoder.encode(changed, first)
        known = bar - encoder.receptive_field + 1
        torch.testing.assert_close(after[:, :known], before[:, :known], rtol=0, atol=0)
        assert not torch.equal(after[:, known], before[:, known])


@torch.no_grad()
def test_bars_before_the_receptive_field_change_no_embedding(encoder: Encoder) -> None:
    stretch, first = torch.randn(2, BARS, COLUMNS), torch.tensor([3, 19])
    before = encoder.encode(stretch, first)
    reach = encoder.receptive_field
    changed = stretch.clone()
    changed[:, 20] += 100.0
    after = encoder.encode(changed, first)
    # output i rests on bars i ... i + R - 1
    torch.testing.assert_close(after[:, 21:], before[:, 21:], rtol=0, atol=1e-6)
    assert not torch.equal(after[:, max(0, 21 - reach) : 21], before[:, max(0, 21 - reach) : 21])


@torch.no_grad()
def test_transformer_reaches_exactly_its_receptive_field() -> None:
    torch.manual_seed(0)
    encoder, stretch = transformer(), torch.randn(1, BARS, COLUMNS)
    before = encoder.encode(stretch, torch.zeros(1, dtype=torch.int64))
    stretch[:, 20] += 10.0
    after = encoder.encode(stretch, torch.zeros(1, dtype=torch.int64))
    moved = torch.nonzero((after - before).abs().amax(-1)[0] > 0).flatten()
    assert moved.min() == 20 - encoder.receptive_field + 1
    assert moved.max() == 20


@torch.no_grad()
def test_lstm_that_is_merely_warmed_up_has_another_state_for_every_start() -> None:
    torch.manual_seed(0)
    encoder = lstm()
    lengthen_memory(encoder)
    series = torch.randn(1, 400, COLUMNS)
    long_run = encoder.lstm(series)[0][0, -1]
    warmed_up = encoder.lstm(series[:, -encoder.receptive_field :])[0][0, -1]
    assert (long_run - warmed_up).abs().max() > 0.01


def test_stretch_shorter_than_the_receptive_field_is_refused(fresh_encoder: Encoder) -> None:
    short = torch.zeros(1, fresh_encoder.receptive_field - 1, COLUMNS)
    with pytest.raises(ValueError, match=f"at least {fresh_encoder.receptive_field} bars"):
        fresh_encoder.encode(short, torch.zeros(1, dtype=torch.int64))

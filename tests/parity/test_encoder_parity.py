"""A stretch of tape, a plain window and one live bar give the same embedding, for any weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from perpgym.policies.encoders import (
    AcrossContracts,
    DilatedConvolutions,
    Encoder,
    GridRecurrent,
    LastBar,
    MarketTransformer,
    TemporalFusion,
    check_encoder,
)

COLUMNS, BARS = 6, 150


def transformer() -> MarketTransformer:
    return MarketTransformer(in_features=COLUMNS, d_model=16, n_layers=2, n_heads=4, band=8)


def deep_transformer() -> MarketTransformer:
    return MarketTransformer(in_features=COLUMNS, d_model=8, n_layers=3, n_heads=2, band=5)


def lstm() -> GridRecurrent:
    return GridRecurrent(in_features=COLUMNS, hidden=8, chunk=16, warmup=9)


def deep_lstm() -> GridRecurrent:
    return GridRecurrent(in_features=COLUMNS, hidden=8, chunk=4, warmup=12, n_layers=2)


def gru() -> GridRecurrent:
    return GridRecurrent(in_features=COLUMNS, hidden=8, chunk=16, warmup=9, cell="gru")


def tcn() -> DilatedConvolutions:
    return DilatedConvolutions(in_features=COLUMNS, d_model=8, n_layers=4, kernel=3)


def tft() -> TemporalFusion:
    return TemporalFusion(in_features=COLUMNS, d_model=8, n_heads=2, band=12)


def mlp() -> LastBar:
    return LastBar(in_features=COLUMNS, d_model=8, n_layers=2)


def transformer_across_two_contracts() -> AcrossContracts:
    one = MarketTransformer(in_features=COLUMNS // 2, d_model=8, n_layers=2, n_heads=2, band=8)
    return AcrossContracts(one, n_assets=2, n_heads=2)


def gru_across_three_contracts() -> AcrossContracts:
    one = GridRecurrent(in_features=COLUMNS // 3, hidden=8, chunk=8, warmup=5, cell="gru")
    return AcrossContracts(one, n_assets=3, n_heads=4)


def train_a_little(encoder: Encoder) -> None:
    """A few large steps on a made-up target: weights far from their initialisation."""
    assert isinstance(encoder, torch.nn.Module)
    before = torch.nn.utils.parameters_to_vector(encoder.parameters()).detach().clone()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.03)
    stretch, first_bar = torch.randn(4, BARS, COLUMNS), torch.tensor([0, 7, 100, 12_345])
    for _ in range(15):
        embedding = encoder.encode(stretch, first_bar)
        target = stretch[:, -embedding.shape[1] :].cumsum(1).mean(-1, keepdim=True)
        optimizer.zero_grad()
        (embedding - target).square().mean().backward()
        optimizer.step()
    after = torch.nn.utils.parameters_to_vector(encoder.parameters())
    assert (after - before).abs().max() > 0.1


def lengthen_memory(encoder: Encoder) -> None:
    """Gates wide open: a state then carries every bar since its start."""
    recurrent = encoder.encoder if isinstance(encoder, AcrossContracts) else encoder
    assert isinstance(recurrent, GridRecurrent)
    recurrent.lengthen_memory(5.0)


Change = Callable[[Encoder], None]
PLAIN: dict[str, tuple[Change, ...]] = {"fresh": (), "trained": (train_a_little,)}
LONG_MEMORY: dict[str, tuple[Change, ...]] = {
    "long memory": (lengthen_memory,),
    "trained, long memory": (lengthen_memory, train_a_little),
}
RECURRENT: tuple[Callable[[], Encoder], ...] = (lstm, deep_lstm, gru, gru_across_three_contracts)
OTHERS: tuple[Callable[[], Encoder], ...] = (
    transformer,
    deep_transformer,
    tcn,
    tft,
    mlp,
    transformer_across_two_contracts,
)
CASES = [
    pytest.param(build, changes, id=f"{build.__name__}, {weights}")
    for builds, settings in ((OTHERS, PLAIN), (RECURRENT, PLAIN | LONG_MEMORY))
    for build in builds
    for weights, changes in settings.items()
]


@pytest.fixture(params=[*OTHERS, *RECURRENT], ids=lambda build: build.__name__)
def fresh_encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(1)
    encoder: Encoder = request.param()
    return encoder


@pytest.fixture
def encoder(build: Callable[[], Encoder], changes: tuple[Change, ...]) -> Encoder:
    torch.manual_seed(1)
    encoder = build()
    for change in changes:
        change(encoder)
    return encoder


for_any_weights = pytest.mark.parametrize(("build", "changes"), CASES)


def windows_of(stretch: torch.Tensor, receptive_field: int) -> torch.Tensor:
    """(B, L, F) -> (B, L - R + 1, R, F): the plain window of every bar."""
    return stretch.unfold(1, receptive_field, 1).transpose(2, 3)


@for_any_weights
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


@for_any_weights
@torch.no_grad()
def test_one_more_live_bar_on_a_ring_gives_the_embeddings_of_the_stretch(encoder: Encoder) -> None:
    reach, first = encoder.receptive_field, 999
    stretch = torch.randn(1, reach + 40, COLUMNS)
    together = encoder.encode(stretch, torch.tensor([first]))[0]
    ring = stretch[:, :reach].roll(1, dims=1)
    for step, expected in enumerate(together):
        # the newest bar takes the place of the oldest one
        ring = ring.roll(-1, dims=1)
        ring[:, -1] = stretch[:, step + reach - 1]
        live = encoder.encode(ring, torch.tensor([first + step]))[0, 0]
        torch.testing.assert_close(live, expected, rtol=0, atol=1e-5)


@for_any_weights
@torch.no_grad()
def test_a_stretch_alone_and_among_others_gives_equal_embeddings(encoder: Encoder) -> None:
    stretch, first_bar = torch.randn(5, encoder.receptive_field + 20, COLUMNS), torch.arange(5) * 77
    batch = encoder.encode(stretch, first_bar)
    for row, expected in enumerate(batch):
        single = encoder.encode(stretch[row : row + 1], first_bar[row : row + 1])[0]
        torch.testing.assert_close(single, expected, rtol=0, atol=1e-5)


@for_any_weights
@torch.no_grad()
def test_length_of_the_stretch_does_not_matter(encoder: Encoder) -> None:
    stretch, first = torch.randn(2, BARS, COLUMNS), torch.tensor([5, 6])
    whole = encoder.encode(stretch, first)
    for extra in (0, 1, 2, 7, 8, 9, 31, 33):
        length = encoder.receptive_field + extra
        tail = encoder.encode(stretch[:, -length:], first + BARS - length)
        torch.testing.assert_close(tail, whole[:, -extra - 1 :], rtol=0, atol=1e-5)


@for_any_weights
@torch.no_grad()
def test_clock_modulo_its_period_is_enough(encoder: Encoder) -> None:
    stretch, first = torch.randn(1, BARS, COLUMNS), 3 * 2**20 + 77
    torch.testing.assert_close(
        encoder.encode(stretch, torch.tensor([first])), encoder.encode(stretch, torch.tensor([77]))
    )


@for_any_weights
@torch.no_grad()
def test_later_bars_change_no_bit_of_an_embedding(encoder: Encoder) -> None:
    stretch, first = torch.randn(2, BARS, COLUMNS), torch.tensor([3, 19])
    before = encoder.encode(stretch, first)
    for bar in (BARS - 1, BARS - 20, encoder.receptive_field):
        changed = stretch.clone()
        changed[:, bar:] += torch.randn_like(changed[:, bar:]) * 100
        after = encoder.encode(changed, first)
        known = bar - encoder.receptive_field + 1
        assert torch.equal(after[:, :known], before[:, :known])
        assert not torch.equal(after[:, known], before[:, known])


@for_any_weights
@torch.no_grad()
def test_bars_before_the_receptive_field_change_no_embedding(encoder: Encoder) -> None:
    stretch, first = torch.randn(2, BARS, COLUMNS), torch.tensor([3, 19])
    before = encoder.encode(stretch, first)
    reach, bar = encoder.receptive_field, 50
    changed = stretch.clone()
    changed[:, bar] += 100.0
    after = encoder.encode(changed, first)
    # output i rests on bars i ... i + R - 1
    torch.testing.assert_close(after[:, bar + 1 :], before[:, bar + 1 :], rtol=0, atol=1e-6)
    touched = slice(bar - reach + 1, bar + 1)
    assert not torch.equal(after[:, touched], before[:, touched])


def test_each_embedding_has_gradients_from_its_receptive_field_alone(fresh_encoder: Encoder) -> None:
    reach = fresh_encoder.receptive_field
    stretch = torch.randn(1, reach + 30, COLUMNS, requires_grad=True)
    fresh_encoder.encode(stretch, torch.tensor([5]))[0, 10].square().sum().backward()  # type: ignore[no-untyped-call]
    assert stretch.grad is not None
    moved = torch.nonzero(stretch.grad[0].abs().amax(-1)).flatten()
    # a recurrence that has just restarted reads less than R bars
    assert moved.min() >= 10
    assert moved.max() == 10 + reach - 1


@torch.no_grad()
@pytest.mark.parametrize("build", [transformer, deep_transformer, tcn, tft, mlp])
def test_encoder_without_a_grid_reaches_exactly_its_receptive_field(build: Callable[[], Encoder]) -> None:
    torch.manual_seed(0)
    encoder, stretch = build(), torch.randn(1, BARS, COLUMNS)
    before = encoder.encode(stretch, torch.zeros(1, dtype=torch.int64))
    stretch[:, 50] += 10.0
    after = encoder.encode(stretch, torch.zeros(1, dtype=torch.int64))
    moved = torch.nonzero((after - before).abs().amax(-1)[0] > 0).flatten()
    assert moved.min() == 50 - encoder.receptive_field + 1
    assert moved.max() == 50


@torch.no_grad()
@pytest.mark.parametrize("build", [lstm, deep_lstm, gru])
def test_recurrence_that_is_merely_warmed_up_has_another_state_for_every_start(
    build: Callable[[], GridRecurrent],
) -> None:
    torch.manual_seed(0)
    encoder = build()
    lengthen_memory(encoder)
    series = torch.randn(1, 400, COLUMNS)
    long_run = encoder.recurrent(series)[0][0, -1]
    warmed_up = encoder.recurrent(series[:, -encoder.receptive_field :])[0][0, -1]
    assert (long_run - warmed_up).abs().max() > 0.01


def test_stretch_shorter_than_the_receptive_field_is_refused(fresh_encoder: Encoder) -> None:
    short = torch.zeros(1, fresh_encoder.receptive_field - 1, COLUMNS)
    with pytest.raises(ValueError, match=f"at least {fresh_encoder.receptive_field} bars"):
        fresh_encoder.encode(short, torch.zeros(1, dtype=torch.int64))


@for_any_weights
def test_the_check_that_users_run_passes_ours(encoder: Encoder) -> None:
    check_encoder(encoder, COLUMNS)


class Wrong(LastBar):
    """The last bar's encoder, with a fault."""

    def __init__(self, fault: str) -> None:
        super().__init__(in_features=COLUMNS, d_model=8, n_layers=2)
        self.fault = fault

    def encode(self, stretch: torch.Tensor, first_bar: torch.Tensor) -> torch.Tensor:
        match self.fault:
            case "future":
                return super().encode(stretch.flip(1).cumsum(1).flip(1), first_bar)
            case "endless memory":
                return super().encode(stretch.cumsum(1), first_bar)
            case "batch statistics":
                return super().encode(stretch - stretch.mean(0, keepdim=True), first_bar)
            case "too few":
                return super().encode(stretch, first_bar)[:, 1:]
        return self.layers(stretch)  # type: ignore[no-any-return]

    def tokens(self, n_bars: int) -> int:
        return 1 if self.fault == "tokens" else super().tokens(n_bars)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("future", "sees the future"),
        ("endless memory", "window of its 1 bars alone"),
        ("batch statistics", "window of its 1 bars alone"),
        ("too few", "must give"),
        ("tokens", "at least 40"),
        ("short stretch", "must raise ValueError"),
    ],
)
def test_the_check_that_users_run_refuses_what_would_differ_live(fault: str, complaint: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=complaint):
        check_encoder(Wrong(fault), COLUMNS)


def test_the_check_that_users_run_names_what_is_missing() -> None:
    with pytest.raises(ValueError, match="tokens, reset_parameters is missing"):
        check_encoder(type("Bare", (), {"receptive_field": 1, "out_features": 8, "encode": None})(), COLUMNS)

"""PopArt moves the scale of a value head and not its answers."""

from __future__ import annotations

import pytest
import torch

from perpgym.policies.popart import PopArtLinear


def make_layer(outputs: int = 2) -> PopArtLinear:
    torch.manual_seed(0)
    return PopArtLinear(torch.nn.Linear(8, outputs))


def make_targets(seed: int) -> torch.Tensor:
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(seed))
    # two heads whose targets differ by four orders of magnitude
    return noise * torch.tensor([1_000.0, 0.1]) + torch.tensor([5_000.0, -0.3])


def test_before_any_target_the_layer_is_a_plain_linear_one() -> None:
    layer, latent = make_layer(), torch.randn(16, 8)
    torch.testing.assert_close(
        layer(latent), torch.nn.functional.linear(latent, layer.weight, layer.bias), rtol=0, atol=0
    )


def test_moving_the_statistics_leaves_every_answer_where_it_was() -> None:
    layer, latent = make_layer(), torch.randn(64, 8)
    for seed in range(5):
        before = layer(latent).detach()
        layer.rescale(make_targets(seed))
        # float32 holds a mean of 5,000 to 5e-4
        torch.testing.assert_close(layer(latent), before, rtol=1e-6, atol=1e-3)
    assert layer.deviation[0] > 500.0 > 1.0 > layer.deviation[1]


def test_statistics_alone_without_their_weights_would_move_the_answers() -> None:
    layer, latent = make_layer(), torch.randn(64, 8)
    weights = {name: value.clone() for name, value in layer.state_dict().items()}
    before = layer(latent).detach()
    layer.rescale(make_targets(0))
    layer.load_state_dict({**layer.state_dict(), "weight": weights["weight"], "bias": weights["bias"]})
    assert float((layer(latent) - before).detach().abs().max()) > 100.0


def test_each_head_has_its_own_moments_and_the_first_targets_replace_the_start() -> None:
    layer, targets = make_layer(), make_targets(0)
    layer.rescale(targets)
    torch.testing.assert_close(layer.mean, targets.mean(0))
    torch.testing.assert_close(layer.deviation, targets.std(0, correction=0))


def test_the_first_ten_samples_count_alike_and_later_ones_a_tenth() -> None:
    layer = make_layer(1)
    for number in range(10):
        layer.rescale(torch.full((4, 1), float(number)))
    assert layer.mean.item() == pytest.approx(4.5)
    # the variance of 0 ... 9
    assert layer.deviation.item() == pytest.approx(8.25**0.5)
    for _ in range(20):
        layer.rescale(torch.tensor([[99.5], [109.5]]))
    left = 0.9**20
    assert layer.mean.item() == pytest.approx(104.5 - 100.0 * left)
    square = left * (8.25 + 4.5**2) + (1.0 - left) * (25.0 + 104.5**2)
    assert layer.deviation.item() == pytest.approx((square - layer.mean.item() ** 2) ** 0.5, rel=1e-4)


def test_targets_that_never_vary_do_not_divide_by_zero() -> None:
    layer = make_layer(1)
    layer.rescale(torch.full((10, 1), 3.0))
    assert layer.deviation.item() == pytest.approx(1e-4)
    assert torch.isfinite(layer(torch.ones(1, 8))).all()


def test_an_optimiser_that_held_the_weights_still_moves_them() -> None:
    linear = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    layer = PopArtLinear(linear)
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 8)).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert not torch.equal(layer.weight, before)

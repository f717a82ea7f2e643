"""The dilated layers compute what torch's own convolution computes."""

from __future__ import annotations

import torch
from torch.nn import functional

from perpgym.policies.encoders.tcn import DilatedBlock, DilatedConvolutions


def convolved(block: DilatedBlock, x: torch.Tensor) -> torch.Tensor:
    """The same layer with ``conv1d`` over zeros in front of the first bar: as many bars out as in."""
    reach = (block.kernel - 1) * block.dilation
    weight = block.taps.weight.view(block.taps.out_features, block.kernel, -1).transpose(1, 2)  # O D k
    normed = functional.pad(block.norm(x).transpose(1, 2), (reach, 0))  # B D reach+L
    hidden = functional.conv1d(normed, weight, block.taps.bias, dilation=block.dilation)
    return x + block.contract(functional.silu(hidden.transpose(1, 2)))


@torch.no_grad()
def test_layers_without_padding_equal_padded_dilated_convolutions() -> None:
    torch.manual_seed(0)
    encoder = DilatedConvolutions(in_features=4, d_model=6, n_layers=3, kernel=3)
    assert encoder.receptive_field == 1 + 2 * (1 + 2 + 4)
    stretch = torch.randn(2, 50, 4)
    x = encoder.embed(stretch)
    for block in encoder.blocks:
        assert isinstance(block, DilatedBlock)
        x = convolved(block, x)
    expected = encoder.norm(x)[:, encoder.receptive_field - 1 :]
    torch.testing.assert_close(
        encoder.encode(stretch, torch.zeros(2, dtype=torch.int64)), expected, rtol=1e-4, atol=1e-5
    )

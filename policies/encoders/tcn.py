"""Dilated causal convolutions: a reach that doubles with every layer, at a constant cost a bar."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from perpgym.policies.encoders.protocol import count_outputs


class DilatedConvolutions(nn.Module):
    """Temporal convolutional network (Bai, Kolter and Koltun 2018): layer i looks back in steps of 2^i bars.

    n layers of k taps see R = 1 + (k - 1)(2^n - 1) bars. Nothing is padded: each layer gives fewer bars than
    it reads, until the wanted ones are left. Pre-norm over a bar's own features instead of the paper's weight
    norm, and no dropout, so that no embedding depends on anything but its own bars.
    """

    def __init__(
        self, *, in_features: int, d_model: int, n_layers: int, kernel: int, ff_multiple: int = 2
    ) -> None:
        super().__init__()
        self.receptive_field = self.reach(n_layers, kernel)
        self.out_features = d_model
        self.embed = nn.Linear(in_features, d_model)
        self.blocks = nn.ModuleList(
            DilatedBlock(d_model=d_model, kernel=kernel, dilation=2**layer, ff_multiple=ff_multiple)
            for layer in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.reset_parameters()

    @staticmethod
    def reach(n_layers: int, kernel: int) -> int:
        """R = 1 + (k - 1)(2^n - 1), bars."""
        return 1 + (kernel - 1) * ((1 << n_layers) - 1)

    def tokens(self, n_bars: int) -> int:
        """Bars read for ``n_bars`` embeddings."""
        return n_bars + self.receptive_field - 1

    def reset_parameters(self) -> None:
        """Orthogonal weights; what writes to the residual stream is scaled by 1 / sqrt(n)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, DilatedBlock)
            nn.init.orthogonal_(block.contract.weight, gain=len(self.blocks) ** -0.5)

    def encode(self, stretch: torch.Tensor, first_bar: torch.Tensor) -> torch.Tensor:
        """Encode consecutive bars; see :class:`perpgym.policies.encoders.protocol.Encoder`.

        Args:
            stretch: (B, L, F) float32, scaled features, oldest first, L >= R.
            first_bar: ignored, positions are relative.

        Returns:
            (B, L - R + 1, D).

        Raises:
            ValueError: the stretch is shorter than the receptive field.
        """
        del first_bar
        count_outputs(stretch, self.receptive_field)
        x = self.embed(stretch)  # B L D
        for block in self.blocks:
            x = block(x)  # B fewer D
        embedding: torch.Tensor = self.norm(x)  # B n_out D
        return embedding


class DilatedBlock(nn.Module):
    """One pre-norm residual layer: k taps, d bars apart, then a pointwise network."""

    def __init__(self, *, d_model: int, kernel: int, dilation: int, ff_multiple: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.dilation = dilation
        self.norm = nn.LayerNorm(d_model)
        # a convolution written as one matrix product over its taps: bars stay rows, nothing is transposed
        self.taps = nn.Linear(kernel * d_model, ff_multiple * d_model)
        self.contract = nn.Linear(ff_multiple * d_model, d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, M, D) -> (B, M - (k - 1) d, D), the newest bars."""
        n_out = x.shape[1] - (self.kernel - 1) * self.dilation
        normed = self.norm(x)
        taps = [normed[:, tap * self.dilation :][:, :n_out] for tap in range(self.kernel)]
        hidden = functional.silu(self.taps(torch.cat(taps, dim=-1)))  # B n ff
        output: torch.Tensor = x[:, -n_out:] + self.contract(hidden)  # B n D
        return output

"""Several contracts: one encoder for all of them, then attention across the contracts of a bar."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from perpgym.policies.encoders.protocol import Encoder


class AcrossContracts(nn.Module):
    """Encodes each of A contracts by the same weights; then each contract looks at the others of its bar.

    A contract that has no features at a bar (NaN in any column: not listed yet, or no longer) is looked at by
    none and has a zero embedding there; what a window holds of it from before its listing counts as zero, the
    centre of a scaled feature. Listing, like the rest, is read from the stretch alone: nothing leaks from a
    later bar. The order of contracts means nothing: permuted contracts have permuted embeddings.
    """

    def __init__(self, encoder: Encoder, *, n_assets: int, n_heads: int) -> None:
        """Wrap.

        Args:
            encoder: of one contract, F features to D.
            n_assets: A.
            n_heads: of the attention across contracts; 0 leaves each contract to itself.
        """
        super().__init__()
        self.n_assets = n_assets
        self.encoder = encoder
        self.attention = ContractAttention(encoder.out_features, n_heads) if n_heads else None
        self.receptive_field = encoder.receptive_field
        self.out_features = n_assets * encoder.out_features

    def tokens(self, n_bars: int) -> int:
        """Bars of all contracts read for ``n_bars`` embeddings."""
        return self.n_assets * self.encoder.tokens(n_bars)

    def reset_parameters(self) -> None:
        """Initialise both parts."""
        self.encoder.reset_parameters()
        if self.attention is not None:
            self.attention.reset_parameters()

    def encode(self, stretch: torch.Tensor, first_bar: torch.Tensor) -> torch.Tensor:
        """Encode consecutive bars; see :class:`perpgym.policies.encoders.protocol.Encoder`.

        Args:
            stretch: (B, L, A * F) float32, scaled, contract by contract; NaN where a contract is not listed.
            first_bar: (B,) int64.

        Returns:
            (B, L - R + 1, A * D), contract by contract.

        Raises:
            ValueError: the stretch is shorter than the receptive field.
        """
        by_contract, is_listed = self.by_contract(stretch)
        encoded = self.encoder.encode(by_contract, first_bar.repeat_interleave(self.n_assets))  # B*A n D
        n_out, width = encoded.shape[1:]
        embedding = encoded.reshape(-1, self.n_assets, n_out, width).transpose(1, 2)  # B n A D
        is_listed = is_listed[:, -n_out:]  # B n A
        if self.attention is not None:
            embedding = self.attention(embedding, is_listed)
        return embedding.masked_fill(~is_listed.unsqueeze(-1), 0.0).flatten(2)  # B n A*D

    def by_contract(self, stretch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L, A * F) -> (B * A, L, F) without NaN, and which contracts are listed, (B, L, A)."""
        batch, length, _ = stretch.shape
        columns = stretch.reshape(batch, length, self.n_assets, -1)  # B L A F
        is_listed = ~columns.isnan().any(dim=-1)  # B L A
        columns = columns.masked_fill(~is_listed.unsqueeze(-1), 0.0)
        return columns.transpose(1, 2).reshape(batch * self.n_assets, length, -1), is_listed


class ContractAttention(nn.Module):
    """Pre-norm attention among the contracts of one bar; a contract always sees itself."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(d_model)
        self.query_key_value = nn.Linear(d_model, 3 * d_model)
        self.project = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal weights, biases zero."""
        for layer in (self.query_key_value, self.project):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, is_listed: torch.Tensor) -> torch.Tensor:
        """Attend.

        Args:
            x: (B, n, A, D).
            is_listed: (B, n, A) bool; what is not is seen by itself only.

        Returns:
            (B, n, A, D).
        """
        batch, n_bars, n_assets, width = x.shape
        projected = self.query_key_value(self.norm(x)).view(batch * n_bars, n_assets, 3, self.n_heads, -1)
        query, key, value = projected.transpose(1, 3).unbind(2)  # B*n H A d
        itself = torch.eye(n_assets, dtype=torch.bool, device=x.device)
        # without a key of its own, a bar at which nothing is listed would be 0 / 0
        admitted = is_listed.reshape(-1, 1, 1, n_assets) | itself  # B*n 1 A A
        seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=admitted)  # B*n H A d
        output: torch.Tensor = x + self.project(seen.transpose(1, 2).reshape(batch, n_bars, n_assets, width))
        return output

"""Banded causal transformer: one embedding a bar, from that bar and a fixed number of bars before it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from perpgym.policies.encoders.banded import band_bias, fill_blocks, key_of_distance, with_block_before
from perpgym.policies.encoders.protocol import Explanation, count_outputs


class MarketTransformer(nn.Module):
    """Pre-norm transformer whose attention reaches w bars back, with linear position biases.

    Each of the n layers sees the bar itself and w - 1 before it, so the embedding of bar t depends on exactly
    R = 1 + n (w - 1) bars. Positions enter as distances only (ALiBi, Press et al. 2022, eq. 1), and there is
    neither dropout nor a statistic over the batch: a stretch, a window and one live bar give equal numbers.

    The band is computed in blocks of w bars: a block attends to itself and to the block before it, 2w keys
    instead of L. Every layer keeps only the trailing blocks that the wanted outputs still depend on.
    """

    def __init__(
        self, *, in_features: int, d_model: int, n_layers: int, n_heads: int, band: int, ff_multiple: int = 4
    ) -> None:
        super().__init__()
        self.band = band
        self.receptive_field = self.reach(n_layers, band)
        self.out_features = d_model
        self.embed = nn.Linear(in_features, d_model)
        self.blocks = nn.ModuleList(
            BandedBlock(d_model=d_model, n_heads=n_heads, band=band, ff_multiple=ff_multiple)
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.reset_parameters()

    @staticmethod
    def reach(n_layers: int, band: int) -> int:
        """R = 1 + n (w - 1), bars."""
        return 1 + n_layers * (band - 1)

    def tokens(self, n_bars: int) -> int:
        """Bars read for ``n_bars`` embeddings."""
        return n_bars + self.receptive_field - 1

    def reset_parameters(self) -> None:
        """Orthogonal weights; what writes to the residual stream is scaled by 1 / sqrt(2 n) (GPT-2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight)
                nn.init.zeros_(module.bias)
        scale = (2 * len(self.blocks)) ** -0.5
        for block in self.blocks:
            assert isinstance(block, BandedBlock)
            nn.init.orthogonal_(block.project.weight, gain=scale)
            nn.init.orthogonal_(block.contract.weight, gain=scale)

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
        n_out = count_outputs(stretch, self.receptive_field)
        x = self.embed(fill_blocks(stretch, self.band))  # B M D
        for depth, block in enumerate(self.blocks, start=1):
            needed = n_out + (len(self.blocks) - depth) * (self.band - 1)
            x = block(x, -(-needed // self.band))  # B blocks*w D
        embedding: torch.Tensor = self.norm(x[:, -n_out:])  # B n_out D
        return embedding

    @torch.no_grad()
    def explain(self, stretch: torch.Tensor) -> Explanation:
        """Which bars the embeddings of a (B, L, F) stretch rest on, by attention rollout.

        Each layer passes on half of a bar as it is, past the attention, and half by the mean of its heads'
        weights; the product over the layers says how much of each bar arrives (Abnar and Zuidema 2020,
        eq. 1). What values and feed-forward networks do on the way it does not know.
        """
        n_out = count_outputs(stretch, self.receptive_field)
        x = self.embed(fill_blocks(stretch, self.band))  # B M D
        share = x.new_ones(*stretch.shape[:2], 1)  # B L 1
        for depth, block in enumerate(self.blocks, start=1):
            assert isinstance(block, BandedBlock)
            needed = n_out + (len(self.blocks) - depth) * (self.band - 1)
            n_blocks = -(-needed // self.band)
            passed = 0.5 * block.weights(x, n_blocks)[:, -needed:]  # B needed w
            passed[..., 0] += 0.5
            share = _through(share, passed)  # B needed reach
            x = block(x, n_blocks)  # B blocks*w D
        return Explanation(selection=None, attention=share)


class BandedBlock(nn.Module):
    """One pre-norm layer: attention over the band, then a feed-forward network."""

    bias: torch.Tensor

    def __init__(self, *, d_model: int, n_heads: int, band: int, ff_multiple: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.band = band
        self.norm_attention = nn.LayerNorm(d_model)
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.project = nn.Linear(d_model, d_model)
        self.norm_ff = nn.LayerNorm(d_model)
        self.expand = nn.Linear(d_model, ff_multiple * d_model)
        self.contract = nn.Linear(ff_multiple * d_model, d_model)
        self.register_buffer("bias", band_bias(n_heads, band), persistent=False)

    def forward(self, x: torch.Tensor, n_blocks: int) -> torch.Tensor:
        """Outputs of the last ``n_blocks`` blocks of x.

        Args:
            x: (B, M, D), M a multiple of w.
            n_blocks: at most M / w.

        Returns:
            (B, n_blocks * w, D). If there is no block before the first one asked for, the first w - 1 outputs
            rest on zeros and are for the caller to drop.
        """
        residual = x[:, -n_blocks * self.band :]  # B n*w D
        normed = self.norm_attention(x)
        query = self.query(normed[:, -n_blocks * self.band :])  # B n*w D
        attended = self._attend(query, self.key_value(normed), n_blocks)  # B n*w D
        x = residual + self.project(attended)
        hidden = functional.silu(self.expand(self.norm_ff(x)))  # B n*w ff
        output: torch.Tensor = x + self.contract(hidden)  # B n*w D
        return output

    def weights(self, x: torch.Tensor, n_blocks: int) -> torch.Tensor:
        """What each bar attends to, mean over heads: (B, M, D) -> (B, n_blocks * w, w), by bars back."""
        batch, w, heads = len(x), self.band, self.n_heads
        normed = self.norm_attention(x)
        query = self.query(normed[:, -n_blocks * w :]).view(batch * n_blocks, w, heads, -1)  # B*n w H d
        key = with_block_before(self.key_value(normed), w, n_blocks)[..., : x.shape[-1]]  # B*n 2w D
        key = key.reshape(batch * n_blocks, 2 * w, heads, -1)  # B*n 2w H d
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5 + self.bias
        mean = scores.softmax(dim=-1).mean(dim=1)  # B*n w 2w
        by_distance = mean.gather(2, key_of_distance(w).to(x.device).expand(len(mean), -1, -1))  # B*n w w
        weights: torch.Tensor = by_distance.view(batch, n_blocks * w, w)
        return weights

    def _attend(self, query: torch.Tensor, key_value: torch.Tensor, n_blocks: int) -> torch.Tensor:
        batch, _, width = query.shape
        w, heads = self.band, self.n_heads
        pairs = with_block_before(key_value, w, n_blocks)  # B*n 2w 2D
        pairs = pairs.view(batch * n_blocks, 2 * w, 2, heads, -1)  # B*n 2w 2 H d
        key, value = pairs.transpose(1, 3).unbind(2)  # B*n H 2w d
        query = query.view(batch * n_blocks, w, heads, -1).transpose(1, 2)  # B*n H w d
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self.bias
        )  # B*n H w d
        return attended.transpose(1, 2).reshape(batch, n_blocks * w, width)  # B n*w D


def _through(share: torch.Tensor, passed: torch.Tensor) -> torch.Tensor:
    """One layer more of a rollout.

    Args:
        share: (B, n + w - 1, R), what each bar holds of the bars up to R - 1 before it.
        passed: (B, n, w), what the newest n bars take of the bars up to w - 1 before them.

    Returns:
        (B, n, R + w - 1), what those hold.
    """
    batch, n_bars, band = passed.shape
    reach = share.shape[-1]
    rolled = share.new_zeros(batch, n_bars, reach + band - 1)
    for back in range(band):
        of_bar = share[:, band - 1 - back : band - 1 - back + n_bars]  # B n R
        rolled[..., back : back + reach] += passed[..., back, None] * of_bar
    return rolled

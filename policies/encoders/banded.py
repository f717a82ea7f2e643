"""Banded causal attention in blocks: what a block of queries may look at, and how positions enter."""

from __future__ import annotations

import torch
from torch.nn import functional


def band_bias(n_heads: int, band: int) -> torch.Tensor:
    """What is added to the scores of a block's w queries over its 2w keys.

    Returns:
        (1, H, w, 2w) float32: -slope * distance for distances 0 ... w - 1, -inf outside the band; slopes
        2^(-8h/H) as in ALiBi (Press, Smith and Lewis 2022), section 3.
    """
    query = torch.arange(band).unsqueeze(1)
    key = torch.arange(2 * band) - band
    distance = (query - key).float()  # w 2w
    slope = 2.0 ** (-8.0 * torch.arange(1, n_heads + 1) / n_heads)
    bias = -slope.view(n_heads, 1, 1) * distance  # H w 2w
    return bias.masked_fill((distance < 0) | (distance >= band), float("-inf")).unsqueeze(0)


def key_of_distance(band: int) -> torch.Tensor:
    """(w, w) int64: among a block's 2w keys, the one that lies j bars before each of its w queries."""
    return torch.arange(band).unsqueeze(1) + band - torch.arange(band)


def with_block_before(x: torch.Tensor, band: int, n_blocks: int) -> torch.Tensor:
    """The last ``n_blocks`` blocks of w bars, each behind the block before it: what its queries can reach.

    Args:
        x: (B, M, C), M a multiple of w.
        band: w.
        n_blocks: n, at most M / w; where no block lies before the first one, zeros stand in.

    Returns:
        (B * n, 2w, C).
    """
    batch, _, width = x.shape
    blocks = x.view(batch, -1, band, width)  # B m w C
    if blocks.shape[1] == n_blocks:
        blocks = functional.pad(blocks, (0, 0, 0, 0, 1, 0))  # B m+1 w C
    blocks = blocks[:, -n_blocks - 1 :]
    pairs = torch.cat((blocks[:, :-1], blocks[:, 1:]), dim=2)  # B n 2w C
    return pairs.view(batch * n_blocks, 2 * band, width)


def fill_blocks(x: torch.Tensor, band: int) -> torch.Tensor:
    """(B, L, C) with zeros in front, up to a multiple of w bars; no wanted output may depend on them."""
    return functional.pad(x, (0, 0, -x.shape[1] % band, 0))

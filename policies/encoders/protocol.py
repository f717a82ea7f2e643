"""The contract of an encoder: causal, finite receptive field, blind to the account."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch


class Explanation(NamedTuple):
    """What an embedding rests on; each row of either sums to one.

    Attributes:
        selection: (B, n, F), weight of each feature at each wanted bar; None of an encoder without
            variable selection.
        attention: (B, n, R), weight of the bar j bars back at each wanted bar.
    """

    selection: torch.Tensor | None
    attention: torch.Tensor


@runtime_checkable
class Explaining(Protocol):
    """An encoder that can show what it looked at."""

    receptive_field: int

    def explain(self, stretch: torch.Tensor) -> Explanation:
        """Which features and which bars the embeddings of a (B, L, F) stretch rest on; no gradients."""
        ...


class Encoder(Protocol):
    """Turns a stretch of tape into one embedding a bar.

    The embedding of bar t depends on bars t - R + 1 ... t and the weights alone, so a stretch, a plain
    window and a live step give the same numbers. Implementations are ``torch.nn.Module``.

    Attributes:
        receptive_field: R, bars.
        out_features: D.
    """

    receptive_field: int
    out_features: int

    def encode(self, stretch: torch.Tensor, first_bar: torch.Tensor) -> torch.Tensor:
        """Encode consecutive bars.

        Args:
            stretch: (B, L, F) float32, scaled features, oldest first, L >= R.
            first_bar: (B,) int64, bars since the epoch of ``stretch[:, 0]``, or that modulo 2**20; encoders
                that restart on an absolute grid need it, others ignore it.

        Returns:
            (B, L - R + 1, D): the embeddings of bars R - 1 ... L - 1 of the stretch.

        Raises:
            ValueError: the stretch is shorter than the receptive field.
        """
        ...

    def tokens(self, n_bars: int) -> int:
        """Bars of single contracts that are read to give ``n_bars`` consecutive embeddings."""
        ...

    def reset_parameters(self) -> None:
        """Initialise the weights."""
        ...


def count_outputs(stretch: torch.Tensor, receptive_field: int) -> int:
    """L - R + 1, the embeddings that a (B, L, F) stretch gives.

    Raises:
        ValueError: there is not even one.
    """
    n_out = stretch.shape[1] - receptive_field + 1
    if n_out < 1:
        raise ValueError(
            f"a stretch must hold at least {receptive_field} bars (the receptive field), "
            f"had {stretch.shape[1]}"
        )
    return n_out

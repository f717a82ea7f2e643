"""What every encoder must keep to, as a check that anybody may run on one of their own."""

from __future__ import annotations

import torch

from perpgym.policies.encoders.protocol import Encoder

_MEMBERS = ("receptive_field", "out_features", "encode", "tokens", "reset_parameters")


@torch.no_grad()
def check_encoder(encoder: Encoder, in_features: int, *, n_bars: int = 40, seed: int = 0) -> None:
    """Refuse an encoder whose embeddings are not functions of their own R bars and the weights.

    It is judged with the weights that it has: call it once on fresh ones and once after training.

    Args:
        encoder: also a ``torch.nn.Module``.
        in_features: F.
        n_bars: embeddings that are compared.
        seed: of the made-up bars.

    Raises:
        ValueError: it breaks the protocol; says how.
    """
    if missing := [name for name in _MEMBERS if not hasattr(encoder, name)]:
        raise ValueError(f"an encoder needs {', '.join(_MEMBERS)}; {', '.join(missing)} is missing")
    reach = encoder.receptive_field
    generator = torch.Generator().manual_seed(seed)
    stretch = torch.randn(3, reach + n_bars - 1, in_features, generator=generator)
    first_bar = torch.tensor([0, 11, 473_353])
    together = encoder.encode(stretch, first_bar)
    if together.shape != (wanted := (3, n_bars, encoder.out_features)):
        raise ValueError(f"encode must give {wanted} (B, L - R + 1, D), gave {tuple(together.shape)}")
    if encoder.tokens(n_bars) < n_bars:
        raise ValueError(f"tokens({n_bars}) must count every bar read, so at least {n_bars}")
    _check_future(encoder, stretch, first_bar, together)
    _check_windows(encoder, stretch, first_bar, together)
    try:
        encoder.encode(stretch[:, : reach - 1], first_bar)
    except ValueError:
        return
    raise ValueError(f"a stretch of {reach - 1} bars, fewer than the receptive field, must raise ValueError")


def _check_future(
    encoder: Encoder, stretch: torch.Tensor, first_bar: torch.Tensor, together: torch.Tensor
) -> None:
    changed, known = stretch.clone(), together.shape[1] // 2
    changed[:, encoder.receptive_field - 1 + known :] += 100.0
    if not torch.equal(encoder.encode(changed, first_bar)[:, :known], together[:, :known]):
        raise ValueError("it sees the future: other later bars changed an earlier embedding")


def _check_windows(
    encoder: Encoder, stretch: torch.Tensor, first_bar: torch.Tensor, together: torch.Tensor
) -> None:
    """Stretch against the R bars of each embedding alone."""
    reach, n_bars = encoder.receptive_field, together.shape[1]
    for row in range(len(stretch)):
        for at in range(n_bars):
            alone = encoder.encode(stretch[row : row + 1, at : at + reach], first_bar[row : row + 1] + at)
            off = float((alone[0, 0] - together[row, at]).abs().max())
            if not off <= 1e-5:
                raise ValueError(
                    f"a window of its {reach} bars alone gives an embedding that is {off:.2g} off: it rests "
                    "on bars before them, on other stretches of the batch, or on chance; live it would differ"
                )

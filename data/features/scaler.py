"""The frozen affine-and-clip map from raw columns to network inputs, fitted on the training period alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# a scale below this share of the column's size is rounding, not variation
_CONSTANT = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaler:
    """clip((x - center) / scale, ±clip), column by column, in float32 as in the policy's buffer.

    Attributes:
        center: (F,) float32, in the column's unit.
        scale: (F,) float32 > 0, in the column's unit.
        clip: (F,) float32 > 0, in scales.
    """

    center: NDArray[np.float32]
    scale: NDArray[np.float32]
    clip: NDArray[np.float32]

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("center", "scale", "clip")}
        if self.center.ndim != 1 or len(set(shapes.values())) != 1:
            raise ValueError(f"a scaler's center, scale and clip must be (F,) arrays alike, were {shapes}")
        for name in shapes:
            values = getattr(self, name)
            if not np.isfinite(values).all() or (name != "center" and not (values > 0).all()):
                raise ValueError(
                    f"a scaler's {name} must be finite{'' if name == 'center' else ' and positive'}"
                )

    def transform(self, raw: NDArray[np.floating]) -> NDArray[np.float32]:
        """Scale raw columns.

        Args:
            raw: (..., F) raw features.

        Returns:
            (..., F) float32 in [-clip, clip].
        """
        scaled = (np.asarray(raw, dtype=np.float32) - self.center) / self.scale
        return np.asarray(np.clip(scaled, -self.clip, self.clip))

    def to_json(self) -> dict[str, list[float]]:
        """Plain JSON types; the round trip is exact."""
        return {name: [float(v) for v in getattr(self, name)] for name in ("center", "scale", "clip")}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Scaler:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: a field is missing or unknown, or a value impossible.
        """
        if set(raw) != {"center", "scale", "clip"}:
            raise ValueError(f"a scaler has the fields center, scale and clip, these were {sorted(raw)}")
        return cls(**{name: np.asarray(values, dtype=np.float32) for name, values in raw.items()})


def fit_scaler(
    features: NDArray[np.floating],
    start: int,
    stop: int,
    *,
    is_valid: NDArray[np.bool_] | None = None,
    winsor: float = 0.005,
    clip: float = 5.0,
) -> Scaler:
    """Mean and deviation of each column over bars ``start:stop``, its extreme tails pulled in first.

    Quartiles would fail on columns that rest at one value most of the time (BTC funding is exactly 1 bp for
    weeks); plain moments on days such as 2020-03-12. All contracts are pooled, each where it is valid.

    Args:
        features: (T, A, F) raw columns.
        start, stop: bars of the training period; start at the tape's ``first_valid_bar`` or later.
        is_valid: (T, A) bool, ``Tape.is_valid``; None takes every row.
        winsor: fraction of each tail that is pulled in to its quantile.
        clip: scales at which ``transform`` clips.

    Returns:
        The scaler; a column that is constant over the period gets scale 1.

    Raises:
        ValueError: the period is empty or lies outside the tape, or holds a number that is not finite.
    """
    if not 0 <= start < stop <= features.shape[0]:
        raise ValueError(
            f"a scaler needs bars 0 <= start < stop <= {features.shape[0]}, was start={start}, stop={stop}"
        )
    if not 0 <= winsor < 0.5:
        raise ValueError(f"winsor must lie between 0 and 0.5 (a fraction of each tail), was {winsor}")
    rows = np.asarray(features[start:stop], dtype=np.float64)
    rows = rows.reshape(-1, rows.shape[-1]) if is_valid is None else rows[is_valid[start:stop]]
    if len(rows) == 0:
        raise ValueError(f"a scaler needs valid rows, there are none in bars {start}:{stop}")
    if not np.isfinite(rows).all():
        columns = np.flatnonzero(~np.isfinite(rows).all(axis=0)).tolist()
        raise ValueError(
            f"a scaler needs finite features; columns {columns} are not finite in {start}:{stop}"
        )
    low, high = np.quantile(rows, [winsor, 1.0 - winsor], axis=0)
    pulled_in = np.clip(rows, low, high)
    center, scale = pulled_in.mean(axis=0), pulled_in.std(axis=0)
    # events rarer than winsor leave a constant column behind: their own deviation is all there is
    scale = np.where(_varies(scale, center), scale, rows.std(axis=0))
    return Scaler(
        center=center.astype(np.float32),
        scale=np.where(_varies(scale, center), scale, 1.0).astype(np.float32),
        clip=np.full(rows.shape[1], clip, dtype=np.float32),
    )


def _varies(scale: NDArray[np.float64], center: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray((scale > _CONSTANT * np.abs(center)) & (scale > 0))

"""Causal features of finite memory, computed once per tape.

Each module registers its columns when it is imported; their order here is the columns' order on the tape.
"""

from perpgym.data.features import (  # noqa: F401  (imported for registration)
    calendar,
    funding,
    oscillators,
    returns,
    risk,
    volatility,
    volume,
)
from perpgym.data.features.registry import (
    Feature,
    compute_features,
    default_names,
    feature,
    feature_table,
    get_feature,
    newest_features,
)
from perpgym.data.features.scaler import Scaler, fit_scaler
from perpgym.data.features.volatility import sigma_per_bar

__all__ = [
    "Feature",
    "Scaler",
    "compute_features",
    "default_names",
    "feature",
    "feature_table",
    "fit_scaler",
    "get_feature",
    "newest_features",
    "sigma_per_bar",
]

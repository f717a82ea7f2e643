"""From a config to its encoders: one for the market's features, one for the risk columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from perpgym.policies.encoders import (
    AcrossContracts,
    DilatedConvolutions,
    Encoder,
    GridRecurrent,
    LastBar,
    MarketTransformer,
    TemporalFusion,
)

if TYPE_CHECKING:
    from perpgym.policies.config import PolicyConfig


class EncoderRecipe(NamedTuple):
    """How a named encoder is made from a config.

    Attributes:
        build: from the config and F, the columns of one contract.
        reach: R, bars, of what ``build`` makes from the same config; asked where nothing is built.
    """

    build: Callable[[PolicyConfig, int], Encoder]
    reach: Callable[[PolicyConfig], int]


def _transformer(config: PolicyConfig, n_features: int) -> Encoder:
    return MarketTransformer(
        in_features=n_features,
        d_model=config.d_model,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        band=config.band,
        ff_multiple=config.ff_multiple,
    )


def _recurrent(config: PolicyConfig, n_features: int) -> Encoder:
    return GridRecurrent(
        in_features=n_features,
        hidden=config.d_model,
        chunk=config.chunk,
        warmup=config.warmup,
        cell="gru" if config.encoder == "gru" else "lstm",
        n_layers=config.n_layers,
    )


def _tcn(config: PolicyConfig, n_features: int) -> Encoder:
    return DilatedConvolutions(
        in_features=n_features,
        d_model=config.d_model,
        n_layers=config.n_layers,
        kernel=config.kernel,
        ff_multiple=config.ff_multiple,
    )


def _tft(config: PolicyConfig, n_features: int) -> Encoder:
    return TemporalFusion(
        in_features=n_features, d_model=config.d_model, n_heads=config.n_heads, band=config.band
    )


def _mlp(config: PolicyConfig, n_features: int) -> Encoder:
    return LastBar(in_features=n_features, d_model=config.d_model, n_layers=config.n_layers)


# the cell is the encoder's name
_RECURRENT = EncoderRecipe(_recurrent, lambda config: GridRecurrent.reach(config.chunk, config.warmup))
# what ``policy.encoder`` may name. A program may add its own before it reads a config; a config cannot: it is
# data from somebody, and must not choose what code runs.
ENCODERS: dict[str, EncoderRecipe] = {
    "transformer": EncoderRecipe(
        _transformer, lambda config: MarketTransformer.reach(config.n_layers, config.band)
    ),
    "lstm": _RECURRENT,
    "gru": _RECURRENT,
    "tcn": EncoderRecipe(_tcn, lambda config: DilatedConvolutions.reach(config.n_layers, config.kernel)),
    "tft": EncoderRecipe(_tft, lambda config: config.band),
    "mlp": EncoderRecipe(_mlp, lambda config: LastBar.receptive_field),
}


def build_market_encoder(config: PolicyConfig, n_features: int, n_assets: int = 1) -> Encoder:
    """The encoder that ``config.encoder`` names.

    Args:
        config: of the policy.
        n_features: F, columns of one contract.
        n_assets: A. One contract is encoded as it is; more of them share the encoder's weights and then look
            at each other, unless ``config.cross_asset`` is off.

    Raises:
        ValueError: the encoder reaches further, or less far, than its recipe says.
    """
    recipe = ENCODERS[config.encoder]
    encoder = recipe.build(config, n_features)
    if encoder.receptive_field != recipe.reach(config):
        raise ValueError(
            f"the recipe of encoder {config.encoder!r} promises a reach of {recipe.reach(config)} bars, but "
            f"what it builds has a receptive_field of {encoder.receptive_field}: make them equal"
        )
    if n_assets == 1:
        return encoder
    return AcrossContracts(encoder, n_assets=n_assets, n_heads=config.n_heads if config.cross_asset else 0)


def build_risk_encoder(config: PolicyConfig, n_columns: int, n_assets: int = 1) -> Encoder | None:
    """The risk LSTM, one set of weights for all contracts; None where ``config.risk_hidden`` is 0."""
    if config.risk_hidden == 0:
        return None
    encoder = GridRecurrent(
        in_features=n_columns,
        hidden=config.risk_hidden,
        chunk=config.risk_chunk,
        warmup=config.risk_warmup,
    )
    return encoder if n_assets == 1 else AcrossContracts(encoder, n_assets=n_assets, n_heads=0)

"""From a config to its encoders: one for the market's features, one for the risk columns."""

from __future__ import annotations

from perpgym.policies.config import PolicyConfig
from perpgym.policies.encoders import (
    AcrossContracts,
    DilatedConvolutions,
    Encoder,
    GridRecurrent,
    LastBar,
    MarketTransformer,
    TemporalFusion,
)


def build_market_encoder(config: PolicyConfig, n_features: int, n_assets: int = 1) -> Encoder:
    """The encoder that ``config.encoder`` names.

    Args:
        config: of the policy.
        n_features: F, columns of one contract.
        n_assets: A. One contract is encoded as it is; more of them share the encoder's weights and then look
            at each other, unless ``config.cross_asset`` is off.
    """
    encoder = _build_for_one_contract(config, n_features)
    if n_assets == 1:
        return encoder
    return AcrossContracts(encoder, n_assets=n_assets, n_heads=config.n_heads if config.cross_asset else 0)


def _build_for_one_contract(config: PolicyConfig, n_features: int) -> Encoder:
    match config.encoder:
        case "transformer":
            return MarketTransformer(
                in_features=n_features,
                d_model=config.d_model,
                n_layers=config.n_layers,
                n_heads=config.n_heads,
                band=config.band,
                ff_multiple=config.ff_multiple,
            )
        case "lstm" | "gru":
            return GridRecurrent(
                in_features=n_features,
                hidden=config.d_model,
                chunk=config.chunk,
                warmup=config.warmup,
                cell=config.encoder,
                n_layers=config.n_layers,
            )
        case "tcn":
            return DilatedConvolutions(
                in_features=n_features,
                d_model=config.d_model,
                n_layers=config.n_layers,
                kernel=config.kernel,
                ff_multiple=config.ff_multiple,
            )
        case "tft":
            return TemporalFusion(
                in_features=n_features, d_model=config.d_model, n_heads=config.n_heads, band=config.band
            )
        case "mlp":
            return LastBar(in_features=n_features, d_model=config.d_model, n_layers=config.n_layers)


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

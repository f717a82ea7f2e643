"""Causal encoders with a finite receptive field: what turns bars into embeddings."""

from perpgym.policies.encoders.market_transformer import MarketTransformer
from perpgym.policies.encoders.protocol import Encoder
from perpgym.policies.encoders.risk_lstm import RiskLSTM

__all__ = ["Encoder", "MarketTransformer", "RiskLSTM"]

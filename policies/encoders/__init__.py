"""Causal encoders with a finite receptive field: what turns bars into embeddings."""

from perpgym.policies.encoders.across_contracts import AcrossContracts
from perpgym.policies.encoders.conformance import check_encoder
from perpgym.policies.encoders.market_transformer import MarketTransformer
from perpgym.policies.encoders.mlp import LastBar
from perpgym.policies.encoders.protocol import Encoder, Explaining, Explanation, count_outputs
from perpgym.policies.encoders.recurrent import GridRecurrent
from perpgym.policies.encoders.tcn import DilatedConvolutions
from perpgym.policies.encoders.temporal_fusion import TemporalFusion

__all__ = [
    "AcrossContracts",
    "DilatedConvolutions",
    "Encoder",
    "Explaining",
    "Explanation",
    "GridRecurrent",
    "LastBar",
    "MarketTransformer",
    "TemporalFusion",
    "check_encoder",
    "count_outputs",
]

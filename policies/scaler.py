"""The frozen scaler as buffers of the policy: its constants travel with the weights."""

from __future__ import annotations

import torch
from torch import nn

from perpgym.data.features.scaler import Scaler


class FrozenScaler(nn.Module):
    """clip((x - center) / scale, -clip, clip) on the last axis, the same float32 arithmetic as ``Scaler``."""

    center: torch.Tensor
    scale: torch.Tensor
    clip: torch.Tensor

    def __init__(self, scaler: Scaler, n_assets: int = 1) -> None:
        """Repeat the (F,) constants for A contracts side by side."""
        super().__init__()
        for name in ("center", "scale", "clip"):
            self.register_buffer(name, torch.tensor(getattr(scaler, name)).repeat(n_assets))

    def __len__(self) -> int:
        return int(self.center.shape[0])

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """(..., A * F) float32 raw -> the same, in [-clip, clip]."""
        return torch.clamp((raw - self.center) / self.scale, -self.clip, self.clip)

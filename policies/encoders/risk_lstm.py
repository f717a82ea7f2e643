"""LSTM over market risk that restarts on an absolute grid of bars, so that its memory is finite and exact."""

from __future__ import annotations

import torch
from torch import nn


class RiskLSTM(nn.Module):
    """The state of bar t runs from bar floor(t / C) * C - B, from zero, with bars counted from the epoch.

    A plain LSTM that is merely warmed up gives another state for every starting point, by as much as 1.0
    once its forget gates have learnt a long memory. On a fixed grid the start of bar t is a function of t
    alone, so a stretch, a window observation and a live step agree for any weights. R = B + C bars.
    """

    def __init__(self, *, in_features: int, hidden: int, chunk: int, warmup: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.warmup = warmup
        self.receptive_field = warmup + chunk
        self.out_features = hidden
        self.lstm = nn.LSTM(in_features, hidden, batch_first=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal weights, forget bias 1 (Jozefowicz et al. 2015)."""
        hidden = self.out_features
        for name, parameter in self.lstm.named_parameters():
            if "weight" in name:
                for gate in parameter.data.chunk(4):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.zeros_(parameter)
        # torch's order of gates is input, forget, cell, output, with two biases that are added
        nn.init.ones_(self.lstm.get_parameter("bias_ih_l0")[hidden : 2 * hidden])

    def encode(self, stretch: torch.Tensor, first_bar: torch.Tensor) -> torch.Tensor:
        """Encode consecutive bars; see :class:`perpgym.policies.encoders.protocol.Encoder`.

        Args:
            stretch: (B, L, K) float32, scaled risk features, oldest first, L >= R.
            first_bar: (B,) int64, bars since the epoch of ``stretch[:, 0]``, or that modulo a multiple of C.

        Returns:
            (B, L - R + 1, D).

        Raises:
            ValueError: the stretch is shorter than the receptive field.
        """
        batch, length, width = stretch.shape
        n_out = length - self.receptive_field + 1
        if n_out < 1:
            raise ValueError(f"a stretch must hold at least {self.receptive_field} bars, had {length}")
        first_out = first_bar + self.receptive_field - 1  # B
        phase = torch.remainder(first_out, self.chunk)  # B
        n_chunks = (n_out + self.chunk - 2) // self.chunk + 1
        # positions in the stretch of the bars that each chunk reads; the first is never negative
        start = self.receptive_field - 1 - phase - self.warmup  # B
        grid = torch.arange(n_chunks, device=stretch.device) * self.chunk  # n
        steps = torch.arange(self.receptive_field, device=stretch.device)  # R
        position = start.view(-1, 1, 1) + grid.view(1, -1, 1) + steps  # B n R
        # what lies beyond the stretch is later than every wanted output: any finite value will do
        position = position.clamp_(max=length - 1).view(batch, -1, 1).expand(-1, -1, width)  # B n*R K
        chunks = stretch.gather(1, position).view(batch * n_chunks, self.receptive_field, width)  # B*n R K
        states: torch.Tensor = self.lstm(chunks)[0]  # B*n R D
        states = states[:, self.warmup :].reshape(batch, n_chunks * self.chunk, -1)  # B n*C D
        wanted = phase.view(-1, 1) + torch.arange(n_out, device=stretch.device)  # B n_out
        wanted = wanted.unsqueeze(-1).expand(-1, -1, self.out_features)  # B n_out D
        return torch.gather(states, 1, wanted)

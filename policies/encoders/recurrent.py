"""LSTM and GRU that restart on an absolute grid of bars, so that their memory is finite and exact."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from perpgym.policies.encoders.protocol import count_outputs

Cell = Literal["lstm", "gru"]


class GridRecurrent(nn.Module):
    """The state of bar t runs from bar floor(t / C) * C - B, from zero, with bars counted from the epoch.

    A recurrent network that is merely warmed up gives another state for every starting point, by as much as
    1.0 once its gates have learnt a long memory. On a fixed grid the start of bar t is a function of t alone,
    so a stretch, a window observation and a live step agree for any weights. R = B + C bars.

    A stretch becomes one batch of segments of R bars, one for each chunk of C; torch's own kernel runs them.
    """

    def __init__(
        self,
        *,
        in_features: int,
        hidden: int,
        chunk: int,
        warmup: int,
        cell: Cell = "lstm",
        n_layers: int = 1,
    ) -> None:
        super().__init__()
        self.chunk = chunk
        self.warmup = warmup
        self.receptive_field = self.reach(chunk, warmup)
        self.out_features = hidden
        self.cell = cell
        kind = nn.LSTM if cell == "lstm" else nn.GRU
        self.recurrent = kind(in_features, hidden, num_layers=n_layers, batch_first=True)
        self.reset_parameters()

    @staticmethod
    def reach(chunk: int, warmup: int) -> int:
        """R = B + C, bars."""
        return warmup + chunk

    def tokens(self, n_bars: int) -> int:
        """Bars read for ``n_bars`` embeddings: chunks overlap by the warm-up."""
        return self._count_chunks(n_bars) * self.receptive_field

    def reset_parameters(self) -> None:
        """Orthogonal weights; an LSTM's forget bias is 1 (Jozefowicz et al. 2015)."""
        gates = 4 if self.cell == "lstm" else 3
        for name, parameter in self.recurrent.named_parameters():
            if "weight" in name:
                for gate in parameter.data.chunk(gates):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.zeros_(parameter)
        if self.cell == "lstm":
            self.lengthen_memory(1.0)

    @torch.no_grad()
    def lengthen_memory(self, by: float) -> None:
        """Add to the bias of the gate that keeps the state: an LSTM's forget gate, a GRU's update gate."""
        # torch's gates are input, forget, cell, output and reset, update, new, with two biases that are added
        keeps = slice(self.out_features, 2 * self.out_features)
        for layer in range(self.recurrent.num_layers):
            self.recurrent.get_parameter(f"bias_ih_l{layer}")[keeps] += by

    def encode(self, stretch: torch.Tensor, first_bar: torch.Tensor) -> torch.Tensor:
        """Encode consecutive bars; see :class:`perpgym.policies.encoders.protocol.Encoder`.

        Args:
            stretch: (B, L, F) float32, scaled features, oldest first, L >= R.
            first_bar: (B,) int64, bars since the epoch of ``stretch[:, 0]``, or that modulo a multiple of C.

        Returns:
            (B, L - R + 1, D).

        Raises:
            ValueError: the stretch is shorter than the receptive field.
        """
        batch, length, width = stretch.shape
        n_out = count_outputs(stretch, self.receptive_field)
        n_chunks = self._count_chunks(n_out)
        phase = torch.remainder(first_bar + self.receptive_field - 1, self.chunk)  # B
        # positions in the stretch of the bars that each chunk reads; the first is never negative
        start = self.receptive_field - 1 - phase - self.warmup  # B
        grid = torch.arange(n_chunks, device=stretch.device) * self.chunk  # n
        steps = torch.arange(self.receptive_field, device=stretch.device)  # R
        position = start.view(-1, 1, 1) + grid.view(1, -1, 1) + steps  # B n R
        # what lies beyond the stretch is later than every wanted output: any finite value will do
        position = position.clamp_(max=length - 1).view(batch, -1, 1).expand(-1, -1, width)  # B n*R F
        chunks = stretch.gather(1, position).view(batch * n_chunks, self.receptive_field, width)  # B*n R F
        states: torch.Tensor = self.recurrent(chunks)[0]  # B*n R D
        states = states[:, self.warmup :].reshape(batch, n_chunks * self.chunk, -1)  # B n*C D
        wanted = phase.view(-1, 1) + torch.arange(n_out, device=stretch.device)  # B n_out
        wanted = wanted.unsqueeze(-1).expand(-1, -1, self.out_features)  # B n_out D
        return torch.gather(states, 1, wanted)

    def _count_chunks(self, n_out: int) -> int:
        """Chunks that n_out bars can touch, wherever on the grid they begin."""
        return (n_out + self.chunk - 2) // self.chunk + 1

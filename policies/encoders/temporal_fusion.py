"""Temporal fusion encoder: chooses among features, then among bars, and can show what it chose."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from perpgym.policies.encoders.banded import band_bias, fill_blocks, key_of_distance, with_block_before
from perpgym.policies.encoders.protocol import Explanation, count_outputs


class TemporalFusion(nn.Module):
    """The past-only half of the temporal fusion transformer (Lim et al. 2021): R = w bars.

    Variable selection (section 4.2), a gated residual network (4.1), interpretable attention whose heads
    share one value, so that their mean says where it looked (4.4), a gated residual network again, and gated
    skips around them. There is one attention layer, so its weights are all that the past contributes.

    Differs from the paper: distances enter through linear biases (ALiBi) instead of an LSTM, there are no
    static covariates, no dropout and no future inputs.
    """

    def __init__(self, *, in_features: int, d_model: int, n_heads: int, band: int) -> None:
        super().__init__()
        self.receptive_field = band
        self.out_features = d_model
        self.select = VariableSelection(in_features, d_model)
        self.enrich = GatedResidual(d_model)
        self.attend = SharedValueAttention(d_model, n_heads, band)
        self.gate_attention = GatedSkip(d_model, d_model)
        self.process = GatedResidual(d_model)
        self.gate_output = GatedSkip(d_model, d_model)
        self.reset_parameters()

    def tokens(self, n_bars: int) -> int:
        """Bars read for ``n_bars`` embeddings."""
        return n_bars + self.receptive_field - 1

    def reset_parameters(self) -> None:
        """Orthogonal weights, biases zero; each part adds its own."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight)
                nn.init.zeros_(module.bias)
        self.select.reset_variables()

    def encode(self, stretch: torch.Tensor, first_bar: torch.Tensor) -> torch.Tensor:
        """Encode consecutive bars; see :class:`perpgym.policies.encoders.protocol.Encoder`.

        Args:
            stretch: (B, L, F) float32, scaled features, oldest first, L >= R.
            first_bar: ignored, positions are relative.

        Returns:
            (B, L - R + 1, D).

        Raises:
            ValueError: the stretch is shorter than the receptive field.
        """
        del first_bar
        return self._forward(stretch)[0]

    @torch.no_grad()
    def explain(self, stretch: torch.Tensor) -> Explanation:
        """Which features and which bars the embeddings of a (B, L, F) stretch rest on."""
        return self._forward(stretch)[1]

    def _forward(self, stretch: torch.Tensor) -> tuple[torch.Tensor, Explanation]:
        n_out = count_outputs(stretch, self.receptive_field)
        selected, selection = self.select(stretch)  # B L D, B L F
        enriched = self.enrich(selected)  # B L D
        attended, attention = self.attend(enriched, n_out)  # B n D, B n w
        looked = self.gate_attention(attended, enriched[:, -n_out:])  # B n D
        embedding = self.gate_output(self.process(looked), selected[:, -n_out:])  # B n D
        return embedding, Explanation(selection[:, -n_out:], attention)


class GatedSkip(nn.Module):
    """LayerNorm(skip + GLU(x)): a part that is not needed closes its gate (Lim et al. 2021, eqs. 2 and 5)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.gate = nn.Linear(in_features, 2 * out_features)
        self.norm = nn.LayerNorm(out_features)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(..., I), (..., O) -> (..., O)."""
        output: torch.Tensor = self.norm(skip + functional.glu(self.gate(x), dim=-1))
        return output


class GatedResidual(nn.Module):
    """A gated residual network: one ELU layer behind a gated skip.

    The paper's eq. 3 stands between the ELU and the gate with only dropout around it; without dropout two
    linear layers in a row are one.
    """

    def __init__(self, in_features: int, out_features: int | None = None) -> None:
        super().__init__()
        out_features = in_features if out_features is None else out_features
        self.hidden = nn.Linear(in_features, in_features)
        self.skip = nn.Identity() if out_features == in_features else nn.Linear(in_features, out_features)
        self.gated = GatedSkip(in_features, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) -> (..., O)."""
        output: torch.Tensor = self.gated(functional.elu(self.hidden(x)), self.skip(x))
        return output


class VariableSelection(nn.Module):
    """Each feature through its own gated residual network, then a softmax over features that differs by bar.

    A feature is one number, so its embedding and the first layer of its network are one affine map; all F
    networks run as one batched product.
    """

    def __init__(self, in_features: int, d_model: int) -> None:
        super().__init__()
        shape = (in_features, 1, d_model)
        self.skip_weight = nn.Parameter(torch.empty(shape))
        self.skip_bias = nn.Parameter(torch.empty(shape))
        self.hidden_weight = nn.Parameter(torch.empty(shape))
        self.hidden_bias = nn.Parameter(torch.empty(shape))
        self.gate_weight = nn.Parameter(torch.empty(in_features, d_model, 2 * d_model))
        self.gate_bias = nn.Parameter(torch.empty(in_features, 1, 2 * d_model))
        self.norm = nn.LayerNorm(d_model)
        self.importance = GatedResidual(in_features)
        self.reset_variables()

    def reset_variables(self) -> None:
        """Each feature in a random direction; hidden units that bend at different values of it."""
        for weight in (self.skip_weight, self.hidden_weight, self.hidden_bias):
            nn.init.normal_(weight)
        for bias in (self.skip_bias, self.gate_bias):
            nn.init.zeros_(bias)
        for matrix in self.gate_weight.data:
            nn.init.orthogonal_(matrix)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, L, F) -> (B, L, D), and the weights (B, L, F)."""
        batch, length, n_features = x.shape
        weights = self.importance(x).softmax(dim=-1)  # B L F
        scalar = x.reshape(-1, n_features).t().unsqueeze(-1)  # F BL 1
        hidden = functional.elu(scalar * self.hidden_weight + self.hidden_bias)  # F BL D
        gated = functional.glu(torch.baddbmm(self.gate_bias, hidden, self.gate_weight), dim=-1)  # F BL D
        variables = self.norm(scalar * self.skip_weight + self.skip_bias + gated)  # F BL D
        share = weights.reshape(-1, n_features).t().unsqueeze(-1)  # F BL 1
        return (share * variables).sum(0).view(batch, length, -1), weights


class SharedValueAttention(nn.Module):
    """Interpretable multi-head attention over the band (Lim et al. 2021, eqs. 13-16), in blocks of w bars."""

    bias: torch.Tensor
    key_of_distance: torch.Tensor

    def __init__(self, d_model: int, n_heads: int, band: int) -> None:
        super().__init__()
        self.band = band
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.register_buffer("bias", band_bias(n_heads, band), persistent=False)
        self.register_buffer("key_of_distance", key_of_distance(band), persistent=False)

    def forward(self, x: torch.Tensor, n_out: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend from the last ``n_out`` bars.

        Args:
            x: (B, L, D), L = n_out + w - 1.
            n_out: bars wanted.

        Returns:
            (B, n_out, D), and the weights by distance (B, n_out, w).
        """
        batch, _, width = x.shape
        n_blocks = -(-n_out // self.band)
        x = fill_blocks(x, self.band)  # B M D
        query = self._heads(self.query(x[:, -n_blocks * self.band :]), self.band)  # B*n H w d
        key = self._heads(with_block_before(self.key(x), self.band, n_blocks), 2 * self.band)  # B*n H 2w d
        value = with_block_before(self.value(x), self.band, n_blocks)  # B*n 2w D
        scores = query @ key.transpose(-1, -2) * (width // self.n_heads) ** -0.5 + self.bias  # B*n H w 2w
        weights = scores.softmax(dim=-1).mean(dim=1)  # B*n w 2w
        attended = (weights @ value).view(batch, -1, width)  # B n*w D
        by_distance = weights.gather(2, self.key_of_distance.expand(len(weights), -1, -1))  # B*n w w
        return attended[:, -n_out:], by_distance.view(batch, -1, self.band)[:, -n_out:]

    def _heads(self, x: torch.Tensor, block: int) -> torch.Tensor:
        """(B, M, D) or (B * n, block, D) -> (B * n, H, block, D / H)."""
        return x.reshape(-1, block, self.n_heads, x.shape[-1] // self.n_heads).transpose(1, 2)

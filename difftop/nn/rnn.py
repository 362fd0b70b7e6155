"""Recurrent networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Hidden = tuple[Tensor, Tensor]


class StepLSTM(nn.LSTM):
    """`nn.LSTM`, batch first, whose single steps are cheap.

    Args:
        inputs: size of an input.
        hidden_dim: width.
        layers: how many on top of each other.
    """

    def __init__(self, inputs: int, hidden_dim: int, layers: int) -> None:
        super().__init__(inputs, hidden_dim, layers, batch_first=True)

    def forward(self, x: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:  # type: ignore[override]
        """Outputs `[B, T, hidden_dim]` of inputs `[B, T, inputs]`, and h and c `[layers, B, hidden_dim]` after the last step.

        `hidden` is h and c before the first step; None for zeros.
        """
        with torch.autocast(
            x.device.type, enabled=x.is_cuda and torch.is_autocast_enabled("cuda")
        ):  # few CPUs know bfloat16 here
            x = x if x.is_cuda else x.to(next(self.parameters()).dtype)
            if hidden is None or x.shape[1] > 1:
                y, after = super().forward(x, hidden)
                return y, after
            return self._step(x[:, 0], hidden)

    def start(self, batch: int) -> Hidden:
        """Zeros for h and c."""
        zeros = next(self.parameters()).new_zeros(self.num_layers, batch, self.hidden_size)
        return zeros, zeros

    def _step(self, y: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """One step, layer by layer: `nn.LSTM` repacks its weights in every call, ten times the work on a CPU."""
        states = []
        for layer, (h, c) in enumerate(zip(*hidden, strict=True)):
            weights = [getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            y, c = torch.lstm_cell(y, (h, c), *weights)
            states.append((y, c))
        h, c = (torch.stack(x) for x in zip(*states, strict=True))
        return y[:, None], (h, c)

"""Tokens from pairs and inputs: E_x, E_y, roles, buffer positions, empty-context token (paper, section 3).

    context  E_x(x) + E_y(y) + role        buffer slot j  E_x(x) + E_y(y) + role + a(j)        target  E_x(x) + role

E_x is an MLP with a linear skip over x and learned sines and cosines of it; E_y an MLP with a linear skip.
Knows nothing of attention or of distributions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT, BUFFER, TARGET = range(3)


class Embedder(nn.Module):
    """Embeds pairs and inputs as tokens of width d.

    Args:
        dim_x: Number of input features D_x.
        dim_y: Number of outcome dimensions D_y.
        width: Token width d.
        hidden_width: Hidden width of the MLPs of x and y.
        buffer_size: Number of buffer slots K.
        num_frequencies: Learned sines and cosines of x given to E_x; 0 = none.
        max_frequency: Largest angular frequency at the start, radians per unit of x.
    """

    def __init__(
        self,
        dim_x: int,
        dim_y: int,
        width: int,
        hidden_width: int,
        buffer_size: int,
        num_frequencies: int,
        max_frequency: float,
    ):
        super().__init__()
        magnitudes = torch.logspace(math.log10(0.5), math.log10(max_frequency), num_frequencies).unsqueeze(-1)
        self.frequencies = nn.Parameter(magnitudes * F.normalize(torch.randn(num_frequencies, dim_x), dim=-1))
        num_features = dim_x + 2 * num_frequencies
        self.x_in = nn.Linear(num_features, hidden_width)
        self.x_out = nn.Linear(hidden_width, width)
        self.x_skip = nn.Linear(num_features, width, bias=False)
        self.y_in = nn.Linear(dim_y, hidden_width)
        self.y_out = nn.Linear(hidden_width, width)
        self.y_skip = nn.Linear(dim_y, width, bias=False)
        self.role = nn.Parameter(torch.randn(3, width) * 0.5)
        self.slot = nn.Parameter(torch.randn(buffer_size, width) * 0.02)
        self.empty_context = nn.Parameter(torch.randn(width) * 0.5)

    def inputs(self, x: Tensor) -> Tensor:
        """E_x: `(*batch, T, d)` of inputs `(*batch, T, D_x)`."""
        with torch.autocast(x.device.type, enabled=False):  # bf16 phases and outcomes are coarser than the noise
            phase = x @ self.frequencies.mT  # (*batch, T, F)
            features = torch.cat([x, torch.sin(phase), torch.cos(phase)], -1)
            return self.x_out(F.gelu(self.x_in(features))) + self.x_skip(features)

    def outcomes(self, y: Tensor) -> Tensor:
        """E_y: `(*batch, T, d)` of outcomes `(*batch, T, D_y)`."""
        with torch.autocast(y.device.type, enabled=False):
            return self.y_out(F.gelu(self.y_in(y))) + self.y_skip(y)

    def context(self, embedded_x: Tensor, y: Tensor) -> Tensor:
        """Context tokens `(*batch, N, d)` of embedded inputs `(*batch, N, d)` and outcomes `(*batch, N, D_y)`."""
        return embedded_x + self.outcomes(y) + self.role[CONTEXT]

    def buffer(self, embedded_x: Tensor, y: Tensor, first_slot: int) -> Tensor:
        """Buffer tokens `(*batch, T, d)` for slots `first_slot`, `first_slot + 1`, ... (counted from 0)."""
        slots = self.slot[first_slot : first_slot + y.shape[-2]]
        return embedded_x + self.outcomes(y) + self.role[BUFFER] + slots

    def target(self, embedded_x: Tensor) -> Tensor:
        """Target tokens `(*batch, M, d)` of embedded inputs `(*batch, M, d)`."""
        return embedded_x + self.role[TARGET]

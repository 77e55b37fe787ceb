"""Positions of the buffer's slots: what tells a token which slot it fills.

Another kind of position is another class with the `forward` of `LearnedPositions`. Knows nothing of what tokens hold.
"""

import torch
from torch import Tensor, nn


class LearnedPositions(nn.Module):
    """A learned vector for each slot, added to the token that fills it.

    Args:
        buffer_size: Slots K.
        width: Token width d.
    """

    def __init__(self, buffer_size: int, width: int):
        super().__init__()
        self.slot = nn.Parameter(torch.randn(buffer_size, width) * 0.02)

    def forward(self, tokens: Tensor, first_slot: int) -> Tensor:
        """Tokens `(*batch, T, d)` that fill the slots `first_slot`, `first_slot + 1`, ... (counted from 0)."""
        return tokens + self.slot[first_slot : first_slot + tokens.shape[-2]]

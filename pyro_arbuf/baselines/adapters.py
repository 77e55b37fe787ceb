"""Adapters: how tokens of a buffer go through the frozen blocks of a set model that was trained without a buffer.

An adapted block shares the norms, the MLP and the weights of a frozen block, and has low-rank changes of the four
matrices of its attention (Hu et al. 2022). Knows nothing of contexts.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_arbuf.network.attention import BufferQueries
from pyro_arbuf.network.backbone import Block
from pyro_arbuf.network.lags import Turn

ATTENTION = ("query", "key", "value", "out")


class AdaptedLinear(nn.Module):
    """A frozen linear map whose matrix is changed by one of low rank, at first by nothing.

    `torch.nn.utils.parametrize` would do the same to the weight, but a network that holds such a module cannot be
    pickled, and contexts are.

    Args:
        base: The frozen map; it is no part of this one, and is saved where it belongs.
        rank: Rank of the change.
    """

    base: nn.Linear

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.__dict__["base"] = base
        self.into = nn.Parameter(torch.randn(rank, base.in_features) * base.in_features**-0.5)
        self.out_of = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, tokens: Tensor) -> Tensor:
        """The changed map of tokens `(*batch, T, d)`."""
        return F.linear(tokens, self.base.weight + self.out_of @ self.into, self.base.bias)


class AdaptedBlock(nn.Module):
    """A frozen block as tokens of the buffer go through it, and as targets read them.

    Args:
        block: The frozen block, whose weights it uses and does not hold; of any class with the methods of `Block` and
            four linear maps `query`, `key`, `value` and `out`.
        rank: Rank of the changes of its attention; 0 = none.
        gated: Whether targets learn how much of their attention the buffer gets, one number per head and target.
        last: Whether it is the last block, in which tokens of the buffer are read and read nothing themselves.

    Attributes:
        block: The changed block.
    """

    block: Block

    def __init__(self, block: Block, rank: int, gated: bool, last: bool):
        super().__init__()
        self.__dict__["block"] = new = copy.copy(block)  # the same weights, and a table of modules of its own
        new._modules = dict(block._modules)
        for name in ATTENTION if rank else ():
            if not (last and name == "out"):
                adapter = AdaptedLinear(getattr(block, name), rank)
                setattr(self, name, adapter)
                setattr(new, name, adapter)
        self.gate = nn.Linear(block.query.in_features, block.num_heads) if gated else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def of_targets(self, normed: Tensor, num_keys: Tensor | None = None, turn: Turn | None = None) -> BufferQueries:
        """How targets, normalised tokens `(B, S, M, d)`, read the buffer; arguments as `Block.q` has them."""
        offset = None if self.gate is None else self.gate(normed).transpose(-1, -2).unsqueeze(-1)  # (B, S, H, M, 1)
        return BufferQueries(self.block.q(normed, num_keys, turn), offset)

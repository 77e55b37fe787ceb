"""Keys and values of what has been encoded: plain values held by the caller, never attributes of a module."""

from typing import NamedTuple

import torch
from torch import Tensor


class ContextCache(NamedTuple):
    """The encoded context: keys and values of every layer, read-only (R1).

    Attributes:
        keys: L tensors `(B, H, N, h)`.
        values: L tensors `(B, H, N, h)`.
        context_len: `(B,)` int64, real tokens per task; `None` where there is no padding.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    context_len: Tensor | None = None


class BufferCache(NamedTuple):
    """The encoded buffer of every draw: append-only; `append` returns a new value and leaves the old one as it is.

    Attributes:
        keys: L tensors `(B, S, H, K, h)`; empty tuple = empty buffer.
        values: L tensors `(B, S, H, K, h)`.
    """

    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()

    @property
    def num_slots(self) -> int:
        """Number of filled slots."""
        return self.keys[0].shape[-2] if self.keys else 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the keys and values of `layer` with those of new tokens, `(B, S, H, 1.., h)`, behind them."""
        if not self.keys:
            return keys, values
        return torch.cat([self.keys[layer], keys], -2), torch.cat([self.values[layer], values], -2)

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

    def select(self, tasks: slice | Tensor) -> "ContextCache":
        """The keys and values of some tasks, a slice or `(B',)` int64."""
        length = None if self.context_len is None else self.context_len[tasks]
        return ContextCache(tuple(k[tasks] for k in self.keys), tuple(v[tasks] for v in self.values), length)


class BufferCache(NamedTuple):
    """The encoded buffer of every draw: append-only; growing it returns a new value and leaves the old one as it is.

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

    @property
    def num_draws(self) -> int:
        """Number of draws S; 1 while empty."""
        return self.keys[0].shape[1] if self.keys else 1

    def stored(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of a layer; `None` while empty."""
        return (self.keys[layer], self.values[layer]) if self.keys else None

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the keys and values of `layer` with those of new tokens, `(B, S, H, 1.., h)`, behind them."""
        if not self.keys:
            return keys, values
        return torch.cat([self.keys[layer], keys], -2), torch.cat([self.values[layer], values], -2)

    def extended(self, layers: list[tuple[Tensor, Tensor]]) -> "BufferCache":
        """The buffer that holds what `append` returned for every layer."""
        keys, values = zip(*layers, strict=True)
        return BufferCache(keys, values)


class PreallocatedBuffer(NamedTuple):
    """A `BufferCache` for sampling without gradients: slots are written into storage, nothing is copied as it grows.

    Attributes:
        capacity: Slots that the storage holds.
        storage: Per layer the keys and values, `(B, S, H, capacity, h)`; filled on the first `append`.
        num_slots: Number of filled slots.
    """

    capacity: int
    storage: dict[int, tuple[Tensor, Tensor]]
    num_slots: int = 0

    @property
    def num_draws(self) -> int:
        """Number of draws S; 1 while empty."""
        return self.storage[0][0].shape[1] if self.num_slots else 1

    def stored(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of a layer; `None` while empty."""
        if not self.num_slots:
            return None
        keys, values = self.storage[layer]
        return keys[..., : self.num_slots, :], values[..., : self.num_slots, :]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the keys and values of new tokens behind those of `layer` and returns all of them."""
        if not self.num_slots:
            B, S, H, _, h = keys.shape
            # Heads outside draws in memory: the order in which merged attention folds draws into queries.
            self.storage[layer] = tuple(keys.new_empty(B, H, S, self.capacity, h).transpose(1, 2) for _ in range(2))
        filled = self.num_slots + keys.shape[-2]
        all_keys, all_values = self.storage[layer]
        all_keys[..., self.num_slots : filled, :] = keys
        all_values[..., self.num_slots : filled, :] = values
        return all_keys[..., :filled, :], all_values[..., :filled, :]

    def extended(self, layers: list[tuple[Tensor, Tensor]]) -> "PreallocatedBuffer":
        """The buffer that holds what `append` returned for every layer."""
        return self._replace(num_slots=layers[0][0].shape[-2])


Buffer = BufferCache | PreallocatedBuffer

"""Keys and values of what has been encoded: plain values held by the caller, never attributes of a module."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.network.traces import Trail

KeysValues = tuple[Tensor, Tensor]
Sources = tuple[KeysValues, KeysValues | None, Tensor | None]  # of the context, of the buffer; lengths of contexts


class ContextCache(NamedTuple):
    """The encoded context: keys and values of every layer, read-only (R1).

    Attributes:
        keys: L tensors `(B, H, N, h)`.
        values: L tensors `(B, H, N, h)`.
        context_len: `(B,)` int64, real tokens per task; `None` where there is no padding.
        summary: What the embedding of targets uses of the context, `(B, ...)` each; `None` where it uses nothing, and
            targets may be embedded before their context is known.
        trail: Of a series, the trials that later ones are told of; `None` where it holds none.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    context_len: Tensor | None = None
    summary: Tensor | tuple[Tensor, ...] | None = None
    trail: Trail | None = None

    def select(self, tasks: slice | Tensor) -> "ContextCache":
        """What is known of some tasks, a slice or `(B',)` int64."""
        length = None if self.context_len is None else self.context_len[tasks]
        summary = self.summary
        if summary is not None:
            summary = summary[tasks] if isinstance(summary, Tensor) else tuple(part[tasks] for part in summary)
        trail = None if self.trail is None else self.trail.select(tasks)
        keys, values = tuple(k[tasks] for k in self.keys), tuple(v[tasks] for v in self.values)
        return ContextCache(keys, values, length, summary, trail)


class BufferCache(NamedTuple):
    """The encoded buffer of every draw: append-only; growing it returns a new value and leaves the old one as it is.

    Attributes:
        keys: L tensors `(B, S, H, K, h)`; empty tuple = empty buffer.
        values: L tensors `(B, S, H, K, h)`.
        trail: Of a series, the trials of its slots; `None` while empty.
    """

    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    trail: Trail | None = None

    @property
    def num_slots(self) -> int:
        """Number of filled slots."""
        return self.keys[0].shape[-2] if self.keys else 0

    @property
    def num_draws(self) -> int:
        """Number of draws S; 1 while empty."""
        return self.keys[0].shape[1] if self.keys else 1

    def stored(self, layer: int) -> KeysValues | None:
        """Keys and values of a layer; `None` while empty."""
        return (self.keys[layer], self.values[layer]) if self.keys else None

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Returns the keys and values of `layer` with those of new tokens, `(B, S, H, 1.., h)`, behind them."""
        if not self.keys:
            return keys, values
        return torch.cat([self.keys[layer], keys], -2), torch.cat([self.values[layer], values], -2)

    def extended(self, layers: list[KeysValues]) -> "BufferCache":
        """The buffer that holds what `append` returned for every layer."""
        keys, values = zip(*layers, strict=True)
        return BufferCache(keys, values)

    def sources(self, cache: ContextCache, layer: int, slots: KeysValues | None) -> Sources:
        """What the queries of a layer attend to, `slots` being what `append` or `stored` returned."""
        return (cache.keys[layer], cache.values[layer]), slots, cache.context_len


class PreallocatedBuffer(NamedTuple):
    """A `BufferCache` for sampling without gradients: slots are written into storage, nothing is copied as it grows.

    Attributes:
        capacity: Slots that the storage holds.
        storage: Per layer the keys and values, `(B, S, H, capacity, h)`; filled on the first `append`.
        num_slots: Number of filled slots.
        trail: Of a series, the trials of its slots; `None` while empty.
    """

    capacity: int
    storage: dict[int, KeysValues]
    num_slots: int = 0
    trail: Trail | None = None

    @property
    def num_draws(self) -> int:
        """Number of draws S; 1 while empty."""
        return self.storage[0][0].shape[1] if self.num_slots else 1

    def stored(self, layer: int) -> KeysValues | None:
        """Keys and values of a layer; `None` while empty."""
        if not self.num_slots:
            return None
        keys, values = self.storage[layer]
        return keys[..., : self.num_slots, :], values[..., : self.num_slots, :]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Writes the keys and values of new tokens behind those of `layer` and returns all of them."""
        if not self.num_slots:
            B, S, H, _, h = keys.shape
            # Heads outside draws in memory: the order in which merged attention folds draws into queries.
            size = (B, H, S, self.capacity, h)
            self.storage[layer] = keys.new_empty(size).transpose(1, 2), values.new_empty(size).transpose(1, 2)
        filled = self.num_slots + keys.shape[-2]
        all_keys, all_values = self.storage[layer]
        all_keys[..., self.num_slots : filled, :] = keys
        all_values[..., self.num_slots : filled, :] = values
        return all_keys[..., :filled, :], all_values[..., :filled, :]

    def extended(self, layers: list[KeysValues]) -> "PreallocatedBuffer":
        """The buffer that holds what `append` returned for every layer."""
        return self._replace(num_slots=layers[0][0].shape[-2])

    def sources(self, cache: ContextCache, layer: int, slots: KeysValues | None) -> Sources:
        """What the queries of a layer attend to, `slots` being what `append` or `stored` returned."""
        return (cache.keys[layer], cache.values[layer]), slots, cache.context_len


class JoinedBuffer(NamedTuple):
    """A `PreallocatedBuffer` for one draw per context, step by step: its slots stand in front of the context's keys.

    Slots and context are then one longer context, and no step concatenates them. The slots run backwards, the last
    one first, so that every step attends to one view whose padding stays behind; the softmax has no order. Without
    prefix lengths: one pair enters at a time, and targets read every slot.

    Attributes:
        capacity: Slots that the storage holds.
        cache: The context, of N tokens.
        storage: Per layer the keys and values, `(B, H, capacity + N, h)`; filled on the first `append`.
        num_slots: Number of filled slots.
        trail: Of a series, the trials of its slots; `None` while empty.
    """

    capacity: int
    cache: ContextCache
    storage: dict[int, KeysValues]
    num_slots: int = 0
    trail: Trail | None = None

    @property
    def num_draws(self) -> int:
        """Number of draws S."""
        return 1

    def stored(self, layer: int) -> KeysValues | None:
        """Keys and values `(B, H, k + N, h)` of slots and context; `None` while empty."""
        return self._from(layer, self.capacity - self.num_slots) if self.num_slots else None

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Writes the keys and values of one new token, `(B, 1, H, 1, h)`; returns what `stored` will."""
        assert keys.shape[-2] == 1, "one pair at a time"
        if not self.num_slots:
            context_keys, context_values = self.cache.keys[layer], self.cache.values[layer]
            self.storage[layer] = self._with_room(context_keys, keys), self._with_room(context_values, values)
        start = self.capacity - self.num_slots - 1
        all_keys, all_values = self._from(layer, start)
        all_keys[:, :, :1] = keys[:, 0]
        all_values[:, :, :1] = values[:, 0]
        return all_keys, all_values

    def extended(self, layers: list[KeysValues]) -> "JoinedBuffer":
        """The buffer that holds what `append` returned for every layer."""
        return self._replace(num_slots=self.num_slots + 1)

    def sources(self, cache: ContextCache, layer: int, slots: KeysValues | None) -> Sources:
        """What the queries of a layer attend to, `slots` being what `append` or `stored` returned."""
        assert cache is self.cache, "the storage holds the keys of one context"
        if slots is None:
            return (cache.keys[layer], cache.values[layer]), None, cache.context_len
        length = cache.context_len
        if length is not None:
            length = length + (slots[0].shape[-2] - cache.keys[layer].shape[-2])
        return slots, None, length

    def _with_room(self, context: Tensor, like: Tensor) -> Tensor:
        B, H, N, h = context.shape
        storage = like.new_empty(B, H, self.capacity + N, h)  # of a kind that holds new tokens: under vmap a batch
        storage[:, :, self.capacity :] = context
        return storage

    def _from(self, layer: int, start: int) -> KeysValues:
        keys, values = self.storage[layer]
        return keys[:, :, start:], values[:, :, start:]


Buffer = BufferCache | PreallocatedBuffer | JoinedBuffer

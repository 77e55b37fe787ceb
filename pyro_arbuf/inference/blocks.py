"""A chain: targets in order, block after block, with the context that each block is read against.

Sampling and scoring walk along it by the same generator, `blocks`, the one place where pairs are absorbed. Everything
here is flat: B tasks of the context, S draws that share it, R orders of a draw. Knows nothing of what a predictive is
made of, nor of what its caller does with it.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Size, Tensor

from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.layout import (
    Pieces,
    chunks,
    cut,
    draws_at_once,
    fold,
    join_context,
    part_of_cache,
    pick,
    place,
    place_last,
)
from pyro_arbuf.inference.orders import inverse_orders
from pyro_arbuf.network.cache import Buffer, BufferCache, ContextCache, JoinedBuffer, PreallocatedBuffer
from pyro_arbuf.network.network import Network
from pyro_arbuf.network.predictives import Predictive
from pyro_arbuf.network.visibility import chain_prefix_len


class Noise(NamedTuple):
    """All randomness of a set of joint draws, drawn up front so that chunking cannot change results.

    Attributes:
        uniform: `(B, S, M, D_y)` in [0, 1), chooses components.
        normal: `(B, S, M, D_y)` standard normal.
        order: `(B, S)` int64, which of the R orders a draw uses.
    """

    uniform: Tensor
    normal: Tensor
    order: Tensor


def draw_noise(shape: Size, batch: Size, event: tuple[int, int], num_orders: int, like: Tensor) -> Noise:
    """The noise of draws of batch shape `shape` and event (M, D_y), with torch's global generator.

    Args:
        shape: Of the draws, without the event.
        batch: Of the context's tasks.
        event: M and D_y.
        num_orders: Orders R.
        like: Whose dtype and device it has.
    """
    uniform = torch.rand(*shape, *event, dtype=like.dtype, device=like.device)
    order = torch.zeros(shape, dtype=torch.int64, device=like.device)
    if num_orders > 1:
        order = torch.randint(num_orders, shape, device=like.device)
    normal = torch.randn_like(uniform)
    return Noise(*(fold(t, shape, batch, n) for t, n in ((uniform, 2), (normal, 2), (order, 0))))


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Targets of some tasks, draws and orders, in order: what sampling and scoring walk along.

    Attributes:
        context: Conditions the tasks, among others.
        tasks: Which of its tasks.
        buffer_size: Targets per block.
        size: Tasks B, draws S, orders R.
        order: `(B or 1, S or 1, R, M)` int64.
        x: `(B, S * R, M, D_x)` inputs in order, `(B, 1, M, D_x)` where all draws share them.
        embedded: Likewise with d numbers; `None` where the embedding uses the context, which absorption changes.
    """

    context: Context
    tasks: slice
    buffer_size: int
    size: tuple[int, int, int]
    order: Tensor
    x: Tensor
    embedded: Tensor | None

    @property
    def num_draws(self) -> int:
        """Draws of a task, S * R."""
        return self.size[1] * self.size[2]

    def together(self, parts: list[Tensor]) -> Tensor:
        """Outcomes or scores, one part of the chain after another, as `(B, S * R, T, D_y)`."""
        return torch.cat([part.reshape(self.size[0], self.num_draws, *part.shape[2:]) for part in parts], 2)

    def restored(self, parts: list[Tensor]) -> Tensor:
        """Those of the whole chain, `(B, S, R, M, D_y)` in the user's indexing."""
        return place(self.together(parts).unflatten(1, self.size[1:]), inverse_orders(self.order))


class Block(NamedTuple):
    """Targets between two absorptions.

    Attributes:
        places: Their places in the chain.
        num_draws: Draws of a task in the chain.
        cache: The context they are read against; behind an absorption every draw has a context, and a task, of its own.
        targets: `(B, S * R or 1, T, d)` embedded; behind an absorption `(B * S * R, 1, T, d)`.
    """

    places: slice
    num_draws: int
    cache: ContextCache
    targets: Tensor

    def own(self, tensor: Tensor) -> Tensor:
        """What its targets have of `(B, S, M, .)`, in the batch of `targets`."""
        return _own(self.places, tensor, self.num_draws)


def make_chain(
    context: Context, here: tuple[slice, slice], x: Tensor, embedded: Tensor | None, order: Tensor, buffer_size: int
) -> Chain:
    """The chain of some tasks and draws of `x`, `(B, S or 1, M, .)`, in orders `(B or 1, S or 1, R, M)`."""
    tasks, draws = here
    num_draws, num_orders = draws.stop - draws.start, order.shape[2]

    def in_order(tensor: Tensor) -> Tensor:
        placed = place(pick(tensor[tasks], draws).unsqueeze(2), order)  # (B, S or 1, R, M, .)
        return (placed.expand(-1, num_draws, -1, -1, -1) if num_orders > 1 else placed).flatten(1, 2)

    placed = in_order(x)
    size = (placed.shape[0], num_draws, num_orders)
    return Chain(context, tasks, buffer_size, size, order, placed, None if embedded is None else in_order(embedded))


def embed_once(context: Context, x: Tensor) -> Tensor | None:
    """Targets `(B, S or 1, M, d)` embedded before they are placed; `None` where every block has to embed its own."""
    return None if context.cache.summary is not None else context.model.embed_targets(context.cache, x)


def blocks(chain: Chain, done: list[Tensor]) -> Iterator[Block]:
    """The blocks of a chain, from absorption to absorption.

    Args:
        chain: Its targets.
        done: Outcomes of the targets so far; before it asks for the next block, the caller appends those of this one.
    """
    context, model = chain.context, chain.context.model
    for places in chunks(chain.x.shape[2], chain.buffer_size):
        cache = part_of_cache(context, chain.tasks)
        if places.start:
            absorbed = join_context(context, chain.x[:, :, : places.start], chain.together(done), chain.tasks)
            cache = model.encode(*absorbed)
        targets = _own(places, chain.x if chain.embedded is None else chain.embedded, chain.num_draws)
        if chain.embedded is None:
            targets = model.embed_targets(cache, targets)
        yield Block(places, chain.num_draws, cache, targets)


def _own(places: slice, tensor: Tensor, num_draws: int) -> Tensor:
    """What targets of a block have of `(B, S or 1, M, .)`: behind an absorption every draw is a task of its own."""
    part = tensor[:, :, places]
    return part.expand(-1, num_draws, -1, -1).flatten(0, 1).unsqueeze(1) if places.start else part


def decoded(chain: Chain, noise: Noise, drawn: list[Tensor]) -> Iterator[tuple[Predictive, Tensor, Tensor]]:
    """The predictive of every target in turn, with its uniform and normal noise.

    The last pair and the next target go through the layers together.

    Args:
        chain: Its targets, in one order per draw.
        noise: Of the draws.
        drawn: Outcomes so far; before it asks for the next target, the caller appends what it has drawn for this one.
    """
    for block in blocks(chain, drawn):
        uniform, normal = (block.own(part) for part in noise[:2])
        buffer, pairs = _empty_buffer(chain.context.model, block, normal.shape[1]), None
        for k in range(normal.shape[2]):
            target, u, n = (part[:, :, k : k + 1] for part in (block.targets, uniform, normal))
            predictive, buffer = chain.context.model.predict(block.cache, buffer, pairs, target)
            yield predictive.expand(n.shape), u, n
            pairs = (target, drawn[-1])


def _empty_buffer(model: Network, block: Block, num_draws: int) -> Buffer:
    if not torch.is_inference_mode_enabled():  # what may be differentiated is never written over
        return BufferCache()
    capacity = block.targets.shape[2]
    joined = num_draws == 1 and getattr(model.backbone, "one_query", False)  # a user's own may not say
    return JoinedBuffer(capacity, block.cache, {}) if joined else PreallocatedBuffer(capacity, {})


@dataclasses.dataclass(frozen=True, eq=False)
class Forced:
    """Targets with their outcomes, in every order: what the scores of a joint are made of.

    Attributes are the arguments of `score_joint`.
    """

    context: Context
    x: Tensor
    y: Tensor
    orders: Tensor
    buffer_size: int
    missing: Tensor | None
    max_tokens: int

    @property
    def _pieces(self) -> Pieces:
        at_once = draws_at_once(self.context, self.y.shape[2], self.buffer_size, self.max_tokens)
        return cut((*self.y.shape[:2], len(self.orders)), at_once)

    def __iter__(self) -> Iterator[tuple[Chain, Iterator[tuple[Predictive, Tensor]]]]:
        """Every chain, with the predictives of its blocks and the outcomes of their targets."""
        embedded = embed_once(self.context, self.x)
        for tasks, draws, orders in self._pieces:
            order = self.orders[None, None, orders]
            if self.missing is not None:
                order = place_last(order, self.missing[tasks, draws])
            chain = make_chain(self.context, (tasks, draws), self.x, embedded, order, self.buffer_size)
            y = place(self.y[tasks, draws].unsqueeze(2), order).flatten(1, 2)
            yield chain, _readings(chain, y)

    def whole(self, scores: list[Tensor], of_missing: float) -> Tensor:
        """Scores of all chains, `(B, S, R, M, D_y)` each and together, with a value for missing targets."""
        if not scores:
            return self.y.new_zeros(*self.y.shape[:2], len(self.orders), *self.y.shape[2:])
        whole = self._pieces.join(scores)
        return whole if self.missing is None else whole.masked_fill(self.missing[:, :, None, :, None], of_missing)


def _readings(chain: Chain, y: Tensor) -> Iterator[tuple[Predictive, Tensor]]:
    """The predictives of every block, of one pass, with its outcomes; `y` holds all of them, `(B, S * R, M, D_y)`."""
    done: list[Tensor] = []
    for block in blocks(chain, done):
        values = block.own(y)
        pairs = (block.targets[:, :, :-1], values[:, :, :-1]) if values.shape[2] > 1 else None
        prefix_len = chain_prefix_len(values.shape[2], y.device)
        predictive, _ = chain.context.model.predict(block.cache, BufferCache(), pairs, block.targets, prefix_len)
        yield predictive, values
        done.append(values)

"""Joint sampling and joint density of targets given a Context, absorbing where targets outnumber buffer slots.

Everything here is flat: B tasks of the context, S draws that share it. `fold` and `unfold` translate a user's sample
and batch dimensions. Results are in the user's indexing of the targets. Knows nothing of Pyro.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Size, Tensor

from pyro_arbuf.cache import BufferCache, ContextCache, PreallocatedBuffer
from pyro_arbuf.context import Context, check_current
from pyro_arbuf.heads import GaussianMixture
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.orders import inverse_orders
from pyro_arbuf.visibility import chain_prefix_len

MAX_TOKENS = 2**14  # tokens in flight in one chunk of draws: memory is fixed whatever the number of draws


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


def fold(tensor: Tensor, shape: Size, context_batch: Size, num_event_dims: int) -> Tensor:
    """Sorts the dimensions of `shape` into those of the context's batch and those of its draws.

    Args:
        tensor: Broadcastable to `(*shape, *event)`.
        shape: Sample and batch dimensions.
        context_batch: Batch shape of the context, broadcastable to `shape`.
        num_event_dims: Number of event dimensions.

    Returns:
        `(B, S, *event)`, B the context's tasks; S = 1 if the tensor does not vary over the draws.
    """
    event = tensor.shape[tensor.dim() - num_event_dims :]
    tensor = tensor[(None,) * (len(shape) + num_event_dims - tensor.dim())]
    of_context, of_draws = _split_dims(shape, context_batch)
    shared = all(tensor.shape[i] == 1 for i in of_draws)
    sizes = [1 if shared and i in of_draws else shape[i] for i in range(len(shape))]
    permutation = [*of_context, *of_draws, *range(len(shape), len(shape) + num_event_dims)]
    num_tasks = Size([shape[i] for i in of_context]).numel()
    num_draws = Size([sizes[i] for i in of_draws]).numel()
    return tensor.expand((*sizes, *event)).permute(permutation).reshape(num_tasks, num_draws, *event)


def unfold(tensor: Tensor, shape: Size, context_batch: Size) -> Tensor:
    """Undoes `fold`: `(B, S, *event)` to `(*shape, *event)`."""
    event = tensor.shape[2:]
    of_context, of_draws = _split_dims(shape, context_batch)
    dims = [*of_context, *of_draws]
    tensor = tensor.reshape([*(shape[i] for i in dims), *event])
    back = [dims.index(i) for i in range(len(shape))]
    return tensor.permute([*back, *range(len(shape), len(shape) + len(event))])


def _split_dims(shape: Size, context_batch: Size) -> tuple[list[int], list[int]]:
    lead = len(shape) - len(context_batch)
    of_context = [i for i in range(lead, len(shape)) if context_batch[i - lead] != 1]
    return of_context, [i for i in range(len(shape)) if i not in of_context]


def _chunks(size: int, chunk: int) -> Iterator[slice]:
    for start in range(0, size, chunk):
        yield slice(start, min(start + chunk, size))


def _tasks_and_draws(
    context: Context, num_draws: int, num_targets: int, buffer_size: int, max_tokens: int
) -> Iterator[tuple[slice, slice]]:
    """Cuts B tasks x S draws into pieces of at most about `max_tokens` tokens; shapes decide, never values."""
    per_draw = 2 * min(num_targets, buffer_size)
    if num_targets > buffer_size:  # absorbing re-encodes per draw; smaller pieces stay in the processor's cache
        per_draw = 4 * (per_draw + context.num_context + num_targets)
    pieces = max(1, max_tokens // per_draw)
    tasks = max(1, pieces // num_draws)
    for b in _chunks(context.x.shape[0], tasks):
        for s in _chunks(num_draws, max(1, pieces // tasks)):
            yield b, s


def _pick(tensor: Tensor, part: slice) -> Tensor:
    """A part of dimension 1, or all of it where it has size 1 and is shared by the draws."""
    return tensor if tensor.shape[1] == 1 else tensor[:, part]


def _place(tensor: Tensor, order: Tensor) -> Tensor:
    """Puts targets in order: `(B, S or 1, M, .)` by `order` `(B, S or 1, M)`."""
    tensor, index = torch.broadcast_tensors(tensor, order.unsqueeze(-1))
    return tensor.gather(2, index)


def _cache(context: Context, tasks: slice) -> ContextCache:
    keys, values, context_len = context.cache
    if tasks == slice(0, context.x.shape[0]):
        return context.cache
    context_len = None if context_len is None else context_len[tasks]
    return ContextCache(tuple(k[tasks] for k in keys), tuple(v[tasks] for v in values), context_len)


def _absorb(context: Context, tasks: slice, x: Tensor, y: Tensor) -> ContextCache:
    """Re-encodes the context of every draw with pairs `(B, S, T, .)` in it: `(B * S)` contexts of one draw."""
    num_draws = y.shape[1]
    x_context, y_context = (t[tasks, None].expand(-1, num_draws, -1, -1) for t in (context.x, context.y))
    # In front, so that padding stays behind; the context has no positions.
    x = torch.cat([x.expand(-1, num_draws, -1, -1), x_context], 2).flatten(0, 1)  # (B * S, T + N, D_x)
    y = torch.cat([y, y_context], 2).flatten(0, 1)
    context_len = context.context_len
    if context_len is not None:
        context_len = (context_len[tasks] + x.shape[1] - x_context.shape[2]).repeat_interleave(num_draws)
    return context.model.encode(x, y, context_len)


@torch.no_grad()
def sample_joint(
    context: Context, x: Tensor, orders: Tensor, buffer_size: int, noise: Noise, max_tokens: int = MAX_TOKENS
) -> Tensor:
    """Draws coherent joint samples: target after target, each read given the buffer of its own draw.

    Args:
        context: Conditions B tasks.
        x: `(B, S or 1, M, D_x)` target inputs.
        orders: `(R, M)` int64.
        buffer_size: Targets per block; after each block but the last its pairs are absorbed into the context.
        noise: Of all draws.
        max_tokens: Bounds memory; changes nothing else.

    Returns:
        `(B, S, M, D_y)`.

    Raises:
        RuntimeError: If the weights have changed since the context was made.

    Source:
        Hassan et al. (2026), Algorithm 1 (sampling with the buffer).
    """
    check_current(context)
    out = torch.empty_like(noise.normal)
    num_draws, num_targets = noise.normal.shape[1:3]
    if out.numel() == 0:
        return out
    embedded = context.model.embedder.inputs(x)  # (B, S or 1, M, d)
    for b, s in _tasks_and_draws(context, num_draws, num_targets, buffer_size, max_tokens):
        with torch.inference_mode():  # cheaper per operation than no_grad; `out` stays an ordinary tensor
            order = orders[noise.order[b, s]] if len(orders) > 1 else orders[None]  # (B, S or 1, M)
            piece = Noise(noise.uniform[b, s], noise.normal[b, s], noise.order[b, s])
            placed = _place(_pick(embedded[b], s), order)
            y = _sample_chunk(context, b, _place(_pick(x[b], s), order), placed, buffer_size, piece)
            out[b, s] = _place(y, inverse_orders(order))
    return out


def _sample_chunk(
    context: Context, tasks: slice, x: Tensor, embedded: Tensor, buffer_size: int, noise: Noise
) -> Tensor:
    """Draws `(B, S, M, D_y)` in chain order for targets already placed in it."""
    num_tasks, num_draws, num_targets = noise.normal.shape[:3]
    done: list[Tensor] = []
    for part in _chunks(num_targets, buffer_size):
        cache, lead = _cache(context, tasks), (num_tasks, num_draws)
        if done:
            cache, lead = _absorb(context, tasks, x[:, :, : part.start], torch.cat(done, 2)), (-1, 1)
        block = embedded[:, :, part]
        if done:
            block = block.expand(-1, num_draws, -1, -1).reshape(*lead, *block.shape[2:])
        uniform, normal = (n[:, :, part].reshape(*lead, *n[:, :, part].shape[2:]) for n in noise[:2])
        y = _decode(context.model, cache, block, uniform, normal)
        done.append(y.view(num_tasks, num_draws, *y.shape[2:]))
    return torch.cat(done, 2)


def _decode(model: ArBufferModel, cache: ContextCache, embedded: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """One block, step by step: the last pair and the next target go through the layers together."""
    buffer, pairs, draws = PreallocatedBuffer(embedded.shape[2], {}), None, []
    for k in range(embedded.shape[2]):
        target = embedded[:, :, k : k + 1]
        predictive, buffer = model.predict(cache, buffer, pairs, target)
        here = slice(k, k + 1)
        y = predictive.expand(normal[:, :, here].shape).draw(uniform[:, :, here], normal[:, :, here])
        draws.append(y)
        pairs = (target, y)
    return torch.cat(draws, 2)


def log_prob_joint(
    context: Context, x: Tensor, y: Tensor, orders: Tensor, buffer_size: int, max_tokens: int = MAX_TOKENS
) -> Tensor:
    """Log density of every target given those before it, for every order: one pass per block of targets.

    Args:
        context: Conditions B tasks.
        x: `(B, S or 1, M, D_x)` target inputs.
        y: `(B, S, M, D_y)` outcomes.
        orders: `(R, M)` int64.
        buffer_size: Targets per block, as in sampling: the block boundaries are part of the density.
        max_tokens: Bounds memory without gradients; changes nothing else.

    Returns:
        `(B, S, R, M, D_y)` nats, targets in the user's indexing.

    Raises:
        RuntimeError: If the weights have changed since the context was made.

    Source:
        Hassan et al. (2026), Algorithm 2 (one-pass joint density).
    """
    check_current(context)
    num_draws, num_targets, num_orders = y.shape[1], y.shape[2], len(orders)
    if y.numel() == 0:
        return y.new_zeros(*y.shape[:2], num_orders, *y.shape[2:])
    embedded = context.model.embedder.inputs(x)  # (B, S or 1, M, d)
    tasks: dict[int, list[Tensor]] = {}
    for b, s in _tasks_and_draws(context, num_draws * num_orders, num_targets, buffer_size, max_tokens):
        draw = torch.arange(s.start, s.stop, device=y.device) // num_orders  # the R orders of a draw are neighbours
        order = orders[torch.arange(s.start, s.stop, device=y.device) % num_orders][None]  # (1, S, M)
        shared = x.shape[1] == 1 and num_orders == 1
        placed_x, placed_embedded = (
            _place(t[b] if t.shape[1] == 1 else t[b][:, draw], order[:, :1] if shared else order) for t in (x, embedded)
        )
        factors = _log_prob_chunk(context, b, placed_x, placed_embedded, _place(y[b][:, draw], order), buffer_size)
        tasks.setdefault(b.start, []).append(_place(factors, inverse_orders(order)))
    factors = torch.cat([torch.cat(parts, 1) for parts in tasks.values()], 0)
    return factors.unflatten(1, (num_draws, num_orders))


def _log_prob_chunk(context: Context, tasks: slice, x: Tensor, embedded: Tensor, y: Tensor, buffer_size: int) -> Tensor:
    """Factors `(B, S, M, D_y)` in chain order for targets already placed in it."""
    model, (num_tasks, num_draws, num_targets) = context.model, y.shape[:3]
    factors: list[Tensor] = []
    for part in _chunks(num_targets, buffer_size):
        cache, block, values = _cache(context, tasks), embedded[:, :, part], y[:, :, part]
        if part.start:
            cache = _absorb(context, tasks, x[:, :, : part.start], y[:, :, : part.start])
            block = block.expand(-1, num_draws, -1, -1).flatten(0, 1).unsqueeze(1)
            values = values.flatten(0, 1).unsqueeze(1)
        pairs = (block[:, :, :-1], values[:, :, :-1]) if values.shape[2] > 1 else None
        prefix_len = chain_prefix_len(values.shape[2], y.device)
        predictive, _ = model.predict(cache, BufferCache(), pairs, block, prefix_len)
        factors.append(predictive.log_prob(values).view(num_tasks, num_draws, *values.shape[2:]))
    return torch.cat(factors, 2)


def predict_marginals(context: Context, x: Tensor) -> GaussianMixture:
    """The set model's independent predictive: every target read with an empty buffer.

    Args:
        context: Conditions B tasks.
        x: `(B, S, M, D_x)` target inputs.

    Returns:
        Batch shape `(B, S, M, D_y)`.

    Raises:
        RuntimeError: If the weights have changed since the context was made.
    """
    check_current(context)
    return context.model.predict(context.cache, BufferCache(), None, context.model.embedder.inputs(x))[0]

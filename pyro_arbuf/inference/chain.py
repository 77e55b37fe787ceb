"""Joint sampling and joint density of targets given a Context, absorbing where targets outnumber buffer slots.

Everything here is flat: B tasks of the context, S draws that share it. Results are in the user's indexing of the
targets. Knows nothing of Pyro.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Size, Tensor

from pyro_arbuf.inference.context import Context, check_current, encode_pairs
from pyro_arbuf.inference.layout import (
    MAX_TOKENS,
    chunks,
    fold,
    join_context,
    part_of_cache,
    pick,
    place,
    tasks_and_draws,
    unfold,
)
from pyro_arbuf.inference.orders import inverse_orders
from pyro_arbuf.network.cache import Buffer, BufferCache, ContextCache, PreallocatedBuffer
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


def _drawn(predictive: Predictive, uniform: Tensor, normal: Tensor) -> Tensor:
    return predictive.draw(uniform, normal)


def _implicitly_drawn(predictive: Predictive, uniform: Tensor, normal: Tensor) -> Tensor:
    return predictive.implicit_draw(uniform, normal)


def _log_density(predictive: Predictive, values: Tensor) -> Tensor:
    return predictive.log_prob(values)


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
    for b, s in tasks_and_draws(context, num_draws, num_targets, buffer_size, max_tokens):
        with torch.inference_mode():  # cheaper per operation than no_grad; `out` stays an ordinary tensor
            order = orders[noise.order[b, s]] if len(orders) > 1 else orders[None]  # (B, S or 1, M)
            piece = Noise(noise.uniform[b, s], noise.normal[b, s], noise.order[b, s])
            placed = place(pick(embedded[b], s), order)
            buffer = PreallocatedBuffer(min(buffer_size, num_targets), {})
            placed_x = place(pick(x[b], s), order)
            y = _sample_chunk(context, b, placed_x, placed, buffer_size, piece, buffer, _drawn)
            out[b, s] = place(y, inverse_orders(order))
    return out.detach()  # a trace forgets no_grad


def rsample_joint(context: Context, x: Tensor, orders: Tensor, buffer_size: int, noise: Noise) -> Tensor:
    """The draws of `sample_joint`, reparameterised implicitly step by step: their gradients reach x and the context.

    Args:
        context: Conditions B tasks.
        x: `(B, S or 1, M, D_x)` target inputs.
        orders: `(R, M)` int64.
        buffer_size: As for `sample_joint`.
        noise: Of all draws.

    Returns:
        `(B, S, M, D_y)`.

    Raises:
        RuntimeError: If the context is not current, or carries no gradient although one is wanted.

    Source:
        Figurnov, Mohamed, Mnih (2018), "Implicit reparameterization gradients".
    """
    check_current(context)
    if noise.normal.numel() == 0:
        return torch.empty_like(noise.normal)
    order = orders[noise.order]  # (B, S, M)
    embedded = context.model.embedder.inputs(x)
    placed = (place(x, order), place(embedded, order))
    everything = slice(0, context.x.shape[0])
    y = _sample_chunk(context, everything, *placed, buffer_size, noise, BufferCache(), _implicitly_drawn)
    return place(y, inverse_orders(order))


def _sample_chunk(
    context: Context,
    tasks: slice,
    x: Tensor,
    embedded: Tensor,
    buffer_size: int,
    noise: Noise,
    buffer: Buffer,
    draw: Callable[[Predictive, Tensor, Tensor], Tensor],
) -> Tensor:
    """Draws `(B, S, M, D_y)` in chain order for targets already placed in it, every block with the empty `buffer`."""
    num_tasks, num_draws, num_targets = noise.normal.shape[:3]
    done: list[Tensor] = []
    for part in chunks(num_targets, buffer_size):
        cache, lead = part_of_cache(context, tasks), (num_tasks, num_draws)
        if done:
            joined = join_context(context, x[:, :, : part.start], torch.cat(done, 2), tasks)
            cache, lead = context.model.encode(*joined), (-1, 1)
        block = embedded[:, :, part]
        if done:
            block = block.expand(-1, num_draws, -1, -1).reshape(*lead, *block.shape[2:])
        uniform, normal = (n[:, :, part].reshape(*lead, *n[:, :, part].shape[2:]) for n in noise[:2])
        y = _decode(context.model, cache, block, uniform, normal, buffer, draw)
        done.append(y.view(num_tasks, num_draws, *y.shape[2:]))
    return torch.cat(done, 2)


def _decode(
    model: Network,
    cache: ContextCache,
    embedded: Tensor,
    uniform: Tensor,
    normal: Tensor,
    buffer: Buffer,
    draw: Callable[[Predictive, Tensor, Tensor], Tensor],
) -> Tensor:
    """One block, step by step: the last pair and the next target go through the layers together."""
    pairs, draws = None, []
    for k in range(embedded.shape[2]):
        target = embedded[:, :, k : k + 1]
        predictive, buffer = model.predict(cache, buffer, pairs, target)
        here = slice(k, k + 1)
        y = draw(predictive.expand(normal[:, :, here].shape), uniform[:, :, here], normal[:, :, here])
        draws.append(y)
        pairs = (target, y)
    return torch.cat(draws, 2)


def score_joint(
    context: Context,
    x: Tensor,
    y: Tensor,
    orders: Tensor,
    buffer_size: int,
    missing: Tensor | None = None,
    score: Callable[[Predictive, Tensor], Tensor] = _log_density,
    max_tokens: int = MAX_TOKENS,
) -> Tensor:
    """Scores every target given those before it, for every order: one pass per block of targets.

    Args:
        context: Conditions B tasks.
        x: `(B, S or 1, M, D_x)` target inputs.
        y: `(B, S, M, D_y)` outcomes.
        orders: `(R, M)` int64.
        buffer_size: Targets per block, as in sampling: the block boundaries are part of the density.
        missing: `(B, S, M)` bool, targets that are left out (their scores mean nothing); `None` = none.
        score: Elementwise, of the predictive and the outcomes: the log density, or the distribution function.
        max_tokens: Bounds memory without gradients; changes nothing else.

    Returns:
        `(B, S, R, M, D_y)`, nats for the log density, targets in the user's indexing.

    Raises:
        RuntimeError: If the context is not current, or carries no gradient although one is wanted.

    Source:
        Hassan et al. (2026), Algorithm 2 (one-pass joint density).
    """
    check_current(context)
    num_draws, num_targets, num_orders = y.shape[1], y.shape[2], len(orders)
    if y.numel() == 0:
        return y.new_zeros(*y.shape[:2], num_orders, *y.shape[2:])
    embedded = context.model.embedder.inputs(x)  # (B, S or 1, M, d)
    tasks: dict[int, list[Tensor]] = {}
    for b, s in tasks_and_draws(context, num_draws * num_orders, num_targets, buffer_size, max_tokens):
        draw = torch.arange(s.start, s.stop, device=y.device) // num_orders  # the R orders of a draw are neighbours
        order = orders[torch.arange(s.start, s.stop, device=y.device) % num_orders][None]  # (1, S, M)
        if missing is not None:  # last in every order, no target that counts ever reads them
            out = missing[b][:, draw]
            order = order.expand(out.shape)
            order = order.gather(2, out.gather(2, order).byte().argsort(stable=True, dim=-1))
        shared = x.shape[1] == 1 and num_orders == 1 and missing is None
        placed_x, placed_embedded = (
            place(t[b] if t.shape[1] == 1 else t[b][:, draw], order[:, :1] if shared else order) for t in (x, embedded)
        )
        placed_y = place(y[b][:, draw], order)
        scores = _score_chunk(context, b, placed_x, placed_embedded, placed_y, buffer_size, score)
        tasks.setdefault(b.start, []).append(place(scores, inverse_orders(order)))
    scores = torch.cat([torch.cat(parts, 1) for parts in tasks.values()], 0)
    return scores.unflatten(1, (num_draws, num_orders))


def _score_chunk(
    context: Context,
    tasks: slice,
    x: Tensor,
    embedded: Tensor,
    y: Tensor,
    buffer_size: int,
    score: Callable[[Predictive, Tensor], Tensor],
) -> Tensor:
    """Scores `(B, S, M, D_y)` in chain order for targets already placed in it."""
    model, (num_tasks, num_draws, num_targets) = context.model, y.shape[:3]
    scores: list[Tensor] = []
    for part in chunks(num_targets, buffer_size):
        cache, block, values = part_of_cache(context, tasks), embedded[:, :, part], y[:, :, part]
        if part.start:
            cache = model.encode(*join_context(context, x[:, :, : part.start], y[:, :, : part.start], tasks))
            block = block.expand(-1, num_draws, -1, -1).flatten(0, 1).unsqueeze(1)
            values = values.flatten(0, 1).unsqueeze(1)
        pairs = (block[:, :, :-1], values[:, :, :-1]) if values.shape[2] > 1 else None
        prefix_len = chain_prefix_len(values.shape[2], y.device)
        predictive, _ = model.predict(cache, BufferCache(), pairs, block, prefix_len)
        scores.append(score(predictive, values).view(num_tasks, num_draws, *values.shape[2:]))
    return torch.cat(scores, 2)


def leave_one_out(
    model: Network,
    x: Tensor,
    y: Tensor,
    num_left_out: int,
    context_len: Tensor | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Tensor:
    """Log density of each of the first pairs given all the others: the context is encoded anew without it.

    Args:
        model: The model.
        x: `(B, T, D_x)` inputs.
        y: `(B, T, D_y)` outcomes.
        num_left_out: How many pairs, from the first, are left out in turn; none of them padding.
        context_len: `(B,)` int64, real pairs per task, the padding behind them; `None` = all T.
        max_tokens: Bounds memory without gradients; changes nothing else.

    Returns:
        `(B, num_left_out)` nats, summed over the outcome's dimensions.
    """
    num_tasks, num_pairs = x.shape[:2]
    others = torch.arange(num_pairs - 1, device=x.device)
    others = others + (others >= torch.arange(num_left_out, device=x.device)[:, None])  # (num_left_out, T - 1)
    densities = []
    for rows in chunks(num_tasks * num_left_out, max(1, max_tokens // (4 * num_pairs))):
        row = torch.arange(rows.start, rows.stop, device=x.device)
        task, left_out = row // num_left_out, row % num_left_out
        pairs = (t[task[:, None], others[left_out]] for t in (x, y))
        cache = model.encode(*pairs, None if context_len is None else context_len[task] - 1)
        embedded = model.embedder.inputs(x[task, left_out][:, None, None])  # (rows, 1, 1, d)
        predictive, _ = model.predict(cache, BufferCache(), None, embedded)
        densities.append(predictive.log_prob(y[task, left_out][:, None, None]).sum(-1)[:, 0, 0])
    return torch.cat(densities).view(num_tasks, num_left_out)


def grow_context(context: Context, x: Tensor, y: Tensor, shape: Size) -> Context:
    """A Context for every element of a batch, with further pairs in it, encoded anew.

    Args:
        context: To which the pairs are added.
        x: `(*batch, T, D_x)` inputs.
        y: `(*batch, T, D_y)` outcomes.
        shape: Batch shape of the result, to which those of context, x and y broadcast.

    Raises:
        RuntimeError: If the context is not current.
    """
    check_current(context)
    batch = context.task_shape
    x_new, y_new = fold(x, shape, batch, 2), fold(y.expand(*shape, *y.shape[-2:]), shape, batch, 2)

    def in_batch_order(rows: Tensor) -> Tensor:
        return unfold(rows.unflatten(0, y_new.shape[:2]), shape, batch).reshape(rows.shape)

    x_all, y_all, length = (None if t is None else in_batch_order(t) for t in join_context(context, x_new, y_new))
    tracked = context.tracked or x.requires_grad or y.requires_grad
    return encode_pairs(context.model, x_all, y_all, length, shape, shape, context.latents, tracked)


def predict_marginals(context: Context, x: Tensor) -> Predictive:
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

"""Joint sampling and joint density of targets given a Context, absorbing where targets outnumber buffer slots.

Each function asks the predictives that `inference/blocks` yields for what it wants: a draw, a density, a probability.
Everything here is flat: B tasks of the context, S draws that share it, R orders of a draw. Results are in the user's
indexing of the targets. Knows nothing of Pyro, nor of what a predictive is made of.

Deviation: beside the paper's draws and densities, probability integral transforms (PIT), implicitly reparameterised
draws, densities that leave one out, and missing targets, which come last in the chain.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Size, Tensor

from pyro_arbuf.inference.blocks import Chain, Forced, Noise, decoded, embed_once, make_chain
from pyro_arbuf.inference.context import Context, check_current, encode_pairs
from pyro_arbuf.inference.layout import (
    MAX_TOKENS,
    cut,
    distinct,
    draws_at_once,
    fold,
    join_context,
    repeated,
    unfold,
)
from pyro_arbuf.inference.tables import Maps, map_pairs
from pyro_arbuf.network.cache import BufferCache
from pyro_arbuf.network.network import Network
from pyro_arbuf.network.predictives import Predictive


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
    with torch.inference_mode():  # cheaper per operation than no_grad; `out` stays an ordinary tensor
        for here, chain, own in drawn_chains(context, x, orders, buffer_size, noise, max_tokens):
            drawn: list[Tensor] = []
            for predictive, uniform, normal in decoded(chain, own, drawn):
                drawn.append(predictive.draw(uniform, normal))
            out[here] = chain.restored(drawn).squeeze(2)
    return out.detach()  # a trace forgets no_grad


def drawn_chains(
    context: Context, x: Tensor, orders: Tensor, buffer_size: int, noise: Noise, max_tokens: int
) -> Iterator[tuple[tuple[slice, slice], Chain, Noise]]:
    """The chains of joint draws, with which tasks and draws they are and their noise; arguments of `sample_joint`."""
    if noise.normal.numel() == 0:
        return
    embedded = embed_once(context, x)
    num_targets = noise.normal.shape[2]
    for tasks, draws in cut(noise.normal.shape[:2], draws_at_once(context, num_targets, buffer_size, max_tokens)):
        own = Noise(*(part[tasks, draws] for part in noise))
        order = _drawn_orders(orders, own)
        yield (tasks, draws), make_chain(context, (tasks, draws), x, embedded, order, buffer_size), own


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
    num_tasks, num_draws = noise.normal.shape[:2]
    here = (slice(0, num_tasks), slice(0, num_draws))
    chain = make_chain(context, here, x, embed_once(context, x), _drawn_orders(orders, noise), buffer_size)
    drawn: list[Tensor] = []
    for predictive, uniform, normal in decoded(chain, noise, drawn):
        drawn.append(predictive.implicit_draw(uniform, normal))
    return chain.restored(drawn).squeeze(2)


def _drawn_orders(orders: Tensor, noise: Noise) -> Tensor:
    """The order of every draw, `(B, S, 1, M)`; `(1, 1, 1, M)` where there is one for all."""
    return orders[noise.order].unsqueeze(2) if len(orders) > 1 else orders[None, None]


def score_joint(
    context: Context,
    x: Tensor,
    y: Tensor,
    orders: Tensor,
    buffer_size: int,
    missing: Tensor | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Tensor:
    """Log density of every target given those before it, for every order: one pass per block of targets.

    Args:
        context: Conditions B tasks.
        x: `(B, S or 1, M, D_x)` target inputs.
        y: `(B, S, M, D_y)` outcomes.
        orders: `(R, M)` int64.
        buffer_size: Targets per block, as in sampling: the block boundaries are part of the density.
        missing: `(B, S, M)` bool, targets that are left out, of log density 0; `None` = none.
        max_tokens: Bounds memory without gradients; changes nothing else.

    Returns:
        `(B, S, R, M, D_y)` nats, targets in the user's indexing.

    Raises:
        RuntimeError: If the context is not current, or carries no gradient although one is wanted.

    Source:
        Hassan et al. (2026), Algorithm 2 (one-pass joint density).
    """
    check_current(context)
    forced = Forced(context, x, y, orders, buffer_size, missing, max_tokens)
    densities = [
        chain.restored([predictive.log_prob(values) for predictive, values in readings]) for chain, readings in forced
    ]
    return forced.whole(densities, 0.0)


def pit_joint(
    context: Context,
    x: Tensor,
    y: Tensor,
    orders: Tensor,
    buffer_size: int,
    missing: Tensor | None = None,
    max_tokens: int = MAX_TOKENS,
) -> tuple[Tensor, Tensor]:
    """P(Y < y) and P(Y <= y) of every target given those before it, for every order; one tensor where they are equal.

    Args:
        context: As for `score_joint`.
        x: Likewise.
        y: Likewise.
        orders: Likewise.
        buffer_size: Likewise.
        missing: Likewise, but of value NaN.
        max_tokens: Likewise.

    Returns:
        Two times `(B, S, R, M, D_y)` in [0, 1], targets in the user's indexing.

    Raises:
        RuntimeError: As `score_joint`.

    Source:
        Rosenblatt (1952), "Remarks on a multivariate transformation".
    """
    check_current(context)
    forced = Forced(context, x, y, orders, buffer_size, missing, max_tokens)
    continuous = context.model.config.all_real  # then P(Y < y) = P(Y <= y)
    below: list[Tensor] = []
    up_to: list[Tensor] = []
    for chain, readings in forced:
        at_most, smaller = [], []
        for predictive, values in readings:
            at_most.append(predictive.cdf(values))
            smaller.append(at_most[-1] if continuous else predictive.below(values))
        below.append(chain.restored(smaller))
        up_to.append(chain.restored(at_most))
    return forced.whole(below, math.nan), forced.whole(up_to, math.nan)


def check_exchangeable(model: Network) -> None:
    """Raises ValueError if the model is one of series, of which no trial can be left out."""
    if model.config.sequential:
        raise ValueError(
            "leaving one trial out needs exchangeable trials; got a network of a series, whose contexts hold the first "
            "trials without gaps; score each trial given those before it by "
            "ArBufferJoint(net.condition(), x, buffer_size=1).log_prob_factors(y)"
        )


def leave_one_out(
    model: Network,
    x: Tensor,
    y: Tensor,
    num_left_out: int,
    context_len: Tensor | None = None,
    max_tokens: int = MAX_TOKENS,
    fit: Callable[[Tensor, Tensor, Tensor | None], Maps | None] | None = None,
) -> Tensor:
    """Log density of each of the first pairs given all the others: the context is encoded anew without it.

    Raises ValueError for a series.

    Args:
        model: The model.
        x: `(B, T, D_x)` inputs.
        y: `(B, T, D_y)` outcomes.
        num_left_out: How many pairs, from the first, are left out in turn; none of them padding.
        context_len: `(B,)` int64, real pairs per task, the padding behind them; `None` = all T.
        max_tokens: Bounds memory without gradients; changes nothing else.
        fit: Makes the map from a user's numbers to the network's of the other pairs, `fit_map`; `None` = pairs are
            in the network's units already, and so are densities.

    Returns:
        `(B, num_left_out)` nats, summed over the outcome's dimensions.
    """
    check_exchangeable(model)
    num_tasks, num_pairs, dtype = *x.shape[:2], next(model.parameters()).dtype
    others = torch.arange(num_pairs - 1, device=x.device)
    others = others + (others >= torch.arange(num_left_out, device=x.device)[:, None])  # (num_left_out, T - 1)
    pieces = cut((num_tasks, num_left_out), max_tokens // (4 * num_pairs))
    densities = []
    for tasks, left_out in pieces:
        x_out, y_out = (t[tasks, left_out].flatten(0, 1)[:, None] for t in (x, y))  # (rows, 1, .)
        x_others, y_others = (t[tasks][:, others[left_out]].flatten(0, 1) for t in (x, y))  # (rows, T - 1, .)
        num_others = None if context_len is None else (context_len[tasks] - 1).repeat_interleave(len(others[left_out]))
        maps = None if fit is None else fit(x_others, y_others, num_others)
        x_others, y_others = map_pairs(maps, x_others, y_others, num_others, dtype)
        x_out, y_out = map_pairs(maps, x_out, y_out, None, dtype)
        cache = model.encode(x_others, y_others, num_others)
        predictive, _ = model.predict(cache, BufferCache(), None, model.embed_targets(cache, x_out.unsqueeze(1)))
        density = predictive.log_prob(y_out.unsqueeze(1)).sum(-1).squeeze(1)  # (rows, 1)
        density = density if maps is None else (density - maps.log_jacobian).to(density.dtype)
        densities.append(density.view(-1, len(others[left_out])))
    return pieces.join(densities)


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

    x_all, y_all, length = join_context(context, x_new, y_new)
    x_all, y_all = in_batch_order(x_all), in_batch_order(y_all)
    length = None if length is None else in_batch_order(length)
    tracked = context.tracked or x.requires_grad or y.requires_grad
    statistics = context.statistics
    if statistics is not None:
        of_batch = (part.view(*batch, *part.shape[1:]).expand(*shape, *part.shape[1:]) for part in statistics)
        statistics = statistics._make(part.reshape(-1, *part.shape[-2:]) for part in of_batch)
    given = (context.latents, tracked, statistics, context.labels)
    return encode_pairs(context.model, x_all, y_all, length, shape, shape, *given)


def predict_marginals(context: Context, x: Tensor) -> Predictive:
    """The set model's independent predictive: every target read with an empty buffer, those of equal inputs once.

    Args:
        context: Conditions B tasks.
        x: `(B, S, M, D_x)` target inputs.

    Returns:
        Batch shape `(B, S, M, D_y)`.

    Raises:
        RuntimeError: If the weights have changed since the context was made.
    """
    check_current(context)
    without_repetitions = distinct(x)
    own = x if without_repetitions is None else without_repetitions[0]
    embedded = context.model.embed_targets(context.cache, own)
    predictive = context.model.predict(context.cache, BufferCache(), None, embedded)[0]
    if without_repetitions is None:
        return predictive
    return predictive.map(lambda parameter: repeated(parameter, without_repetitions[1]))

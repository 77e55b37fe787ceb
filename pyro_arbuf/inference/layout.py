"""How joint predictions are laid out: a user's batch as B tasks x S draws, targets in order, chunks of fixed memory."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Size, Tensor

from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.validation import may_look_at
from pyro_arbuf.network.cache import ContextCache

MAX_TOKENS = 2**14  # tokens in flight in one chunk of draws: memory is fixed whatever the number of draws


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


def distinct(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Inputs of targets without the repetitions that conditions of an experiment have.

    Args:
        x: `(B, S, M, D_x)`.

    Returns:
        Inputs `(B, 1, U, D_x)` of every task, and which of them each target has, `(B, S, M)` int64. `None` = each task
        would have more than half as many targets as it has, or no value may decide: one that is traced, or a gradient
        is wanted of, or that a device would have to be waited for.
    """
    if x.device.type != "cpu" or not may_look_at(x):
        return None
    which = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
    number, most = 1, x.shape[1] * x.shape[2] // 2
    for column in x.unbind(-1):
        values, code = torch.unique(column, return_inverse=True)
        known, which = torch.unique(which * len(values) + code, return_inverse=True)
        number = len(known)
        if number > most:
            return None
    rows = x.new_empty(number, x.shape[-1])
    rows[which.flatten()] = x.flatten(0, 2)  # any of the equal ones
    return rows.expand(len(x), 1, -1, -1), which


def repeated(tensor: Tensor, which: Tensor) -> Tensor:
    """What holds of every target, `(B, S, M, ...)`, from what holds of `distinct` ones, `(B, 1, U, ...)`."""
    index = which.flatten(1)
    index = index.view(*index.shape, *(1,) * (tensor.dim() - 3)).expand(-1, -1, *tensor.shape[3:])
    return tensor.squeeze(1).gather(1, index).unflatten(1, which.shape[1:])


def chunks(size: int, chunk: int) -> Iterator[slice]:
    """Cuts `0 .. size - 1` into slices of `chunk`."""
    for start in range(0, size, chunk):
        yield slice(start, min(start + chunk, size))


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Axes cut into slices: every combination of slices is a piece, the last axis changing first.

    Attributes:
        axes: The slices of every axis, e.g. of tasks, draws and orders.
    """

    axes: tuple[tuple[slice, ...], ...]

    def __iter__(self) -> Iterator[tuple[slice, ...]]:
        return itertools.product(*self.axes)

    def join(self, results: Iterable[Tensor]) -> Tensor:
        """The result of the whole.

        Args:
            results: Those of the pieces, in their order; the first dimensions are the axes.
        """
        joined = list(results)
        for dim in reversed(range(len(self.axes))):
            count = len(self.axes[dim])
            if count > 1:
                joined = [torch.cat(joined[i : i + count], dim) for i in range(0, len(joined), count)]
        return joined[0]


def cut(sizes: Sequence[int], most: int) -> Pieces:
    """Cuts axes into pieces of at most about `most` elements; shapes decide, never values.

    Args:
        sizes: Of the axes; the first are cut first.
        most: Elements of a piece, where 1 element is not more.
    """
    axes = []
    for axis, size in enumerate(sizes):
        inner = math.prod(sizes[axis + 1 :])
        axes.append(tuple(chunks(size, max(1, most // max(1, inner)))))
    return Pieces(tuple(axes))


def draws_at_once(context: Context, num_targets: int, buffer_size: int, max_tokens: int) -> int:
    """How many joint draws, or orders of a draw, are at most about `max_tokens` tokens."""
    per_draw = 2 * min(num_targets, buffer_size)
    if num_targets > buffer_size:  # absorbing re-encodes per draw; smaller pieces stay in the processor's cache
        per_draw = 4 * (per_draw + context.num_context + num_targets)
    return max(1, max_tokens // per_draw)


def pick(tensor: Tensor, part: slice) -> Tensor:
    """A part of dimension 1, or all of it where it has size 1 and is shared by the draws."""
    return tensor if tensor.shape[1] == 1 else tensor[:, part]


def place(tensor: Tensor, order: Tensor) -> Tensor:
    """Puts targets in order: `(*batch, M, .)` by `order` `(*batch, M)`; the batches broadcast."""
    tensor, index = torch.broadcast_tensors(tensor, order.unsqueeze(-1))
    return tensor.gather(-2, index)


def place_last(order: Tensor, missing: Tensor) -> Tensor:
    """Orders in which missing targets come last, where no target that counts ever reads them.

    Args:
        order: `(B or 1, S or 1, R, M)` int64.
        missing: `(B, S, M)` bool.

    Returns:
        `(B, S, R, M)` int64.
    """
    missing = missing.unsqueeze(2).expand(-1, -1, order.shape[2], -1)
    order = order.expand(missing.shape)
    return order.gather(-1, missing.gather(-1, order).byte().argsort(stable=True, dim=-1))


def part_of_cache(context: Context, tasks: slice) -> ContextCache:
    """The keys and values of some of a context's tasks."""
    return context.cache if tasks == slice(0, context.x.shape[0]) else context.cache.select(tasks)


def join_context(
    context: Context, x: Tensor, y: Tensor, tasks: slice = slice(None)
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The pairs of every draw's context with pairs of its own in front of them.

    Args:
        context: Of B tasks.
        x: `(B, S or 1, T, D_x)` inputs.
        y: `(B, S, T, D_y)` outcomes.
        tasks: Which of the context's tasks.

    Returns:
        Inputs `(B * S, T + N, D_x)`, outcomes `(B * S, T + N, D_y)` and `(B * S,)` lengths, `None` = no padding.
    """
    num_draws = y.shape[1]
    pairs = context.x_like(x), context.y
    x_context, y_context = (t[tasks, None].expand(-1, num_draws, -1, -1) for t in pairs)
    # In front, so that padding stays behind; the context has no positions.
    x = torch.cat([x.expand(-1, num_draws, -1, -1), x_context], 2).flatten(0, 1)
    y = torch.cat([y, y_context], 2).flatten(0, 1)
    context_len = context.context_len
    if context_len is not None:
        context_len = (context_len[tasks] + x.shape[1] - x_context.shape[2]).repeat_interleave(num_draws)
    return x, y, context_len

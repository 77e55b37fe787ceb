"""Orders of targets: pure functions, shared by sampling and density.

An order is a row of a `(R, M)` int64 tensor: `orders[r, k]` is the index of the target that is placed k-th.

Deviation: the paper averages over 128 random orders. Here orders are a function of M and a seed, by default one: a
Pyro model rebuilds its distributions on every call, and NUTS needs the same density each time.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.display import Table, cells, labels, shown_as_table
from pyro_arbuf.inference.validation import check_count
from pyro_arbuf.network.tracing import unrecorded
from pyro_arbuf.user_warnings import warn

NUM_GROUPS = 4  # of orders, in a division
NUM_DIVISIONS = 16  # averaged over, as the groups are few


def _summary(spread: "OrderSpread") -> tuple[str, Table]:
    numbers = {
        "log density": cells(spread.log_prob),
        "standard error": cells(spread.standard_error),
        "orders that count": cells(spread.effective_orders),
    }
    several = {"event": labels(spread.log_prob.shape)} if spread.log_prob.dim() else {}
    return f"OrderSpread over {spread.log_prob_orders.shape[-1]} orders, nats", several | numbers


@shown_as_table(_summary)
class OrderSpread(NamedTuple):
    """How much a joint log density depends on the order of the targets.

    Attributes:
        log_prob_orders: `(*batch, R)` nats, the density of each order.
        log_prob: `(*batch,)` nats, their equal mixture.
        standard_error: `(*batch,)` nats, of `log_prob` as an estimate of the average over all orders: by the delta
            method, or the spread between groups of orders where few orders dominate.
        effective_orders: `(*batch,)`, how many of the R orders count: 1 / sum w_r^2 of their weights in the mixture.
    """

    log_prob_orders: Tensor
    log_prob: Tensor
    standard_error: Tensor
    effective_orders: Tensor


def random_orders(num_targets: int, num_orders: int, seed: int = 0) -> Tensor:
    """Draws random orders, the same ones for the same arguments.

    A pure function of its arguments: inside a Pyro model a distribution is rebuilt on every call, and orders that
    changed would make its density random.

    Args:
        num_targets: Number of targets M, at least 1.
        num_orders: Number of orders R, at least 1.
        seed: Seed of a generator of its own.

    Returns:
        `(R, M)` int64, every row a permutation of 0 .. M-1.

    Raises:
        ValueError: If a count is no integer or below 1.

    Example:
        >>> random_orders(4, 2, seed=0).sort(-1).values
        tensor([[0, 1, 2, 3],
                [0, 1, 2, 3]])
    """
    if not torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]  # a trace knows sizes as tensors
        check_count("num_targets", num_targets)
    check_count("num_orders", num_orders)
    check_count("seed", seed, 0)
    generator = torch.Generator("cpu").manual_seed(int(seed))
    with unrecorded():  # a trace would record randperm itself and draw other orders on every call
        rows = (torch.randperm(num_targets, generator=generator, device="cpu") for _ in range(num_orders))
        return torch.tensor([row.tolist() for row in rows])


def check_orders(orders: Tensor, num_targets: int) -> Tensor:
    """Checks that orders are permutations of the targets, and returns them as they are.

    Args:
        orders: `(R, M)` int64.
        num_targets: Number of targets M.

    Raises:
        ValueError: If the shape or dtype is wrong, or a row is no permutation.
    """
    rule = (
        f"orders must be an int64 tensor of shape (R, {num_targets}), every row a permutation of 0..{num_targets - 1}"
    )
    remedy = "e.g. pyro_arbuf.random_orders(M, R), or torch.arange(M)[None] for the targets as given"
    if not isinstance(orders, Tensor) or orders.dtype != torch.int64:
        got = f"dtype {orders.dtype}" if isinstance(orders, Tensor) else type(orders).__name__
        raise ValueError(f"{rule}; got {got}; {remedy}")
    if orders.dim() != 2 or orders.shape[0] == 0 or orders.shape[1] != num_targets:
        raise ValueError(f"{rule}; got shape {tuple(orders.shape)}; {remedy}")
    expected = torch.arange(num_targets, device=orders.device)
    wrong = (orders.sort(-1).values != expected).any(-1).nonzero()
    if len(wrong):
        row = int(wrong[0, 0])
        raise ValueError(f"{rule}; row {row} is {orders[row].tolist()}; {remedy}")
    return orders


def chosen_orders(orders: Tensor | None, num_targets: int, sequential: bool, at_latents: bool = False) -> Tensor:
    """Checked orders `(R, M)`; of `None` one fixed order: shuffled, or of a series the targets as given.

    Trials of a series have no other order; latents may have any.
    """
    own = torch.arange(num_targets)[None]
    if orders is None:
        return own if sequential else random_orders(num_targets, 1)
    orders = check_orders(orders, num_targets)
    if sequential and not at_latents and bool((orders != own.to(orders.device)).any()):
        raise ValueError(
            "orders must be that of the targets as given where they are a series, whose order is natural; got another "
            "one; leave orders out"
        )
    return orders.clone()


def inverse_orders(orders: Tensor) -> Tensor:
    """Undoes orders: `y_ordered.gather(-1, inverse)` is in the user's indexing again.

    Args:
        orders: `(*batch, M)` int64 permutations.

    Returns:
        `(*batch, M)` int64.

    Example:
        >>> inverse_orders(torch.tensor([[2, 0, 1]]))
        tensor([[1, 2, 0]])
    """
    return orders.argsort(-1)


def mix_orders(per_order: Tensor) -> Tensor:
    """Log density of the equal mixture over orders; -inf, of gradient 0, where every order says so.

    Args:
        per_order: `(*batch, R)` log densities, nats.

    Returns:
        `(*batch,)` nats.
    """
    least = torch.finfo(per_order.dtype).min  # of -inf alone, logsumexp has no gradient
    mixed = torch.logsumexp(per_order.clamp(min=least), -1) - math.log(per_order.shape[-1])
    return mixed.masked_fill(mixed <= least, -torch.inf)


def check_index(index: Tensor | Sequence[int], num_targets: int) -> Tensor:
    """Checks that an index selects some of the targets, each at most once and not all of them.

    Args:
        index: Integers, a tensor `(T,)` or a sequence.
        num_targets: Number of targets M.

    Returns:
        `(T,)` int64.

    Raises:
        ValueError: If it does not.
    """
    chosen = torch.as_tensor(index)
    chosen = chosen.long() if chosen.shape == (0,) else chosen
    if chosen.dim() != 1 or chosen.dtype != torch.int64:
        raise ValueError(f"index must hold integers, shape (T,); got {chosen.dtype}, shape {tuple(chosen.shape)}")
    values = chosen.tolist()
    if len(set(values)) < len(values) or not all(0 <= value < num_targets for value in values):
        raise ValueError(f"index must name targets in 0..{num_targets - 1}, none twice; got {values}")
    if len(values) == num_targets:
        raise ValueError(f"index must leave at least one of the {num_targets} targets; got all of them")
    return chosen


def restrict_orders(orders: Tensor, keep: Tensor) -> Tensor:
    """The orders in which the kept targets follow each other, renumbered 0, 1, ... in the user's indexing.

    Args:
        orders: `(R, M)` int64.
        keep: `(M,)` bool.

    Returns:
        `(R, number kept)` int64.

    Example:
        >>> restrict_orders(torch.tensor([[3, 0, 2, 1]]), torch.tensor([True, False, True, True]))
        tensor([[2, 0, 1]])
    """
    renumbered = keep.cumsum(0) - 1
    return renumbered[orders[keep[orders]]].view(len(orders), -1)


def average_orders(log_prob_orders: Tensor) -> OrderSpread:
    r"""Averages the densities of orders, with the standard error of the log of their average.

    With w_r the weights of the orders in the mixture, the error is sd(w_r) sqrt(R) by the delta method. That cannot
    exceed 1 nat, however far the orders are apart, so it serves only where many orders count. Where fewer than a
    quarter of them do, the error is the root mean square distance of the log averages of groups of R / 4 orders from
    that of all: it grows with the spread, and holds how far the average still rises with the number of orders.

    Args:
        log_prob_orders: `(*batch, R)` nats, R >= 2.
    """
    log_prob = _log_mean(log_prob_orders)
    relative = torch.exp(log_prob_orders - log_prob.unsqueeze(-1))  # p_r / p, of mean 1
    effective = 1 / torch.softmax(log_prob_orders, -1).square().sum(-1)
    error = _standard_error(relative, _group_distances(log_prob_orders, log_prob), few_orders_count(log_prob_orders))
    return OrderSpread(log_prob_orders, log_prob, error, effective)


def paired_error(first: Tensor, second: Tensor) -> Tensor:
    """Standard error `(*batch,)` of the difference of two log averages over the same orders, each `(*batch, R)` nats.

    As that of `average_orders`, of the differences order by order.
    """
    averages = [_log_mean(each) for each in (first, second)]
    relative = [torch.exp(each - mean.unsqueeze(-1)) for each, mean in zip((first, second), averages, strict=True)]
    distances = [_group_distances(each, mean) for each, mean in zip((first, second), averages, strict=True)]
    few = few_orders_count(first) | few_orders_count(second)
    return _standard_error(relative[0] - relative[1], distances[0] - distances[1], few)


def few_orders_count(log_prob_orders: Tensor) -> Tensor:
    """Whether fewer than a quarter of the orders make up their average, `(*batch,)` bool."""
    weights = torch.softmax(log_prob_orders, -1)
    return 1 / weights.square().sum(-1) < max(log_prob_orders.shape[-1] / 4, 1.5)  # of 2 orders at least 1 counts


def warn_few_orders(spread: OrderSpread, what: str) -> None:
    """Warns where few orders dominate."""
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return
    few = few_orders_count(spread.log_prob_orders)
    if bool(few.any()):
        effective, num_orders = spread.effective_orders[few].min().item(), spread.log_prob_orders.shape[-1]
        warn(
            f"{what} rests on few of its {num_orders} orders: their effective number is {effective:.1f}. Take more "
            "orders, or train the network longer; the average over all orders may be higher",
        )


def _log_mean(log_prob_orders: Tensor) -> Tensor:
    return torch.logsumexp(log_prob_orders, -1) - math.log(log_prob_orders.shape[-1])


def _group_distances(log_prob_orders: Tensor, log_prob: Tensor) -> Tensor:
    """Log averages of disjoint groups of orders minus that of all, `(*batch, divisions, groups)`."""
    num_orders = log_prob_orders.shape[-1]
    num_groups = min(NUM_GROUPS, num_orders)
    size = num_orders // num_groups
    divisions = random_orders(num_orders, NUM_DIVISIONS)[:, : num_groups * size].to(log_prob.device)
    grouped = log_prob_orders[..., divisions.view(NUM_DIVISIONS, num_groups, size)]
    return _log_mean(grouped) - log_prob[..., None, None]


def _standard_error(relative: Tensor, distances: Tensor, few: Tensor) -> Tensor:
    delta = relative.std(-1) / math.sqrt(relative.shape[-1])
    spread = distances.square().mean((-1, -2)).sqrt()
    return torch.where(few, torch.maximum(delta, spread), delta)

"""Orders of targets: pure functions, shared by sampling and density.

An order is a row of a `(R, M)` int64 tensor: `orders[r, k]` is the index of the target that is placed k-th.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_arbuf.validation import inference_scope


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
        ValueError: If a count is below 1.

    Example:
        >>> random_orders(4, 2, seed=0).sort(-1).values
        tensor([[0, 1, 2, 3],
                [0, 1, 2, 3]])
    """
    if num_targets < 1 or num_orders < 1:
        raise ValueError(f"num_targets and num_orders must be at least 1; got {num_targets} and {num_orders}")
    generator = torch.Generator().manual_seed(seed)
    with inference_scope():
        # Through a list: a trace would record randperm itself and draw other orders on every call.
        return torch.tensor([torch.randperm(num_targets, generator=generator).tolist() for _ in range(num_orders)])


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

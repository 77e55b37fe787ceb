"""Whether the points of functions come in random order, by their inputs. Knows nothing of priors and networks."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOST_ERRORS = 8.0  # standard errors between points, of which many are compared
LEAST_SHIFT = 0.01  # of ranks from -0.5 to 0.5, below which a difference is no matter


def check_random_order(draws: Sequence[Tensor]) -> None:
    """Raises ValueError if an input says which points of a function come first.

    The first points of a function are its context, so that sorted ones would train extrapolation alone. In random order
    all points have one law. Compared are their ranks, among all values and in their function, how far these are from
    the middle, and neighbours with any two points. Functions of one draw may share an order, so errors are over draws.

    Args:
        draws: x `(B, T, D_x)` of each draw.
    """
    x = torch.stack([draw.movedim(-1, 0) for draw in draws], 1)  # (D, draws, B, T)
    pooled, within = _ranks(x.flatten(1)).view(x.shape), _ranks(x)
    compared = torch.stack([pooled, pooled.abs(), within, within.abs()])
    means = (compared - compared.mean((2, 3, 4), keepdim=True)).mean(3)  # (4, D, draws, T)
    errors = (means.var(2).mean(-1, keepdim=True) / len(draws)).sqrt()  # of all points, as they have one law
    differ = means.mean(2).abs() > MOST_ERRORS * errors + LEAST_SHIFT  # (4, D, T)
    steps = within.diff().abs().mean((2, 3)) - _mean_distance(within).mean(2)  # (D, draws)
    near = steps.mean(1).abs() > MOST_ERRORS * steps.std(1) / math.sqrt(len(draws)) + LEAST_SHIFT
    columns = (differ.any(-1).any(0) | near).nonzero().flatten().tolist()
    if columns:
        raise ValueError(
            "points of a function must come in random order, as the first ones are what a network observes; got "
            f"x[..., {columns[0]}], which says which of them come first; shuffle x and y by "
            "torch.randperm(num_points, generator=generator)"
        )


def _ranks(values: Tensor) -> Tensor:
    """Ranks along the last dimension, from -0.5 to 0.5, those of equal values alike."""
    ordered = values.sort(-1).values
    below, up_to = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + up_to) / (2 * values.shape[-1]) - 0.5


def _mean_distance(values: Tensor) -> Tensor:
    """Mean distance of two different ones of the values along the last dimension."""
    number = values.shape[-1]
    weights = 2 * torch.arange(number, dtype=values.dtype) - number + 1  # of the sorted values
    return 2 * (values.sort(-1).values * weights).sum(-1) / (number * (number - 1))

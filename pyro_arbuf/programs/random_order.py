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
    x = torch.stack(list(draws))  # (draws, B, T, D)
    pooled = torch.stack([_ranks(column) for column in x.unbind(-1)], -1)
    within = torch.stack([_ranks_within(each) for each in x])
    compared = torch.stack([pooled, pooled.abs(), within, within.abs()])
    means = (compared - compared.mean((1, 2, 3), keepdim=True)).mean(2)  # (4, draws, T, D)
    errors = (means.var(1).mean(1, keepdim=True) / len(x)).sqrt()  # of all points, as they have one law
    differ = means.mean(1).abs() > MOST_ERRORS * errors + LEAST_SHIFT  # (4, T, D)
    steps = within.diff(dim=2).abs().mean((1, 2)) - _mean_distance(within).mean(1)  # (draws, D)
    near = steps.mean(0).abs() > MOST_ERRORS * steps.std(0) / math.sqrt(len(x)) + LEAST_SHIFT
    columns = (differ.any(0).any(0) | near).nonzero().flatten().tolist()
    if columns:
        raise ValueError(
            "points of a function must come in random order, as the first ones are what a network observes; got "
            f"x[..., {columns[0]}], which says which of them come first; shuffle x and y by "
            "torch.randperm(num_points, generator=generator)"
        )


def _ranks(values: Tensor) -> Tensor:
    """Ranks from -0.5 to 0.5, those of equal values alike."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    return ((counts.cumsum(0) - counts / 2) / values.numel() - 0.5)[which]


def _ranks_within(x: Tensor) -> Tensor:
    """The same of each column of each function alone, of x `(B, T, D)`."""
    one, other = x.unsqueeze(2), x.unsqueeze(1)
    return ((other < one).sum(2) + (other == one).sum(2) / 2) / x.shape[1] - 0.5


def _mean_distance(values: Tensor) -> Tensor:
    """Mean distance of two different points, `(draws, B, D)`, of values `(draws, B, T, D)`."""
    number = values.shape[2]
    weights = 2 * torch.arange(number, dtype=values.dtype) - number + 1  # of the sorted values
    return 2 * (values.sort(2).values * weights.unsqueeze(-1)).sum(2) / (number * (number - 1))

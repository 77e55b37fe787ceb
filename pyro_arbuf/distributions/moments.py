"""Moments of joint draws. Knows nothing of distributions."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.display import Table, cells, labels, shown_as_table


def _summary(moments: "Moments") -> tuple[str, Table]:
    numbers = {"mean": cells(moments.mean), "sd": cells(moments.variance.sqrt())}
    return "Moments", {"target": labels(moments.mean.shape)} | numbers


@shown_as_table(_summary)
class Moments(NamedTuple):
    """Monte Carlo moments of a joint; E = M for a scalar outcome, M * D_y for a vector one (outcome fastest).

    Attributes:
        mean: `(*batch, M)` or `(*batch, M, D_y)`, units of y.
        variance: The same shape, units of y squared.
        covariance: `(*batch, E, E)`, units of y squared.
    """

    mean: Tensor
    variance: Tensor
    covariance: Tensor


def moments_of(draws: Tensor, num_event_dims: int) -> Moments:
    """Mean, variance and covariance of at least 2 draws `(n, *batch, *event)`.

    Args:
        draws: Along the first dimension.
        num_event_dims: 1 for a scalar outcome, 2 for a vector one.

    Returns:
        Their moments, the unbiased ones.
    """
    mean = draws.mean(0)
    centred = (draws - mean).flatten(start_dim=draws.dim() - num_event_dims)  # (n, *batch, E)
    covariance = torch.einsum("n...i,n...j->...ij", centred, centred) / (len(draws) - 1)
    return Moments(mean, draws.var(0), covariance)

"""Exact answers to the strangers' programs of strangers.py, in double precision: grids and closed forms.

Every function takes the data of one data set and returns log densities in nats, or a posterior on a grid.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
NOISE_SD = 0.2  # of the periodic functions
PERIOD = (2.0, 4.0)


class GridPosterior(NamedTuple):
    """A posterior on a grid, and the log evidence.

    Attributes:
        mean: `(P,)`.
        sd: `(P,)`.
        log_evidence: Nats.
    """

    mean: Tensor
    sd: Tensor
    log_evidence: float


def on_grid(nodes: Tensor, log_joint: Tensor, log_cell: float) -> GridPosterior:
    """Moments and evidence from log p(theta) + log p(y | theta) at nodes.

    Args:
        nodes: `(G, P)` equally spaced in each dimension.
        log_joint: `(G,)` nats.
        log_cell: Log volume of a cell.
    """
    total = log_joint.logsumexp(0)
    mass = (log_joint - total).exp().unsqueeze(-1)
    mean = (mass * nodes).sum(0)
    sd = (mass * (nodes - mean) ** 2).sum(0).sqrt()
    return GridPosterior(mean, sd, (total + log_cell).item())


def log_normal(y: Tensor, loc: Tensor | float, sd: Tensor | float) -> Tensor:
    """Log density of a normal law, elementwise."""
    sd = torch.as_tensor(sd, dtype=torch.float64)
    return -0.5 * ((y - loc) / sd) ** 2 - sd.log() - 0.5 * LOG_2PI


def log_gaussian(y: Tensor, covariance: Tensor) -> Tensor:
    """Log density `(*batch,)` of y `(n,)` under mean zero and covariances `(*batch, n, n)`."""
    factor = torch.linalg.cholesky(covariance)
    z = torch.linalg.solve_triangular(factor, y.expand(*covariance.shape[:-1]).unsqueeze(-1), upper=False)
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * z.squeeze(-1).square().sum(-1) - half_log_det - 0.5 * len(y) * LOG_2PI


def periodic_covariance(x: Tensor, period: Tensor, noise_sd: float = NOISE_SD) -> Tensor:
    """Covariance `(*batch, n, n)` of noisy periodic functions at x `(*batch, n)`, periods `(*batch,)`."""
    phase = math.pi * (x.unsqueeze(-1) - x.unsqueeze(-2)) / period[..., None, None]
    noise = noise_sd**2 * torch.eye(x.shape[-1], dtype=x.dtype)
    return torch.exp(-2 * torch.sin(phase) ** 2) + noise


def periodic_log_joint(x: Tensor, y: Tensor, num_nodes: int = 1000) -> float:
    """Log density of points x, y `(n,)` of one periodic function, the period integrated out by the midpoint rule."""
    if len(y) == 0:
        return 0.0
    x, y = x.double(), y.double()
    width = (PERIOD[1] - PERIOD[0]) / num_nodes
    periods = PERIOD[0] + width * (torch.arange(num_nodes, dtype=torch.float64) + 0.5)
    each = [log_gaussian(y, periodic_covariance(x, part)) for part in periods.split(100)]
    return (torch.cat(each).logsumexp(0) - math.log(num_nodes)).item()

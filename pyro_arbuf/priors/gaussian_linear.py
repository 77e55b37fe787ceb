"""Gaussian linear as a Pyro program: the mean of a ten-dimensional Gaussian, everything exact.

One outcome vector per data set; no inputs.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

DIMENSION = 10
PRIOR_VARIANCE = 0.1
NOISE_VARIANCE = 0.1


def gaussian_linear(x: Tensor) -> Tensor:
    """Pyro program: theta ~ N(0, 0.1 I_10), y ~ N(theta, 0.1 I_10); one outcome vector.

    Args:
        x: `(*batch, 1, D_x)`; sets the dtype, values are ignored.

    Returns:
        Outcome `(10,)`, or `(B, 1, 10)` under an outer plate of size B and dim -2.

    Source:
        Lueckmann et al. (2021), sbibm, task T.1.
    """
    theta = pyro.sample("theta", dist.Normal(x.new_zeros(DIMENSION), math.sqrt(PRIOR_VARIANCE)).to_event(1))
    return pyro.sample("y", dist.Normal(theta, math.sqrt(NOISE_VARIANCE)).to_event(1))


def _check_outcome(y: Tensor) -> None:
    if y.dim() == 0 or y.shape[-1] != DIMENSION:
        raise ValueError(f"y must have shape (*batch, {DIMENSION}); got {tuple(y.shape)}")


def exact_posterior(y: Tensor) -> dist.Independent:
    """Exact law of theta given an outcome vector, in double precision.

    Args:
        y: `(*batch, 10)`.

    Returns:
        Distribution with batch shape `(*batch,)` and event shape `(10,)`, float64.

    Raises:
        ValueError: If y does not end in a dimension of size 10.
    """
    _check_outcome(y)
    gain = PRIOR_VARIANCE / (PRIOR_VARIANCE + NOISE_VARIANCE)
    return dist.Normal(gain * y.double(), math.sqrt(gain * NOISE_VARIANCE)).to_event(1)


def exact_log_evidence(y: Tensor) -> Tensor:
    """Exact log density of an outcome vector, theta integrated out.

    Args:
        y: `(*batch, 10)`.

    Returns:
        `(*batch,)` float64, in nats.

    Raises:
        ValueError: If y does not end in a dimension of size 10.
    """
    _check_outcome(y)
    y = y.double()
    return dist.Normal(torch.zeros_like(y), math.sqrt(PRIOR_VARIANCE + NOISE_VARIANCE)).to_event(1).log_prob(y)

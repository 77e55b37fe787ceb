"""Two moons as a Pyro program: a crescent of outcomes, two crescents of parameters, an exact density.

One outcome vector per data set; no inputs.
"""

import math
from collections.abc import Sequence
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints

RADIUS, RADIUS_SD = 0.1, 0.01
OFFSET = 0.25


class TwoMoons(TorchDistribution):
    r"""The law of y = u + m(theta), where u = (r cos a, r sin a), a ~ U(-pi/2, pi/2), r ~ N(0.1, 0.01^2).

    The shift is `m(theta) = (0.25 - |t1 + t2| / sqrt 2, (t2 - t1) / sqrt 2)`. Each u != 0 has one pair (a, r), r with
    the sign of u_1, so `p(y | theta) = N(r; 0.1, 0.01^2) / (pi |r|)`: exact everywhere, negative r included.

    Args:
        theta: `(*batch, 2)`.

    Source:
        Greenberg et al. (2019); Lueckmann et al. (2021), sbibm, task T.8.
    """

    arg_constraints = {"theta": constraints.real_vector}  # pyright: ignore[reportAssignmentType]
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, theta: Tensor, validate_args: bool | None = None):
        if theta.dim() == 0 or theta.shape[-1] != 2:
            raise ValueError(f"theta must have shape (*batch, 2); got {tuple(theta.shape)}; stack t1 and t2 last")
        self.theta = theta
        super().__init__(theta.shape[:-1], theta.shape[-1:], validate_args=validate_args)

    @property
    def _shift(self) -> Tensor:
        first, second = self.theta.unbind(-1)
        return torch.stack([OFFSET - (first + second).abs() / math.sqrt(2), (second - first) / math.sqrt(2)], -1)

    def expand(self, batch_shape: Sequence[int], _instance: TorchDistribution | None = None) -> "TwoMoons":
        """Returns the same law with a larger batch shape."""
        new = cast(TwoMoons, self._get_checked_instance(TwoMoons, _instance))
        TwoMoons.__init__(new, self.theta.expand(*batch_shape, 2), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Size | Sequence[int] = ()) -> Tensor:
        """Draws `(*sample_shape, *batch, 2)` from torch's global generator."""
        with torch.no_grad():
            shape = self._extended_shape(Size(sample_shape))
            angle = math.pi * (torch.rand(shape[:-1], dtype=self.theta.dtype, device=self.theta.device) - 0.5)
            radius = RADIUS + RADIUS_SD * torch.randn_like(angle)
            return radius.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1) + self._shift

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of outcomes `(*batch, 2)`, in nats; differentiable in theta."""
        if self._validate_args:
            self._validate_sample(value)
        point = value - self._shift
        distance = point.norm(dim=-1)
        radius = torch.where(point[..., 0] < 0, -distance, distance)
        log_normal = -0.5 * ((radius - RADIUS) / RADIUS_SD).square() - math.log(RADIUS_SD * math.sqrt(2 * math.pi))
        return log_normal - math.log(math.pi) - distance.log()


def two_moons(x: Tensor) -> Tensor:
    """Pyro program: theta ~ U(-1, 1)^2, y ~ TwoMoons(theta); one outcome vector.

    Args:
        x: `(*batch, 1, D_x)`; sets the dtype, values are ignored.

    Returns:
        Outcome `(2,)`, or `(B, 1, 2)` under an outer plate of size B and dim -2.
    """
    theta = pyro.sample("theta", dist.Uniform(x.new_full((2,), -1.0), x.new_full((2,), 1.0)).to_event(1))
    return pyro.sample("y", TwoMoons(theta))


def exact_posterior_log_prob(theta: Tensor, y: Tensor) -> Tensor:
    """Exact log density of theta given an outcome vector, up to a constant in theta, in double precision.

    Args:
        theta: `(*batch, 2)`; minus infinity outside [-1, 1]^2.
        y: `(*batch, 2)`, broadcasts against theta.

    Returns:
        `(*batch,)` float64, in nats.
    """
    log_likelihood = TwoMoons(theta.double()).log_prob(y.double())
    return log_likelihood.masked_fill((theta.abs() > 1).any(-1), -math.inf)

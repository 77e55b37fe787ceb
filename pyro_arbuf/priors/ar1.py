r"""Autoregressive series of first order, started in its stationary law, with its exact posterior and evidence.

    y_1 ~ N(0, sigma^2 / (1 - phi^2)),    y_t = phi y_{t-1} + sigma e_t.

A series enters the likelihood by three sums of squares alone. There are two latents, so that posterior and evidence are
sums over a grid, in coordinates in which the prior is standard normal: the sum converges faster than any power of the
spacing. This module knows nothing of networks.

Source:
    Hamilton (1994), Time Series Analysis, sections 3.4 and 5.2.
"""

import math
from typing import NamedTuple, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from pyro_arbuf.priors.grid import GridPosterior, grid_posterior

LATENTS = ("phi", "sigma")
LOG_SIGMA_SD = 0.5  # sigma ~ LogNormal(0, 0.5)
BLOCK = 32  # steps of a series that one product of matrices makes
SMALLEST = 1e-7  # of 1 - |phi|, below which float32 would divide by zero


class AR1(TorchDistribution):
    """Law of a stationary series of n numbers: one event.

    Args:
        phi: `(*batch,)` correlation of neighbours, between -1 and 1.
        sigma: The same, standard deviation of the innovations, > 0, in units of y.
        num_trials: Length n, at least 1.

    Example:
        >>> AR1(torch.tensor(0.5), torch.tensor(1.0), 3).log_prob(torch.zeros(3))
        tensor(-2.9007)
    """

    arg_constraints = {"phi": constraints.interval(-1.0, 1.0), "sigma": constraints.positive}  # pyright: ignore[reportAssignmentType]
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, phi: Tensor, sigma: Tensor, num_trials: int, validate_args: bool | None = None):
        self.phi, self.sigma = torch.broadcast_tensors(phi, sigma)
        super().__init__(self.phi.shape, Size([num_trials]), validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: "AR1 | None" = None) -> "AR1":
        """The same law with a larger batch shape."""
        new = cast(AR1, self._get_checked_instance(AR1, _instance))
        new.phi, new.sigma = self.phi.expand(batch_shape), self.sigma.expand(batch_shape)
        super(AR1, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Size = Size()) -> Tensor:
        """Draws series `(*sample_shape, *batch, n)` with torch's global generator; n / 32 products of matrices."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            phi = self.phi.expand(shape[:-1]).unsqueeze(-1)
            noise = torch.randn(shape, dtype=phi.dtype, device=phi.device)
            y, length = noise[..., :1] * self._start().unsqueeze(-1), min(BLOCK, shape[-1])
            lag = torch.arange(length, device=phi.device)
            powers = phi ** torch.arange(length + 1, device=phi.device)  # (*batch, length + 1)
            lower = torch.where(lag[:, None] >= lag, powers[..., (lag[:, None] - lag).clamp(min=0)], 0.0)
            for part in noise[..., 1:].split(length, -1):
                steps = (lower[..., : part.shape[-1], : part.shape[-1]] @ part.unsqueeze(-1)).squeeze(-1)
                y = torch.cat([y, steps + powers[..., 1 : part.shape[-1] + 1] * y[..., -1:]], -1)
            return self.sigma.unsqueeze(-1) * y

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density `(*batch,)` of series `(*batch, n)`, nats."""
        if self._validate_args:
            self._validate_sample(value)
        number = self.event_shape[0]
        squares = sums_of_squares(value)
        return ar1_log_density(squares, number, self.phi, self.sigma)

    def _start(self) -> Tensor:
        """Standard deviation of the first number where sigma is 1."""
        return ((1 - self.phi.abs()).clamp(min=SMALLEST) * (1 + self.phi.abs())).rsqrt()


class SumsOfSquares(NamedTuple):
    """What the likelihood of a series depends on, each `(*batch,)`.

    Attributes:
        first: Square of the first number.
        later: Sum of squares of all but the first.
        products: Sum of products of neighbours.
        earlier: Sum of squares of all but the last.
    """

    first: Tensor
    later: Tensor
    products: Tensor
    earlier: Tensor


def sums_of_squares(y: Tensor) -> SumsOfSquares:
    """Sums of squares of series `(*batch, n)`, n >= 1."""
    before, after = y[..., :-1], y[..., 1:]
    return SumsOfSquares(y[..., 0].square(), after.square().sum(-1), (before * after).sum(-1), before.square().sum(-1))


def ar1_log_density(squares: SumsOfSquares, num_trials: int, phi: Tensor, sigma: Tensor) -> Tensor:
    """Log density of series of n >= 1 numbers by their sums of squares, which broadcast with phi and sigma, nats."""
    rest = (1 - phi.abs()).clamp(min=SMALLEST) * (1 + phi.abs())  # 1 - phi^2
    residual = rest * squares.first + squares.later - 2 * phi * squares.products + phi * phi * squares.earlier
    return 0.5 * rest.log() - num_trials * (sigma.log() + 0.5 * math.log(2 * math.pi)) - 0.5 * residual / sigma**2


def ar1(x: Tensor) -> Tensor:
    """Pyro program of a stationary autoregressive series.

    Sites: phi ~ U(-1, 1), sigma ~ LogNormal(0, 0.5), and y, one event of n numbers.

    Args:
        x: `(*batch, n, D_x)`, of which the program reads the number of rows alone, n >= 1.

    Returns:
        Series `(n,)`, or `(B, 1, n)` under an outer plate of size B and dim -2.
    """
    phi = pyro.sample("phi", dist.Uniform(x.new_tensor(-1.0), x.new_tensor(1.0)))
    sigma = pyro.sample("sigma", dist.LogNormal(x.new_tensor(0.0), LOG_SIGMA_SD))
    return pyro.sample("y", AR1(phi, sigma, x.shape[-2], validate_args=False))


def log_likelihood(y: Tensor, latents: dict[str, Tensor]) -> Tensor:
    """Exact log density of one series at many values of the latents.

    Args:
        y: `(n,)`, n >= 0.
        latents: "phi" and "sigma", each `(S,)`.

    Returns:
        `(S,)` nats; differentiable in the latents.

    Raises:
        ValueError: If y has another shape or is not finite.
    """
    _check_series(y)
    phi, sigma = (latents[name] for name in LATENTS)
    if len(y) == 0:
        return torch.zeros_like(phi + sigma)
    return ar1_log_density(sums_of_squares(y), len(y), phi, sigma)


@torch.no_grad()
def exact_posterior(y: Tensor, num_points: tuple[int, int] = (257, 129)) -> GridPosterior:
    """Exact posterior and evidence of one series on a grid around the mass, in double precision.

    Args:
        y: `(n,)`, n >= 0.
        num_points: Nodes for phi and sigma, odd.

    Returns:
        Masses of the cells, log evidence and its error; draws have the sites "phi" and "sigma".

    Raises:
        ValueError: If y has another shape or is not finite, or a number of nodes is even or below 9.

    Example:
        >>> posterior = exact_posterior(torch.tensor([0.3, -0.5, 1.0]))
        >>> f"{posterior.log_evidence:.4f}, {bool(posterior.error < 1e-6)}"
        '-3.6506, True'
    """
    _check_series(y)
    y = y.double()
    return grid_posterior(lambda latents: log_likelihood(y, latents), _from_normal, num_points)


def _from_normal(z: Tensor) -> dict[str, Tensor]:
    """Latents at coordinates `(..., 2)` in which the prior is standard normal, by quantiles."""
    # 1 - 2 Phi(-|z|) keeps the digits of 1 - |phi|, as far as float64 holds it.
    phi = torch.sign(z[..., 0]) * (1 - 2 * torch.special.ndtr(-z[..., 0].abs()))
    return {"phi": phi, "sigma": (LOG_SIGMA_SD * z[..., 1]).exp()}


def _check_series(y: Tensor) -> None:
    if y.dim() != 1:
        raise ValueError(f"y must have shape (n,), one series; got {tuple(y.shape)}; use y[i], or y[:, 0]")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y must be finite; got NaN or infinite numbers; a series cannot leave trials out")

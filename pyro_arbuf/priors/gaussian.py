"""The conjugate Gaussian as a Pyro program: unknown mean and precision, everything exact (Normal-Gamma)."""

import math
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Size, Tensor

SHAPE, RATE = 2.0, 2.0  # tau ~ Gamma(SHAPE, RATE)
COUNT = 0.25  # mu | tau ~ N(0, 1 / (COUNT tau)): the prior mean is worth this many observations


def draw_constant(num_trials: int) -> Tensor:
    """Inputs of a program that has none: `(num_trials, 1)` zeros."""
    return torch.zeros(num_trials, 1)


def gaussian(x: Tensor) -> Tensor:
    r"""Pyro program: tau ~ Gamma(2, rate 2), mu | tau ~ N(0, 1 / (0.25 tau)), y_i ~ N(mu, 1 / tau).

    Args:
        x: `(*batch, n, 1)`, n >= 1; sets the number of trials and the dtype, values are ignored.

    Returns:
        Outcomes `(n,)`, or `(B, n)` under an outer plate of size B and dim -2.
    """
    tau = pyro.sample("tau", dist.Gamma(x.new_tensor(SHAPE), x.new_tensor(RATE)))
    mu = pyro.sample("mu", dist.Normal(torch.zeros_like(tau), (COUNT * tau).rsqrt()))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Normal(mu, tau.rsqrt()))


class NormalGamma(NamedTuple):
    """The law tau ~ Gamma(shape, rate), mu | tau ~ N(location, 1 / (count tau)); fields are `(*batch,)`."""

    location: Tensor
    count: Tensor
    shape: Tensor
    rate: Tensor

    def sample(self, sample_shape: Size | tuple[int, ...] = ()) -> dict[str, Tensor]:
        """Draws "tau" and "mu", each `(*sample_shape, *batch)`, from torch's global generator."""
        with torch.no_grad():
            tau = dist.Gamma(self.shape, self.rate).sample(sample_shape)
            return {"tau": tau, "mu": dist.Normal(self.location, (self.count * tau).rsqrt()).sample()}

    def log_prob(self, latents: dict[str, Tensor]) -> Tensor:
        """Joint log density of "tau" and "mu", `(*batch,)` after broadcasting, in nats."""
        tau = latents["tau"].double()
        precision = dist.Gamma(self.shape, self.rate).log_prob(tau)
        return precision + dist.Normal(self.location, (self.count * tau).rsqrt()).log_prob(latents["mu"].double())


def exact_posterior(y: Tensor) -> NormalGamma:
    """Exact law of tau and mu given the outcomes, in double precision.

    Args:
        y: `(*batch, n)` outcomes, n >= 0.

    Returns:
        The Normal-Gamma law, fields `(*batch,)` float64.

    Raises:
        ValueError: If y has no dimension of trials.

    Source:
        Bernardo and Smith (1994), Bayesian Theory, Appendix A.2; Murphy (2007), section 3.

    Example:
        >>> posterior = exact_posterior(torch.zeros(0))
        >>> float(posterior.shape), float(posterior.rate)
        (2.0, 2.0)
    """
    if y.dim() == 0:
        raise ValueError("y must have shape (*batch, n); got a scalar; use y.unsqueeze(-1) for one outcome")
    y = y.double()
    num_trials = y.shape[-1]
    mean = y.sum(-1) / max(num_trials, 1)
    count = torch.full_like(mean, COUNT + num_trials)
    squares = (y - mean.unsqueeze(-1)).square().sum(-1) + COUNT * num_trials / count * mean.square()
    shape = torch.full_like(mean, SHAPE + num_trials / 2)
    return NormalGamma(num_trials * mean / count, count, shape, RATE + squares / 2)


def exact_predictive(y: Tensor) -> dist.StudentT:
    """Exact law of the next outcome, batch shape `(*batch,)` float64, after outcomes `(*batch, n)`, n >= 0."""
    location, count, shape, rate = exact_posterior(y)
    return dist.StudentT(2 * shape, location, (rate * (count + 1) / (shape * count)).sqrt())


def exact_log_evidence(y: Tensor) -> Tensor:
    """Exact log density of all outcomes, tau and mu integrated out.

    Args:
        y: `(*batch, n)` outcomes, n >= 0.

    Returns:
        `(*batch,)` float64, in nats.
    """
    _, count, shape, rate = exact_posterior(y)
    prior = SHAPE * math.log(RATE) - math.lgamma(SHAPE) + 0.5 * math.log(COUNT)
    posterior = shape * rate.log() - shape.lgamma() + 0.5 * count.log()
    return prior - posterior - y.shape[-1] / 2 * math.log(2 * math.pi)

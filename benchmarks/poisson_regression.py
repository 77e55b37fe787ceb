"""A Poisson regression with three predictors as a Pyro program, and its posterior and evidence by importance sampling.

The posterior is log-concave. Its Laplace approximation, with the tails of a t, is a proposal close to it: k-hat, the
shape of the tail of the weights, stays far below the 0.5 below which importance sampling has finite variance.
"""

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_arbuf.programs.refine import resample, smooth_weights
from pyro_arbuf.random_state import seeded

INTERCEPT = (1.0, 0.5)  # mean and sd
WEIGHT_SD = 0.5
NUM_PREDICTORS = 3
DEGREES = 10.0  # of freedom of the proposal
NUM_NEWTON, GAIN = 50, 1e-8  # most steps; nats, twice what the last one would gain


def poisson_regression(x: Tensor) -> Tensor:
    """Pyro program: intercept ~ N(1, 0.5), weights ~ N(0, 0.5)^3, counts y ~ Poisson(exp(intercept + weights x)).

    Args:
        x: `(*batch, n, 3)` predictors, n >= 1; see `draw_predictors`.

    Returns:
        Counts, `(n,)`, or `(B, n)` under an outer plate of size B and dim -2.
    """
    intercept = pyro.sample("intercept", dist.Normal(x.new_tensor(INTERCEPT[0]), INTERCEPT[1]))
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(NUM_PREDICTORS), WEIGHT_SD).to_event(1))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Poisson((intercept + (weights * x).sum(-1)).exp()))


def draw_predictors(num_trials: int) -> Tensor:
    """Draws predictors `(num_trials, 3)`, standard normal, from torch's global generator."""
    return torch.randn(num_trials, NUM_PREDICTORS)


class Reference(NamedTuple):
    """Importance sampling of the posterior.

    Attributes:
        draws: `(S, 4)` float64, resampled: intercept, then the weights.
        log_evidence: Log probability of the counts, latents integrated out, nats.
        standard_error: Of `log_evidence`, nats.
        k_hat: Shape of the tail of the weights; below 0.5 their variance is finite.
    """

    draws: Tensor
    log_evidence: float
    standard_error: float
    k_hat: float


@torch.no_grad()
def reference_posterior(x: Tensor, y: Tensor, num_draws: int, num_proposals: int = 200_000, seed: int = 0) -> Reference:
    """Posterior and evidence of one data set, in double precision.

    Args:
        x: `(n, 3)` predictors.
        y: `(n,)` counts.
        num_draws: Draws to resample, without duplicates up to a tenth of the effective sample size.
        num_proposals: Draws of the proposal.
        seed: Of proposals and resampling.
    """
    log_joint = log_joint_of(x, y)
    mode, precision = laplace(x, y)
    scale = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(precision)))
    with seeded(seed):
        proposal = dist.MultivariateStudentT(scale.new_tensor(DEGREES), mode, scale)
        proposals = proposal.sample((num_proposals,))
        log_weights = torch.cat([log_joint(part) for part in proposals.split(10_000)]) - proposal.log_prob(proposals)
        smoothed, k_hat = smooth_weights(log_weights)
        draws = proposals[resample(smoothed, num_draws)]
    weights = (log_weights - log_weights.max()).exp()
    log_evidence = (weights.mean().log() + log_weights.max()).item()
    return Reference(draws, log_evidence, (weights.std() / weights.mean()).item() / num_proposals**0.5, k_hat)


def with_intercept(x: Tensor) -> Tensor:
    """`(n, 4)` float64: a column of ones before the predictors."""
    return torch.cat([torch.ones(len(x), 1), x], 1).double()


def prior() -> dist.Normal:
    """Law of intercept and weights, batch shape `(4,)` float64."""
    loc = torch.tensor([INTERCEPT[0], *[0.0] * NUM_PREDICTORS], dtype=torch.float64)
    return dist.Normal(loc, torch.tensor([INTERCEPT[1], *[WEIGHT_SD] * NUM_PREDICTORS], dtype=torch.float64))


def log_joint_of(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Log density of latents `(S, 4)` and the data, `(S,)` nats, as a function of the latents."""
    design, counts = with_intercept(x), y.double()
    constant = torch.lgamma(counts + 1).sum()

    def log_joint(latents: Tensor) -> Tensor:
        log_rate = latents @ design.T  # (S, n)
        return prior().log_prob(latents).sum(-1) + log_rate @ counts - log_rate.exp().sum(-1) - constant

    return log_joint


def laplace(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mode `(4,)` and precision `(4, 4)` there, by Newton steps that are halved while the density falls."""
    log_joint, design, law = log_joint_of(x, y), with_intercept(x), prior()
    inverse = law.scale.square().reciprocal()
    mode = law.loc.clone()
    for _ in range(NUM_NEWTON):
        rate = (design @ mode).exp()
        precision = design.T @ (rate[:, None] * design) + inverse.diag()
        gradient = design.T @ (y.double() - rate) - inverse * (mode - law.loc)
        step = torch.linalg.solve(precision, gradient)
        if gradient @ step < GAIN:
            return mode, precision
        while log_joint((mode + step)[None]) < log_joint(mode[None]):
            step = step / 2
        mode = mode + step
    raise RuntimeError(f"Newton's method has not converged in {NUM_NEWTON} steps; are the counts finite?")

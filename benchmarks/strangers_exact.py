"""Exact answers to the strangers' programs of strangers.py, in double precision: grids and closed forms.

Every function takes one data set. Evidence and densities are log densities in nats.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


class Exact(NamedTuple):
    """A posterior and an evidence.

    Attributes:
        mean: Posterior mean of every latent, by name; of a vector `(d,)`.
        sd: Posterior standard deviation, likewise.
        log_evidence: Nats.
    """

    mean: dict[str, Tensor]
    sd: dict[str, Tensor]
    log_evidence: float


def log_normal(y: Tensor, loc: Tensor | float, sd: Tensor | float) -> Tensor:
    """Log density of a normal law, elementwise."""
    sd = torch.as_tensor(sd, dtype=torch.float64)
    return -0.5 * ((y - loc) / sd) ** 2 - sd.log() - 0.5 * LOG_2PI


def log_gaussian(y: Tensor, covariance: Tensor) -> Tensor:
    """Log density `(*batch,)` of y `(n,)` under mean zero and covariances `(*batch, n, n)`."""
    factor = torch.linalg.cholesky(covariance)
    z = torch.linalg.solve_triangular(factor, y.expand(covariance.shape[:-1]).unsqueeze(-1), upper=False)
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * z.squeeze(-1).square().sum(-1) - half_log_det - 0.5 * len(y) * LOG_2PI


def on_grid(values: dict[str, Tensor], log_likelihood: Tensor, log_weight: Tensor) -> Exact:
    """Posterior and evidence from the likelihood at nodes.

    Args:
        values: Of each latent at the nodes, `(G,)`.
        log_likelihood: `(G,)` nats.
        log_weight: `(G,)` log prior probability of the cells of the nodes.
    """
    log_joint = log_likelihood + log_weight
    total = log_joint.logsumexp(0)
    mass = (log_joint - total).exp()
    mean = {name: (mass * value).sum() for name, value in values.items()}
    sd = {name: (mass * (value - mean[name]) ** 2).sum().sqrt() for name, value in values.items()}
    return Exact(mean, sd, total.item())


def normal_nodes(num_nodes: int, reach: float = 6.0) -> tuple[Tensor, Tensor]:
    """Nodes `(G,)` of a standard normal prior and the log probabilities of their cells."""
    z = torch.linspace(-reach, reach, num_nodes, dtype=torch.float64)
    return z, torch.log_softmax(-0.5 * z**2, 0)


def uniform_nodes(low: float, high: float, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Midpoints `(G,)` of a uniform prior and the log probabilities of their cells."""
    nodes = low + (high - low) * (torch.arange(num_nodes, dtype=torch.float64) + 0.5) / num_nodes
    return nodes, torch.full_like(nodes, -math.log(num_nodes))


def product(*axes: tuple[Tensor, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Nodes of every axis on the product grid, each `(G,)`, and the sum of the log probabilities."""
    nodes = torch.meshgrid(*(axis[0] for axis in axes), indexing="ij")
    weights = torch.meshgrid(*(axis[1] for axis in axes), indexing="ij")
    return [node.flatten() for node in nodes], torch.stack(weights).sum(0).flatten()


# AR(1): phi ~ U(-1, 1), sigma ~ LogNormal(0, 0.5), stationary start --------


def ar1_log_likelihood(y: Tensor, phi: Tensor, sigma: Tensor) -> Tensor:
    """Of a series y `(n,)` at phi and sigma `(G,)`, from three sums of squares."""
    before, after = y[:-1], y[1:]
    squares = [(after**2).sum(), (after * before).sum(), (before**2).sum()]
    innovations = squares[0] - 2 * phi * squares[1] + phi**2 * squares[2] + (1 - phi**2) * y[0] ** 2
    return -0.5 * innovations / sigma**2 - len(y) * (sigma.log() + 0.5 * LOG_2PI) + 0.5 * torch.log1p(-(phi**2))


def exact_ar1(y: Tensor) -> Exact:
    """Of a series y `(n,)`."""
    (phi, z), log_weight = product(uniform_nodes(-1.0, 1.0, 2001), normal_nodes(401))
    sigma = (0.5 * z).exp()
    return on_grid({"phi": phi, "sigma": sigma}, ar1_log_likelihood(y.double(), phi, sigma), log_weight)


# A Gaussian process with lengthscale ~ LogNormal(-0.5, 0.5), variance 1, noise of sd 0.2 --------


def gp_covariance(x: Tensor, lengthscale: Tensor) -> Tensor:
    """Covariance `(*batch, n, n)` of noisy functions at x `(n,)`, lengthscales `(*batch,)`."""
    distance = (x.unsqueeze(-1) - x.unsqueeze(-2)) / lengthscale[..., None, None]
    return torch.exp(-0.5 * distance**2) + 0.2**2 * torch.eye(len(x), dtype=x.dtype)


def exact_gp(x: Tensor, y: Tensor) -> Exact:
    """Of y `(n,)` at x `(n, 1)`."""
    z, log_weight = normal_nodes(601)
    lengthscale = (-0.5 + 0.5 * z).exp()
    log_likelihood = log_gaussian(y.double(), gp_covariance(x[:, 0].double(), lengthscale))
    return on_grid({"lengthscale": lengthscale}, log_likelihood, log_weight)


# Linear Gaussian models: theta ~ N(0, 1), y = design theta + errors --------


def exact_linear(design: Tensor, y: Tensor, errors: Tensor) -> tuple[Tensor, Tensor, float]:
    """Posterior mean `(P,)`, covariance `(P, P)` and log evidence of y `(n,)`.

    Args:
        design: `(n, P)`.
        y: `(n,)`.
        errors: Their covariance `(n, n)`.
    """
    weighted = torch.linalg.solve(errors, design)
    covariance = torch.linalg.inv(torch.eye(design.shape[1], dtype=design.dtype) + design.mT @ weighted)
    evidence = log_gaussian(y, errors + design @ design.mT)
    return covariance @ (weighted.mT @ y), covariance, evidence.item()


def exact_intercept(x: Tensor, y: Tensor) -> Exact:
    """Intercept and slope ~ N(0, 1), a random intercept of sd 0.7 integrated out, noise of sd 0.5."""
    x, y = x.double(), y.double()
    design = torch.cat([torch.ones_like(x), x], -1)
    errors = 0.5**2 * torch.eye(len(y), dtype=y.dtype) + 0.7**2
    mean, covariance, evidence = exact_linear(design, y, errors)
    names, sd = ("intercept", "slope"), covariance.diagonal().sqrt()
    return Exact(dict(zip(names, mean, strict=True)), dict(zip(names, sd, strict=True)), evidence)


def exact_regression(x: Tensor, y: Tensor) -> Exact:
    """Intercept and three weights ~ N(0, 1), noise of sd 0.5."""
    x, y = x.double(), y.double()
    design = torch.cat([torch.ones_like(x[:, :1]), x], -1)
    mean, covariance, evidence = exact_linear(design, y, 0.5**2 * torch.eye(len(y), dtype=y.dtype))
    sd = covariance.diagonal().sqrt()
    return Exact({"intercept": mean[0], "weights": mean[1:]}, {"intercept": sd[0], "weights": sd[1:]}, evidence)


# Rescorla-Wagner: learning rate ~ Beta(1, 1), inverse temperature ~ LogNormal(1, 0.5), values 1/2 at first --------


def rescorla_wagner_log_likelihood(x: Tensor, y: Tensor, rate: Tensor, temperature: Tensor) -> Tensor:
    """Of choices and rewards y `(n, 2)` at probabilities x `(n, 2)`, learning rate and temperature `(G,)`."""
    value, total = rate.new_full((2, len(rate)), 0.5), torch.zeros_like(rate)
    for chances, (choice, reward) in zip(x, y, strict=True):
        arm = int(choice)
        advantage = temperature * (value[arm] - value[1 - arm])
        total = total + torch.nn.functional.logsigmoid(advantage)
        total = total + (chances[arm] if reward else 1 - chances[arm]).log()
        value = value.clone()
        value[arm] += rate * (reward - value[arm])
    return total


def exact_rescorla_wagner(x: Tensor, y: Tensor) -> Exact:
    """Of choices and rewards y `(n, 2)` at the probabilities of reward of both arms x `(n, 2)`."""
    (rate, z), log_weight = product(uniform_nodes(0.0, 1.0, 200), normal_nodes(161))
    temperature = (1 + 0.5 * z).exp()
    log_likelihood = rescorla_wagner_log_likelihood(x.double(), y.double(), rate, temperature)
    return on_grid({"learning_rate": rate, "inverse_temperature": temperature}, log_likelihood, log_weight)


# Periodic functions of period 2, lengthscale ~ U(0.5, 1.5), variance 1, noise of sd 0.2 --------


def periodic_covariance(x: Tensor, lengthscale: Tensor) -> Tensor:
    """Covariance `(*batch, n, n)` of noisy functions at x `(*batch, n)`, lengthscales `(*batch,)`."""
    half_angle = math.pi * (x.unsqueeze(-1) - x.unsqueeze(-2)) / 2.0
    noise = 0.2**2 * torch.eye(x.shape[-1], dtype=x.dtype)
    return torch.exp(-2 * (torch.sin(half_angle) / lengthscale[..., None, None]) ** 2) + noise


def exact_periodic(x: Tensor, y: Tensor, num_nodes: int = 200) -> float:
    """Joint log density of y `(n,)` at x `(n, 1)`, the lengthscale integrated out by the midpoint rule."""
    if len(y) == 0:
        return 0.0
    lengthscale, log_weight = uniform_nodes(0.5, 1.5, num_nodes)
    covariance = periodic_covariance(x[:, 0].double(), lengthscale)
    return (log_gaussian(y.double(), covariance) + log_weight).logsumexp(0).item()

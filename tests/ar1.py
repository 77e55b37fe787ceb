"""A Gaussian with AR(1) errors behind ArBufferJoint's interface: every density in closed form."""

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor

from pyro_arbuf.distributions.joint import ArBufferJoint

NUM_TARGETS, CORRELATION, PRIOR_SD = 12, 0.9, 2.0


def errors_covariance(sd: float = 1.0) -> Tensor:
    """`(M, M)`, stationary AR(1)."""
    i = torch.arange(NUM_TARGETS, dtype=torch.float64)
    return sd**2 * CORRELATION ** (i[:, None] - i).abs()


def full_conditionals(y: Tensor, covariance: Tensor) -> Tensor:
    """log p(y_i | y_-i) under mean zero, from the precision matrix."""
    precision = torch.linalg.inv(covariance)
    variance = 1 / precision.diag()
    return -0.5 * (y @ precision * variance) ** 2 / variance - 0.5 * torch.log(2 * math.pi * variance)


class Ar1Joint(ArBufferJoint):
    """Mean zero; `log_prob`, `log_prob_conditionals` and `log_prob_factors` of the true Gaussian."""

    def __init__(self, sd: float = 1.0):
        TorchDistribution.__init__(self, Size(), Size([NUM_TARGETS]), validate_args=False)
        self.covariance, self.nan = errors_covariance(sd), "raise"

    def sample(self, sample_shape: Size = Size()) -> Tensor:
        noise = torch.randn(*sample_shape, *self.batch_shape, NUM_TARGETS, dtype=torch.float64)
        return noise @ torch.linalg.cholesky(self.covariance).T

    def log_prob(self, value: Tensor) -> Tensor:
        rows = value.reshape(-1, NUM_TARGETS)
        densities = []
        for row in rows:
            there = ~row.isnan() if self.nan == "drop" else torch.ones(NUM_TARGETS, dtype=torch.bool)
            gaussian = dist.MultivariateNormal(torch.zeros_like(row[there]), self.covariance[there][:, there])
            densities.append(gaussian.log_prob(row[there]))
        return torch.stack(densities).view(value.shape[:-1])

    def log_prob_conditionals(self, y: Tensor) -> Tensor:
        return full_conditionals(y, self.covariance)

    def log_prob_factors(self, y: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(self.covariance)
        z = torch.linalg.solve_triangular(factor, y.unsqueeze(-1), upper=False).squeeze(-1)
        return -0.5 * z**2 - 0.5 * math.log(2 * math.pi) - factor.diag().log()


SCALE = 0.5  # of the errors; the joint is of z = (y - mu) / SCALE


def model(y: Tensor | None = None) -> None:
    """Y = mu + SCALE z."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=torch.float64), PRIOR_SD))
    shift = dist.transforms.AffineTransform(mu.unsqueeze(-1), SCALE, event_dim=1)
    pyro.sample("y", dist.TransformedDistribution(Ar1Joint(1 / SCALE), [shift]), obs=y)


def data() -> Tensor:
    """`(M,)` outcomes."""
    noise = torch.randn(NUM_TARGETS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return 0.7 + torch.linalg.cholesky(errors_covariance()) @ noise


def posterior(y: Tensor, num_draws: int) -> dict[str, Tensor]:
    """Independent draws of mu from its exact posterior."""
    precision = torch.linalg.inv(errors_covariance())
    variance = 1 / (precision.sum() + PRIOR_SD**-2)
    return {"mu": variance * precision.sum(0) @ y + variance.sqrt() * torch.randn(num_draws, dtype=torch.float64)}


def exact_elpd(y: Tensor) -> Tensor:
    """Sum of log p(y_i | y_-i) with mu integrated out."""
    return full_conditionals(y, errors_covariance() + PRIOR_SD**2).sum()

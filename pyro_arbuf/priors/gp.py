"""Gaussian-process tasks in one dimension: gp-1d (the paper's benchmark) and gp-1d-noisy (the one to use on data).

Deviation: kernel class per function, not per batch (the same law of one function, a less noisy gradient); inputs iid
uniform, not Sobol points, in evaluation too; gp-1d-noisy is ours.
"""

import math

import torch
from torch import Tensor

KERNEL_WEIGHTS = (0.4, 0.3, 0.3)  # RBF, Matern-3/2, Matern-5/2
VARIANCE = (0.5, 1.5)
LENGTHSCALE = (0.1, 1.0)
X_RANGE = (-2.0, 2.0)
NOISE_VARIANCE = 1e-5
NOISE_SD = (0.003, 0.5)


def correlation(distance: Tensor, kernel: int) -> Tensor:
    """Correlation at a distance in lengthscales: 0 = RBF, 1 = Matern-3/2, 2 = Matern-5/2."""
    if kernel == 0:
        return torch.exp(-0.5 * distance**2)
    scaled = math.sqrt(3.0 if kernel == 1 else 5.0) * distance
    polynomial = 1 + scaled if kernel == 1 else 1 + scaled + scaled**2 / 3
    return polynomial * torch.exp(-scaled)


def _uniform(low: float, high: float, batch_size: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(batch_size, 1, 1, generator=generator, dtype=torch.float64)


def _draw(
    batch_size: int, num_points: int, generator: torch.Generator, log_noise_sd: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    kernel = torch.multinomial(torch.tensor(KERNEL_WEIGHTS), batch_size, replacement=True, generator=generator)
    x = X_RANGE[0] + (X_RANGE[1] - X_RANGE[0]) * torch.rand(
        batch_size, num_points, 1, generator=generator, dtype=torch.float64
    )
    variance = _uniform(*VARIANCE, batch_size, generator)
    lengthscale = _uniform(*LENGTHSCALE, batch_size, generator)
    noise_sd = torch.exp(_uniform(*log_noise_sd, batch_size, generator))
    covariance = (x - x.mT).abs() / lengthscale
    for drawn in kernel.unique().tolist():
        covariance[kernel == drawn] = correlation(covariance[kernel == drawn], drawn)
    covariance *= variance
    covariance.diagonal(dim1=-2, dim2=-1).add_(noise_sd[..., 0] ** 2)
    noise = torch.randn(batch_size, num_points, 1, generator=generator, dtype=torch.float64)
    y = torch.linalg.cholesky(covariance) @ noise
    return x.float(), y.float()


def gp_1d(batch_size: int, num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws functions of the paper's GP benchmark: kernel class and hyperparameters per function, tiny noise.

    The paper draws the kernel class per batch: the same law of one function, and a noisier gradient.

    RBF with probability 0.4, Matern-3/2 0.3, Matern-5/2 0.3; variance U[0.5, 1.5], lengthscale U[0.1, 1]; noise
    variance 1e-5; x iid uniform on [-2, 2].

    Args:
        batch_size: Functions B.
        num_points: Points T of each, exchangeable: any split is a context, a buffer and targets.
        generator: Source of randomness.

    Returns:
        x and y, both `(B, T, 1)`, float32.

    Source:
        Hassan et al. (2026), section 4 (x iid instead of the paper's Sobol points).
    """
    log_sd = 0.5 * math.log(NOISE_VARIANCE)
    return _draw(batch_size, num_points, generator, (log_sd, log_sd))


def gp_1d_noisy(batch_size: int, num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws functions as `gp_1d` does, with observation noise sd log-uniform on [0.003, 0.5] per function."""
    return _draw(batch_size, num_points, generator, (math.log(NOISE_SD[0]), math.log(NOISE_SD[1])))

"""Sawtooth tasks: a periodic function with jumps, of unknown direction, frequency and phase (paper, section 4)."""

import torch
from torch import Tensor

FREQUENCY = (3.0, 5.0)
NOISE_SD = (0.05, 0.1)
X_RANGE = (-2.0, 2.0)


def sawtooth(batch_size: int, num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws functions y = (w (u x - phi)) mod 1 + eps.

    Direction u = +-1, frequency w ~ U[3, 5], phase phi ~ U[0, 1], noise sd ~ U[0.05, 0.1], x iid U[-2, 2].

    Args:
        batch_size: Functions B.
        num_points: Points T of each, exchangeable: any split is a context, a buffer and targets.
        generator: Source of randomness.

    Returns:
        x and y, both `(B, T, 1)`, float32.

    Source:
        Hassan et al. (2026), section 4.
    """

    def uniform(low: float, high: float, size: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(batch_size, size, 1, generator=generator)

    x = uniform(*X_RANGE, num_points)
    direction = 2.0 * (uniform(0.0, 1.0) < 0.5) - 1.0
    frequency, phase, noise_sd = uniform(*FREQUENCY), uniform(0.0, 1.0), uniform(*NOISE_SD)
    noise = torch.randn(batch_size, num_points, 1, generator=generator)
    y = torch.remainder(frequency * (direction * x - phase), 1.0) + noise_sd * noise
    return x, y

"""Sawtooth tasks: a periodic function with jumps, of unknown direction, frequency and phase (paper, section 4)."""

import torch

from pyro_arbuf.training.batch import Task, split_task

FREQUENCY = (3.0, 5.0)
NOISE_SD = (0.05, 0.1)
X_RANGE = (-2.0, 2.0)


def sawtooth(batch_size: int, num_context: int, num_buffer: int, num_targets: int, generator: torch.Generator) -> Task:
    """Draws tasks y = (w (u x - phi)) mod 1 + eps.

    Direction u = +-1, frequency w ~ U[3, 5], phase phi ~ U[0, 1], noise sd ~ U[0.05, 0.1], x iid U[-2, 2].

    Args:
        batch_size: Tasks B.
        num_context: Context pairs N.
        num_buffer: Buffer pairs K.
        num_targets: Targets M.
        generator: Source of randomness.

    Returns:
        A `Task` with D_x = 1 and scalar outcomes, float32.

    Source:
        Hassan et al. (2026), section 4.
    """
    num_points = num_context + num_buffer + num_targets

    def uniform(low: float, high: float, size: int = 1) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch_size, size, 1, generator=generator)

    x = uniform(*X_RANGE, num_points)
    direction = 2.0 * (uniform(0.0, 1.0) < 0.5) - 1.0
    frequency, phase, noise_sd = uniform(*FREQUENCY), uniform(0.0, 1.0), uniform(*NOISE_SD)
    noise = torch.randn(batch_size, num_points, 1, generator=generator)
    y = torch.remainder(frequency * (direction * x - phase), 1.0) + noise_sd * noise
    return split_task(x, y, num_context, num_buffer)

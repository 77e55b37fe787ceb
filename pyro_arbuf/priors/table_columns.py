"""Columns of random tables: what the inputs of a row are, how they depend on each other, how they are written down.

Everything is drawn for all tables at once, from a generator alone. Knows nothing of outcomes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

CLUSTERED, CORRELATED, COPIED, MISSING = 0.3, 0.5, 0.15, 0.25  # shares of tables
DISCRETE, RAW = 0.2, 0.5  # shares of columns
LONGEST = 1.7  # half the range of an index, which is uniform about 0
FEW_FEATURES = 32  # of a path that is a column
LEAST_SQUARE = 1e-6  # of a normal number, which a generator draws as exactly 0 once in 17 million
NUM_CLUSTERS, MAX_LEVELS = 5, 8


class Columns(NamedTuple):
    """Columns of B tables.

    Attributes:
        causes: `(B, T, D)`, of scale 1: what an outcome depends on.
        observed: `(B, T, D)`: what is written in the table, on any scale; a monotone function of the causes.
    """

    causes: Tensor
    observed: Tensor


def chance(shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """Booleans of a shape, True with a probability."""
    return torch.rand(shape, generator=generator) < share


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform numbers of a shape."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def unit_scale(values: Tensor) -> Tensor:
    """Values `(*batch, T, D)` with mean 0 and standard deviation 1 over the T rows; constant columns are 0."""
    centred = values - values.mean(-2, keepdim=True)
    return centred / centred.square().mean(-2, keepdim=True).sqrt().clamp(min=1e-6)


def draw_index(batch_size: int, num_points: int, generator: torch.Generator) -> Tensor:
    """Draws an index of the rows of each table, `(B, T, 1)` in random order: evenly spaced for half, else uniform."""
    position = torch.rand(batch_size, num_points, 1, generator=generator)
    even = position.argsort(1).argsort(1) / max(num_points - 1, 1)
    return LONGEST * (2 * torch.where(chance((batch_size, 1, 1), 0.5, generator), even, position) - 1)


def draw_paths(index: Tensor, num_paths: int, num_features: int, generator: torch.Generator) -> Tensor:
    """Draws functions of an index: Gaussian processes by features: from nearly noise to nearly lines.

    Lengthscales are from 2 rows to 4 times all of them. Kernels are Matern of order 1/2 and 3/2, and RBF.

    Args:
        index: `(B, T, 1)`.
        num_paths: Functions P of each table.
        num_features: Cosines F of each function, see `table_functions.smooth_function`.
        generator: Source of randomness.

    Returns:
        `(B, T, P)`, of scale 1.
    """
    B, T, _ = index.shape
    sizes = (B, num_paths, num_features)
    rows = torch.exp(uniform((B, num_paths, 1), math.log(2.0), math.log(4.0 * T + 2), generator))
    squares = torch.randn(*sizes, 3, generator=generator).square().cumsum(-1).clamp(min=LEAST_SQUARE)
    spread = torch.stack([squares[..., 0].rsqrt(), (squares[..., 2] / 3).rsqrt(), torch.ones(sizes)], -1)
    kernel = torch.randint(3, (B, num_paths, 1, 1), generator=generator).expand(-1, -1, num_features, 1)
    frequency = torch.randn(sizes, generator=generator) * spread.gather(-1, kernel).squeeze(-1)
    frequency = frequency * T / (2 * LONGEST * rows)
    phase = index.unsqueeze(-1) * frequency.unsqueeze(1) + uniform((B, 1, *sizes[1:]), 0.0, 2 * math.pi, generator)
    amplitude = torch.randn(sizes, generator=generator).unsqueeze(-1)
    return unit_scale((phase.cos().transpose(1, 2) @ amplitude).squeeze(-1).mT)


def draw_causes(batch_size: int, num_points: int, num_columns: int, generator: torch.Generator) -> Tensor:
    """Draws columns that are normal, correlated or clustered, `(B, T, D)`."""
    B, T, D = batch_size, num_points, num_columns
    causes = torch.randn(B, T, D, generator=generator)
    loading = torch.randn(B, 2, D, generator=generator) * 0.7
    shared = torch.randn(B, T, 2, generator=generator) @ loading
    weight = uniform((B, 1, D), 0.0, 1.0, generator) * chance((B, 1, 1), CORRELATED, generator)
    causes = (1 - weight.square()).sqrt() * causes + weight * shared
    centres = 1.3 * torch.randn(B, NUM_CLUSTERS, D, generator=generator)
    which = torch.randint(NUM_CLUSTERS, (B, T, 1), generator=generator).expand(-1, -1, D)
    clustered = 0.5 * causes + centres.gather(1, which)
    return unit_scale(torch.where(chance((B, 1, 1), CLUSTERED, generator), clustered, causes))


def along_index(causes: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
    """Columns of series: the first becomes the index, of the others a third periodic in it and a third a path along it.

    Args:
        causes: `(B, T, D)`.
        index: `(B, T, 1)`.
        generator: Source of randomness.
    """
    B, T, D = causes.shape
    rate = torch.exp(uniform((B, 1, D), 0.0, 3.5, generator))
    wave = math.sqrt(2) * torch.sin(rate * index + uniform((B, 1, D), 0.0, 2 * math.pi, generator))
    path = draw_paths(index, D, FEW_FEATURES, generator)
    which = torch.randint(3, (B, 1, D), generator=generator).expand(-1, T, -1)
    along = torch.stack([causes, wave, path]).gather(0, which.unsqueeze(0)).squeeze(0)
    noise = uniform((B, 1, D), 0.0, 1.0, generator).square()
    along = (1 - noise.square()).sqrt() * along + noise * causes
    return unit_scale(torch.cat([index, along[..., 1:]], -1))


def write_down(causes: Tensor, generator: torch.Generator) -> Columns:
    """Makes some columns discrete or copies of others, and writes all on scales of their own.

    Marginals are normal, uniform, skewed, heavy-tailed or two-peaked. Of half of the columns the outcome depends as
    they are written, of the others as they were before.
    """
    B, T, D = causes.shape
    levels = torch.randint(2, MAX_LEVELS + 1, (B, 1, D), generator=generator)
    stepped = unit_scale((torch.special.ndtr(causes) * levels).floor())
    causes = torch.where(chance((B, 1, D), DISCRETE, generator), stepped, causes)
    source = torch.randint(D, (B, 1, 1), generator=generator).expand(-1, T, -1)
    noisy = causes.gather(-1, source) + uniform((B, 1, 1), 0.0, 0.4, generator) * torch.randn(
        B, T, D, generator=generator
    )
    copied = chance((B, 1, 1), COPIED, generator) & chance((B, 1, D), 0.3, generator)
    causes = torch.where(copied, noisy, causes)
    bend = uniform((B, 1, D), 0.3, 1.0, generator)
    marginals = [causes, torch.special.ndtr(causes), torch.exp(bend * causes), torch.sinh(2 * bend * causes)]
    marginals += [torch.tanh(3 * bend * causes)]
    which = torch.multinomial(torch.tensor([0.35, 0.2, 0.15, 0.15, 0.15]), B * D, True, generator=generator)
    observed = torch.stack(marginals).gather(0, which.view(1, B, 1, D).expand(-1, -1, T, -1)).squeeze(0)
    observed = unit_scale(observed)
    raw = chance((B, 1, D), RAW, generator)
    return Columns(torch.where(raw, observed.clamp(-5, 5), causes), observed)


def rescale_and_lose(observed: Tensor, generator: torch.Generator) -> Tensor:
    """Gives columns units of their own and, in a share of the tables, takes cells away: at random, or the larger ones.

    Args:
        observed: `(B, T, D)`, of scale 1.
        generator: Source of randomness.

    Returns:
        `(B, T, D)`, NaN where a cell is missing.
    """
    B, T, D = observed.shape
    scale = torch.exp(0.3 * torch.randn(B, 1, D, generator=generator))
    table = scale * (observed + 0.3 * torch.randn(B, 1, D, generator=generator))
    rate = uniform((B, 1, D), 0.0, 0.4, generator) * chance((B, 1, D), 0.5, generator)
    rate = rate * chance((B, 1, 1), MISSING, generator)
    larger = torch.where(chance((B, 1, 1), 0.5, generator), 2 * torch.sigmoid(2 * observed), torch.ones(()))
    return table.masked_fill(torch.rand(B, T, D, generator=generator) < rate * larger, torch.nan)

"""Functions of several columns: Gaussian processes with a lengthscale for each, and sums of trees.

A row of one table is a point of one function. Everything is drawn for all tables at once, from a generator alone.
"""

import math

import torch
from torch import Tensor

from pyro_arbuf.priors.table_columns import LEAST_SQUARE, chance, uniform

NUM_FEATURES = 192  # of a Gaussian process: sums of so many cosines
NUM_TREES, MAX_DEPTH = 12, 4
DEGREES = (1, 3, 5)  # of freedom of the frequencies: Matern-1/2, -3/2, -5/2; normal ones give the RBF kernel


def draw_relevance(batch_size: int, num_columns: int, generator: torch.Generator) -> Tensor:
    """Which columns an outcome depends on, `(B, D)` bool: a share of them that differs by table, at least one."""
    share = uniform((batch_size, 1), 0.2, 1.0, generator)
    first = torch.randint(num_columns, (batch_size, 1), generator=generator)
    return (torch.rand(batch_size, num_columns, generator=generator) < share).scatter(-1, first, True)


def smooth_function(causes: Tensor, generator: torch.Generator) -> Tensor:
    """Draws sums of two Gaussian processes and a linear trend, by random Fourier features.

    Each process has its own relevant columns, a lengthscale for every one of them, and an RBF or a Matern kernel of
    order 1/2, 3/2 or 5/2. (Features make a draw cost as much as its points, not their cube; 192 cosines are no Gaussian
    process in law, but near enough for a prior of tables.)

    Args:
        causes: `(B, T, D)`, of scale 1.
        generator: Source of randomness.

    Returns:
        `(B, T, 1)`.

    Source:
        Rahimi and Recht (2007).
    """
    B, _, D = causes.shape
    half = NUM_FEATURES // 2
    relevant = torch.stack([draw_relevance(B, D, generator) for _ in range(2)], 1).float()  # (B, 2, D)
    lengthscale = torch.exp(0.3 + 0.8 * torch.randn(B, 2, D, generator=generator))
    lengthscale = lengthscale * relevant.sum(-1, keepdim=True).pow(0.4)
    frequency = torch.randn(B, 2, half, D, generator=generator)
    squares = torch.randn(B, 2, half, DEGREES[-1], generator=generator).square().cumsum(-1)
    squares = squares.clamp(min=LEAST_SQUARE)
    spread = torch.stack([(nu / squares[..., nu - 1]).sqrt() for nu in DEGREES] + [torch.ones(B, 2, half)], -1)
    kernel = torch.randint(len(DEGREES) + 1, (B, 2, 1, 1), generator=generator).expand(-1, -1, half, 1)
    frequency = frequency * spread.gather(-1, kernel) * (relevant / lengthscale).unsqueeze(2)
    phase = causes @ frequency.flatten(1, 2).mT + uniform((B, 1, NUM_FEATURES), 0.0, 2 * math.pi, generator)
    share = uniform((B, 1), 0.0, 1.0, generator) * chance((B, 1), 0.5, generator)
    size = torch.stack([1 - share, share], 1).sqrt().expand(-1, -1, half).flatten(1).unsqueeze(-1)  # (B, F, 1)
    amplitude = size * torch.randn(B, NUM_FEATURES, 1, generator=generator)
    slope = torch.randn(B, D, 1, generator=generator) * relevant[:, 0].unsqueeze(-1)
    trend = causes @ slope * uniform((B, 1, 1), 0.0, 1.0, generator).square()
    return math.sqrt(2 / half) * phase.cos() @ amplitude + trend


def stepped_function(causes: Tensor, generator: torch.Generator) -> Tensor:
    """Draws sums of trees, 1 to 12 of depth 1 to 4: constant between thresholds, which are values of rows.

    All nodes of a tree at one depth ask the same question.

    Args:
        causes: `(B, T, D)`.
        generator: Source of randomness.

    Returns:
        `(B, T, 1)`.
    """
    B, T, D = causes.shape
    nodes = NUM_TREES * MAX_DEPTH
    weights = draw_relevance(B, D, generator).float() * torch.rand(B, D, generator=generator)
    column = torch.multinomial(weights + 1e-9, nodes, True, generator=generator).unsqueeze(1)  # (B, 1, nodes)
    row = torch.randint(T, (B, nodes, 1), generator=generator).expand(-1, -1, D)
    threshold = causes.gather(1, row).gather(-1, column.mT).mT
    depth = torch.randint(1, MAX_DEPTH + 1, (B, 1, NUM_TREES, 1), generator=generator)
    asked = (causes.gather(-1, column.expand(-1, T, -1)) > threshold).unflatten(-1, (NUM_TREES, MAX_DEPTH))
    asked = asked & (torch.arange(MAX_DEPTH) < depth)
    leaf = (asked * 2 ** torch.arange(MAX_DEPTH)).sum(-1)  # (B, T, trees)
    value = torch.randn(B, NUM_TREES, 2**MAX_DEPTH, generator=generator)
    number = torch.randint(1, NUM_TREES + 1, (B, 1), generator=generator)
    value = value * (torch.arange(NUM_TREES) < number).unsqueeze(-1)
    return value.gather(-1, leaf.mT).sum(1).unsqueeze(-1)

"""Locations, scales and ranges of what a program or a prior draws, in few digits. Knows nothing of models."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_arbuf.network.latents import FINEST, Latent, rounded
from pyro_arbuf.network.outcomes import Outcome
from pyro_arbuf.network.parts import MARGIN, Range
from pyro_arbuf.programs.runs import Mode

NUM_FOR_SCALES: dict[Mode, int] = {"inputs": 2048, "datasets": 2048, "loop": 256}  # data sets, by mode


def standardised(latents: Sequence[Latent], drawn: Tensor) -> tuple[Latent, ...]:
    """Latents with location and scale under the prior.

    Args:
        latents: In order.
        drawn: `(S, P)` prior draws of their unconstrained numbers.

    Raises:
        ValueError: If a latent is constant, or varies by less than float32 resolves.
    """
    loc, scale = drawn.mean(0), drawn.std(0)
    low, middle, high = drawn.quantile(drawn.new_tensor([0.25, 0.5, 0.75]), 0)
    heavy = scale > 5 * (high - low) / 1.349  # tails without a standard deviation
    heavy &= high > low
    loc, scale = torch.where(heavy, middle, loc), torch.where(heavy, (high - low) / 1.349, scale)
    found, first = [], 0
    for latent in latents:
        rows = slice(first, first + latent.size)
        if not bool((scale[rows] > 0).all()):
            raise ValueError(f"latents must vary under the prior; site {latent.name!r} is constant; fix it instead")
        check_resolution(f"the latent {latent.name!r}", loc[rows], scale[rows])
        standard = {"loc": rounded_all(loc[rows], scale[rows]), "scale": rounded_all(scale[rows])}
        found.append(dataclasses.replace(latent, **standard))
        first += latent.size
    return tuple(found)


def rounded_all(values: Tensor, scales: Tensor | None = None) -> tuple[float, ...]:
    """Few digits, of locations as many as their scales need."""
    scales = values if scales is None else scales
    return tuple(rounded(value, scale) for value, scale in zip(values.tolist(), scales.tolist(), strict=True))


def check_resolution(what: str, loc: Tensor, scale: Tensor) -> None:
    """Raises ValueError if numbers vary by less than float32 resolves at their distance from zero."""
    coarse = scale < FINEST * loc.abs()
    if bool(coarse.any()):
        got = f"{loc[coarse][0].item():.6g} with a scale of {scale[coarse][0].item():.3g}"
        raise ValueError(
            f"{what} must vary by more than {FINEST} of its distance from zero, as networks compute in float32; got "
            f"{got}; subtract the offset in the program, or measure from another origin"
        )


def range_of_inputs(column: Tensor) -> Range:
    """From the smallest to the largest, and a margin, so that the ends do not lie outside by chance."""
    low, high = column.min().item(), column.max().item()
    margin = MARGIN * (high - low)
    if not margin:
        return low, high
    return rounded(low - margin, margin, 4), rounded(high + margin, margin, 4)  # to hundredths of the margin


def range_of_outcomes(column: Tensor, kind: Outcome) -> Range:
    """Around the median, twice as far as the farthest outcome, of positive numbers not below 0; all categories."""
    if kind.num_categories:
        return 0.0, kind.num_categories - 1.0
    middle = column.median().item()
    spread = (column - middle).abs().max().item() or 1.0
    if kind.support.is_discrete:
        return 0.0, float(math.ceil(middle + 2 * spread))
    low = rounded(middle - 2 * spread, spread)
    return max(low, 0.0) if column.min() > 0 else low, rounded(middle + 2 * spread, spread)


def one_or_each(ranges: list[Range]) -> Range | tuple[Range, ...]:
    """One range as it is, several as a tuple: as a configuration has them."""
    return ranges[0] if len(ranges) == 1 else tuple(ranges)


def middle_and_scale(y: Tensor) -> tuple[Tensor, Tensor]:
    """Median and scale of each column: of the quartiles, unless the tails of 90 % are more than 5 times as wide.

    Numbers beyond do not count, so that heavy tails leave the scale alone; where most numbers are equal, it is the
    standard deviation.
    """
    low, first, middle, third, high = torch.quantile(y[:50_000], y.new_tensor([0.05, 0.25, 0.5, 0.75, 0.95]), 0)
    scale = torch.maximum((third - first) / 1.349, 0.2 * (high - low) / 3.29)  # of a Gaussian, its sd and 0.2 of it
    scale = torch.where(scale > 0, scale, y.std(0))
    return middle, torch.where(scale > 0, scale, 1.0)

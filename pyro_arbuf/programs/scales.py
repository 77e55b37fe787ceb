"""Locations and scales of what a program draws, in few digits. Knows nothing of models."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_arbuf.network.latents import FINEST, Latent, rounded
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

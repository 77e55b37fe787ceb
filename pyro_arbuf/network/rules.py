"""Rules that several parts of a configuration share: what a number, a pair, a standardisation and a latent may be."""

import math
from typing import Any, TypeGuard

import torch

from pyro_arbuf.network.latents import Latent

LARGEST_SIZE = 2**16  # far above what is trained; products of two cannot overflow when shapes are computed


def check_latent(latent: Latent) -> None:
    """Raises ValueError if a latent's support or standardisation is impossible."""
    name, bounds = latent.name, (latent.lower, latent.upper)
    if not isinstance(name, str) or not name:
        raise ValueError(f"the name of a latent must be a string; got {name!r}")
    if not isinstance(latent.simplex, bool):
        raise ValueError(f"simplex of latent {name!r} must be True or False; got {latent.simplex!r}")
    sizes = isinstance(latent.shape, tuple) and all(is_integer(n) and 1 <= n <= LARGEST_SIZE for n in latent.shape)
    if not sizes or (latent.simplex and (not latent.shape or latent.shape[-1] < 2)):
        rule = "positive integers, the last at least 2 for a simplex" if latent.simplex else "positive integers"
        raise ValueError(f"shape of latent {name!r} must be a tuple of {rule}; got {latent.shape!r}")
    low, high = (
        (-math.inf if latent.lower is None else latent.lower),
        (math.inf if latent.upper is None else latent.upper),
    )
    if not all(end is None or is_number(end) for end in bounds) or not low < high:
        raise ValueError(f"lower and upper of latent {name!r} must be finite, lower < upper, or None; got {bounds}")
    names = (f"loc of latent {name!r}", f"scale of latent {name!r}")
    check_standardisation(names, latent.loc, latent.scale, latent.size)


def check_standardisation(names: tuple[str, str], loc: object, scale: object, dim: int) -> None:
    """Raises ValueError unless both are None, or `dim` numbers that are finite, scales positive, in float32."""
    if (loc is None) != (scale is None):
        raise ValueError(f"{names[0]} and {names[1]} must both be given or both be None; got {loc!r} and {scale!r}")
    for name, value, low in ((names[0], loc, -math.inf), (names[1], scale, torch.finfo(torch.float32).tiny)):
        fits = isinstance(value, tuple) and len(value) == dim and all(is_number(v) and v >= low for v in value)
        if value is not None and not fits:
            rule = "positive numbers" if value is scale else "finite numbers"
            raise ValueError(f"{name} must hold {dim} {rule}, or be None; got {value!r}")


def is_pair(value: object) -> TypeGuard[tuple[Any, Any]]:
    """Whether a value is a tuple of two."""
    return isinstance(value, tuple) and len(value) == 2


def is_integer(value: object) -> bool:
    """Whether a value is an integer, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a number that is finite in float32."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= torch.finfo(torch.float32).max

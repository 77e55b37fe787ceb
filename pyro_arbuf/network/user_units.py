"""A user's units: the affine map between a user's numbers and those that a network was trained on.

It is kept apart from the network's own standardisation (`Units`), which the weights were made for: training, embedding
and heads do not know of it. Knows nothing of data, nor of how the map was found.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_arbuf.network.latents import FINEST

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class UserUnits:
    """In which units a user speaks: a number of theirs is loc + scale times the network's.

    Attributes:
        user_x_loc: Of every input column; `None` = inputs are in the network's units.
        user_x_scale: Of every input column, positive.
        user_y_loc: Of every outcome dimension, 0 where it is no real number; `None` = outcomes are in the network's
            units.
        user_y_scale: Of every outcome dimension, positive, 1 where it is no real number.
        user_dates: Whether each input column is a date, in days since 1970-01-01; `None` = none is.
        user_durations: Whether inputs, and outcomes, may be durations, as their units were stated or fitted in days;
            `None` = neither.
    """

    user_x_loc: Numbers | None = None
    user_x_scale: Numbers | None = None
    user_y_loc: Numbers | None = None
    user_y_scale: Numbers | None = None
    user_dates: tuple[bool, ...] | None = None
    user_durations: tuple[bool, bool] | None = None

    def _check_user_units(self, dim_x: int, real: Sequence[bool]) -> None:
        """Raises ValueError unless locations and scales fit; `real` says which outcome dimensions are real numbers."""
        _check_pair("user_x", self.user_x_loc, self.user_x_scale, dim_x)
        _check_pair("user_y", self.user_y_loc, self.user_y_scale, len(real))
        locs, scales = self.user_y_loc or (), self.user_y_scale or ()
        for d, (loc, scale) in enumerate(zip(locs, scales, strict=True)):
            if not real[d] and (loc, scale) != (0, 1):
                raise ValueError(
                    f"user_y_loc and user_y_scale must be 0 and 1 where outcomes are categories or counts; got {loc} "
                    f"and {scale} for dimension {d}"
                )
        spans = self.user_durations
        if spans is not None and not (isinstance(spans, tuple) and [type(each) for each in spans] == [bool, bool]):
            raise ValueError(f"user_durations must be a pair of True or False, or None; got {spans!r}")
        dates = self.user_dates
        fits = isinstance(dates, tuple) and len(dates) == dim_x and all(isinstance(each, bool) for each in dates)
        if dates is not None and not (fits and self.user_x_loc is not None):
            raise ValueError(
                f"user_dates must hold {dim_x} times True or False, beside user_x_loc, or be None; got {dates!r}"
            )

    def _check_fineness(self, y_loc: Numbers | None, y_scale: Numbers | None) -> None:
        """Raises ValueError if float32 cannot tell the user's outcomes apart; takes the network's own units."""
        locs, scales = self.user_y_loc or (), self.user_y_scale or ()
        for d, (loc, scale) in enumerate(zip(locs, scales, strict=True)):
            middle = loc + scale * (y_loc[d] if y_loc else 0.0)
            width = scale * (y_scale[d] if y_scale else 1.0)
            if width < FINEST * abs(middle):
                raise ValueError(
                    f"the scale of y in the user's units must be at least {FINEST:g} of its location, or float32 "
                    f"cannot tell outcomes apart; got location {middle:.10g} and scale {width:.4g}; subtract the "
                    "location from y before it is given, which leaves densities unchanged"
                )

    @functools.cached_property
    def unit_map(self) -> "UnitMap | None":
        """The map between a user's numbers and the network's; `None` = they are the same."""
        if self.user_x_loc is None and self.user_y_loc is None:
            return None
        x = _as_map(self.user_x_loc, self.user_x_scale)
        return UnitMap(x, _as_map(self.user_y_loc, self.user_y_scale), self.user_dates)


@dataclass(frozen=True)
class UnitMap:
    """Maps inputs and outcomes in and out, in float64, and densities to the user's units.

    Attributes:
        x: Locations and scales of the input columns; `None` = nothing to do.
        y: Locations and scales of the outcome dimensions; `None` = nothing to do.
        dates: Which input columns are dates; `None` = none.
    """

    x: tuple[Numbers, Numbers] | None
    y: tuple[Numbers, Numbers] | None
    dates: tuple[bool, ...] | None

    def network_x(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Inputs `(*batch, T, D_x)` of a user as the network has them."""
        return _inwards(x, self.x, dtype)

    def network_y(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Outcomes `(*batch, T, D_y)` of a user as the network has them."""
        return _inwards(y, self.y, dtype)

    def user_x(self, x: Tensor) -> Tensor:
        """Inputs `(*batch, T, D_x)` of the network as the user has them, in float64."""
        return x if self.x is None else _outwards(x, self.x)

    def user_y(self, y: Tensor) -> Tensor:
        """Outcomes `(*batch, T, D_y)` of the network as the user has them."""
        return y if self.y is None else _outwards(y, self.y).to(y.dtype)

    def user_variance(self, variance: Tensor) -> Tensor:
        """Variances `(*batch, T, D_y)` of the network in the user's units squared."""
        if self.y is None:
            return variance
        return (variance.double() * _like(self.y[1], variance).square()).to(variance.dtype)

    def user_density(self, density: Tensor) -> Tensor:
        """Log densities `(*batch, D_y)` of the network's outcome dimensions as those of the user's, nats."""
        if self.y is None:
            return density
        return density - torch.tensor([math.log(scale) for scale in self.y[1]], dtype=density.dtype).to(density.device)

    @functools.cached_property
    def log_jacobian(self) -> float:
        """Log density of an outcome in the network's units minus that in the user's, nats: the sum of log scales."""
        return 0.0 if self.y is None else math.fsum(math.log(scale) for scale in self.y[1])


def _as_map(loc: Numbers | None, scale: Numbers | None) -> tuple[Numbers, Numbers] | None:
    return None if loc is None or scale is None else (loc, scale)


def _like(numbers: Numbers, value: Tensor) -> Tensor:
    """The numbers of the columns that a value has: tables may have fewer than the network."""
    return torch.tensor(numbers[: value.shape[-1]], dtype=torch.float64, device=value.device)


def _inwards(value: Tensor, pair: tuple[Numbers, Numbers] | None, dtype: torch.dtype) -> Tensor:
    """(value - loc) / scale in float64, then in the dtype of the weights."""
    if pair is None:
        return value.to(dtype)
    loc, scale = (_like(part, value) for part in pair)
    return ((value.double() - loc) / scale).to(dtype)


def _outwards(value: Tensor, pair: tuple[Numbers, Numbers]) -> Tensor:
    """Loc + scale value, in float64."""
    loc, scale = (_like(part, value) for part in pair)
    return loc + scale * value.double()


def _check_pair(name: str, loc: object, scale: object, dim: int) -> None:
    """Raises ValueError unless both are None, or `dim` finite numbers, the scales positive."""
    if (loc is None) != (scale is None):
        raise ValueError(f"{name}_loc and {name}_scale must both be given or both be None; got {loc!r} and {scale!r}")
    for value, low in ((loc, -math.inf), (scale, 0.0)):
        each = [v for v in value if isinstance(v, int | float)] if isinstance(value, tuple) else []
        if value is not None and not (len(each) == dim and all(math.isfinite(v) and v > low for v in each)):
            raise ValueError(
                f"{name}_loc and {name}_scale must hold {dim} finite numbers, scales positive; got {loc!r} and "
                f"{scale!r}"
            )

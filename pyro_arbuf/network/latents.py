"""A simulator's parameters as extra, scalar input locations.

A site of event shape `shape` becomes as many locations as its unconstrained value has numbers. Inside a model with
latents every input has one more column, its location: 0 for an observation, p = 1..P for the p-th latent number; the
outcome there is the unconstrained value. Knows nothing of models.

Deviation: the paper predicts outcomes only; with parameters as locations one network has posterior and likelihood too.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

FINEST = 1e-5  # of its distance from zero, the smallest scale of a number that float32 can hold
ROUNDING = 1e-5  # of the width of a support, by which a value may lie outside it


@dataclasses.dataclass(frozen=True)
class Latent:
    """A latent site of a program: its support, and how its unconstrained value is standardised.

    Attributes:
        name: Of the site.
        shape: Event shape of a value.
        lower: Lower bound of every number; `None` = none.
        upper: Upper bound; `None` = none.
        simplex: Whether a value is a probability vector (`lower` and `upper` are then not used).
        loc: Location of each unconstrained number under the prior; `None` = 0.
        scale: Scale of each unconstrained number under the prior; `None` = 1.
    """

    name: str
    shape: tuple[int, ...] = ()
    lower: float | None = None
    upper: float | None = None
    simplex: bool = False
    loc: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None

    @property
    def support(self) -> constraints.Constraint:
        """The constraint that values satisfy."""
        if self.simplex:
            return constraints.simplex
        if self.lower is not None and self.upper is not None:
            base = constraints.interval(self.lower, self.upper)
        elif self.lower is not None:
            base = constraints.positive if self.lower == 0 else constraints.greater_than(self.lower)
        elif self.upper is not None:
            base = constraints.less_than(self.upper)
        else:
            base = constraints.real
        return constraints.independent(base, len(self.shape)) if self.shape else base

    def contains(self, value: Tensor) -> Tensor:
        """Whether values `(*batch, *shape)` lie in the support, `(*batch,)`; the sum of a simplex up to rounding."""
        if self.simplex:
            inside = (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < ROUNDING)
            return self._over_events(inside, 1).all(-1)
        return self.support.check(value)

    def lies_in(self, other: "Latent") -> bool:
        """Whether the support is that of another latent, or a part of it."""
        if self.simplex or other.simplex:
            return self.simplex and other.simplex
        inside_below = other.lower is None or (self.lower is not None and self.lower >= other.lower)
        return inside_below and (other.upper is None or (self.upper is not None and self.upper <= other.upper))

    def excludes(self, value: Tensor) -> Tensor:
        """Whether values `(*batch, *shape)` lie outside a support of two ends by more than rounding, `(*batch,)`."""
        if self.simplex:
            return ~self.contains(value)
        if self.lower is None or self.upper is None:
            return torch.zeros(value.shape[: value.dim() - len(self.shape)], dtype=torch.bool, device=value.device)
        slack = ROUNDING * (self.upper - self.lower)
        outside = (value < self.lower - slack) | (value > self.upper + slack)
        return self._over_events(outside, 0).any(-1)

    def _over_events(self, found: Tensor, reduced: int) -> Tensor:
        """What was found of each number, `(*batch, *shape)` less `reduced` dimensions, as `(*batch, numbers)`."""
        left = len(self.shape) - reduced
        return found.flatten(found.dim() - left) if left else found.unsqueeze(-1)

    @functools.cached_property
    def transform(self) -> Transform:
        """From unconstrained values to the support, of `len(shape)` event dimensions."""
        return biject_to(self.support)

    @functools.cached_property
    def unconstrained_shape(self) -> Size:
        """Event shape of an unconstrained value."""
        return Size(self.transform.inverse_shape(self.shape))

    @property
    def size(self) -> int:
        """Number of unconstrained numbers, each a location."""
        return self.unconstrained_shape.numel()

    def unconstrain(self, value: Tensor) -> Tensor:
        """Unconstrained numbers `(*batch, size)` of values `(*batch, *shape)`, NaN where these lie outside the support.

        The inverse of the transform takes what is beyond one of two ends for that end. A probability of 0, which it has
        no number for, is taken for the smallest above it.
        """
        inner = value.clamp(min=torch.finfo(value.dtype).tiny) if self.simplex else value
        numbers = cast(Tensor, self.transform.inv(inner))
        numbers = numbers.reshape((*numbers.shape[: numbers.dim() - len(self.unconstrained_shape)], self.size))
        return numbers.masked_fill(self.excludes(value.detach()).unsqueeze(-1), torch.nan)

    def constrain(self, unconstrained: Tensor) -> tuple[Tensor, Tensor]:
        """Values `(*batch, *shape)` of unconstrained numbers `(*batch, size)`, and the log Jacobian `(*batch,)`."""
        unconstrained = unconstrained.reshape(unconstrained.shape[:-1] + self.unconstrained_shape)
        value = cast(Tensor, self.transform(unconstrained))
        jacobian = self.transform.log_abs_det_jacobian(unconstrained, value)
        return value, self._over_events(jacobian, 1).sum(-1) if self.simplex else jacobian


def constrained(latents: Sequence[Latent], unconstrained: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What `Latent.constrain` makes of each latent's part of unconstrained numbers `(*batch, P)`, by name."""
    parts = unconstrained.split([latent.size for latent in latents], -1) if latents else ()
    return {latent.name: latent.constrain(part) for latent, part in zip(latents, parts, strict=True)}


def unconstrained(latents: Sequence[Latent], values: Mapping[str, Tensor]) -> Tensor:
    """Unconstrained numbers `(*batch, P)` of values of latents, by name, in the order of the latents."""
    return torch.cat([latent.unconstrain(values[latent.name]) for latent in latents], -1)


class Locations(NamedTuple):
    """Inputs with their location column: where a distribution is at latents instead of a user's inputs.

    Attributes:
        coded: `(*batch, T, D_x + 1)`.
    """

    coded: Tensor


def code(x: Tensor | Locations, latents: Sequence[Latent]) -> Tensor:
    """Adds the location column of observations, 0, to inputs of a model with latents."""
    if isinstance(x, Locations):
        return x.coded
    return F.pad(x, (0, 1)) if latents else x


def latent_locations(latents: Sequence[Latent], names: Sequence[str], dim_x: int, like: Tensor) -> Tensor:
    """Coded inputs `(P', D_x + 1)` of the latents called `names`, in the order of `latents`."""
    indices, first = [], 1
    for latent in latents:
        if latent.name in names:
            indices += range(first, first + latent.size)
        first += latent.size
    coded = like.new_zeros(len(indices), dim_x + 1)
    coded[:, -1] = like.new_tensor(indices)
    return coded


def standardisation(
    latents: Sequence[Latent], dim_y: int, y_loc: Sequence[float] | None, y_scale: Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    """Location and scale of the outcome at every location, each `(P + 1, D_y)`; a latent uses the first dimension."""
    size = 1 + sum(latent.size for latent in latents)
    loc, scale = torch.zeros(size, dim_y), torch.ones(size, dim_y)
    if y_loc is not None and y_scale is not None:
        loc[0], scale[0] = torch.tensor(y_loc), torch.tensor(y_scale)
    first = 1
    for latent in latents:
        rows = slice(first, first + latent.size)
        if latent.loc is not None and latent.scale is not None:
            loc[rows, 0], scale[rows, 0] = torch.tensor(latent.loc), torch.tensor(latent.scale)
        first += latent.size
    return loc, scale


def rounded(value: float, scale: float, digits: int = 3) -> float:
    """A number to some significant digits, or to as many more as tell hundredths of its scale apart.

    Example:
        >>> rounded(0.123456, 1.0), rounded(2019.987, 0.2)
        (0.123, 2019.987)
    """
    if value and scale:
        digits = max(digits, 2 + math.ceil(math.log10(abs(value / scale))))
    return float(f"{value:.{digits}g}")


def pad_outcome(value: Tensor, dim_y: int) -> Tensor:
    """Outcomes `(*batch, P, D_y)` at latents: their numbers `(*batch, P)`, then zeros, whose log density is 0."""
    return F.pad(value.unsqueeze(-1), (0, dim_y - 1))

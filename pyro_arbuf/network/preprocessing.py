"""Standardisation of a table or a recording by its context: statistics of what is observed, and the maps they give.

    x of tables   standardise, Yeo-Johnson, standardise, logarithm beyond 4, clip at 8        y   standardise

A clipped or bent outcome would have no density, so y is mapped affinely. Statistics are of the context alone, so that
nothing of a target enters another one's density; they skip missing cells. Knows nothing of networks.

Deviation: the paper standardises EEG per channel; here few samples are taken nearly in the units of a usual recording.
It clips x of tables at 4, by which most rows that follow a context of 16 along an index would become one: they are up
to 9 standard deviations away.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.network.visibility import context_mask

LINEAR, CLIP = 4.0, 8.0  # 8 is what 4 + e^4 - 1 = 57.6 standard deviations become
POWERS = (-0.95, 2.95)  # 1 changes nothing; p and 2 - p are mirror images; 0 and 2 are none of the grid
NUM_POWERS = 13
POWER_SD = 1.0  # of the normal law about 1 that keeps the power of few rows near 1


class TableStatistics(NamedTuple):
    """What the context of each of B tables says of its columns and of its outcome.

    Attributes:
        x_loc: `(B, 1, D)`, in the unit of the column.
        x_scale: `(B, 1, D)`, likewise; 1 where a column is constant, and so becomes 0, or is missing.
        power: `(B, 1, D)`, of the Yeo-Johnson map of the standardised column.
        z_loc: `(B, 1, D)`, of the column so mapped.
        z_scale: `(B, 1, D)`.
        y_loc: `(B, 1, D_y)`, in the unit of the outcome; 0 where that is constant or there are fewer than 2 rows.
        y_scale: `(B, 1, D_y)`; 1 where that is so.
    """

    x_loc: Tensor
    x_scale: Tensor
    power: Tensor
    z_loc: Tensor
    z_scale: Tensor
    y_loc: Tensor
    y_scale: Tensor

    def map_x(self, x: Tensor) -> Tensor:
        """Standardised inputs `(B, T, D)` of inputs: within [-8, 8], NaN where a cell is missing."""
        missing = x.isnan()
        bent = yeo_johnson((x.masked_fill(missing, 0.0) - self.x_loc) / self.x_scale, self.power)
        return _drawn_in((bent - self.z_loc) / self.z_scale).masked_fill(missing, torch.nan)

    def restore_x(self, standardised: Tensor) -> Tensor:
        """Inputs of standardised ones: the inverse of `map_x` but for its clipping."""
        bent = self.z_loc + self.z_scale * _let_out(standardised)
        return self.x_loc + self.x_scale * inverse_yeo_johnson(bent, self.power)

    def map_y(self, y: Tensor) -> Tensor:
        """Standardised outcomes `(B, T, D_y)` of outcomes."""
        return (y - self.y_loc) / self.y_scale

    def restore_y(self, standardised: Tensor) -> Tensor:
        """Outcomes of standardised ones: the inverse of `map_y`; the density of y is that of z over `y_scale`."""
        return self.y_loc + self.y_scale * standardised


class OutcomeStatistics(NamedTuple):
    """What the context of each of B tasks says of its outcomes, whose inputs stay as they are.

    Attributes:
        y_loc: `(B, 1, D_y)`, in the unit of the outcome.
        y_scale: `(B, 1, D_y)`, likewise.
    """

    y_loc: Tensor
    y_scale: Tensor

    def map_x(self, x: Tensor) -> Tensor:
        """Inputs, unchanged."""
        return x

    def restore_x(self, standardised: Tensor) -> Tensor:
        """Inputs, unchanged."""
        return standardised

    def map_y(self, y: Tensor) -> Tensor:
        """Standardised outcomes `(B, T, D_y)` of outcomes."""
        return (y - self.y_loc) / self.y_scale

    def restore_y(self, standardised: Tensor) -> Tensor:
        """Outcomes of standardised ones: the inverse of `map_y`; the density of y is that of z over `y_scale`."""
        return self.y_loc + self.y_scale * standardised


Statistics = TableStatistics | OutcomeStatistics


def outcome_statistics(
    y: Tensor, scale: tuple[float, ...], weight: float, context_len: Tensor | None = None
) -> OutcomeStatistics:
    r"""The statistics that put every outcome dimension of a context onto mean 0 and a network's own scale s.

    What goes onto s is

    .. math:: \sqrt{(\sum_n (y_n - \bar y)^2 + w s^2) / (N + w)},

    so that few observations, of a poor standard deviation, are taken as they are, but for their mean, and many are
    standardised. Nothing is divided by zero, and without observations nothing is changed.

    Args:
        y: `(B, N, D_y)` outcomes of the context; N may be 0.
        scale: `(D_y,)`, the network's own scale s.
        weight: Observations w that the network's scale counts as.
        context_len: `(B,)` int64, real observations per task, the padding behind them; `None` = all N.

    Returns:
        The statistics, in the dtype of `y`; differentiable in it.

    Example:
        >>> y = torch.tensor([[[1.0], [3.0]]])
        >>> outcome_statistics(y, scale=(1.0,), weight=2.0).map_y(y).flatten()
        tensor([-1.,  1.])
    """
    here = torch.ones_like(y, dtype=torch.bool)
    if context_len is not None:
        here = context_mask(context_len, y.shape[1]).unsqueeze(-1).expand_as(y)
    count = here.sum(1, keepdim=True).to(y.dtype)
    mean = y.masked_fill(~here, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
    squares = (y - mean).masked_fill(~here, 0.0).square().sum(1, keepdim=True)
    return OutcomeStatistics(mean, ((squares / y.new_tensor(scale).square() + weight) / (count + weight)).sqrt())


def table_statistics(x: Tensor, y: Tensor, context_len: Tensor | None = None) -> TableStatistics:
    """The statistics of contexts, in the dtype of `x`: give float64 where columns have a location far from 0.

    Args:
        x: `(B, N, D)` inputs, NaN where a cell is missing; N may be 0.
        y: `(B, N, D_y)` outcomes.
        context_len: `(B,)` int64, real rows per table, the padding behind them; `None` = all N.

    Returns:
        The statistics; differentiable in `x` and `y`.

    Source:
        Yeo and Johnson (2000), the power by maximum likelihood, with a weak normal law about 1 that matters for few
        rows.
    """
    real = torch.ones(*x.shape[:2], 1, dtype=torch.bool, device=x.device)
    if context_len is not None:
        real = context_mask(context_len, x.shape[1]).unsqueeze(-1)
    here = real & ~x.isnan()
    x = x.masked_fill(~here, 0.0)  # NaN times a derivative of 0 is NaN
    x_loc, x_scale = _moments(x, here)
    # What rounding leaves of a constant column is 0, or the second standardisation would make numbers of it.
    z = ((x - x_loc) / x_scale).masked_fill(~(here & varies(x, here, x_loc)), 0.0)
    power = _likeliest_power(z, here)
    y_loc, y_scale = _moments(y, real.expand_as(y))
    y_loc = torch.where(varies(y, real.expand_as(y), y_loc), y_loc, torch.zeros_like(y_loc))
    return TableStatistics(x_loc, x_scale, power, *_moments(yeo_johnson(z, power), here), y_loc, y_scale)


def yeo_johnson(x: Tensor, power: Tensor) -> Tensor:
    """The Yeo-Johnson map: increasing and smooth, the identity for power 1, a logarithm of 1 + x for power 0.

    Args:
        x: Standardised numbers.
        power: Broadcasts against them.
    """
    above, below = torch.log1p(x.clamp(min=0)), torch.log1p((-x).clamp(min=0))
    return torch.where(x < 0, -_box_cox(below, 2 - power), _box_cox(above, power))


def inverse_yeo_johnson(bent: Tensor, power: Tensor) -> Tensor:
    """The inverse of `yeo_johnson`, of numbers in its range."""
    above = torch.expm1(_inverse_box_cox(bent.clamp(min=0), power))
    below = torch.expm1(_inverse_box_cox((-bent).clamp(min=0), 2 - power))
    return torch.where(bent < 0, -below, above) + 0.0 * bent  # NaN stays


def _drawn_in(z: Tensor) -> Tensor:
    """Numbers as they are up to 4, on a logarithmic scale beyond, at most 8; its slope is continuous."""
    far = torch.log1p((z.abs() - LINEAR).clamp(min=0))
    return (z.clamp(-LINEAR, LINEAR) + z.sign() * far).clamp(-CLIP, CLIP)


def _let_out(z: Tensor) -> Tensor:
    """The inverse of `_drawn_in` but for its clipping."""
    return z.clamp(-LINEAR, LINEAR) + z.sign() * torch.expm1((z.abs() - LINEAR).clamp(min=0))


def _inverse_box_cox(bent: Tensor, power: Tensor) -> Tensor:
    """The length whose `_box_cox` is `bent`."""
    small = power.abs() < 1e-5
    safe = torch.where(small, torch.ones_like(power), power)
    exact = torch.log1p((safe * bent).clamp(min=torch.finfo(bent.dtype).eps - 1)) / safe
    return torch.where(small, bent * (1 - 0.5 * power * bent), exact)


def _box_cox(length: Tensor, power: Tensor) -> Tensor:
    """(exp(power length) - 1) / power, and its limit where the power is 0."""
    small = power.abs() < 1e-5
    safe = torch.where(small, torch.ones_like(power), power)
    return torch.where(small, length * (1 + 0.5 * power * length), torch.expm1(safe * length) / safe)


def _moments(values: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sd `(B, 1, D)` of values `(B, N, D)` that are there; the mean of none is 0, an sd of 0 becomes 1."""
    count = here.sum(1, keepdim=True).to(values.dtype).clamp(min=1)
    mean = values.masked_fill(~here, 0.0).sum(1, keepdim=True) / count
    variance = (values - mean).masked_fill(~here, 0.0).square().sum(1, keepdim=True) / count
    return mean, torch.where(varies(values, here, mean), variance, torch.ones_like(variance)).sqrt()


def varies(values: Tensor, here: Tensor, mean: Tensor) -> Tensor:
    """Whether values that are there differ by more than rounding leaves between equal ones and their mean.

    Args:
        values: `(B, N, D)`.
        here: Bool, which of them are there.
        mean: `(B, 1, D)`, of those.

    Returns:
        Bool `(B, 1, D)`.
    """
    distance = (values - mean).masked_fill(~here, 0.0).abs()
    distance = torch.cat([distance, torch.zeros_like(mean)], 1).amax(1, keepdim=True)
    return distance > 8 * torch.finfo(values.dtype).eps * mean.abs()


def _likeliest_power(z: Tensor, here: Tensor) -> Tensor:
    """Powers `(B, 1, D)` of standardised columns `(B, N, D)`, 0 in missing cells: the best of a grid, refined."""
    grid = torch.linspace(*POWERS, NUM_POWERS, dtype=z.dtype, device=z.device)
    count = here.sum(1).to(z.dtype)  # (B, D)
    below = z < 0
    sign = torch.where(below, -torch.ones_like(z), torch.ones_like(z))
    length = torch.log1p(torch.where(below, -z, z))
    size = sign * length
    stretch, least = size.sum(1), torch.finfo(z.dtype).tiny
    scores = []
    for step in (grid - 1).tolist():  # the Yeo-Johnson map once more, with one exponential
        bent = sign * torch.expm1(length + step * size) / (1 + step * sign)
        mean = bent.sum(1) / count.clamp(min=1)
        variance = bent.square().sum(1) / count.clamp(min=1) - mean.square()
        penalty = 0.5 * (step / POWER_SD) ** 2
        scores.append(-0.5 * count * variance.clamp(min=least).log() + step * stretch - penalty)
    score = torch.stack(scores)  # (grid, B, D)
    best = score.argmax(0, keepdim=True).clamp(1, NUM_POWERS - 2)
    before, middle, after = (score.gather(0, best + step) for step in (-1, 0, 1))
    curvature = (2 * middle - before - after).clamp(min=1e-9)
    shift = (0.5 * (after - before) / curvature).clamp(-1, 1)
    power = grid[best] + shift * (grid[1] - grid[0])
    return torch.where((z != 0).any(1).unsqueeze(0), power, torch.ones_like(power)).movedim(0, 1)

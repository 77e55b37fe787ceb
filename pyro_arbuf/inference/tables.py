"""Tables of a user: the map between their numbers and those of a network of tables.

A network of tables has rows standardised by their context (`network/preprocessing`). The map of a context is therefore
one for each of its tasks: first the user's units, where there are any, then its statistics. Knows nothing of Contexts,
nor of weights.
"""

from dataclasses import dataclass

import torch
from torch import Size, Tensor

from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import FINEST
from pyro_arbuf.network.preprocessing import Statistics, outcome_statistics, table_statistics, varies
from pyro_arbuf.network.tracing import is_traced
from pyro_arbuf.network.user_units import UnitMap
from pyro_arbuf.network.visibility import context_mask
from pyro_arbuf.user_warnings import warn

UNUSUAL = (0.02, 20.0)  # times the standard deviation of a usual recording


@dataclass(frozen=True, eq=False)
class TableMap:
    """Maps inputs and outcomes of tables in and out, in float64, and densities to the user's units.

    It has the methods of `UnitMap`; what they take broadcasts against the tables, and so does what they return.

    Attributes:
        units: Between the user's numbers and those that the statistics are of; `None` = they are the same.
        statistics: Of every table, `(*tables, 1, .)`, float64.
    """

    units: UnitMap | None
    statistics: Statistics

    def network_x(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Inputs `(*batch, T, D)` of a user as the network has them."""
        return self.statistics.map_x(_in_units(self.units, x)).to(dtype)

    def network_y(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Outcomes `(*batch, T, D_y)` of a user as the network has them."""
        y = y.double() if self.units is None else self.units.network_y(y, torch.float64)
        return self.statistics.map_y(y).to(dtype)

    def user_x(self, x: Tensor) -> Tensor:
        """Inputs of the network as the user has them, in float64: those beyond its clipping come back as its ends."""
        x = self.statistics.restore_x(x.double())
        return x if self.units is None else self.units.user_x(x)

    def user_y(self, y: Tensor) -> Tensor:
        """Outcomes `(*batch, T, D_y)` of the network as the user has them."""
        own = self.statistics.restore_y(y.double())
        return (own if self.units is None else self.units.user_y(own)).to(y.dtype)

    def user_variance(self, variance: Tensor) -> Tensor:
        """Variances `(*batch, T, D_y)` of the network in the user's units squared."""
        own = variance.double() * self.statistics.y_scale.square()
        return (own if self.units is None else self.units.user_variance(own)).to(variance.dtype)

    def user_density(self, density: Tensor) -> Tensor:
        """Log densities `(*batch, T, D_y)` of the network's outcome dimensions as those of the user's, nats."""
        own = density.double() - self.statistics.y_scale.log()
        return (own if self.units is None else self.units.user_density(own)).to(density.dtype)

    @property
    def log_jacobian(self) -> Tensor:
        """Log density of an outcome in the network's units minus that in the user's, `(*tables, 1)` nats."""
        own = self.statistics.y_scale.log().sum(-1)
        return own if self.units is None else own + self.units.log_jacobian


Maps = UnitMap | TableMap


def _in_units(units: UnitMap | None, x: Tensor) -> Tensor:
    return x.double() if units is None else units.network_x(x, torch.float64)


def make_map(config: ModelConfig, statistics: Statistics | None, tables: Size) -> Maps | None:
    """The map of a context whose tasks, of batch shape `tables`, have statistics `(B, 1, .)`; `None` = no map."""
    if statistics is None:
        return config.unit_map
    return TableMap(config.unit_map, statistics._make(part.view(*tables, *part.shape[1:]) for part in statistics))


def fit_map(config: ModelConfig, x: Tensor, y: Tensor, context_len: Tensor | None = None) -> Maps | None:
    """The map that contexts give: of tables and recordings with their statistics, of others the user's units alone.

    Args:
        config: Of the network.
        x: `(B, N, D)` inputs in the user's units, float64.
        y: `(B, N, D_y)` outcomes, likewise.
        context_len: `(B,)` int64, real rows per task; `None` = all N.
    """
    units = config.unit_map
    if not config.standardised_by_context:
        return units
    y = y.double() if units is None else units.network_y(y, torch.float64)
    if config.missing_x:
        return TableMap(units, table_statistics(_in_units(units, x), y, context_len))
    return TableMap(units, outcome_statistics(y, *config.context_scale, context_len))


def map_pairs(
    maps: Maps | None, x: Tensor, y: Tensor, context_len: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Pairs `(B, N, .)` of a user as the network has them, zeros where padded."""
    if maps is None:
        return x.to(dtype), y.to(dtype)
    x, y = maps.network_x(x, dtype), maps.network_y(y, dtype)
    if context_len is None:
        return x, y
    padding = ~context_mask(context_len, x.shape[1]).unsqueeze(-1)
    return x.masked_fill(padding, 0.0), y.masked_fill(padding, 0.0)


def warn_equal_outcomes(maps: Maps | None, y: Tensor, context_len: Tensor | None) -> None:
    """Warns where a context of a table has rows whose outcomes are all equal, and so say nothing of a scale.

    Args:
        maps: Of the contexts; where the user has stated the unit of outcomes, there is nothing to warn of.
        y: `(B, N, D_y)` outcomes.
        context_len: `(B,)` int64, real rows per task; `None` = all N.
    """
    assert isinstance(maps, TableMap)
    stated = maps.units is not None and maps.units.y is not None
    if stated or is_traced() or y.requires_grad or y.shape[1] == 0:
        return
    here, number = torch.ones_like(y, dtype=torch.bool), y.new_tensor(y.shape[1])
    if context_len is not None:
        here, number = context_mask(context_len, y.shape[1]).unsqueeze(-1).expand_as(y), context_len[:, None, None]
    mean = y.masked_fill(~here, 0.0).sum(1, keepdim=True) / number.clamp(min=1)
    if bool((~varies(y, here, mean) & (number > 0)).any()):
        warn(
            "y of a context has no two different values, so that it says nothing of their unit and is taken as it is: "
            "predictions are those for outcomes about 0 of unit scale; give more rows, or state both by "
            "net.in_units(y_loc=..., y_scale=...)",
        )


def warn_other_unit(maps: Maps | None, y: Tensor, context_len: Tensor | None, config: ModelConfig) -> None:
    """Warns where a channel of a recording, `(B, N, D_y)` as the network has it, varies as none of training did.

    Fewer than the usual scale counts as say too little: successive samples may be nearly equal.
    """
    if config.y_scale_weight is None or is_traced() or y.requires_grad:
        return
    assert isinstance(maps, TableMap)
    scale, enough = config.context_scale
    number = torch.full((len(y),), y.shape[1], device=y.device) if context_len is None else context_len
    variance = y.square().sum(1) / number.clamp(min=1).unsqueeze(-1)  # padding is 0, as the mean is
    shown = (variance / y.new_tensor(scale).square()).amin(-1).sqrt()
    usual = maps.statistics.y_scale.amax(-1).squeeze(-1)
    least, most = UNUSUAL
    if bool(((number >= enough) & ((shown < least) | (usual > most))).any()):
        unit = scale[0] * (1.0 if config.user_y_scale is None else config.user_y_scale[0])
        warn(
            f"a channel of y has a standard deviation below {least * unit:.4g} or above {most * unit:.4g}, as no "
            "recording of training: densities are unreliable there; look for dead channels, or state the unit by "
            "net.in_units(y_scale=...) or net.in_units(y=...) of a recording",
        )


def warn_coarse_outcomes(maps: Maps | None, dim_y: int, dtype: torch.dtype) -> None:
    """Warns where float32 cannot tell the outcomes of a table apart: its scale is small beside its location."""
    if not isinstance(maps, TableMap) or is_traced() or maps.statistics.y_scale.requires_grad:
        return
    standard = maps.statistics.y_scale.new_zeros(1, 1, dim_y)
    middle = maps.user_y(standard)
    if dtype == torch.float32 and bool((maps.user_y(standard + 1) - middle < FINEST * middle.abs()).any()):
        warn(
            f"the scale of y of a context should be at least {FINEST:g} of its location, or float32 cannot tell "
            "outcomes apart: draws come in steps; subtract the location from y before it is given: densities are "
            "unchanged; or use net.double()",
        )

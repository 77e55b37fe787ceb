"""What a user says of their units, or data of theirs, as the affine map of a configuration.

Knows nothing of how the map is applied, nor of modules and weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_arbuf.inference.data import (
    Table,
    columns_of,
    holds_durations,
    in_site_order,
    read_table,
    several_columns,
)
from pyro_arbuf.inference.dates import day_of
from pyro_arbuf.inference.labels import common_kinds
from pyro_arbuf.inference.outcome_sites import stack_sites
from pyro_arbuf.inference.trained_range import pairs_of
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.outcomes import Real
from pyro_arbuf.network.parts import Range
from pyro_arbuf.network.user_units import UserUnits

NO_UNITS = {field.name: None for field in dataclasses.fields(UserUnits)}


class Stated(NamedTuple):
    """What a user states instead of data; `None` = nothing.

    Attributes:
        x_range: Pair of the user's numbers or dates for the trained range of all columns; or a pair, or `None`, each.
        x_loc: The user's number where the network has 0.
        x_scale: The user's units in one of the network's.
        y_loc: Likewise, of outcomes.
        y_scale: Likewise.
    """

    x_range: object = None
    x_loc: object = None
    x_scale: object = None
    y_loc: object = None
    y_scale: object = None


def configure_units(config: ModelConfig, x: object, y: object, stated: Stated) -> ModelConfig:
    """A configuration in the user's units; see `ArBufferModel.in_units`.

    Raises:
        ValueError: If an argument breaks its rule.
    """
    _check_one_way("x", x, x_range=stated.x_range, x_loc=stated.x_loc, x_scale=stated.x_scale)
    _check_one_way("y", y, y_loc=stated.y_loc, y_scale=stated.y_scale)
    fitted = [name for name, value in (("x", x), ("y", y), ("x_range", stated.x_range)) if value is not None]
    if config.latents and fitted:
        raise ValueError(
            f"a network of a program takes stated factors only, as its parameters would mean something else in units "
            f"fitted to data; got {fitted[0]}; state x_loc, x_scale, y_loc or y_scale, each number of yours being "
            "loc + scale times the program's"
        )
    inputs = [name for name in fitted if name != "y"]
    if config.x_spacing is not None and inputs:
        raise ValueError(
            f"time of a recording has a unit, which is not fitted to data; got {inputs[0]}; state x_scale, your units "
            "in a second, and x_loc, where time begins"
        )
    if config.missing_x and inputs:
        raise ValueError(
            f"inputs of a network of tables need no units, as its contexts standardise them; got {inputs[0]}; leave it "
            "out, or state x_loc and x_scale for contexts without rows"
        )
    units = NO_UNITS | _x_units(config, x, stated) | _y_units(config, y, stated)
    durations = _of_durations(x, *stated[:3]), _of_durations(y, *stated[3:])
    if any(durations):
        units["user_durations"] = durations
    return dataclasses.replace(config, **units)


def _of_durations(*given: object) -> bool:
    """Whether data, or numbers that are stated, hold durations; lists and dicts are looked into."""
    for each in given:
        if isinstance(each, Mapping | list | tuple):
            found = _of_durations(*(each.values() if isinstance(each, Mapping) else each))
        else:
            number = day_of(each)
            found = holds_durations(each) or (number is not None and not number[1])
        if found:
            return True
    return False


def _check_one_way(axis: str, data: object, **stated: object) -> None:
    given = [name for name, value in stated.items() if value is not None]
    given = ([axis] if data is not None else []) + given
    if len(given) > 1 and set(given) != {f"{axis}_loc", f"{axis}_scale"}:
        ways = "data, or x_range, or x_loc and x_scale" if axis == "x" else "data, or y_loc and y_scale"
        raise ValueError(f"the units of {axis} must be given in one way, {ways}; got {given}")


def _x_units(config: ModelConfig, x: object, stated: Stated) -> dict[str, Any]:
    dim_x = config.dim_x
    if x is not None:
        columns, dates = _pooled("x", x, dim_x, lambda _, part: part)
        pairs: list[Range | None] = [_ends(f"column {i} of x", column) for i, column in enumerate(columns.unbind(-1))]
    elif stated.x_range is not None:
        pairs, dates = _stated_ranges(stated.x_range, dim_x)
    elif stated.x_loc is not None or stated.x_scale is not None:
        locs, dates = _stated_numbers("x_loc", stated.x_loc, dim_x, 0.0, config.missing_x)
        scales, _ = _stated_numbers("x_scale", stated.x_scale, dim_x, 1.0, config.missing_x)
        return _as_fields("x", locs, scales, any(dates)) | {"user_dates": dates if any(dates) else None}
    else:
        return {}
    trained = [None] * dim_x if config.x_range is None else pairs_of(config.x_range, dim_x)
    maps = [_onto(f"column {i} of x", *both) for i, both in enumerate(zip(pairs, trained, strict=True))]
    locs, scales = map(list, zip(*maps, strict=True))
    fields = _as_fields("x", locs, scales, any(dates))
    return fields | {"user_dates": dates if any(dates) else None}


def _ends(name: str, column: Tensor) -> Range:
    """The smallest and the largest of the numbers in a column; NaN is skipped."""
    low, high = torch.aminmax(_several(name, column, "to be mapped onto a range", "x_range=(low, high)"))
    return low.item(), high.item()


def _several(name: str, column: Tensor, purpose: str, stated: str) -> Tensor:
    """The numbers of a column that are not NaN; raises ValueError unless they are finite and at least two."""
    column = column[~column.isnan()]
    if len(column) < 2 or not bool(column.isfinite().all()):
        wrong = f"{len(column)} of them" if len(column) < 2 else "infinite ones"
        raise ValueError(
            f"{name} must hold at least 2 finite numbers, {purpose}; got {wrong}; give more data, or state {stated}"
        )
    return column


def _onto(name: str, own: Range | None, trained: Range | None) -> tuple[float, float]:
    """Location and scale that put a range of the user's onto the trained one; 0 and 1 where `None` is stated."""
    if own is None:
        return 0.0, 1.0
    if trained is None or trained[0] == trained[1]:
        have = "does not declare its trained range" if trained is None else f"was trained at {trained[0]:g} only"
        raise ValueError(f"the network {have}, so that {name} cannot be mapped onto it; state x_loc and x_scale")
    if not own[0] < own[1]:
        raise ValueError(f"{name} must range from a lower to a higher number; got {list(own)}; state x_loc and x_scale")
    scale = (own[1] - own[0]) / (trained[1] - trained[0])
    return own[0] - scale * trained[0], scale


def _y_units(config: ModelConfig, y: object, stated: Stated) -> dict[str, Any]:
    real = [isinstance(kind, Real) for kind in config.kinds]
    if y is not None:
        if not any(real):
            raise ValueError("y must be a real number to have units; the network's outcomes are categories or counts")
        prepare = functools.partial(_outcomes, config)
        columns, dates = _pooled("y", y, config.dim_y, prepare, flat=config.dim_y is None)
        if any(dates):
            raise ValueError("y must hold numbers; got dates; dates can be inputs, x")
        maps = [
            _by_moments(f"dimension {d} of y" if len(real) > 1 else "y", columns[:, d], config, d)
            if each
            else (0.0, 1.0)
            for d, each in enumerate(real)
        ]
        locs, scales = map(list, zip(*maps, strict=True))
        return _as_fields("y", locs, scales)
    if stated.y_loc is None and stated.y_scale is None:
        return {}
    locs, _ = _stated_numbers("y_loc", stated.y_loc, len(real), 0.0)
    scales, _ = _stated_numbers("y_scale", stated.y_scale, len(real), 1.0)
    for d, each in enumerate(real):
        if not each and (locs[d], scales[d]) != (0.0, 1.0):
            have = "the network's outcome is" if len(real) == 1 else f"dimension {d} of the network's outcome is"
            raise ValueError(
                f"y_loc and y_scale must be for real numbers; {have} {config.kinds[d].values}, which has no units; "
                "write None for such a dimension"
            )
    return _as_fields("y", locs, scales)


def _by_moments(name: str, column: Tensor, config: ModelConfig, d: int) -> tuple[float, float]:
    """Location and scale that put mean and standard deviation of data onto the network's own; NaN is skipped."""
    column = _several(name, column, "for a standard deviation", "y_loc and y_scale")
    mean, sd = column.mean().item(), column.std().item()
    if not sd > 0:
        raise ValueError(f"{name} must vary, to have a standard deviation above 0; got equal values; state y_scale")
    scale = sd / (config.y_scale[d] if config.y_scale else 1.0)
    return mean - scale * (config.y_loc[d] if config.y_loc else 0.0), scale


def _outcomes(config: ModelConfig, name: str, part: Any) -> Any:
    """Outcomes with their dimensions in the order of the network's sites, as `condition` takes them."""
    table = None if isinstance(part, Mapping) else read_table(name, part)
    if table is None:
        return stack_sites(part, config.outcome)
    if config.dim_y is None and columns_of(part) is not None and len(table.labels) > 1:
        raise several_columns(name, table)
    return in_site_order(name, table, config.outcome)


def _as_fields(axis: str, locs: Sequence[float], scales: Sequence[float], dated: bool = False) -> dict[str, Any]:
    """Fields of the configuration; none where every number stays what it is, and none is a date."""
    if not dated and all(loc == 0 for loc in locs) and all(scale == 1 for scale in scales):
        return {}
    return {f"user_{axis}_loc": tuple(locs), f"user_{axis}_scale": tuple(scales)}


def _pooled(
    name: str, data: object, dim: int | None, prepare: Callable[[str, Any], Any], flat: bool = False
) -> tuple[Tensor, tuple[bool, ...]]:
    """All rows `(rows, D)` of data or of a list of them, float64 on the CPU, and which columns are dates."""
    pieces = data if isinstance(data, list | tuple) else [data]
    common_kinds(name, data)
    rows, dates = [], (False,) * (dim or 1)
    for i, piece in enumerate(pieces):
        which = f"{name}[{i}]" if isinstance(data, list | tuple) else name
        numbers, found = _rows(which, piece, dim, prepare, flat)
        rows.append(numbers)
        dates = tuple(a or b for a, b in zip(dates, found, strict=True))
    if not rows:
        raise ValueError(f"{name} must hold data; got an empty list")
    return torch.cat(rows), dates


def _rows(
    name: str, piece: Any, dim: int | None, prepare: Callable[[str, Any], Any], flat: bool
) -> tuple[Tensor, tuple[bool, ...]]:
    columns = dim or 1
    if isinstance(piece, Mapping):
        piece = {site: _as_tensor(f"{name}[{site!r}]", value)[0] for site, value in piece.items()}
    value, dates = _as_tensor(name, prepare(name, piece))
    if flat or (value.dim() == 1 and columns == 1):
        return value.reshape(-1, 1), dates[:1]
    if value.dim() < 2 or value.shape[-1] != columns:
        raise ValueError(f"{name} must have {columns} columns, the last dimension; got shape {tuple(value.shape)}")
    return value.reshape(-1, columns), dates


def _as_tensor(name: str, value: Any) -> tuple[Tensor, tuple[bool, ...]]:
    """A copy in float64 on the CPU, and which columns are dates."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(
                f"{name} must be data, as units are numbers and carry no gradient; got a tensor that requires "
                f"gradients; use {name}.detach()"
            )
        if value.is_complex():
            raise ValueError(f"{name} must hold real numbers; got {value.dtype}")
        return value.double().cpu(), (False,) * (value.shape[-1] if value.dim() > 1 else 1)
    table = value if isinstance(value, Table) else read_table(name, value)
    if table is None:
        raise ValueError(
            f"{name} must be a tensor, an array or a table, or a list of them; got {type(value).__name__}; ranges and "
            "numbers are stated by x_range, x_loc, x_scale, y_loc and y_scale"
        )
    return torch.from_numpy(np.asarray(table.numbers, order="C")), table.dates


def _stated_ranges(stated: Any, dim_x: int) -> tuple[list[Range | None], tuple[bool, ...]]:
    """The stated range of every column, and which are of dates."""
    rule = (
        f"x_range must be a pair (low, high) of numbers or dates, or a tuple of {dim_x} pairs, None for a column as is"
    )
    if not isinstance(stated, tuple | list):
        raise ValueError(f"{rule}; got {stated!r}")
    single = len(stated) == 2 and not any(each is None or isinstance(each, tuple | list) for each in stated)
    each = [stated] * dim_x if single else list(stated)
    fits = len(each) == dim_x and all(
        pair is None or (isinstance(pair, tuple | list) and len(pair) == 2) for pair in each
    )
    if not fits:
        raise ValueError(f"{rule}; got {stated!r}")
    ends = [None if pair is None else [_number("x_range", end) for end in pair] for pair in each]
    dates = tuple(pair is not None and any(date for _, date in pair) for pair in ends)
    return [None if pair is None else (pair[0][0], pair[1][0]) for pair in ends], dates


def _stated_numbers(
    name: str, stated: Any, dim: int, default: float, fewer: bool = False
) -> tuple[list[float], tuple[bool, ...]]:
    """A stated number for every dimension, `default` where none is, and which of them are dates.

    `fewer` is for networks of tables, which take 1 to D_x columns: the last ones may be left out.
    """
    several = isinstance(stated, tuple | list) or (getattr(stated, "ndim", 0) > 0 and hasattr(stated, "__array__"))
    each = list(stated) if several else [stated] * dim
    if fewer and each:
        each += [None] * (dim - len(each))
    if len(each) != dim:
        raise ValueError(f"{name} must be one number, or {dim} of them; got {len(each)}")
    numbers = [(default, False) if value is None else _number(name, value) for value in each]
    if name.endswith("scale") and any(date for _, date in numbers):
        raise ValueError(f"{name} must be a number or a duration, e.g. pd.Timedelta; got the date {stated!r}")
    if name.endswith("scale") and not all(value > 0 for value, _ in numbers):
        raise ValueError(f"{name} must be positive; got {stated!r}")
    return [value for value, _ in numbers], tuple(date and name == "x_loc" for _, date in numbers)


def _number(name: str, value: Any) -> tuple[float, bool]:
    """A finite number, or the days of a date or duration, and whether it is a date."""
    found = day_of(value)
    if found is None and isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"{name} must hold numbers; got a tensor that requires gradients; use {name}.detach()")
    if found is None and not isinstance(value, bool | str | np.bool_):
        try:
            found = float(value), False
        except (TypeError, ValueError, RuntimeError):  # of tensors of several numbers
            found = None
    if found is None or not np.isfinite(found[0]) or (found[1] and name[0] == "y"):
        remedy = "; write a date as pd.Timestamp(...)" if isinstance(value, str) and name[0] == "x" else ""
        kinds = "finite numbers or dates" if name[0] == "x" else "finite numbers"
        raise ValueError(f"{name} must hold {kinds}; got {value!r}{remedy}")
    return found

"""Data as they come, NumPy arrays, pandas Series and tables, xarray arrays, as tensors of float64.

Dates are days since 1970-01-01, durations are days. Neither pandas nor xarray is imported: what has columns is a table,
what gives an array is one. Torch tensors, and everything else, come back as they are and are checked elsewhere. Knows
nothing of what a network does with the numbers.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_arbuf.inference.dates import days
from pyro_arbuf.inference.outcome_sites import stack_sites
from pyro_arbuf.inference.same_rows import check_same_rows
from pyro_arbuf.network.network import Network

NUMERIC = "iufb"  # kinds of NumPy's dtypes
CODES = "code categories as 0, 1, ..., e.g. by .map({'no': 0, 'yes': 1}).astype(int)"
REMEDY = "convert it, by pd.to_numeric, pd.to_datetime or, for categories, pd.get_dummies, or leave the column out"


class Table(NamedTuple):
    """Numbers out of a user's array or table.

    Attributes:
        numbers: Of the shape of what was given, float64, a copy; NaN where a value is missing.
        dates: Whether each column (the last dimension; one where there is one dimension) holds dates.
        labels: Names of a table's columns, or of the last dimension of an xarray array; empty for other arrays.
    """

    numbers: np.ndarray
    dates: tuple[bool, ...]
    labels: tuple[Any, ...] = ()


def read_table(name: str, value: object) -> Table | None:
    """Numbers of an array or a table; `None` for everything else, torch tensors among it.

    Raises:
        ValueError: If columns hold neither numbers nor dates; names them.
    """
    if isinstance(value, Tensor | list | tuple | Mapping | np.generic | str | type):
        return None
    columns = columns_of(value)
    if columns is not None:
        labels, parts = tuple(columns), _columns(value)
        _check_kinds(name, labels, parts)
        read = [_numbers(f"column {label!r} of {name}", part) for label, part in zip(labels, parts, strict=True)]
        numbers = np.stack([part for part, _ in read], -1) if read else np.empty((len(parts), 0))
        return Table(numbers, tuple(date for _, date in read), labels)
    if not (hasattr(value, "__array__") and hasattr(value, "dtype")):
        return None
    numbers, date = _numbers(name, _as_array(value))
    return Table(numbers, (date,) * (numbers.shape[-1] if numbers.ndim > 1 else 1), coordinate_labels(value))


def columns_of(value: object) -> Any:
    """Names of a table's columns; `None` for what is no table: of xarray and a Series `columns` may be data."""
    if hasattr(value, "dims") or getattr(value, "ndim", 2) != 2 or not hasattr(value, "to_numpy"):
        return None
    return getattr(value, "columns", None)


def coordinate_labels(value: object) -> tuple[str, ...]:
    """Names along the last dimension of an xarray array of several; empty for everything else."""
    dims, coords = getattr(value, "dims", ()), getattr(value, "coords", {})
    if len(dims) < 2 or dims[-1] not in coords:
        return ()
    names = np.asarray(coords[dims[-1]]).tolist()
    return tuple(names) if all(isinstance(name, str) for name in names) else ()


def kinds_of(value: object) -> tuple[str, ...]:
    """What each column of a table or an array holds, by its dtype; empty where nothing says so: of tensors.

    "numbers", "durations", "dates", "dates with a time zone", or "dates of NumPy", which may be in UTC.
    """
    if isinstance(value, Tensor | list | tuple | Mapping | np.generic | str | type):
        return ()
    if columns_of(value) is not None:
        return tuple(_kind(part) for part in _columns(value))
    shape = getattr(value, "shape", ())
    return (_kind(value),) * (shape[-1] if len(shape) > 1 else 1) if hasattr(value, "dtype") and shape else ()


def _kind(column: Any) -> str:
    kind = getattr(column.dtype, "kind", "O")
    if kind == "M" and not hasattr(column, "iloc"):
        return "dates of NumPy"
    if kind == "M":
        return "dates" if getattr(column.dtype, "tz", None) is None else "dates with a time zone"
    return "durations" if kind == "m" else "numbers"


def _columns(table: Any) -> list[Any]:
    if hasattr(table, "iloc"):
        return [table.iloc[:, i] for i in range(len(table.columns))]  # names may be there twice
    return [_as_array(table[label]) for label in table.columns]


def _as_array(column: Any) -> Any:
    """A column or an array as it is; of polars, whose dtypes are none that NumPy knows, an array of NumPy."""
    return column if hasattr(column.dtype, "kind") else np.asarray(column)


def _check_kinds(name: str, labels: tuple[Any, ...], columns: list[Any]) -> None:
    """Raises ValueError that names all columns which hold neither numbers nor dates, if there are several."""
    kinds = [getattr(column.dtype, "kind", "O") for column in columns]
    wrong = [i for i, kind in enumerate(kinds) if kind not in (*NUMERIC, "M", "m")]
    if len(wrong) > 1:
        dtypes = ", ".join(dict.fromkeys(str(columns[i].dtype) for i in wrong))
        raise ValueError(
            f"the columns {[labels[i] for i in wrong]} of {name} must hold numbers or dates; got the dtype {dtypes}; "
            f"{REMEDY}"
        )


def _numbers(name: str, value: Any) -> tuple[np.ndarray, bool]:
    """Numbers of one column or array, and whether they are dates."""
    if isinstance(value, np.ma.MaskedArray):
        if value.dtype.kind in "mM":
            value = np.where(value.mask, np.array("NaT", value.dtype), value.data)
        else:
            value = np.where(value.mask, np.nan, value.data.astype(np.float64))
    dtype = value.dtype
    kind = getattr(dtype, "kind", "O")
    if kind in ("M", "m"):
        if getattr(dtype, "tz", None) is not None:
            value = value.to_numpy(dtype="datetime64[us]")  # in UTC
        return days(np.asarray(value)), kind == "M"
    if kind not in NUMERIC:
        kinds = "numbers" if name.startswith("y") else "numbers or dates"
        remedy = _to_numbers(value) or (CODES if name.startswith("y") else REMEDY)
        raise ValueError(f"{name} must hold {kinds}; got the dtype {dtype}; {remedy}")
    if hasattr(dtype, "na_value"):  # pandas' own dtypes, whose missing values are no floats
        value = value.to_numpy(dtype=np.float64, na_value=np.nan)
    return np.array(value, dtype=np.float64, order="C"), False


def _to_numbers(value: Any) -> str:
    """What makes numbers of a column whose dtype is none of numbers, where one call does it; else nothing."""
    if hasattr(value, "cat") and value.cat.categories.dtype.kind in NUMERIC:
        return "use .astype(float)"
    if hasattr(value, "dt") and hasattr(value.dt, "to_timestamp"):
        return "use .dt.to_timestamp()"
    held = [each for each in np.asarray(value, dtype=object).flat if type(each).__name__ not in ("NoneType", "NAType")]
    if held and all(isinstance(each, Real | Decimal) for each in held):
        return "use pd.to_numeric(...)" if hasattr(value, "iloc") else "use .astype(float)"
    return ""


def x_tensor(name: str, x: object, model: Network) -> object:
    """Inputs out of an array or a table as a tensor on the model's device; everything else as it is.

    Raises:
        ValueError: If a column holds neither numbers nor dates, or dates where the model's units have none.
    """
    if isinstance(x, Tensor):
        return x
    table = read_table(name, x)
    if table is None:
        return x
    known = model.config.user_dates or (False,) * model.config.dim_x
    if model.config.x_spacing is not None and model.config.user_x_scale is None and holds_durations(x, ("M", "m")):
        raise ValueError(
            f"{name} must hold seconds, as a network of recordings has them; got dates or durations; state their unit "
            "by net = net.in_units(x_loc=start, x_scale=pd.Timedelta('1s')), of durations without x_loc"
        )
    if holds_durations(x) and not (model.config.user_durations or (False,))[0] and not model.config.missing_x:
        raise ValueError(
            f"{name} must hold numbers in the network's unit; got durations; divide them by one, e.g. "
            f"{name} / np.timedelta64(1, 's'), or state it by net.in_units(x_scale=pd.Timedelta(...))"
        )
    wrong = [date for date, wanted in zip(table.dates, known, strict=False) if date != wanted]
    wrong = [] if model.config.missing_x else wrong  # of tables, whose columns may be in any units
    if any(wrong):
        raise ValueError(
            f"{name} must hold numbers, as the network's units are not of dates; got dates; let the network take them "
            "by net = net.in_units(x=[x_obs, x_new]), or state x_range by two dates"
        )
    if wrong:
        raise ValueError(
            f"{name} must hold dates, as the network's units do; got numbers; convert them, e.g. by pd.to_datetime, or "
            "give the days since 1970-01-01 as a torch tensor"
        )
    return _on_device(table, model)


def holds_durations(value: Any, kinds: tuple[str, ...] = ("m",)) -> bool:
    """Whether a column of a table or an array holds durations, or what other kinds of dtypes are asked for."""
    if isinstance(value, Tensor) or (not hasattr(value, "dtype") and columns_of(value) is None):
        return False
    columns = _columns(value) if columns_of(value) is not None else [_as_array(value)]
    return any(getattr(column.dtype, "kind", "O") in kinds for column in columns)


def y_tensor(name: str, y: object, model: Network) -> object:
    """Outcomes out of an array or a table as a tensor on the model's device; by site, as one tensor.

    Everything else, tensors among it, comes back as it is. A table of a network with several sites may have its columns
    in another order than the sites.

    Raises:
        ValueError: If a column holds no numbers, a table is given for one outcome, or sites do not fit.
    """
    if isinstance(y, Tensor):
        return y
    config = model.config
    if isinstance(y, Mapping):
        parts = {site: y_tensor(f"{name}[{site!r}]", value, model) for site, value in y.items()}
        return stack_sites(parts, config.outcome)
    table = read_table(name, y)
    if table is None:
        return y
    if any(table.dates):
        raise ValueError(f"{name} must hold numbers; got dates; dates can be inputs, x")
    stated = (config.user_durations or (False, False))[1]
    if holds_durations(y) and not stated and not config.standardised_by_context:
        raise ValueError(
            f"{name} must hold numbers in the network's unit; got durations; divide them by one, e.g. "
            f"{name} / np.timedelta64(1, 's'), or state it by net.in_units(y_scale=pd.Timedelta(...))"
        )
    whole = columns_of(y) is not None and not name.endswith(("']", '"]'))  # of a site, `stack_sites` says so
    if whole and config.dim_y is None:
        raise several_columns(name, table)
    if whole and config.dim_y != len(table.labels):
        raise ValueError(
            f"{name} must have the {config.dim_y} columns of the network's outcome{_named(config.outcome)}; got "
            f"{len(table.labels)}, {list(table.labels)}; choose them by {name}[[...]]"
        )
    return _on_device(in_site_order(name, table, config.outcome), model)


def several_columns(name: str, table: Table) -> ValueError:
    """The error of a table given for one outcome."""
    return ValueError(
        f"{name} must be one column, as the network has one outcome; got a table with the columns "
        f"{list(table.labels)}; take one of them, e.g. table[{table.labels[0]!r}], or, of draws, table.to_numpy()"
    )


def _named(sites: str | tuple[str, ...]) -> str:
    return f", {', '.join(sites)}" if isinstance(sites, tuple) else ""


def in_site_order(name: str, table: Table, sites: str | tuple[str, ...] | None) -> Table:
    """A table whose columns stand in the order of the sites, where its names are those of the sites, in any case.

    Columns of other names are taken as they stand.

    Raises:
        ValueError: If some names are those of sites, and one of these stands where another site is.
    """
    order = site_names(table.labels, sites)
    if order is not None:
        return Table(
            np.take(table.numbers, order, -1),
            tuple(table.dates[i] for i in order),
            tuple(table.labels[i] for i in order),
        )
    if not isinstance(sites, tuple) or len(table.labels) != len(sites):
        return table
    wanted = [site.casefold() for site in sites]
    for i, label in enumerate(str(label).casefold() for label in table.labels):
        if label in wanted and wanted[i] != label:
            raise ValueError(
                f"{name} must have columns called {', '.join(sites)}, or all of them in this order; got "
                f"{list(table.labels)}, of which {table.labels[i]!r} stands elsewhere; rename or reorder them"
            )
    return table


def site_names(labels: tuple[Any, ...], sites: str | tuple[str, ...] | None) -> list[int] | None:
    """Where each site stands among the names of columns, in any case; `None` where these are not those of the sites."""
    names = [str(label).casefold() for label in labels]
    wanted = [site.casefold() for site in sites] if isinstance(sites, tuple) else []
    if not names or len(set(wanted)) != len(wanted) or sorted(names) != sorted(wanted):
        return None
    return [names.index(site) for site in wanted]


def to_tensors(x: object, y: object, model: Network) -> tuple[Any, Any]:
    """Inputs and outcomes of a user as tensors, where they are arrays or tables; lists element by element."""
    check_same_rows(x, y)
    if isinstance(x, list | tuple) or isinstance(y, list | tuple):
        return _each(x_tensor, "x", x, model), _each(y_tensor, "y", y, model)
    return x_tensor("x", x, model), y_tensor("y", y, model)


def _each(convert: Any, name: str, value: object, model: Network) -> object:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return convert(name, value, model)
    return [convert(f"{name}[{i}]", part, model) for i, part in enumerate(value)]


def column_hint(name: str, given: object, columns: int) -> str:
    """What helps where what is given has another number of columns than the network: at most a missing dimension."""
    labels = columns_of(given)
    if labels is not None and not len(labels):
        return "; the table has no column: give at least one"
    if labels is not None:
        return f"; the table has the columns {list(labels)}: choose {columns} of them by {name}[[...]]"
    number = getattr(given, "ndim", 0)
    if number == 2 and tuple(getattr(given, "shape", ()))[:1] == (columns,):
        return f"; its first dimension is {columns}: use {name}.T if it is transposed"
    if columns > 1 or number == 0:
        return ""
    one = "to_numpy()[:, None]" if hasattr(given, "to_numpy") else "unsqueeze(-1)"
    one = "to_frame()" if hasattr(given, "to_frame") else one
    one = f"{name}[:, None]" if isinstance(given, np.ndarray) else f"{name}.{one}"
    if number == 1:
        return f": use {one}"
    one = f"{name}[..., None]" if isinstance(given, np.ndarray) else one
    width = getattr(given, "shape", (0,))[-1]
    return f": give one of the {width} columns, or, where they are points of several data sets, {one}"


def _on_device(table: Table, model: Network) -> Tensor:
    return torch.from_numpy(np.asarray(table.numbers, order="C")).to(next(model.parameters()).device)

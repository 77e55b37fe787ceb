"""Whether tables of inputs and outcomes hold the same rows in the same order, by their indices or coordinates."""

from typing import Any

import numpy as np

from pyro_arbuf.user_warnings import warn

MANY = 0.5  # of the rows: so many labels are common where tables were made from one


def row_labels(value: object) -> Any:
    """The index of a table or a Series of pandas; `None` for everything else."""
    index = getattr(value, "index", None)
    return index if hasattr(value, "iloc") and hasattr(index, "equals") else None


def check_same_rows(x: object, y: object) -> None:
    """Raises ValueError where tables of inputs and outcomes, or their indices, hold the same rows in different orders.

    Rows are taken as they stand. Other differences of indices are warned of, but where one of them counts from 0, as
    that of a new table does. Where most labels are common and in order, as `dropna` leaves them, that is no excuse.
    """
    if isinstance(x, list | tuple) and isinstance(y, list | tuple):
        for one, other in zip(x, y, strict=False):
            check_same_rows(one, other)
        return
    if all(isinstance(getattr(part, "dims", None), tuple) and hasattr(part, "coords") for part in (x, y)):
        _check_same_dims(x, y)
    indices: list[Any] = [_index_of(x, 2), _index_of(y, 1)]
    rows, others = indices
    if not all(hasattr(index, "isin") and hasattr(index, "equals") for index in indices):
        return
    if len(rows) != len(others) or rows.equals(others):
        return
    if bool(rows.isin(others).all()) and bool(others.isin(rows).all()):
        raise ValueError(
            "x and y must have their rows in the same order; got tables with the same index in different orders; give "
            "y.loc[x.index], or to_numpy() of both if the index does not matter"
        )
    if not all(hasattr(index, "nlevels") for index in indices):  # of pandas
        return
    common = rows.isin(others).mean()
    shifted = common > MANY and rows.is_monotonic_increasing and others.is_monotonic_increasing
    if shifted or not (_numbered(rows) or _numbered(others)):
        label = [*rows[~rows.isin(others)], *others[~others.isin(rows)]][0]
        warn(
            f"x and y have as many rows, and indices that differ: {label!r} is in one of them alone; rows are paired "
            "as they stand; drop missing rows from one table of both, or give to_numpy() of both",
            UserWarning,
        )


def _index_of(value: Any, num_dims: int) -> Any:
    """The index of a table, or of the rows of an array of xarray of so many dimensions; everything else as it is."""
    if hasattr(value, "iloc"):
        return row_labels(value)
    if hasattr(value, "dims"):
        dims, indexes = value.dims, getattr(value, "indexes", {})
        return indexes.get(dims[0]) if isinstance(dims, tuple) and len(dims) == num_dims else None
    return value


def _numbered(index: Any) -> bool:
    """Whether labels are 0, 1, ..., as those of a new table are."""
    return np.array_equal(np.asarray(index), np.arange(len(index)))


def _check_same_dims(x: Any, y: Any) -> None:
    """Raises ValueError where arrays of xarray have the same dimensions, or the same rows, in different orders."""
    rows = [dim for dim in x.dims[:-1] if dim in y.dims]
    if rows != [dim for dim in y.dims if dim in rows]:
        raise ValueError(
            f"x and y must have their dimensions in the same order; got {x.dims} and {y.dims}; use .transpose of one"
        )
    for dim in rows:
        if dim in x.coords and dim in y.coords:
            own, other = np.asarray(x.coords[dim]), np.asarray(y.coords[dim])
            if not np.array_equal(own, other) and np.array_equal(np.sort(own), np.sort(other)):
                raise ValueError(
                    f"x and y must have their rows in the same order; got coordinates of {dim!r} in different orders; "
                    f"give y.sel({dim}=x.{dim})"
                )

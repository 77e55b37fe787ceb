"""What tables say of their columns, names and kinds, and whether those of targets are those of their context."""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from pyro_arbuf.inference.data import columns_of, coordinate_labels, kinds_of, site_names
from pyro_arbuf.network.config import ModelConfig


class Labels(NamedTuple):
    """What the observations of a context said of their columns; empty where nothing says so, as of tensors.

    Attributes:
        columns: Names of the inputs.
        kinds: Of the inputs, as `kinds_of` has them.
        outcomes: Names of the dimensions of the outcome, where they are not those of its sites.
    """

    columns: tuple[Any, ...] = ()
    kinds: tuple[str, ...] = ()
    outcomes: tuple[Any, ...] = ()


NO_LABELS = Labels()


def read_labels(x: object, y: object, config: ModelConfig) -> Labels:
    """What observations say of their columns; of lists of them what the first one says.

    Raises:
        ValueError: If tables of a list differ in kinds, or in names: for a network of tables in all of them, for others
            in their order.
    """
    return Labels(_names_of("x", x, config.missing_x), common_kinds("x", x), _outcomes_of(y, config))


def check_columns(x: Tensor, given: object, labels: Labels, number: int | None, config: ModelConfig) -> None:
    """Checks that targets have the columns of their context.

    The columns of a network that is none of tables are its own: new names say nothing, known ones in another order do.

    Args:
        x: `(*batch, M, D)` inputs of the targets.
        given: What the user gave for them, perhaps a table with names.
        labels: Of the context.
        number: Columns of the context; `None` = it has no rows, and takes any.
        config: Of the network.

    Raises:
        ValueError: If number, names, order or kinds differ.
    """
    if number is None:
        return
    _check_turned("x", given, labels.columns)
    own = _names_of("x", given, config.missing_x)
    _check_names("x", own, labels.columns, "the context", config.missing_x)
    if config.missing_x and x.shape[-1] != number:
        named = f", {list(labels.columns)}" if labels.columns else ""
        raise ValueError(
            f"x must have the {number} columns of the context{named}; got {x.shape[-1]}; give targets the columns that "
            "net.condition was given, in the same order"
        )
    _check_kinds("x", kinds_of(given), labels.kinds, "the context")


def check_dimensions(given: object, labels: Labels, config: ModelConfig) -> None:
    """Checks that the names of outcomes are not those of the context in another order.

    Raises:
        ValueError: If they are.
    """
    _check_turned("y", given, labels.outcomes)
    _check_names("y", _outcomes_of(given, config), labels.outcomes, "the context", False)


def _names_of(name: str, given: object, strict: bool) -> tuple[Any, ...]:
    if isinstance(given, list | tuple):
        first: tuple[Any, ...] = ()
        for i, each in enumerate(given):
            found = _names_of(name, each, strict)
            _check_names(f"{name}[{i}]", found, first, "a table before it", strict)
            first = first or found
        return first
    columns = columns_of(given)
    return coordinate_labels(given) if columns is None else tuple(columns)


def _outcomes_of(y: object, config: ModelConfig) -> tuple[Any, ...]:
    """Names of the dimensions of an outcome, but for those of its sites, which are put in order."""
    if config.dim_y is None:
        return ()
    first = y[0] if isinstance(y, list | tuple) and len(y) else y
    if site_names(_names_of("y", first, False), config.outcome) is not None:
        return ()
    return _names_of("y", y, False)


def common_kinds(name: str, given: object) -> tuple[str, ...]:
    """What each column holds, see `kinds_of`, of data or of a list of them.

    Raises:
        ValueError: If data of a list differ.
    """
    if not isinstance(given, list | tuple):
        return kinds_of(given)
    first: tuple[str, ...] = ()
    for i, each in enumerate(given):
        found = kinds_of(each)
        _check_kinds(f"{name}[{i}]", found, first, "a table before it")
        first = found if not first or "dates of NumPy" in first else first
    return first


def _check_turned(name: str, given: Any, expected: tuple[Any, ...]) -> None:
    """Raises ValueError where an array of xarray has the columns of the context along another dimension."""
    dims, coords = getattr(given, "dims", ()), getattr(given, "coords", {})
    for dim in dims[:-1] if expected and isinstance(dims, tuple) else ():
        if dim in coords and tuple(np.asarray(coords[dim]).tolist()) == expected:
            raise ValueError(
                f"{name} must have its columns along the last dimension; got an array with those of the context along "
                f"{dim!r}; use {name}.transpose(..., {dim!r})"
            )


def _check_kinds(name: str, kinds: tuple[str, ...], expected: tuple[str, ...], where: str) -> None:
    pairs = list(zip(kinds, expected, strict=True)) if len(kinds) == len(expected) else []
    column = next((i for i, (own, other) in enumerate(pairs) if not _is_same_kind(own, other)), None)
    if column is None:
        return
    have, want = (kind.removesuffix(" of NumPy") for kind in pairs[column])
    remedy = "convert one of them, e.g. by pd.to_datetime, or give days since 1970-01-01 as torch tensors"
    if "durations" in (have, want):
        remedy = "give durations in both, or days in both, by x / pd.Timedelta('1D')"
    if have.startswith("dates") and want.startswith("dates"):
        remedy = "give all of them a time zone, by .dt.tz_localize, or none"
    raise ValueError(f"{name}[..., {column}] must hold {want}, as {where} does; got {have}; {remedy}")


def _is_same_kind(own: str, other: str) -> bool:
    of_dates = own.startswith("dates") and other.startswith("dates")
    return own == other or (of_dates and "dates of NumPy" in (own, other))


def _check_names(name: str, names: tuple[Any, ...], expected: tuple[Any, ...], where: str, strict: bool) -> None:
    if not names or not expected or names == expected or not (strict or set(names) == set(expected)):
        return
    raise ValueError(
        f"{name} must have the columns of {where} in the same order, {list(expected)}; got {list(names)}; choose them "
        f"by {name}[{list(expected)}], of an xarray array by {name}.sel"
    )

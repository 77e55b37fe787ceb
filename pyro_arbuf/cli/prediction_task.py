"""What `pyro-arbuf predict` asks: which rows of a table are observed, which are to be predicted, which are held out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_arbuf.cli.csv_table import Columns, CsvTable, parse_date, parse_number
from pyro_arbuf.network.config import ModelConfig

MOST_TARGETS = 500  # networks are trained on some hundred, and each block of them is encoded anew for every draw
YES = {"1", "true", "yes", "y", "x", "test"}
NO = {"0", "false", "no", "n", "", "train"}
FORMS = (r"\d{4}-\d\d(?:-\d\d)?", *(rf"\d{{4}}-\d\d-\d\d[T ]\d\d:\d\d{rest}" for rest in ("", r":\d\d(?:\.\d+)?")))
DATE_RANGES = [
    re.compile(rf"(?P<first>{form}):(?P<last>{form})(?::(?P<number>\d*\.?\d+)(?P<unit>[hdmy]?))?") for form in FORMS
]
MICROSECONDS = {"h": 3_600_000_000, "d": 86_400_000_000}
MONTHS = {"m": 1, "y": 12}


@dataclass(frozen=True)
class Task:
    """Rows by what they are for.

    Attributes:
        x_seen: Inputs of the N observed rows.
        y_seen: Their outcomes.
        x_new: Inputs of the M targets: rows of the file in their order, then those of `--at`.
        y_new: Outcomes of the targets, known of those that are held out, NaN of the others.
        held_out: Which of the targets are held out, `(M,)` bool.
    """

    x_seen: Columns
    y_seen: Columns
    x_new: Columns
    y_new: Columns
    held_out: np.ndarray


def make_task(
    table: CsvTable, x: Sequence[str], y: Sequence[str], at: Sequence[str], held_out: str | None, config: ModelConfig
) -> Task:
    """Sorts the rows of a table.

    Args:
        table: The user's.
        x: Names of the columns that are inputs.
        y: Names of those that are outcomes.
        at: Values and ranges of the one input that are predicted besides; see `values_at`.
        held_out: Number of the last observed rows that are held out, or the name of a column that says so.
        config: Of the network.

    Raises:
        ValueError: If the columns do not fit the network, a cell is missing that is needed, or there is no target.
    """
    x, y = ([name.strip() for name in names] for names in (x, y))  # as those of the table are
    _check_numbers(x, y, at, config)
    inputs, outcomes = table.columns(x), table.columns(y)
    _check_outcomes(table, outcomes)
    missing = np.asarray(outcomes.missing.any(1))
    if not config.missing_x:
        _check_inputs(table, inputs)
    out = _held_out(table, held_out, ~missing)
    new = missing | out
    x_new, y_new, held = inputs.rows(new), outcomes.rows(new), out[new]
    if at:
        more = Columns({x[0]: values_at(at, inputs[x[0]])})
        none = Columns({name: np.full(len(more), np.nan) for name in y})
        x_new, y_new = x_new.followed_by(more), y_new.followed_by(none)
        held = np.concatenate([held, np.zeros(len(more), bool)])
    if not len(x_new):
        raise ValueError(
            f"{table.path} leaves nothing to predict, as every row has its {', '.join(y)}; leave cells empty, or give "
            "--at or --held-out"
        )
    if len(x_new) > MOST_TARGETS:
        raise ValueError(
            f"at most {MOST_TARGETS} targets are predicted jointly; got {len(x_new)}; take a coarser step, or fewer"
        )
    return Task(inputs.rows(~new), outcomes.rows(~new), x_new, y_new, held)


def _check_numbers(x: Sequence[str], y: Sequence[str], at: Sequence[str], config: ModelConfig) -> None:
    """Raises ValueError unless the numbers of columns are those that the network takes."""
    most, dim_y = config.dim_x, config.dim_y or 1
    wanted = f"1 to {most}" if config.missing_x else str(most)
    if not (1 <= len(x) <= most if config.missing_x else len(x) == most):
        raise ValueError(f"--x must name {wanted} columns for this network; got {len(x)}: {', '.join(x)}")
    if len(y) != dim_y:
        raise ValueError(f"--y must name {dim_y} columns for this network; got {len(y)}: {', '.join(y)}")
    twice = sorted({name for name in [*x, *y] if [*x, *y].count(name) > 1})
    if twice:
        raise ValueError(f"--x and --y must name each column once; got {twice[0]!r} twice")
    if at and len(x) > 1:
        raise ValueError(
            f"--at is for one --x column; got {len(x)}; add rows to the file whose {', '.join(y)} is left empty"
        )


def _check_outcomes(table: CsvTable, outcomes: Columns) -> None:
    for name in outcomes.columns:
        if outcomes[name].dtype.kind == "M":
            raise ValueError(f"column {name!r} of {table.path} must hold numbers, as it is an outcome; got dates")
    missing = outcomes.missing
    for row in np.flatnonzero(missing.any(1) & ~missing.all(1))[:1]:
        name = outcomes.columns[int(missing[row].argmax())]
        raise ValueError(
            f"line {table.lines[row]} of {table.path} must have all its outcomes, or none; column {name!r} is empty"
        )


def _check_inputs(table: CsvTable, inputs: Columns) -> None:
    for row, column in np.argwhere(inputs.missing)[:1]:
        raise ValueError(
            f"column {inputs.columns[column]!r} of {table.path} must have a value in every row; line "
            f"{table.lines[row]} has none; fill it in, or take the row out"
        )


def _held_out(table: CsvTable, held_out: str | None, observed: np.ndarray) -> np.ndarray:
    """Which rows are held out, `(rows,)` bool."""
    out = np.zeros(len(observed), bool)
    if held_out is None:
        return out
    if held_out.isdecimal():
        number = int(held_out)
        if not 1 <= number <= observed.sum():
            raise ValueError(f"--held-out must be from 1 to the {observed.sum()} observed rows; got {number}")
        out[np.flatnonzero(observed)[-number:]] = True
        return out
    for row, cell in enumerate(table.text(held_out)):
        if cell.lower() not in YES | NO:
            raise ValueError(
                f"column {held_out!r} of {table.path} must say 1 or 0, whether a row is held out; line "
                f"{table.lines[row]} holds {cell!r}"
            )
        out[row] = cell.lower() in YES and observed[row]
    if not out.any():
        raise ValueError(f"column {held_out!r} of {table.path} holds out no row whose outcome is known; write 1 in it")
    return out


def values_at(texts: Sequence[str], like: np.ndarray) -> np.ndarray:
    """Values of `--at`: numbers or dates, ranges first:last[:step] with both ends, and lists of them with commas.

    Args:
        texts: As the user wrote them.
        like: The column that they continue, which is of numbers or dates; a step of dates is in days, or a number with
            h, d, m or y: hours, days, months, years.

    Raises:
        ValueError: If one of them is no such thing.
    """
    dates = like.dtype.kind == "M"
    found = [_values(part.strip(), dates) for text in texts for part in text.split(",")]
    return np.concatenate(found).astype(like.dtype)


def _values(text: str, dates: bool) -> np.ndarray:
    try:
        return _finite(_dates(text) if dates else _numbers(text))
    except (ValueError, OverflowError):
        kind, example = "numbers", "2021:2030 or 0:1:0.1"
        if dates:
            kind, example = "dates", "2021-01-01:2021-12-31:7 in days or 2021-07-01:2025-07-01:1y, ends of one form"
        raise ValueError(
            f"--at must hold {kind}, or rising ranges of at most {MOST_TARGETS} values, {example}; got {text!r}"
        ) from None


def _numbers(text: str) -> np.ndarray:
    """A number, or a range of numbers."""
    first, *rest = [np.float64(parse_number(part)) for part in text.split(":")]
    if len(rest) > 2:
        raise ValueError
    return _range(first, *rest) if rest else np.array([first])


def _range(first: Any, last: Any, step: Any = 1.0) -> np.ndarray:
    """From the first to the last value, which is one of them where steps lead there."""
    if not step > step * 0:
        raise ValueError
    with np.errstate(over="ignore"):  # too many steps are refused
        steps = float((last - first) / step)
    if not 0 <= steps < MOST_TARGETS:
        raise ValueError
    return first + step * np.arange(int(steps + 1e-9) + 1)


def _dates(text: str) -> np.ndarray:
    """A date, or a range of dates whose ends are of one form: times have colons too."""
    found = next(filter(None, (pattern.fullmatch(text) for pattern in DATE_RANGES)), None)
    if found is None:
        return np.array([parse_date(text)])
    first, last = parse_date(found["first"]), parse_date(found["last"])
    number, unit = float(found["number"] or 1), found["unit"] or "d"
    if unit in MICROSECONDS:
        return _range(first, last, np.timedelta64(round(number * MICROSECONDS[unit]), "us"))
    if number % 1 or last < first:
        raise ValueError
    ends = [date.astype("datetime64[M]").astype(int) for date in (first, last)]
    months = _range(ends[0], ends[1], int(number) * MONTHS[unit]).astype("datetime64[M]")
    # The same day of each month, or its last one.
    length = (months + 1).astype("datetime64[D]") - months.astype("datetime64[D]")
    day, time = first.astype("datetime64[D]") - first.astype("datetime64[M]"), first - first.astype("datetime64[D]")
    steps = months.astype("datetime64[D]") + np.minimum(day, length - 1) + time
    return steps[steps <= last]


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError
    return values

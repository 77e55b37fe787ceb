"""CSV files: columns of numbers or dates; every message names the column and the line of the file.

Knows nothing of networks. A line is counted as an editor or a spreadsheet counts it; the header is line 1.
"""

import csv
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MISSING = {"", "na", "n/a", "nan", "nat", "null", "none"}  # in any case
DATE = re.compile(r"\d{4}-\d{2}(-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6}0*)?)?)?)?")  # to the microsecond
BOOLEANS = {"true": "1", "false": "0"}  # as pandas writes indicators; in any case
DELIMITERS = ",;\t|"


class Columns:
    """Named columns of equal length, float64 or datetime64: a table as networks take it.

    Args:
        columns: By name, `(rows,)` each.
    """

    ndim = 2

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self._columns = dict(columns)

    @property
    def columns(self) -> list[str]:
        """Names, in their order."""
        return list(self._columns)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def to_numpy(self) -> np.ndarray:
        """All columns, `(rows, D)` objects."""
        return np.stack([column.astype(object) for column in self._columns.values()], -1)

    def rows(self, which: np.ndarray) -> "Columns":
        """The rows that an index selects."""
        return Columns({name: column[which] for name, column in self._columns.items()})

    def followed_by(self, other: "Columns") -> "Columns":
        """These rows, then those of another table of the same columns."""
        return Columns({name: np.concatenate([self[name], other[name]]) for name in self.columns})

    @property
    def missing(self) -> np.ndarray:
        """Which cells are NaN or NaT, `(rows, D)` bool."""
        return np.stack([np.isnat(c) if c.dtype.kind == "M" else np.isnan(c) for c in self._columns.values()], -1)


@dataclass(frozen=True)
class CsvTable:
    """The cells of a CSV file.

    Attributes:
        path: The file.
        names: Of its columns.
        cells: By row, as text.
        lines: The line of the file that each row ends on.
    """

    path: Path
    names: tuple[str, ...]
    cells: list[list[str]]
    lines: list[int]

    def columns(self, names: Sequence[str]) -> Columns:
        """Columns by name, as numbers or dates; NaN or NaT where a cell is empty or says NA.

        Raises:
            ValueError: If there is no such column, or one holds neither numbers nor dates, or both.
        """
        return Columns({name: self._read(name) for name in names})

    def text(self, name: str) -> list[str]:
        """The cells of a column.

        Raises:
            ValueError: If there is no such column.
        """
        if name not in self.names:
            raise ValueError(f"{self.path} has no column {name!r}; its columns are: {', '.join(map(repr, self.names))}")
        index = self.names.index(name)
        return [row[index].strip() for row in self.cells]

    def _read(self, name: str) -> np.ndarray:
        cells = self.text(name)
        there = [cell.lower() not in MISSING for cell in cells]
        dates = next((bool(DATE.fullmatch(cell)) for cell, given in zip(cells, there, strict=True) if given), False)
        values = np.full(len(cells), np.datetime64("NaT", "us") if dates else np.nan)
        for i, cell in enumerate(cells):
            if there[i]:
                values[i] = self._value(name, cell, self.lines[i], dates)
        return values

    def _value(self, name: str, cell: str, line: int, date: bool) -> float | np.datetime64:
        try:
            value = parse_date(cell) if date else parse_number(BOOLEANS.get(cell.lower(), cell))
        except ValueError:
            other = "a date, where the rows before hold numbers" if not date and DATE.fullmatch(cell) else repr(cell)
            kind = "dates like 2021-12-31" if date else "numbers, or dates like 2021-12-31"
            raise ValueError(
                f"column {name!r} of {self.path} must hold {kind}; line {line} holds {other}; {self._hint(name, cell)}"
            ) from None
        if not date and np.isinf(value):
            raise ValueError(f"column {name!r} of {self.path} must hold finite numbers; line {line} holds {cell!r}")
        return value

    def _hint(self, name: str, cell: str) -> str:
        """What to do about a cell that holds no number and no date."""
        if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", cell):
            return f"write {cell.replace(',', '')} if commas stand between thousands, a point if one is decimal"
        if re.fullmatch(r"-?\d+,\d+", cell):
            return "write 3.5 for 3,5"
        if re.fullmatch(r"\d{1,2}([./_-])\d{1,2}\1\d{2,4}|\d{4}([./_])\d{1,2}(\2\d{1,2})?", cell):
            return "write the year first, then month and day, with two digits each"
        if re.fullmatch(r".*:\d{2}\.\d{7,}", cell):
            return "write seconds with at most six decimals, as time is kept to the microsecond"
        if re.fullmatch(DATE.pattern + r"(Z|[+-]\d{2}:?\d{2})", cell):
            return "write dates without their time zone, all of them in one"
        if not any(re.search(r"\d", other) for other in self.text(name)):
            return "code categories of an outcome as 0, 1, ...; of an input, make a column of 0 and 1 for each category"
        return "leave the cell empty where it is missing"


def parse_number(text: str) -> float:
    """A number as files have them: Python's own may hold underscores, so that 2021_01 would be one.

    Raises:
        ValueError: If it is none.
    """
    if "_" in text:
        raise ValueError(f"{text!r} is no number")
    return float(text)


def parse_date(text: str) -> np.datetime64:
    """A date like 2021-12, 2021-12-31 or 2021-12-31T23:59:59, in microseconds.

    Raises:
        ValueError: If it is none.
    """
    if not DATE.fullmatch(text):
        raise ValueError(f"{text!r} is no date like 2021-12-31")
    return np.datetime64(text.replace(" ", "T"), "us")


def _delimiter_of(lines: Iterable[str]) -> str:
    """The one that stands most often in both the header and the first row; names in quotes may hold any of them."""
    unquoted = (re.sub(r'"[^"]*"', "", line) for line in lines)
    first = list(itertools.islice((line for line in unquoted if line.strip()), 2))
    return max(DELIMITERS, key=lambda delimiter: min((line.count(delimiter) for line in first), default=0))


def read_csv(path: Path) -> CsvTable:
    """Reads a CSV file with a header; cells are separated by commas, semicolons, tabs or bars.

    Raises:
        ValueError: If it cannot be read, has no header or no rows, or a row has other cells than the header.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            delimiter = _delimiter_of(file)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            rows = [(row, reader.line_num) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a CSV file in UTF-8 ({error})") from error
    if len(rows) < 2:
        raise ValueError(f"{path} must hold a line with the names of its columns, and rows; got {len(rows)} lines")
    names = tuple(name.strip() for name in rows[0][0])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} must name each column once; got {twice[0]!r} more than once in line {rows[0][1]}")
    for row, line in rows[1:]:
        if len(row) != len(names):
            raise ValueError(f"line {line} of {path} must have {len(names)} cells, as its header has; got {len(row)}")
    return CsvTable(Path(path), names, [row for row, _ in rows[1:]], [line for _, line in rows[1:]])

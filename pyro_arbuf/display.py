"""Small tables, as text and as HTML: what objects and commands show of themselves instead of their tensors."""

import html
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Table = Mapping[str, Sequence[str]]  # cells by heading
MOST_ROWS = 12


def align(table: Table, left: Collection[str] = ()) -> str:
    """Columns of cells under their headings, as lines; right-justified but for those named in `left`."""
    widths = {name: max(len(name), *map(len, cells)) if len(cells) else len(name) for name, cells in table.items()}

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if name in left else cell.rjust(width)
            for cell, (name, width) in zip(cells, widths.items(), strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(table)), *(line(row) for row in zip(*table.values(), strict=True))])


def as_html(title: str, table: Table) -> str:
    """A title above a table of HTML, as notebooks show it."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table)
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
        for row in zip(*table.values(), strict=True)
    )
    return f"<div><strong>{html.escape(title)}</strong><table><tr>{head}</tr>{rows}</table></div>"


def facts(lines: Mapping[str, str]) -> Table:
    """A table of one fact a row."""
    return {"": list(lines), "value": list(lines.values())}


def cells(values: Any) -> list[str]:
    """The numbers of a tensor, row after row, in five digits."""
    return [f"{value:.5g}" for value in values.detach().flatten().tolist()]


def labels(shape: Sequence[int]) -> list[str]:
    """Indices of the elements of a tensor: "0", or "(0, 1)" of several dimensions; one empty text for a number."""
    found = [", ".join(map(str, index)) for index in itertools.product(*map(range, shape))]
    return [f"({label})" for label in found] if len(shape) > 1 else found


def shorten(table: Table) -> Table:
    """The first rows of a table, and how many there are more."""
    number = len(next(iter(table.values())))
    if number <= MOST_ROWS:
        return table
    more = [f"... {number - MOST_ROWS} more", *[""] * (len(table) - 1)]
    return {name: [*cells[:MOST_ROWS], extra] for (name, cells), extra in zip(table.items(), more, strict=True)}


def shown_as_table(summarise: Callable[[Any], tuple[str, Table]]) -> Callable[[type[T]], type[T]]:
    """Decorates a class of results: its `repr` and its HTML are a title and a small table.

    Args:
        summarise: Title and table of an object.
    """

    def decorate(cls: type[T]) -> type[T]:
        def as_text(self: Any) -> str:
            title, table = summarise(self)
            return f"{title}\n{align(shorten(table), left=list(table)[:1])}"

        def as_html_(self: Any) -> str:
            title, table = summarise(self)
            return as_html(title, shorten(table))

        cls.__repr__ = as_text
        cls._repr_html_ = as_html_  # pyright: ignore[reportAttributeAccessIssue]
        return cls

    return decorate

"""Tables of text, as commands print them."""

from collections.abc import Collection, Mapping, Sequence


def align(table: Mapping[str, Sequence[str]], left: Collection[str] = ()) -> str:
    """Columns of cells under their headings, as lines; right-justified but for those named in `left`."""
    widths = {name: max(len(name), *map(len, cells)) if len(cells) else len(name) for name, cells in table.items()}

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if name in left else cell.rjust(width)
            for cell, (name, width) in zip(cells, widths.items(), strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(table)), *(line(row) for row in zip(*table.values(), strict=True))])

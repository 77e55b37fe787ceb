"""Sixteen tables of the prior that the network of tables is trained on, as a figure: the one in its card.

    python benchmarks/sixteen_tables.py --plot models/tabular/prior.png

Each panel is a table of 200 rows: its outcome against the column that is most correlated with it, coloured by the
second one. Of the lower half, series, the outcome is shown along the index of the rows. Prints a line of JSON.
"""

import json
from pathlib import Path

import matplotlib.figure
import torch
import tyro
from torch import Tensor

from pyro_arbuf.network.rows import column_ranks
from pyro_arbuf.priors.tabular import MAX_COLUMNS, tabular

NUM_ROWS, NUM_PANELS = 200, 8  # panels of each half


def is_series(x: Tensor) -> bool:
    """Whether the first column of a table `(rows, D)` is evenly spaced, as the index of half of the series is."""
    column = x[:, 0]
    spacing = column.sort().values.diff()
    return not column.isnan().any() and bool((spacing.std() < 0.01 * spacing.mean()) & (spacing.min() > 0))


def draw_tables(seed: int) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """The first eight tables drawn that are no series on an even grid, and the first eight that are."""
    generator = torch.Generator().manual_seed(seed)
    found: tuple[list[tuple[Tensor, Tensor]], ...] = ([], [])
    while min(map(len, found)) < NUM_PANELS:
        x, y = tabular(1, NUM_ROWS, generator)
        found[is_series(x[0])].append((x[0], y[0, :, 0]))
    return found[0][:NUM_PANELS], found[1][:NUM_PANELS]


def main(plot: Path, seed: int = 0) -> None:
    """Draws the figure.

    Args:
        plot: Where to write it.
        seed: Of the tables.
    """
    tables = [table for half in draw_tables(seed) for table in half]
    figure = matplotlib.figure.Figure(figsize=(12, 10), layout="constrained")
    for panel, (axes, (x, y)) in enumerate(zip(figure.subplots(4, 4).flat, tables, strict=True)):
        order = column_ranks(x[None], y[None, :, None])[0].argsort()
        shown = 0 if panel >= NUM_PANELS else int(order[0])
        others = [int(column) for column in order if column != shown]
        colour = x[:, others[0]].nan_to_num(0.0) if others else torch.zeros(NUM_ROWS)
        axes.scatter(x[:, shown], y, 6, colour)
        missing = ", cells missing" if x.isnan().any() else ""
        axes.set_title(f"{x.shape[1]} column{'s' * (x.shape[1] > 1)}{missing}", fontsize=9)
        axes.tick_params(labelsize=7)
    figure.supxlabel(f"upper half: the most telling of 1 to {MAX_COLUMNS} columns; lower half: the index of a series")
    figure.supylabel("outcome")
    figure.savefig(plot, dpi=80)
    print(json.dumps({"plot": str(plot), "tables": len(tables)}))


if __name__ == "__main__":
    tyro.cli(main)

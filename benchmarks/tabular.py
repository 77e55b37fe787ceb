"""The network of tables on five public tables, beside what a user would pick instead.

    python benchmarks/tabular.py --folder runs/tabular                    # all cells, 50 splits
    python benchmarks/tabular.py --folder runs/quick --num-splits 10      # the same in a fifth of the time
    python benchmarks/tabular.py --folder runs/tabular --update-card      # the scores kept there, into the card

Interpolation: N + 32 random rows, 32 of them targets. Forecasting, of the four tables that are series: N rows in time
order and the 32 that follow, predicted in that order, the number of the row as one more column. Joint log densities of
the 32 outcomes in nats per target, in units standardised by the N rows: of the network with a buffer of 32 and of 4, by
exact autoregression (re-encoding after every target), and independent; of a Gaussian process and Bayesian ridge
regression (their exact joint) and of a random forest (independent), see tabular_rivals.py. All see the same splits;
differences are paired. With 1,024 and 2,048 rows, beyond the 512 of training, only what is quick is scored.

The tables come from the UCI repository and StatLib, and are not distributed here. `--data` is a folder with
NAME/NAME.npz for each of gas_turbine (UCI 551), bike_sharing (275), california_housing, household_power (235, the first
26 days) and tetouan (849): `X` (rows, columns) in time order, and `columns`, their names. Tables that are not there are
left out, with a line that says so.

Scores are kept in the folder, a file for each table, task and N: the same command goes on where it was stopped. Prints
a table, then one JSON line.
"""

import json
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from kept import keep, read_kept, weights_key
from marked import write_marked
from quality import mean_se
from tabular_rivals import RIVALS, Rows, prepared
from torch import Tensor
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferModel, random_orders
from pyro_arbuf.checkpoint import find_model

SEED = 30_000
NUM_TARGETS = 32
NUM_ROWS, BEYOND = (16, 64, 256, 512), (1024, 2048)
CHUNK_CELLS = 2**18  # of contexts that are encoded together
# Splits of what is slow, by N: those of others are as many as are asked for.
FEWER = {name: {1024: 20, 2048: 10} for name in ("buffer K=32", "independent", "ridge")}
FEWER |= {name: dict.fromkeys(BEYOND, 0) for name in ("buffer K=4", "exact AR", "GP", "forest")}
BUFFERS = {"buffer K=32": 32, "buffer K=4": 4, "exact AR": 1, "independent": None}
METHODS = [*BUFFERS, *RIVALS]
Scores = dict[str, list[float]]  # of each method, nats per target, of the first splits


class Source(NamedTuple):
    """A table: its outcome, what is left out, and whether its rows are a series."""

    outcome: str
    dropped: tuple[str, ...] = ()
    series: bool = True


SOURCES = {
    "gas_turbine": Source("NOX"),
    "bike_sharing": Source("cnt", ("casual", "registered", "instant")),
    "household_power": Source("Global_active_power", ("Global_intensity",)),
    "tetouan": Source("Zone 1 Power Consumption"),
    "california_housing": Source("median_house_value", series=False),
}
# Hassan et al. (2026), Table 3, M = 32: independent, exact AR, buffer. Other splits, other units.
PAPER = {
    ("gas_turbine", "forecasting"): {16: (-1.46, -1.0, -0.98), 256: (-1.06, -0.73, -0.76), 1024: (-0.6, -0.47, -0.48)},
    ("bike_sharing", "forecasting"): {16: (-0.04, 1.02, 0.94), 256: (1.98, 2.24, 2.23), 1024: (2.32, 2.4, 2.39)},
    ("tetouan", "forecasting"): {16: (-4.71, -2.39, -2.41), 256: (-1.45, 0.39, 0.28), 1024: (-1.12, -0.08, -0.12)},
    ("household_power", "forecasting"): {16: (-2.87, -0.97, -1.0), 256: (1.21, 1.57, 1.56), 1024: (1.64, 1.7, 1.7)},
    ("california_housing", "interpolation"): {
        16: (-1.31, -1.17, -1.16),
        256: (-0.55, -0.54, -0.54),
        1024: (-0.44,) * 3,
    },
}


class Cell(NamedTuple):
    """A table, a task and a number of rows."""

    table: str
    task: str
    num_rows: int

    @property
    def path(self) -> str:
        """Of the scores, in the folder."""
        return f"{self.table}-{self.task}-{self.num_rows}.json"


def read_table(data: Path, name: str) -> Rows | None:
    """Inputs and outcome of a table in float64, `None` if it is not there."""
    path, source = data / name / f"{name}.npz", SOURCES[name]
    if not path.exists():
        return None
    with np.load(path) as file:
        x, columns = file["X"].astype(np.float64), [str(column) for column in file["columns"]]
    kept = [i for i, column in enumerate(columns) if column not in (source.outcome, *source.dropped)]
    return x[:, kept], x[:, columns.index(source.outcome)]


def draw_split(table: Rows, cell: Cell, index: int) -> tuple[Rows, Rows]:
    """Context and targets of a split, outcomes standardised by the context; the same every time."""
    x, y = table
    generator = np.random.default_rng([SEED, list(SOURCES).index(cell.table), cell.num_rows, index])
    number = cell.num_rows + NUM_TARGETS
    if cell.task == "forecasting":
        start = generator.integers(len(x) - number)
        x = np.column_stack([x[start : start + number], np.arange(number)])
        y = y[start : start + number]
    else:
        rows = generator.choice(len(x), number, replace=False)
        x, y = x[rows], y[rows]
    context = y[: cell.num_rows]
    y = (y - context.mean()) / (context.std() if np.ptp(context) > 0 else 1.0)
    return (x[: cell.num_rows], y[: cell.num_rows]), (x[cell.num_rows :], y[cell.num_rows :])


@torch.no_grad()
def network_scores(net: ArBufferModel, splits: list[tuple[Rows, Rows]], method: str, orders: Tensor) -> list[float]:
    """Joint log densities of a method of the network, nats per target."""
    size, scores = BUFFERS[method], []
    chunk = max(1, CHUNK_CELLS // splits[0][0][0].size)
    for i in range(0, len(splits), chunk):
        contexts, targets = zip(*splits[i : i + chunk], strict=True)
        x, y, x_new, y_new = (
            torch.from_numpy(np.stack(part)) for part in (*zip(*contexts, strict=True), *zip(*targets, strict=True))
        )
        joint = ArBufferJoint(net.condition(x, y), x_new, orders=orders, buffer_size=size)
        joint = joint.marginals() if size is None else joint
        scores += (joint.log_prob(y_new) / NUM_TARGETS).tolist()
    return scores


def rival_scores(splits: list[tuple[Rows, Rows]], method: str) -> list[float]:
    """Log densities of another method, nats per target."""
    return [RIVALS[method](*prepared(*split)) / NUM_TARGETS for split in splits]


def kept_scores(folder: Path, cell: Cell, table: Rows, net: ArBufferModel, num_splits: int, orders: Tensor) -> Scores:
    """Scores of a cell; those that its files hold, one of them of these weights and orders, are not computed again."""
    own = Path(cell.path).with_stem(f"{Path(cell.path).stem}-{len(orders)}-orders-{weights_key(net)}")
    paths = {"network": folder / own, "rivals": folder / cell.path}
    kept: dict[str, Scores] = {whose: read_kept(path, {}) for whose, path in paths.items()}
    scores: Scores = {}
    for method in tqdm(METHODS, desc=" ".join(map(str, cell)), leave=False):
        wanted = min(num_splits, FEWER.get(method, {}).get(cell.num_rows, num_splits))
        whose = "network" if method in BUFFERS else "rivals"
        done = scores[method] = kept[whose].setdefault(method, [])
        splits = [draw_split(table, cell, i) for i in range(len(done), wanted)]
        if splits:
            done += network_scores(net, splits, method, orders) if method in BUFFERS else rival_scores(splits, method)
            keep(paths[whose], kept[whose])
    return {method: done[:num_splits] for method, done in scores.items()}


def difference(scores: Scores, first: str, second: str) -> Tensor:
    """Paired differences of two methods over the splits that both have."""
    number = min(len(scores[first]), len(scores[second]))
    one, other = (torch.tensor(scores[name][:number], dtype=torch.float64) for name in (first, second))
    return one - other


def shown(values: Tensor) -> str:
    """Mean and standard error as text."""
    return "{:.2f} ({:.2f})".format(*mean_se(values)) if len(values) > 1 else ""


def write_table(cells: dict[Cell, Scores]) -> list[str]:
    """Lines of a table: mean density of every method, paired differences, and the paper's figures."""
    gaps = ["independent", "GP", "ridge"]
    head = ["table, task", "N", *METHODS, *(f"buffer K=32 minus {name}" for name in gaps), "paper: ind. / AR / buffer"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for cell, scores in cells.items():
        means = [f"{np.mean(scores[method]):.2f}" if scores[method] else "" for method in METHODS]
        paired = [shown(difference(scores, "buffer K=32", name)) for name in gaps]
        paper = PAPER.get((cell.table, cell.task), {}).get(cell.num_rows)
        figures = " / ".join(f"{value:.2f}" for value in paper) if paper else ""
        row = [f"{cell.table}, {cell.task}", str(cell.num_rows), *means, *paired, figures]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def mean_over(cells: dict[Cell, Scores], first: str, second: str, task: str, num_rows: int) -> list[float] | None:
    """Mean over the series of a paired difference, and its standard error."""
    chosen = [
        mean_se(difference(scores, first, second))
        for cell, scores in cells.items()
        if SOURCES[cell.table].series and (cell.task, cell.num_rows) == (task, num_rows)
    ]
    if not chosen:
        return None
    error = math.sqrt(sum(se**2 for _, se in chosen)) / len(chosen)
    return [round(sum(mean for mean, _ in chosen) / len(chosen), 3), round(error, 3)]


def wins(cells: dict[Cell, Scores], rival: str, task: str, num_rows: int) -> str | None:
    """On how many tables the buffered joint is ahead of another method, by mean and by median."""
    chosen = [
        difference(scores, "buffer K=32", rival)
        for cell, scores in cells.items()
        if (cell.task, cell.num_rows) == (task, num_rows) and scores[rival]
    ]
    means, medians = (sum(middle(gap).item() > 0 for gap in chosen) for middle in (torch.mean, torch.median))
    return f"{means} of {len(chosen)} ({medians} by median)" if chosen else None


def summarise(cells: dict[Cell, Scores]) -> dict[str, object]:
    """What the aims are about: gaps of the network's own densities, and on how many tables it is ahead."""
    summary: dict[str, object] = {}
    for task in ("interpolation", "forecasting"):
        for num_rows in NUM_ROWS:
            found = {
                "buffer minus independent": mean_over(cells, "buffer K=32", "independent", task, num_rows),
                "exact AR minus buffer": mean_over(cells, "exact AR", "buffer K=32", task, num_rows),
                "ahead of GP": wins(cells, "GP", task, num_rows),
                "ahead of ridge": wins(cells, "ridge", task, num_rows),
            }
            if found := {name: value for name, value in found.items() if value is not None}:
                summary[f"{task}, N = {num_rows}"] = found
    return summary


def write_summary(summary: dict[str, object]) -> list[str]:
    """Lines of a table of the summary."""
    names = ["buffer minus independent", "exact AR minus buffer", "ahead of GP", "ahead of ridge"]
    lines = ["| mean over the series, nats per target | " + " | ".join(names) + " |", "|---" * 5 + "|"]
    for label, found in summary.items():
        values = [
            "{:.2f} ({:.2f})".format(*found[n]) if isinstance(found.get(n), list) else found.get(n, "") for n in names
        ]
        lines.append(f"| {label} | {' | '.join(values)} |")
    return lines


def describe_fewer(num_splits: int) -> str:
    """Which methods have fewer splits, and at which N."""
    found = []
    for method in METHODS:
        fewer = {n: min(number, num_splits) for n, number in FEWER.get(method, {}).items() if 0 < number < num_splits}
        if fewer:
            found.append(f"{method} {', '.join(f'{number} at N = {n:,}' for n, number in fewer.items())}")
    return "; ".join(found)


def all_cells(num_rows: tuple[int, ...]) -> list[Cell]:
    """Tables, tasks and numbers of rows, in the order of the table."""
    return [
        Cell(name, task, number)
        for task in ("interpolation", "forecasting")
        for name, source in SOURCES.items()
        for number in num_rows
        if task == "interpolation" or source.series
    ]


def main(
    folder: Path,
    model: str = "tabular",
    data: Path = Path(__file__).parent.parent.parent / "shared" / "data",
    num_splits: int = 50,
    num_orders: int = 1,
    num_rows: tuple[int, ...] = (*NUM_ROWS, *BEYOND),
    update_card: bool = False,
) -> None:
    """Measures a network of tables.

    Args:
        folder: Where scores are kept.
        model: Shipped model or folder.
        data: Folder of the tables.
        num_splits: Splits of each table, task and N; of what is slow, fewer.
        num_orders: Orders averaged in interpolation, of buffers and of exact autoregression.
        num_rows: The Ns.
        update_card: Write the tables into the model's card, between its markers.
    """
    warnings.filterwarnings("ignore", message=".*outside the trained range")  # on purpose
    warnings.filterwarnings("ignore", message="y of a context has no two different values")
    tables = {name: read_table(data, name) for name in SOURCES}
    for name in [name for name, table in tables.items() if table is None]:
        print(f"{data / name / name}.npz is missing: {name} is left out (--data says where the tables are)")
    chosen = [cell for cell in all_cells(num_rows) if tables[cell.table] is not None]
    if not chosen:
        return
    net = pyro_arbuf.load(model)
    folder.mkdir(parents=True, exist_ok=True)
    orders = {
        "interpolation": random_orders(NUM_TARGETS, num_orders),
        "forecasting": torch.arange(NUM_TARGETS).unsqueeze(0),
    }
    cells = {
        cell: kept_scores(folder, cell, tables[cell.table], net, num_splits, orders[cell.task])
        for cell in tqdm(chosen, desc="cells", leave=False)
    }
    summary = summarise(cells)
    text = (
        f"Joint log density of M = {NUM_TARGETS} outcomes, nats per target, in units standardised by the N rows. "
        "In interpolation targets are random rows, in forecasting the rows that come next, in the order of time. "
        f"{num_splits} splits, or fewer where scoring is slow: {describe_fewer(num_splits)}. Differences are paired, "
        "standard errors over splits in brackets; those of the first table are means over the series, beside the "
        "number of tables on which the buffer is ahead. The paper's figures are of other splits and units.\n\n"
        + "\n".join([*write_summary(summary), "", *write_table(cells)])
        + "\n"
    )
    print(text)
    if update_card:
        card = find_model(model) / "README.md"
        write_marked(card, "tabular", text)
    print(json.dumps({"benchmark": "tabular", "model": Path(model).name} | summary))


if __name__ == "__main__":
    tyro.cli(main)

"""What `pyro-arbuf predict` gives: a summary as text, draws as CSV or NetCDF, a figure."""

import csv
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pyro_arbuf.cli.prediction_task import Task
from pyro_arbuf.display import align
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.files import write_atomically

SHOWN_DRAWS = 20  # in a figure
FEWEST_DIGITS, MOST_DIGITS = 5, 15  # float64 holds 15
LARGEST_WHOLE = 2.0**53  # beyond it float64 leaves out whole numbers


@dataclass(frozen=True)
class Predictions:
    """Joint draws of the targets of a task.

    Attributes:
        task: What was asked.
        drawn: `(S, M)` or `(S, M, D_y)`, in the units of the file.
        joint: What they were drawn from.
        interval: Probability of the intervals that are shown.
    """

    task: Task
    drawn: Tensor
    joint: ArBufferJoint
    interval: float

    @cached_property
    def draws(self) -> np.ndarray:
        """Draws `(S, M, D_y)` as float64."""
        return self.drawn.double().reshape(*self.drawn.shape[:2], -1).numpy()

    def of(self, column: int) -> dict[str, np.ndarray]:
        """Mean, standard deviation and ends of the interval of an outcome at every target, `(M,)` each, by heading."""
        drawn, tail = self.draws[..., column], (1 - self.interval) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
        ends = {f"{100 * tail:.10g}%": low, f"{100 * (1 - tail):.10g}%": high}
        return {"mean": drawn.mean(0), "sd": drawn.std(0, ddof=1), **ends}


def summary(found: Predictions) -> str:
    """A row for each target: inputs, and of every outcome mean, sd and interval, or the shares of its categories."""
    task, several = found.task, found.draws.shape[-1] > 1 or bool({*found.task.x_new.columns} & {*found.of(0)})
    table = {name: show(task.x_new[name]) for name in task.x_new.columns}
    for d, (name, kind) in enumerate(zip(task.y_new.columns, found.joint.context.model.config.kinds, strict=True)):
        prefix, digits = f"{name} " if several else "", _digits(found.draws[..., d])
        if task.held_out.any():
            table[f"{name}, held out"] = ["" if np.isnan(v) else f"{v:.{digits}g}" for v in task.y_new[name]]
        if kind.num_categories:
            shares = {f"P({name} = {k})": (found.draws[..., d] == k).mean(0) for k in range(kind.num_categories)}
            table |= {heading: [f"{share:.3f}" for share in values] for heading, values in shares.items()}
        else:
            table |= {
                f"{prefix}{heading}": [f"{v:.{5 if heading == 'sd' else digits}g}" for v in values]
                for heading, values in found.of(d).items()
            }
    return align(table)


def _digits(draws: np.ndarray) -> int:
    """How many digits tell draws apart: three of the smallest standard deviation above 0, and five in all."""
    largest, spread = np.abs(draws).max(), draws.std(0)
    spread = spread[spread > 0]
    if not len(spread) or not np.isfinite(largest):
        return FEWEST_DIGITS
    return min(max(FEWEST_DIGITS, math.ceil(math.log10(largest / spread.min())) + 3), MOST_DIGITS)


def show(values: np.ndarray) -> list[str]:
    """Inputs as text that tells them apart: numbers, or dates to the day, second, milli- or microsecond."""
    if values.dtype.kind == "M":
        known = values[~np.isnat(values)]
        units = {"D": 10, "s": 19, "ms": 23, "us": 26}  # and as many characters
        size = next(size for unit, size in units.items() if (known == known.astype(f"datetime64[{unit}]")).all())
        return ["" if np.isnat(value) else str(value.astype("datetime64[us]"))[:size] for value in values]
    whole = (values == np.round(values)) & (np.abs(values) < LARGEST_WHOLE)
    return [
        "" if np.isnan(value) else f"{value + 0.0:.0f}" if exact else f"{value:.{MOST_DIGITS}g}"
        for value, exact in zip(values, whole, strict=True)
    ]


def write_csv(found: Predictions, path: Path) -> None:
    """Writes a row for each draw of each target: number of the draw and of the target, inputs, outcomes.

    The numbers are called draw and target, or draw_number and target_number where the file has such a column.
    """
    task, (num_draws, num_targets, dim_y) = found.task, found.draws.shape
    inputs = list(zip(*(show(task.x_new[name]) for name in task.x_new.columns), strict=True))
    kinds = found.joint.context.model.config.kinds

    def write(file: Path) -> None:
        with open(file, "w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            names = [*task.x_new.columns, *task.y_new.columns]
            numbers = [_free(name, names) for name in ("draw", "target")]
            writer.writerow([*numbers, *names])
            for s in range(num_draws):
                for m in range(num_targets):
                    values = [found.draws[s, m, d] for d in range(dim_y)]
                    shown = [
                        int(v) if k.support.is_discrete else f"{v:.9g}" for v, k in zip(values, kinds, strict=True)
                    ]
                    writer.writerow([s, m, *inputs[m], *shown])

    write_atomically(path, write)


def _free(name: str, taken: list[str]) -> str:
    """A name with so many "_number" behind it that it is none of those."""
    while name in taken:
        name = f"{name}_number"
    return name


def write_netcdf(found: Predictions, path: Path) -> None:
    """Writes the same draws in ArviZ's schema: group predictions, dimensions chain, draw and target."""
    try:
        import h5netcdf  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"{path} needs the package h5netcdf, which is not installed; install it, or write a .csv"
        ) from error
    from pyro_arbuf.workflow.distribution_groups import joint_groups
    from pyro_arbuf.workflow.groups import assemble_tree

    columns = found.task.x_new.columns
    labels: dict[str, Any] = {"target": found.task.x_new[columns[0]]} if len(columns) == 1 else {}
    tree = assemble_tree(joint_groups(found.joint, found.drawn, None, {}), labels | {"input": columns}, {})
    write_atomically(path, lambda file: tree.to_netcdf(file, engine="h5netcdf"))


def plot_predictions(found: Predictions, path: Path) -> None:
    """Draws observed values, held-out values, some draws, mean and interval over the one input, a panel an outcome."""
    import matplotlib.style  # slow, and only figures need it
    from matplotlib.figure import Figure

    names = found.task.y_new.columns
    with matplotlib.style.context("pyro_arbuf.house"):
        figure = Figure(figsize=(7, 0.8 + 3 * len(names)))
        for d, axes in enumerate(figure.subplots(len(names), squeeze=False)[:, 0]):
            _plot_outcome(axes, found, d)
        write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:]))


def _plot_outcome(axes: Any, found: Predictions, d: int) -> None:
    """Draws one outcome; targets with observed rows between them are not joined by lines."""
    task, x, y = found.task, found.task.x_new.columns[0], found.task.y_new.columns[d]
    order, seen = np.argsort(task.x_new[x]), np.sort(task.x_seen[x])
    parts = np.split(order, np.flatnonzero(np.diff(np.searchsorted(seen, task.x_new[x][order]))) + 1)
    mean, _, low, high = found.of(d).values()
    for i, part in enumerate(parts):
        at, marker = task.x_new[x][part], "." if len(part) < 40 else ""
        width = 0 if len(part) > 1 else 4  # of the border, which is all that an interval at one x has
        band = axes.fill_between(at, low[part], high[part], color="C0", alpha=0.2, lw=width)
        drawn = axes.plot(at, found.draws[:SHOWN_DRAWS, part, d].T, color="C0", alpha=0.4, lw=0.7, marker=marker, ms=1)
        (line,) = axes.plot(at, mean[part], color="C0", marker=marker)
        if i == 0:
            band.set_label(f"{found.interval:.0%} interval")
            drawn[0].set_label("joint draws")
            line.set_label("mean")
    axes.plot(task.x_seen[x], task.y_seen[y], "k.", markersize=4, label="observed")
    if task.held_out.any():
        axes.plot(task.x_new[x][task.held_out], task.y_new[y][task.held_out], "D", color="C1", ms=4, label="held out")
    axes.set(xlabel=x, ylabel=y)
    axes.legend()

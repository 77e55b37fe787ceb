"""`pyro-arbuf predict`: from a CSV file to joint draws, a plot and the joint density of held-out rows."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from pyro_arbuf.checkpoint import load
from pyro_arbuf.cli.csv_table import Columns, read_csv
from pyro_arbuf.cli.options import NetworkName, check_folder
from pyro_arbuf.cli.prediction_task import Task, make_task
from pyro_arbuf.cli.predictions import Predictions, plot_predictions, summary, write_csv, write_netcdf
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.outcomes import Real
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.random_state import seeded

NUM_ORDERS = 16  # that a density is averaged over
TABLES = (".csv", ".nc")
FIGURES = (".png", ".pdf", ".svg")


def predict(
    name: NetworkName,
    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")],
    x: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN ...")],
    y: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN ...")],
    at: Annotated[tuple[str, ...], tyro.conf.arg(metavar="VALUES ...")] = (),
    held_out: Annotated[str | None, tyro.conf.arg(metavar="N|COLUMN")] = None,
    draws: int = 200,
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    interval: float = 0.9,
    units: Literal["fit", "keep"] | None = None,
    seed: int = 0,
) -> None:
    """Predicts rows of a CSV file jointly: a summary of each on stdout; draws, a plot and a joint density if asked for.

    Rows whose outcome is known are what is observed. Predicted are the rows whose outcome is empty, the values of
    `--at`, and rows that are held out.

    pyro-arbuf predict gp-1d-noisy data.csv --x year --y temp --at 2021:2030 --output draws.csv --plot out.png

    How well are the last ten rows predicted?  pyro-arbuf predict gp-1d-noisy data.csv --x year --y temp --held-out 10

    Args:
        name: Shipped model, folder, or hf:owner/name.
        data: CSV file with a header; cells that are empty or say NA are missing; dates are like 2021-12-31.
        x: Names of the columns that are inputs.
        y: Name of the column that is the outcome; of several sites, one for each.
        at: Inputs to predict: numbers or dates, lists 1,2,3 and ranges first:last:step, both ends included. A step of
            dates is a number of days, or like 6h, 1m (months) or 1y. Write --at=-2:2 where the first one is negative.
        held_out: How many of the last observed rows are held out, or the column that says so by 1 and 0.
        draws: How many joint draws.
        output: File for the draws, .csv (a row for each draw of each target) or .nc (NetCDF, as ArviZ reads it).
        plot: File for a figure, .png, .pdf or .svg; for one --x column.
        interval: Probability of the interval in the summary and the figure.
        units: fit = the network takes the units of the data, as shipped models of functions do if this is not
            given; keep = the numbers are in the units that the network has, of recordings seconds and microvolt.
        seed: Of the draws.
    """
    _check_options(data, output, plot, x, draws, interval)
    net = load(name)
    task = make_task(read_csv(data), x, y, at, held_out, net.config)
    net = _in_units_of(net, task, units)
    context = net.condition(task.x_seen, _outcomes(task.y_seen)) if len(task.x_seen) else net.condition()
    joint = _joint(context, task, task.x_new)
    with seeded(seed):
        drawn = joint.sample((draws,))
    found = Predictions(task, drawn, joint, interval)
    print(summary(found))
    if task.held_out.any():
        print(_density_of_held_out(joint, task))
    if output is not None:
        write = write_csv if output.suffix == ".csv" else write_netcdf
        write(found, output)
        _say(f"{output}: {draws} joint draws of {len(task.x_new)} targets")
    if plot is not None:
        plot_predictions(found, plot)
        _say(f"{plot}: observed values, draws, mean and {interval:.0%} interval")


def _check_options(
    data: Path, output: Path | None, plot: Path | None, x: tuple[str, ...], draws: int, interval: float
) -> None:
    for option, path, suffixes in (("--output", output, TABLES), ("--plot", plot, FIGURES)):
        if path is not None and path.suffix not in suffixes:
            raise ValueError(f"{option} must be a file that ends on {', '.join(suffixes)}; got {path}")
        check_folder(option, path)
        if path is not None and path.resolve() == data.resolve():
            raise ValueError(
                f"{option} must not be the file of the data, which would be lost; got {path}; name another"
            )
    if plot is not None and len(x) != 1:
        raise ValueError(f"--plot needs one --x column, the axis of the figure; got {len(x)}; leave it out")
    if draws < 2:
        raise ValueError(f"--draws must be at least 2; got {draws}")
    if not 0 < interval < 1:
        raise ValueError(f"--interval must be a probability between 0 and 1; got {interval:g}")


def _in_units_of(net: ArBufferModel, task: Task, units: str | None) -> ArBufferModel:
    """The network in the units of the data, where it is one that has none of its own; says what was done."""
    config = net.config
    free = config.unit_map is None and not config.latents and config.prior in RECIPES
    if config.missing_x:
        _say("units: a network of tables, which takes any, standardised by the observed rows")
        return net
    if config.x_spacing is not None:
        if units == "fit":
            raise ValueError(
                "--units must be keep for a network of recordings, as time is not fitted to data; got fit; give "
                "seconds, or state your units in Python by net.in_units"
            )
        _say("units: those of the network, seconds from where its recordings begin")
        return net
    if units == "keep" or (units is None and not free):
        _say("units: those of the network; --units fit lets it take those of the data" * (not config.latents))
        return net
    real = [isinstance(kind, Real) for kind in config.kinds]
    for column, is_real in zip(task.y_seen.columns, real, strict=True):
        if is_real and len(np.unique(task.y_seen[column])) < 2:
            raise ValueError(
                f"column {column!r} must hold at least 2 different observed values, from which units are fitted; got "
                f"{len(task.y_seen)} rows; use --units keep for data in the network's units"
            )
    fitted = net.in_units(x=[task.x_seen, task.x_new], y=_outcomes(task.y_seen) if any(real) else None)
    _say(f"units: fitted to the data, {', '.join(task.x_new.columns)} of all rows and {', '.join(task.y_seen.columns)}")
    return fitted


def _outcomes(y: Columns) -> Any:
    """A column alone where there is one, else the table, whose columns may be in any order of the sites."""
    return y[y.columns[0]] if len(y.columns) == 1 else y


def _joint(context: Context, task: Task, x: Any) -> ArBufferJoint:
    """The joint of targets, averaged over orders where they have several; forecasts of a recording in that of time."""
    config = context.model.config
    if config.sequential or len(x) == 1:
        return ArBufferJoint(context, x)
    if config.x_spacing is not None:
        time, seen = x[x.columns[0]], task.x_seen[x.columns[0]]
        if not len(seen) or time.min() > seen.max():
            return ArBufferJoint(context, x, torch.from_numpy(np.argsort(time, kind="stable"))[None])
    return ArBufferJoint(context, x, random_orders(len(x), NUM_ORDERS))


@torch.no_grad()
def _density_of_held_out(joint: ArBufferJoint, task: Task) -> str:
    """The joint log density of the held-out rows beside that of independent predictions, in one line."""
    rows = np.flatnonzero(task.held_out)
    y = _outcomes(task.y_new.rows(rows))
    held = _joint(joint.context, task, task.x_new.rows(rows))
    together, alone = held.log_prob(y).item(), held.marginals().log_prob(y).item()
    return (
        f"\nheld out, {len(rows)} rows: joint log density {together:.3f} nats, of independent predictions {alone:.3f}; "
        f"the joint is {abs(together - alone):.3f} nats {'higher' if together >= alone else 'lower'}"
    )


def _say(text: str) -> None:
    """Says on stderr what a command does; its results are on stdout."""
    if text:
        print(text, file=sys.stderr)

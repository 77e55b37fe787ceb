"""Random tables for regression: structural causal models, Gaussian processes and sums of trees, on columns of any kind.

One network for smooth, rough and stepped tables needs a prior that holds all of them. Rows are exchangeable.
"""

import math

import torch
from torch import Tensor

from pyro_arbuf.priors.scm import NUM_ROOTS, draw_scm
from pyro_arbuf.priors.table_columns import (
    along_index,
    chance,
    draw_causes,
    draw_index,
    draw_paths,
    rescale_and_lose,
    uniform,
    unit_scale,
    write_down,
)
from pyro_arbuf.priors.table_functions import draw_relevance, smooth_function, stepped_function

MAX_COLUMNS = 16
KINDS = (0.35, 0.35, 0.3)  # shares of tables: causal model, smooth, stepped
NOISE_SD = (0.005, 2.0)  # relative to the sd of the function
LINEAR = 0.35  # share of tables with a linear part
SERIES = 0.45  # share of tables whose rows have an index
DRIFT = (0.1, 3.0)  # of series, relative to the sd of the function
DRIFT_FEATURES = 128  # of a drift: sums of so many cosines
UNEVEN, HEAVY, BENT = 0.3, 0.2, 0.25  # shares of tables: heteroscedastic, heavy-tailed noise, skewed outcome


def tabular(
    batch_size: int, num_points: int, generator: torch.Generator, num_columns: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draws tables of rows with an outcome; all tables of a batch have as many columns.

    Of a table, the outcome is a node of a structural causal model (35 %), a sum of Gaussian processes with a
    lengthscale per column and a linear trend (35 %), or a sum of trees (30 %), in part with a second, stepped term; a
    third of them have a part that is linear in the columns as they are written. Columns are normal, uniform, skewed,
    heavy-tailed, clustered, discrete, near copies of each other, or irrelevant. In 45 % of the tables the rows are a
    series: the first column is an index, others are periodic in it or paths along it, and a path along it is added to
    the outcome, so that neighbours share what the columns do not say. The noise has an sd log-uniform on [0.005, 2] of
    the function's, in part uneven over the rows or heavy-tailed. In a quarter of the tables cells are missing.

    Args:
        batch_size: Tables B.
        num_points: Rows T of each, exchangeable: any split is a context, a buffer and targets.
        generator: Source of randomness.
        num_columns: Columns D; `None` = uniform on 1 .. 16.

    Returns:
        x `(B, T, D)`, NaN where a cell is missing, and y `(B, T, 1)`, about of scale 1; float32.
    """
    if num_columns is None:
        num_columns = int(torch.randint(1, MAX_COLUMNS + 1, (), generator=generator))
    B, T, D = batch_size, num_points, num_columns
    kind = torch.multinomial(torch.tensor(KINDS), B, True, generator=generator)
    series = chance((B, 1, 1), SERIES, generator)
    index = draw_index(B, T, generator)
    observed, function = torch.empty(B, T, D), torch.empty(B, T, 1)
    for which, draw in enumerate((_causal, _smooth, _stepped)):
        tables = (kind == which).nonzero().squeeze(-1)
        if len(tables):
            observed[tables], function[tables] = draw(index[tables], series[tables], D, generator)
    observed = torch.cat([torch.where(series, index, observed[..., :1]), observed[..., 1:]], -1)
    function = _with_trend(function, observed, generator)
    function[series.flatten()] += _drift(index[series.flatten()], generator)
    y = _with_noise(unit_scale(function), observed, generator)
    return rescale_and_lose(observed, generator), y


def _draw_causes(index: Tensor, series: Tensor, num_columns: int, generator: torch.Generator) -> Tensor:
    causes = draw_causes(index.shape[0], index.shape[1], num_columns, generator)
    tables = series.flatten()
    causes[tables] = along_index(causes[tables], index[tables], generator)
    return causes


def _causal(index: Tensor, series: Tensor, num_columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    roots = _draw_causes(index, series, NUM_ROOTS, generator)
    columns, outcome = draw_scm(index.shape[0], index.shape[1], num_columns, roots, generator)
    return write_down(columns, generator).observed, outcome


def _smooth(index: Tensor, series: Tensor, num_columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    columns = write_down(_draw_causes(index, series, num_columns, generator), generator)
    smooth = unit_scale(smooth_function(columns.causes, generator))
    steps = unit_scale(stepped_function(columns.causes, generator)) * chance((len(index), 1, 1), 0.2, generator)
    return columns.observed, unit_scale(smooth + 0.7 * steps)


def _stepped(index: Tensor, series: Tensor, num_columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    columns = write_down(_draw_causes(index, series, num_columns, generator), generator)
    return columns.observed, unit_scale(stepped_function(columns.causes, generator))


def _with_trend(function: Tensor, observed: Tensor, generator: torch.Generator) -> Tensor:
    """In a share of the tables, a mean of a function of scale 1 and of one that is linear in columns as written."""
    B, _, D = observed.shape
    slope = torch.randn(B, D, 1, generator=generator) * draw_relevance(B, D, generator).unsqueeze(-1)
    weight = uniform((B, 1, 1), 0.0, 1.0, generator).sqrt() * chance((B, 1, 1), LINEAR, generator)
    return (1 - weight) * function + weight * unit_scale(observed.clamp(-5, 5) @ slope)


def _drift(index: Tensor, generator: torch.Generator) -> Tensor:
    """Paths along an index, of a scale that differs by table."""
    scale = torch.exp(uniform((len(index), 1, 1), math.log(DRIFT[0]), math.log(DRIFT[1]), generator))
    return scale * draw_paths(index, 1, DRIFT_FEATURES, generator)


def _with_noise(function: Tensor, observed: Tensor, generator: torch.Generator) -> Tensor:
    """Adds noise to functions of scale 1, bends the sum in a share of the tables, and gives it a location and scale."""
    B, T, D = observed.shape
    noise = torch.randn(B, T, 1, generator=generator)
    wild = torch.randn(B, T, 4, generator=generator).square().mean(-1, keepdim=True).clamp(min=0.05).rsqrt()
    noise = torch.where(chance((B, 1, 1), HEAVY, generator), noise * wild, noise)
    column = torch.randint(D, (B, 1, 1), generator=generator).expand(-1, T, -1)
    driver = torch.where(chance((B, 1, 1), 0.5, generator), observed.gather(-1, column), function).clamp(-2.5, 2.5)
    uneven = torch.exp(uniform((B, 1, 1), -1.2, 1.2, generator) * driver)
    noise = torch.where(chance((B, 1, 1), UNEVEN, generator), noise * uneven, noise)
    sd = torch.exp(uniform((B, 1, 1), math.log(NOISE_SD[0]), math.log(NOISE_SD[1]), generator))
    y = unit_scale(function + sd * noise)
    bend = uniform((B, 1, 1), 0.3, 1.0, generator)
    y = torch.where(chance((B, 1, 1), BENT, generator), unit_scale(torch.exp(bend * y.clamp(max=4.0))), y)
    y = y * torch.exp(0.3 * torch.randn(B, 1, 1, generator=generator))  # so that nothing is known of it
    return y + 0.5 * torch.randn(B, 1, 1, generator=generator)

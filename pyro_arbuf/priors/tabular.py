"""Random tables for regression: structural causal models, Gaussian processes and sums of trees, on columns of any kind.

One network for smooth, rough and stepped tables needs a prior that holds all of them. Rows are exchangeable.
"""

import math

import torch
from torch import Tensor

from pyro_arbuf.priors.scm import NUM_ROOTS, draw_scm
from pyro_arbuf.priors.table_columns import chance, draw_causes, rescale_and_lose, uniform, unit_scale, write_down
from pyro_arbuf.priors.table_functions import smooth_function, stepped_function

MAX_COLUMNS = 16
KINDS = (0.35, 0.35, 0.3)  # shares of tables: causal model, smooth, stepped
NOISE_SD = (0.005, 2.0)  # relative to the sd of the function
UNEVEN, HEAVY, BENT = 0.3, 0.2, 0.25  # shares of tables: heteroscedastic, heavy-tailed noise, skewed outcome


def tabular(
    batch_size: int, num_points: int, generator: torch.Generator, num_columns: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draws tables of rows with an outcome; all tables of a batch have as many columns.

    Of a table, the outcome is a node of a structural causal model (35 %), a sum of Gaussian processes with a
    lengthscale per column and a linear trend (35 %), or a sum of trees (30 %), in part with a second, stepped term.
    Columns are normal, uniform, skewed, heavy-tailed, clustered, periodic in an index, discrete, near copies of each
    other, or irrelevant. The noise has an sd log-uniform on [0.005, 2] of the function's, in part uneven over the rows
    or heavy-tailed. In a quarter of the tables cells are missing.

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
    kind = torch.multinomial(torch.tensor(KINDS), batch_size, True, generator=generator)
    observed = torch.empty(batch_size, num_points, num_columns)
    function = torch.empty(batch_size, num_points, 1)
    for which, draw in enumerate((_causal, _smooth, _stepped)):
        tables = (kind == which).nonzero().squeeze(-1)
        if len(tables):
            observed[tables], function[tables] = draw(len(tables), num_points, num_columns, generator)
    order = torch.rand(batch_size, 1, num_columns, generator=generator).argsort(-1)
    observed = observed.gather(-1, order.expand(-1, num_points, -1))
    y = _with_noise(function, observed, generator)
    return rescale_and_lose(observed, generator), y


def _causal(batch_size: int, num_points: int, num_columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    roots = draw_causes(batch_size, num_points, NUM_ROOTS, generator)
    columns, outcome = draw_scm(batch_size, num_points, num_columns, roots, generator)
    return write_down(columns, generator).observed, outcome


def _smooth(batch_size: int, num_points: int, num_columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    columns = write_down(draw_causes(batch_size, num_points, num_columns, generator), generator)
    smooth = unit_scale(smooth_function(columns.causes, generator))
    steps = unit_scale(stepped_function(columns.causes, generator)) * chance((batch_size, 1, 1), 0.2, generator)
    return columns.observed, unit_scale(smooth + 0.7 * steps)


def _stepped(batch_size: int, num_points: int, num_columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    columns = write_down(draw_causes(batch_size, num_points, num_columns, generator), generator)
    return columns.observed, unit_scale(stepped_function(columns.causes, generator))


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

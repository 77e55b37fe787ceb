"""Passes and CPU seconds of draft and verify, against plain decoding and exact autoregression of the same networks.

    python benchmarks/draft_verify.py
    python benchmarks/draft_verify.py --plot docs/draft_verify.png        # and the figure of the manual

Joint draws of M = 16 targets given N observations of functions or data sets from a network's own prior, B draws at a
time. The three ways of drawing take turns on each data set, contexts being made before. Passes of a draw count the one
that its first drafts come from. Prints a table, then one JSON line.
"""

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure
import matplotlib.style
import pyro.poutine
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf import ArBufferJoint
from pyro_arbuf.priors.recipes import RECIPES, PriorRecipe, ProgramRecipe

NAMES = ("gp-1d-noisy", "gp-1d", "sawtooth", "psychometric")
NUM_TARGETS = 16
NUM_CONTEXT = (16, 128)
NUM_DRAWS = (1, 16, 256)
MOST_DRAWS = 192  # of all data sets of a cell together, but at least LEAST data sets
LEAST = 2
FIGURE = ("gp-1d-noisy", "sawtooth", "psychometric")


class Cell(NamedTuple):
    """What was measured of one network, N and B, as means over data sets.

    Attributes:
        name: Of the network.
        num_context: Observations N.
        num_draws: Draws at a time, B.
        passes: Of a draw, per target; plain decoding takes one.
        error: Standard error of `passes`, over data sets.
        acceptance: Share of verified drafts that were accepted.
        plain: CPU milliseconds of plain decoding.
        drafted: Of draft and verify.
        exact: Of exact autoregression.
    """

    name: str
    num_context: int
    num_draws: int
    passes: float
    error: float
    acceptance: float
    plain: float
    drafted: float
    exact: float


def draw_data(name: str, num_points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs `(n, D_x)` and outcomes `(n,)` of one function, or of one data set of a program."""
    recipe = RECIPES[name]
    if isinstance(recipe, PriorRecipe):
        x, y = recipe.prior(1, num_points, torch.Generator().manual_seed(seed))
        return x[0], y[0, :, 0]
    assert isinstance(recipe, ProgramRecipe) and recipe.inputs is not None
    pyro.set_rng_seed(seed)
    x = recipe.inputs(num_points)
    return x, pyro.poutine.trace(recipe.program).get_trace(x).nodes["y"]["value"]


def timed(way: Callable[[tuple[int]], Any], shape: tuple[int]) -> tuple[float, Any]:
    """CPU milliseconds of drawing, as the machine may be shared, and what was drawn."""
    start = time.process_time()
    drawn = way(shape)
    return 1e3 * (time.process_time() - start), drawn


def measure(name: str, num_context: int, num_draws: int, most: int) -> Cell:
    """One cell of the table."""
    net, times, counts = pyro_arbuf.load(name), [], []
    for seed in range(max(LEAST, min(most, MOST_DRAWS // num_draws))):
        x, y = draw_data(name, num_context + NUM_TARGETS, seed)
        context = net.condition(x[:num_context], y[:num_context])
        joint = ArBufferJoint(context, x[num_context:])
        exact = ArBufferJoint(context, x[num_context:], buffer_size=1)
        if not counts:
            for each in (joint.sample, exact.sample, joint.sample_drafted):
                each((1,))  # warms up
        torch.manual_seed(seed)
        ways = (joint.sample, joint.sample_drafted, exact.sample)
        took, drawn = zip(*(timed(way, (num_draws,)) for way in ways), strict=True)
        times.append(took)
        counts.append([part.double().mean() for part in drawn[1][1:]])
    passes, verified, accepted = torch.tensor(counts, dtype=torch.float64).T
    per_target = passes / NUM_TARGETS
    error = per_target.std() / len(counts) ** 0.5
    numbers = (per_target.mean(), error, accepted.sum() / verified.sum(), *torch.tensor(times).mean(0))
    return Cell(name, num_context, num_draws, *(round(float(number), 4) for number in numbers))


def print_table(cells: list[Cell]) -> None:
    """A line a cell."""
    print("| network | N, B | passes per target | accepted | plain, drafted, exact: CPU ms | against plain | exact |")
    print("|---|---|---|---|---|---|---|")
    for c in cells:
        times = ", ".join(f"{t:.0f}" for t in (c.plain, c.drafted, c.exact))
        print(
            f"| `{c.name}` | {c.num_context}, {c.num_draws} | {c.passes:.3f} ({c.error:.3f}) | {c.acceptance:.2f} | "
            f"{times} | {c.plain / c.drafted:.2f} x | {c.exact / c.drafted:.1f} x |"
        )


def draw_figure(cells: list[Cell], path: Path) -> None:
    """Speed against plain decoding over the number of draws."""
    matplotlib.style.use("pyro_arbuf.house")
    figure = matplotlib.figure.Figure()
    axes = figure.subplots(1, len(NUM_CONTEXT), sharey=True)
    for panel, num_context in zip(axes, NUM_CONTEXT, strict=True):
        for name in FIGURE:
            own = [c for c in cells if (c.name, c.num_context) == (name, num_context)]
            panel.plot([c.num_draws for c in own], [c.plain / c.drafted for c in own], marker="o", label=name)
        panel.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
        panel.set(xscale="log", title=f"{num_context} observations", xlabel="draws at a time")
        panel.set(xticks=NUM_DRAWS, xticklabels=NUM_DRAWS)
        panel.minorticks_off()
    axes[0].set_ylabel("times as fast as plain decoding")
    axes[0].legend()
    figure.savefig(path)


def main(names: tuple[str, ...] = NAMES, most: int = 24, plot: Path | None = None) -> None:
    """Measures draft and verify.

    Args:
        names: Shipped networks.
        most: Data sets of a cell, fewer where draws are many.
        plot: Where the figure goes.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "num_context.* outside the trained range")  # on purpose
    grid = [(name, n, b) for name in names for n in NUM_CONTEXT for b in NUM_DRAWS]
    cells = [measure(*cell, most) for cell in tqdm(grid, leave=False)]
    print_table(cells)
    if plot is not None:
        draw_figure(cells, plot)
    print(json.dumps([cell._asdict() for cell in cells]))


if __name__ == "__main__":
    tyro.cli(main)

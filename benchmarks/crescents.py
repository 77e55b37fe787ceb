"""The likelihood p(y | theta) of two moons, a crescent, as the shipped network has it, against the exact density.

    python benchmarks/crescents.py        # table, line of JSON, and models/two-moons/likelihood.png

`sbi.py two-moons` prints the same gap.
"""

import json
import math
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

import pyro_arbuf
from pyro_arbuf import ArBufferMarginals, ArBufferModel
from pyro_arbuf.checkpoint import find_model
from pyro_arbuf.priors.two_moons import TwoMoons

NUM_PAIRS = 10_000
AT_ONCE = 2_000
SEED = 11
SHOWN = ((0.0, 0.0), (0.6, -0.3), (-0.5, 0.7))  # theta of the figure


def log_likelihood(net: ArBufferModel, theta: Tensor, y: Tensor) -> Tensor:
    """Log likelihood `(n,)` of outcomes `(n, 2)` at parameters `(n, 2)`, nats."""
    (name,) = net.latents
    parts = []
    for t, values in zip(theta.split(AT_ONCE), y.split(AT_ONCE), strict=True):
        context = net.condition(latents={name: t})
        parts.append(ArBufferMarginals(context, torch.zeros(1, 1), validate_args=False).log_prob(values[:, None]))
    return torch.cat(parts)


@torch.no_grad()
def likelihood_gap(net: ArBufferModel, num_pairs: int = NUM_PAIRS) -> tuple[float, float]:
    """Mean gap to the exact density over fresh pairs of the prior, and its standard error, nats."""
    generator = torch.Generator().manual_seed(SEED)
    theta = 2 * torch.rand(num_pairs, 2, generator=generator) - 1
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        exact = TwoMoons(theta)
        y = exact.sample()
    gap = exact.log_prob(y) - log_likelihood(net, theta, y)
    return gap.mean().item(), gap.std().item() / math.sqrt(num_pairs)


@torch.no_grad()
def draw_crescents(net: ArBufferModel, path: Path, size: int = 160) -> None:
    """Draws the exact density of y at some theta in the first row, the network's in the second."""
    figure = Figure(figsize=(3 * len(SHOWN), 5.6), layout="constrained")
    axes = figure.subplots(2, len(SHOWN))
    for column, theta in enumerate(torch.tensor(SHOWN)):
        exact = TwoMoons(theta)
        centre = exact.sample((400,)).mean(0)
        axis = torch.linspace(-0.16, 0.16, size)
        y = torch.stack(torch.meshgrid(centre[0] + axis, centre[1] + axis, indexing="xy"), -1).reshape(-1, 2)
        found = log_likelihood(net, theta.expand(len(y), 2), y)
        for ax, density in zip(axes[:, column], (exact.log_prob(y), found), strict=True):
            ends = (y[:, 0].min(), y[:, 0].max(), y[:, 1].min(), y[:, 1].max())
            ax.imshow(density.exp().reshape(size, size), origin="lower", extent=[end.item() for end in ends])
            ax.set(xticks=[], yticks=[])
        axes[0, column].set_title(f"theta = ({theta[0]:g}, {theta[1]:g})")
    for ax, label in zip(axes[:, 0], ("exact", "network"), strict=True):
        ax.set_ylabel(label)
    figure.savefig(path, dpi=80)


def main(models: Path | None = None, threads: int | None = None) -> None:
    """Measures the likelihood of two moons and draws it.

    Args:
        models: Folder to load two-moons from instead of the shipped one; the figure goes there.
        threads: CPU threads.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    folder = find_model("two-moons") if models is None else models / "two-moons"
    net = pyro_arbuf.load(folder)
    gap, error = likelihood_gap(net)
    print("| | measured | aim |\n|---|---|---|")
    print(f"| gap of the likelihood to the exact density (nats) | {gap:.3f} ({error:.3f}) | <= 0.15 |\n")
    draw_crescents(net, folder / "likelihood.png")
    print(json.dumps({"benchmark": "crescents", "gap": [gap, error]}))


if __name__ == "__main__":
    tyro.cli(main)

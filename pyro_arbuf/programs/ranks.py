"""Ranks of true values among draws: whether they are uniform, what share of regions hold the truth, and figures."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LEVELS = tuple(i / 20 for i in range(1, 20))
NUM_BINS = 20


def rank_p_values(ranks: Tensor, num_draws: int) -> Tensor:
    """p-values `(Q,)` of the chi-squared test of uniform ranks `(D, Q)` on 0..num_draws."""
    num_bins = min(NUM_BINS, num_draws + 1)
    edge = torch.arange(num_draws + 1) * num_bins // (num_draws + 1)  # bin of each rank
    share = torch.bincount(edge, minlength=num_bins).double() / (num_draws + 1)
    expected = len(ranks) * share
    counts = torch.stack([torch.bincount(edge[column], minlength=num_bins) for column in ranks.T])
    statistic = ((counts - expected) ** 2 / expected).sum(-1)
    return torch.special.gammaincc(torch.tensor((num_bins - 1) / 2, dtype=torch.float64), statistic / 2)


def smallest_p_value(p_values: Tensor) -> float:
    """The smallest of several p-values after Bonferroni's correction."""
    return min(1.0, p_values.min().item() * len(p_values))


def share_between(ranks: Tensor, num_draws: int, low: float, high: float) -> Tensor:
    """Share `(Q,)` of data sets whose truth lies between two levels of the draws, by ranks `(D, Q)`.

    A rank r stands for the cell from r / (S + 1) to (r + 1) / (S + 1), so that uniform ranks cover exactly each level.
    """
    start = ranks.double() / (num_draws + 1)
    inside = (start + 1 / (num_draws + 1)).clamp(max=high) - start.clamp(min=low)
    return (inside.clamp(min=0) * (num_draws + 1)).mean(0)


def central_coverage(ranks: Tensor, num_draws: int) -> Tensor:
    """Share `(levels, Q)` of data sets whose central interval of each level holds the true value."""
    return torch.stack([share_between(ranks, num_draws, (1 - c) / 2, (1 + c) / 2) for c in LEVELS])


def sbc_tree(group: str, ranks: Mapping[str, Tensor], num_draws: int) -> Any:
    """A DataTree of one group, which ArviZ's `plot_ecdf_pit` reads: ranks `(D,)` by name as shares of the draws.

    A draw of the group is a data set; the share of a rank is (rank + 1/2) / (S + 1).
    """
    from pyro_arbuf.workflow.groups import draws_tree

    return draws_tree({group: {name: (own.double() + 0.5) / (num_draws + 1) for name, own in ranks.items()}})


def panels(axes: Any, count: int, what: str) -> Any:
    """The axes to draw into, those of a new figure of pyplot where `None`; call within the house's style.

    Raises:
        ValueError: If there is another number of axes.
    """
    import matplotlib.pyplot as plt  # slow, and only figures need it

    if axes is None:
        return plt.subplots(1, count, figsize=(2.6 * count, 2.6))[1]
    if len(axes) != count:
        raise ValueError(f"axes must be {count}, {what}; got {len(axes)}")
    return axes


def plot_ranks(ax: Any, ranks: Tensor, num_draws: int, title: str) -> None:
    """Draws a histogram of ranks `(D,)` with a 99 % band of a uniform one."""
    expected = len(ranks) / NUM_BINS
    half = 2.58 * (expected * (1 - 1 / NUM_BINS)) ** 0.5
    ax.axhspan(expected - half, expected + half, color="0.85")
    ax.hist(ranks.numpy(), NUM_BINS, range=(-0.5, num_draws + 0.5), color="C0")
    ax.set(title=title, xlabel="rank", yticks=[])


def plot_coverage(ax: Any, coverage: Tensor, num_datasets: int, names: list[str]) -> None:
    """Draws coverages `(levels, Q)` against the nominal ones with a 95 % band."""
    nominal = torch.tensor(LEVELS).numpy()
    half = 1.96 * (nominal * (1 - nominal) / num_datasets) ** 0.5
    ax.fill_between(nominal, nominal - half, nominal + half, color="0.85", lw=0)
    ax.plot([0, 1], [0, 1], color="0.6", lw=1)
    ax.plot(nominal, coverage.numpy(), lw=1.2, label=names)
    ax.set(title="coverage", xlabel="nominal", ylabel="measured")
    ax.legend(fontsize="x-small")

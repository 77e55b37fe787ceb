"""Ranks of true values among draws: whether they are uniform, what share of regions hold the truth, and figures."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LEVELS = tuple(i / 20 for i in range(1, 20))
NUM_BINS = 20


def rank_p_values(ranks: Tensor, num_draws: int) -> Tensor:
    """p-values `(Q,)` of the chi-squared test of uniform ranks `(D, Q)` on 0..num_draws."""
    edge, share = _bins(num_draws)
    expected = len(ranks) * share
    counts = torch.stack([torch.bincount(edge[column], minlength=len(share)) for column in ranks.T])
    statistic = ((counts - expected) ** 2 / expected).sum(-1)
    return torch.special.gammaincc(torch.tensor((len(share) - 1) / 2, dtype=torch.float64), statistic / 2)


def rank_among(draws: Tensor, truth: Tensor) -> Tensor:
    """How many of draws `(S, ...)` lie below the truth `(...)`; of those that equal it, a uniform number.

    Source:
        Modrak et al. (2023), "Simulation-based calibration checking for Bayesian computation".
    """
    below, ties = (draws < truth).sum(0), (draws == truth).sum(0)
    if not bool(ties.any()):  # so that no numbers are drawn
        return below
    return below + (torch.rand(ties.shape, device=ties.device) * (ties + 1)).long().clamp(max=ties)


def _bins(num_draws: int) -> tuple[Tensor, Tensor]:
    """The bin of each rank in 0..S, at most 20 of them, and the share `(bins,)` of uniform ranks in each."""
    num_bins = min(NUM_BINS, num_draws + 1)
    edge = torch.arange(num_draws + 1) * num_bins // (num_draws + 1)
    return edge, torch.bincount(edge, minlength=num_bins).double() / (num_draws + 1)


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
    got = len(axes) if hasattr(axes, "__len__") else 1
    if got != count:
        raise ValueError(f"axes must be {count}, {what}; got {got}; use plt.subplots(1, {count})[1]")
    return axes


def plot_ranks(ax: Any, ranks: Tensor, num_draws: int, title: str) -> None:
    """Draws a histogram of ranks `(D,)` with a 99 % band of a uniform one, in the bins of `rank_p_values`."""
    edge, share = _bins(num_draws)
    per_rank = share * (num_draws + 1)  # bins differ in width where S + 1 is no multiple of their number
    expected = len(ranks) / (num_draws + 1)
    half = 2.58 * (len(ranks) * share * (1 - share)).sqrt() / per_rank
    edges = torch.cat([torch.zeros(1), per_rank.cumsum(0)]).numpy() - 0.5
    ax.stairs((expected + half).numpy(), edges, baseline=(expected - half).numpy(), fill=True, color="0.85")
    ax.stairs((torch.bincount(edge[ranks], minlength=len(share)) / per_rank).numpy(), edges, fill=True, color="C0")
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

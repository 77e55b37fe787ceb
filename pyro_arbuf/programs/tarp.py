"""Tests of accuracy with random points: expected coverage of the joint posterior's regions around reference points."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.display import Table, shown_as_table
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.latents import Latent, standardisation
from pyro_arbuf.programs.known_truth import (
    DATASETS,
    Posterior,
    check_sizes,
    chosen_trials,
    known_posteriors,
    simulating,
)
from pyro_arbuf.programs.ranks import (
    LEVELS,
    panels,
    plot_coverage,
    plot_ranks,
    rank_among,
    rank_p_values,
    sbc_tree,
    share_between,
    smallest_p_value,
)
from pyro_arbuf.programs.simulator import Program, Simulator
from pyro_arbuf.programs.sources import prior_simulator


def _summary(found: "ExpectedCoverage") -> tuple[str, Table]:
    table = {
        "region around": found.names,
        "p of uniform ranks": [f"{p:.3f}" for p in found.p_values.tolist()],
        "50 % region holds": [f"{share:.3f}" for share in found.coverage[found.levels.index(0.5)].tolist()],
        "90 % region holds": [f"{share:.3f}" for share in found.coverage[found.levels.index(0.9)].tolist()],
    }
    return f"ExpectedCoverage({len(found.ranks)} data sets, p = {found.p_value:.3f} for all points together)", table


@shown_as_table(_summary)
class ExpectedCoverage(NamedTuple):
    """What `tarp` measures, for each of R reference points.

    Attributes:
        references: `(R, P)`, the points, unconstrained.
        ranks: `(D, R)` int64, how many of the posterior draws lie nearer to the point than the true latents do.
        num_draws: Posterior draws per data set.
        p_values: `(R,)`, of the chi-squared test that the ranks are uniform.
        levels: Credibility levels of the regions.
        coverage: `(levels, R)`, the share of data sets whose region holds the true latents: of the ball around the
            point that has so much of the posterior's mass.
    """

    references: Tensor
    ranks: Tensor
    num_draws: int
    p_values: Tensor
    levels: tuple[float, ...]
    coverage: Tensor

    @property
    def names(self) -> list[str]:
        """Of the points, as figures and trees call them."""
        return [f"point {i}" for i in range(len(self.references))]

    @property
    def p_value(self) -> float:
        """The smallest p-value after Bonferroni's correction for R points."""
        return smallest_p_value(self.p_values)

    def plot(self, axes: Any = None) -> Any:
        """Draws the ranks of the point with the smallest p-value, and the coverage of all against the nominal one.

        Bands hold 99 % of uniform ranks, and 95 % of the coverages of an exact posterior.

        Args:
            axes: 2 axes of matplotlib to draw into; `None` = those of a new figure of pyplot.

        Returns:
            The axes, an array; their figure is `axes[0].figure`.

        Raises:
            ValueError: If there is another number of axes.
        """
        import matplotlib.pyplot as plt  # slow, and only figures need it

        with plt.style.context("pyro_arbuf.house"):
            axes, worst = panels(axes, 2, "one of ranks and one of coverage"), int(self.p_values.argmin())
            title = f"{self.names[worst]} (p = {self.p_values[worst]:.2f})"
            plot_ranks(axes[0], self.ranks[:, worst], self.num_draws, title)
            plot_coverage(axes[1], self.coverage, len(self.ranks), self.names)
        return axes

    def to_datatree(self) -> Any:
        """The ranks as ArviZ 1.x reads them: `plot_ecdf_pit(found.to_datatree())`.

        Returns:
            An `xarray.DataTree` of the group `prior_sbc`; a draw of it is a data set, and values are shares of
            posterior draws nearer than the truth, as "point 0" and so on.
        """
        return sbc_tree("prior_sbc", dict(zip(self.names, self.ranks.T, strict=True)), self.num_draws)


@torch.no_grad()
def tarp(
    net: ArBufferModel,
    num_datasets: int | None = None,
    num_draws: int = 99,
    num_trials: int | None = None,
    num_references: int = 5,
    program: Program | Simulator | None = None,
    posterior: Posterior | None = None,
    seed: int = 0,
) -> ExpectedCoverage:
    """Expected coverage of the joint posterior, by distances to random reference points.

    Around a reference point, the ball that holds a share of the posterior's mass must hold the true latents in that
    share of the data sets. Balls see all latents at once, so a posterior with right margins and a wrong dependence
    fails. Points are drawn from the prior once, in the unconstrained space, and serve all data sets; distances are in
    units of the prior's scales. A posterior that equals the prior passes: `calibrate` says whether anything was
    learned.

    Args:
        net: A network with latents.
        num_datasets: Data sets D drawn from the prior; `None` = 500, of stored simulations at most those held out.
        num_draws: Posterior draws per data set; one less than a multiple of 20 fills the bins evenly.
        num_trials: Trials per data set; `None` = the largest trained number.
        num_references: Reference points R.
        program: The program, or a Simulator of it; `None` = the one the network was trained on.
        posterior: What is checked in place of the network's own posterior, as for `calibrate`.
        seed: Of points, data sets and draws.

    Returns:
        Ranks, p-values and coverage; its `plot()` draws them.

    Raises:
        ValueError: If the network's program is not known, a number is no positive integer, or `seed` no integer.

    Source:
        Lemos et al. (2023), "Sampling-based accuracy testing of posterior estimators for general inference". There a
        point is drawn for each data set; the same points for all see a shift too, which random directions average out.
    """
    trials = chosen_trials(net.config, num_trials)
    check_sizes(
        seed,
        posterior,
        num_datasets=DATASETS if num_datasets is None else num_datasets,
        num_draws=num_draws,
        num_trials=trials,
        num_references=num_references,
    )
    simulator = prior_simulator(net, program)
    num_datasets = simulator.most_unseen(DATASETS) if num_datasets is None else num_datasets
    net, parts = net.in_units(), []  # the program's units
    device = next(net.parameters()).device
    scale = prior_scales(net.config.latents).to(device)
    with simulating(seed):
        references = simulator.draw(num_references, trials).latents
        points = references.to(device)[:, None] / scale
        for truth, _, _, draws in known_posteriors(
            net,
            simulator.unseen(num_datasets, trials),
            posterior or ArBufferPosterior,
            num_datasets,
            num_draws,
            "coverage",
        ):
            radius = (truth / scale - points).norm(dim=-1)  # (R, B)
            distance = (draws[:, None] / scale - points).norm(dim=-1)  # (S, R, B)
            parts.append(rank_among(distance, radius).T.cpu())
    ranks = torch.cat(parts)
    coverage = torch.stack([share_between(ranks, num_draws, 0.0, level) for level in LEVELS])
    return ExpectedCoverage(references.cpu(), ranks, num_draws, rank_p_values(ranks, num_draws), LEVELS, coverage)


def prior_scales(latents: tuple[Latent, ...]) -> Tensor:
    """Scale `(P,)` of each unconstrained number under the prior."""
    _, scale = standardisation(latents, 1, None, None)
    return scale[1:, 0]  # the first is the outcome's

"""Simulation-based calibration of a posterior and of its joint density, and what it has learned from the data."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.display import Table, shown_as_table
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.inference.validation import check_count
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import Locations, latent_locations, pad_outcome
from pyro_arbuf.programs.known_truth import (
    DATASETS,
    Known,
    Posterior,
    check_sizes,
    checked_log_prob,
    chosen_trials,
    known_posteriors,
    simulating,
)
from pyro_arbuf.programs.ranks import (
    LEVELS,
    central_coverage,
    panels,
    plot_coverage,
    plot_ranks,
    rank_among,
    rank_p_values,
    sbc_tree,
    smallest_p_value,
)
from pyro_arbuf.programs.runs import FAILURES
from pyro_arbuf.programs.simulator import Program, Simulator, unconstrained_log_prior
from pyro_arbuf.programs.sources import prior_simulator

JOINT = "joint density"
FEWEST = 19  # draws, for their spread
Group = Literal["prior_sbc", "posterior_sbc"]


def _summary(found: "Calibration") -> tuple[str, Table]:
    before = "prior sd" if found.group == "prior_sbc" else "sd before"
    table = {
        "latent": [*found.names, JOINT],
        "p of uniform ranks": [f"{p:.3f}" for p in [*found.p_values.tolist(), found.density_p_value]],
        "90 % interval holds": [*(f"{c:.3f}" for c in found.coverage[found.levels.index(0.9)].tolist()), ""],
        f"posterior sd / {before}": [*(_rounded(share) for share in found.contraction.tolist()), ""],
        "gain (nats)": [_rounded(gain) for gain in [*found.marginal_gain.tolist(), found.gain.mean().item()]],
    }
    return f"Calibration({len(found.ranks)} data sets, p = {found.p_value:.3f} for all rows together)", table


def _rounded(value: float) -> str:
    """Two digits; nothing for what is not known."""
    return "" if math.isnan(value) else f"{value:.2f}"


@shown_as_table(_summary)
class Calibration(NamedTuple):
    """What `calibrate` measures, per latent number and of their joint density; also what `posterior_sbc` measures.

    Attributes:
        names: P names, of the latents' unconstrained numbers.
        ranks: `(D, P)` int64, how many of the posterior draws lie below the true value.
        num_draws: Posterior draws per data set.
        p_values: `(P,)`, of the chi-squared test that the ranks are uniform.
        levels: Nominal coverages of central intervals.
        coverage: `(levels, P)`, the share of data sets whose interval holds the true value.
        contraction: `(P,)`, standard deviation of the posterior over that of the prior, a mean over data sets, half of
            a central 68 % interval of the unconstrained number each. It is too small by 2 % of itself for 99 draws and
            by a tenth for 19, and NaN for fewer draws or data sets. Ranks and coverage of the prior are perfect: they
            do not show whether anything was learned; this and the gains do.
        marginal_gain: `(P,)` nats, log density of each true number given the data, minus that without data, by the
            network: a mean over data sets, 0 for what is not learned. NaN for a posterior other than the network's own.
        gain: `(D,)` nats, log density of the true latents under the posterior minus that under the prior, which is the
            program's own where it has a density, else the network's without data.
        density_ranks: `(D,)` int64, how many of the posterior draws have a lower joint log density than the true
            latents. The ranks of single numbers miss a wrong dependence among them; these see it.
        group: Of ArviZ's schema: "prior_sbc", or "posterior_sbc" where the true latents come from the posterior of
            some observed data, which then takes the prior's place in `contraction` and the gains.
    """

    names: list[str]
    ranks: Tensor
    num_draws: int
    p_values: Tensor
    levels: tuple[float, ...]
    coverage: Tensor
    contraction: Tensor
    marginal_gain: Tensor
    gain: Tensor
    density_ranks: Tensor
    group: Group = "prior_sbc"

    @property
    def density_p_value(self) -> float:
        """Of the chi-squared test that the ranks of the joint density are uniform."""
        return rank_p_values(self.density_ranks[:, None], self.num_draws).item()

    @property
    def p_value(self) -> float:
        """The smallest p-value after Bonferroni's correction for P latents and their joint density."""
        return smallest_p_value(torch.cat([self.p_values, self.p_values.new_tensor([self.density_p_value])]))

    def plot(self, axes: Any = None) -> Any:
        """Draws histograms of the ranks with a 99 % band, and the coverage against the nominal one with a 95 % band.

        Args:
            axes: P + 2 axes of matplotlib to draw into, one for each latent, one of the joint density, one of coverage;
                `None` = those of a new figure of pyplot.

        Returns:
            The axes, an array; their figure is `axes[0].figure`.

        Raises:
            ValueError: If there is another number of axes.
        """
        import matplotlib.pyplot as plt  # slow, and only figures need it

        with plt.style.context("pyro_arbuf.house"):
            what = "one for each latent, one of the joint density and one of coverage"
            axes = panels(axes, len(self.names) + 2, what)
            columns = zip([*self.names, JOINT], [*self.ranks.T, self.density_ranks], strict=True)
            p_values = [*self.p_values.tolist(), self.density_p_value]
            for ax, (name, ranks), p in zip(axes, columns, p_values, strict=False):  # the last one is of coverage
                plot_ranks(ax, ranks, self.num_draws, f"{name} (p = {p:.2f})")
            plot_coverage(axes[-1], self.coverage, len(self.ranks), self.names)
        return axes

    def to_datatree(self) -> Any:
        """The ranks as ArviZ 1.x reads them: `plot_ecdf_pit(found.to_datatree(), group=found.group)`.

        Returns:
            An `xarray.DataTree` of one group, named by `group`; a draw of it is a data set, and values are shares of
            posterior draws below the truth, by the names of latent numbers and as "joint density".
        """
        columns = dict(zip(self.names, self.ranks.T, strict=True)) | {JOINT: self.density_ranks}
        return sbc_tree(self.group, columns, self.num_draws)


@torch.no_grad()
def calibrate(
    net: ArBufferModel,
    num_datasets: int | None = None,
    num_draws: int = 99,
    num_trials: int | None = None,
    program: Program | Simulator | None = None,
    num_orders: int = 1,
    seed: int = 0,
    posterior: Posterior | None = None,
) -> Calibration:
    """Simulation-based calibration: ranks of true latents among posterior draws, uniform for a calibrated posterior.

    The joint log density of the true latents is ranked too, which sees how they depend on each other. Uniform ranks do
    not say that the posterior has learned from the data; `contraction` and `gain` do.

    Args:
        net: A network with latents.
        num_datasets: Data sets D drawn from the prior; `None` = 500, of stored simulations at most those held out.
        num_draws: Posterior draws per data set; one less than a multiple of 20 fills the bins evenly.
        num_trials: Trials per data set; `None` = the largest trained number.
        program: The program, or a Simulator of it, which holds its inputs too; `None` = the one the network was trained
            on.
        num_orders: Orders of the posterior's chain; for the network's own posterior.
        seed: Of data sets and draws.
        posterior: What is checked in place of the network's own posterior: a function of a Context of B data sets, in
            the program's units, that returns a distribution of batch shape `(B,)` and event shape `(P,)` with `sample`
            and `log_prob`, of the unconstrained numbers.

    Returns:
        Ranks, p-values, coverage, contraction and gains; its `plot()` draws them.

    Raises:
        ValueError: If the network's program is not known, a number is no positive integer, or `seed` no integer.

    Source:
        Talts et al. (2018), "Validating Bayesian inference algorithms with simulation-based calibration"; Modrak et al.
        (2023), "Simulation-based calibration checking for Bayesian computation: the choice of test quantities shapes
        sensitivity".
    """
    trials = chosen_trials(net.config, num_trials)
    check_sizes(
        seed,
        posterior,
        num_datasets=DATASETS if num_datasets is None else num_datasets,
        num_draws=num_draws,
        num_trials=trials,
    )
    check_count("num_orders", num_orders)
    if posterior is not None and num_orders > 1:
        raise ValueError(f"num_orders is for the network's own posterior; got {num_orders} and a posterior; leave it 1")
    simulator = prior_simulator(net, program)
    num_datasets = simulator.most_unseen(DATASETS) if num_datasets is None else num_datasets
    net = net.in_units()  # the program's
    orders = random_orders(net.config.num_latents, num_orders) if num_orders > 1 else None
    own = posterior or (lambda context: ArBufferPosterior(context, orders))
    with simulating(seed):
        known = known_posteriors(
            net,
            simulator.unseen(num_datasets, trials),
            own,
            num_datasets,
            num_draws,
            "calibration",
        )
        return rank_known(known, net.condition(), lambda truth: _log_prior(simulator, net, truth), "prior_sbc")


def rank_known(
    known: Iterable[Known], before: Context, log_before: Callable[[Tensor], Tensor], group: Group
) -> Calibration:
    """Ranks true latents and their joint density among posterior draws, and measures what the data sets have taught.

    Args:
        known: The data sets, some at a time.
        before: What is known before them.
        log_before: Log density `(D,)` of true latents `(D, P)` before them, nats.
        group: Of ArviZ's schema.
    """
    parts, num_draws = [], 0
    for truth, context, law, draws in known:
        num_draws, density = len(draws), checked_log_prob(law, truth)
        below = rank_among(checked_log_prob(law, draws), density)
        if isinstance(law, ArBufferPosterior) and law.context.model is context.model:
            marginal = _marginal_log_prob(context, truth) - _marginal_log_prob(before, truth)
        else:  # a posterior of the user's, which need not have marginals
            marginal = torch.full_like(truth, torch.nan)
        measured = (rank_among(draws, truth), _spread(draws), truth, marginal, density, below)
        parts.append([part.cpu() for part in measured])
    ranks, spread, truth, marginal, density, below = map(torch.cat, zip(*parts, strict=True))  # (D, P) or (D,)
    return Calibration(
        number_names(before.model.config),
        ranks,
        num_draws,
        rank_p_values(ranks, num_draws),
        LEVELS,
        central_coverage(ranks, num_draws),
        (spread / _spread(truth)).mean(0),
        marginal.mean(0),
        density - log_before(truth),
        below,
        group,
    )


def number_names(config: ModelConfig) -> list[str]:
    """Names of the latents' unconstrained numbers, "mu" or "shift[0]"."""
    return [
        latent.name if latent.size == 1 else f"{latent.name}[{i}]"
        for latent in config.latents
        for i in range(latent.size)
    ]


def _spread(draws: Tensor) -> Tensor:
    """Half the central 68 % interval over the first dimension: a standard deviation that heavy tails leave finite.

    NaN where there are too few for it.
    """
    if len(draws) < FEWEST:
        return torch.full_like(draws[0], torch.nan)
    low, high = torch.quantile(draws, draws.new_tensor([0.16, 0.84]), 0)
    return (high - low) / 2


def _marginal_log_prob(context: Context, unconstrained: Tensor) -> Tensor:
    """Log density `(*batch, P)` of each latent number given a context alone, without the other latents."""
    config = context.model.config
    names = [latent.name for latent in config.latents]
    locations = Locations(latent_locations(config.latents, names, config.dim_x, context.y))
    value = unconstrained if config.dim_y is None else pad_outcome(unconstrained, config.dim_y)
    return ArBufferMarginals(context, locations).log_prob_factors(value)


def _log_prior(simulator: Simulator, net: ArBufferModel, unconstrained: Tensor) -> Tensor:
    """Log density `(D,)` of unconstrained latents: of the program's prior, or by the network where that has none."""
    try:
        density = unconstrained_log_prior(simulator, net.config.latents, unconstrained)
    except FAILURES:  # it depends on sites that are integrated out, or has no density
        density = torch.full((len(unconstrained),), torch.nan)
    if not bool(density.isfinite().all()):  # or a value was rounded to the bound of its support
        density = ArBufferPosterior(net.condition()).log_prob(unconstrained.to(next(net.parameters()).device)).cpu()
    return density

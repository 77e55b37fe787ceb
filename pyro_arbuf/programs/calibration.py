"""Simulation-based calibration of an amortised posterior, and what it has learned from the data."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.display import Table, shown_as_table
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.latents import Locations, latent_locations, pad_outcome
from pyro_arbuf.programs.simulator import Program, Simulations, Simulator
from pyro_arbuf.programs.sources import find_simulator
from pyro_arbuf.progress import progress_bar
from pyro_arbuf.random_state import seeded

LEVELS = tuple(i / 20 for i in range(1, 20))
NUM_BINS = 20
BATCH = 25  # data sets at a time


def _summary(found: "Calibration") -> tuple[str, Table]:
    table = {
        "latent": found.names,
        "p of uniform ranks": [f"{p:.3f}" for p in found.p_values.tolist()],
        "90 % interval holds": [f"{share:.3f}" for share in found.coverage[found.levels.index(0.9)].tolist()],
        "posterior sd / prior sd": [f"{share:.2f}" for share in found.contraction.tolist()],
        "gain (nats)": [f"{gain:.2f}" for gain in found.marginal_gain.tolist()],
    }
    return f"Calibration({len(found.ranks)} data sets, p = {found.p_value:.3f} for all latents together)", table


@shown_as_table(_summary)
class Calibration(NamedTuple):
    """What `calibrate` measures, per latent number.

    Attributes:
        names: P names, of the latents' unconstrained numbers.
        ranks: `(D, P)` int64, how many of the posterior draws lie below the true value.
        num_draws: Posterior draws per data set.
        p_values: `(P,)`, of the chi-squared test that the ranks are uniform.
        levels: Nominal coverages of central intervals.
        coverage: `(levels, P)`, the share of data sets whose interval holds the true value.
        contraction: `(P,)`, standard deviation of the posterior over that of the prior, a mean over data sets, half of
            a central 68 % interval of the unconstrained number each. Ranks and coverage of the prior are perfect:
            they do not show whether anything was learned; this and the gains do.
        marginal_gain: `(P,)` nats, log density of each true number given the data, minus that without data, by the
            network: a mean over data sets, 0 for what is not learned.
        gain: `(D,)` nats, log density of the true latents under the posterior minus that under the prior, which is the
            program's own where it has a density, else the network's without data.
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

    @property
    def p_value(self) -> float:
        """The smallest p-value after Bonferroni's correction for P latents."""
        return min(1.0, self.p_values.min().item() * len(self.names))

    def plot(self, axes: Any = None) -> Any:
        """Draws histograms of the ranks with a 99 % band, and the coverage against the nominal one with a 95 % band.

        Args:
            axes: P + 1 axes of matplotlib to draw into; `None` = those of a new figure of pyplot.

        Returns:
            The axes, an array; their figure is `axes[0].figure`.

        Raises:
            ValueError: If there is another number of axes.
        """
        import matplotlib.pyplot as plt  # slow, and only figures need it

        count = len(self.names)
        with plt.style.context("pyro_arbuf.house"):
            if axes is None:
                axes = plt.subplots(1, count + 1, figsize=(2.6 * (count + 1), 2.6))[1]
            if len(axes) != count + 1:
                raise ValueError(f"axes must be {count + 1}, one for each latent and one of coverage; got {len(axes)}")
            for p, ax in enumerate(axes[:-1]):
                self._plot_ranks(ax, p)
            nominal = torch.tensor(self.levels).numpy()
            half = 1.96 * (nominal * (1 - nominal) / len(self.ranks)) ** 0.5
            axes[-1].fill_between(nominal, nominal - half, nominal + half, color="0.85", lw=0)
            axes[-1].plot([0, 1], [0, 1], color="0.6", lw=1)
            axes[-1].plot(nominal, self.coverage.numpy(), lw=1.2, label=self.names)
            axes[-1].set(title="coverage", xlabel="nominal", ylabel="measured")
            axes[-1].legend(fontsize="x-small")
        return axes

    def _plot_ranks(self, ax: Any, p: int) -> None:
        """Draws the ranks of one latent number."""
        expected = len(self.ranks) / NUM_BINS
        half = 2.58 * (expected * (1 - 1 / NUM_BINS)) ** 0.5
        ax.axhspan(expected - half, expected + half, color="0.85")
        ax.hist(self.ranks[:, p].numpy(), NUM_BINS, range=(-0.5, self.num_draws + 0.5), color="C0")
        ax.set(title=f"{self.names[p]} (p = {self.p_values[p]:.2f})", xlabel="rank", yticks=[])


@torch.no_grad()
def calibrate(
    net: ArBufferModel,
    num_datasets: int = 500,
    num_draws: int = 99,
    num_trials: int | None = None,
    program: Program | Simulator | None = None,
    num_orders: int = 1,
    seed: int = 0,
) -> Calibration:
    """Simulation-based calibration: ranks of true latents among posterior draws, uniform for a calibrated posterior.

    Uniform ranks do not say that the posterior has learned from the data; `contraction` and `gain` do.

    Args:
        net: A network with latents.
        num_datasets: Data sets D drawn from the prior.
        num_draws: Posterior draws per data set; one less than a multiple of 20 fills the bins evenly.
        num_trials: Trials per data set; `None` = the largest trained number.
        program: The program, or a Simulator of it, which holds its inputs too; `None` = the one the network was trained
            on.
        num_orders: Orders of the posterior's chain.
        seed: Of data sets and draws.

    Returns:
        Ranks, p-values, coverage, contraction and gains; its `plot()` draws them.

    Raises:
        ValueError: If the network's program is not known, a number is no positive integer, or `seed` no integer.

    Source:
        Talts et al. (2018), "Validating Bayesian inference algorithms with simulation-based calibration".
    """
    num_trials = max(1, net.config.num_context[1]) if num_trials is None else num_trials
    numbers = {"num_datasets": num_datasets, "num_draws": num_draws, "num_trials": num_trials, "num_orders": num_orders}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer; got {value!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0; got {seed!r}")
    simulator = find_simulator(net, program)
    net = net.in_units()  # the program's
    orders = random_orders(net.config.num_latents, num_orders) if num_orders > 1 else None
    parts, device = [], next(net.parameters()).device
    with seeded(seed), warnings.catch_warnings():
        # Draws from the prior are what it was trained on.
        warnings.filterwarnings("ignore", message=".*outside the trained range.*")
        for start in progress_bar(range(0, num_datasets, BATCH), desc="calibration", leave=False):
            drawn = simulator.draw(min(BATCH, num_datasets - start), num_trials)
            drawn = Simulations(*(part.to(device) for part in drawn))
            context = net.condition(drawn.x, net.config.squeeze_outcome(drawn.y))
            posterior = ArBufferPosterior(context, orders)
            draws, truth = posterior.sample((num_draws,)), drawn.latents
            marginal = _marginal_log_prob(context, truth) - _marginal_log_prob(net.condition(), truth)
            measured = ((draws < truth).sum(0), _spread(draws), truth, marginal, posterior.log_prob(truth))
            parts.append([part.cpu() for part in measured])
        ranks, spread, truth, marginal, density = map(torch.cat, zip(*parts, strict=True))  # (D, P), the last (D,)
        gain = density - _log_prior(simulator, net, truth)
    names = [
        latent.name if latent.size == 1 else f"{latent.name}[{i}]"
        for latent in net.config.latents
        for i in range(latent.size)
    ]
    uniformity, coverage = _uniformity(ranks, num_draws), _coverage(ranks, num_draws)
    contraction = (spread / _spread(truth)).mean(0)
    return Calibration(names, ranks, num_draws, uniformity, LEVELS, coverage, contraction, marginal.mean(0), gain)


def _spread(draws: Tensor) -> Tensor:
    """Half the central 68 % interval over the first dimension: a standard deviation that heavy tails leave finite."""
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
    sizes = [latent.size for latent in net.config.latents]
    parts = zip(net.config.latents, unconstrained.split(sizes, -1), strict=True)
    sites = {latent.name: latent.constrain(part) for latent, part in parts}
    try:
        density = simulator.log_prior({name: value for name, (value, _) in sites.items()})
        density = density + sum(jacobian for _, jacobian in sites.values())
    except ValueError:  # it depends on sites that are integrated out, or has no density
        density = torch.full((len(unconstrained),), torch.nan)
    if not bool(density.isfinite().all()):  # or a value was rounded to the bound of its support
        density = ArBufferPosterior(net.condition()).log_prob(unconstrained.to(next(net.parameters()).device)).cpu()
    return density


def _uniformity(ranks: Tensor, num_draws: int) -> Tensor:
    """p-values `(P,)` of the chi-squared test of uniform ranks `(D, P)` on 0..num_draws."""
    num_bins = min(NUM_BINS, num_draws + 1)
    edge = torch.arange(num_draws + 1) * num_bins // (num_draws + 1)  # bin of each rank
    share = torch.bincount(edge, minlength=num_bins).double() / (num_draws + 1)
    expected = len(ranks) * share
    counts = torch.stack([torch.bincount(edge[column], minlength=num_bins) for column in ranks.T])
    statistic = ((counts - expected) ** 2 / expected).sum(-1)
    return torch.special.gammaincc(torch.tensor((num_bins - 1) / 2, dtype=torch.float64), statistic / 2)


def _coverage(ranks: Tensor, num_draws: int) -> Tensor:
    """Share `(levels, P)` of data sets whose central interval of each level holds the true value.

    A rank r stands for the cell from r / (S + 1) to (r + 1) / (S + 1), so that uniform ranks cover exactly each level.
    """
    low = ranks.double() / (num_draws + 1)
    covered = []
    for level in LEVELS:
        inside = (low + 1 / (num_draws + 1)).clamp(max=(1 + level) / 2) - low.clamp(min=(1 - level) / 2)
        covered.append((inside.clamp(min=0) * (num_draws + 1)).mean(0))
    return torch.stack(covered)

"""Martingale posteriors by `predictive_resampling` against exact posteriors.

    python benchmarks/predictive_resampling.py                                     # 5 CPU minutes
    python benchmarks/predictive_resampling.py --plot docs/how-to/population.png   # the figure of the manual, too

Network `gaussian`: mean and standard deviation of a population of 50, of which 5 rows were observed. Of 400 data sets
whose latents are known, how many have them in their 90 % interval, how mean and sd of the draws compare with those of
the exact posterior, and whether the outcome drifts: within what the network was trained on, and beyond it.

Network `gp-1d-noisy`: mean and maximum of the curve over a grid, of functions of which 16 noisy values were observed,
the other 112 rows drawn anywhere. The exact posterior integrates kernel and hyperparameters by importance sampling.

Time of rolling with the buffer and one row at a time. Prints tables, then one JSON line.
"""

import json
import math
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import torch
import tyro
from matplotlib.figure import Figure
from quality import mean_se
from torch import Tensor
from torch.distributions import Gamma, MultivariateNormal, StudentT
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf import ArBufferMarginals, ArBufferModel, predictive_resampling
from pyro_arbuf.priors.gaussian import COUNT, RATE, SHAPE, NormalGamma, exact_posterior
from pyro_arbuf.priors.gp import KERNEL_WEIGHTS, LENGTHSCALE, NOISE_SD, VARIANCE, X_RANGE, correlation
from pyro_arbuf.random_state import seeded
from pyro_arbuf.workflow.resampling import MartingalePosterior, Population

OBSERVED, POPULATION, BEYOND = 5, 50, 150  # rows of the Gaussian; the network was trained on up to 100
GP_OBSERVED, GP_POPULATION = 16, 128
GRID = torch.linspace(*X_RANGE, 64)[:, None]
NUM_HYPERPARAMETERS, NUM_EXACT = 32_768, 400
LEVEL = 0.9
CHUNK = 10  # data sets that are rolled together


class Compared(NamedTuple):
    """Draws of one functional for D data sets.

    Attributes:
        truth: `(D,)`, its true values.
        draws: `(S, D)`, of the martingale posterior.
        exact: `(S', D)`, of the exact posterior.
    """

    truth: Tensor
    draws: Tensor
    exact: Tensor

    def covered(self, draws: Tensor) -> Tensor:
        """Whether the central interval of draws holds the truth, `(D,)`: exactly `LEVEL` of those of equal law do."""
        below, least = (draws < self.truth).sum(0), round((1 - LEVEL) / 2 * (len(draws) + 1))
        return (below >= least) & (below <= len(draws) - least)

    def row(self) -> dict[str, float]:
        """Coverage of both, and how the draws differ from the exact posterior."""
        bias = mean_se((self.draws.mean(0) - self.exact.mean(0)) / self.exact.std(0))
        return {
            "coverage": self.covered(self.draws).double().mean().item(),
            "exact coverage": self.covered(self.exact).double().mean().item(),
            "bias": bias[0],
            "its error": bias[1],
            "sd ratio": (self.draws.var(0) / self.exact.var(0)).mean().sqrt().item(),
        }


def spread(population: Population) -> Tensor:
    """Mean and standard deviation of a population, `(*, 2)`."""
    return torch.stack([population.y.mean(-1), population.y.std(-1)], -1)


def curve(population: Population) -> Tensor:
    """Mean and maximum over the grid of what is predicted once the population is known, `(*, 2)`."""
    mean = ArBufferMarginals(population.context, GRID).mean
    return torch.stack([mean.mean(-1), mean.amax(-1)], -1)


def draw_inputs(shape: torch.Size) -> Tensor:
    """Inputs of a function, uniform on the trained range."""
    return X_RANGE[0] + (X_RANGE[1] - X_RANGE[0]) * torch.rand(*shape, 1)


def draw_gaussian(num_sets: int, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means `(D,)`, standard deviations `(D,)` and outcomes `(D, num_rows)` of data sets from the prior."""
    tau = Gamma(SHAPE, RATE).sample((num_sets,))
    mu, sd = torch.randn(num_sets) * (COUNT * tau).rsqrt(), tau.rsqrt()
    return mu, sd, mu[:, None] + sd[:, None] * torch.randn(num_sets, num_rows)


def roll_gaussian(net: ArBufferModel, y: Tensor, population: int, num_draws: int) -> tuple[Tensor, MartingalePosterior]:
    """Martingale posteriors of mean and sd for data sets `(D, N)`: `(S, D, 2)`, and the last of the results."""
    parts = []
    for some in tqdm(y.split(CHUNK), desc=f"population of {population}", leave=False):
        context = net.condition(torch.zeros(*some.shape, 1), some)
        new = population - some.shape[1]
        parts.append(predictive_resampling(context, lambda shape: torch.zeros(*shape, 1), spread, new, num_draws))
    draws, drift, error = (torch.cat([part[i] for part in parts], dim) for i, dim in enumerate((1, 0, 0)))
    return draws, MartingalePosterior(draws, drift, error, parts[0].num_early)


def drift_row(found: MartingalePosterior, exact: NormalGamma) -> dict[str, float]:
    """How large drifts are beside their errors, and beside the exact posterior's standard deviation."""
    z, sd = found.drift / found.drift_error, mean_sd(exact)
    size = ((found.drift.square() - found.drift_error.square()) / sd.square()).mean()
    return {
        "data sets": len(z),
        "within 2 errors": (z.abs() < 2).double().mean().item(),
        "mean square z": z.square().mean().item(),
        "of a martingale": (len(found.draws) - 1) / (len(found.draws) - 3),
        "rms drift in posterior sd": size.clamp(min=0).sqrt().item(),
        "error of one in posterior sd": (found.drift_error / sd).mean().item(),
    }


def mean_sd(exact: NormalGamma) -> Tensor:
    """Standard deviation of the mean under its posterior, a t law."""
    return (exact.rate / ((exact.shape - 1) * exact.count)).sqrt()


class Hyperparameters(NamedTuple):
    """Of n Gaussian processes: class of the kernel `(n,)`, the others `(n, 1, 1)`."""

    kernel: Tensor
    variance: Tensor
    lengthscale: Tensor
    noise_sd: Tensor

    @staticmethod
    def draw(number: int) -> "Hyperparameters":
        """From the prior of `gp-1d-noisy`."""
        uniform = torch.rand(3, number, 1, 1, dtype=torch.float64)
        kernel = torch.multinomial(torch.tensor(KERNEL_WEIGHTS), number, replacement=True)
        ends = (VARIANCE, LENGTHSCALE, [math.log(sd) for sd in NOISE_SD])
        variance, lengthscale, log_noise = (
            low + (high - low) * u for (low, high), u in zip(ends, uniform, strict=True)
        )
        return Hyperparameters(kernel, variance, lengthscale, log_noise.exp())

    def at(self, index: Tensor) -> "Hyperparameters":
        """Some of them."""
        return Hyperparameters(*(part[index] for part in self))

    def covariance(self, x: Tensor, others: Tensor) -> Tensor:
        """Of curves at `(N, 1)` and `(M, 1)`, `(n, N, M)`."""
        scaled = (x - others.mT).abs() / self.lengthscale
        for kernel in self.kernel.unique().tolist():
            scaled[self.kernel == kernel] = correlation(scaled[self.kernel == kernel], kernel)
        return scaled * self.variance


def gaussian_draws(mean: Tensor, covariance: Tensor) -> Tensor:
    """One draw each of normal laws `(n, M)`; the covariance may be singular up to rounding."""
    jitter = 1e-7 * torch.eye(covariance.shape[-1], dtype=torch.float64)
    return mean + (torch.linalg.cholesky(covariance + jitter) @ torch.randn(*mean.shape, 1).double()).squeeze(-1)


def exact_curves(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """Draws `(NUM_EXACT, grid)` of the curve given `(N, 1)` and `(N,)`, and how many hyperparameters count for them."""
    prior, grid = Hyperparameters.draw(NUM_HYPERPARAMETERS), GRID.double()
    noise = torch.eye(len(x), dtype=torch.float64) * prior.noise_sd.square()
    weights = MultivariateNormal(torch.zeros(len(x)).double(), prior.covariance(x, x) + noise).log_prob(y).softmax(0)
    chosen = torch.multinomial(weights, NUM_EXACT, replacement=True)
    own = prior.at(chosen)
    gain = torch.linalg.solve(own.covariance(x, x) + noise[chosen], own.covariance(x, grid)).mT  # (n, grid, N)
    rest = own.covariance(grid, grid) - gain @ own.covariance(x, grid)
    return gaussian_draws(gain @ y, rest), 1 / weights.square().sum().item()


def compare_curves(num_functions: int, num_draws: int) -> tuple[dict[str, Compared], MartingalePosterior, float]:
    """Mean and maximum over the grid for functions from the prior; the drift; the least number of hyperparameters."""
    net, parts, least = pyro_arbuf.load("gp-1d-noisy"), [], math.inf
    new = GP_POPULATION - GP_OBSERVED
    for _ in tqdm(range(num_functions), desc="curves", leave=False):
        own, x = Hyperparameters.draw(1), draw_inputs(torch.Size([GP_OBSERVED])).double()
        places = torch.cat([x, GRID.double()])
        f = gaussian_draws(torch.zeros(1, len(places)).double(), own.covariance(places, places))[0]
        y = f[:GP_OBSERVED] + own.noise_sd.flatten() * torch.randn(GP_OBSERVED).double()
        exact, effective = exact_curves(x, y)
        context = net.condition(x.float(), y.float())
        found = predictive_resampling(context, draw_inputs, curve, new, num_draws)
        truth, least = f[GP_OBSERVED:], min(least, effective)
        for_each = [torch.stack([part.mean(-1), part.amax(-1)], -1) for part in (truth, exact)]
        parts.append((for_each[0], found.draws, for_each[1], found.drift, found.drift_error))
    truth, draws, exact, drift, error = (torch.stack(part, -1) for part in zip(*parts, strict=True))  # (., 2, D)
    compared = {
        name: Compared(truth[i], draws[:, i], exact[:, i]) for i, name in enumerate(("mean of the curve", "maximum"))
    }
    return compared, MartingalePosterior(draws, drift, error, new // 2), least


def time_rolling(num_draws: int) -> tuple[float, float]:
    """CPU seconds of rolling one function, with the buffer and by re-encoding after every row."""
    net = pyro_arbuf.load("gp-1d-noisy")
    x = torch.linspace(*X_RANGE, GP_OBSERVED)[:, None]
    context = net.condition(x, torch.sin(3 * x[:, 0]))

    def seconds(buffer_size: int) -> float:
        start, new = time.process_time(), GP_POPULATION - GP_OBSERVED
        predictive_resampling(context, draw_inputs, spread, new, num_draws, buffer_size)
        return time.process_time() - start

    return seconds(16), seconds(1)


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Prints rows of numbers under the names of the first."""
    names = list(next(iter(rows.values())))
    print(f"\n{title}\n\n| | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|")
    for label, row in rows.items():
        print(f"| {label} | {' | '.join(f'{row[name]:.4g}' for name in names)} |")


def draw_figure(
    path: Path, means: Compared, exact: NormalGamma, maxima: Compared, drifts: dict[str, MartingalePosterior]
) -> None:
    """Standardised draws of all data sets beside the exact laws, and drifts in units of their errors."""
    bins, places, num_draws = torch.linspace(-5, 5, 31).numpy(), torch.linspace(-5, 5, 200).double(), len(means.draws)
    scale = (exact.rate / (exact.shape * exact.count)).sqrt()
    standard = [(draws - maxima.exact.mean(0)) / maxima.exact.std(0) for draws in (maxima.draws, maxima.exact)]
    with matplotlib.style.context("pyro_arbuf.house"):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        axes = figure.subplots(1, 3)
        shown = {"bins": bins, "density": True, "alpha": 0.6}
        axes[0].hist(((means.draws - exact.location) / scale).flatten().numpy(), label="predictive resampling", **shown)
        law = StudentT(2 * exact.shape[0]).log_prob(places).exp()
        axes[0].plot(places, law, color="black", label="exact posterior")
        axes[0].set(xlabel="mean, standardised", ylabel="density", title=f"gaussian, {OBSERVED} rows observed")
        axes[1].hist(standard[0].flatten().numpy(), label="predictive resampling", **shown)
        line = {"histtype": "step", "color": "black", "label": "exact posterior"}
        axes[1].hist(standard[1].flatten().numpy(), bins=bins, density=True, **line)
        axes[1].set(xlabel="maximum, standardised", title=f"gp-1d-noisy, {GP_OBSERVED} rows observed")
        for name, found in drifts.items():
            axes[2].hist((found.drift / found.drift_error).numpy(), label=name, **shown)
        law = StudentT(num_draws - 1.0).log_prob(places).exp()
        axes[2].plot(places, law, color="black", label="no drift")
        axes[2].set(xlabel="drift / its standard error", title="drift of gaussian")
        for each in axes:
            each.legend(fontsize=7, loc="upper right")
        figure.savefig(path, dpi=120)


def rows_of(compared: dict[str, Compared]) -> dict[str, dict[str, float]]:
    """The row of each functional."""
    return {name: each.row() for name, each in compared.items()}


def main(
    num_sets: int = 400,
    num_draws: int = 19,
    num_beyond: int = 20,
    num_functions: int = 40,
    plot: Path | None = None,
) -> None:
    """Compares martingale posteriors with exact ones.

    Args:
        num_sets: Data sets of the Gaussian.
        num_draws: Draws of each posterior; one less than a multiple of 20 makes the intervals hold exactly 90 %.
        num_beyond: Data sets of a population larger than in training.
        num_functions: Functions.
        plot: Where to write a figure, if anywhere.
    """
    warnings.filterwarnings("ignore", message=".*outside the trained range")  # on purpose
    start, net = time.process_time(), pyro_arbuf.load("gaussian")
    with seeded(0):
        mu, sd, y = draw_gaussian(num_sets, POPULATION)
        seen = y[:, :OBSERVED]
        draws, within = roll_gaussian(net, seen, POPULATION, num_draws)
        exact = exact_posterior(seen)
        latents = exact.sample((NUM_EXACT,))
        _, beyond = roll_gaussian(net, seen[:num_beyond], BEYOND, num_draws)
        compared = {
            "mean": Compared(mu, draws[..., 0], latents["mu"]),
            "standard deviation": Compared(sd, draws[..., 1], latents["tau"].rsqrt()),
        }
        curves, curve_drift, least = compare_curves(num_functions, num_draws)
    finite = compared["mean"]._replace(truth=y.mean(-1)).covered(draws[..., 0]).double()
    print_table(f"{num_sets} data sets, {num_draws} draws; biases in exact posterior sd", rows_of(compared))
    print_table(f"{num_functions} functions", rows_of(curves))
    print("\nof the mean of the {} rows themselves {:.3f}, standard error {:.3f}".format(POPULATION, *mean_se(finite)))
    print(f"at least {least:.0f} hyperparameters count for an exact curve")
    first = NormalGamma(*(part[:num_beyond] for part in exact))
    drifts = {f"{POPULATION} rows": drift_row(within, exact), f"{BEYOND} rows": drift_row(beyond, first)}
    print_table("drift of the outcome, gaussian, trained on 100 rows", drifts)
    z = (curve_drift.drift / curve_drift.drift_error).square().mean().item()
    seconds = time_rolling(num_draws)
    print(f"\ncurves: mean square of drift / error {z:.2f}")
    print(
        "rolling {} rows: {:.2f} s with the buffer, {:.2f} s row by row".format(GP_POPULATION - GP_OBSERVED, *seconds)
    )
    if plot is not None:
        found = {f"{POPULATION} rows": within, f"{BEYOND} rows": beyond}
        draw_figure(plot, compared["mean"], exact, curves["maximum"], found)
    result = {"benchmark": "predictive resampling", "rows": rows_of(compared | curves), "finite": mean_se(finite)}
    result |= {"drift": drifts, "mean square z of curves": z, "seconds": seconds}
    print(json.dumps(result | {"CPU minutes": (time.process_time() - start) / 60}))


if __name__ == "__main__":
    tyro.cli(main)

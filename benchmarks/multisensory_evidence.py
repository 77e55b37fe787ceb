r"""Numerically exact evidence of simulated multisensory data sets under rho = 1 and rho = 4/3: the reference values.

    python benchmarks/multisensory_evidence.py     # 2 x 15 sets of 400 trials, each under both models; resumes

The latents are written as $z \in R^7$ with a standard normal prior (each is its own prior's quantile at $\Phi(z)$), and
$$p(y \mid x) = \int \prod_i p(y_i \mid x_i, \theta(z)) N(z; 0, I) dz$$
is estimated by importance sampling. The proposal, a mixture of Student-t distributions, is refitted to weighted draws
of tempered posteriors until the posterior itself is reached; only fresh draws of the last proposal enter the estimate.
Where the weights of these are not good enough, proposal and draws are made again, with finer grids for the proposal.
The integral over percepts takes as many grid points at each draw as the motor noise needs; the factor on their numbers
grows until a refinement changes no log likelihood of some draws by more than 1e-3 nats.
Rows go to multisensory_evidence.csv as they are made.
"""

import csv
import math
import os
from pathlib import Path
from typing import NamedTuple

import arviz
import pyro.distributions as dist
import torch
import tyro
from pyro import poutine
from sklearn.mixture import GaussianMixture
from torch import Tensor
from tqdm import tqdm

from pyro_arbuf.priors.multisensory import (
    GRID_SD,
    PRIOR,
    TruncatedNormal,
    draw_trials,
    multisensory_rho1,
    multisensory_rho43,
    response,
)

PROGRAMS = {"multisensory-rho1": multisensory_rho1, "multisensory-rho43": multisensory_rho43}
RHO = {"multisensory-rho1": 1.0, "multisensory-rho43": 4.0 / 3.0}
SEEDS = {"multisensory-rho1": 41_000, "multisensory-rho43": 42_000}
TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ("simulated_from", "index", "model", "log_evidence", "standard_error", "k_hat", "num_draws")

SIZES = torch.tensor([round(21 * 1.12**i) for i in range(32)])  # of the grid, one way: 21 to 705
TOLERANCE = 1e-3  # nats per data set
NUM_CHECKED = 16  # draws
MAX_ROUNDS = 30  # of the proposal
ROUND_DRAWS = 400
COARSE = 0.6  # factor on the grids of the proposal
MOST = (41, 121, 241)  # their grid points one way, of the first attempt, the second, ...
GOOD_ERROR, GOOD_K_HAT = 0.1, 0.7  # end the attempts
TEMPERED_SIZE = 150  # effective draws that set the temperature
ENOUGH = 1000  # effective draws to end with
DEGREES_OF_FREEDOM = 8.0


class Evidence(NamedTuple):
    """Estimate of log p(y | x) and its standard error in nats, Pareto k-hat of the weights, number of draws."""

    log_evidence: float
    standard_error: float
    k_hat: float
    num_draws: int


def simulated_sets(
    model: str, num_sets: int = 15, num_trials: int = 400
) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Data sets drawn from a model's program, the same ones every time.

    Args:
        model: `multisensory-rho1` or `multisensory-rho43`.
        num_sets: Their number.
        num_trials: Trials n of each.

    Returns:
        For each x `(n, 4)`, y `(n,)` and the scalar latents by site, float32.
    """
    sets = []
    for index in range(num_sets):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEEDS[model] + index)
            x = draw_trials(num_trials)
            trace = poutine.trace(PROGRAMS[model]).get_trace(x)
        sets.append((x, trace.nodes["y"]["value"], {name: trace.nodes[name]["value"] for name in PRIOR}))
    return sets


def latents_at(z: Tensor) -> dict[str, Tensor]:
    """Latents `(S, 1)` by site at z `(S, 7)`, whose prior is standard normal."""
    u = torch.special.ndtr(z)
    return {
        name: TruncatedNormal(z.new_tensor(loc), z.new_tensor(scale)).icdf(u[:, i : i + 1])
        for i, (name, (loc, scale)) in enumerate(PRIOR.items())
    }


def grid_sizes(latents: dict[str, Tensor], level: int, r_type: int, rho: float, resolution: float) -> Tensor:
    """Grid points for x_A and x_V, `(S, 2)` of `SIZES`: the finer, the narrower motor noise is in a percept."""
    sigma_a, sigma_s, sigma_m = (latents[f"log_sigma_{name}"].exp() for name in "asm")
    steps = latents["step_medium"] * (level >= 1) + latents["step_high"] * (level >= 2)
    sigma_v = (latents["log_sigma_v_low"] + steps).exp()
    var_a, var_v, var_s = sigma_a.square(), sigma_v.square(), sigma_s.square()
    shared = var_s / (var_a * var_v + (var_a + var_v) * var_s)
    slope_a = var_s / (var_a + var_s) if r_type == 1 else shared * var_v
    slope_v = var_s / (var_v + var_s) if r_type == 0 else shared * var_a
    ratio = torch.cat([rho * sigma_a * slope_a, sigma_v * slope_v], -1) / sigma_m
    wanted = 2.0 * GRID_SD * resolution * (6.0 + 2.0 * ratio.square()).sqrt()  # 6: p(one cause) needs 30 points anyway
    return SIZES[torch.searchsorted(SIZES, wanted.ceil()).clamp(max=len(SIZES) - 1)]


@torch.no_grad()
def log_likelihood(z: Tensor, x: Tensor, y: Tensor, rho: float, resolution: float, most: int = 10_000) -> Tensor:
    """Log likelihood in nats, the draws that take the same grid together.

    Args:
        z: `(S, 7)`.
        x: `(n, 4)`.
        y: `(n,)`; its dtype is that of the integrals.
        rho: Of the model.
        resolution: Factor on the numbers of grid points.
        most: Grid points one way that are enough, for proposals.

    Returns:
        `(S,)`, float64.
    """
    latents, total = latents_at(z), torch.zeros(len(z), dtype=torch.float64)
    for level in range(3):
        for r_type in range(2):
            trials = (x[:, 3] == level) & (x[:, 0] == r_type)
            sizes = grid_sizes(latents, level, r_type, rho, resolution).clamp(max=most)
            for size in sizes.unique(dim=0):
                rows = (sizes == size).all(-1)
                some = {name: value[rows].to(y.dtype) for name, value in latents.items()}
                law = response(x[trials], some, rho, tuple(size.tolist()))
                total[rows] += law.log_prob(y[trials]).double().sum(-1)
    return total


def checked_resolution(z: Tensor, x: Tensor, y: Tensor, rho: float) -> float:
    """The smallest factor at which a refinement changes the log likelihood of no draw z `(S, 7)` beyond tolerance."""
    resolution, coarse = 0.64, log_likelihood(z, x, y, rho, 0.64)
    while True:
        fine = log_likelihood(z, x, y, rho, 1.25 * resolution)
        if (fine - coarse).abs().max() <= TOLERANCE:
            return resolution
        resolution, coarse = 1.25 * resolution, fine


def effective(log_weights: Tensor) -> float:
    """Effective number of draws of log weights `(S,)`."""
    return (2.0 * log_weights.logsumexp(0) - (2.0 * log_weights).logsumexp(0)).exp().item()


def tempered(log_prior: Tensor, log_density: Tensor) -> tuple[float, Tensor]:
    """Largest power of the likelihood, at most 1, that leaves enough effective draws, and the log weights at it."""
    low, high = 0.0, 1.0
    if effective(log_prior + log_density) >= TEMPERED_SIZE:
        return 1.0, log_prior + log_density
    for _ in range(30):
        power = 0.5 * (low + high)
        low, high = (power, high) if effective(log_prior + power * log_density) >= TEMPERED_SIZE else (low, power)
    return low, log_prior + low * log_density


def fitted_mixture(z: Tensor, log_weights: Tensor) -> torch.distributions.MixtureSameFamily:
    """Student-t mixture of weighted draws z `(S, 7)`: a component per 300 effective draws, at most 4."""
    chosen = z[torch.multinomial(log_weights.softmax(0), 4000, replacement=True)]
    num_components = min(4, 1 + int(effective(log_weights) / 300.0))
    fit = GaussianMixture(num_components, reg_covar=1e-4, max_iter=300, tol=1e-2, random_state=0).fit(chosen.numpy())
    factors = torch.linalg.cholesky(torch.from_numpy(fit.covariances_))
    degrees = torch.tensor(DEGREES_OF_FREEDOM, dtype=z.dtype)
    components = dist.MultivariateStudentT(degrees, torch.from_numpy(fit.means_), factors)
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.from_numpy(fit.weights_)), components
    )


def adapted_proposal(x: Tensor, y: Tensor, rho: float, most: int) -> tuple[torch.distributions.Distribution, Tensor]:
    """A proposal near the posterior of z, from grids of `most` points, and `(S, 7)` posterior draws by resampling."""
    prior = torch.distributions.MultivariateNormal(torch.zeros(7).double(), torch.eye(7).double())
    proposals, draws, densities = [prior], [prior.sample((2 * ROUND_DRAWS,))], []
    for _ in range(MAX_ROUNDS):
        densities.append(log_likelihood(draws[-1], x, y, rho, COARSE, most))
        z, density = torch.cat(draws), torch.cat(densities)
        sizes = torch.tensor([float(len(part)) for part in draws]).double()
        log_mixture = torch.stack([law.log_prob(z) for law in proposals], -1) + (sizes / sizes.sum()).log()
        power, log_weights = tempered(prior.log_prob(z) - log_mixture.logsumexp(-1), density)
        proposal = fitted_mixture(z, log_weights)
        if power == 1.0 and effective(log_weights) >= ENOUGH:
            break
        proposals.append(proposal)
        draws.append(proposal.sample((ROUND_DRAWS,)))
    return proposal, z[torch.multinomial(log_weights.softmax(0), NUM_CHECKED)]


def log_evidence(x: Tensor, y: Tensor, rho: float, num_draws: int = 1000) -> Evidence:
    """Log evidence of a data set under the program with this rho.

    Args:
        x: `(n, 4)`, float32.
        y: `(n,)`, float32.
        rho: Factor on the auditory percept.
        num_draws: Fresh draws of the adapted proposal.

    Returns:
        The estimate with its diagnostics.
    """
    for most in MOST:
        proposal, posterior = adapted_proposal(x, y, rho, most)
        resolution = checked_resolution(posterior, x, y, rho)
        z = proposal.sample((num_draws,))
        log_prior = -0.5 * z.square().sum(-1) - 3.5 * math.log(2.0 * math.pi)
        log_weights = log_prior + log_likelihood(z, x, y, rho, resolution) - proposal.log_prob(z)
        relative = (log_weights - log_weights.max()).exp()
        error = (relative.std() / relative.mean()).item() / math.sqrt(num_draws)
        k_hat = float(arviz.psislw(log_weights.numpy())[1])
        if error <= GOOD_ERROR and k_hat < GOOD_K_HAT:
            break
    return Evidence(log_weights.logsumexp(0).item() - math.log(num_draws), error, k_hat, num_draws)


def main(num_sets: int = 15, num_trials: int = 400, num_draws: int = 1000, table: Path = TABLE) -> None:
    """Fills the table, going on where an earlier run stopped.

    Args:
        num_sets: Simulated from each model.
        num_trials: Of each.
        num_draws: Importance draws per evidence.
        table: Where to write; delete it to start anew.
    """
    rows = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
    done = {(row["simulated_from"], int(row["index"]), row["model"]) for row in rows}
    sets = {source: simulated_sets(source, num_sets, num_trials) for source in PROGRAMS}
    wanted = [(source, index, model) for index in range(num_sets) for source in PROGRAMS for model in PROGRAMS]
    for key in tqdm([key for key in wanted if key not in done], desc="evidence"):
        source, index, model = key
        x, y, _ = sets[source][index]
        torch.manual_seed(index)
        value = log_evidence(x, y, RHO[model], num_draws)
        figures = (f"{value.log_evidence:.4f}", f"{value.standard_error:.4f}", f"{value.k_hat:.3f}", value.num_draws)
        rows.append(dict(zip(COLUMNS, (*key, *figures), strict=True)))
        part = table.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, table)


if __name__ == "__main__":
    tyro.cli(main)

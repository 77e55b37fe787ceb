r"""Numerically exact evidence of simulated multisensory data sets under rho = 1 and rho = 4/3: the reference values.

    python benchmarks/multisensory_evidence.py     # 2 x 15 sets of 400 trials, each under both models; resumes

The latents are written as $z \in R^7$ with standard normal prior (each is a quantile of its own prior at $\Phi(z)$), and
$$p(y \mid x) = \int \prod_i p(y_i \mid x_i, \theta(z)) N(z; 0, I) dz$$
is estimated by importance sampling. The proposal, a mixture of Student-t distributions, is refitted to weighted draws
of tempered posteriors until the posterior itself is reached; only fresh draws of the last proposal enter the estimate.
The integral over percepts uses as many grid points for each draw as motor noise and slopes need; the factor on their
number grows until refining it changes no log likelihood of a few checked draws by more than 1e-3 nats.
Rows go to multisensory_evidence.csv as they are made.
"""

import csv
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import arviz
import numpy as np
import torch
import tyro
from pyro import poutine
from sklearn.exceptions import ConvergenceWarning
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
SIZES = torch.tensor([round(21 * 1.12**i) for i in range(33)])  # of the grid, one way: 21 to 790
TOLERANCE = 1e-3  # nats per data set
DEGREES_OF_FREEDOM = 5.0
Set = tuple[Tensor, Tensor, dict[str, Tensor]]


class Evidence(NamedTuple):
    """Estimate of log p(y | x), its standard error in nats, Pareto k-hat of the weights, and their number."""

    log_evidence: float
    standard_error: float
    k_hat: float
    num_draws: int


def simulated_sets(model: str, num_sets: int = 15, num_trials: int = 400) -> list[Set]:
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
    """Latents `(S, 1)` by site, of z `(S, 7)`, whose prior is standard normal."""
    u = torch.special.ndtr(z)
    return {
        name: TruncatedNormal(z.new_tensor(loc), z.new_tensor(scale)).icdf(u[:, i : i + 1])
        for i, (name, (loc, scale)) in enumerate(PRIOR.items())
    }


def grid_sizes(latents: dict[str, Tensor], level: int, r_type: int, rho: float, resolution: float) -> Tensor:
    """Grid points for x_A and x_V, `(S, 2)` of `SIZES`: spacing small beside the motor noise seen in a percept."""
    sigma_a, sigma_s, sigma_m = (latents[f"log_sigma_{name}"].exp() for name in "asm")
    steps = latents["step_medium"] * (level >= 1) + latents["step_high"] * (level >= 2)
    sigma_v = (latents["log_sigma_v_low"] + steps).exp()
    var_a, var_v, var_s = sigma_a.square(), sigma_v.square(), sigma_s.square()
    shared = var_s / (var_a * var_v + (var_a + var_v) * var_s)
    slope_a = var_s / (var_a + var_s) if r_type == 1 else shared * var_v
    slope_v = var_s / (var_v + var_s) if r_type == 0 else shared * var_a
    ratio = torch.cat([rho * sigma_a * slope_a, sigma_v * slope_v], -1) / sigma_m
    wanted = 2.0 * GRID_SD * resolution * (6.0 + 2.0 * ratio.square()).sqrt()  # 6 for p(one cause), however small u
    return SIZES[torch.searchsorted(SIZES, wanted.ceil()).clamp(max=len(SIZES) - 1)]


def log_likelihood(z: Tensor, x: Tensor, y: Tensor, rho: float, resolution: float, largest: int = 10_000) -> Tensor:
    """Log likelihood in nats at z, draws with the same grid together.

    Args:
        z: `(S, 7)`.
        x: `(n, 4)`.
        y: `(n,)`, of the dtype that the grids are to have.
        rho: Of the model.
        resolution: Factor on the numbers of grid points.
        largest: Number of grid points that none exceeds, for proposals.

    Returns:
        `(S,)`.
    """
    latents = latents_at(z)
    total = torch.zeros(len(z), dtype=z.dtype)
    for level in range(3):
        for r_type in range(2):
            trials = (x[:, 3] == level) & (x[:, 0] == r_type)
            sizes = grid_sizes(latents, level, r_type, rho, resolution).clamp(max=largest)
            for size in sizes.unique(dim=0) if trials.any() else ():
                rows = (sizes == size).all(-1)
                some = {name: value[rows].to(y.dtype) for name, value in latents.items()}
                law = response(x[trials], some, rho, tuple(size.tolist()))
                total[rows] += law.log_prob(y[trials]).sum(-1).to(z.dtype)
    return total


def student_mixture(weights: Tensor, means: Tensor, factors: Tensor) -> torch.distributions.MixtureSameFamily:
    """Mixture of multivariate t distributions of K weights, means `(K, 7)` and Cholesky factors `(K, 7, 7)`."""
    from pyro.distributions import MultivariateStudentT

    components = MultivariateStudentT(torch.tensor(DEGREES_OF_FREEDOM, dtype=means.dtype), means, factors)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(weights), components)

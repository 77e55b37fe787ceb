"""Five tasks of the sbibm benchmark as Pyro programs of one outcome vector, and its files of observations.

Source:
    Lueckmann et al. (2021), "Benchmarking simulation-based inference": two moons (T.8), Gaussian linear (T.1) and
    Gaussian linear uniform (T.2), Gaussian mixture (T.7), Lotka-Volterra (T.10).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_arbuf.priors.gaussian_linear import gaussian_linear
from pyro_arbuf.priors.two_moons import two_moons

NUM_OBSERVATIONS = 10
SAVED, STEPS_BETWEEN, DAYS_BETWEEN = 10, 42, 2.1  # times at which the populations are seen, and Runge-Kutta steps


class Task(NamedTuple):
    """A task of the benchmark.

    Attributes:
        program: Its Pyro program, of the latent "theta" and the outcome "y".
        coded: From its outcome to that of the program.
        published: C2ST at 100,000 simulations of neural posterior estimation with spline flows, of posterior estimation
            by a prior-fitted network, of neural likelihood estimation, and of sequential posterior estimation.
        aim: C2ST wanted at 100,000 simulations.
    """

    program: Callable[[Tensor], Any]
    coded: Callable[[Tensor], Tensor]
    published: tuple[float, float, float, float]
    aim: float


def gaussian_linear_uniform(x: Tensor) -> Tensor:
    """Ten means with a uniform prior, each observed once: theta ~ U(-1, 1)^10, y ~ N(theta, 0.1 I)."""
    theta = pyro.sample("theta", dist.Uniform(x.new_full((10,), -1.0), 1.0).to_event(1))
    return pyro.sample("y", dist.Normal(theta, math.sqrt(0.1)).to_event(1))


def gaussian_mixture(x: Tensor) -> Tensor:
    """A mean seen through wide or narrow noise: theta ~ U(-10, 10)^2, y ~ N(theta, I) / 2 + N(theta, 0.01 I) / 2."""
    theta = pyro.sample("theta", dist.Uniform(x.new_full((2,), -10.0), 10.0).to_event(1))
    scale = torch.tensor([1.0, 0.1], dtype=theta.dtype).unsqueeze(-1).expand(2, 2)
    parts = dist.Normal(theta.unsqueeze(-2), scale).to_event(1)
    return pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(logits=theta.new_zeros(2)), parts))


def populations(theta: Tensor) -> Tensor:
    """Logarithms of prey and predators at ten times, `(*batch, 20)`, the prey first, of four rates `(*batch, 4)`.

    The classical Runge-Kutta method on the logarithms, which keeps both positive.
    """
    alpha, beta, gamma, delta = theta.double().unbind(-1)

    def slope(state: Tensor) -> Tensor:
        prey, predators = state.exp().unbind(-1)
        return torch.stack([alpha - beta * predators, delta * prey - gamma], -1)

    state = torch.tensor([30.0, 1.0], dtype=torch.float64).log().expand(*theta.shape[:-1], 2)
    seen, h = [state], DAYS_BETWEEN / STEPS_BETWEEN
    for _ in range(SAVED - 1):
        for _ in range(STEPS_BETWEEN):
            first = slope(state)
            second = slope(state + 0.5 * h * first)
            third = slope(state + 0.5 * h * second)
            state = state + h / 6 * (first + 2 * second + 2 * third + slope(state + h * third))
        seen.append(state)
    return torch.stack(seen, -1).flatten(-2).to(theta.dtype).clamp(math.log(1e-10), math.log(1e4))


def lotka_volterra(x: Tensor) -> Tensor:
    """Prey and predators, seen ten times with noise of 10 %; the outcome is the logarithm of what is seen."""
    loc = x.new_tensor([-0.125, -3.0, -0.125, -3.0])
    theta = pyro.sample("theta", dist.LogNormal(loc, 0.5).to_event(1))
    return pyro.sample("y", dist.Normal(populations(theta), 0.1).to_event(1))


TASKS = {
    "two_moons": Task(two_moons, torch.clone, (0.53, 0.55, 0.55, 0.53), 0.53),
    "gaussian_linear": Task(gaussian_linear, torch.clone, (0.53, 0.52, 0.52, 0.51), 0.52),
    "gaussian_linear_uniform": Task(gaussian_linear_uniform, torch.clone, (0.54, 0.53, 0.52, 0.51), 0.53),
    "gaussian_mixture": Task(gaussian_mixture, torch.clone, (0.52, 0.56, 0.62, 0.54), 0.54),
    "lotka_volterra": Task(lotka_volterra, torch.log, (0.88, 0.70, 0.81, 0.93), 0.85),
}


def read_observation(files: Path, name: str, number: int) -> tuple[Tensor, Tensor]:
    """An observation `(D,)` of a task and 10,000 draws `(10000, P)` of its reference posterior, float32.

    Args:
        files: Where the package sbibm is installed.
        name: Of the task.
        number: Of the observation, from 1.

    Raises:
        ValueError: If the files are not there.
    """
    folder = files / "sbibm" / "tasks" / name / "files" / f"num_observation_{number}"
    paths = folder / "observation.csv", folder / "reference_posterior_samples.csv.bz2"
    if not all(path.is_file() for path in paths):
        raise ValueError(f"files must be a folder with the package sbibm; {folder} lacks {paths[0].name}; make sbibm")
    observed, reference = (torch.tensor(pd.read_csv(path).to_numpy(), dtype=torch.float32) for path in paths)
    return observed[0], reference

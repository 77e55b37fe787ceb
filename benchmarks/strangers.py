"""Minutes of `amortize` on programs and priors that no test of ours has, written as a stranger would.

    python benchmarks/strangers.py ar1 --folder runs/strangers                 # a series: one event
    python benchmarks/strangers.py gp-event --folder runs/strangers            # a Gaussian process as one event
    python benchmarks/strangers.py gp-plate --folder runs/strangers            # the same, its function integrated out
    python benchmarks/strangers.py random-intercept --folder runs/strangers    # trials that share something
    python benchmarks/strangers.py regression --folder runs/strangers          # three predictors from a DataFrame
    python benchmarks/strangers.py rescorla-wagner --folder runs/strangers     # learning, as a loop over trials
    python benchmarks/strangers.py periodic-function --folder runs/strangers   # a prior from a plain function
    python benchmarks/strangers.py periodic-program --folder runs/strangers    # and from a program, latents=[]

The exact answers are in strangers_exact.py. The network, the state of its training and the score of every data set are
kept in the folder: the same command goes on where it was stopped. Prints a table, then one JSON line.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import tyro
from sbi import SEED, Row, kept_scores, mean_se, posterior_draws, quiet, report
from strangers_exact import (
    Exact,
    ar1_log_likelihood,
    exact_ar1,
    exact_gp,
    exact_intercept,
    exact_periodic,
    exact_regression,
    exact_rescorla_wagner,
    gp_covariance,
    log_gaussian,
    periodic_covariance,
    rescorla_wagner_log_likelihood,
)
from torch import Tensor

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferModel, amortize, log_evidence

PHIS = (0.8, 0.45, -0.9)
CONTEXTS, NUM_TARGETS = (0, 8, 32, 128), 16  # of the periodic functions
Score = dict[str, float]


# The strangers' programs ------------------------------------------------------------------------------------------


def ar1(x: Tensor) -> Tensor:
    """A stationary series as one event."""
    phi = pyro.sample("phi", dist.Uniform(x.new_tensor(-1.0), 1.0))
    sigma = pyro.sample("sigma", dist.LogNormal(x.new_tensor(0.0), 0.5))
    t = torch.arange(x.shape[-2])
    lag = t[:, None] - t
    first = torch.where(t == 0, (1 - phi[..., None, None] ** 2).clamp(min=1e-6).rsqrt(), 1.0)
    powers = torch.where(lag >= 0, phi[..., None, None] ** lag.clamp(min=0), 0.0)
    scale = sigma[..., None, None] * powers * first
    return pyro.sample("y", dist.MultivariateNormal(x.new_zeros(len(t)), scale_tril=scale))


def draw_times(num_trials: int) -> Tensor:
    """Times `(num_trials, 1)` in [0, 4]."""
    return 4 * torch.rand(num_trials, 1)


def gp_event(x: Tensor) -> Tensor:
    """A noisy function at random times, all its values one event."""
    ell = pyro.sample("lengthscale", dist.LogNormal(x.new_tensor(-0.5), 0.5))
    d = (x - x.mT) / ell[..., None, None]
    covariance = torch.exp(-0.5 * d**2) + 0.2**2 * torch.eye(x.shape[-2])
    return pyro.sample("y", dist.MultivariateNormal(x.new_zeros(x.shape[-2]), covariance))


def gp_plate(x: Tensor) -> Tensor:
    """The same law: a smooth function, and independent observations of it."""
    ell = pyro.sample("lengthscale", dist.LogNormal(x.new_tensor(-0.5), 0.5))
    d = (x - x.mT) / ell[..., None, None]
    covariance = torch.exp(-0.5 * d**2) + 1e-4 * torch.eye(x.shape[-2])
    f = pyro.sample("f", dist.MultivariateNormal(x.new_zeros(x.shape[-2]), covariance))
    with pyro.plate("observations", x.shape[-2]):
        return pyro.sample("y", dist.Normal(f, (0.2**2 - 1e-4) ** 0.5))


def draw_covariate(num_trials: int) -> Tensor:
    """A covariate `(num_trials, 1)`."""
    return torch.randn(num_trials, 1)


def random_intercept(x: Tensor) -> Tensor:
    """A line with a shift of its own for the group, which nobody asks for."""
    intercept = pyro.sample("intercept", dist.Normal(x.new_tensor(0.0), 1.0))
    slope = pyro.sample("slope", dist.Normal(x.new_tensor(0.0), 1.0))
    shift = pyro.sample("shift", dist.Normal(x.new_tensor(0.0), 0.7))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", dist.Normal(intercept + shift + slope * x[..., 0], 0.5))


def draw_rows(num_trials: int) -> Tensor:
    """Three predictors `(num_trials, 3)`."""
    return torch.randn(num_trials, 3)


def regression(x: Tensor) -> Tensor:
    """Linear regression."""
    intercept = pyro.sample("intercept", dist.Normal(x.new_tensor(0.0), 1.0))
    weights = pyro.sample("weights", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", x.shape[-2]):
        return pyro.sample("y", dist.Normal(intercept + (x * weights[..., None, :]).sum(-1), 0.5))


def draw_chances(num_trials: int) -> Tensor:
    """Number of the trial, and probabilities of reward of two arms, the same in all trials: `(num_trials, 3)`."""
    chances = (0.1 + 0.8 * torch.rand(1, 2)).expand(num_trials, 2)
    return torch.cat([torch.arange(float(num_trials))[:, None], chances], -1)


def rescorla_wagner(x: Tensor) -> None:
    """A learner of two arms, trial by trial."""
    rate = pyro.sample("learning_rate", dist.Beta(x.new_tensor(1.0), 1.0))
    temperature = pyro.sample("inverse_temperature", dist.LogNormal(x.new_tensor(1.0), 0.5))
    values = [torch.full_like(rate, 0.5), torch.full_like(rate, 0.5)]
    for t in range(x.shape[-2]):
        choice = pyro.sample(f"choice_{t}", dist.Bernoulli(logits=temperature * (values[1] - values[0])))
        chances = x[..., t, 1] + choice * (x[..., t, 2] - x[..., t, 1])
        reward = pyro.sample(f"reward_{t}", dist.Bernoulli(chances))
        for arm, chosen in enumerate((1 - choice, choice)):
            values[arm] = values[arm] + chosen * rate * (reward - values[arm])


def periodic_function(batch_size: int, num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Five periods of a function whose smoothness nobody knows."""
    x = 10 * torch.rand(batch_size, num_points, generator=generator)
    lengthscale = 0.5 + torch.rand(batch_size, generator=generator)
    factor = torch.linalg.cholesky(periodic_covariance(x, lengthscale))
    return x, (factor @ torch.randn(batch_size, num_points, 1, generator=generator)).squeeze(-1)


def draw_decade(num_trials: int) -> Tensor:
    """Times `(num_trials, 1)` in [0, 10]."""
    return 10 * torch.rand(num_trials, 1)


def periodic_program(x: Tensor) -> Tensor:
    """The same law as a program; the noise of the function itself keeps its covariance positive."""
    ell = pyro.sample("lengthscale", dist.Uniform(x.new_tensor(0.5), 1.5))
    sine = torch.sin(torch.pi * (x - x.mT) / 2)
    covariance = torch.exp(-2 * (sine / ell[..., None, None]) ** 2) + 1e-3 * torch.eye(x.shape[-2])
    f = pyro.sample("f", dist.MultivariateNormal(x.new_zeros(x.shape[-2]), covariance))
    with pyro.plate("observations", x.shape[-2]):
        return pyro.sample("y", dist.Normal(f, (0.2**2 - 1e-3) ** 0.5))


# How they are scored ----------------------------------------------------------------------------------------------


def score_posterior(net: ArBufferModel, exact: Exact, x: Tensor, y: Tensor) -> Score:
    """How far posterior means are from the exact ones, in posterior standard deviations, and the ratio of those."""
    draws = {name: value.double() for name, value in posterior_draws(net, x, y, 4_000).items()}
    score = {}
    for name, mean in exact.mean.items():
        error = (draws[name].mean(0) - mean).abs() / exact.sd[name]
        score[f"{name}: error of the mean (sd)"] = error.max().item()
        score[f"{name}: sd / exact sd"] = (draws[name].std(0) / exact.sd[name]).mean().item()
    return score


def score_evidence(net: ArBufferModel, exact: Exact, x: Tensor, y: Tensor) -> Score:
    """How far the evidence is from the exact one."""
    return {"evidence: error (nats)": log_evidence(net, x, y).value.item() - exact.log_evidence}


def score_likelihood(net: ArBufferModel, log_likelihood: Tensor, exact: Exact, x: Tensor, y: Tensor) -> Score:
    """How far the likelihood at the exact posterior mean is from the exact one, nats per trial."""
    latents = {name: value.float() for name, value in exact.mean.items()}
    found = pyro_arbuf.likelihood(net, x, latents).log_prob(y).item()
    return {"likelihood: error per trial (nats)": (found - log_likelihood.item()) / len(y)}


def score_ar1(net: ArBufferModel, index: int) -> Score:
    """One series of 200 at one of three correlations."""
    phi = PHIS[index % len(PHIS)]
    y = [torch.randn(()) / (1 - phi**2) ** 0.5]
    for _ in range(199):
        y.append(phi * y[-1] + torch.randn(()))
    y, x = torch.stack(y), inputs_of(net, 200)
    exact = exact_ar1(y)
    at = [exact.mean[name][None] for name in ("phi", "sigma")]
    scores = score_posterior(net, exact, x, y) | score_evidence(net, exact, x, y)
    scores |= score_likelihood(net, ar1_log_likelihood(y.double(), *at), exact, x, y)
    return {name.replace("phi:", f"phi = {phi:g}:"): value for name, value in scores.items()}


def inputs_of(net: ArBufferModel, num_trials: int) -> Tensor:
    """Inputs of a network's program."""
    return net.simulator.inputs(num_trials)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def score_gp(net: ArBufferModel, index: int) -> Score:
    """One function at 40 times."""
    x = draw_times(40)
    lengthscale = dist.LogNormal(-0.5, 0.5).sample()
    factor = torch.linalg.cholesky(gp_covariance(x[:, 0].double(), lengthscale.double()))
    y = (factor @ torch.randn(40, dtype=torch.float64)).float()
    exact = exact_gp(x, y)
    at = log_gaussian(y.double(), gp_covariance(x[:, 0].double(), exact.mean["lengthscale"]))
    scores = score_posterior(net, exact, x, y) | score_evidence(net, exact, x, y)
    return scores | score_likelihood(net, at, exact, x, y)


def score_intercept(net: ArBufferModel, index: int) -> Score:
    """One group of 40."""
    x, theta = draw_covariate(40), torch.randn(2)
    y = theta[0] + 0.7 * torch.randn(()) + theta[1] * x[:, 0] + 0.5 * torch.randn(40)
    exact = exact_intercept(x, y)
    rest = y.double() - exact.mean["intercept"] - exact.mean["slope"] * x[:, 0].double()
    at = log_gaussian(rest, 0.5**2 * torch.eye(40, dtype=torch.float64) + 0.7**2)
    scores = score_posterior(net, exact, x, y) | score_evidence(net, exact, x, y)
    return scores | score_likelihood(net, at, exact, x, y)


def score_regression(net: ArBufferModel, index: int) -> Score:
    """One table of 40 rows, given as pandas has it."""
    x, theta = draw_rows(40), torch.randn(4)
    y = theta[0] + x @ theta[1:] + 0.5 * torch.randn(40)
    table = pd.DataFrame(np.asarray(x), columns=["age", "income", "height"]).assign(score=np.asarray(y))
    exact = exact_regression(x, y)
    predictors = table[["age", "income", "height"]]
    return score_posterior(net, exact, predictors, table["score"]) | score_evidence(net, exact, x, y)


def score_rescorla_wagner(net: ArBufferModel, index: int) -> Score:
    """One learner of 100 trials."""
    x = draw_chances(100)
    rate, temperature = torch.rand(()), dist.LogNormal(1.0, 0.5).sample()
    value, y = torch.full((2,), 0.5), []
    for chances in x[:, 1:]:
        choice = torch.bernoulli(torch.sigmoid(temperature * (value[1] - value[0])))
        reward = torch.bernoulli(chances[int(choice)])
        value[int(choice)] += rate * (reward - value[int(choice)])
        y.append(torch.stack([choice, reward]))
    y = torch.stack(y)
    exact = exact_rescorla_wagner(x[:, 1:], y)
    at = [exact.mean[name][None] for name in ("learning_rate", "inverse_temperature")]
    scores = score_posterior(net, exact, x, y) | score_evidence(net, exact, x, y)
    log_likelihood = rescorla_wagner_log_likelihood(x[:, 1:].double(), y.double(), *at)
    return scores | score_likelihood(net, log_likelihood, exact, x, y)


def score_periodic(net: ArBufferModel, index: int) -> Score:
    """One function at each size of the context: 16 targets, exact minus network."""
    scores = {}
    for num_context in CONTEXTS:
        generator = torch.Generator().manual_seed(SEED + 1000 * num_context + index)
        x, y = periodic_function(1, num_context + NUM_TARGETS, generator)
        x, y, first = x[0, :, None], y[0], slice(num_context)
        exact = exact_periodic(x, y) - exact_periodic(x[first], y[first])
        joint = ArBufferJoint(net.condition(x[first], y[first]), x[num_context:])
        gap = exact - joint.log_prob(y[num_context:]).item()
        scores[f"N = {num_context}: gap per target (nats)"] = gap / NUM_TARGETS
    return scores | {"mean gap per target (nats)": sum(scores.values()) / len(scores)}


class Case(NamedTuple):
    """A program or prior, and how a data set is scored.

    Attributes:
        program: The program, or the function.
        options: Of `amortize`.
        score: Of the network and the number of a data set.
        aims: By the end of a score's name.
    """

    program: Callable[..., Any]
    options: dict[str, Any]
    score: Callable[[ArBufferModel, int], Score]
    aims: dict[str, str] = {"error of the mean (sd)": "<= 0.3"}


NATS = {"evidence: error (nats)": "within 1"}
GAP = {"gap per target (nats)": "<= 0.15"}
PERIODIC = {"num_context": (0, 128), "max_frequency": 32.0}
GP = {"inputs": draw_times, "num_context": (0, 40), "latents": ["lengthscale"]}
CASES = {
    "ar1": Case(ar1, {"num_context": (0, 200)}, score_ar1),
    "gp-event": Case(gp_event, GP, score_gp),
    "gp-plate": Case(gp_plate, GP, score_gp, NATS),
    "random-intercept": Case(
        random_intercept,
        {"inputs": draw_covariate, "num_context": (0, 40), "latents": ["intercept", "slope"]},
        score_intercept,
    ),
    "regression": Case(regression, {"inputs": draw_rows, "num_context": (0, 40)}, score_regression),
    "rescorla-wagner": Case(
        rescorla_wagner,
        {"inputs": draw_chances, "num_context": (0, 100), "outcome": ("choice", "reward")},
        score_rescorla_wagner,
    ),
    "periodic-function": Case(periodic_function, PERIODIC, score_periodic, GAP),
    "periodic-program": Case(periodic_program, PERIODIC | {"inputs": draw_decade, "latents": []}, score_periodic, GAP),
}
What = Literal[
    "ar1",
    "gp-event",
    "gp-plate",
    "random-intercept",
    "regression",
    "rescorla-wagner",
    "periodic-function",
    "periodic-program",
]


def score_all(case: Case, net: ArBufferModel, folder: Path, num_sets: int) -> list[Score]:
    """Scores of data sets of a case, see `kept_scores`."""
    with torch.no_grad():
        return kept_scores(folder, net, num_sets, lambda i: case.score(net, i))


def table(case: Case, scores: list[Score]) -> tuple[list[Row], dict[str, list[float]]]:
    """Rows of means and of root mean squares of errors, and all scores by name."""
    rows, every = [], {}
    for name in dict.fromkeys(name for score in scores for name in score):
        every[name] = [score[name] for score in scores if name in score]
        values = torch.tensor(every[name], dtype=torch.float64)
        aim = next((aim for end, aim in case.aims.items() if name.endswith(end)), "")
        mean, error = mean_se(values)
        rows.append((f"{name}, mean of {len(values)}", f"{mean:.3f} ({error:.3f})", aim))
        if name.startswith("evidence"):
            rows.append(("evidence: root mean square, largest", f"{values.square().mean().sqrt():.2f}", aim))
            rows[-1] = (rows[-1][0], f"{rows[-1][1]}, {values.abs().max():.2f}", aim)
    return rows, every


def main(
    what: Annotated[What, tyro.conf.Positional],
    folder: Path = Path("runs/strangers"),
    minutes: float = 8.0,
    num_sets: int = 30,
    threads: int | None = None,
    small: bool = False,
) -> None:
    """Trains on a stranger's program and measures the network against exact answers.

    Args:
        what: Which program.
        folder: Where network, training state and scores are kept, in a folder of each program.
        minutes: Of training, in all.
        num_sets: Data sets that are scored.
        threads: CPU threads.
        small: A tiny network, to try the command.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    quiet()
    pyro.set_rng_seed(SEED)
    case, folder = CASES[what], folder / what
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 16, "embedding_width": 16} if small else {}
    resume = (folder / "state.safetensors").exists()
    net = amortize(case.program, minutes=minutes, folder=folder, resume=resume, report=False, **case.options, **sizes)
    rows, every = table(case, score_all(case, net, folder, num_sets))
    report(what, rows, every | {"minutes": minutes}, {})


if __name__ == "__main__":
    tyro.cli(main)

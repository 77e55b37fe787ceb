"""The networks of the two shipped series against their exact posteriors and evidences on a grid.

    python benchmarks/series.py ar1
    python benchmarks/series.py rescorla-wagner --update-card

C2ST as in sbi.py, with 10,000 draws against 10,000, mean over data sets.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import pyro
import torch
import tyro
from joblib import Parallel, delayed
from sbi import (
    SEED,
    Row,
    c2st,
    check_card_of,
    consistency_rows,
    draw_sets,
    mean_se,
    posterior_draws,
    quiet,
    report,
    shown,
    stack,
)
from torch import Tensor
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf import ArBufferModel, likelihood, log_evidence
from pyro_arbuf.priors import ar1, rescorla_wagner
from pyro_arbuf.priors.grid import GridPosterior, Latents
from pyro_arbuf.random_state import seeded

NUM_TRIALS = 100
MANY_DRAWS = 10_000
NUM_LIKELIHOODS = 20  # prior draws at which the likelihood of a data set is compared


class Exact(NamedTuple):
    """Closed forms of a series, of inputs `(n, D_x)` and outcomes, and what is wanted of its network."""

    posterior: Callable[[Tensor, Tensor], GridPosterior]
    log_likelihood: Callable[[Tensor, Tensor, Latents], Tensor]
    wanted_c2st: float


EXACT = {
    "ar1": Exact(lambda x, y: ar1.exact_posterior(y), lambda x, y, latents: ar1.log_likelihood(y, latents), 0.60),
    "rescorla-wagner": Exact(rescorla_wagner.exact_posterior, rescorla_wagner.log_likelihood, 0.65),
}


class Score(NamedTuple):
    """One data set: C2ST of the draws, errors in nats, seconds of the draws.

    Attributes:
        c2st: Of the network's posterior draws against those of the grid.
        evidence_error: The network's log evidence minus the grid's.
        likelihood_error: Root mean square error of the network's log likelihood at draws of the exact posterior.
        grid_error: Of the grid's log evidence.
        seconds: Of the draws.
    """

    c2st: float
    evidence_error: float
    likelihood_error: float
    grid_error: float
    seconds: float


@torch.no_grad()
def score(name: str, net: ArBufferModel, x: Tensor, y: Tensor, num_draws: int, seed: int) -> Score:
    """Compares posterior, likelihood and evidence of one data set with the grid."""
    quiet()
    exact = EXACT[name].posterior(x, y)
    with seeded(seed):
        started = time.perf_counter()
        draws = stack(posterior_draws(net, x, y, num_draws), net.latents)
        seconds = time.perf_counter() - started
        sites = exact.sample(num_draws)
    reference = stack(sites, net.latents)
    some = {site: value[:NUM_LIKELIHOODS] for site, value in sites.items()}
    given = {site: value.float() for site, value in some.items()}
    gaps = likelihood(net, x, given).log_prob(y).double() - EXACT[name].log_likelihood(x.double(), y.double(), some)
    error = log_evidence(net, x, y).value.double() - exact.log_evidence
    return Score(
        c2st(draws.double(), reference),
        error.item(),
        gaps.square().mean().sqrt().item(),
        exact.error.item(),
        seconds,
    )


def bench(name: str, net: ArBufferModel, num_sets: int, jobs: int) -> tuple[list[Row], dict[str, object]]:
    """Posterior, likelihood and evidence against the grid, n = 100."""
    drawn = draw_sets(net, num_sets, NUM_TRIALS)
    x, y = drawn.x, net.config.squeeze_outcome(drawn.y)
    tasks = (delayed(score)(name, net, a, b, MANY_DRAWS, SEED + i) for i, (a, b) in enumerate(zip(x, y, strict=True)))
    scores = list(tqdm(Parallel(jobs, return_as="generator")(tasks), desc="data sets", total=num_sets, leave=False))
    errors = torch.tensor([each.evidence_error for each in scores])
    rmse = errors.square().mean().sqrt().item()
    values = [each.c2st for each in scores]
    wanted = EXACT[name].wanted_c2st
    rows = [
        (f"posterior C2ST against a grid, {num_sets} sets of {NUM_TRIALS}", shown(values), f"<= {wanted:.2f}"),
        (f"evidence RMSE, {num_sets} sets of {NUM_TRIALS} (nats)", f"{rmse:.2f}", "<= 1.5"),
        ("evidence, mean error (nats)", shown(errors, 2), "0"),
        ("likelihood RMSE at draws of the exact posterior (nats)", shown([s.likelihood_error for s in scores], 2), "0"),
        ("error of the grid's evidence, at most (nats)", f"{max(each.grid_error for each in scores):.0e}", ""),
        *consistency_rows(net, x[:10], y[:10]),
        ("seconds per data set, 10,000 draws", f"{sum(each.seconds for each in scores) / num_sets:.2f}", ""),
    ]
    return rows, {"c2st": mean_se(values), "evidence_rmse": {name: rmse}, "all": [values, errors.tolist()]}


def main(
    name: Literal["ar1", "rescorla-wagner"],
    /,
    num_sets: int = 20,
    models: Path | None = None,
    update_card: bool = False,
    threads: int | None = None,
    jobs: int = 1,
) -> None:
    """Measures the network of a shipped series against a grid.

    Args:
        name: Of the model.
        num_sets: Data sets.
        models: Folder to load it from instead of the shipped one.
        update_card: Write the table into the shipped model's card, between its markers.
        threads: CPU threads.
        jobs: Data sets at a time, each in a process of its own.
    """
    check_card_of(models, update_card)
    if threads is not None:
        torch.set_num_threads(threads)
    quiet()
    pyro.set_rng_seed(SEED)
    net = pyro_arbuf.load(name if models is None else models / name)
    rows, summary = bench(name, net, num_sets, jobs)
    report(name, rows, summary, {name: net.config} if update_card else {})


if __name__ == "__main__":
    tyro.cli(main)

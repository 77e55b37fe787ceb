"""The network of the psychometric function against its exact posterior and evidence on a grid.

    python benchmarks/choices.py

C2ST as in sbi.py, with 10,000 draws against 10,000, mean over data sets.
Real choices of graded stimuli: two monkeys of Roitman and Shadlen (2002), from the data of the tutorials.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
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
from pyro_arbuf import ArBufferModel, log_evidence
from pyro_arbuf.priors.psychometric import LATENTS, draw_intensities, exact_posterior, psychometric
from pyro_arbuf.random_state import seeded

NAME = "psychometric"
NUM_TRIALS = 100
MANY_DRAWS = 10_000
DATA = Path(__file__).parent.parent / "tutorials" / "data" / "roitman_shadlen_2002.csv"
MONKEYS = (1, 2)
FASTEST = 0.25  # s; faster responses are guesses
MIDDLE = 0.128  # coherence, at intensity 0

Draw = Callable[[Tensor, Tensor, int], Tensor]  # (x, y, S) -> draws (S, P) of a posterior
Evidence = Callable[[Tensor, Tensor], Tensor]  # (x, y) -> log evidence


def monkey_choices(monkey: int, num_trials: int = 400) -> tuple[Tensor, Tensor]:
    """Choices of a monkey about the direction of moving dots.

    Intensity is log2(coherence / 0.128), of -2 to 2. Trials without any coherent motion are left out: neither answer is
    right. So are responses within 0.25 s. The trials are spread evenly over the coherences, and always the same.

    Args:
        monkey: 1 or 2.
        num_trials: Trials n.

    Returns:
        Intensities `(n, 1)` and choices `(n,)`, 1 where the choice is correct; float32.

    Source:
        Roitman and Shadlen (2002), as distributed with PyDDM (MIT; see tutorials/data/README.md).
    """
    trials = pd.read_csv(DATA)
    trials = trials[(trials.monkey == monkey) & (trials.rt >= FASTEST) & (trials.coh > 0)].sample(
        frac=1, random_state=0
    )
    trials = trials.assign(turn=trials.groupby("coh").cumcount()).sort_values("turn", kind="stable")[:num_trials]
    x = torch.tensor(trials[["coh"]].to_numpy() / MIDDLE).log2().float()
    return x, torch.tensor(trials.correct.to_numpy(), dtype=torch.float32)


def simulate(
    program: Callable, inputs: Callable[[int], Tensor], num_sets: int, num_trials: int, seed: int = SEED
) -> tuple[Tensor, ...]:
    """Inputs `(D, n, D_x)` of data sets and what the program returns, `(D, n)` each; the same ones every time."""
    with seeded(seed), pyro.plate("datasets", num_sets, dim=-2):
        x = torch.stack([inputs(num_trials) for _ in range(num_sets)])
        y = program(x)
    return (x, *(y if isinstance(y, tuple) else (y,)))


class Score(NamedTuple):
    """One data set: C2ST of the draws, error of the log evidence (nats), error of the grid, seconds of the draws."""

    c2st: float
    evidence_error: float
    grid_error: float
    seconds: float


def score_psychometric(draw: Draw, evidence: Evidence, x: Tensor, y: Tensor, num_draws: int, seed: int) -> Score:
    """Compares a posterior and an evidence of one data set with the grid."""
    quiet()
    exact = exact_posterior(x, y)
    with seeded(seed):
        started = time.perf_counter()
        draws = draw(x, y, num_draws)
        seconds = time.perf_counter() - started
        reference = stack(exact.sample(num_draws), LATENTS)
    error = evidence(x, y).double() - exact.log_evidence
    return Score(c2st(draws.double(), reference), error.item(), exact.error.item(), seconds)


def draws_of(net: ArBufferModel) -> Draw:
    """Draws of a network's posterior."""
    return lambda x, y, num_draws: stack(posterior_draws(net, x, y, num_draws), net.latents)


@torch.no_grad()
def bench_psychometric(net: ArBufferModel, num_sets: int, jobs: int) -> tuple[list[Row], dict[str, object]]:
    """Posterior and evidence against the grid, n = 100; the same for two monkeys, n = 400."""
    x, y = simulate(psychometric, draw_intensities, num_sets, NUM_TRIALS)
    sets = [*zip(x, y, strict=True), *(monkey_choices(monkey) for monkey in MONKEYS)]
    tasks = (
        delayed(score_psychometric)(
            draws_of(net), lambda a, b: log_evidence(net, a, b).value, a, b, MANY_DRAWS, SEED + i
        )
        for i, (a, b) in enumerate(sets)
    )
    done = list(tqdm(Parallel(jobs, return_as="generator")(tasks), desc="data sets", total=len(sets), leave=False))
    scores, monkeys = done[:num_sets], done[num_sets:]
    errors = torch.tensor([score.evidence_error for score in scores])
    rmse = errors.square().mean().sqrt().item()
    values = [score.c2st for score in scores]
    rows = [
        (f"posterior C2ST against a grid, {num_sets} sets of {NUM_TRIALS}", shown(values), "<= 0.60"),
        (f"evidence RMSE, {num_sets} sets of {NUM_TRIALS} (nats)", f"{rmse:.2f}", "<= 1.0"),
        ("evidence, mean error (nats)", shown(errors, 2), "0"),
        ("error of the grid's evidence, at most (nats)", f"{max(score.grid_error for score in done):.0e}", ""),
        ("C2ST of each monkey, 400 trials", " ".join(f"{score.c2st:.2f}" for score in monkeys), ""),
        ("error of its evidence (nats)", " ".join(f"{score.evidence_error:.2f}" for score in monkeys), ""),
        *consistency_rows(net, x[:10], y[:10]),
        ("seconds per data set, 10,000 draws", f"{sum(score.seconds for score in scores) / num_sets:.2f}", ""),
    ]
    return rows, {"c2st": mean_se(values), "evidence_rmse": {"psychometric": rmse}, "all": [values, errors.tolist()]}


def main(
    num_sets: int = 20,
    models: Path | None = None,
    update_card: bool = False,
    threads: int | None = None,
    jobs: int = 1,
) -> None:
    """Measures the network of the psychometric function against a grid.

    Args:
        num_sets: Data sets.
        models: Folder to load psychometric from instead of the shipped one.
        update_card: Write the table into the shipped model's card, between its markers.
        threads: CPU threads.
        jobs: Data sets at a time, each in a process of its own.
    """
    check_card_of(models, update_card)
    if threads is not None:
        torch.set_num_threads(threads)
    quiet()
    pyro.set_rng_seed(SEED)
    net = pyro_arbuf.load(NAME if models is None else models / NAME)
    rows, summary = bench_psychometric(net, num_sets, jobs)
    report(NAME, rows, summary, {NAME: net.config} if update_card else {})


if __name__ == "__main__":
    tyro.cli(main)

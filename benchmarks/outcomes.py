"""Minutes of `amortize` on programs of pairs, counts, and choices with response times, against exact answers.

    python benchmarks/outcomes.py pair --folder runs/outcomes         # two correlated numbers, the correlation latent
    python benchmarks/outcomes.py poisson --folder runs/outcomes      # Poisson regression with three predictors
    python benchmarks/outcomes.py choice-rt --folder runs/outcomes    # the ddm with both sites

Exact: a grid of one dimension for the pair, importance sampling from a Laplace approximation for the regression, NUTS
on the density of signed response times for the last. The network, the state of its training and the score of every
data set are kept in the folder: the same command goes on where it was stopped. Prints a table, then one JSON line.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import tyro
from choices import simulate
from poisson_regression import draw_predictors, poisson_regression, reference_posterior
from pyro import poutine
from sbi import NUM_DRAWS, SEED, Row, c2st, kept_scores, mean_se, posterior_draws, quiet, report, run_nuts, shown, stack
from torch import Tensor

from pyro_arbuf import ArBufferMarginals, ArBufferModel, amortize, calibrate, log_evidence, refine
from pyro_arbuf.priors.ddm import ddm, ddm_choice_rt, draw_coherence
from pyro_arbuf.random_state import seeded

CORRELATIONS = (-0.9, 0.0, 0.9)
NUM_PAIRS = 10_000  # for the likelihood at each correlation
NODES = 8_001
Score = dict[str, float]


def pair(x: Tensor) -> Tensor:
    """Pyro program: rho ~ U(-1, 1), and pairs y of standard normal numbers with correlation rho.

    Args:
        x: `(*batch, n, 1)`, not used.

    Returns:
        Pairs, `(n, 2)`, or `(B, n, 2)` under an outer plate of size B and dim -2.
    """
    rho = pyro.sample("rho", dist.Uniform(x.new_tensor(-1.0), 1.0))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", law_of_pairs(rho))


def law_of_pairs(rho: Tensor) -> dist.MultivariateNormal:
    """Law of a pair, batch shape that of the correlations."""
    one, zero, rest = torch.ones_like(rho), torch.zeros_like(rho), (1 - rho * rho).clamp(min=1e-12).sqrt()
    scale = torch.stack([torch.stack([one, zero], -1), torch.stack([rho, rest], -1)], -2)
    return dist.MultivariateNormal(torch.zeros_like(scale[..., 0]), scale_tril=scale)


class PairPosterior(NamedTuple):
    """The posterior of the correlation on a grid of its Fisher transform, and the log evidence, nats."""

    nodes: Tensor
    mass: Tensor
    log_evidence: float

    def sample(self, num_draws: int) -> Tensor:
        """Draws `(S, 1)` of the correlation, uniform inside a cell."""
        cells = torch.multinomial(self.mass, num_draws, replacement=True)
        width = (self.nodes[1] - self.nodes[0]) * (torch.rand(num_draws, dtype=torch.float64) - 0.5)
        return torch.tanh(self.nodes[cells] + width).unsqueeze(-1)


def exact_pair(y: Tensor) -> PairPosterior:
    """Exact posterior and evidence of pairs `(n, 2)`, in double precision."""
    y, nodes = y.double(), torch.linspace(-12.0, 12.0, NODES, dtype=torch.float64)
    log_rest = math.log(4.0) - 2 * (nodes.abs() + torch.log1p(torch.exp(-2 * nodes.abs())))  # of 1 - rho^2
    squares, product = (y**2).sum(), (y[:, 0] * y[:, 1]).sum()
    quadratic = (squares - 2 * torch.tanh(nodes) * product) * torch.exp(-log_rest)
    likelihood = -0.5 * quadratic - len(y) * (math.log(2 * math.pi) + 0.5 * log_rest)
    log_joint = likelihood + log_rest - math.log(2.0)  # the prior 1/2, and d rho / d z = 1 - rho^2
    total = log_joint.logsumexp(0)
    evidence = total + (nodes[1] - nodes[0]).log()
    return PairPosterior(nodes, (log_joint - total).exp(), evidence.item())


@torch.no_grad()
def likelihood_rows(net: ArBufferModel) -> tuple[list[Row], dict[str, Any]]:
    """Likelihood of fresh pairs given the correlation, and the correlation of draws, against the truth."""
    rows, gaps, drawn = [], {}, {}
    for rho in CORRELATIONS:
        law = law_of_pairs(torch.tensor(rho))
        with seeded(SEED):
            y, x = law.sample((NUM_PAIRS,)), torch.zeros(NUM_PAIRS, 1)
            likelihood = ArBufferMarginals(net.condition(latents={"rho": torch.tensor(rho)}), x)
            gaps[rho] = mean_se(law.log_prob(y).double() - likelihood.log_prob_factors(y).double())
            drawn[rho] = torch.corrcoef(likelihood.sample().T)[0, 1].item()
        text = f"{gaps[rho][0]:.4f} ({gaps[rho][1]:.4f})"
        rows.append((f"likelihood given rho = {rho:g}: exact minus network, nats per pair", text, "<= 0.05"))
        rows.append((f"correlation of {NUM_PAIRS} draws given rho = {rho:g}", f"{drawn[rho]:.3f}", f"{rho:g}"))
    return rows, {"likelihood gap": gaps, "correlation": drawn}


def score_pair(net: ArBufferModel, x: Tensor, y: Tensor) -> Score:
    """One data set against the grid."""
    exact = exact_pair(y)
    draws = stack(posterior_draws(net, x, y), net.latents).double()
    error = log_evidence(net, x, y).value.item() - exact.log_evidence
    return {"c2st": c2st(draws, exact.sample(NUM_DRAWS)), "evidence error": error}


def score_poisson(net: ArBufferModel, x: Tensor, y: Tensor) -> Score:
    """One data set against importance sampling."""
    draws = stack(posterior_draws(net, x, y), ("intercept", "weights")).double()
    reference = reference_posterior(x, y, NUM_DRAWS, seed=SEED)
    fine = refine(poisson_regression, net.condition(x, y), 20_000, NUM_DRAWS)
    return {
        "c2st": c2st(draws, reference.draws),
        "c2st refined": c2st(stack(fine.draws, ("intercept", "weights")).double(), reference.draws),
        "evidence error": log_evidence(net, x, y).value.item() - reference.log_evidence,
        "k-hat of the reference": reference.k_hat,
    }


def score_choice_rt(net: ArBufferModel, x: Tensor, choice: Tensor, rt: Tensor) -> Score:
    """One data set against NUTS, and the evidence against importance sampling."""
    exact = poutine.condition(ddm, {"y": ((2 * choice - 1) * rt).double()})
    reference = stack(run_nuts(exact, 500, 2 * NUM_DRAWS, x.double(), jit=True), net.latents)
    y = {"choice": choice, "rt": rt}
    fine = refine(ddm_choice_rt, net.condition(x, y), 20_000, NUM_DRAWS)
    return {
        "c2st": c2st(stack(posterior_draws(net, x, torch.stack([choice, rt], -1)), net.latents).double(), reference),
        "c2st refined": c2st(stack(fine.draws, net.latents).double(), reference),
        "evidence error": log_evidence(net, x, y).value.item() - fine.log_evidence,
        "k-hat of refine": fine.k_hat,
    }


class Case(NamedTuple):
    """A program, what `amortize` needs for it, and how a data set is scored.

    Attributes:
        program: Returns its outcome, or its sites in order.
        inputs: Draws its inputs.
        outcome: Its sites.
        num_trials: Largest number of trials in training, and of the data sets that are scored.
        score: Of the network, inputs and outcomes of a data set.
        aims: By score.
    """

    program: Callable[[Tensor], Any]
    inputs: Callable[[int], Tensor]
    outcome: str | tuple[str, ...]
    num_trials: int
    score: Callable[..., Score]
    aims: dict[str, str]


def no_inputs(num_trials: int) -> Tensor:
    """Inputs `(num_trials, 1)` of a program without any."""
    return torch.zeros(num_trials, 1)


C2ST = {"c2st": "<= 0.70"}
CASES = {
    "pair": Case(pair, no_inputs, "y", 40, score_pair, {"c2st": "", "evidence error": "<= 1"}),
    "poisson": Case(poisson_regression, draw_predictors, "y", 100, score_poisson, C2ST),
    "choice-rt": Case(ddm_choice_rt, draw_coherence, ("choice", "rt"), 100, score_choice_rt, C2ST),
}


def train(case: Case, folder: Path, minutes: float, sizes: dict[str, int]) -> ArBufferModel:
    """The network of a case, trained for some minutes in all, however often it was stopped."""
    resume = (folder / "state.safetensors").exists()
    options: dict[str, Any] = {"outcome": case.outcome, "num_context": (0, case.num_trials), "minutes": minutes}
    inputs = None if case.inputs is no_inputs else case.inputs
    return amortize(case.program, inputs, folder=folder, resume=resume, report=False, **options, **sizes)


def score_all(case: Case, net: ArBufferModel, folder: Path, num_sets: int) -> list[Score]:
    """Scores of data sets of a case, see `kept_scores`."""
    # One by one, so that the first data sets are the same ones however many there are.
    sets = [simulate(case.program, case.inputs, 1, case.num_trials, SEED + i) for i in range(num_sets)]
    x, *y = (torch.cat(parts) for parts in zip(*sets, strict=True))
    return kept_scores(folder, net, num_sets, lambda i: case.score(net, x[i], *(site[i] for site in y)))


def main(
    what: Annotated[Literal["pair", "poisson", "choice-rt"], tyro.conf.Positional],
    folder: Path = Path("runs/outcomes"),
    minutes: float = 8.0,
    num_sets: int = 20,
    threads: int | None = None,
    small: bool = False,
) -> None:
    """Trains on a program and measures the network against exact answers.

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
    net = train(case, folder, minutes, sizes)
    rows, summary = likelihood_rows(net) if what == "pair" else ([], {})
    scores = score_all(case, net, folder, num_sets)
    for name in scores[0]:
        values = torch.tensor([score[name] for score in scores], dtype=torch.float64)
        aim = case.aims.get(name, "")
        if name == "evidence error":
            label = f"evidence RMSE, {num_sets} sets of {case.num_trials} (nats)"
            rows.append((label, f"{values.square().mean().sqrt():.2f}", aim))
            rows.append(("evidence, largest error (nats)", f"{values.abs().max():.2f}", aim))
        label = f"posterior {name}" if "c2st" in name else name
        rows.append((f"{label}, mean over {num_sets} sets of {case.num_trials}", shown(values), aim))
        summary[name] = [score[name] for score in scores]
    checked = calibrate(net, 200)
    rows.append(("calibration, 200 sets, 99 draws: p (Bonferroni)", f"{checked.p_value:.3f}", "> 0.01"))
    report(what, rows, summary | {"minutes": minutes, "p": checked.p_value}, {})


if __name__ == "__main__":
    tyro.cli(main)

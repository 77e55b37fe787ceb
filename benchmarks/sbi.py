"""Simulation-based inference with the shipped networks against exact answers.

    python benchmarks/sbi.py gaussian                    # posterior, evidence, predictive against the closed forms
    python benchmarks/sbi.py ddm                         # posterior and likelihood against NUTS, calibration, refine
    python benchmarks/sbi.py multisensory                # evidence of both models against multisensory_evidence.csv
    python benchmarks/sbi.py two-moons                   # C2ST on sbibm's ten observations, with 10,000 draws as there;
    python benchmarks/sbi.py gaussian-linear             # `make sbibm` installs its files
    python benchmarks/sbi.py amortize                    # eight minutes of training on the Gaussian program

C2ST: scikit-learn's MLP as in sbibm, 5 folds, 1,000 draws against 1,000 where nothing else is said, mean over data
sets; 0.5 = cannot be told apart, 1 = disjoint. Each prints a table, then one JSON line; `--update-card` writes the
table into the model's card, and the error of the evidence into its config.json, where `compare_evidence` finds it.

Deviation: the paper compares evidence with variational bounds on sets of human trials, which are not available; here
it is compared with the exact evidence of simulated sets.
"""

import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, cast

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import tyro
from crescents import likelihood_gap
from joblib import Parallel, delayed
from kept import keep, read_kept, weights_key
from marked import write_marked
from multisensory_evidence import TABLE, simulated_sets
from pyro import poutine
from pyro.infer import MCMC, NUTS
from quality import mean_se
from sbi_tasks import NUM_OBSERVATIONS, read_observation
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf import (
    ArBufferJoint,
    ArBufferMarginals,
    ArBufferModel,
    ArBufferPosterior,
    amortize,
    calibrate,
    compare_evidence,
    log_evidence,
    random_orders,
    refine,
    self_consistency,
    subset_gap,
)
from pyro_arbuf.checkpoint import CONFIG, find_model
from pyro_arbuf.files import write_atomically
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.priors.ddm import ddm
from pyro_arbuf.priors.gaussian import exact_log_evidence, exact_posterior, gaussian
from pyro_arbuf.programs.evidence import Z
from pyro_arbuf.programs.simulator import Simulations
from pyro_arbuf.programs.sources import find_simulator
from pyro_arbuf.random_state import seeded

SEED = 7_000  # of data sets; of calibration below: both fixed before any result was seen
CALIBRATION_SEED = 8_000
NUM_DRAWS = 1_000
POSTERIOR_ORDERS = 8
Row = tuple[str, str, str]  # what, figure, aim


def c2st(draws: Tensor, reference: Tensor, seed: int = 1) -> float:
    """Classifier two-sample test as in sbibm: accuracy of an MLP, 5-fold, on draws `(S, P)` scaled by the reference.

    Source:
        Lueckmann et al. (2021), "Benchmarking simulation-based inference".
    """
    x = ((torch.cat([reference, draws]) - reference.mean(0)) / reference.std(0)).numpy()
    label = np.repeat([0, 1], [len(reference), len(draws)])
    hidden = 10 * x.shape[1]
    classifier = MLPClassifier((hidden, hidden), activation="relu", max_iter=10_000, solver="adam", random_state=seed)
    folds = KFold(n_splits=5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, x, label, cv=folds, scoring="accuracy").mean())


def quiet() -> None:
    """Silences what is expected here: data sets come from the prior, k-hat and errors are in the table."""
    for message in (".*outside the trained range.*", ".*rests on few of its.*", "k-hat", "the weights have"):
        warnings.filterwarnings("ignore", message=message)


def stack(sites: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """Draws `(S, P)` of named sites `(S, *shape)`."""
    return torch.cat([sites[name].reshape(len(sites[name]), -1) for name in names], 1)


def shown(values: list[float] | Tensor, digits: int = 3) -> str:
    """Mean and standard error as text."""
    mean, error = mean_se(values)
    return f"{mean:.{digits}f} ({error:.{digits}f})"


def kept_scores(
    folder: Path, net: ArBufferModel, num_sets: int, score: Callable[[int], dict[str, float]]
) -> list[dict[str, float]]:
    """Scores of data sets, kept in a file of a network's weights; those that it holds are not computed again."""
    path = folder / f"scores-{weights_key(net)}.json"
    done = read_kept(path, [])
    for i in tqdm(range(len(done), num_sets), desc="data sets", leave=False):
        with seeded(SEED + i):
            done.append(score(i))
        keep(path, done)
    return done[:num_sets]


def draw_sets(net: ArBufferModel, num_sets: int, num_trials: int, seed: int = SEED) -> Simulations:
    """Simulated data sets of a network's program, the same ones every time."""
    with seeded(seed):
        return find_simulator(net).draw(num_sets, num_trials)


def posterior_draws(net: ArBufferModel, x: Tensor, y: Tensor, num_draws: int = NUM_DRAWS) -> dict[str, Tensor]:
    """Draws of the amortised posterior: several orders mixed, or that of a network that was trained in its own."""
    number, orders = net.config.num_latents, None
    if not net.config.ordered_latents:
        orders = random_orders(number, min(POSTERIOR_ORDERS, math.factorial(number)))
    posterior = ArBufferPosterior(net.condition(x, y), orders)
    return posterior.sites(posterior.sample((num_draws,)))


def run_nuts(model: Callable, num_warmup: int, num_draws: int, *args: object, jit: bool) -> dict[str, Tensor]:
    """Thinned NUTS draws, NUM_DRAWS of them."""
    kernel = NUTS(model, jit_compile=jit, ignore_jit_warnings=True, full_mass=True)
    mcmc = MCMC(kernel, num_draws, num_warmup, disable_progbar=True)
    with pyro.validation_enabled(False):
        mcmc.run(*args)
    thin = num_draws // NUM_DRAWS
    return {name: value[::thin][:NUM_DRAWS] for name, value in mcmc.get_samples().items()}


def consistency_rows(net: ArBufferModel, x: Tensor, y: Tensor) -> list[Row]:
    """The two checks without a reference, over data sets `(D, n, .)`; one observation or a series has no subsets."""
    spread = [self_consistency(net, a, b).standard_deviation for a, b in zip(x, y, strict=True)]
    rows = [("self-consistency, sd over posterior draws (nats)", shown(spread, 2), "0")]
    if x.shape[1] == 1 or net.config.sequential:
        return rows
    gaps = [subset_gap(net, a, b) for a, b in zip(x, y, strict=True)]
    return [
        *rows,
        ("subset gap, dropped (nats per target)", shown([gap.dropped for gap in gaps], 4), "0"),
        ("subset gap, reordered (nats per target)", shown([gap.reordered for gap in gaps], 4), "0"),
    ]


@torch.no_grad()
def bench_gaussian(net: ArBufferModel, num_sets: int) -> tuple[list[Row], dict[str, object]]:
    """Posterior, evidence and predictive against the closed forms, n = 100."""
    names, num_trials = ("mu", "tau"), 100
    drawn = draw_sets(net, 3 * num_sets, num_trials)
    x, y = drawn.x, drawn.y.squeeze(-1)
    scores, ours = [], 0.0
    for i in tqdm(range(num_sets), desc="C2ST", leave=False):
        with seeded(SEED + i):
            started = time.perf_counter()
            draws = posterior_draws(net, x[i], y[i])
            ours += time.perf_counter() - started
            reference = exact_posterior(y[i]).sample((NUM_DRAWS,))
        scores.append(c2st(stack(draws, names), stack(reference, names).float()))
    errors, spread = [], []
    for a, b in tqdm(list(zip(x, y, strict=True)), desc="evidence", leave=False):
        evidence = log_evidence(net, a, b)
        errors.append(evidence.value.double() - exact_log_evidence(b))
        spread.append(evidence.standard_error)
    errors = torch.stack(errors)
    gaps = {}
    for n in (0, 10, 30, num_trials - 16):
        orders = random_orders(16, 16)
        many = draw_sets(net, 256, num_trials)
        context, targets = many.y[:, :n, 0], many.y[:, n : n + 16, 0]
        joint = ArBufferJoint(net.condition(many.x[:, :n], context), many.x[:, :16], orders)
        both = torch.cat([context, targets], 1)
        gaps[n] = (exact_log_evidence(both) - exact_log_evidence(context) - joint.log_prob(targets).double()) / 16
    gap = torch.stack(list(gaps.values()))
    rmse = errors.square().mean().sqrt().item()
    rows = [
        (f"posterior C2ST against exact, {num_sets} sets of {num_trials}", shown(scores), "<= 0.55"),
        (f"evidence RMSE, {len(errors)} sets of {num_trials} (nats)", f"{rmse:.2f}", "<= 1.0"),
        ("evidence, mean error (nats)", shown(errors, 2), "0"),
        ("evidence, standard error over 64 orders (nats)", f"{torch.stack(spread).mean():.3f}", ""),
        ("predictive gap, joint of 16 after 0, 10, 30, 84 (nats per target)", shown(gap.mean(0), 4), "<= 0.01"),
        ("its largest over the four", f"{gap.mean(1).max().item():.4f}", ""),
        *consistency_rows(net, x[:10], y[:10]),
        ("seconds per data set, 1,000 draws", f"{ours / num_sets:.2f}", ""),
    ]
    return rows, {"c2st": mean_se(scores), "evidence_rmse": {"gaussian": rmse}, "gap": mean_se(gap.mean(0))}


class DDMSet(NamedTuple):
    """One data set: C2ST of the posterior, refined, through the likelihood (`None` = not asked); k-hat; seconds."""

    raw: float
    fine: float
    through: float | None
    k_hat: float
    ours_seconds: float
    refine_seconds: float
    nuts_seconds: float


def compare_ddm(net: ArBufferModel, x: Tensor, y: Tensor, seed: int, likelihood: bool) -> DDMSet:
    """Compares a network with NUTS on the exact density, on one data set."""
    quiet()
    names = net.latents
    pyro.set_rng_seed(seed)
    started = time.perf_counter()
    exact = poutine.condition(ddm, {"y": y.double()})
    reference = stack(run_nuts(exact, 500, 2 * NUM_DRAWS, x.double(), jit=True), names).float()
    nuts_seconds = time.perf_counter() - started
    started = time.perf_counter()
    draws = posterior_draws(net, x, y)
    ours_seconds = time.perf_counter() - started
    started = time.perf_counter()
    refined = refine(ddm, net.condition(x, y), 20_000, NUM_DRAWS, random_orders(3, 6))
    refine_seconds = time.perf_counter() - started
    raw, fine = c2st(stack(draws, names), reference), c2st(stack(refined.draws, names).float(), reference)
    through = c2st(stack(nuts_through_likelihood(net, x, y), names), reference) if likelihood else None
    return DDMSet(raw, fine, through, refined.k_hat, ours_seconds, refine_seconds, nuts_seconds)


def bench_ddm(
    net: ArBufferModel, num_sets: int, num_likelihood_sets: int, jobs: int
) -> tuple[list[Row], dict[str, object]]:
    """Posterior raw and refined against NUTS on the exact density; NUTS through the likelihood; calibration."""
    drawn = draw_sets(net, num_sets, 200)
    tasks = (
        delayed(compare_ddm)(net, drawn.x[i], drawn.y[i, :, 0], SEED + i, i < num_likelihood_sets)
        for i in range(num_sets)
    )
    done = tqdm(Parallel(jobs, return_as="generator")(tasks), desc="data sets", total=num_sets, leave=False)
    raw, fine, through, k_hats, ours, refining, nuts = (list(values) for values in zip(*done, strict=True))
    through = [value for value in through if value is not None]
    checked = calibrate(net, 500, 99, num_trials=200, num_orders=POSTERIOR_ORDERS, seed=CALIBRATION_SEED)
    with torch.no_grad():
        consistency = consistency_rows(net, drawn.x[:10], drawn.y[:10, :, 0])
    fair = sum(k < 0.7 for k in k_hats)
    rows = [
        (f"posterior C2ST against NUTS, {num_sets} sets of 200", shown(raw), "<= 0.54"),
        ("the same after refine", shown(fine), "<= 0.53"),
        ("sets with k-hat < 0.7", f"{fair} of {num_sets}", f">= {math.ceil(0.9 * num_sets)}"),
        (f"C2ST of NUTS through the likelihood, {len(through)} sets", shown(through), "<= 0.60"),
        ("calibration, 500 sets of 200, 99 draws: p (Bonferroni)", f"{checked.p_value:.3f}", "> 0.01"),
        *consistency,
        ("seconds per data set: amortised, 1,000 draws", f"{sum(ours) / num_sets:.2f}", ""),
        ("refine, 20,000 draws", f"{sum(refining) / num_sets:.2f}", ""),
        ("NUTS on the exact density, 500 + 2,000", f"{sum(nuts) / num_sets:.1f}", ""),
    ]
    summary = {"c2st": mean_se(raw), "c2st refined": mean_se(fine), "k_hat < 0.7": fair, "p": checked.p_value}
    summary |= {"c2st likelihood": mean_se(through), "all": [raw, fine, through, k_hats]}
    return rows, summary | {"ours": sum(ours), "refine": sum(refining), "NUTS": sum(nuts)}


def nuts_through_likelihood(net: ArBufferModel, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """NUTS draws of the program's prior with the network's likelihood."""

    def model() -> None:
        latents = {
            "drift": pyro.sample("drift", dist.LogNormal(2.3, 0.5)),
            "boundary": pyro.sample("boundary", dist.LogNormal(0.5, 0.35)),
            "ndt": pyro.sample("ndt", dist.Uniform(0.1, 0.6)),
        }
        pyro.sample("y", ArBufferMarginals(net.condition(latents=latents), x, validate_args=False), obs=y)

    return run_nuts(model, 300, NUM_DRAWS, jit=False)


@torch.no_grad()
def bench_multisensory(nets: dict[str, ArBufferModel], num_sets: int) -> tuple[list[Row], dict[str, object]]:
    """Evidence and its difference against importance sampling with the exact likelihood, n = 400."""
    table = pd.read_csv(TABLE).set_index(["simulated_from", "index", "model"])["log_evidence"]
    names, seconds = list(nets), 0.0
    errors, ours, exact, order_errors = [], [], [], []
    for net in nets.values():
        net.replace_measured(evidence_rmse=0.0)  # it is measured here; the comparison's error is that of the orders
    for truth in names:
        for i, (x, y, _) in enumerate(tqdm(simulated_sets(truth, num_sets), desc=truth, leave=False)):
            if any((truth, i, name) not in table.index for name in names):
                continue
            started = time.perf_counter()
            compared = compare_evidence(nets, x, y)
            seconds += time.perf_counter() - started
            values = [compared.evidence[name].value.item() for name in names]
            reference = [table[truth, i, name] for name in names]
            errors.append([a - b for a, b in zip(values, reference, strict=True)])
            ours.append(values[0] - values[1])
            exact.append(reference[0] - reference[1])
            order_errors.append(max(compared.error.values()))
    errors, ours, exact = torch.tensor(errors), torch.tensor(ours), torch.tensor(exact)
    rmse, difference = errors.square().mean(0).sqrt(), (ours - exact).square().mean().sqrt().item()
    # What compare_evidence says once the networks carry the errors measured here.
    error = (torch.tensor(order_errors).square() + Z**2 * rmse.square().sum()).sqrt()
    resolved = ours.abs() > error
    wrong = int((resolved & (ours.sign() != exact.sign())).sum())
    rows = [
        (f"evidence RMSE, {len(ours)} sets of 400 (nats)", f"{errors.square().mean().sqrt():.2f}", "<= 10"),
        *((f"of {name}", f"{value:.2f}", "") for name, value in zip(names, rmse.tolist(), strict=True)),
        ("mean error of both (nats)", shown(errors.mean(1), 2), "0"),
        ("RMSE of the difference (nats)", f"{difference:.2f}", "<= 5"),
        ("exact differences, smallest and largest (nats)", f"{exact.min():.1f}, {exact.max():.1f}", ""),
        (f"wrong verdicts, among the resolved of {len(ours)} sets", f"{wrong} of {int(resolved.sum())}", "0"),
        ("seconds per data set, both models, 64 orders", f"{seconds / len(ours):.1f}", ""),
    ]
    for name, net in nets.items():
        drawn = draw_sets(net, 5, 400)
        rows += [(f"{name}, {check}", *figures) for check, *figures in consistency_rows(net, drawn.x, drawn.y[..., 0])]
    summary = {"evidence_rmse": dict(zip(names, rmse.tolist(), strict=True)), "difference rmse": difference}
    return rows, summary | {"wrong": wrong, "resolved": int(resolved.sum()), "sets": len(ours)}


def score_observation(net: ArBufferModel, files: Path, number: int) -> float:
    """C2ST of 10,000 draws against sbibm's reference draws for one of its observations."""
    y, reference = read_observation(files, net.config.prior.replace("-", "_"), number)
    with seeded(SEED + number):
        draws = posterior_draws(net, torch.zeros(1, 1), y[None], len(reference))
    return c2st(stack(draws, net.latents), reference)


def bench_sbibm(net: ArBufferModel, files: Path, aim: float, jobs: int) -> tuple[list[Row], dict[str, object]]:
    """C2ST on sbibm's ten observations against its reference posterior draws."""
    read_observation(files, net.config.prior.replace("-", "_"), 1)
    numbers = tqdm(range(1, NUM_OBSERVATIONS + 1), desc="C2ST", leave=False)
    scores = cast(
        list[float], Parallel(n_jobs=jobs)(delayed(score_observation)(net, files, number) for number in numbers)
    )
    rows = [("posterior C2ST, sbibm's ten observations, 10,000 draws", shown(scores), f"<= {aim}")]
    rows.append(("of each", " ".join(f"{score:.3f}" for score in scores), ""))
    if net.config.prior == "two-moons":
        gap, error = likelihood_gap(net)
        rows.append(("likelihood of y given theta, gap to exact (nats)", f"{gap:.3f} ({error:.3f})", "<= 0.15"))
    drawn = draw_sets(net, 10, 1)
    rows += consistency_rows(net, drawn.x, drawn.y)
    return rows, {"c2st": mean_se(scores)}


def bench_amortize(num_sets: int) -> tuple[list[Row], dict[str, object]]:
    """`amortize` with its default settings on the Gaussian program."""
    net = amortize(gaussian, num_context=(0, 100))
    drawn = draw_sets(net, num_sets, 100)
    scores = []
    for i in range(num_sets):
        with seeded(SEED + i):
            draws = posterior_draws(net, drawn.x[i], drawn.y[i, :, 0])
            reference = exact_posterior(drawn.y[i, :, 0]).sample((NUM_DRAWS,))
        scores.append(c2st(stack(draws, ("mu", "tau")), stack(reference, ("mu", "tau")).float()))
    rows = [(f"amortize for 8 minutes: posterior C2ST, {num_sets} sets of 100", shown(scores), "<= 0.65")]
    return rows, {"c2st": mean_se(scores)}


def check_card_of(models: Path | None, update_card: bool) -> None:
    """Raises ValueError if a shipped card is to be written about networks of another folder."""
    if models is not None and update_card:
        raise ValueError(
            f"--update-card writes the cards of the shipped models; got --models {models}; leave out one of both"
        )


def report(what: str, rows: list[Row], summary: dict[str, object], cards: dict[str, ModelConfig]) -> None:
    """Prints the table and the line of JSON, and writes into the cards of shipped models, given with their configs."""
    lines = ["| | measured | aim |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    text = "Standard errors over data sets in brackets.\n\n" + "\n".join(lines) + "\n"
    print(text)
    for name, config in cards.items():
        card = find_model(name) / "README.md"
        write_marked(card, "sbi", text)
        if name in summary.get("evidence_rmse", {}):
            config = replace(config, evidence_rmse=round(summary["evidence_rmse"][name], 2))
            write_atomically(
                find_model(name) / CONFIG, lambda file, config=config: file.write_text(config.to_json() + "\n")
            )
    print(json.dumps({"benchmark": what} | summary))


def main(
    what: Annotated[
        Literal["gaussian", "ddm", "multisensory", "two-moons", "gaussian-linear", "amortize"], tyro.conf.Positional
    ],
    num_sets: int = 20,
    num_likelihood_sets: int = 10,
    models: Path | None = None,
    files: Path = Path(".sbibm"),
    update_card: bool = False,
    threads: int | None = None,
    jobs: int = 1,
) -> None:
    """Measures networks of programs against exact answers.

    Args:
        what: Which.
        num_sets: Data sets; for multisensory, at most 15 from each model.
        num_likelihood_sets: Data sets for NUTS through the amortised likelihood.
        models: Folder to load networks from instead of the shipped ones.
        files: Where the package sbibm is installed, of which only files are read.
        update_card: Write the table into the shipped model's card, between its markers.
        threads: CPU threads.
        jobs: Data sets of ddm, or observations of sbibm, at a time, each in a process of its own.
    """
    check_card_of(models, update_card)
    if threads is not None:
        torch.set_num_threads(threads)
    quiet()
    pyro.set_rng_seed(SEED)

    def get(name: str) -> ArBufferModel:
        return pyro_arbuf.load(name if models is None else models / name)

    used = [what]
    if what == "gaussian":
        rows, summary = bench_gaussian(get(what), num_sets)
    elif what == "ddm":
        rows, summary = bench_ddm(get(what), num_sets, num_likelihood_sets, jobs)
    elif what == "multisensory":
        used = ["multisensory-rho1", "multisensory-rho43"]
        rows, summary = bench_multisensory({name: get(name) for name in used}, min(num_sets, 15))
    elif what == "amortize":
        used = []
        rows, summary = bench_amortize(num_sets)
    else:
        rows, summary = bench_sbibm(get(what), files, {"two-moons": 0.53, "gaussian-linear": 0.52}[what], jobs)
    report(what, rows, summary, {name: get(name).config for name in used} if update_card else {})


if __name__ == "__main__":
    tyro.cli(main)

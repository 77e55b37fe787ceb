"""How fast do two monkeys accumulate evidence, and how cautious are they? A drift-diffusion model, amortised.

The model is an ordinary Pyro program. One line turns it into a network, trained on nothing but its simulations:

    net = pyro_arbuf.amortize(drift_diffusion, inputs=draw_coherence, num_context=(0, 400), minutes=150)

From then on the posterior of any animal takes a fraction of a second. A density of the program is not needed. Here
there is one, so that every answer can be checked: against NUTS, and by importance sampling, which also corrects it.
Trials that were kept back show what the program itself misses, whoever computes its posterior: with bounds that stay
where they are, response times vary more than those of the monkeys.

    python tutorials/04_sbi_drift_diffusion.py

Data: choices and response times of Roitman and Shadlen (2002), as distributed with PyDDM (MIT; see data/README.md).
"""

# %% The animals: 400 trials each to learn from, spread evenly over the coherences; all other trials to be predicted
import os
import tempfile
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces ArviZ 1
    import arviz as az

import pyro_arbuf
from pyro_arbuf import ArBufferMarginals, ArBufferPosterior, calibrate, random_orders, refine, to_inference_data
from pyro_arbuf.priors.ddm import COHERENCES, DDM

plt.style.use("pyro_arbuf.house")  # the style of all figures here
SMOKE_TEST = bool(os.environ.get("SMOKE_TEST"))
NUM_WARMUP, NUM_DRAWS, MAX_TREE_DEPTH = (4, 20, 2) if SMOKE_TEST else (500, 2000, 10)
NUM_WARMUP_LIKELIHOOD, NUM_DRAWS_LIKELIHOOD = (2, 10) if SMOKE_TEST else (150, 400)
NUM_PROPOSALS, NUM_KEPT = (500, 20) if SMOKE_TEST else (10_000, 500)
NUM_SIMULATED = 20 if SMOKE_TEST else 200
NUM_REPLICATIONS = 20 if SMOKE_TEST else 200
FIGURE = (Path(tempfile.mkdtemp()) if SMOKE_TEST else Path(__file__).parent) / "04_sbi_drift_diffusion.png"

torch.set_num_threads(1)
pyro.set_rng_seed(0)
NUM_TRIALS, FASTEST = 400, 0.25  # s; faster responses are guesses

trials = pd.read_csv(Path(__file__).parent / "data" / "roitman_shadlen_2002.csv")
trials = trials[trials.rt >= FASTEST].sample(frac=1, random_state=0)
trials["turn"] = trials.groupby(["monkey", "coh"]).cumcount()  # within its coherence
trials = trials.sort_values("turn", kind="stable")


def as_tensors(rows: pd.DataFrame) -> tuple[Tensor, Tensor]:
    """Inputs `(n, 1)`, the coherence, and outcomes `(n,)`: the response time, negative where the choice was wrong."""
    y = torch.tensor(rows.rt.to_numpy() * np.where(rows.correct == 1, 1.0, -1.0), dtype=torch.float32)
    return torch.tensor(rows[["coh"]].to_numpy(), dtype=torch.float32), y


monkeys = {f"monkey {name}": as_tensors(rows[:NUM_TRIALS]) for name, rows in trials.groupby("monkey")}
others = {f"monkey {name}": as_tensors(rows[NUM_TRIALS:]) for name, rows in trials.groupby("monkey")}


# %% The program: evidence drifts in proportion to coherence until it meets a bound; the rest of the time is "ndt"
def drift_diffusion(x):
    drift = pyro.sample("drift", dist.LogNormal(2.3, 0.5))  # evidence per second at coherence 1
    boundary = pyro.sample("boundary", dist.LogNormal(0.5, 0.35))  # caution: the evidence between the two bounds
    ndt = pyro.sample("ndt", dist.Uniform(0.1, 0.6))  # non-decision time, s
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", DDM(drift * x[..., 0], boundary, ndt))


LABELS = {"drift": "drift (1/s)", "boundary": "boundary", "ndt": "non-decision time (s)"}
net = pyro_arbuf.load("ddm")

# %% The posterior of each monkey, and what importance sampling with the program's density makes of it
orders = random_orders(len(net.latents), 6)  # all orders of three latents, mixed
amortised, refined, seconds = {}, {}, {"amortised": 0.0, "refined": 0.0, "NUTS": 0.0}
for name, (x, y) in monkeys.items():
    start = time.process_time()  # seconds of the one core in use
    context = net.condition(x, y)
    posterior = ArBufferPosterior(context, orders)
    amortised[name] = posterior.sites(posterior.sample((NUM_DRAWS,)))
    seconds["amortised"] += time.process_time() - start
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="k-hat")  # it is printed
        refined[name] = refine(drift_diffusion, context, NUM_PROPOSALS, NUM_KEPT, orders)
    seconds["refined"] += time.process_time() - start
    print(
        f"{name}: importance sampling of {NUM_PROPOSALS} draws: k-hat {refined[name].k_hat:.2f} (trust it below 0.7), "
        f"effective sample size {refined[name].effective_sample_size:.0f}"
    )


# %% The same by NUTS with the exact density, in double precision
def run_nuts(model, num_warmup: int, num_draws: int, *args, jit: bool = False) -> MCMC:
    pyro.set_rng_seed(0)
    kernel = NUTS(model, jit_compile=jit, ignore_jit_warnings=True, full_mass=True, max_tree_depth=MAX_TREE_DEPTH)
    mcmc = MCMC(kernel, num_draws, num_warmup, disable_progbar=True)
    with pyro.validation_enabled(False):
        mcmc.run(*args)
    return mcmc


exact = {}
torch.set_default_dtype(torch.float64)  # the network stays float32 and casts what it is given
for name, (x, y) in monkeys.items():
    start = time.process_time()
    conditioned = poutine.condition(drift_diffusion, {"y": y.double()})
    mcmc = run_nuts(conditioned, NUM_WARMUP, NUM_DRAWS, x.double(), jit=not SMOKE_TEST)
    exact[name] = mcmc.get_samples()
    seconds["NUTS"] += time.process_time() - start
torch.set_default_dtype(torch.float32)


# %% The network's likelihood in a model of one's own: here with the same prior, by NUTS through the network
def through_likelihood(x, y):
    latents = {
        "drift": pyro.sample("drift", dist.LogNormal(2.3, 0.5)),
        "boundary": pyro.sample("boundary", dist.LogNormal(0.5, 0.35)),
        "ndt": pyro.sample("ndt", dist.Uniform(0.1, 0.6)),
    }
    pyro.sample("y", ArBufferMarginals(net.condition(latents=latents), x, validate_args=False), obs=y)


first = next(iter(monkeys))
by_likelihood = run_nuts(through_likelihood, NUM_WARMUP_LIKELIHOOD, NUM_DRAWS_LIKELIHOOD, *monkeys[first]).get_samples()


# %% ArviZ: the refined draws with their log likelihood and replicated data, in one object
def observed_program(x, y):
    return poutine.condition(drift_diffusion, {"y": y})(x)


for name, (x, y) in monkeys.items():
    fit = to_inference_data(refined[name].draws, observed_program, x, y, seed=0)
    loo = az.loo(fit)
    print(f"\n{name}, {len(y)} trials: elpd by leave-one-out {loo.elpd_loo:.1f} (se {loo.se:.1f}) nats")
    print(az.summary(fit, kind="stats", hdi_prob=0.9).round(3).to_string())

# %% Does the model predict the trials it has not seen? Accuracy, and quantiles of the correct response times
QUANTILES = torch.tensor([0.1, 0.5, 0.9])


def statistics(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy `(*batch, 6)` and quantiles `(*batch, 3, 6)` of the correct response times, by coherence."""
    accuracy, quantiles = [], []
    for coherence in COHERENCES:
        some = y[..., (x[:, 0] - coherence).abs() < 1e-4]
        accuracy.append((some > 0).float().mean(-1))
        correct = torch.where(some > 0, some, torch.nan)
        quantiles.append(torch.nanquantile(correct, QUANTILES.to(correct), dim=-1).movedim(0, -1))
    return torch.stack(accuracy, -1), torch.stack(quantiles, -1)


checks, LEVELS = {}, torch.tensor([0.05, 0.95])
print("\nTrials not seen: observed, and 90 % of replicated data sets, by coherence", *COHERENCES)
for name, (x, y) in others.items():
    draws = {site: values[:NUM_REPLICATIONS] for site, values in refined[name].draws.items()}
    replicated = Predictive(drift_diffusion, draws, return_sites=["y"], parallel=True)(x)["y"]
    checks[name] = statistics(x, y), [torch.nanquantile(part, LEVELS, 0) for part in statistics(x, replicated)]
    (accuracy, times), (accuracy_90, times_90) = checks[name]
    for label, seen, (low, high) in (
        ("accuracy", accuracy, accuracy_90),
        *((f"{100 * q:.0f} % (s)", *pair) for q, *pair in zip(QUANTILES, times, times_90.unbind(1), strict=True)),
    ):
        cells = [f"{have:.2f} ({a:.2f} to {b:.2f})" for have, a, b in zip(seen, low, high, strict=True)]
        print(f"{name}, {label:10s}", " ".join(cells))

print(
    "What the program misses: at low coherence the slowest answers of the monkeys come sooner than predicted, as if "
    "their bounds came closer with time. No posterior of this program can mend that, exact or not."
)

# %% Is the network calibrated? Ranks of true latents among posterior draws, on data sets from the program
checked = calibrate(net, NUM_SIMULATED, num_trials=NUM_TRIALS, num_orders=len(orders))
print(f"\ncalibration on {NUM_SIMULATED} simulated data sets: uniform ranks, p = {checked.p_value:.2f} (Bonferroni)")

# %% Known answers: how far from NUTS, in its posterior standard deviations
print("\nmean minus that of NUTS on the exact density, in its sds (ratio of sds in brackets)")
equal = torch.ones(NUM_DRAWS)
answers = {("amortised", name): (draws, equal) for name, draws in amortised.items()}
answers |= {("refined", name): (result.proposals, result.weights) for name, result in refined.items()}
answers["NUTS, amortised likelihood", first] = by_likelihood, torch.ones(NUM_DRAWS_LIKELIHOOD)
worst = dict.fromkeys([kind for kind, _ in answers], 0.0)
for (kind, name), (draws, weights) in answers.items():
    cells = []
    for site, reference in exact[name].items():
        weight = (weights / weights.sum()).double()
        mean = (weight * draws[site]).sum()
        sd = (weight * (draws[site] - mean) ** 2).sum().sqrt()
        shift = ((mean - reference.mean()) / reference.std()).item()
        worst[kind] = max(worst[kind], abs(shift))
        cells.append(f"{site} {shift:+.2f} ({(sd / reference.std()).item():.2f})")
    print(f"{name}, {kind:28s}", ", ".join(cells))
print(
    f"seconds for both monkeys: amortised {seconds['amortised']:.2f}, refined {seconds['refined']:.1f} on top, "
    f"NUTS {seconds['NUTS']:.1f}"
)

# %% The picture
colours = dict(zip(monkeys, ("C0", "C1"), strict=True))
figure = plt.figure(figsize=(8, 10))
panels = figure.subplot_mosaic([["drift", "boundary"], ["ndt", "coverage"], ["accuracy", "times"]])
for site, label in LABELS.items():
    axis = panels[site]
    for name, colour in colours.items():
        both = torch.cat([amortised[name][site].double(), exact[name][site]])
        bins = np.linspace(*torch.quantile(both, torch.tensor([0.001, 0.999]).double()).tolist(), 40)
        axis.hist(amortised[name][site], bins, density=True, color=colour, alpha=0.35, label=f"{name}, amortised")
        weights = refined[name].weights.numpy()
        values = refined[name].proposals[site].numpy()
        axis.hist(values, bins, weights=weights, density=True, histtype="step", color=colour, lw=1.5, label="refined")
        axis.hist(exact[name][site], bins, density=True, histtype="step", color="black", ls="--", label="NUTS, exact")
    axis.set(title=f"posterior of the {label}", xlabel=label, yticks=[])
figure.legend(*panels["drift"].get_legend_handles_labels(), loc="outside upper center", ncols=2)
positions = np.arange(len(COHERENCES))
for shift, (name, colour) in zip((-0.1, 0.1), colours.items(), strict=True):
    for axis, seen, (low, high) in zip((panels["accuracy"], panels["times"]), *checks[name], strict=True):
        for row, a, b in zip(*(part.reshape(-1, len(COHERENCES)) for part in (seen, low, high)), strict=True):
            axis.vlines(positions + shift, a, b, color=colour, lw=5, alpha=0.4)
            axis.plot(positions + shift, row, "x", color=colour, ms=6)
    panels["accuracy"].plot([], [], "x", color=colour, label=f"{name}, trials not seen")
    panels["accuracy"].plot([], [], color=colour, lw=5, alpha=0.4, label="predicted, 90 %")
for name, title, label in (
    ("accuracy", "accuracy", "share of correct choices"),
    ("times", "10, 50 and 90 % of correct times", "response time (s)"),
):
    panels[name].set_xticks(positions, COHERENCES)
    panels[name].set(title=title, xlabel="coherence", ylabel=label)
panels["accuracy"].legend()
misfit = "at low coherence the slowest answers\ncome sooner than the model says: misfit"
panels["times"].margins(y=0.15)
panels["times"].text(0.98, 0.99, misfit, ha="right", va="top", transform=panels["times"].transAxes, fontsize="small")
nominal = np.array(checked.levels)
half = 1.96 * np.sqrt(nominal * (1 - nominal) / NUM_SIMULATED)
panels["coverage"].fill_between(nominal, nominal - half, nominal + half, color="0.85", lw=0, label="95 % by chance")
panels["coverage"].plot([0, 1], [0, 1], color="0.6", lw=1)
panels["coverage"].plot(nominal, checked.coverage, label=checked.names)
panels["coverage"].set(title=f"coverage, {NUM_SIMULATED} simulated data sets", xlabel="nominal", ylabel="measured")
panels["coverage"].legend()
figure.savefig(FIGURE, dpi=110)
print(f"figure: {FIGURE.relative_to(Path.cwd()) if FIGURE.is_relative_to(Path.cwd()) else FIGURE}")
if not SMOKE_TEST:
    assert worst["amortised"] < 1.5, worst
    assert worst["refined"] < 0.25 or max(result.k_hat for result in refined.values()) > 0.7, worst

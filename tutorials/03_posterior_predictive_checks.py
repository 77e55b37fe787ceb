"""Did the replacement instrument read the same CO2, and may we trust the model that says so? ArviZ, end to end.

The analyser at Mauna Loa fails for half a year; a replacement has been running since eight weeks before. We ask for the
offset between the two with an ordinary Pyro model around a pretrained network, and then do what a careful statistician
does before believing the answer: leave-one-out and a second network, PIT with bands, posterior predictive checks with
statistics that see dependence. The offset is planted (0.7 ppm), so the answer is known.

    python tutorials/03_posterior_predictive_checks.py

Data: weekly atmospheric CO2 at Mauna Loa, 1958 to 2001, Scripps Institution of Oceanography and NOAA; public domain.
"""

# %% The record: instrument A every other week but for its failure, instrument B in 32 weeks from shortly before
import os
import tempfile
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from scipy.stats import kstest

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces ArviZ 1
    import arviz as az

import pyro_arbuf
from pyro_arbuf import (
    ArBufferJoint,
    ArBufferMarginals,
    check_model,
    exact_loo,
    loo_conditionals,
    random_orders,
    to_elpd_data,
    to_inference_data,
)

plt.style.use("pyro_arbuf.house")  # the style of all figures here
SMOKE_TEST = bool(os.environ.get("SMOKE_TEST"))
WARMUP, DRAWS, NUM_ORDERS = (5, 20, 2) if SMOKE_TEST else (150, 300, 8)
FIGURE = (Path(tempfile.mkdtemp()) if SMOKE_TEST else Path(__file__).parent) / "03_posterior_predictive_checks.png"

pyro.set_rng_seed(0)
START, YEARS, OFFSET = 1988.0, 4.0, 0.7
FAILURE = (1989.9, 1990.37)
REPLACEMENT = (1989.75, 1990.37)  # 32 weeks

record = np.genfromtxt(
    Path(__file__).with_name("mauna_loa_co2_weekly.csv"), delimiter=",", skip_header=1, usecols=(1, 2)
)
record = record[(record[:, 1] >= START) & (record[:, 1] < START + YEARS) & ~np.isnan(record[:, 0])]
co2, year = (torch.tensor(column, dtype=torch.float32) for column in record.T)
by_b = (year > REPLACEMENT[0]) & (year < REPLACEMENT[1])
by_b[::2] &= year[::2] > FAILURE[0]  # before the failure B measures in the weeks in between
by_a = torch.zeros_like(by_b)
by_a[::2] = (year[::2] <= FAILURE[0]) | (year[::2] >= FAILURE[1])
readings_b = co2[by_b] + OFFSET
num_b = len(readings_b)

# %% Two networks for one record, each in years and ppm, by A's readings only
design = torch.stack([torch.ones(int(by_a.sum())), year[by_a] - START], 1)
intercept, slope = torch.linalg.lstsq(design, co2[by_a, None]).solution[:, 0]
trend = intercept + slope * (year - START)
seasonal = co2 - trend  # ppm
low, high = seasonal[by_a].min(), seasonal[by_a].max()
own = {name: pyro_arbuf.load(name) for name in ("gp-1d-noisy", "sawtooth")}
nets = {  # a year is one unit for the smooth network, a quarter for the periodic one, whose outcomes are in [0, 1]
    "gp-1d-noisy": own["gp-1d-noisy"].in_units(x_range=(START, START + YEARS), y=seasonal[by_a]),
    "sawtooth": own["sawtooth"].in_units(x_loc=START + YEARS / 2, x_scale=4.0, y_loc=low, y_scale=high - low),
}
x_a, y_a = year[by_a, None], seasonal[by_a]

# %% Which network describes A's readings? They sit in the context: leave-one-out is exact, by leaving each out in turn
elpds = {}
for name, net in nets.items():
    elpds[name] = to_elpd_data(exact_loo(net, x_a, y_a))
print(f"Exact leave-one-out of A's {int(by_a.sum())} readings (nats, per reading in ppm)")
print(az.compare(elpds)[["rank", "elpd_loo", "se", "elpd_diff", "dse"]].round(1).to_string(), "\n")

# %% Is it calibrated? PIT of A's readings, one after the other from none: uniform, whatever the dependence
# Each order of the readings gives other PIT values, all uniform for a calibrated network. One of them may leave its
# band by chance, as one test in twenty fails; if most of them did, the network would not be calibrated.
pits = {}
for name, net in nets.items():
    orders = random_orders(len(y_a), NUM_ORDERS)
    pits[name] = [ArBufferJoint(net.condition(), x_a, orders=order[None]).pit(y_a).numpy() for order in orders]
    p_values = [kstest(u, "uniform").pvalue for u in pits[name]]
    print(
        f"PIT of A's readings under {name}: Kolmogorov-Smirnov p = {p_values[0]:.3f} in the first order, median "
        f"{np.median(p_values):.3f} of {NUM_ORDERS}, below 0.05 in {sum(p < 0.05 for p in p_values)}"
    )
print()

# %% The Pyro model: B's readings are the seasonal cycle given A's, plus an offset
name = "gp-1d-noisy"
context = nets[name].condition(x_a, y_a)
x_b = year[by_b, None]
observed = seasonal[by_b] + OFFSET
predictions_of_b = {
    "joint": ArBufferJoint(context, x_b, orders=random_orders(num_b, 4)),
    "independent": ArBufferMarginals(context, x_b),
}


def model(cycle, readings=None):
    offset = pyro.sample("offset", dist.Normal(0.0, 5.0))  # ppm
    move = dist.transforms.AffineTransform(offset[..., None], 1.0)
    return pyro.sample("readings", dist.TransformedDistribution(cycle, move), obs=readings)


coords = {"target": year[by_b].numpy().round(3)}
fits = {}
for kind, cycle in predictions_of_b.items():
    check_model(model, cycle, observed)  # says so if the model misuses a joint prediction; here it is silent
    mcmc = MCMC(NUTS(model), num_samples=DRAWS, warmup_steps=WARMUP, num_chains=1, disable_progbar=SMOKE_TEST)
    mcmc.run(cycle, observed)
    pointwise = None  # independent targets have pointwise densities of their own
    if kind == "joint":  # a joint density has none: full conditionals stand in, at some distance from what PSIS assumes
        pointwise, gaps = loo_conditionals(model, mcmc.get_samples(), cycle, observed, num_ratio_draws=8)
        gap = float(gaps["readings"].abs().mean())
        print(f"full conditionals differ from the ratio of joints by {gap:.2f} nats per reading on average")
    fits[kind] = to_inference_data(mcmc, coords=coords, log_likelihood=pointwise, seed=0)
    loo, summary = az.loo(fits[kind]), az.summary(fits[kind], kind="stats", hdi_prob=0.9)
    print(f"{kind}: offset of B (ppm), and leave-one-out of its {num_b} readings")
    print(summary.round(2).to_string())
    print(f"elpd {loo.elpd_loo:.1f} (se {loo.se:.1f}) nats, largest k-hat {loo.pareto_k.max():.2f}\n")

# %% Posterior predictive checks of B's readings with statistics that see dependence


def lag_one(readings: np.ndarray) -> np.ndarray:
    r = readings - readings.mean(-1, keepdims=True)
    return (r[..., 1:] * r[..., :-1]).sum(-1) / (r**2).sum(-1)


def longest_run(readings: np.ndarray) -> np.ndarray:
    """Longest stretch of readings on one side of their mean."""
    above = readings > readings.mean(-1, keepdims=True)
    longest = current = np.ones(readings.shape[:-1], dtype=int)
    for k in range(1, readings.shape[-1]):
        current = np.where(above[..., k] == above[..., k - 1], current + 1, 1)
        longest = np.maximum(longest, current)
    return longest


def largest_step(readings: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(readings)).max(-1)


STATISTICS = {"lag-1 correlation": lag_one, "longest run (readings)": longest_run, "largest step (ppm)": largest_step}
checks = {}
print("Posterior predictive checks                      observed   draws: median, share at or above the observed")
for kind, fit in fits.items():
    draws = fit.posterior_predictive["readings"].stack(sample=("chain", "draw")).transpose("sample", "target").values
    for label, statistic in STATISTICS.items():
        drawn, seen = statistic(draws), statistic(fit.observed_data["readings"].values)
        checks[kind, label] = drawn, seen
        print(f"{kind:16s} {label:32s} {seen:6.2f}   {np.median(drawn):6.2f}   {(drawn >= seen).mean():.2f}")

# %% A known answer for leave-one-out: functions from the prior, whose exact densities are Gaussian algebra
NUM_FUNCTIONS, NUM_POINTS = (2, 20) if SMOKE_TEST else (40, 40)
LENGTHSCALE, NOISE_SD = 0.4, 0.2
differences = []
for _ in range(NUM_FUNCTIONS):
    x = 4 * torch.rand(NUM_POINTS, 1, dtype=torch.float64) - 2
    covariance = torch.exp(-0.5 * ((x - x.T) / LENGTHSCALE) ** 2) + NOISE_SD**2 * torch.eye(NUM_POINTS)
    y = torch.linalg.cholesky(covariance) @ torch.randn(NUM_POINTS, dtype=torch.float64)
    precision = torch.linalg.inv(covariance)
    variance = 1 / precision.diagonal()  # of y_i given all the others, as is the mean y_i - (precision y)_i variance_i
    exact = dist.Normal(0.0, variance.sqrt()).log_prob((precision @ y) * variance).mean()
    differences.append(float(exact_loo(own[name], x.float(), y.float()).elpd) / NUM_POINTS - float(exact))

print("\nKnown answers")
for kind, fit in fits.items():
    offset = fit.posterior["offset"]
    inside = bool(np.abs(offset.mean() - OFFSET) < 1.645 * offset.std())
    verdict = f"{float(offset.mean()):.2f} +- {float(offset.std()):.2f}, within 90 %: {inside}"
    print(f"offset planted {OFFSET}; {kind}: {verdict}")
error = np.std(differences) / NUM_FUNCTIONS**0.5
print(
    f"leave-one-out of {name} minus that of the Gaussian process with its hyperparameters known, which no network "
    f"can reach: {np.mean(differences):.3f} ({error:.3f}) nats per point"
)

# %% The picture
figure = plt.figure(figsize=(8, 9))
axes = figure.subplot_mosaic([["record", "record"], ["offset", "pit"], ["lag", "step"]])
colours = {"joint": "C0", "independent": "C1", "gp-1d-noisy": "C0", "sawtooth": "C2"}
weeks, base = year[by_b], trend[by_b, None].numpy()
draws = fits["joint"].posterior_predictive["readings"].values[0, :30]
axes["record"].plot(weeks, base + draws.T, color="C0", lw=0.6, alpha=0.5)
axes["record"].plot(year[by_a], co2[by_a], "k.", ms=5, label="instrument A")
axes["record"].plot(weeks, readings_b, "x", color="C3", ms=5, label="instrument B, as read")
axes["record"].plot([], [], color="C0", label="posterior predictive of B, joint draws")
axes["record"].set(
    xlim=(1989.2, 1991), ylim=(349.5, 358.5), xlabel="year", ylabel="CO2 (ppm)", title="Failure and replacement"
)
axes["record"].legend()
for kind, fit in fits.items():
    offset = fit.posterior["offset"].values.ravel()
    az.plot_kde(offset, ax=axes["offset"], plot_kwargs={"color": colours[kind]}, label=kind, textsize=10)
axes["offset"].axvline(OFFSET, color="black", ls="--", label="planted")
axes["offset"].set(title="Offset of B", xlabel="offset (ppm)", yticks=[])
axes["offset"].legend()
for name, (u, *others) in pits.items():
    for other in others:
        ranked = np.sort(other)
        axes["pit"].step(
            ranked, np.arange(1, len(ranked) + 1) / len(ranked) - ranked, color=colours[name], lw=0.6, alpha=0.5
        )
    az.plot_ecdf(
        u,
        cdf=lambda v: np.clip(v, 0, 1),
        eval_points=np.linspace(0, 1, 200),
        difference=True,
        confidence_bands=name == "sawtooth",
        ax=axes["pit"],
        plot_kwargs={"color": colours[name], "label": name},
    )
axes["pit"].set(title=f"PIT of A's readings, {NUM_ORDERS} orders, 94 % band", xlabel="u", ylabel="ECDF minus uniform")
axes["pit"].legend(loc="lower left")
for axis, label in {"lag": "lag-1 correlation", "step": "largest step (ppm)"}.items():
    bins = np.linspace(*np.quantile(np.concatenate([checks[kind, label][0] for kind in fits]), [0.005, 0.995]), 40)
    for kind in fits:
        axes[axis].hist(checks[kind, label][0], bins, density=True, alpha=0.6, color=colours[kind], label=kind)
    axes[axis].axvline(checks["joint", label][1], color="black", ls="--", label="observed")
    axes[axis].set(title="draws of B against the observed", xlabel=label, yticks=[])
    axes[axis].legend()
figure.savefig(FIGURE, dpi=110)
print(f"figure: {FIGURE.relative_to(Path.cwd()) if FIGURE.is_relative_to(Path.cwd()) else FIGURE}")

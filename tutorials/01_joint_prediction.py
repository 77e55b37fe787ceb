"""How steeply did CO2 at Mauna Loa rise from week to week while nobody looked? Joint predictions with gp-1d-noisy.

A question about several unmeasured weeks at once (a maximum, a rise, a run) needs their JOINT distribution: a band of
marginals cannot answer it. We hide 32 weeks of the record, condition a pretrained network on the rest, and draw the
hidden weeks inside an ordinary Pyro model.

    make demo            (or: python tutorials/01_joint_prediction.py)

Data: weekly atmospheric CO2 at Mauna Loa, 1958 to 2001, Scripps Institution of Oceanography and NOAA; public domain.
"""

# %% The record: four years, every other week observed, 32 weeks in a row hidden
import os
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import Predictive

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, random_orders
from pyro_arbuf.priors.gp import KERNEL_WEIGHTS, LENGTHSCALE, NOISE_SD, VARIANCE, correlation

plt.style.use("pyro_arbuf.house")  # the style of all figures here
SMOKE_TEST = bool(os.environ.get("SMOKE_TEST"))
NUM_DRAWS = 200 if SMOKE_TEST else 2000
FIGURE = (Path(tempfile.mkdtemp()) if SMOKE_TEST else Path(__file__).parent) / "01_joint_prediction.png"

torch.manual_seed(0)
pyro.set_rng_seed(0)
START, YEARS = 1988.0, 4.0
HIDDEN = (1989.75, 1990.37)  # 32 weeks, from the yearly minimum over the spring maximum

record = np.genfromtxt(
    Path(__file__).with_name("mauna_loa_co2_weekly.csv"), delimiter=",", skip_header=1, usecols=(1, 2)
)
record = record[(record[:, 1] >= START) & (record[:, 1] < START + YEARS) & ~np.isnan(record[:, 0])]
co2, year = (torch.tensor(column, dtype=torch.float32) for column in record.T)
hidden = (year > HIDDEN[0]) & (year < HIDDEN[1])
observed = torch.zeros_like(hidden)
observed[::2] = True  # every other week
observed &= ~hidden

# %% Condition once, in years and ppm; the joint prediction is a Pyro distribution
net = pyro_arbuf.load("gp-1d-noisy").in_units(x=year, y=co2[observed])  # what it takes and gives is in these units
context = net.condition(year[observed, None], co2[observed])
x_hidden, y_hidden = year[hidden, None], co2[hidden]
num_hidden = len(y_hidden)
orders = random_orders(num_hidden, 8)


def model(obs=None):
    return pyro.sample("co2", ArBufferJoint(context, x_hidden, orders=orders), obs=obs)


draws = Predictive(model, num_samples=NUM_DRAWS, parallel=True)()["co2"]
joint = ArBufferJoint(context, x_hidden, orders=orders)
independent = joint.marginals().sample((NUM_DRAWS,))

# %% The joint density of what was hidden, per ppm, against the sum of the marginals
log_joint = pyro.poutine.trace(model).get_trace(obs=y_hidden).log_prob_sum()
log_marginals = joint.marginals().log_prob(y_hidden)

# %% A question about many weeks at once: the steepest rise between two neighbouring weeks
steepest = {"joint": draws.diff(dim=-1).amax(-1), "independent": independent.diff(dim=-1).amax(-1)}
truth = co2[hidden].diff().max()

# %% The exact answer: a Gaussian process whose hyperparameters are drawn from the network's prior, weighted by the data
NUM_HYPER = 100 if SMOKE_TEST else 30_000
(x_loc,), (x_scale,), (y_loc,), (y_scale,) = (
    getattr(net.config, field) for field in ("user_x_loc", "user_x_scale", "user_y_loc", "user_y_scale")
)
both = torch.cat([year[observed], year[hidden]]).double()
distance = ((both[:, None] - both) / x_scale).abs()  # in the network's units, as its prior is
y_seen, num_seen = (co2[observed].double() - y_loc) / y_scale, int(observed.sum())
kernels = torch.multinomial(torch.tensor(KERNEL_WEIGHTS), NUM_HYPER, replacement=True).tolist()
uniform = torch.rand(NUM_HYPER, 3).double()
variances, lengthscales = (
    low + (high - low) * u for (low, high), u in zip((VARIANCE, LENGTHSCALE), uniform.T, strict=False)
)
log_low, log_high = np.log(NOISE_SD)
noises = (log_low + (log_high - log_low) * uniform[:, 2]).exp()


def covariance(i: int, size: int) -> torch.Tensor:
    """Covariance of the first weeks, the observed ones in front, under the i-th hyperparameters."""
    found = variances[i] * correlation(distance[:size, :size] / lengthscales[i], kernels[i])
    return found + noises[i] ** 2 * torch.eye(size, dtype=torch.float64)


def exact_law(i: int) -> torch.distributions.MultivariateNormal:
    """Law of the hidden weeks given the observed ones, under the i-th hyperparameters."""
    every = covariance(i, len(both))
    seen = torch.linalg.cholesky(every[:num_seen, :num_seen])
    half = torch.linalg.solve_triangular(seen, every[:num_seen, num_seen:], upper=False)
    white = torch.linalg.solve_triangular(seen, y_seen[:, None], upper=False)[:, 0]
    return torch.distributions.MultivariateNormal(half.T @ white, every[num_seen:, num_seen:] - half.T @ half)


def log_likelihood(i: int) -> torch.Tensor:
    """Of the observed weeks, up to a constant, under the i-th hyperparameters."""
    seen = torch.linalg.cholesky(covariance(i, num_seen))
    white = torch.linalg.solve_triangular(seen, y_seen[:, None], upper=False)[:, 0]
    return -0.5 * white @ white - seen.diagonal().log().sum()


likelihoods = torch.stack([log_likelihood(i) for i in range(NUM_HYPER)])
weights = likelihoods.softmax(0)
num_counting = 1 / weights.square().sum()  # how many equally weighted draws are worth as much
heaviest = weights.argsort(descending=True)[:1000]  # the rest weighs nothing
laws, weights = [exact_law(i) for i in heaviest.tolist()], weights[heaviest]
chosen = torch.multinomial(weights, NUM_DRAWS, replacement=True).tolist()
exact = (y_loc + y_scale * torch.stack([laws[i].sample() for i in chosen])).float()
inside = torch.stack([law.log_prob((y_hidden.double() - y_loc) / y_scale) for law in laws])
log_exact = torch.logsumexp(weights.log() + inside, 0) - num_hidden * np.log(y_scale)
steepest["exact"] = exact.diff(dim=-1).amax(-1)

# %% Time: the buffer against exact autoregression (re-encoding after every target), the same weights
NUM_TIMED = 20 if SMOKE_TEST else 100
seconds = {}
for name, size in {"buffer": net.config.buffer_size, "exact AR": 1}.items():
    timed = ArBufferJoint(context, x_hidden, buffer_size=size)
    start = time.perf_counter()
    timed.sample((NUM_TIMED,))
    seconds[name] = time.perf_counter() - start

print(f"Mauna Loa, {START:.0f} to {START + YEARS:.0f}: {int(observed.sum())} weeks observed, {num_hidden} hidden")
print(f"log density of the hidden weeks, joint                {log_joint:8.2f} nats")
print(f"log density of the hidden weeks, sum of marginals     {log_marginals:8.2f} nats")
print(f"log density of the hidden weeks, exact Gaussian process {log_exact:6.2f} nats")
print(f"  (its hyperparameters rest on {num_counting:.0f} draws that count, of {NUM_HYPER})")
print("steepest weekly rise among the hidden weeks (ppm)      median   90 % interval")
for name, values in steepest.items():
    low, median, high = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95]))
    print(f"  {name + ' draws':50s} {median:8.2f}   {low:.2f} to {high:.2f}")
print(f"  {'truth':50s} {truth:8.2f}")
print(
    f"{NUM_TIMED} joint draws: buffer {seconds['buffer']:.2f} s, exact AR {seconds['exact AR']:.2f} s, "
    f"{seconds['exact AR'] / seconds['buffer']:.0f} times slower"
)

# %% The picture: coherent curves, as the exact ones are, against noise
figure, panels = plt.subplots(2, 2, figsize=(8, 6.4))
colours = {"joint": "C0", "independent": "C1", "exact": "C2"}
titles = {"joint": "joint draws", "exact": "exact Gaussian process", "independent": "independent draws"}
samples = {"joint": draws, "exact": exact, "independent": independent}
for axis, (name, sample) in zip(panels.flat, samples.items(), strict=False):
    low, high = torch.quantile(sample, torch.tensor([0.05, 0.95]), dim=0)
    axis.fill_between(year[hidden], low, high, color=colours[name], alpha=0.15, lw=0, label="90 % per week")
    axis.plot(year[hidden], sample[:8].T, color=colours[name], lw=0.9, alpha=0.8)
    axis.plot(year[observed], co2[observed], "k.", ms=4, label="observed")
    axis.plot(year[hidden], co2[hidden], "kx", ms=4, mew=1, label="hidden")
    axis.set(title=titles[name], xlabel="year", ylabel="CO2 (ppm)", xlim=(HIDDEN[0] - 0.6, HIDDEN[1] + 0.6))
    axis.set_xticks([1989.5, 1990, 1990.5], ["1989.5", "1990", "1990.5"])
    window = (year > HIDDEN[0] - 0.6) & (year < HIDDEN[1] + 0.6)
    axis.set_ylim(co2[window].min() - 2, co2[window].max() + 2)
panels[0, 0].legend(loc="upper left")
bins = np.linspace(0, float(max(v.quantile(0.995) for v in steepest.values())), 50)
for name, values in steepest.items():
    kind = "step" if name == "exact" else "stepfilled"
    panels[1, 1].hist(values, bins, density=True, histtype=kind, alpha=0.8, color=colours[name], label=name)
panels[1, 1].axvline(truth, color="black", ls="--", label="truth")
panels[1, 1].set(title="steepest weekly rise among the hidden weeks", xlabel="rise (ppm per week)", yticks=[])
panels[1, 1].legend()
figure.savefig(FIGURE, dpi=120)
print(f"figure: {FIGURE.relative_to(Path.cwd()) if FIGURE.is_relative_to(Path.cwd()) else FIGURE}")

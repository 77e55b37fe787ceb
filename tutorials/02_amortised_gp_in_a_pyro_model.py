"""Is there a linear trend under these correlated wiggles? An amortised Gaussian process inside a Pyro model.

A straight-line fit takes wiggles for independent noise and is far too sure of its slope. The semiparametric model
y = a + b x + s g(x) gives them a Gaussian-process prior, but then kernel, lengthscale, variance and noise have to be
inferred too. gp-1d-noisy integrated all four out in training: with an EMPTY context its joint density is their marginal
likelihood, and NUTS is left with a, b and s. With a subject's earlier data as the context, the same density is the
likelihood of what comes next: a hierarchical model, with contexts of different lengths.

    python tutorials/02_amortised_gp_in_a_pyro_model.py

Both halves end against the exact model: the same Gaussian process, its hyperparameters sampled by NUTS as well. With so
few points the exact model is the faster one too; it exists for Gaussian processes only. What the network gets wrong is
printed, and largest where a subject's own data are so precise that a small error of the density is many sds.
"""

# %% Sixteen points without any trend, and a straight line that finds one
import os
import tempfile
import time
import warnings
from math import log
from pathlib import Path

import arviz
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform
from pyro.infer import MCMC, NUTS
from torch import Tensor

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, random_orders
from pyro_arbuf.priors.gp import KERNEL_WEIGHTS, LENGTHSCALE, NOISE_SD, VARIANCE, correlation, gp_1d_noisy

plt.style.use("pyro_arbuf.house")  # the style of all figures here
SMOKE_TEST = bool(os.environ.get("SMOKE_TEST"))
NUM_WARMUP, NUM_DRAWS, MAX_TREE_DEPTH = (6, 12, 2) if SMOKE_TEST else (150, 300, 5)
NUM_HYPER = 200 if SMOKE_TEST else 4000
FIGURE = (Path(tempfile.mkdtemp()) if SMOKE_TEST else Path(__file__).parent) / "02_amortised_gp_in_a_pyro_model.png"

torch.set_num_threads(1)  # a gradient is milliseconds of small matrices; more threads only get in each other's way
net = pyro_arbuf.load("gp-1d-noisy")
torch.set_default_dtype(torch.float64)  # for the exact models; the network stays float32 and casts what it is given

NUM_POINTS = 16  # at most the buffer's slots: the joint density is one pass of the network
TRUTH = {"a": 1.0, "b": 0.0, "s": 1.0}


def line_fit(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares under independent noise: coefficients `(*batch, 2)` and their covariance `(*batch, 2, 2)`."""
    design = torch.cat([torch.ones_like(x), x], -1)
    coefficients = torch.linalg.lstsq(design, y[..., None]).solution
    variance = ((y[..., None] - design @ coefficients) ** 2).sum((-1, -2)) / (y.shape[-1] - 2)
    return coefficients[..., 0], variance[..., None, None] * torch.linalg.inv(design.mT @ design)


def draw(num_context: int, num_targets: int, seed: int, num_curves: int = 1) -> list[Tensor]:
    """Noisy curves from the prior that the network was trained on: x and y of the context, x and y of the targets."""
    x, y = gp_1d_noisy(num_curves, num_context + num_targets, torch.Generator().manual_seed(seed))
    x, y = x.double(), y[..., 0].double()
    pairs = (x[:, :num_context], y[:, :num_context], x[:, num_context:], y[:, num_context:])
    return [t.squeeze(0) for t in pairs]


*_, x, wiggles = draw(0, NUM_POINTS, seed=7)
y = TRUTH["a"] + TRUTH["b"] * x[:, 0] + TRUTH["s"] * wiggles
line, line_covariance = line_fit(x, y)
line_b, line_sd = line[1], line_covariance[1, 1].sqrt()

T_90 = 1.761  # 95 % quantile of Student's t with 14 degrees of freedom
fits = [line_fit(*draw(0, NUM_POINTS, seed, num_curves=10)[2:]) for seed in range(1000, 1200)]
false_trends = torch.cat([(b[:, 1].abs() > T_90 * c[:, 1, 1].sqrt()).double() for b, c in fits]).mean()
percent = 100 * float(false_trends)
print(f"slope by least squares {line_b:.2f}, sd {line_sd:.2f}: {abs(line_b / line_sd):.1f} sds from the truth, 0")
print(f"its 90 % interval misses the truth in {percent:.0f} % of {10 * len(fits)} data sets of this kind")


# %% The amortised model: three latents; the context is empty, made once, and free of graphs
empty = net.condition()
# On 16 curves of the prior, 8 orders halved one order's distance to the exact evidence (0.09 to 0.04 nats per target)
# for 1.6 times its time; 32 gained nothing more.
orders = random_orders(NUM_POINTS, 8)


def trend_prior() -> tuple[Tensor, Tensor, Tensor]:
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    return a, b, pyro.sample("s", dist.LogNormal(0.0, 0.5))


def amortised_trend() -> None:
    a, b, s = trend_prior()
    loc = a[..., None] + b[..., None] * x[:, 0]
    to_data = AffineTransform(loc, s[..., None])  # elementwise: with event_dim=1, log s would count once, not M times
    pyro.sample("y", dist.TransformedDistribution(ArBufferJoint(empty, x, orders=orders), to_data), obs=y)


# %% The exact model: the kernel class is summed, everything else is a latent
def gp_log_density(
    x: Tensor, z: Tensor, is_real: Tensor, variance: Tensor, lengthscale: Tensor, noise_sd: Tensor
) -> Tensor:
    """Log density of values z `(*batch, T)` at x `(*batch, T, 1)`, the kernel class summed; padding is not real."""
    distance = (x - x.mT).abs() / lengthscale[..., None, None]
    kernels = torch.stack([correlation(distance, kernel) for kernel in range(len(KERNEL_WEIGHTS))], -3)
    variance, noise_sd = (t[..., None, None, None] for t in (variance, noise_sd))
    eye = torch.eye(z.shape[-1])
    covariance = variance * kernels + noise_sd**2 * eye  # (*batch, kernels, T, T)
    # Padding is made independent of the rest, with variance 1: a constant factor.
    is_real = is_real[..., None, :]
    covariance = torch.where(is_real[..., None] & is_real[..., None, :], covariance, eye)
    zero = torch.zeros(z.shape[-1])
    gp = dist.MultivariateNormal(zero, scale_tril=torch.linalg.cholesky(covariance), validate_args=False)
    return torch.logsumexp(gp.log_prob(z[..., None, :]) + torch.tensor(KERNEL_WEIGHTS).log(), -1)


def hyper_prior() -> tuple[Tensor, Tensor, Tensor]:
    variance = pyro.sample("variance", dist.Uniform(*VARIANCE))
    lengthscale = pyro.sample("lengthscale", dist.Uniform(*LENGTHSCALE))
    log_noise_sd = pyro.sample("log_noise_sd", dist.Uniform(log(NOISE_SD[0]), log(NOISE_SD[1])))
    return variance, lengthscale, log_noise_sd.exp()


all_real = torch.ones(NUM_POINTS, dtype=torch.bool)


def exact_trend() -> None:
    a, b, s = trend_prior()
    z = (y - a - b * x[:, 0]) / s
    pyro.factor("y", gp_log_density(x, z, all_real, *hyper_prior()) - NUM_POINTS * s.log())


# %% NUTS through both
def run_nuts(model) -> tuple[dict[str, Tensor], float]:
    pyro.set_rng_seed(0)
    kernel = NUTS(model, max_tree_depth=MAX_TREE_DEPTH)
    mcmc = MCMC(kernel, num_samples=NUM_DRAWS, warmup_steps=NUM_WARMUP, disable_progbar=SMOKE_TEST)
    start = time.process_time()  # seconds of the one core in use
    mcmc.run()
    return mcmc.get_samples(), time.process_time() - start


def energy_distance(first: Tensor, second: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| between draws `(S, D)`: zero if and only if the two laws are one."""
    between, *within = (torch.cdist(u, v).mean() for u, v in ((first, second), (first, first), (second, second)))
    return float(2 * between - within[0] - within[1])


def compare(title: str, truth: dict[str, float], amortised, exact) -> None:
    """Prints means and sds, their difference and the energy distance in exact sds, and the time per effective draw."""
    (draws, seconds), (exact_draws, exact_seconds) = amortised, exact
    print(f"\n{title:36s}  truth  amortised mean (sd)  exact mean (sd)  difference in sds (Monte Carlo error)")
    sizes, exact_sizes = ({name: float(arviz.ess(d[name].numpy())) for name in truth} for d in (draws, exact_draws))
    differences = {}
    for name, value in truth.items():
        (mean, sd), (exact_mean, exact_sd) = ((d[name].mean(), d[name].std()) for d in (draws, exact_draws))
        error = ((sd / exact_sd) ** 2 / sizes[name] + 1 / exact_sizes[name]) ** 0.5
        differences[name] = float((mean - exact_mean) / exact_sd)
        print(
            f"  {name:34s} {value:6.2f} {mean:13.2f} ({sd:.2f}) {exact_mean:9.2f} ({exact_sd:.2f}) "
            f"{differences[name]:12.2f} ({error:.2f})"
        )
    matrix, exact_matrix = (torch.stack([d[name] for name in truth], -1) for d in (draws, exact_draws))
    matrix, exact_matrix = (m / exact_matrix.std(0) for m in (matrix, exact_matrix))
    worst = max(truth, key=lambda name: abs(differences[name]))
    print(f"  farthest from the exact mean: {worst}, by {abs(differences[worst]):.2f} of its exact sd")
    noise = energy_distance(exact_matrix[::2], exact_matrix[1::2])
    distance = energy_distance(matrix, exact_matrix)
    print(f"  energy distance, in exact sds: {distance:.3f} (two halves of the exact draws: {noise:.3f})")
    ess, exact_ess = min(sizes.values()), min(exact_sizes.values())
    ratio = seconds / ess / (exact_seconds / exact_ess)
    print(f"  effective draws: amortised {ess:.0f} in {seconds:.0f} s, exact {exact_ess:.0f} in {exact_seconds:.0f} s")
    print(f"  time per effective draw, amortised over exact: {ratio:.1f}")


amortised, exact = run_nuts(amortised_trend), run_nuts(exact_trend)
compare("a trend under the wiggles", TRUTH, amortised, exact)

# %% How far off is the network's evidence? log p(y | a, b, s) at exact draws; the exact one by averaging over the prior
subset = {name: exact[0][name][::10] for name in TRUTH}
residual = y - subset["a"][:, None] - subset["b"][:, None] * x[:, 0]
z = (residual / subset["s"][:, None])[:, None]  # (draws, 1, points), against the hyperparameters (NUM_HYPER,)
with torch.no_grad(), pyro.plate("hyperparameters", NUM_HYPER):
    exact_evidence = gp_log_density(x, z, all_real, *hyper_prior()).logsumexp(-1) - log(NUM_HYPER)
    off = ArBufferJoint(empty, x, orders=orders).log_prob(z[:, 0]) - exact_evidence
print(
    f"  log p(y | a, b, s), amortised minus exact at exact draws: mean {off.mean():.2f} nats, sd {off.std():.2f}; only "
    "the sd matters to the posterior"
)

# %% Subjects: a first session each, of different lengths, is the context; in the second session the curve has moved
NUM_FIRST = (2, 3, 5, 8, 14, 24)
NUM_SUBJECTS, NUM_SECOND = len(NUM_FIRST), 4
SHIFT_TRUTH = {"mu": 0.8, "tau": 0.5}
x_first, z_first, x_second, z_second = zip(
    *(draw(n, NUM_SECOND, seed=100 + i) for i, n in enumerate(NUM_FIRST)), strict=True
)
shift_truth = SHIFT_TRUTH["mu"] + SHIFT_TRUTH["tau"] * torch.randn(
    NUM_SUBJECTS, generator=torch.Generator().manual_seed(1)
)
first = net.condition(x_first, z_first)  # batch shape (subjects,): the plate
x_second, y_second = torch.stack(x_second), torch.stack(z_second) + shift_truth[:, None]
shift_orders = random_orders(NUM_SECOND, 2)


def shift_prior() -> tuple[Tensor, Tensor]:
    return pyro.sample("mu", dist.Normal(0.0, 1.0)), pyro.sample("tau", dist.LogNormal(log(0.5), 0.5))


def amortised_shift() -> None:
    mu, tau = shift_prior()
    with pyro.plate("subjects", NUM_SUBJECTS):
        shift = pyro.sample("shift", dist.Normal(mu, tau))
        to_data = AffineTransform(shift[..., None], 1.0)
        joint = ArBufferJoint(first, x_second, orders=shift_orders)
        pyro.sample("y", dist.TransformedDistribution(joint, to_data), obs=y_second)


# %% The exact model needs both sessions in one covariance, and three hyperparameters per subject
pad = torch.nn.utils.rnn.pad_sequence
x_both, y_both, is_real, is_second = (
    pad([torch.cat(parts) for parts in zip(*sessions, strict=True)], batch_first=True)
    for sessions in (
        (x_first, x_second),
        (z_first, y_second),
        ([torch.ones(n, dtype=torch.bool) for n in NUM_FIRST], torch.ones_like(y_second, dtype=torch.bool)),
        ([torch.zeros(n) for n in NUM_FIRST], torch.ones_like(y_second)),
    )
)


def exact_shift() -> None:
    mu, tau = shift_prior()
    with pyro.plate("subjects", NUM_SUBJECTS):
        shift = pyro.sample("shift", dist.Normal(mu, tau))
        z = y_both - shift[:, None] * is_second
        pyro.factor("y", gp_log_density(x_both, z, is_real, *hyper_prior()))


amortised_shifts, exact_shifts = run_nuts(amortised_shift), run_nuts(exact_shift)

# Without pooling: a flat prior on each subject's shift, on a grid; values broadcast against the subjects.
grid = torch.linspace(-4, 5, 46 if SMOKE_TEST else 181)
with torch.no_grad(), warnings.catch_warnings():
    # The ends of the grid move the outcomes out of the network's range on purpose: their weight is next to nothing.
    warnings.filterwarnings("ignore", message="y lies outside the trained range")
    likelihood = ArBufferJoint(first, x_second, orders=shift_orders).log_prob(y_second - grid[:, None, None])
weight = likelihood.double().softmax(0)  # (grid, subjects)
unpooled = (weight * grid[:, None]).sum(0)
unpooled_sd = ((weight * grid[:, None] ** 2).sum(0) - unpooled**2).sqrt()

names = [f"shift given {n} points" for n in NUM_FIRST]
for samples, _ in (amortised_shifts, exact_shifts):
    samples |= dict(zip(names, samples["shift"].T, strict=True))
all_truth = SHIFT_TRUTH | dict(zip(names, shift_truth.tolist(), strict=True))
compare("subjects shifted between sessions", all_truth, amortised_shifts, exact_shifts)

# %% The picture
colours = {"amortised": "C0", "exact": "C1", "least squares": "0.5"}
figure = plt.figure(figsize=(8, 6.8))
axes = list(figure.subplot_mosaic([["trend", "slope"], ["shift", "shift"]]).values())

x_line = torch.linspace(-2, 2, 50)
design = torch.stack([torch.ones(50), x_line], 1)
centre, half = design @ line, T_90 * (design @ line_covariance * design).sum(-1).sqrt()
axes[0].fill_between(x_line, centre - half, centre + half, color=colours["least squares"], alpha=0.35, lw=0)
axes[0].plot(x_line, centre, color=colours["least squares"], label="least squares, 90 %")
lines = amortised[0]["a"][:, None] + amortised[0]["b"][:, None] * x_line
low, high = torch.quantile(lines, torch.tensor([0.05, 0.95]), dim=0)
axes[0].fill_between(x_line, low, high, color=colours["amortised"], alpha=0.15, lw=0)
axes[0].plot(x_line, lines.mean(0), color=colours["amortised"], label="a + b x under a GP, 90 %")
axes[0].axhline(TRUTH["a"], color="black", ls="--", lw=1, label="truth: no trend")
axes[0].plot(x[:, 0], y, "k.", ms=6)
axes[0].set(title="a trend under the wiggles?", xlabel="x", ylabel="y")
axes[0].legend()

b_grid = torch.linspace(-2.2, 1.4, 200)
for name, (draws, _) in {"amortised": amortised, "exact": exact}.items():
    bins = np.linspace(-2.2, 1.4, 13)  # wide enough for so few draws; the bars are two Monte Carlo errors each way
    share = np.histogram(draws["b"], bins)[0] / len(draws["b"])
    height, error = (v / (bins[1] - bins[0]) for v in (share, 2 * np.sqrt(share * (1 - share) / len(draws["b"]))))
    middle = (bins[1:] + bins[:-1]) / 2 + (0.02 if name == "exact" else -0.02)
    axes[1].stairs(height, bins, color=colours[name], fill=name == "amortised", alpha=0.5, label=name)
    axes[1].errorbar(middle, height, error, fmt="none", color=colours[name], lw=1)
fit = dist.StudentT(NUM_POINTS - 2.0, line_b, line_sd).log_prob(b_grid).exp()
axes[1].plot(b_grid, fit, color=colours["least squares"], label="least squares")
axes[1].axvline(TRUTH["b"], color="black", ls="--", lw=1)
axes[1].set(title=f"the slope b, {NUM_DRAWS} draws each", xlabel="b", yticks=[])
axes[1].legend()

rows = torch.arange(NUM_SUBJECTS)
estimates = {
    "no pooling": (unpooled, unpooled_sd, colours["least squares"]),
    "amortised": (amortised_shifts[0]["shift"].mean(0), amortised_shifts[0]["shift"].std(0), colours["amortised"]),
    "exact": (exact_shifts[0]["shift"].mean(0), exact_shifts[0]["shift"].std(0), colours["exact"]),
}
for i, (name, (mean, sd, colour)) in enumerate(estimates.items()):
    axes[2].errorbar(rows + 0.2 * (i - 1), mean, 1.645 * sd, fmt="o", ms=4, lw=1.2, color=colour, label=name)
axes[2].plot(rows, shift_truth, "kx", ms=6, label="truth")
axes[2].axhline(amortised_shifts[0]["mu"].mean(), color=colours["amortised"], lw=1, ls=":")
axes[2].set_xticks(rows, NUM_FIRST)
axes[2].set(
    title="shift of each subject, mean and 90 %", xlabel="points in the first session (the context)", ylabel="shift"
)
axes[2].legend()
figure.savefig(FIGURE, dpi=120)
print(f"figure: {FIGURE.relative_to(Path.cwd()) if FIGURE.is_relative_to(Path.cwd()) else FIGURE}")

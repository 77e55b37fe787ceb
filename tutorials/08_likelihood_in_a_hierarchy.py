"""Do twenty people differ in how they decide? A learned likelihood in a hierarchy.

Each of twenty subjects did between 40 and 160 trials of a perceptual decision. Those with few trials should lean on the
others, which a hierarchical model does: the parameters of a subject come from a group. The network `ddm` was trained on
single subjects and knows nothing of a group. Its likelihood, p(trials | parameters), is all that the hierarchy needs:

    with pyro.plate("subjects", 20):
        ...                                                 # parameters of each subject, from the group
        law = ArBufferMarginals(net.condition(latents=latents), x, nan="drop")
        pyro.sample("y", law, obs=y)                        # all subjects at once; NaN where one has no further trial

The drift-diffusion model has an exact density, so the same hierarchy also runs on that, and every answer is checked:
posterior means and widths of each subject and of the group, and the error of the likelihood per trial, where the
posterior concentrates.

    python tutorials/08_likelihood_in_a_hierarchy.py

The subjects are simulated by the program, so that the truth is known too.
"""

# %% Twenty subjects from a group, each with trials of its own at six levels of coherence
import os
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

import pyro_arbuf
from pyro_arbuf import ArBufferMarginals, ArBufferPosterior
from pyro_arbuf.priors.ddm import COHERENCES, DDM

plt.style.use("pyro_arbuf.house")  # the style of all figures here
SMOKE_TEST = bool(os.environ.get("SMOKE_TEST"))
NUM_WARMUP, NUM_DRAWS, MAX_TREE_DEPTH, NUM_REPEATS = (10, 20, 3, 2) if SMOKE_TEST else (100, 150, 5, 20)
FIGURE = (Path(tempfile.mkdtemp()) if SMOKE_TEST else Path(__file__).parent) / "08_likelihood_in_a_hierarchy.png"
NUM_SUBJECTS, FEWEST, MOST = 20, 40, 160
SITES = {"drift": "drift (1/s)", "boundary": "boundary", "ndt": "non-decision time (s)"}

torch.set_num_threads(1)
pyro.set_rng_seed(0)
truth = {
    "drift": dist.LogNormal(2.3, 0.3).sample((NUM_SUBJECTS,)),  # evidence per second at coherence 1
    "boundary": dist.LogNormal(0.5, 0.2).sample((NUM_SUBJECTS,)),  # caution
    "ndt": dist.Uniform(0.2, 0.45).sample((NUM_SUBJECTS,)),  # seconds that no decision takes
}
num_trials = torch.randint(FEWEST, MOST + 1, (NUM_SUBJECTS,))
x = torch.tensor(COHERENCES)[torch.randint(len(COHERENCES), (NUM_SUBJECTS, int(num_trials.max()), 1))]
drift, boundary, ndt = (truth[site][:, None] for site in SITES)
y = DDM(drift * x[..., 0], boundary, ndt).sample()  # seconds, negative where the choice is wrong
done = torch.arange(x.shape[1]) < num_trials[:, None]  # which trials a subject has done
y[~done] = torch.nan
net = pyro_arbuf.load("ddm")


# %% One hierarchy, two likelihoods: a law of all trials, `(20,)` subjects, given the parameters of each subject
def learned(latents: dict[str, Tensor]) -> dist.TorchDistribution:
    return ArBufferMarginals(net.condition(latents=latents), x, nan="drop", validate_args=False)


def exact(latents: dict[str, Tensor]) -> dist.TorchDistribution:
    drift, boundary, ndt = (latents[site][:, None] for site in SITES)
    return DDM(drift * x[..., 0], boundary, ndt, validate_args=False).mask(done).to_event(1)


def hierarchy(law, y: Tensor) -> None:
    drift_mean = pyro.sample("drift_mean", dist.Normal(2.3, 0.5))  # of the logarithm, over subjects
    drift_spread = pyro.sample("drift_spread", dist.HalfNormal(0.5))
    boundary_mean = pyro.sample("boundary_mean", dist.Normal(0.5, 0.5))
    boundary_spread = pyro.sample("boundary_spread", dist.HalfNormal(0.5))
    with pyro.plate("subjects", NUM_SUBJECTS):
        latents = {
            "drift": pyro.sample("drift", dist.LogNormal(drift_mean, drift_spread)),
            "boundary": pyro.sample("boundary", dist.LogNormal(boundary_mean, boundary_spread)),
            "ndt": pyro.sample("ndt", dist.Uniform(0.1, 0.6)),
        }
        pyro.sample("y", law(latents), obs=y)


def start() -> dict[str, Tensor]:
    """Where the amortised posterior of each subject alone is: far from it a learned likelihood may have other modes."""
    alone = ArBufferPosterior(net.condition(x, y, nan="drop"))
    found = {site: values.median(0).values for site, values in alone.sites(alone.sample((200,))).items()}
    fastest = torch.where(done, y.abs(), torch.inf).amin(-1)
    found["ndt"] = torch.minimum(found["ndt"], 0.95 * fastest)  # a response before ndt is impossible
    for site in ("drift", "boundary"):
        found |= {f"{site}_mean": found[site].log().mean(), f"{site}_spread": found[site].log().std()}
    return found


def run_nuts(law, y: Tensor) -> tuple[dict[str, Tensor], float, float]:
    """Draws by site, seconds of the one core in use, and the smallest effective sample size of a parameter."""
    pyro.set_rng_seed(1)
    started = time.process_time()
    first = {site: value.to(torch.get_default_dtype()) for site, value in START.items()}
    kernel = NUTS(hierarchy, max_tree_depth=MAX_TREE_DEPTH, init_strategy=init_to_value(values=first))
    mcmc = MCMC(kernel, NUM_DRAWS, NUM_WARMUP, disable_progbar=True)
    with pyro.validation_enabled(False):
        mcmc.run(law, y)
    seconds = time.process_time() - started
    sizes = [found["n_eff"].min() for name, found in mcmc.diagnostics().items() if "n_eff" in found]
    return mcmc.get_samples(), seconds, float(min(sizes))


START = start()
answers = {"learned": run_nuts(learned, y)}
torch.set_default_dtype(torch.float64)
answers["exact"] = run_nuts(exact, y.double().nan_to_num(1.0))  # trials that are masked need a number all the same
torch.set_default_dtype(torch.float32)
draws = {kind: found[0] for kind, found in answers.items()}
print(f"{NUM_SUBJECTS} subjects, {int(num_trials.sum())} trials, {NUM_DRAWS} draws by NUTS after {NUM_WARMUP}")
for kind, (_, seconds, size) in answers.items():
    print(
        f"  {kind:8s} {seconds:6.1f} s, smallest effective sample size {size:4.0f}: {seconds / size:.2f} s a draw of it"
    )

# %% The known answer: the same hierarchy on the exact density, per subject and for the group


def compare(site: str) -> tuple[Tensor, Tensor]:
    """Differences of posterior means in exact posterior sds, and ratios of sds, of every number of a site."""
    ours, reference = draws["learned"][site].double(), draws["exact"][site].double()
    return (ours.mean(0) - reference.mean(0)) / reference.std(0), ours.std(0) / reference.std(0)


print("\nlearned against exact                difference of means, in sds      ratio of sds")
worst = 0.0
for site in SITES:
    shift, ratio = compare(site)
    worst = max(worst, shift.abs().max().item())
    print(
        f"  {site:16s} of {NUM_SUBJECTS} subjects   root mean square {shift.square().mean().sqrt():.2f}, "
        f"largest {shift.abs().max():.2f}   {ratio.min():.2f} to {ratio.max():.2f}"
    )
GROUP = ("drift_mean", "drift_spread", "boundary_mean", "boundary_spread")
for site in GROUP:
    shift, ratio = compare(site)
    worst = max(worst, abs(shift.item()))
    print(f"  {site:16s} of the group      {shift:+.2f}                                  {ratio:.2f}")
print(
    f"  (by chance alone, with as few effective draws: {(sum(1 / found[2] for found in answers.values())) ** 0.5:.2f})"
)

# %% Is the likelihood right where the posterior concentrates? Its log density against the exact one, at exact draws
chosen = torch.linspace(0, NUM_DRAWS - 1, min(NUM_DRAWS, 50)).long()
errors = []
for index in chosen:
    latents = {site: draws["exact"][site][index].float() for site in SITES}
    with torch.no_grad():
        errors.append(learned(latents).log_prob(y) - exact(latents).log_prob(y.nan_to_num(1.0)))
errors = torch.stack(errors).double()  # (draws, subjects), nats of all trials of a subject
per_trial = errors / num_trials
print(
    f"\nerror of the learned log likelihood at {len(chosen)} posterior draws: {per_trial.mean():+.4f} nats per trial, "
    f"root mean square over subjects and draws {per_trial.square().mean().sqrt():.4f}"
)
print(
    "what moves a posterior is how it varies over the draws: sd of a subject's error over all its trials, median "
    f"{errors.std(0).median():.2f}, largest {errors.std(0).max():.2f} nats"
)

# %% All subjects at once, or one after the other? Seconds of a gradient


def gradient(part: slice | int) -> None:
    latents = {site: truth[site][part].clone().requires_grad_() for site in SITES}
    trials = slice(None) if isinstance(part, slice) else slice(int(num_trials[part]))
    rows, outcomes = (t[part, trials] for t in (x, y))
    law = ArBufferMarginals(net.condition(latents=latents), rows, nan="drop", validate_args=False)
    torch.autograd.grad(law.log_prob(outcomes).sum(), list(latents.values()))


took = {"at once": [], "in a loop": []}
for _ in range(NUM_REPEATS):
    began = time.process_time()
    gradient(slice(None))
    middle = time.process_time()
    for subject in range(NUM_SUBJECTS):
        gradient(subject)
    took["at once"].append(middle - began)
    took["in a loop"].append(time.process_time() - middle)
at_once, in_a_loop = (float(np.median(found)) for found in took.values())
print(
    f"\na gradient of the likelihood of all subjects: {1000 * at_once:.1f} ms at once, {1000 * in_a_loop:.0f} ms in a "
    f"loop, {in_a_loop / at_once:.1f} times as long"
)

# %% The picture
figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
colours = {"exact": "black", "learned": "C0"}
order = num_trials.argsort()
for axis, (site, label) in zip(axes[0], SITES.items(), strict=True):
    for kind, shift in (("exact", -0.2), ("learned", 0.2)):
        low, high = torch.quantile(draws[kind][site].double(), torch.tensor([0.05, 0.95]).double(), dim=0)[:, order]
        axis.hlines(np.arange(NUM_SUBJECTS) + shift, low, high, color=colours[kind], lw=2, label=f"{kind}, 90 %")
    axis.plot(truth[site][order], np.arange(NUM_SUBJECTS), "x", color="C3", ms=5, label="truth")
    axis.set(title=label, xlabel=label, yticks=np.arange(NUM_SUBJECTS), yticklabels=num_trials[order].tolist())
axes[0, 0].set_ylabel("subject, by its number of trials")
axes[0, 0].legend()
for axis, ending, title in ((axes[1, 0], "mean", "mean of the group"), (axes[1, 1], "spread", "spread of the group")):
    for site, colour in (("drift", "C0"), ("boundary", "C1")):
        for kind, style in (("exact", "--"), ("learned", "-")):
            values = draws[kind][f"{site}_{ending}"]
            axis.hist(values, 25, density=True, histtype="step", color=colour, ls=style, label=f"log {site}, {kind}")
    axis.set(title=title, xlabel=f"{ending} of the logarithm over subjects", yticks=[])
axes[1, 0].legend()
for site, label in SITES.items():
    axes[1, 2].plot(num_trials, compare(site)[0], "o", ms=4, label=label)
axes[1, 2].axhline(0, color="0.6", lw=1)
axes[1, 2].set(title="learned minus exact", xlabel="trials of the subject", ylabel="posterior means, in exact sds")
axes[1, 2].legend()
figure.savefig(FIGURE, dpi=110)
print(f"figure: {FIGURE.relative_to(Path.cwd()) if FIGURE.is_relative_to(Path.cwd()) else FIGURE}")
if not SMOKE_TEST:
    assert in_a_loop > 5 * at_once, took
    assert worst < 1.5, worst

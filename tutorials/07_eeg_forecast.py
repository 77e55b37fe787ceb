"""How far will two electrodes drift apart in the next eighth of a second? A forecast of EEG, coherent over channels.

Half a second of seven frontal channels has been recorded. A band for each channel and each time does not answer what is
asked about all of them: the largest difference between right and left (F6 minus F5) needs draws that hang together over
channels and time. A pretrained network gives them, for a subject it has never seen, as a Pyro distribution in
microvolt. We then ask whether to believe it: test statistics that see dependence, exact leave-one-out of what was
recorded, and the intervals of the difference counted over all trials of the subject.

    EEG=eeg_7ch.npz python tutorials/07_eeg_forecast.py
    python tutorials/07_eeg_forecast.py    # without recordings: simulated rhythms, on which the numbers say little

Recordings are not distributed here: docs/recordings.md says what the file holds and where they come from (UCI EEG
database; Zhang et al. 1995).
"""

# %% A subject outside training: half a second observed, an eighth of a second to come
import os
import tempfile
import time
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import Predictive
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces ArviZ 1
    import arviz as az

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, exact_loo
from pyro_arbuf.priors.eeg import CHANNELS, RATE, TEST, read_eeg

SMOKE_TEST = bool(os.environ.get("SMOKE_TEST"))
NUM_DRAWS, NUM_TRIALS, NUM_LEFT_OUT = (50, 2, 8) if SMOKE_TEST else (1000, 60, 128)
FIGURE = (Path(tempfile.mkdtemp()) if SMOKE_TEST else Path(__file__).parent) / "07_eeg_forecast.png"
RECORDINGS = os.environ.get("EEG")
NUM_OBSERVED, NUM_AHEAD = 128, 32
LEFT, RIGHT = CHANNELS.index("F5"), CHANNELS.index("F6")

plt.style.use("pyro_arbuf.house")  # the style of all figures here
torch.set_num_threads(1)
pyro.set_rng_seed(0)


def simulate(num_trials: int, num_samples: int = 256) -> Tensor:
    """Stands in for recordings: a slow, a left and a right source with a rhythm of 10 Hz, seen by all channels."""
    frequency = 2 * np.pi * torch.tensor([1.0, 10.0, 10.0]) / RATE
    damping = torch.tensor([0.98, 0.97, 0.97])
    sources, noise = torch.zeros(num_trials, num_samples + 200, 3), torch.randn(num_trials, num_samples + 200, 3)
    for t in range(2, num_samples + 200):
        before = 2 * damping * frequency.cos() * sources[:, t - 1] - damping**2 * sources[:, t - 2]
        sources[:, t] = before + noise[:, t]
    sources = 4 * sources[:, 200:] / sources[:, 200:].std((0, 1))
    side = torch.tensor([0.0, -0.3, 0.3, -0.6, 0.6, -0.9, 0.9])  # of FZ, F1, F2, ...: odd numbers are on the left
    mixing = torch.stack([torch.ones(7), (1 - side) / 2, (1 + side) / 2])
    return sources @ mixing + 0.3 * torch.randn(num_trials, num_samples, 7)


if RECORDINGS is None:
    subject, trials = "simulated", simulate(NUM_TRIALS)
else:
    subject = TEST[0]
    trials = read_eeg(RECORDINGS)[subject][:NUM_TRIALS]
seconds = torch.arange(NUM_OBSERVED + NUM_AHEAD)[:, None] / RATE
x, x_ahead = seconds[:NUM_OBSERVED], seconds[NUM_OBSERVED:]
y, y_ahead = trials[:, :NUM_OBSERVED], trials[:, NUM_OBSERVED : NUM_OBSERVED + NUM_AHEAD]
TRIAL = 0

# %% Condition once; the forecast is a Pyro distribution over times and channels, in the order of time
net = pyro_arbuf.load("eeg")
in_time = torch.arange(NUM_AHEAD)[None]
context = net.condition(x, y[TRIAL])
joint = ArBufferJoint(context, x_ahead, orders=in_time)


def model(obs=None):
    return pyro.sample("eeg", ArBufferJoint(context, x_ahead, orders=in_time), obs=obs)


start = time.perf_counter()
draws = Predictive(model, num_samples=NUM_DRAWS, parallel=True)()["eeg"]  # (draws, times, channels)
took = time.perf_counter() - start
times_alone = joint.marginals().sample((NUM_DRAWS,))  # channels hang together, times do not
shuffled = torch.stack([times_alone[torch.randperm(NUM_DRAWS), :, c] for c in range(len(CHANNELS))], -1)  # nor do these
KINDS = {"joint": draws, "times independent": times_alone, "all independent": shuffled}
print(
    f"{subject}, trial {TRIAL}: {NUM_OBSERVED} samples observed, {NUM_AHEAD} ahead; {NUM_DRAWS} draws in {took:.1f} s"
)
print(f"log density of what came, joint              {joint.log_prob(y_ahead[TRIAL]):8.1f} nats")
print(f"log density of what came, times independent  {joint.marginals().log_prob(y_ahead[TRIAL]):8.1f} nats")

# %% What was asked: how far right and left drift apart


def largest_difference(samples: Tensor) -> Tensor:
    """Largest F6 minus F5 over the times ahead, microvolt."""
    return (samples[..., RIGHT] - samples[..., LEFT]).amax(-1)


print("\nlargest F6 minus F5 ahead (microvolt)   median   90 % interval")
for kind, sample in KINDS.items():
    low, median, high = torch.quantile(largest_difference(sample), torch.tensor([0.05, 0.5, 0.95]))
    print(f"  {kind:36s} {median:7.1f}   {low:.1f} to {high:.1f}")
print(f"  {'what came':36s} {largest_difference(y_ahead[TRIAL]):7.1f}")

# %% Do draws look like what came? Test statistics that see dependence between channels and between times


def between_channels(samples: np.ndarray) -> np.ndarray:
    """Mean correlation of two channels over the times ahead."""
    z = samples - samples.mean(-2, keepdims=True)
    z = z / np.sqrt((z**2).mean(-2, keepdims=True))
    correlations = np.einsum("...tc,...td->...cd", z, z) / z.shape[-2]
    upper = np.triu_indices(z.shape[-1], 1)
    return correlations[..., upper[0], upper[1]].mean(-1)


def lag_one(samples: np.ndarray) -> np.ndarray:
    """Correlation of one sample and the next, mean over channels."""
    z = samples - samples.mean(-2, keepdims=True)
    return ((z[..., 1:, :] * z[..., :-1, :]).sum(-2) / (z**2).sum(-2)).mean(-1)


STATISTICS = {"correlation of channels": between_channels, "lag-1 correlation": lag_one}
coords, dims = {"time": x_ahead[:, 0].numpy(), "channel": list(CHANNELS)}, {"eeg": ["time", "channel"]}
checks = {}
print("\nPredictive checks                                observed   draws: median, share at or above the observed")
for kind, sample in KINDS.items():
    data = az.from_dict(
        posterior_predictive={"eeg": sample.numpy()[None]},
        observed_data={"eeg": y_ahead[TRIAL].numpy()},
        coords=coords,
        dims=dims,
    )
    for label, statistic in STATISTICS.items():
        drawn = statistic(data.posterior_predictive["eeg"].values[0])
        seen = float(statistic(data.observed_data["eeg"].values))
        checks[kind, label] = drawn, seen
        print(f"{kind:18s} {label:29s} {seen:8.2f}   {np.median(drawn):6.2f}   {(drawn >= seen).mean():.2f}")

# %% Exact leave-one-out of what was recorded: each sample given all others, where is the recording surprising?
loo = exact_loo(net, x[:NUM_LEFT_OUT], y[TRIAL, :NUM_LEFT_OUT])
worst = int(loo.elpd_i.values.argmin())
print(
    f"\nexact leave-one-out of {NUM_LEFT_OUT} samples: elpd {float(loo.elpd):.0f} (se {float(loo.se):.0f}) nats, "
    f"{float(loo.elpd) / NUM_LEFT_OUT:.2f} per sample; most surprising at {float(x[worst]) * 1000:.0f} ms, "
    f"{float(loo.elpd_i[worst]):.1f}"
)

# %% The known answer: what came, in all trials of the subject; 90 % intervals should hold it in 90 % of them
every = ArBufferJoint(net.condition(x, y), x_ahead, orders=in_time)
num_draws = max(20, NUM_DRAWS // 5)
came = largest_difference(y_ahead)
joint_draws, alone = every.sample((num_draws,)), every.marginals().sample((num_draws,))
mixed = torch.stack([alone[torch.randperm(num_draws)][..., c] for c in range(len(CHANNELS))], -1)
counted = {}
print(f"\n90 % intervals of the largest F6 minus F5 in {len(trials)} trials of {subject}")
for kind, sample in zip(KINDS, (joint_draws, alone, mixed), strict=True):
    low, high = torch.quantile(largest_difference(sample), torch.tensor([0.05, 0.95]), dim=0)
    counted[kind] = int(((came >= low) & (came <= high)).sum())
    print(f"  {kind:20s} hold what came in {counted[kind]:3d}, mean width {(high - low).mean():.1f} microvolt")
gain = (every.log_prob(y_ahead) - every.marginals().log_prob(y_ahead)) / NUM_AHEAD
print(f"joint minus independent times: {gain.mean():.2f} ({gain.std() / len(gain) ** 0.5:.2f}) nats per time")

# %% The picture
figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained")
colours = {"joint": "C0", "times independent": "C1", "all independent": "C2"}
milliseconds = 1000 * seconds[:, 0]
for axis, kind in zip(axes[0], KINDS, strict=True):
    for c, colour in ((LEFT, "C3"), (RIGHT, "C4")):
        axis.plot(milliseconds[96:NUM_OBSERVED], y[TRIAL, 96:, c], color=colour, lw=1.5, label=CHANNELS[c])
        axis.plot(milliseconds[NUM_OBSERVED:], KINDS[kind][:6, :, c].T, color=colour, lw=0.6, alpha=0.6)
        axis.plot(milliseconds[NUM_OBSERVED:], y_ahead[TRIAL, :, c], color=colour, lw=1.5, ls=":")
    axis.set(title=kind, xlabel="time after the picture (ms)", ylabel="voltage (microvolt)")
figure.suptitle("Six draws of the next eighth of a second; dotted: what came")
axes[0, 0].legend()
panels = {label: {kind: checks[kind, label] for kind in KINDS} for label in STATISTICS}
panels["largest F6 minus F5 (microvolt)"] = {
    kind: (largest_difference(sample).numpy(), float(came[TRIAL])) for kind, sample in KINDS.items()
}
for axis, (label, panel) in zip(axes[1], panels.items(), strict=True):
    everything = np.concatenate([drawn for drawn, _ in panel.values()])
    bins = np.linspace(*np.quantile(everything, [0.005, 0.995]), 40)
    for kind, (drawn, _) in panel.items():
        axis.hist(drawn, bins, density=True, alpha=0.5, color=colours[kind], label=kind)
    axis.axvline(panel["joint"][1], color="black", ls="--", label="what came")
    axis.set(title=label, yticks=[])
axes[1, 1].legend(loc="upper center")
figure.savefig(FIGURE, dpi=110)
print(f"figure: {FIGURE.relative_to(Path.cwd()) if FIGURE.is_relative_to(Path.cwd()) else FIGURE}")

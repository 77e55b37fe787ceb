"""The network of EEG on subjects outside its training, in interpolation and forecasting, against what else one has.

    python benchmarks/eeg.py --data ../shared/data/uci_eeg/eeg_7ch.npz
    python benchmarks/eeg.py --independent FOLDER --update-card   # FOLDER: pyro-arbuf train eeg-independent

For each N and each trial of the four test subjects: the joint density of the 7 channels at 32 times given N times, by
the buffer of 32, 16 and 4 slots, exact autoregression, and independent times; by a network whose channels are
independent at each time; by a multi-output Gaussian process and a Bayesian vector autoregression fitted to the context;
and by the vector autoregression of the training subjects as a Gaussian law. Forecasts are scored in the order of time,
interpolations over random orders. Nats per time, in microvolt, standard errors over the four subjects. Prints tables,
then one JSON line.
"""

import json
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from eeg_baselines import (
    Hyperparameters,
    TrialLaw,
    fit_gp,
    fit_trial_law,
    gaussian_process,
    vector_autoregression,
)
from marked import write_marked
from quality import mean_se
from torch import Tensor
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferModel, random_orders
from pyro_arbuf.checkpoint import find_model
from pyro_arbuf.priors.eeg import AMPLITUDE, CHANNELS, RATE, TEST, TRAINING, read_eeg
from pyro_arbuf.training.recordings import draw_subsets, draw_windows

SEED = 30_000
FITTED = 96  # samples of a trial from which the Gaussian process' hyperparameters start
BUFFERS = {"buffer K=32": 32, "buffer K=16": 16, "buffer K=4": 4, "exact AR": 1, "independent": None}
DIFFERENCES = {  # what is compared: label, more, less
    "buffer K=32 minus independent": ("buffer K=32", "independent"),
    "exact AR minus buffer K=32": ("exact AR", "buffer K=32"),
    "exact AR minus buffer K=4": ("exact AR", "buffer K=4"),
    "buffer K=32 minus the same with independent channels": ("buffer K=32", "channels independent"),
    "buffer K=32 minus Gaussian process": ("buffer K=32", "Gaussian process"),
    "buffer K=32 minus vector autoregression of the context": ("buffer K=32", "VAR of context"),
    "buffer K=32 minus vector autoregression of the training subjects": ("buffer K=32", "VAR of training"),
}

Score = dict[str, Tensor]  # by label: nats per time of every subject, `(subjects,)`


class Windows(NamedTuple):
    """Samples of a subject's trials, the context first: `index` `(B, N + M)` and `y` `(B, N + M, 7)`, microvolt."""

    index: Tensor
    y: Tensor


class Baselines(NamedTuple):
    """What the training subjects tell the baselines."""

    law: TrialLaw
    process: Hyperparameters


def draw_tasks(task: str, trials: Tensor, num_context: int, num_targets: int) -> Windows:
    """One window, or one set of samples, of every trial; the same ones every time."""
    draw = draw_windows if task == "forecasting" else draw_subsets
    index = draw(trials, num_context + num_targets, generator=torch.Generator().manual_seed(SEED + num_context))
    return Windows(index, trials.gather(1, index.unsqueeze(-1).expand(-1, -1, trials.shape[-1])))


@torch.no_grad()
def network_log_prob(
    net: ArBufferModel, windows: Windows, num_context: int, orders: Tensor, size: int | None
) -> Tensor:
    """Joint log density `(B,)`, nats; `size=None` = independent times."""
    # Exact AR and small buffers encode more than the 192 samples of training at N = 192; we want to see that, too.
    warnings.filterwarnings("ignore", message="num_context with absorbed targets")
    x, y = windows.index.unsqueeze(-1) / RATE, windows.y
    joint = ArBufferJoint(
        net.condition(x[:, :num_context], y[:, :num_context]), x[:, num_context:], orders=orders, buffer_size=size
    )
    return (joint if size is not None else joint.marginals()).log_prob(y[:, num_context:]).double()


def learn_baselines(trials: Tensor, num_fits: int = 40) -> Baselines:
    """The law of the training subjects' trials, and where the Gaussian process' hyperparameters start."""
    every = trials[:: max(1, len(trials) // num_fits)][:num_fits, :FITTED]
    y, index = every.double() / AMPLITUDE, torch.arange(FITTED).expand(len(every), -1)
    start = Hyperparameters.default(1, len(CHANNELS))
    return Baselines(fit_trial_law(trials), fit_gp(start, index, y, steps=80, shared=True))


def baseline_log_probs(windows: Windows, num_context: int, task: str, baselines: Baselines) -> dict[str, Tensor]:
    """Joint log densities `(B,)`, nats in microvolt, of what is no network."""
    index, y = windows.index, windows.y.double() / AMPLITUDE
    jacobian = (y.shape[1] - num_context) * y.shape[-1] * math.log(AMPLITUDE)
    found = {"Gaussian process": gaussian_process(baselines.process, index, y, num_context) - jacobian}
    if task == "forecasting":
        found["VAR of context"] = vector_autoregression(y[:, :num_context], y[:, num_context:]) - jacobian
    with torch.no_grad():
        return found | {"VAR of training": baselines.law.log_prob(index, windows.y, num_context)}


def score(
    task: str,
    subjects: dict[str, Tensor],
    num_context: int,
    sizes: tuple[int, int],
    nets: dict[str, ArBufferModel],
    baselines: Baselines | None,
) -> Score:
    """Nats per time of every way, a mean over the trials of each subject; `sizes` are M and the number of orders."""
    num_targets, num_orders = sizes
    orders = torch.arange(num_targets)[None] if task == "forecasting" else random_orders(num_targets, num_orders)
    found: dict[str, list[Tensor]] = {}
    for trials in tqdm(subjects.values(), desc=f"{task}, N = {num_context}", leave=False):
        windows = draw_tasks(task, trials, num_context, num_targets)
        densities = {
            label: network_log_prob(nets["eeg"], windows, num_context, orders, size) for label, size in BUFFERS.items()
        }
        if "independent" in nets:
            full = nets["independent"].config.buffer_size
            densities["channels independent"] = network_log_prob(
                nets["independent"], windows, num_context, orders, full
            )
        if baselines is not None:
            densities |= baseline_log_probs(windows, num_context, task, baselines)
        for label, density in densities.items():
            found.setdefault(label, []).append(density.mean() / num_targets)
    return {label: torch.stack(parts) for label, parts in found.items()}


def write_tables(task: str, scores: dict[int, Score], names: list[str]) -> tuple[list[str], dict[str, object]]:
    """Lines of three tables, by N, by difference and by subject, and what the JSON line has of them."""
    labels = list(next(iter(scores.values())))
    means = {label: torch.stack([row[label] for row in scores.values()]).mean(0) for label in labels}  # (subjects,)
    lines = [f"**{task.capitalize()}**", "", f"| N | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for n, row in scores.items():
        lines.append(f"| {n} | {' | '.join(f'{row[label].mean():.2f}' for label in labels)} |")
    lines.append(f"| mean | {' | '.join(f'{means[label].mean():.2f}' for label in labels)} |")
    lines += ["", "| difference, mean over N | nats per time |", "|---|---|"]
    differences = {}
    for what, (more, less) in DIFFERENCES.items():
        if more in means and less in means:
            differences[what] = mean_se(means[more] - means[less])
            lines.append("| {} | {:.3f} ({:.3f}) |".format(what, *differences[what]))
    lines += ["", f"| subject | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for i, name in enumerate(names):
        lines.append(f"| {name} | {' | '.join(f'{means[label][i]:.2f}' for label in labels)} |")
    per_n = {n: {label: round(v.mean().item(), 3) for label, v in row.items()} for n, row in scores.items()}
    rounded = {what: [round(v, 4) for v in values] for what, values in differences.items()}
    return [*lines, ""], {"differences": rounded, "per N": per_n}


def main(
    model: Path | str = "eeg",
    /,
    data: Path = Path("../shared/data/uci_eeg/eeg_7ch.npz"),
    independent: Path | None = None,
    num_context: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 192),
    num_targets: int = 32,
    num_orders: int = 4,
    num_trials: int | None = None,
    baselines: bool = True,
    update_card: bool = False,
    threads: int | None = None,
) -> None:
    """Measures a network of EEG.

    Args:
        model: Shipped model or folder.
        data: File of the recordings, see docs/recordings.md.
        independent: Folder of a network of `eeg-independent`, trained the same way.
        num_context: The Ns.
        num_targets: Times M that are predicted.
        num_orders: Orders averaged in interpolation.
        num_trials: Of each subject; all if not given.
        baselines: Whether to measure what is no network.
        update_card: Write the tables into the shipped model's card, between its markers.
        threads: CPU threads.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if not data.is_file():
        print(f"skipped: {data} is missing; it holds the recordings, which are not shipped; use --data")
        return
    recordings = read_eeg(data)
    subjects = {name: recordings[name][:num_trials] for name in TEST}
    nets = {"eeg": pyro_arbuf.load(model)}
    if independent is not None:
        nets["independent"] = pyro_arbuf.load(independent)
    learned = learn_baselines(torch.cat([recordings[name] for name in TRAINING])) if baselines else None
    lines, summary = [], {}
    for task in ("interpolation", "forecasting"):
        sizes = (num_targets, num_orders)
        scores = {n: score(task, subjects, n, sizes, nets, learned) for n in num_context}
        table, summary[task] = write_tables(task, scores, list(subjects))
        lines += table
    count = sum(len(trials) for trials in subjects.values())
    text = (
        f"Joint log density of {len(CHANNELS)} channels in nats per time (microvolt), M = {num_targets}, {count} "
        f"trials of {len(subjects)} subjects outside training, {num_orders} orders in interpolation, the order of time "
        "in forecasting; means over subjects, standard errors over subjects in brackets.\n\n" + "\n".join(lines)
    )
    print(text)
    if update_card:
        card = find_model(str(model)) / "README.md"
        write_marked(card, "eeg", text)
    print(json.dumps({"benchmark": "eeg", "model": Path(model).name, "trials": count} | summary))


if __name__ == "__main__":
    tyro.cli(main)

"""The paper's comparison: every system that it names, on our tasks, trained for equal CPU seconds.

    python benchmarks/paper.py                          # all tasks: 10 CPU minutes a network, 20 on EEG
    python benchmarks/paper.py --tasks gp-1d --minutes 60

Networks of one size are trained on `gp-1d`, `sawtooth` and recordings of EEG, by the same `fit`: with a buffer, and
what the paper compares it with (see `pyro_arbuf.baselines`). All are scored on the same functions, or trials, at M = 16
and 128 targets; differences are paired. For each system of functions two numbers say how far its densities are from one
consistent law: how much they depend on the order of the targets, and on whether one target more is asked for.

Networks, their training states and scores are kept in the folder: the same command goes on where it was stopped. EEG is
left out, with a line that says so, where the file of the recordings is missing. Writes tables into benchmarks/PAPER.md,
between its markers, and a figure beside it; prints the tables, then one JSON line.

Deviation: training time is what is equal, not steps, and it is minutes, not hours; the paper's figures are of other
draws of x, and of other recordings.
"""

import json
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import torch
import tyro
from eeg import draw_tasks
from marked import END, write_marked
from matplotlib.figure import Figure
from oracle import oracle_log_prob
from paper_systems import (
    EEG_SYSTEMS,
    SUBSET,
    SYSTEMS,
    System,
    log_prob,
    order_gap,
    read_scores,
    rest_gap,
    train,
    write_scores,
)
from quality import draw_functions, mean_se
from torch import Tensor
from tqdm import tqdm

from pyro_arbuf import ArBufferModel, random_orders
from pyro_arbuf.files import write_atomically
from pyro_arbuf.priors.eeg import RATE, TEST, read_eeg
from pyro_arbuf.training.run_state import RunState

HERE = Path(__file__).parent
START = "<!-- paper.py -->"
FUNCTIONS, EEG = ("gp-1d", "sawtooth"), ("eeg interpolation", "eeg forecasting")
TASKS = (*FUNCTIONS, *EEG)
OURS = "buffer K=16"
GAP = (16, 32)  # observed points and functions of the numbers on consistency
EXPLANATION = """\
Joint log density in nats per target, means over functions, standard errors in brackets. All networks were trained by
the same `fit` for the same CPU time, and are scored on the same {} functions per N in {} orders at the first M, and on
{} in {} orders at the others; differences are paired. Of EEG: nats per time of seven channels in microvolt, {} trials
of each of four subjects outside training, standard errors over subjects, forecasts in the order of time. The published
figures are of networks trained for longer, of other draws of x and other recordings: their differences compare, not
their values. `orders` is the mean absolute difference of a joint log density between two orders of the targets, per
target; `one target more` that of the log density of 8 targets by themselves and as the marginal of a joint with a ninth
in front; both at N = {} on {} functions. Both are 0 for one consistent law.

"""
_COLUMNS = ("TNP-D-AR", "TNP-D-Ind", "TNP-ND", "TNP-A", "buffer K=16", "buffer K=1")
# Hassan et al. (2026), mean joint log density per target over N, 128 orders: by task and M.
PUBLISHED = {
    key: dict(zip(_COLUMNS, values, strict=True))
    for key, values in {
        ("gp-1d", 16): (2.57, 2.22, 0.80, 2.24, 2.51, 2.56),
        ("gp-1d", 128): (3.29, 2.15, 2.27, 3.10, 3.27, 3.29),
        ("sawtooth", 16): (1.05, 0.94, -0.43, 0.98, 1.00, 1.09),
        ("sawtooth", 128): (1.14, 0.94, 0.39, 1.12, 1.15, 1.16),
        ("eeg interpolation", 16): (0.51, 0.36, 0.46, 0.58, 0.52, 0.54),
        ("eeg forecasting", 16): (1.07, -0.74, -0.04, 1.23, 0.85, 1.21),
    }.items()
}
PUBLISHED["eeg forecasting", 16]["buffer K=4"] = 1.17

LINES = {  # in the figure, by system: colour, style and width; one colour for each network
    "oracle": ("black", "--", 1.0),
    "buffer K=16": ("C0", "-", 2.5),
    "buffer K=4": ("C0", "--", 1.0),
    "buffer K=1": ("C0", ":", 1.0),
    "TNP-D-AR": ("C1", "-", 1.0),
    "TNP-D-Ind": ("C1", ":", 1.0),
    "TNP-ND": ("C2", "-", 1.0),
    "TNP-A": ("C3", "-", 1.0),
    "decoder": ("C4", "-", 1.0),
    "LBANP-AR": ("C5", ":", 1.0),
    "LBANP buffer K=16": ("C5", "-", 1.0),
}

Scores = dict[str, list[float]]  # by system, nats per target of each function, or of each subject's trials


class Cell(NamedTuple):
    """What is scored in one go.

    Attributes:
        task: One of `TASKS`.
        num_targets: Targets M.
        num_context: Observed points N.
        size: Functions, or trials of each subject.
        num_orders: Orders averaged.
    """

    task: str
    num_targets: int
    num_context: int
    size: int
    num_orders: int

    @property
    def path(self) -> str:
        """Of the scores, in the folder; functions that are added later join those that are there."""
        trials = f"-{self.size}-trials" if self.task in EEG else ""
        name = f"{self.task}-M{self.num_targets}-N{self.num_context}-{self.num_orders}-orders{trials}.json"
        return name.replace(" ", "-")


Trained = dict[str, tuple[ArBufferModel, RunState]]  # by architecture


def score_functions(cell: Cell, name: str, net: ArBufferModel | None, done: list[float]) -> list[float]:
    """Scores of a system on all functions of a cell, of which the first are known; the oracle has no network."""
    functions = draw_functions(cell.task, cell.size, cell.num_context, cell.num_targets)
    x_context, y_context, x, y = functions = tuple(part[len(done) :] for part in functions)
    if net is None:
        found = oracle_log_prob(cell.task, x_context, y_context, x, y) / cell.num_targets
    else:
        found = log_prob(net, SYSTEMS[name], functions, random_orders(cell.num_targets, cell.num_orders))
    return done + found.tolist()


def score_trials(cell: Cell, system: System, net: ArBufferModel, subjects: dict[str, Tensor]) -> list[float]:
    """Mean scores of the trials of each subject, nats per time of all channels, in microvolt."""
    orders, found = random_orders(cell.num_targets, cell.num_orders), []
    if cell.task == "eeg forecasting":
        orders = torch.arange(cell.num_targets)[None]
    for trials in subjects.values():
        index, y = draw_tasks(cell.task.split()[1], trials, cell.num_context, cell.num_targets)
        x, n = index.unsqueeze(-1) / RATE, cell.num_context
        found.append(log_prob(net, system, (x[:, :n], y[:, :n], x[:, n:], y[:, n:]), orders).mean().item())
    return found


def kept_scores(folder: Path, cell: Cell, trained: Trained, subjects: dict[str, Tensor]) -> Scores:
    """Scores of a cell; those that its file holds are not computed again."""
    path, is_eeg = folder / cell.path, cell.task in EEG
    scores: Scores = read_scores(path)
    systems = EEG_SYSTEMS if is_eeg else {"oracle": None} | SYSTEMS
    wanted = len(subjects) if is_eeg else cell.size
    for name, system in tqdm(systems.items(), desc=cell.path.removesuffix(".json"), leave=False):
        done = scores.get(name, [])
        if len(done) < wanted:
            net = None if system is None else trained[system.architecture][0]
            scores[name] = (
                score_trials(cell, system, net, subjects) if is_eeg else score_functions(cell, name, net, done)
            )
            write_scores(path, scores)
    return {name: scores[name][:wanted] for name in systems}


def kept_gaps(folder: Path, task: str, trained: Trained, num_targets: int) -> dict[str, list[float]]:
    """By system, the numbers on consistency: over orders, and with one target more."""
    path = folder / f"{task}-consistency.json"
    gaps: dict[str, list[float]] = read_scores(path)
    functions = draw_functions(task, GAP[1], GAP[0], max(SUBSET + 1, num_targets))
    for name, system in tqdm(SYSTEMS.items(), desc=f"{task}, consistency", leave=False):
        if name not in gaps:
            net = trained[system.architecture][0]
            gaps[name] = [gap(net, system, functions) for gap in (order_gap, rest_gap)]
            write_scores(path, gaps)
    return gaps


def over_contexts(values: list[Tensor]) -> tuple[float, float]:
    """Mean over N of means over functions, and its standard error."""
    each = [mean_se(value) for value in values]
    return sum(mean for mean, _ in each) / len(each), math.sqrt(sum(se**2 for _, se in each)) / len(each)


def summarise(cells: dict[int, Scores]) -> dict[str, dict[str, tuple[float, float]]]:
    """By system, the mean over N, and the paired differences of ours to it and of the oracle to it."""
    tensors = [
        {name: torch.tensor(values, dtype=torch.float64) for name, values in each.items()} for each in cells.values()
    ]
    found = {}
    for name in tensors[0]:
        found[name] = {"mean": over_contexts([each[name] for each in tensors])}
        for label, first in (("ours minus it", OURS), ("oracle minus it", "oracle")):
            if first in tensors[0] and name not in (first, "oracle"):
                found[name][label] = over_contexts([each[first] - each[name] for each in tensors])
    return found


def shown(pair: tuple[float, float] | None) -> str:
    """Mean and standard error as text."""
    return "" if pair is None else f"{pair[0]:.3f} ({pair[1]:.3f})"


def write_table(
    task: str, num_targets: int, cells: dict[int, Scores], gaps: dict[str, list[float]] | None
) -> tuple[list[str], dict[str, dict[str, tuple[float, float]]]]:
    """Lines of the table of a task and M, and its summary."""
    summary, published = summarise(cells), PUBLISHED.get((task, num_targets), {})
    with_oracle = "oracle" in summary
    head = ["system", *(f"N = {n}" for n in cells), "mean", f"{OURS} minus it"]
    head += ["oracle minus it"] * with_oracle + ["published"] + ["orders", "one target more"] * (gaps is not None)
    lines = [f"### {task}, M = {num_targets}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, found in summary.items():
        means = [f"{sum(scores[name]) / len(scores[name]):.3f}" for scores in cells.values()]
        row = [name, *means, shown(found["mean"]), shown(found.get("ours minus it"))]
        row += [shown(found.get("oracle minus it"))] * with_oracle
        row.append(f"{published[name]:.2f}" if name in published else "")
        if gaps is not None:
            row += [f"{gap:.3f}" for gap in gaps[name]] if name in gaps else ["0", "0"]
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""], summary


def write_training(trained: dict[str, Trained], minutes: dict[str, float]) -> list[str]:
    """Lines of the table of what was trained."""
    lines = ["### Training", "", "| recipe | architecture | parameters | CPU minutes | steps | validation |"]
    lines.append("|---" * 6 + "|")
    for recipe, nets in trained.items():
        for architecture, (net, state) in nets.items():
            count = sum(weight.numel() for weight in net.parameters())
            numbers = f"{count:,} | {minutes[recipe]:g} | {state.step:,} | {state.best_score:.3f}"
            lines.append(f"| {recipe} | {architecture} | {numbers} |")
    return [*lines, ""]


def draw_figure(path: Path, panels: dict[tuple[str, int], dict[int, Scores]]) -> None:
    """Log density per target against N: a panel for each task and M, a line for each system."""
    with matplotlib.style.context("pyro_arbuf.house"):
        rows = -(-len(panels) // 2)
        figure = Figure(figsize=(9, 3.2 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False).flatten()
        for axis, ((task, num_targets), cells) in zip(axes, panels.items(), strict=False):
            for name in next(iter(cells.values())):
                means = [sum(scores[name]) / len(scores[name]) for scores in cells.values()]
                color, line, width = LINES[name]
                axis.plot(list(cells), means, label=name, color=color, ls=line, lw=width, marker="o", ms=3)
            axis.set_xscale("log", base=2)
            axis.set_xticks(list(cells), [str(n) for n in cells])
            axis.set(title=f"{task}, M = {num_targets}", xlabel="observations N", ylabel="nats per target")
        for axis in axes[len(panels) :]:
            axis.axis("off")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        write_atomically(path, lambda file: figure.savefig(file, format="png"))


def write_page(path: Path, text: str) -> None:
    """Writes text between the markers of a page, whatever else it says."""
    if not path.exists():
        path.write_text(f"# The paper's comparison\n\n{START}\n{END}\n")
    write_marked(path, "paper", f"\n{text}\n")


def train_all(recipe: str, minutes: float, folder: Path, data: Path | None, small: bool) -> Trained:
    """The networks of a recipe."""
    systems = EEG_SYSTEMS if recipe == "eeg" else SYSTEMS
    architectures = dict.fromkeys(system.architecture for system in systems.values())
    return {
        each: train(recipe, each, minutes, folder / f"{recipe}-{each}", data, small)
        for each in tqdm(architectures, desc=f"{recipe}, networks", leave=False)
    }


def main(
    tasks: tuple[str, ...] = TASKS,
    folder: Path = Path("runs/paper"),
    minutes: float = 10.0,
    data: Path = HERE.parent.parent / "shared" / "data" / "uci_eeg" / "eeg_7ch.npz",
    num_functions: int = 128,
    num_trials: int = 10,
    num_orders: int = 16,
    num_targets: tuple[int, ...] = (16, 128),
    num_context: tuple[int, ...] = (8, 16, 32, 64, 128),
    page: Path = HERE / "PAPER.md",
    threads: int = 1,
    small: bool = False,
) -> None:
    """Trains and scores all systems.

    Args:
        tasks: Which of gp-1d, sawtooth, eeg interpolation and eeg forecasting.
        folder: Where networks, training states and scores are kept, in a folder for each budget.
        minutes: CPU minutes of each network; on EEG twice as many.
        data: File of the recordings, see docs/recordings.md.
        num_functions: Functions of each N at the smallest M; a quarter of them, and of the orders, at larger ones.
        num_trials: Trials of each subject of EEG.
        num_orders: Orders averaged.
        num_targets: The Ms; EEG is scored at the smallest.
        num_context: The Ns; of EEG up to 192.
        page: Page that the tables are written into; the figure stands beside it.
        threads: CPU threads.
        small: Tiny networks, to try the command.
    """
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*outside the trained range")  # on purpose
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise SystemExit(f"--tasks must be some of {', '.join(TASKS)}; got {', '.join(unknown)}")
    if set(tasks) & set(EEG) and not data.is_file():
        print(f"EEG is left out: {data} is missing; it holds the recordings, which are not shipped; use --data")
        tasks = tuple(task for task in tasks if task not in EEG)
    folder = folder / f"{minutes:g}-minutes{'-small' * small}"
    budgets = {task.split()[0]: minutes * (2 if task in EEG else 1) for task in tasks}
    trained = {
        recipe: train_all(recipe, budget, folder, data if recipe == "eeg" else None, small)
        for recipe, budget in budgets.items()
    }
    subjects = {}
    if "eeg" in trained:
        recordings = read_eeg(data)
        subjects = {name: recordings[name][:num_trials] for name in TEST}
    lines, panels, summary = write_training(trained, budgets), {}, {}
    for task in tasks:
        for count in num_targets if task in FUNCTIONS else num_targets[:1]:
            share = 1 if count == num_targets[0] else 4
            size = num_trials if task in EEG else max(2, num_functions // share)
            contexts = num_context if task in FUNCTIONS or small else (*num_context, 192)
            each = [Cell(task, count, n, size, max(1, num_orders // share)) for n in contexts]
            nets = trained[task.split()[0]]
            cells = {cell.num_context: kept_scores(folder, cell, nets, subjects) for cell in each}
            gaps = kept_gaps(folder, task, nets, num_targets[0]) if task in FUNCTIONS and share == 1 else None
            table, found = write_table(task, count, cells, gaps)
            panels[task, count], lines = cells, lines + table
            summary[f"{task}, M = {count}"] = {"systems": found, "orders, one target more": gaps}
    text = EXPLANATION.format(num_functions, num_orders, num_functions // 4, num_orders // 4, num_trials, *GAP)
    text += "\n".join(lines)
    print(text)
    write_page(page, text)
    draw_figure(page.with_suffix(".png"), panels)
    print(json.dumps({"benchmark": "paper", "minutes": minutes, "tasks": summary}))


if __name__ == "__main__":
    tyro.cli(main)

"""The paper's comparison: every system that it names, on our tasks, trained for equal CPU seconds.

    python benchmarks/paper.py                          # all tasks: 10 CPU minutes a network, 20 on EEG
    python benchmarks/paper.py --tasks gp-1d --minutes 60

Networks of one size are trained on `gp-1d`, `sawtooth` and recordings of EEG, by the same `fit`: with a buffer, and
what the paper compares it with (see `pyro_arbuf.baselines`). All are scored on the same functions, or trials, at M = 16
and 128 targets; differences are paired. For each system of functions two numbers say how far its densities are from one
consistent law: how much they depend on the order of the targets, and on whether one target more is asked for.
Predictions of multisensory trials and of tables are readings of our shipped networks, which are not trained again.

Networks, their training states and scores are kept in the folder: the same command goes on where it was stopped. A task
whose data are missing is left out, with a line that says so. Writes the numbers into benchmarks/PAPER.json, keeping
those of tasks that were not asked for, and from there tables into benchmarks/PAPER.md, between its markers, and a
figure. Prints the tables, then one JSON line.

Deviation: training time is what is equal, not steps, and it is minutes, not hours; the paper's figures are of other
draws of x, and of other recordings.
"""

import json
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from eeg import draw_tasks
from kept import keep, read_kept, weights_key
from oracle import oracle_log_prob
from paper_page import Gaps, Key, Scores, read_results, summarise, write_page
from paper_readings import NETWORKS, NUM_CONTEXT, NUM_TARGETS, READINGS, SERIES, TABLES, score_readings
from paper_systems import (
    EEG_SYSTEMS,
    SUBSET,
    SYSTEMS,
    System,
    log_prob,
    order_gap,
    rest_gap,
    train,
)
from quality import draw_functions
from torch import Tensor
from tqdm import tqdm

from pyro_arbuf import ArBufferModel, load, random_orders
from pyro_arbuf.priors.eeg import RATE, TEST, read_eeg
from pyro_arbuf.training.run_state import RunState

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared" / "data"
FUNCTIONS, EEG = ("gp-1d", "sawtooth"), ("eeg interpolation", "eeg forecasting")
TASKS = (*FUNCTIONS, *EEG, *READINGS)
GAP = (16, 32)  # observed points and functions of the numbers on consistency
LONGEST_EEG = 192  # observed times


class Cell(NamedTuple):
    """What is scored in one go.

    Attributes:
        task: One of `TASKS`.
        num_targets: Targets M.
        num_context: Observed points N.
        size: Functions, trials of each subject, data sets, or splits of each table.
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
        number = "" if self.task in FUNCTIONS else f"-{self.size}-{'trials' if self.task in EEG else 'sets'}"
        name = f"{self.task}-M{self.num_targets}-N{self.num_context}-{self.num_orders}-orders{number}.json"
        return name.replace(" ", "-")

    @property
    def systems(self) -> dict[str, System | None]:
        """What is scored; the oracle has no network."""
        if self.task in READINGS:
            return READINGS[self.task]
        return dict(EEG_SYSTEMS) if self.task in EEG else {"oracle": None} | SYSTEMS

    @property
    def rests_on(self) -> str:
        """What the scores are means over, for the page."""
        if self.task in FUNCTIONS:
            what = f"{self.size} functions per N"
        elif self.task in EEG:
            what = f"{self.size} trials of each of {len(TEST)} subjects"
        else:
            what = f"{self.size} splits of each series" if self.task == TABLES else f"{self.size} data sets per N"
        orders = f", {self.num_orders} order{'s' * (self.num_orders > 1)}"
        return what + (", in the order of time" if self.task == EEG[1] else orders)


Trained = dict[str, tuple[ArBufferModel, RunState]]  # by architecture


class Sources(NamedTuple):
    """What is scored, besides priors.

    Attributes:
        trained: Networks by architecture, of tasks for which some are trained.
        subjects: Trials of each subject.
        tables: Folder of the tables.
    """

    trained: Trained
    subjects: dict[str, Tensor]
    tables: Path


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


def kept_scores(folder: Path, cell: Cell, sources: Sources) -> Scores:
    """Scores of a cell; those that its file holds are not computed again."""
    path = folder / cell.path
    if cell.task in READINGS:  # of networks that are not trained here, and may be replaced
        path = path.with_stem(f"{path.stem}-{weights_key(*(load(name) for name in NETWORKS[cell.task]))}")
    scores: Scores = read_kept(path, {})
    wanted = len(sources.subjects) if cell.task in EEG else cell.size
    for name, system in tqdm(cell.systems.items(), desc=cell.path.removesuffix(".json"), leave=False):
        done = scores.get(name, [])
        if len(done) >= wanted:
            continue
        if cell.task in READINGS:
            orders = random_orders(cell.num_targets, cell.num_orders)
            scores[name] = score_readings(cell.task, name, cell.num_context, cell.size, orders, sources.tables)
        elif cell.task in EEG:
            scores[name] = score_trials(cell, system, sources.trained[system.architecture][0], sources.subjects)
        else:
            net = None if system is None else sources.trained[system.architecture][0]
            scores[name] = score_functions(cell, name, net, done)
        keep(path, scores)
    return {name: scores[name][:wanted] for name in cell.systems}


def kept_gaps(folder: Path, task: str, trained: Trained, num_targets: int) -> Gaps:
    """By system, the numbers on consistency: over orders, and with one target more."""
    path = folder / f"{task}-consistency-M{num_targets}.json"
    gaps: Gaps = read_kept(path, {})
    functions = draw_functions(task, GAP[1], GAP[0], max(SUBSET + 1, num_targets))
    for name, system in tqdm(SYSTEMS.items(), desc=f"{task}, consistency", leave=False):
        if name not in gaps:
            net = trained[system.architecture][0]
            gaps[name] = [gap(net, system, functions) for gap in (order_gap, rest_gap)]
            keep(path, gaps)
    return gaps


def train_all(recipe: str, minutes: float, folder: Path, data: Path | None, small: bool) -> Trained:
    """The networks of a recipe."""
    systems = EEG_SYSTEMS if recipe == "eeg" else SYSTEMS
    architectures = dict.fromkeys(system.architecture for system in systems.values())
    return {
        each: train(recipe, each, minutes, folder / f"{recipe}-{each}", data, small)
        for each in tqdm(architectures, desc=f"{recipe}, networks", leave=False)
    }


def describe(trained: Trained, minutes: float) -> dict[str, dict[str, float]]:
    """Size, time and validation score of networks, by architecture."""
    return {
        architecture: {
            "parameters": sum(weight.numel() for weight in net.parameters()),
            "minutes": minutes,
            "steps": state.step,
            "validation": state.best_score,
        }
        for architecture, (net, state) in trained.items()
    }


def without_missing(tasks: tuple[str, ...], data: Path, tables: Path) -> tuple[str, ...]:
    """The tasks whose data are there; says which are not."""
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise SystemExit(f"--tasks must be some of {', '.join(TASKS)}; got {', '.join(unknown)}")
    if set(tasks) & set(EEG) and not data.is_file():
        print(f"EEG is left out: {data} is missing; it holds the recordings, which are not shipped; use --data")
        tasks = tuple(task for task in tasks if task not in EEG)
    missing = [name for name in SERIES if not (tables / name / f"{name}.npz").is_file()]
    if TABLES in tasks and missing:
        print(f"{TABLES} is left out: {tables} has no {', '.join(missing)}; see tabular.py; use --tables")
        tasks = tuple(task for task in tasks if task != TABLES)
    return tasks


def make_cells(
    task: str, sizes: tuple[int, ...], num_targets: tuple[int, ...], num_context: tuple[int, ...]
) -> list[list[Cell]]:
    """The cells of each table of a task; `sizes` are functions, trials, data sets or splits, and orders."""
    num_functions, num_trials, num_sets, num_orders = sizes
    if task in READINGS:
        size, orders = (num_sets // 4, 1) if task == TABLES else (num_sets, num_orders)
        return [[Cell(task, NUM_TARGETS[task], n, size, orders) for n in NUM_CONTEXT[task]]]
    if task in EEG:
        contexts = (*num_context, LONGEST_EEG) if len(num_context) > 1 else num_context
        return [[Cell(task, num_targets[0], n, num_trials, num_orders) for n in contexts]]
    shares = {m: 1 if m == num_targets[0] else 4 for m in num_targets}
    return [
        [Cell(task, m, n, max(2, num_functions // share), max(1, num_orders // share)) for n in num_context]
        for m, share in shares.items()
    ]


def main(
    tasks: tuple[str, ...] = TASKS,
    folder: Path = Path("runs/paper"),
    minutes: float = 10.0,
    data: Path = SHARED / "uci_eeg" / "eeg_7ch.npz",
    tables: Path = SHARED,
    num_functions: int = 128,
    num_trials: int = 10,
    num_sets: int = 64,
    num_orders: int = 16,
    num_targets: tuple[int, ...] = (16, 128),
    num_context: tuple[int, ...] = (8, 16, 32, 64, 128),
    page: Path = HERE / "PAPER.md",
    threads: int = 1,
    small: bool = False,
) -> None:
    """Trains and scores all systems.

    Args:
        tasks: Some of gp-1d, sawtooth, eeg interpolation, eeg forecasting, multisensory prediction and tabular
            forecasting.
        folder: Where networks, training states and scores are kept, in a folder for each budget.
        minutes: CPU minutes of each network; on EEG twice as many.
        data: File of the recordings, see docs/recordings.md.
        tables: Folder of the tables, see tabular.py.
        num_functions: Functions of each N at the smallest M; a quarter of them, and of the orders, at larger ones.
        num_trials: Trials of each subject of EEG.
        num_sets: Data sets of multisensory trials; a quarter as many splits of each table.
        num_orders: Orders averaged; of tables, one.
        num_targets: The Ms of functions; EEG is scored at the smallest.
        num_context: The Ns of functions; EEG is scored at 192, too.
        page: Page that the tables are written into; numbers and figure stand beside it.
        threads: CPU threads.
        small: Tiny networks, to try the command.
    """
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*outside the trained range")  # on purpose
    tasks = without_missing(tasks, data, tables)
    folder = folder / f"{minutes:g}-minutes{'-small' * small}"
    budgets = {task.split()[0]: minutes * (2 if task in EEG else 1) for task in tasks if task not in READINGS}
    trained = {
        recipe: train_all(recipe, budget, folder, data if recipe == "eeg" else None, small)
        for recipe, budget in budgets.items()
    }
    subjects = {}
    if "eeg" in trained:
        recordings = read_eeg(data)
        subjects = {name: recordings[name][:num_trials] for name in TEST}
    results = read_results(page)
    results["training"] |= {recipe: describe(nets, budgets[recipe]) for recipe, nets in trained.items()}
    sizes, found = (num_functions, num_trials, num_sets, num_orders), {}
    for task in tasks:
        sources = Sources(trained.get(task.split()[0], {}), subjects, tables)
        for i, cells in enumerate(make_cells(task, sizes, num_targets, num_context)):
            scores = {cell.num_context: kept_scores(folder, cell, sources) for cell in cells}
            with_gaps = task in FUNCTIONS and i == 0
            gaps = kept_gaps(folder, task, sources.trained, num_targets[0]) if with_gaps else None
            found[str(Key(task, cells[0].num_targets))] = {
                "rests on": cells[0].rests_on,
                "systems": summarise(scores, gaps, same_units=task in EEG),
            }
    results["tables"] |= found
    print(write_page(page, results, TASKS))
    print(json.dumps({"benchmark": "paper", "minutes": minutes, "tasks": found}))


if __name__ == "__main__":
    tyro.cli(main)

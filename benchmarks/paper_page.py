"""The page of the paper's comparison: numbers that paper.py found, kept in a file beside it; its tables and its figure.

A run replaces the numbers of its own tasks and keeps those of the others, so that networks and scores need not be on
one machine.
"""

import math
from pathlib import Path
from typing import NamedTuple, TypedDict

import matplotlib.style
import torch
from kept import keep, read_kept
from marked import write_marked
from matplotlib.figure import Figure
from paper_readings import PUBLISHED_READINGS
from quality import mean_se
from torch import Tensor

from pyro_arbuf.files import write_atomically

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
PUBLISHED |= PUBLISHED_READINGS

LINES = {  # in the figure, by system: colour, style and width; one colour for each network
    "oracle": ("black", "--", 1.0),
    "buffer K=32": ("C0", "-", 2.5),
    "buffer K=16": ("C0", "-", 2.5),
    "buffer K=4": ("C0", "--", 1.0),
    "buffer K=1": ("C0", ":", 1.0),
    "independent": ("C0", "-.", 1.0),
    "TNP-D-AR": ("C1", "-", 1.0),
    "TNP-D-Ind": ("C1", ":", 1.0),
    "TNP-ND": ("C2", "-", 1.0),
    "TNP-A": ("C3", "-", 1.0),
    "decoder": ("C4", "-", 1.0),
    "LBANP-AR": ("C5", ":", 1.0),
    "LBANP buffer K=16": ("C5", "-", 1.0),
}
EXPLANATION = """\
Joint log density in nats per target, means over functions, standard errors in brackets. The networks of the first table
were trained by the same `fit` for the CPU time that stands there, and are scored on the same functions; differences are
paired. The largest buffer of ours is what "minus it" starts from. Every table says how many functions and orders it
rests on.

Densities of EEG are in nats per time of seven channels in microvolt, on trials of four subjects outside training:
standard errors are over subjects, and forecasts are in the order of time. The rows of multisensory prediction and of
tabular forecasting are readings of our own shipped networks. Of the latter they are means over four series, in units
standardised by the observed rows. The published figures are of networks trained for longer, of other draws of x, other
recordings and other units: their differences compare, not their values.

`orders` is the mean absolute difference of a joint log density between two orders of the targets, per target.
`one target more` is that of the log density of 8 targets by themselves and as the marginal of a joint with a ninth in
front, of TNP-ND behind. Both are measured at N = 16 on 32 functions, and are 0 for one consistent law.

"""

Scores = dict[str, list[float]]  # by system, nats per target of each function, or of each subject's trials
Gaps = dict[str, list[float]]  # by system, the two numbers on consistency


class Key(NamedTuple):
    """A table of the page.

    Attributes:
        task: What is scored.
        num_targets: Targets M.
    """

    task: str
    num_targets: int

    def __str__(self) -> str:
        """The heading of the table."""
        return f"{self.task}, M = {self.num_targets}"


class Results(TypedDict):
    """What the page shows.

    Attributes:
        training: By recipe and architecture, its parameters, minutes, steps and validation score.
        tables: By heading, a row of numbers for each system, and what they rest on.
        ablations: By prior, what they rest on, and densities and differences of every variant.
        speed: Seconds and MiB of steps and of cells, see paper_speed.py.
    """

    training: dict[str, dict[str, dict[str, float]]]
    tables: dict[str, dict[str, dict]]
    ablations: dict[str, dict]
    speed: dict[str, dict]


def read_results(page: Path) -> Results:
    """What earlier runs found; nothing where there is no file beside the page."""
    return Results(training={}, tables={}, ablations={}, speed={}) | read_kept(page.with_suffix(".json"), {})


def keep_results(page: Path, results: Results) -> None:
    """Writes all numbers beside the page."""
    keep(page.with_suffix(".json"), results)


def write_section(page: Path, benchmark: str, text: str) -> None:
    """Writes what a command found between its markers; a page that is not there is made."""
    if not page.exists():
        page.write_text("# The paper's comparison\n")
    write_marked(page, benchmark, f"\n{text}\n")


def over_contexts(values: list[Tensor], same_units: bool = False) -> tuple[float, float]:
    """Mean over N of means over functions, and its standard error.

    Args:
        values: For each N.
        same_units: Whether those of every N are of the same units, such as subjects, whose errors do not average out.
    """
    if same_units:
        return mean_se(torch.stack(values).mean(0))
    each = [mean_se(value) for value in values]
    return sum(mean for mean, _ in each) / len(each), math.sqrt(sum(se**2 for _, se in each)) / len(each)


def ours(systems: list[str]) -> str:
    """The system that others are compared with: our largest buffer."""
    return next(name for name in systems if name.startswith("buffer"))


def summarise(cells: dict[int, Scores], gaps: Gaps | None = None, same_units: bool = False) -> dict[str, dict]:
    """By system, means for each N and over N, and the paired differences of ours to it and of the oracle to it.

    Args:
        cells: Scores by N.
        gaps: The numbers on consistency, of tasks that have them.
        same_units: See `over_contexts`.
    """
    tensors = [
        {name: torch.tensor(values, dtype=torch.float64) for name, values in each.items()} for each in cells.values()
    ]
    found, first = {}, ours(list(tensors[0]))
    for name in tensors[0]:
        per_context = {str(n): each[name].mean().item() for n, each in zip(cells, tensors, strict=True)}
        found[name] = {"per N": per_context, "mean": over_contexts([each[name] for each in tensors], same_units)}
        for label, minuend in (("ours minus it", first), ("oracle minus it", "oracle")):
            if minuend in tensors[0] and name not in (minuend, "oracle"):
                found[name][label] = over_contexts([each[minuend] - each[name] for each in tensors], same_units)
        if gaps is not None:
            found[name]["orders"], found[name]["one target more"] = gaps.get(name, [0.0, 0.0])
    return found


def shown(pair: tuple[float, float] | None) -> str:
    """Mean and standard error as text."""
    return "" if pair is None else f"{pair[0]:.3f} ({pair[1]:.3f})"


def write_table(key: Key, systems: dict[str, dict], rests_on: str) -> list[str]:
    """Lines of the table of a task and M."""
    published, first = PUBLISHED.get(key, {}), ours(list(systems))
    with_oracle, gaps = "oracle" in systems, [name for name in ("orders", "one target more") if name in systems[first]]
    head = ["system", *(f"N = {n}" for n in systems[first]["per N"]), "mean", f"{first} minus it"]
    head += ["oracle minus it"] * with_oracle + ["published"] * bool(published) + gaps
    lines = [f"### {key}", "", f"{rests_on}.", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, found in systems.items():
        row = [name, *(f"{mean:.3f}" for mean in found["per N"].values())]
        row += [shown(found["mean"]), shown(found.get("ours minus it"))]
        row += [shown(found.get("oracle minus it"))] * with_oracle
        row += [f"{published[name]:.2f}" if name in published else ""] * bool(published)
        row += [f"{found[gap]:.3f}" for gap in gaps]
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]


def write_training(training: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Lines of the table of what was trained."""
    lines = ["### Training", "", "| recipe | architecture | parameters | CPU minutes | steps | validation |"]
    lines.append("|---" * 6 + "|")
    for recipe, nets in training.items():
        for architecture, found in nets.items():
            numbers = f"{found['minutes']:g} | {found['steps']:,} | {found['validation']:.3f}"
            lines.append(f"| {recipe} | {architecture} | {found['parameters']:,} | {numbers} |")
    return [*lines, ""]


def draw_figure(path: Path, tables: dict[str, dict[str, dict]]) -> None:
    """Log density per target against N: a panel for each table, a line for each system."""
    with matplotlib.style.context("pyro_arbuf.house"):
        rows = -(-len(tables) // 2)
        figure = Figure(figsize=(9, 3.2 * rows + 0.9), layout="constrained")
        axes, handles = figure.subplots(rows, 2, squeeze=False).flatten(), {}
        for axis, (title, table) in zip(axes, tables.items(), strict=False):
            for name, found in table["systems"].items():
                color, line, width = LINES[name]
                contexts, means = zip(*found["per N"].items(), strict=True)
                numbers = [int(n) for n in contexts]
                (handles[name],) = axis.plot(numbers, means, color=color, ls=line, lw=width, marker="o", ms=3)
            axis.set_xscale("log", base=2)
            axis.set_xticks(numbers, contexts)
            axis.set(title=title, xlabel="observations N", ylabel="nats per target")
        for axis in axes[len(tables) :]:
            axis.axis("off")
        shown_lines = {name: handles[name] for name in LINES if name in handles}
        figure.legend(shown_lines.values(), shown_lines.keys(), loc="outside lower center", ncols=4)
        write_atomically(path, lambda file: figure.savefig(file, format="png"))


def write_page(page: Path, results: Results, order: tuple[str, ...]) -> str:
    """Writes the numbers beside the page, the tables between its markers, and the figure.

    Args:
        page: Whatever else it says stays.
        results: All numbers.
        order: Of the tasks on the page.

    Returns:
        The tables.
    """
    tables = sorted(results["tables"].items(), key=lambda item: order.index(item[0].split(", M")[0]))
    results["tables"] = dict(tables)
    keep_results(page, results)
    lines = write_training(results["training"])
    for heading, table in results["tables"].items():
        task, _, number = heading.partition(", M = ")
        lines += write_table(Key(task, int(number)), table["systems"], table["rests on"])
    text = EXPLANATION + "\n".join(lines)
    write_section(page, "paper", text)
    draw_figure(page.with_suffix(".png"), results["tables"])
    return text

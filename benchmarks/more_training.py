"""What more training would buy: minutes against score of the shipped networks, from the record of their runs.

    python benchmarks/more_training.py                            # the table
    python benchmarks/more_training.py --update --plot models/more_training.png

A network's training.json holds the runs behind it, one after the other, each with its minutes of a CPU core and the
validation score that it reached. Where `quality.py` has measured the gap to the exact prediction, the gap after earlier
runs is that gap and what the validation score has gained since. Prints a table, then one JSON line; `--update` writes
the table into models/README.md.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import tyro
from marked import write_marked
from matplotlib.ticker import NullLocator, ScalarFormatter

from pyro_arbuf.checkpoint import models_folder, shipped_models
from pyro_arbuf.cli.models import CARD, measured_gap
from pyro_arbuf.cli.record import RECORD

LIST = Path(__file__).parent.parent / "models" / "README.md"
TICKS = (10, 20, 40, 80, 160, 320, 640, 1280)  # minutes


class Course(NamedTuple):
    """How a network's score rose with training.

    Attributes:
        name: Of the network.
        minutes: After each run whose score is known, of all runs so far.
        scores: Of the validation set then, nats per target.
        gap: To the exact prediction now, nats per target; `None` = not measured.
    """

    name: str
    minutes: list[float]
    scores: list[float]
    gap: float | None

    @property
    def gaps(self) -> list[float]:
        """The gap after each run, where it is measured now."""
        return [] if self.gap is None else [self.gap + self.scores[-1] - score for score in self.scores]

    @property
    def per_doubling(self) -> float | None:
        """What the last run gained, by doublings of the minutes; `None` where there was one run."""
        if len(self.scores) < 2:
            return None
        return (self.scores[-1] - self.scores[-2]) / math.log2(self.minutes[-1] / self.minutes[-2])


def read_course(folder: Path) -> Course:
    """The course of the network in a folder."""
    minutes, scores, total = [], [], 0.0
    for run in json.loads((folder / RECORD).read_text())["runs"]:
        total += run["minutes"]
        if run["validation"] is None:
            continue
        if minutes and not run["minutes"]:  # an average of the weights before and after the last run
            scores[-1] = run["validation"]
            continue
        minutes.append(round(total, 1))
        scores.append(run["validation"])
    gap = measured_gap(folder / CARD)
    return Course(folder.name, minutes, scores, float(gap.split()[0]) if gap else None)


def table(courses: list[Course]) -> str:
    """The table, in Markdown."""
    lines = ["| network | minutes | score | gap | gained per doubling of the minutes |", "|---|---|---|---|---|"]
    for course in courses:
        gained = "one run" if course.per_doubling is None else f"{course.per_doubling:.3f}"
        parts = (
            " → ".join(f"{value:.0f}" for value in course.minutes),
            " → ".join(f"{value:.3f}" for value in course.scores),
            " → ".join(f"{value:.3f}" for value in course.gaps),
        )
        lines.append(f"| `{course.name}` | {' | '.join(parts)} | {gained} |")
    return "\n".join(lines) + "\n"


def draw(courses: list[Course], path: Path) -> None:
    """Draws the gaps where they are measured, and what every network gained since its first run."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for course in courses:
        if course.gap is not None:
            left.plot(course.minutes, course.gaps, marker="o", label=course.name)
        elif len(course.minutes) > 1:
            gained = [score - course.scores[0] for score in course.scores]
            right.plot(course.minutes, gained, marker="o", label=course.name)
    left.set(title="gap to the exact prediction", ylabel="nats per target", ylim=(0, None))
    right.set(title="gained since the first run", ylabel="nats per target")
    for axes in (left, right):
        axes.set(xlabel="minutes of one CPU core", xscale="log", xticks=TICKS, xlim=(TICKS[0], TICKS[-1]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main(models: Path | None = None, update: bool = False, plot: Path | None = None) -> None:
    """Shows what more training would buy.

    Args:
        models: Folder of the networks; the shipped ones if not given.
        update: Write the table into models/README.md, between its markers.
        plot: Where to draw the figure.
    """
    folder = models or models_folder()
    names = shipped_models() if models is None else sorted(path.parent.name for path in folder.glob(f"*/{RECORD}"))
    courses = [read_course(folder / name) for name in names]
    text = table(courses)
    print(text)
    print(json.dumps({"benchmark": "more_training"} | {c.name: [c.minutes, c.scores, c.gaps] for c in courses}))
    if plot is not None:
        draw(courses, plot)
    if update:
        write_marked(LIST, "more_training", text)


if __name__ == "__main__":
    tyro.cli(main)

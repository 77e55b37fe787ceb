"""Five tasks of the sbibm benchmark at two budgets of simulations, scored by its protocol beside published figures.

    make sbibm                                          # its files of observations, once
    python benchmarks/sbi_table.py --folder runs/sbi    # everything; goes on where it was
    python benchmarks/sbi_table.py --folder runs/sbi --tasks two_moons --budgets 10000

For each task and budget `amortize` trains a network on a fixed set of simulations, with its default settings. C2ST as
sbibm scores it: 10,000 draws of the posterior against 10,000 of the reference, a classifier with two layers of ten
times as many units as parameters, five folds, the mean over ten observations; 0.5 = cannot be told apart. Networks,
draws and scores are kept in the folder. Scores also go into benchmarks/SBI.json, which keeps those of other cells, and
from there into the tables: of benchmarks/SBI.md, and a shorter one of README.md and docs/measured.md. Prints the table,
then one JSON line.
"""

import json
import time
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
import tyro
from kept import keep, read_kept
from marked import write_marked
from sbi import SEED, c2st, mean_se, posterior_draws, quiet
from sbi_tasks import NUM_OBSERVATIONS, TASKS, read_observation
from torch import Tensor
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf import ArBufferModel, amortize
from pyro_arbuf.checkpoint import CONFIG
from pyro_arbuf.files import write_atomically
from pyro_arbuf.random_state import seeded

PAGE = Path(__file__).parent / "SBI.md"
NUM_DRAWS = 10_000  # of the protocol
SHORT_PAGES = (PAGE.parents[1] / "README.md", PAGE.parents[1] / "docs" / "measured.md")
PUBLISHED = ("NPE, spline flows", "NPE-PFN", "NLE", "sequential NPE")
STATE = "state.safetensors"


class Cell(NamedTuple):
    """A task at a budget.

    Attributes:
        task: Its name.
        budget: Number of simulations.
        folder: Where its network, its draws and its scores are.
        num_draws: Of the posterior and of the reference that are compared.
    """

    task: str
    budget: int
    folder: Path
    num_draws: int = NUM_DRAWS

    @property
    def seconds(self) -> float:
        """CPU seconds of training so far."""
        path = self.folder / "seconds.json"
        return read_kept(path, 0.0)

    @property
    def scores(self) -> list[float]:
        """C2ST of the observations that are scored with so many draws."""
        return read_kept(self._scores, [])

    @property
    def _scores(self) -> Path:
        return self.folder / ("scores.json" if self.num_draws == NUM_DRAWS else f"scores-{self.num_draws}.json")

    def network(self, minutes: float) -> ArBufferModel:
        """The trained network; what is missing of its training is done first."""
        done = self.folder / "done"
        if not done.exists():
            started, resume = time.process_time(), (self.folder / STATE).exists()
            options = {"num_context": (0, 1), "num_simulations": self.budget, "minutes": minutes, "report": False}
            try:
                amortize(TASKS[self.task].program, folder=self.folder, resume=resume, **options)
            finally:
                keep(self.folder / "seconds.json", self.seconds + time.process_time() - started)
            done.touch()
        assert (self.folder / CONFIG).exists()
        return pyro_arbuf.load(self.folder)

    def score(self, net: ArBufferModel, files: Path) -> None:
        """Scores the observations that are not scored yet, and keeps draws and scores."""
        scores = self.scores
        for number in tqdm(range(len(scores) + 1, NUM_OBSERVATIONS + 1), desc=f"{self.task}, {self.budget}"):
            y, reference = read_observation(files, self.task, number)
            with seeded(SEED + number):
                some = torch.randperm(len(reference))[: self.num_draws]
                draws = self._draws(net, TASKS[self.task].coded(y), number, len(reference))
            scores.append(c2st(draws[some], reference[some]))
            keep(self._scores, scores)

    def _draws(self, net: ArBufferModel, y: Tensor, number: int, num_draws: int) -> Tensor:
        """Draws `(S, P)` of the posterior."""
        path = self.folder / f"draws_{number}.pt"
        if not path.exists():
            found = posterior_draws(net, torch.zeros(1, 1), y[None], num_draws)["theta"]
            write_atomically(path, lambda file: torch.save(found, file))
        return torch.load(path, weights_only=True)


Kept = dict[str, dict[str, dict]]  # by task and budget, the scores of observations and CPU seconds of training


def score_text(scores: list[float]) -> str:
    """The mean over observations and its standard error, with their number where some are missing."""
    if len(scores) < 2:
        return ""
    which = "" if len(scores) == NUM_OBSERVATIONS else f", {len(scores)} observations"
    return "{:.3f} ({:.3f})".format(*mean_se(scores)) + which


def table(kept: Kept) -> str:
    """The table, in Markdown: cells without scores are empty."""
    budgets = sorted({int(budget) for found in kept.values() for budget in found})
    heads = [f"{budget:,} simulations | CPU seconds" for budget in budgets]
    lines = [f"| task | {' | '.join(heads)} | wanted | {' | '.join(PUBLISHED)} |"]
    lines.append(f"|{'---|' * (2 * len(budgets) + 2 + len(PUBLISHED))}")
    for name in (name for name in TASKS if name in kept):
        found = []
        for budget in budgets:
            cell = kept[name].get(str(budget), {"scores": []})
            found += [score_text(cell["scores"]), f"{cell['seconds']:.0f}" if cell["scores"] else ""]
        task = TASKS[name]
        found += [f"{value:.2f}" for value in (task.aim, *task.published)]
        lines.append(f"| {name} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def short_table(kept: Kept) -> str:
    """The same beside the two estimators that are most used, in Markdown."""
    budgets = sorted({int(budget) for found in kept.values() for budget in found})
    heads = " | ".join(f"{budget:,} simulations" for budget in budgets)
    lines = [f"| C2ST on sbibm, 0.5 is perfect | {heads} | published at 100,000: NPE | NPE-PFN |"]
    lines.append(f"|{'---|' * (len(budgets) + 3)}")
    for name in (name for name in TASKS if name in kept):
        scores = [kept[name].get(str(budget), {"scores": []})["scores"] for budget in budgets]
        found = [score_text(each) for each in scores]
        found += [f"{value:.2f}" for value in TASKS[name].published[:2]]
        lines.append(f"| {name} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def write_pages(page: Path, short_pages: tuple[Path, ...], cell: Cell) -> str:
    """Adds the scores of a cell to those that stand beside a page, and writes all tables from all of them."""
    path = page.with_suffix(".json")
    kept: Kept = read_kept(path, {})
    kept.setdefault(cell.task, {})[str(cell.budget)] = {"scores": cell.scores, "seconds": cell.seconds}
    keep(path, kept)
    text = table(kept)
    page.write_text((page.read_text() if page.exists() else "").partition("| task |")[0] + text)
    for short in short_pages:
        write_marked(short, "sbi_table", short_table(kept))
    return text


def main(
    folder: Path = Path("runs/sbi"),
    files: Path = Path(".sbibm"),
    tasks: tuple[str, ...] = tuple(TASKS),
    budgets: tuple[int, ...] = (10_000, 100_000),
    minutes: tuple[float, ...] = (8.0, 30.0),
    num_draws: int = NUM_DRAWS,
    page: Path = PAGE,
    short_pages: tuple[Path, ...] = SHORT_PAGES,
    threads: int | None = None,
) -> None:
    """Scores `amortize` on tasks of the sbibm benchmark.

    Args:
        folder: Where networks, draws and scores are kept.
        files: Where the package sbibm is installed, of which only files are read.
        tasks: Which.
        budgets: Numbers of simulations.
        minutes: Of training, for each of the budgets.
        num_draws: Of the posterior and of the reference, at most 10,000.
        page: Where the table is written; the scores stand beside it.
        short_pages: Where a shorter one is written.
        threads: CPU threads.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    quiet()
    pyro.set_rng_seed(SEED)
    cells = [Cell(task, budget, folder / f"{task}-{budget}", num_draws) for budget in budgets for task in tasks]
    for cell in cells:
        read_observation(files, cell.task, 1)
    text = ""
    for cell, limit in zip(cells, [limit for limit in minutes for _ in tasks], strict=True):
        cell.folder.mkdir(parents=True, exist_ok=True)
        cell.score(cell.network(limit), files)
        text = write_pages(page, short_pages, cell)
    print(text)
    print(json.dumps({"benchmark": "sbi_table"} | {f"{c.task}, {c.budget}": c.scores for c in cells}))


if __name__ == "__main__":
    tyro.cli(main)

"""A buffer added to a set model that was trained without one: how much of exact autoregression it recovers.

    python benchmarks/add_buffer.py                              # 30 CPU minutes for each network: about 5 hours
    python benchmarks/add_buffer.py --kinds rank-8 --base DIR    # one kind, on a tnp-d network of gp-1d-noisy in DIR

A TNP-D of `gp-1d-noisy` is trained and frozen. A buffer is added to it by adapters of several ranks, by a gated read,
and by both, and each is trained on the same tasks for equal CPU time. All are scored on the same functions, M = 16
targets in 16 orders: the frozen network's independent predictions, the buffer with all K slots, and the exact
autoregression of the frozen network, which encodes anew after every target. Between the first and the last lies what
there is to gain. A network with a buffer from the start, trained for as long as both parts together, is beside them.

Networks, their training states and scores are kept in the folder: the same command goes on where it was stopped.
Writes a table and a figure into docs/how-to/add_buffer.md, between its markers; prints the table, then one JSON line.
"""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import torch
import tyro
from kept import keep, read_kept
from marked import write_marked
from matplotlib.figure import Figure
from paper_systems import SEED, System, log_prob, train, train_on
from quality import draw_functions, mean_se
from torch import Tensor
from tqdm import tqdm

from pyro_arbuf import ArBufferModel, add_buffer, load, random_orders
from pyro_arbuf.files import write_atomically
from pyro_arbuf.programs.sources import make_source
from pyro_arbuf.random_state import seeded

PRIOR = "gp-1d-noisy"
NUM_TARGETS = 16
TICKS = (2_000, 5_000, 10_000, 20_000, 50_000)  # weights, in the figure
PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "add_buffer.md"


class Kind(NamedTuple):
    """What is added, as `add_buffer` takes it."""

    rank: int | None
    gated_read: bool = False


KINDS = {
    "rank-2": Kind(2),
    "rank-4": Kind(4),
    "rank-8": Kind(8),
    "rank-16": Kind(16),
    "gate": Kind(None, gated_read=True),
    "rank-4-gate": Kind(4, gated_read=True),
    "rank-8-gate": Kind(8, gated_read=True),
}
INDEPENDENT, EXACT, UNTRAINED, JOINT = "independent", "exact AR", "rank-8, not trained", "buffer from the start"
READ = {INDEPENDENT: System("tnp-d", independent=True), EXACT: System("tnp-d")}  # others are read by all their slots


class Trained(NamedTuple):
    """A network and what it cost.

    Attributes:
        net: The network.
        minutes: CPU minutes, of what was added to a frozen one those after.
        count: Weights that were trained in them.
    """

    net: ArBufferModel
    minutes: float
    count: int

    @property
    def share(self) -> float:
        """Of all weights, those that were trained."""
        return self.count / sum(weight.numel() for weight in self.net.parameters())


def begin(base: ArBufferModel, kind: Kind) -> ArBufferModel:
    """The network with what is added, not trained."""
    with seeded(SEED):
        return add_buffer(base, **kind._asdict())


def train_added(base: ArBufferModel, kind: Kind, minutes: float, learning_rate: float, folder: Path) -> Trained:
    """What is added to a frozen network, trained."""
    net = begin(base, kind)
    count = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    source = dataclasses.replace(make_source(PRIOR), config=net.config)
    found, state = train_on(source, minutes, folder, net, learning_rate)
    return Trained(found, state.minutes, count)


def kept_scores(folder: Path, nets: dict[str, Trained], num_context: int, size: int, num_orders: int) -> Tensor:
    """Scores `(systems, functions)` at an N, nats per target; those that its file holds are not computed again."""
    path = folder / f"N{num_context}-{size}-functions-{num_orders}-orders.json"
    scores: dict[str, list[float]] = read_kept(path, {})
    functions, orders = draw_functions(PRIOR, size, num_context, NUM_TARGETS), random_orders(NUM_TARGETS, num_orders)
    for name, each in tqdm(nets.items(), desc=f"N = {num_context}", leave=False):
        if name not in scores:
            system = READ.get(name, System(each.net.config.architecture))
            scores[name] = log_prob(each.net, system, functions, orders).tolist()
            keep(path, scores)
    return torch.tensor([scores[name] for name in nets], dtype=torch.float64)


def recovered(scores: Tensor, names: list[str]) -> dict[str, tuple[float, float]]:
    """By system, the share of the gain from independent to exact, means over functions `(systems, all of them)`.

    Its standard error is that of a ratio of means of the same functions.
    """
    gain = scores - scores[names.index(INDEPENDENT)]
    whole = gain[names.index(EXACT)]
    found = {}
    for name, own in zip(names, gain, strict=True):
        share = (own.mean() / whole.mean()).item()
        found[name] = (share, mean_se(own - share * whole)[1] / whole.mean().item())
    return found


def write_table(nets: dict[str, Trained], scores: dict[int, Tensor], shares: dict[str, tuple[float, float]]) -> str:
    """The table: what was trained, densities at every N, and the share of the gain."""
    head = [
        "system",
        "trained weights",
        "of all",
        "CPU minutes",
        *(f"N = {n}" for n in scores),
        "mean",
        "gain recovered",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for i, (name, each) in enumerate(nets.items()):
        cost = [f"{each.count:,}", f"{each.share:.1%}", f"{each.minutes:.0f}"] if each.count else ["", "", ""]
        means = [value[i].mean().item() for value in scores.values()]
        share = "{:.0%} ({:.1%})".format(*shares[name])
        row = [name, *cost, *(f"{mean:.3f}" for mean in (*means, sum(means) / len(means))), share]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def draw_figure(path: Path, nets: dict[str, Trained], shares: dict[str, tuple[float, float]]) -> None:
    """Share of the gain against the number of trained weights."""
    with matplotlib.style.context("pyro_arbuf.house"):
        figure = Figure(figsize=(6, 3.6))
        axis = figure.subplots()
        for name in (name for name in nets if name in KINDS):
            share, error = shares[name]
            axis.errorbar(nets[name].count, share, 2 * error, marker="o", capsize=3, label=name)
        axis.axhline(1.0, color="black", ls="--", lw=1)
        axis.axhline(shares[UNTRAINED][0], color="gray", ls=":", lw=1)
        axis.set(xlabel="trained weights", ylabel="share of the gain recovered", xscale="log")
        axis.set_xticks(TICKS, [f"{tick:,}" for tick in TICKS])
        axis.minorticks_off()
        axis.legend(ncols=2)
        write_atomically(path, lambda file: figure.savefig(file, format="png"))


def main(
    kinds: tuple[str, ...] = tuple(KINDS),
    folder: Path = Path("runs/add_buffer"),
    base: Path | None = None,
    base_minutes: float = 30.0,
    minutes: float = 30.0,
    learning_rate: float = 6e-3,
    joint: bool = True,
    num_functions: int = 128,
    num_orders: int = 16,
    num_context: tuple[int, ...] = (8, 16, 32, 64, 128),
    page: Path = PAGE,
    threads: int = 1,
    small: bool = False,
) -> None:
    """Trains and scores what is added to a set model.

    Args:
        kinds: Which of rank-2, rank-4, rank-8, rank-16, gate, rank-4-gate and rank-8-gate.
        folder: Where networks, training states and scores are kept, in a folder for each budget.
        base: Folder of a trained tnp-d network of gp-1d-noisy; trained here if not given.
        base_minutes: CPU minutes of the set model.
        minutes: CPU minutes of what is added to it.
        learning_rate: Peak learning rate of what is added.
        joint: Whether a network with a buffer from the start is trained too, for the minutes of both.
        num_functions: Functions of each N.
        num_orders: Orders averaged.
        num_context: The Ns.
        page: Page that the table is written into; the figure stands beside it.
        threads: CPU threads.
        small: Tiny networks, to try the command.
    """
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*outside the trained range")  # on purpose
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise SystemExit(f"--kinds must be some of {', '.join(KINDS)}; got {', '.join(unknown)}")
    where = folder / (f"{base_minutes:g}-minutes" if base is None else f"of-{base.resolve().name}")
    if base is None:
        base = where / "base"
        train(PRIOR, "tnp-d", base_minutes, base, None, small)
    frozen = load(base)
    nets = {INDEPENDENT: Trained(frozen, 0.0, 0), EXACT: Trained(frozen, 0.0, 0)}
    nets[UNTRAINED] = Trained(begin(frozen, KINDS["rank-8"]).requires_grad_(False), 0.0, 0)
    where = where / f"{minutes:g}-minutes-at-{learning_rate:g}"
    for name in tqdm(kinds, desc="networks", leave=False):
        nets[name] = train_added(frozen, KINDS[name], minutes, learning_rate, where / name)
    if joint:
        net, state = train(PRIOR, "buffer", base_minutes + minutes, where / "joint", None, small)
        nets[JOINT] = Trained(net, state.minutes, sum(weight.numel() for weight in net.parameters()))
    scores = {n: kept_scores(where, nets, n, num_functions, num_orders) for n in num_context}
    shares = recovered(torch.cat(list(scores.values()), 1), list(nets))
    table = write_table(nets, scores, shares)
    print(table)
    if page.exists():
        draw_figure(page.with_suffix(".png"), nets, shares)
        write_marked(
            page,
            "add_buffer",
            f"\n{table}\n![Share of the gain recovered, against the number of trained weights]({page.stem}.png)\n\n",
        )
    summary = {
        name: {"trained": each.count, "share": round(each.share, 4), "recovered": [round(v, 4) for v in shares[name]]}
        | {"per N": {n: round(value[i].mean().item(), 4) for n, value in scores.items()}}
        for i, (name, each) in enumerate(nets.items())
    }
    print(json.dumps({"benchmark": "add_buffer", "minutes": minutes, "systems": summary}))


if __name__ == "__main__":
    tyro.cli(main)

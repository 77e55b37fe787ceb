"""What the parts of the method are worth: orders, buffer size, the order of the targets, slots as targets, the head.

    python benchmarks/paper_ablations.py gp-1d
    python benchmarks/paper_ablations.py sawtooth --minutes 60

The network with a buffer that paper.py trained, in the same folder, is read in other ways: with 1 to 128 orders
averaged, in blocks of 1 to 16 targets, and in the order of x. Two further networks are trained for the same CPU
minutes: one whose buffer slots are no targets, with as many fresh ones instead, and one with a Gaussian head. All are
scored on the same functions as in paper.py, M = 16; differences are paired. What was trained is kept in the folder: the
same command goes on where it was stopped. Writes the tables into benchmarks/PAPER.md, and their numbers into
PAPER.json. Prints the table, then one JSON line.
"""

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from paper_page import keep_results, over_contexts, read_results, shown, write_section
from paper_systems import SMALL, SYSTEMS, System, log_prob, train, train_on
from quality import Functions, draw_functions
from torch import Tensor

from pyro_arbuf import ArBufferJoint, ArBufferModel, random_orders
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.programs.sources import make_source
from pyro_arbuf.training.sources import PriorSource

NUM_TARGETS = 16
ORDERS, SIZES = (1, 2, 4, 8, 16, 32, 64, 128), (1, 2, 4, 8, 16)
DEFAULT_ORDERS = 16
OURS = SYSTEMS["buffer K=16"]
EXPLANATION = f"""\
What parts of the method are worth, in nats per target, standard errors in brackets. Where nothing else is said,
{DEFAULT_ORDERS} orders are averaged and the buffer holds 16 targets. The last two rows are networks trained for as
long: one whose buffer slots are no targets in training, and one with a Gaussian head.

"""


@dataclasses.dataclass(frozen=True)
class FreshTargets:
    """The tasks of a prior, of whose targets none is in the buffer."""

    source: PriorSource

    @property
    def config(self) -> ModelConfig:
        """That of the source."""
        return self.source.config

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the source, and that slots are no targets."""
        return self.source.settings | {"slots": "no targets"}

    def batch(self, step: int, process: int = 0) -> Batch:
        """The batch of the source without its last targets, which are the slots."""
        batch = self.source.batch(step, process)
        fresh = slice(self.source.num_targets)
        return batch._replace(
            x_target=batch.x_target[:, fresh], y_target=batch.y_target[:, fresh], prefix_len=batch.prefix_len[fresh]
        )

    def validation(self) -> list[Batch]:
        """Chains, as of any other source."""
        return self.source.validation()


@torch.no_grad()
def by_order(net: ArBufferModel, functions: Functions, num_orders: int) -> Tensor:
    """Joint log density in each order, `(B, R)`, nats per target."""
    x_context, y_context, x, y = functions
    context = net.condition(x_context, y_context.squeeze(-1))
    joint = ArBufferJoint(context, x, random_orders(NUM_TARGETS, num_orders))
    return joint.order_spread(y.squeeze(-1)).log_prob_orders.double() / NUM_TARGETS


def average(densities: Tensor) -> Tensor:
    """Of densities in each order, `(B, R)` nats per target, those of their mixture, `(B,)`."""
    mixed = torch.logsumexp(NUM_TARGETS * densities, 1) - math.log(densities.shape[1])
    return mixed / NUM_TARGETS


def sorted_by_input(functions: Functions) -> Functions:
    """The same functions, targets in the order of x."""
    x_context, y_context, x, y = functions
    order = x.argsort(1)
    return x_context, y_context, x.gather(1, order), y.gather(1, order)


def read_in_other_ways(net: ArBufferModel, functions: Functions) -> dict[str, Tensor]:
    """Joint log densities `(B,)` of one network, nats per target."""
    densities = by_order(net, functions, ORDERS[-1])
    found = {f"orders: {count}": average(densities[:, :count]) for count in ORDERS}
    orders = random_orders(NUM_TARGETS, DEFAULT_ORDERS)
    for size in SIZES:
        found[f"buffer size: {size}"] = log_prob(net, System("buffer", size), functions, orders)
    as_given = torch.arange(NUM_TARGETS)[None]
    found["one order: of x"] = log_prob(net, OURS, sorted_by_input(functions), as_given)
    found["one order: shuffled"] = densities[:, 0]
    return found


def train_variants(prior: str, minutes: float, folder: Path, small: bool) -> dict[str, ArBufferModel]:
    """The networks that differ in one part of their training."""
    source = make_source(prior, num_targets=48 + NUM_TARGETS)
    assert isinstance(source, PriorSource)
    if small:
        source = dataclasses.replace(source, config=dataclasses.replace(source.config, **SMALL))
    gaussian = dataclasses.replace(source.config, head="gaussian")
    sources = {
        "slots are no targets": FreshTargets(source),
        "Gaussian head": dataclasses.replace(source, config=gaussian, num_targets=48),
    }
    return {
        label: train_on(each, minutes, folder / f"{prior}-{label.replace(' ', '-')}")[0]
        for label, each in sources.items()
    }


def write_tables(ablations: dict[str, dict]) -> list[str]:
    """Lines of the tables, one for each prior."""
    lines = []
    for prior, found in ablations.items():
        lines += [f"### Parts of the method: {prior}", "", f"{found['rests on']}.", ""]
        lines += ["| what | density | minus the default |", "|---|---|---|"]
        lines += [f"| {label} | {shown(mean)} | {shown(gap)} |" for label, (mean, gap) in found["variants"].items()]
        lines.append("")
    return lines


def main(
    prior: Annotated[Literal["gp-1d", "sawtooth"], tyro.conf.Positional],
    folder: Path = Path("runs/paper"),
    minutes: float = 10.0,
    num_functions: int = 64,
    num_context: tuple[int, ...] = (8, 16, 32, 64, 128),
    page: Path = Path(__file__).parent / "PAPER.md",
    threads: int = 1,
    small: bool = False,
) -> None:
    """Measures what parts of the method are worth.

    Args:
        prior: What the networks are trained on.
        folder: Where networks and training states are kept, that of paper.py.
        minutes: CPU minutes of each network.
        num_functions: Functions of each N.
        num_context: The Ns.
        page: Page that the tables are written into; the numbers stand beside it.
        threads: CPU threads.
        small: Tiny networks, to try the command.
    """
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*outside the trained range")  # on purpose
    warnings.filterwarnings("ignore", message="the joint log density rests on few")
    folder = folder / f"{minutes:g}-minutes{'-small' * small}"
    net = train(prior, "buffer", minutes, folder / f"{prior}-buffer", None, small)[0]
    variants = train_variants(prior, minutes, folder, small)
    orders, default = random_orders(NUM_TARGETS, DEFAULT_ORDERS), f"orders: {DEFAULT_ORDERS}"
    cells: list[dict[str, Tensor]] = []
    for n in num_context:
        functions = draw_functions(prior, num_functions, n, NUM_TARGETS)
        trained = {label: log_prob(each, OURS, functions, orders) for label, each in variants.items()}
        cells.append(read_in_other_ways(net, functions) | trained)
    summary = {}
    for label in cells[0]:
        mean = over_contexts([cell[label] for cell in cells])
        difference = over_contexts([cell[label] - cell[default] for cell in cells])
        summary[label] = [mean, difference]
    results = read_results(page)
    rests_on = f"M = {NUM_TARGETS}, {minutes:g} CPU minutes, {num_functions} functions per N"
    results["ablations"][prior] = {"rests on": rests_on, "variants": summary}
    keep_results(page, results)
    write_section(page, "paper_ablations", EXPLANATION + "\n".join(write_tables(results["ablations"])))
    print("\n".join(write_tables({prior: results["ablations"][prior]})))
    print(json.dumps({"benchmark": "paper ablations", "prior": prior, "minutes": minutes, "variants": summary}))


if __name__ == "__main__":
    tyro.cli(main)

"""Diagnostics of a program's network that need no exact posterior: on average over the prior, and at one data set.

    python benchmarks/diagnostics.py ddm psychometric              # 500 data sets each: minutes
    python benchmarks/diagnostics.py ddm --update-card             # and written into the card

Over the prior: ranks of every latent number and of their joint density (`calibrate`), and the coverage of regions
around random points (`tarp`). At one data set, drawn from the program: local C2ST, calibration around it
(`posterior_sbc`), and whether it is where the simulations are (`check_observation`). Small p-values speak against the
network: of ten right ones, one is below 0.1. The last row has to fail, as its posterior is made a third narrower.

Prints a table, then one JSON line.
"""

import json
import warnings

import torch
import tyro
from marked import write_marked
from torch.distributions import AffineTransform, TransformedDistribution
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf import ArBufferModel, ArBufferPosterior, Context
from pyro_arbuf.checkpoint import find_model
from pyro_arbuf.programs.known_truth import Law
from pyro_arbuf.programs.sources import find_simulator
from pyro_arbuf.random_state import seeded

SEED = 50_000
SIMULATIONS, NULL = 2_000, 100  # of local C2ST
NARROWER = 2 / 3

Row = tuple[str, str, str]  # what was checked, its p-value, and what else it says


def narrowed(context: Context) -> Law:
    """The network's posterior, drawn towards its medians."""
    own = ArBufferPosterior(context)
    center = own.sample((200,)).median(0).values
    return TransformedDistribution(own, [AffineTransform(center * (1 - NARROWER), NARROWER, event_dim=1)])


def over_the_prior(net: ArBufferModel, num_datasets: int) -> list[Row]:
    """Rows of what is checked on average over the prior."""
    checked = pyro_arbuf.calibrate(net, num_datasets, seed=SEED)
    covered = checked.coverage[checked.levels.index(0.9)].tolist()
    rows = [
        (f"ranks of {name}", f"{p:.3f}", f"90 % interval holds {cover:.0%}; sd {width:.2f} of the prior's")
        for name, p, cover, width in zip(
            checked.names, checked.p_values.tolist(), covered, checked.contraction.tolist(), strict=True
        )
    ]
    gain = f"{checked.gain.mean().item():.2f} nats above the prior"
    rows.append(("ranks of the joint density", f"{checked.density_p_value:.3f}", gain))
    regions = pyro_arbuf.tarp(net, num_datasets, seed=SEED)
    held = ", ".join(f"{share:.0%}" for share in regions.coverage[regions.levels.index(0.9)].tolist())
    rows.append(("regions around five points", f"{regions.p_value:.3f}", f"90 % regions hold {held}"))
    return rows


def at_one_data_set(net: ArBufferModel, num_datasets: int, num_trials: int) -> list[Row]:
    """Rows of what is checked at a data set of the program, the same one every time."""
    simulator = find_simulator(net, None)
    with seeded(SEED):
        _, x, y = simulator.draw(1, num_trials)
    x, y = x[0], net.in_units().config.squeeze_outcome(y[0])
    local = pyro_arbuf.local_c2st(net, x, y, SIMULATIONS, num_null=NULL, seed=SEED)
    rows = [("local C2ST", f"{local.p_value:.3f}", f"{SIMULATIONS:,} simulations")]
    if not net.config.dependent and net.config.num_context[1] >= 2 * num_trials:
        around = pyro_arbuf.posterior_sbc(net, x, y, num_datasets, seed=SEED)
        rows.append(("calibration around the data", f"{around.p_value:.3f}", f"{num_datasets} sets of new trials"))
    elif net.config.sequential:
        rows.append(("calibration around the data", "", "not of a series, whose trials are not independent"))
    found = pyro_arbuf.check_observation(net, x, y, seed=SEED)
    rows.append(("prior-data conflict", f"{found.p_value:.3f}", f"log evidence {found.log_evidence:.1f}"))
    return rows


def bench(net: ArBufferModel, num_datasets: int, num_trials: int) -> list[Row]:
    """All rows of a network."""
    narrow = pyro_arbuf.calibrate(net, num_datasets, posterior=narrowed, seed=SEED)
    fails = ("ranks, all, of a posterior made a third narrower", f"{narrow.p_value:.3f}", "must be small")
    return [*over_the_prior(net, num_datasets), *at_one_data_set(net, num_datasets, num_trials), fails]


def write_table(name: str, rows: list[Row], num_datasets: int, num_trials: int) -> str:
    """A table in Markdown, with lines on what it is of."""
    lines = [
        f"Without an exact posterior, by `python benchmarks/diagnostics.py {name}`: ranks and regions over",
        f"{num_datasets} data sets of the prior, the others at one of {num_trials} trials that the program has drawn.",
        "",
        "| diagnostic | p-value | |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main(
    models: tyro.conf.Positional[tuple[str, ...]] = ("ddm",),
    num_datasets: int = 500,
    num_trials: int = 100,
    update_card: bool = False,
    threads: int = 1,
) -> None:
    """Checks networks of programs.

    Args:
        models: Shipped models, or folders.
        num_datasets: Data sets over the prior, and around the one.
        num_trials: Trials of the one.
        update_card: Write each table into the card of its network, between its markers.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*outside the trained range")  # data are drawn from the prior
    found: dict[str, list[Row]] = {}
    for name in tqdm(models, desc="networks", leave=False):
        net = pyro_arbuf.load(name)
        found[name] = bench(net, num_datasets, num_trials)
        table = write_table(name, found[name], num_datasets, num_trials)
        print(f"{name}\n\n{table}")
        if update_card:
            write_marked(find_model(name) / "README.md", "diagnostics", table)
    print(json.dumps({"benchmark": "diagnostics", "datasets": num_datasets, "networks": found}))


if __name__ == "__main__":
    tyro.cli(main)

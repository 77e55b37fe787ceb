"""The paper's figure of speed: a training step, joint draws and joint densities of every system, and memory.

    python benchmarks/paper_speed.py                 # steps, and a small grid
    python benchmarks/paper_speed.py --full          # N in 32..1024, B in 1..256
    python benchmarks/paper_speed.py --steps-only

Networks have random weights and the sizes of `gp-1d`; speed does not depend on weights. A training step has M = 256
targets of 64 functions, at N = 16 and 128 observations: of a network with a buffer K = 16 of the targets are its slots;
of TNP-A every target stands twice. Draws and densities are of M = 16 targets for B draws that share a context of N
pairs. TNP-A is timed as it was published, context and pairs encoded anew for every target, and with kept keys and
values, which gives the same law. Seconds are those that the processor worked, medians of several runs; the systems take
turns. Writes the tables into benchmarks/PAPER.md, a figure into PAPER_speed.png and the numbers into PAPER.json. Prints
the tables, then one JSON line.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.style
import torch
import tyro
from matplotlib.figure import Figure
from paper_page import LINES, keep_results, read_results, write_section
from paper_systems import SYSTEMS
from speed import added_memory, exact_ar
from torch import Tensor

from pyro_arbuf import ArBufferModel
from pyro_arbuf.baselines import make_model, matched_config
from pyro_arbuf.files import write_atomically
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.cache import BufferCache
from pyro_arbuf.network.parts import ArchitectureName
from pyro_arbuf.priors import gp_1d
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.training.loop import MAX_GRADIENT_NORM, make_optimizers
from pyro_arbuf.training.sources import curriculum, split_points

STEP_TARGETS, STEP_CONTEXTS, STEP_SLOTS, STEP_FUNCTIONS = 256, (16, 128), 16, 64
NUM_TARGETS = 16
ARCHITECTURES = tuple(dict.fromkeys(system.architecture for system in SYSTEMS.values()))
TIMED = ("buffer K=16", "TNP-D-AR", "TNP-ND", "TNP-A", "decoder", "LBANP buffer K=16")
RE_ENCODED = "TNP-A, published"
GRID = tuple((n, b) for b in (16, 64) for n in (32, 128, 512))
FULL_GRID = tuple((n, b) for b in (1, 16, 64, 256) for n in (32, 64, 128, 256, 512, 1024))
EXPLANATION = f"""\
Seconds that one core of a processor worked, medians of several runs in which the systems take turns. A training
step has {STEP_TARGETS} targets of {STEP_FUNCTIONS} functions. {STEP_SLOTS} of them are the slots of a network with a
buffer, and TNP-A has every target twice. Draws and densities are of M = {NUM_TARGETS} targets, for B draws that share
a context of N pairs. TNP-A is timed as it was published, with everything encoded anew for each target, and with kept
keys and values.

![CPU seconds and memory against the number of observations, for every system](PAPER_speed.png)

"""


def random_net(architecture: ArchitectureName) -> ArBufferModel:
    """A network of the sizes of `gp-1d`."""
    torch.manual_seed(0)
    config = dataclasses.replace(RECIPES["gp-1d"].config, buffer_size=STEP_SLOTS)
    return make_model(matched_config(config, architecture))


def median_seconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median of the CPU seconds of each function, the functions taking turns, after one run that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if turn:
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def step_batch(architecture: ArchitectureName, num_context: int) -> Batch:
    """A batch of `STEP_TARGETS` targets; where chains are trained, all of them are in the buffer."""
    generator = torch.Generator().manual_seed(0)
    chains = architecture in ("tnp-a", "tnp-nd")
    slots = STEP_TARGETS if chains else STEP_SLOTS
    sizes = (num_context, slots, 1 if chains else STEP_TARGETS - slots)
    x, y = gp_1d(STEP_FUNCTIONS, sum(sizes), generator)
    return curriculum(*split_points(x, y, sizes), generator)


def time_steps(num_context: int, repeats: int) -> dict[str, float]:
    """CPU seconds of a training step of every architecture."""

    def step(net: ArBufferModel, optimizers: list[torch.optim.Optimizer], batch: Batch) -> None:
        net(batch).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), MAX_GRADIENT_NORM)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    functions = {}
    for architecture in ARCHITECTURES:
        net = random_net(architecture)
        functions[architecture] = partial(step, net, make_optimizers(net), step_batch(architecture, num_context))
    return median_seconds(functions, repeats)


@torch.no_grad()
def re_encoded_draws(net: ArBufferModel, x_context: Tensor, y_context: Tensor, x: Tensor, num_draws: int) -> Tensor:
    """Joint draws `(B, M)` of TNP-A as published: context and pairs are encoded anew for every target.

    Args:
        net: The network, of scalar outcomes.
        x_context: `(N, 1)`.
        y_context: `(N,)`.
        x: `(M, 1)` targets.
        num_draws: Draws B.
    """
    xs, ys = x_context.expand(num_draws, -1, -1), y_context[:, None].expand(num_draws, -1, -1)
    targets = x.expand(num_draws, 1, -1, -1)
    drawn = x.new_zeros(num_draws, 1, 0, 1)
    for k in range(len(x)):
        cache = net.encode(xs, ys)
        before, target = (net.embed_targets(cache, part) for part in (targets[:, :, :k], targets[:, :, k : k + 1]))
        pairs = (before, drawn) if k else None
        predictive, _ = net.predict(cache, BufferCache(), pairs, target)
        drawn = torch.cat([drawn, predictive.sample()], 2)
    return drawn.flatten(1)


def draws_and_densities(
    name: str, num_context: int, num_draws: int
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """What draws a system's joint and what scores it, contexts encoded anew in each call."""
    system = SYSTEMS["TNP-A"] if name == RE_ENCODED else SYSTEMS[name]
    net = random_net(system.architecture).eval().requires_grad_(False)
    x, y = (part[0] for part in gp_1d(1, num_context + NUM_TARGETS, torch.Generator().manual_seed(num_context)))
    (x_context, x_new), (y_context, y_new) = (part.split((num_context, NUM_TARGETS)) for part in (x, y[:, 0]))
    values = y_new + 0.1 * torch.randn(num_draws, NUM_TARGETS)
    orders = torch.arange(NUM_TARGETS)[None]

    def joint() -> object:
        return system.joint(net.condition(x_context, y_context), x_new, orders)

    if name == RE_ENCODED:
        drawn = partial(re_encoded_draws, net, x_context, y_context, x_new, num_draws)
        return [drawn, lambda: joint().log_prob(values)]
    if name == "TNP-D-AR":  # batched over all draws: the quicker way
        own = (net, x_context[None], y_context[None, :, None], x_new)
        return [partial(exact_ar, *own, None, num_draws), partial(exact_ar, *own, values, num_draws)]
    return [lambda: joint().sample((num_draws,)), lambda: joint().log_prob(values)]


def measure_memory(name: str, num_context: int, num_draws: int) -> float:
    """Peak memory that drawing adds, MiB, in a fresh process."""
    command = [sys.executable, __file__, "--memory-probe", name, str(num_context), str(num_draws)]
    return round(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout), 1)


def probe_memory(name: str, num_context: int, num_draws: int) -> float:
    """`measure_memory` in this process."""
    draws_and_densities(name, 8, 1)[0]()  # loads the kernels' libraries
    return added_memory(draws_and_densities(name, num_context, num_draws)[0])


def write_steps(num_context: int, seconds: dict[str, float]) -> list[str]:
    """Lines on seconds of training steps, and how many steps of a network with a buffer take as long."""
    lines = [f"### A training step, N = {num_context}", ""]
    lines += ["| architecture | CPU seconds | steps of a network with a buffer |", "|---|---|---|"]
    lines += [f"| {name} | {each:.3f} | {each / seconds['buffer']:.2f} |" for name, each in seconds.items()]
    return [*lines, ""]


def time_cell(num_context: int, num_draws: int, repeats: int) -> dict[str, dict[str, float]]:
    """CPU seconds and memory of every system."""
    names = (*TIMED, RE_ENCODED)
    both = {name: draws_and_densities(name, num_context, num_draws) for name in names}
    draws = median_seconds({name: functions[0] for name, functions in both.items()}, repeats)
    densities = median_seconds({name: functions[1] for name, functions in both.items()}, repeats)
    memory = {name: measure_memory(name, num_context, num_draws) for name in names}
    return {"draws": draws, "densities": densities, "memory MiB": memory}


def write_cell(heading: str, found: dict[str, dict[str, float]]) -> list[str]:
    """Lines on CPU milliseconds and MiB of every system."""
    lines = [f"### Draws and densities, {heading}", ""]
    lines += ["| system | draws, CPU ms | density, CPU ms | memory of drawing, MiB |", "|---|---|---|---|"]
    for name, seconds in found["draws"].items():
        numbers = f"{1e3 * seconds:.1f} | {1e3 * found['densities'][name]:.1f} | {found['memory MiB'][name]:.0f}"
        lines.append(f"| {name} | {numbers} |")
    return [*lines, ""]


def draw_figure(path: Path, cells: dict[tuple[int, int], dict[str, dict[str, float]]]) -> None:
    """CPU seconds and memory, at least 1 MiB, against N: a row for each number of draws B, a line for each system."""
    sizes = sorted({num_draws for _, num_draws in cells})
    with matplotlib.style.context("pyro_arbuf.house"):
        figure = Figure(figsize=(9, 2.8 * len(sizes) + 0.9), layout="constrained")
        axes = figure.subplots(len(sizes), 3, squeeze=False)
        for row, num_draws in zip(axes, sizes, strict=True):
            contexts = [n for n, b in cells if b == num_draws]
            for axis, (what, found) in zip(row, cells[contexts[0], num_draws].items(), strict=True):
                for name in found:
                    color, line, width = LINES.get(name, ("C3", "--", 1.0))
                    values = [max(cells[n, num_draws][what][name], 1.0 if "MiB" in what else 0.0) for n in contexts]
                    axis.plot(contexts, values, label=name, color=color, ls=line, lw=width, marker="o", ms=3)
                axis.set(xscale="log", yscale="log", title=f"{what}, B = {num_draws}", xlabel="observations N")
                axis.set_ylabel("MiB" if "MiB" in what else "CPU seconds")
                axis.set_xticks(contexts, [str(n) for n in contexts], minor=False)
                axis.minorticks_off()
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        write_atomically(path, lambda file: figure.savefig(file, format="png"))


def main(
    steps_only: bool = False,
    full: bool = False,
    repeats: int = 3,
    page: Path = Path(__file__).parent / "PAPER.md",
    threads: int = 1,
    memory_probe: tuple[str, int, int] | None = None,
) -> None:
    """Measures speed and memory of all systems.

    Args:
        steps_only: Only training steps.
        full: The whole grid.
        repeats: Runs of each function that count.
        page: Page that the tables are written into; figure and numbers stand beside it.
        threads: CPU threads.
        memory_probe: Only print the memory of one system, for N and B, in this process.
    """
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*outside the trained range")  # on purpose
    if memory_probe is not None:
        print(json.dumps(probe_memory(*memory_probe)))
        return
    result, lines = {}, []
    for num_context in STEP_CONTEXTS:
        steps = result[f"training step, N = {num_context}"] = time_steps(num_context, repeats)
        lines += write_steps(num_context, steps)
    cells = {cell: time_cell(*cell, repeats) for cell in (() if steps_only else FULL_GRID if full else GRID)}
    for (num_context, num_draws), found in cells.items():
        heading = f"N = {num_context}, B = {num_draws}"
        result[heading] = found
        lines += write_cell(heading, found)
    print("\n".join(lines))
    if cells:
        results = read_results(page)
        results["speed"] = result
        keep_results(page, results)
        write_section(page, "paper_speed", EXPLANATION + "\n".join(lines))
        draw_figure(page.with_name(f"{page.stem}_speed.png"), cells)
    print(json.dumps({"benchmark": "paper speed"} | result))


if __name__ == "__main__":
    tyro.cli(main)

"""A latent bottleneck against full attention where contexts have thousands of rows.

    python benchmarks/large_contexts.py                                     # speed and memory, of random weights
    python benchmarks/large_contexts.py --plot docs/how-to/thousands.png    # and their figure
    python benchmarks/large_contexts.py --minutes 60 --folder runs/large    # density: trains both for equal CPU minutes

M = K = 16 targets, 64 draws that share a context; networks of the sizes of `gp-1d`, with as many parameters. Seconds
are those that the processor worked, conditioning apart from drawing and scoring; memory is what a fresh process adds
for all three. Where it trains, both networks see the same functions with up to 8,192 observed points, which a Gaussian
process by random features draws quickly, and densities are paired. Prints tables, then one JSON line.
"""

import dataclasses
import json
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.style
import torch
import tyro
from matplotlib.figure import Figure
from paper_speed import median_seconds
from paper_systems import SYSTEMS, log_prob, train_on
from quality import mean_se
from speed import added_memory
from torch import Tensor

from pyro_arbuf import ArBufferJoint, ArBufferModel, Context, random_orders
from pyro_arbuf.baselines import make_model, matched_config
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.parts import ArchitectureName
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.training.sources import PriorSource, split_points

NUM_TARGETS, NUM_DRAWS, LARGEST = 16, 64, 8192
NAMES: dict[ArchitectureName, str] = {"buffer": "full attention", "lbanp-buffer": "latent bottleneck"}
SCORED = {"buffer": SYSTEMS["buffer K=16"], "lbanp-buffer": SYSTEMS["LBANP buffer K=16"]}
FEATURES, NOISE_SD = 128, 0.1
BATCH_SIZE, NUM_ORDERS, SEED = 8, 4, 40_000


def config_of(architecture: ArchitectureName) -> ModelConfig:
    """Sizes of `gp-1d`, as many parameters for each architecture."""
    config = dataclasses.replace(RECIPES["gp-1d"].config, prior="", num_context=(0, LARGEST))
    return matched_config(config, architecture)


def draw_waves(batch_size: int, num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Functions with an RBF kernel of lengthscale U[0.1, 1], in random features, with noise; x uniform on [-2, 2]."""
    x = 4 * torch.rand(batch_size, num_points, 1, generator=generator) - 2
    lengthscale = 0.1 + 0.9 * torch.rand(batch_size, 1, 1, generator=generator)
    frequency = torch.randn(batch_size, 1, FEATURES, generator=generator) / lengthscale
    phase = 2 * math.pi * torch.rand(batch_size, 1, FEATURES, generator=generator)
    curve = (x * frequency + phase).cos().mean(-1, keepdim=True) * (2 * FEATURES) ** 0.5
    return x, curve + NOISE_SD * torch.randn(x.shape, generator=generator)


def steps(architecture: ArchitectureName, num_context: int) -> dict[str, Callable[[], object]]:
    """What encodes a context, draws its joint and scores outcomes, for a network of random weights."""
    torch.manual_seed(0)
    net = make_model(config_of(architecture)).eval().requires_grad_(False)
    x, y = (part[0] for part in draw_waves(1, num_context + NUM_TARGETS, torch.Generator().manual_seed(num_context)))
    (x_context, y_context), (x_new, y_new) = (
        (x[:num_context], y[:num_context, 0]),
        (x[num_context:], y[num_context:, 0]),
    )
    made: list[Context] = []

    def condition() -> None:
        made[:] = [net.condition(x_context, y_context)]

    def joint() -> ArBufferJoint:
        return ArBufferJoint(made[0], x_new)

    values = y_new + 0.1 * torch.randn(NUM_DRAWS, NUM_TARGETS)
    return {
        "conditioning": condition,
        "draws": lambda: joint().sample((NUM_DRAWS,)),
        "density": lambda: joint().log_prob(values),
    }


def measure_memory(architecture: ArchitectureName, num_context: int) -> float:
    """Peak memory that all steps add, MiB, in a fresh process."""
    command = [sys.executable, __file__, "--memory-probe", architecture, str(num_context)]
    return round(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout), 1)


def probe_memory(architecture: ArchitectureName, num_context: int) -> float:
    """`measure_memory` in this process."""
    for step in steps(architecture, 8).values():  # loads the kernels' libraries
        step()
    return added_memory(lambda: [step() for step in steps(architecture, num_context).values()])


def measure_cell(num_context: int, repeats: int) -> dict[str, dict[str, float]]:
    """CPU seconds of every step, and memory, of both architectures."""
    cell = {}
    for architecture, name in NAMES.items():
        seconds = median_seconds(steps(architecture, num_context), repeats)
        cell[name] = seconds | {"MiB": measure_memory(architecture, num_context)}
    return cell


def print_cells(cells: dict[int, dict[str, dict[str, float]]]) -> None:
    """Prints a row for each N and architecture, and how many times faster the bottleneck is."""
    print(f"M = K = {NUM_TARGETS}, B = {NUM_DRAWS} draws: CPU seconds, MiB\n")
    print("| N | network | conditioning | draws | density | both first | memory |\n|---|---|---|---|---|---|---|")
    for num_context, cell in cells.items():
        for name, row in cell.items():
            both = row["conditioning"] + row["draws"]
            times = " | ".join(f"{seconds:.3f}" for seconds in (*list(row.values())[:3], both))
            print(f"| {num_context} | {name} | {times} | {row['MiB']:.0f} |")
        full, latent = cell.values()
        ratios = {step: full[step] / latent[step] for step in ("conditioning", "draws", "density")}
        whole = (full["conditioning"] + full["draws"]) / (latent["conditioning"] + latent["draws"])
        print(f"| {num_context} | ratio | {' | '.join(f'{r:.1f}' for r in ratios.values())} | {whole:.1f} | |")


def draw_figure(path: Path, cells: dict[int, dict[str, dict[str, float]]]) -> None:
    """Seconds and memory against N, a line for each architecture."""
    with matplotlib.style.context("pyro_arbuf.house"):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        panels = {"conditioning": "CPU seconds", "draws": "CPU seconds", "MiB": "MiB"}
        for axes, (step, unit) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            for name in NAMES.values():
                axes.plot(list(cells), [cell[name][step] for cell in cells.values()], marker="o", label=name)
            axes.set(xlabel="observations N", ylabel=unit, title="memory" if step == "MiB" else step)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
        axes.legend()
        figure.savefig(path, dpi=120)


def train(architecture: ArchitectureName, minutes: float, folder: Path) -> ArBufferModel:
    """A network trained for some CPU minutes on contexts of up to 8,192 points; a stopped run goes on."""
    config = dataclasses.replace(config_of(architecture), prior="waves")
    net, state = train_on(PriorSource(draw_waves, config, BATCH_SIZE), minutes, folder / architecture)
    print(f"{NAMES[architecture]}: {state.step} steps, {state.minutes:.1f} CPU minutes")
    return net


def compare_densities(
    minutes: float, folder: Path, num_context: tuple[int, ...], num_functions: int
) -> dict[str, object]:
    """Prints and returns joint log densities of both networks on the same functions, nats per target."""
    nets, orders = {each: train(each, minutes, folder) for each in NAMES}, random_orders(NUM_TARGETS, NUM_ORDERS)
    result = {}
    print(f"\n| N | {' | '.join(NAMES.values())} | loss of the bottleneck |\n|---|---|---|---|")
    for n in num_context:
        points = draw_waves(num_functions, n + NUM_TARGETS, torch.Generator().manual_seed(SEED + n))
        context, targets = split_points(*points, (n, NUM_TARGETS))
        scores = [log_prob(nets[each], SCORED[each], (*context, *targets), orders) for each in NAMES]
        loss = mean_se(scores[0] - scores[1])
        means = " | ".join(f"{score.mean().item():.3f}" for score in scores)
        print(f"| {n} | {means} | {loss[0]:.3f} ({loss[1]:.3f}) |")
        result[n] = loss
    return {"loss": result, "minutes": minutes}


def main(
    num_context: tuple[int, ...] = (128, 512, 2048, LARGEST),
    repeats: int = 1,
    threads: int = 1,
    minutes: float | None = None,
    folder: Path = Path("runs/large_contexts"),
    num_functions: int = 64,
    plot: Path | None = None,
    memory_probe: tuple[ArchitectureName, int] | None = None,
) -> None:
    """Measures speed and memory, or the density after training.

    Args:
        num_context: The Ns.
        repeats: Runs of each function that count.
        threads: CPU threads.
        minutes: CPU minutes of training for each network, whose densities are then compared; `None` = speed alone.
        folder: Of the trained networks and their runs.
        num_functions: Functions per N that are scored.
        plot: Where to write a figure of speed and memory, if anywhere.
        memory_probe: Only print the memory of one architecture, for N, in this process.
    """
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*outside the trained range")  # inputs at the very ends
    if memory_probe is not None:
        print(json.dumps(probe_memory(*memory_probe)))
        return
    start = time.process_time()
    result: dict[str, object] = {"benchmark": "large contexts"}
    if minutes is not None:
        result |= compare_densities(minutes, folder, num_context, num_functions)
    else:
        cells = {n: measure_cell(n, repeats) for n in num_context}
        print_cells(cells)
        result["cells"] = cells
        if plot is not None:
            draw_figure(plot, cells)
    print(json.dumps(result | {"CPU minutes": (time.process_time() - start) / 60}))


if __name__ == "__main__":
    tyro.cli(main)

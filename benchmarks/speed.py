"""Time and memory of the buffer against exact autoregression by re-encoding, same weights, same run.

    python benchmarks/speed.py                # a quick grid with every cell that docs/measured.md quotes
    python benchmarks/speed.py --full         # N in 32..1024, B in 1..256; slow cells of the baseline too

Sampling and density of M = 16 targets for B draws that share one context of N pairs: the buffer (`ArBufferJoint`,
encoding included), exact AR (every draw re-encodes its context after every target: stock attention, batched over all
draws), marginals. A training step with and without the buffer. Peak memory in fresh processes, against the same
decoding with the context copied per draw. 256 draws of 32 rows of a table of 16 columns, given 256 and 512 rows. Prints
tables, then one JSON line.
"""

import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferModel
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.cache import BufferCache, ContextCache
from pyro_arbuf.priors import gp_1d
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.training.loop import make_optimizers
from pyro_arbuf.training.sources import Pairs, curriculum, split_points

NUM_TARGETS = 16
QUOTED = ((128, 16), (256, 1), (256, 64), (256, 256))
WARM_UP_BELOW = 2.0  # seconds; the first run of anything slower counts
MEMORY_CELL = (1024, 256)
TABLES = (256, 512)  # rows
TABLE_COLUMNS, TABLE_TARGETS, TABLE_DRAWS = 16, 32, 256
SLOW_CONTEXT = 512  # exact AR takes minutes beyond: with --full only
Kind = Literal["shared", "copied", "table"]  # of memory


@torch.no_grad()
def exact_ar(net: ArBufferModel, x_context: Tensor, y_context: Tensor, x: Tensor, y: Tensor | None, num_draws: int):
    """Re-encodes every draw's context after every target: samples `(B, M)`, or the log density `(B,)` of given `y`."""
    xs, ys = x_context.expand(num_draws, -1, -1), y_context.expand(num_draws, -1, -1)
    total = x.new_zeros(num_draws)
    for k in range(x.shape[0]):
        target = x[None, k : k + 1].expand(num_draws, -1, -1)
        cache = net.encode(xs, ys)
        predictive, _ = net.predict(cache, BufferCache(), None, net.embedder.inputs(target)[:, None])
        value = predictive.sample() if y is None else y[:, None, k : k + 1, None]  # (B, 1, 1, 1)
        if y is not None:
            total = total + predictive.log_prob(value).flatten()
        xs, ys = torch.cat([xs, target], 1), torch.cat([ys, value[:, 0]], 1)
    return ys[:, -x.shape[0] :, 0] if y is None else total


@torch.no_grad()
def copied_context(net: ArBufferModel, x_context: Tensor, y_context: Tensor, x: Tensor, num_draws: int) -> Tensor:
    """Samples with the buffer, but with the context's keys and values copied for every draw: the naive cache."""
    cache = net.encode(x_context, y_context)
    keys, values = (tuple(t.expand(num_draws, -1, -1, -1).contiguous() for t in part) for part in cache[:2])
    cache, buffer, pairs, draws = ContextCache(keys, values), BufferCache(), None, []
    for k in range(x.shape[0]):
        target = net.embedder.inputs(x[k : k + 1]).expand(num_draws, 1, -1, -1)
        predictive, buffer = net.predict(cache, buffer, pairs, target)
        draws.append(predictive.sample())
        pairs = (target, draws[-1])
    return torch.cat(draws, 2)[:, 0, :, 0]


def median_seconds(functions: list[Callable[[], object]], repeats: int, device: torch.device) -> list[float]:
    """Median time of each function, the functions taking turns so that a busy machine slows all of them alike.

    In each turn a function runs once to warm up and then again until it has run for half a second, 20 times at most.
    """

    def seconds(function: Callable[[], object]) -> float:
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, times, strict=True):
            turn = [seconds(function)]
            if turn[0] < WARM_UP_BELOW:
                turn = []
            while not turn or (sum(turn) < 0.5 and len(turn) < 20):
                turn.append(seconds(function))
            taken += turn
    return [statistics.median(t) for t in times]


def observations(num_context: int, device: torch.device) -> tuple[Pairs, Pairs]:
    """One function: N observations and M targets."""
    x, y = gp_1d(1, num_context + NUM_TARGETS, torch.Generator().manual_seed(num_context))
    context, targets = split_points(x.to(device), y.to(device), (num_context, NUM_TARGETS))
    return context, targets


def time_inference(net: ArBufferModel, num_context: int, num_draws: int, repeats: int, full: bool) -> dict[str, float]:
    """Seconds of sampling and density for one cell of the grid."""
    device = next(net.parameters()).device
    (x_context, y_context), (x, y) = observations(num_context, device)
    values = y[0, :, 0] + 0.1 * torch.randn(num_draws, NUM_TARGETS, device=device)

    def joint() -> ArBufferJoint:
        return ArBufferJoint(net.condition(x_context[0], y_context[0, :, 0]), x[0])

    functions: dict[str, Callable[[], object]] = {
        "sample buffer": lambda: joint().sample((num_draws,)),
        "density buffer": lambda: joint().log_prob(values),
        "sample marginals": lambda: joint().marginals().sample((num_draws,)),
        "density marginals": lambda: joint().marginals().log_prob(values),
    }
    if full or num_context < SLOW_CONTEXT:
        functions["sample exact"] = lambda: exact_ar(net, x_context, y_context, x[0], None, num_draws)
        functions["density exact"] = lambda: exact_ar(net, x_context, y_context, x[0], values, num_draws)
    times = median_seconds(list(functions.values()), repeats, device)
    return {"N": num_context, "B": num_draws} | dict(zip(functions, times, strict=True))


def time_training(net: ArBufferModel, repeats: int) -> list[float]:
    """Seconds of one training step at N = M = 64, batch 32.

    Without a buffer; with K = 16 slots that are among the M targets, as `fit` has it; with 64 fresh targets and the
    slots as 16 more.
    """
    device = next(net.parameters()).device
    model = ArBufferModel(net.config).to(device)
    optimizers = make_optimizers(model)
    num_slots = net.config.buffer_size
    generator = torch.Generator().manual_seed(0)
    context, buffer, targets = split_points(*gp_1d(32, 64 + 64, generator), (64, 0, 64))
    batches = [Batch(*context, *buffer, *targets, torch.zeros(64, dtype=torch.int64))]
    for num_fresh in (64 - num_slots, 64):
        points = gp_1d(32, 64 + num_slots + num_fresh, generator)
        batches.append(curriculum(*split_points(*points, (64, num_slots, num_fresh)), generator))

    def step(batch: Batch) -> None:
        model.loss(batch.to(device)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return median_seconds([partial(step, batch) for batch in batches], repeats, device)


def draw_rows(num_context: int, num_draws: int) -> Callable[[], Tensor]:
    """What draws 32 rows of a table of 16 columns so often, its context encoded anew; the weights are random."""
    net = ArBufferModel(RECIPES["tabular"].config).eval().requires_grad_(False)
    x = torch.randn(num_context + TABLE_TARGETS, TABLE_COLUMNS, generator=torch.Generator().manual_seed(num_context))
    x_context, x_target = x.split((num_context, TABLE_TARGETS))
    return lambda: ArBufferJoint(net.condition(x_context, x_context.sum(-1)), x_target).sample((num_draws,))


def measure_tables(repeats: int) -> list[dict[str, float]]:
    """Prints seconds and memory of drawing rows of tables."""
    cells = []
    for num_context in TABLES:
        (seconds,) = median_seconds([draw_rows(num_context, TABLE_DRAWS)], repeats, torch.device("cpu"))
        memory = measure_memory("table", "tabular", num_context, TABLE_DRAWS)
        print(
            f"table of {TABLE_COLUMNS} columns, N = {num_context}, M = {TABLE_TARGETS}, B = {TABLE_DRAWS}: "
            f"{seconds:.2f} s, peak memory above loading {memory:.0f} MiB"
        )
        cells.append({"N": num_context, "seconds": round(seconds, 3), "MiB": memory})
    return cells


def added_memory(function: Callable[[], object]) -> float:
    """Peak resident memory that a call adds to what this (fresh) process holds, MiB, by Linux's counters."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def probe_memory(kind: Kind, model: str, num_context: int, num_draws: int) -> float:
    """Peak resident memory above that after loading, MiB, in this (fresh) process."""
    if kind == "table":
        draw_rows(8, 1)()  # loads the kernels' libraries
        return added_memory(draw_rows(num_context, num_draws))
    net = pyro_arbuf.load(model)
    (x_context, y_context), (x, _) = observations(num_context, torch.device("cpu"))
    x = x[0]
    net.condition(x_context[0, :8], y_context[0, :8, 0])  # loads the kernels' libraries
    if kind == "shared":
        return added_memory(
            lambda: ArBufferJoint(net.condition(x_context[0], y_context[0, :, 0]), x).sample((num_draws,))
        )
    return added_memory(lambda: copied_context(net, x_context, y_context, x, num_draws))


def measure_memory(kind: Kind, model: str, num_context: int, num_draws: int) -> float:
    """`probe_memory` in a fresh process, MiB."""
    command = [sys.executable, __file__, "--model", model, "--memory-probe", kind, str(num_context), str(num_draws)]
    return round(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout), 1)


def print_cells(cells: list[dict[str, float]]) -> None:
    """Prints times and ratios of the grid, and adds the ratios to the cells."""
    names = ("buffer", "exact", "marginals")
    print(
        "    N    B  "
        + "".join(f"{f'{what} {n}':>18s}" for what in ("sample", "density") for n in names)
        + "   exact / buffer: sample  density"
    )
    for cell in cells:
        ratios = [cell.get(f"{what} exact", float("nan")) / cell[f"{what} buffer"] for what in ("sample", "density")]
        times = [1e3 * cell.get(f"{what} {name}", float("nan")) for what in ("sample", "density") for name in names]
        print(
            f"{cell['N']:5d} {cell['B']:4d}  "
            + "".join(f"{t:18.1f}" for t in times)
            + f"{ratios[0]:25.1f} {ratios[1]:8.1f}"
        )
        if "sample exact" in cell:
            cell |= {"sample ratio": round(ratios[0], 1), "density ratio": round(ratios[1], 1)}


def main(
    model: str = "sawtooth",
    full: bool = False,
    repeats: int = 2,
    device: str = "cpu",
    memory_probe: tuple[Kind, int, int] | None = None,
) -> None:
    """Measures speed and memory.

    Args:
        model: Shipped model or folder; speed depends on its sizes, not on its weights.
        full: The whole grid.
        repeats: Turns of each function; the median of all its runs is reported.
        device: "cpu" or "cuda".
        memory_probe: Only print the peak memory of one kind, for N and B, in this process.
    """
    if memory_probe is not None:
        print(json.dumps(probe_memory(memory_probe[0], model, *memory_probe[1:])))
        return
    net = pyro_arbuf.load(model)
    warnings.filterwarnings("ignore", "num_context.* outside the trained range")  # on purpose
    net.to(device)
    grid = [(n, b) for n in (32, 64, 128, 256, 512, 1024) for b in (1, 16, 64, 256)]
    if not full:
        grid = [cell for cell in grid if cell in QUOTED or cell in ((32, 1), (32, 256), (1024, 256))]
    cells = [time_inference(net, n, b, repeats, full) for n, b in tqdm(grid, desc="inference", leave=False)]
    print(f"M = {NUM_TARGETS} targets, K = {net.config.buffer_size}, {torch.get_num_threads()} threads, {device}; ms")
    print_cells(cells)
    without, within, beyond = time_training(net, repeats)
    ratios = [within / without, beyond / without]
    print(
        f"training step, N = M = 64, batch 32: without buffer {1e3 * without:.0f} ms; K = 16 slots among the targets "
        f"{1e3 * within:.0f} ms, ratio {ratios[0]:.2f}; slots as 16 more targets {1e3 * beyond:.0f} ms, "
        f"ratio {ratios[1]:.2f}"
    )
    result: dict[str, object] = {"cells": cells, "training step ratios": [round(r, 3) for r in ratios]}
    if device == "cpu":
        result["tables"] = measure_tables(repeats)
        result["memory MiB"] = []
        for size in grid if full else [MEMORY_CELL]:
            shared, copied = (measure_memory(kind, model, *size) for kind in ("shared", "copied"))
            print(
                f"peak memory above loading, N = {size[0]}, B = {size[1]}: context shared {shared:.0f} MiB, copied per "
                f"draw {copied:.0f} MiB, ratio {copied / shared:.1f}"
            )
            result["memory MiB"].append({"N": size[0], "B": size[1], "shared": shared, "copied": copied})
    print(json.dumps(result))


if __name__ == "__main__":
    tyro.cli(main)

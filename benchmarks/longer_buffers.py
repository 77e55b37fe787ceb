"""Longer buffers and longer contexts than in training: which positions of slots reach beyond the trained K.

    python benchmarks/longer_buffers.py                            # trains and scores: 15 CPU minutes a network
    python benchmarks/longer_buffers.py --kinds none rotary --from ""   # from random weights

Networks of `gp-1d-noisy` with K = 16 slots and N up to 128 differ in the positions of the slots: learned, none, rotary
or a linear bias; and in whether queries grow with the logarithm of the number of keys (scaled). All start at weights of
the shipped network, where they have them in common, or at random ones, and are trained for equal CPU time.

Buffers: the loss against exact autoregression of the same network at 64 and 128 targets, with 16 to 128 slots; orders
and functions are the same, differences are paired. Exact autoregression encodes up to 143 pairs, beyond the 128 of
training. Beside it the CPU seconds of 64 draws of 128 targets, the sizes taking turns. Contexts: the gap to the oracle
at 16 targets given 8 to 512 observed points, with all K slots.

Networks, their training states and scores are kept in the folder: the same command goes on where it was stopped.
Writes a table and a figure into docs/how-to/longer_buffers.md, between its markers; prints them, then one JSON line.
"""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Annotated, NamedTuple

import matplotlib.style
import torch
import tyro
from kept import keep, read_kept
from marked import write_marked
from matplotlib.figure import Figure
from oracle import oracle_log_prob
from paper_speed import median_seconds
from paper_systems import SEED, SMALL, System, log_prob, train_on
from quality import draw_functions, mean_se
from torch import Tensor
from tqdm import tqdm

from pyro_arbuf import ArBufferJoint, ArBufferModel, load, random_orders
from pyro_arbuf.baselines import make_model
from pyro_arbuf.files import write_atomically
from pyro_arbuf.network.positions import SlotPositions
from pyro_arbuf.programs.sources import make_source
from pyro_arbuf.random_state import seeded

PRIOR = "gp-1d-noisy"
PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "longer_buffers.md"
BUFFERS = ((64, 16), (64, 64), (128, 16))  # targets and observed points
SLOTS = (16, 32, 64, 128)
TRAINED = (8, 32, 128)
CONTEXTS = (*TRAINED, 256, 512)
TARGETS = 16  # beside these contexts
DRAWS = 64  # that are timed


class Kind(NamedTuple):
    """What a network has, as `ModelConfig` takes it."""

    slot_positions: SlotPositions
    scaled_queries: bool = False


KINDS = {
    "learned": Kind("learned"),
    "none": Kind("none"),
    "rotary": Kind("rotary"),
    "linear": Kind("linear"),
    "none, scaled": Kind("none", scaled_queries=True),
}
Scores = dict[str, list[float]]  # by what was read, nats per target of each function


def begin(kind: Kind, start: str, small: bool) -> ArBufferModel:
    """A network of a kind with the weights that it shares with a shipped one; the others are random."""
    shipped = load(start) if start else None
    config = make_source(PRIOR).config if shipped is None else shipped.config
    config = dataclasses.replace(config, **kind._asdict(), **(SMALL if small else {}))
    with seeded(SEED):
        net = make_model(config)
    if shipped is not None:
        shared = {name: value for name, value in shipped.state_dict().items() if name in net.state_dict()}
        net.load_state_dict(shared, strict=False)
    return net


def trained(kind: Kind, minutes: float, learning_rate: float, start: str, folder: Path, small: bool) -> ArBufferModel:
    """The network, trained."""
    net = begin(kind, start, small)
    source = dataclasses.replace(make_source(PRIOR), config=net.config)
    return train_on(source, minutes, folder, net, learning_rate)[0]


def buffer_scores(folder: Path, net: ArBufferModel, num_functions: int, num_orders: int) -> Scores:
    """Log densities by "M, N, K", of exact autoregression (K = 1) and of every buffer that the network can read."""
    path = folder / f"buffers-{num_functions}-functions-{num_orders}-orders.json"
    scores: Scores = read_kept(path, {})
    longest = net.buffer_size if net.config.slot_positions == "learned" else max(SLOTS)
    for num_targets, num_context in BUFFERS:
        functions = draw_functions(PRIOR, num_functions, num_context, num_targets)
        orders = random_orders(num_targets, num_orders)
        for slots in (1, *(slots for slots in SLOTS if slots <= min(longest, num_targets))):
            name = f"{num_targets}, {num_context}, {slots}"
            if name not in scores:
                scores[name] = log_prob(net, System("buffer", slots), functions, orders).tolist()
                keep(path, scores)
    return scores


def context_gaps(folder: Path, name: str, net: ArBufferModel, num_functions: int, num_orders: int) -> dict[int, Tensor]:
    """Gaps to the oracle, nats per target of each function, by the number of observed points."""
    found = {}
    for num_context in CONTEXTS:
        path = folder / f"N{num_context}-{num_functions}-functions-{num_orders}-orders.json"
        scores: Scores = read_kept(path, {})
        functions = draw_functions(PRIOR, num_functions, num_context, TARGETS)
        if "oracle" not in scores:
            scores["oracle"] = (oracle_log_prob(PRIOR, *functions) / TARGETS).tolist()
        if name not in scores:
            scores[name] = log_prob(net, System("buffer"), functions, random_orders(TARGETS, num_orders)).tolist()
            keep(path, scores)
        oracle, own = (torch.tensor(scores[each], dtype=torch.float64) for each in ("oracle", name))
        found[num_context] = oracle - own
    return found


def seconds_of_draws(net: ArBufferModel, repeats: int) -> dict[int, float]:
    """CPU seconds of joint draws at the last of `BUFFERS`, by the slots K; 1 = exact autoregression."""
    num_targets, num_context = BUFFERS[-1]
    x_context, y_context, x, _ = (part[0] for part in draw_functions(PRIOR, 1, num_context, num_targets))
    context = net.condition(x_context, y_context.squeeze(-1))
    joints = {slots: ArBufferJoint(context, x, buffer_size=slots) for slots in (1, *SLOTS) if slots <= num_targets}
    timed = {str(slots): lambda joint=joint: joint.sample((DRAWS,)) for slots, joint in joints.items()}
    return {int(slots): seconds for slots, seconds in median_seconds(timed, repeats).items()}


def losses(scores: Scores) -> dict[str, tuple[float, float]]:
    """By "M, N, K", what a buffer loses against exact autoregression, and its standard error."""
    found = {}
    for name, values in scores.items():
        targets, context, slots = name.split(", ")
        if slots != "1":
            exact = torch.tensor(scores[f"{targets}, {context}, 1"], dtype=torch.float64)
            found[name] = mean_se(exact - torch.tensor(values, dtype=torch.float64))
    return found


def write_tables(all_scores: dict[str, Scores], gaps: dict[str, dict[int, Tensor]], seconds: dict[int, float]) -> str:
    """The three tables, in Markdown."""
    lost = {kind: losses(scores) for kind, scores in all_scores.items()}
    names = list(dict.fromkeys(name for each in lost.values() for name in each))
    lines = ["| targets M | observed N | slots K |" + "".join(f" {kind} |" for kind in lost)]
    lines.append("|---" * (3 + len(lost)) + "|")
    for name in names:
        shown = ("{:.3f} ({:.3f})".format(*each[name]) if name in each else "" for each in lost.values())
        lines.append(f"| {' | '.join((*name.split(', '), *shown))} |")
    lines += ["", "| observed N |" + "".join(f" {kind} |" for kind in gaps), "|---" * (1 + len(gaps)) + "|"]
    for num_context in CONTEXTS:
        shown = ("{:.3f} ({:.3f})".format(*mean_se(each[num_context])) for each in gaps.values())
        lines.append(f"| {' | '.join((str(num_context), *shown))} |")
    if "learned" in gaps:  # paired: the functions are the same
        shown = (
            "{:.4f} ({:.4f})".format(*mean_se(sum(each[n] - gaps["learned"][n] for n in TRAINED) / len(TRAINED)))
            for each in gaps.values()
        )
        lines.append(f"| 8, 32, 128: more than learned | {' | '.join(shown)} |")
    if seconds:
        lines += ["", f"| slots K | {' | '.join(map(str, seconds))} |", "|---" * (1 + len(seconds)) + "|"]
        lines.append(f"| CPU seconds of {DRAWS} draws | {' | '.join(f'{each:.2f}' for each in seconds.values())} |")
    return "\n".join(lines) + "\n"


def draw_figure(path: Path, all_scores: dict[str, Scores], gaps: dict[str, dict[int, Tensor]]) -> None:
    """Left: the loss against the slots, at the largest M. Right: the gap against the observed points."""
    targets, context = BUFFERS[-1]
    with matplotlib.style.context("pyro_arbuf.house"):
        figure = Figure(figsize=(9, 3.4))
        left, right = figure.subplots(1, 2)
        for i, (kind, scores) in enumerate(all_scores.items()):
            lost = losses(scores)
            slots = [k for k in SLOTS if f"{targets}, {context}, {k}" in lost]
            pairs = [lost[f"{targets}, {context}, {k}"] for k in slots]
            style = {"marker": "o", "ms": 3, "capsize": 3, "color": f"C{i}", "label": kind}
            left.errorbar(slots, [mean for mean, _ in pairs], [2 * error for _, error in pairs], **style)
            pairs = [mean_se(gaps[kind][n]) for n in CONTEXTS]
            right.errorbar(CONTEXTS, [mean for mean, _ in pairs], [2 * error for _, error in pairs], **style)
        for axis, ticks in ((left, SLOTS), (right, CONTEXTS)):
            axis.set_xscale("log", base=2)
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.axhline(0.0, color="black", lw=0.8)
        left.set(xlabel="slots K that are read (trained: 16)", ylabel="exact autoregression minus buffer")
        right.set(xlabel="observed points N (trained: up to 128)", ylabel="oracle minus buffer")
        left.legend()
        write_atomically(path, lambda file: figure.savefig(file, format="png"))


def main(
    kinds: tuple[str, ...] = tuple(KINDS),
    folder: Path = Path("runs/longer_buffers"),
    from_: Annotated[str, tyro.conf.arg(name="from")] = PRIOR,
    minutes: float = 15.0,
    learning_rate: float = 2e-3,
    num_functions: int = 64,
    num_orders: int = 4,
    repeats: int = 3,
    page: Path = PAGE,
    threads: int = 1,
    small: bool = False,
) -> None:
    """Trains and scores.

    Args:
        kinds: Which of learned, none, rotary, linear and "none, scaled".
        folder: Where networks, training states and scores are kept, in a folder for each budget.
        from_: Shipped network whose weights are the start; empty = random weights.
        minutes: CPU minutes of each network.
        learning_rate: The peak.
        num_functions: Functions of every comparison.
        num_orders: Orders averaged.
        repeats: Runs that are timed, of the first network whose slots have no learned positions; 0 = nothing is timed.
        page: Page that the tables are written into; the figure stands beside it.
        threads: CPU threads.
        small: Tiny networks of random weights, to try the command.
    """
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message=".*outside the trained range")  # on purpose
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise SystemExit(f"--kinds must be some of {', '.join(KINDS)}; got {', '.join(unknown)}")
    start = "" if small else from_
    where = folder / f"{minutes:g}-minutes-at-{learning_rate:g}-from-{start or 'random'}{'-small' * small}"
    all_scores, gaps, seconds = {}, {}, {}
    for name in tqdm(kinds, desc="networks", leave=False):
        own = where / name.replace(", ", "-")
        net = trained(KINDS[name], minutes, learning_rate, start, own, small)
        all_scores[name] = buffer_scores(own, net, num_functions, num_orders)
        gaps[name] = context_gaps(where, name, net, num_functions, num_orders)
        if repeats and not seconds and net.config.slot_positions != "learned":
            seconds = seconds_of_draws(net, repeats)
    tables = write_tables(all_scores, gaps, seconds)
    print(tables)
    if page.exists():
        draw_figure(page.with_suffix(".png"), all_scores, gaps)
        write_marked(page, "longer_buffers", f"\n{tables}\n")
    found = {
        name: {"lost": losses(all_scores[name]), "gaps": {str(n): mean_se(gap) for n, gap in gaps[name].items()}}
        for name in kinds
    }
    print(json.dumps({"benchmark": "longer_buffers", "minutes": minutes, "systems": found, "seconds": seconds}))


if __name__ == "__main__":
    tyro.cli(main)

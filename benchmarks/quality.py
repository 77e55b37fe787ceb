"""Joint density of a shipped model against the Bayes-optimal oracle, paired on the same functions.

    python benchmarks/quality.py gp-1d                  # 512 functions per N, 16 orders: minutes
    python benchmarks/quality.py gp-1d --num-orders 128 # the paper's number of orders

For each N: the oracle; the buffered joint with all K slots and with 4; exact autoregression (re-encoding after every
target); independent marginals. Nats per target, M = 16. Prints a table, then one JSON line.

Deviation: 16 orders are averaged, the paper's 128 by `--num-orders`; gaps to the oracle are reported, which the paper
has not.
"""

import json
import math
import warnings
from pathlib import Path

import matplotlib.figure
import torch
import tyro
from marked import write_marked
from oracle import oracle_log_prob
from torch import Tensor
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferModel, random_orders
from pyro_arbuf.checkpoint import find_model
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.training.sources import split_points

SEED = 20_000


Functions = tuple[Tensor, Tensor, Tensor, Tensor]  # x and y of the contexts, x and y of the targets


def draw_functions(prior: str, num_functions: int, num_context: int, num_targets: int) -> Functions:
    """Draws functions one by one, since a prior may share a kernel class within a batch; the same ones every time."""
    generator = torch.Generator().manual_seed(SEED + num_context)
    draw = RECIPES[prior].prior
    drawn = [draw(1, num_context + num_targets, generator) for _ in range(num_functions)]
    x, y = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    context, targets = split_points(x, y, (num_context, num_targets))
    return *context, *targets


@torch.no_grad()
def model_log_prob(
    net: ArBufferModel, functions: Functions, orders: Tensor, buffer_size: int | None, chunk: int, label: str
) -> Tensor:
    """Joint log density `(B,)`, nats; `buffer_size=None` = independent marginals."""
    # At N = 128 exact AR and K = 4 encode up to 143 pairs, beyond the 128 of training; we want to see that, too.
    warnings.filterwarnings("ignore", message="num_context with absorbed targets")
    parts = []
    for i in tqdm(range(0, len(functions[0]), chunk), desc=label, leave=False):
        x_context, y_context, x, y = (t[i : i + chunk] for t in functions)
        context = net.condition(x_context, y_context.squeeze(-1))
        joint = ArBufferJoint(context, x, orders=orders, buffer_size=buffer_size)
        joint = joint.marginals() if buffer_size is None else joint
        parts.append(joint.log_prob(y.squeeze(-1)))
    return torch.cat(parts).double()


def mean_se(values: list[float] | Tensor) -> tuple[float, float]:
    """Mean of independent values and its standard error."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std(correction=min(1, len(values) - 1)).item() / math.sqrt(len(values))


def summarise(rows: list[dict[str, Tensor]], num_context: tuple[int, ...], full: int) -> dict[str, object]:
    """Gaps to the oracle with their standard errors, mean over N and worst N, and the mean density per N."""
    summary: dict[str, object] = {}
    for label in list(rows[0])[1:]:
        values = [mean_se(row["oracle"] - row[label]) for row in rows]
        mean = sum(m for m, _ in values) / len(values)
        se = math.sqrt(sum(s**2 for _, s in values)) / len(values)
        summary[f"gap {label}"] = [round(mean, 4), round(se, 4)]
        summary[f"worst gap {label}"] = round(max(values)[0], 4)
    difference = torch.stack([row["exact AR"] - row[f"buffer K={full}"] for row in rows])
    se = (difference.var(1) / difference.shape[1]).sum().sqrt().item() / len(rows)
    summary["exact AR minus buffer"] = [round(difference.mean().item(), 4), round(se, 4)]
    summary["per N"] = {
        n: {k: round(v.mean().item(), 4) for k, v in row.items()} for n, row in zip(num_context, rows, strict=True)
    }
    return summary


def write_table(
    rows: list[dict[str, Tensor]], num_context: tuple[int, ...], full: int, summary: dict[str, object]
) -> list[str]:
    """Lines of a table: mean density per N of every way, and two gaps."""
    labels = list(rows[0])
    table = [
        f"| N | {' | '.join(labels)} | gap of buffer K={full} | gap of exact AR |",
        "|---" * (len(labels) + 3) + "|",
    ]
    shown_gaps = (f"buffer K={full}", "exact AR")
    for n, row in zip(num_context, rows, strict=True):
        means = " | ".join(f"{row[label].mean().item():.3f}" for label in labels)
        shown = " | ".join("{:.3f} ({:.3f})".format(*mean_se(row["oracle"] - row[label])) for label in shown_gaps)
        table.append(f"| {n} | {means} | {shown} |")
    over_n = " | ".join(f"{torch.stack([row[label] for row in rows]).mean().item():.3f}" for label in labels)
    shown = " | ".join("{:.3f} ({:.3f})".format(*summary[f"gap {label}"]) for label in shown_gaps)
    return [*table, f"| mean | {over_n} | {shown} |"]


def main(
    model: tyro.conf.Positional[str],
    num_functions: int = 512,
    num_targets: int = 16,
    num_orders: int = 16,
    num_context: tuple[int, ...] = (8, 16, 32, 64, 128),
    plot: Path | None = None,
    update_card: bool = False,
) -> None:
    """Measures a model.

    Args:
        model: Shipped model or folder.
        num_functions: Functions per N.
        num_targets: Targets M.
        num_orders: Orders averaged.
        num_context: The Ns.
        plot: Where to write a figure, if anywhere.
        update_card: Write the table into the shipped model's card, between its markers.
    """
    net = pyro_arbuf.load(model)
    prior = net.config.prior
    orders = random_orders(num_targets, num_orders)
    full = net.config.buffer_size
    variants = {f"buffer K={full}": full, "buffer K=4": 4, "exact AR": 1, "independent": None}
    rows = []
    for n in num_context:
        functions = draw_functions(prior, num_functions, n, num_targets)
        scores = {"oracle": oracle_log_prob(prior, *functions, progress=True)}
        for label, size in variants.items():
            scores[label] = model_log_prob(net, functions, orders, size, 16, f"N={n} {label}")
        rows.append({label: score / num_targets for label, score in scores.items()})

    summary: dict[str, object] = {"model": Path(model).name, "prior": prior, "num_orders": num_orders}
    summary |= summarise(rows, num_context, full)
    table = write_table(rows, num_context, full, summary)
    text = (
        f"Joint log density in nats per target, M = {num_targets}, {num_orders} orders, {num_functions} functions per "
        f"N; gaps to the Bayes-optimal oracle are paired on the same functions, standard errors in brackets.\n\n"
        + "\n".join(table)
        + "\n\nExact AR minus buffer: {:.3f} ({:.3f}).\n".format(*summary["exact AR minus buffer"])
    )
    print(text)
    if update_card:
        card = find_model(model) / "README.md"
        write_marked(card, "quality", text)
    if plot is not None:
        draw_figure(plot, model, list(num_context), rows, list(rows[0]))
    print(json.dumps(summary))


def draw_figure(
    path: Path, model: str, num_context: list[int], rows: list[dict[str, Tensor]], labels: list[str]
) -> None:
    """Log density per target against N, a line each, with two standard errors of the paired gap as bars."""
    figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label in labels:
        error = [2 * mean_se(row["oracle"] - row[label])[1] for row in rows]
        style = {"color": "black", "ls": "--"} if label == "oracle" else {"marker": "o", "ms": 4}
        axes.errorbar(num_context, [row[label].mean().item() for row in rows], error, label=label, capsize=2, **style)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="observations N", ylabel="log density per target (nats)", title=model)
    axes.set_xticks(num_context, [str(n) for n in num_context])
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    tyro.cli(main)

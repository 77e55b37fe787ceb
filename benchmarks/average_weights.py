"""Averages the weights of two networks, where the second was trained further from the first.

    python benchmarks/average_weights.py models/gp-1d runs/gp-1d --output runs/averaged

Each run ends with some noise of the last steps in its weights, and in the mean of two ends there is less of it. This
works where the loss is convex between them, so that every share of the second network is scored on the validation set
first. Prints a table, then one JSON line; `--output` gets the best share, with the training record of the second.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

import pyro_arbuf
from pyro_arbuf import ArBufferModel
from pyro_arbuf.checkpoint import find_model, save
from pyro_arbuf.cli.evaluate import source_for
from pyro_arbuf.cli.options import check_fits
from pyro_arbuf.cli.record import RECORD, read_record
from pyro_arbuf.files import write_atomically
from pyro_arbuf.training.loop import validate


def averaged(first: ArBufferModel, second: ArBufferModel, share: float) -> dict[str, Tensor]:
    """The weights at a share of the second network, between those of the first (0) and of the second (1)."""
    ends = first.state_dict(), second.state_dict()
    return {name: torch.lerp(weight, ends[1][name], share) for name, weight in ends[0].items()}


def record_of(folder: str, score: float) -> dict[str, Any]:
    """The training record of a network with an entry for the average, which took no minutes."""
    record = read_record(find_model(folder))
    entry = {"prior": record["prior"], "steps": 0, "minutes": 0.0, "averaged": 2, "validation": round(score, 4)}
    return record | {"validation": entry["validation"], "runs": [*record["runs"], entry]}


def main(
    first: Annotated[str, tyro.conf.Positional],
    second: Annotated[str, tyro.conf.Positional],
    output: Path | None = None,
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0),
    data: Path | None = None,
    threads: int = 1,
) -> None:
    """Averages the weights of two networks of one kind.

    Args:
        first: Name or folder of a network.
        second: Of the one that was trained further from it.
        output: Where the network of the best share is written; nowhere if not given.
        shares: Of the second network, that are scored.
        data: Of a prior of recordings: their file.
        threads: CPU threads.

    Raises:
        ValueError: If the networks differ in their kind or sizes, or their prior is not known here.
    """
    torch.set_num_threads(threads)
    one, other = (pyro_arbuf.load(name) for name in (first, second))
    check_fits(one.config, other.config, first)
    shapes = [{name: weight.shape for name, weight in net.state_dict().items()} for net in (one, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"first and second must be networks of one size; {first} and {second} are not")
    source = source_for(other.config, None, None, data)
    if source is None:
        raise ValueError(f"second must be a network of a prior that ships; got that of {other.config.prior!r}")
    batches = replace(cast(Any, source), config=other.config).validation()
    net = pyro_arbuf.load(second)
    scores = {}
    for share in tqdm(shares, desc="shares", leave=False):
        net.load_state_dict(averaged(one, other, share))
        found = validate(net, batches)
        scores[share] = sum(found) / len(found)
    best = max(scores, key=lambda share: scores[share])
    print("share of the second   nats per target")
    for share, score in scores.items():
        print(f"{share:19.2f}   {score:15.4f}{'   best' if share == best else ''}")
    print(json.dumps({"benchmark": "average_weights", "first": first, "second": second, "scores": scores}))
    if output is not None:
        save(net, output, averaged(one, other, best))
        write_atomically(
            output / RECORD, lambda file: file.write_text(json.dumps(record_of(second, scores[best]), indent=2) + "\n")
        )


if __name__ == "__main__":
    tyro.cli(main)

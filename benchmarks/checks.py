"""What the checks of a density cost: the weights' checksum, the model's mode, the outcomes given.

    python benchmarks/checks.py

CPU time inside `check_current`, and from the outcomes given to those in the model's units, checks included, as a share
of that of `ArBufferJoint.log_prob`, N = 128 and M = 16, of one outcome vector: for the published width and for 25
million parameters. Random weights. Prints a table, then one JSON line.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import tyro

from pyro_arbuf import ArBufferJoint, ArBufferModel, ModelConfig
from pyro_arbuf.distributions.marginals import ArBufferDistribution
from pyro_arbuf.inference import chain

SIZES = {
    "published, width 128": ModelConfig(width=128, num_layers=6, mlp_width=256, embedding_width=256, head_width=256),
    "width 512": ModelConfig(
        width=512, num_layers=12, num_heads=8, mlp_width=1024, embedding_width=512, head_width=512
    ),
}
NUM_CONTEXT, NUM_TARGETS = 128, 16


@contextmanager
def timed(owner: Any, name: str, spent: list[float]) -> Iterator[None]:
    """A scope in which every call of an attribute of a module or class adds its CPU seconds to the last of `spent`."""
    function: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[-1] += time.process_time() - start

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, function)


def share_of_checks(net: ArBufferModel, repeats: int) -> tuple[float, float, float]:
    """Median CPU seconds of a `log_prob` and of the checks in it, and the median of their ratios."""
    generator = torch.Generator().manual_seed(0)
    x, x_new = (4 * torch.rand(n, 1, generator=generator) - 2 for n in (NUM_CONTEXT, NUM_TARGETS))
    joint = ArBufferJoint(net.condition(x, x[:, 0].sin()), x_new)
    values = x_new[:, 0].sin()
    joint.log_prob(values)
    whole, spent = [], []
    with timed(chain, "check_current", spent), timed(ArBufferDistribution, "_check_outcomes", spent):
        for _ in range(repeats):
            spent.append(0.0)
            start = time.process_time()
            joint.log_prob(values)
            whole.append(time.process_time() - start)
    ratios = [part / total for part, total in zip(spent, whole, strict=True)]
    return statistics.median(whole), statistics.median(spent), statistics.median(ratios)


def main(repeats: int = 60) -> None:
    """Measures checks.

    Args:
        repeats: Densities of each size, after one that is not counted.
    """
    print(f"CPU ms of a log_prob, N = {NUM_CONTEXT}, M = {NUM_TARGETS}, {torch.get_num_threads()} threads")
    print("sizes                 million parameters   log_prob   checks   share")
    result = {}
    for name, config in SIZES.items():
        net = ArBufferModel(config).eval().requires_grad_(False)
        number = sum(parameter.numel() for parameter in net.parameters()) / 1e6
        whole, spent, share = share_of_checks(net, repeats)
        print(f"{name:22s}{number:18.1f}{1e3 * whole:11.1f}{1e3 * spent:9.2f}{share:8.4f}")
        result[name] = round(share, 4)
    print(json.dumps(result))


if __name__ == "__main__":
    tyro.cli(main)

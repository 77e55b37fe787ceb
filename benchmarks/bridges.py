"""What a gradient of the learned likelihood costs in JAX and PyTensor above what it costs in torch.

    .venv-numpyro/bin/python benchmarks/bridges.py
    .venv-pymc/bin/python benchmarks/bridges.py

CPU milliseconds of value and gradient by the parameters of some subjects of `ddm`, 60 trials each at six levels of
coherence, median of runs that take turns, with one thread. `make test-bridges` makes the two environments, and each
measures its own bridge. Prints a table, then one JSON line.
"""

import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
import tyro

import pyro_arbuf
from pyro_arbuf import ArBufferModel, likelihood
from pyro_arbuf.priors.ddm import COHERENCES

Call = Callable[[], object]


def in_torch(net: ArBufferModel, x: np.ndarray, y: np.ndarray, latents: dict[str, np.ndarray]) -> Call:
    """Value and gradient without a bridge."""
    inputs, outcomes = torch.tensor(x), torch.tensor(y)

    def call() -> object:
        leaves = {name: torch.tensor(value).requires_grad_() for name, value in latents.items()}
        density = likelihood(net, inputs, leaves, validate_args=False).log_prob(outcomes).sum()
        return torch.autograd.grad(density, list(leaves.values()))

    return call


def in_jax(net: ArBufferModel, x: np.ndarray, y: np.ndarray, latents: dict[str, np.ndarray]) -> Call:
    """The same, compiled by JAX."""
    import jax

    from pyro_arbuf.bridges.jax import log_likelihood

    compiled = jax.jit(jax.value_and_grad(lambda values: log_likelihood(net, x, values, y).sum()))
    return lambda: jax.block_until_ready(compiled(latents))


def in_pytensor(net: ArBufferModel, x: np.ndarray, y: np.ndarray, latents: dict[str, np.ndarray]) -> Call:
    """The same, compiled by PyTensor."""
    import pytensor
    import pytensor.tensor as pt

    from pyro_arbuf.bridges.pymc import log_likelihood

    inputs = {name: pt.vector(name, dtype="float32") for name in latents}
    density = log_likelihood(net, x, inputs, y).sum()
    compiled = pytensor.function(list(inputs.values()), [density, *pytensor.grad(density, list(inputs.values()))])
    return lambda: compiled(*latents.values())


def main(num_subjects: int = 5, repeats: int = 50) -> None:
    """Measures gradients.

    Args:
        num_subjects: Subjects in one batch.
        repeats: Gradients of each kind; one more of each, which compiles, is not counted.
    """
    torch.set_num_threads(1)
    rng, net = np.random.default_rng(0), pyro_arbuf.load("ddm")
    x = rng.choice(COHERENCES, (num_subjects, 60, 1)).astype(np.float32)
    y = rng.uniform(0.7, 1.5, (num_subjects, 60)).astype(np.float32)
    given = {"drift": 10.0, "boundary": 1.6, "ndt": 0.3}
    latents = {name: np.full(num_subjects, value, np.float32) for name, value in given.items()}
    makers = {"jax": in_jax, "pytensor": in_pytensor}
    calls = {"torch": in_torch} | {name: maker for name, maker in makers.items() if find_spec(name)}
    calls = {name: maker(net, x, y, latents) for name, maker in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            began = time.process_time()
            call()
            times[name].append(time.process_time() - began)
    found = {name: 1000 * statistics.median(seconds[1:]) for name, seconds in times.items()}
    print(f"value and gradient, {num_subjects} subjects of 60 trials of ddm, CPU ms, median of {repeats}")
    for name, milliseconds in found.items():
        print(f"  {name:10s}{milliseconds:8.1f}{milliseconds / found['torch']:8.2f} times torch's own")
    print(json.dumps({f"gradient_ms_{name}": round(milliseconds, 2) for name, milliseconds in found.items()}))


if __name__ == "__main__":
    tyro.cli(main)

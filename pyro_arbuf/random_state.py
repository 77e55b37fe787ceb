"""Random states of torch, numpy and Python: drawn from a seed, and given back as they were."""

import contextlib
from collections.abc import Iterator

import pyro
import torch


@contextlib.contextmanager
def restored_random_state() -> Iterator[None]:
    """Gives torch's (every device), numpy's and Python's random states back as they were."""
    state = pyro.util.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        pyro.util.set_rng_state(state)
        torch.cuda.set_rng_state_all(devices)


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draws from a seed and gives the random states back; `None` = draws from the global states."""
    with contextlib.nullcontext() if seed is None else restored_random_state():
        if seed is not None:
            pyro.set_rng_seed(seed)
        yield

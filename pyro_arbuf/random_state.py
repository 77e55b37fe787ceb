"""Random states of torch, numpy and Python: drawn from a seed, and given back as they were."""

import collections
import contextlib
import operator
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator
from types import FrameType
from typing import SupportsIndex, cast

import pyro
import pyro.util
import torch
from torch.overrides import TorchFunctionMode

SEEDS = 2**32  # as many NumPy has
DRAWING = {"bernoulli", "binomial", "multinomial", "normal", "poisson", "rand", "randint", "randn", "randperm"}
DRAWING |= {"rand_like", "randint_like", "randn_like", "_sample_dirichlet", "_standard_gamma"}
DRAWING |= {"bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"}


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
    """Draws from a seed and gives the random states back; `None` = draws from the global states.

    A GPU that is not in use before has the seed of the CPU afterwards, as `torch.manual_seed` gives it.

    Raises:
        ValueError: If the seed is no integer that NumPy's generator takes, too.
    """
    if seed is None:
        yield
        return
    number, before, in_use = checked_seed(seed), torch.initial_seed(), torch.cuda.is_initialized()
    with restored_random_state():
        pyro.set_rng_seed(number)
        try:
            yield
        finally:
            if not in_use:
                torch.cuda.manual_seed_all(before)


def checked_seed(seed: object) -> int:
    """The same as an int.

    Raises:
        ValueError: If it is none that NumPy's generator takes.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(cast(SupportsIndex, seed))
    except TypeError:
        number = -1
    if not 0 <= number < SEEDS:
        raise ValueError(f"seed must be an integer in 0..2**32 - 1, or None for the global generator; got {seed!r}")
    return number


class NoiseByLine(TorchFunctionMode):
    """Gives the k-th random call of each line of code numbers of its own, whatever other lines have drawn before.

    Two runs of a program under the same seed can then be compared where a loop of one of them ends earlier. Only
    torch's functions on the CPU are seeded so; lines are those of the calls below the function that makes this, in
    files known by their names alone, so that the folder of the program or of Python does not matter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seed, self.maker = torch.initial_seed(), sys._getframe(1).f_code
        self.calls = collections.Counter()

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if getattr(func, "__name__", "") in DRAWING:
            lines = self._lines(sys._getframe(1))
            self.calls[lines] += 1
            torch.default_generator.manual_seed(zlib.crc32(f"{self.seed}, {self.calls[lines]}: {lines}".encode()))
        return func(*args, **(kwargs or {}))

    def _lines(self, frame: FrameType | None) -> str:
        lines = []
        while frame is not None and frame.f_code is not self.maker:
            lines.append(f"{pathlib.PurePath(frame.f_code.co_filename).name}:{frame.f_lineno}")
            frame = frame.f_back
        return " ".join(lines)

"""`warn`: warnings that name the line of the user's program that has led to them, however many calls above."""

import sys
import warnings
from types import FrameType

# What stands between a user's line and what it leads to: torch.no_grad, for one, and Pyro's handlers.
BETWEEN = {__name__.partition(".")[0], "torch", "pyro", "numpyro", "jax", "pymc", "pytensor", "scipy", "tqdm"}
BETWEEN |= {"contextlib", "functools", ""}  # code without a module's name, whose warnings Python does not show


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns, as from the nearest line above that is neither of this package nor of those it works with.

    So Python shows the warning once for every such line, and its filters by module are by that of the user. A thread
    and another process have no such line: there it is the one that starts them.

    Args:
        message: What is to be said.
        category: Of the warning.
    """
    frame, stacklevel = sys._getframe(1), 2
    while frame.f_back is not None and _package(frame) in BETWEEN:
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(message, category, stacklevel=stacklevel)


def _package(frame: FrameType) -> str:
    """The package whose code a frame runs."""
    return (frame.f_globals.get("__name__") or "").partition(".")[0]

"""What draws the inputs of a program's trials: a function as the user has it, the rows of a design, or none."""

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from pyro_arbuf.inference.data import holds_durations, read_table

Inputs = Callable[[int], Tensor]  # of a number of trials
NUM_TRIED = 7


def no_inputs(num_trials: int) -> Tensor:
    """Inputs of a program without any: one constant 0 per trial."""
    return torch.zeros(num_trials, 1)


def trial_index(num_trials: int) -> Tensor:
    """Inputs of a series without any: the number of each trial, from 0, which tells the network their order."""
    return torch.arange(float(num_trials)).unsqueeze(-1)


def read_inputs(inputs: object) -> tuple[Inputs, int]:
    """A function that draws inputs as floating tensors `(num_trials, D_x)`, and D_x; one is drawn to see it.

    Args:
        inputs: A function of the number of trials, which returns a tensor, an array or a table; the rows of a design
            `(n, D_x)`, which are drawn at random, with replacement; or `None`.

    Raises:
        ValueError: If it is none of these, or what is drawn has other shapes or holds no finite numbers.
    """
    if inputs is None:
        return no_inputs, 1
    if not callable(inputs):
        design = _numbers("inputs", inputs, None).detach().clone()
        return lambda num_trials: design[torch.randint(len(design), (num_trials,))], design.shape[1]
    function = cast(Inputs, inputs)
    unfit = unfit_signature(function)
    if unfit is not None:
        raise ValueError(
            f"inputs must be a function of the number of trials alone, or the rows of a design; got one of {unfit}"
        )
    drawn = function(NUM_TRIED)
    dim_x = _numbers("inputs(num_trials)", drawn, NUM_TRIED).shape[1]
    if isinstance(drawn, Tensor) and drawn.dim() == 2 and drawn.is_floating_point():
        return function, dim_x
    return lambda num_trials: _numbers("inputs(num_trials)", function(num_trials), num_trials), dim_x


def unfit_signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of a function that cannot be called with one argument; `None` = it can, as far as it says."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # some built-in functions have none
        return None
    try:
        signature.bind(None)
    except TypeError:
        return signature
    return None


def _numbers(name: str, given: Any, num_rows: int | None) -> Tensor:
    """Inputs as a floating tensor `(n, D_x)`; single numbers are one column."""
    table = read_table(name, given)
    if table is not None and holds_durations(given, ("M", "m")):
        raise ValueError(
            f"{name} must hold numbers, which the program gets; got dates or durations; give them in a unit, e.g. "
            "(t - t[0]) / pd.Timedelta('1D')"
        )
    x = given if table is None else torch.from_numpy(table.numbers).to(torch.get_default_dtype())
    x = x.unsqueeze(-1) if isinstance(x, Tensor) and x.dim() == 1 else x
    if not isinstance(x, Tensor) or x.dim() != 2 or 0 in x.shape or (num_rows is not None and len(x) != num_rows):
        shape = "(n, D_x), the rows of a design" if num_rows is None else f"(num_trials, D_x), for {num_rows} trials"
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(given).__name__
        raise ValueError(
            f"{name} must be a tensor, an array or a table of shape {shape}; got {got}; use torch.as_tensor for a list"
        )
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} must be finite; got NaN or infinite numbers; leave out such rows")
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())

"""Series: trials in their order, without gaps. Knows the configuration of a network, and nothing of its weights."""

import math
from typing import cast

import torch
from torch import Tensor

from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.trained_range import pairs_of
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.parts import MARGIN, Range
from pyro_arbuf.network.tracing import is_traced
from pyro_arbuf.network.visibility import context_mask
from pyro_arbuf.user_warnings import warn

WIDER = 1.05  # than the largest number of trials: a trained range of numbers has some slack
MOST = 1.5  # trials between two that follow each other; what is more is a gap


def check_series(x: Tensor, config: ModelConfig, context_len: Tensor | None = None) -> bool:
    """Checks that the trials of a series stand in their order, and warns where some are skipped.

    Nothing is checked of other networks, nor where the network does not know which column numbers the trials.

    Args:
        x: `(*batch, T, D_x)`, in the network's units.
        config: Of the network.
        context_len: `(B,)` int64, how many trials are no padding; `None` = all T.

    Returns:
        Whether it has warned.

    Raises:
        ValueError: If the numbers of trials do not rise.
    """
    numbers = trial_numbers(x, config)
    if numbers is None:
        return False
    steps = numbers.diff(dim=-1)
    if context_len is not None and steps.shape[-1]:
        steps = steps.masked_fill(~context_mask(context_len, x.shape[-2])[..., 1:], 1.0)
    if bool((steps <= 0).any()):
        raise ValueError(
            f"x of a series must rise in column {config.lag_column}, which numbers its trials, as they are taken in "
            "the order given; got a trial that is not after the one before it; sort the rows of x and y by it"
        )
    found = _skips(steps, config)
    _warn_gap(found)
    return found


def check_begins(x: Tensor, config: ModelConfig, context_len: Tensor | None = None) -> None:
    """Warns where the first trials of series are not those with which series began in training.

    Args:
        x: `(*batch, T, D_x)`, in the network's units.
        config: Of the network.
        context_len: `(B,)` int64, how many trials are no padding; `None` = all T.
    """
    numbers = trial_numbers(x, config)
    if numbers is None or not numbers.shape[-1] or not numbers_trials(config) or config.x_range is None:
        return
    start, column = _first_number(config), cast(int, config.lag_column)
    if start is None:
        return
    others = (numbers[..., 0] - start).abs() > 0.5
    if context_len is not None:
        others = others & (context_len > 0)
    if bool(others.any()):
        units = config.unit_map
        if units is not None and units.x is not None:
            start = units.x[0][column] + units.x[1][column] * start
        warn(
            f"x of a series begins with another number in column {column} than {start:g}, with which every series of "
            f"training began, or its first trials are missing: densities are unreliable there; number trials from "
            f"{start:g}",
        )


def _first_number(config: ModelConfig) -> int | None:
    """The number of the first trial of every series of training; `None` = series began anywhere, or it is not known.

    The trained range is that of as many numbers as there are trials at most, with its margin.
    """
    column = cast(int, config.lag_column)
    low, high = pairs_of(cast(Range, config.x_range), column + 1)[column]
    span = (high - low) / (1 + 2 * MARGIN)
    first = low + MARGIN * span
    whole = abs(first - round(first)) < 0.1
    most = config.num_context[1] + config.buffer_size
    return round(first) if whole and abs(span + 1 - most) < 0.5 else None


def has_gap(x: Tensor, config: ModelConfig) -> bool:
    """Whether a series `(*batch, T, D_x)` in its order, in the network's units, skips trials, as far as is known."""
    numbers = trial_numbers(x, config)
    return numbers is not None and _skips(numbers.diff(dim=-1), config)


def check_follows(x: Tensor, context: Context) -> None:
    """Warns where the first targets of a series are not the trials after those of the context.

    Without observations they should be the first ones.

    Args:
        x: `(*batch, M, D_x)` targets in their order, in the network's units.
        context: Of the targets, whose tasks broadcast against `batch`.
    """
    config = context.model.config
    numbers = trial_numbers(x, config)
    if numbers is None or not numbers_trials(config):
        return
    observed, _, length = context.observations
    known = trial_numbers(observed, config)
    if known is None:
        return
    if not known.shape[-1]:
        check_begins(x, config)
        return
    if length is not None:
        known = known.masked_fill(~context_mask(length, known.shape[-1]), -torch.inf)
        if bool((length == 0).any()):
            check_begins(x, config, (length == 0).view(context.task_shape))
    step = numbers[..., 0] - known.amax(-1).view(context.task_shape)
    _warn_gap(bool(((step < 0.5) | ((step > MOST) & step.isfinite())).any()))


def check_dropped(missing: Tensor, config: ModelConfig) -> None:
    """Warns where trials of a series are left out before others, as `nan="drop"` does; `missing` is `(*batch, M)`."""
    if not config.sequential or config.lag_column is None or is_traced() or not numbers_trials(config):
        return
    kept_later = (~missing).flip(-1).cumsum(-1).flip(-1) > 0
    _warn_gap(bool((missing & kept_later).any()))


def trial_numbers(x: Tensor, config: ModelConfig) -> Tensor | None:
    """Numbers `(*batch, T)` of the trials of a series, from anywhere; `None` where they are not known."""
    column = config.lag_column
    if not config.sequential or column is None or is_traced() or x.requires_grad:
        return None
    scale = 1.0 if config.x_scale is None else config.x_scale[column]
    return x[..., column].double() / scale * (config.max_frequency / math.pi)


def numbers_trials(config: ModelConfig) -> bool:
    """Whether the network's own column of a series is the number of the trial, not a time of any distances.

    Then two that follow each other are 1 apart, and the trained range is hardly wider than the trained numbers.
    """
    column = config.lag_column
    assert column is not None
    scale = 1.0 if config.x_scale is None else config.x_scale[column]
    low, high = (0.0, 0.0) if config.x_range is None else pairs_of(config.x_range, column + 1)[column]
    dense = high - low <= WIDER * (config.num_context[1] + config.buffer_size)
    return dense and math.isclose(math.pi / config.max_frequency * scale, 1.0, rel_tol=1e-3)


def _skips(steps: Tensor, config: ModelConfig) -> bool:
    """Whether trials are skipped between two that follow each other."""
    return numbers_trials(config) and bool((steps > MOST).any())


def _warn_gap(found: bool) -> None:
    if found:
        warn(
            "x of a series skips trials, or its targets are not those directly after the context, as in no series of "
            "training: densities are unreliable there; give whole series, or each part as one, numbered anew",
        )

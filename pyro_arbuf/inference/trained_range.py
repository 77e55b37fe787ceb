"""Warnings where data leave what a network was trained on, in the user's units, with the remedy.

The texts do not say what was given: Python shows a text once per line of code, so that a loop over data sets warns
once.
"""

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.dates import as_dates
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.parts import Range
from pyro_arbuf.network.tracing import is_traced
from pyro_arbuf.network.visibility import context_mask
from pyro_arbuf.user_warnings import warn

CLOSE = 0.01  # share of the trained spacing that is no difference, of the usual gap of a data set
CLOSEST = 0.6  # of it: single gaps below are too close, those above may be of times rounded to milliseconds
SLACK = 1e-6  # of a trained range: units fitted to data put their ends onto its ends, up to rounding


def warn_outside(name: str, values: Tensor, config: ModelConfig) -> None:
    """Warns where a column of inputs or outcomes lies outside the range it had in training; NaN is passed over.

    Args:
        name: "x" or "y".
        values: `(*batch, D)`, in the network's units.
        config: Of the network.
    """
    trained = config.x_range if name == "x" else config.y_range
    if is_traced() or trained is None or values.numel() == 0 or values.requires_grad:
        return
    units = config.unit_map
    pairs = pairs_of(trained, values.shape[-1])[: values.shape[-1]]  # a table may have fewer columns
    # One range is said once for all columns, unless their units differ.
    each = isinstance(trained[0], tuple) or (units is not None and len(pairs) > 1)
    columns = values.detach().flatten(0, -2) if each else values.detach().reshape(-1, 1)
    lows, highs = (ends.tolist() for ends in torch.aminmax(columns, dim=0))
    if any(math.isnan(low) for low in lows):
        lows = columns.nan_to_num(torch.inf, torch.inf, -torch.inf).amin(0).tolist()
        highs = columns.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(0).tolist()
    for i, (pair, low, high) in enumerate(zip(pairs if each else pairs[:1], lows, highs, strict=True)):
        slack = 0.0 if units is None else SLACK * (pair[1] - pair[0])
        if low < pair[0] - slack or high > pair[1] + slack:
            column = f"{name}[..., {i}]" if each else name
            warn(
                f"{column} lies outside the trained range {_in_user_units(name, i, pair, config)}: densities are "
                f"unreliable there; {_remedy(name, i, config)}",
            )


def warn_other_observation(y: Tensor, config: ModelConfig) -> None:
    """Warns where outcomes `(B, n, D_y)` are not those of the one data set that the network was trained for."""
    if is_traced() or config.observation is None or y.shape[1] == 0:
        return
    own = y.new_tensor(config.observation)
    if y.shape[1] != len(own) or not torch.allclose(y, own.expand_as(y), rtol=1e-4):
        warn(
            "y lies outside the trained range, which is one observation: the network was trained by "
            "amortize(observation=...), and posteriors of other data are cut off; train without it for those",
        )


def pairs_of(trained: Range | tuple[Range, ...], dim: int) -> list[Range]:
    """A trained range as a pair for each of the columns."""
    pairs = [pair for pair in trained if isinstance(pair, tuple)]
    return pairs or [cast(Range, trained)] * dim


def _in_user_units(name: str, column: int, pair: Range, config: ModelConfig) -> str:
    """A trained range as the user has it; days as dates."""
    if config.missing_x or (name == "y" and config.standardised_by_context):
        return f"{list(pair)} of numbers that their context standardises"
    units = config.unit_map
    maps = None if units is None else units.x if name == "x" else units.y
    if units is None or maps is None:
        return str(list(pair))
    loc, scale = (part[column] for part in maps)
    ends = [loc + scale * end for end in pair]
    if name == "x" and units.dates is not None and units.dates[column]:
        size = 10 if ends[1] - ends[0] > 10 else 19  # to the day, or to the second
        return " to ".join(str(date)[:size] for date in as_dates(np.array(ends)))
    return f"[{ends[0]:.6g}, {ends[1]:.6g}]"


def _remedy(name: str, column: int, config: ModelConfig) -> str:
    if name == "y" and config.kinds[column].support.is_discrete:
        return "the network has seen no such outcomes in training, and discrete ones have no units to change"
    if config.missing_x:
        return (
            "give the context rows with such numbers; where it has none, state the unit by "
            f"net.in_units({name}_loc=..., {name}_scale=...)"
        )
    if name == "y" and config.standardised_by_context:
        return "look for artefacts, as they are far from the others of their context"
    if config.x_spacing is not None:
        return (
            "give pieces of a long recording, each a context of its own, and state where time begins and in what unit "
            "it is by net.in_units(x_loc=..., x_scale=...)"
        )
    if config.latents and name == "x" and pairs_of(cast(Range, config.x_range), column + 1)[column] == (0.0, 0.0):
        return "the program has no inputs, for which x holds zeros: give torch.zeros(n, 1)"
    if config.latents:
        return (
            "where the data are in other units than the program's, let the network take them by "
            f"net.in_units({name}_scale=...)"
        )
    return (
        "let the network take the units of the data, net = net.in_units(x=[x_obs, x_new], y=y_obs), which puts x onto "
        "the range and y to unit scale; densities come in these units"
    )


def warn_spacing(
    x: Tensor,
    config: ModelConfig,
    context_len: Tensor | None = None,
    context: Context | None = None,
) -> None:
    """Warns where two inputs of a data set are closer than in training, or two of a context are equal.

    Equal targets are passed over, and targets at observed inputs.

    Args:
        x: `(*batch, T, 1)`, in the network's units.
        config: Of the network.
        context_len: `(B,)`, how many inputs are no padding; `None` = all.
        context: Of targets, the context whose observations they may be too close to.
    """
    if config.x_spacing is None or is_traced() or x.requires_grad:
        return
    if context_len is not None:
        x = x.masked_fill(~context_mask(context_len, x.shape[1]).unsqueeze(-1), torch.inf)
    found = [x.detach().squeeze(-1).sort(-1).values.diff(dim=-1)]
    if context is None and bool((found[0] == 0).any()):
        warn(
            "x of a context holds equal points, where a recording has one sample at a time: densities are unreliable "
            "there; give trials as a batch of contexts, and times that float32 cannot tell apart as float64",
        )
    if context is not None:
        observed, _, length = context.observations
        if length is not None:
            observed = observed.masked_fill(~context_mask(length, observed.shape[1]).unsqueeze(-1), torch.inf)
        found.append((x.detach() - observed.detach().mT.view(*context.task_shape, 1, -1)).abs())
    if any(bool(((gaps > 0) & (gaps < CLOSEST * config.x_spacing)).any()) for gaps in found) or _is_fast(
        found[0], config
    ):
        scale = 1.0 if config.user_x_scale is None else config.user_x_scale[0]
        warn(
            f"x holds points closer to each other than {config.x_spacing * scale:.6g}, the trained spacing: densities "
            "are unreliable there; give every second point, or every third, so that none are closer",
        )


def _is_fast(gaps: Tensor, config: ModelConfig) -> bool:
    """Whether the usual gap `(*batch, T - 1)` of some data set is below the trained one, whatever is rounded."""
    assert config.x_spacing is not None
    if not gaps.shape[-1]:
        return False
    usual = gaps.masked_fill((gaps <= 0) | gaps.isinf(), torch.nan).nanmedian(-1).values
    return bool((usual < (1 - CLOSE) * config.x_spacing).any())


def warn_outside_counts(name: str, value: int, trained: tuple[int, int] | None) -> None:
    """Warns where a number of pairs lies outside the range it had in training; `None` = nothing is known."""
    if trained is not None and not is_traced() and not trained[0] <= value <= trained[1]:
        warn(
            f"{name} lies outside the trained range {list(trained)}: densities are unreliable there",
        )

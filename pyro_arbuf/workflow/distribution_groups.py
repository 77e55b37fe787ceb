"""The groups of ArviZ's schema of a joint or a posterior by itself, with the data in its context."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Size, Tensor

from pyro_arbuf.distributions.base import ArBufferDistribution
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.dates import as_dates
from pyro_arbuf.inference.outcome_sites import split_sites
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.visibility import context_mask
from pyro_arbuf.workflow.groups import Groups, label
from pyro_arbuf.workflow.posterior_draws import draw_latents
from pyro_arbuf.workflow.trace_sites import Names, rename_dimensions

NANOSECOND_DAYS = 106_751.0  # from 1970 to the last whole days that nanoseconds of 64 bits hold, both ways


def joint_groups(
    joint: ArBufferDistribution, draws: Tensor | int, observed: Tensor | None, dims: Mapping[str, Sequence[str]]
) -> Groups:
    """Groups of a distribution by itself, its outcome called y; `draws` `(S, *batch, *event)`, or how many to draw."""
    batch, context = joint.batch_shape, joint.context
    batch_names = tuple(f"y_dim_{i}" for i in range(len(batch)))
    names = {
        "y": (*batch_names, "target", "output")[: len(batch) + len(joint.event_shape)],
        "x": (*batch_names, "target", "input"),
        "x_context": (*batch_names, "context", "input"),
        "y_context": (*batch_names, "context", "output")[: len(batch) + len(joint.event_shape)],
    }
    names = {name: rename_dimensions(name, own, dims) for name, own in names.items()}
    groups: Groups = {}
    if observed is not None:
        outcomes = joint._as_tensor(observed)
        density = joint.log_prob(outcomes)
        groups["observed_data"] = {"y": label("y", outcomes, names["y"])}
        groups["joint_log_likelihood"] = {"y": label("y", density, names["y"][: len(batch)])}
    draws = joint.sample(Size([draws])) if isinstance(draws, int) else draws
    drawn = label("y", draws, names["y"], (1, len(draws)))
    groups["predictions" if observed is None else "posterior_predictive"] = {"y": drawn}
    config, (x_context, y_context) = context.model.config, _data(context, joint.x)
    if config.dim_y is None:  # integers, as a scalar outcome is drawn and observed
        (y_context,) = _by_site(y_context, context).values()
    constants = {"x": joint.x, "x_context": x_context, "y_context": y_context}
    event_dims = {"x": 2, "x_context": 2, "y_context": len(joint.event_shape)}
    groups["constant_data"] = {
        name: label(name, value.expand(*batch, *value.shape[value.dim() - event_dims[name] :]), names[name])
        for name, value in constants.items()
    }
    for name in ("x", "x_context"):
        groups["constant_data"][name] = _with_dates(groups["constant_data"][name], config)
    return groups


def posterior_groups(posterior: ArBufferPosterior, num_draws: int, dims: Mapping[str, Sequence[str]]) -> Groups:
    """Groups of an amortised posterior by itself: draws, their log density, and the data, in the user's units."""
    batch, context = posterior.batch_shape, posterior.context
    sites, density = draw_latents(posterior, num_draws)
    subjects = tuple(["data_set", *(f"data_set_{i}" for i in range(1, len(batch)))][: len(batch)])
    names: dict[str, Names] = {
        name: (*subjects, *(f"{name}_dim_{i}" for i in range(value.dim() - 1 - len(batch))))
        for name, value in sites.items()
    }
    groups: Groups = {
        "posterior": {
            name: label(name, value, rename_dimensions(name, names[name], dims), (1, num_draws))
            for name, value in sites.items()
        },
        "sample_stats": {"lp": label("lp", density, subjects, (1, num_draws))},
    }
    if context.num_context:
        x, y = _data(context, context.x[..., : context.model.config.dim_x])
        outcomes = {name: _expanded(value, posterior) for name, value in _by_site(y, context).items()}
        own = {name: (*subjects, "trial", f"{name}_output")[: value.dim()] for name, value in outcomes.items()}
        groups["observed_data"] = {
            name: label(name, value, rename_dimensions(name, own[name], dims)) for name, value in outcomes.items()
        }
        inputs = "x" if "x" not in outcomes else "inputs"
        rows = rename_dimensions(inputs, (*subjects, "trial", "input"), dims)
        found = label(inputs, _expanded(x, posterior), rows)
        groups["constant_data"] = {inputs: _with_dates(found, context.model.config)}
    return groups


def _expanded(value: Tensor, posterior: ArBufferPosterior) -> Tensor:
    """Data of a posterior's context `(*task, ...)` as `(*batch, ...)`."""
    return value.expand(*posterior.batch_shape, *value.shape[len(posterior.context.task_shape) :])


def _data(context: Context, like: Tensor) -> tuple[Tensor, Tensor]:
    """The data of a context in the user's units, `(*task, N, D_x)` and `(*task, N)` or `(*task, N, D_y)`.

    NaN where a data set has fewer pairs than another; inputs of no pairs have as many columns as `like`.
    """
    x, y, length = context.observations
    x = x if x.shape[1] else x.new_zeros(len(x), 0, like.shape[-1])
    x, y = (part.view(*context.task_shape, *part.shape[1:]) for part in (x, y))
    if context.maps is not None:
        x, y = context.maps.user_x(x), context.maps.user_y(y)
    if length is not None:
        padding = ~context_mask(length, context.num_context).view(*context.task_shape, -1, 1)
        x, y = x.masked_fill(padding, torch.nan), y.masked_fill(padding, torch.nan)
    return x, context.model.config.squeeze_outcome(y)


def _by_site(y: Tensor, context: Context) -> dict[str, Tensor]:
    """Outcomes by site; categories are integers, or numbers where NaN is among them."""
    found, missing = split_sites(y, context.model.config), y.isnan()
    if not bool(missing.any()):
        return found
    masks = split_sites(missing.to(y.dtype), context.model.config)
    return {name: value.to(y.dtype).masked_fill(masks[name].bool(), torch.nan) for name, value in found.items()}


def _with_dates(array: xr.DataArray, config: ModelConfig) -> xr.DataArray:
    """Inputs as dates where all of their columns are; where only some are, dates stay days since 1970-01-01."""
    if not (config.user_dates and all(config.user_dates)):
        return array
    dates, fits = as_dates(array.values), not bool((np.abs(array.values) > NANOSECOND_DAYS).any())
    return array.copy(data=dates.astype("datetime64[ns]") if fits else dates)

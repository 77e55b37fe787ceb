"""Draws, data and densities of a Pyro model as an xarray DataTree, for either line of ArviZ.

A chain factor p(y_k | y_<k) never gets into `log_likelihood`; joint scores have a group of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from pyro.infer import MCMC, Importance
from torch import Size, Tensor

from pyro_arbuf.distributions.marginals import ArBufferDistribution
from pyro_arbuf.network.visibility import context_mask
from pyro_arbuf.random_state import seeded
from pyro_arbuf.workflow.loo import arviz_line
from pyro_arbuf.workflow.posterior_draws import Fit, read_fit
from pyro_arbuf.workflow.predictive import predictive
from pyro_arbuf.workflow.trace_sites import (
    SAMPLE,
    Names,
    check_draws,
    check_names,
    dimension_names,
    is_deterministic,
    observed_sites,
    pointwise_log_prob,
    rename_dimensions,
    replayed_traces,
    sample_sites,
    unless_masked,
)

Draws = Mapping[str, Tensor]
GROUPS = (
    "posterior",
    "sample_stats",
    "posterior_predictive",
    "predictions",
    "prior",
    "prior_predictive",
    "observed_data",
    "constant_data",
    "log_likelihood",
    "joint_log_likelihood",
)


def to_datatree(
    draws: MCMC | Importance | Draws | ArBufferDistribution,
    model: Callable | None = None,
    *args: object,
    observed: Tensor | None = None,
    num_samples: int | None = None,
    posterior_predictive: Draws | None = None,
    predictions: Draws | None = None,
    prior: Draws | None = None,
    constant_data: Draws | None = None,
    log_likelihood: Draws | None = None,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int | None = None,
) -> xr.DataTree:
    """Collects a fit in ArviZ's schema; ArviZ 1.x reads it as it is, `to_inference_data` is for ArviZ 0.x.

    Groups: posterior (with deterministic sites), sample_stats, posterior_predictive, predictions, prior,
    prior_predictive, observed_data, constant_data, log_likelihood, joint_log_likelihood.

    `log_likelihood`, which `az.loo` reads, gets one entry per independent event: elements of ordinary sites and of
    ArBufferMarginals, subjects of an ArBufferJoint in a plate. The density of a single joint event goes to
    `joint_log_likelihood`; for its targets pass full conditionals, from `loo_conditionals`. Labels at which nothing
    was observed (NaN, masked) are left out of it.

    Dimensions are named after plates, `target` and `output` for those of ArBuffer sites (`{site}_target` where sites
    differ in M), `{site}_dim_0` and so on otherwise. In `predictions` targets are `new_target`, and a plate of another
    size than in the fit is `new_{plate}`.

    Args:
        draws: A finished MCMC (chains kept), a run Importance, `(S, *site)` draws by latent (e.g. of a guide), or an
            ArBufferJoint alone.
        model: The Pyro model; `None` = the one that MCMC or Importance ran, with its arguments. Given with draws by
            latent, everything else is computed from it; bind keyword arguments with functools.partial.
        *args: Of `model`, observed outcomes included.
        observed: For an ArBufferJoint alone: outcomes `(*batch, M)` or `(*batch, M, D_y)`. Its draws are then the
            posterior predictive "y", else predictions.
        num_samples: For an ArBufferJoint alone: how many draws, 1000 where `None`. For Importance: how many equally
            weighted draws to resample (systematically); `None` = all, `log_weight` in sample_stats, which ArviZ
            ignores.
        posterior_predictive: Draws of observed sites, `(S, *site)`; `None` = computed by `predictive`, fast for a
            model that runs for several draws at once; {} = none.
        predictions: Draws at new inputs, as `predictive` returns them.
        prior: Draws as `pyro.infer.Predictive(model, num_samples=...)` returns them; observed sites among them make
            prior_predictive.
        constant_data: Inputs and the like, of any shape.
        log_likelihood: `(S, *batch, M)` or `(S, *batch)` pointwise densities by observed site, in place of those
            computed here.
        coords: Labels by dimension.
        dims: Names of dimensions, in place of those found, by variable.
        seed: Makes the result reproducible and leaves the caller's random state as it was; `None` = the global state.

    Returns:
        Densities are in nats, values in the units of the sites.

    Raises:
        ValueError: If `draws` is nothing of that kind or has not run, draws do not fit the model, or a name, shape or
            length does not fit.

    Example:
        >>> from pyro_arbuf import ArBufferJoint, ArBufferModel, ModelConfig
        >>> net = ArBufferModel(ModelConfig()).requires_grad_(False)
        >>> weeks = torch.linspace(0, 1, 3)[:, None]
        >>> tree = to_datatree(ArBufferJoint(net.condition(), weeks), num_samples=7, coords={"target": [50, 51, 52]})
        >>> dict(tree["predictions"].sizes)
        {'chain': 1, 'draw': 7, 'target': 3}
    """
    given = {
        "posterior_predictive": posterior_predictive,
        "predictions": predictions,
        "prior": prior,
        "log_likelihood": log_likelihood,
    }
    given = {group: values for group, values in given.items() if values}
    for group, values in given.items():
        check_draws(group, values)
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}")
    with seeded(seed):
        if isinstance(draws, ArBufferDistribution):
            if model is not None or given:
                raise ValueError(
                    "an ArBufferJoint alone takes observed, num_samples, constant_data, coords, dims and seed; got "
                    f"{sorted(given) or 'a model'} too; for a Pyro model pass its draws"
                )
            groups = _joint_groups(draws, observed, 1000 if num_samples is None else num_samples, dims or {})
        else:
            if observed is not None or (num_samples is not None and not isinstance(draws, Importance)):
                raise ValueError(
                    "observed is for an ArBufferJoint alone, num_samples for that and Importance; got draws of type "
                    f"{type(draws).__name__}; outcomes are among the model's arguments"
                )
            fit = read_fit(draws, model, args, num_samples)
            groups = _fit_groups(fit, given, posterior_predictive is None, dims or {})
    constants = {name: _label(name, values, (dims or {}).get(name)) for name, values in (constant_data or {}).items()}
    groups["constant_data"] = {**groups.get("constant_data", {}), **constants}
    return _tree(groups, coords or {}, dims or {})


def to_inference_data(draws: Any, model: Callable | None = None, *args: object, **options: Any) -> Any:
    """The same as an `arviz.InferenceData`, for ArviZ 0.x.

    Args:
        draws: As for `to_datatree`.
        model: Likewise.
        *args: Likewise.
        **options: Likewise.

    Raises:
        RuntimeError: If ArviZ 0.x is not installed.
        ValueError: As `to_datatree`.
    """
    if arviz_line() != 0:
        raise RuntimeError(
            "to_inference_data needs ArviZ 0.x; got a later one or none; use to_datatree, which ArviZ 1.x reads"
        )
    import arviz

    return arviz.InferenceData.from_datatree(to_datatree(draws, model, *args, **options))


def _fit_groups(fit: Fit, given: dict[str, Draws], predict: bool, dims: Mapping) -> dict[str, dict[str, xr.DataArray]]:
    num_draws = check_draws("draws", fit.draws)
    chains = (fit.num_chains, num_draws // fit.num_chains)
    names, targets, observed = {name: tuple(own) for name, own in dims.items()}, set(), {}
    if fit.model is not None:
        first = next(replayed_traces(fit.model, fit.draws, fit.args, fit.kwargs))
        names, targets = dimension_names(first, dims)
        observed = {name: site["value"] for name, site in observed_sites(first).items()}
    check_names([*fit.draws, *names, *(name for values in given.values() for name in values)], names)
    for group in ("posterior_predictive", "log_likelihood"):
        for name, values in given.get(group, {}).items():
            if fit.model is not None and name not in observed:
                raise ValueError(f"{group} must hold observed sites, of {sorted(observed)}; got {name!r}")
            if len(values) != num_draws:
                raise ValueError(
                    f"{group}[{name!r}] must hold the {num_draws} draws of the posterior; got {len(values)}"
                )
    predicted = given.get("posterior_predictive", {})
    if predict and observed:
        drawn = predictive(fit.model, fit.draws, *fit.args, **fit.kwargs)
        predicted = {name: drawn[name] for name in observed}
    computed, pointwise, joint = _evaluate(fit, set(given.get("log_likelihood", {})))
    sampled = {
        "posterior": {**fit.draws, **computed},
        "posterior_predictive": predicted,
        "log_likelihood": {**pointwise, **given.get("log_likelihood", {})},
        "joint_log_likelihood": joint,
    }
    groups = {
        "sample_stats": {
            **{name: _label(name, value, (), chains) for name, value in fit.per_draw.items()},
            **{name: _label(name, value, ("chain",)) for name, value in fit.per_chain.items()},
        },
        "observed_data": {name: _label(name, value, names[name]) for name, value in observed.items()},
        **{group: {} for group in ("prior", "prior_predictive", "predictions")},
    }
    for group, by_name in sampled.items():
        groups[group] = {}
        for name, values in by_name.items():
            own = names.get(name)
            if own is not None and group.endswith("log_likelihood"):
                own = own[: values.dim() - 1]  # densities lack the last dimensions of the value
            groups[group][name] = _label(name, values, own, chains)
    for name, values in given.get("prior", {}).items():
        group = "prior_predictive" if name in observed else "prior"
        groups[group][name] = _label(name, values, names.get(name), (1, len(values)))
    sizes = {dim: size for group in groups.values() for array in group.values() for dim, size in array.sizes.items()}
    for name, values in given.get("predictions", {}).items():
        array = _label(name, values, names.get(name), chains if len(values) == num_draws else (1, len(values)))
        new = [d for d in array.dims[2:] if d in targets or sizes.get(d, array.sizes[d]) != array.sizes[d]]
        groups["predictions"][name] = array.rename({dim: f"new_{dim}" for dim in new})
    return groups


def _evaluate(fit: Fit, given: set[str]) -> list[dict[str, Tensor]]:
    """Deterministic sites, pointwise and joint densities at every draw; where pointwise ones are given, the joint."""
    computed, pointwise, joint = {}, {}, {}
    traces = () if fit.model is None else replayed_traces(fit.model, fit.draws, fit.args, fit.kwargs)
    for trace in traces:
        for name, site in sample_sites(trace).items():
            if is_deterministic(site):
                computed.setdefault(name, []).append(site["value"])
        for name, site in observed_sites(trace).items():
            with torch.no_grad():
                density = None if name in given else pointwise_log_prob(site)
                if density is not None:
                    pointwise.setdefault(name, []).append(density)
                else:
                    joint.setdefault(name, []).append(unless_masked(site, site["fn"].log_prob(site["value"])))
    return [{name: torch.stack(values) for name, values in part.items()} for part in (computed, pointwise, joint)]


def _joint_groups(
    joint: ArBufferDistribution, observed: Tensor | None, num_samples: int, dims: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, xr.DataArray]]:
    """Groups of a distribution by itself, its outcome called y."""
    batch, context = joint.batch_shape, joint.context
    batch_names = tuple(f"y_dim_{i}" for i in range(len(batch)))
    names = {
        "y": (*batch_names, "target", "output")[: len(batch) + len(joint.event_shape)],
        "x": (*batch_names, "target", "input"),
        "x_context": (*batch_names, "context", "input"),
        "y_context": (*batch_names, "context", "output")[: len(batch) + len(joint.event_shape)],
    }
    names = {name: rename_dimensions(name, own, dims) for name, own in names.items()}
    groups: dict[str, dict[str, xr.DataArray]] = {}
    if observed is not None:
        density = joint.log_prob(observed)
        groups["observed_data"] = {"y": _label("y", observed, names["y"])}
        groups["joint_log_likelihood"] = {"y": _label("y", density, names["y"][: len(batch)])}
    drawn = _label("y", joint.sample(Size([num_samples])), names["y"], (1, num_samples))
    groups["predictions" if observed is None else "posterior_predictive"] = {"y": drawn}
    x_context, y_context, length = context.observations
    if length is not None:
        padding = ~context_mask(length, context.num_context).unsqueeze(-1)
        x_context, y_context = x_context.masked_fill(padding, torch.nan), y_context.masked_fill(padding, torch.nan)
    if len(joint.event_shape) == 1:
        y_context = y_context.squeeze(-1)
    constants = {"x": joint.x}
    for name, value in (("x_context", x_context), ("y_context", y_context)):
        constants[name] = value.view(*context.task_shape, *value.shape[1:])
    event_dims = {"x": 2, "x_context": 2, "y_context": len(joint.event_shape)}
    groups["constant_data"] = {
        name: _label(name, value.expand(*batch, *value.shape[value.dim() - event_dims[name] :]), names[name])
        for name, value in constants.items()
    }
    return groups


def _label(name: str, values: object, names: Names | None, chains: tuple[int, int] | None = None) -> xr.DataArray:
    """Values of a site, or draws `(S, *site)` of it for `chains` = (chains, draws), with names for their dimensions."""
    if not isinstance(values, Tensor):
        raise ValueError(f"{name!r} must be a torch.Tensor; got {type(values).__name__}; use torch.as_tensor")
    shape = values.shape if chains is None else values.shape[1:]
    names = tuple(f"{name}_dim_{i}" for i in range(len(shape))) if names is None else tuple(names)
    names = names[max(len(names) - len(shape), 0) :]  # data may lack the dimensions of plates
    while chains is not None and len(shape) > len(names) and shape[0] == 1:  # draws of Pyro's Predictive and of guides
        shape = shape[1:]
    if len(names) != len(shape) or any(n is None and size != 1 for n, size in zip(names, shape, strict=True)):
        raise ValueError(f"{name!r} must have the dimensions {names}, size 1 where None; got shape {tuple(shape)}")
    kept = [(n, size) for n, size in zip(names, shape, strict=True) if n is not None]
    sample_shape, sample_names = ((), ()) if chains is None else (chains, SAMPLE)
    array = values.detach().cpu().numpy().reshape((*sample_shape, *(size for _, size in kept)))
    return xr.DataArray(array, dims=(*sample_names, *(n for n, _ in kept)))


def _tree(
    groups: dict[str, dict[str, xr.DataArray]], coords: Mapping[str, Sequence], dims: Mapping[str, Sequence[str]]
) -> xr.DataTree:
    groups = {group: groups[group] for group in GROUPS if groups.get(group)}
    found = {dim for arrays in groups.values() for array in arrays.values() for dim in array.dims}
    variables = {name for arrays in groups.values() for name in arrays}
    for argument, given, known in (("coords", coords, found), ("dims", dims, variables)):
        if set(given) - known:
            raise ValueError(f"{argument} must have keys among {sorted(known)}; got {sorted(set(given) - known)}")
    datasets = {}
    for group, arrays in groups.items():
        sizes: dict[str, int] = {}
        hidden = sorted(set(arrays) & {dim for array in arrays.values() for dim in array.dims})
        if hidden:
            raise ValueError(
                f"no site may have the name of a dimension, whose labels would take its place in {group}; got "
                f"{hidden}; name the dimension otherwise by dims={{site: [...]}}"
            )
        for name, array in arrays.items():
            for dim, size in array.sizes.items():
                labels = len(coords.get(dim, range(size)))
                if labels != size or sizes.setdefault(dim, size) != size:
                    raise ValueError(
                        f"dimension {dim!r} must have one length, and as many labels in coords; got length {size} of "
                        f"{name!r}, {sizes.get(dim, size)} of others in {group}, {labels} labels; give different "
                        "dimensions different names with dims"
                    )
            array = array.assign_coords({dim: np.asarray(coords.get(dim, range(n))) for dim, n in array.sizes.items()})
            if group == "log_likelihood":
                for dim in array.dims[2:]:
                    array = array.dropna(dim, how="all")
                if bool(array.isnull().any()):  # missing here and there: the rest as one dimension
                    rest = f"{name}_observed"
                    array = array.stack({rest: array.dims[2:]}).dropna(rest).reset_index(rest)
            arrays[name] = array
        datasets[group] = xr.Dataset(arrays)
    tree = xr.DataTree.from_dict(datasets)
    tree.attrs = {
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "creation_library": "pyro_arbuf",
    }
    return tree

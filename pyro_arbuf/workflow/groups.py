"""The groups of ArviZ's schema: values and densities of a fit as labelled arrays, and their tree.

A chain factor p(y_k | y_<k) never gets into `log_likelihood`; joint scores have a group of their own. Imports xarray,
so `datatree` imports this module where it is used.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyro
import torch
import xarray as xr
from torch import Tensor

from pyro_arbuf.user_warnings import warn
from pyro_arbuf.workflow.densities import hidden_by_masks, pointwise_log_prob, prior_log_prob, unless_masked
from pyro_arbuf.workflow.posterior_draws import Fit
from pyro_arbuf.workflow.predictive import predictive
from pyro_arbuf.workflow.trace_sites import (
    SAMPLE,
    Site,
    check_draws,
    check_names,
    dimension_names,
    is_deterministic,
    latent_sites,
    observed_sites,
    replayed_traces,
    sample_sites,
    without_auxiliaries,
)

Draws = Mapping[str, Tensor]
Groups = dict[str, dict[str, xr.DataArray]]
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
    "log_prior",
    "prior_sbc",
    "posterior_sbc",
    "proposals",
)
DENSITIES = ("log_likelihood", "joint_log_likelihood", "log_prior")


def _seen(site: Site) -> Tensor:
    """The value of an observed site, NaN where a mask says that nothing was observed."""
    value = site["value"]
    if not isinstance(value, Tensor):  # what takes it says so
        return value
    hidden = hidden_by_masks(site)
    return value.expand(hidden.shape).double().masked_fill(hidden, torch.nan) if bool(hidden.any()) else value


def fit_groups(fit: Fit, given: dict[str, Draws], predict: bool, dims: Mapping[str, Sequence[str]]) -> Groups:
    """Groups of a fit of a Pyro model.

    Args:
        fit: What `read_fit` returns.
        given: Draws and densities by group, in place of those computed here.
        predict: Whether observed sites are drawn at every posterior draw where they are not given.
        dims: Names of dimensions by variable, in place of those found.

    Raises:
        ValueError: If draws do not fit the model, or a name, shape or length does not fit.
    """
    num_draws = check_draws("draws", fit.draws)
    chains = (fit.num_chains, num_draws // fit.num_chains)
    names, targets, observed = {name: tuple(own) for name, own in dims.items()}, set(), {}
    hidden = False
    if fit.model is not None:
        first = next(replayed_traces(fit.model, fit.draws, fit.args, fit.kwargs, bool(fit.outcomes)))
        latents = latent_sites(first)
        fit = fit._replace(draws=without_auxiliaries(fit.draws, latents))
        names, targets = dimension_names(first, dims)
        observed = {name: _seen(site) for name, site in observed_sites(first).items()}
        hidden = not fit.draws.keys() >= latents.keys()
    check_names([*fit.draws, *names, *(name for values in given.values() for name in values)], names)
    _check_given(given, None if fit.model is None else set(observed), num_draws)
    groups = {
        "sample_stats": {
            **{name: label(name, value, (), chains) for name, value in fit.per_draw.items()},
            **{name: label(name, value, ("chain",)) for name, value in fit.per_chain.items()},
        },
        "observed_data": {name: label(name, value, names[name]) for name, value in observed.items()},
        "constant_data": {name: label(name, value, None) for name, value in fit.constants.items()},
        "proposals": {name: label(name, v, names.get(name), (1, len(v))) for name, v in fit.proposals.items()},
        **{group: {} for group in ("prior", "prior_predictive", "predictions")},
    }
    for group, by_name in _sampled(fit, given, predict, list(observed), hidden).items():
        groups[group] = {}
        for name, values in by_name.items():
            own = names.get(name)
            if own is not None and group in DENSITIES:
                own = own[: values.dim() - 1]  # densities lack the last dimensions of the value
            groups[group][name] = label(name, values, own, chains)
    for name, values in given.get("prior", {}).items():
        group = "prior_predictive" if name in observed else "prior"
        groups[group][name] = label(name, values, names.get(name), (1, len(values)))
    sizes = {dim: size for group in groups.values() for array in group.values() for dim, size in array.sizes.items()}
    for name, values in given.get("predictions", {}).items():
        array = label(name, values, names.get(name), chains if len(values) == num_draws else (1, len(values)))
        new = [d for d in array.dims[2:] if d in targets or sizes.get(d, array.sizes[d]) != array.sizes[d]]
        groups["predictions"][name] = array.rename({dim: f"new_{dim}" for dim in new})
    _join_loops(groups, [name for name in fit.outcomes if name not in observed])
    return groups


def _check_given(given: dict[str, Draws], observed: set[str] | None, num_draws: int) -> None:
    """Raises ValueError if what is given of observed sites is of others, or of another number of draws.

    Without a model, `observed` is `None`, and every name is taken.
    """
    for group in ("posterior_predictive", "log_likelihood"):
        for name, values in given.get(group, {}).items():
            if observed is not None and name not in observed:
                raise ValueError(f"{group} must hold observed sites, of {sorted(observed)}; got {name!r}")
            if len(values) != num_draws:
                raise ValueError(
                    f"{group}[{name!r}] must hold the {num_draws} draws of the posterior; got {len(values)}"
                )


def _sampled(
    fit: Fit, given: dict[str, Draws], predict: bool, observed: Sequence[str], hidden: bool
) -> dict[str, Draws]:
    """Draws and densities `(S, ...)` at every posterior draw, by group: given ones, or else computed."""
    predicted = given.get("posterior_predictive", {})
    if predict and observed and fit.model is not None:
        drawn = predictive(fit.model, fit.draws, *fit.args, **fit.kwargs)
        predicted = {name: drawn[name] for name in observed}
    computed, pointwise, joint, prior = _evaluate(fit, set(given.get("log_likelihood", {})), hidden)
    return {
        "posterior": {**fit.draws, **computed},
        "posterior_predictive": predicted,
        "log_likelihood": {**pointwise, **given.get("log_likelihood", {})},
        "joint_log_likelihood": joint,
        "log_prior": prior,
    }


def _evaluate(fit: Fit, given: set[str], hidden: bool) -> list[dict[str, Tensor]]:
    """Deterministic sites, and densities at every draw: pointwise, joint where none are given, and those of latents.

    Sites without a density have none here. Where latents are hidden, as a program draws more than the posterior has,
    nothing is evaluated: they would have to be integrated out.
    """
    computed, pointwise, joint, prior = {}, {}, {}, {}
    traces = () if fit.model is None or hidden else replayed_traces(fit.model, fit.draws, fit.args, fit.kwargs)
    for trace in traces:
        sites, observed = sample_sites(trace), observed_sites(trace)
        with torch.no_grad():
            for name, site in sites.items():
                if is_deterministic(site):
                    computed.setdefault(name, []).append(site["value"])
                elif name not in observed and (density := prior_log_prob(name, site, observed)) is not None:
                    prior.setdefault(name, []).append(density)
            for name, site in observed.items():
                with contextlib.suppress(NotImplementedError):
                    density = None if name in given else pointwise_log_prob(site)
                    if density is not None:
                        pointwise.setdefault(name, []).append(density)
                    else:
                        density = unless_masked(site, site["fn"].log_prob(site["value"]), 0)
                        joint.setdefault(name, []).append(density)
    return [{name: torch.stack(v) for name, v in part.items()} for part in (computed, pointwise, joint, prior)]


def _join_loops(groups: Groups, outcomes: Sequence[str]) -> None:
    """Makes one variable of the sites of a loop over trials; of trials that depend on each other, the joint density."""
    for outcome in outcomes:
        for arrays in list(groups.values()):
            parts: list[xr.DataArray] = []
            while f"{outcome}_{len(parts)}" in arrays:
                part = arrays.pop(f"{outcome}_{len(parts)}")
                parts.append(part.rename({dim: f"{outcome}_dim_0" for dim in part.dims if dim not in SAMPLE}))
            if parts:
                joined = xr.concat(parts, "trial")
                arrays[outcome] = joined.transpose(*(d for d in SAMPLE if d in joined.dims), "trial", ...)
        if outcome in groups["log_likelihood"]:
            factors = groups["log_likelihood"].pop(outcome)
            groups["joint_log_likelihood"][outcome] = factors.sum("trial")


def label(
    name: str, values: object, names: Sequence[str | None] | None, chains: tuple[int, int] | None = None
) -> xr.DataArray:
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


def assemble_tree(
    groups: Groups, coords: Mapping[str, Sequence], dims: Mapping[str, Sequence[str]], given: Collection[str] = ()
) -> xr.DataTree:
    """The tree of all groups that hold something, in the order of `GROUPS`.

    Args:
        groups: Labelled arrays by group and name.
        coords: Labels by dimension; `range` for those without.
        dims: What the user named, to be checked.
        given: Sites whose pointwise densities the user gave, where NaN at every draw says that nothing was observed.

    Raises:
        ValueError: If a key is unknown, a name is that of a dimension, or lengths differ.
    """
    groups = {group: groups[group] for group in GROUPS if groups.get(group)}
    found = {str(dim) for arrays in groups.values() for array in arrays.values() for dim in array.dims}
    variables = {name for arrays in groups.values() for name in arrays}
    for argument, given, known in (("coords", coords, found), ("dims", dims, variables)):
        if set(given) - known:
            raise ValueError(f"{argument} must have keys among {sorted(known)}; got {sorted(set(given) - known)}")
    datasets = {group: _dataset(group, arrays, coords) for group, arrays in groups.items()}
    if "log_likelihood" in datasets:
        data = {name: array for name, array in groups.get("observed_data", {}).items() if name not in given}
        datasets["log_likelihood"] = _of_observed(datasets["log_likelihood"], data)
    tree = xr.DataTree.from_dict({group: dataset for group, dataset in datasets.items() if dataset.data_vars})
    tree.attrs = {
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "creation_library": "pyro_arbuf",
    }
    return tree


def draws_tree(groups: Mapping[str, Draws], observed: Draws | None = None) -> xr.DataTree:
    """The tree of draws `(S, ...)` of one chain by group and name, and of what was observed.

    Raises:
        ValueError: If lengths differ within a group.
    """
    found = {
        group: {name: label(name, value, None, (1, len(value))) for name, value in values.items()}
        for group, values in groups.items()
    }
    found["observed_data"] = {name: label(name, value, None) for name, value in (observed or {}).items()}
    return assemble_tree(found, {}, {})


def _dataset(group: str, arrays: Mapping[str, xr.DataArray], coords: Mapping[str, Sequence]) -> xr.Dataset:
    """The arrays of one group with labels."""
    sizes: dict[str, int] = {}
    hidden = sorted(set(arrays) & {str(dim) for array in arrays.values() for dim in array.dims})
    if hidden:
        raise ValueError(
            f"no site may have the name of a dimension, whose labels would take its place in {group}; got "
            f"{hidden}; name the dimension otherwise by dims={{site: [...]}}"
        )
    labelled = {}
    for name, array in arrays.items():
        lengths = {str(dim): size for dim, size in array.sizes.items()}
        for dim, size in lengths.items():
            labels = len(coords.get(dim, range(size)))
            if labels != size or sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"dimension {dim!r} must have one length, and as many labels in coords; got length {size} of "
                    f"{name!r}, {sizes.get(dim, size)} of others in {group}, {labels} labels; give different "
                    "dimensions different names with dims"
                )
        labels = {dim: np.asarray(coords.get(dim, range(n))) for dim, n in lengths.items()}
        labelled[name] = array.assign_coords(labels)
    return xr.Dataset(labelled)


def _of_observed(densities: xr.Dataset, data: Mapping[str, xr.DataArray]) -> xr.Dataset:
    """Densities without the labels at which nothing was observed, and without sites of which none are left.

    What is NaN elsewhere stays, with a warning.
    """
    found = {}
    for name in map(str, densities.data_vars):
        array = densities[name]
        unseen = array.isnull().all(SAMPLE)
        values = data.get(name, array[0, 0])  # where no data are known, NaN at every draw says that there are none
        if all(values.sizes.get(dim, size) == size for dim, size in unseen.sizes.items()):
            # A density may be NaN at every draw although its event was observed.
            unseen = unseen & values.isnull().any([dim for dim in values.dims if dim not in unseen.dims])
        if not unseen.dims and bool(unseen):
            continue
        for dim in unseen.dims:
            kept = ~unseen.all([other for other in unseen.dims if other != dim]).values
            array, unseen = array.isel({dim: kept}), unseen.isel({dim: kept})
        if bool(unseen.any()):  # missing here and there: the rest as one dimension
            rest, own = f"{name}_observed", array.dims[2:]
            kept = ~unseen.transpose(*own).stack({rest: own}).values
            array = array.stack({rest: own}).isel({rest: kept}).reset_index(rest)
        found[name] = array
        number, draws = int(array.isnull().any(array.dims[2:]).sum()), array.shape[0] * array.shape[1]
        if number:
            warn(
                f"log_likelihood of site {name!r} is NaN at {number} of {draws} draws where it was observed, and so is "
                "what ArviZ makes of it; see which latents leave its distribution without a density there, or hide it "
                "by a mask, and mend the model or leave these draws out"
            )
    return xr.Dataset(found)

"""Sites of a Pyro model at given latents: which hold data, how their dimensions are called.

Knows nothing of xarray and ArviZ.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from pyro_arbuf.distributions.base import ArBufferDistribution
from pyro_arbuf.progress import progress_bar

Names = tuple[str | None, ...]  # of a site's dimensions; None = of size 1 and outside all plates, left out
SAMPLE = ("chain", "draw")  # dimensions of all draws
Site = Any  # a node of a trace: Pyro's Site, whose type says that any entry may be missing


def nodes(trace: Trace) -> dict[str, Site]:
    """The nodes of a trace by name, a `Site` each."""
    return cast(dict[str, Site], trace.nodes)


def check_draws(name: str, draws: Mapping[str, Tensor]) -> int:
    """Checks draws by site and returns their number S.

    Raises:
        ValueError: If a value is no tensor `(S, ...)`, S >= 1, or they differ in S.
    """
    rule = f"{name} must map names of sites to tensors (S, ...) of the same number of draws S >= 1"
    if not isinstance(draws, Mapping) or not all(isinstance(v, Tensor) and v.dim() for v in draws.values()):
        got = {k: type(v).__name__ for k, v in draws.items()} if isinstance(draws, Mapping) else type(draws).__name__
        raise ValueError(f"{rule}; got {got}; use torch.stack for a list of draws, and torch.as_tensor for an array")
    sizes = {key: len(value) for key, value in draws.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(f"{rule}; got {sizes}; of MCMC take get_samples(), chains merged")
    return next(iter(sizes.values()))


def without_auxiliaries(draws: Mapping[str, Tensor], sites: Collection[str] = ()) -> dict[str, Tensor]:
    """Draws without what autoguides add to those of the latents: `_Auto..._latent`, and `z_unconstrained` beside z.

    Args:
        draws: By name.
        sites: Names of sites that the model draws, which are no additions, whatever they are called.
    """
    twins = {f"{name}_unconstrained" for name in draws}
    return {
        name: values
        for name, values in draws.items()
        if name in sites or not (name.startswith("_Auto") or name in twins)
    }


def same_up_to_ones(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether two shapes differ by dimensions of size 1 only, as those of plates may."""
    return [n for n in shape if n != 1] == [n for n in expected if n != 1]


class _LatentsMessenger(Messenger):
    """Puts one draw in at the latents, in the shape that the model gives them."""

    def __init__(self, draw: Mapping[str, Tensor]):
        super().__init__()
        self._draw = draw

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] not in self._draw or msg["is_observed"]:
            return
        value, shape = self._draw[msg["name"]], msg["fn"].shape()
        msg["value"] = value.reshape(shape) if same_up_to_ones(value.shape, shape) else value


def replayed_traces(
    model: Callable, draws: Mapping[str, Tensor], args: tuple, kwargs: Mapping, some: bool = False
) -> Iterator[Trace]:
    """Runs the model once per draw of its latents, without gradients.

    One by one: this works for any model, and MCMC has run it many times for every draw.

    Args:
        model: The Pyro model.
        draws: `(S, *site)` by site; what autoguides add to those of the latents is left out.
        args: Of the model.
        kwargs: Of the model.
        some: Whether the model may have latents that are not among the draws; they are drawn.

    Returns:
        S traces.

    Raises:
        ValueError: If a site is no latent of the model, one is missing, a shape does not fit, or a plate subsamples.
    """
    num_draws = check_draws("posterior", draws)
    for draw in progress_bar(range(num_draws), desc="densities", delay=2, leave=False, disable=None):
        given = {name: values[draw].detach() for name, values in draws.items()}
        with torch.no_grad(), _LatentsMessenger(given):
            trace = with_tensors(poutine.trace(model).get_trace(*args, **kwargs))
        if draw == 0:
            draws = without_auxiliaries(draws, latent_sites(trace))
            _check_latents(trace, draws, some)
        yield trace


def _check_latents(trace: Trace, draws: Mapping[str, Tensor], some: bool) -> None:
    latents = latent_sites(trace)
    unknown, missing = set(draws) - set(latents), set() if some else set(latents) - set(draws)
    if unknown or missing:
        raise ValueError(
            f"posterior must hold exactly the model's latents {sorted(latents)}; got unknown {sorted(unknown)}, "
            f"missing {sorted(missing)}; leave out what the model observes or computes, and draw enumerated latents "
            "with pyro.infer.infer_discrete"
        )
    for name, site in ((name, latents[name]) for name in draws):
        shape = site["fn"].batch_shape + site["fn"].event_shape
        if not same_up_to_ones(draws[name].shape[1:], shape):
            raise ValueError(
                f"posterior[{name!r}] must have shape (S, *{tuple(shape)}); got {tuple(draws[name].shape)}"
            )
    for name, site in nodes(trace).items():
        if site_is_subsample(site) and len(site["value"]) < site["fn"].size:
            raise ValueError(
                f"plate {name!r} must hold all its data, to tell which density belongs to whom; got a subsample of "
                f"{len(site['value'])} of {site['fn'].size}; use the model with subsample_size=None"
            )


def sample_sites(trace: Trace) -> dict[str, Site]:
    """Latent, observed and deterministic sites; neither plates nor factors."""
    return {
        name: site
        for name, site in nodes(trace).items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site_is_factor(site)
    }


def is_deterministic(site: Site) -> bool:
    """Whether a site is of `pyro.deterministic`, or one that was reparametrised: Pyro counts both as observed."""
    masked = isinstance(site["fn"], MaskedDistribution) and site["fn"]._mask is False
    computed = site["is_observed"] and masked and isinstance(unwrapped(site), Delta)
    return computed or bool(site["infer"].get("_deterministic"))


def numbered(name: str, names: Iterable[str]) -> list[str]:
    """Those names that are another one with a number behind it, as the sites of a loop over trials have."""
    return [each for each in names if re.fullmatch(rf"{re.escape(name)}_\d+", each)]


def latent_sites(trace: Trace) -> dict[str, Site]:
    """Sites that are drawn."""
    return {name: site for name, site in sample_sites(trace).items() if not site["is_observed"]}


def observed_sites(trace: Trace) -> dict[str, Site]:
    """Sites that hold data."""
    return {k: s for k, s in sample_sites(trace).items() if s["is_observed"] and not is_deterministic(s)}


def layers(site: Site) -> list[Any]:
    """A site's distribution and what it wraps (masks, transforms, reinterpreted dimensions), outermost first."""
    found = [site["fn"]]
    while hasattr(found[-1], "base_dist"):
        found.append(found[-1].base_dist)
    return found


def unwrapped(site: Site) -> Any:
    """The distribution inside all masks, events and transforms of a site."""
    return layers(site)[-1]


def with_tensors(trace: Trace) -> Trace:
    """The trace, arrays and tables that our distributions observe put in as the tensors that they are scored as."""
    for site in nodes(trace).values():
        if site["type"] == "sample" and site["is_observed"] and isinstance(fn := unwrapped(site), ArBufferDistribution):
            site["value"] = fn._as_tensor(site["value"])
    return trace


def dimension_names(trace: Trace, dims: Mapping[str, Sequence[str]]) -> tuple[dict[str, Names], set[str]]:
    """Names the dimensions of all sites: plates, `target` and `output`, `{site}_dim_0` and so on.

    Args:
        trace: Of the model.
        dims: A user's names, in place of those found, by site.

    Returns:
        Names by site; and which of them are targets.

    Raises:
        ValueError: If a user names too many dimensions of a site, or too few.
    """
    sites, targets = sample_sites(trace), set()
    fns = {name: unwrapped(site) for name, site in sites.items()}
    events = {name: fn.event_shape for name, fn in fns.items() if isinstance(fn, ArBufferDistribution)}
    names: dict[str, Names] = {}
    for name in sites:
        halves = [f"{name}_observed", f"{name}_unobserved"]  # of obs_mask
        like = halves[0] if is_deterministic(sites[name]) and sites.keys() >= {*halves} else name
        own = [
            axis_name if len(sizes) == 1 and axis_name not in sites else f"{name}_{axis_name}"
            for axis_name, sizes in (
                ("target", {event[0] for event in events.values()}),
                ("output", {event[1] for event in events.values() if len(event) == 2}),
            )
        ][: len(events.get(like, ()))]
        names[name] = rename_dimensions(name, _names_of_site(name, sites[like], own), dims)
        if own:
            targets.add(names[name][-len(own)])
    return names, targets


def _names_of_site(name: str, site: Site, own: list[str]) -> Names:
    plates = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}
    shape, num_batch_dims = site["fn"].batch_shape + site["fn"].event_shape, len(site["fn"].batch_shape)
    if is_deterministic(site):  # all event to Pyro, unless told; in plates, where they fit
        shape = site["value"].shape
        fits = all(-dim <= len(shape) and shape[dim] == plate.size for dim, plate in plates.items())
        num_batch_dims = len(shape) if fits else 0
    names: list[str | None] = [f"{name}_dim_{i}" for i in range(len(shape))]
    for i in range(num_batch_dims):
        if i - num_batch_dims in plates:
            names[i] = plates[i - num_batch_dims].name
        elif shape[i] == 1:
            names[i] = None
    names[len(names) - len(own) :] = own
    return tuple(names)


def rename_dimensions(name: str, names: Names, dims: Mapping[str, Sequence[str]]) -> Names:
    """Puts a user's names in place of those found for a site.

    Raises:
        ValueError: If they are too many, or too few.
    """
    if name not in dims:
        return names
    kept = [own for own in names if own is not None]
    if len(dims[name]) != len(kept):
        raise ValueError(f"dims[{name!r}] must name the {len(kept)} dimensions {kept}; got {list(dims[name])}")
    given = iter(dims[name])
    return tuple(None if own is None else next(given) for own in names)


def check_names(sites: Iterable[str], dims: Mapping[str, Names]) -> None:
    """Checks names of sites, and of the dimensions of each, that are to stand beside the draws of several chains.

    Raises:
        ValueError: If one holds "/", is that of a dimension of all draws, or names two dimensions of one site.
    """
    own = {dim for names in dims.values() for dim in names if dim is not None}
    slashed = sorted(name for name in {*sites, *own} if "/" in name)
    if slashed:
        raise ValueError(
            f"names of sites and dimensions must hold no '/', which separates the groups of a DataTree; got {slashed}; "
            "rename the sites in the model and in the draws, and the dimensions, which plates name, by "
            "dims={site: [...]}"
        )
    taken = sorted({*sites, *own} & set(SAMPLE))
    if taken:
        raise ValueError(
            f"no site and no plate may be called 'chain' or 'draw', the dimensions of all draws; got {taken}; rename "
            "the site in the model and in draws, or the dimension of a plate by dims={site: [...]}"
        )
    double = sorted(
        name for name, names in dims.items() if len(set(names) - {None}) < sum(n is not None for n in names)
    )
    if double:
        raise ValueError(f"the dimensions of a site must have different names; got {dims[double[0]]} for {double[0]!r}")

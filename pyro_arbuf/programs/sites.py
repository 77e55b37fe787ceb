"""What traces say of a program's sites: which are latents; what is neither that nor the outcome is integrated out.

Knows nothing of models, and of no run but those in the traces.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from pyro_arbuf.network.latents import Latent
from pyro_arbuf.workflow.trace_sites import Site, nodes

LEAVE_OUT = "leave it out of latents=[...] to have it integrated out"
BOUNDED = (
    constraints.interval
    | constraints.half_open_interval
    | constraints.greater_than
    | constraints.greater_than_eq
    | constraints.less_than
)


def program_sites(trace: Trace) -> dict[str, Site]:
    """Sample sites that are neither plates nor deterministic, by name."""
    return {
        name: site
        for name, site in nodes(trace).items()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }


def check_observed(traces: Sequence[Trace]) -> None:
    """Raises ValueError if a site has a value of its own: simulations would not be conditioned on it."""
    for trace in traces:
        for name, site in program_sites(trace).items():
            if site["is_observed"]:
                raise ValueError(
                    f"the program must observe nothing, as its sites are simulated; got the observed site {name!r}; "
                    "remove obs=, pyro.factor or the handler that conditions it"
                )


def is_of_trials(name: str, traces: Sequence[Trace], num_trials: Sequence[int]) -> bool:
    """Whether a site has one value for each trial: its last batch dimension has their number in every run."""
    sites = [nodes(trace).get(name) for trace in traces]
    batches = [
        tuple(site["value"].shape[: site["value"].dim() - len(site["fn"].event_shape)]) for site in sites if site
    ]
    return len(batches) == len(traces) and all(b[-1:] == (n,) for b, n in zip(batches, num_trials, strict=True))


def fixed_plates(name: str, traces: Sequence[Trace]) -> dict[str, int]:
    """Plates around a continuous site, by name, if their sizes are the same in every run; otherwise none."""
    sites = [nodes(trace)[name] for trace in traces if name in nodes(trace)]
    if any(_is_discrete(site) for site in sites):
        return {}
    found = [{f.name: f.size for f in site["cond_indep_stack"] if f.vectorized} for site in sites]
    return found[0] if all(sizes == found[0] for sizes in found) else {}


def may_be_latent(name: str, traces: Sequence[Trace]) -> bool:
    """Whether a site can be named among the latents: continuous and outside plates in every run."""
    sites = [nodes(trace).get(name) for trace in traces]
    return all(site and not _is_discrete(site) and site["value"].shape == site["fn"].event_shape for site in sites)


def drawn_in_a_loop(traces: Sequence[Trace]) -> set[str]:
    """Names of the sites of loops over trials: "z_0", "z_1", ..., more of them in runs of more trials."""
    found = []
    for trace in traces:
        numbers: dict[str, set[str]] = {}
        for stem, _, number in (name.rpartition("_") for name in program_sites(trace)):
            if stem and number.isdecimal():
                numbers.setdefault(stem, set()).add(number)
        found.append(numbers)
    stems = {stem for stem in found[0] if any(each.get(stem) != found[0][stem] for each in found)}
    return {f"{stem}_{number}" for each in found for stem in stems for number in each.get(stem, ())}


def in_short(names: Sequence[str]) -> list[str]:
    """Names of sites, those of a loop over trials, "z_0", "z_1", ..., by the first one alone."""
    stems = [name.rpartition("_")[0] if name.rpartition("_")[2].isdecimal() else name for name in names]
    found = dict.fromkeys(stems)
    return [f"{stem}_0, ..." if stems.count(stem) > 1 else names[stems.index(stem)] for stem in found]


def continuous_latents(outcome: Collection[str], trace: Trace) -> list[str]:
    """Names of all continuous sites outside plates but those of the outcome and of loops.

    Raises:
        ValueError: If there is none, or one outside plates is discrete and not marked to be enumerated.
    """
    names, inside = [], []
    for name, site in program_sites(trace).items():
        if name in outcome or any(frame.vectorized for frame in site["cond_indep_stack"]):
            inside += [name] if name not in outcome else []
            continue
        if not _is_discrete(site):
            names.append(name)
        elif site["infer"].get("enumerate") is None:
            raise ValueError(
                f"latents must be continuous; site {name!r} is discrete: mark it with infer={{'enumerate': "
                "'parallel'}, or leave it out of latents=[...], to have it integrated out"
            )
    if not names:
        raise ValueError(
            f"the program must have a continuous latent outside plates; got none, and {inside} inside plates; use "
            ".expand([d]).to_event(1) for a vector of latents"
        )
    return names


def read_latents(names: Sequence[str] | None, outcome: Collection[str], traces: Sequence[Trace]) -> tuple[Latent, ...]:
    """Reads latents, not yet standardised, from several runs.

    Args:
        names: Of the sites, in order; `None` = all continuous sites outside plates, and outside loops over trials, but
            those whose shape differs between runs, such as a latent function at all inputs.
        outcome: Names of the outcome's sites.
        traces: Of the runs.

    Raises:
        ValueError: If the names are no list of different ones, or a site cannot be a latent.
    """
    if names is None:
        names = continuous_latents({*outcome, *drawn_in_a_loop(traces)}, traces[0])
        names = [name for name in names if not varies_in_shape(name, traces)] or names
    chosen = list(names)
    if len(set(chosen)) < len(chosen) or isinstance(names, str):
        raise ValueError(f"latents must be a list of different sites; got {names!r}")
    return tuple(read_latent(name, outcome, traces) for name in chosen)


def varies_in_shape(name: str, traces: Sequence[Trace]) -> bool:
    """Whether a site's values have several shapes in the runs that have it."""
    return len({nodes(trace)[name]["value"].shape for trace in traces if name in nodes(trace)}) > 1


def other_sites(names: Sequence[str], traces: Sequence[Trace]) -> tuple[str, ...]:
    """Names of the sites of all runs that are not among some."""
    return tuple(dict.fromkeys(name for trace in traces for name in program_sites(trace) if name not in names))


def batch_dimensions(traces: Sequence[Trace]) -> int:
    """Number of batch dimensions that the program's own plates take, at least 1."""
    sites = [site for trace in traces for site in program_sites(trace).values()]
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    return max([1] + [-frame.dim for frame in frames if frame.vectorized])


def read_latent(name: str, outcome: Collection[str], traces: Sequence[Trace]) -> Latent:
    """Reads a latent, not yet standardised, from several runs.

    Raises:
        ValueError: If it is no latent site of every run, discrete, in a plate, or varies in shape or support.
    """
    known = [known for known in program_sites(traces[0]) if known not in outcome]
    if name in outcome or any(name not in program_sites(trace) for trace in traces):
        raise ValueError(f"latents must be latent sites of every run of the program; got {name!r}; it has {known}")
    sites = [nodes(trace)[name] for trace in traces]
    if any(_is_discrete(site) for site in sites):
        raise ValueError(f"latents must be continuous; site {name!r} is discrete; {LEAVE_OUT}")
    shapes = {tuple(site["value"].shape) for site in sites}
    if len(shapes) > 1:
        raise ValueError(f"latents must have one shape; that of site {name!r} varies: {sorted(shapes)}; {LEAVE_OUT}")
    event = tuple(sites[0]["fn"].event_shape)
    if shapes != {event}:
        raise ValueError(
            f"latents must be outside plates, without batch dimensions; site {name!r} has shape {shapes.pop()} and "
            f"event shape {event}; use .expand([d]).to_event(1) for a vector, or leave it out of latents=[...]"
        )
    found = {_latent(name, site) for site in sites}
    if len(found) > 1:
        raise ValueError(
            f"latents must have one support; that of site {name!r} varies from run to run; sample a standardised "
            "latent and transform it"
        )
    return found.pop()


def support_of(site: Site) -> constraints.Constraint | None:
    """The support of a site's distribution; `None` = it does not say."""
    try:
        return site["fn"].support
    except NotImplementedError:
        return None


def _is_discrete(site: Site) -> bool:
    support = support_of(site)
    return not site["value"].is_floating_point() if support is None else support.is_discrete


def base_support(support: Any) -> Any:
    """The support of single numbers: that of a vector, or of the parts of a mixture."""
    while isinstance(support, constraints.independent | constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support


def _latent(name: str, site: Site) -> Latent:
    support, shape = base_support(support_of(site)), tuple(site["fn"].event_shape)
    if support is constraints.real:
        return Latent(name, shape)
    if isinstance(support, type(constraints.simplex)):
        return Latent(name, shape, simplex=True)
    if not isinstance(support, BOUNDED):
        raise ValueError(
            f"latents must have a real, bounded or simplex support; that of site {name!r} is {support}; transform it, "
            "or leave it out of latents=[...]"
        )
    names = [bound for bound in ("lower", "upper") if hasattr(support, f"{bound}_bound")]
    bounds = {bound: torch.as_tensor(getattr(support, f"{bound}_bound")).flatten() for bound in names}
    if any(len(values.unique()) > 1 for values in bounds.values()):
        raise ValueError(
            f"latents must have the same bounds in all dimensions; those of site {name!r} differ; make it several sites"
        )
    ends = {bound: _number(values[0]) for bound, values in bounds.items()}
    return Latent(name, shape, lower=ends.get("lower"), upper=ends.get("upper"))


def _number(value: Tensor) -> float:
    """A tensor's number in its shortest decimals: float32's 0.1 is 0.1, not 0.10000000149."""
    return float(str(value.detach().numpy()))

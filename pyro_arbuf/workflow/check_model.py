"""A linter for Pyro models: finds what Pyro accepts and is wrong nevertheless."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import pyro
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.distributions.transforms import AffineTransform, Transform
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import TransformedDistribution

from pyro_arbuf.distributions.base import ArBufferDistribution, PlateOverTargetsWarning
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.network.visibility import context_mask
from pyro_arbuf.random_state import restored_random_state
from pyro_arbuf.user_warnings import warn
from pyro_arbuf.workflow.at_once import MixedDrawsError, dimensions, is_computed, run_at_once
from pyro_arbuf.workflow.densities import elementwise
from pyro_arbuf.workflow.misaligned import draws_elsewhere, members_over_targets
from pyro_arbuf.workflow.trace_sites import Site, layers, nodes, sample_sites, unwrapped, with_tensors

TOLERANCE = 1e-3  # nats, and relative: above what encoding with and without gradients differs by, below what harms HMC

ENCODED_ANEW = (
    "its context is encoded in every run of the model although it depends on no latent and no trainable weight; make "
    "it once, outside: ctx = net.condition(x, y), with ctx[index] inside where a plate subsamples; a gradient step is "
    "several times cheaper then"
)
DROPPED = (
    "nan='drop' under a transform: the Jacobian of the dropped targets still counts, which biases a latent scale; "
    "leave the missing targets out of x and obs instead"
)
UNREGISTERED = (
    "parameters of its network require gradients but are no Pyro parameters: nothing fits them, their gradients cost "
    "time; freeze them, net.requires_grad_(False), as pyro_arbuf.load(name) does, or register them inside the model, "
    'pyro.module("net", net); a frozen network stays a plain nn.Module: made a PyroModule, it becomes trainable on its '
    "first call"
)
TRANSFORMED = (
    "a transform of categories or counts subtracts the log of its Jacobian from their probabilities, which have none; "
    "leave their dimensions as they are, with loc 0 and scale 1, and move the real ones alone: "
    "AffineTransform(loc, scale) with an entry per dimension"
)
CHANCE = 10.0  # bits: data that share less with the context may do so by chance


CHANGES = "differs between two runs of the model"
# Of a model's own run: it fails at some latents, or has sites there that it lacks elsewhere.
FAILURES = (ValueError, RuntimeError, LookupError, TypeError, ArithmeticError, AssertionError)


class ModelCheckWarning(UserWarning):
    """Something that `check_model` found."""


def check_model(model: Callable, *args: object, **kwargs: object) -> list[str]:
    """Finds silent misuse of the distributions of this package in a Pyro model, and a model that mixes draws.

    Runs the model twice, the second time with the latents of the first, and compares. Finds: a plate around the
    targets of one event; a mask over them; observed pairs that sit in the context as well; missing outcomes dropped
    under a transform; a transform of categories or counts; a scale whose Jacobian does not count once per target; a
    density that is not the same twice; a context encoded inside the model without need; a trainable network that Pyro
    does not know; latents of as many members of a plate as there are targets, added to the targets.

    A model with latents is then run for a few draws of its prior at once, and for one of them alone. Finds: sites whose
    density or value is another one then, as where the model takes `theta.sum()` of a vector latent, and latents that
    vectorised particles would broadcast against each other.

    Leaves random states and the param store as they were.

    Args:
        model: The Pyro model.
        *args: Of the model, as for inference.
        **kwargs: Likewise.

    Returns:
        What was found, each with what to write instead; empty = nothing. Each is also issued as a warning,
        `PlateOverTargetsWarning` or `ModelCheckWarning`.

    Raises:
        ValueError: If `model` is not callable. Exceptions of the model pass through.

    Example:
        >>> import pyro.distributions as dist
        >>> check_model(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
        []
    """
    if not callable(model):
        raise ValueError(f"model must be a Pyro model, a callable; got {type(model).__name__}")
    store = pyro.get_param_store()
    with restored_random_state(), store.scope(store.get_state()), torch.enable_grad():
        first = with_tensors(poutine.trace(model).get_trace(*args, **kwargs))
        for site in nodes(first).values():
            if site["type"] == "sample" and not site["is_observed"]:  # as in HMC: what depends on latents is live
                site["value"] = site["value"].detach().requires_grad_(site["value"].is_floating_point())
        second = with_tensors(poutine.trace(poutine.replay(model, trace=first)).get_trace(*args, **kwargs))
        found = dict(_findings(first, second))
        if not any(CHANGES in text for text in found) and (mixed := _mixed_draws(model, first, args, kwargs)):
            found[mixed] = ModelCheckWarning
    for message, category in found.items():
        warn(message, category)
    return list(found)


def _findings(first: Trace, second: Trace) -> Iterator[tuple[str, type[UserWarning]]]:
    sites = {name: site for name, site in nodes(second).items() if _is_ours(site)}
    halves = {name: name.removesuffix("_observed").removesuffix("_unobserved") for name in sites}  # by obs_mask
    user_names = {name: whole if whole in second else name for name, whole in halves.items()}
    latents = {name: nodes(second)[name] for name in second.stochastic_nodes}
    latents = {name: site for name, site in latents.items() if not site_is_subsample(site)}
    for name, site in sites.items():
        if _drops_under_transform(site):  # where validation is on the density would raise, and say less
            yield f"site {user_names[name]!r}: {DROPPED}", ModelCheckWarning
            continue
        if _transforms_discrete(site):
            yield f"site {user_names[name]!r}: {TRANSFORMED}", ModelCheckWarning
            continue
        density, plates = _log_prob(site)
        yield from ((f"site {user_names[name]!r}: {text}", PlateOverTargetsWarning) for text in plates)
        texts = [_mask_over_targets(site), _double_use(site), _scale_counted_once(site)]
        texts.append(members_over_targets(site, _parts(site), latents))
        if name in first:
            texts.append(_changing_density(nodes(first)[name], site, density))
        yield from ((f"site {user_names[name]!r}: {text}", ModelCheckWarning) for text in texts if text)
    parameters = {id(site["value"]) for site in nodes(second).values() if site["type"] == "param"}
    values = [site["value"] for site in latents.values()]
    continuous = all(value.is_floating_point() for value in values)  # else: replayed, not differentiated
    seen = set()  # a context or a network that several sites share is reported once
    for name, site in sites.items():
        context = _distribution(site).context
        model = context.model
        anew = continuous and name in first and _encoded_anew(nodes(first)[name], site)
        if anew and id(context) not in seen:
            yield f"site {user_names[name]!r}: {ENCODED_ANEW}", ModelCheckWarning
        unknown = [p for p in model.parameters() if p.requires_grad and id(p) not in parameters]
        if unknown and id(model) not in seen:
            yield f"site {user_names[name]!r}: {len(unknown)} {UNREGISTERED}", ModelCheckWarning
        seen |= {id(context), id(model)}


@torch.no_grad()
def _mixed_draws(model: Callable, first: Trace, args: tuple, kwargs: Mapping) -> str | None:
    """What changes where the model runs for several draws of its latents at once; `None` = nothing, or it does not run.

    That it does not run for several draws, or fails at some latents, is no mistake: whoever runs it so is told.
    """
    sites = {name: site for name, site in sample_sites(first).items() if not is_computed(site)}
    latents = [name for name, site in sites.items() if not site["is_observed"]]
    subsamples = any(site_is_subsample(s) and len(s["value"]) < s["fn"].size for s in nodes(first).values())
    if not latents or subsamples:
        return None
    size = next(n for n in itertools.count(3) if n not in dimensions(first))
    try:
        traces = [first] + [poutine.trace(model).get_trace(*args, **kwargs) for _ in range(size - 1)]
        draws = {name: torch.stack([nodes(trace)[name]["value"].detach() for trace in traces]) for name in latents}
        for name in sites.keys() - draws.keys():
            shape, value = sites[name]["fn"].shape(), sites[name]["value"]
            draws[name] = value.expand(shape).expand(size, *shape)
        run_at_once(model, draws, first, set(sample_sites(first)), args, kwargs)
    except MixedDrawsError as error:
        return (
            f"{error}; until then Predictive(parallel=True) and vectorised particles are wrong, and `predictive` slow"
        )
    except FAILURES:  # sites or shapes depend on latents, or the model fails at some of them
        with contextlib.suppress(*FAILURES):
            return draws_elsewhere(model, first, size, args, kwargs)
    return None


def _transforms(site: Site) -> list[Transform]:
    """All transforms of a site, outermost first."""
    transformed = [layer for layer in layers(site) if isinstance(layer, TransformedDistribution)]
    return [transform for layer in transformed for transform in reversed(layer.transforms)]


def _parts(site: Site) -> list[Transform]:
    """The transforms of a site that are elementwise, taken apart."""
    found: list[Transform] = []
    for transform in _transforms(site):
        with contextlib.suppress(ValueError):
            found += elementwise(site["name"], transform)
    return found


def _is_ours(site: Site) -> bool:
    return site["type"] == "sample" and isinstance(unwrapped(site), ArBufferDistribution)


def _distribution(site: Site) -> ArBufferDistribution:
    """Of a site that is ours."""
    return cast(ArBufferDistribution, unwrapped(site))


@torch.no_grad()
def _log_prob(site: Site) -> tuple[Tensor, list[str]]:
    """Log density of the site's value, and what the distribution says about plates."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", PlateOverTargetsWarning)
        density = site["fn"].log_prob(site["value"])
    return density, [str(warning.message) for warning in caught]


def _mask_over_targets(site: Site) -> str | None:
    d = _distribution(site)
    value_batch = site["value"].shape[: site["value"].dim() - d.event_dim]
    own = torch.broadcast_shapes(d.context.task_shape, d.x.shape[:-2], value_batch)
    masks = [site["mask"], *(layer._mask for layer in layers(site) if isinstance(layer, MaskedDistribution))]
    for mask in masks:
        for event in {d.event_shape[:1], d.event_shape}:
            over = isinstance(mask, Tensor) and mask.shape[-len(event) :] == event
            if over and event[0] > 1 and own[-len(event) :] != event:
                return (
                    f"a mask of shape {tuple(mask.shape)} over one event of {event[0]} targets counts the density of "
                    "the whole event once per entry; a mask has the batch shape; for missing outcomes put NaN into obs "
                    "and build the distribution with nan='drop'"
                )
    return None


@torch.no_grad()
def _double_use(site: Site) -> str | None:
    if not site["is_observed"]:
        return None
    d, y = _distribution(site), cast(Tensor, site["value"])
    for transform in _transforms(site):
        y = cast(Tensor, transform.inv(y))
    context, batch = d.context, d.context.task_shape
    x, observed, length = context.observations
    pairs_x, pairs_y = (t.view(*batch, 1, *t.shape[1:]) for t in (x, observed))  # (*batch, 1, N, .)
    if context.model.config.dim_y is None:
        y = y.unsqueeze(-1)
    y = y if d._maps is None else d._maps.network_y(y, pairs_y.dtype)
    targets = d._x[..., : context.model.config.dim_x].unsqueeze(-2)
    shared = ((targets == pairs_x) | (targets.isnan() & pairs_x.isnan())).all(-1)  # (*batch, M, N)
    # Outcomes that went through a transform and back differ by rounding.
    shared = shared & torch.isclose(y.to(pairs_y.dtype).unsqueeze(-2), pairs_y, atol=1e-6).all(-1)
    if length is not None:
        shared = shared & context_mask(length, context.num_context).view(*batch, 1, -1)
    matches = shared
    shared = shared.any(-1)
    if not bool(shared.any()) or _may_be_chance(d, y, matches):
        return None
    return (
        f"{int(shared.sum())} of {shared.numel()} observed pairs (x, y) are in its context as well: these data count "
        "twice; condition on other data, or drop this observation: the context has used them already"
    )


def _may_be_chance(d: ArBufferDistribution, y: Tensor, matches: Tensor) -> bool:
    """Whether outcomes without a real dimension, the same at the same inputs, may be those of other trials.

    Not where every pair `(*batch, M)` is as often in its context as in the event, and the outcomes have told enough.

    Args:
        d: The distribution.
        y: `(*batch, M, D_y)` outcomes.
        matches: `(*batch, M, N)` bool, which pairs of the context are the same.
    """
    if any(not kind.support.is_discrete for kind in d.context.model.config.kinds):
        return False
    among = (d.x.unsqueeze(-2) == d.x.unsqueeze(-3)).all(-1) & (y.unsqueeze(-2) == y.unsqueeze(-3)).all(-1)
    as_often = matches.sum(-1) == among.sum(-1)
    _, counts = y.flatten(0, -2).unique(dim=0, return_counts=True)
    share = counts / counts.sum()
    return not bool(as_often.all()) or float(-(counts * share.log2()).sum()) < CHANCE


def _transforms_discrete(site: Site) -> bool:
    """Whether a transform has a Jacobian in a dimension of categories or counts."""
    kinds, value = _distribution(site).context.model.config.kinds, cast(Tensor, site["value"])
    discrete = [kind.support.is_discrete for kind in kinds]
    if not any(discrete):
        return False
    columns = torch.tensor(discrete, device=value.device) if _distribution(site).event_dim == 2 else slice(None)
    for whole in _transforms(site):
        try:
            parts = elementwise(site["name"], whole)
        except ValueError:  # it mixes targets or dimensions
            return True
        for transform in reversed(parts):
            inner = cast(Tensor, transform.inv(value))
            if bool((transform.log_abs_det_jacobian(inner, value).expand(value.shape)[..., columns] != 0).any()):
                return True
            value = inner
    return False


def _drops_under_transform(site: Site) -> bool:
    return bool(_transforms(site)) and _distribution(site).nan == "drop" and bool(site["value"].isnan().any())


def _scale_counted_once(site: Site) -> str | None:
    event = _distribution(site).event_shape
    for t in _transforms(site):
        if not isinstance(t, AffineTransform) or not t.event_dim or not isinstance(t.scale, Tensor):
            continue
        if t.scale.shape[-len(event) :] != event:
            return (
                f"AffineTransform sums the log of its scale over that one's shape, {tuple(t.scale.shape)}, not over "
                f"the event {tuple(event)}: log s counts too seldom, so a latent scale is biased; leave out event_dim: "
                "AffineTransform(loc, s[..., None])"
            )
    return None


def _changing_density(before: Site, after: Site, density: Tensor) -> str | None:
    """`density` is that of `after`."""
    old, new = _distribution(before), _distribution(after)
    joint = isinstance(old, ArBufferJoint) and isinstance(new, ArBufferJoint)
    if joint and not torch.equal(old.orders, new.orders):
        return (
            "its orders differ between two runs of the model, so its density is random and NUTS fails silently; make "
            "them once, outside: orders = random_orders(M, R, seed=0), a pure function of its arguments"
        )
    known = _log_prob(before)[0]
    same = known.shape == density.shape
    if same and torch.allclose(known, density, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        return None
    return (
        f"its log density {CHANGES} with the same latents ({_show(known)} and "
        f"{_show(density)}), so NUTS fails silently; the model draws something outside pyro.sample (a part of the "
        "data, noise on x, orders): draw it once, outside, e.g. orders = random_orders(M, R, seed=0)"
    )


def _show(density: Tensor) -> str:
    return f"{density.sum().item():.6g} nats"


def _encoded_anew(before: Site, after: Site) -> bool:
    if not _is_ours(before):
        return False
    old, new = _distribution(before), _distribution(after)
    # Indexed and expanded contexts keep the fingerprint object of the encoding they come from.
    return not new.context.live and old.context.fingerprint is not new.context.fingerprint

"""A Pyro model run for several draws of its latents at once, and one of them alone, to see that they agree.

Knows nothing of contexts and buffers.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from pyro_arbuf.random_state import restored_random_state
from pyro_arbuf.workflow.trace_sites import (
    Site,
    is_deterministic,
    layers,
    nodes,
    same_up_to_ones,
    sample_sites,
    unwrapped,
)

# What is raised where code is not written for several draws or data sets at once: a wrong shape, a number wanted.
NOT_AT_ONCE = (RuntimeError, ValueError, IndexError, TypeError)
OTHERS = (LookupError, AttributeError, AssertionError, ArithmeticError)  # mistakes, or code that minds how it is run
TOLERANCE = 1e-4  # nats, and relative: far above rounding, far below what taking one draw for another changes
DRAW_BY_DRAW = (
    "This was raised for several posterior draws at once; predictive(..., batch_size=1) runs them one by one."
)
BROADCAST = "let what the model computes from latents broadcast from the left"
ONE_EVENT_DIM = "reduce and index over the event dimension, theta.sum(-1) or theta[..., 0], in place of theta.sum()"


class NotAtOnceError(RuntimeError):
    """A model does not run for several draws at once."""


@contextlib.contextmanager
def explained(note: str) -> Iterator[None]:
    """Adds a note, which says how to run code one by one, to errors that do not say so by their kind."""
    try:
        yield
    except OTHERS as error:
        error.add_note(note)
        raise


class MixedDrawsError(NotAtOnceError):
    """A model runs for several draws at once, and gives them another law than each alone."""


def run_at_once(
    model: Callable, draws: Mapping[str, Tensor], one: Trace, compared: set[str], args: tuple, kwargs: Mapping
) -> dict[str, Tensor]:
    """Runs a model for several draws of its latents at once, and one of them alone, to see that they agree.

    The only place that runs a model on a batch of draws. A single draw is run without an additional plate.

    Args:
        model: The Pyro model.
        draws: `(S, *site)` values by site, S no dimension of a site.
        one: The model's trace for one draw.
        compared: Sites whose densities, or values where they are deterministic, are compared.
        args: Of the model.
        kwargs: Of the model.

    Returns:
        `(S, *site)` by site of `one` that `draws` does not hold.

    Raises:
        NotAtOnceError: If the model fails for several draws, or a site has not one value per draw.
        MixedDrawsError: If it gives another law, or one value computed from all draws.
        RuntimeError: If a site is missing for a draw alone, or has another shape.
    """
    size = len(next(iter(draws.values())))
    shapes = {name: site["value"].shape for name, site in sample_sites(one).items() if name not in draws}
    if size == 1:
        trace = run_alone(model, draws, 0, args, kwargs)
        return {name: _value_alone(trace, name, shape)[None] for name, shape in shapes.items()}
    dim = draws_dim(one)
    trace = _run_in_plate(model, draws, dim, args, kwargs)
    values = {name: _values_at_once(trace, name, nodes(one)[name]["value"], size) for name in shapes}
    draw = _telling_draw(draws, size)
    fixed = {**draws, **{name: v for name, v in values.items() if not is_computed(nodes(one)[name])}}
    with restored_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run at once has said it
        alone = run_alone(model, fixed, draw, args, kwargs)
        # The density of all draws can cost as much as drawing them; that of three mixes them as well.
        few = _run_in_plate(model, {n: v[[0, draw, size - 1]] for n, v in fixed.items()}, dim, args, kwargs)
        for name in sample_sites(one):  # in the order of the model: the first that differs is the cause
            if name not in compared:
                continue
            if not all(name in each for each in (trace, few, alone)):
                raise MixedDrawsError(f"site {name!r} is not there both for {size} posterior draws at once and for one")
            together, single = nodes(trace)[name], nodes(alone)[name]
            if name in values and is_computed(single):
                _compare(name, "value", values[name], single["value"], draw, _largest(values[name]))
            else:
                _compare_laws(together, nodes(few)[name], single, draw)
    return values


def draws_dim(one: Trace) -> int:
    """The batch dimension of draws, to the left of all plates of a model."""
    stacks = [site["cond_indep_stack"] for site in nodes(one).values() if site["type"] == "sample"]
    return min((frame.dim for stack in stacks for frame in stack if frame.vectorized), default=0) - 1


def _run_in_plate(model: Callable, draws: Mapping[str, Tensor], dim: int, args: tuple, kwargs: Mapping) -> Trace:
    """A trace of the model for several draws at once, in a plate at `dim`."""
    size = len(next(iter(draws.values())))
    try:
        with explained(DRAW_BY_DRAW), PosteriorMessenger(draws), pyro.plate("predictive_draws", size, dim=dim):
            return poutine.trace(model).get_trace(*args, **kwargs)
    except NOT_AT_ONCE as error:
        reason = str(error).partition("\n")[0]  # Pyro appends the shapes of all sites
        raise NotAtOnceError(
            f"the model ran for one posterior draw and failed for {size} at once with {type(error).__name__}: "
            f"{reason}; to run them at once {BROADCAST} (one unsqueeze(-1) per event dimension, none for plates; "
            "torch.where in place of if)"
        ) from error


def run_alone(model: Callable, draws: Mapping[str, Tensor], draw: int, args: tuple, kwargs: Mapping) -> Trace:
    """A trace of the model at one of the draws, without an additional plate; what it observes is drawn anew."""
    with PosteriorMessenger({name: values[draw] for name, values in draws.items()}):
        return poutine.trace(model).get_trace(*args, **kwargs)


def _value_alone(trace: Trace, name: str, shape: torch.Size) -> Tensor:
    value = nodes(trace)[name]["value"] if name in trace else None
    if value is None or not same_up_to_ones(value.shape, shape):
        got = "no such site" if value is None else f"shape {tuple(value.shape)}"
        raise RuntimeError(
            f"site {name!r} must be there for every posterior draw, in one shape; got shape {tuple(shape)} for the "
            f"first draw and {got} for another; predict draws of different shapes in calls of their own"
        )
    return value.reshape(shape)


def _values_at_once(trace: Trace, name: str, one: Tensor, size: int) -> Tensor:
    """Values `(S, *site)` of a site of which `one` is the value for one draw."""
    value = nodes(trace)[name]["value"] if name in trace else None
    if value is not None and same_up_to_ones(value.shape, (size, *one.shape)):
        return value.reshape(size, *one.shape)
    if value is not None and torch.equal(value, one):  # does not depend on latents
        return value.expand(size, *one.shape)
    got = "no such site" if value is None else f"{tuple(value.shape)} for {size}"
    reduced = value is not None and same_up_to_ones(value.shape, one.shape)  # one value, of all draws
    raise (MixedDrawsError if reduced else NotAtOnceError)(
        f"site {name!r} must have one value per posterior draw to be run for several at once; it has shape "
        f"{tuple(one.shape)} for one draw and {got}; {BROADCAST}, and {ONE_EVENT_DIM}"
    )


def _telling_draw(draws: Mapping[str, Tensor], size: int) -> int:
    """The draw farthest from the others, where a mistake shows most.

    Neither the first nor, of three, the last: what takes z[0] or z[-1] for an element of an event is right for these.
    """
    numbers = torch.cat([values.detach().reshape(size, -1).cpu().double() for values in draws.values()], 1)
    distance = ((numbers - numbers.mean(0)).abs() / numbers.std(0)).nan_to_num().sum(1)
    return 1 + int(distance[1 : max(2, size - 1)].argmax())


def is_computed(site: Site) -> bool:
    """Whether the value of a site is a function of other sites, to be compared as it is."""
    return is_deterministic(site) or isinstance(unwrapped(site), dist.Delta)


def _compare_laws(together: Site, few: Site, single: Site, draw: int) -> None:
    """Compares parameters of a site's distribution for all draws, and its density for three of them, with one alone."""
    name, parameters, alone = single["name"], _parameters(together), _parameters(single)
    size = together["fn"].shape()[0]
    aligned = [key for key in alone if key in parameters and _aligned(parameters[key], alone[key], size)]
    of_few, of_one = _log_prob(few), _log_prob(single)
    if of_few is not None and of_one is not None:
        _compare(name, "log density", of_few, of_one, 1, 1.0)
    elif not aligned:
        raise NotAtOnceError(
            f"site {name!r} has neither a density nor parameters, by which posterior draws at once could be compared "
            "with one of them alone; give its distribution a log_prob, or tensors among its attributes"
        )
    for key in aligned:
        _compare(name, key[1], parameters[key], alone[key], draw, _largest(alone[key]))


def _aligned(together: Tensor, alone: Tensor, size: int) -> bool:
    return same_up_to_ones(together.shape, alone.shape) or same_up_to_ones(together.shape, (size, *alone.shape))


def _compare(name: str, what: str, together: Tensor, alone: Tensor, draw: int, scale: float) -> None:
    """Raises MixedDrawsError where `together`, `(S, *shape)` or the same for all draws, at a draw is not `alone`."""
    same = same_up_to_ones(together.shape, alone.shape)
    if not same and same_up_to_ones(together.shape[1:], alone.shape):
        together, same = together[draw], True
    ours, theirs = together.reshape(-1).double(), alone.reshape(-1).double()
    if not same or not torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True):
        raise MixedDrawsError(
            f"site {name!r} has another {what} where several posterior draws are run at once than where one is run "
            f"alone ({_show(ours)} and {_show(theirs)}), so the model mixes draws; {ONE_EVENT_DIM}, and draw random "
            "numbers by pyro.sample only"
        )


def _log_prob(site: Site) -> Tensor | None:
    """Log density of a site's value, `None` where there is none, or not at this value."""
    try:
        return site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except (NotImplementedError, ValueError):
        return None


def _parameters(site: Site) -> dict[tuple[int, str], Tensor]:
    """All tensors among the attributes of a site's distribution and of what it wraps."""
    found = enumerate(layers(site))
    return {(i, key): v for i, layer in found for key, v in vars(layer).items() if isinstance(v, Tensor)}


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()].double().abs()
    return finite.max().item() if len(finite) else 0.0


def _show(values: Tensor) -> str:
    return f"{values.sum().item():.6g}" if values.numel() < 2 else f"{values.sum().item():.6g} in all"


def dimensions(one: Trace) -> set[int]:
    """Sizes of all dimensions of a model's sites, which a number of draws run at once must not equal."""
    shapes = [(*site["value"].shape, *site["fn"].shape()) for site in sample_sites(one).values()]
    return {size for shape in shapes for size in shape}


class PosteriorMessenger(UnconditionMessenger):
    """Puts posterior draws in at their sites, and has all other observed sites drawn anew."""

    def __init__(self, draws: Mapping[str, Tensor]):
        super().__init__()
        self._draws = draws

    def _pyro_sample(self, msg: Site) -> None:
        if msg["infer"].get("_deterministic"):
            return
        draws = self._draws.get(msg["name"])
        if draws is None:
            super()._pyro_sample(msg)
            return
        shape = msg["fn"].shape()  # with the dimensions of all plates, that of the draws included
        if not same_up_to_ones(draws.shape, shape):
            for frame in msg["cond_indep_stack"]:
                if frame.full_size and frame.size < frame.full_size:
                    raise ValueError(
                        f"posterior[{msg['name']!r}] has draws of shape {tuple(draws.shape)}, and plate {frame.name!r} "
                        f"takes {frame.size} of its {frame.full_size} members; predict without the subsample, or give "
                        "the draws of these members"
                    )
            raise ValueError(
                f"posterior[{msg['name']!r}] must have shape (S, *{tuple(shape)}); got "
                f"(S, *{tuple(draws.shape)}); were the plates of another size in the fit?"
            )
        msg["value"], msg["is_observed"] = draws.reshape(shape), True

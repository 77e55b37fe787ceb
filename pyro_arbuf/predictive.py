"""Posterior predictive in chunks, with the draws left of all plates.

Works for any Pyro model; knows nothing of contexts and buffers.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.runtime import Message
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_arbuf.progress import progress_bar
from pyro_arbuf.sites import check_draws, same_up_to_ones, sample_sites, without_auxiliaries

SEQUENTIAL = "pyro.infer.Predictive(model, posterior, parallel=False) takes one draw at a time"


@contextlib.contextmanager
def restored_random_state() -> Iterator[None]:
    """Gives torch's (every device), numpy's and Python's random states back as they were."""
    state = pyro.util.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        pyro.util.set_rng_state(state)
        torch.cuda.set_rng_state_all(devices)


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draws from a seed and gives the random states back; `None` = draws from the global states."""
    with contextlib.nullcontext() if seed is None else restored_random_state():
        if seed is not None:
            pyro.set_rng_seed(seed)
        yield


def predictive(
    model: Callable,
    posterior: Mapping[str, Tensor],
    *args: object,
    batch_size: int = 250,
    seed: int | None = None,
    **kwargs: object,
) -> dict[str, Tensor]:
    """Draws from the posterior predictive, `batch_size` posterior draws at a time.

    The law of `pyro.infer.Predictive(model, posterior, parallel=True)`, for latents as MCMC and guides give them: the
    dimensions between draws and plates are put in here and taken out of the results. Observed sites are drawn anew, so
    the arguments of `MCMC.run` serve, outcomes included; so are sites of which `posterior` has no draws. To keep a site
    fixed, use `poutine.do`, not `condition`. Deterministic sites are computed anew. Beyond the results, one chunk is in
    memory at a time.

    Args:
        model: The Pyro model. It is run for one draw, then once per chunk under one more plate, left of its own: what
            it computes from latents has to broadcast from the left, as for vectorised particles.
        posterior: `(S, *site)` draws by site, as from `MCMC.get_samples()`; singleton dimensions may be added or
            missing.
        *args: Of the model.
        batch_size: Posterior draws per chunk, at least 1. Chunks are slightly smaller where their size would equal
            that of some dimension of a site: draws mistaken for it would pass unnoticed.
        seed: Makes the result a function of `seed` and `batch_size` and leaves the caller's random state as it was;
            `None` = the global state.
        **kwargs: Of the model.

    Returns:
        `(S, *site)` by site: sample and deterministic sites that `posterior` does not hold.

    Raises:
        ValueError: If `posterior` is empty, ragged, or does not fit the sites of the model; if `batch_size` is below
            1; if a plate draws a random subsample.
        RuntimeError: If the model cannot be run for several draws at once.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(y=None):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     return pyro.sample("y", dist.Normal(z.unsqueeze(-1) * torch.ones(3), 1.0).to_event(1), obs=y)
        >>> predictive(model, {"z": torch.randn(500)}, torch.zeros(3))["y"].shape
        torch.Size([500, 3])
    """
    if not callable(model):
        raise ValueError(f"model must be a Pyro model, a callable; got {type(model).__name__}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer, at least 1; got {batch_size!r}")
    num_draws, posterior = check_draws("posterior", posterior), without_auxiliaries(posterior)
    first = {name: draws[0] for name, draws in posterior.items()}
    with torch.no_grad(), restored_random_state(), _PosteriorMessenger(first):
        one = poutine.trace(model).get_trace(*args, **kwargs)
    _check_sites(one, posterior)
    sites = sample_sites(one)
    values = {name: site["value"] for name, site in sites.items() if name not in posterior}
    stacks = [site["cond_indep_stack"] for site in one.nodes.values() if site["type"] == "sample"]
    dim = min((frame.dim for stack in stacks for frame in stack if frame.vectorized), default=0) - 1
    results = {name: value.new_empty(num_draws, *value.shape) for name, value in values.items()}
    taken = {size for site in sites.values() for size in site["value"].shape}
    sizes = _chunk_sizes(num_draws, batch_size, taken)
    with torch.no_grad(), seeded(seed):
        start = 0
        for size in progress_bar(sizes, desc="predictive", delay=2, leave=False, disable=None):
            part = {name: draws[start : start + size] for name, draws in posterior.items()}
            for name, value in _predict_chunk(model, part, values, size, dim, args, kwargs).items():
                results[name][start : start + size] = value
            start += size
    return results


def _check_sites(one: Trace, posterior: Mapping[str, Tensor]) -> None:
    known = list(sample_sites(one))
    unknown = sorted(set(posterior) - set(known))
    if unknown:
        raise ValueError(
            f"posterior must hold sites of the model; got {unknown}; the model has {known}; rename them, or keep only "
            "the model's: {name: draws for name, draws in posterior.items() if name in model_sites}"
        )
    for name, site in one.nodes.items():
        size = site["fn"].subsample_size if site_is_subsample(site) else None
        if size is not None and size < site["fn"].size:
            raise ValueError(
                f"plate {name!r} must not subsample at random in prediction, which draws belong to whom would be lost; "
                f"got subsample_size={size} of {site['fn'].size}; predict with subsample_size=None"
            )


def _chunk_sizes(num_draws: int, batch_size: int, taken: set[int]) -> list[int]:
    """Sizes of the chunks, none in `taken` but 1, which broadcasts rightly with everything."""
    sizes = []
    while num_draws > 0:
        size = min(batch_size, num_draws)
        while size > 1 and size in taken:
            size -= 1
        sizes.append(size)
        num_draws -= size
    return sizes


def _predict_chunk(
    model: Callable, part: dict[str, Tensor], values: dict[str, Tensor], size: int, dim: int, args: tuple, kwargs: dict
) -> dict[str, Tensor]:
    """Values `(size, *site)` of the sites in `values`, which holds them for one draw, from one run of the model."""
    try:
        with _PosteriorMessenger(part), pyro.plate("predictive_draws", size, dim=dim):
            trace = poutine.trace(model).get_trace(*args, **kwargs)
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        reason = str(error).partition("\n")[0]  # Pyro appends the shapes of all sites
        raise RuntimeError(
            f"the model must run for several posterior draws at once; it ran for one and failed for {size} with "
            f"{type(error).__name__}: {reason}; let what it computes from latents broadcast from the left (one "
            f"unsqueeze(-1) per event dimension, none for plates; torch.where in place of if), or {SEQUENTIAL}"
        ) from error
    results = {}
    for name, one in values.items():
        value = trace.nodes[name]["value"] if name in trace else None
        if value is not None and same_up_to_ones(value.shape, (size, *one.shape)):
            results[name] = value.reshape(size, *one.shape)
        elif value is not None and torch.equal(value, one):  # does not depend on latents
            results[name] = value.expand(size, *one.shape)
        else:
            got = "no such site" if value is None else f"{tuple(value.shape)} for {size}"
            raise RuntimeError(
                f"site {name!r} must have one value per posterior draw; it has shape {tuple(one.shape)} for one draw "
                f"and {got} at once; let what the model computes from latents broadcast from the left; or {SEQUENTIAL}"
            )
    return results


class _PosteriorMessenger(UnconditionMessenger):
    """Puts posterior draws in at their sites, and has all other observed sites drawn anew."""

    def __init__(self, draws: dict[str, Tensor]):
        super().__init__()
        self._draws = draws

    def _pyro_sample(self, msg: Message) -> None:
        if msg["infer"].get("_deterministic"):
            return
        draws = self._draws.get(msg["name"])
        if draws is None:
            super()._pyro_sample(msg)
            return
        shape = msg["fn"].shape()  # with the dimensions of all plates, that of the draws included
        if not same_up_to_ones(draws.shape, shape):
            raise ValueError(
                f"posterior[{msg['name']!r}] must have shape (S, *{tuple(shape)}); got "
                f"(S, *{tuple(draws.shape)}); were the plates of another size in the fit?"
            )
        msg["value"], msg["is_observed"] = draws.reshape(shape), True

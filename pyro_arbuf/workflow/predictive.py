"""Posterior predictive in chunks, with the draws left of all plates.

Works for any Pyro model; knows nothing of contexts and buffers.
"""

from collections.abc import Callable, Mapping

import torch
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_arbuf.progress import progress_bar
from pyro_arbuf.random_state import restored_random_state, seeded
from pyro_arbuf.user_warnings import warn
from pyro_arbuf.workflow.at_once import NotAtOnceError, dimensions, run_alone, run_at_once
from pyro_arbuf.workflow.trace_sites import check_draws, is_deterministic, nodes, sample_sites, without_auxiliaries


def predictive(
    model: Callable,
    posterior: Mapping[str, Tensor],
    *args: object,
    batch_size: int = 250,
    seed: int | None = None,
    **kwargs: object,
) -> dict[str, Tensor]:
    """Draws from the posterior predictive, `batch_size` posterior draws at a time.

    The law of `pyro.infer.Predictive(model, posterior, parallel=False)`, for latents as MCMC and guides give them: the
    dimensions between draws and plates are put in here and taken out of the results. Observed sites are drawn anew, so
    the arguments of `MCMC.run` serve, outcomes included; so are sites of which `posterior` has no draws. To keep a site
    fixed, use `poutine.do`, not `condition`. Deterministic sites are computed anew. Beyond the results, one chunk is in
    memory at a time.

    The model is run for one draw, then once per chunk under one more plate, left of its own. One draw of each chunk is
    run alone as well, with the same values: where its densities or deterministic sites differ, or the model does not
    run for a chunk at all, all draws are run one by one, with a warning.

    Args:
        model: The Pyro model. It is fast where what it computes from latents broadcasts from the left, as for
            vectorised particles: `theta.sum(-1)`, not `theta.sum()`, for a vector latent.
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
        ValueError: If `posterior` is empty, ragged, holds no site of the model, or does not fit its sites; if
            `batch_size` is below 1; if a plate draws a random subsample.
        RuntimeError: If a site is missing for some draws, or its shape depends on the draw.

    Example:
        >>> import pyro, pyro.distributions as dist
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
    num_draws = check_draws("posterior", posterior)
    with torch.no_grad(), restored_random_state():
        one = run_alone(model, posterior, 0, args, kwargs)
    posterior = _draws_of_sites(one, posterior)
    values = {name: site["value"] for name, site in sample_sites(one).items() if name not in posterior}
    results = {name: value.new_empty(num_draws, *value.shape) for name, value in values.items()}

    def fill(sizes: list[int]) -> None:
        start = 0
        for size in progress_bar(sizes, desc="predictive", delay=2, leave=False, disable=None):
            part = {name: draws[start : start + size] for name, draws in posterior.items()}
            for name, value in run_at_once(model, part, one, set(values), args, kwargs).items():
                results[name][start : start + size] = value
            start += size

    with torch.no_grad(), seeded(seed):
        try:
            fill(_chunk_sizes(num_draws, batch_size, dimensions(one)))
        except NotAtOnceError as error:
            warn(f"{error}; the draws are run one by one, which is right but slower")
            fill([1] * num_draws)
    return results


def _draws_of_sites(one: Trace, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The draws of a model's sites, without what a guide adds to them; raises ValueError if they do not fit."""
    known = list(sample_sites(one))
    drawn = {name for name, site in sample_sites(one).items() if not is_deterministic(site)}
    posterior = without_auxiliaries(given, drawn)
    if not posterior:
        raise ValueError(
            f"posterior must hold sites of the model, {known}; got {list(given)} alone, which a guide adds to them; "
            "take what Predictive(guide, num_samples=1000)(...) returns"
        )
    unknown = sorted(set(posterior) - set(known))
    if unknown:
        raise ValueError(
            f"posterior must hold sites of the model, {known}; got {unknown}; rename them, or keep only "
            "the model's: {name: draws for name, draws in posterior.items() if name in model_sites}"
        )
    for name, site in nodes(one).items():
        size = site["fn"].subsample_size if site_is_subsample(site) else None
        if size is not None and size < site["fn"].size:
            raise ValueError(
                f"plate {name!r} must not subsample at random in prediction, which draws belong to whom would be lost; "
                f"got subsample_size={size} of {site['fn'].size}; predict with subsample_size=None"
            )
    return posterior


def _chunk_sizes(num_draws: int, batch_size: int, taken: set[int]) -> list[int]:
    """Sizes of the chunks, none in `taken` but 1, which is run alone."""
    sizes = []
    while num_draws > 0:
        size = min(batch_size, num_draws)
        while size > 1 and size in taken:
            size -= 1
        sizes.append(size)
        num_draws -= size
    return sizes

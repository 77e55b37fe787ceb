"""Posteriors of simulated data sets, whose true latents are known: what every check of calibration goes through."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.trained_range import warn_outside_counts
from pyro_arbuf.inference.validation import check_count
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.programs.same_law import Simulations
from pyro_arbuf.progress import progress_bar
from pyro_arbuf.random_state import seeded

BATCH = 25  # data sets at a time
DATASETS = 500  # of a check


class Law(Protocol):
    """A posterior of P unconstrained numbers, of batch shape `(B,)`: any distribution of torch or Pyro is one."""

    def sample(self, sample_shape: torch.Size, /) -> Tensor:
        """Draws `(*sample_shape, B, P)`."""
        ...

    def log_prob(self, value: Tensor, /) -> Tensor:
        """Log density `(*sample_shape, B)` of values `(*sample_shape, B, P)`, nats."""
        ...


Posterior = Callable[[Context], Law]


class Known(NamedTuple):
    """Some simulated data sets, B of them.

    Attributes:
        truth: `(B, P)`, the unconstrained latents that they were simulated from.
        context: The data sets, conditioned on.
        law: Their posterior.
        draws: `(S, B, P)` of it.
    """

    truth: Tensor
    context: Context
    law: Law
    draws: Tensor


def check_sizes(seed: object, posterior: object, **counts: object) -> None:
    """Raises ValueError unless counts are integers of at least 1, the seed is one of at least 0, a posterior callable.

    A posterior may be `None`.
    """
    for name, value in counts.items():
        check_count(name, value)
    check_count("seed", seed, 0)
    if posterior is not None and not callable(posterior):
        raise ValueError(
            "posterior must be a function of a Context that returns a distribution with sample and log_prob; got "
            f"{type(posterior).__name__}; use lambda context: ..., or leave it out for the network's own"
        )


def in_program_units(net: ArBufferModel, x: Tensor, y: Tensor) -> Context:
    """The context of one data set of a user, `(1, n, .)` in the program's units; warnings are in the user's."""
    plain, (x, y, _) = net.in_units(), net.condition(x, y).observations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said above
        return plain.condition(x, plain.config.squeeze_outcome(y))


def trained_trials(config: ModelConfig) -> int:
    """The largest trained number of trials."""
    return max(1, config.num_context[1])


def chosen_trials(config: ModelConfig, num_trials: int | None) -> int:
    """The number of trials of a check, `None` = the largest trained one; warns beyond that.

    Raises:
        ValueError: If it is no positive integer.
    """
    if num_trials is None:
        return trained_trials(config)
    check_count("num_trials", num_trials)
    if config.num_context[1] > 1:  # more than one observation of a program of one is refused
        warn_outside_counts("num_trials", num_trials, config.num_context)
    return num_trials


@contextlib.contextmanager
def simulating(seed: int) -> Iterator[None]:
    """Draws from a seed, without warnings of a trained range: draws from the prior are what was trained on."""
    with seeded(seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*outside the trained range.*")
        yield


def known_posteriors(
    net: ArBufferModel,
    simulate: Callable[[slice], Simulations],
    posterior: Posterior,
    num_datasets: int,
    num_draws: int,
    what: str,
) -> Iterator[Known]:
    """Simulates data sets, some at a time, and draws from the posterior of each.

    Args:
        net: The network, in the program's units.
        simulate: Draws the data sets of a slice of 0..D - 1.
        posterior: Of a context.
        num_datasets: Data sets D.
        num_draws: Posterior draws S of each.
        what: Of the progress bar.

    Raises:
        ValueError: If the posterior's draws are not `(S, B, P)` or not finite.
    """
    device = next(net.parameters()).device
    for start in progress_bar(range(0, num_datasets, BATCH), desc=what, leave=False):
        drawn = simulate(slice(start, min(start + BATCH, num_datasets)))
        drawn = Simulations(*(part.to(device) for part in drawn))
        context = net.condition(drawn.x, net.config.squeeze_outcome(drawn.y))
        law = posterior(context)
        yield Known(drawn.latents, context, law, checked_draws(law, num_draws, drawn.latents.shape))


def checked_draws(law: Law, num_draws: int, shape: torch.Size) -> Tensor:
    """Draws `(S, B, P)` of a posterior.

    Raises:
        ValueError: If it is no distribution, or they are no tensor of that shape, or not finite.
    """
    if not callable(getattr(law, "sample", None)):
        raise ValueError(f"posterior(context) must return a distribution with sample and log_prob; got {law!r}")
    draws = law.sample(torch.Size([num_draws]))
    expected = (num_draws, *shape)
    if not isinstance(draws, Tensor) or draws.shape != expected:
        got = tuple(draws.shape) if isinstance(draws, Tensor) else type(draws).__name__
        raise ValueError(
            f"posterior(context).sample({(num_draws,)}) must be a tensor of shape (draws, data sets, latent numbers) = "
            f"{expected}; got {got}; its batch must be that of the context"
        )
    wrong = int((~draws.isfinite()).any(-1).sum())
    if wrong:
        raise ValueError(
            f"draws of posterior(context) must be finite; got {wrong} of {draws[..., 0].numel()} with NaN or infinite "
            "numbers; mend the posterior, or leave out its failed draws"
        )
    return draws


def checked_log_prob(law: Law, value: Tensor) -> Tensor:
    """Log densities of values `(*S, B, P)` by a posterior, `(*S, B)`.

    Raises:
        ValueError: If they have another shape, or are NaN.
    """
    if not callable(getattr(law, "log_prob", None)):
        raise ValueError(f"posterior(context) must return a distribution with sample and log_prob; got {law!r}")
    density = law.log_prob(value)
    if not isinstance(density, Tensor) or density.shape != value.shape[:-1]:
        got = tuple(density.shape) if isinstance(density, Tensor) else type(density).__name__
        remedy = "; call .to_event(1) on the distribution" if got == tuple(value.shape) else ""
        raise ValueError(
            "posterior(context).log_prob must give one number for the latents of a data set together, of shape "
            f"{tuple(value.shape[:-1])}; got {got}{remedy}"
        )
    if bool(density.isnan().any()):
        raise ValueError("posterior(context).log_prob must be a number wherever the posterior draws; got NaN; mend it")
    return density

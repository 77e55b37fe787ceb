"""The amortised posterior at work in Pyro: as a guide, and corrected by importance sampling against the program."""

import math
import warnings
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor
from torch.distributions import constraints

from pyro_arbuf.context import Context
from pyro_arbuf.posteriors import ArBufferPosterior
from pyro_arbuf.predictive import seeded
from pyro_arbuf.programs import check_program
from pyro_arbuf.simulation import Program, Simulator

MAX_K_HAT = 0.7  # beyond it, importance sampling is not to be trusted
CHUNK = 1000  # draws whose density is computed at a time


class AmortizedGuide:
    """A Pyro guide that draws a program's latents from their amortised posterior, whatever arguments it is called with.

    For `Importance`, `Predictive` and `SVI`. With `tunable=True` the unconstrained draws are shifted and scaled by the
    parameters `name.shift` and `name.scale`, which SVI optimises from 0 and 1: a warm start at the amortised posterior.

    Args:
        context: What `net.condition(x, y)` returns, without a batch.
        orders: As for `ArBufferPosterior`.
        tunable: Whether SVI may tune it.
        name: Of the auxiliary site and the parameters.

    Raises:
        ValueError: If the context has a batch or fixes all latents.
    """

    def __init__(
        self, context: Context, orders: Tensor | None = None, tunable: bool = False, name: str = "AmortizedGuide"
    ):
        self.posterior = ArBufferPosterior(context, orders)
        if context.batch_shape:
            raise ValueError(
                f"context must be of one data set; got the batch shape {tuple(context.batch_shape)}; make a guide of "
                "each, context[i]"
            )
        self.tunable, self.name = tunable, name

    def __call__(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Samples the latents, each as a site of its own name; arguments are ignored.

        Returns:
            Values by site.
        """
        infer = {"is_auxiliary": True}
        draws = pyro.sample(f"_{self.name}_unconstrained", self.posterior, infer=infer)
        log_scale = torch.zeros(self.posterior.event_shape, dtype=draws.dtype, device=draws.device)
        if self.tunable:
            shift = pyro.param(f"{self.name}.shift", torch.zeros_like(log_scale))
            scale = pyro.param(f"{self.name}.scale", torch.ones_like(log_scale), constraint=constraints.positive)
            draws, log_scale = shift + scale * draws, scale.log()
        values = {}
        log_scales = log_scale.split([latent.size for latent in self.posterior.latents])
        sites = self.posterior.sites_and_jacobians(draws).items()
        for (name, (value, jacobian)), stretched in zip(sites, log_scales, strict=True):
            event_dim = value.dim() - jacobian.dim()
            density = -jacobian - stretched.sum()
            values[name] = pyro.sample(name, dist.Delta(value, log_density=density, event_dim=event_dim))
        return values


class Refined(NamedTuple):
    """A posterior corrected by importance sampling with the program's density.

    Attributes:
        draws: `(num_resampled, *shape)` per site: draws without duplicates, by their weights; fewer where fewer have a
            density above 0.
        proposals: `(S, *shape)` per site: all draws of the amortised posterior.
        weights: `(S,)`, normalised, the largest smoothed by a fitted Pareto tail.
        k_hat: Shape of that tail; above 0.7 the result is not to be trusted.
        effective_sample_size: Of the weights.
        log_evidence: Log marginal likelihood by importance sampling, nats; with latents given, the log density of data
            and given latents.
        log_evidence_standard_error: Its standard error, nats.
    """

    draws: dict[str, Tensor]
    proposals: dict[str, Tensor]
    weights: Tensor
    k_hat: float
    effective_sample_size: float
    log_evidence: float
    log_evidence_standard_error: float


@torch.no_grad()
def refine(
    program: Program,
    context: Context,
    num_draws: int = 10_000,
    num_resampled: int = 1_000,
    orders: Tensor | None = None,
    seed: int | None = None,
) -> Refined:
    """Corrects the amortised posterior by importance sampling against a program that has a density.

    Args:
        program: The Pyro program; its outcome's distribution needs `log_prob`.
        context: What `net.condition(x, y)` returns, without a batch.
        num_draws: Draws S of the amortised posterior.
        num_resampled: Draws kept, without duplicates; well below `num_draws`.
        orders: Of the posterior's chain, as for `ArBufferPosterior`.
        seed: Of the draws; `None` = torch's global generator.

    Returns:
        Weights, draws and the Pareto k-hat.

    Raises:
        ValueError: If the context has a batch or no observation, a number is out of range, or a density is missing.

    Source:
        Vehtari et al. (2024), "Pareto smoothed importance sampling".
    """
    if not isinstance(context, Context):
        raise ValueError(f"context must be what net.condition(x, y) returns; got {type(context).__name__}")
    if context.batch_shape or context.num_context == 0:
        got = f"batch shape {tuple(context.batch_shape)} and {context.num_context} observations"
        raise ValueError(f"context must hold the observations of one data set; got {got}")
    integers = isinstance(num_draws, int) and isinstance(num_resampled, int)
    if not integers or not 1 <= num_resampled <= num_draws or num_draws < 100:
        got = f"{num_resampled!r} and {num_draws!r}"
        raise ValueError(f"num_resampled must be an integer in 1..num_draws, num_draws one of at least 100; got {got}")
    model = context.model
    posterior = ArBufferPosterior(context, orders)
    x, y, length = (None if part is None else part[0] for part in context.observations)
    x, y = x[:length], model.config.squeeze_outcome(y[:length])

    def inputs(num_trials: int) -> Tensor:
        return x[torch.arange(num_trials) % len(x)].to(torch.get_default_device())

    simulator = Simulator(program, inputs, model.latents, model.config.outcome)
    check_program(simulator, model.config)
    given, log_weights = _given(context), []
    with seeded(seed):
        draws = posterior.sample((num_draws,))
        gumbel = -torch.log(-torch.log(torch.rand(num_draws, dtype=torch.float64, device=draws.device)))
        for chunk in draws.split(CHUNK):
            sites = posterior.sites_and_jacobians(chunk)
            values = {name: value for name, (value, _) in sites.items()}
            values |= {name: value.expand(len(chunk), *value.shape) for name, value in given.items()}
            jacobian = sum(jacobian for _, jacobian in sites.values())
            density = simulator.log_joint(values, x, y) + jacobian
            log_weights.append((density - posterior.log_prob(chunk)).double())
    proposals = posterior.sites(draws)
    log_weights = torch.cat(log_weights)
    undefined = int(log_weights.isnan().sum())
    if undefined:
        at = {name: value[log_weights.isnan()][0].tolist() for name, value in proposals.items()}
        raise ValueError(
            f"the program's density must be a number; got NaN at {undefined} of {num_draws} draws, as {at}"
        )
    if not bool((log_weights > -math.inf).any()):
        raise ValueError("the program's density is 0 at every draw: the data are impossible under it")
    smoothed, k_hat = smooth_weights(log_weights)
    if k_hat > MAX_K_HAT:
        warnings.warn(
            f"k-hat = {k_hat:.2f} > {MAX_K_HAT}: the amortised posterior is too far from the exact one for importance "
            "sampling; train the network longer, or run NUTS on the program",
            stacklevel=3,  # behind torch.no_grad
        )
    weights = torch.softmax(smoothed, 0)
    kept = (smoothed + gumbel).topk(num_resampled).indices  # Gumbel-top-k: draws without replacement, by weight
    kept = kept[smoothed[kept] > -math.inf]
    raw = torch.exp(log_weights - log_weights.max())
    evidence = (raw.mean().log() + log_weights.max()).item()
    error = (raw.std() / raw.mean()).item() / math.sqrt(num_draws)
    ess = (1 / weights.square().sum()).item()
    resampled = {name: value[kept] for name, value in proposals.items()}
    return Refined(resampled, proposals, weights, k_hat, ess, evidence, error)


def smooth_weights(log_weights: Tensor) -> tuple[Tensor, float]:
    """Pareto-smoothed log weights `(S,)` and the shape k-hat of the tail.

    The largest min(S / 5, 3 sqrt(S)) weights are replaced by quantiles of a generalised Pareto law fitted to them.

    Source:
        Vehtari et al. (2024), "Pareto smoothed importance sampling".
    """
    size = len(log_weights)
    tail = math.ceil(min(size / 5, 3 * math.sqrt(size)))
    shifted = log_weights - log_weights.max()
    order = shifted.argsort()
    cutoff = shifted[order[-tail - 1]].exp()
    excess = shifted[order[-tail:]].exp() - cutoff
    if excess[-1] == 0:
        return log_weights, -math.inf  # all the large weights are equal
    if excess[int(tail / 4 - 0.5)] <= 0:
        return log_weights, math.inf  # most of the tail is nothing beside its largest
    k, sigma = fit_generalized_pareto(excess.cpu())  # with the weak prior of the paper
    if not math.isfinite(k):
        return log_weights, math.inf
    quantile = (torch.arange(tail, dtype=log_weights.dtype, device=log_weights.device) + 0.5) / tail
    fitted = -torch.log1p(-quantile) if abs(k) < 1e-6 else torch.expm1(-k * torch.log1p(-quantile)) / k
    smoothed = shifted.clone()
    smoothed[order[-tail:]] = (cutoff + sigma * fitted).log().clamp(max=0.0)
    return smoothed + log_weights.max(), float(k)


def _given(context: Context) -> dict[str, Tensor]:
    """Values of the latents that a context fixes, in their own supports."""
    latents = [latent for latent in context.model.config.latents if latent.name in context.latents]
    parts = context.given[0].split([latent.size for latent in latents]) if latents else ()
    return {latent.name: latent.constrain(part)[0] for latent, part in zip(latents, parts, strict=True)}

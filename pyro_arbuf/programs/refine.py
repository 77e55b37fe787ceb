"""The amortised posterior corrected by importance sampling against the program's density."""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from pyro_arbuf.display import Table, cells, labels, shown_as_table
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.series import has_gap
from pyro_arbuf.inference.validation import check_count
from pyro_arbuf.programs.configuration import check_program, outcome_names
from pyro_arbuf.programs.runs import continued
from pyro_arbuf.programs.simulator import Program, Simulator
from pyro_arbuf.random_state import seeded
from pyro_arbuf.user_warnings import warn
from pyro_arbuf.workflow.posterior_draws import data_set, given_latents, systematic_resample

MAX_K_HAT = 0.7  # beyond it, importance sampling is not to be trusted
MIN_DRAWS = 100  # of importance sampling: fewer have no tail to speak of
MOST_WITHOUT_REPLACEMENT = 0.1  # of the effective sample size: beyond it, draws without duplicates are too wide
CHUNK = 1000  # draws whose density is computed at a time

Density = Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]


def moments_table(draws: dict[str, Tensor]) -> Table:
    """Mean and standard deviation of each number of sites `(S, *shape)`."""
    table: dict[str, list[str]] = {"latent": [], "mean": [], "sd": []}
    for name, values in draws.items():
        shape = values.shape[1:]
        table["latent"] += [f"{name}{f'[{label}]' * bool(shape)}" for label in labels(shape)]
        table["mean"] += cells(values.mean(0))
        table["sd"] += cells(values.std(0))
    return table


def _summary(found: "Refined") -> tuple[str, Table]:
    title = (
        f"Refined(sites={list(found.draws)}, num_draws={len(found.weights)}, k_hat={found.k_hat:.2f}, "
        f"effective_sample_size={found.effective_sample_size:.0f}, log_evidence={found.log_evidence:.2f} "
        f"+- {found.log_evidence_standard_error:.2f})"
    )
    return title, moments_table(found.draws)


@shown_as_table(_summary)
class Refined(NamedTuple):
    """A posterior corrected by importance sampling with the program's density.

    Attributes:
        draws: `(num_resampled, *shape)` per site: draws by their weights. There are no duplicates among them up to a
            tenth of the effective sample size; beyond it draws of large weight repeat.
        proposals: `(S, *shape)` per site: all draws of the amortised posterior.
        weights: `(S,)`, normalised, the largest smoothed by a fitted Pareto tail.
        k_hat: Shape of that tail; above 0.7 the result is not to be trusted.
        effective_sample_size: Of the weights: how many independent draws of the exact posterior they are worth.
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


class ImportanceSample(NamedTuple):
    """Draws of an amortised posterior, weighted by the program's density.

    Attributes:
        proposals: `(S, *shape)` per site.
        log_weights: `(S,)`, smoothed, not normalised.
        k_hat: Shape of the tail of the weights.
        log_evidence: Log mean of the weights as they were before smoothing, nats.
        standard_error: Of `log_evidence`, nats.
    """

    proposals: dict[str, Tensor]
    log_weights: Tensor
    k_hat: float
    log_evidence: float
    standard_error: float


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

    The S draws of the amortised posterior are worth fewer draws of the exact one: `effective_sample_size`. Up to a
    tenth of it, `draws` holds different ones; beyond that, draws without duplicates would be too wide, so those of
    large weight repeat and keep the exact posterior's width. Where more are asked for than the weights are worth, a
    warning says so: their spread is right, but they are fewer independent draws than they seem. Expectations are best
    taken with `weights` over all `proposals`.

    Args:
        program: The Pyro program; its outcome's distribution needs `log_prob`.
        context: What `net.condition(x, y)` returns, without a batch.
        num_draws: Draws S of the amortised posterior, at least 100.
        num_resampled: Draws to return, at most `num_draws`; best no more than the effective sample size.
        orders: Of the posterior's chain, as for `ArBufferPosterior`.
        seed: Of the draws; `None` = torch's global generator.

    Returns:
        Weights, draws, the Pareto k-hat and the effective sample size.

    Raises:
        ValueError: If the context has a batch or no observation, a number is out of range, or a density is missing;
            `change_prior` needs none.

    Source:
        Vehtari et al. (2024), "Pareto smoothed importance sampling".
    """
    check_count("num_draws", num_draws, MIN_DRAWS)
    check_count("num_resampled", num_resampled)
    if num_resampled > num_draws:
        raise ValueError(f"num_resampled must be at most num_draws = {num_draws}; got {num_resampled}; raise num_draws")
    simulator = context_simulator(program, context)
    with seeded(seed):
        sample = importance_sample(simulator, context, num_draws, orders)
        kept = resample(sample.log_weights, num_resampled)
    weights = torch.softmax(sample.log_weights, 0)
    size = effective_sample_size(sample.log_weights)
    if sample.k_hat > MAX_K_HAT:
        warn(
            f"k-hat = {sample.k_hat:.2f} > {MAX_K_HAT}: the amortised posterior is too far from the exact one for "
            f"importance sampling, whose effective sample size of {size:.0f} is not to be trusted either; train the "
            "network longer, or run NUTS on the program",
        )
    elif num_resampled > size:
        wanted = num_draws * num_resampled / size
        digit = 10 ** (math.floor(math.log10(wanted)) - 1)
        wanted = math.ceil(wanted / digit) * digit  # two digits
        warn(
            f"the weights have an effective sample size of {size:.0f}, so the {num_resampled} draws repeat and are "
            f"worth no more than {size:.0f} independent ones. Ask for fewer (num_resampled), or take more proposals: "
            f"num_draws = {wanted}",
        )
    draws = {name: value[kept] for name, value in sample.proposals.items()}
    evidence = (sample.log_evidence, sample.standard_error)
    return Refined(draws, sample.proposals, weights, sample.k_hat, size, *evidence)


def context_simulator(program: Program, context: Context, narrower: bool = False) -> Simulator:
    """The simulator of a program at the inputs of a context's one data set.

    Args:
        program: The program.
        context: Of one data set.
        narrower: Whether supports of latents may be parts of those of the network.

    Raises:
        ValueError: If the context is of no or several data sets, or the program does not fit its network.
    """
    if not isinstance(context, Context):
        raise ValueError(f"context must be what net.condition(x, y) returns; got {type(context).__name__}")
    if context.batch_shape or context.num_context == 0:
        got = f"batch shape {tuple(context.batch_shape)} and {context.num_context} observations"
        raise ValueError(f"context must hold the observations of one data set; got {got}")
    if not callable(program):
        raise ValueError(f"program must be a Pyro program, a function of x; got {type(program).__name__}")
    x, _ = data_set(context)
    series = context.model.config.sequential
    if has_gap(x, context.model.config):
        raise ValueError(
            "context must hold a series without gaps to be scored by its program, whose trials are successive; got one "
            "that skips trials; give the trials up to the gap, or a program that draws those in between"
        )

    def inputs(num_trials: int) -> Tensor:
        rows = continued(x, num_trials) if series else x[torch.arange(num_trials) % len(x)]
        return rows.to(torch.get_default_device())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notes are on what networks take for granted, and densities do not
        simulator = Simulator(program, inputs, context.model.latents, outcome_names(context.model.config))
    check_program(simulator, context.model.config, narrower)
    return simulator


@torch.no_grad()
def importance_sample(
    simulator: Simulator,
    context: Context,
    num_draws: int,
    orders: Tensor | None = None,
    density: Density | None = None,
) -> ImportanceSample:
    """Weights draws of the amortised posterior of one data set by the density of its program.

    Args:
        simulator: Of the program, with the network's latents.
        context: Of one data set.
        num_draws: Draws S, at least 100, by torch's global generator.
        orders: Of the posterior's chain.
        density: Log density `(S,)` of latents and data, of the arguments of `Simulator.log_joint`; `None` = that.

    Raises:
        ValueError: If the program has no density, or it is NaN at a draw, or 0 at all of them.
    """
    posterior = ArBufferPosterior(context, orders)
    x, y = data_set(context)
    given, log_weights = given_latents(context), []
    draws = posterior.sample((num_draws,))
    for chunk in draws.split(CHUNK):
        sites = posterior.sites_and_jacobians(chunk)
        values = {name: value for name, (value, _) in sites.items()}
        values |= {name: value.expand(len(chunk), *value.shape) for name, value in given.items()}
        jacobian = sum(jacobian for _, jacobian in sites.values())
        joint = (density or simulator.log_joint)(values, x, y) + jacobian
        log_weights.append((joint - posterior.log_prob(chunk)).double())
    proposals = posterior.sites(draws)
    log_weights = torch.cat(log_weights)
    undefined = int(log_weights.isnan().sum())
    if undefined:
        at = {name: value[log_weights.isnan()][0].tolist() for name, value in proposals.items()}
        raise ValueError(
            f"the program's density must be a number; got NaN at {undefined} of {num_draws} draws, as {at}"
        )
    if not bool((log_weights > -math.inf).any()):
        raise ValueError(
            "the program's density is 0 at every draw: the data are impossible under it, no draw is in the support of "
            "its prior, or its outcome is a Delta, which has no density"
        )
    units = context.model.config.unit_map
    if units is not None:  # the program speaks the network's units, the density of its data is reported in the user's
        log_weights = log_weights - len(x) * units.log_jacobian
    smoothed, k_hat = smooth_weights(log_weights)
    raw = torch.exp(log_weights - log_weights.max())
    evidence = (raw.mean().log() + log_weights.max()).item()
    error = (raw.std() / raw.mean()).item() / math.sqrt(num_draws)
    return ImportanceSample(proposals, smoothed, k_hat, evidence, error)


def effective_sample_size(log_weights: Tensor) -> float:
    """How many draws of equal weight the weights `(S,)` are worth: 1 / sum w_s^2 of the normalised ones."""
    return (1 / torch.softmax(log_weights, 0).square().sum()).item()


def resample(log_weights: Tensor, num_draws: int) -> Tensor:
    """Indices `(num_draws,)` of draws by their weights `(S,)`, in random order, with torch's global generator.

    Without duplicates up to a tenth of the effective sample size. Draws without replacement are too wide beyond it, as
    each of large weight may be kept only once; they are then drawn with replacement, systematically.
    """
    if num_draws > MOST_WITHOUT_REPLACEMENT * effective_sample_size(log_weights):
        return systematic_resample(log_weights, num_draws)
    gumbel = -torch.log(-torch.log(torch.rand_like(log_weights)))
    return (log_weights + gumbel).topk(num_draws).indices  # Gumbel-top-k: without replacement, by weight


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

"""Evidence from one network, comparisons of it, and two checks of consistency that need no reference."""

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.orders import average_orders, paired_error, random_orders, warn_few_orders
from pyro_arbuf.inference.outcome_sites import stack_sites
from pyro_arbuf.inference.validation import check_count, check_x, check_y
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs.refine import MAX_K_HAT, MIN_DRAWS, ImportanceSample, context_simulator, importance_sample
from pyro_arbuf.programs.simulator import Program
from pyro_arbuf.programs.sources import find_simulator
from pyro_arbuf.random_state import seeded

Outcomes = Tensor | Mapping[str, Tensor]  # of a data set, as a tensor or by site
NOT_RESOLVED = "not resolved"
Z = 1.96  # of a 95 % interval


class Evidence(NamedTuple):
    """A log evidence, averaged over orders, or by importance sampling.

    Attributes:
        value: `(*batch,)` nats.
        standard_error: `(*batch,)` nats, over the orders, on top of which the network's own error comes; or of the
            importance sampling.
    """

    value: Tensor
    standard_error: Tensor


class EvidenceComparison(NamedTuple):
    """Evidences of several models on one data set.

    Attributes:
        evidence: Of each model.
        difference: Log evidence of the best model minus that of each model, nats.
        error: Half width of the 95 % interval of each difference, nats: the orders' paired standard error and both
            networks' measured errors, or the standard errors of importance sampling, combined; infinite where one of
            them is not known.
        verdict: Name of the best model, or "not resolved" where a difference lies within its error.
        reason: Why it is not resolved; empty where it is.
    """

    evidence: dict[str, Evidence]
    difference: dict[str, float]
    error: dict[str, float]
    verdict: str
    reason: str = ""


class SelfConsistency(NamedTuple):
    """log p(y) = log p(theta) + log p(y | theta) - log p(theta | y) at posterior draws: one number if all agree.

    Attributes:
        values: `(S,)` nats, one per draw.
        mean: Their mean.
        standard_deviation: Their standard deviation; 0 for a consistent network.
    """

    values: Tensor
    mean: float
    standard_deviation: float


class SubsetGap(NamedTuple):
    """How much the density of a subset of the targets depends on the others, root mean squares in nats per target.

    Attributes:
        dropped: Density of the subset by itself against the one that the joint with the others implies.
        reordered: Density of the subset in one order against another.
    """

    dropped: float
    reordered: float


@torch.no_grad()
def log_evidence(
    net: ArBufferModel, x: Tensor, y: Outcomes, num_orders: int = 64, buffer_size: int | None = None, seed: int = 0
) -> Evidence:
    """Log marginal likelihood of data: their joint density with an empty context, averaged over orders.

    Args:
        net: The network of a model.
        x: `(*batch, n, D_x)` inputs.
        y: `(*batch, n)` or `(*batch, n, D_y)` outcomes; of several sites also a dict of them.
        num_orders: Random orders R, at least 2.
        buffer_size: Trials between two absorptions; `None` = the model's K.
        seed: Of the orders.

    Returns:
        Value and standard error over the orders, `(*batch,)` nats.

    Raises:
        ValueError: If an argument breaks its rule.
    """
    spread = average_orders(log_prob_orders(net, x, y, num_orders, buffer_size, seed))
    warn_few_orders(spread, "the log evidence", stacklevel=3)  # behind torch.no_grad
    return Evidence(spread.log_prob, spread.standard_error)


def log_prob_orders(
    net: ArBufferModel, x: Tensor, y: Outcomes, num_orders: int, buffer_size: int | None = None, seed: int = 0
) -> Tensor:
    """Joint log density of data with an empty context in each of R random orders, `(*batch, R)` nats."""
    check_count("num_orders", num_orders, 2)  # for a standard error
    if not isinstance(x, Tensor) or x.dim() < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a tensor (*batch, n, {net.config.dim_x}); got {got}")
    y = stack_sites(y, net.config.outcome)
    check_x("x", x, net)  # whether or not Pyro's validation is on: an evidence of NaN is none
    check_y("y", y, net)
    joint = ArBufferJoint(net.condition(), x, random_orders(x.shape[-2], num_orders, seed), buffer_size)
    return joint._log_prob_orders(y, stacklevel=7)  # the user's line is behind torch.no_grad and two functions


def _check_one_data_set(x: Tensor, y: Outcomes, net: ArBufferModel) -> Tensor:
    """The outcomes of one data set, as one tensor."""
    y, dim_y = stack_sites(y, net.config.outcome), net.config.dim_y
    if not isinstance(x, Tensor) or x.dim() != 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be the inputs (n, D_x) of one data set, a tensor; got {got}; take one at a time")
    shape = (len(x),) if dim_y is None else (len(x), dim_y)
    if not isinstance(y, Tensor) or y.shape != shape:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y must be the outcomes {shape} of one data set, a tensor; got {got}; take one at a time")
    return y


@torch.no_grad()
def compare_evidence(
    nets: Mapping[str, ArBufferModel],
    x: Tensor,
    y: Outcomes,
    num_orders: int = 64,
    seed: int = 0,
    programs: Mapping[str, Program] | None = None,
    num_draws: int = 10_000,
) -> EvidenceComparison:
    """Compares models by their evidence on one data set, with the same orders for all.

    A verdict needs to know how far off each evidence may be. A network's is measured once, by
    `measure_evidence_error(net)`; without it the comparison is not resolved. The evidence of a model whose program has
    a density is exact up to importance sampling: give it among `programs`. Where k-hat is above 0.7 it is not to be
    trusted, and the comparison is not resolved either.

    Args:
        nets: The network of each model, by name.
        x: `(n, D_x)` inputs.
        y: `(n,)` or `(n, D_y)` outcomes; of several sites also a dict of them.
        num_orders: Random orders R, at least 2.
        seed: Of the orders, and of importance sampling.
        programs: Programs of some or all of the models, by name, whose densities give the evidence as in `refine`;
            `None` = the networks' own evidence.
        num_draws: Draws of importance sampling, at least 100.

    Returns:
        Evidences, differences to the best with 95 % errors, the verdict, and why it is open.

    Raises:
        ValueError: If there are fewer than two models, x has a batch, an evidence is no finite number, a program has no
            density, or an argument breaks its rule.
    """
    programs = {} if programs is None else programs
    _check_models(nets, programs)
    y = _check_one_data_set(x, y, next(iter(nets.values())))
    check_count("num_draws", num_draws, MIN_DRAWS)
    check_count("num_orders", num_orders, 2)
    unmeasured = [n for n, net in nets.items() if net.config.evidence_rmse is None and n not in programs]
    if unmeasured:
        warnings.warn(
            f"the networks {unmeasured} do not say how far off their evidence is, so the verdict stays 'not resolved'. "
            "Measure it by pyro_arbuf.measure_evidence_error(net), or give programs with a density in programs={...}",
            stacklevel=3,  # behind torch.no_grad
        )
    evidence, own, distrusted, per_order = {}, {}, {}, {}
    for name, net in nets.items():
        if name in programs:
            sample = _importance_evidence(name, programs[name], net, x, y, num_draws, seed)
            evidence[name] = Evidence(x.new_tensor(sample.log_evidence), x.new_tensor(sample.standard_error))
            own[name] = sample.standard_error
            if sample.k_hat > MAX_K_HAT:
                own[name], distrusted[name] = math.inf, round(sample.k_hat, 2)
        else:
            spread = average_orders(log_prob_orders(net, x, y, num_orders, None, seed))
            warn_few_orders(spread, f"the log evidence of {name!r}", stacklevel=3)
            evidence[name], per_order[name] = Evidence(spread.log_prob, spread.standard_error), spread.log_prob_orders
            own[name] = math.inf if net.config.evidence_rmse is None else net.config.evidence_rmse
    values = {name: each.value.item() for name, each in evidence.items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise ValueError(f"the evidence of every model must be a finite number to be compared; got {values}")
    best = max(values, key=values.__getitem__)
    error = {name: _pair_error(best, name, evidence, per_order, own) for name in nets}
    difference = {name: values[best] - values[name] for name in nets}
    close = [name for name in nets if name != best and not difference[name] > error[name]]
    if distrusted:
        reason = f"importance sampling is not to be trusted where k-hat is above {MAX_K_HAT}: {distrusted}"
    elif unmeasured:
        reason = f"the networks {unmeasured} do not say how far off their evidence is"
    else:
        reason = f"the difference to {best!r} lies within its error for {close}" if close else ""
    return EvidenceComparison(evidence, difference, error, NOT_RESOLVED if close else best, reason)


def _check_models(nets: Mapping[str, ArBufferModel], programs: Mapping[str, Program]) -> None:
    """Raises ValueError unless there are two models or more, of the same data, and programs of some of them."""
    if not isinstance(nets, Mapping) or len(nets) < 2:
        got = list(nets) if isinstance(nets, Mapping) else type(nets).__name__
        raise ValueError(f"nets must be a dict of at least two models to compare, by name; got {got}")
    sizes = {name: (net.config.dim_x, net.config.dim_y, *net.config.outcomes) for name, net in nets.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"nets must be of the same data, one (dim_x, dim_y) and kinds of outcomes; got {sizes}")
    if not isinstance(programs, Mapping) or not set(programs) <= set(nets):
        got = list(programs) if isinstance(programs, Mapping) else type(programs).__name__
        raise ValueError(f"programs must be a dict of programs by the names of nets, {list(nets)}; got {got}")


def _pair_error(
    best: str,
    name: str,
    evidence: Mapping[str, Evidence],
    per_order: Mapping[str, Tensor],
    own: Mapping[str, float],
) -> float:
    """95 % error of the difference of two log evidences, nats: over the orders that they share, and their own."""
    if name == best:
        return 0.0
    pair = [n for n in (best, name) if n in per_order]
    if len(pair) == 2:
        spread = paired_error(*(per_order[n] for n in pair)).item()
    else:
        spread = sum(evidence[n].standard_error.item() for n in pair)  # of one, or of none
    return Z * math.hypot(spread, own[best], own[name])


def _importance_evidence(
    name: str, program: Program, net: ArBufferModel, x: Tensor, y: Tensor, num_draws: int, seed: int
) -> ImportanceSample:
    context = net.condition(x, y)
    try:
        with seeded(seed):
            return importance_sample(context_simulator(program, context), context, num_draws)
    except ValueError as error:
        raise ValueError(
            f"programs[{name!r}] must give the evidence by its density: {error}. Leave it out to take the network's "
            "own evidence"
        ) from None


@torch.no_grad()
def self_consistency(
    net: ArBufferModel,
    x: Tensor,
    y: Outcomes,
    num_draws: int = 100,
    program: Program | None = None,
    seed: int | None = 0,
) -> SelfConsistency:
    """Checks posterior, likelihood and prior against each other: their combination must not depend on the latents.

    Args:
        net: A network with latents.
        x: `(n, D_x)` inputs.
        y: `(n,)` or `(n, D_y)` outcomes; of several sites also a dict of them.
        num_draws: Posterior draws S, at least 2.
        program: Whose exact prior is used; `None` = the one the network was trained on.
        seed: Of the draws; `None` = torch's global generator.

    Returns:
        The implied log evidence at every draw, mean and standard deviation.

    Raises:
        ValueError: If the network's program is not known, or an argument breaks its rule.
    """
    y = _check_one_data_set(x, y, net)
    check_count("num_draws", num_draws, 2)
    simulator = find_simulator(net, program)
    posterior = ArBufferPosterior(net.condition(x, y))
    with seeded(seed):
        draws = posterior.sample((num_draws,))
        sites = posterior.sites(draws)
        log_prior = simulator.log_prior(sites)  # runs the program, which draws outcomes
    likelihood = ArBufferMarginals(net.condition(latents=sites), x).log_prob(y)
    jacobian = sum(jacobian for _, jacobian in posterior.sites_and_jacobians(draws).values())
    values = log_prior + likelihood - posterior.log_prob(draws) + jacobian
    return SelfConsistency(values, values.mean().item(), values.std().item())


@torch.no_grad()
def subset_gap(net: ArBufferModel, x: Tensor, y: Outcomes, num_splits: int = 16, seed: int = 0) -> SubsetGap:
    """Measures how far the joint with an empty context is from one consistent distribution.

    The targets are split at random into halves A and B. By the chain with A in front and the one with B in front,
    log p(A) is implied twice, once by itself and once as log p(B) + log p(A | B) - log p(B | A).

    Args:
        net: The network.
        x: `(n, D_x)` inputs, n >= 4.
        y: `(n,)` or `(n, D_y)` outcomes; of several sites also a dict of them.
        num_splits: Random splits.
        seed: Of the splits.

    Returns:
        Root mean squares over the splits, nats per target of the subset.

    Raises:
        ValueError: If there are fewer than 4 targets, x has a batch, or `num_splits` is no positive integer.
    """
    y = _check_one_data_set(x, y, net)
    check_count("num_splits", num_splits)
    num_targets = len(x)
    if num_targets < 4:
        raise ValueError(f"x must hold at least 4 targets to be split; got {num_targets}")
    half, context = num_targets // 2, net.condition()
    orders = random_orders(num_targets, num_splits, seed)
    swapped = torch.cat([orders[:, half:], orders[:, :half]], 1)
    joint = ArBufferJoint(context, x, torch.cat([orders, swapped]))._log_prob_orders(y, stacklevel=6)
    dropped = joint[:num_splits] - joint[num_splits:]  # log p(A) + log p(B | A) - log p(B) - log p(A | B)
    turned = torch.stack([torch.arange(half), torch.arange(half - 1, -1, -1)])
    alone = torch.stack(
        [ArBufferJoint(context, x[order[:half]], turned)._log_prob_orders(y[order[:half]], 7) for order in orders]
    )
    reordered = alone[:, 0] - alone[:, 1]
    return SubsetGap(*(gap.square().mean().sqrt().item() / half for gap in (dropped, reordered)))

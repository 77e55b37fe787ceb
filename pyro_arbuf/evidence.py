"""Evidence from one network, comparisons of it, and two checks of consistency that need no reference."""

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.distributions import ArBufferJoint
from pyro_arbuf.marginals import ArBufferMarginals
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.orders import random_orders
from pyro_arbuf.posteriors import ArBufferPosterior
from pyro_arbuf.predictive import seeded
from pyro_arbuf.programs import Program, find_simulator

NOT_RESOLVED = "not resolved"
Z = 1.96  # of a 95 % interval


class Evidence(NamedTuple):
    """A log evidence, averaged over orders.

    Attributes:
        value: `(*batch,)` nats.
        standard_error: `(*batch,)` nats, over the orders; the network's own error comes on top.
    """

    value: Tensor
    standard_error: Tensor


class EvidenceComparison(NamedTuple):
    """Evidences of several models on one data set.

    Attributes:
        evidence: Of each model.
        difference: Log evidence of the best model minus that of each model, nats.
        error: Half width of the 95 % interval of each difference, nats: the orders' paired standard error and both
            networks' measured errors, combined.
        verdict: Name of the best model, or "not resolved" where a difference lies within its error.
    """

    evidence: dict[str, Evidence]
    difference: dict[str, float]
    error: dict[str, float]
    verdict: str


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
    net: ArBufferModel, x: Tensor, y: Tensor, num_orders: int = 64, buffer_size: int | None = None, seed: int = 0
) -> Evidence:
    """Log marginal likelihood of data: their joint density with an empty context, averaged over orders.

    Args:
        net: The network of a model.
        x: `(*batch, n, D_x)` inputs.
        y: `(*batch, n)` or `(*batch, n, D_y)` outcomes.
        num_orders: Random orders R, at least 2.
        buffer_size: Trials between two absorptions; `None` = the model's K.
        seed: Of the orders.

    Returns:
        Value and standard error over the orders, `(*batch,)` nats.

    Raises:
        ValueError: If an argument breaks its rule.
    """
    joint = _joint_of_orders(net, x, num_orders, buffer_size, seed)
    spread = joint.order_spread(y)
    return Evidence(spread.log_prob, spread.standard_error)


def _joint_of_orders(
    net: ArBufferModel, x: Tensor, num_orders: int, buffer_size: int | None, seed: int
) -> ArBufferJoint:
    if not isinstance(num_orders, int) or num_orders < 2:
        raise ValueError(f"num_orders must be an integer of at least 2, for a standard error; got {num_orders!r}")
    if not isinstance(x, Tensor) or x.dim() < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a tensor (*batch, n, {net.config.dim_x}); got {got}")
    return ArBufferJoint(net.condition(), x, random_orders(x.shape[-2], num_orders, seed), buffer_size)


def _check_one_data_set(x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dim() != 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be the inputs (n, D_x) of one data set, a tensor; got {got}; take one at a time")


@torch.no_grad()
def compare_evidence(
    nets: Mapping[str, ArBufferModel], x: Tensor, y: Tensor, num_orders: int = 64, seed: int = 0
) -> EvidenceComparison:
    """Compares models by their evidence on one data set, with the same orders for all.

    Args:
        nets: The network of each model, by name.
        x: `(n, D_x)` inputs.
        y: `(n,)` or `(n, D_y)` outcomes.
        num_orders: Random orders R, at least 2.
        seed: Of the orders.

    Returns:
        Evidences, differences to the best with 95 % errors, and the verdict.

    Raises:
        ValueError: If there are fewer than two models, x has a batch, or an argument breaks its rule.
    """
    _check_one_data_set(x)
    if not isinstance(nets, Mapping) or len(nets) < 2:
        got = list(nets) if isinstance(nets, Mapping) else type(nets).__name__
        raise ValueError(f"nets must be a dict of at least two models to compare, by name; got {got}")
    sizes = {name: (net.config.dim_x, net.config.dim_y) for name, net in nets.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"nets must be of the same data, one (dim_x, dim_y); got {sizes}")
    unmeasured = [name for name, net in nets.items() if net.config.evidence_rmse is None]
    if unmeasured:
        warnings.warn(
            f"the networks {unmeasured} do not say how far off their evidence is (config.evidence_rmse); the error "
            "holds the spread over orders only; measure it on simulated data sets of known evidence, then set "
            "net.config = dataclasses.replace(net.config, evidence_rmse=...)",
            stacklevel=3,  # behind torch.no_grad
        )
    spreads = {n: _joint_of_orders(net, x, num_orders, None, seed).order_spread(y) for n, net in nets.items()}
    best = max(spreads, key=lambda name: spreads[name].log_prob.item())
    relative = {n: (s.log_prob_orders - s.log_prob).exp() for n, s in spreads.items()}  # p_r / p, of mean 1
    difference, error, verdict = {}, {}, best
    for name, spread in spreads.items():
        difference[name] = (spreads[best].log_prob - spread.log_prob).item()
        paired = (relative[best] - relative[name]).std().item() / math.sqrt(num_orders)
        own = [nets[n].config.evidence_rmse or 0.0 for n in (best, name)]
        error[name] = 0.0 if name == best else Z * math.hypot(paired, *own)
        if name != best and difference[name] <= error[name]:
            verdict = NOT_RESOLVED
    evidence = {name: Evidence(s.log_prob, s.standard_error) for name, s in spreads.items()}
    return EvidenceComparison(evidence, difference, error, verdict)


@torch.no_grad()
def self_consistency(
    net: ArBufferModel,
    x: Tensor,
    y: Tensor,
    num_draws: int = 100,
    program: Program | None = None,
    seed: int | None = 0,
) -> SelfConsistency:
    """Checks posterior, likelihood and prior against each other: their combination must not depend on the latents.

    Args:
        net: A network with latents.
        x: `(n, D_x)` inputs.
        y: `(n,)` or `(n, D_y)` outcomes.
        num_draws: Posterior draws S, at least 2.
        program: Whose exact prior is used; `None` = the one the network was trained on.
        seed: Of the draws; `None` = torch's global generator.

    Returns:
        The implied log evidence at every draw, mean and standard deviation.

    Raises:
        ValueError: If the network's program is not known, or an argument breaks its rule.
    """
    _check_one_data_set(x)
    if num_draws < 2:
        raise ValueError(f"num_draws must be at least 2; got {num_draws}")
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
def subset_gap(net: ArBufferModel, x: Tensor, y: Tensor, num_splits: int = 16, seed: int = 0) -> SubsetGap:
    """Measures how far the joint with an empty context is from one consistent distribution.

    The targets are split at random into halves A and B. By the chain with A in front and the one with B in front,
    log p(A) is implied twice, once by itself and once as log p(B) + log p(A | B) - log p(B | A).

    Args:
        net: The network.
        x: `(n, D_x)` inputs, n >= 4.
        y: `(n,)` or `(n, D_y)` outcomes.
        num_splits: Random splits.
        seed: Of the splits.

    Returns:
        Root mean squares over the splits, nats per target of the subset.

    Raises:
        ValueError: If there are fewer than 4 targets, or x has a batch.
    """
    _check_one_data_set(x)
    num_targets = len(x)
    if num_targets < 4:
        raise ValueError(f"x must hold at least 4 targets to be split; got {num_targets}")
    half, context = num_targets // 2, net.condition()
    orders = random_orders(num_targets, num_splits, seed)
    swapped = torch.cat([orders[:, half:], orders[:, :half]], 1)
    joint = ArBufferJoint(context, x, torch.cat([orders, swapped])).order_spread(y).log_prob_orders
    dropped = joint[:num_splits] - joint[num_splits:]  # log p(A) + log p(B | A) - log p(B) - log p(A | B)
    turned = torch.stack([torch.arange(half), torch.arange(half - 1, -1, -1)])
    halves = [ArBufferJoint(context, x[order[:half]], turned).order_spread(y[order[:half]]) for order in orders]
    alone = torch.stack([spread.log_prob_orders for spread in halves])
    reordered = alone[:, 0] - alone[:, 1]
    return SubsetGap(*(gap.square().mean().sqrt().item() / half for gap in (dropped, reordered)))

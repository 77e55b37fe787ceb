"""Two checks of a network's consistency that need no reference: of its latents, and of its joint densities."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.display import Table, facts, shown_as_table
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.data import to_tensors
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.inference.validation import check_count
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs.likelihood import likelihood
from pyro_arbuf.programs.simulator import Program
from pyro_arbuf.programs.sources import find_simulator
from pyro_arbuf.random_state import seeded

Outcomes = Tensor | Mapping[str, Tensor]  # of a data set, as a tensor or by site


def _summary(found: "SelfConsistency") -> tuple[str, Table]:
    lines = {
        "draws": str(len(found.values)),
        "implied log evidence, mean": f"{found.mean:.5g} nats",
        "its standard deviation (0 if consistent)": f"{found.standard_deviation:.3g} nats",
    }
    return "SelfConsistency", facts(lines)


@shown_as_table(_summary)
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


def _summary_of_gap(found: "SubsetGap") -> tuple[str, Table]:
    return "SubsetGap, nats per target", facts(
        {"dropped": f"{found.dropped:.4g}", "reordered": f"{found.reordered:.4g}"}
    )


@shown_as_table(_summary_of_gap)
class SubsetGap(NamedTuple):
    """How much the density of a subset of the targets depends on the others, root mean squares in nats per target.

    Attributes:
        dropped: Density of the subset by itself against the one that the joint with the others implies.
        reordered: Density of the subset in one order against another.
    """

    dropped: float
    reordered: float


def one_data_set(x: object, y: object, net: ArBufferModel, index: str = "", least: int = 0) -> tuple[Tensor, Tensor]:
    """The inputs and outcomes of one data set as tensors, of at least so many trials.

    Args:
        x: Inputs.
        y: Outcomes.
        net: Whose they are.
        index: Of the data set in a list of them, as messages write it.
        least: Fewest trials.
    """
    (x, y), dim_y = to_tensors(x, y, net), net.config.dim_y
    if not isinstance(x, Tensor) or x.dim() != 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        flat = isinstance(x, Tensor) and x.dim() == 1 and net.config.dim_x == 1
        remedy = f"use x{index}.unsqueeze(-1)" if flat else "take one at a time"
        raise ValueError(f"x{index} must be the inputs (n, D_x) of one data set, a tensor; got {got}; {remedy}")
    shape = (len(x),) if dim_y is None else (len(x), dim_y)
    if not isinstance(y, Tensor) or y.shape != shape:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"y{index} must be the outcomes {shape} of one data set, a tensor; got {got}; take one at a time"
        )
    if len(x) < least:
        raise ValueError(f"x{index} must hold at least {least} trial, as nothing can be checked without data; got none")
    return x, y


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

    The likelihood is that of `likelihood`: a joint density where trials depend on each other.

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
    x, y = one_data_set(x, y, net)
    check_count("num_draws", num_draws, 2)
    simulator = find_simulator(net, program)
    posterior = ArBufferPosterior(net.condition(x, y))
    with seeded(seed):
        draws = posterior.sample((num_draws,))
        sites = posterior.sites(draws)
        log_prior = simulator.log_prior(sites)  # runs the program, which draws outcomes
    log_likelihood = likelihood(net, x, sites).log_prob(y)
    jacobian = sum(jacobian for _, jacobian in posterior.sites_and_jacobians(draws).values())
    values = log_prior + log_likelihood - posterior.log_prob(draws) + jacobian
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
        ValueError: If there are fewer than 4 targets, x has a batch, `num_splits` is no positive integer, or the
            network is one of series, whose targets have one order.
    """
    if net.config.sequential:
        raise ValueError(
            "subset_gap compares orders of the targets, and the trials of a series have one; got a network of a "
            "series; check it by calibrate(net) and self_consistency(net, x, y)"
        )
    x, y = one_data_set(x, y, net)
    check_count("num_splits", num_splits)
    num_targets = len(x)
    if num_targets < 4:
        raise ValueError(f"x must hold at least 4 targets to be split; got {num_targets}")
    half, context = num_targets // 2, net.condition()
    orders = random_orders(num_targets, num_splits, seed)
    swapped = torch.cat([orders[:, half:], orders[:, :half]], 1)
    joint = ArBufferJoint(context, x, torch.cat([orders, swapped]))._log_prob_orders(y)
    dropped = joint[:num_splits] - joint[num_splits:]  # log p(A) + log p(B | A) - log p(B) - log p(A | B)
    turned = torch.stack([torch.arange(half), torch.arange(half - 1, -1, -1)])
    alone = torch.stack(
        [ArBufferJoint(context, x[order[:half]], turned)._log_prob_orders(y[order[:half]]) for order in orders]
    )
    reordered = alone[:, 0] - alone[:, 1]
    return SubsetGap(*(gap.square().mean().sqrt().item() / half for gap in (dropped, reordered)))

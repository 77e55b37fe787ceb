"""Evidence from one network, of one data set, a batch or several of different lengths; comparisons of it."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.display import Table, cells, labels, shown_as_table
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.data import to_tensors
from pyro_arbuf.inference.orders import average_orders, paired_error, random_orders, warn_few_orders
from pyro_arbuf.inference.validation import check_count, check_x, check_y
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs.consistency import Outcomes, one_data_set
from pyro_arbuf.programs.refine import MAX_K_HAT, MIN_DRAWS, ImportanceSample, context_simulator, importance_sample
from pyro_arbuf.programs.simulator import Program
from pyro_arbuf.random_state import seeded
from pyro_arbuf.user_warnings import warn

NOT_RESOLVED = "not resolved"
Z = 1.96  # of a 95 % interval
MORE_TRIALS = 1.5  # times those at which an error was measured: beyond it, the error may be larger


def _summary(evidence: "Evidence") -> tuple[str, Table]:
    numbers = {"log evidence": cells(evidence.value), "standard error": cells(evidence.standard_error)}
    several = {"data set": labels(evidence.value.shape)} if evidence.value.dim() else {}
    return "Evidence, nats", several | numbers


@shown_as_table(_summary)
class Evidence(NamedTuple):
    """A log evidence, averaged over orders, or by importance sampling.

    Attributes:
        value: `(*batch,)` nats.
        standard_error: `(*batch,)` nats, over the orders, on top of which the network's own error comes; or of the
            importance sampling. NaN for a series, whose trials have one order.
    """

    value: Tensor
    standard_error: Tensor


def _summary_of_comparison(comparison: "EvidenceComparison") -> tuple[str, Table]:
    table = {
        "model": list(comparison.evidence),
        "log evidence": [f"{each.value.item():.5g}" for each in comparison.evidence.values()],
        "below the best": [f"{number:.5g}" for number in comparison.difference.values()],
        "+- (95 %)": [f"{number:.5g}" for number in comparison.error.values()],
    }
    return (
        f"EvidenceComparison, nats; verdict: {comparison.verdict}{f'; {comparison.reason}' * bool(comparison.reason)}",
        table,
    )


@shown_as_table(_summary_of_comparison)
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


@torch.no_grad()
def log_evidence(
    net: ArBufferModel,
    x: Any,
    y: Any,
    num_orders: int = 64,
    buffer_size: int | None = None,
    seed: int = 0,
) -> Evidence:
    """Log marginal likelihood of data: their joint density with an empty context, averaged over orders.

    Of a series it is the density in the natural order, whatever `num_orders`: one number without a standard error.

    Args:
        net: The network of a model.
        x: `(*batch, n, D_x)` inputs; or a list of B tensors `(n_b, D_x)`, data sets of different lengths.
        y: `(*batch, n)` or `(*batch, n, D_y)` outcomes; of several sites also a dict of them; or a list of B of these,
            without batch.
        num_orders: Random orders R, at least 2; not used for a series.
        buffer_size: Trials between two absorptions; `None` = the model's K.
        seed: Of the orders.

    Returns:
        Value and standard error over the orders, `(*batch,)` nats, or `(B,)` for lists; NaN as the standard error of a
        series.

    Raises:
        ValueError: If an argument breaks its rule.
    """
    if not isinstance(x, list | tuple) and not isinstance(y, list | tuple):
        return evidence_of(net, x, y, num_orders, buffer_size, seed, "the log evidence")[0]
    if not (isinstance(x, list | tuple) and isinstance(y, list | tuple) and len(x) == len(y) > 0):
        got = [f"{len(v)} of them" if isinstance(v, list | tuple) else type(v).__name__ for v in (x, y)]
        raise ValueError(
            f"x and y must be tensors (*batch, n, {net.config.dim_x}) and (*batch, n[, D_y]), or both lists of data "
            f"sets, at least one; got {got[0]} and {got[1]}"
        )
    data = [one_data_set(*pair, net, f"[{i}]") for i, pair in enumerate(zip(x, y, strict=True))]
    found = [
        evidence_of(net, *pair, num_orders, buffer_size, seed, f"the log evidence of data set {i}")[0]
        for i, pair in enumerate(data)
    ]
    return Evidence(torch.stack([each.value for each in found]), torch.stack([each.standard_error for each in found]))


def evidence_of(
    net: ArBufferModel,
    x: Tensor,
    y: Outcomes,
    num_orders: int,
    buffer_size: int | None,
    seed: int,
    what: str,
) -> tuple[Evidence, Tensor | None]:
    """The evidence of a network, and its density in each order, `None` for a series; warns where few orders count."""
    per_order = log_prob_orders(net, x, y, num_orders, buffer_size, seed)
    if net.config.sequential:
        value = per_order.squeeze(-1)
        return Evidence(value, torch.full_like(value, torch.nan)), None
    spread = average_orders(per_order)
    warn_few_orders(spread, what)
    return Evidence(spread.log_prob, spread.standard_error), per_order


def log_prob_orders(
    net: ArBufferModel, x: Tensor, y: Outcomes, num_orders: int, buffer_size: int | None = None, seed: int = 0
) -> Tensor:
    """Joint log density of data with an empty context in each of R random orders, `(*batch, R)` nats.

    Of a series in its natural order alone, `(*batch, 1)`.
    """
    check_count("num_orders", num_orders, 2)  # for a standard error
    if net.config.observation is not None:
        raise ValueError(
            "the evidence needs a network of the program's whole prior; this one was trained on a part of it, by "
            "amortize(observation=...); train another without it"
        )
    x, outcomes = to_tensors(x, y, net)
    if not isinstance(x, Tensor) or x.dim() < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        remedy = "; use x.unsqueeze(-1)" if isinstance(x, Tensor) and x.dim() == 1 and net.config.dim_x == 1 else ""
        raise ValueError(f"x must be a tensor (*batch, n, {net.config.dim_x}); got {got}{remedy}")
    if x.shape[-2] == 0:
        raise ValueError(
            f"x must hold at least one trial to have an evidence; got shape {tuple(x.shape)}; of no data it is 0"
        )
    check_x("x", x, net)  # whether or not Pyro's validation is on: an evidence of NaN is none
    check_y("y", outcomes, net)
    orders = None if net.config.sequential else random_orders(x.shape[-2], num_orders, seed)
    joint = ArBufferJoint(net.condition(), x, orders, buffer_size)
    return joint._log_prob_orders(outcomes)


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
    _check_models(nets, programs, isinstance(y, Mapping))
    data = {name: one_data_set(x, y, net) for name, net in nets.items()}  # sites may stand in another order
    check_count("num_draws", num_draws, MIN_DRAWS)
    check_count("num_orders", num_orders, 2)
    unmeasured = _unmeasured({n: net for n, net in nets.items() if n not in programs}, data)
    evidence, own, distrusted, per_order = {}, {}, {}, {}
    for name, net in nets.items():
        if name in programs:
            sample = _importance_evidence(name, programs[name], net, *data[name], num_draws, seed)
            numbers = (sample.log_evidence, sample.standard_error)
            evidence[name] = Evidence(*(data[name][0].new_tensor(number) for number in numbers))
            own[name] = sample.standard_error
            if sample.k_hat > MAX_K_HAT:
                own[name], distrusted[name] = math.inf, round(sample.k_hat, 2)
        else:
            what = f"the log evidence of {name!r}"
            evidence[name], in_orders = evidence_of(net, *data[name], num_orders, None, seed, what)
            per_order |= {} if in_orders is None else {name: in_orders}
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


def _unmeasured(nets: Mapping[str, ArBufferModel], data: Mapping[str, tuple[Tensor, Outcomes]]) -> list[str]:
    """Networks whose evidence error is not known; warns of them, and where it is that of far fewer trials."""
    unmeasured = [name for name, net in nets.items() if net.config.evidence_rmse is None]
    if unmeasured:
        warn(
            f"the networks {unmeasured} do not say how far off their evidence is, so the verdict stays 'not resolved'. "
            "Measure it by pyro_arbuf.measure_evidence_error(net), or give programs with a density in programs={...}",
        )
    measured = {name: net.config.evidence_trials for name, net in nets.items()}
    fewer = [name for name, number in measured.items() if number and len(data[name][0]) > MORE_TRIALS * number]
    if fewer:
        warn(
            f"the evidence errors of {fewer} were measured on data sets of fewer trials than these, and errors grow "
            "with their number: the verdict is too sure; measure again by measure_evidence_error(net, num_trials=n)",
        )
    return unmeasured


def _check_models(nets: Mapping[str, ArBufferModel], programs: Mapping[str, Program], by_site: bool) -> None:
    """Raises ValueError unless there are two models or more, of the same data, and programs of some of them."""
    if not isinstance(nets, Mapping) or len(nets) < 2:
        got = list(nets) if isinstance(nets, Mapping) else type(nets).__name__
        raise ValueError(f"nets must be a dict of at least two models to compare, by name; got {got}")
    sizes = {name: (net.config.dim_x, net.config.dim_y, *_kinds(net, by_site)) for name, net in nets.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"nets must be of the same data, one (dim_x, dim_y) and kinds of outcomes; got {sizes}")
    orders = {name: net.config.outcome for name, net in nets.items() if not isinstance(net.config.outcome, str)}
    if not by_site and len({tuple(sorted(sites)) for sites in orders.values()}) < len(set(orders.values())):
        raise ValueError(
            f"y must be a dict of outcomes by site, as nets have them in different orders, {orders}; got numbers alone"
        )
    if not isinstance(programs, Mapping) or not set(programs) <= set(nets):
        got = list(programs) if isinstance(programs, Mapping) else type(programs).__name__
        raise ValueError(f"programs must be a dict of programs by the names of nets, {list(nets)}; got {got}")


def _kinds(net: ArBufferModel, by_site: bool) -> tuple[object, ...]:
    """Kinds of the outcome's dimensions, in the order of their sites' names where data come by site."""
    outcome, kinds = net.config.outcome, net.config.outcomes
    if not by_site or isinstance(outcome, str):
        return kinds
    return tuple(sorted(zip(outcome, kinds or ("real",) * len(outcome), strict=True)))


def _pair_error(
    best: str,
    name: str,
    evidence: Mapping[str, Evidence],
    per_order: Mapping[str, Tensor],
    own: Mapping[str, float],
) -> float:
    """95 % error of the difference of two log evidences, nats: over the orders that they share, and their own.

    Series, and evidences by importance sampling, have no part of the orders.
    """
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

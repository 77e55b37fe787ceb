"""What a joint answers besides samples and densities: gradients of draws, conditionals, PIT, spread over orders."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator

import pyro
import pytest
import reference
import torch
from pyro import poutine
from samples import draw, outcome
from scipy.stats import kstest
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf.distributions.base import PlateOverTargetsWarning
from pyro_arbuf.distributions.joint import ArBufferJoint, ArBufferMarginals
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.orders import random_orders, restrict_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.predictives import GaussianMixture

EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, S, N, K, M, R, DIM_X = 2, 3, 5, 4, 6, 7, 2
LENGTHS = [2, N]
below_above = pytest.mark.parametrize("num_targets", [K - 1, M])
BOTH = pytest.mark.parametrize("distribution", [ArBufferJoint, ArBufferMarginals])


def pairs(model: ArBufferModel, lengths: list[int] = LENGTHS) -> list[tuple[Tensor, Tensor]]:
    """Observations of every task, of its own length."""
    return [(draw(n, DIM_X, seed=2 + b), draw(n, *outcome(model), seed=4 + b)) for b, n in enumerate(lengths)]


def padded(model: ArBufferModel, lengths: list[int] = LENGTHS) -> Context:
    x, y = zip(*pairs(model, lengths), strict=True)
    return model.condition(x, y)


def single(model: ArBufferModel, num_context: int = N) -> Context:
    return model.condition(*pairs(model, [num_context])[0])


def slope(function: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor, step: float = 1e-5) -> Tensor:
    """Derivative along a direction by central differences."""
    with torch.no_grad():
        return (function(at + step * direction) - function(at - step * direction)) / (2 * step)


# Draws with gradients


def test_rsample_is_opt_in(scalar_model: ArBufferModel) -> None:
    joint = ArBufferJoint(single(scalar_model), draw(M, DIM_X))
    assert not joint.has_rsample
    with pytest.raises(NotImplementedError, match=r"ArBufferJoint\(\.\.\., rsample=True\)"):
        joint.rsample()


@below_above
def test_rsample_draws_what_sample_draws(net: ArBufferModel, num_targets: int) -> None:
    orders = random_orders(num_targets, R)
    joint = ArBufferJoint(padded(net), draw(num_targets, DIM_X), orders=orders, rsample=True).expand([S, B])
    assert joint.has_rsample
    draws = []
    for method in (joint.sample, joint.rsample):
        torch.manual_seed(1)
        draws.append(method((4,)))
    assert draws[1].shape == (4, S, B, num_targets, *outcome(net))
    assert_close(*draws, **EXACT)


def test_rsample_of_no_draws_is_empty(net: ArBufferModel) -> None:
    joint = ArBufferJoint(padded(net), draw(M, DIM_X), rsample=True)
    assert joint.rsample((0,)).shape == (0, B, M, *outcome(net))


@below_above
@pytest.mark.parametrize("which", ["x", "x_context", "y_context", "shift"])
@pytest.mark.parametrize("dim_y", [None, 3])
def test_rsample_of_gaussians_is_plain_reparameterisation(
    dim_y: int | None, which: str, num_targets: int, build_model: Callable[..., ArBufferModel]
) -> None:
    model = build_model(head="gaussian", dim_y=dim_y)
    x_context, y_context = draw(B, N, DIM_X, seed=2), draw(B, N, *outcome(model), seed=3)
    inputs = {"x": draw(num_targets, DIM_X), "x_context": x_context, "y_context": y_context, "shift": draw()}

    def mean_draw(leaf: Tensor, method: str = "sample") -> Tensor:
        """One component: y = mean + sd * noise, so differences of plain draws are the reference."""
        given = inputs | {which: leaf}
        context = model.condition(given["x_context"], given["y_context"] + given["shift"])
        orders = random_orders(num_targets, 2)
        joint = ArBufferJoint(context, given["x"] + given["shift"], orders=orders, rsample=True)
        torch.manual_seed(1)
        y = getattr(joint, method)((S,))
        return (y * draw(*y.shape, seed=5)).sum()

    leaf = inputs[which].requires_grad_()
    (gradient,) = torch.autograd.grad(mean_draw(leaf, "rsample"), leaf)
    direction = draw(*leaf.shape, seed=6)
    assert_close((gradient * direction).sum(), slope(mean_draw, leaf, direction), rtol=1e-6, atol=1e-7)


def quantiles(model: ArBufferModel, x_context: Tensor, y_context: Tensor, joint: ArBufferJoint, u: Tensor) -> Tensor:
    """The targets `(M, D_y)` whose probabilities along the chain are `u`."""
    y, given = torch.full_like(u, torch.nan), (x_context, y_context.view(N, -1), joint.x)
    order = joint.orders[0].tolist()
    for target, mixture in reference.chain(model.state_dict(), 2, *given, y, order, joint.buffer_size):
        mixture = GaussianMixture(mixture.weights.log(), mixture.means, mixture.sds)
        y[[target]] = mixture.icdf(u[[target]])
    return y


@pytest.mark.parametrize("buffer_size", [K, 2])
@pytest.mark.parametrize("which", ["x", "y_context"])
def test_rsample_of_mixtures_moves_along_the_quantiles(net: ArBufferModel, which: str, buffer_size: int) -> None:
    inputs = {"x": draw(M, DIM_X), "x_context": draw(N, DIM_X, seed=2), "y_context": draw(N, *outcome(net), seed=3)}

    def joint(leaf: Tensor) -> tuple[ArBufferJoint, Tensor, Tensor]:
        given = inputs | {which: leaf}
        context = net.condition(given["x_context"], given["y_context"])
        d = ArBufferJoint(context, given["x"], buffer_size=buffer_size, rsample=True)
        return d, given["x_context"], given["y_context"]

    leaf = inputs[which].requires_grad_()
    d, *_ = joint(leaf)
    y = d.rsample()
    weight, direction = draw(*y.shape, seed=5), draw(*leaf.shape, seed=6)
    (gradient,) = torch.autograd.grad((y * weight).sum(), leaf)
    with torch.no_grad():
        u = d.pit(y).view(M, -1)

    def quantile(leaf: Tensor) -> Tensor:
        d, *given = joint(leaf)
        return (quantiles(net, *given, d, u) * weight.view(M, -1)).sum()

    assert_close((gradient * direction).sum(), slope(quantile, leaf, direction), rtol=1e-5, atol=1e-6)


def test_gradient_of_an_expectation_is_unbiased(scalar_model: ArBufferModel) -> None:
    num_draws, x, y_context = 2000, draw(2, DIM_X), draw(N, seed=3)
    theta = torch.zeros(num_draws, dtype=torch.float64, requires_grad=True)

    def joint(theta: Tensor) -> ArBufferJoint:
        """Theta moves targets and observations, and may have a batch: one for every draw."""
        context = scalar_model.condition(draw(N, DIM_X, seed=2), y_context + theta[..., None])
        return ArBufferJoint(context, x + theta[..., None, None], orders=torch.tensor([[0, 1], [1, 0]]), rsample=True)

    def score(y: Tensor) -> Tensor:
        return torch.tanh(y[..., 0]) * y[..., 1]

    axis = torch.linspace(-12, 12, 161, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)

    def expectation(theta: Tensor) -> Tensor:
        return (joint(theta).log_prob(points).exp() * score(points)).sum() * (axis[1] - axis[0]) ** 2

    expected = slope(expectation, torch.zeros((), dtype=torch.float64), torch.ones(()), 1e-3)
    (gradients,) = torch.autograd.grad(score(joint(theta).rsample()).sum(), theta)
    error = gradients.std() / num_draws**0.5
    assert error < 0.2 * expected.abs()  # else the test says nothing
    assert (gradients.mean() - expected).abs() < 5 * error


def test_sample_statement_keeps_the_gradient_of_the_draw(scalar_model: ArBufferModel) -> None:
    x = draw(M, DIM_X).requires_grad_()
    y = pyro.sample("y", ArBufferJoint(single(scalar_model), x, rsample=True))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.abs().min() > 0


# Full conditionals


def conditionals_one_by_one(model: ArBufferModel, lengths: list[int], x: Tensor, y: Tensor) -> Tensor:
    """`(S, B, M)`: a context of all the other pairs for every target, draw and task."""
    densities = torch.empty(*y.shape[:2], x.shape[-2], dtype=torch.float64)
    for s, b, m in torch.cartesian_prod(*(torch.arange(n) for n in densities.shape)).tolist():
        x_context, y_context = pairs(model, lengths)[b]
        others = torch.arange(x.shape[-2]) != m
        context = model.condition(torch.cat([x_context, x[others]]), torch.cat([y_context, y[s, b, others]]))
        densities[s, b, m] = ArBufferMarginals(context, x[m : m + 1]).log_prob(y[s, b, m : m + 1])
    return densities


@pytest.mark.parametrize(("lengths", "num_targets"), [(LENGTHS, M), (LENGTHS, 1), ([0, N], 1), ([0, 0], 3)])
def test_conditionals_have_all_other_pairs_in_the_context(
    net: ArBufferModel, lengths: list[int], num_targets: int
) -> None:
    x, y = draw(num_targets, DIM_X), draw(S, B, num_targets, *outcome(net))
    got = ArBufferJoint(padded(net, lengths), x).log_prob_conditionals(y)
    assert_close(got, conditionals_one_by_one(net, lengths, x, y), **EXACT)


@pytest.mark.parametrize("num_targets", [1, M])
def test_conditionals_without_context_and_batch(net: ArBufferModel, num_targets: int) -> None:
    x, y = draw(num_targets, DIM_X), draw(num_targets, *outcome(net))
    expected = conditionals_one_by_one(net, [0], x, y[None, None])[0, 0]
    assert_close(ArBufferJoint(net.condition(), x).log_prob_conditionals(y), expected, **EXACT)


def test_conditionals_of_an_expanded_joint_are_repeated(net: ArBufferModel) -> None:
    joint, y = ArBufferJoint(padded(net), draw(M, DIM_X)), draw(M, *outcome(net))
    got = joint.expand([S, B]).log_prob_conditionals(y)
    assert_close(got, joint.log_prob_conditionals(y).expand(S, B, M), **EXACT)


def test_conditionals_are_free_of_orders(scalar_model: ArBufferModel) -> None:
    y, results = draw(M), []
    for orders, buffer_size in [(None, K), (random_orders(M, R), 2)]:
        joint = ArBufferJoint(single(scalar_model), draw(M, DIM_X), orders=orders, buffer_size=buffer_size)
        results.append(joint.log_prob_conditionals(y))
    assert torch.equal(*results)


@pytest.mark.parametrize("which", ["x", "y", "y_context"])
def test_gradient_of_the_conditionals(net: ArBufferModel, which: str) -> None:
    inputs = {"x": draw(M, DIM_X), "y": draw(M, *outcome(net)), "y_context": draw(N, *outcome(net), seed=3)}

    def total(leaf: Tensor) -> Tensor:
        given = inputs | {which: leaf}
        context = net.condition(draw(N, DIM_X, seed=2), given["y_context"])
        return (ArBufferJoint(context, given["x"]).log_prob_conditionals(given["y"]) * draw(M, seed=5)).sum()

    leaf = inputs[which].requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    direction = draw(*leaf.shape, seed=6)
    assert_close((gradient * direction).sum(), slope(total, leaf, direction), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("nan", "rule"), [("raise", "y must be finite"), ("drop", "needs every outcome; got NaN")])
def test_conditionals_refuse_missing_outcomes(scalar_model: ArBufferModel, nan: str, rule: str) -> None:
    joint, y = ArBufferJoint(single(scalar_model), draw(M, DIM_X), nan=nan), draw(M)
    y[2] = torch.nan
    with pytest.raises(ValueError, match=rule):
        joint.log_prob_conditionals(y)


# Probability integral transform


@pytest.mark.parametrize("num_targets", [K - 1, 2 * K + 1])
def test_pit_is_the_distribution_function_along_the_chain(net: ArBufferModel, num_targets: int) -> None:
    x, y = draw(num_targets, DIM_X), draw(S, B, num_targets, *outcome(net))
    joint = ArBufferJoint(padded(net), x)
    got = joint.pit(y)
    assert got.shape == y.shape
    order = joint.orders[0].tolist()
    for b, (x_context, y_context) in enumerate(pairs(net)):
        values = y[:, b].view(S, num_targets, -1)
        given = x_context, y_context.view(LENGTHS[b], -1), x, values
        for target, mixture in reference.chain(net.state_dict(), 2, *given, order, K):
            expected = mixture.cdf(values[:, [target]])[:, 0]
            assert_close(got[:, b, target].view(S, -1), expected, **EXACT)


def test_pit_has_the_density_as_its_jacobian(scalar_model: ArBufferModel) -> None:
    joint, y = ArBufferJoint(single(scalar_model), draw(M, DIM_X)), draw(M)
    jacobian = torch.autograd.functional.jacobian(joint.pit, y)
    assert_close(torch.linalg.slogdet(jacobian).logabsdet, joint.log_prob(y), **EXACT)


def test_pit_of_draws_is_uniform_and_independent(scalar_model: ArBufferModel) -> None:
    joint, num_draws = ArBufferJoint(single(scalar_model), draw(M, DIM_X)), 2000
    u = joint.pit(joint.sample((num_draws,)))
    assert min(kstest(u[:, m].numpy(), "uniform").pvalue for m in range(M)) > 1e-3
    statistics = torch.cat([u - 0.5, (u - 0.5) ** 2], 1)
    correlation = torch.corrcoef(statistics.T) - torch.eye(2 * M, dtype=torch.float64)
    assert correlation.abs().max() < 5 / num_draws**0.5


def test_pit_of_an_expanded_joint_is_repeated(net: ArBufferModel) -> None:
    joint, y = ArBufferJoint(padded(net), draw(M, DIM_X)), draw(M, *outcome(net))
    assert torch.equal(joint.expand([S, B]).pit(y), joint.pit(y).expand(S, B, *y.shape))


def test_pit_needs_one_order(scalar_model: ArBufferModel) -> None:
    joint = ArBufferJoint(single(scalar_model), draw(M, DIM_X), orders=random_orders(M, R))
    with pytest.raises(ValueError, match=r"pit needs one order; got 7; build it with .*\[:1\]"):
        joint.pit(draw(M))


# Conditioning on some targets

GIVEN, REST = [4, 1], [0, 2, 3, 5]


def expected_rest(joint: ArBufferJoint, b: int, y: Tensor) -> ArBufferJoint:
    """The joint of the rest in task b, from a context that holds the given pairs as well."""
    model = joint.context.model
    x_context, y_context = pairs(model)[b]
    context = model.condition(torch.cat([joint.x[GIVEN], x_context]), torch.cat([y, y_context]))
    orders = torch.tensor([[REST.index(m) for m in order if m in REST] for order in joint.orders.tolist()])
    return ArBufferJoint(context, joint.x[REST], orders=orders, buffer_size=joint.buffer_size)


def elements(*shape: int) -> Iterator[tuple[int, ...]]:
    yield from torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist()


@pytest.mark.parametrize("case", ["value_is_larger", "joint_is_expanded", "both"])
@pytest.mark.parametrize("buffer_size", [K, 3])
def test_condition_puts_the_given_pairs_into_the_context(net: ArBufferModel, buffer_size: int, case: str) -> None:
    orders = random_orders(M, R)
    joint = ArBufferJoint(padded(net), draw(M, DIM_X), orders=orders, buffer_size=buffer_size)
    whole = joint if case == "value_is_larger" else joint.expand([S, B])
    y = draw(*([] if case == "joint_is_expanded" else [S, 1]), len(GIVEN), *outcome(net))
    rest = whole.condition(torch.tensor(GIVEN) if case == "both" else GIVEN, y)
    assert rest.batch_shape == (S, B) and rest.event_shape == (len(REST), *outcome(net))
    value = draw(S, B, len(REST), *outcome(net), seed=7)
    got, y = rest.log_prob(value), y.expand(S, B, *y.shape[-1 - len(outcome(net)) :])
    for s, b in elements(S, B):
        assert_close(got[s, b], expected_rest(joint, b, y[s, b]).log_prob(value[s, b]), **EXACT)


def test_condition_keeps_the_options(scalar_model: ArBufferModel) -> None:
    options = {"orders": random_orders(M, R), "buffer_size": 3, "rsample": True, "nan": "drop"}
    rest = ArBufferJoint(single(scalar_model), draw(M, DIM_X), **options, validate_args=False).condition([1], draw(1))
    keep = torch.arange(M) != 1
    assert torch.equal(rest.orders, restrict_orders(options["orders"], keep))
    kept = rest.buffer_size, rest.has_rsample, rest.nan, rest._validate_args, rest.context.num_context
    assert kept == (3, True, "drop", False, N + 1)


def test_condition_on_nothing_changes_nothing(net: ArBufferModel) -> None:
    joint, y = ArBufferJoint(padded(net), draw(M, DIM_X)), draw(B, M, *outcome(net))
    assert_close(joint.condition([], y[0, :0]).log_prob(y), joint.log_prob(y), **EXACT)


@pytest.mark.parametrize("which", ["y", "x"])
def test_gradient_reaches_what_is_conditioned_on(net: ArBufferModel, which: str) -> None:
    inputs = {"x": draw(M, DIM_X), "y": draw(len(GIVEN), *outcome(net), seed=3)}

    def density(leaf: Tensor) -> Tensor:
        given = inputs | {which: leaf}
        rest = ArBufferJoint(padded(net), given["x"]).condition(GIVEN, given["y"])
        return rest.log_prob(draw(len(REST), *outcome(net), seed=7)).sum()

    leaf = inputs[which].requires_grad_()
    (gradient,) = torch.autograd.grad(density(leaf), leaf)
    direction = draw(*leaf.shape, seed=6)
    assert_close((gradient * direction).sum(), slope(density, leaf, direction), rtol=1e-6, atol=1e-7)


CONDITIONS = {
    "outside": ([0, M], 2, r"index must name targets in 0\.\.5, none twice; got \[0, 6\]"),
    "negative": ([-1], 1, r"in 0\.\.5, none twice; got \[-1\]"),
    "twice": ([3, 3], 2, r"none twice; got \[3, 3\]"),
    "all": (range(M), M, "index must leave at least one of the 6 targets; got all of them"),
    "mask": (torch.arange(M) < 2, 2, r"index must hold integers, shape \(T,\); got torch.bool"),
    "float": ([0.5], 1, "index must hold integers, .* got torch.float32"),
    "matrix": (torch.zeros(1, 2, dtype=torch.int64), 2, r"shape \(1, 2\)"),
    "number": (torch.tensor(2), 1, r"index must hold integers, shape \(T,\); got torch.int64, shape \(\)"),
    "plain_number": (2, 1, r"index must hold integers, shape \(T,\)"),
    "too_few_outcomes": ([0, 1], 1, r"y must have shape \(\*batch, 2, \.\.\.\) for this index; got \(2, 1\)"),
}


@pytest.mark.parametrize("case", CONDITIONS)
def test_wrong_conditions_are_refused(case: str, scalar_model: ArBufferModel) -> None:
    index, num_given, rule = CONDITIONS[case]
    with pytest.raises(ValueError, match=rule):
        ArBufferJoint(padded(scalar_model), draw(M, DIM_X)).condition(index, draw(B, num_given))


@pytest.mark.parametrize(
    ("y", "rule"),
    [
        (torch.full((1,), torch.nan), "y must be finite"),
        (torch.ones(1, dtype=torch.int64), "y must have a floating dtype"),
        (torch.ones(S, 1), r"batch shapes must broadcast; got distribution \(2,\), y \(3,\)"),
    ],
)
def test_wrong_outcomes_of_conditions_are_refused(y: Tensor, rule: str, scalar_model: ArBufferModel) -> None:
    with pytest.raises(ValueError, match=rule):
        ArBufferJoint(padded(scalar_model), draw(M, DIM_X)).condition([1], y)


def test_conditioning_beyond_the_trained_range_warns_the_caller(build_model: Callable[..., ArBufferModel]) -> None:
    joint = ArBufferJoint(single(build_model(num_context=(0, N))), draw(K, DIM_X))
    with pytest.warns(UserWarning, match="num_context lies outside the trained range") as caught:
        joint.condition([0], draw(1))
    assert [w.filename for w in caught] == [__file__]


# Spread over orders


def test_order_spread_is_that_of_single_orders(net: ArBufferModel) -> None:
    x, y, orders = draw(M, DIM_X), draw(S, B, M, *outcome(net)), random_orders(M, R)
    context = padded(net)
    joint = ArBufferJoint(context, x, orders=orders)
    spread = joint.order_spread(y)
    each = torch.stack([ArBufferJoint(context, x, orders=order[None]).log_prob(y) for order in orders], -1)
    assert_close(spread.log_prob_orders, each, **EXACT)
    assert_close(spread.log_prob, joint.log_prob(y), **EXACT)
    density = each.exp()
    assert_close(spread.standard_error, density.std(-1) / density.mean(-1) / math.sqrt(R), **EXACT)
    assert_close(spread.effective_orders, density.sum(-1) ** 2 / density.square().sum(-1), **EXACT)


def test_standard_error_is_the_spread_over_sets_of_orders(scalar_model: ArBufferModel) -> None:
    context, x, num_orders = single(scalar_model), draw(M, DIM_X), 16
    y = ArBufferJoint(context, x).sample((S,))
    spreads = [
        ArBufferJoint(context, x, orders=random_orders(M, num_orders, seed)).order_spread(y) for seed in range(80)
    ]
    over_sets = torch.stack([spread.log_prob for spread in spreads]).std(0)
    reported = torch.stack([spread.standard_error for spread in spreads]).mean(0)
    assert over_sets.min() > 0.01  # else the test says nothing
    assert_close(reported, over_sets, rtol=0.3, atol=0.0)


def test_order_spread_warns_where_few_orders_dominate(scalar_model: ArBufferModel) -> None:
    joint = ArBufferJoint(single(scalar_model), draw(M, DIM_X), orders=random_orders(M, 16))
    with pytest.warns(UserWarning, match=r"joint log density rests on few of its 16 orders: .* Take more") as caught:
        spread = joint.order_spread(10 + 10 * draw(M))
    assert [w.filename for w in caught] == [__file__]
    assert 1 <= spread.effective_orders < 4 and spread.standard_error > 1  # by the delta method at most 1


def test_order_spread_needs_several_orders(scalar_model: ArBufferModel) -> None:
    with pytest.raises(ValueError, match=r"order_spread needs at least 2 orders; got 1; use orders=random_orders"):
        ArBufferJoint(single(scalar_model), draw(M, DIM_X)).order_spread(draw(M))


# Plates around one event


@BOTH
def test_plate_over_the_targets_of_one_event_warns(distribution: type, scalar_model: ArBufferModel) -> None:
    y = draw(M)

    def model() -> None:
        with pyro.plate("obs", M):
            pyro.sample("y", distribution(single(scalar_model), draw(M, DIM_X)), obs=y)

    with pytest.warns(PlateOverTargetsWarning, match=r"its density counts 6 times; .* without that plate"):
        poutine.trace(model).get_trace().compute_log_prob()


@BOTH
@pytest.mark.parametrize("method", ["log_prob", "log_prob_factors"])
@pytest.mark.parametrize("batch", [[M], [M, 1], [S, M], [M, S]])
def test_virtual_batch_of_as_many_as_targets_warns(
    batch: list[int], method: str, distribution: type, net: ArBufferModel
) -> None:
    d = distribution(single(net), draw(M, DIM_X)).expand(batch)
    with pytest.warns(PlateOverTargetsWarning, match=rf"\(batch dimension {batch.index(M) - len(batch)}\)"):
        getattr(d, method)(draw(M, *outcome(net)))


LEGITIMATE = {
    "context": lambda d, net: (d(net.condition(draw(M, N, DIM_X), draw(M, N)), draw(M, DIM_X)), draw(M)),
    "x": lambda d, net: (d(single(net), draw(M, M, DIM_X)), draw(M)),
    "value": lambda d, net: (d(single(net), draw(M, DIM_X)).expand([M]), draw(M, M)),
    "value_not_expanded": lambda d, net: (d(single(net), draw(M, DIM_X)), draw(M, M)),
    "other_size": lambda d, net: (d(single(net), draw(M, DIM_X)).expand([S]), draw(M)),
    "one_target": lambda d, net: (d(single(net), draw(1, DIM_X)).expand([1]), draw(1)),
    "draws": lambda d, net: (d(single(net), draw(M, DIM_X)).expand([S]), draw(M, S, M)),
    "draws_of_a_value_with_the_batch": lambda d, net: (d(single(net), draw(M, DIM_X)).expand([M]), draw(1, M, M)),
}


@BOTH
@pytest.mark.parametrize("case", LEGITIMATE)
def test_batch_that_is_no_plate_over_targets_does_not_warn(
    case: str, distribution: type, scalar_model: ArBufferModel
) -> None:
    d, y = LEGITIMATE[case](distribution, scalar_model)
    d.log_prob(y)


# Support


@BOTH
def test_support_holds_for_no_draws(distribution: type, net: ArBufferModel) -> None:
    d = distribution(padded(net), draw(M, DIM_X))
    checked = d.support.check(d.sample((0,)))
    assert checked.shape == (0, B) and checked.dtype == torch.bool
    assert d.support.check(d.sample((S,)).fill_(torch.nan)).any().logical_not()


# Autocast


def test_autocast_changes_nothing(scalar_model: ArBufferModel) -> None:
    net, x, y = copy.deepcopy(scalar_model).float(), draw(M, DIM_X, seed=1).float(), draw(S, M).float()
    x_context, y_context = draw(N, DIM_X, seed=2).float(), draw(N, seed=3).float()

    def answers() -> list[Tensor]:
        context = net.condition(x_context, y_context)
        d = ArBufferJoint(context, x, rsample=True)
        torch.manual_seed(0)
        return [
            d.sample((3,)),
            d.rsample((3,)),
            d.log_prob(y),
            d.pit(y),
            d.log_prob_conditionals(y),
            d.condition([1], y[:, [1]]).log_prob(y[:, [0, *range(2, M)]]),
            d.marginals().log_prob(y),
            ArBufferJoint(context, x, orders=random_orders(M, 3)).order_spread(y).log_prob,
            ArBufferJoint(pickle.loads(pickle.dumps(context)), x).log_prob(y),
        ]

    plain = answers()
    with torch.autocast("cpu", torch.bfloat16):
        cast = answers()
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)

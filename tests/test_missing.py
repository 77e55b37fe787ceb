"""NaN outcomes: refused where they are data, dropped where asked for, passed through where they depend on latents."""

import math

import pytest
import torch
from samples import draw, outcome
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint, ArBufferMarginals
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.orders import random_orders, restrict_orders
from pyro_arbuf.model import ArBufferModel

EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, S, N, K, M, R, DIM_X = 2, 3, 5, 4, 9, 7, 2  # M = 2 K + 1: dropping targets moves the block boundaries
LENGTHS = [2, N]
BOTH = pytest.mark.parametrize("distribution", [ArBufferJoint, ArBufferMarginals])
PATTERNS = torch.zeros(S, B, M, dtype=torch.bool)  # (draw, task, target): which are missing
PATTERNS[0, 0, [0]] = PATTERNS[0, 1, [2, 7]] = PATTERNS[1, 0, [1, 3, 4, 6, 8]] = True
PATTERNS[1, 1, 1:] = PATTERNS[2, 1] = True  # one is left; none is left


def pairs(model: ArBufferModel, b: int) -> tuple[Tensor, Tensor]:
    return draw(LENGTHS[b], DIM_X, seed=2 + b), draw(LENGTHS[b], *outcome(model), seed=4 + b)


def padded(model: ArBufferModel) -> Context:
    x, y = zip(*(pairs(model, b) for b in range(B)), strict=True)
    return model.condition(x, y)


def spoiled(model: ArBufferModel) -> Tensor:
    """`(S, B, M)` or `(S, B, M, D_y)` with NaN where missing, in one dimension of a vector outcome only."""
    y = draw(S, B, M, *outcome(model), seed=6)
    first = y if model.config.dim_y is None else y[..., 1]
    first[PATTERNS] = torch.nan
    return y


def of_the_rest(
    model: ArBufferModel, s: int, b: int, x: Tensor, y: Tensor, **options: object
) -> tuple[ArBufferJoint, Tensor]:
    """The joint that never had the missing targets, in its own small context, and its value."""
    keep = ~PATTERNS[s, b]
    options["orders"] = restrict_orders(options["orders"], keep)
    return ArBufferJoint(model.condition(*pairs(model, b)), x[keep], **options), y[s, b, keep]


def elements() -> list[list[int]]:
    """Draws and tasks with a target left."""
    return (~PATTERNS).any(-1).nonzero().tolist()


# Dropping


@pytest.mark.parametrize("buffer_size", [K, 2])
@pytest.mark.parametrize("num_orders", [1, R])
def test_dropped_targets_leave_the_density_of_the_rest(net: ArBufferModel, num_orders: int, buffer_size: int) -> None:
    x, y, options = draw(M, DIM_X), spoiled(net), {"orders": random_orders(M, num_orders), "buffer_size": buffer_size}
    got = ArBufferJoint(padded(net), x, **options, nan="drop").log_prob(y)
    for s, b in elements():
        rest, value = of_the_rest(net, s, b, x, y, **options)
        assert_close(got[s, b], rest.log_prob(value), **EXACT)


def test_dropped_targets_have_no_factor_and_no_probability(net: ArBufferModel) -> None:
    x, y, orders = draw(M, DIM_X), spoiled(net), random_orders(M, 1)
    joint = ArBufferJoint(padded(net), x, orders=orders, nan="drop")
    factors, pit = joint.log_prob_factors(y), joint.pit(y)
    assert (factors[PATTERNS] == 0).all() and pit[PATTERNS].isnan().all()
    for s, b in elements():
        rest, value = of_the_rest(net, s, b, x, y, orders=orders)
        keep = ~PATTERNS[s, b]
        assert_close(factors[s, b, keep], rest.log_prob_factors(value), **EXACT)
        assert_close(pit[s, b, keep], rest.pit(value), **EXACT)


def test_spread_over_orders_is_that_of_the_rest(net: ArBufferModel) -> None:
    x, y, orders = draw(M, DIM_X), spoiled(net), random_orders(M, R)
    spread = ArBufferJoint(padded(net), x, orders=orders, nan="drop").order_spread(y)
    for s, b in elements():
        rest, value = of_the_rest(net, s, b, x, y, orders=orders)
        for got, expected in zip(spread, rest.order_spread(value), strict=True):
            assert_close(got[s, b], expected, **EXACT)


@pytest.mark.parametrize("num_orders", [1, R])
def test_gradient_is_that_of_the_rest_and_zero_at_dropped_targets(net: ArBufferModel, num_orders: int) -> None:
    x, y, orders = draw(M, DIM_X).requires_grad_(), spoiled(net).requires_grad_(), random_orders(M, num_orders)
    density = ArBufferJoint(padded(net), x, orders=orders, nan="drop").log_prob(y)
    for s, b in elements():
        got = torch.autograd.grad(density[s, b], (x, y), retain_graph=True)
        rest, value = of_the_rest(net, s, b, x, y, orders=orders)
        for ours, expected in zip(got, torch.autograd.grad(rest.log_prob(value), (x, y)), strict=True):
            assert_close(ours, expected, **EXACT)


@pytest.mark.parametrize("num_orders", [1, R])
def test_gradient_with_respect_to_observations_is_finite(net: ArBufferModel, num_orders: int) -> None:
    y_context = draw(B, N, *outcome(net), seed=4).requires_grad_()
    context = net.condition(draw(N, DIM_X, seed=2), y_context)
    joint = ArBufferJoint(context, draw(M, DIM_X), orders=random_orders(M, num_orders), nan="drop")
    (gradient,) = torch.autograd.grad(joint.log_prob(spoiled(net)).sum(), y_context)
    assert gradient.isfinite().all() and gradient.abs().min() > 0


@BOTH
@pytest.mark.parametrize("batch", [(), (S, B)])
def test_density_of_nothing_is_one(distribution: type, batch: tuple[int, ...], net: ArBufferModel) -> None:
    d = distribution(padded(net), draw(M, DIM_X), nan="drop")
    y = torch.full((*batch, M, *outcome(net)), torch.nan, dtype=torch.float64)
    assert torch.equal(d.log_prob(y), torch.zeros(batch or (B,), dtype=torch.float64))


def test_marginals_sum_over_the_rest(net: ArBufferModel) -> None:
    x, y = draw(M, DIM_X), spoiled(net)
    marginals = ArBufferMarginals(padded(net), x, nan="drop")
    factors = marginals.log_prob_factors(y)
    assert (factors[PATTERNS] == 0).all()
    assert_close(marginals.log_prob(y), factors.sum(-1), **EXACT)
    for s, b in elements():
        keep = ~PATTERNS[s, b]
        rest = ArBufferMarginals(net.condition(*pairs(net, b)), x[keep])
        assert_close(factors[s, b, keep], rest.log_prob_factors(y[s, b, keep]), **EXACT)


@BOTH
def test_nothing_missing_is_the_plain_density(distribution: type, net: ArBufferModel) -> None:
    context, x, y = padded(net), draw(M, DIM_X), draw(S, B, M, *outcome(net))
    assert_close(distribution(context, x, nan="drop").log_prob(y), distribution(context, x).log_prob(y), **EXACT)


@BOTH
def test_dropping_survives_expand(distribution: type, net: ArBufferModel) -> None:
    d, y = distribution(padded(net), draw(M, DIM_X), nan="drop"), spoiled(net)
    assert torch.equal(d.expand([S, B]).log_prob(y), d.log_prob(y))


def test_marginals_of_a_joint_drop_as_it_does(scalar_model: ArBufferModel) -> None:
    assert ArBufferJoint(padded(scalar_model), draw(M, DIM_X), nan="drop").marginals().nan == "drop"


# Refusing


@BOTH
@pytest.mark.parametrize("method", ["log_prob", "log_prob_factors"])
def test_missing_data_are_refused_unless_dropped(distribution: type, method: str, net: ArBufferModel) -> None:
    d = distribution(padded(net), draw(M, DIM_X), validate_args=True)
    rule = f"y must be finite; got {int(PATTERNS.sum())} NaN or infinite of .*leave these targets out.*nan='drop'"
    with pytest.raises(ValueError, match=rule):
        getattr(d, method)(spoiled(net))


@BOTH
@pytest.mark.parametrize("infinity", [math.inf, -math.inf])
def test_infinite_data_are_refused_even_where_nan_is_dropped(
    distribution: type, infinity: float, net: ArBufferModel
) -> None:
    d, y = distribution(padded(net), draw(M, DIM_X), nan="drop"), spoiled(net)
    y.view(-1)[1] = infinity
    with pytest.raises(ValueError, match="y must be finite; got 1 NaN or infinite"):
        d.log_prob(y)


@BOTH
@pytest.mark.parametrize("nan", ["ignore", None, True])
def test_unknown_treatment_of_nan_is_refused(distribution: type, nan: object, scalar_model: ArBufferModel) -> None:
    with pytest.raises(ValueError, match=f"nan must be 'raise' or 'drop'; got {nan!r}"):
        distribution(padded(scalar_model), draw(M, DIM_X), nan=nan)


# Passing through: an exception would kill a chain of MCMC


@BOTH
def test_without_validation_nan_gives_nan_where_it_stands(distribution: type, net: ArBufferModel) -> None:
    d = distribution(padded(net), draw(M, DIM_X), validate_args=False)
    assert torch.equal(d.log_prob(spoiled(net)).isnan(), PATTERNS.any(-1))


@BOTH
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["y", "x", "y_context", "x_context"])
def test_latents_that_are_not_finite_have_no_finite_density(
    distribution: type, which: str, value: float, net: ArBufferModel
) -> None:
    given = {"x": draw(M, DIM_X), "y": draw(M, *outcome(net)), "x_context": draw(N, DIM_X, seed=2)}
    given["y_context"] = draw(N, *outcome(net), seed=3)
    latent = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    given[which] = given[which] + latent
    context = net.condition(given["x_context"], given["y_context"])
    density = distribution(context, given["x"], validate_args=True).log_prob(given["y"])
    assert density.isnan() or density == -math.inf


def test_latents_in_lists_of_contexts_are_not_looked_at(net: ArBufferModel) -> None:
    x, y = zip(*(pairs(net, b) for b in range(B)), strict=True)
    latent = torch.tensor(math.nan, dtype=torch.float64, requires_grad=True)
    context = net.condition(x, [y[0] + latent, y[1]])
    density = ArBufferJoint(context, draw(M, DIM_X), validate_args=True).log_prob(draw(M, *outcome(net)))
    assert density.isnan().tolist() == [True, False]


@pytest.mark.parametrize("method", ["log_prob", "log_prob_conditionals", "pit"])
def test_latents_as_values_are_not_looked_at(method: str, net: ArBufferModel) -> None:
    y = spoiled(net).requires_grad_()
    result = getattr(ArBufferJoint(padded(net), draw(M, DIM_X), validate_args=True), method)(y)
    assert result.isnan().flatten(2 if result.dim() > 2 else 1).view(S, B, -1).any(-1).equal(PATTERNS.any(-1))


# Tracing

traced = pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")


@traced
@BOTH
def test_trace_drops_what_is_missing_in_the_call(distribution: type, net: ArBufferModel) -> None:
    d, y = distribution(padded(net), draw(M, DIM_X), nan="drop"), spoiled(net)
    trace = torch.jit.trace(d.log_prob, (draw(*y.shape),), check_trace=False)
    assert_close(trace(y), d.log_prob(y), **EXACT)


@traced
@BOTH
def test_trace_does_not_look_at_values(distribution: type, net: ArBufferModel) -> None:
    d, y = distribution(padded(net), draw(M, DIM_X), validate_args=True), spoiled(net)
    trace = torch.jit.trace(d.log_prob, (y,), check_trace=False)
    assert torch.equal(trace(y).isnan(), PATTERNS.any(-1))

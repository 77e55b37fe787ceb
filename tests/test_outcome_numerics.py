"""Single against double precision at extreme values, and no NaN among gradients, for every kind of outcome."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from conftest import CONFIG, random_model
from samples import draw, draw_outcomes
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.outcomes import outcome_of
from pyro_arbuf.network.predictives import Predictive, log_ndtr

N, M = 5, 6
KINDS = {
    "category": ("categorical(3)",),
    "count": ("count",),
    "mixed": ("categorical(2)", "real", "count"),
    "reals": ("real", "real"),
}
of_every_kind = pytest.mark.parametrize("kind", KINDS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def build(kind: str) -> ArBufferModel:
    outcomes = KINDS[kind]
    dim_y = len(outcomes) if len(outcomes) > 1 else None
    return random_model(dataclasses.replace(CONFIG, chained=True, outcomes=outcomes, dim_y=dim_y))


def outcomes_of(net: ArBufferModel, *shape: int, seed: int = 0) -> Tensor:
    return net.config.squeeze_outcome(draw_outcomes(net.config, *shape, seed=seed))


# Predictives

EXTREMES = {
    "categorical(3)": ([50.0, -50.0, 0.0], [0.0, 1.0, 2.0]),
    "count": (
        [0.0, -50.0, 50.0, 11.5, 0.0, -50.0, -4.0, -50.0, 50.0],  # weights, means and scales of three components
        [0.0, 1.0, 2.0, 30.0, 1e3, 9.8e4, 1e6],
    ),
    "real": ([0.0, -50.0, 50.0, 0.3, 0.0, -50.0, 1.0, -50.0, 50.0], [0.0, 0.3, -7.0, 1e3, -1e6, 1e12]),
}


def log_prob_and_gradient(text: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    raw, values = (torch.tensor(numbers, dtype=dtype) for numbers in EXTREMES[text])
    raw = raw.expand(len(values), -1).clone().requires_grad_()
    density = outcome_of(text).predictive(raw).log_prob(values)
    return density.detach(), torch.autograd.grad(density.sum(), raw)[0]


@pytest.mark.parametrize("text", EXTREMES)
def test_single_precision_gives_the_densities_and_gradients_of_double(text: str) -> None:
    single, double = (log_prob_and_gradient(text, dtype) for dtype in (torch.float32, torch.float64))
    for found, expected in zip(single, double, strict=True):
        assert found.isfinite().all() and expected.isfinite().all()
        assert_close(found.double(), expected, rtol=2e-4, atol=2e-4)


@DTYPES
@pytest.mark.parametrize("text", EXTREMES)
def test_predictives_at_extreme_parameters_have_no_nan(text: str, dtype: torch.dtype) -> None:
    """All signs of raw outputs of 0 and 50, and every method of a predictive."""
    outcome, values = outcome_of(text), torch.tensor(EXTREMES[text][1], dtype=dtype)
    if text == "count":
        values = torch.cat([values, values.new_tensor([1e9, 1e12])])
    signs = torch.tensor([0.0, 50.0, -50.0], dtype=dtype)[:, None, None]
    raw = (signs * torch.randn(3, 200, outcome.num_raw(3), dtype=dtype).sign()).flatten(0, 1).requires_grad_()
    predictive = outcome.predictive(raw.unsqueeze(1).expand(-1, len(values), -1))
    uniform = torch.rand(len(raw), len(values), dtype=dtype)
    methods: list[Callable[[Predictive], Tensor]] = [
        lambda d: d.log_prob(values),
        lambda d: d.cdf(values),
        lambda d: d.below(values),
        lambda d: d.draw(uniform, torch.randn_like(uniform)).detach(),
        lambda d: d.mean,
        lambda d: d.variance,
    ]
    for method in methods:
        found = method(predictive)
        assert not found.isnan().any()
        if found.isfinite().all() and found.requires_grad:  # moments of counts may be infinite
            (gradient,) = torch.autograd.grad(found.sum(), raw, retain_graph=True)
            assert not gradient.isnan().any()
    below, up_to = predictive.below(values), predictive.cdf(values)
    assert ((below >= 0) & (below <= up_to + 1e-6) & (up_to <= 1 + 1e-5)).all()


def test_gradient_of_the_normal_distribution_function_is_right_far_out() -> None:
    """Torch's own is 3.5e6 in place of 2e4 at -2e4 in single precision."""
    z = torch.tensor([-9e18, -1e6, -2e4, -1e3, -5.0, -1.0, 0.0, 5.0, 14.0, 9e18], requires_grad=True)
    (slope,) = torch.autograd.grad(log_ndtr(z).sum(), z)
    expected = torch.tensor([9e18, 1e6, 2e4, 1000.001, 5.1865, 1.5251, 0.79788, 1.4867e-6, 1.0966e-43, 0.0])
    assert_close(slope, expected, rtol=1e-4, atol=1e-40)
    assert_close(log_ndtr(z), torch.special.log_ndtr(z))
    points = torch.randn(5, 3)
    slopes = vmap(grad(lambda row: log_ndtr(row).sum()))(points)  # of torch's own there is no batching rule
    assert_close(slopes, (-0.5 * points**2).exp() / (math.sqrt(2 * math.pi) * torch.special.ndtr(points)))


@pytest.mark.parametrize("count", [0.0, 3.0, 1e4, 1e6])
@pytest.mark.parametrize("mean", [-50.0, 50.0, 0.0])
def test_gradients_of_counts_many_deviations_away_are_those_of_double_precision(count: float, mean: float) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        raw = torch.tensor([0.0, mean, -6.0], dtype=dtype, requires_grad=True)  # a standard deviation of 0.0035
        density = outcome_of("count").predictive(raw).log_prob(torch.tensor(count, dtype=dtype))
        found.append([density.detach().double(), torch.autograd.grad(density, raw)[0].double()])
    for single, double in zip(*found, strict=True):
        assert_close(single, double, rtol=1e-3, atol=1e-3 * max(1.0, float(double.abs().max())))


# Networks


def extreme(net: ArBufferModel) -> Tensor:
    """Outcomes with one far count and one far real number."""
    y = outcomes_of(net, M)
    columns = y if net.config.dim_y else y.unsqueeze(-1)
    for d, kind in enumerate(net.config.kinds):
        if not kind.num_categories:
            columns[1, d] = 1e6
            columns[4, d] = 0.0 if kind.support.is_discrete else -1e4
    return y


USES = {
    "joint": lambda context, x: ArBufferJoint(context, x).log_prob,
    "joint in blocks": lambda context, x: ArBufferJoint(context, x, buffer_size=2).log_prob,
    "joint in orders": lambda context, x: ArBufferJoint(context, x, random_orders(M, 3)).log_prob,
    "conditionals": lambda context, x: ArBufferJoint(context, x).log_prob_conditionals,
    "marginals": lambda context, x: ArBufferMarginals(context, x).log_prob,
}


@of_every_kind
@pytest.mark.parametrize("use", USES)
def test_networks_in_single_precision_agree_at_extreme_outcomes(kind: str, use: str) -> None:
    results = []
    for dtype in (torch.float32, torch.float64):
        net = build(kind).to(dtype)
        x = draw(M, 2, seed=2, dtype=dtype).requires_grad_()
        y = extreme(net).to(dtype)
        x_context = draw(N, 2, dtype=dtype).requires_grad_()
        context = net.condition(x_context, outcomes_of(net, N, seed=1).to(dtype))
        density = USES[use](context, x)(y).sum()
        gradients = torch.autograd.grad(density, (x, x_context))
        assert density.isfinite() and all(g.isfinite().all() for g in gradients)
        results.append([part.detach().double() for part in (density, *gradients)])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


@of_every_kind
@DTYPES
def test_dropped_targets_leave_finite_gradients(kind: str, dtype: torch.dtype) -> None:
    net = build(kind).to(dtype).requires_grad_(True)
    x, y = draw(M, 2, seed=2, dtype=dtype).requires_grad_(), extreme(net).to(dtype)
    y[[1, 3]] = torch.nan
    y.requires_grad_()
    for distribution in (ArBufferJoint, ArBufferMarginals):
        density = distribution(net.condition(), x, nan="drop").log_prob(y)
        gradients = torch.autograd.grad(density, (x, y, *net.parameters()), allow_unused=True)
        assert density.isfinite() and all(g is None or g.isfinite().all() for g in gradients)
        assert gradients[1] is None or (gradients[1][[1, 3]] == 0).all()


@of_every_kind
def test_nan_passes_through_where_nothing_is_checked(kind: str) -> None:
    net = build(kind)
    y = outcomes_of(net, M)
    y[2] = torch.nan
    for distribution in (ArBufferJoint, ArBufferMarginals):
        assert distribution(net.condition(), draw(M, 2), validate_args=False).log_prob(y).isnan()
    assert ArBufferJoint(net.condition(), draw(M, 2), validate_args=False).pit(y).isnan().any()


@of_every_kind
def test_outcomes_that_cannot_be_have_no_density_and_no_nan_gradient(kind: str) -> None:
    net, x = build(kind), draw(M, 2, seed=2).requires_grad_()
    y = outcomes_of(net, M)
    if net.config.all_real:
        y[2] = 1e200
    else:
        y.view(-1)[2 * (net.config.dim_y or 1)] = 0.5
    density = ArBufferJoint(net.condition(), x, validate_args=False).log_prob(y)
    (gradient,) = torch.autograd.grad(density, x)
    assert density == -math.inf and not gradient.isnan().any()


# Transforms of functions


@of_every_kind
def test_transformed_functions_give_the_eager_values(kind: str) -> None:
    net = build(kind)
    x_context, y_context, y = draw(N, 2), outcomes_of(net, N, seed=1), outcomes_of(net, M, seed=2)

    def density(x: Tensor) -> Tensor:
        return ArBufferJoint(net.condition(x_context + x.mean(), y_context), x, random_orders(M, 2), 2).log_prob(y)

    inputs = draw(3, M, 2, seed=3)
    assert_close(vmap(density)(inputs), torch.stack([density(x) for x in inputs]), rtol=1e-9, atol=1e-9)
    leaf = inputs.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sum(density(x) for x in leaf), leaf)
    assert_close(vmap(grad(density))(inputs), expected, rtol=1e-9, atol=1e-9)
    assert_close(jacrev(density)(inputs[0]), expected[0], rtol=1e-9, atol=1e-9)

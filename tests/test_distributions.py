"""ArBufferJoint and ArBufferMarginals as Pyro distributions."""

import itertools
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import BroadcastableShapes, mutually_broadcastable_shapes
from pyro import poutine
from pyro.infer import Predictive
from pyro.util import check_site_shape
from samples import draw
from scipy.stats import ks_2samp
from torch import Size, Tensor
from torch.distributions import biject_to, constraints

from pyro_arbuf.distributions.joint import ArBufferJoint, ArBufferMarginals
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel

B, S, N, K, M, DIM_X, DIM_Y = 2, 3, 5, 4, 6, 2, 3
BOTH = pytest.mark.parametrize("distribution", [ArBufferJoint, ArBufferMarginals])
FEW = settings(max_examples=12, derandomize=True, deadline=None)


@pytest.fixture(scope="module")
def context(scalar_model: ArBufferModel) -> Context:
    return condition(scalar_model)


@pytest.fixture(scope="module")
def batched_context(scalar_model: ArBufferModel) -> Context:
    return condition(scalar_model, (B,))


@pytest.fixture
def joint(context: Context) -> ArBufferJoint:
    return ArBufferJoint(context, inputs())


def inputs(*batch: int, num_targets: int = M) -> Tensor:
    return draw(*batch, num_targets, DIM_X, seed=1)


def event(model: ArBufferModel) -> tuple[int, ...]:
    return (M,) if model.config.dim_y is None else (M, model.config.dim_y)


def condition(model: ArBufferModel, batch: tuple[int, ...] = ()) -> Context:
    outcome = () if model.config.dim_y is None else (model.config.dim_y,)
    return model.condition(draw(*batch, N, DIM_X, seed=2), draw(*batch, N, *outcome, seed=3))


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


# Shapes


@FEW
@given(
    shapes=mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3),
    sample_shape=st.lists(st.integers(0, 2), max_size=2).map(tuple),
)
@BOTH
def test_shapes_follow_from_sample_batch_and_value_shapes(
    distribution: type, net: ArBufferModel, shapes: BroadcastableShapes, sample_shape: tuple[int, ...]
) -> None:
    context_batch, x_batch, value_batch = shapes.input_shapes
    d = distribution(condition(net, context_batch), inputs(*x_batch))
    assert d.batch_shape == torch.broadcast_shapes(context_batch, x_batch)
    assert d.event_shape == event(net)
    assert d.shape(sample_shape) == sample_shape + d.batch_shape + event(net)
    assert d.sample(Size(sample_shape)).shape == d.shape(sample_shape)
    assert d.log_prob(draw(*value_batch, *event(net))).shape == shapes.result_shape


@FEW
@given(shapes=mutually_broadcastable_shapes(num_shapes=3, max_dims=2, max_side=2))
@BOTH
def test_log_prob_of_a_batch_is_that_of_its_elements(
    distribution: type, net: ArBufferModel, shapes: BroadcastableShapes
) -> None:
    context_batch, x_batch, value_batch = shapes.input_shapes
    context, x, value = condition(net, context_batch), inputs(*x_batch), draw(*value_batch, *event(net))
    got = distribution(context, x).log_prob(value)
    shape, outcome = shapes.result_shape, event(net)[1:]
    x_context = context.x.view(*context_batch, N, DIM_X).expand(*shape, N, DIM_X)
    y_context = context.y.view(*context_batch, N, *outcome).expand(*shape, N, *outcome)
    x, value = x.expand(*shape, M, DIM_X), value.expand(*shape, *event(net))
    for i in itertools.product(*map(range, shape)):
        close(got[i], distribution(net.condition(x_context[i], y_context[i]), x[i]).log_prob(value[i]))


@BOTH
def test_value_without_batch_broadcasts_to_the_batch(distribution: type, batched_context: Context) -> None:
    d, value = distribution(batched_context, inputs()), draw(M)
    close(d.log_prob(value), d.log_prob(value.expand(B, M)), 0.0)


@BOTH
def test_value_with_more_dimensions_broadcasts_the_distribution(distribution: type, batched_context: Context) -> None:
    d, value = distribution(batched_context, inputs()), draw(S, 1, M)
    close(d.log_prob(value), torch.stack([d.log_prob(v) for v in value]))


def test_samples_of_a_batch_have_the_law_of_its_elements(scalar_model: ArBufferModel) -> None:
    context, x = condition(scalar_model, (2, 1)), inputs(3)
    y = ArBufferJoint(context, x).sample((800,))
    for i, j in itertools.product(range(2), range(3)):
        one = ArBufferJoint(scalar_model.condition(context.x[i], context.y[i, :, 0]), x[j])
        assert_same_law(y[:, i, j], one.sample((800,)))


def assert_same_law(a: Tensor, b: Tensor, standard_errors: float = 5.0) -> None:
    """Equal means and second moments, within standard errors, of every target and pair of targets."""
    statistics = [torch.cat([v, (v[:, :, None] * v[:, None]).flatten(1)], 1) for v in (a, b)]
    error = torch.stack([v.var(0) / len(v) for v in statistics]).sum(0).sqrt()
    assert ((statistics[0].mean(0) - statistics[1].mean(0)).abs() <= standard_errors * error).all()


@BOTH
def test_no_draws_are_an_empty_tensor_with_a_log_prob(distribution: type, net: ArBufferModel) -> None:
    d = distribution(condition(net, (B,)), inputs())
    y = d.sample((0,))
    assert y.shape == (0, B, *event(net)) and d.log_prob(y).shape == (0, B)


@BOTH
def test_repr_is_short(distribution: type, batched_context: Context) -> None:
    expected = f"{distribution.__name__}(batch_shape=(2,), event_shape=(6,), num_context=5)"
    assert repr(distribution(batched_context, inputs())) == expected


# Support


@BOTH
def test_support_covers_the_event(distribution: type, net: ArBufferModel) -> None:
    d = distribution(condition(net), inputs())
    assert isinstance(d.support, constraints.independent) and d.support.event_dim == len(event(net))
    assert d.support.check(draw(S, *event(net))).tolist() == [True] * S
    assert not d.support.is_discrete


@BOTH
def test_support_is_unconstrained(distribution: type, net: ArBufferModel) -> None:
    d, y = distribution(condition(net), inputs()), draw(S, *event(net))
    transform = biject_to(d.support)
    assert torch.equal(transform(y), y) and transform.log_abs_det_jacobian(y, y).shape == (S,)


# expand


@BOTH
@pytest.mark.parametrize("shape", [[S, B], (S, B), Size([S, B])])
def test_expand_is_virtual(distribution: type, shape: list | tuple, batched_context: Context) -> None:
    d = distribution(batched_context, inputs(1))
    wide = d.expand(shape)
    assert type(wide) is distribution and wide.batch_shape == (S, B) and wide.event_shape == d.event_shape
    assert wide.context is d.context and wide.x is d.x
    assert d.batch_shape == (B,)


@BOTH
def test_expanded_distribution_scores_as_the_plain_one(distribution: type, batched_context: Context) -> None:
    d, y = distribution(batched_context, inputs()), draw(S, B, M)
    close(d.expand([S, B]).log_prob(y), d.log_prob(y), 0.0)


@BOTH
def test_expanded_batch_draws_independently(distribution: type, context: Context) -> None:
    y = distribution(context, inputs()).expand([S]).sample((4,))
    assert y.shape == (4, S, M) and len(y.flatten(0, 1).unique(dim=0)) == 4 * S


@BOTH
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)])
def test_expand_refuses_to_shrink(distribution: type, shape: tuple[int, ...], batched_context: Context) -> None:
    d = distribution(batched_context, inputs())
    with pytest.raises(ValueError, match=r"batch_shape must be one that \(2,\) broadcasts to; got"):
        d.expand(shape)


@BOTH
def test_expanded_distribution_is_not_expanded_back(distribution: type, context: Context) -> None:
    with pytest.raises(ValueError, match=r"batch_shape must be one that \(3,\) broadcasts to; got \(\)"):
        distribution(context, inputs()).expand([S]).expand([])


@BOTH
@pytest.mark.parametrize("validate_args", [True, False])
def test_expand_keeps_validation(distribution: type, validate_args: bool, context: Context) -> None:
    d = distribution(context, inputs(), validate_args=validate_args).expand([S])
    assert d._validate_args is validate_args and d.expand([2, S])._validate_args is validate_args


def test_expand_keeps_orders_and_buffer_size(context: Context) -> None:
    d = ArBufferJoint(context, inputs(), orders=random_orders(M, 3), buffer_size=2).expand([S])
    assert len(d.orders) == 3 and d.buffer_size == 2 and not d.has_rsample


def test_expand_keeps_has_rsample_of_the_instance(joint: ArBufferJoint) -> None:
    joint.has_rsample = True
    assert joint.expand([S]).has_rsample and not ArBufferJoint.has_rsample


@BOTH
def test_subclass_survives_expand(distribution: type, context: Context) -> None:
    class Special(distribution):
        def expand(self, batch_shape: Size, _instance: object = None) -> object:
            return super().expand(batch_shape, self._get_checked_instance(Special, _instance))

    assert type(Special(context, inputs()).expand([S])) is Special


# Moments and elementwise functions


@pytest.mark.parametrize("name", ["mean", "variance"])
def test_joint_names_moments_where_it_has_no_closed_form(name: str, joint: ArBufferJoint) -> None:
    with pytest.raises(NotImplementedError, match=rf"use d\.moments\(num_samples\)\.{name}"):
        getattr(joint, name)


def test_joint_says_how_to_estimate_what_has_no_closed_form(joint: ArBufferJoint) -> None:
    for call, remedy in (
        (joint.entropy, r"-d\.log_prob\(d\.sample\(\(1000,\)\)\)\.mean\(0\)"),
        (lambda: joint.cdf(joint.sample()), r"ArBufferMarginals\(ctx, x\)\.cdf\(y\)"),
        (lambda: joint.icdf(0.5), r"d\.sample\(\(1000,\)\)\.quantile\(p, 0\)"),
        (joint.enumerate_support, "let a guide draw them, or enumerate a latent that the joint depends on"),
        (joint.marginals().rsample, r"ArBufferJoint\(ctx, x\[:, None\], rsample=True\) draws every target with them"),
    ):
        with pytest.raises(NotImplementedError, match=remedy):
            call()


@pytest.mark.parametrize("batch", [(), (B,)])
def test_moments_are_those_of_the_draws(batch: tuple[int, ...], net: ArBufferModel) -> None:
    d = ArBufferJoint(condition(net, batch), inputs())
    torch.manual_seed(4)
    moments = d.moments(7)
    torch.manual_seed(4)
    y = d.sample((7,))
    close(moments.mean, y.mean(0))
    close(moments.variance, y.var(0))
    size = math.prod(event(net))
    assert moments.covariance.shape == (*batch, size, size)
    flat = y.reshape(7, -1, size)
    covariance = torch.stack([flat[:, i].T.cov() for i in range(flat.shape[1])])
    close(moments.covariance.reshape(-1, size, size), covariance)


def test_covariance_has_the_variance_on_its_diagonal(net: ArBufferModel) -> None:
    moments = ArBufferJoint(condition(net), inputs()).moments(8)
    close(moments.covariance.diagonal(), moments.variance.flatten())


def test_moments_of_an_expanded_joint_have_its_shape(joint: ArBufferJoint) -> None:
    assert [m.shape for m in joint.expand([S]).moments(4)] == [(S, M), (S, M), (S, M, M)]


@pytest.fixture(scope="module")
def marginals(scalar_model: ArBufferModel) -> ArBufferMarginals:
    return ArBufferMarginals(condition(scalar_model, (B,)), inputs())


@pytest.fixture(scope="module")
def grid(marginals: ArBufferMarginals) -> Tensor:
    return torch.linspace(-60, 60, 24001, dtype=torch.float64)


@pytest.fixture(scope="module")
def elementwise_density(marginals: ArBufferMarginals, grid: Tensor) -> Tensor:
    """Densities `(grid, B, M)` of single targets, from the log_prob of marginals with one target each."""
    context, x = marginals.context, marginals.x
    columns = [
        ArBufferMarginals(context, x[m : m + 1]).log_prob(grid[:, None, None].expand(-1, B, 1)) for m in range(M)
    ]
    return torch.stack(columns, -1).exp()


def test_marginals_are_normalised(elementwise_density: Tensor, grid: Tensor) -> None:
    close(torch.trapezoid(elementwise_density, grid, dim=0), torch.ones(B, M, dtype=torch.float64), 1e-6)


def test_marginals_mean_and_variance_are_those_of_the_density(
    marginals: ArBufferMarginals, elementwise_density: Tensor, grid: Tensor
) -> None:
    y = grid[:, None, None]
    mean = torch.trapezoid(elementwise_density * y, grid, dim=0)
    close(marginals.mean, mean, 1e-5)
    close(marginals.variance, torch.trapezoid(elementwise_density * (y - mean) ** 2, grid, dim=0), 1e-4)


def test_marginals_cdf_is_the_integral_of_the_density(
    marginals: ArBufferMarginals, elementwise_density: Tensor, grid: Tensor
) -> None:
    integral = torch.cumulative_trapezoid(elementwise_density, grid, dim=0)
    close(marginals.cdf(grid[1:, None, None].expand(-1, B, M)), integral, 1e-4)


def test_marginals_icdf_inverts_cdf(marginals: ArBufferMarginals) -> None:
    u = torch.linspace(0.01, 0.99, S * B * M, dtype=torch.float64).view(S, B, M)
    close(marginals.cdf(marginals.icdf(u)), u, 1e-9)


def test_marginals_quantile_of_one_number_is_that_of_every_target(marginals: ArBufferMarginals) -> None:
    u = torch.tensor(0.3, dtype=torch.float64)
    close(marginals.icdf(u), marginals.icdf(u.expand(B, M)), 0.0)


@pytest.mark.parametrize("batch", [(), (B,)])
def test_marginals_elementwise_functions_have_the_shape_of_the_event(
    batch: tuple[int, ...], net: ArBufferModel
) -> None:
    d, shape = ArBufferMarginals(condition(net, batch), inputs()), (*batch, *event(net))
    value = torch.full((S, *shape), 0.5, dtype=torch.float64)
    assert d.mean.shape == d.variance.shape == d.stddev.shape == shape
    assert d.cdf(value).shape == d.icdf(value).shape == (S, *shape)


def test_expanded_marginals_have_expanded_moments(net: ArBufferModel) -> None:
    d = ArBufferMarginals(condition(net), inputs())
    wide = d.expand([S])
    close(wide.mean, d.mean.expand(S, *event(net)), 0.0)
    close(wide.variance, d.variance.expand(S, *event(net)), 0.0)


def test_marginals_samples_are_independent_with_their_moments(marginals: ArBufferMarginals) -> None:
    y = marginals.sample((4000,))
    z = (y - marginals.mean) / marginals.stddev
    assert (z.mean(0).abs() < 5 * 4000**-0.5).all()
    correlation = torch.einsum("sbi,sbj->bij", z, z) / 4000
    assert (correlation - torch.eye(M)).tril(-1).abs().max() < 5 * 4000**-0.5


def test_marginals_log_prob_sums_over_single_targets(net: ArBufferModel) -> None:
    context, x, y = condition(net, (B,)), inputs(), draw(B, *event(net))
    single = [ArBufferMarginals(context, x[m : m + 1]).log_prob(y[:, m : m + 1]) for m in range(M)]
    close(ArBufferMarginals(context, x).log_prob(y), torch.stack(single).sum(0))


@pytest.mark.parametrize("batch", [(), (S, B)])
def test_marginals_of_a_joint_are_the_set_models_predictive(batch: tuple[int, ...], batched_context: Context) -> None:
    joint = ArBufferJoint(batched_context, inputs(), validate_args=False)
    marginals = joint.expand(batch).marginals() if batch else joint.marginals()
    assert type(marginals) is ArBufferMarginals and marginals.batch_shape == (batch or (B,))
    assert marginals._validate_args is False
    y = draw(S, B, M)
    close(marginals.log_prob(y), ArBufferMarginals(batched_context, inputs()).log_prob(y))


def test_joint_of_one_target_is_its_marginal(net: ArBufferModel) -> None:
    context, x, y = condition(net, (B,)), inputs(num_targets=1), draw(S, B, *event(net))[:, :, :1]
    close(ArBufferJoint(context, x).log_prob(y), ArBufferMarginals(context, x).log_prob(y))


# Orders, factors


def density_in_order(context: Context, y: Tensor, order: Tensor) -> Tensor:
    """The density of targets placed in an order: that of the reordered targets as given."""
    as_given = torch.arange(M)[None]
    return ArBufferJoint(context, inputs()[order], orders=as_given).log_prob(y[..., order])


def test_order_places_targets_and_keeps_the_users_indexing(context: Context) -> None:
    y, orders = draw(S, M), random_orders(M, 3)
    for order in orders:
        got = ArBufferJoint(context, inputs(), orders=order[None]).log_prob(y)
        close(got, density_in_order(context, y, order))


def test_several_orders_are_their_equal_mixture(context: Context) -> None:
    y, orders = draw(S, M), random_orders(M, 3)
    each = torch.stack([density_in_order(context, y, order) for order in orders])
    assert each.std(0).min() > 0.1  # else the test says nothing
    close(ArBufferJoint(context, inputs(), orders=orders).log_prob(y), each.logsumexp(0) - math.log(3))


def test_default_order_is_fixed_and_shuffled(context: Context) -> None:
    orders = ArBufferJoint(context, inputs()).orders
    assert torch.equal(orders, random_orders(M, 1)) and not torch.equal(orders[0], torch.arange(M))


def test_default_order_of_a_sequential_model_is_as_given(build_model: Callable[..., ArBufferModel]) -> None:
    orders = ArBufferJoint(condition(build_model(sequential=True)), inputs()).orders
    assert torch.equal(orders, torch.arange(M)[None])


PAIRS = {"as_given": [[0, 1]], "reversed": [[1, 0]], "both": [[0, 1], [1, 0]]}


@pytest.mark.parametrize("buffer_size", [1, 2])
@pytest.mark.parametrize("case", PAIRS)
def test_what_is_sampled_is_what_is_scored(case: str, buffer_size: int, context: Context) -> None:
    x, num_draws = 2 * draw(2, DIM_X, seed=3), 6000
    d, *each = (
        ArBufferJoint(context, x, orders=torch.tensor(orders), buffer_size=buffer_size)
        for orders in (PAIRS[case], [[0, 1]], [[1, 0]])
    )
    y = d.sample((num_draws,))
    axis = torch.linspace(y.min().item() - 3, y.max().item() + 3, 81, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)

    def weights(d: ArBufferJoint) -> Tensor:
        return d.log_prob(points).exp() * (axis[1] - axis[0]) ** 2

    def statistics(v: Tensor) -> Tensor:
        """The last tells the two orders apart best."""
        ratio = each[0].log_prob(v) - each[1].log_prob(v)
        return torch.cat([v, v.tanh(), v.prod(-1, keepdim=True).tanh(), ratio[:, None]], -1)

    drawn, on_grid, weight = statistics(y), statistics(points), weights(d)
    assert weight.sum().item() == pytest.approx(1.0, abs=2e-3)
    error = drawn.std(0) / num_draws**0.5 + 1e-3
    assert ((drawn.mean(0) - weight @ on_grid).abs() < 5 * error).all()
    of_orders = weights(each[0]) @ on_grid - weights(each[1]) @ on_grid
    assert of_orders[-1] > 10 * error[-1]  # else the test says nothing


def test_factors_sum_to_the_joint_density(net: ArBufferModel) -> None:
    d, y = ArBufferJoint(condition(net, (B,)), inputs()), draw(S, B, *event(net))
    factors = d.log_prob_factors(y)
    assert factors.shape == (S, B, M)
    close(factors.sum(-1), d.log_prob(y))


def test_first_factor_is_the_marginal_of_the_target_placed_first(context: Context) -> None:
    joint, y = ArBufferJoint(context, inputs()), draw(M)
    first = joint.orders[0, :1]
    alone = ArBufferMarginals(context, inputs()[first]).log_prob(y[first])
    close(joint.log_prob_factors(y)[first.item()], alone)


def test_factors_of_several_orders_are_refused(context: Context) -> None:
    d = ArBufferJoint(context, inputs(), orders=random_orders(M, 3))
    with pytest.raises(ValueError, match=r"needs one order; got 3; build it with orders=orders\[:1\]"):
        d.log_prob_factors(draw(M))


# dtype, randomness


@BOTH
@pytest.mark.parametrize(
    ("value", "result"),
    [("float64", "float64"), ("float32", "float32"), ("float16", "float32"), ("bfloat16", "float32")],
)
def test_log_prob_of_a_single_precision_model_has_at_least_the_dtype_of_the_value(
    distribution: type, value: str, result: str, build_model: Callable[..., ArBufferModel]
) -> None:
    d = distribution(condition(build_model().float()), inputs().float())
    y = draw(S, M, dtype=getattr(torch, value))
    assert d.log_prob(y).dtype == getattr(torch, result)
    close(d.log_prob(y).double(), d.log_prob(y.float()).double(), 1e-6)


@BOTH
def test_samples_have_the_dtype_of_the_model(distribution: type, build_model: Callable[..., ArBufferModel]) -> None:
    assert distribution(condition(build_model().float()), inputs()).sample((S,)).dtype == torch.float32


@BOTH
def test_log_prob_is_bitwise_repeatable_and_draws_nothing(distribution: type, batched_context: Context) -> None:
    y, state = draw(S, B, M), torch.get_rng_state()
    first = distribution(batched_context, inputs()).log_prob(y)
    torch.manual_seed(9)
    assert torch.equal(first, distribution(batched_context, inputs()).log_prob(y))
    torch.set_rng_state(state)
    distribution(batched_context, inputs()).log_prob(y)
    assert torch.equal(torch.get_rng_state(), state)


@BOTH
def test_seed_makes_samples_reproducible(distribution: type, context: Context) -> None:
    d, draws = distribution(context, inputs()), []
    for seed in (1, 1, 2):
        pyro.set_rng_seed(seed)
        draws.append(d.sample((S,)))
    assert torch.equal(draws[0], draws[1]) and not torch.isclose(draws[0], draws[2]).any()


@BOTH
def test_single_sample_has_no_sample_dimension(distribution: type, net: ArBufferModel) -> None:
    assert distribution(condition(net), inputs()).sample().shape == event(net)


def test_law_does_not_depend_on_the_number_of_draws_at_once(context: Context) -> None:
    d = ArBufferJoint(context, inputs(), orders=random_orders(M, 2))
    many, few = d.sample((1500,)), torch.cat([d.sample((15,)) for _ in range(60)])
    assert_same_law(many, few)
    assert min(ks_2samp(a, b).pvalue for a, b in zip(many.T, few.T, strict=True)) > 1e-4


def test_samples_carry_no_graph(joint: ArBufferJoint) -> None:
    assert not joint.sample((S,)).requires_grad


# Inside Pyro


def test_sample_statement_draws_and_scores(joint: ArBufferJoint) -> None:
    trace = poutine.trace(lambda: pyro.sample("y", joint)).get_trace()
    assert trace.nodes["y"]["value"].shape == (M,)
    close(trace.log_prob_sum(), joint.log_prob(trace.nodes["y"]["value"]), 0.0)


def test_observed_statement_scores_the_observation(joint: ArBufferJoint) -> None:
    y = draw(M)
    trace = poutine.trace(lambda: pyro.sample("y", joint, obs=y)).get_trace()
    close(trace.log_prob_sum(), joint.log_prob(y), 0.0)


def test_plate_takes_the_batch_of_the_context(batched_context: Context) -> None:
    y = draw(B, M)

    def model() -> None:
        with pyro.plate("subjects", B):
            pyro.sample("y", ArBufferJoint(batched_context, inputs()), obs=y)

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["y"]["log_prob"].shape == (B,)
    close(trace.log_prob_sum(), ArBufferJoint(batched_context, inputs()).log_prob(y).sum())


def test_plate_expands_a_single_distribution(context: Context) -> None:
    def model() -> Tensor:
        with pyro.plate("subjects", B), pyro.plate("repeats", S):
            return pyro.sample("y", ArBufferJoint(context, inputs()))

    assert poutine.trace(model).get_trace().nodes["y"]["value"].shape == (S, B, M)


def test_plate_scores_an_observation_without_its_dimension_for_every_element(batched_context: Context) -> None:
    y = draw(M)

    def model() -> None:
        with pyro.plate("subjects", B):
            pyro.sample("y", ArBufferJoint(batched_context, inputs()), obs=y)

    close(poutine.trace(model).get_trace().log_prob_sum(), ArBufferJoint(batched_context, inputs()).log_prob(y).sum())


def test_batch_outside_a_plate_is_refused_by_pyro(batched_context: Context) -> None:
    trace = poutine.trace(lambda: pyro.sample("y", ArBufferJoint(batched_context, inputs()))).get_trace()
    trace.compute_log_prob()
    with pytest.raises(ValueError, match="invalid log_prob shape"):
        check_site_shape(trace.nodes["y"], max_plate_nesting=1)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_from_the_joint(parallel: bool, context: Context) -> None:
    def model() -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        y = pyro.sample("y", ArBufferJoint(context, inputs()))
        pyro.deterministic("scaled", scale[..., None] * y)

    draws = Predictive(model, num_samples=S, parallel=parallel)()
    assert draws["y"].shape == draws["scaled"].shape == (S, M)
    assert len(draws["y"].unique(dim=0)) == S


def test_predictive_draws_every_element_of_a_plate(batched_context: Context) -> None:
    def model() -> None:
        with pyro.plate("subjects", B):
            pyro.sample("y", ArBufferJoint(batched_context, inputs()))

    assert Predictive(model, num_samples=S, parallel=True)()["y"].shape == (S, B, M)


def test_gradient_reaches_a_latent_through_an_observed_joint(joint: ArBufferJoint) -> None:
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y = draw(M)
    (gradient,) = torch.autograd.grad(joint.log_prob(y + shift), shift)
    step = 1e-5
    close(gradient, (joint.log_prob(y + step) - joint.log_prob(y - step)) / (2 * step), 1e-6)


@BOTH
def test_to_event_sums_over_the_batch(distribution: type, batched_context: Context) -> None:
    d, y = distribution(batched_context, inputs()), draw(S, B, M)
    event = d.to_event(1)
    assert event.batch_shape == () and event.event_shape == (B, M) and event.sample().shape == (B, M)
    close(event.log_prob(y), d.log_prob(y).sum(-1))


@BOTH
def test_mask_drops_elements_of_the_batch(distribution: type, batched_context: Context) -> None:
    d, y = distribution(batched_context, inputs()), draw(B, M)
    got = d.mask(torch.tensor([True, False])).log_prob(y)
    close(got, d.log_prob(y) * torch.tensor([1.0, 0.0]), 0.0)


@BOTH
def test_mask_inside_a_plate_scales_nothing_else(distribution: type, batched_context: Context) -> None:
    y = draw(B, M)

    def model() -> None:
        with pyro.plate("subjects", B), poutine.mask(mask=torch.tensor([True, False])):
            pyro.sample("y", distribution(batched_context, inputs()), obs=y)

    close(poutine.trace(model).get_trace().log_prob_sum(), distribution(batched_context, inputs()).log_prob(y)[0])


def test_marginals_are_sampled_in_chunks_of_draws(monkeypatch) -> None:
    context = tiny.tiny_model().requires_grad_(False).condition()
    marginals = ArBufferMarginals(context, torch.linspace(-1, 1, 6)[:, None]).expand([2])
    draws = []
    for components in (2**22, 1):
        monkeypatch.setattr("pyro_arbuf.distributions.marginals.MAX_COMPONENTS", components)
        pyro.set_rng_seed(0)
        draws.append(marginals.sample((5, 3)))
    assert draws[0].shape == (5, 3, 2, 6) and torch.allclose(*draws)


@pytest.mark.parametrize("value", [0.0, 1.0, 1.5, torch.tensor([0.5, 0.5])])
def test_icdf_wants_probabilities_of_the_event_shape(value) -> None:
    marginals = ArBufferMarginals(tiny.tiny_model().requires_grad_(False).condition(), torch.zeros(6, 1))
    with pytest.raises(ValueError, match="value must"):
        marginals.icdf(value)
    assert marginals.expand([4]).icdf(0.5).shape == (4, 6)


def test_a_support_says_what_it_is(joint: ArBufferJoint) -> None:
    assert repr(joint.support).startswith("RealEvent(Real(), ")

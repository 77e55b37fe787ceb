"""Tests of joint sampling and joint density: equal to `reference.py`, and the law that is sampled is the law scored."""

import copy
import math
from collections.abc import Iterator

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Size, Tensor
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.chain import Noise, leave_one_out, predict_marginals, sample_joint, score_joint
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.layout import fold, unfold
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel

EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, S, K, N, M, R = 2, 3, 4, 5, 6, 7
below_equal_above = pytest.mark.parametrize("num_targets", [K - 1, K, 2 * K + 1])
below_above = pytest.mark.parametrize("num_targets", [K - 1, M])


def _weights(model: ArBufferModel) -> tuple[reference.Weights, int]:
    return model.state_dict(), model.config.num_heads


def _condition(model: ArBufferModel, x: Tensor, y: Tensor) -> Context:
    return model.condition(x, y.squeeze(-1) if model.config.dim_y is None else y)


def _condition_padded(model: ArBufferModel, x: Tensor, y: Tensor, lengths: list[int]) -> Context:
    y = y.squeeze(-1) if model.config.dim_y is None else y
    return model.condition(*([a[:n] for a, n in zip(t, lengths, strict=True)] for t in (x, y)))


def _noise(num_tasks: int, num_draws: int, num_targets: int, dim_y: int, num_orders: int = 1) -> Noise:
    shape = num_tasks, num_draws, num_targets, dim_y
    return Noise(
        torch.rand(shape, dtype=torch.float64),
        torch.randn(shape, dtype=torch.float64),
        torch.randint(num_orders, (num_tasks, num_draws)),
    )


def _outcomes(task, num_draws: int = S) -> Tensor:
    """`(B, S, M, D_y)`: the first draw's are the task's own."""
    return task.y_target[:, None] + torch.arange(num_draws)[:, None, None] * torch.randn_like(task.y_target[:, None])


def _joint(model: ArBufferModel, task, b: int = 0, **options: object) -> ArBufferJoint:
    return ArBufferJoint(_condition(model, task.x_context[b], task.y_context[b]), task.x_target[b], **options)


# Sorting dimensions ---------------------------------------------------------------------------------------------------


@st.composite
def _shapes(draw: st.DrawFn) -> tuple[Size, Size]:
    context_batch = draw(st.lists(st.integers(1, 3), max_size=2))
    broadcast = [n if n > 1 else draw(st.integers(1, 3)) for n in context_batch]
    return Size(draw(st.lists(st.integers(1, 3), max_size=2)) + broadcast), Size(context_batch)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes=_shapes(), event=st.lists(st.integers(1, 3), max_size=2))
def test_unfold_undoes_fold(shapes, event):
    shape, context_batch = shapes
    tensor = torch.randn([*shape, *event])
    folded = fold(tensor, shape, context_batch, len(event))
    assert folded.shape == (context_batch.numel(), shape.numel() // context_batch.numel(), *event)
    assert torch.equal(unfold(folded, shape, context_batch), tensor)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes=_shapes())
def test_fold_pairs_every_element_with_its_task(shapes):
    shape, context_batch = shapes
    task = torch.arange(context_batch.numel()).view(context_batch)
    folded = fold(task.expand(shape), shape, context_batch, 0)
    assert (folded == torch.arange(context_batch.numel())[:, None]).all()


def test_one_draw_without_batch_dimensions(scalar_model, draw_task):
    task = draw_task(scalar_model)
    assert _joint(scalar_model, task, orders=random_orders(M, R)).sample().shape == (M,)
    assert fold(torch.tensor(3), Size(), Size(), 0).tolist() == [[3]]


def test_fold_keeps_one_draw_of_what_the_draws_share():
    x = torch.randn(2, 6, 1)
    folded = fold(x, Size([3, 2]), Size([2]), 2)
    assert folded.shape == (2, 1, 6, 1) and torch.equal(folded.squeeze(1), x)


# Density --------------------------------------------------------------------------------------------------------------


@below_equal_above
@pytest.mark.parametrize("num_context", [0, N])
def test_density_equals_the_reference(model, draw_task, num_context, num_targets):
    task, orders = draw_task(model, num_context, num_targets), random_orders(num_targets, R)
    context = _condition(model, task.x_context, task.y_context)
    factors = score_joint(context, task.x_target[:, None], task.y_target[:, None], orders, K)
    for r, order in enumerate(orders.tolist()):
        expected = reference.log_prob_factors(*_weights(model), *task, order, K)
        assert_close(factors[:, 0, r], expected, **EXACT)


@pytest.mark.parametrize("buffer_size", [1, 2, 3])
def test_density_with_fewer_slots_equals_the_reference(model, draw_task, buffer_size):
    task, orders = draw_task(model), random_orders(M, 2)
    context = _condition(model, task.x_context, task.y_context)
    factors = score_joint(context, task.x_target[:, None], task.y_target[:, None], orders, buffer_size)
    for r, order in enumerate(orders.tolist()):
        expected = reference.log_prob_factors(*_weights(model), *task, order, buffer_size)
        assert_close(factors[:, 0, r], expected, **EXACT)


@pytest.mark.parametrize("num_context", [0, N])
def test_buffer_of_one_slot_is_literally_re_encoding(model, draw_task, num_context):
    task, order = draw_task(model, num_context), [4, 0, 5, 1, 3, 2]
    context = _condition(model, task.x_context, task.y_context)
    factors = score_joint(context, task.x_target[:, None], task.y_target[:, None], torch.tensor([order]), 1)
    expected = reference.re_encoded_log_prob_factors(*_weights(model), *task, order)
    assert_close(factors[:, 0, 0], expected, **EXACT)

    x, y = task.x_context, task.y_context
    for target in order:
        here = slice(target, target + 1)
        predictive = predict_marginals(_condition(model, x, y), task.x_target[:, None, here])
        assert_close(predictive.log_prob(task.y_target[:, None, here])[:, 0, 0], factors[:, 0, 0, target], **EXACT)
        x, y = torch.cat([x, task.x_target[:, here]], 1), torch.cat([y, task.y_target[:, here]], 1)


@below_equal_above
def test_density_of_a_joint_is_the_equal_mixture_over_orders(model, draw_task, num_targets):
    task, orders = draw_task(model, N, num_targets), random_orders(num_targets, R)
    context = _condition(model, task.x_context, task.y_context)
    y = task.y_target.squeeze(-1) if model.config.dim_y is None else task.y_target
    expected = reference.log_prob(*_weights(model), *task, orders.tolist(), K)
    assert_close(ArBufferJoint(context, task.x_target, orders=orders).log_prob(y), expected, **EXACT)


@below_above
def test_density_is_invariant_to_the_order_of_the_context(model, draw_task, num_targets):
    task, orders, order = draw_task(model, N, num_targets), random_orders(num_targets, R), torch.randperm(N)
    x, y = task.x_target[:, None], task.y_target[:, None]
    first = score_joint(_condition(model, task.x_context, task.y_context), x, y, orders, K)
    permuted = _condition(model, task.x_context[:, order], task.y_context[:, order])
    assert_close(score_joint(permuted, x, y, orders, K), first, **EXACT)


@below_above
def test_results_are_in_the_users_indexing(model, draw_task, num_targets):
    task, orders, shuffle = draw_task(model, N, num_targets), random_orders(num_targets, R), torch.randperm(num_targets)
    context = _condition(model, task.x_context, task.y_context)
    x, y, noise = task.x_target[:, None], _outcomes(task), _noise(B, S, num_targets, task.y_target.shape[-1], R)
    # Target i of the shuffled problem is target shuffle[i]; the same chain names it argsort(shuffle)[.].
    renamed = shuffle.argsort()[orders]
    expected = score_joint(context, x, y, orders, K)[..., shuffle, :]
    got = score_joint(context, x[:, :, shuffle], y[:, :, shuffle], renamed, K)
    assert_close(got, expected, **EXACT)
    expected = sample_joint(context, x, orders, K, noise)[:, :, shuffle]
    assert_close(sample_joint(context, x[:, :, shuffle], renamed, K, noise), expected, **EXACT)


def test_the_order_matters(scalar_model, draw_task):
    task, orders = draw_task(scalar_model), torch.tensor([[0, 1, 2, 3, 4, 5], [5, 0, 1, 2, 3, 4]])
    context = _condition(scalar_model, task.x_context, task.y_context)
    factors = score_joint(context, task.x_target[:, None], task.y_target[:, None], orders, K)
    assert ((factors[:, :, 0] - factors[:, :, 1]).abs() > 1e-6).all()


def _influences(factors: Tensor, leaf: Tensor) -> Tensor:
    """`(M, T)`: whether point t of `leaf` influences factor m of `(B, S, M, D_y)`."""
    rows = []
    for m in range(factors.shape[2]):
        (gradient,) = torch.autograd.grad(factors[:, :, m].sum(), leaf, retain_graph=True)
        rows.append(gradient.ne(0).transpose(-2, -1).flatten(0, -2).any(0))
    return torch.stack(rows)


@pytest.mark.parametrize("num_draws", [1, S])
@below_above
def test_factor_is_influenced_by_the_targets_placed_before_it_only(model, draw_task, num_targets, num_draws):
    task, order = draw_task(model, N, num_targets), random_orders(num_targets, 1, seed=1)
    leaves = x_context, y_context, x, y = [
        t.clone().requires_grad_()
        for t in (task.x_context, task.y_context, task.x_target[:, None], _outcomes(task, num_draws))
    ]
    factors = score_joint(_condition(model, x_context, y_context), x, y, order, K)[:, :, 0]
    place = order[0].argsort()
    allowed = place[None, :] <= place[:, None]
    assert all(_influences(factors, leaf).all() for leaf in leaves[:2])
    assert all(torch.equal(_influences(factors, leaf), allowed) for leaf in leaves[2:])


# Normalisation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_context", [0, N])
def test_density_of_one_target_integrates_to_one(scalar_model, draw_task, num_context):
    joint = _joint(scalar_model, draw_task(scalar_model, num_context, 1))
    y = torch.linspace(-15, 15, 301, dtype=torch.float64)
    mass = torch.trapezoid(joint.log_prob(y[:, None]).exp(), y)
    assert_close(mass, torch.ones((), dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("buffer_size", [1, 2])
@pytest.mark.parametrize("orders", [[[0, 1]], [[1, 0]], [[0, 1], [1, 0]]])
def test_density_of_two_targets_integrates_to_one(scalar_model, draw_task, orders, buffer_size):
    task = draw_task(scalar_model, 3, 2)
    joint = _joint(scalar_model, task, orders=torch.tensor(orders), buffer_size=buffer_size)
    y = torch.linspace(-12, 12, 97, dtype=torch.float64)
    density = joint.log_prob(torch.cartesian_prod(y, y)).exp().view(97, 97)
    mass = torch.trapezoid(torch.trapezoid(density, y), y)
    assert_close(mass, torch.ones((), dtype=torch.float64), rtol=0, atol=1e-8)


# Sampling -------------------------------------------------------------------------------------------------------------


def _reference_draws(model, task, orders, buffer_size, noise) -> Iterator[tuple[int, int, Tensor]]:
    for b in range(noise.order.shape[0]):
        for s in range(noise.order.shape[1]):
            order = orders[noise.order[b, s]].tolist()
            given = *(t[b] for t in task[:3]), order, buffer_size, noise.uniform[b, s], noise.normal[b, s]
            yield b, s, reference.sample(*_weights(model), *given)


@below_equal_above
@pytest.mark.parametrize("num_orders", [1, R])
def test_draws_equal_those_of_the_reference(model, draw_task, num_orders, num_targets):
    task, orders = draw_task(model, N, num_targets), random_orders(num_targets, num_orders)
    noise = _noise(B, S, num_targets, model.config.dim_y or 1, num_orders)
    context = _condition(model, task.x_context, task.y_context)
    draws = sample_joint(context, task.x_target[:, None], orders, K, noise)
    for b, s, expected in _reference_draws(model, task, orders, K, noise):
        assert_close(draws[b, s], expected, **EXACT)


@pytest.mark.parametrize("buffer_size", [1, 3])
def test_draws_from_an_empty_context_equal_those_of_the_reference(model, draw_task, buffer_size):
    task, orders = draw_task(model, 0), random_orders(M, R)
    noise = _noise(B, S, M, model.config.dim_y or 1, R)
    context = _condition(model, task.x_context, task.y_context)
    draws = sample_joint(context, task.x_target[:, None], orders, buffer_size, noise)
    for b, s, expected in _reference_draws(model, task, orders, buffer_size, noise):
        assert_close(draws[b, s], expected, **EXACT)


@below_above
def test_inputs_may_differ_between_draws(model, draw_task, num_targets):
    task, orders = draw_task(model, N, num_targets), random_orders(num_targets, R)
    context, y = _condition(model, task.x_context, task.y_context), _outcomes(task)
    x, noise = torch.randn(B, S, num_targets, 2, dtype=torch.float64), _noise(B, S, num_targets, y.shape[-1], R)
    draws, factors = sample_joint(context, x, orders, K, noise), score_joint(context, x, y, orders, K)
    for s in range(S):
        one = slice(s, s + 1)
        alone = sample_joint(context, x[:, one], orders, K, Noise(*(t[:, one] for t in noise)))
        assert_close(draws[:, one], alone, **EXACT)
        assert_close(factors[:, one], score_joint(context, x[:, one], y[:, one], orders, K), **EXACT)


@below_above
@pytest.mark.parametrize("num_orders", [1, R])
@pytest.mark.parametrize("max_tokens", [1, 60])
def test_chunks_change_nothing(model, draw_task, max_tokens, num_orders, num_targets):
    task, orders = draw_task(model, N, num_targets), random_orders(num_targets, num_orders)
    context = _condition_padded(model, task.x_context, task.y_context, [2, N])
    x, y = task.x_target[:, None], _outcomes(task)
    noise = _noise(B, S, num_targets, y.shape[-1], num_orders)
    expected = sample_joint(context, x, orders, K, noise)
    assert_close(sample_joint(context, x, orders, K, noise, max_tokens), expected, **EXACT)
    expected = score_joint(context, x, y, orders, K)
    assert_close(score_joint(context, x, y, orders, K, max_tokens=max_tokens), expected, **EXACT)


def test_no_draws_and_no_outcomes_are_empty_results(model, draw_task):
    task = draw_task(model)
    context, dim_y = _condition(model, task.x_context, task.y_context), model.config.dim_y or 1
    x, orders = task.x_target[:, None], random_orders(M, R)
    assert sample_joint(context, x, orders, K, _noise(B, 0, M, dim_y)).shape == (B, 0, M, dim_y)
    assert score_joint(context, x, x.new_zeros(B, 0, M, dim_y), orders, K).shape == (B, 0, R, M, dim_y)


# Many draws, many tasks -----------------------------------------------------------------------------------------------


def _log_prob_and_gradients(model, task, x, y, orders) -> tuple[Tensor, list[Tensor]]:
    leaves = [t.clone().requires_grad_() for t in (task.x_context, task.y_context, x, y)]
    weights = [p for name, p in model.named_parameters() if name != "embedder.empty_context"]
    factors = score_joint(_condition(model, *leaves[:2]), *leaves[2:], orders, K)
    loss = torch.logsumexp(factors.sum((-1, -2)), -1).sum()
    return factors.detach(), list(torch.autograd.grad(loss, leaves + weights))


@below_above
@pytest.mark.parametrize("num_orders", [1, 2])
def test_many_draws_equal_one_at_a_time_gradients_included(model, draw_task, num_orders, num_targets):
    model = copy.deepcopy(model).requires_grad_(True)
    task, orders = draw_task(model, N, num_targets), random_orders(num_targets, num_orders)
    x, y = task.x_target[:, None], _outcomes(task)
    factors, gradients = _log_prob_and_gradients(model, task, x, y, orders)
    with torch.no_grad():
        frozen = score_joint(_condition(model, task.x_context, task.y_context), x, y, orders, K)
    assert_close(frozen, factors, **EXACT)
    summed = [torch.zeros_like(g) for g in gradients]
    for s in range(S):
        for r in range(num_orders):
            alone, _ = _log_prob_and_gradients(model, task, x, y[:, s : s + 1], orders[r : r + 1])
            assert_close(alone[:, 0, 0], factors[:, s, r], **EXACT)
        _, part = _log_prob_and_gradients(model, task, x, y[:, s : s + 1], orders)
        for total, gradient in zip(summed, part, strict=True):
            if gradient.shape == y[:, s : s + 1].shape and total.shape == y.shape:
                total[:, s : s + 1] += gradient
            else:
                total += gradient
    for got, expected in zip(gradients, summed, strict=True):
        assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", ["x_context", "y_context", "x_target", "y_target"])
@below_above
def test_gradient_with_respect_to_one_input_equals_the_reference(scalar_model, draw_task, num_targets, which):
    task, orders = draw_task(scalar_model, N, num_targets), random_orders(num_targets, 2)
    ours, theirs = (task._replace(**{which: getattr(task, which).clone().requires_grad_()}) for _ in range(2))
    y = ours.y_target[:, None].expand(-1, S, -1, -1)
    factors = score_joint(
        _condition(scalar_model, ours.x_context, ours.y_context), ours.x_target[:, None], y, orders, K
    )
    (torch.logsumexp(factors.sum((-1, -2)), -1) - math.log(2)).mean(1).sum().backward()
    reference.log_prob(*_weights(scalar_model), *theirs, orders.tolist(), K).sum().backward()
    assert_close(getattr(ours, which).grad, getattr(theirs, which).grad, **EXACT)


@below_above
@pytest.mark.parametrize("lengths", [[0, N], [3, 1], [0, 0]])
def test_padding_changes_nothing(model, draw_task, lengths, num_targets):
    task, orders = draw_task(model, N, num_targets), random_orders(num_targets, R)
    context = _condition_padded(model, task.x_context, task.y_context, lengths)
    x, y = task.x_target[:, None], _outcomes(task)
    noise = _noise(B, S, num_targets, y.shape[-1], R)
    draws, factors = sample_joint(context, x, orders, K, noise), score_joint(context, x, y, orders, K)
    marginals = predict_marginals(context, x)
    for b, length in enumerate(lengths):
        one = slice(b, b + 1)
        alone = _condition(model, task.x_context[one, :length], task.y_context[one, :length])
        own = Noise(*(t[one] for t in noise))
        assert_close(draws[one], sample_joint(alone, x[one], orders, K, own), **EXACT)
        assert_close(factors[one], score_joint(alone, x[one], y[one], orders, K), **EXACT)
        expected = predict_marginals(alone, x[one])
        for name in ("log_weights", "means", "sds"):
            assert_close(getattr(marginals, name)[one], getattr(expected, name), **EXACT)


# The law that is sampled is the law that is scored --------------------------------------------------------------------


def _widened(model: ArBufferModel) -> ArBufferModel:
    """The same model with larger standard deviations: a proposal whose weights have a finite variance."""
    model = copy.deepcopy(model)
    bias = model.head.out.bias
    bias[2 * len(bias) // 3 :] += 0.5
    return model


@pytest.mark.parametrize("num_orders", [1, 3])
@below_above
def test_importance_weights_of_the_draws_average_to_one(scalar_model, draw_task, num_targets, num_orders):
    task, num_draws = draw_task(scalar_model, N, num_targets, 1), 3000
    orders = random_orders(num_targets, num_orders, seed=1)
    proposal = _joint(_widened(scalar_model), task, orders=orders)
    other = _joint(scalar_model, task, orders=random_orders(num_targets, 2, seed=2), buffer_size=3)
    y = proposal.sample(Size([num_draws]))
    weights = (other.log_prob(y) - proposal.log_prob(y)).exp()
    standard_error = weights.std() / num_draws**0.5
    assert standard_error < 0.05
    assert abs(weights.mean() - 1) < 5 * standard_error


@pytest.mark.parametrize("num_targets", [K, M])
def test_draws_are_uniform_under_their_teacher_forced_conditionals(vector_model, draw_task, num_targets):
    task, num_draws, order = draw_task(vector_model, N, num_targets, 1), 1500, random_orders(num_targets, 1, seed=4)
    y = _joint(vector_model, task, orders=order).sample(Size([num_draws]))
    places = []
    for target, mixture in reference.chain(*_weights(vector_model), *task[:3], y, order[0].tolist(), K):
        places.append(mixture.cdf(y[:, [target]])[:, 0])  # (S, D_y)
    pit = torch.stack(places, 1).flatten(1)  # (S, M * D_y)
    assert all(kstest(pit[:, i].numpy(), "uniform").pvalue > 1e-3 for i in range(pit.shape[1]))
    correlation = torch.corrcoef(pit.T) - torch.eye(pit.shape[1], dtype=torch.float64)
    assert correlation.abs().max() < 5 / num_draws**0.5


def test_every_order_is_drawn_equally_often(scalar_model, draw_task):
    model, task, num_draws, num_orders = copy.deepcopy(scalar_model), draw_task(scalar_model), 1000, 3
    weight = model.head.out.weight
    weight[len(weight) // 3 : 2 * len(weight) // 3] *= 4  # means that move far, so that a draw tells its order
    joint = _joint(model, task, orders=random_orders(M, num_orders))
    y = joint.sample(Size([num_draws]))
    single = [ArBufferJoint(joint.context, joint.x, orders=joint.orders[r : r + 1]) for r in range(num_orders)]
    # The probability that order r made the draw averages to 1 / R under the equal mixture.
    of_order = torch.stack([one.log_prob(y) for one in single], -1).softmax(-1)  # (S, R)
    assert of_order.amax(-1).mean() > 0.7
    assert ((of_order.mean(0) - 1 / num_orders).abs() < 5 * of_order.std(0) / num_draws**0.5).all()


# Marginals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_context", [0, N])
def test_marginals_equal_the_reference(model, draw_task, num_context):
    task = draw_task(model, num_context)
    predictive = predict_marginals(_condition(model, task.x_context, task.y_context), task.x_target[:, None])
    nothing = task.x_target[:, :0], task.y_target[:, :0]
    expected = reference.predictive(*_weights(model), *task[:2], *nothing, task.x_target, [0] * M)
    assert_close(predictive.log_weights.exp()[:, 0], expected.weights, **EXACT)
    assert_close(predictive.means[:, 0], expected.means, **EXACT)
    assert_close(predictive.sds[:, 0], expected.sds, **EXACT)


@below_above
def test_marginal_is_the_first_factor_of_an_order_that_starts_there(model, draw_task, num_targets):
    task = draw_task(model, N, num_targets)
    context = _condition(model, task.x_context, task.y_context)
    y = task.y_target.squeeze(-1) if model.config.dim_y is None else task.y_target
    joints = [
        ArBufferJoint(context, task.x_target, orders=torch.arange(num_targets).roll(-m)[None])
        for m in range(num_targets)
    ]
    first = torch.stack([joint.log_prob_factors(y)[:, m] for m, joint in enumerate(joints)], -1)
    for m in range(num_targets):
        here = slice(m, m + 1)
        alone = ArBufferJoint(context, task.x_target[:, here]).marginals()
        assert_close(alone.log_prob(y[:, here]), first[:, m], **EXACT)
    assert_close(joints[0].marginals().log_prob(y), first.sum(-1), **EXACT)


# Leaving one out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, [3, N], [1, 2]])
@pytest.mark.parametrize("max_tokens", [1, 60, 2**14])
def test_one_is_left_out_and_all_others_are_read(model, draw_task, max_tokens, lengths):
    task, num_left_out = draw_task(model), 2 if lengths != [1, 2] else 1
    x, y = task.x_context, task.y_context
    got = leave_one_out(model, x, y, num_left_out, lengths and torch.tensor(lengths), max_tokens)
    assert got.shape == (B, num_left_out)
    for b, i in torch.cartesian_prod(torch.arange(B), torch.arange(num_left_out)).tolist():
        others = [j for j in range(lengths[b] if lengths else N) if j != i]
        nothing, alone = (x[b, :0], y[b, :0]), x[b, i : i + 1]
        expected = reference.predictive(*_weights(model), x[b, others], y[b, others], *nothing, alone, [0])
        assert_close(got[b, i], expected.log_prob(y[b, i : i + 1]).sum(), **EXACT)


def test_stale_context_is_an_error(scalar_model, draw_task):
    model, task = copy.deepcopy(scalar_model), draw_task(scalar_model)
    context, x = _condition(model, task.x_context, task.y_context), task.x_target[:, None]
    model.head.out.bias += 1e-3
    with pytest.raises(RuntimeError, match="weights have changed"):
        sample_joint(context, x, random_orders(M, 1), K, _noise(B, S, M, 1))
    with pytest.raises(RuntimeError, match="weights have changed"):
        score_joint(context, x, task.y_target[:, None], random_orders(M, 1), K)
    with pytest.raises(RuntimeError, match="weights have changed"):
        predict_marginals(context, x)

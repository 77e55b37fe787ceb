"""Every mistake of a user is refused before any compute, with a message that says what to do."""

import copy
import dataclasses
import math
import pickle
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import tiny
import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Size, Tensor
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint, ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.context import Context, check_current
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.embedding import Embedder
from pyro_arbuf.network.latents import Latent

B, N, K, M, DIM_X, DIM_Y = 2, 5, 4, 6, 2, 3
NAN = float("nan")
X, Y = torch.linspace(-1, 1, N * DIM_X).view(N, DIM_X), torch.linspace(0, 1, N)
X_TARGET = torch.linspace(-1, 1, M * DIM_X).view(M, DIM_X)


def spoil(tensor: Tensor, value: float = NAN) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[1] = value
    return tensor


@pytest.fixture
def context(scalar_model: ArBufferModel) -> Context:
    return scalar_model.condition(X, Y)


@pytest.fixture
def batched_context(scalar_model: ArBufferModel) -> Context:
    return scalar_model.condition(X.expand(B, N, DIM_X), Y)


@pytest.fixture
def no_compute(context: Context, batched_context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing may reach the network."""

    def reached(*args: object, **kwargs: object) -> None:
        raise AssertionError("compute was reached before the check")

    for owner, name in [(ArBufferModel, "encode"), (ArBufferModel, "predict"), (Embedder, "inputs")]:
        monkeypatch.setattr(owner, name, reached)


def assert_refused(call: Callable[[], object], *fragments: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    message = str(caught.value)
    missing = [fragment for fragment in fragments if fragment not in message]
    assert not missing, f"{missing} not in {message!r}"


OBSERVATIONS = {
    "feature_count": (X[:, :1], Y, "x must have shape (*batch, points, 2); got (5, 1)"),
    "x_without_features": (X[:, 0], Y, "x must have shape (*batch, points, 2); got (5,)"),
    "y_with_dimension": (X, Y[:, None], "same number of points N; got 5 and 1", "use y.squeeze(-1)"),
    "y_is_a_number": (X, Y[0], "y must have shape (*batch, points); got ()"),
    "nan_in_x": (spoil(X), Y, "x must be finite; got 1 NaN or infinite of 10 values", "drop"),
    "nan_in_y": (X, spoil(Y), "y must be finite; got 1 NaN or infinite of 5 values", "drop"),
    "infinity_in_x": (spoil(X, float("inf")), Y, "x must be finite"),
    "infinity_in_y": (X, spoil(Y, -float("inf")), "y must be finite"),
    "batches": (X.expand(2, N, 2), Y.expand(3, N), "batch shapes must broadcast; got x (2,), y (3,)", "unsqueeze"),
    "batch_of_zero": (X.expand(0, N, 2), Y, "at least one task; got the batch shape (0,)"),
    "x_without_y": (X, None, "x and y must be given together", "condition() without both"),
    "y_without_x": (None, Y, "x and y must be given together", "condition() without both"),
    "number_of_points": (X, Y[:3], "x and y must have the same number of points N; got 5 and 3"),
    "words_in_x": (np.array([["a", "b"]] * N), Y, "x must hold numbers or dates; got the dtype <U1", "leave"),
    "objects_in_y": (
        X,
        Y.numpy().astype(object),
        "y must hold numbers; got the dtype object",
        "use .astype(float)",
    ),
    "column_of_x": (X[:, 0].numpy(), Y, "x must have shape (*batch, points, 2); got (5,)"),
    "nan_in_an_array": (spoil(X).numpy(), Y, "x must be finite; got 1 NaN or infinite of 10 values"),
    "integer_x": (X.long(), Y, "x must have a floating dtype; got torch.int64; use x.float()"),
    "integer_y": (X, Y.long(), "y must have a floating dtype; got torch.int64", "a real number"),
    "bool_y": (X, Y > 0, "y must have a floating dtype; got torch.bool", "a real number"),
    "complex_x": (X.to(torch.complex64), Y, "x must have a floating dtype; got torch.complex64"),
    "device_of_x": (X.to("meta"), Y, "x must be on the model's device cpu; got meta", "x.to('cpu')"),
    "device_of_y": (X, Y.to("meta"), "y must be on the model's device cpu; got meta", "y.to('cpu')"),
    "lists_of_different_lengths": ([X, X], [Y], "lists of the same length", "got 2 tensors and 1 tensors"),
    "list_and_tensor": ([X], Y, "lists of the same length", "or both tensors; got 1 tensors and Tensor"),
    "empty_lists": ([], [], "lists of the same length >= 1"),
    "points_in_a_list": ([X, X], [Y, Y[:3]], "x[1] and y[1]", "the same N; got (5, 2) and (3,)"),
    "batch_in_a_list": ([X, X[None]], [Y, Y], "x[1] and y[1]", "got (1, 5, 2) and (5,)"),
    "features_in_a_list": ([X, X[:, :1]], [Y, Y], "x[1] must have shape (*batch, points, 2); got (5, 1)"),
    "nan_in_a_list": ([X, X], [Y, spoil(Y)], "y[1] must be finite"),
    "numbers_in_a_list": (
        [0.5, 0.7],
        [1.0, 2.0],
        "one for each context; got lists of numbers",
    ),
}


@pytest.mark.parametrize("case", OBSERVATIONS)
def test_wrong_observations_are_refused(case: str, scalar_model: ArBufferModel, no_compute: None) -> None:
    x, y, *fragments = OBSERVATIONS[case]
    assert_refused(lambda: scalar_model.condition(x, y), *fragments)


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 2)])
def test_wrong_shape_of_vector_outcome_is_refused(
    shape: tuple[int, ...], vector_model: ArBufferModel, no_compute: None
) -> None:
    got = f"y must have shape (*batch, points, 3); got {shape}"
    assert_refused(lambda: vector_model.condition(X, torch.zeros(shape)), got)


def test_outcome_of_one_dimension_is_told_to_unsqueeze(
    build_model: Callable[..., ArBufferModel], no_compute: None
) -> None:
    assert_refused(lambda: build_model(dim_y=1).condition(X, Y), "(*batch, points, 1); got (5,)", "y.unsqueeze(-1)")


def test_single_feature_is_told_to_unsqueeze(build_model: Callable[..., ArBufferModel], no_compute: None) -> None:
    assert_refused(lambda: build_model(dim_x=1).condition(Y, Y), "(*batch, points, 1); got (5,)", "x.unsqueeze(-1)")


def test_lists_pad_to_the_longest(scalar_model: ArBufferModel) -> None:
    context = scalar_model.condition([X, X[:2], X[:0]], [Y, Y[:2], Y[:0]])
    assert context.num_context == N and context.batch_shape == (3,) and context.context_len.tolist() == [5, 2, 0]


def test_broadcast_of_x_and_y_is_the_batch_of_the_context(scalar_model: ArBufferModel) -> None:
    assert scalar_model.condition(X.expand(2, 1, N, DIM_X), Y.expand(3, N)).batch_shape == (2, 3)


def test_inputs_are_cast_to_the_dtype_of_the_model(scalar_model: ArBufferModel) -> None:
    context = scalar_model.condition(X.half(), Y.float())
    assert context.x.dtype == context.y.dtype == torch.float64


DISTRIBUTIONS = pytest.mark.parametrize("distribution", [ArBufferJoint, ArBufferMarginals])
TARGETS = {
    "feature_count": (X_TARGET[:, :1], "x must have shape (*batch, points, 2); got (6, 1)"),
    "x_without_features": (X_TARGET[:, 0], "x must have shape (*batch, points, 2); got (6,)"),
    "no_target": (X_TARGET[:0], "x must hold at least one target (M >= 1); got shape (0, 2)"),
    "nan": (spoil(X_TARGET), "x must be finite; got 1 NaN or infinite of 12 values"),
    "words": (np.array([["a", "b"]] * M), "x must hold numbers or dates; got the dtype <U1"),
    "nothing": (None, "x must be a torch.Tensor; got NoneType"),
    "list": ([X_TARGET], "x must be a torch.Tensor; got list"),
    "integer": (X_TARGET.long(), "x must have a floating dtype; got torch.int64; use x.float()"),
    "device": (X_TARGET.to("meta"), "x must be on the model's device cpu; got meta", "x.to('cpu')"),
    "batch": (X_TARGET.expand(3, M, 2), "batch shapes must broadcast; got context (2,), x (3,)", "unsqueeze"),
}


@DISTRIBUTIONS
@pytest.mark.parametrize("case", TARGETS)
def test_wrong_targets_are_refused(case: str, distribution: type, batched_context: Context, no_compute: None) -> None:
    x, *fragments = TARGETS[case]
    assert_refused(lambda: distribution(batched_context, x), *fragments)


@DISTRIBUTIONS
def test_model_in_place_of_context_is_refused(
    distribution: type, scalar_model: ArBufferModel, no_compute: None
) -> None:
    got = "context must be a Context; got ArBufferModel; make one with net.condition"
    assert_refused(lambda: distribution(scalar_model, X_TARGET), got)


ORDERS = {
    "repeated_index": (torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 4]]), "row 1 is [0, 1, 2, 3, 4, 4]"),
    "index_from_one": (torch.arange(1, M + 1)[None], "row 0 is [1, 2, 3, 4, 5, 6]"),
    "no_rows_dimension": (torch.arange(M), "got shape (6,)"),
    "too_few_targets": (torch.arange(M - 1)[None], "got shape (1, 5)"),
    "no_order": (torch.zeros(0, M, dtype=torch.int64), "got shape (0, 6)"),
    "float": (torch.arange(M)[None].float(), "got dtype torch.float32"),
    "int32": (torch.arange(M)[None].int(), "got dtype torch.int32"),
    "list": ([list(range(M))], "got list"),
}


@pytest.mark.parametrize("case", ORDERS)
def test_wrong_orders_are_refused(case: str, context: Context, no_compute: None) -> None:
    orders, got = ORDERS[case]
    rule = "orders must be an int64 tensor of shape (R, 6), every row a permutation of 0..5"
    assert_refused(lambda: ArBufferJoint(context, X_TARGET, orders=orders), rule, got, "torch.arange(M)[None]")


@pytest.mark.parametrize("buffer_size", [0, -1, K + 1, True, 1.5, "4"])
def test_wrong_buffer_size_is_refused(buffer_size: object, context: Context, no_compute: None) -> None:
    rule = f"buffer_size must be an integer in 1..4 (the model's K); got {buffer_size!r}"
    assert_refused(lambda: ArBufferJoint(context, X_TARGET, buffer_size=buffer_size), rule)


@pytest.mark.parametrize("counts", [(0, 1), (1, 0)])
def test_random_orders_of_nothing_are_refused(counts: tuple[int, int]) -> None:
    assert_refused(lambda: random_orders(*counts), "must be an integer of at least 1; got 0")


VALUE = torch.linspace(0, 1, M)
VALUES = {
    "too_few_targets": (VALUE[:5], "y must have shape (*batch, 6); got (5,)"),
    "number": (VALUE[0], "y must have shape (*batch, 6); got ()"),
    "outcome_dimension": (VALUE[:, None], "y must have shape (*batch, 6); got (6, 1); use y.squeeze(-1)"),
    "batch": (VALUE.expand(3, M), "batch shapes must broadcast; got distribution (2,), y (3,)", "unsqueeze"),
    "list": (VALUE.tolist(), "y must be a torch.Tensor; got list; use torch.as_tensor(y)"),
    "words": (np.array(["a"] * M), "y must hold numbers; got the dtype <U1; code categories as 0, 1"),
    "integer": (VALUE.long(), "y must have a floating dtype; got torch.int64", "a real number"),
    "bool": (VALUE > 0, "y must have a floating dtype; got torch.bool", "a real number"),
    "device": (VALUE.to("meta"), "y must be on the model's device cpu; got meta"),
    "nan": (spoil(VALUE), "y must be finite; got 1 NaN or infinite of 6 values"),
    "infinity": (spoil(VALUE, float("inf")), "y must be finite"),
}


@pytest.mark.parametrize("case", VALUES)
def test_wrong_values_are_refused_by_the_joint(case: str, batched_context: Context, no_compute: None) -> None:
    value, *fragments = VALUES[case]
    joint = ArBufferJoint(batched_context, X_TARGET, validate_args=True)
    assert_refused(lambda: joint.log_prob(value), *fragments)


@pytest.mark.parametrize("method", ["log_prob", "cdf"])
@pytest.mark.parametrize("case", VALUES)
def test_wrong_values_are_refused_by_the_marginals(case: str, method: str, batched_context: Context) -> None:
    value, *fragments = VALUES[case]
    marginals = ArBufferMarginals(batched_context, X_TARGET, validate_args=True)
    assert_refused(lambda: getattr(marginals, method)(value), *fragments)


@DISTRIBUTIONS
@pytest.mark.parametrize("value", [torch.zeros(M), torch.zeros(M, 2), torch.zeros(DIM_Y, M)])
def test_wrong_values_of_vector_outcomes_are_refused(
    value: Tensor, distribution: type, vector_model: ArBufferModel
) -> None:
    d = distribution(vector_model.condition(), X_TARGET)
    assert_refused(lambda: d.log_prob(value), f"y must have shape (*batch, 6, 3); got {tuple(value.shape)}")


@DISTRIBUTIONS
def test_nan_passes_through_without_validation(distribution: type, batched_context: Context) -> None:
    value = torch.stack([spoil(VALUE), VALUE])
    got = distribution(batched_context, X_TARGET, validate_args=False).log_prob(value)
    assert got.isnan().tolist() == [True, False]


@DISTRIBUTIONS
def test_wrong_shapes_are_refused_without_validation(distribution: type, context: Context) -> None:
    d = distribution(context, X_TARGET, validate_args=False)
    assert_refused(lambda: d.log_prob(VALUE[:5]), "y must have shape (*batch, 6); got (5,)")


@pytest.mark.parametrize("num_samples", [0, 1])
def test_moments_of_too_few_samples_are_refused(num_samples: int, context: Context, no_compute: None) -> None:
    joint = ArBufferJoint(context, X_TARGET)
    assert_refused(
        lambda: joint.moments(num_samples), f"num_samples must be an integer of at least 2; got {num_samples}"
    )


def write_data(model: ArBufferModel) -> None:
    model.backbone.blocks[0].query.weight.data[0, 0] += 0.1


def optimizer_step(optimizer: Callable[..., torch.optim.Optimizer], **options: object) -> Callable:
    def step(model: ArBufferModel) -> None:
        weights = list(model.parameters())
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer(weights, lr=1e-4, **options).step()

    return step


CHANGES = {
    "data": write_data,
    "sgd_foreach": optimizer_step(torch.optim.SGD, foreach=True),
    "adamw_foreach": optimizer_step(torch.optim.AdamW, foreach=True),
    "adamw_fused": optimizer_step(torch.optim.AdamW, fused=True),
    "clipped_adam": optimizer_step(ClippedAdam),
}
USES = {
    "sample": lambda context: ArBufferJoint(context, X_TARGET).sample((3,)),
    "log_prob": lambda context: ArBufferJoint(context, X_TARGET).log_prob(VALUE),
    "rsample": lambda context: ArBufferJoint(context, X_TARGET, rsample=True).rsample(),
    "conditionals": lambda context: ArBufferJoint(context, X_TARGET).log_prob_conditionals(VALUE),
    "condition": lambda context: ArBufferJoint(context, X_TARGET).condition([1], VALUE[:1]),
    "marginals": lambda context: ArBufferMarginals(context, X_TARGET),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("use", USES)
def test_context_older_than_the_weights_is_refused(
    use: str, change: str, build_model: Callable[..., ArBufferModel], request: pytest.FixtureRequest
) -> None:
    model = build_model()
    context = model.condition(X, Y)
    CHANGES[change](model)
    request.getfixturevalue("no_compute")
    fragments = (
        "weights have changed since this Context was made",
        "make it anew with context = model.condition(x, y)",
    )
    assert_refused(lambda: USES[use](context), *fragments, error=RuntimeError)


def test_context_is_current_while_weights_stay(context: Context) -> None:
    check_current(context)


def test_context_is_read_only(context: Context) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        context.x = X


RANGES = {"x_range": (-2.0, 2.0), "y_range": (3.0, 9.0), "num_context": (0, 8), "num_targets": (1, 8)}
LONG = torch.zeros(9)
BOTH_WAYS = torch.stack([torch.arange(N), torch.arange(N).flip(0)])
WITH_NAN = Y.masked_fill(torch.arange(N) == 1, torch.nan)
OUTSIDE = {
    "x": (
        lambda m: m.condition(3 * X, Y + 4),
        "x lies outside the trained range [-2.0, 2.0]",
        "in_units(x=[x_obs, x_new]",
    ),
    "y": (lambda m: m.condition(X, Y), "y lies outside the trained range [3.0, 9.0]", "in_units"),
    "N": (
        lambda m: m.condition(LONG[:, None].expand(9, 2), LONG + 4),
        "num_context lies outside the trained range",
    ),
    "x_of_joint": (lambda m: ArBufferJoint(m.condition(), 3 * X), "x lies outside the trained range", "in_units"),
    "M_of_joint": (lambda m: ArBufferJoint(m.condition(), LONG[:, None].expand(9, 2)), "num_targets lies"),
    "y_of_condition": (lambda m: ArBufferJoint(m.condition(), X).condition([0], Y[:1]), "y lies outside the trained"),
    "y_of_log_prob": (lambda m: ArBufferJoint(m.condition(), X).log_prob(Y), "y lies outside the trained", "in_units"),
    "y_of_factors": (lambda m: ArBufferJoint(m.condition(), X).log_prob_factors(Y), "y lies outside the trained"),
    "y_of_conditionals": (lambda m: ArBufferJoint(m.condition(), X).log_prob_conditionals(Y), "y lies outside"),
    "y_of_pit": (lambda m: ArBufferJoint(m.condition(), X).pit(Y), "y lies outside the trained"),
    "y_of_orders": (lambda m: ArBufferJoint(m.condition(), X, BOTH_WAYS).order_spread(Y), "y lies outside the trained"),
    "y_of_marginals": (lambda m: ArBufferMarginals(m.condition(), X).log_prob(Y), "y lies outside the trained"),
    "y_beside_nan": (lambda m: ArBufferJoint(m.condition(), X, nan="drop").log_prob(WITH_NAN), "y lies outside"),
    "x_of_marginals": (lambda m: ArBufferMarginals(m.condition(), 3 * X), "x lies outside the trained", "in_units"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_outside_the_trained_range_one_warning_points_to_the_caller(
    case: str, build_model: Callable[..., ArBufferModel]
) -> None:
    call, *fragments = OUTSIDE[case]
    model = build_model(**RANGES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(model)
    assert [(w.category, w.filename) for w in caught] == [(UserWarning, __file__)]
    assert all(fragment in str(caught[0].message) for fragment in fragments)


def test_each_column_has_a_trained_range_of_its_own(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(x_range=((-3.0, 3.0), (5.0, 9.0)))
    x = torch.stack([Y, 6 + Y.abs().clamp(max=2)], -1)
    net.condition(x, Y)  # a warning would be an error
    with pytest.warns(UserWarning, match=r"x\[..., 1\] lies outside the trained range \[5.0, 9.0\]") as caught:
        net.condition(x.flip(-1).clamp(max=3), Y)
    assert len(caught) == 1


def test_inside_the_trained_ranges_nothing_is_said(build_model: Callable[..., ArBufferModel]) -> None:
    context = build_model(**RANGES).condition(2 * X, 6 * Y + 3)
    ArBufferJoint(context, 2 * X[:4]).marginals()  # one block: nothing is absorbed


def test_inside_the_trained_range_outcomes_that_are_scored_are_not_remarked_on(
    build_model: Callable[..., ArBufferModel],
) -> None:
    context = build_model(**RANGES).condition()
    for distribution in (ArBufferJoint(context, X), ArBufferMarginals(context, X)):
        distribution.log_prob(Y + 4)
        distribution.log_prob(Y.clone().requires_grad_())  # a latent of NUTS: not looked at
    ArBufferJoint(context, X, validate_args=False).log_prob(Y)
    ArBufferJoint(context, X, nan="drop").log_prob(torch.full((N,), torch.nan))


def test_latents_are_not_outcomes_with_a_trained_range(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(latents=(Latent("a"),), **RANGES)
    ArBufferPosterior(net.condition()).log_prob(torch.zeros(1))


@pytest.mark.parametrize("what", ["condition", "joint", "density"])
def test_a_loop_over_data_sets_warns_once(what: str, build_model: Callable[..., ArBufferModel]) -> None:
    net, joint = build_model(**RANGES), ArBufferJoint(build_model(**RANGES).condition(), X)
    calls = {
        "condition": lambda i: net.condition(X, Y + 20 + i),
        "joint": lambda i: ArBufferJoint(net.condition(), X * (10 + i)),
        "density": lambda i: joint.log_prob(Y - 10 * i),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for i in range(1, 101):
            calls[what](i)
    assert len(caught) == 1


# The user's own tensors


@pytest.mark.parametrize("latents", [False, True])
def test_data_changed_in_place_change_no_context(latents: bool, build_model: Callable[..., ArBufferModel]) -> None:
    """The pairs that are absorbed, left out or pickled are those that were encoded."""
    net = build_model(latents=(Latent("a"),)) if latents else build_model()
    x, y, value = X.double(), Y.double(), torch.zeros((), dtype=torch.float64)
    given = {"a": value} if latents else None
    contexts = [net.condition(x, y, given), net.condition([x], [y], given)]
    contexts.append(pickle.loads(pickle.dumps(contexts[0])))

    def uses(context: Context) -> list[Tensor]:
        joint = ArBufferJoint(context, X_TARGET.double(), buffer_size=2)  # absorbs
        rest = joint.condition([0], Y[:1].double())
        again = ArBufferJoint(pickle.loads(pickle.dumps(context)), X_TARGET.double())
        y_target = X_TARGET[:, 0].double()
        densities = [d.log_prob(y_target) for d in (joint, again)]
        return [*densities, joint.log_prob_conditionals(y_target), rest.log_prob(y_target[1:])]

    before = [uses(context) for context in contexts]
    x += 1
    y *= 2
    value += 3
    assert_close([uses(context) for context in contexts], before, rtol=0, atol=0)


def test_reused_numpy_buffer_changes_no_context(scalar_model: ArBufferModel) -> None:
    buffer = Y.double().numpy().copy()
    context = scalar_model.condition(X.double(), torch.from_numpy(buffer))
    before = ArBufferJoint(context, X_TARGET.double()).log_prob_conditionals(X_TARGET[:, 0].double())
    buffer[:] = 7
    after = ArBufferJoint(context, X_TARGET.double()).log_prob_conditionals(X_TARGET[:, 0].double())
    assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("latents", [False, True])
def test_targets_and_orders_changed_in_place_change_no_distribution(
    latents: bool, build_model: Callable[..., ArBufferModel]
) -> None:
    net = build_model(latents=(Latent("a"),)) if latents else build_model()
    x, orders, y = X_TARGET.double(), random_orders(M, 2), X_TARGET[:, 0].double()
    context = net.condition(X.double(), Y.double())
    joint, marginals = ArBufferJoint(context, x, orders), ArBufferMarginals(context, x)

    def uses() -> list[Tensor]:
        others = (joint.marginals(), joint.condition([0], y[:1]))
        return [joint.log_prob(y), marginals.log_prob(y), others[0].log_prob(y), others[1].log_prob(y[1:]), marginals.x]

    before = uses()
    x += 1
    orders[0] = torch.arange(M)
    assert_close(uses(), before, rtol=0, atol=0)


def test_live_context_keeps_the_graph_of_its_data(scalar_model: ArBufferModel) -> None:
    y = Y.double().requires_grad_()
    context = scalar_model.condition(X.double(), y)
    joint = ArBufferJoint(context, X_TARGET.double(), buffer_size=2)
    (gradient,) = torch.autograd.grad(joint.log_prob(X_TARGET[:, 0].double()), y)
    assert context.live and gradient.abs().min() > 0


def test_padding_is_not_taken_for_data_outside_the_range(build_model: Callable[..., ArBufferModel]) -> None:
    build_model(**RANGES).condition([X, X[:2]], [Y + 4, Y[:2] + 4])


def test_nothing_observed_is_a_context_without_pairs(scalar_model: ArBufferModel) -> None:
    context = scalar_model.condition()
    assert context.num_context == 0 and context.batch_shape == ()


def test_batch_of_empty_contexts_keeps_its_shape(vector_model: ArBufferModel) -> None:
    context = vector_model.condition(torch.zeros(B, 0, DIM_X), torch.zeros(B, 0, DIM_Y))
    assert context.num_context == 0 and context.batch_shape == (B,)


def test_trainable_model_refuses_a_context_without_gradients() -> None:
    model = tiny.tiny_model()
    with torch.no_grad():
        context = model.condition(torch.zeros(3, 1), torch.zeros(3))
    joint = ArBufferJoint(context, torch.zeros(2, 1))
    with pytest.raises(RuntimeError, match="without gradients"):
        joint.log_prob(torch.zeros(2))
    with torch.no_grad():
        joint.log_prob(torch.zeros(2))
    live = ArBufferJoint(model.condition(torch.zeros(3, 1), torch.zeros(3)), torch.zeros(2, 1))
    live.log_prob(torch.zeros(2)).backward()
    assert model.backbone.blocks[0].key.weight.grad.norm() > 0


def test_model_cast_after_conditioning_is_named() -> None:
    model = tiny.tiny_model().requires_grad_(False)
    joint = ArBufferJoint(model.condition(torch.zeros(3, 1), torch.zeros(3)), torch.zeros(2, 1))
    model.double()
    with pytest.raises(RuntimeError, match="float64"):
        joint.sample()


def test_absorbing_beyond_the_trained_range_of_the_context_warns() -> None:
    context = tiny.tiny_model().requires_grad_(False).condition(torch.zeros(7, 1), torch.zeros(7))
    ArBufferJoint(context, torch.zeros(4, 1))
    with pytest.warns(UserWarning, match="absorbed targets") as caught:
        ArBufferJoint(context, torch.zeros(6, 1))
    assert len(caught) == 1 and caught[0].filename == __file__


def test_without_validation_the_values_of_x_are_not_looked_at() -> None:
    context = tiny.tiny_model().requires_grad_(False).condition()
    x = torch.tensor([[math.nan], [0.0]])
    with pytest.raises(ValueError, match="finite"):
        ArBufferJoint(context, x)
    assert ArBufferJoint(context, x, validate_args=False).log_prob(torch.zeros(2)).isnan()


# Contexts as arrays of contexts

S, R = 3, 7
BATCH_X = X * torch.arange(1, B * S + 1).view(B, S, 1, 1) / 4
BATCH_Y = Y - torch.arange(B * S).view(B, S, 1) / 3


def assert_same(got: Context, expected: Context) -> None:
    """The same batch shape and, through both distributions, the same densities."""
    assert got.batch_shape == expected.batch_shape and got.num_context == expected.num_context
    value = torch.linspace(-1, 1, M, dtype=torch.float64)
    for use in (ArBufferJoint, ArBufferMarginals):
        densities = [use(c, X_TARGET.to(c.x.dtype)).log_prob(value.expand(*c.batch_shape, M)) for c in (got, expected)]
        assert_close(*densities, rtol=0, atol=1e-10)


INDICES = {
    "integer": 1,
    "negative": -1,
    "slice": slice(1, None),
    "pair": (1, -3),
    "column": (slice(None), 2),
    "ellipsis": (..., 0),
    "new_dimension": (None, 1),
    "tensor_of_one_number": torch.tensor(1),
    "tensor_of_any_shape": torch.tensor([[[1, 0]], [[0, 0]]]),
    "negative_tensor": torch.tensor([-1, 1]),
    "tensors": (torch.tensor([[1], [0]]), torch.tensor([2, 0, 2])),
    "list": [1, 1, 0],
    "mask": torch.tensor([[True, False, True], [False, True, False]]),
}


@pytest.mark.parametrize("case", INDICES)
def test_indexed_context_is_that_of_the_indexed_data(case: str, scalar_model: ArBufferModel) -> None:
    index = INDICES[case]
    context = scalar_model.condition(BATCH_X, BATCH_Y)[index]
    tasks = torch.arange(B * S).view(B, S)[index]
    assert_same(context, scalar_model.condition(BATCH_X.flatten(0, 1)[tasks], BATCH_Y.flatten(0, 1)[tasks]))


@pytest.mark.parametrize("index", [0, slice(None, 2), torch.tensor([[2, 0], [1, 2]])])
def test_indexed_context_keeps_its_padding(index: object, scalar_model: ArBufferModel) -> None:
    lengths = torch.tensor([0, 3, N])
    context = scalar_model.condition([X[:n] for n in lengths], [Y[:n] for n in lengths])[index]
    got = ArBufferJoint(context, X_TARGET).log_prob(VALUE)
    assert got.shape == context.batch_shape == lengths[index].shape
    for density, n in zip(got.flatten(), lengths[index].flatten(), strict=True):
        alone = ArBufferJoint(scalar_model.condition(X[:n], Y[:n]), X_TARGET).log_prob(VALUE)
        assert_close(density, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("lengths", [(0, 0), (0, 2, N)])
def test_indexed_empty_context_is_read_with_gradients(lengths: tuple[int, ...], scalar_model: ArBufferModel) -> None:
    context = scalar_model.condition([X[:n] for n in lengths], [Y[:n] for n in lengths])
    values = VALUE.expand(4, len(lengths), -1).clone().requires_grad_()
    expected, got = (ArBufferJoint(c, X_TARGET).log_prob(values) for c in (context, context[:]))
    assert_close(got, expected, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(density.sum(), values)[0] for density in (expected, got)]
    assert_close(gradients[1], gradients[0], rtol=0, atol=1e-10)


def test_context_iterates_over_its_batch(scalar_model: ArBufferModel) -> None:
    context = scalar_model.condition(BATCH_X, BATCH_Y)
    assert [c.batch_shape for c in context] == [context.batch_shape[1:]] * context.batch_shape[0]
    for c, x in zip(context, BATCH_X, strict=True):
        assert_close(c.x, x.reshape(c.x.shape).to(c.x.dtype))
    assert_refused(lambda: list(scalar_model.condition(X, Y)), "only a Context with a batch")


def test_half_precision_weights_are_refused(scalar_model: ArBufferModel) -> None:
    half = copy.deepcopy(scalar_model).bfloat16()
    got = "must be float32 or float64; got torch.bfloat16"
    assert_refused(lambda: half.condition(X.bfloat16(), Y.bfloat16()), got, "net.float()", error=RuntimeError)


@pytest.mark.parametrize(
    "index",
    [B, -B - 1, (0, S), (0, 0, 0), torch.tensor([0, B]), torch.tensor([[-B - 1]]), "a", 0.5, torch.ones(S).bool()],
)
def test_index_outside_the_batch_is_refused(index: object, scalar_model: ArBufferModel) -> None:
    context = scalar_model.condition(BATCH_X, BATCH_Y)
    assert_refused(lambda: context[index], "index must fit the batch shape (2, 3) of this Context")


def test_context_without_batch_has_no_elements(context: Context) -> None:
    assert_refused(lambda: context[0], "index must fit the batch shape () of this Context")


@pytest.mark.parametrize(
    ("index", "shape"),
    [(slice(0, 0), (0, 3)), (torch.zeros(0, 2, dtype=torch.int64), (0, 2, 3)), (torch.zeros(B, S).bool(), (0,))],
)
def test_index_of_nothing_is_refused(index: object, shape: tuple[int, ...], scalar_model: ArBufferModel) -> None:
    context = scalar_model.condition(BATCH_X, BATCH_Y)
    assert_refused(lambda: context[index], f"index must select at least one context; got the batch shape {shape}")


@pytest.mark.parametrize("shape", [(R, B, S), ([R, B, S],), (Size([R, B, S]),)])
def test_expanded_context_holds_nothing_new(shape: tuple, scalar_model: ArBufferModel) -> None:
    context = scalar_model.condition(BATCH_X, BATCH_Y)
    wide = context.expand(*shape)
    assert wide.batch_shape == (R, B, S) and context.batch_shape == (B, S)
    assert wide.cache is context.cache and wide.x is context.x and wide.y is context.y
    assert_same(wide, scalar_model.condition(BATCH_X.expand(R, B, S, N, DIM_X), BATCH_Y))


def test_expanded_context_draws_for_every_element(scalar_model: ArBufferModel) -> None:
    joint = ArBufferJoint(scalar_model.condition(BATCH_X[:, :1], BATCH_Y[:, :1]).expand(B, S), X_TARGET)
    assert joint.batch_shape == (B, S) and joint.moments(4).mean.shape == (B, S, M)
    y = joint.sample((4,))
    assert y.shape == (4, B, S, M) and len(y.flatten(0, 2).unique(dim=0)) == 4 * B * S


@pytest.mark.parametrize("index", [1, (slice(None), -1), torch.tensor([[6, 0, 3]]), (2, 1, 0)])
def test_expanded_context_is_indexed_like_the_expanded_data(index: object, scalar_model: ArBufferModel) -> None:
    context = scalar_model.condition(BATCH_X[:, :1], BATCH_Y[:, :1]).expand(R, B, S)
    x, y = BATCH_X[:, :1].expand(R, B, S, N, DIM_X), BATCH_Y[:, :1].expand(R, B, S, N)
    assert_same(context[index], scalar_model.condition(x[index], y[index]))


@pytest.mark.parametrize("shape", [(), (S,), (B,), (S, B), (B, S, 1), (B, -1)])
def test_context_is_not_expanded_to_what_it_does_not_broadcast_to(
    shape: tuple[int, ...], scalar_model: ArBufferModel
) -> None:
    context = scalar_model.condition(BATCH_X, BATCH_Y)
    assert_refused(lambda: context.expand(shape), "expand: batch_shape must be one that (2, 3) broadcasts to; got")


def padded_and_expanded(model: ArBufferModel) -> Context:
    return model.condition([X[:2], X], [Y[:2], Y]).expand(S, B)


def test_context_follows_its_model_to_another_dtype(build_model: Callable[..., ArBufferModel]) -> None:
    model = build_model().float()
    context = padded_and_expanded(model)
    model.double()
    with pytest.raises(RuntimeError, match=r"the model is torch.float64 on cpu now, this Context torch.float32"):
        ArBufferJoint(context, X_TARGET).sample()
    moved = context.to(torch.float64)
    assert moved.x.dtype == moved.cache.keys[0].dtype == torch.float64
    assert_same(moved, padded_and_expanded(model))
    assert_same(context.to(dtype=torch.float64), moved)


@pytest.mark.parametrize(("to", "got"), [(torch.float32, "torch.float32 on cpu"), ("meta", "torch.float64 on meta")])
def test_context_does_not_go_where_its_model_is_not(to: object, got: str, batched_context: Context) -> None:
    rule = "a Context goes where its model is, torch.float64 on cpu"
    assert_refused(lambda: batched_context.to(to), rule, f"got {got}", "move the model first with net.to(...)")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda context: pickle.loads(pickle.dumps(context))])
def test_copy_of_a_context_brings_its_model_and_gives_the_same_densities(
    copied: Callable[[Context], Context], scalar_model: ArBufferModel
) -> None:
    for context in (scalar_model.condition(), scalar_model.condition(X, Y), padded_and_expanded(scalar_model)):
        other = copied(context)
        assert other.model is not scalar_model and not other.live
        check_current(other)
        assert_same(other, context)


def test_pickled_context_leaves_keys_and_values_behind(scalar_model: ArBufferModel) -> None:
    context = scalar_model.condition(X.repeat(20, 1), Y.repeat(20))
    size = len(pickle.dumps(context)) - len(pickle.dumps(scalar_model))
    cache = sum(t.numel() * t.element_size() for t in (*context.cache.keys, *context.cache.values))
    assert size < cache / 10


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_stale_context_is_not_stored(copied: Callable, build_model: Callable[..., ArBufferModel]) -> None:
    model = build_model()
    context = model.condition(X, Y)
    write_data(model)
    assert_refused(lambda: copied(context), "weights have changed since this Context was made", error=RuntimeError)

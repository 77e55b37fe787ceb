"""check_model: every misuse is found, and what resembles it is not."""

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from samples import draw
from torch import Tensor
from torch.distributions.transforms import AbsTransform, AffineTransform, ExpTransform

from pyro_arbuf.distributions.base import PlateOverTargetsWarning
from pyro_arbuf.distributions.joint import ArBufferJoint, ArBufferMarginals
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.workflow.check_model import ModelCheckWarning, check_model

B, N, M, DIM_X, DIM_Y = 2, 5, 6, 2, 3
STANDARD = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
BOTH = pytest.mark.parametrize("distribution", [ArBufferJoint, ArBufferMarginals])


@pytest.fixture(autouse=True)
def _clear() -> None:
    pyro.clear_param_store()


X, Y, X_CONTEXT, Y_CONTEXT = draw(M, DIM_X, seed=1), draw(M, seed=2), draw(N, DIM_X, seed=3), draw(N, seed=4)


@pytest.fixture(scope="module")
def context(scalar_model: ArBufferModel) -> Context:
    return scalar_model.condition(X_CONTEXT, Y_CONTEXT)


@pytest.fixture
def trainable(build_model: Callable[..., ArBufferModel]) -> ArBufferModel:
    return build_model(seed=1).requires_grad_(True)


def assert_found(model: Callable, *texts: str, args: tuple = ()) -> None:
    """One finding per text, in this order, each also a warning that names this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = check_model(model, *args)
    assert len(found) == len(texts), found
    for text, message in zip(texts, found, strict=True):
        assert text in message
    categories = [PlateOverTargetsWarning if "a plate of" in text else ModelCheckWarning for text in texts]
    assert [(str(w.message), w.category) for w in caught] == list(zip(found, categories, strict=True))
    assert {w.filename for w in caught} == {__file__}


def assert_clean(model: Callable, *args: object) -> None:
    assert check_model(model, *args) == []  # a warning would be an error


# Missing outcomes under a transform


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("transformed", [False, True])
def test_outcomes_dropped_under_a_transform_are_found(context: Context, transformed: bool, missing: bool) -> None:
    d = ArBufferJoint(context, X, nan="drop")
    if transformed:
        d = dist.TransformedDistribution(d, AffineTransform(0.0, 2.0, event_dim=1))
    y = Y.index_fill(0, torch.tensor([1]), torch.nan) if missing else Y
    if transformed and missing:
        assert_found(observed(d, y), "the Jacobian of the dropped targets")
    else:
        assert_clean(observed(d, y))


# Categories and counts


@pytest.fixture(scope="module")
def discrete(build_model: Callable[..., ArBufferModel]) -> Callable[..., ArBufferModel]:
    return lambda *outcomes: build_model(
        chained=True, outcomes=outcomes, dim_y=len(outcomes) if len(outcomes) > 1 else None
    )


TRIALS = 12
X_TRIALS, CHOICES = draw(TRIALS, DIM_X, seed=8), torch.tensor([0, 1] * (TRIALS // 2))


def again(net: ArBufferModel, x: Tensor, y: Tensor, new: slice = slice(None)) -> Callable[[], None]:
    """Observes trials that are in the context already."""
    return observed(ArBufferJoint(net.condition(X_TRIALS, CHOICES), x[new]), y[new])


def test_choices_that_the_context_holds_are_found(discrete: Callable[..., ArBufferModel]) -> None:
    net = discrete("categorical(2)")
    assert_found(again(net, X_TRIALS, CHOICES), "12 of 12 observed pairs")
    assert_found(again(net, X_TRIALS, CHOICES, slice(0, 10)), "10 of 10 observed pairs")


def test_the_same_choice_at_the_same_stimulus_is_no_double_use(discrete: Callable[..., ArBufferModel]) -> None:
    net = discrete("categorical(2)")
    other = CHOICES.clone()
    other[3] = 1 - other[3]
    assert_clean(again(net, X_TRIALS, other))  # another session at the same stimuli: 11 of 12 are the same
    assert_clean(again(net, X_TRIALS, CHOICES, slice(0, 4)))  # four choices of two: by chance
    few = X_TRIALS[:1].expand(TRIALS, DIM_X)  # one stimulus, over and over
    context = net.condition(few, CHOICES)
    assert_clean(observed(ArBufferJoint(context, few[:10]), CHOICES[2:].flip(0)))


def test_a_response_time_beside_a_choice_tells_trials_apart(discrete: Callable[..., ArBufferModel]) -> None:
    net = discrete("categorical(2)", "real")
    y = torch.stack([CHOICES.double(), draw(TRIALS, seed=9)], -1)
    assert_found(observed(ArBufferJoint(net.condition(X_TRIALS, y), X_TRIALS[:2]), y[:2]), "2 of 2 observed pairs")


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_scale_of_counts_is_found_and_a_shift_is_not(discrete: Callable[..., ArBufferModel], scale: float) -> None:
    counts = torch.tensor([2.0, 0.0, 1.0, 5.0, 3.0, 2.0], dtype=torch.float64)
    d = dist.TransformedDistribution(ArBufferJoint(discrete("count").condition(), X), AffineTransform(1.0, scale))
    model = observed(d, 1 + scale * counts)
    if scale == 1:
        assert_clean(model)
    else:
        assert_found(model, "a transform of categories or counts subtracts the log of its Jacobian")


@pytest.mark.parametrize("column", [0, 1])
def test_the_real_dimension_of_a_mixed_outcome_may_be_scaled(
    discrete: Callable[..., ArBufferModel], column: int
) -> None:
    scale = torch.ones(2, dtype=torch.float64)
    scale[column] = 2.0
    y = torch.stack([CHOICES[:M].double(), draw(M, seed=9)], -1)
    joint = ArBufferJoint(discrete("categorical(2)", "real").condition(), X)
    d = dist.TransformedDistribution(joint, AffineTransform(torch.zeros(2, dtype=torch.float64), scale))
    model = observed(d, y * scale)
    assert_found(model, "a transform of categories") if column == 0 else assert_clean(model)


# A scale whose Jacobian counts too seldom


def scaled(d: dist.TorchDistribution, scale: float | Tensor) -> dist.TransformedDistribution:
    return dist.TransformedDistribution(d, AffineTransform(0.0, scale, event_dim=1))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_scale_without_the_shape_of_the_event_is_found(context: Context, shape: tuple[int, ...]) -> None:
    d, scale = ArBufferJoint(context, X), torch.full(shape, 2.0, dtype=torch.float64)
    assert_found(observed(scaled(d, scale), Y), "log s counts too seldom")
    right, wrong = scaled(d, scale.expand(M)).log_prob(Y), scaled(d, scale).log_prob(Y)
    torch.testing.assert_close(wrong - right, (M - 1) * scale.log().sum())


@pytest.mark.parametrize("scale", [2.0, torch.full((M,), 2.0, dtype=torch.float64)])
def test_scale_of_the_event_is_right(context: Context, scale: float | Tensor) -> None:
    assert_clean(observed(scaled(ArBufferJoint(context, X), scale), Y))


# A plate around the targets


def plated(d: dist.TorchDistribution, size: int, y: Tensor | None = Y) -> Callable[[], None]:
    def model() -> None:
        with pyro.plate("obs", size):
            pyro.sample("y", d, obs=y)

    return model


@BOTH
def test_plate_over_targets_is_found(distribution: type, context: Context) -> None:
    assert_found(plated(distribution(context, X), M), "site 'y': a plate of 6 stands around")


def test_plate_over_targets_is_found_under_a_transform(context: Context) -> None:
    d = dist.TransformedDistribution(ArBufferJoint(context, X), [ExpTransform()])
    assert_found(plated(d, M, Y.exp()), "site 'y': a plate of 6 stands around")


def test_plate_of_as_many_subjects_as_targets_is_right(scalar_model: ArBufferModel, context: Context) -> None:
    subjects = scalar_model.condition(draw(M, N, DIM_X), draw(M, N))
    assert_clean(plated(ArBufferJoint(subjects, X), M))
    assert_clean(plated(ArBufferJoint(context, draw(M, M, DIM_X)), M))
    assert_clean(plated(ArBufferJoint(context, X), M, draw(M, M)))
    assert_clean(plated(ArBufferJoint(context, X), M, None))


def test_plate_of_another_size_is_right(context: Context) -> None:
    assert_clean(plated(ArBufferJoint(context, X), B))


# A mask over the targets

OVER = "over one event of 6 targets"


def masked(d: dist.TorchDistribution, mask: Tensor, y: Tensor) -> Callable[[], None]:
    def model() -> None:
        with poutine.mask(mask=mask):
            pyro.sample("y", d, obs=y)

    return model


def test_mask_over_targets_is_found(context: Context) -> None:
    d, mask = ArBufferJoint(context, X), torch.arange(M) < 4
    assert_found(masked(d, mask, Y), f"site 'y': a mask of shape (6,) {OVER}")
    texts = ("a plate of 6", f"site 'y': a mask of shape (6,) {OVER}")  # the mask expands what it masks
    assert_found(lambda: pyro.sample("y", d.mask(mask), obs=Y), *texts)


@pytest.mark.parametrize("shape", [(M,), (M, DIM_Y), (B, M)])
def test_mask_over_vector_outcomes_is_found(vector_model: ArBufferModel, shape: tuple[int, ...]) -> None:
    d = ArBufferJoint(vector_model.condition(), X)
    assert_found(masked(d, draw(*shape) > 0, draw(M, DIM_Y)), f"a mask of shape {shape} {OVER}")


def test_obs_mask_over_targets_is_found_once(context: Context) -> None:
    def model() -> None:
        pyro.sample("y", ArBufferJoint(context, X), obs=Y, obs_mask=torch.arange(M) < 4)

    assert_found(model, f"site 'y': a mask of shape (6,) {OVER}")


def test_names_that_end_like_those_of_obs_mask_are_kept(context: Context) -> None:
    x, y = with_shared(1)
    assert_found(lambda: pyro.sample("y_observed", ArBufferJoint(context, x), obs=y), "site 'y_observed': 1 of 6")


def test_mask_over_subjects_is_right(scalar_model: ArBufferModel) -> None:
    for size in (B, M):
        subjects = scalar_model.condition(draw(size, N, DIM_X), draw(size, N))
        mask = torch.arange(size) < 1
        assert_clean(masked(ArBufferJoint(subjects, X), mask, Y))

        def model(d: ArBufferJoint = ArBufferJoint(subjects, X), size: int = size, mask: Tensor = mask) -> None:
            with pyro.plate("subjects", size):
                pyro.sample("y", d, obs=draw(size, M), obs_mask=mask)

        assert_clean(model)


def test_mask_of_all_or_nothing_is_right(context: Context) -> None:
    assert_clean(masked(ArBufferJoint(context, X), False, Y))


# Data used twice


def observed(d: dist.TorchDistribution, y: Tensor) -> Callable[[], None]:
    return lambda: pyro.sample("y", d, obs=y)


def with_shared(num_shared: int) -> tuple[Tensor, Tensor]:
    """Targets of which the last pairs are the context's first."""
    return torch.cat([X[num_shared:], X_CONTEXT[:num_shared]]), torch.cat([Y[num_shared:], Y_CONTEXT[:num_shared]])


@BOTH
def test_pairs_of_the_context_are_found_and_counted(distribution: type, context: Context) -> None:
    x, y = with_shared(3)
    assert_found(observed(distribution(context, x), y), "site 'y': 3 of 6 observed pairs (x, y) are in its context")


def test_pairs_of_the_context_are_found_behind_a_transform(context: Context) -> None:
    x, y = with_shared(3)
    d = dist.TransformedDistribution(ArBufferJoint(context, x), [AffineTransform(3.0, 7.0), ExpTransform()])
    assert_found(observed(d, (3 + 7 * y).exp()), "3 of 6 observed pairs")


def test_pairs_of_vector_outcomes_are_found(vector_model: ArBufferModel) -> None:
    y_context = draw(N, DIM_Y)
    d = ArBufferJoint(vector_model.condition(X_CONTEXT, y_context), X_CONTEXT)
    assert_found(observed(d, y_context), "5 of 5 observed pairs")
    assert_clean(observed(d, torch.cat([y_context[:, :2], draw(N, 1, seed=5)], 1)))


def test_pairs_are_looked_for_in_the_context_of_their_own_subject(scalar_model: ArBufferModel) -> None:
    x_context, y_context = draw(B, N, DIM_X), draw(B, N)
    d = ArBufferJoint(scalar_model.condition(x_context, y_context), x_context)

    def model(y: Tensor) -> None:
        with pyro.plate("subjects", B):
            pyro.sample("y", d, obs=y)

    assert_found(model, "10 of 10 observed pairs", args=(y_context,))
    assert_clean(model, y_context.flip(0))


def test_padding_holds_no_pairs(scalar_model: ArBufferModel) -> None:
    context = scalar_model.condition([X_CONTEXT, X_CONTEXT[:2]], [Y_CONTEXT, Y_CONTEXT[:2]])

    zeros = torch.zeros(3, DIM_X, dtype=torch.float64)

    def model() -> None:
        with pyro.plate("subjects", B):
            pyro.sample("y", ArBufferJoint(context, zeros), obs=zeros[:, 0])

    assert_clean(model)


@pytest.mark.parametrize("same", ["x", "y"])
def test_pairs_that_share_only_inputs_or_outcomes_are_right(context: Context, same: str) -> None:
    x, y = (X_CONTEXT, Y[:N]) if same == "x" else (X[:N], Y_CONTEXT)
    assert_clean(observed(ArBufferJoint(context, x), y))


def test_values_that_are_not_observed_are_no_data(context: Context) -> None:
    d = ArBufferJoint(context, X_CONTEXT)
    assert_clean(lambda: pyro.sample("y", d, obs=Y_CONTEXT, infer={"is_observed": False}))


# Densities that change


@pytest.mark.parametrize("seeded", [True, False])
def test_orders_that_change_are_found(context: Context, seeded: bool) -> None:
    def model() -> None:
        seed = 0 if seeded else int(torch.randint(10**6, ()))
        pyro.sample("y", ArBufferJoint(context, X, orders=random_orders(M, 3, seed=seed)), obs=Y)

    if seeded:
        assert_clean(model)
    else:
        assert_found(model, "site 'y': its orders differ between two runs")


@BOTH
def test_randomness_outside_pyro_is_found(distribution: type, context: Context) -> None:
    def model() -> None:
        pyro.sample("y", distribution(context, X + 0.1 * torch.randn_like(X)), obs=Y)

    assert_found(model, "site 'y': its log density differs between two runs")


def test_density_that_depends_on_latents_is_right(context: Context) -> None:
    def model() -> None:
        shift = pyro.sample("shift", STANDARD)
        pyro.sample("y", ArBufferJoint(context, X + shift), obs=Y)
        pyro.sample("z", ArBufferJoint(context, X + shift))

    assert_clean(model)


# Contexts made inside


def test_context_encoded_in_every_run_is_found_once(scalar_model: ArBufferModel) -> None:
    def model() -> None:
        pyro.sample("shift", STANDARD)
        ctx = scalar_model.condition(X_CONTEXT, Y_CONTEXT)
        with pyro.plate("subjects", B):
            pyro.sample("y", ArBufferJoint(ctx, X), obs=Y)
        pyro.sample("z", ArBufferMarginals(ctx, X))

    assert_found(model, "site 'y': its context is encoded in every run")


def test_context_that_depends_on_a_latent_or_parameter_is_right(scalar_model: ArBufferModel) -> None:
    def model() -> None:
        shift = pyro.sample("shift", STANDARD)
        scale = pyro.param("scale", torch.ones((), dtype=torch.float64))
        pyro.sample("y", ArBufferJoint(scalar_model.condition(X_CONTEXT, Y_CONTEXT + shift), X), obs=Y)
        pyro.sample("z", ArBufferJoint(scalar_model.condition(X_CONTEXT, Y_CONTEXT * scale), X), obs=Y)

    assert_clean(model)
    with torch.no_grad():
        assert_clean(model)


def test_context_of_a_network_that_is_fitted_is_right(trainable: ArBufferModel) -> None:
    def model() -> None:
        pyro.module("net", trainable)
        pyro.sample("y", ArBufferJoint(trainable.condition(X_CONTEXT, Y_CONTEXT), X), obs=Y)

    assert_clean(model)


def test_index_and_expansion_of_a_context_are_right(scalar_model: ArBufferModel) -> None:
    subjects = scalar_model.condition(draw(3, N, DIM_X), draw(3, N))

    def model() -> None:
        with pyro.plate("subjects", 3, subsample_size=2) as index:
            pyro.sample("y", ArBufferJoint(subjects[index], X), obs=Y)
        with pyro.plate("all", 4, dim=-2), pyro.plate("three", 3, dim=-1):
            pyro.sample("z", ArBufferJoint(subjects.expand(4, 3), X), obs=Y)

    assert_clean(model)


def test_context_that_a_discrete_latent_decides_is_right(scalar_model: ArBufferModel) -> None:
    def model() -> None:
        count = pyro.sample("count", dist.Categorical(torch.ones(N)))
        pyro.sample("y", ArBufferJoint(scalar_model.condition(X_CONTEXT[:count], Y_CONTEXT[:count]), X), obs=Y)

    assert_clean(model)


# Networks


def test_trainable_network_that_pyro_does_not_know_is_found_once(trainable: ArBufferModel) -> None:
    def model() -> None:
        for name in ("y", "z"):
            pyro.sample(name, ArBufferJoint(trainable.condition(X_CONTEXT, Y_CONTEXT), X), obs=Y)

    count = len(list(trainable.parameters()))
    assert_found(model, f"site 'y': {count} parameters of its network require gradients")


def test_trainable_network_in_a_pyro_module_is_right(trainable: ArBufferModel) -> None:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = trainable

        def forward(self) -> None:
            pyro.sample("y", ArBufferJoint(self.net.condition(X_CONTEXT, Y_CONTEXT), X), obs=Y)

    assert_clean(Model())


def test_frozen_network_is_right(context: Context) -> None:
    assert_clean(lambda: pyro.sample("y", ArBufferJoint(context, X), obs=Y))


# The check itself


def test_several_findings_come_together(context: Context) -> None:
    x, y = with_shared(2)

    def model() -> None:
        with poutine.mask(mask=torch.arange(M) < 4):
            pyro.sample("y", ArBufferJoint(context, x, orders=torch.randperm(M)[None]), obs=y)

    assert_found(model, "a mask of shape", "2 of 6 observed pairs", "its orders differ")


def test_random_state_and_param_store_stay_as_they_were(context: Context) -> None:
    def model() -> None:
        pyro.param("new", lambda: torch.randn(2))
        pyro.param("old").data.add_(0.0)
        pyro.sample("y", ArBufferJoint(context, X))

    old = pyro.param("old", torch.ones(2)).unconstrained()
    state = torch.get_rng_state()
    assert_clean(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store()) == ["old"]
    assert pyro.param("old").unconstrained() is old


def test_models_without_sites_of_this_package_are_clean() -> None:
    def model() -> None:
        z = pyro.sample("z", STANDARD)
        pyro.factor("penalty", -(z**2))
        pyro.sample("y", dist.TransformedDistribution(STANDARD, [AbsTransform()]))
        with pyro.plate("three", 3):
            pyro.sample("w", dist.LogNormal(z, 1.0), obs=torch.ones(3))

    assert_clean(model)


def test_conditioned_models_are_checked(context: Context) -> None:
    def model(x: Tensor) -> None:
        pyro.sample("y", ArBufferJoint(context, x))

    assert_clean(model, X)
    x, y = with_shared(1)
    assert_found(poutine.condition(model, {"y": y}), "1 of 6 observed pairs", args=(x,))


def test_model_that_is_not_callable_is_an_error() -> None:
    with pytest.raises(ValueError, match="model must be a Pyro model, a callable; got Tensor"):
        check_model(torch.zeros(2))


def test_exceptions_of_the_model_pass_through(context: Context) -> None:
    def model() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        check_model(model)
    with pytest.raises(ValueError, match="nan='drop'"):
        check_model(observed(ArBufferJoint(context, X), Y.index_fill(0, torch.tensor([1]), torch.nan)))


# Several draws at once

WEIGHTS = draw(4, 2)


def regression(mean: Callable[[Tensor], Tensor]) -> Callable[[Tensor | None], None]:
    def model(y: Tensor | None = None) -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        with pyro.plate("rows", 4):
            pyro.sample("y", dist.Normal(mean(theta), 1.0), obs=y)

    return model


@pytest.mark.parametrize("y", [None, draw(4)])
def test_model_that_mixes_draws_run_at_once_is_found(y: Tensor | None) -> None:
    for mean in (torch.sum, torch.mean, lambda theta: torch.softmax(theta, 0)[..., 0]):
        assert_found(regression(mean), "site 'y' has another log density where several posterior draws", args=(y,))
    assert_clean(regression(lambda theta: (theta * WEIGHTS).sum(-1)), y)


def test_deterministic_site_and_latent_that_mix_draws_are_found() -> None:
    def computed() -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("share", torch.softmax(theta, 0), event_dim=1)

    def hierarchy() -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("scale", dist.LogNormal(theta.mean(), 1.0))

    assert_found(computed, "site 'share' has another value where several posterior draws")
    assert_found(hierarchy, "site 'scale' has another log density where several posterior draws")


def test_model_that_does_not_run_for_several_draws_is_right() -> None:
    def branching() -> None:
        z = pyro.sample("z", STANDARD)
        if z > 0:
            pyro.sample("w", STANDARD)
        pyro.sample("y", dist.Normal(z.detach().item(), 1.0), obs=torch.zeros(()))

    assert_clean(branching)
    assert_clean(regression(lambda theta: WEIGHTS @ theta), draw(4))


def test_deterministic_site_that_reduces_over_draws_is_found() -> None:
    def model() -> None:
        theta = pyro.sample("theta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("total", theta.sum())

    assert_found(model, "site 'total' must have one value per posterior draw")


@pytest.mark.parametrize("error", [ValueError, torch.linalg.LinAlgError, ArithmeticError])
def test_model_that_fails_for_some_draws_of_its_prior_is_right(error: type[Exception]) -> None:
    runs = []

    def model() -> None:
        pyro.sample("z", STANDARD)
        runs.append(None)
        if len(runs) > 2:  # the two runs that are compared succeed
            raise error("no density at these latents")

    assert_clean(model)
    assert len(runs) > 2


@pytest.mark.parametrize("as_given", [pd.Series, np.asarray])
@BOTH
def test_arrays_and_series_are_observed_as_tensors_are(
    distribution: Callable, as_given: Callable, scalar_model: ArBufferModel
) -> None:
    def program(y: object, context: Context) -> None:
        level = pyro.sample("level", STANDARD)
        pyro.sample("y", distribution(context, X + level[..., None, None]), obs=y)

    for context, number in ((scalar_model.condition(X_CONTEXT, Y_CONTEXT), 0), (scalar_model.condition(X, Y), 1)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ModelCheckWarning)
            given, tensors = (check_model(program, each, context) for each in (as_given(Y.numpy()), Y))
        assert given == tensors and len(given) <= number


# Latents that are broadcast against another dimension than their own


def level(right: bool) -> Callable[[Context], Callable[[], None]]:
    """A level that all targets share, beside a plate of other data."""

    def of(context: Context) -> Callable[[], None]:
        def model() -> None:
            a = pyro.sample("a", STANDARD)
            shift = AffineTransform(a[..., None] if right else a, 1.0)
            pyro.sample("y", dist.TransformedDistribution(ArBufferJoint(context, X), shift), obs=Y)
            with pyro.plate("others", 4):
                pyro.sample("z", dist.Normal(a, 1.0), obs=torch.zeros(4).double())

        return model

    return of


def places(right: bool) -> Callable[[Context], Callable[[], None]]:
    """Inputs that are known up to an error each."""

    def of(context: Context) -> Callable[[], None]:
        def model() -> None:
            if right:
                error = pyro.sample("error", STANDARD.expand([M]).to_event(1))
            else:
                with pyro.plate("points", M):
                    error = pyro.sample("error", STANDARD)
            x = torch.stack([X[:, 0] + error, X[:, 1] + 0 * error], -1)
            pyro.sample("y", ArBufferJoint(context, x), obs=Y)

        return model

    return of


@pytest.mark.parametrize("make", [level, places])
def test_draws_that_would_be_broadcast_against_each_other_are_found(context: Context, make: Callable) -> None:
    assert_clean(make(True)(context))
    assert_found(make(False)(context), "draws of latents in batch dimension -1, and those of vectorised particles")


def groups(right: bool, scaled: bool, context: Context) -> Callable[[], None]:
    """A shift, which sums to 0, or a scale of each of three groups."""

    def model() -> None:
        with pyro.plate("groups", 3):
            s = pyro.sample("s", dist.LogNormal(STANDARD.loc, 1.0))
            own = s if scaled else s - s.mean(-1, True)
            own = own[..., None] if right else own
            moved = AffineTransform(0.0, own) if scaled else AffineTransform(own, 1.0)
            fn = ArBufferJoint(context, X[:3]).expand([3])
            pyro.sample("y", dist.TransformedDistribution(fn, moved), obs=draw(3, 3, seed=5))

    return model


@pytest.mark.parametrize("scaled", [True, False])
def test_a_latent_per_group_that_goes_to_a_target_of_each_is_found(context: Context, scaled: bool) -> None:
    assert_clean(groups(True, scaled, context))
    assert_found(groups(False, scaled, context), "latent 's' of 3 members shifts or scales 3 targets")


@pytest.mark.parametrize("outputs", [2, 3])
def test_a_latent_per_group_that_goes_to_a_dimension_or_a_target_is_found(
    build_model: Callable[..., ArBufferModel], outputs: int
) -> None:
    context = build_model(dim_y=outputs).condition(X_CONTEXT, draw(N, outputs, seed=4))

    def model(axes: int) -> Callable[[], None]:
        def run() -> None:
            with pyro.plate("groups", 3):
                s = pyro.sample("s", STANDARD)
                moved = dist.transforms.ComposeTransform([AffineTransform(s[(..., *(None,) * axes)], 1.0)])
                fn = dist.TransformedDistribution(ArBufferJoint(context, X[:3]).expand([3]), moved)
                pyro.sample("y", fn, obs=draw(3, 3, outputs, seed=5))

        return run

    assert_clean(model(2))
    for axes in (0, 1) if outputs == 3 else (1,):
        assert_found(model(axes), "write s[..., None, None] for all of its targets")


def mean_of(s: Tensor) -> Tensor:
    return s.mean(-1, True).expand(3)


def mixed(s: Tensor) -> Tensor:
    return torch.tensor([[1.0, 0.2, 0.5], [0.1, 1.0, 0.7], [0.4, 0.3, 1.0]], dtype=torch.float64) @ s


@pytest.mark.parametrize("shared", [mean_of, mixed])
def test_targets_that_depend_on_all_groups_are_no_mistake(context: Context, shared: Callable) -> None:
    def model() -> None:
        with pyro.plate("groups", 3):
            s = pyro.sample("s", STANDARD)
            fn = dist.TransformedDistribution(
                ArBufferJoint(context, X[:3]).expand([3]), AffineTransform(shared(s), 1.0)
            )
            pyro.sample("y", fn, obs=draw(3, 3, seed=5))

    with warnings.catch_warnings():  # of vectorised particles, for which it is not written
        warnings.simplefilter("ignore", ModelCheckWarning)
        assert not [text for text in check_model(model) if "members" in text or "of 3" in text]


def test_a_plate_of_one_datum_is_no_batch_of_draws() -> None:
    def model() -> None:
        a = pyro.sample("a", STANDARD)
        pyro.deterministic("both", torch.stack([a, 2 * a]))
        with pyro.plate("p", 3):
            pyro.sample("z", STANDARD, obs=torch.zeros(()).double())

    assert_clean(model)


def test_offsets_of_targets_in_a_plate_of_as_many_groups_are_no_mistake(context: Context) -> None:
    def model() -> None:
        offset = pyro.sample("offset", STANDARD.expand([3]).to_event(1))
        with pyro.plate("groups", 3):
            fn = ArBufferJoint(context, X[:3]).expand([3])
            fn = dist.TransformedDistribution(fn, AffineTransform(offset, 1.0))
            pyro.sample("y", fn, obs=draw(3, 3, seed=5))

    assert_clean(model)

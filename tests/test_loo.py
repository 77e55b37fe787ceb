"""Exact leave-one-out against a loop, conditionals against closed forms."""

import math
from functools import partial

import ar1
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.distributions.transforms import AffineTransform, ExpTransform, LowerCholeskyAffine

import pyro_arbuf.workflow.loo
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.workflow.datatree import to_datatree
from pyro_arbuf.workflow.loo import arviz_line, exact_loo, loo_conditionals, to_elpd_data

pytestmark = [  # ArviZ's own
    pytest.mark.filterwarnings(r"ignore:\s*ArviZ is undergoing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
]
S, B, N, M = 3, 2, 5, 6


def outcome(net, y):
    return y.squeeze(-1) if net.config.dim_y is None else y


def left_out_by_hand(net, x, y):
    densities = []
    for i in range(len(x)):
        rest = torch.arange(len(x)) != i
        ctx = net.condition(x[rest], y[rest])
        densities.append(ArBufferMarginals(ctx, x[i : i + 1]).log_prob(y[i : i + 1]))
    return torch.stack(densities)


def psis_loo(tree):
    if arviz_line() == 0:
        import arviz

        return arviz.loo(arviz.InferenceData.from_datatree(tree))["elpd_loo"]
    return pytest.importorskip("arviz_stats").loo(tree).elpd


def test_exact_loo_equals_conditioning_on_all_others_one_by_one(model, draw_task):
    task = draw_task(model)
    x, y = task.x_context[0], outcome(model, task.y_context)[0]
    expected = left_out_by_hand(model, x, y)
    result = exact_loo(model, x, y)
    torch.testing.assert_close(torch.from_numpy(result.elpd_i.values), expected)
    assert result.elpd_i.dims == ("target",) and int(result.n) == N
    assert float(result.elpd) == pytest.approx(float(expected.sum()))
    assert float(result.se) == pytest.approx(math.sqrt(N * expected.var(correction=0)))


@pytest.mark.parametrize("as_list", [False, True])
def test_exact_loo_of_subjects_is_that_of_each_one_after_the_other(scalar_model, draw_task, as_list):
    task = draw_task(scalar_model)
    x, y = task.x_context, task.y_context[..., 0]
    if as_list:
        x, y = [x[0, :3], x[1]], [y[0, :3], y[1]]
    result = exact_loo(scalar_model, x, y)
    each = [torch.from_numpy(exact_loo(scalar_model, a, b).elpd_i.values) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(torch.from_numpy(result.elpd_i.values), torch.cat(each))
    assert result.subject.values.tolist() == [0] * len(each[0]) + [1] * len(each[1])


def test_exact_loo_of_a_trainable_model_builds_no_graph(build_model, draw_task):
    net = build_model().requires_grad_(True)
    task = draw_task(net)
    assert isinstance(exact_loo(net, task.x_context, task.y_context[..., 0]), xr.Dataset)


@pytest.mark.parametrize("as_list", [False, True])
def test_exact_loo_refuses_a_context_of_one_pair(scalar_model, as_list):
    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="at least 2 pairs"):
        exact_loo(scalar_model, [x] if as_list else x, [y] if as_list else y)


def test_exact_loo_checks_as_condition_does(scalar_model):
    with pytest.raises(ValueError, match="same number of points"):
        exact_loo(scalar_model, torch.zeros(3, 2).double(), torch.zeros(4).double())


def test_arviz_compares_exact_elpds(scalar_model, build_model, draw_task):
    arviz = pytest.importorskip("arviz") if arviz_line() == 0 else pytest.importorskip("arviz_stats")
    task = draw_task(scalar_model, num_context=7)
    x, y = task.x_context[0], task.y_context[0, :, 0]
    exact = {name: exact_loo(net, x, y) for name, net in (("a", scalar_model), ("b", build_model(seed=1)))}
    table = arviz.compare({name: to_elpd_data(loo) for name, loo in exact.items()})
    difference = abs(float(exact["a"].elpd - exact["b"].elpd))
    assert table["elpd_diff"].abs().max() == pytest.approx(difference)
    assert f"{float(exact['a'].elpd):.2f}" in str(to_elpd_data(exact["a"]))


def test_elpd_data_without_arviz_says_what_to_install(scalar_model, draw_task, monkeypatch):
    task = draw_task(scalar_model)
    loo = exact_loo(scalar_model, task.x_context, task.y_context[..., 0])
    monkeypatch.setattr(pyro_arbuf.workflow.loo, "arviz_line", lambda: None)
    with pytest.raises(RuntimeError, match="pip install arviz"):
        to_elpd_data(loo)


def test_conditionals_of_ar1_errors_equal_the_closed_form():
    y = ar1.data()
    posterior = ar1.posterior(y, S)
    found = loo_conditionals(ar1.model, posterior, y)
    expected = torch.stack([ar1.full_conditionals(y - mu, ar1.errors_covariance()) for mu in posterior["mu"]])
    torch.testing.assert_close(found.log_likelihood["y"], expected)


def test_ratio_gap_of_a_consistent_joint_is_zero():
    y = ar1.data()
    gap = loo_conditionals(ar1.model, ar1.posterior(y, 5), y, num_ratio_draws=3).ratio_gap["y"]
    assert gap.shape == (3, ar1.NUM_TARGETS)
    torch.testing.assert_close(gap, torch.zeros_like(gap))


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_psis_of_conditionals_finds_the_exact_elpd_of_ar1_errors_and_chain_factors_do_not():
    y = ar1.data()
    posterior = ar1.posterior(y, 800)
    densities = loo_conditionals(ar1.model, posterior, y, num_ratio_draws=0).log_likelihood
    tree = partial(to_datatree, posterior, posterior_predictive={})
    assert psis_loo(tree(log_likelihood=densities)) == pytest.approx(float(ar1.exact_elpd(y)), abs=0.1)
    factors = ar1.Ar1Joint().log_prob_factors(y - posterior["mu"][:, None])
    assert psis_loo(tree(log_likelihood={"y": factors})) < float(ar1.exact_elpd(y)) - 1


def shifted_model(net, x_context, y_context, x, transforms, plate=None, y=None):
    """`transforms(level)` of a joint given observations."""
    ctx = net.condition(x_context, y_context)
    level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    wrapped = dist.TransformedDistribution(ArBufferJoint(ctx, x), transforms(level))
    if plate is None:
        return pyro.sample("y", wrapped, obs=y)
    with pyro.plate("subject", plate):
        return pyro.sample("y", wrapped, obs=y)


@pytest.fixture
def level():
    return {"level": torch.tensor([-0.3, 0.1, 0.4], dtype=torch.float64)}


def test_conditionals_of_subjects_are_those_of_each_in_its_own_coordinates(vector_model, draw_task, level):
    task = draw_task(vector_model)
    scale = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    run = partial(shifted_model, vector_model, task.x_context, task.y_context, task.x_target)
    found = loo_conditionals(run, level, lambda a: [AffineTransform(a, scale, event_dim=2)], B, task.y_target)
    joint = ArBufferJoint(vector_model.condition(task.x_context, task.y_context), task.x_target)
    for draw, a in enumerate(level["level"]):
        expected = joint.log_prob_conditionals((task.y_target - a) / scale) - scale.log().sum()
        torch.testing.assert_close(found.log_likelihood["y"][draw], expected)
    assert found.log_likelihood["y"].shape == (S, B, M)


def test_ratio_gap_is_conditional_minus_ratio_of_joints(scalar_model, draw_task, level):
    task = draw_task(scalar_model, num_tasks=1)
    x_context, y_context, x, y = task.x_context[0], task.y_context[0, :, 0], task.x_target[0], task.y_target[0, :, 0]
    run = partial(shifted_model, scalar_model, x_context, y_context, x)
    found = loo_conditionals(run, level, lambda a: [AffineTransform(a, 2.0, event_dim=1)], None, y, num_ratio_draws=1)
    joint = ArBufferJoint(scalar_model.condition(x_context, y_context), x)
    z = (y - level["level"][0]) / 2.0
    rest = torch.arange(M) != 4
    orders = joint.orders[joint.orders != 4]
    orders = (orders - (orders > 4).long())[None]
    without = ArBufferJoint(joint.context, x[rest], orders=orders).log_prob(z[rest])
    expected = joint.log_prob_conditionals(z)[4] - (joint.log_prob(z) - without)
    torch.testing.assert_close(found.ratio_gap["y"][0, 4], expected)
    assert expected.abs() > 1e-3


@pytest.mark.parametrize("plate", [2, M])
def test_ratio_gap_of_outcomes_that_a_plate_shares_is_that_of_each_member(plate, scalar_model, draw_task):
    task = draw_task(scalar_model, num_tasks=plate)
    joint = ArBufferJoint(scalar_model.condition(task.x_context, task.y_context[..., 0]), task.x_target[0])
    y = task.y_target[0, :, 0]

    def model(y):
        with pyro.plate("subject", plate):
            pyro.sample("level", dist.Normal(0.0, 1.0))
            pyro.sample("y", joint, obs=y)

    draws = {"level": torch.zeros(S, plate)}
    shared, each = (loo_conditionals(model, draws, v, num_ratio_draws=1) for v in (y, y.expand(plate, M)))
    torch.testing.assert_close(shared, each)


def test_masked_members_of_an_event_have_no_conditionals(scalar_model, draw_task, level):
    task = draw_task(scalar_model)
    joint = ArBufferJoint(scalar_model.condition(), task.x_target).mask(torch.tensor([True, False])).to_event(1)

    def model(y):
        pyro.sample("level", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("y", joint, obs=y)

    for values in loo_conditionals(model, level, task.y_target[..., 0], num_ratio_draws=1):
        assert values["y"][:, 0].isfinite().all() and values["y"][:, 1].isnan().all()


def test_any_elementwise_transform_brings_its_jacobian(scalar_model, draw_task, level):
    task = draw_task(scalar_model, num_tasks=1)
    y = task.y_target[0, :, 0].exp()
    run = partial(shifted_model, scalar_model, task.x_context[0], task.y_context[0, :, 0], task.x_target[0])
    found = loo_conditionals(run, level, lambda a: [AffineTransform(a, 2.0), ExpTransform()], None, y)
    joint = ArBufferJoint(scalar_model.condition(task.x_context[0], task.y_context[0, :, 0]), task.x_target[0])
    expected = joint.log_prob_conditionals((y.log() - level["level"][1]) / 2.0) - math.log(2.0) - y.log()
    torch.testing.assert_close(found.log_likelihood["y"][1], expected)


def test_a_transform_that_mixes_targets_is_refused(scalar_model, draw_task, level):
    task = draw_task(scalar_model, num_tasks=1)
    run = partial(shifted_model, scalar_model, task.x_context[0], task.y_context[0, :, 0], task.x_target[0])
    mix = LowerCholeskyAffine(torch.zeros(M, dtype=torch.float64), torch.eye(M, dtype=torch.float64))
    with pytest.raises(ValueError, match="elementwise"):
        loo_conditionals(run, level, lambda a: [mix], None, task.y_target[0, :, 0])


def test_conditionals_need_an_observed_joint():
    def coin(y):
        pyro.sample("y", dist.Bernoulli(pyro.sample("p", dist.Uniform(0.0, 1.0))), obs=y)

    with pytest.raises(ValueError, match="must observe an ArBufferJoint"):
        loo_conditionals(coin, {"p": torch.rand(2)}, torch.tensor(1.0))


def test_conditionals_of_a_missing_outcome_are_refused(scalar_model, draw_task, level):
    task = draw_task(scalar_model, num_tasks=1)
    y = task.y_target[0, :, 0]
    y[2] = torch.nan

    def missing(y):
        pyro.sample("level", dist.Normal(0.0, 1.0))
        pyro.sample("y", ArBufferJoint(scalar_model.condition(), task.x_target[0], nan="drop"), obs=y)

    with pytest.raises(ValueError, match="NaN"):
        loo_conditionals(missing, level, y)


@pytest.mark.parametrize("as_given", [pd.Series, np.asarray])
def test_conditionals_of_arrays_and_series_are_those_of_tensors(as_given, scalar_model, draw_task):
    task = draw_task(scalar_model)
    x, y = task.x_context[0], task.y_context[0, :, 0]

    def program(y):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        pyro.sample("y", ArBufferJoint(scalar_model.condition(), x + level[..., None, None]), obs=y)

    draws = {"level": torch.linspace(-1, 1, S, dtype=y.dtype)}
    given, tensors = (loo_conditionals(program, draws, each) for each in (as_given(y.numpy()), y))
    torch.testing.assert_close(given, tensors)


def test_what_is_no_cross_validation_is_refused(scalar_model):
    with pytest.raises(ValueError, match="loo must be what exact_loo returns; got int"):
        to_elpd_data(3)
    with pytest.raises(ValueError, match="x must hold at least 2 pairs per context to leave one out; got None"):
        exact_loo(scalar_model, None, None)
    with pytest.raises(ValueError, match="num_ratio_draws must be an integer of at least 0; got 'a'"):
        loo_conditionals(lambda: None, {"a": torch.zeros(3)}, num_ratio_draws="a")

"""Predictive resampling: populations by hand, exact posteriors, units, what is refused."""

import warnings

import pytest
import tiny
import torch
from gaussian_net import FIELDS
from torch import Tensor

import pyro_arbuf
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.priors.gaussian import exact_posterior
from pyro_arbuf.workflow import resampling
from pyro_arbuf.workflow.resampling import Population, predictive_resampling

S, B, N, T = 3, 2, 5, 7
SAME = {"rtol": 1e-10, "atol": 1e-10}


def normal(shape: torch.Size) -> Tensor:
    return torch.randn(*shape, 2, dtype=torch.float64)


def all_outcomes(population: Population) -> Tensor:
    return population.y


def mean(population: Population) -> Tensor:
    return population.y.mean(-1)


def observed(net, task):
    return task.x_context, net.config.squeeze_outcome(task.y_context)


def test_a_population_is_the_observed_rows_and_draws_of_their_joint(net, draw_task):
    x, y = observed(net, draw_task(net))
    context = net.condition(x, y)
    found = predictive_resampling(context, normal, all_outcomes, T, S, seed=3)
    torch.manual_seed(3)
    joint = ArBufferJoint(context, normal(torch.Size([S, B, T])), torch.arange(T)[None])
    event = len(joint.event_shape)
    expected = torch.cat([y.expand(S, *y.shape), joint.sample()], -event)
    assert torch.equal(found.draws, expected)


def test_the_context_of_a_population_is_that_of_all_its_rows(net, draw_task):
    context, grid = net.condition(*observed(net, draw_task(net))), normal(torch.Size([4]))

    def differences(population: Population) -> Tensor:
        given = net.condition(population.x, population.y)
        return ArBufferMarginals(given, grid).log_prob(at) - ArBufferMarginals(population.context, grid).log_prob(at)

    at = torch.zeros(4, *(() if net.config.dim_y is None else (net.config.dim_y,)), dtype=torch.float64)
    found = predictive_resampling(context, normal, differences, T, S).draws
    torch.testing.assert_close(found, torch.zeros(S, B, dtype=torch.float64), **SAME)


def test_drift_is_the_difference_of_later_and_early_rows(build_model, draw_task):
    net = build_model(num_context=(0, 8))  # 3 more than are observed
    context = net.condition(*observed(net, draw_task(net)))
    with pytest.warns(UserWarning, match="absorbed"):
        found = predictive_resampling(context, normal, all_outcomes, T, S)
    early, late = found.draws[..., N : N + 3].mean(-1), found.draws[..., N + 3 :].mean(-1)
    torch.testing.assert_close(found.drift, (late - early).mean(0), **SAME)
    torch.testing.assert_close(found.drift_error, (late - early).std(0) / S**0.5, **SAME)
    assert found.num_early == 3 and "after row 3 within" in repr(found)


@pytest.mark.parametrize(("fields", "num_early"), [({}, 3), ({"num_targets": (1, 2)}, 2), ({"num_context": (0, 5)}, 3)])
def test_early_rows_are_those_of_training_or_half(build_model, draw_task, fields, num_early):
    net = build_model(**fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = predictive_resampling(net.condition(*observed(net, draw_task(net))), normal, mean, T, S)
    assert found.num_early == num_early and found.drift.shape == found.drift_error.shape == (B,)


def test_pieces_of_the_draws_change_nothing(scalar_model, draw_task, monkeypatch):
    context = scalar_model.condition(*observed(scalar_model, draw_task(scalar_model)))
    whole = predictive_resampling(context, normal, all_outcomes, T, S, seed=0)
    monkeypatch.setattr(resampling, "MAX_TOKENS", 1)
    one_by_one = predictive_resampling(context, normal, all_outcomes, T, S, seed=0)
    assert torch.equal(whole.draws, one_by_one.draws)


def test_a_population_comes_in_the_users_units(scalar_model, draw_task):
    x, y = observed(scalar_model, draw_task(scalar_model))
    own = scalar_model.in_units(x_loc=1.0, x_scale=4.0, y_loc=3.0, y_scale=2.0)
    plain = predictive_resampling(scalar_model.condition(x, y), normal, all_outcomes, T, S, seed=0)
    context = own.condition(1 + 4 * x, 3 + 2 * y)

    def both(population: Population) -> Tensor:
        return torch.cat([population.y[..., None], population.x], -1)

    found = predictive_resampling(context, lambda shape: 1 + 4 * normal(shape), both, T, S, seed=0)
    torch.testing.assert_close(found.draws[..., 0], 3 + 2 * plain.draws, **SAME)
    torch.testing.assert_close(found.draws[..., :N, 1:], (1 + 4 * x).expand(S, *x.shape), **SAME)
    torch.testing.assert_close(found.drift, 2 * plain.drift, **SAME)


def test_shared_and_empty_contexts_and_given_latents(build_model):
    net = build_model(**FIELDS)

    def inputs(shape: torch.Size) -> Tensor:
        return torch.zeros(*shape, 1, dtype=torch.float64)

    y = torch.randn(N, dtype=torch.float64)
    context = net.condition(inputs(y.shape), y, latents={"mu": 0.5}).expand(4)
    draws = predictive_resampling(context, inputs, all_outcomes, T, S).draws
    assert draws.shape == (S, 4, N + T) and torch.equal(draws[..., :N], y.expand(S, 4, N))
    assert predictive_resampling(net.condition(), inputs, all_outcomes, T, S).draws.shape == (S, T)


def test_categories_stay_integers(build_model):
    net = build_model(outcomes=("categorical(3)",), chained=True)
    y = torch.tensor([0, 2, 1, 1, 0])
    found = predictive_resampling(net.condition(normal(y.shape), y), normal, all_outcomes, T, S)
    assert found.draws.dtype == torch.int64 and torch.equal(found.draws[:, :N], y.expand(S, N))
    assert found.drift.shape == () and "MartingalePosterior(3 draws" in repr(found)


def test_rows_of_a_table_come_back_in_its_units():
    net = tiny.tiny_model(inputs="rows", dim_x=5, column_width=8, num_context=(0, 40)).requires_grad_(False)
    x, y = 100 + 20 * torch.randn(6, 3, dtype=torch.float64), 5 * torch.randn(6, dtype=torch.float64)
    found = predictive_resampling(net.condition(x, y), lambda shape: 100 + 20 * torch.randn(*shape, 3), _rows, T, S)
    torch.testing.assert_close(found.draws[:, :6], torch.cat([x, y[:, None]], -1).expand(S, 6, 4), rtol=1e-3, atol=1e-3)
    assert predictive_resampling(net.condition(), lambda shape: torch.randn(*shape, 2), _rows, T, S).draws.shape == (
        S,
        T,
        3,
    )


def _rows(population: Population) -> Tensor:
    return torch.cat([population.x, population.y[..., None]], -1)


def test_mean_of_the_shipped_gaussian_has_its_exact_posterior():
    net, sets, new = pyro_arbuf.load("gaussian"), 4, 24
    y = torch.randn(sets, 1) + torch.randn(sets, N)
    found = predictive_resampling(
        net.condition(torch.zeros(sets, N, 1), y), lambda shape: torch.zeros(*shape, 1), mean, new, 20, seed=0
    )
    exact = exact_posterior(y)
    variance = exact.rate / ((exact.shape - 1) * exact.count)
    shift = (found.draws.mean(0) - exact.location) / variance.sqrt()
    assert shift.mean().abs() < 0.5  # 5 standard errors
    assert abs((found.draws.var(0) / variance).mean() / (new / (new + N)) - 1) < 0.8  # likewise
    assert ((found.drift / found.drift_error).abs() < 5).all()


def test_a_seed_gives_the_random_state_back(scalar_model, draw_task):
    context = scalar_model.condition(*observed(scalar_model, draw_task(scalar_model)))
    before = torch.get_rng_state()
    first, again = (predictive_resampling(context, normal, mean, T, S, seed=1) for _ in range(2))
    assert torch.equal(first.draws, again.draws) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": None}, "context must be a Context; got NoneType"),
        ({"x_sampler": lambda shape: torch.zeros(7, 2)}, r"shape \(3, 7\) with D_x behind it"),
        ({"x_sampler": lambda shape: torch.zeros(*shape, 3)}, "x must have shape"),
        ({"functional": lambda population: 1.0}, r"batch shape \(draws, \*batch\), here \(3,\); got float"),
        ({"functional": lambda population: population.y.mean()}, r"got \(\); compute along the last dimensions"),
        ({"functional": "mean"}, "functional must be a function; got 'mean'"),
        ({"x_sampler": "uniform"}, "x_sampler must be a function; got 'uniform'"),
        ({"seed": "a"}, r"seed must be an integer in 0..2\*\*32 - 1, or None for the global generator; got 'a'"),
        ({"seed": -1}, r"seed must be an integer in 0..2\*\*32 - 1, .*; got -1"),
        ({"num_rows": 1}, "num_rows must be an integer of at least 2; got 1"),
        ({"num_draws": 1}, "num_draws must be an integer of at least 2; got 1"),
        ({"buffer_size": 5}, "buffer_size must be an integer in 1..4"),
    ],
)
def test_what_does_not_fit_is_refused(scalar_model, changes, message):
    rows = torch.Size([N])
    given = {"context": scalar_model.condition(normal(rows), torch.zeros(N).double()), "x_sampler": normal}
    given |= {"functional": mean, "num_rows": T, "num_draws": S}
    with pytest.raises(ValueError, match=message):
        predictive_resampling(**given | changes)


def test_contexts_of_different_lengths_and_series_are_refused(scalar_model, build_model):
    parts = [(normal(torch.Size([n])), torch.zeros(n).double()) for n in (N, N - 2)]
    ragged = scalar_model.condition(*map(list, zip(*parts, strict=True)))
    with pytest.raises(ValueError, match=r"the same number of rows; got \[5, 3\]"):
        predictive_resampling(ragged, normal, mean, T, S)
    equal = scalar_model.condition([parts[0][0]] * 2, [parts[0][1]] * 2)
    assert predictive_resampling(equal, normal, mean, T, S).draws.shape == (S, 2)
    series = build_model(sequential=True).condition(*parts[0])
    with pytest.raises(ValueError, match="exchangeable rows"):
        predictive_resampling(series, normal, mean, T, S)

"""Likelihood and evidence of dependent trials: equal to the dense reference, in the natural order of a series."""

import dataclasses
import importlib
import json
import math
import warnings
from pathlib import Path

import pytest
import reference
import torch
from conftest import CONFIG, random_model
from latent_nets import SCALAR, VECTOR, as_outcomes, coded, locations, numbers, values, weights
from samples import draw
from series_programs import inputs, random_intercept
from torch.testing import assert_close

from pyro_arbuf import (
    ArBufferJoint,
    ArBufferMarginals,
    ArBufferPosterior,
    calibrate,
    compare_evidence,
    exact_loo,
    likelihood,
    log_evidence,
    measure_evidence_error,
    random_orders,
    refine,
    save,
    self_consistency,
    subset_gap,
)
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.priors.ar1 import exact_posterior
from pyro_arbuf.programs.configuration import program_config
from pyro_arbuf.programs.reports import describe_training, training_report
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.sources import simulator_of

S, M = 3, 7
NAMES = ["rate", "shift", "share", "mix"]
X = draw(M, 2, seed=1)


def net(kind: str, fields: dict = SCALAR) -> ArBufferModel:
    says = {"independent": {}, "exchangeable": {"dependent": True}, "series": {"dependent": True, "sequential": True}}
    return random_model(dataclasses.replace(CONFIG, **fields, **says[kind], num_context=(0, 200)))


@pytest.mark.parametrize("fields", [SCALAR, VECTOR], ids=["scalar", "vector"])
@pytest.mark.parametrize("kind", ["exchangeable", "series"])
def test_likelihood_of_dependent_trials_is_the_chain_of_the_reference(kind, fields):
    model, given = net(kind, fields), values(S)
    y = draw(M, *(() if fields is SCALAR else (3,)), seed=2)
    law = likelihood(model, X, given)
    assert isinstance(law, ArBufferJoint) and law.batch_shape == (S,)
    y_full = y.unsqueeze(-1) if fields is SCALAR else y
    order = range(M) if kind == "series" else random_orders(M, 1)[0].tolist()
    context = locations(NAMES).expand(S, -1, -1), as_outcomes(numbers(given), model)
    targets = coded(X).expand(S, -1, -1), y_full.expand(S, -1, -1)
    assert_close(law.log_prob(y), reference.log_prob(weights(model), 2, *context, *targets, [list(order)], 4))


def test_likelihood_of_independent_trials_is_their_product():
    model, given = net("independent"), values(S)
    law, y = likelihood(model, X, given), draw(M, seed=2)
    assert isinstance(law, ArBufferMarginals) and law.batch_shape == (S,)
    assert_close(law.log_prob(y), ArBufferMarginals(model.condition(latents=given), X).log_prob(y))


def test_likelihood_takes_orders_and_buffer_size_where_there_are_any():
    model, given, y = net("exchangeable"), values(), draw(M, seed=2)
    law = likelihood(model, X, given, random_orders(M, 5), 2)
    assert law.buffer_size == 2 and torch.equal(law.orders, random_orders(M, 5)) and law.log_prob(y).isfinite()
    for kind, text in {"series": "a series has its natural order", "independent": "independent trials have no"}.items():
        with pytest.raises(ValueError, match=text):
            likelihood(net(kind), X, given, random_orders(M, 5))


def test_likelihood_needs_all_latents():
    with pytest.raises(ValueError, match=r"latents must hold values of all latents .*; \['mix'\] are missing"):
        likelihood(net("series"), X, {name: value for name, value in values().items() if name != "mix"})
    with pytest.raises(ValueError, match="net must have latents to have a likelihood"):
        likelihood(random_model(CONFIG), X, {})


def test_forecast_given_the_first_trials_is_the_ratio_of_likelihoods_without_a_buffer():
    model, given, y = net("series"), values(), draw(M, seed=2)
    whole = likelihood(model, X, given, buffer_size=1).log_prob(y)
    first = likelihood(model, X[:4], given, buffer_size=1).log_prob(y[:4])
    rest = ArBufferJoint(model.condition(X[:4], y[:4], latents=given), X[4:], buffer_size=1).log_prob(y[4:])
    assert_close(first + rest, whole)


# Evidence


def test_evidence_of_a_series_is_one_number_in_its_order():
    model, y = net("series"), draw(M, seed=2)
    found = log_evidence(model, X, y, num_orders=3)
    assert found.standard_error.isnan() and found.value.shape == ()
    nothing = coded(X)[:0], y[:0, None]
    expected = reference.log_prob(weights(model), 2, *nothing, coded(X), y[:, None], [list(range(M))], 4)
    assert_close(found.value, expected)
    assert_close(log_evidence(model, X, y, num_orders=50, seed=9).value, found.value)


@pytest.mark.parametrize("kind", ["independent", "series"])
def test_evidence_of_several_data_sets_is_that_of_each(kind):
    model = net(kind)
    sets = [(draw(n, 2, seed=n), draw(n, seed=10 + n)) for n in (3, 6, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few orders dominate in random networks
        ragged = log_evidence(model, *map(list, zip(*sets, strict=True)), num_orders=4, seed=2)
        alone = [log_evidence(model, *each, num_orders=4, seed=2) for each in sets]
        batch = log_evidence(model, *(torch.stack([a, 2 * a]) for a in sets[1]), num_orders=4, seed=2)
    assert_close(ragged.value, torch.stack([each.value for each in alone]))
    assert_close(ragged.standard_error, torch.stack([each.standard_error for each in alone]), equal_nan=True)
    assert batch.value.shape == (2,) and torch.isclose(batch.value[0], alone[1].value)


def test_data_sets_of_wrong_shape_are_named():
    x, y = [X, X[:3]], [draw(M, seed=1), draw(4, seed=1)]
    with pytest.raises(ValueError, match=r"y\[1\] must be the outcomes \(3,\) of one data set, a tensor; got \(4,\)"):
        log_evidence(net("series"), x, y)
    with pytest.raises(ValueError, match="or both lists of data sets, at least one; got 2 of them and 1 of them"):
        log_evidence(net("series"), x, y[:1])
    with pytest.raises(ValueError, match="or both lists of data sets, at least one; got 2 of them and Tensor"):
        log_evidence(net("series"), x, y[0])


def test_evidence_of_series_is_compared_without_an_error_of_orders():
    models, y = {"a": net("series"), "b": random_model(net("series").config, seed=5)}, draw(M, seed=2)
    for model, error in zip(models.values(), (0.3, 0.4), strict=True):
        model.replace_measured(evidence_rmse=error)
    found = compare_evidence(models, X, y, num_orders=3)
    worse = min(found.difference, key=lambda name: -found.difference[name])
    assert found.error[worse] == pytest.approx(1.96 * 0.5) and math.isfinite(found.difference[worse])


# Refusals


def test_what_needs_exchangeable_trials_refuses_a_series():
    model, y = net("series"), draw(M, seed=2)
    with pytest.raises(ValueError, match="leaving one trial out needs exchangeable trials; got a network of a series"):
        exact_loo(model, X, y)
    with pytest.raises(ValueError, match="leaving one trial out needs exchangeable trials; got a network of a series"):
        ArBufferJoint(model.condition(), X).log_prob_conditionals(y)
    with pytest.raises(ValueError, match="subset_gap compares orders of the targets, and the trials of a series have"):
        subset_gap(model, X, y)


# A network of the shipped series, untrained


@pytest.fixture(scope="module")
def ar1_net() -> ArBufferModel:
    simulator = simulator_of("ar1")
    sizes = {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_width": 8, "embedding_width": 8, "head_width": 8}
    torch.manual_seed(0)
    net = ArBufferModel(program_config(simulator, (0, 12), "ar1", num_components=3, buffer_size=4, **sizes))
    net.simulator = simulator
    return net.eval().requires_grad_(False)


def test_posterior_refinement_and_checks_work_for_a_series(ar1_net):
    simulator = ar1_net.simulator
    drawn = simulator.draw(1, 6)
    x, y = drawn.x[0], drawn.y[0, :, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an untrained network's weights are poor
        found = refine(simulator.program, ar1_net.condition(x, y), 4000, 100, seed=0)
    assert found.log_evidence == pytest.approx(float(exact_posterior(y).log_evidence), abs=0.3)
    checked = self_consistency(ar1_net, x, y, 5)
    sites = {"phi": torch.tensor([0.3]), "sigma": torch.tensor([1.2])}
    assert math.isfinite(checked.mean) and likelihood(ar1_net, x, sites).log_prob(y).isfinite().all()
    assert calibrate(ar1_net, 20, 19, num_trials=5).ranks.shape == (20, 2)


def test_evidence_error_of_a_series_is_measured_at_any_length(ar1_net):
    for num_trials in (3, 8):
        error = measure_evidence_error(ar1_net, 5, num_trials, exact=lambda x, y: 0.0)
        assert error.rmse > 0 and len(error.errors) == 5
    ar1_net.replace_measured(evidence_rmse=None)


def test_report_says_what_kind_of_trials_there_are(ar1_net):
    text = describe_training(ar1_net.simulator, ar1_net.config, 1.0, None, None)
    assert "trials: a series, each depends on those before it: the likelihood is their joint density, in their" in text


def test_network_without_latents_is_reported_by_its_joint_density_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulator = Simulator(random_intercept, inputs, [])
    sizes = {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_width": 8, "embedding_width": 8, "head_width": 8}
    model = ArBufferModel(program_config(simulator, (0, 6), "mine", **sizes)).eval().requires_grad_(False)
    model.simulator = simulator
    assert "latents: none: data alone are predicted" in describe_training(simulator, model.config, 1.0, None, None)
    lines = training_report(model, -1.0, 3).splitlines()
    assert lines[-2].startswith("subset gap: ") and lines[-1].startswith("verdict: Without latents only the joint")
    with pytest.raises(ValueError, match="net must have latents"):
        calibrate(model, 5)
    with pytest.raises(ValueError, match="net must have latents"):
        self_consistency(model, inputs(4), torch.zeros(4))
    with pytest.raises(ValueError, match="the net has no latents"):
        ArBufferPosterior(model.condition())


def test_benchmark_of_series_prints_a_table_and_one_line_of_json(ar1_net, monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    series = importlib.import_module("series")
    monkeypatch.setattr(series, "c2st", lambda draws, reference: 0.5)  # which takes seconds per data set
    monkeypatch.setattr(series, "MANY_DRAWS", 50)
    monkeypatch.setattr(series, "NUM_TRIALS", 10)
    monkeypatch.setitem(series.EXACT, "ar1", series.EXACT["ar1"]._replace(wanted_c2st=0.7))
    save(ar1_net, tmp_path / "ar1")
    series.main("ar1", num_sets=2, models=tmp_path)
    *table, line = capsys.readouterr().out.strip().splitlines()
    found = json.loads(line)
    assert found["benchmark"] == "ar1" and found["c2st"] == [0.5, 0.0] and found["evidence_rmse"]["ar1"] > 0
    assert any("likelihood RMSE" in row for row in table) and not any("subset gap" in row for row in table)

"""Tests of the conjugate Gaussian program against itself: its exact laws and its simulations tell one story."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Importance
from samples import draw

from pyro_arbuf.priors.gaussian import (
    draw_constant,
    exact_log_evidence,
    exact_posterior,
    exact_predictive,
    gaussian,
)

X = torch.zeros(5, 1, dtype=torch.float64)


def log_joint(y, latents):
    """The program's own density of latents `(S, 1)` and outcomes `(n,)`, `(S,)`."""
    x = torch.zeros(len(y), 1, dtype=torch.float64)
    trace = poutine.trace(pyro.condition(gaussian, {"y": y, **latents})).get_trace(x)
    trace.compute_log_prob()
    tau, mu, outcomes = (trace.nodes[name]["log_prob"] for name in ("tau", "mu", "y"))
    return (tau + mu).squeeze(-1) + outcomes.sum(-1)


def within_five_standard_errors(values, expected):
    return (values.mean(0) - expected).abs() < 5 * values.std(0) / len(values) ** 0.5


def test_the_program_alone_draws_scalars_and_trials():
    nodes = poutine.trace(gaussian).get_trace(X).nodes
    shapes = {name: nodes[name]["value"].shape for name in nodes if name in ("tau", "mu", "y")}
    assert list(shapes.items()) == [("tau", ()), ("mu", ()), ("y", (5,))]


@pytest.mark.parametrize("shape", [(5, 1), (3, 5, 1)])
def test_the_program_is_vectorised_over_data_sets(shape):
    with pyro.plate("datasets", 3, dim=-2):
        nodes = poutine.trace(gaussian).get_trace(torch.zeros(shape)).nodes
    assert nodes["tau"]["value"].shape == nodes["mu"]["value"].shape == (3, 1)
    assert nodes["y"]["value"].shape == (3, 5)
    assert len({*nodes["tau"]["value"].flatten().tolist(), *nodes["mu"]["value"].flatten().tolist()}) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_dtype_of_the_inputs(dtype):
    assert gaussian(X.to(dtype)).dtype == dtype


def test_inputs_are_constant():
    assert torch.equal(draw_constant(4), torch.zeros(4, 1))


def test_simulations_have_the_moments_of_the_prior():
    with pyro.plate("datasets", 20_000, dim=-2):
        nodes = poutine.trace(gaussian).get_trace(X).nodes
    tau, mu, y = (nodes[name]["value"] for name in ("tau", "mu", "y"))
    assert within_five_standard_errors(tau, 1.0)
    assert within_five_standard_errors(tau.square(), 1.5)
    assert within_five_standard_errors(tau * mu.square(), 4.0)
    assert within_five_standard_errors(tau * (y - mu).square(), 1.0).all()
    assert within_five_standard_errors(tau * (y - mu)[:, :4] * (y - mu)[:, 1:], 0.0).all()


@pytest.mark.parametrize("num_trials", [1, 2, 7])
def test_prior_times_likelihood_is_posterior_times_evidence(num_trials):
    y = 3.0 + 2.0 * draw(num_trials)
    latents = {"tau": draw(11, 1, seed=1).exp(), "mu": draw(11, 1, seed=2)}
    ours = exact_posterior(y).log_prob(latents).squeeze(-1) + exact_log_evidence(y)
    torch.testing.assert_close(ours, log_joint(y, latents), rtol=1e-12, atol=1e-12)


def test_evidence_is_the_product_of_predictives():
    y = 3.0 + 2.0 * draw(2, 6)
    chain = sum(exact_predictive(y[:, :i]).log_prob(y[:, i]) for i in range(6))
    torch.testing.assert_close(chain, exact_log_evidence(y), rtol=1e-12, atol=1e-12)


def test_without_trials_the_posterior_is_the_prior():
    latents = {"tau": draw(11, 1, seed=1).exp(), "mu": draw(11, 1, seed=2)}
    prior = exact_posterior(torch.zeros(0))
    tau, mu = latents["tau"], latents["mu"]
    expected = math.log(4) + tau.log() - 2 * tau + 0.5 * (tau / (8 * math.pi)).log() - mu.square() * tau / 8
    torch.testing.assert_close(prior.log_prob(latents), expected, rtol=1e-12, atol=1e-12)
    assert abs(exact_log_evidence(torch.zeros(0))) < 1e-15


def test_posterior_draws_have_its_moments():
    posterior = exact_posterior(2.0 + draw(3, 4))
    draws = posterior.sample((20_000,))
    tau, residual = draws["tau"], draws["mu"] - posterior.location
    assert list(draws) == ["tau", "mu"] and tau.shape == residual.shape == (20_000, 3)
    assert within_five_standard_errors(tau, posterior.shape / posterior.rate).all()
    assert within_five_standard_errors(tau.square(), posterior.shape * (posterior.shape + 1) / posterior.rate**2).all()
    assert within_five_standard_errors(residual, 0.0).all()
    assert within_five_standard_errors(tau * residual.square(), 1 / posterior.count).all()


def test_data_sets_of_a_batch_do_not_mix():
    y = draw(2, 3, 5)
    latents = {"tau": draw(2, 3, seed=1).exp(), "mu": draw(2, 3, seed=2)}
    density, evidence = exact_posterior(y).log_prob(latents), exact_log_evidence(y)
    predictive = exact_predictive(y).log_prob(y[..., 0])
    assert density.shape == evidence.shape == predictive.shape == (2, 3)
    for i, j in [(0, 2), (1, 1)]:
        alone = {name: value[i, j] for name, value in latents.items()}
        torch.testing.assert_close(density[i, j], exact_posterior(y[i, j]).log_prob(alone))
        torch.testing.assert_close(evidence[i, j], exact_log_evidence(y[i, j]))
        torch.testing.assert_close(predictive[i, j], exact_predictive(y[i, j]).log_prob(y[i, j, 0]))


def test_single_precision_outcomes_are_treated_in_double():
    y = 1e3 + draw(50, dtype=torch.float32)
    assert torch.equal(exact_log_evidence(y), exact_log_evidence(y.double()))
    assert exact_predictive(y).mean.dtype == exact_posterior(y).location.dtype == torch.float64
    latents = exact_posterior(y).sample()
    single = {name: value.float() for name, value in latents.items()}
    assert exact_posterior(y).log_prob(single).dtype == torch.float64


def test_importance_weights_of_the_exact_posterior_are_the_evidence():
    y = draw(5)

    def guide(x):
        posterior = exact_posterior(y)
        tau = pyro.sample("tau", pyro.distributions.Gamma(posterior.shape, posterior.rate))
        pyro.sample("mu", pyro.distributions.Normal(posterior.location, (posterior.count * tau).rsqrt()))

    importance = Importance(pyro.condition(gaussian, {"y": y}), guide, num_samples=4).run(X)
    weights = torch.stack(importance.log_weights)
    torch.testing.assert_close(weights, exact_log_evidence(y).expand(4), rtol=1e-12, atol=1e-12)


def test_a_scalar_outcome_is_an_error():
    with pytest.raises(ValueError, match=r"y must have shape \(\*batch, n\); got a scalar; use y.unsqueeze"):
        exact_log_evidence(torch.tensor(1.0))

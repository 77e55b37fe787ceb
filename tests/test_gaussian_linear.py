"""Tests of the Gaussian linear program against itself: its exact laws and its simulations tell one story."""

import pyro
import pytest
import torch
from pyro import poutine
from samples import draw

from pyro_arbuf.priors.gaussian_linear import exact_log_evidence, exact_posterior, gaussian_linear

X = torch.zeros(1, 1, dtype=torch.float64)


def test_the_program_alone_draws_vectors():
    nodes = poutine.trace(gaussian_linear).get_trace(X).nodes
    assert nodes["theta"]["value"].shape == nodes["y"]["value"].shape == (10,)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1, 1)])
def test_the_program_is_vectorised_over_data_sets(shape):
    with pyro.plate("datasets", 3, dim=-2):
        nodes = poutine.trace(gaussian_linear).get_trace(torch.zeros(shape)).nodes
    assert nodes["theta"]["value"].shape == nodes["y"]["value"].shape == (3, 1, 10)
    assert len(nodes["theta"]["value"].unique()) == 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_dtype_of_the_inputs(dtype):
    assert gaussian_linear(X.to(dtype)).dtype == dtype


def test_simulations_have_the_moments_of_the_definition():
    with pyro.plate("datasets", 20_000, dim=-2):
        nodes = poutine.trace(gaussian_linear).get_trace(X).nodes
    pairs = torch.cat([nodes[name]["value"].squeeze(1) for name in ("theta", "y")], -1)
    products = pairs.unsqueeze(-1) * pairs.unsqueeze(-2)
    blocks = torch.tensor([[0.1, 0.1], [0.1, 0.2]], dtype=torch.float64)
    error = products.mean(0) - torch.kron(blocks, torch.eye(10, dtype=torch.float64))
    assert (error.abs() < 5 * products.std(0) / 20_000**0.5).all()


def test_prior_times_likelihood_is_posterior_times_evidence():
    theta, y = draw(11, 1, 10, seed=1), draw(10, seed=2)
    trace = poutine.trace(pyro.condition(gaussian_linear, {"theta": theta, "y": y})).get_trace(X)
    trace.compute_log_prob()
    joint = trace.nodes["theta"]["log_prob"] + trace.nodes["y"]["log_prob"]
    ours = exact_posterior(y).log_prob(theta) + exact_log_evidence(y)
    torch.testing.assert_close(ours, joint, rtol=1e-12, atol=1e-12)


def test_batches_have_one_law_each():
    y = draw(2, 3, 10, dtype=torch.float32)
    posterior, evidence = exact_posterior(y), exact_log_evidence(y)
    assert posterior.batch_shape == evidence.shape == (2, 3) and posterior.event_shape == (10,)
    assert posterior.sample((4,)).dtype == evidence.dtype == torch.float64
    torch.testing.assert_close(evidence[1, 2], exact_log_evidence(y[1, 2]))


@pytest.mark.parametrize("exact", [exact_posterior, exact_log_evidence])
@pytest.mark.parametrize("shape", [(), (9,), (10, 1)])
def test_outcomes_of_another_size_are_errors(exact, shape):
    with pytest.raises(ValueError, match=r"y must have shape \(\*batch, 10\)"):
        exact(torch.zeros(shape))

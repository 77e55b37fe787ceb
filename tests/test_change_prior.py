"""Another prior without training again, against the conjugate program under changed priors."""

import importlib
import warnings

import gaussian_net
import outcome_programs
import pyro
import pyro.distributions as dist
import pytest
import series_programs
import torch
from gaussian_net import FIELDS, X, Y
from program_posteriors import one_vector, posterior_of
from torch.testing import assert_close

import pyro_arbuf
from pyro_arbuf import Simulator, change_prior, refine
from pyro_arbuf.priors.gaussian import COUNT, NormalGamma, gaussian

NEAR, FAR = (0.3, 0.5), (3.0, 30.0)  # mean of mu, and how many observations it is worth


def program_with(mean: float, count: float):
    def program(x):
        tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), x.new_tensor(2.0)))
        mu = pyro.sample("mu", dist.Normal(mean * torch.ones_like(tau), (count * tau).rsqrt()))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Normal(mu, tau.rsqrt()))

    return program


def simulator_with(mean: float, count: float, offset: float = 0.0, recorded: bool = False):
    """The same, whose outcome is simulated; an offset makes it another program than the network has learned."""

    def program(x):
        tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), x.new_tensor(2.0)))
        mu = pyro.sample("mu", dist.Normal(mean * torch.ones_like(tau), (count * tau).rsqrt()))
        noise = torch.randn(torch.broadcast_shapes(tau.shape, x.shape[:-1]), dtype=x.dtype)
        y = mu + tau.rsqrt() * noise + offset
        with pyro.plate("trials", x.shape[-2]):
            return pyro.deterministic("y", y) if recorded else pyro.sample("y", dist.Delta(y))

    return program


def exact(y: torch.Tensor, mean: float, count: float) -> NormalGamma:
    """The Normal-Gamma posterior under another prior of mu."""
    y, number = y.double(), len(y)
    centre = (count * mean + y.sum()) / (count + number)
    squares = (y - y.mean()).square().sum() + count * number / (count + number) * (y.mean() - mean) ** 2
    two = torch.tensor(2.0).double()
    return NormalGamma(centre, two * 0 + count + number, two + number / 2, two + squares / 2)


def off(found, law: NormalGamma) -> tuple[float, float]:
    """How far the mean of mu is from the exact one, in exact sds, and the ratio of sds."""
    reference = law.sample((20_000,))["mu"]
    ours = found.draws["mu"].double()
    return float((ours.mean() - reference.mean()) / reference.std()), float(ours.std() / reference.std())


@pytest.fixture(scope="module")
def net(build_model):
    return gaussian_net.wide(build_model(**FIELDS))


@pytest.fixture(scope="module")
def trained():
    return pyro_arbuf.load("gaussian")


def test_near_prior_is_reached_by_weights(net):
    found = change_prior(program_with(*NEAR), net.condition(X, Y), 400, 4000, seed=0)
    assert found.method == "weights" and found.density == "program" and found.k_hat < 0.7 and found.shift == {}
    shift, ratio = off(found, exact(Y, *NEAR))
    assert abs(shift) < 0.25 and 0.85 < ratio < 1.15


def test_far_prior_is_reached_by_nuts(trained):
    x, y = torch.zeros(60, 1), torch.randn(60)
    found = change_prior(program_with(*FAR), trained.condition(x, y), 120, 500, seed=0)
    assert found.method == "NUTS" and found.k_hat > 0.7 and found.effective_sample_size > 20
    shift, ratio = off(found, exact(y, *FAR))
    assert abs(shift) < 0.4 and 0.75 < ratio < 1.3


@pytest.mark.slow  # a chain through the network
def test_far_prior_of_a_simulator_is_reached_by_nuts_through_the_learned_likelihood(trained):
    x, y = torch.zeros(60, 1), torch.randn(60)
    found = change_prior(simulator_with(*FAR), trained.condition(x, y), 200, 1000, seed=0)
    assert found.method == "NUTS" and found.density == "network" and found.effective_sample_size > 30
    shift, ratio = off(found, exact(y, *FAR))
    assert abs(shift) < 0.5 and 0.7 < ratio < 1.4


@pytest.mark.filterwarnings("ignore:.* of the posterior lies more than 4 standard deviations")  # untrained network
def test_recorded_outcomes_are_simulated_ones(net):
    found = [
        change_prior(simulator_with(*NEAR, recorded=recorded), net.condition(X, Y), 100, 500, 100, seed=2)
        for recorded in (False, True)
    ]
    assert found[1].density == "network"
    assert_close(found[1].draws, found[0].draws)
    assert_close(found[1].shift, found[0].shift)


@pytest.mark.filterwarnings("ignore:.* of the posterior lies more than 4 standard deviations")  # untrained network
@pytest.mark.parametrize("make", [program_with, simulator_with])
def test_units_of_the_data_change_nothing(net, make):
    plain = change_prior(make(*NEAR), net.condition(X, Y), 100, 500, 100, seed=2)
    scaled = change_prior(make(*NEAR), net.in_units(y_scale=2.0).condition(X, 2 * Y), 100, 500, 100, seed=2)
    assert_close(scaled.draws, plain.draws)
    assert_close(scaled.shift, plain.shift)


def test_simulator_without_a_density_takes_the_learned_one_and_says_how_far_it_is_off(trained):
    x, y = torch.zeros(20, 1), torch.randn(20) + 0.5
    found = change_prior(simulator_with(*NEAR), trained.condition(x, y), 400, 2000, seed=0)
    assert found.density == "network" and found.method == "weights" and set(found.shift) == {"tau", "mu"}
    shift, ratio = off(found, exact(y, *NEAR))
    assert abs(shift) < 0.3 and 0.8 < ratio < 1.25
    assert all(bool((error < 0.1).all()) for error in found.shift_error.values())


def test_error_of_a_wrong_likelihood_is_seen_and_corrected(trained):
    x, y = torch.zeros(40, 1), torch.randn(40)
    with pytest.warns(UserWarning, match="error of the learned likelihood would have moved the posterior by"):
        found = change_prior(simulator_with(0.0, COUNT, 0.3), trained.condition(x, y), 400, 2000, seed=0)
    assert found.shift["mu"] > 5 * found.shift_error["mu"] > 0
    shift, ratio = off(found, exact(y - 0.3, 0.0, COUNT))
    assert abs(shift) < 0.5 and 0.7 < ratio < 1.4


def test_weights_are_those_of_refine(net):
    context, program = net.condition(X, Y), program_with(*NEAR)
    found, fine = change_prior(program, context, 200, 2000, seed=3), refine(program, context, 2000, 200, seed=3)
    assert found.k_hat == fine.k_hat
    assert_close(found.draws, fine.draws)


def positive(recorded: bool):
    """The trained prior with mu above 0, whose posterior is the trained one there; with a density, or simulated."""

    def program(x):
        tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), x.new_tensor(2.0)))
        mu = pyro.sample("mu", dist.HalfNormal((COUNT * tau).rsqrt()))
        noise = torch.randn(torch.broadcast_shapes(tau.shape, x.shape[:-1]), dtype=x.dtype)
        with pyro.plate("trials", x.shape[-2]):
            if recorded:
                return pyro.deterministic("y", mu + tau.rsqrt() * noise)
            return pyro.sample("y", dist.Normal(mu, tau.rsqrt()))

    return program


def off_above_zero(found, y: torch.Tensor) -> tuple[float, float]:
    mu = exact(y, 0.0, COUNT).sample((400_000,))["mu"]
    mu, ours = mu[mu > 0], found.draws["mu"].double()
    return float((ours.mean() - mu.mean()) / mu.std()), float(ours.std() / mu.std())


@pytest.mark.parametrize("recorded", [False, True])
def test_support_may_be_a_part_of_what_it_was(trained, recorded):
    x, y = torch.zeros(20, 1), torch.randn(20)
    y += 0.1 - y.mean()
    found = change_prior(positive(recorded), trained.condition(x, y), 400, 2000, seed=0)
    assert found.density == ("network" if recorded else "program") and found.method == "weights"
    assert bool((found.draws["mu"] > 0).all())
    shift, ratio = off_above_zero(found, y)
    assert abs(shift) < 0.25 and 0.8 < ratio < 1.25


def test_support_with_few_draws_is_reached_by_nuts_and_one_without_is_refused(trained):
    x, y = torch.zeros(20, 1), torch.randn(20)
    y -= y.mean()
    found = change_prior(positive(False), trained.condition(x, y - 0.4), 200, 1000, seed=0)
    assert found.method == "NUTS" and bool((found.draws["mu"] > 0).all())
    shift, ratio = off_above_zero(found, y - 0.4)
    assert abs(shift) < 0.4 and 0.7 < ratio < 1.4
    with pytest.raises(ValueError, match="no draw is in the support of its prior"):
        change_prior(positive(False), trained.condition(x, y - 3.0), 100, 500, seed=0)


def test_support_beyond_what_it_was_is_refused(trained):
    def program(x):
        tau = pyro.sample("tau", dist.Normal(x.new_tensor(2.0), x.new_tensor(2.0)))
        mu = pyro.sample("mu", dist.Normal(0.0 * tau, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            return pyro.sample("y", dist.Normal(mu, tau.abs().rsqrt()))

    with pytest.raises(
        ValueError, match=r"'tau' must have shape .* and be above 0\.0; got .* any real number; .*a part of"
    ):
        change_prior(program, trained.condition(X, Y))


def test_result_is_a_function_of_its_seed_and_shows_itself(net):
    context, state = net.condition(X, Y), torch.get_rng_state()
    first, second = (change_prior(program_with(*NEAR), context, 100, 500, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(first.draws, second.draws)
    assert "by weights with the program's density" in repr(first)


def test_wrong_arguments_are_refused(net):
    context = net.condition(X, Y)
    with pytest.raises(ValueError, match="num_draws must be an integer of at least 100; got 10"):
        change_prior(gaussian, context, 10)
    with pytest.raises(ValueError, match="num_proposals must be an integer of at least 300; got 200"):
        change_prior(gaussian, context, 300, 200)
    with pytest.raises(ValueError, match=r"context must leave all latents free; got one with \['tau'\] given"):
        change_prior(gaussian, net.condition(X, Y, latents={"tau": 1.0}))


KINDS = {kind: (program, outcome, None) for kind, (program, outcome, _) in outcome_programs.PROGRAMS.items()}
KINDS |= {"vector": (one_vector, "y", None), "shared": (series_programs.random_intercept, "y", ["slope"])}
KINDS |= {"series": (series_programs.one_event, "y", None)}


@pytest.mark.parametrize("kind", KINDS)
def test_learned_likelihood_is_that_of_any_kind_of_program(kind, monkeypatch):
    program, outcome, latents = KINDS[kind]
    monkeypatch.setattr(Simulator, "has_density", False)
    monkeypatch.setattr(importlib.import_module("pyro_arbuf.programs.change_prior"), "MAX_K_HAT", float("inf"))
    posterior, _ = posterior_of(program, None if kind == "vector" else series_programs.inputs, 4, latents, outcome)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a network that is not trained
        found = change_prior(program, posterior.context, 100, 100, 100, seed=0)
    assert (found.method, found.density) == ("weights", "network")
    assert list(found.draws) == list(found.shift) == [latent.name for latent in posterior.latents]
    for name, draws in found.draws.items():
        assert draws.isfinite().all() and len(draws) == 100 and found.shift_error[name].isfinite().all()

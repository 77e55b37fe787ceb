"""What a program's sites are taken for, and the errors of programs that cannot be amortised."""

import re

import program_cases
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.autograd.functional import jacobian

from pyro_arbuf.network.latents import Latent
from pyro_arbuf.programs.simulator import Simulator

PRIORS = {
    "real": dist.Normal(0.0, 1.0),
    "vector": dist.Normal(torch.zeros(2), 1.0).to_event(1),
    "gaussian_vector": dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    "positive": dist.LogNormal(0.0, 1.0),
    "nonnegative": dist.Gamma(2.0, 1.0),
    "positive_vector": dist.LogNormal(torch.zeros(3), 1.0).to_event(1),
    "above": dist.Pareto(2.0, 3.0),
    "unit": dist.Beta(2.0, 2.0),
    "interval": dist.Uniform(-1.0, 0.1),
    "interval_vector": dist.Uniform(torch.zeros(2), 2.0).to_event(1),
    "simplex": dist.Dirichlet(torch.ones(3)),
    "two_modes": dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-2.0, 2.0]), 1.0)),
}
EXPECTED = {
    "real": Latent("theta"),
    "vector": Latent("theta", (2,)),
    "gaussian_vector": Latent("theta", (2,)),
    "positive": Latent("theta", lower=0.0),
    "nonnegative": Latent("theta", lower=0.0),
    "positive_vector": Latent("theta", (3,), lower=0.0),
    "above": Latent("theta", lower=2.0),
    "unit": Latent("theta", lower=0.0, upper=1.0),
    "interval": Latent("theta", lower=-1.0, upper=0.1),
    "interval_vector": Latent("theta", (2,), lower=0.0, upper=2.0),
    "simplex": Latent("theta", (3,), simplex=True),
    "two_modes": Latent("theta"),
}


def with_prior(prior):
    def program(x):
        theta = pyro.sample("theta", prior)
        mean = theta.sum(-1) if prior.event_shape else theta
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", dist.Normal(mean, 1.0))

    return program


def bare(latent):
    return Latent(latent.name, latent.shape, latent.lower, latent.upper, latent.simplex)


@pytest.mark.parametrize("name", PRIORS)
def test_latent_has_the_site_s_shape_and_support(name):
    (latent,) = Simulator(with_prior(PRIORS[name])).latents
    assert bare(latent) == EXPECTED[name]


@pytest.mark.parametrize("name", PRIORS)
def test_prior_draws_survive_the_way_to_unconstrained_space_and_back(name):
    (latent,) = Simulator(with_prior(PRIORS[name])).latents
    value = PRIORS[name].sample((50,)).double()
    numbers = latent.unconstrain(value)
    back, log_det = latent.constrain(numbers)
    assert numbers.shape == (50, latent.size) and log_det.shape == (50,)
    assert latent.support.check(back).all()
    torch.testing.assert_close(back, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PRIORS)
def test_jacobian_is_that_of_autograd(name):
    (latent,) = Simulator(with_prior(PRIORS[name])).latents
    numbers = latent.unconstrain(PRIORS[name].sample().double())
    matrix = jacobian(lambda u: latent.constrain(u)[0].reshape(-1)[: latent.size], numbers)
    torch.testing.assert_close(latent.constrain(numbers)[1], matrix.det().abs().log(), rtol=1e-9, atol=1e-9)


SHARED = pytest.mark.filterwarnings("ignore:Site '.*' is (integrated out but shared|inside the plate)")


def hierarchy(x):
    """Latents of all kinds; in the order a, b, c, then the rest."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
    c = pyro.deterministic("c", a + b)
    kind = pyro.sample("kind", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
    with pyro.plate("groups", 3):
        pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        gain = pyro.sample("gain", dist.Normal(1.0, 0.5))
        pyro.sample("choice", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(c * gain + kind, 1.0))


@SHARED
def test_all_continuous_sites_outside_plates_are_latents_the_others_are_integrated_out():
    simulator = Simulator(hierarchy)
    assert [latent.name for latent in simulator.latents] == ["a", "b"]
    assert simulator.integrated_out == ("kind", "w", "gain", "choice") and simulator.mode == "inputs"


@SHARED
def test_named_latents_keep_the_given_order():
    simulator = Simulator(hierarchy, latents=["b", "a"])
    assert [latent.name for latent in simulator.latents] == ["b", "a"]
    drawn = simulator.draw(2000, 1).latents
    torch.testing.assert_close(drawn.mean(0), torch.zeros(2), rtol=0, atol=5 / 2000**0.5)


@SHARED
def test_site_left_out_of_the_latents_is_integrated_out():
    simulator = Simulator(program_cases.line, program_cases.inputs, latents=["slope"])
    assert simulator.integrated_out == ("noise",)


# Errors


def sample_y(x, mean=0.0):
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(mean, 1.0))


def varying_shape(x):
    theta = pyro.sample("theta", dist.Normal(torch.zeros(x.shape[-2]), 1.0).to_event(1))
    sample_y(x, theta.sum(-1))


def varying_support(x):
    low = pyro.sample("low", dist.Normal(0.0, 1.0))
    sample_y(x, pyro.sample("theta", dist.Uniform(low, low + 1)))


def varying_names(x):
    sample_y(x, pyro.sample(f"theta{x.shape[-2]}", dist.Normal(0.0, 1.0)))


def discrete(x):
    pyro.sample("theta", dist.Normal(0.0, 1.0))
    sample_y(x, pyro.sample("kind", dist.Bernoulli(0.5)))


def in_plate(x):
    with pyro.plate("groups", 3):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    sample_y(x, theta.sum(-1))


def batched(x):
    sample_y(x, pyro.sample("theta", dist.Normal(torch.zeros(3), 1.0)).sum(-1))


def no_latents(x):
    sample_y(x)


def no_outcome(x):
    pyro.sample("theta", dist.Normal(0.0, 1.0))


def outcome_by(law):
    def program(x):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", law(theta + x[..., 0]))

    return program


def one_hot(mean):
    return dist.OneHotCategorical(logits=mean.unsqueeze(-1) * torch.ones(3))


def counts_of_three(mean):
    return dist.Multinomial(5, logits=mean.unsqueeze(-1) * torch.ones(3))


def whole_numbers(mean):
    return dist.Delta((5 * mean).long())


def growing_choices(mean):
    return dist.Categorical(logits=mean.unsqueeze(-1) * torch.ones(len(mean)))


def split_outcome(x):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    choice = pyro.sample("choice", dist.Bernoulli(logits=theta))
    sample_y(x, choice.unsqueeze(-1) if choice.dim() else choice)


def outcome_of_fixed_size(x):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", 5):
        pyro.sample("y", dist.Normal(theta, 1.0))


def growing_matrices(x):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(theta * torch.ones(x.shape[-2], x.shape[-2]), 1.0).to_event(2))


def outcome_of_matrices(x):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    with pyro.plate("trials", x.shape[-2]):
        pyro.sample("y", dist.Normal(theta * torch.ones(2, 2), 1.0).to_event(2))


def factor(x):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    pyro.factor("weight", -theta.abs())
    sample_y(x, theta)


def unknown_support(x):
    sample_y(x, pyro.sample("theta", dist.LKJCholesky(2, 1.0)).sum((-1, -2)))


def no_support(x):
    sample_y(x, pyro.sample("theta", program_cases.SampleOnly(torch.tensor(0.0))))


def different_bounds(x):
    sample_y(x, pyro.sample("theta", dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0])).to_event(1)).sum(-1))


def constant(x):
    sample_y(x, pyro.sample("theta", dist.Delta(torch.tensor(1.0))))


def not_finite(x):
    theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
    sample_y(x, theta.log())


LINE = program_cases.line
UNKNOWN = "latents must be latent sites of every run of the program; got "
SHAPE = (
    "the outcome 'y' must have shape (n,) or (n, D_y) for inputs (n, D_x), or the event's shape for one observation; "
)
SERIES = (
    "the outcome 'y' must be one event of n trials, (n,) or (n, D_y) for inputs (n, D_x), to be a series, or an event "
    "of fixed size to be one observation; got events "
)
ERRORS = {
    "varying_shape": (varying_shape, {}, "must have one shape; that of site 'theta' varies: [(3,), (4,), (5,)]; leave"),
    "varying_support": (varying_support, {}, "latents must have one support; that of site 'theta' varies"),
    "varying_names": (varying_names, {}, UNKNOWN + "'theta3'"),
    "discrete": (discrete, {}, "site 'kind' is discrete: mark it with infer={'enumerate': 'parallel'}, or"),
    "named_discrete": (discrete, {"latents": ["kind"]}, "latents must be continuous; site 'kind' is discrete; leave"),
    "in_plate": (in_plate, {"latents": ["theta"]}, "latents must be outside plates, without batch dimensions; site"),
    "only_in_plate": (in_plate, {}, "must have a continuous latent outside plates; got none, and ['theta'] inside"),
    "batched": (batched, {}, "has shape (3,) and event shape (); use .expand([d]).to_event(1)"),
    "no_latents": (no_latents, {}, "must have a continuous latent outside plates; got none, and [] inside plates"),
    "twice": (LINE, {"latents": ["slope", "slope"]}, "different sites; got ['slope', 'slope']"),
    "unknown": (LINE, {"latents": ["tau"]}, UNKNOWN + "'tau'; it has ['slope', 'noise']"),
    "outcome_as_latent": (LINE, {"latents": ["y"]}, UNKNOWN + "'y'"),
    "deterministic": (hierarchy, {"latents": ["c"]}, UNKNOWN + "'c'"),
    "no_outcome": (
        no_outcome,
        {},
        "outcome must be a sample site of every run of the program; got 'y' among ['theta'",
    ),
    "outcome_name": (LINE, {"outcome": "rt"}, "outcome must be a sample site of every run of the program; got 'rt'"),
    "outcome_twice": (LINE, {"outcome": ("y", "y")}, "outcome must be a site, or a tuple of different sites, at least"),
    "no_outcome_named": (LINE, {"outcome": ()}, "outcome must be a site, or a tuple of different sites, at least one"),
    "second_outcome": (LINE, {"outcome": ("y", "rt")}, "outcome must be a sample site of every run of the program; "),
    "one_hot": (outcome_by(one_hot), {}, "got OneHotCategorical, of support OneHot(); draw the number of the category"),
    "multinomial": (outcome_by(counts_of_three), {}, "draw its counts as several sites, each by Binomial given those"),
    "negative": (outcome_by(whole_numbers), {}, "got whole numbers, some of them negative; shift them to start at 0"),
    "growing_choices": (outcome_by(growing_choices), {}, "got Categorical with 3, 4, 5 categories; give it the same"),
    "two_plates": (
        split_outcome,
        {"outcome": ("choice", "y")},
        "the sites of the outcome must be in one plate of trials, or all be series; got sites that differ: ",
    ),
    "fixed_size": (outcome_of_fixed_size, {}, SHAPE + "got (5,) for n = 3, (5,) for n = 4; draw it inside pyro."),
    "growing_matrices": (growing_matrices, {}, SERIES + "of shape (3, 3) for n = 3, (4, 4) for n = 4"),
    "matrices": (
        outcome_of_matrices,
        {},
        "a number or a vector per trial; got an event of shape (2, 2); flatten it to a vector of 4 and draw that with",
    ),
    "factor": (
        factor,
        {},
        "the program must observe nothing, as its sites are simulated; got the observed site 'weigh",
    ),
    "observed": (poutine.condition(LINE, {"y": torch.zeros(3)}), {}, "got the observed site 'y'; remove obs="),
    "fixed": (poutine.condition(LINE, {"slope": torch.zeros(())}), {}, "got the observed site 'slope'; remove obs="),
    "unknown_support": (
        unknown_support,
        {},
        "a real, bounded or simplex support; that of site 'theta' is CorrCholesky",
    ),
    "no_support": (
        no_support,
        {},
        "latents must have a real, bounded or simplex support; that of site 'theta' is None",
    ),
    "different_bounds": (different_bounds, {}, "same bounds in all dimensions; those of site 'theta' differ; make it"),
    "constant": (constant, {}, "latents must vary under the prior; site 'theta' is constant"),
    "not_finite": (not_finite, {}, "the program must simulate finite numbers; got NaN or infinite ones in y of"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_program_that_cannot_be_amortised_is_explained(case):
    program, options, message = ERRORS[case]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Simulator(program, **options)
    assert "\n" not in str(caught.value)

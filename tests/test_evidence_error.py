"""The measured error of a network's evidence, against exact values of the conjugate Gaussian program."""

import copy
import math
import warnings

import gaussian_net
import pyro
import pyro.distributions as dist
import pytest
import torch
from gaussian_net import FIELDS, X, Y
from torch.testing import assert_close

from pyro_arbuf import amortize
from pyro_arbuf.priors.gaussian import exact_log_evidence
from pyro_arbuf.programs.evidence import compare_evidence, log_evidence
from pyro_arbuf.programs.evidence_error import measure_evidence_error
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.sources import find_simulator
from pyro_arbuf.random_state import seeded

R, N, D = 5, 3, 8
SIZES = {"num_datasets": D, "num_trials": N, "num_orders": R, "num_draws": 500}


@pytest.fixture
def net(build_model):
    return gaussian_net.wide(build_model(**FIELDS))


def exact(x, y):
    assert x.shape == (len(y), 1) and y.dim() == 1
    return exact_log_evidence(y)


def no_density(x):
    class Simulated(dist.Normal):
        def log_prob(self, value):
            raise NotImplementedError

    tau = pyro.sample("tau", dist.Gamma(x.new_tensor(2.0), 2.0))
    mu = pyro.sample("mu", dist.Normal(torch.zeros_like(tau), (0.25 * tau).rsqrt()))
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", Simulated(mu, tau.rsqrt()))


@pytest.mark.filterwarnings("ignore:the log evidence rests on few")
def test_error_is_that_against_exact_evidence_and_is_stored(net):
    state = torch.get_rng_state()
    got = measure_evidence_error(net, **SIZES, exact=exact, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(3):
        drawn = find_simulator(net).draw(D, N)
    ours = torch.stack([log_evidence(net, x, y[:, 0], R, seed=3).value for x, y in zip(drawn.x, drawn.y, strict=True)])
    errors = ours - exact_log_evidence(drawn.y[..., 0])
    assert_close(got.errors, errors, rtol=0, atol=1e-4)
    assert got.rmse == pytest.approx(errors.square().mean().sqrt().item(), abs=1e-4) and got.k_hats is None
    assert got.standard_error == pytest.approx(errors.square().std().item() / math.sqrt(D) / (2 * got.rmse), abs=1e-4)
    assert net.config.evidence_rmse == got.rmse


def test_error_by_the_density_of_the_program_is_that_against_exact_evidence(net):
    """One data set of the eight is beyond importance sampling, and is the network's worst: it must not be left out."""
    known = measure_evidence_error(net, **SIZES, exact=exact)
    got = measure_evidence_error(net, **SIZES)
    assert (got.k_hats > 0.7).sum() == 1 and got.errors.abs().argmax() == got.k_hats.argmax()
    trusted = got.k_hats < 0.7
    assert_close(got.errors[trusted], known.errors[trusted], rtol=0, atol=0.3)
    assert known.rmse == pytest.approx(got.rmse, rel=0.05) and net.config.evidence_rmse == got.rmse


def test_measured_networks_are_compared_in_earnest(net):
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.out.bias.view(3, -1)[1] += 40.0
    for each in (net, other):
        each.replace_measured(evidence_rmse=None)
    measure_evidence_error(net, **SIZES, exact=exact)
    other.replace_measured(evidence_rmse=net.config.evidence_rmse)
    assert compare_evidence({"a": net, "b": other}, X, Y, R).verdict == "a"


def test_network_beyond_importance_sampling_is_refused_and_stays_unmeasured(build_model):
    narrow = gaussian_net.wide(build_model(**FIELDS), sd=0.02)
    with pytest.raises(ValueError, match=r"by a k-hat below 0.7, in 80% of the data sets .* in \d of 8. Train"):
        measure_evidence_error(narrow, **SIZES)
    assert narrow.config.evidence_rmse is None
    assert measure_evidence_error(narrow, **SIZES, exact=exact).rmse > 0


def test_program_without_a_density_needs_exact_values(net):
    with pytest.raises(ValueError, match=r"density or by exact=...: .*Simulated has no log_prob"):
        measure_evidence_error(net, **SIZES, program=Simulator(no_density))
    assert net.config.evidence_rmse is None
    found = measure_evidence_error(net, **SIZES, program=Simulator(no_density), exact=exact)
    assert found.rmse == net.config.evidence_rmse


@pytest.mark.parametrize("value", [math.nan, math.inf, "high", None, torch.zeros(2)])
def test_exact_values_must_be_numbers(net, value):
    with pytest.raises(ValueError, match=r"exact\(x, y\) must return one finite number"):
        measure_evidence_error(net, **SIZES, exact=lambda x, y: value)
    assert net.config.evidence_rmse is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_datasets": 4}, "num_datasets must be an integer of at least 5; got 4"),
        ({"num_trials": 3.0}, "num_trials must be an integer of at least 1; got 3.0"),
        ({"num_orders": True}, "num_orders must be an integer of at least 2; got True"),
        ({"num_draws": 50}, "num_draws must be an integer of at least 100; got 50"),
        ({"exact": 3.0}, "exact must be a function of"),
    ],
)
def test_wrong_arguments_are_refused(net, changed, message):
    with pytest.raises(ValueError, match=message):
        measure_evidence_error(net, **SIZES | changed)


def test_a_network_without_latents_is_measured_against_exact_values():
    def levels(x):
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("trials", x.shape[-2]):
            pyro.sample("y", dist.Normal(mu, 1.0))

    def exact_of_levels(x, y):
        covariance = torch.eye(len(y)) + 1
        return dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y)

    sizes = {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_width": 8, "embedding_width": 8, "head_width": 8}
    net = amortize(levels, latents=[], num_context=(0, 6), steps=1, report=False, num_components=2, **sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = measure_evidence_error(net, 5, 3, exact=exact_of_levels, num_orders=R)
    assert math.isfinite(got.rmse) and net.config.evidence_rmse == got.rmse
    with pytest.raises(ValueError, match="must have latents"):
        measure_evidence_error(net, 5, 3, num_orders=R)

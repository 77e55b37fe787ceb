"""Networks of programs in a user's units: programs speak the network's own, densities of data the user's."""

import math

import gaussian_net
import pytest
import torch
from gaussian_net import FIELDS, X, Y
from torch.testing import assert_close

from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.priors.gaussian import exact_log_evidence, gaussian
from pyro_arbuf.programs.calibration import calibrate
from pyro_arbuf.programs.consistency import self_consistency
from pyro_arbuf.programs.evidence import compare_evidence, log_evidence
from pyro_arbuf.programs.evidence_error import measure_evidence_error
from pyro_arbuf.programs.refine import refine

R, LOC, SCALE = 5, 20.0, 1000.0
JACOBIAN = len(Y) * math.log(SCALE)
OWN = LOC + SCALE * Y
EXACT = {"rtol": 1e-10, "atol": 1e-10}
pytestmark = pytest.mark.filterwarnings("ignore:.*rests on few", "ignore:k-hat", "ignore:the weights have")


@pytest.fixture
def nets(build_model) -> tuple[ArBufferModel, ArBufferModel]:
    net = gaussian_net.wide(build_model(**FIELDS))
    return net, net.in_units(y_loc=LOC, y_scale=SCALE)


def test_posterior_and_given_latents_are_untouched(nets) -> None:
    plain, units = (ArBufferPosterior(net.condition(X, y)) for net, y in zip(nets, (Y, OWN), strict=True))
    draws = plain.sample((4,))
    assert_close(units.log_prob(draws), plain.log_prob(draws), **EXACT)
    torch.manual_seed(1)
    expected = plain.sample((3,))
    torch.manual_seed(1)
    assert_close(units.sample((3,)), expected, **EXACT)
    sites = plain.sites(draws)
    assert_close(units.log_prob_sites(sites), plain.log_prob_sites(sites), **EXACT)
    likelihood = [ArBufferMarginals(net.condition(latents=sites), X) for net in nets]
    assert_close(likelihood[1].log_prob(OWN), likelihood[0].log_prob(Y) - JACOBIAN, **EXACT)


def test_evidence_of_refine_is_in_the_users_units(nets) -> None:
    plain, units = (refine(gaussian, n.condition(X, y), 300, 20, seed=1) for n, y in zip(nets, (Y, OWN), strict=True))
    assert units.log_evidence == pytest.approx(plain.log_evidence - JACOBIAN, abs=1e-9)
    assert units.log_evidence_standard_error == pytest.approx(plain.log_evidence_standard_error)
    assert units.k_hat == pytest.approx(plain.k_hat)
    assert_close(units.weights, plain.weights, **EXACT)
    assert_close(units.draws["mu"], plain.draws["mu"], **EXACT)


def test_self_consistency_is_a_density_in_the_users_units(nets) -> None:
    plain, units = (self_consistency(n, X, y, 6) for n, y in zip(nets, (Y, OWN), strict=True))
    assert_close(units.values, plain.values - JACOBIAN, **EXACT)


def test_comparison_by_networks_and_programs_is_in_the_users_units(nets) -> None:
    found = []
    for net, y in zip(nets, (Y, OWN.numpy()), strict=True):
        net.replace_measured(evidence_rmse=0.1)
        models, programs = {"network": net, "program": net}, {"program": gaussian}
        found.append(compare_evidence(models, X.numpy(), y, R, programs=programs, num_draws=300))
    plain, units = found
    for name in ("network", "program"):
        assert_close(units.evidence[name].value, plain.evidence[name].value - JACOBIAN, rtol=1e-9, atol=1e-9)
    assert units.difference == pytest.approx(plain.difference, abs=1e-9)
    assert units.error == pytest.approx(plain.error) and units.verdict == plain.verdict


def test_calibration_is_that_of_the_network_without_units(nets) -> None:
    plain, units = (calibrate(net, 20, 19, 3, seed=2) for net in nets)
    for name in ("ranks", "gain", "contraction", "marginal_gain"):
        assert_close(getattr(units, name), getattr(plain, name), rtol=0, atol=0)


def test_error_of_the_evidence_is_measured_in_the_programs_units_and_stored(nets) -> None:
    sizes = {"num_datasets": 5, "num_trials": 3, "num_orders": R, "exact": lambda x, y: exact_log_evidence(y)}
    plain, units = (measure_evidence_error(net, **sizes) for net in nets)
    assert_close(units.errors, plain.errors, rtol=0, atol=0)
    assert nets[1].config.evidence_rmse == plain.rmse and nets[1].config.user_y_scale == (SCALE,)
    assert nets[1].in_units().config == nets[0].config


def test_units_of_a_program_are_stated(nets) -> None:
    net = nets[0]
    for arguments in ({"y": OWN}, {"x": X}, {"x_range": (0, 1)}):
        with pytest.raises(ValueError, match="a network of a program takes stated factors only"):
            net.in_units(**arguments)
    assert log_evidence(net.in_units(x_scale=3.0), X, Y, R).value == log_evidence(net, X, Y, R).value  # x is 0


def test_warnings_of_a_program_name_stated_factors(build_model) -> None:
    net = build_model(**FIELDS, y_range=(-3.0, 3.0)).in_units(y_scale=SCALE)
    with pytest.warns(UserWarning, match=r"trained range \[-3000, 3000\].*net.in_units\(y_scale=...\)"):
        net.condition(X, 10 * SCALE * Y)

"""The verdict of a training run, as a function of what was measured."""

import gaussian_net
import pytest
import torch

from pyro_arbuf.priors.gaussian import exact_posterior
from pyro_arbuf.programs import calibration, reports
from pyro_arbuf.programs.calibration import Calibration
from pyro_arbuf.programs.ranks import LEVELS
from pyro_arbuf.programs.reports import rise_at_the_end, training_report, verdict
from pyro_arbuf.programs.sources import find_simulator

GOOD = "The posterior is calibrated and learned from the data."
NOT_LEARNED = "The posterior is no better than the prior"
D = 100


def measured(contraction=(0.3, 0.5), marginal=(1.2, 0.7), gain=2.0, p=0.4) -> Calibration:
    """A calibration of two latents."""
    ranks, coverage = torch.zeros(D, 2, dtype=torch.int64), torch.zeros(len(LEVELS), 2)
    p_values, gains = torch.tensor([p / 3, 0.9]), gain + torch.linspace(-1, 1, D)
    rest = (torch.tensor(contraction), torch.tensor(marginal), gains, torch.arange(D) % 100)
    return Calibration(["slope", "noise"], ranks, 99, p_values, LEVELS, coverage, *rest)


@pytest.mark.parametrize("rise", [None, -0.1, 0.005])
def test_calibrated_posterior_that_learned_is_approved(rise):
    assert verdict(measured(), rise, "more") == GOOD


def test_posterior_that_is_the_prior_is_not_approved():
    text = verdict(measured((1.0, 0.98), (0.0, 0.01), gain=0.02), None, "folder='here', resume=True")
    assert text.startswith(NOT_LEARNED) and text.endswith("folder='here', resume=True.")
    assert verdict(measured(gain=float("nan")), None, "more").startswith(NOT_LEARNED)


def test_latent_that_was_not_learned_is_named():
    text = verdict(measured((0.99, 0.5), (0.01, 0.7)), None, "more")
    assert text.startswith("The posterior of 'slope' (99% of the prior's sd) is hardly narrower than the prior: ")
    assert "'noise'" not in text


def test_latent_of_two_equal_modes_is_learned_though_as_wide_as_the_prior():
    assert verdict(measured((1.0, 0.5), (0.9, 0.7)), None, "more") == GOOD


def test_posterior_that_is_not_calibrated_or_still_improving_is_not_approved():
    assert "not calibrated: its ranks are not uniform (p = 0.001)" in verdict(measured(p=0.001), None, "more")
    assert verdict(measured(), 0.1, "more") == "The validation density was still improving. To train longer: more."


def test_rise_at_the_end_compares_the_last_third_with_the_best_before():
    history = [{"validation": score} for score in (-3.0, -1.0, -1.5, -1.2, -0.8, -0.9)]
    assert rise_at_the_end(history) == pytest.approx(0.2)
    assert rise_at_the_end(history[:4]) == pytest.approx(-0.2)
    assert rise_at_the_end(history[:2]) is None


class Exact:
    """The exact posterior of the conjugate Gaussian, given all trials or none of them."""

    learned = True

    def __init__(self, context, orders=None):
        self.context, y = context, context.observations[1].squeeze(-1)
        self.law = exact_posterior(y if self.learned else y[..., :0])

    def sample(self, shape):
        draws = self.law.sample(shape)
        return torch.stack([draws["tau"].log(), draws["mu"]], -1)

    def log_prob(self, u):
        return self.law.log_prob({"tau": u[..., 0].exp(), "mu": u[..., 1]}) + u[..., 0]


@pytest.fixture
def net(build_model, monkeypatch):
    """A network whose posterior is exact, of 8 trials; what it says of one latent alone is made up."""
    net = gaussian_net.wide(build_model(**gaussian_net.FIELDS | {"num_context": (0, 8)}))
    monkeypatch.setattr(calibration, "ArBufferPosterior", Exact)
    monkeypatch.setattr(
        calibration, "_marginal_log_prob", lambda context, u: 1.0 * Exact.learned * (u * 0 + context.num_context)
    )
    monkeypatch.setattr(Exact, "learned", True)
    return net


def test_exact_posterior_gets_a_good_verdict(net):
    text = training_report(net, -1.0, 3).splitlines()
    assert text[-1] == f"verdict: {GOOD}"
    (gain,) = [line for line in text if line.startswith("log density of the true latents above the prior's: ")]
    expected = calibration.calibrate(net, reports.REPORT_DATASETS).gain
    assert f"{expected.mean():.3f} +- {expected.std() / len(expected) ** 0.5:.3f} nats" in gain
    assert 0.5 < expected.mean() < 5


def test_prior_instead_of_the_posterior_is_calibrated_and_gets_a_verdict_that_says_so(net, monkeypatch):
    monkeypatch.setattr(Exact, "learned", False)
    checked = calibration.calibrate(net, reports.REPORT_DATASETS)
    assert checked.p_value > 0.01
    assert checked.gain.abs().max() < 1e-4
    assert ((checked.contraction - 1).abs() < 0.2).all()
    text = training_report(net, -1.0, 3, folder="here").splitlines()
    assert text[-1].startswith(f"verdict: {NOT_LEARNED}") and "folder='here', resume=True" in text[-1]


def test_untrained_network_is_not_approved(build_model):
    net = gaussian_net.wide(build_model(**gaussian_net.FIELDS | {"num_context": (0, 8)}))
    assert training_report(net, -1.0, 1).splitlines()[-1].startswith(f"verdict: {NOT_LEARNED}")


def test_failures_of_the_program_are_reported(net):
    history = [{"validation": score} for score in (-3.0, -2.0, -1.0)]
    net.simulator = find_simulator(net)
    assert "failed" not in training_report(net, -1.0, 3)
    net.simulator.__class__ = type("Failing", (type(net.simulator),), {"failure_share": 0.00125})
    text = training_report(net, -1.0, 3, history)
    assert "\nthe program failed in 0.125% of its data sets, which were drawn anew\n" in text
    assert text.startswith(
        "gaussian: 3 steps, validation density -1.000 nats per target, +1.000 in the last third of the run"
    )
    assert "The validation density was still improving." in text.splitlines()[-1]


def test_a_program_that_raises_while_it_is_checked_does_not_lose_the_network(net, monkeypatch):
    def fails(*_):
        raise RuntimeError("did not converge")

    net.simulator = find_simulator(net)
    monkeypatch.setattr(reports, "calibrate", fails)
    text = training_report(net, -1.0, 100, [{"validation": -1.0}], None)
    assert "calibration not available: did not converge" in text

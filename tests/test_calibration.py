"""Calibration of posteriors that are exact, or wrong on purpose: the conjugate Gaussian in place of a network's."""

import dataclasses
from types import SimpleNamespace

import gaussian_net
import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from gaussian_net import FIELDS
from latent_nets import LATENTS, P
from matplotlib.figure import Figure

from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.priors.gaussian import exact_posterior
from pyro_arbuf.programs import calibration
from pyro_arbuf.programs.calibration import calibrate
from pyro_arbuf.programs.ranks import LEVELS, central_coverage, rank_p_values
from pyro_arbuf.programs.simulator import Simulations

D, NUM_TRIALS = 400, 8


@pytest.fixture(scope="module")
def net(build_model):
    return gaussian_net.wide(build_model(**FIELDS))


class ExactPosterior:
    """Draws of the exact posterior of the conjugate Gaussian, moved and stretched about their mean."""

    stretch, shift = 1.0, 0.0

    def __init__(self, context, orders=None):
        self.context = context
        _, y, _ = context.observations
        self.law = exact_posterior(y.squeeze(-1))

    def sample(self, shape):
        draws = self.law.sample(shape)
        u = torch.stack([draws["tau"].log(), draws["mu"]], -1)
        return u.mean(0) + self.stretch * (u - u.mean(0)) + self.shift

    def log_prob(self, u):
        tau, mu = u[..., 0].exp(), u[..., 1]
        return self.law.log_prob({"tau": tau, "mu": mu}) + u[..., 0] if hasattr(self.law, "log_prob") else u.sum(-1)


def flat(values):
    """A constant log density of the prior."""
    return torch.zeros(len(next(iter(values.values()))))


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(calibration, "ArBufferPosterior", ExactPosterior)
    return ExactPosterior


def coverage_error(result):
    return (result.coverage - torch.tensor(result.levels)[:, None]).abs().max().item()


def test_exact_posterior_is_calibrated(net, exact):
    result = calibrate(net, D, num_trials=NUM_TRIALS)
    assert result.names == ["tau", "mu"] and result.ranks.shape == (D, 2) and result.num_draws == 99
    assert result.p_value > 0.01
    assert coverage_error(result) < 4 * 0.5 / D**0.5
    assert abs(result.ranks.double().mean() - 49.5) < 5 * 28.9 / (2 * D) ** 0.5


@pytest.mark.parametrize(("stretch", "shift"), [(0.5, 0.0), (2.0, 0.0), (1.0, 0.4)])
def test_wrong_posteriors_are_found(net, exact, monkeypatch, stretch, shift):
    monkeypatch.setattr(exact, "stretch", stretch)
    monkeypatch.setattr(exact, "shift", shift)
    result = calibrate(net, D, num_trials=NUM_TRIALS)
    assert result.p_value < 1e-6
    middle = result.coverage[LEVELS.index(0.5)]
    assert (middle < 0.4).all() if stretch < 1 else (middle > 0.6).all() if stretch > 1 else (middle < 0.5).all()


def test_ranks_count_the_draws_below_the_truth(net, monkeypatch):
    class Fixed:
        def __init__(self, context, orders=None):
            self.context, self.batch = context, context.batch_shape

        def sample(self, shape):
            ladder = torch.arange(shape[0], dtype=torch.float64) - 0.5
            return ladder[:, None, None].expand(*shape, *self.batch, 2)

        def log_prob(self, value):
            return torch.zeros(value.shape[:-1])

    def simulate(num_datasets, num_trials):
        latents = torch.tensor([[0.0, 3.0], [-1.0, 20.0]]).repeat(num_datasets // 2, 1)
        return Simulations(latents, torch.zeros(num_datasets, num_trials, 1), torch.zeros(num_datasets, num_trials, 1))

    monkeypatch.setattr(calibration, "ArBufferPosterior", Fixed)
    monkeypatch.setattr(
        calibration,
        "prior_simulator",
        lambda *args: SimpleNamespace(
            unseen=lambda _, n: lambda rows: simulate(rows.stop - rows.start, n), log_prior=flat
        ),
    )
    result = calibrate(net, 4, num_draws=19, num_trials=2)
    assert result.ranks.tolist() == [[1, 4], [0, 19]] * 2 and result.num_draws == 19


def test_draws_that_tie_with_the_truth_are_ranked_at_random(net):
    class Box(dist.TorchDistribution):
        """A law whose density is one number everywhere: all of its draws tie."""

        def __init__(self, context):
            super().__init__(context.observations[1].shape[:1], torch.Size([2]), validate_args=False)

        def sample(self, shape):
            return torch.randn(shape + self.batch_shape + self.event_shape)

        def log_prob(self, value):
            return torch.zeros(value.shape[:-1])

    found = calibrate(net, 200, num_trials=NUM_TRIALS, posterior=Box)
    assert len(found.density_ranks.unique()) > 50 and found.density_p_value > 1e-4
    assert torch.equal(found.density_ranks, calibrate(net, 200, num_trials=NUM_TRIALS, posterior=Box).density_ranks)


def test_gains_of_numbers_are_those_of_the_checked_network_alone(net, build_model):
    other = gaussian_net.wide(build_model(seed=1, **FIELDS))

    def law(context):
        x, y, _ = context.observations
        return ArBufferPosterior(other.condition(x, y.squeeze(-1)))

    assert calibrate(net, 4, num_trials=NUM_TRIALS, posterior=law).marginal_gain.isnan().all()
    assert calibrate(net, 4, num_trials=NUM_TRIALS).marginal_gain.isfinite().all()


def test_network_is_calibrated_against_its_program(net):
    result = calibrate(net, 30, num_draws=19, num_trials=2, num_orders=2)
    assert result.ranks.shape == (30, 2)
    assert result.ranks.min() >= 0 and result.ranks.max() <= 19
    assert result.coverage.shape == (len(LEVELS), 2) and (result.coverage.diff(dim=0) >= 0).all()


def test_calibration_is_a_function_of_its_seed(net):
    state = torch.get_rng_state()
    first, again, other = (calibrate(net, 5, 9, 2, seed=seed).ranks for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_vector_latents_have_a_name_per_number(build_model, monkeypatch):
    net = build_model(latents=LATENTS)

    def simulate(num_datasets, num_trials):
        return Simulations(torch.zeros(num_datasets, P), *(torch.zeros(num_datasets, num_trials, n) for n in (2, 1)))

    monkeypatch.setattr(
        calibration,
        "prior_simulator",
        lambda *args: SimpleNamespace(
            unseen=lambda _, n: lambda rows: simulate(rows.stop - rows.start, n), log_prior=flat
        ),
    )
    names = calibrate(net, 2, 9, 3).names
    assert names == ["rate", "shift[0]", "shift[1]", "share", "mix[0]", "mix[1]"]


@pytest.mark.parametrize("num_draws", [5, 19, 50, 99])
def test_uniform_ranks_cover_every_level_exactly_and_pass(num_draws):
    ranks = torch.arange(num_draws + 1).repeat(20)[:, None]
    torch.testing.assert_close(
        central_coverage(ranks, num_draws)[:, 0], torch.tensor(LEVELS).double(), rtol=0, atol=1e-6
    )
    assert rank_p_values(ranks, num_draws).item() > 0.999


def test_p_values_are_those_of_the_chi_squared_test():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    ranks = torch.randint(100, (300, 3), generator=generator)
    for got, column in zip(rank_p_values(ranks, 99), ranks.T, strict=True):
        counts = torch.bincount(column // 5, minlength=20).numpy()
        assert got.item() == pytest.approx(stats.chisquare(counts).pvalue)


def test_p_value_is_corrected_for_the_number_of_latents(net, exact):
    result = calibrate(net, 40, 19, 2)
    assert result.p_value == pytest.approx(min(1.0, 3 * min(result.density_p_value, result.p_values.min().item())))
    many = result._replace(p_values=torch.tensor([0.9, 0.8]))
    assert many.p_value == 1.0


def test_plot_has_a_panel_per_latent_and_one_of_coverage(net, exact):
    found = calibrate(net, 40, 19, 2)
    axes = found.plot()
    assert [ax.get_title().split(" ")[0] for ax in axes] == ["tau", "mu", "joint", "coverage"]
    bars = axes[0].patches[1].get_data()
    assert (bars.values * np.diff(bars.edges)).sum() == pytest.approx(40)
    assert len(axes[-1].lines) == 3
    figure = axes[0].figure
    figure.canvas.draw()
    plt.close(figure)
    own = Figure().subplots(1, 4)
    assert found.plot(own) is own and own[0].has_data()
    with pytest.raises(
        ValueError, match="axes must be 4, one for each latent, one of the joint density and one of coverage; got 2"
    ):
        found.plot(own[:2])


@pytest.mark.parametrize("value", [0, 2.0, True, "5"])
@pytest.mark.parametrize("name", ["num_datasets", "num_draws", "num_trials", "num_orders"])
def test_numbers_that_are_no_positive_integers_are_refused(net, name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1; got {value!r}"):
        calibrate(net, **{name: value})


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_seed_that_is_no_integer_is_refused(net, seed):
    with pytest.raises(ValueError, match=f"seed must be an integer of at least 0; got {seed!r}"):
        calibrate(net, seed=seed)


def test_network_without_a_known_program_is_refused(net, scalar_model):
    with pytest.raises(ValueError, match="net must have latents"):
        calibrate(scalar_model)
    unknown = type(net)(dataclasses.replace(net.config, prior=""))
    with pytest.raises(ValueError, match=r"program of this network is not known"):
        calibrate(unknown)

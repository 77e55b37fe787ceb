"""Tests of the two-moons program and of the exact density of its outcomes."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from samples import draw

from pyro_arbuf.priors.two_moons import TwoMoons, exact_posterior_log_prob, two_moons

X = torch.zeros(1, 1, dtype=torch.float64)
THETA = torch.tensor([0.3, -0.6], dtype=torch.float64)
SHIFT = torch.tensor([0.25 - 0.3 / math.sqrt(2), -0.9 / math.sqrt(2)], dtype=torch.float64)
STEP = 5e-4


def grid(first, second):
    """Midpoints of cells of size STEP x STEP over two intervals, `(n, m, 2)`."""
    axes = [low + STEP * (torch.arange(round((high - low) / STEP)) + 0.5).double() for low, high in (first, second)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def test_the_program_alone_draws_vectors():
    nodes = poutine.trace(two_moons).get_trace(X).nodes
    assert nodes["theta"]["value"].shape == nodes["y"]["value"].shape == (2,)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1, 1)])
def test_the_program_is_vectorised_over_data_sets(shape):
    with pyro.plate("datasets", 3, dim=-2):
        nodes = poutine.trace(two_moons).get_trace(torch.zeros(shape)).nodes
    assert nodes["theta"]["value"].shape == nodes["y"]["value"].shape == (3, 1, 2)
    assert len(nodes["y"]["value"].unique()) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_dtype_of_the_inputs(dtype):
    assert two_moons(X.to(dtype)).dtype == dtype


def test_the_prior_is_uniform_on_the_square():
    trace = poutine.trace(pyro.condition(two_moons, {"theta": THETA})).get_trace(X)
    site = trace.nodes["theta"]
    torch.testing.assert_close(site["fn"].log_prob(THETA), torch.tensor(-math.log(4)).double())
    assert site["fn"].base_dist.low.tolist() == [-1, -1] and site["fn"].base_dist.high.tolist() == [1, 1]


def test_density_at_a_point_known_by_hand():
    y = SHIFT + 0.11 * torch.tensor([0.6, 0.8], dtype=torch.float64)
    expected = -0.5 - math.log(0.01 * math.sqrt(2 * math.pi)) - math.log(math.pi * 0.11)
    torch.testing.assert_close(TwoMoons(THETA).log_prob(y), torch.tensor(expected).double())


def test_density_has_total_one_and_the_moments_of_its_definition():
    points = grid((-0.2, 0.2), (-0.2, 0.2))
    mass = TwoMoons(THETA).log_prob(SHIFT + points).exp() * STEP**2
    assert abs(mass.sum() - 1) < 1e-5
    assert mass[points[..., 0] < 0].sum() < 1e-15
    assert abs((mass * points[..., 0]).sum() - 0.1 * 2 / math.pi) < 1e-5
    assert abs((mass * points[..., 1]).sum()) < 1e-12
    assert abs((mass * points[..., 1].square()).sum() - 0.0101 / 2) < 1e-5


def test_draws_have_the_moments_of_the_definition():
    points = TwoMoons(THETA).sample((20_000,)) - SHIFT
    features = torch.stack([points[:, 0], points[:, 1], points[:, 1] ** 2, points.norm(dim=-1), points.prod(-1)], -1)
    expected = torch.tensor([0.2 / math.pi, 0.0, 0.0101 / 2, 0.1, 0.0], dtype=torch.float64)
    assert ((features.mean(0) - expected).abs() < 5 * features.std(0) / 20_000**0.5).all()
    assert abs(points.norm(dim=-1).std() - 0.01) < 5 * 0.01 / 40_000**0.5


def test_negative_radii_have_their_density():
    y = SHIFT - torch.tensor([0.003, 0.004], dtype=torch.float64)
    expected = -0.5 * 10.5**2 - math.log(0.01 * math.sqrt(2 * math.pi)) - math.log(math.pi * 0.005)
    torch.testing.assert_close(TwoMoons(THETA).log_prob(y), torch.tensor(expected).double())


def test_density_is_differentiable():
    y = SHIFT + torch.tensor([0.05, -0.07], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda theta: TwoMoons(theta).log_prob(y), THETA.clone().requires_grad_())


def test_the_posterior_has_two_equal_moons():
    theta = grid((-0.4, -0.38), (0.1, 0.12))
    mirror = -theta.flip(-1)
    y = torch.tensor([0.1, -0.2], dtype=torch.float64)
    torch.testing.assert_close(exact_posterior_log_prob(theta, y), exact_posterior_log_prob(mirror, y))


def test_the_evidence_is_one_half_where_the_square_cuts_nothing_off():
    along, across = grid((0.2, 0.4), (-0.2, 0.2)).unbind(-1)
    theta = torch.stack([along - across, along + across], -1) / math.sqrt(2)
    one_moon = exact_posterior_log_prob(theta, torch.zeros(2)).exp().sum() * STEP**2
    assert abs(2 * one_moon / 4 - 0.5) < 1e-5


def test_the_posterior_is_prior_times_likelihood():
    theta, y = draw(3, 2, seed=1).tanh(), draw(2, seed=2)
    joints = [poutine.trace(pyro.condition(two_moons, {"theta": t, "y": y})).get_trace(X).log_prob_sum() for t in theta]
    torch.testing.assert_close(exact_posterior_log_prob(theta, y) - math.log(4), torch.stack(joints))


def test_the_posterior_ends_at_the_square():
    theta = torch.tensor([[0.99, 0.5], [1.01, 0.5], [0.5, -1.01]])
    assert exact_posterior_log_prob(theta, torch.zeros(2)).isfinite().tolist() == [True, False, False]


@pytest.mark.parametrize("validate", [True, False])
def test_expanding_changes_the_batch_shape_alone(validate):
    law = TwoMoons(draw(3, 1, 2), validate_args=validate)
    larger = law.expand([3, 4])
    y = draw(3, 1, 2, seed=1)
    assert type(larger) is TwoMoons and larger._validate_args is validate
    assert larger.batch_shape == (3, 4) and larger.sample((5,)).shape == (5, 3, 4, 2)
    assert torch.equal(larger.log_prob(y), law.log_prob(y).expand(3, 4))


@pytest.mark.parametrize("shape", [(), (3,), (2, 1)])
def test_theta_of_another_size_is_an_error(shape):
    with pytest.raises(ValueError, match=r"theta must have shape \(\*batch, 2\)"):
        TwoMoons(torch.zeros(shape))


def test_missing_outcomes_are_errors():
    with pytest.raises(ValueError, match="support"):
        TwoMoons(THETA, validate_args=True).log_prob(torch.tensor([math.nan, 0.0]))


def test_mcmc_stays_on_the_moons():
    y = torch.zeros(2, dtype=torch.float64)
    mcmc = MCMC(
        NUTS(pyro.condition(two_moons, {"y": y}), max_tree_depth=5),
        num_samples=30,
        warmup_steps=60,
        initial_params={"theta": torch.tensor([0.2, 0.3], dtype=torch.float64)},
        disable_progbar=True,
    )
    mcmc.run(X)
    theta = mcmc.get_samples()["theta"]
    along, across = theta.sum(-1).abs() / math.sqrt(2), (theta[:, 1] - theta[:, 0]) / math.sqrt(2)
    radius = torch.stack([along - 0.25, across], -1).norm(dim=-1)
    assert (along > 0.25).all() and (abs(radius - 0.1) < 0.06).all() and theta.std(0).min() > 0


def test_an_autoguide_learns():
    pyro.clear_param_store()
    model = pyro.condition(two_moons, {"y": torch.zeros(2, dtype=torch.float64)})
    guide = AutoNormal(model, init_scale=0.05)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(num_particles=10))
    losses = [svi.step(X) for _ in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])

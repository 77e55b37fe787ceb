"""Tests of the predictive of one target."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.testing import assert_close

from pyro_arbuf.network.discrete import CategoricalPredictive
from pyro_arbuf.network.heads import GaussianMixtureHead
from pyro_arbuf.network.outcomes import MIN_SD
from pyro_arbuf.network.predictives import GaussianMixture, LatentsAmongOutcomes

EXACT = {"rtol": 1e-10, "atol": 1e-10}
BATCH, C = (2, 6, 3), 5


def _parameters(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits, means, scales = torch.randn(3, *shape, dtype=torch.float64)
    return torch.log_softmax(logits, -1), 2 * means, (0.5 * scales).exp()


@pytest.fixture
def mixture() -> GaussianMixture:
    return GaussianMixture(*_parameters(*BATCH, C))


def test_log_prob_and_cdf_equal_those_of_torch():
    logits, means, sds = _parameters(*BATCH, C)
    mixture = GaussianMixture(logits, means, sds)
    expected = MixtureSameFamily(Categorical(logits=logits), Normal(means, sds))
    y = 3 * torch.randn(4, *BATCH, dtype=torch.float64)
    assert_close(mixture.log_prob(y), expected.log_prob(y), **EXACT)
    assert_close(mixture.cdf(y), expected.cdf(y), **EXACT)
    assert_close(mixture.mean, expected.mean, **EXACT)
    assert_close(mixture.variance, expected.variance, **EXACT)


def test_distribution_functions_are_at_most_1():
    weights = torch.log_softmax(torch.randn(500, 20), -1)
    mixture = GaussianMixture(weights, torch.randn(500, 20), torch.ones(500, 20))
    assert (weights.exp().sum(-1) > 1).any() and (mixture.cdf(torch.full((500,), 1e3)) <= 1).all()
    categories = CategoricalPredictive(weights)
    assert (categories.cdf(torch.full((500,), 19.0)) <= 1).all()


def test_log_prob_far_in_the_tail_is_finite(mixture):
    y = torch.full(BATCH, 1e4, dtype=torch.float64)
    value = mixture.log_prob(y.requires_grad_())
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(y.grad).all() and (value < -1e3).all()


def test_icdf_inverts_cdf(mixture):
    p = torch.rand(4, *BATCH, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    assert_close(mixture.cdf(mixture.icdf(p)), p, **EXACT)
    y = mixture.sample(torch.Size([4]))
    assert_close(mixture.icdf(mixture.cdf(y)), y, rtol=1e-7, atol=1e-7)


def test_quantiles_have_the_derivatives_of_the_inverse_function():
    logits, means, sds = (part.requires_grad_() for part in _parameters(*BATCH, C))
    p = torch.rand(*BATCH, dtype=torch.float64).clamp(0.02, 0.98).requires_grad_()

    def quantile(logits, means, sds, p):
        return GaussianMixture(logits, means, sds).icdf(p)

    assert torch.autograd.gradcheck(quantile, (logits, means, sds, p), atol=1e-4, rtol=1e-3)
    assert torch.autograd.gradgradcheck(quantile, (logits, means, sds, p), atol=1e-4, rtol=1e-3)
    with torch.no_grad():
        plain = quantile(logits, means, sds, p)
    assert torch.equal(plain, quantile(logits, means, sds, p)) and not plain.requires_grad


def test_a_quantile_between_modes_far_apart_is_a_number():
    means = torch.tensor([-50.0, 50.0], requires_grad=True)
    median = GaussianMixture(torch.full((2,), 0.5).log(), means, torch.full((2,), 0.1)).icdf(torch.tensor(0.5))
    assert median.isfinite() and torch.autograd.grad(median, means)[0].isfinite().all()


def test_icdf_takes_a_scalar(mixture):
    median = mixture.icdf(torch.tensor(0.5))
    assert median.shape == BATCH
    assert_close(mixture.cdf(median), torch.full(BATCH, 0.5, dtype=torch.float64), **EXACT)


def test_affine_is_the_law_of_the_transformed_outcome(mixture):
    loc, scale = torch.randn(3, dtype=torch.float64), torch.rand(2, 1, 3, dtype=torch.float64) + 0.5
    y = torch.randn(BATCH, dtype=torch.float64)
    changed = mixture.affine(loc, scale)
    assert_close(changed.log_prob(loc + scale * y), mixture.log_prob(y) - scale.log(), **EXACT)
    assert_close(changed.cdf(loc + scale * y), mixture.cdf(y), **EXACT)
    assert_close(changed.mean, loc + scale * mixture.mean, **EXACT)


PREDICTIVES = {
    "mixture": lambda: GaussianMixture(*_parameters(*BATCH, C)),
    "latents_among_outcomes": lambda: LatentsAmongOutcomes(
        torch.arange(BATCH[1])[:, None].expand(*BATCH[:2], 1) % 2 == 0,
        GaussianMixture(*_parameters(*BATCH[:2], 1, C)),
        GaussianMixture(*_parameters(*BATCH, 1)),
    ),
}


@pytest.mark.parametrize("kind", PREDICTIVES)
def test_predictive_keeps_its_contract(kind):
    predictive = PREDICTIVES[kind]()
    uniform, normal, y = torch.rand(3, *BATCH, dtype=torch.float64).clamp(1e-3, 1 - 1e-3)
    y = (4 * y - 2).requires_grad_()
    assert predictive.batch_shape == BATCH and predictive.num_components == C
    density, below = predictive.log_prob(y), predictive.cdf(y)
    (slope,) = torch.autograd.grad(below.sum(), y)
    scored = density != 0  # not the dimensions that a latent does not have
    assert_close(slope[scored], density.exp().detach()[scored], **EXACT)
    assert (slope[~scored] == 0).all() and (below[~scored] == 0).all()
    assert_close(predictive.cdf(predictive.icdf(uniform)), torch.where(scored, uniform, 0.0), **EXACT)
    drawn = predictive.draw(uniform, normal)
    assert torch.equal(predictive.implicit_draw(uniform, normal), drawn) and (drawn[~scored] == 0).all()
    for stacked in (predictive.expand((5, *BATCH)), predictive.map(lambda part: part.expand(5, *part.shape))):
        assert stacked.batch_shape == (5, *BATCH)
        assert torch.equal(stacked.log_prob(y), density.expand(5, *BATCH))
    changed = predictive.affine(torch.ones(BATCH[-1], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64))
    assert_close(changed.cdf(1 + 2 * y), below, **EXACT)
    for moment in (predictive.mean, predictive.variance):
        assert moment.shape == BATCH and (moment[~scored] == 0).all()


def test_latents_among_outcomes_have_the_densities_of_their_own_heads():
    both, y = PREDICTIVES["latents_among_outcomes"](), torch.randn(BATCH, dtype=torch.float64)
    density = both.log_prob(y)
    assert_close(density[:, ::2, :1], both.latent.log_prob(y[..., :1])[:, ::2], **EXACT)
    assert (density[:, ::2, 1:] == 0).all()
    assert_close(density[:, 1::2], both.outcome.log_prob(y)[:, 1::2], **EXACT)


def test_map_rearranges_the_batch(mixture):
    y = torch.randn(BATCH, dtype=torch.float64)
    turned = mixture.map(lambda part: part.transpose(0, 1))
    assert torch.equal(turned.log_prob(y.transpose(0, 1)), mixture.log_prob(y).transpose(0, 1))


def test_one_component_is_a_gaussian():
    logits, means, sds = _parameters(*BATCH, 1)
    mixture, normal = GaussianMixture(logits, means, sds), Normal(means[..., 0], sds[..., 0])
    y, p = torch.randn(BATCH, dtype=torch.float64), torch.rand(BATCH, dtype=torch.float64)
    assert_close(mixture.log_prob(y), normal.log_prob(y), **EXACT)
    assert_close(mixture.icdf(p), normal.icdf(p), **EXACT)
    noise = torch.randn(BATCH, dtype=torch.float64)
    assert_close(mixture.draw(p, noise), means[..., 0] + sds[..., 0] * noise, **EXACT)


def test_density_mass_mean_and_variance_by_quadrature():
    mixture = GaussianMixture(*_parameters(7, C))
    y = torch.linspace(-60, 60, 40001, dtype=torch.float64)[:, None]
    density = mixture.log_prob(y).exp()
    moments = [torch.trapezoid(density * y**power, y, dim=0) for power in range(3)]
    assert_close(moments[0], torch.ones(7, dtype=torch.float64), **EXACT)
    assert_close(mixture.mean, moments[1], rtol=1e-8, atol=1e-8)
    assert_close(mixture.variance, moments[2] - moments[1] ** 2, rtol=1e-8, atol=1e-8)


def test_density_is_the_derivative_of_the_cdf(mixture):
    y = torch.randn(BATCH, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mixture.cdf(y).sum(), y)
    assert_close(slope, mixture.log_prob(y).exp().detach(), **EXACT)


@pytest.mark.parametrize("num_components", [1, C])
def test_draw_has_the_law_of_the_density(num_components):
    mixture = GaussianMixture(*_parameters(3, num_components))
    uniform, normal = torch.rand(4000, 3, dtype=torch.float64), torch.randn(4000, 3, dtype=torch.float64)
    probability = mixture.cdf(mixture.expand((4000, 3)).draw(uniform, normal))
    assert all(kstest(probability[:, i].numpy(), "uniform").pvalue > 1e-3 for i in range(3))


def test_sample_has_the_law_of_the_density():
    mixture = GaussianMixture(*_parameters(3, C))
    y = mixture.sample(torch.Size([2000, 2]))
    assert y.shape == (2000, 2, 3)
    assert all(kstest(mixture.cdf(y)[..., i].flatten().numpy(), "uniform").pvalue > 1e-3 for i in range(3))


def test_draw_inverts_the_cumulative_weights():
    weights = torch.tensor([0.2, 0.0, 0.5, 0.3], dtype=torch.float64)
    means = torch.tensor([10.0, 20.0, 30.0, 40.0], dtype=torch.float64)
    mixture = GaussianMixture(weights.log(), means, torch.ones_like(means))
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    drawn = mixture.expand((6,)).draw(uniform, torch.zeros(6, dtype=torch.float64))
    assert drawn.tolist() == [10.0, 10.0, 30.0, 30.0, 40.0, 40.0]


@pytest.mark.parametrize("num_components", [1, C])
def test_implicit_draw_is_the_draw(num_components):
    mixture = GaussianMixture(*_parameters(*BATCH, num_components))
    uniform, normal = torch.rand(BATCH, dtype=torch.float64), torch.randn(BATCH, dtype=torch.float64)
    assert torch.equal(mixture.implicit_draw(uniform, normal), mixture.draw(uniform, normal))


def test_implicit_draw_moves_with_the_quantile():
    """By two ways: the implicit derivative - dF / p, and differences of the inverted distribution function."""
    parameters = [p.requires_grad_() for p in _parameters(*BATCH, C)]
    mixture = GaussianMixture(torch.log_softmax(parameters[0], -1), *parameters[1:])
    y = mixture.implicit_draw(torch.rand(BATCH, dtype=torch.float64), torch.randn(BATCH, dtype=torch.float64))
    gradients, fixed = torch.autograd.grad(y.sum(), parameters, retain_graph=True), y.detach()
    density = mixture.log_prob(fixed).detach().exp()
    implicit = torch.autograd.grad((-mixture.cdf(fixed) / density).sum(), parameters)
    directions, step = [torch.randn_like(p) for p in parameters], 1e-5

    def quantile(step: float) -> torch.Tensor:
        logits, means, sds = (p + step * d for p, d in zip(parameters, directions, strict=True))
        return GaussianMixture(torch.log_softmax(logits, -1), means, sds).icdf(mixture.cdf(fixed))

    slope = (quantile(step) - quantile(-step)) / (2 * step)  # (*BATCH,)
    along = sum((g * d).sum(-1) for g, d in zip(gradients, directions, strict=True))
    assert_close(along, slope, rtol=1e-5, atol=1e-6)
    for got, expected in zip(gradients, implicit, strict=True):
        assert_close(got, expected, **EXACT)


def test_expectation_has_the_gradient_of_implicit_draws_not_of_the_drawn_components():
    num_draws, tilt = 4000, torch.linspace(-1, 1, C, dtype=torch.float64)
    theta = torch.zeros(num_draws, 1, dtype=torch.float64, requires_grad=True)

    def mixture(theta: torch.Tensor) -> GaussianMixture:
        """Theta changes weights, means and standard deviations."""
        return GaussianMixture(
            torch.log_softmax(theta * tilt, -1), 2 * tilt + theta * tilt**2, 0.8 + 0.1 * theta * tilt
        )

    y = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    low, high = (torch.trapezoid(mixture(torch.full((1,), t)).log_prob(y).exp() * y.tanh(), y) for t in (-1e-4, 1e-4))
    noise = torch.rand(num_draws, dtype=torch.float64), torch.randn(num_draws, dtype=torch.float64)
    errors = []
    for draw in (GaussianMixture.implicit_draw, GaussianMixture.draw):
        (gradient,) = torch.autograd.grad(draw(mixture(theta), *noise).tanh().sum(), theta)
        errors.append((gradient.mean() - (high - low) / 2e-4).abs() / gradient.std() * num_draws**0.5)
    assert errors[0] < 5 < 20 < errors[1]


def test_expand_repeats_and_copies_nothing(mixture):
    larger = mixture.expand((4, *BATCH))
    assert larger.batch_shape == (4, *BATCH) and larger.event_shape == ()
    assert larger.means.data_ptr() == mixture.means.data_ptr()
    y = torch.randn(4, *BATCH, dtype=torch.float64)
    assert_close(larger.log_prob(y), mixture.log_prob(y), **EXACT)
    assert_close(larger.mean, mixture.mean.expand(4, *BATCH), **EXACT)


@pytest.mark.parametrize("num_components", [1, C], ids=["gaussian", "mixture"])
def test_head_gives_a_predictive_per_outcome_dimension(num_components):
    head = GaussianMixtureHead(7, 8, 3, num_components)
    predictive = head.double()(50 * torch.randn(2, 6, 7, dtype=torch.float64))
    assert predictive.batch_shape == (2, 6, 3)
    assert predictive.means.shape[-1] == num_components
    assert (predictive.sds >= MIN_SD).all()


def test_head_keeps_outcome_dimensions_apart():
    head = GaussianMixtureHead(7, 8, 3, C).double()
    with torch.no_grad():
        head.out.bias.view(3, 3, C)[1, 2] += 100.0
    assert (head(torch.randn(6, 7, dtype=torch.float64)).mean > 50).tolist() == [[False, False, True]] * 6


def test_head_computes_in_at_least_float32():
    head = GaussianMixtureHead(7, 8, 3, C).to(torch.bfloat16)
    assert head(torch.randn(6, 7, dtype=torch.bfloat16)).sds.dtype == torch.float32


def test_head_and_embedding_stay_in_float32_under_autocast(scalar_model):
    net = copy.deepcopy(scalar_model).float()
    x, y = torch.randn(2, 5, 2), torch.randn(2, 5, 1)
    expected = net.embedder.context(net.embedder.inputs(x), y)
    features = torch.randn(2, 3, expected.shape[-1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.embedder.context(net.embedder.inputs(x), y), expected)
        assert net.head(features.bfloat16()).means.dtype == torch.float32
        assert torch.equal(net.head(features).means, net.head(features).means.float())

"""ar1 and rescorla-wagner: densities against brute force, draws against densities, grids against other integrals."""

import itertools
import math
from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf.priors import ar1, rescorla_wagner
from pyro_arbuf.priors.ar1 import AR1
from pyro_arbuf.priors.rescorla_wagner import HIGHEST, LOWEST, RescorlaWagner, draw_probabilities


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def gaussian(phi: float, sigma: float, number: int) -> dist.MultivariateNormal:
    steps = torch.arange(number)
    covariance = sigma**2 / (1 - phi**2) * torch.tensor(phi) ** (steps[:, None] - steps).abs()
    return dist.MultivariateNormal(torch.zeros(number), covariance)


@pytest.mark.parametrize("phi", [-0.97, -0.4, 0.0, 0.6, 0.99])
@pytest.mark.parametrize("number", [1, 2, 9])
def test_density_of_a_series_is_that_of_its_covariance(phi: float, number: int) -> None:
    y = torch.randn(4, number)
    law = AR1(torch.tensor(phi), torch.tensor(1.3), number)
    assert_close(law.log_prob(y), gaussian(phi, 1.3, number).log_prob(y))


@pytest.mark.parametrize("phi", [-0.9, 0.7])
def test_draws_of_a_series_have_its_covariance_across_blocks(phi: float) -> None:
    y = AR1(torch.tensor([phi]), torch.tensor([0.8]), 70).sample((40_000,)).squeeze(1)
    expected = gaussian(phi, 0.8, 70).covariance_matrix
    products = torch.einsum("si,sj->ij", y, y) / len(y)
    error = ((expected.diag()[:, None] * expected.diag() + expected**2) / len(y)).sqrt()
    assert ((products - expected).abs() < 5.5 * error).all()


def test_laws_expand_and_broadcast_values() -> None:
    phi, sigma, p = torch.rand(2, 1), torch.rand(2, 1) + 0.5, torch.rand(2, 1, 5, 2)
    for law in (AR1(phi, sigma, 5), RescorlaWagner(phi, sigma, p)):
        y = law.sample()
        wide = law.expand([3, 2, 1])
        assert type(wide) is type(law) and wide.sample((4,)).shape == (4, 3, 2, 1, *law.event_shape)
        assert_close(wide.log_prob(y), law.log_prob(y).expand(3, 2, 1))
        assert_close(law.log_prob(y[1, 0])[1, 0], law.log_prob(y)[1, 0])


def choices_by_hand(p: Tensor, y: Tensor, rate: float, temperature: float) -> float:
    """Log probability of choices and rewards, trial by trial in plain Python."""
    values, total = [0.5, 0.5], 0.0
    for (choice, reward), probabilities in zip(y.int().tolist(), p.tolist(), strict=True):
        one = 1 / (1 + math.exp(-temperature * (values[1] - values[0])))
        total += math.log(one if choice else 1 - one)
        total += math.log(probabilities[choice] if reward else 1 - probabilities[choice])
        values[choice] += rate * (reward - values[choice])
    return total


def all_outcomes(number: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=2 * number))).view(-1, number, 2)


def test_density_of_a_learner_is_the_product_over_trials_and_sums_to_one() -> None:
    p, y = draw_probabilities(3)[:, 1:], all_outcomes(3)
    found = RescorlaWagner(torch.tensor(0.3), torch.tensor(2.5), p).log_prob(y)
    assert_close(found, torch.tensor([choices_by_hand(p, each, 0.3, 2.5) for each in y]))
    assert_close(found.exp().sum(), torch.tensor(1.0))


def test_draws_of_a_learner_have_its_probabilities() -> None:
    p, y = draw_probabilities(3)[:, 1:], all_outcomes(3)
    law = RescorlaWagner(torch.tensor(0.6), torch.tensor(4.0), p)
    codes = (law.sample((60_000,)).flatten(1) @ (2.0 ** torch.arange(5, -1, -1))).long()
    share, expected = torch.bincount(codes, minlength=64) / len(codes), law.log_prob(y).exp()
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / len(codes)).sqrt() + 1e-12).all()


def test_probabilities_of_reward_stay_in_range_and_half_of_them_drift() -> None:
    x = torch.stack([draw_probabilities(50) for _ in range(400)])
    assert (x[..., 0] == torch.arange(50.0)).all()
    assert x[..., 1:].min() >= LOWEST and x[..., 1:].max() <= HIGHEST
    drifts = (x[:, :, 1:].std(1) > 1e-9).all(-1)
    assert 150 < drifts.sum() < 250
    steps = x[drifts, 1:, 1:].diff(dim=1).abs()
    assert 0.035 < (math.pi / 2) ** 0.5 * steps.mean() < 0.06


def data_of(name: str, number: int) -> tuple[Tensor, Tensor]:
    x = draw_probabilities(max(number, 1))
    y = ar1.ar1(x) if name == "ar1" else rescorla_wagner.rescorla_wagner(x)
    return x[:number], y[:number]


def grid_of(name: str, x: Tensor, y: Tensor, **options) -> rescorla_wagner.GridPosterior:
    return ar1.exact_posterior(y, **options) if name == "ar1" else rescorla_wagner.exact_posterior(x, y, **options)


def density_of(name: str, x: Tensor, y: Tensor, latents: dict[str, Tensor]) -> Tensor:
    return ar1.log_likelihood(y, latents) if name == "ar1" else rescorla_wagner.log_likelihood(x, y, latents)


def prior_draws(name: str, number: int) -> dict[str, Tensor]:
    if name == "ar1":
        return {"phi": 2 * torch.rand(number) - 1, "sigma": dist.LogNormal(0.0, 0.5).sample((number,))}
    return {"learning_rate": torch.rand(number), "inverse_temperature": dist.LogNormal(1.0, 0.5).sample((number,))}


NAMES = pytest.mark.parametrize("name", ["ar1", "rescorla-wagner"])


@NAMES
def test_grid_posterior_integrates_to_one_and_that_of_no_data_is_the_prior(name: str) -> None:
    x, y = data_of(name, 20)
    grid = grid_of(name, x, y)
    assert_close(grid.log_mass.exp().sum(), torch.tensor(1.0))
    assert grid.error < 1e-6
    prior = grid_of(name, x[:0], y[:0])
    assert prior.log_evidence.abs() < 1e-9
    draws, reference = prior.sample(20_000), prior_draws(name, 20_000)
    for site, value in draws.items():
        error = (value.var() / 20_000 + reference[site].var() / 20_000).sqrt()
        assert (value.mean() - reference[site].mean()).abs() < 5 * error


@NAMES
def test_evidence_and_posterior_mean_are_those_of_importance_sampling(name: str) -> None:
    x, y = data_of(name, 12)
    grid, latents = grid_of(name, x, y), prior_draws(name, 100_000)
    log_weights = density_of(name, x, y, latents)
    weights = (log_weights - grid.log_evidence).exp()
    assert (weights.mean() - 1).abs() < 5 * weights.std() / len(weights) ** 0.5
    draws = grid.sample(100_000)
    for site, value in latents.items():
        mean = (weights * value).sum() / weights.sum()
        error = (((weights * (value - mean)) ** 2).sum().sqrt() / weights.sum()).hypot(draws[site].std() / 100_000**0.5)
        assert (draws[site].mean() - mean).abs() < 5 * error


@NAMES
@pytest.mark.parametrize("number", [1, 200])
def test_grid_is_fine_enough(name: str, number: int) -> None:
    x, y = data_of(name, number)
    sparse, dense = grid_of(name, x, y, num_points=(129, 65)), grid_of(name, x, y, num_points=(193, 97))
    assert dense.error < 1e-6 and (sparse.log_evidence - dense.log_evidence).abs() < 1e-6


@pytest.mark.parametrize("scale", [1e-4, 60.0, 1e3])
def test_posterior_far_from_the_prior_is_found(scale: float) -> None:
    """It was cut where the first box ended, and its evidence was off by thousands of nats."""
    y = scale * torch.randn(50).double()
    grid, sd = ar1.exact_posterior(y), ar1.LOG_SIGMA_SD
    z, log_sigma = torch.linspace(-6, 6, 401).double(), math.log(scale) + torch.linspace(-2, 2, 801).double()
    phi = 2 * torch.special.ndtr(z) - 1
    latents = {"phi": phi.repeat_interleave(801), "sigma": log_sigma.exp().repeat(401)}
    density = ar1.log_likelihood(y, latents).view(401, 801)
    density = density + dist.Normal(0.0, 1.0).log_prob(z)[:, None] + dist.Normal(0.0, sd).log_prob(log_sigma)
    expected = density.logsumexp((0, 1)) + torch.log((z[1] - z[0]) * (log_sigma[1] - log_sigma[0]))
    assert_close(grid.log_evidence, expected, rtol=0, atol=1e-6)
    assert grid.error < 1e-6


def test_chain_of_evidences_of_a_learner_sums_to_one() -> None:
    x = draw_probabilities(2)
    total = sum(float(rescorla_wagner.exact_posterior(x, y, (65, 33)).log_evidence.exp()) for y in all_outcomes(2))
    assert total == pytest.approx(1.0, abs=1e-9)


def test_wrong_data_are_explained() -> None:
    with pytest.raises(
        ValueError, match=r"y must have shape \(n,\), one series; got \(3, 1\); use y\[i\], or y\[:, 0\]"
    ):
        ar1.exact_posterior(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="y must be finite; got NaN or infinite numbers; a series cannot leave trials"):
        ar1.exact_posterior(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="num_points must be two odd numbers of at least 9"):
        ar1.exact_posterior(torch.zeros(3), (8, 9))
    x, y = draw_probabilities(3), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"x must have shape \(n, 3\)"):
        rescorla_wagner.exact_posterior(x[:, 1:], y)
    with pytest.raises(ValueError, match=r"y must have shape \(3, 2\), a choice and a reward per row of x; got \(3,\)"):
        rescorla_wagner.exact_posterior(x, y[:, 0])
    with pytest.raises(ValueError, match=r"y must be 0 or 1; got 0\.5"):
        rescorla_wagner.exact_posterior(x, y + 0.5)

"""Choices against arithmetic of high precision; the grid against quadrature, importance sampling and NUTS."""

import itertools
import math
from collections.abc import Iterator

import mpmath
import numpy as np
import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS
from scipy import stats
from scipy.special import expit
from torch import Tensor

from pyro_arbuf.priors.psychometric import (
    LATENTS,
    GridPosterior,
    _axes,
    _from_normal,
    _log_joint,
    draw_intensities,
    exact_posterior,
    log_likelihood,
    log_odds,
    psychometric,
)

EXTREMES = list(itertools.product((-1e4, -30.0, -0.1, 0.0, 0.3, 25.0, 1e4), (0.1, 3.0, 100.0), (1e-30, 1e-3, 0.7)))


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def extremes(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Data sets of one trial: intensities `(B, 1, 1)`, thresholds 0, slopes and lapses `(B, 1)`."""
    x, slope, lapse = torch.tensor(EXTREMES, dtype=dtype).T.unsqueeze(-1)
    return x.unsqueeze(-1), torch.zeros_like(x), slope, lapse


def log_probs(*arguments: Tensor) -> Tensor:
    """Log probabilities of choices 0 and 1, `(2, B)`, as the program's law has them."""
    law = torch.distributions.Bernoulli(logits=log_odds(*arguments).squeeze(-1))
    return torch.stack([law.log_prob(torch.zeros_like(law.logits)), law.log_prob(torch.ones_like(law.logits))])


def prior_draws(num_draws: int) -> dict[str, Tensor]:
    with pyro.plate("datasets", num_draws, dim=-2):
        nodes = pyro.poutine.trace(psychometric).get_trace(torch.zeros(1, 1)).nodes
    return {name: nodes[name]["value"].squeeze(-1) for name in LATENTS}


def in_parts(latents: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    parts = zip(*(latents[name].split(size) for name in LATENTS), strict=True)
    return [dict(zip(LATENTS, part, strict=True)) for part in parts]


def data(num_trials: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    pyro.set_rng_seed(seed)
    x = draw_intensities(num_trials)
    return x, psychometric(x)


def grid_moments(posterior: GridPosterior) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the latents, `(3,)` each, by the masses of the cells alone."""
    first, second, third = posterior.axes
    latents = _from_normal([first[:, None, None], second[:, None], third]).values()
    mass = posterior.log_mass.exp()
    means = torch.stack([(mass * value).sum() for value in latents])
    squares = torch.stack([(mass * (value - mean) ** 2).sum() for value, mean in zip(latents, means, strict=True)])
    return means, squares.sqrt()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_the_probabilities_of_both_choices_sum_to_one(dtype: torch.dtype, tolerance: float) -> None:
    sums = log_probs(*extremes(dtype)).exp().sum(0)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 2e-14)])
def test_log_probabilities_are_right_where_the_plain_formula_cancels(dtype: torch.dtype, tolerance: float) -> None:
    expected = []
    with mpmath.workdps(60):
        for x, slope, lapse in EXTREMES:
            seen = 1 / (1 + mpmath.exp(-mpmath.mpf(slope) * x))
            p = mpmath.mpf(0.5) + (mpmath.mpf(0.5) - mpmath.mpf(lapse)) * seen
            expected.append([float(mpmath.log(1 - p)), float(mpmath.log(p))])
    expected = torch.tensor(expected).T
    torch.testing.assert_close(log_probs(*extremes(dtype)).double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_extremes(dtype: torch.dtype) -> None:
    arguments = [argument.requires_grad_() for argument in extremes(dtype)]
    for log_prob in log_probs(*arguments):
        gradients = torch.autograd.grad(log_prob.sum(), arguments, retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_gradients_equal_finite_differences() -> None:
    x, y = data(6)
    values = {"threshold": [-0.4, 0.2], "slope": [0.8, 5.0], "lapse": [0.01, 0.3]}
    latents = [torch.tensor(values[name], requires_grad=True) for name in LATENTS]
    assert torch.autograd.gradcheck(lambda *v: log_likelihood(x, y, dict(zip(LATENTS, v, strict=True))), latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_program_alone_draws_scalars_and_choices(dtype: torch.dtype) -> None:
    nodes = pyro.poutine.trace(psychometric).get_trace(draw_intensities(7).to(dtype)).nodes
    assert [(name, nodes[name]["value"].shape) for name in nodes if name in (*LATENTS, "y")] == [
        *((name, ()) for name in LATENTS),
        ("y", (7,)),
    ]
    assert {nodes[name]["value"].dtype for name in (*LATENTS, "y")} == {dtype}
    assert set(nodes["y"]["value"].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("shape", [(7, 1), (4, 7, 1)])
def test_the_program_is_vectorised_over_data_sets(shape: tuple[int, ...]) -> None:
    with pyro.plate("datasets", 4, dim=-2):
        nodes = pyro.poutine.trace(psychometric).get_trace(torch.rand(shape)).nodes
    assert {nodes[name]["value"].shape for name in LATENTS} == {(4, 1)}
    assert nodes["y"]["value"].shape == (4, 7) and len(nodes["threshold"]["value"].unique()) == 4


def test_data_sets_at_once_have_the_density_of_single_ones() -> None:
    x = torch.stack([draw_intensities(7) for _ in range(3)])
    with pyro.plate("datasets", 3, dim=-2):
        drawn = pyro.poutine.trace(psychometric).get_trace(x)
        drawn.compute_log_prob()
    together = sum(drawn.nodes[name]["log_prob"].sum(-1) for name in (*LATENTS, "y"))
    for i in range(3):
        values = {name: drawn.nodes[name]["value"][i].squeeze() for name in (*LATENTS, "y")}
        alone = pyro.poutine.trace(pyro.condition(psychometric, values)).get_trace(x[i])
        torch.testing.assert_close(alone.log_prob_sum(), together[i])
        single = {name: values[name][None] for name in LATENTS}
        alone.compute_log_prob()
        torch.testing.assert_close(log_likelihood(x[i], values["y"], single)[0], alone.nodes["y"]["log_prob"].sum())


def test_likelihoods_at_once_equal_likelihoods_one_by_one() -> None:
    x, y = data(11)
    latents = prior_draws(5)
    single = [log_likelihood(x, y, {name: value[i : i + 1] for name, value in latents.items()}) for i in range(5)]
    torch.testing.assert_close(log_likelihood(x, y, latents), torch.cat(single))


def test_simulated_choices_have_the_probability_of_the_definition() -> None:
    given = {"threshold": torch.tensor(0.3), "slope": torch.tensor(2.0), "lapse": torch.tensor(0.06)}
    x = torch.tensor([[-3.0], [0.1], [0.8], [3.0]])
    with pyro.plate("datasets", 100_000, dim=-2):
        y = pyro.condition(psychometric, {name: value.expand(100_000, 1) for name, value in given.items()})(x)
    expected = 0.5 + (0.5 - 0.06) / (1 + (-2.0 * (x[:, 0] - 0.3)).exp())
    assert ((y.mean(0) - expected).abs() < 5 * (expected * (1 - expected) / 100_000).sqrt()).all()


def test_the_grids_coordinates_have_the_programs_prior() -> None:
    w = torch.randn(3, 50, requires_grad=True)
    latents = _from_normal(w)
    trace = pyro.poutine.trace(pyro.condition(psychometric, {k: v[:, None] for k, v in latents.items()}))
    with pyro.plate("datasets", 50, dim=-2):
        trace = trace.get_trace(torch.zeros(1, 1))
    trace.compute_log_prob()
    for i, name in enumerate(LATENTS):
        (jacobian,) = torch.autograd.grad(latents[name].sum(), w, retain_graph=True)
        density = trace.nodes[name]["log_prob"].squeeze(-1) + jacobian[i].log()
        torch.testing.assert_close(density, torch.distributions.Normal(0.0, 1.0).log_prob(w[i]))


def test_the_grids_own_likelihood_is_the_likelihood() -> None:
    x, y = data(20)
    axes = _axes(((-9.0, 9.0), (-6.0, 7.0), (-8.0, 8.0)), (9, 11, 13))
    nodes = torch.meshgrid(*axes, indexing="ij")
    latents = {name: value.flatten() for name, value in _from_normal(nodes).items()}
    expected = log_likelihood(x, y, latents).reshape(9, 11, 13)
    expected = expected + sum(torch.distributions.Normal(0.0, 1.0).log_prob(node) for node in nodes)
    torch.testing.assert_close(_log_joint(x, y, axes), expected, rtol=1e-12, atol=1e-12)


def test_without_trials_the_posterior_is_the_prior_and_the_evidence_one() -> None:
    posterior = exact_posterior(torch.zeros(0, 1), torch.zeros(0))
    assert abs(posterior.log_evidence) < 1e-9
    draws = posterior.sample(20_000)
    assert stats.kstest(draws["threshold"].numpy(), stats.norm.cdf).pvalue > 1e-3
    assert stats.kstest(draws["slope"].numpy(), stats.lognorm(0.5, scale=math.e).cdf).pvalue > 1e-3
    assert stats.kstest(draws["lapse"].numpy(), stats.beta(1, 19).cdf).pvalue > 1e-3


def test_evidences_of_all_data_sets_sum_to_one() -> None:
    x = torch.tensor([[-1.0], [0.2], [0.5], [2.5]])
    sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)))
    total = sum(exact_posterior(x, y, (129, 33, 33)).log_evidence.exp() for y in sets)
    assert abs(total - 1) < 1e-7


def test_the_evidence_equals_brute_force() -> None:
    x, y = torch.tensor([[-0.5], [0.4], [1.5]]), torch.tensor([0.0, 1.0, 1.0])
    edges = np.linspace(-9, 9, 41)  # Gauss-Legendre on pieces, for threshold and log slope
    node, weight = np.polynomial.legendre.leggauss(12)
    normal = ((edges[1:, None] + edges[:-1, None]) / 2 + np.diff(edges)[:, None] / 2 * node).ravel()
    mass = (np.diff(edges)[:, None] / 2 * weight).ravel() * stats.norm.pdf(normal)
    node, weight = np.polynomial.legendre.leggauss(60)
    lapse, lapse_mass = (1 + node) / 2, weight / 2 * stats.beta.pdf((1 + node) / 2, 1, 19)
    slope = np.exp(1 + 0.5 * normal)[:, None]
    seen = expit(slope * (x.numpy()[:, :, None] - normal))  # (n, slopes, thresholds)
    total = 0.0
    for value, lapse_weight in zip(lapse, lapse_mass, strict=True):
        p = 0.5 + (0.5 - value) * seen
        likelihood = np.where(y.numpy()[:, None, None] == 1, p, 1 - p).prod(0)
        total += lapse_weight * (mass @ likelihood @ mass)
    posterior = exact_posterior(x, y)
    assert posterior.log_evidence.item() == pytest.approx(math.log(total), abs=1e-7)


@pytest.mark.parametrize("slope, lapse, num_trials", [(1.0, 0.2, 100), (3.0, 0.02, 30), (30.0, 0.001, 100)])
def test_the_error_of_the_evidence_is_below_what_halving_the_grid_says(
    slope: float, lapse: float, num_trials: int
) -> None:
    x = draw_intensities(num_trials)
    y = pyro.condition(psychometric, {"slope": torch.tensor(slope), "lapse": torch.tensor(lapse)})(x)
    coarse, fine = exact_posterior(x, y, (65, 33, 33)), exact_posterior(x, y)
    assert (coarse.log_evidence - fine.log_evidence).abs() < coarse.error + 1e-12
    assert fine.error < 1e-4 and fine.error < 0.01 * coarse.error


@pytest.mark.parametrize("choice", [0.0, 1.0])
def test_the_box_finds_mass_far_from_the_prior(choice: float) -> None:
    posterior = exact_posterior(draw_intensities(400), torch.full((400,), choice), (97, 33, 33))
    inner = posterior.log_mass[1:-1, 1:-1, 1:-1].exp().sum()
    assert posterior.error < 1e-2 and abs(inner - 1) < 1e-6


def test_grid_agrees_with_importance_sampling_from_the_prior() -> None:
    x, y = data(25)
    posterior = exact_posterior(x, y)
    latents = prior_draws(400_000)
    likelihood = torch.cat([log_likelihood(x, y, latents) for latents in in_parts(latents, 50_000)]).exp()
    error = likelihood.std() / len(likelihood) ** 0.5
    assert (likelihood.mean() - posterior.log_evidence.exp()).abs() < 5 * error
    draws = posterior.sample(10_000)
    weight = likelihood / likelihood.sum()
    for name in LATENTS:
        for power in (1, 2):
            ours, theirs = draws[name] ** power, latents[name] ** power
            mean = (weight * theirs).sum()
            error = (weight.square() * (theirs - mean).square()).sum() + ours.var() / len(ours)
            assert (ours.mean() - mean).abs() < 5 * error.sqrt(), (name, power)


def test_draws_have_the_moments_of_the_masses_and_follow_the_seed() -> None:
    posterior = exact_posterior(*data(60))
    means, deviations = grid_moments(posterior)
    draws = [torch.stack(list(posterior.sample(50_000).values())) for _ in range(2) if pyro.set_rng_seed(3) is None]
    assert torch.equal(*draws) and draws[0].dtype == torch.float64
    assert ((draws[0].mean(1) - means).abs() < 5 * deviations / 50_000**0.5).all()
    torch.testing.assert_close(draws[0].std(1), deviations, rtol=0.03, atol=0)


@pytest.mark.slow
def test_nuts_agrees_with_the_grid() -> None:
    x, y = data(100)
    mcmc = MCMC(NUTS(pyro.condition(psychometric, {"y": y})), 1500, 300, disable_progbar=True)
    mcmc.run(x)
    draws, summary = mcmc.get_samples(), mcmc.diagnostics()
    means, deviations = grid_moments(exact_posterior(x, y))
    for name, mean, deviation in zip(LATENTS, means, deviations, strict=True):
        assert (draws[name].mean() - mean).abs() < 5 * deviation / summary[name]["n_eff"] ** 0.5
        torch.testing.assert_close(draws[name].std(), deviation, rtol=0.15, atol=0)


@pytest.mark.parametrize(
    "x, y, message",
    [
        (torch.zeros(3), torch.zeros(3), r"x must have shape \(n, 1\)"),
        (torch.zeros(2, 3, 1), torch.zeros(2, 3), r"x must have shape \(n, 1\)"),
        (torch.zeros(3, 1), torch.zeros(2), r"y must have shape \(3,\)"),
        (torch.zeros(3, 1), torch.tensor([0.0, 2.0, 1.0]), "y must be 0 or 1; got 2"),
        (torch.zeros(3, 1), torch.tensor([0.0, math.nan, 1.0]), "y must be 0 or 1; got nan"),
    ],
)
def test_other_data_are_errors(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exact_posterior(x, y)


@pytest.mark.parametrize("num_points", [(64, 65, 65), (65, 65, 7)])
def test_grids_that_cannot_be_halved_are_errors(num_points: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="num_points must be three odd numbers"):
        exact_posterior(torch.zeros(1, 1), torch.zeros(1), num_points)

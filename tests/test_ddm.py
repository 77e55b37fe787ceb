"""The density against the Navarro-Fuss series and closed-form moments; the sampler against the density."""

import math
from collections.abc import Iterator

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS
from scipy import stats
from torch import Tensor
from torch.distributions import LogNormal

from pyro_arbuf.priors.ddm import COHERENCES, DDM, ResponseTime, ddm, ddm_choice_rt, draw_coherence

THETAS = pytest.mark.parametrize("theta", [0.0, 0.02, 0.7, -2.0, 12.0, 50.0])
LATENTS = ("drift", "boundary", "ndt")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def navarro_fuss(rt: Tensor, drift: float, boundary: float, start: float, series: str) -> Tensor:
    """Density of hitting the lower bound at time rt from `start`, a fraction of the boundary (equations 3 to 6)."""
    time = (rt / boundary**2)[:, None]
    if series == "small":
        k = torch.arange(-30.0, 31.0)
        terms = (start + 2 * k) * (-((start + 2 * k) ** 2) / (2 * time)).exp()
        standard = terms.sum(-1) / (2 * math.pi * time[:, 0] ** 3).sqrt()
    else:
        k = torch.arange(1.0, 300.0)
        standard = math.pi * (k * (-((k * math.pi) ** 2) * time / 2).exp() * (k * math.pi * start).sin()).sum(-1)
    return standard * (-drift * boundary * start - drift**2 * rt / 2).exp() / boundary**2


def exit_times(num_points: int = 40001) -> Tensor:
    """Times for quadrature with boundary 2, where the passage time is tau; log-spaced, to beyond any mass."""
    return torch.logspace(-3.5, 2, num_points)


def integral(values: Tensor, times: Tensor) -> Tensor:
    """Integrals up to every time by the trapezoidal rule in log time, exact to 1e-10 for smooth integrands."""
    return torch.cumulative_trapezoid(values * times, times.log())


@pytest.mark.parametrize("series, low, high", [("small", 0.02, 1.5), ("large", 0.08, 6.0)])
def test_density_equals_the_navarro_fuss_series(series: str, low: float, high: float) -> None:
    drift, boundary, ndt = 1.3, 1.7, 0.25
    passage = boundary**2 * torch.linspace(low, high, 400)
    exact = DDM(drift, boundary, ndt)
    lower = navarro_fuss(passage, drift, boundary, 0.5, series)
    upper = navarro_fuss(passage, -drift, boundary, 0.5, series)
    torch.testing.assert_close(exact.log_prob(-ndt - passage), lower.log(), rtol=0, atol=1e-10)
    torch.testing.assert_close(exact.log_prob(ndt + passage), upper.log(), rtol=0, atol=1e-10)


@THETAS
def test_density_of_each_choice_integrates_to_its_probability(theta: float) -> None:
    times = exit_times()
    density = DDM(theta, 2.0, 0.0)
    for sign in (1.0, -1.0):
        mass = integral(density.log_prob(sign * times).exp(), times)[-1]
        assert mass.item() == pytest.approx(1 / (1 + math.exp(-sign * 2 * theta)), rel=1e-9)


@THETAS
def test_density_has_the_laplace_transform_of_the_exit_time(theta: float) -> None:
    times = exit_times()
    density = DDM(theta, 2.0, 0.0)
    both = density.log_prob(times).exp() + density.log_prob(-times).exp()
    for rate in (0.5, 3.0, 40.0):
        exact = math.cosh(theta) / math.cosh(math.sqrt(theta**2 + 2 * rate))
        assert integral(both * (-rate * times).exp(), times)[-1].item() == pytest.approx(exact, rel=1e-9)


def test_density_is_zero_up_to_the_non_decision_time_with_finite_gradients() -> None:
    parameters = [torch.tensor(value, requires_grad=True) for value in (2.0, 1.5, 0.3)]
    value = torch.tensor([0.1, -0.3, 0.3, 0.0, 0.3001, -5.0, 40.0], requires_grad=True)
    log_prob = DDM(*parameters).log_prob(value)
    assert (log_prob == -math.inf).tolist() == [True] * 4 + [False] * 3
    gradients = torch.autograd.grad(log_prob.sum(), [*parameters, value])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[-1] != 0).tolist() == [False] * 4 + [True] * 3


def test_gradients_equal_finite_differences_on_both_sides_of_the_switch() -> None:
    value = torch.tensor([0.45, -0.6, 0.9, -2.0])
    parameters = [torch.tensor(number, requires_grad=True) for number in (1.2, 1.6, 0.3)]
    assert torch.autograd.gradcheck(
        lambda drift, boundary, ndt, y: DDM(drift, boundary, ndt).log_prob(y), [*parameters, value.requires_grad_()]
    )


def test_float32_density_is_close_to_float64() -> None:
    passage = torch.logspace(-2, 1, 200)
    for drift in (-20.0, 0.0, 5.0):
        exact = DDM(drift, 1.5, 0.3).log_prob(0.3 + passage)
        single = [torch.tensor(value, dtype=torch.float32) for value in (drift, 1.5, 0.3)]
        single = DDM(*single).log_prob((0.3 + passage).float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@THETAS
def test_draws_follow_the_density(theta: float, dtype: torch.dtype) -> None:
    times = exit_times()
    num_draws, ndt = 200_000, 0.25
    draws = DDM(*torch.tensor([theta, 2.0, ndt], dtype=dtype)).sample((num_draws,))
    assert draws.dtype == dtype
    for sign in (1.0, -1.0):
        probability = 1 / (1 + math.exp(-sign * 2 * theta))
        rt = sign * draws[draws.sign() == sign].double()
        assert stats.binomtest(len(rt), num_draws, probability).pvalue > 1e-5
        if len(rt) > 100:
            cdf = integral(DDM(theta, 2.0, 0.0).log_prob(sign * times).exp(), times) / probability
            centred = (rt - ndt).clamp(min=1e-9).log()  # the clamp is for float32's rounding of ndt + passage
            grid, cdf = times[1:].log().numpy(), cdf.numpy()
            assert stats.kstest(centred.numpy(), lambda v, g=grid, c=cdf: np.interp(v, g, c)).pvalue > 1e-4


def test_draws_scale_with_the_boundary_and_broadcast_over_parameters() -> None:
    drift, boundary = torch.tensor([[0.5], [-4.0]]), torch.tensor([0.7, 1.5, 4.0])
    draws = DDM(drift, boundary, 0.4).sample((100_000,))
    rt = draws.abs() - 0.4
    exact = boundary / (2 * drift) * torch.tanh(drift * boundary / 2)
    assert draws.shape == (100_000, 2, 3)
    assert ((rt.mean(0) - exact).abs() < 5 * rt.std(0) / 100_000**0.5).all()


def test_expanded_distribution_has_the_same_density_and_no_copy() -> None:
    base = DDM(torch.tensor([[1.0], [2.0]]), 1.5, 0.2)
    expanded = base.expand([3, 2, 5])
    y = base.expand([2, 5]).sample()
    assert isinstance(expanded, DDM)
    assert expanded.sample().shape == (3, 2, 5)
    for name in LATENTS:
        parameter = getattr(expanded, name)
        assert parameter.shape == (3, 2, 5)
        assert parameter.untyped_storage().data_ptr() == getattr(base, name).untyped_storage().data_ptr()
    torch.testing.assert_close(expanded.log_prob(y), base.log_prob(y).expand(3, 2, 5))


@pytest.mark.parametrize("parameters", [(1.0, 0.0, 0.2), (1.0, 1.0, -0.1), (math.nan, 1.0, 0.2)])
def test_impossible_parameters_are_refused(parameters: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError):
        DDM(*parameters, validate_args=True)


@pytest.mark.parametrize("shape", [(7, 1), (4, 7, 1)])
def test_program_runs_over_data_sets_in_one_call(shape: tuple[int, ...]) -> None:
    x = 0.5 * torch.rand(shape)
    with pyro.plate("datasets", 4, dim=-2):
        trace = pyro.poutine.trace(ddm).get_trace(x)
    assert [name for name in trace.stochastic_nodes if name in (*LATENTS, "y")] == [*LATENTS, "y"]
    assert {trace.nodes[name]["value"].shape for name in LATENTS} == {(4, 1)}
    assert trace.nodes["y"]["value"].shape == (4, 7)


def test_program_over_data_sets_has_the_density_of_single_data_sets() -> None:
    x = 0.5 * torch.rand(2, 7, 1)
    latents = {
        "drift": torch.tensor([[8.0], [12.0]]),
        "boundary": torch.tensor([[1.5], [2.0]]),
        "ndt": torch.tensor([[0.2], [0.3]]),
    }
    with pyro.plate("datasets", 2, dim=-2):
        y = pyro.condition(ddm, latents)(x)
        together = pyro.poutine.trace(pyro.condition(ddm, {**latents, "y": y})).get_trace(x)
    together.compute_log_prob()
    together = sum(together.nodes[name]["log_prob"].sum(-1) for name in (*LATENTS, "y"))
    for index in range(2):
        given = {name: value[index, 0] for name, value in latents.items()} | {"y": y[index]}
        alone = pyro.poutine.trace(pyro.condition(ddm, given)).get_trace(x[index])
        torch.testing.assert_close(alone.log_prob_sum(), together[index])


def test_coherences_are_the_experiments_levels_in_half_of_the_data_sets() -> None:
    sets = torch.stack([draw_coherence(30) for _ in range(1000)])
    levels = torch.isin(sets, torch.tensor(COHERENCES)).flatten(1)
    assert sets.shape == (1000, 30, 1)
    assert (levels.all(-1) | ~levels.any(-1)).all()
    assert levels.all(-1).sum().item() == pytest.approx(500, abs=5 * 250**0.5)
    assert sets.min() >= 0 and sets.max() <= COHERENCES[-1]
    assert len(sets[levels.all(-1)].unique()) == len(COHERENCES)


@THETAS
def test_choice_and_response_time_have_the_density_of_the_signed_time(theta: float) -> None:
    drift, boundary, ndt = torch.tensor([theta, 2.0, 0.25])
    rt = ndt + torch.cat([torch.tensor([-0.1, 0.0]), torch.logspace(-2, 1, 50)])
    time = ResponseTime(drift, boundary, ndt).log_prob(rt)
    for choice in (0.0, 1.0):
        both = time + torch.distributions.Bernoulli(logits=drift * boundary).log_prob(torch.tensor(choice))
        expected = DDM(drift, boundary, ndt).log_prob((2 * choice - 1) * rt)
        torch.testing.assert_close(both, expected, rtol=1e-12, atol=1e-12)


def test_response_times_have_one_law_behind_both_choices() -> None:
    latents = {"drift": torch.tensor(3.0), "boundary": torch.tensor(1.2), "ndt": torch.tensor(0.2)}
    choice, rt = pyro.condition(ddm_choice_rt, latents)(torch.full((60_000, 1), 0.1))
    times = exit_times()
    cdf = integral(ResponseTime(0.3, 1.2, 0.0).log_prob(times).exp(), times)
    assert stats.binomtest(int(choice.sum()), 60_000, 1 / (1 + math.exp(-0.3 * 1.2))).pvalue > 1e-5
    for side in (0, 1):
        passage = rt[choice == side] - 0.2
        assert stats.kstest(passage.numpy(), lambda v: np.interp(v, times[1:].numpy(), cdf.numpy())).pvalue > 1e-4


def test_expanded_response_times_stay_response_times() -> None:
    base = ResponseTime(torch.tensor([[1.0], [-2.0]]), 1.5, 0.2, validate_args=False)
    expanded = base.expand([3, 2, 5])
    draws = expanded.sample()
    assert type(expanded) is ResponseTime and draws.shape == (3, 2, 5) and (draws > 0.2).all()
    torch.testing.assert_close(expanded.log_prob(draws[0]), base.log_prob(draws[0]).expand(3, 2, 5))
    assert (base.log_prob(-draws) == -math.inf).all()


def test_gradients_of_response_times_equal_finite_differences() -> None:
    rt = torch.tensor([0.45, 0.6, 2.0], requires_grad=True)
    parameters = [torch.tensor(number, requires_grad=True) for number in (-1.2, 1.6, 0.3)]
    assert torch.autograd.gradcheck(
        lambda drift, boundary, ndt, value: ResponseTime(drift, boundary, ndt).log_prob(value), [*parameters, rt]
    )


@pytest.mark.parametrize("shape", [(7, 1), (4, 7, 1)])
def test_choices_and_times_over_data_sets_have_the_density_of_signed_times(shape: tuple[int, ...]) -> None:
    x = 0.5 * torch.rand(shape)
    with pyro.plate("datasets", 4, dim=-2):
        drawn = pyro.poutine.trace(ddm_choice_rt).get_trace(x)
        values = {name: drawn.nodes[name]["value"] for name in (*LATENTS, "choice", "rt")}
        signed = (2 * values["choice"] - 1) * values["rt"]
        given = {name: values[name] for name in LATENTS} | {"y": signed}
        expected = pyro.poutine.trace(pyro.condition(ddm, given)).get_trace(x)
    assert {values[name].shape for name in LATENTS} == {(4, 1)}
    assert values["choice"].shape == values["rt"].shape == (4, 7)
    torch.testing.assert_close(drawn.log_prob_sum(), expected.log_prob_sum(), rtol=1e-12, atol=0)


@pytest.mark.slow
def test_nuts_from_its_default_start_agrees_with_a_grid() -> None:
    x = torch.tensor(COHERENCES).repeat(10)[:, None]
    truth = {"drift": torch.tensor(9.0), "boundary": torch.tensor(1.6), "ndt": torch.tensor(0.35)}
    y = pyro.condition(ddm, truth)(x)
    axes = torch.linspace(3, 22, 32), torch.linspace(0.9, 3.0, 32), torch.linspace(0.101, y.abs().min() - 1e-6, 48)
    drift, boundary, ndt = (axis[..., None] for axis in torch.meshgrid(*axes, indexing="ij"))
    log_prior = LogNormal(2.3, 0.5).log_prob(drift) + LogNormal(0.5, 0.35).log_prob(boundary)
    log_likelihood = DDM(drift * x[:, 0], boundary, ndt).log_prob(y).sum(-1, keepdim=True)
    weights = torch.softmax((log_prior + log_likelihood).flatten(), 0)
    kernel = NUTS(pyro.condition(ddm, {"y": y}))
    mcmc = MCMC(kernel, num_samples=600, warmup_steps=200, disable_progbar=True)
    mcmc.run(x)
    draws, summary = mcmc.get_samples(), mcmc.diagnostics()
    for name, grid in zip(LATENTS, (drift, boundary, ndt), strict=True):
        mean = (weights * grid.flatten()).sum()
        sd = (weights * (grid.flatten() - mean) ** 2).sum().sqrt()
        assert (draws[name].mean() - mean).abs() < 5 * sd / summary[name]["n_eff"] ** 0.5
        assert draws[name].std().item() == pytest.approx(sd.item(), rel=0.2)

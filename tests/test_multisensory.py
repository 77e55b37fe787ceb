"""Causal-inference programs: laws of latents and responses, densities, inputs, and the evidence benchmark."""

import importlib
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from scipy import stats

from pyro_arbuf.priors.multisensory import (
    PRIOR,
    CausalInferenceResponse,
    TruncatedNormal,
    draw_trials,
    multisensory_rho1,
    multisensory_rho43,
    response,
)

PROGRAMS = pytest.mark.parametrize("program", [multisensory_rho1, multisensory_rho43])


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def evidence(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module("multisensory_evidence")


def trials(num_trials: int) -> torch.Tensor:
    """The generator's trials in the default dtype."""
    x = draw_trials(num_trials)
    assert x.dtype == torch.get_default_dtype()
    return x


def latents(**changed: float) -> dict[str, torch.Tensor]:
    """Prior means, some changed."""
    return {name: torch.tensor(changed.get(name, loc)) for name, (loc, _) in PRIOR.items()}


def simulated(x: torch.Tensor, rho: float, given: dict[str, torch.Tensor], num_draws: int) -> torch.Tensor:
    """Responses `(num_draws, n)` from the observer's posterior means, written out by precisions and evidences."""
    var_a, var_s = (2.0 * given["log_sigma_a"]).exp(), (2.0 * given["log_sigma_s"]).exp()
    low = given["log_sigma_v_low"]
    medium = low + given["step_medium"]
    var_v = (2.0 * torch.stack([low, medium, medium + given["step_high"]])).exp()[x[:, 3].long()]
    x_a = rho * (x[:, 1] + var_a.sqrt() * torch.randn(num_draws, len(x)))
    x_v = x[:, 2] + var_v.sqrt() * torch.randn(num_draws, len(x))
    covariance = var_s * torch.ones(2, 2) + torch.diag_embed(torch.stack([var_a.expand(len(x)), var_v], -1))
    same = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(torch.stack([x_a, x_v], -1))
    apart = sum(dist.Normal(0.0, (var + var_s).sqrt()).log_prob(p) for var, p in ((var_a, x_a), (var_v, x_v)))
    p_same = (given["logit_p_same"] + same - apart).sigmoid()
    fused = (x_a / var_a + x_v / var_v) / (1.0 / var_a + 1.0 / var_v + 1.0 / var_s)
    alone = torch.where(x[:, 0] == 1, x_a / var_a / (1 / var_a + 1 / var_s), x_v / var_v / (1 / var_v + 1 / var_s))
    estimate = p_same * fused + (1.0 - p_same) * alone
    y = estimate + given["log_sigma_m"].exp() * torch.randn(estimate.shape)
    lapse = torch.rand(estimate.shape) < 0.02
    return torch.where(lapse, 90.0 * torch.rand(estimate.shape) - 45.0, y)


def test_truncated_normal_has_the_law_of_scipys():
    law, exact = TruncatedNormal(torch.tensor(1.75), torch.tensor(0.5)), stats.truncnorm(-2.0, 2.0, 1.75, 0.5)
    value = torch.linspace(0.76, 2.74, 7)
    torch.testing.assert_close(law.log_prob(value), torch.from_numpy(exact.logpdf(value.numpy())))
    u = torch.linspace(0.0, 1.0, 7)
    torch.testing.assert_close(law.icdf(u), torch.from_numpy(exact.ppf(u.numpy())))
    assert stats.kstest(law.sample((5000,)).numpy(), exact.cdf).pvalue > 1e-3


def test_truncated_normal_ends_at_its_bounds():
    law = TruncatedNormal(torch.tensor([0.0, 1.0]), torch.tensor(1.5), validate_args=False)
    assert (law.log_prob(torch.tensor(-3.1)) == -math.inf).all()
    single = TruncatedNormal(torch.tensor(0.1, dtype=torch.float32), torch.tensor(0.7, dtype=torch.float32))
    ends = single.icdf(torch.tensor([0.0, 1.0], dtype=torch.float32))
    assert single.support.check(ends).all()
    with pytest.raises(ValueError):
        single.log_prob(torch.tensor(2.0))


def test_truncated_normal_expands_to_the_same_law():
    law = TruncatedNormal(torch.tensor(0.75), torch.tensor(0.5))
    wide = law.expand([3, 1])
    assert type(wide) is TruncatedNormal and wide.batch_shape == (3, 1) and wide.sample((2,)).shape == (2, 3, 1)
    torch.testing.assert_close(wide.log_prob(torch.tensor(1.1)), law.log_prob(torch.tensor(1.1)).expand(3, 1))


@PROGRAMS
def test_prior_is_that_of_the_specification(program):
    sites = {name: site for name, site in poutine.trace(program).get_trace(trials(3)).nodes.items() if name in PRIOR}
    assert list(sites) == list(PRIOR)
    for name, (loc, scale) in PRIOR.items():
        law = sites[name]["fn"]
        assert (law.support.lower_bound, law.support.upper_bound) == (loc - 2.0 * scale, loc + 2.0 * scale)
        at = torch.tensor(loc + scale)
        normal = dist.Normal(loc, scale).log_prob(at) - math.log(math.erf(math.sqrt(2.0)))
        torch.testing.assert_close(law.log_prob(at), normal)


@pytest.mark.parametrize("rho", [1.0, 4.0 / 3.0])
@pytest.mark.parametrize("draw", ["program", "density"])
def test_responses_follow_the_observer_written_out(rho, draw):
    x = torch.tensor([[0.0, 10.0, 10.0, 0.0], [1.0, 10.0, 10.0, 1.0], [0.0, -15.0, 9.0, 2.0], [1.0, 15.0, -4.0, 2.0]])
    given = latents(log_sigma_m=0.4, step_medium=0.5)
    law = response(x, given, rho)
    reference = simulated(x, rho, given, 40_000)
    functions = (lambda y: y, lambda y: y.square(), lambda y: (y > 2.0).to(y.dtype), lambda y: (0.3 * y).cos())
    for function in functions:
        expected = function(reference)
        error = expected.var(0) / 40_000
        if draw == "program":
            got = function(law.sample((40_000,)))
            error = error + got.var(0) / 40_000
        else:
            y = torch.linspace(-60.0, 60.0, 1201)
            got = (law.log_prob(y[:, None]).exp() * function(y)[:, None])[None] * 1201 * 0.1
            got = got.flatten(0, 1)
        assert ((got.mean(0) - expected.mean(0)).abs() < 5.0 * error.sqrt() + 2e-4).all()


def test_each_program_has_its_rho():
    x = torch.tensor([[1.0, 15.0, 15.0, 0.0]]).expand(20_000, 4)
    means = []
    for program in (multisensory_rho1, multisensory_rho43):
        given = latents(log_sigma_v_low=3.0, log_sigma_s=4.4)  # the flash tells nothing, nor does the prior
        means.append(poutine.condition(program, given)(x).mean())
    assert means[1] / means[0] == pytest.approx(4.0 / 3.0, rel=0.02)


def test_density_integrates_to_one_with_its_lapses():
    law = response(trials(5), latents(), 1.0)
    y = torch.linspace(-70.0, 70.0, 2801)
    torch.testing.assert_close(law.log_prob(y[:, None]).exp().sum(0) * 0.05, torch.ones(5), rtol=0.0, atol=1e-4)
    far = law.log_prob(torch.tensor([44.9, 45.1])[:, None])
    assert (far[0] >= math.log(0.02 / 90.0)).all() and (far[1] < far[0] - 1.0).all()


def test_density_of_two_grids_agrees_and_needs_no_square_one():
    x, given = trials(12), latents()
    y = response(x, given, 1.0).sample()
    fine = response(x, given, 1.0, (161, 161)).log_prob(y)
    torch.testing.assert_close(response(x, given, 1.0, (121, 181)).log_prob(y), fine, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(response(x, given, 1.0).log_prob(y), fine, rtol=0.0, atol=1e-3)


def test_density_with_two_causes_for_sure_is_gaussian():
    x, given = trials(9), latents()
    law = response(x, given, 4.0 / 3.0)
    law.logit_p_same = torch.full((9,), -60.0)  # the estimate is linear in one percept
    var_s = math.exp(5.0)
    location = torch.where(x[:, 0] == 1, 4.0 / 3.0 * x[:, 1], x[:, 2])
    sd = torch.where(x[:, 0] == 1, 4.0 / 3.0 * law.sigma_a, law.sigma_v)
    var = torch.where(x[:, 0] == 1, law.sigma_a, law.sigma_v).square()
    gain = var_s / (var_s + var)
    normal = dist.Normal(gain * location, ((gain * sd).square() + law.sigma_m.square()).sqrt())
    y = normal.sample()
    exact = torch.logaddexp(normal.log_prob(y) + math.log(0.98), torch.tensor(math.log(0.02 / 90.0)))
    torch.testing.assert_close(law.log_prob(y), exact, rtol=0.0, atol=1e-5)


def test_density_survives_a_response_far_from_all_percepts():
    given = {name: value.clone().requires_grad_() for name, value in latents(log_sigma_m=-1.0).items()}
    density = response(trials(3), given, 1.0).log_prob(torch.tensor([200.0, -300.0, 90.0]))
    gradient = torch.autograd.grad(density.sum(), list(given.values()))
    assert density.isfinite().all() and all(part.isfinite().all() for part in gradient)


def test_chunks_change_neither_density_nor_gradient(monkeypatch):
    x, y, results = trials(7), torch.linspace(-20.0, 20.0, 7), []
    for size in (1, 2**30):
        monkeypatch.setattr("pyro_arbuf.priors.multisensory.CHUNK_BYTES", size)
        given = {name: value.clone().requires_grad_() for name, value in latents().items()}
        density = response(x, given, 1.0, (21, 31)).log_prob(y)
        results.append([density.detach(), *torch.autograd.grad(density.sum(), list(given.values()))])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_gradient_is_that_of_differences():
    x, y = trials(4), torch.tensor([-9.0, 0.0, 3.0, 14.0])

    def density(*values: torch.Tensor) -> torch.Tensor:
        return response(x, dict(zip(PRIOR, values, strict=True)), 4.0 / 3.0, (21, 31)).log_prob(y)

    values = [value.clone().requires_grad_() for value in latents().values()]
    assert torch.autograd.gradcheck(density, values)


def test_response_expands_to_the_same_law():
    law = response(trials(4), latents(), 1.0, (21, 31))
    wide = law.expand([3, 4])
    y = law.sample((3,))
    assert type(wide) is CausalInferenceResponse and wide.sample((2,)).shape == (2, 3, 4)
    torch.testing.assert_close(wide.log_prob(y), law.log_prob(y))


@PROGRAMS
@pytest.mark.parametrize("one_x", [True, False])
def test_program_runs_under_a_plate_of_datasets(program, one_x):
    x = trials(5) if one_x else torch.stack([trials(5), trials(5), trials(5)])

    def vectorised() -> torch.Tensor:
        with pyro.plate("datasets", 3, dim=-2):
            return program(x)

    trace = poutine.trace(vectorised).get_trace()
    trace.compute_log_prob()
    values = {name: trace.nodes[name]["value"] for name in PRIOR}
    assert {value.shape for value in values.values()} == {(3, 1)} and trace.nodes["y"]["value"].shape == (3, 5)
    for b in range(3):
        given = {name: value[b, 0] for name, value in values.items()} | {"y": trace.nodes["y"]["value"][b]}
        alone = poutine.trace(poutine.condition(program, given)).get_trace(x if one_x else x[b])
        torch.testing.assert_close(sum(part["log_prob"][b].sum() for part in sites_of(trace)), alone.log_prob_sum())


def sites_of(trace: poutine.Trace) -> list[dict]:
    """Sites that have a density."""
    return [trace.nodes[name] for name in (*PRIOR, "y")]


def test_program_takes_draws_of_latents():
    x = trials(5)
    given = {name: value + 0.1 * torch.randn(6, 1) for name, value in latents().items()}
    assert poutine.condition(multisensory_rho1, given)(x).shape == (6, 5)


def test_program_keeps_the_dtype_of_its_inputs():
    assert multisensory_rho43(trials(5).float()).dtype == torch.float32


def test_program_names_the_wrong_shape():
    with pytest.raises(ValueError, match=r"x must have shape .*4.*got \(5, 3\).*draw_trials"):
        multisensory_rho1(torch.zeros(5, 3))


def test_inputs_have_the_laws_of_the_specification():
    r_type, s_a, s_v, level = trials(20_000).unbind(-1)
    for values, expected in ((r_type, range(2)), (level, range(3)), (s_a, range(-15, 16, 5))):
        found, counts = values.unique(return_counts=True)
        assert found.tolist() == list(expected)
        p = 1.0 / len(found)
        assert (counts / 20_000 - p).abs().max() < 5.0 * math.sqrt(p * (1.0 - p) / 20_000)
    one_cause = s_v == s_a
    assert abs(one_cause.double().mean() - 0.5) < 0.02
    apart = s_v[~one_cause]
    assert apart.abs().max() <= 20.0 and abs(apart.mean()) < 0.6 and abs(apart.std() - 20.0 / math.sqrt(3.0)) < 0.3


def test_nuts_runs_through_the_density():
    x = trials(6)
    y = multisensory_rho1(x)
    mcmc = MCMC(NUTS(poutine.condition(multisensory_rho1, {"y": y}), max_tree_depth=2), 3, 3, disable_progbar=True)
    mcmc.run(x)
    assert all(draw.shape == (3,) and draw.isfinite().all() for draw in mcmc.get_samples().values())


def test_simulated_sets_are_the_same_every_time(evidence):
    torch.set_default_dtype(torch.float32)
    state = torch.get_rng_state()
    first, again = (evidence.simulated_sets("multisensory-rho43", 2, 5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]
    assert first[0][0].shape == (5, 4) and first[0][1].shape == (5,) and set(first[0][2]) == set(PRIOR)
    other = evidence.simulated_sets("multisensory-rho1", 1, 5)[0]
    assert not torch.equal(first[0][0], first[1][0]) and not torch.equal(first[0][0], other[0])


def test_adaptive_grids_agree_with_161_points(evidence):
    x = trials(40)
    for rho in (1.0, 4.0 / 3.0):
        z = torch.randn(3, 7)
        y = response(x, {name: value[0, 0] for name, value in evidence.latents_at(z).items()}, rho).sample()
        resolution = evidence.checked_resolution(z, x, y, rho)
        exact = response(x, evidence.latents_at(z), rho, (161, 161)).log_prob(y).sum(-1)
        adaptive = evidence.log_likelihood(z, x, y, rho, resolution)
        torch.testing.assert_close(adaptive, exact, rtol=0.0, atol=1e-3)


def test_evidence_agrees_with_draws_from_the_prior(evidence):
    torch.set_default_dtype(torch.float32)
    x, y, _ = evidence.simulated_sets("multisensory-rho1", 1, 4)[0]
    value = evidence.log_evidence(x, y, 4.0 / 3.0, num_draws=400)
    z = torch.randn(6000, 7, dtype=torch.float64)
    weights = evidence.log_likelihood(z, x, y, 4.0 / 3.0, 0.7).exp()
    error = (value.standard_error**2 + weights.var() / weights.mean() ** 2 / 6000).sqrt()
    assert abs(value.log_evidence - weights.mean().log()) < 5.0 * error
    assert value.standard_error < 0.05 and value.k_hat < 0.7 and value.num_draws == 400


def test_evidence_is_tried_again_until_its_weights_are_good(evidence, monkeypatch):
    torch.manual_seed(1)
    x, y, _ = evidence.simulated_sets("multisensory-rho1", 1, 4)[0]
    tried, plain = [], evidence.adapted_proposal
    monkeypatch.setattr(evidence, "adapted_proposal", lambda *args: tried.append(args[-1]) or plain(*args))
    monkeypatch.setattr(evidence, "MOST", (21, 31))
    monkeypatch.setattr(evidence, "GOOD_K_HAT", math.inf)
    for enough, expected in ((math.inf, [21]), (0.0, [21, 31])):
        tried.clear()
        monkeypatch.setattr(evidence, "GOOD_ERROR", enough)
        assert evidence.log_evidence(x, y, 1.0, num_draws=100).num_draws == 100
        assert tried == expected


def test_evidence_goes_on_where_it_stopped(evidence, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(
        evidence, "log_evidence", lambda *args: made.append(args) or evidence.Evidence(-1.0, 0.1, 0.2, 9)
    )
    evidence.main(num_sets=1, num_trials=3, table=tmp_path / "table.csv")
    evidence.main(num_sets=2, num_trials=3, table=tmp_path / "table.csv")
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert len(made) == 8 and len(lines) == 9 and len(set(lines)) == 9
    assert (
        lines[0] == ",".join(evidence.COLUMNS)
        and lines[1] == "multisensory-rho1,0,multisensory-rho1,-1.0000,0.1000,0.200,9"
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "table.csv"]

"""The strangers' benchmark: exact answers by two ways, the programs' own densities, and the command."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pyro
import pyro.distributions as dist
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from pyro import poutine
from torch import Tensor

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
DRAWS = 50_000


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("strangers")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("strangers_exact")


def mean_likelihood(log_likelihood: Tensor) -> tuple[float, float]:
    """Log evidence as the mean likelihood under prior draws, and its standard error."""
    weights = (log_likelihood - log_likelihood.max()).exp()
    mean = weights.mean()
    return (mean.log() + log_likelihood.max()).item(), (weights.std() / mean / math.sqrt(len(weights))).item()


def check_evidence(found: object, log_likelihood: Tensor, latents: dict[str, Tensor]) -> None:
    """Evidence and posterior moments against importance sampling from the prior."""
    expected, error = mean_likelihood(log_likelihood)
    assert abs(found.log_evidence - expected) < 5 * error < 0.2
    weights = (log_likelihood - log_likelihood.logsumexp(0)).exp()
    for name, value in latents.items():
        mean = (weights * value).sum()
        assert abs(found.mean[name] - mean) < 0.1 * found.sd[name]
        assert abs(found.sd[name] - ((value - mean) ** 2 * weights).sum().sqrt()) < 0.1 * found.sd[name]


def density(program: Callable, x: Tensor, sites: dict[str, Tensor]) -> float:
    """Log density of the program's observed sites given its latents, in double precision."""
    trace = poutine.trace(poutine.condition(program, sites)).get_trace(x)
    trace.compute_log_prob()
    observed = [name for name in trace.stochastic_nodes + trace.observation_nodes if name.startswith(("y", "c", "r"))]
    return sum(trace.nodes[name]["log_prob_sum"].item() for name in observed)


def test_series_is_that_of_the_program_and_its_evidence_the_mean_likelihood(
    strangers: ModuleType, exact: ModuleType
) -> None:
    y = torch.tensor([0.4, 1.1, 0.3, -0.6, 0.2], dtype=torch.float64)
    phi, sigma = torch.tensor([-0.7], dtype=torch.float64), torch.tensor([1.3], dtype=torch.float64)
    sites = {"phi": phi[0], "sigma": sigma[0], "y": y}
    found = density(strangers.ar1, torch.zeros(5, 1, dtype=torch.float64), sites)
    assert found == pytest.approx(exact.ar1_log_likelihood(y, phi, sigma).item(), abs=1e-10)
    phi, sigma = 2 * torch.rand(DRAWS, dtype=torch.float64) - 1, (0.5 * torch.randn(DRAWS, dtype=torch.float64)).exp()
    check_evidence(exact.exact_ar1(y), exact.ar1_log_likelihood(y, phi, sigma), {"phi": phi, "sigma": sigma})


def test_both_gaussian_processes_have_one_law_and_its_evidence(strangers: ModuleType, exact: ModuleType) -> None:
    x, y = 4 * torch.rand(4, 1, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    ell = torch.tensor(0.8, dtype=torch.float64)
    expected = exact.log_gaussian(y, exact.gp_covariance(x[:, 0], ell)).item()
    assert density(strangers.gp_event, x, {"lengthscale": ell, "y": y}) == pytest.approx(expected, abs=1e-6)
    pyro.set_rng_seed(0)
    f = torch.stack([poutine.condition(strangers.gp_plate, {"lengthscale": ell})(x) for _ in range(1500)])
    assert (torch.cov(f.T) - exact.gp_covariance(x[:, 0], ell)).abs().max() < 0.2
    ell = (-0.5 + 0.5 * torch.randn(DRAWS // 5, dtype=torch.float64)).exp()
    log_likelihood = exact.log_gaussian(y, exact.gp_covariance(x[:, 0], ell))
    check_evidence(exact.exact_gp(x, y), log_likelihood, {"lengthscale": ell})


@pytest.mark.parametrize("case", ["random_intercept", "regression"])
def test_evidence_of_linear_models_is_prior_times_likelihood_over_posterior(
    case: str, strangers: ModuleType, exact: ModuleType
) -> None:
    columns = 1 if case == "random_intercept" else 3
    x, y = torch.randn(7, columns, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    design = torch.cat([torch.ones(7, 1, dtype=torch.float64), x], -1)
    errors = 0.25 * torch.eye(7, dtype=torch.float64) + (0.49 if columns == 1 else 0.0)
    theta = torch.randn(1 + columns, dtype=torch.float64)
    mean, covariance, evidence = exact.exact_linear(design, y, errors)
    posterior = dist.MultivariateNormal(mean, covariance).log_prob(theta)
    expected = dist.Normal(0.0, 1.0).log_prob(theta).sum() + exact.log_gaussian(y - design @ theta, errors) - posterior
    assert evidence == pytest.approx(expected.item(), abs=1e-9)
    whole = (exact.exact_intercept if columns == 1 else exact.exact_regression)(x, y)
    assert whole.log_evidence == pytest.approx(evidence, abs=1e-9)
    assert torch.allclose(torch.cat([value.reshape(-1) for value in whole.mean.values()]), mean)
    if columns == 3:
        sites = {"intercept": theta[0], "weights": theta[1:], "y": y}
        assert density(strangers.regression, x, sites) == pytest.approx(
            exact.log_gaussian(y - design @ theta, errors).item(), abs=1e-6
        )


def test_learner_is_that_of_the_program_and_its_evidence_the_mean_likelihood(
    strangers: ModuleType, exact: ModuleType
) -> None:
    x = strangers.draw_chances(6).double()
    y = torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0], [1, 1], [1, 0]], dtype=torch.float64)
    rate, temperature = torch.tensor([0.3], dtype=torch.float64), torch.tensor([2.5], dtype=torch.float64)
    sites = {"learning_rate": rate[0], "inverse_temperature": temperature[0]}
    for name, column in (("choice", y[:, 0]), ("reward", y[:, 1])):
        sites |= {f"{name}_{t}": value for t, value in enumerate(column)}
    expected = exact.rescorla_wagner_log_likelihood(x[:, 1:], y, rate, temperature).item()
    assert density(strangers.rescorla_wagner, x, sites) == pytest.approx(expected, abs=1e-6)
    rate = torch.rand(DRAWS, dtype=torch.float64)
    temperature = (1 + 0.5 * torch.randn(DRAWS, dtype=torch.float64)).exp()
    log_likelihood = exact.rescorla_wagner_log_likelihood(x[:, 1:], y, rate, temperature)
    latents = {"learning_rate": rate, "inverse_temperature": temperature}
    check_evidence(exact.exact_rescorla_wagner(x[:, 1:], y), log_likelihood, latents)


def test_both_periodic_priors_have_one_law_and_its_joint_density(strangers: ModuleType, exact: ModuleType) -> None:
    x, y = 10 * torch.rand(5, 1, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    lengthscale = 0.5 + torch.rand(DRAWS // 5, dtype=torch.float64)
    covariance = exact.periodic_covariance(x[:, 0], lengthscale)
    expected, error = mean_likelihood(exact.log_gaussian(y, covariance))
    assert abs(exact.exact_periodic(x, y) - expected) < 5 * error
    pyro.set_rng_seed(0)
    drawn = torch.stack([strangers.periodic_program(x) for _ in range(1500)])
    assert (torch.cov(drawn.T) - covariance.mean(0)).abs().max() < 0.2


def test_columns_of_a_table_are_what_the_scores_are_called(strangers: ModuleType) -> None:
    case = strangers.CASES["gp-plate"]
    scores = [{"ell: error of the mean (sd)": 0.1, "evidence: error (nats)": -2.0}, {"evidence: error (nats)": 1.0}]
    rows, every = strangers.table(case, scores)
    assert every == {"ell: error of the mean (sd)": [0.1], "evidence: error (nats)": [-2.0, 1.0]}
    assert rows[-1] == ("evidence: root mean square, largest", "1.58, 2.00", "within 1")


def test_function_is_trained_scored_and_resumed(
    strangers: ModuleType, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "CONTEXTS", (0, 3))
    strangers.main("periodic-function", tmp_path, minutes=0.005, num_sets=1, small=True)
    (kept,) = (tmp_path / "periodic-function").glob("scores-*.json")
    first = json.loads(kept.read_text())
    capsys.readouterr()
    strangers.main("periodic-function", tmp_path, minutes=0.005, num_sets=2, small=True)
    *lines, last = capsys.readouterr().out.strip().splitlines()
    assert json.loads(kept.read_text())[: len(first)] == first
    assert len(json.loads(last)["mean gap per target (nats)"]) == 2
    assert any(line.startswith("| N = 3: gap per target (nats), mean of 2 |") for line in lines)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()

"""The baselines of the benchmark of recordings have the densities that their formulas say."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from torch.distributions import MultivariateNormal
from torch.testing import assert_close
from trials import write_trials

from pyro_arbuf.checkpoint import save

B, T, D = 2, 7, 3


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module


@pytest.fixture
def baselines(load):
    return load("eeg_baselines")


def test_gaussian_process_is_a_gaussian_of_all_samples_and_channels(baselines):
    generator = torch.Generator().manual_seed(0)
    index = torch.stack([torch.randperm(40, generator=generator)[:T] for _ in range(B)])
    y = torch.randn(B, T, D, generator=generator, dtype=torch.float64)
    default = baselines.Hyperparameters.default(B, D)
    noise = default.log_noise + torch.arange(D)
    logits = torch.randn(B, 3, generator=generator, dtype=torch.float64)
    parameters = default._replace(log_noise=noise, logits=logits)
    density = baselines.gp_log_prob(parameters, index, y)
    for b in range(B):
        gap = (index[b][:, None] - index[b]).abs().double()
        smooth, rough = (gap / length for length in parameters.log_length[b].exp())
        shares = logits[b].softmax(0)
        matern = (1 + math.sqrt(3) * rough) * (-math.sqrt(3) * rough).exp()
        kernel = shares[0] * (-0.5 * smooth**2).exp() + shares[1] * matern + shares[2]
        between = parameters.factor[b] @ parameters.factor[b].mT
        covariance = torch.kron(kernel, between) + torch.diag(noise[b].exp().repeat(T))
        expected = MultivariateNormal(torch.zeros(T * D, dtype=torch.float64), covariance).log_prob(y[b].flatten())
        assert_close(density[b], expected)


def test_gaussian_process_is_fitted_to_its_context(baselines):
    index, y = torch.arange(T).expand(B, -1), torch.randn(B, T, D, dtype=torch.float64)
    start = baselines.Hyperparameters.default(B, D)
    fitted = baselines.fit_gp(start, index, y)
    assert (baselines.gp_log_prob(fitted, index, y) > baselines.gp_log_prob(start, index, y)).all()


def test_vector_autoregression_has_the_evidence_of_its_conjugate_prior(baselines):
    y = torch.randn(B, T, D, dtype=torch.float64)
    shrinkage, start = 0.3, 1
    total = baselines.one_step_ahead(y, 1, shrinkage, start, T).sum(1)
    spread = torch.diag(torch.tensor([shrinkage**2] * D + [100.0], dtype=torch.float64))
    n, freedom = T - start, D + 2
    for b in range(B):
        x, after = torch.cat([y[b, :-1], torch.ones(n, 1, dtype=torch.float64)], 1), y[b, 1:]
        error = after - y[b, :-1]  # of a random walk
        inside = torch.eye(n, dtype=torch.float64) + x @ spread @ x.mT
        scatter = y[b].diff(dim=0).square().mean() * torch.eye(D, dtype=torch.float64)
        later = scatter + error.mT @ torch.linalg.solve(inside, error)
        gammas = torch.mvlgamma(torch.tensor([(freedom + n) / 2, freedom / 2], dtype=torch.float64), D).diff().neg()
        expected = gammas - n * D / 2 * math.log(math.pi) - D / 2 * inside.logdet()
        expected = expected + freedom / 2 * scatter.logdet() - (freedom + n) / 2 * later.logdet()
        assert_close(total[b], expected.squeeze())


def test_forecast_of_autoregressions_is_that_of_their_evidence(baselines):
    y = torch.randn(B, 9, D, dtype=torch.float64)
    found = baselines.vector_autoregression(y[:, :5], y[:, 5:])
    steps = [baselines.one_step_ahead(y, 1, shrinkage, 1, 5) for shrinkage in baselines.SHRINKAGES]
    weights = torch.stack([each[:, :4].sum(1) for each in steps]).softmax(0)
    ahead = torch.stack([each[:, 4:].sum(1) for each in steps])
    assert_close(found, (weights * ahead.exp()).sum(0).log())


def test_law_of_trials_is_that_of_the_autoregression_they_come_from(baselines):
    A = torch.tensor([[0.8, 0.1], [-0.2, 0.6]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    y = torch.zeros(400, 300, 2, dtype=torch.float64)
    for t in range(1, 300):
        y[:, t] = y[:, t - 1] @ A.mT + torch.randn(400, 2, generator=generator, dtype=torch.float64)
    law = baselines.fit_trial_law(y[:, 100:], order=2)
    assert_close(law.covariance[1], A @ law.covariance[0], rtol=0.03, atol=0.03)
    assert_close(law.covariance[3], torch.linalg.matrix_power(A, 3) @ law.covariance[0], rtol=0.05, atol=0.05)


def test_law_of_trials_conditions_as_gaussians_do(baselines, monkeypatch):
    monkeypatch.setattr(baselines, "LOG_AMPLITUDES", torch.zeros(1, dtype=torch.float64))
    decay = torch.tensor([[0.7, 0.2], [0.0, 0.5]], dtype=torch.float64)
    law = baselines.TrialLaw(torch.stack([torch.linalg.matrix_power(decay, h) for h in range(9)]))
    index, y = torch.tensor([[4, 1, 6]]), torch.randn(1, 3, 2, dtype=torch.float64)

    def block(i: int, j: int) -> torch.Tensor:
        return law.covariance[i - j] if i >= j else law.covariance[j - i].mT

    covariance = torch.cat([torch.cat([block(i, j) for j in (4, 1, 6)], 1) for i in (4, 1, 6)])
    covariance = covariance + 1e-6 * torch.eye(6, dtype=torch.float64)
    zero = torch.zeros(6, dtype=torch.float64)
    expected = MultivariateNormal(zero, covariance).log_prob(y.flatten())
    expected = expected - MultivariateNormal(zero[:2], covariance[:2, :2]).log_prob(y[0, 0])
    assert_close(law.log_prob(index, y, 1), expected.unsqueeze(0))


@pytest.mark.slow
def test_benchmark_prints_tables_and_one_line_of_json(load, tmp_path, capsys, monkeypatch):
    eeg = load("eeg")
    path = write_trials(tmp_path / "file.npz", per_subject=2)
    scale = {"y_loc": (0.0,) * 7, "y_scale": (6.0,) * 7, "y_scale_weight": 8.0}
    save(tiny_model(dim_y=7, prior="eeg", buffer_size=32, num_targets=(1, 9), **scale), tmp_path / "net")
    monkeypatch.setattr(eeg, "FITTED", 12)
    options = {"data": path, "num_context": (6,), "num_targets": 3, "num_orders": 2}
    eeg.main(tmp_path / "net", independent=tmp_path / "net", **options)
    *table, line = capsys.readouterr().out.strip().splitlines()
    result = json.loads(line)
    assert result["trials"] == 8 and set(result["forecasting"]["differences"]) == set(eeg.DIFFERENCES)
    without = set(eeg.DIFFERENCES) - {"buffer K=32 minus vector autoregression of the context"}
    assert set(result["interpolation"]["differences"]) == without
    assert sum(row.startswith("| co2") for row in table) == 8
    eeg.main(tmp_path / "net", data=tmp_path / "absent.npz")
    assert capsys.readouterr().out.startswith("skipped: ")

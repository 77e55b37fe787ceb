"""Tests of `benchmarks/oracle.py` against dense grids, the chain rule and normalisation."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor

_spec = importlib.util.spec_from_file_location("oracle", Path(__file__).parents[1] / "benchmarks" / "oracle.py")
oracle = importlib.util.module_from_spec(_spec)
sys.modules["oracle"] = oracle
_spec.loader.exec_module(oracle)


def _functions(prior: str, num_functions: int, num_points: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    return oracle.sample_functions(prior, num_functions, num_points, torch.Generator().manual_seed(seed))


def _split(x: Tensor, y: Tensor, num_context: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x[:, :num_context], y[:, :num_context], x[:, num_context:], y[:, num_context:]


def _nodes(low: float, high: float, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and log weights of the mean over [low, high]."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return low + (high - low) * (nodes + 1) / 2, np.log(weights / 2)


def _dense_gp_log_evidence(
    x: np.ndarray, y: np.ndarray, noise_sd: tuple[float, float] | None, num_nodes: tuple[int, int, int]
) -> float:
    """Cholesky likelihoods on a dense product grid: no eigenvectors, no interpolation, no adaptivity."""
    n = len(x)
    distance = np.abs(x[:, None] - x)
    lengthscale, log_weight_l = _nodes(0.1, 1.0, num_nodes[0])
    variance, log_weight_v = _nodes(0.5, 1.5, num_nodes[1])
    if noise_sd is None:
        noise_variance, log_weight_n = np.array([1e-5]), np.zeros(1)
    else:
        log_noise, log_weight_n = _nodes(math.log(noise_sd[0]), math.log(noise_sd[1]), num_nodes[2])
        noise_variance = np.exp(2 * log_noise)
    log_weight = log_weight_v[:, None] + log_weight_n
    kernels = [
        (0.4, lambda r: np.exp(-(r**2) / 2)),
        (0.3, lambda r: (1 + math.sqrt(3) * r) * np.exp(-math.sqrt(3) * r)),
        (0.3, lambda r: (1 + math.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-math.sqrt(5) * r)),
    ]
    terms = []
    for probability, correlation in kernels:
        for scale, log_weight_scale in zip(lengthscale, log_weight_l, strict=True):
            signal = variance[:, None, None, None] * correlation(distance / scale)
            covariance = signal + noise_variance[:, None, None] * np.eye(n)  # (V, S, n, n), V variances, S noises
            factor = torch.linalg.cholesky(torch.from_numpy(covariance))
            column = torch.from_numpy(y)[:, None].expand(*factor.shape[:2], n, 1)
            white = torch.linalg.solve_triangular(factor, column, upper=False).squeeze(-1)
            log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            log_likelihood = -0.5 * (n * math.log(2 * math.pi) + log_det + white.square().sum(-1)).numpy()
            terms.append(logsumexp(log_likelihood + log_weight) + log_weight_scale + math.log(probability))
    return float(logsumexp(terms))


@pytest.mark.parametrize("noise_sd", [None, (0.003, 0.5)])
def test_gp_log_prob_equals_dense_grid(noise_sd: tuple[float, float] | None) -> None:
    prior = "gp-1d" if noise_sd is None else "gp-1d-noisy"
    x, y = _functions(prior, 2, 4, seed=1)
    got = oracle.gp_log_prob(*_split(x, y, 2), noise_sd=noise_sd)
    for i in range(2):
        both, context = (
            _dense_gp_log_evidence(x[i, :n].numpy(), y[i, :n].numpy(), noise_sd, (60, 24, 48)) for n in (4, 2)
        )
        assert got[i].item() == pytest.approx(both - context, abs=2e-4)


def test_gp_log_prob_equals_dense_grid_where_posterior_is_narrow() -> None:
    generator = torch.Generator().manual_seed(2)
    x = 4 * torch.rand(1, 64, generator=generator, dtype=torch.float64) - 2
    covariance = torch.exp(-0.5 * ((x[0, :, None] - x[0]) / 0.12).square()) + 1e-5 * torch.eye(64, dtype=torch.float64)
    y = (torch.linalg.cholesky(covariance) @ torch.randn(64, generator=generator, dtype=torch.float64))[None]
    got = oracle.gp_log_prob(*_split(x, y, 60), noise_sd=None)
    both, context = (_dense_gp_log_evidence(x[0, :n].numpy(), y[0, :n].numpy(), None, (240, 20, 1)) for n in (64, 60))
    assert got.item() == pytest.approx(both - context, abs=2e-4)


def test_gp_log_prob_of_one_point_without_context_is_a_mixture_of_normals() -> None:
    y = torch.tensor([[0.3], [-1.7]], dtype=torch.float64)
    x, empty = torch.full_like(y, 0.4), torch.zeros(2, 0, dtype=torch.float64)
    got = oracle.gp_log_prob(empty, empty, x, y, noise_sd=None)
    for value, log_prob in zip(y[:, 0].tolist(), got.tolist(), strict=True):
        density, _ = quad(lambda v, value=value: norm.pdf(value, scale=math.sqrt(v + 1e-5)), 0.5, 1.5)
        assert log_prob == pytest.approx(math.log(density), abs=1e-6)


def test_sawtooth_log_prob_equals_dense_grid() -> None:
    x, y = _functions("sawtooth", 2, 4, seed=3)
    got = oracle.sawtooth_log_prob(*_split(x, y, 2))
    w = 3 + (np.arange(800) + 0.5) / 400
    phi = (np.arange(1000) + 0.5) / 1000
    sd, log_weight = _nodes(0.05, 0.1, 8)
    for i in range(2):
        log_evidence = []
        for n in (2, 4):
            squares = [
                np.square(y[i, :n].numpy() - np.mod(w[:, None, None] * (u * x[i, :n].numpy() - phi[:, None]), 1)).sum(
                    -1
                )
                for u in (-1, 1)
            ]
            parts = [
                logsumexp(-np.stack(squares) / (2 * s**2)) + weight - n * math.log(s * math.sqrt(2 * math.pi))
                for s, weight in zip(sd, log_weight, strict=True)
            ]
            log_evidence.append(logsumexp(parts) - math.log(2 * len(w) * len(phi)))
        assert got[i].item() == pytest.approx(log_evidence[1] - log_evidence[0], abs=2e-3)


def test_sawtooth_predictive_integrates_to_one() -> None:
    x, y = _functions("sawtooth", 1, 6, seed=4)
    grid = torch.linspace(-0.8, 1.8, 131, dtype=torch.float64)
    x, y = x.expand(131, 6), torch.cat([y[:, :5].expand(131, 5), grid[:, None]], dim=1)
    density = oracle.sawtooth_log_prob(*_split(x, y, 5)).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("prior", oracle.PRIORS)
@pytest.mark.parametrize("num_context", [0, 1, 9])
def test_log_prob_obeys_chain_rule(prior: str, num_context: int) -> None:
    x, y = _functions(prior, 2, num_context + 5, seed=5)
    middle = num_context + 2
    joint = oracle.oracle_log_prob(prior, *_split(x, y, num_context))
    first = oracle.oracle_log_prob(prior, *_split(x[:, :middle], y[:, :middle], num_context))
    rest = oracle.oracle_log_prob(prior, *_split(x, y, middle))
    torch.testing.assert_close(first + rest, joint, rtol=0, atol=2e-3)


@pytest.mark.parametrize("prior", oracle.PRIORS)
@pytest.mark.parametrize("num_context", [0, 8, 48])
def test_doubling_nodes_changes_nothing(prior: str, num_context: int) -> None:
    data = _split(*_functions(prior, 3, num_context + 16, seed=6), num_context)
    change = oracle.oracle_log_prob(prior, *data, resolution=2.0) - oracle.oracle_log_prob(prior, *data)
    assert change.abs().max().item() / 16 < 2e-4


@pytest.mark.parametrize("prior", oracle.PRIORS)
def test_log_prob_ignores_order_and_trailing_dimension(prior: str) -> None:
    x, y = _functions(prior, 2, 9, seed=7)
    plain = _split(x, y, 5)
    shuffled = [value.flip(1)[..., None] for value in plain]
    expected, got = oracle.oracle_log_prob(prior, *plain), oracle.oracle_log_prob(prior, *shuffled)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_log_prob_converts_float32() -> None:
    data = [value.float() for value in _split(*_functions("gp-1d-noisy", 2, 7, seed=8), 4)]
    got = oracle.oracle_log_prob("gp-1d-noisy", *data)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, oracle.gp_log_prob(*[value.double() for value in data]), rtol=0, atol=0)


def test_log_prob_rejects_bad_input() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="prior_name must be one of"):
        oracle.oracle_log_prob("gp", x, x, x, x)
    with pytest.raises(ValueError, match="y_target must have as many values as x_target"):
        oracle.sawtooth_log_prob(x, x, x, x[:, :2])
    with pytest.raises(ValueError, match="x_target must have batch size 2"):
        oracle.gp_log_prob(x, x, x[:1], x[:1])
    with pytest.raises(ValueError, match="y_context must be finite"):
        oracle.gp_log_prob(x, x / 0, x, x)
    with pytest.raises(ValueError, match="noise_sd must be None or bounds"):
        oracle.gp_log_prob(x, x, x, x, noise_sd=(0.5, 0.003))

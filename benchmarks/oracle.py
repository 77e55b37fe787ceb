r"""The ceiling: Bayes-optimal joint predictive log densities of three priors.

For a prior with hyperparameters $\theta$ the best possible joint prediction of M targets is
$$\log p(y^* \mid x^*, C) = \log Z(y_C, y^*) - \log Z(y_C), \qquad Z(y) = \int p(y \mid \theta) p(\theta) d\theta,$$
and for the priors below the integrals have three or four dimensions, so quadrature reaches them:

- `gp-1d`, `gp-1d-noisy`: kernel class, lengthscale, variance and (noisy) noise. One eigendecomposition per kernel and
  lengthscale serves every variance and noise; the lengthscale grid is refined where the posterior mass is.
- `sawtooth`: direction, frequency, phase and noise. The likelihood is discontinuous; the phase integral is exact,
  segment by segment, and a bound on the likelihood of a whole frequency interval decides which intervals are skipped.

It shares no code with the package, and works in float64 on the CPU, one function at a time.

    python benchmarks/oracle.py --prior gp-1d --num-functions 20
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PRIORS = ("gp-1d", "gp-1d-noisy", "sawtooth")
KERNEL_PROBABILITIES = {"rbf": 0.4, "matern32": 0.3, "matern52": 0.3}
VARIANCE = (0.5, 1.5)
LENGTHSCALE = (0.1, 1.0)
GP_NOISE_VARIANCE = 1e-5
GP_NOISE_SD = (0.003, 0.5)
FREQUENCY = (3.0, 5.0)
SAWTOOTH_NOISE_SD = (0.05, 0.1)

LENGTHSCALE_INTERVALS = {"rbf": 16, "matern32": 10, "matern52": 10}  # starting grid, even in log lengthscale
MAX_ROUNDS = 16  # halvings of one starting interval
LOG_MASS_CUT = 20.0  # nats below the best lengthscale at which an interval is left alone
PEAK_CUT = 30.0  # nats below the best sawtooth likelihood; the posterior volume costs the evidence about 14 of them


def oracle_log_prob(
    prior_name: str,
    x_context: Tensor,
    y_context: Tensor,
    x_target: Tensor,
    y_target: Tensor,
    progress: bool = False,
    resolution: float = 1.0,
) -> Tensor:
    """Joint log density of the targets given the context under a named prior.

    Args:
        prior_name: `gp-1d`, `gp-1d-noisy` or `sawtooth`.
        x_context: `(B, N)` or `(B, N, 1)`, N >= 0.
        y_context: `(B, N)` or `(B, N, 1)`.
        x_target: `(B, M)` or `(B, M, 1)`, M >= 1.
        y_target: `(B, M)` or `(B, M, 1)`.
        progress: Whether to count the functions on stderr.
        resolution: Factor on all numbers of quadrature nodes; 2 checks that 1 is enough.

    Returns:
        `(B,)` float64, nats per task (all M targets together).

    Raises:
        ValueError: If the prior is unknown, shapes do not fit, or a value is not finite.
    """
    data = (x_context, y_context, x_target, y_target)
    if prior_name == "gp-1d":
        return gp_log_prob(*data, noise_sd=None, resolution=resolution, progress=progress)
    if prior_name == "gp-1d-noisy":
        return gp_log_prob(*data, noise_sd=GP_NOISE_SD, resolution=resolution, progress=progress)
    if prior_name == "sawtooth":
        return sawtooth_log_prob(*data, resolution=resolution, progress=progress)
    raise ValueError(f"prior_name must be one of {PRIORS}; got {prior_name!r}")


def gp_log_prob(
    x_context: Tensor,
    y_context: Tensor,
    x_target: Tensor,
    y_target: Tensor,
    noise_sd: tuple[float, float] | None = GP_NOISE_SD,
    resolution: float = 1.0,
    progress: bool = False,
) -> Tensor:
    r"""Joint log density under the GP prior, kernel class and hyperparameters integrated out.

    $y \sim N(0, s^2 R_{k, \ell} + \sigma^2 I)$, k in RBF 0.4, Matern-3/2 0.3, Matern-5/2 0.3; $s^2 \sim U[0.5, 1.5]$,
    $\ell \sim U[0.1, 1]$; $\sigma$ log-uniform, or $\sigma^2 = 10^{-5}$.

    Args:
        x_context: `(B, N)` or `(B, N, 1)`, N >= 0.
        y_context: `(B, N)` or `(B, N, 1)`.
        x_target: `(B, M)` or `(B, M, 1)`, M >= 1.
        y_target: `(B, M)` or `(B, M, 1)`.
        noise_sd: Bounds of the log-uniform noise standard deviation, or None for the fixed variance 1e-5.
        resolution: Factor on all numbers of quadrature nodes.
        progress: Whether to count the functions on stderr.

    Returns:
        `(B,)` float64, nats per task.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or the noise bounds are not 0 < low < high.
    """
    if noise_sd is not None and not 0 < noise_sd[0] < noise_sd[1]:
        raise ValueError(f"noise_sd must be None or bounds with 0 < low < high; got {noise_sd}")
    x, y, num_context = _joined(x_context, y_context, x_target, y_target)
    sizes = [n for n in (num_context, x.shape[1]) if n > 0]
    grids = [_scale_grid(n, noise_sd, resolution) for n in sizes]

    def log_prob(x: Tensor, y: Tensor) -> float:
        distance = (x[:, None] - x[None, :]).abs()

        def log_likelihood(kernel: str, log_lengthscale: np.ndarray) -> np.ndarray:
            correlation = _correlation(kernel, distance, torch.from_numpy(log_lengthscale).exp())
            pairs = zip(sizes, grids, strict=True)
            return torch.stack([_scale_integral(correlation[:, :n, :n], y[:n], grid) for n, grid in pairs]).numpy()

        log_evidence = _lengthscale_integral(log_likelihood, resolution)
        return float(log_evidence[-1] - (log_evidence[0] if num_context > 0 else 0.0))

    return _each_function(log_prob, x, y, progress)


def sawtooth_log_prob(
    x_context: Tensor,
    y_context: Tensor,
    x_target: Tensor,
    y_target: Tensor,
    resolution: float = 1.0,
    progress: bool = False,
) -> Tensor:
    r"""Joint log density under the sawtooth prior, direction, frequency, phase and noise integrated out.

    $y = (w (u x - \phi)) \bmod 1 + \epsilon$; $u = \pm 1$ equally, $w \sim U[3, 5]$, $\phi \sim U[0, 1]$,
    $\epsilon \sim N(0, \sigma^2)$, $\sigma \sim U[0.05, 0.1]$.

    Args:
        x_context: `(B, N)` or `(B, N, 1)`, N >= 0.
        y_context: `(B, N)` or `(B, N, 1)`.
        x_target: `(B, M)` or `(B, M, 1)`, M >= 1.
        y_target: `(B, M)` or `(B, M, 1)`.
        resolution: Factor on all numbers of quadrature nodes.
        progress: Whether to count the functions on stderr.

    Returns:
        `(B,)` float64, nats per task.

    Raises:
        ValueError: If shapes do not fit, or a value is not finite.
    """
    x, y, num_context = _joined(x_context, y_context, x_target, y_target)

    def log_prob(x: Tensor, y: Tensor) -> float:
        log_evidence = _sawtooth_log_evidence(x, y, resolution)
        if num_context == 0:
            return log_evidence
        return log_evidence - _sawtooth_log_evidence(x[:num_context], y[:num_context], resolution)

    return _each_function(log_prob, x, y, progress)


def _joined(x_context: Tensor, y_context: Tensor, x_target: Tensor, y_target: Tensor) -> tuple[Tensor, Tensor, int]:
    """Checks shapes and puts the context before the targets.

    Returns:
        x `(B, N + M)` and y `(B, N + M)` float64, and N.
    """
    named = {"x_context": x_context, "y_context": y_context, "x_target": x_target, "y_target": y_target}
    for name, value in named.items():
        if not (value.dim() == 2 or (value.dim() == 3 and value.shape[-1] == 1)):
            raise ValueError(f"{name} must have shape (B, n) or (B, n, 1); got {tuple(value.shape)}")
    flat = {name: value.detach().cpu().double().flatten(1) for name, value in named.items()}
    for role in ("context", "target"):
        expected, got = flat[f"x_{role}"].shape, flat[f"y_{role}"].shape
        if expected != got:
            raise ValueError(f"y_{role} must have as many values as x_{role}, {tuple(expected)}; got {tuple(got)}")
    if x_context.shape[0] != x_target.shape[0]:
        raise ValueError(f"x_target must have batch size {x_context.shape[0]}; got {x_target.shape[0]}")
    if x_target.shape[1] == 0:
        raise ValueError("x_target must hold at least one target; got 0")
    for name, value in flat.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} must be finite; got {int((~value.isfinite()).sum())} values that are not")
    x = torch.cat([flat["x_context"], flat["x_target"]], dim=1)  # (B, N + M)
    y = torch.cat([flat["y_context"], flat["y_target"]], dim=1)
    return x, y, x_context.shape[1]


def _each_function(log_prob: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, progress: bool) -> Tensor:
    values = []
    for i in range(x.shape[0]):
        values.append(log_prob(x[i], y[i]))
        if progress:
            print(
                f"\roracle: {i + 1}/{x.shape[0]}", end="\n" if i + 1 == x.shape[0] else "", file=sys.stderr, flush=True
            )
    return torch.tensor(values, dtype=torch.float64)


def _gauss_legendre(low: float, high: float, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights, `(num_nodes,)` float64, of the integral over [low, high]."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    half = (high - low) / 2
    return torch.from_numpy(low + half * (nodes + 1)), torch.from_numpy(half * weights)


# Gaussian processes: variance and noise


@dataclass(frozen=True)
class _ScaleGrid:
    """Quadrature over variance and noise for n points.

    The covariance is s^2 (R + delta I) with delta = noise variance / s^2, so the log determinant and the quadratic form
    of R + delta I depend on delta alone. Both are smooth in log delta: computed exactly at few Chebyshev nodes, then
    interpolated to the G quadrature nodes.

    Args:
        delta: `(D,)` Chebyshev nodes.
        interpolation: `(D, G)` from values at `delta` to values at the quadrature nodes.
        variance: `(G,)` s^2 at the quadrature nodes.
        log_weight: `(G,)` log of prior density times quadrature weight; the weights sum to 1.
    """

    delta: Tensor
    interpolation: Tensor
    variance: Tensor
    log_weight: Tensor


def _scale_grid(num_points: int, noise_sd: tuple[float, float] | None, resolution: float) -> _ScaleGrid:
    # n points resolve a variance to a relative sd of sqrt(2 / n) at best, a log noise sd to sqrt(1 / 2n): the numbers
    # of nodes keep the spacing near that, where Gauss-Legendre on a smooth bump is good to 1e-6.
    root = math.sqrt(num_points)
    variance, weight = _gauss_legendre(*VARIANCE, math.ceil(resolution * max(12, 2 * root)))
    log_weight = (weight / (VARIANCE[1] - VARIANCE[0])).log()
    if noise_sd is None:
        log_delta = math.log(GP_NOISE_VARIANCE) - variance.log()
        log_noise_bounds = (math.log(GP_NOISE_VARIANCE) / 2,) * 2
        num_delta = math.ceil(resolution * 8)
    else:
        log_noise_bounds = (math.log(noise_sd[0]), math.log(noise_sd[1]))
        width = log_noise_bounds[1] - log_noise_bounds[0]
        log_noise, noise_weight = _gauss_legendre(*log_noise_bounds, math.ceil(resolution * max(12, 2 * width * root)))
        log_delta = (2 * log_noise[:, None] - variance.log()).flatten()
        log_weight = ((noise_weight / width).log()[:, None] + log_weight).flatten()
        variance = variance.expand(len(log_noise), -1).flatten()
        num_delta = math.ceil(resolution * (8 + 6 * width))
    low = 2 * log_noise_bounds[0] - math.log(VARIANCE[1])
    high = 2 * log_noise_bounds[1] - math.log(VARIANCE[0])
    angle = (torch.arange(num_delta, dtype=torch.float64) + 0.5) * (math.pi / num_delta)
    nodes = low + (high - low) * (1 + angle.cos()) / 2
    barycentric = angle.sin()
    barycentric[1::2] *= -1
    return _ScaleGrid(nodes.exp(), _lagrange(nodes, barycentric, log_delta).T.contiguous(), variance, log_weight)


def _lagrange(nodes: Tensor, barycentric: Tensor, points: Tensor) -> Tensor:
    """Matrix `(P, D)` from values at D nodes to values of the interpolating polynomial at P points."""
    difference = points[:, None] - nodes
    on_node = difference == 0
    terms = barycentric / torch.where(on_node, torch.ones_like(difference), difference)
    matrix = terms / terms.sum(-1, keepdim=True)
    return torch.where(on_node.any(-1, keepdim=True), on_node.double(), matrix)


def _correlation(kernel: str, distance: Tensor, lengthscale: Tensor) -> Tensor:
    """Correlation matrices `(P, n, n)` of distances `(n, n)` at P lengthscales."""
    r = distance / lengthscale[:, None, None]
    if kernel == "rbf":
        return torch.exp(-0.5 * r * r)
    if kernel == "matern32":
        r = math.sqrt(3) * r
        return (1 + r) * torch.exp(-r)
    r = math.sqrt(5) * r
    return (1 + r + r * r / 3) * torch.exp(-r)


def _scale_integral(correlation: Tensor, y: Tensor, grid: _ScaleGrid) -> Tensor:
    """Log likelihood with variance and noise integrated out.

    Args:
        correlation: `(P, n, n)`.
        y: `(n,)`.
        grid: For n points.

    Returns:
        `(P,)`, nats.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(correlation)  # errors of 1e-14, far below the least delta of 6e-6
    projection = y @ eigenvectors  # (P, n)
    shifted = eigenvalues[:, :, None] + grid.delta  # (P, n, D)
    log_det = shifted.log().sum(1) @ grid.interpolation  # (P, G)
    quadratic = (projection.square()[:, :, None] / shifted).sum(1)
    # The log of the quadratic form is the smoother function; the floor only matters for y = 0.
    quadratic = (quadratic.clamp_min(1e-300).log() @ grid.interpolation).exp()  # (P, G)
    log_norm = y.shape[0] * (2 * math.pi * grid.variance).log()
    return torch.logsumexp(grid.log_weight - 0.5 * (log_norm + log_det + quadratic / grid.variance), dim=-1)


# Gaussian processes: kernel class and lengthscale


@dataclass
class _Profile:
    """Log likelihoods of one kernel on a growing grid of log lengthscales.

    Args:
        t: `(P,)` sorted log lengthscales.
        value: `(E, P)` log likelihoods of E data sets (context; context with targets), kernel prior included.
        settled: `(P - 1,)` bool, `True` = interpolation predicted the middle of the interval's parent.
    """

    t: np.ndarray
    value: np.ndarray
    settled: np.ndarray


def _lengthscale_integral(log_likelihood: Callable[[str, np.ndarray], np.ndarray], resolution: float) -> np.ndarray:
    r"""Log evidences: kernel class and lengthscale integrated out.

    The log likelihood is smooth in log lengthscale on a scale far wider than the posterior, so it is interpolated
    (locally, six points), not its exponential. Intervals that may hold mass are halved until interpolation has
    predicted the new middle.

    Args:
        log_likelihood: Takes a kernel name and `(P,)` log lengthscales, returns `(E, P)` log likelihoods.
        resolution: Factor on the number of starting intervals, and on the demanded precision.

    Returns:
        `(E,)`, nats.
    """
    bounds = np.log(LENGTHSCALE)
    tolerance = 1e-3 / resolution
    profiles = {}
    for kernel, num_intervals in LENGTHSCALE_INTERVALS.items():
        t = np.linspace(*bounds, math.ceil(resolution * num_intervals) + 1)
        value = math.log(KERNEL_PROBABILITIES[kernel]) + log_likelihood(kernel, t)
        profiles[kernel] = _Profile(t, value, np.zeros(len(t) - 1, dtype=bool))
    for _ in range(MAX_ROUNDS):
        best = np.max([profile.value.max(1) for profile in profiles.values()], axis=0)  # (E,)
        num_open = 0
        for kernel, profile in profiles.items():
            bound = (_concave_bound(profile.t, profile.value) - best[:, None]).max(0)  # (P - 1,)
            (index,) = np.nonzero(~profile.settled & (bound > -LOG_MASS_CUT))
            if len(index) == 0:
                continue
            num_open += len(index)
            middle = (profile.t[index] + profile.t[index + 1]) / 2
            predicted = _interpolate(profile.t, profile.value, middle)
            value = math.log(KERNEL_PROBABILITIES[kernel]) + log_likelihood(kernel, middle)
            mass = np.exp(np.minimum(np.maximum(predicted, value) - best[:, None], 0))
            settled = (np.abs(predicted - value) * mass).max(0) < tolerance
            profile.settled[index] = settled
            profile.settled = np.insert(profile.settled, index + 1, settled)
            profile.t = np.insert(profile.t, index + 1, middle)
            profile.value = np.insert(profile.value, index + 1, value, axis=1)
        if num_open == 0:
            break
    else:
        raise RuntimeError(f"the lengthscale grid must settle in {MAX_ROUNDS} halvings; it did not")
    unit, unit_weight = np.polynomial.legendre.leggauss(math.ceil(10 * resolution))
    log_terms = []
    for profile in profiles.values():
        half = np.diff(profile.t)[:, None] / 2
        points = (profile.t[:-1, None] + half * (1 + unit)).ravel()
        log_density = points - math.log(LENGTHSCALE[1] - LENGTHSCALE[0])  # uniform in the lengthscale, not in its log
        log_terms.append(
            _interpolate(profile.t, profile.value, points) + log_density + np.log(half * unit_weight).ravel()
        )
    return torch.from_numpy(np.concatenate(log_terms, axis=1)).logsumexp(1).numpy()


def _concave_bound(t: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Upper bound in each interval of a function that is concave near it.

    There it lies below the lines through the two points on its left and through the two on its right.

    Args:
        t: `(P,)` sorted, P >= 3.
        value: `(E, P)`.

    Returns:
        `(E, P - 1)`.
    """
    width = np.diff(t)
    slope = np.diff(value) / width
    left, right = value[:, :-1], value[:, 1:]
    left_slope = np.concatenate([slope[:, 1:2], slope[:, :-1]], axis=1)  # the edges have one line: used twice
    right_slope = np.concatenate([slope[:, 1:], slope[:, -2:-1]], axis=1)
    at_left = np.concatenate([right[:, :1], left[:, 1:]], axis=1)
    offset = np.concatenate([width[:1], np.zeros(len(width) - 1)])
    at_right = np.concatenate([right[:, :-1], left[:, -1:]], axis=1)
    back = np.concatenate([width[:-1], np.zeros(1)])
    fraction = np.linspace(0, 1, 17)[:, None, None] * width
    lines = np.minimum(at_left + left_slope * (fraction - offset), at_right + right_slope * (fraction - back))
    return np.maximum(lines.max(0), np.maximum(left, right))


def _interpolate(t: np.ndarray, value: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Polynomial interpolation through the six nodes around each point.

    Local, so that a cliff of 1e6 nats at an absurd lengthscale does not ring where the mass is.

    Args:
        t: `(P,)` sorted nodes, P >= 6.
        value: `(E, P)`.
        points: `(Q,)`.

    Returns:
        `(E, Q)`.
    """
    first = np.clip(np.searchsorted(t, points) - 3, 0, len(t) - 6)
    stencil = first[:, None] + np.arange(6)  # (Q, 6)
    nodes = t[stencil]
    result = np.zeros((len(value), len(points)))
    for j in range(6):
        others = [i for i in range(6) if i != j]
        weight = np.prod((points[:, None] - nodes[:, others]) / (nodes[:, j : j + 1] - nodes[:, others]), axis=1)
        result += value[:, stencil[:, j]] * weight
    return result


# Sawtooth


def _sawtooth_log_evidence(x: Tensor, y: Tensor, resolution: float) -> float:
    r"""Log evidence of one function.

    With the signed frequency f = u w, $a_i = f x_i \bmod 1$ and the phase $\psi = w \phi \bmod 1$, the residual of
    point i is $y_i - a_i + \psi - 1[\psi > a_i]$: between sorted $a_i$ the sum of squares S is a parabola in $\psi$. So
    the integral over $\psi$ is a sum of Gaussian segments, exact; that over the noise is smooth; that over f has kinks,
    where a segment vanishes, and is a midpoint sum over cells much narrower than the posterior.

    No cell with mass is missed: residuals taken modulo 1 give a smaller sum of squares; the square root of its minimum
    over the phase has slope at most $\lVert x - \bar x \rVert$ in f, hence a bound on the likelihood anywhere in
    a cell.

    Args:
        x: `(n,)`, n >= 1.
        y: `(n,)`.
        resolution: Factor on the numbers of nodes.

    Returns:
        Nats.
    """
    num_points = x.shape[0]
    spread = (x - x.mean()).norm()
    width, target_width = 0.01, min(1e-3, 0.03 / num_points) / resolution
    edges = torch.arange(FREQUENCY[0], FREQUENCY[1] - width / 2, width, dtype=torch.float64)
    f = torch.cat([edges + width / 2, -edges - width / 2])
    best = torch.tensor(-math.inf, dtype=torch.float64)
    while True:
        ceiling = (_circular_sum_of_squares(f, x, y).sqrt() - spread * width / 2).clamp_min(0).square()
        segments = _phase_segments(f, x, y)
        best = torch.maximum(best, _best_log_likelihood(segments.least, num_points).max())
        keep = _best_log_likelihood(ceiling, num_points) > best - PEAK_CUT
        if width <= target_width:
            break
        num_parts = min(4, math.ceil(width / target_width))
        width /= num_parts
        shift = (torch.arange(num_parts, dtype=torch.float64) - (num_parts - 1) / 2) * width
        f = (f[keep][:, None] + shift).flatten()
    alive = keep[:, None] & (_best_log_likelihood(segments.least, num_points) > best - PEAK_CUT)
    sd, sd_weight = _gauss_legendre(*SAWTOOTH_NOISE_SD, math.ceil(resolution * max(10, 1.5 * math.sqrt(num_points))))
    vertex = segments.vertex[alive][:, None]  # (A, 1), A the segments that may hold mass
    scale = sd / math.sqrt(num_points)
    log_mass = _log_normal_mass(
        (segments.low[alive][:, None] - vertex) / scale, (segments.high[alive][:, None] - vertex) / scale
    )
    log_terms = (
        log_mass
        + (math.sqrt(2 * math.pi) * scale).log()
        - segments.floor[alive][:, None] / (2 * sd.square())
        - num_points * (math.sqrt(2 * math.pi) * sd).log()
        + (sd_weight / (SAWTOOTH_NOISE_SD[1] - SAWTOOTH_NOISE_SD[0])).log()
        + segments.log_density[alive][:, None]
    )
    log_cell = math.log(width / (2 * (FREQUENCY[1] - FREQUENCY[0])))  # direction 1/2, frequency uniform
    return float(log_terms.flatten().logsumexp(0) + log_cell)


def _best_log_likelihood(sum_of_squares: Tensor, num_points: int) -> Tensor:
    """Log likelihood, without its constant, at the noise in the prior's range that suits the sum of squares best."""
    sd = (sum_of_squares / num_points).sqrt().clamp(*SAWTOOTH_NOISE_SD)
    return -sum_of_squares / (2 * sd.square()) - num_points * sd.log()


def _circular_sum_of_squares(f: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Least sum over the points of squared residuals modulo 1, over all phases.

    Args:
        f: `(F,)` signed frequencies.
        x: `(n,)`.
        y: `(n,)`.

    Returns:
        `(F,)`.
    """
    num_points = x.shape[0]
    position = torch.remainder(f[:, None] * x - y, 1).sort(-1).values  # (F, n)
    # The best phase is the mean of the positions after the first k have gone once around the circle, for one of the k.
    k = torch.arange(num_points, dtype=torch.float64)
    passed = position.cumsum(-1) - position
    total = position.sum(-1, keepdim=True) + k
    squares = position.square().sum(-1, keepdim=True) + 2 * passed + k
    return (squares - total.square() / num_points).min(-1).values.clamp_min(0)


@dataclass(frozen=True)
class _PhaseSegments:
    """Intervals of the phase on which S(phase) = n (phase - vertex)^2 + floor; all tensors are `(F, n + 2)`.

    Args:
        low: Lower end of the interval.
        high: Upper end.
        vertex: Minimiser of the parabola, often outside the interval.
        floor: Minimum of the parabola.
        least: Minimum of S in the interval.
        log_density: Prior density of the phase in the interval, nats.
    """

    low: Tensor
    high: Tensor
    vertex: Tensor
    floor: Tensor
    least: Tensor
    log_density: Tensor


def _phase_segments(f: Tensor, x: Tensor, y: Tensor) -> _PhaseSegments:
    num_points = x.shape[0]
    w = f.abs()[:, None]
    position = torch.remainder(f[:, None] * x, 1)  # (F, n)
    # phase = w phi mod 1 with phi uniform: the part of [0, 1] below frac(w) is covered once more.
    breaks, order = torch.cat([position, w.frac()], dim=1).sort(-1)  # (F, n + 1)
    zero = torch.zeros_like(w)
    low, high = torch.cat([zero, breaks], dim=1), torch.cat([breaks, zero + 1], dim=1)  # (F, n + 2)
    residual = y - position  # at phase 0; each point loses 1 when the phase passes it
    is_point = torch.cat([torch.ones_like(residual), zero], dim=1).gather(1, order)
    passed = torch.cat([zero, is_point.cumsum(-1)], dim=1)
    passed_residual = torch.cat([zero, torch.cat([residual, zero], dim=1).gather(1, order).cumsum(-1)], dim=1)
    vertex = (passed - residual.sum(-1, keepdim=True)) / num_points
    squares = residual.square().sum(-1, keepdim=True) - 2 * passed_residual + passed
    floor = (squares - num_points * vertex.square()).clamp_min(0)
    nearest = torch.minimum(torch.maximum(vertex, low), high)
    least = floor + num_points * (nearest - vertex).square()
    times_covered = torch.where(low < w.frac(), w.floor() + 1, w.floor())
    return _PhaseSegments(low, high, vertex, floor, least, (times_covered / w).log())


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """Log of the standard normal probability of [low, high], accurate in both tails; -inf for an empty interval."""
    mirror = low > 0
    low, high = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))


# Self check


def sample_functions(
    prior_name: str, num_functions: int, num_points: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws data from a prior, one point at a time exchangeable: any split is a context and targets.

    Returns:
        x `(B, num_points)` and y `(B, num_points)`, float64.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(num_functions, *shape, generator=generator, dtype=torch.float64)

    x = uniform(-2.0, 2.0, num_points)
    noise = torch.randn(num_functions, num_points, generator=generator, dtype=torch.float64)
    if prior_name == "sawtooth":
        u, w, phi = uniform(-1, 1, 1).sign(), uniform(*FREQUENCY, 1), uniform(0, 1, 1)
        sd = uniform(*SAWTOOTH_NOISE_SD, 1)
        return x, torch.remainder(w * (u * x - phi), 1) + sd * noise
    log_sd = uniform(math.log(GP_NOISE_SD[0]), math.log(GP_NOISE_SD[1]), 1)
    noise_variance = torch.full_like(log_sd, GP_NOISE_VARIANCE) if prior_name == "gp-1d" else (2 * log_sd).exp()
    variance, lengthscale = uniform(*VARIANCE, 1), uniform(*LENGTHSCALE)
    weights = torch.tensor(list(KERNEL_PROBABILITIES.values()))
    classes = torch.multinomial(weights, num_functions, replacement=True, generator=generator)
    names = list(KERNEL_PROBABILITIES)
    distance = (x[:, :, None] - x[:, None, :]).abs()
    correlation = torch.cat(
        [_correlation(names[k], distance[i], lengthscale[i : i + 1]) for i, k in enumerate(classes)]
    )
    covariance = variance[:, :, None] * correlation + torch.diag_embed(noise_variance.expand(-1, num_points))
    return x, (torch.linalg.cholesky(covariance) @ noise[:, :, None]).squeeze(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Oracle mean log density per target, by context size.")
    parser.add_argument("--prior", choices=PRIORS, default="gp-1d")
    parser.add_argument("--num-functions", type=int, default=20)
    parser.add_argument("--num-context", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--num-targets", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--check", action="store_true", help="repeat with twice the nodes, report the largest change per target"
    )
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    num_targets = args.num_targets
    x, y = sample_functions(args.prior, args.num_functions, max(args.num_context) + num_targets, generator)
    rows = []
    print("    N   mean/target      se   s/function" + ("   change at doubled nodes" if args.check else ""))
    for num_context in args.num_context:
        context = slice(num_targets, num_targets + num_context)  # the same targets at every context size
        data = (x[:, context], y[:, context], x[:, :num_targets], y[:, :num_targets])
        start = time.perf_counter()
        log_prob = oracle_log_prob(args.prior, *data)
        seconds = (time.perf_counter() - start) / args.num_functions
        se = log_prob.std().item() / num_targets / math.sqrt(args.num_functions) if args.num_functions > 1 else math.nan
        row = {"num_context": num_context, "mean": log_prob.mean().item() / num_targets, "se": se, "seconds": seconds}
        if args.check:
            change = oracle_log_prob(args.prior, *data, resolution=2.0) - log_prob
            row["change"] = change.abs().max().item() / num_targets
        rows.append(row)
        last = f"   {row['change']:.1e}" if args.check else ""
        print(f"{num_context:5d}   {row['mean']:11.4f}   {se:.4f}   {seconds:10.4f}{last}", flush=True)
    overall = sum(row["mean"] for row in rows) / len(rows)
    settings = {"prior": args.prior, "num_functions": args.num_functions, "num_targets": num_targets, "seed": args.seed}
    print(json.dumps(settings | {"mean": overall, "rows": rows}))


if __name__ == "__main__":
    main()

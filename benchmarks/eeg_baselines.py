"""What a user would take instead of the network for recordings: joint densities of targets given a context.

A Bayesian vector autoregression fitted to the context alone; a multi-output Gaussian process fitted to the context,
starting from hyperparameters of the training subjects and kept near them, as few samples fit too well; and the vector
autoregression of the training subjects' trials as a Gaussian law, which conditions on samples at any times as a Kalman
smoother does. All densities are exact for their model, joint over targets and channels, in nats.

The autoregressions are our own: that of statsmodels is fitted by least squares, and seven channels have 49 coefficients
for each lag, more than a short context determines. Averaged over priors that shrink them, it has a density in closed
form for any context.
"""

import math
from typing import NamedTuple

import scipy.linalg
import torch
from torch import Tensor

ORDERS, SHRINKAGES = (1, 2, 4), (0.03, 0.1, 0.3, 1.0)  # of a vector autoregression, averaged over
LAW_ORDER = 8
LOG_AMPLITUDES = torch.linspace(-1.2, 1.2, 13, dtype=torch.float64)  # a trial's amplitude against the usual one
AMPLITUDE_SD = 0.4
STEPS, LEARNING_RATE, PRIOR_SD = 10, 0.05, 0.1  # of the hyperparameters of a Gaussian process fitted to a context


def vector_autoregression(context: Tensor, targets: Tensor) -> Tensor:
    """Log density of the samples after a context under Bayesian vector autoregressions fitted to it.

    Normal-inverse-Wishart priors about a random walk, whose innovations have the variance of the context's first
    differences, with ridges that grow with the square of the lag; averaged over orders and shrinkages by their evidence
    on the context. One step ahead the law is a multivariate t, updated with every sample.

    Args:
        context: `(B, N, D)` successive samples, N >= 3.
        targets: `(B, M, D)`, those directly after.

    Returns:
        `(B,)` nats.
    """
    y, num_context = torch.cat([context, targets], 1).double(), context.shape[1]
    fitting = [order for order in ORDERS if order <= num_context // 3] or [1]
    start = max(fitting)  # the evidence of all orders is that of the same samples
    steps = [one_step_ahead(y, order, shrinkage, start, num_context) for order in fitting for shrinkage in SHRINKAGES]
    evidence = torch.stack([each[:, : num_context - start].sum(1) for each in steps])
    total = torch.stack([each.sum(1) for each in steps])
    return total.logsumexp(0) - evidence.logsumexp(0)


def one_step_ahead(y: Tensor, order: int, shrinkage: float, start: int, num_context: int) -> Tensor:
    """Log densities `(B, T - start)` of the samples of `(B, T, D)`, each given all before it."""
    B, T, D = y.shape
    lags = torch.arange(1, order + 1, dtype=y.dtype).repeat_interleave(D)
    spread = torch.cat([(shrinkage / lags).square(), y.new_tensor([100.0])])
    variance = torch.diag(spread).expand(B, -1, -1).clone()  # of the rows of the coefficients
    coefficients = torch.eye(D * order + 1, D, dtype=y.dtype).expand(B, -1, -1).clone()
    freedom = D + 2.0
    innovations = y[:, :num_context].diff(dim=1).square().mean(1).mean(-1, keepdim=True).clamp(min=1e-4).expand(-1, D)
    scatter = torch.diag_embed(innovations)
    found = []
    for t in range(start, T):
        x = torch.cat([y[:, t - order : t].flip(1).flatten(1), y.new_ones(B, 1)], 1).unsqueeze(-1)
        spread_x = variance @ x
        inflation = 1 + (x.mT @ spread_x).squeeze(-1)
        error = y[:, t] - (coefficients.mT @ x).squeeze(-1)
        scale = scatter * (inflation / (freedom - D + 1)).unsqueeze(-1)
        found.append(log_student_t(error, freedom - D + 1, scale))
        variance = variance - spread_x @ spread_x.mT / inflation.unsqueeze(-1)
        coefficients = coefficients + spread_x @ error.unsqueeze(1) / inflation.unsqueeze(-1)
        scatter = scatter + error.unsqueeze(-1) @ error.unsqueeze(1) / inflation.unsqueeze(-1)
        freedom += 1
    return torch.stack(found, 1)


def log_student_t(error: Tensor, freedom: float, scale: Tensor) -> Tensor:
    """Log density `(B,)` of a multivariate t at `(B, D)` from its centre, with scale matrices `(B, D, D)`."""
    D, root = error.shape[-1], torch.linalg.cholesky(scale)
    z = torch.linalg.solve_triangular(root, error.unsqueeze(-1), upper=False).squeeze(-1)
    size = math.lgamma((freedom + D) / 2) - math.lgamma(freedom / 2) - D / 2 * math.log(freedom * math.pi)
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return size - log_det - (freedom + D) / 2 * torch.log1p(z.square().sum(-1) / freedom)


class TrialLaw(NamedTuple):
    """Trials as a stationary Gaussian process of several channels.

    Attributes:
        covariance: `(T, D, D)`, between a sample and the one h later, h = 0 .. T - 1.
    """

    covariance: Tensor

    def log_prob(self, index: Tensor, y: Tensor, num_context: int) -> Tensor:
        """Log density of the samples `y` `(B, T, D)` at `index` `(B, T)` behind the first N, given those, `(B,)` nats.

        Averaged over a common amplitude of each trial, log-normal with sd 0.4 about 1.
        """
        return torch.stack([self._of_trial(*each, num_context) for each in zip(index, y.double(), strict=True)])

    def _of_trial(self, index: Tensor, y: Tensor, num_context: int) -> Tensor:
        T, D = y.shape
        gap = index - index.unsqueeze(1)
        block = self.covariance[gap.abs()]
        block = torch.where((gap > 0)[..., None, None], block.mT, block)
        matrix = block.transpose(1, 2).reshape(T * D, T * D)
        root = torch.linalg.cholesky(matrix + 1e-6 * matrix.diagonal().mean() * torch.eye(T * D, dtype=y.dtype))
        z = torch.linalg.solve_triangular(root, y.reshape(-1, 1), upper=False).squeeze(-1)
        each = -root.diagonal().log() - 0.5 * math.log(2 * math.pi)
        prior = -0.5 * (LOG_AMPLITUDES / AMPLITUDE_SD).square()
        parts = []
        for size in (T * D, num_context * D):
            squares = z[:size].square().sum()
            density = each[:size].sum() - size * LOG_AMPLITUDES - 0.5 * squares * (-2 * LOG_AMPLITUDES).exp()
            parts.append((density + prior).logsumexp(0))
        return parts[0] - parts[1]


def fit_trial_law(trials: Tensor, order: int = LAW_ORDER) -> TrialLaw:
    """The law of the vector autoregression of trials `(R, T, D)` by the Yule-Walker equations, which is stationary."""
    y = trials.double()
    T, D = y.shape[1:]
    lagged = torch.stack([torch.einsum("rtd,rte->de", y[:, h:], y[:, : T - h]) for h in range(order + 1)])
    between = [[lagged[j - i] if j >= i else lagged[i - j].mT for j in range(order)] for i in range(order)]
    equations = torch.cat([torch.cat(row, 1) for row in between]) / (len(y) * T)
    after = torch.cat(list(lagged[1:]), 1) / (len(y) * T)  # (D, order * D)
    coefficients = torch.linalg.solve(equations, after.mT).mT
    companion = torch.diag(y.new_ones((order - 1) * D), -D)
    companion[:D] = coefficients
    noise = torch.zeros_like(companion)
    noise[:D, :D] = lagged[0] / (len(y) * T) - coefficients @ after.mT
    state = torch.from_numpy(scipy.linalg.solve_discrete_lyapunov(companion.numpy(), noise.numpy()))
    found = []
    for _ in range(T):
        found.append(state[:D, :D])
        state = companion @ state
    return TrialLaw(torch.stack(found))  # cov(y_{t + h}, y_t)


class Hyperparameters(NamedTuple):
    """Of the Gaussian process, unconstrained, for each of B tasks.

    Attributes:
        factor: `(B, D, D)`, of the covariance between channels, the factor times its transpose.
        log_noise: `(B, D)`, variances.
        log_length: `(B, 2)`, of a smooth and a rough kernel, samples.
        logits: `(B, 3)`, of the shares of the smooth one, the rough one, and a constant.
    """

    factor: Tensor
    log_noise: Tensor
    log_length: Tensor
    logits: Tensor

    @staticmethod
    def default(num_tasks: int, dim: int) -> "Hyperparameters":
        """Channels correlated by 0.75, noise of a tenth, lengths of 3 and 40 samples."""
        sizes = torch.linspace(1.0, 1.3, dim, dtype=torch.float64)  # equal eigenvalues would have no derivative
        between = (0.75 + 0.25 * torch.eye(dim, dtype=torch.float64)) * sizes * sizes.unsqueeze(-1)
        parts = (torch.linalg.cholesky(between), torch.full((dim,), -2.3), torch.tensor([3.0, 40.0]).log())
        parts = (*parts, torch.zeros(3))
        return Hyperparameters(*(each.double().expand(num_tasks, *each.shape).clone() for each in parts))


def gp_log_prob(parameters: Hyperparameters, index: Tensor, y: Tensor) -> Tensor:
    """Log density `(B,)` of `(B, T, D)` samples at `(B, T)`: coregionalisation, noise per channel.

    Whitened by the noise, channels are rotated so that their covariance is diagonal: D Gaussian processes of size T.
    """
    gap = (index.unsqueeze(-1) - index.unsqueeze(-2)).abs().double()
    smooth, rough = (gap / length[:, None, None] for length in parameters.log_length.exp().unbind(-1))
    shares, root3 = parameters.logits.softmax(-1)[..., None, None], math.sqrt(3) * rough
    kernel = shares[:, 0] * (-0.5 * smooth.square()).exp() + shares[:, 1] * (1 + root3) * (-root3).exp() + shares[:, 2]
    noise = (0.5 * parameters.log_noise).exp()
    factor = parameters.factor / noise.unsqueeze(-1)
    values, vectors = torch.linalg.eigh(factor @ factor.mT)
    z = ((y / noise.unsqueeze(1)) @ vectors).mT  # (B, D, T)
    T = y.shape[1]
    matrix = values.clamp(min=1e-9)[..., None, None] * kernel.unsqueeze(1) + torch.eye(T, dtype=y.dtype)
    root = torch.linalg.cholesky(matrix)
    white = torch.linalg.solve_triangular(root, z.unsqueeze(-1), upper=False)
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2)) + T * noise.log().sum(-1)
    return -0.5 * white.square().sum((1, 2, 3)) - log_det - 0.5 * y[0].numel() * math.log(2 * math.pi)


def fit_gp(
    start: Hyperparameters, index: Tensor, y: Tensor, steps: int = STEPS, shared: bool = False
) -> Hyperparameters:
    """Hyperparameters near `start` that maximise the marginal likelihood of each task, or of all if `shared`.

    Args:
        start: Of each task, the centre of a normal prior of sd 0.1; of one task if `shared`, without a prior.
        index: `(B, T)` samples.
        y: `(B, T, D)`.
        steps: Of Adam.
        shared: Whether all tasks have the same hyperparameters.
    """
    free = Hyperparameters(*(each.clone().requires_grad_() for each in start))
    optimizer = torch.optim.Adam(list(free), lr=0.1 if shared else LEARNING_RATE)
    for _ in range(steps):
        spread = Hyperparameters(*(each.expand(len(y), *each.shape[1:]) for each in free))
        loss = -gp_log_prob(spread, index, y).sum()
        if shared:
            loss = loss / y.shape[0]
        else:
            distance = ((a - b).square().sum() for a, b in zip(free, start, strict=True))
            loss = loss + sum(distance) / (2 * PRIOR_SD**2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Hyperparameters(*(each.detach() for each in free))


def gaussian_process(start: Hyperparameters, index: Tensor, y: Tensor, num_context: int) -> Tensor:
    """Log density `(B,)` of the samples behind the first N given those, of a process fitted to those N.

    Args:
        start: What the hyperparameters are near.
        index: `(B, T)`.
        y: `(B, T, D)`, of about unit scale.
        num_context: N.
    """
    y = y.double()
    starts = Hyperparameters(*(each.expand(len(y), *each.shape[1:]) for each in start))
    fitted = fit_gp(starts, index[:, :num_context], y[:, :num_context])
    with torch.no_grad():
        return gp_log_prob(fitted, index, y) - gp_log_prob(fitted, index[:, :num_context], y[:, :num_context])

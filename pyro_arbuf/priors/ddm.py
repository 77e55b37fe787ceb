r"""Drift-diffusion model of choices and response times: its density, an exact sampler and a Pyro program.

Evidence starts midway between the bounds 0 and a, drifts at rate v with unit diffusion and stops at the first bound it
meets. With theta = v a / 2 and tau = 4 t / a^2 (t the passage time), choice and time are independent,

    P(upper) = 1 / (1 + exp(-v a)),    p(tau) = cosh(theta) exp(-theta^2 tau / 2) g(tau),

where g is the density of the first time at which a standard Brownian motion leaves (-1, 1). This module knows nothing
of networks.

Source:
    Navarro & Fuss (2009), Fast and accurate calculations for first-passage times in Wiener diffusion models;
    the form of g and its two series: Devroye (2009), On exact simulation algorithms for some distributions related to
    Jacobi theta functions.
"""

import math
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

COHERENCES = (0.0, 0.032, 0.064, 0.128, 0.256, 0.512)
SWITCH = 2 / math.pi


def _log_hit(tau: Tensor) -> Tensor:
    """Log of twice the density of the time at which a Brownian motion first hits 1, the small-time limit of g."""
    return math.log(2 / math.pi) / 2 - 1.5 * tau.log() - 0.5 / tau


def _log_exit(tau: Tensor) -> Tensor:
    r"""Log density g of the first exit of a standard Brownian motion from (-1, 1).

    g has a series for small and one for large tau, both a leading term times sum_k (-1)^k (2k + 1) exp(-k (k+1) q / 2)
    with q = 4 / tau and q = pi^2 tau. At the switch, tau = 2 / pi, both have q = 2 pi, so that q >= 2 pi everywhere
    and three terms leave a relative error below 7 exp(-12 pi) = 3e-16.

    Args:
        tau: Positive times, any shape.

    Returns:
        The shape of `tau`, nats; its gradient is finite.
    """
    small = tau < SWITCH
    leading = torch.where(small, _log_hit(tau), math.log(math.pi / 2) - math.pi**2 / 8 * tau)
    decay = torch.exp(-torch.where(small, 4 / tau, math.pi**2 * tau))
    return leading + torch.log1p(decay * (5 * decay * decay - 3))


def _sample_exit(theta: Tensor) -> Tensor:
    """Draws tau given theta >= 0, exactly, by rejection.

    The proposal is the time at which a Brownian motion with drift theta first hits 1, an inverse Gaussian with mean
    1 / theta and shape 1 (at theta = 0 the Levy law); g(tau) over twice the hitting density is the probability of
    acceptance, 1 / (1 + exp(-2 theta)) on average.

    Args:
        theta: `(S,)` non-negative.

    Returns:
        `(S,)` exit times.
    """
    tau = torch.empty_like(theta)
    pending = torch.arange(len(theta), device=theta.device)
    while len(pending):
        drift = theta[pending]
        square = torch.randn_like(drift).square()
        root = 2 / (2 * drift + square + (square * (square + 4 * drift)).sqrt())  # of (drift t - 1)^2 = square t
        keep = torch.rand_like(drift) * (1 + drift * root) < 1
        proposal = torch.where(keep, root, 1 / (drift * drift * root))
        accepted = torch.rand_like(drift).log() < _log_exit(proposal) - _log_hit(proposal)
        tau[pending[accepted]] = proposal[accepted]
        pending = pending[~accepted]
    return tau


class DDM(TorchDistribution):
    r"""First passage of a Wiener process between two bounds, from midway, as a signed response time.

    The value is +rt if the upper bound is hit and -rt if the lower; rt = ndt + passage time. Draws are exact; the
    density has a relative error of 3e-16 before rounding, is -inf where rt <= ndt, and is differentiable in value
    and parameters inside its support.

    Args:
        drift: Drift rate v, per second; broadcast with the others.
        boundary: Distance a > 0 of the bounds, in units of the diffusion's standard deviation after one second.
        ndt: Non-decision time >= 0, seconds.
        validate_args: As in every torch distribution.

    Source:
        Navarro & Fuss (2009).

    Example:
        >>> DDM(torch.zeros(3), torch.tensor(2.0), torch.tensor(0.3)).log_prob(torch.tensor([0.8, -0.8, 0.2]))
        tensor([-0.8802, -0.8802,    -inf])
    """

    arg_constraints = {  # pyright: ignore[reportAssignmentType]
        "drift": constraints.real,
        "boundary": constraints.positive,
        "ndt": constraints.nonnegative,
    }
    support = constraints.real  # pyright: ignore[reportAssignmentType]

    def __init__(
        self, drift: Tensor | float, boundary: Tensor | float, ndt: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self.drift, self.boundary, self.ndt = broadcast_all(drift, boundary, ndt)
        super().__init__(self.drift.shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: "DDM | None" = None) -> "DDM":
        """Expands the parameters to `batch_shape` without copying them."""
        new = cast(DDM, self._get_checked_instance(DDM, _instance))
        batch_shape = Size(batch_shape)
        new.drift = self.drift.expand(batch_shape)
        new.boundary = self.boundary.expand(batch_shape)
        new.ndt = self.ndt.expand(batch_shape)
        super(DDM, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Size = Size()) -> Tensor:
        """Draws signed response times, seconds, `sample_shape + batch_shape`."""
        shape = self._extended_shape(sample_shape)
        theta = (0.5 * self.drift * self.boundary).expand(shape)
        upper = torch.rand_like(theta) < torch.sigmoid(2 * theta)
        tau = _sample_exit(theta.abs().reshape(-1)).reshape(shape)
        rt = self.ndt + 0.25 * self.boundary**2 * tau
        return torch.where(upper, rt, -rt)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of signed response times, nats, in the shape of `value` broadcast with the batch."""
        if self._validate_args:
            self._validate_sample(value)
        passage = value.abs() - self.ndt
        possible = passage > 0
        passage = torch.where(possible, passage, 1.0)  # keeps the gradient of the unselected branch finite
        log_exit = _log_exit(4 * passage / self.boundary**2)
        choice = 0.5 * self.drift * (value.sign() * self.boundary - self.drift * passage)
        log_prob = choice + log_exit + math.log(2) - 2 * self.boundary.log()
        return torch.where(possible, log_prob, -math.inf)


class ResponseTime(DDM):
    r"""Response time of a `DDM`, whichever bound is hit.

    From midway, time and choice are independent: p(rt | choice) = p(rt) = p(choice, rt) / P(choice), with
    P(upper) = sigmoid(drift boundary). Parameters, exactness and errors are those of `DDM`.

    Example:
        >>> law = ResponseTime(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(0.3))
        >>> law.log_prob(torch.tensor([0.8, 0.2]))
        tensor([-0.0033,    -inf])
    """

    support = constraints.positive  # pyright: ignore[reportAssignmentType]

    def sample(self, sample_shape: Size = Size()) -> Tensor:
        """Draws response times, seconds, `sample_shape + batch_shape`."""
        return super().sample(sample_shape).abs()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of response times, nats, in the shape of `value` broadcast with the batch."""
        log_upper = super().log_prob(value) - logsigmoid(self.drift * self.boundary)
        return torch.where(value > 0, log_upper, -math.inf)


def ddm(x: Tensor) -> Tensor:
    """Pyro program of a perceptual decision whose drift grows with the coherence of the stimulus.

    Sites: drift ~ LogNormal(2.3, 0.5), boundary ~ LogNormal(0.5, 0.35), ndt ~ Uniform(0.1, 0.6) s, and in the plate
    "trials" y ~ DDM(drift * coherence, boundary, ndt), positive where the choice is correct.

    Args:
        x: `(*batch, n, 1)` coherence of each trial, in [0, 0.512].

    Returns:
        `(*batch, n)` signed response times, seconds.
    """
    drift, boundary, ndt = _sample_latents()
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", DDM(drift * x[..., 0], boundary, ndt))


def ddm_choice_rt(x: Tensor) -> tuple[Tensor, Tensor]:
    """`ddm` with choice and response time as sites of their own, of the same joint density.

    In the plate "trials", choice ~ Bernoulli(P(upper)), 1 where it is correct, and rt ~ ResponseTime in seconds.

    Args:
        x: `(*batch, n, 1)` coherence of each trial, in [0, 0.512].

    Returns:
        Choices and response times, `(*batch, n)` each.
    """
    drift, boundary, ndt = _sample_latents()
    rate = drift * x[..., 0]
    with pyro.plate("trials", x.shape[-2]):
        choice = pyro.sample("choice", dist.Bernoulli(logits=rate * boundary))
        return choice, pyro.sample("rt", ResponseTime(rate, boundary, ndt))


def _sample_latents() -> tuple[Tensor, Tensor, Tensor]:
    """Samples drift, boundary and ndt."""
    drift = pyro.sample("drift", dist.LogNormal(2.3, 0.5))
    boundary = pyro.sample("boundary", dist.LogNormal(0.5, 0.35))
    return drift, boundary, pyro.sample("ndt", dist.Uniform(0.1, 0.6))


def draw_coherence(num_trials: int) -> Tensor:
    """Draws the coherences of one data set: the experiment's six levels or, as often, uniform on [0, 0.512].

    Args:
        num_trials: Trials n.

    Returns:
        `(n, 1)` coherences.
    """
    levels = torch.tensor(COHERENCES)[torch.randint(len(COHERENCES), (num_trials, 1))]
    uniform = COHERENCES[-1] * torch.rand(num_trials, 1)
    return torch.where(torch.rand(()) < 0.5, levels, uniform)

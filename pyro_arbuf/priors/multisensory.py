r"""Causal inference in audio-visual localisation, as two Pyro programs.

An observer hears a sound at s_A and sees a flash at s_V, infers from two noisy percepts whether they had one cause, and
reports where one of them was. The two programs differ in rho, the factor by which the auditory percept is stretched,
which the observer does not know. The density of a response is a Gaussian integral over both percepts, done on a
uniform grid: Gauss-Hermite nodes miss the narrow ridge that a small motor noise leaves and are wrong by nats.
It knows nothing of networks.
"""

import math
from collections.abc import Sequence
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Size, Tensor
from torch.distributions.utils import broadcast_all
from torch.utils.checkpoint import checkpoint

PRIOR = {  # mean and sd of the latents, each truncated at 2 sd
    "log_sigma_v_low": (0.0, 1.5),
    "step_medium": (1.0, 1.0),  # log sigma_V of the medium level less that of the low one
    "step_high": (0.75, 0.5),  # of the high level less the medium one
    "log_sigma_a": (1.75, 0.5),
    "log_sigma_s": (2.5, 1.0),
    "log_sigma_m": (0.0, 0.5),
    "logit_p_same": (1.5, 1.5),
}
NUM_SD = 2.0
LAPSE = 0.02
LAPSE_BOUND = 45.0  # degrees
AUDITORY_LOCATIONS = (-15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0)
VISUAL_BOUND = 20.0
GRID_SD = 6.0
CHUNK_BYTES = 2**19  # of a grid at a time: more than that is given back to the system and fetched again


class TruncatedNormal(dist.TorchDistribution):
    r"""Normal distribution truncated at `num_sd` standard deviations on both sides.

    Args:
        loc: `(*batch)`, mean of the normal.
        scale: `(*batch)`, its standard deviation, > 0.
        num_sd: Half the width of the support in standard deviations, > 0.
        validate_args: As in torch.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, num_sd: float = NUM_SD, validate_args: bool | None = None):
        self.loc, self.scale = broadcast_all(loc, scale)
        self.num_sd = num_sd
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: dist.TorchDistribution | None = None) -> "TruncatedNormal":
        """The same distribution with more batch dimensions."""
        new = cast(TruncatedNormal, self._get_checked_instance(TruncatedNormal, _instance))
        new.loc, new.scale, new.num_sd = self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.num_sd
        super(TruncatedNormal, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The interval within `num_sd` standard deviations of the mean."""
        return constraints.interval(self.loc - self.num_sd * self.scale, self.loc + self.num_sd * self.scale)

    @property
    def mean(self) -> Tensor:
        """`(*batch)`, by symmetry that of the normal."""
        return self.loc

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles: `(*batch)` of probabilities `(*batch)` in [0, 1]."""
        tail = 0.5 * math.erfc(self.num_sd / math.sqrt(2.0))
        quantile = torch.special.ndtri(tail + (1.0 - 2.0 * tail) * value)
        return self.loc + self.scale * quantile.clamp(-self.num_sd, self.num_sd)  # rounding may pass the bound

    def rsample(self, sample_shape: Size = Size()) -> Tensor:
        """Draws `(*sample, *batch)`, by quantiles."""
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density `(*batch)` in nats, -inf outside the support."""
        if self._validate_args:
            self._validate_sample(value)
        z = (value - self.loc) / self.scale
        mass = math.erf(self.num_sd / math.sqrt(2.0))
        density = -0.5 * z.square() - self.scale.log() - 0.5 * math.log(2.0 * math.pi) - math.log(mass)
        return density.masked_fill(~self.support.check(value), -math.inf)


class CausalInferenceResponse(dist.TorchDistribution):
    r"""Reported location in a trial, when the observer infers whether sound and flash had one cause.

    Percepts $x_A \sim N(\rho s_A, \rho^2 \sigma_A^2)$ and $x_V \sim N(s_V, \sigma_V^2)$; the observer takes them for
    $N(s, \sigma_A^2)$ and $N(s, \sigma_V^2)$ with $s \sim N(0, \sigma_S^2)$, one $s$ with probability p_same and two
    otherwise, and averages the two posterior means of the location asked for, $\hat s(x_A, x_V)$. Then
    $$p(y) = 0.98 \int N(y; \hat s(x_A, x_V), \sigma_M^2) p(x_A) p(x_V) dx_A dx_V + 0.02\, U(y; -45, 45).$$

    The integral is a sum over `num_points` percepts each way, even over 6 sd of both sides. Draws simulate percepts.

    Args:
        x: `(*batch, 4)`: r_type (0 visual report, 1 auditory), s_A, s_V in degrees, V_level (not used here).
        sigma_a: `(*batch)`, degrees, > 0.
        sigma_v: `(*batch)`, degrees, > 0, at the trial's V_level.
        sigma_s: `(*batch)`, degrees, > 0.
        sigma_m: `(*batch)`, degrees, > 0.
        logit_p_same: `(*batch)`.
        rho: Factor on the auditory percept, > 0.
        num_points: Of the grid, for x_A and x_V. 81 is for proposals and samplers, 161 for evidence to report.
        validate_args: As in torch.

    Source:
        Koerding et al. (2007), "Causal inference in multisensory perception"; Hassan et al. (2026), appendix.
    """

    arg_constraints = {  # pyright: ignore[reportAssignmentType]
        "sigma_a": constraints.positive,
        "sigma_v": constraints.positive,
        "sigma_s": constraints.positive,
        "sigma_m": constraints.positive,
        "logit_p_same": constraints.real,
    }
    support = constraints.real  # pyright: ignore[reportAssignmentType]
    _names = ("r_type", "s_a", "s_v", "sigma_a", "sigma_v", "sigma_s", "sigma_m", "logit_p_same")

    def __init__(
        self,
        x: Tensor,
        sigma_a: Tensor,
        sigma_v: Tensor,
        sigma_s: Tensor,
        sigma_m: Tensor,
        logit_p_same: Tensor,
        rho: float = 1.0,
        num_points: tuple[int, int] = (81, 81),
        validate_args: bool | None = None,
    ):
        values = broadcast_all(x[..., 0], x[..., 1], x[..., 2], sigma_a, sigma_v, sigma_s, sigma_m, logit_p_same)
        for name, value in zip(self._names, values, strict=True):
            setattr(self, name, value)
        self.rho, self.num_points = rho, num_points
        super().__init__(values[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: Size, _instance: dist.TorchDistribution | None = None) -> "CausalInferenceResponse":
        """The same distribution with more batch dimensions."""
        new = cast(CausalInferenceResponse, self._get_checked_instance(CausalInferenceResponse, _instance))
        for name in self._names:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        new.rho, new.num_points = self.rho, self.num_points
        super(CausalInferenceResponse, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Size = Size()) -> Tensor:
        """Draws responses `(*sample, *batch)`, in degrees, by drawing percepts."""
        with torch.no_grad():
            noise = torch.randn(3, *self._extended_shape(sample_shape), dtype=self.s_a.dtype, device=self.s_a.device)
            x_a = self.rho * (self.s_a + self.sigma_a * noise[0])
            x_v = self.s_v + self.sigma_v * noise[1]
            observer = _observer(self.r_type, self.sigma_a, self.sigma_v, self.sigma_s, self.logit_p_same)
            response = _estimate(x_a, x_v, *observer) + self.sigma_m * noise[2]
            lapse = LAPSE_BOUND * (2.0 * torch.rand_like(response) - 1.0)
            return torch.where(torch.rand_like(response) < LAPSE, lapse, response)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density `(*sample, *batch)` in nats; differentiable in the parameters, in memory that does not grow."""
        if self._validate_args:
            self._validate_sample(value)
        parts = torch.broadcast_tensors(value, *(getattr(self, name) for name in self._names))
        y, r_type, s_a, s_v, sigma_a, sigma_v, sigma_s, sigma_m, logit_p_same = (part.reshape(-1) for part in parts)
        odds, estimates = _observer(r_type, sigma_a, sigma_v, sigma_s, logit_p_same)
        unit = math.sqrt(2.0) * sigma_m  # squares in it are the exponent
        percepts = (self.rho * s_a, self.rho * sigma_a, s_v, sigma_v)
        rows = torch.stack([y / unit, *percepts, *odds, *(part / unit for part in estimates)])  # 13 x trials
        chunks = rows.split(max(1, CHUNK_BYTES // (self.num_points[0] * self.num_points[1] * rows.element_size())), 1)
        if len(chunks) > 1 and rows.requires_grad:  # no chunk's grid is kept for the backward pass
            logs = [checkpoint(self._log_integral, chunk, use_reentrant=False) for chunk in chunks]
        else:
            logs = [self._log_integral(chunk) for chunk in chunks]
        log_normal = (torch.cat(logs) - unit.log() - 0.5 * math.log(math.pi)).reshape(parts[0].shape)
        log_lapse = torch.full_like(log_normal, math.log(LAPSE / (2.0 * LAPSE_BOUND)))
        log_lapse = log_lapse.masked_fill(parts[0].abs() > LAPSE_BOUND, -math.inf)
        return torch.logaddexp(log_normal + math.log1p(-LAPSE), log_lapse)

    def _log_integral(self, rows: Tensor) -> Tensor:
        """Log of the expectation over the percepts of exp(-(y - estimate)^2), `(n,)`, of trials `(13, n)`."""
        y, loc_a, sd_a, loc_v, sd_v, *observer = rows[:, :, None, None]
        t_a, t_v = (torch.linspace(-GRID_SD, GRID_SD, n, dtype=y.dtype, device=y.device) for n in self.num_points)
        w_a, w_v = (
            (-0.5 * t.square()).exp() * (2.0 * GRID_SD / (len(t) - 1) / math.sqrt(2.0 * math.pi)) for t in (t_a, t_v)
        )
        x_a, x_v = loc_a + sd_a * t_a[:, None], loc_v + sd_v * t_v  # (n, n_a, 1), (n, 1, n_v)
        square = (y - _estimate(x_a, x_v, observer[:4], observer[4:])).square()  # (n, n_a, n_v)
        least = square.detach().amin((-2, -1), keepdim=True)  # against underflow
        kernel = (least - square).clamp_min(-80.0).exp()  # below, exp is slow and adds nothing
        return ((kernel @ w_v) @ w_a).log() - least[:, 0, 0]


def _observer(
    r_type: Tensor, sigma_a: Tensor, sigma_v: Tensor, sigma_s: Tensor, logit_p_same: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Coefficients, each `(*batch)`, of the log odds of one cause and of the estimates, in powers of the percepts."""
    var_a, var_v, var_s = sigma_a.square(), sigma_v.square(), sigma_s.square()
    determinant = var_a * var_v + (var_a + var_v) * var_s
    shared = var_s / determinant
    odds_aa, odds_vv = (-0.5 * shared * var_s / (var + var_s) for var in (var_a, var_v))
    alone_a, alone_v = r_type * var_s / (var_a + var_s), (1.0 - r_type) * var_s / (var_v + var_s)
    odds = (logit_p_same + 0.5 * torch.log1p(var_s * shared), odds_aa, odds_vv, shared)
    return odds, (alone_a, alone_v, shared * var_v - alone_a, shared * var_a - alone_v)


def _estimate(x_a: Tensor, x_v: Tensor, odds: Sequence[Tensor], estimates: Sequence[Tensor]) -> Tensor:
    """The location in the observer's mind: the estimate of that cue alone, moved to the fused one by p(one cause)."""
    odds_0, odds_aa, odds_vv, odds_av = odds
    alone_a, alone_v, moved_a, moved_v = estimates
    log_odds = (odds_0 + odds_aa * x_a.square()) + odds_vv * x_v.square() + (odds_av * x_a) * x_v
    return alone_a * x_a + alone_v * x_v + log_odds.sigmoid() * (moved_a * x_a + moved_v * x_v)


def multisensory_rho1(x: Tensor) -> Tensor:
    """Pyro program: observer whose auditory percept is unbiased, rho = 1.

    Sites: the latents of `PRIOR`, then the response "y" in the plate "trials".

    Args:
        x: `(*batch, n, 4)`, columns r_type, s_A, s_V, V_level; see `draw_trials`.

    Returns:
        `(*batch, n)`, responses in degrees.

    Raises:
        ValueError: If x has another shape.

    Source:
        Hassan et al. (2026), the multisensory task; after Koerding et al. (2007).
    """
    return _program(x, 1.0)


def multisensory_rho43(x: Tensor) -> Tensor:
    """`multisensory_rho1` with an auditory percept that is stretched by rho = 4/3 without the observer's knowing."""
    return _program(x, 4.0 / 3.0)


def _program(x: Tensor, rho: float) -> Tensor:
    if x.dim() < 2 or x.shape[-1] != 4:
        raise ValueError(
            f"x must have shape (*batch, n, 4), columns r_type, s_A, s_V, V_level; got {tuple(x.shape)}; "
            "draw_trials(n) gives such trials"
        )
    latents = {
        name: pyro.sample(name, TruncatedNormal(x.new_tensor(loc), x.new_tensor(scale)))
        for name, (loc, scale) in PRIOR.items()
    }
    with pyro.plate("trials", x.shape[-2]):
        return pyro.sample("y", response(x, latents, rho))


def response(
    x: Tensor, latents: dict[str, Tensor], rho: float, num_points: tuple[int, int] = (81, 81)
) -> CausalInferenceResponse:
    """Law of the responses at given latents.

    Args:
        x: `(*batch, n, 4)`, columns r_type, s_A, s_V, V_level.
        latents: Those of `PRIOR`, each scalar or `(*batch, 1)`.
        rho: Factor on the auditory percept.
        num_points: Of the grid of the density, for x_A and x_V.

    Returns:
        A distribution of batch shape `(*batch, n)`.
    """
    level = x[..., 3]
    steps = latents["step_medium"] * (level >= 1.0) + latents["step_high"] * (level >= 2.0)
    return CausalInferenceResponse(
        x,
        latents["log_sigma_a"].exp(),
        (latents["log_sigma_v_low"] + steps).exp(),
        latents["log_sigma_s"].exp(),
        latents["log_sigma_m"].exp(),
        latents["logit_p_same"],
        rho,
        num_points,
    )


def draw_trials(num_trials: int) -> Tensor:
    """Draws the inputs of trials from torch's global generator.

    r_type and V_level are uniform; s_A uniform on seven locations; s_V = s_A in half of the trials, else uniform on
    [-20, 20].

    Args:
        num_trials: Trials n.

    Returns:
        `(n, 4)`, columns r_type (0 visual report, 1 auditory), s_A, s_V in degrees, V_level (0, 1, 2).
    """
    r_type, one_cause = torch.randint(2, (2, num_trials))
    s_a = torch.tensor(AUDITORY_LOCATIONS)[torch.randint(len(AUDITORY_LOCATIONS), (num_trials,))]
    s_v = torch.where(one_cause == 1, s_a, VISUAL_BOUND * (2.0 * torch.rand(num_trials) - 1.0))
    return torch.stack([r_type, s_a, s_v, torch.randint(3, (num_trials,))], -1)

"""What a head returns: the predictives of targets, on values `(*batch, M, D_y)`.

Callers use their methods; the parameters of a mixture are read in its own class only. Knows nothing of networks.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

NARROW = 0.5  # standard deviations: narrower intervals are integrated, wider ones are a difference
GAUSS_LEGENDRE = (  # nodes and weights on [0, 1]
    (0.03376524289842403, 0.16939530676686776, 0.38069040695840156),
    (0.08566224618958514, 0.18038078652406936, 0.23395696728634552),
)


class Predictive(Protocol):
    """What every predictive offers; `GaussianMixture` says what its methods do. Values and results are `(*batch,)`."""

    @property
    def batch_shape(self) -> Size: ...  # noqa: D102
    @property
    def has_implicit_draw(self) -> bool: ...  # noqa: D102
    @property
    def num_components(self) -> int: ...  # noqa: D102
    @property
    def mean(self) -> Tensor: ...  # noqa: D102
    @property
    def variance(self) -> Tensor: ...  # noqa: D102
    def expand(self, batch_shape: Size) -> "Predictive": ...  # noqa: D102
    def map(self, change: Callable[[Tensor], Tensor]) -> "Predictive": ...  # noqa: D102
    def affine(self, loc: Tensor, scale: Tensor) -> "Predictive": ...  # noqa: D102
    def log_prob(self, value: Tensor) -> Tensor: ...  # noqa: D102
    def cdf(self, value: Tensor) -> Tensor: ...  # noqa: D102
    def below(self, value: Tensor) -> Tensor: ...  # noqa: D102
    def icdf(self, value: Tensor) -> Tensor: ...  # noqa: D102
    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor: ...  # noqa: D102
    def implicit_draw(self, uniform: Tensor, normal: Tensor) -> Tensor: ...  # noqa: D102


class GaussianMixture(Distribution):
    r"""Mixture of C Gaussians, elementwise over the batch; a Gaussian for C = 1.

    .. math:: p(y) = \sum_c w_c N(y; \mu_c, \sigma_c^2)

    Besides what `torch.distributions.MixtureSameFamily` offers it has `icdf` and `draw`, a sample from given noise.

    Args:
        log_weights: `(*batch, C)` normalised log weights.
        means: `(*batch, C)`.
        sds: `(*batch, C)`, positive.
    """

    arg_constraints = {}  # pyright: ignore[reportAssignmentType]
    support = constraints.real  # pyright: ignore[reportAssignmentType]
    has_implicit_draw = True  # draws have a derivative

    def __init__(self, log_weights: Tensor, means: Tensor, sds: Tensor):
        self.log_weights, self.means, self.sds = log_weights, means, sds
        super().__init__(means.shape[:-1], validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "GaussianMixture":
        """The same distribution with a larger batch shape, nothing copied."""
        size = (*batch_shape, self.means.shape[-1])
        return GaussianMixture(self.log_weights.expand(size), self.means.expand(size), self.sds.expand(size))

    def map(self, change: Callable[[Tensor], Tensor]) -> "GaussianMixture":
        """The same distributions in another arrangement of the batch.

        Args:
            change: Takes and returns parameters, whose last dimension it leaves in place.
        """
        return GaussianMixture(change(self.log_weights), change(self.means), change(self.sds))

    def affine(self, loc: Tensor, scale: Tensor) -> "GaussianMixture":
        """The distribution of loc + scale * y, of positive scale; both broadcast to `(*batch,)`."""
        loc, scale = loc.unsqueeze(-1), scale.unsqueeze(-1)
        return GaussianMixture(self.log_weights, self.means * scale + loc, self.sds * scale)

    @property
    def num_components(self) -> int:
        """Components C."""
        return self.means.shape[-1]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density `(*batch,)` in nats; -inf, of gradient 0, where the square of a standardised value overflows."""
        z = self._standardised(value)
        largest = torch.finfo(z.dtype).max
        density = torch.logsumexp(self.log_weights - 0.5 * z * z - self.sds.log(), -1) - 0.5 * math.log(2 * math.pi)
        return density.masked_fill(density < -largest / 9, -torch.inf)  # all components at the limit: -largest / 8

    def _standardised(self, value: Tensor) -> Tensor:
        """Values `(*batch, C)` in units of every component, as far out as their squares do not overflow."""
        z = (value.unsqueeze(-1) - self.means) * self.sds.reciprocal()  # a quotient's gradient would be 0 * inf far out
        limit = 0.5 * torch.finfo(z.dtype).max ** 0.5
        return z.clamp(-limit, limit)

    def below(self, value: Tensor) -> Tensor:
        """Probability `(*batch,)` of a smaller value: of a continuous outcome the distribution function."""
        return self.cdf(value)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function `(*batch,)`, at most 1 although the weights sum to 1 up to rounding only."""
        z = (value.unsqueeze(-1) - self.means) / self.sds
        return (self.log_weights.exp() * torch.special.ndtr(z)).sum(-1).clamp(max=1.0)

    def log_mass_below(self, high: Tensor) -> Tensor:
        """Log probability `(*batch,)` of what is at most `high`."""
        z = self._standardised(high)
        return _log_sum(self.log_weights + log_ndtr(z))

    def log_mass(self, low: Tensor, width: Tensor) -> Tensor:
        """Log probability `(*batch,)` of the interval from `low` to `low + width`, however narrow and far out it is.

        Narrow intervals by Gauss-Legendre quadrature of the density, which float32 does not cancel; wide ones by the
        distribution function, on the side of the mean where it is small.
        """
        start = self._standardised(low)
        width = width.unsqueeze(-1) / self.sds
        narrow = width < NARROW
        step = torch.where(narrow, width, NARROW)
        half, weights = (width.new_tensor(numbers) for numbers in GAUSS_LEGENDRE)
        nodes, weights = torch.cat([half, 1 - half]), weights.repeat(2)
        inside = step.unsqueeze(-1) * nodes
        relative = torch.logsumexp(weights.log() - (start.unsqueeze(-1) + 0.5 * inside) * inside, -1)
        quadrature = relative - 0.5 * start * start + step.log() - 0.5 * math.log(2 * math.pi)
        far = torch.where(narrow, start + NARROW, (start + width))
        right = start > 0
        upper = log_ndtr(torch.where(right, -start, far))
        lower = log_ndtr(torch.where(right, -far, start))
        difference = upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-6)))
        return _log_sum(self.log_weights + torch.where(narrow, quadrature, difference))

    def exponential_moment(self, power: int, low: Tensor) -> Tensor:
        """E[exp(power y); y > low], `(*batch,)`."""
        shifted = self.means + power * self.sds.square()
        mass = torch.special.ndtr((shifted - low.unsqueeze(-1)) / self.sds)
        return ((self.log_weights + power * self.means + 0.5 * power**2 * self.sds.square()).exp() * mass).sum(-1)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles `(*batch,)` of probabilities in (0, 1), by bisection to the precision of the dtype.

        Their derivative is that of the inverse function, as for `implicit_draw`.
        """
        value = torch.as_tensor(value, dtype=self.means.dtype, device=self.means.device)
        value, _ = torch.broadcast_tensors(value, self.means[..., 0])
        with torch.no_grad():
            component = self.means + self.sds * torch.special.ndtri(value).unsqueeze(-1)
            low, high = component.amin(-1), component.amax(-1)  # the mixture's quantile lies between its components'
            for _ in range(60):
                middle = 0.5 * (low + high)
                below = self.cdf(middle) < value
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        quantile = 0.5 * (low + high).detach()  # a trace forgets no_grad
        return self._with_derivatives(quantile, value) if torch.is_grad_enabled() else quantile

    @property
    def mean(self) -> Tensor:
        """Mean `(*batch,)`."""
        return (self.log_weights.exp() * self.means).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Variance `(*batch,)`."""
        return (self.log_weights.exp() * (self.sds**2 + (self.means - self.mean.unsqueeze(-1)) ** 2)).sum(-1)

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """The sample that given noise stands for: a component by inversion of `uniform`, a point in it by `normal`.

        Args:
            uniform: `(*batch,)` in [0, 1).
            normal: `(*batch,)` standard normal.

        Returns:
            `(*batch,)`.
        """
        cumulative = self.log_weights.exp().cumsum(-1)
        last = cumulative.shape[-1] - 1
        component = (uniform.unsqueeze(-1) * cumulative[..., -1:] >= cumulative).sum(-1).clamp(max=last).unsqueeze(-1)
        return (self.means.gather(-1, component) + self.sds.gather(-1, component) * normal.unsqueeze(-1)).squeeze(-1)

    def implicit_draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        r"""`draw` with a gradient, the component integrated out (reparameterising the drawn one would be biased).

        .. math:: y = y_0 - (F(y_0) - [F(y_0)]) / [p(y_0)]

        with `[.]` held constant: the value is y_0's, the derivative that of the quantile function.

        Args:
            uniform: `(*batch,)` in [0, 1).
            normal: `(*batch,)` standard normal.

        Returns:
            `(*batch,)`.

        Source:
            Figurnov, Mohamed, Mnih (2018), "Implicit reparameterization gradients".
        """
        return self._with_derivatives(self.draw(uniform, normal).detach(), 0.0)

    def _with_derivatives(self, root: Tensor, value: Tensor | float) -> Tensor:
        """A root of F(y) - value up to a constant, with its derivatives to the third order, by two steps of Newton."""
        least = math.log(torch.finfo(root.dtype).tiny)  # between modes far apart
        for _ in range(2):
            below = self.cdf(root) - value
            root = root - (below - below.detach()) / self.log_prob(root).clamp(min=least).exp()
        return root

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Samples `(*sample_shape, *batch)` with torch's global generator."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            noise = torch.rand(shape, dtype=self.means.dtype, device=self.means.device)
            return self.expand(shape).draw(noise, torch.randn_like(noise)).detach()  # a trace forgets no_grad


def _log_sum(terms: Tensor) -> Tensor:
    """`logsumexp` over the last dimension with a gradient that rounding spares where all terms are large and negative.

    Torch's is exp(terms - sum), which is 1 for several terms where float32 no longer tells the sum from the largest.
    """
    largest = terms.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(terms.dtype).min)
    return torch.logsumexp(terms - largest, -1) + largest.squeeze(-1)


def log_ndtr(z: Tensor) -> Tensor:
    """Log of the standard normal distribution function.

    `torch.special.log_ndtr` has the same values; its gradient is wrong far out: 3.5e6 for 2e4 at -2e4 in float32.
    """
    left, right = z.clamp(max=-1.0), z.clamp(min=-1.0)
    far = torch.log(0.5 * torch.special.erfcx(-math.sqrt(0.5) * left)) - 0.5 * left * left
    return torch.where(z < -1.0, far, torch.log1p(-0.5 * torch.erfc(math.sqrt(0.5) * right)))


class LatentsAmongOutcomes:
    """Predictives of targets of which some are latents, each of which is one number, in dimension 0.

    In the other dimensions of a latent every method returns 0: they have no density, and nothing is drawn there.

    Args:
        at_latent: `(*batch, 1)` bool, which targets are latents.
        latent: Of the latents, batch shape `(*batch, 1)`; means nothing elsewhere.
        outcome: Of the other targets, batch shape `(*batch, D_y)`; means nothing at latents.
        latents_only: Whether all targets are known to be latents, so that the outcome's predictive is never asked.
    """

    def __init__(self, at_latent: Tensor, latent: Predictive, outcome: Predictive, latents_only: bool = False):
        self.at_latent, self.latent, self.outcome, self.latents_only = at_latent, latent, outcome, latents_only

    @property
    def first(self) -> Predictive:
        """The predictive of the first dimension of outcomes that are no latents."""
        return cast(Any, self.outcome).first

    @property
    def has_implicit_draw(self) -> bool:
        """Whether draws of outcomes have a derivative; those of latents have one."""
        return self.outcome.has_implicit_draw

    def _either(self, latent: Tensor, outcome: Callable[[], Tensor]) -> Tensor:
        padded = F.pad(latent, (0, self.batch_shape[-1] - 1))
        return padded if self.latents_only else torch.where(self.at_latent, padded, outcome())

    @property
    def batch_shape(self) -> Size:
        """Targets and outcome dimensions, `(*batch, D_y)`."""
        return self.outcome.batch_shape

    @property
    def num_components(self) -> int:
        """Components of the largest mixture."""
        return max(self.latent.num_components, self.outcome.num_components)

    @property
    def mean(self) -> Tensor:
        """Mean `(*batch, D_y)`."""
        return self._either(self.latent.mean, lambda: self.outcome.mean)

    @property
    def variance(self) -> Tensor:
        """Variance `(*batch, D_y)`."""
        return self._either(self.latent.variance, lambda: self.outcome.variance)

    def expand(self, batch_shape: Size) -> "LatentsAmongOutcomes":
        """The same predictives with a larger batch shape, nothing copied."""
        single = Size((*batch_shape[:-1], 1))
        parts = (self.latent.expand(single), self.outcome.expand(batch_shape))
        return LatentsAmongOutcomes(self.at_latent.expand(single), *parts, self.latents_only)

    def map(self, change: Callable[[Tensor], Tensor]) -> "LatentsAmongOutcomes":
        """The same predictives in another arrangement of the batch, as for `GaussianMixture`."""
        at_latent = change(self.at_latent.unsqueeze(-1)).squeeze(-1)
        parts = (self.latent.map(change), self.outcome.map(change))
        return LatentsAmongOutcomes(at_latent, *parts, self.latents_only)

    def affine(self, loc: Tensor, scale: Tensor) -> "LatentsAmongOutcomes":
        """The predictives of loc + scale * y, of positive scale; both broadcast to `(*batch, D_y)`."""
        parts = (self.latent.affine(loc[..., :1], scale[..., :1]), self.outcome.affine(loc, scale))
        return LatentsAmongOutcomes(self.at_latent, *parts, self.latents_only)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density `(*batch, D_y)` in nats."""
        return self._either(self.latent.log_prob(value[..., :1]), lambda: self.outcome.log_prob(value))

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function `(*batch, D_y)`."""
        return self._either(self.latent.cdf(value[..., :1]), lambda: self.outcome.cdf(value))

    def below(self, value: Tensor) -> Tensor:
        """Probability `(*batch, D_y)` of a smaller value."""
        return self._either(self.latent.below(value[..., :1]), lambda: self.outcome.below(value))

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles `(*batch, D_y)` of probabilities in (0, 1)."""
        first = value[..., :1] if isinstance(value, Tensor) and value.dim() else value
        return self._either(self.latent.icdf(first), lambda: self.outcome.icdf(value))

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """The samples `(*batch, D_y)` that given noise `(*batch, D_y)` stands for."""
        latent = self.latent.draw(uniform[..., :1], normal[..., :1])
        return self._either(latent, lambda: self.outcome.draw(uniform, normal))

    def implicit_draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """`draw` with a gradient, where outcomes have none that of the latents alone."""
        latent = self.latent.implicit_draw(uniform[..., :1], normal[..., :1])
        draw = self.outcome.implicit_draw if self.outcome.has_implicit_draw else self.outcome.draw
        return self._either(latent, lambda: draw(uniform, normal))

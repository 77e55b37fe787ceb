"""What a head returns: the predictive of one target, elementwise over the outcome's dimensions.

Callers use its methods; the parameters of a mixture are read in its own class only. Knows nothing of networks.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

UNIT_SD = 1 / math.sqrt(2 * math.pi)  # of the Gaussian whose log density at its mean is 0


class GaussianMixture(Distribution):
    r"""Mixture of C Gaussians, elementwise over the batch; a Gaussian for C = 1.

    .. math:: p(y) = \sum_c w_c N(y; \mu_c, \sigma_c^2)

    Besides what `torch.distributions.MixtureSameFamily` offers it has `icdf` and `draw`, a sample from given noise.

    Args:
        log_weights: `(*batch, C)` normalised log weights.
        means: `(*batch, C)`.
        sds: `(*batch, C)`, positive.
    """

    arg_constraints = {}
    support = constraints.real

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

    def replaced(self, where: Tensor, other: "GaussianMixture") -> "GaussianMixture":
        """These distributions, and those of `other` at some elements of the batch.

        A mixture of fewer components counts as one of several copies of each.

        Args:
            where: Bool, broadcasts to `(*batch,)`.
            other: Of as many components, or a multiple.
        """
        repeats = other.num_components // self.num_components
        log_weights = self.log_weights - math.log(repeats)
        pairs = ((other.log_weights, log_weights), (other.means, self.means), (other.sds, self.sds))
        return GaussianMixture(*(torch.where(where.unsqueeze(-1), new, old) for new, old in pairs))

    def padded(self, dim: int) -> "GaussianMixture":
        """Outcomes of `dim` dimensions of which this is the first, and whose others are 0, of log density 0."""
        rest = (dim - self.batch_shape[-1], self.num_components)
        fills = ((self.log_weights, -math.log(rest[1])), (self.means, 0.0), (self.sds, UNIT_SD))
        parts = (torch.cat([p, p.new_full(rest, f).expand(*p.shape[:-2], *rest)], -2) for p, f in fills)
        return GaussianMixture(*parts)

    @property
    def num_components(self) -> int:
        """Components C."""
        return self.means.shape[-1]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density `(*batch,)` in nats; -inf, of gradient 0, where the square of a standardised value overflows."""
        z = (value.unsqueeze(-1) - self.means) * self.sds.reciprocal()  # a quotient's gradient would be 0 * inf far out
        largest = torch.finfo(z.dtype).max
        z = z.clamp(-0.5 * largest**0.5, 0.5 * largest**0.5)
        density = torch.logsumexp(self.log_weights - 0.5 * z * z - self.sds.log(), -1) - 0.5 * math.log(2 * math.pi)
        return density.masked_fill(density < -largest / 9, -torch.inf)  # all components at the limit: -largest / 8

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function `(*batch,)`."""
        z = (value.unsqueeze(-1) - self.means) / self.sds
        return (self.log_weights.exp() * torch.special.ndtr(z)).sum(-1)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles `(*batch,)` of probabilities in (0, 1), by bisection to the precision of the dtype; no gradient."""
        with torch.no_grad():
            value = torch.as_tensor(value, dtype=self.means.dtype, device=self.means.device)
            value, _ = torch.broadcast_tensors(value, self.means[..., 0])
            component = self.means + self.sds * torch.special.ndtri(value).unsqueeze(-1)
            low, high = component.amin(-1), component.amax(-1)  # the mixture's quantile lies between its components'
            for _ in range(60):
                middle = 0.5 * (low + high)
                below = self.cdf(middle) < value
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            return 0.5 * (low + high).detach()  # a trace forgets no_grad

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
        y = self.draw(uniform, normal).detach()
        below = self.cdf(y)
        return y - (below - below.detach()) / self.log_prob(y).detach().exp()

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Samples `(*sample_shape, *batch)` with torch's global generator."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            noise = torch.rand(shape, dtype=self.means.dtype, device=self.means.device)
            return self.expand(shape).draw(noise, torch.randn_like(noise)).detach()  # a trace forgets no_grad

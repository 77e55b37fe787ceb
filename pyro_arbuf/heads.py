"""From target features to the predictive of one target, a torch distribution over the outcome's dimensions.

Output dimensions are independent given what the target read. Computed in at least float32 whatever the features are.
Knows nothing of contexts, buffers or orders.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

MIN_SD = 1e-3


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


class GaussianMixtureHead(nn.Module):
    """Features to a mixture of C Gaussians per output dimension.

    Args:
        width: Feature width d.
        hidden_width: Hidden width of the MLP.
        dim_y: Output dimensions D_y.
        num_components: Components C.
    """

    def __init__(self, width: int, hidden_width: int, dim_y: int, num_components: int):
        super().__init__()
        self.dim_y = dim_y
        self.norm = nn.LayerNorm(width, bias=False)
        self.hidden = nn.Linear(width, hidden_width)
        self.out = nn.Linear(hidden_width, 3 * dim_y * num_components)
        nn.init.normal_(self.out.weight, std=0.3 * hidden_width**-0.5)
        with torch.no_grad():
            bias = torch.zeros(3, dim_y, num_components)
            bias[1] = torch.linspace(-1.0, 1.0, num_components) if num_components > 1 else 0.0
            self.out.bias.copy_(bias.flatten())

    def forward(self, features: Tensor) -> GaussianMixture:
        """The predictive, batch shape `(*batch, M, D_y)`, of features `(*batch, M, d)`."""
        with torch.autocast(features.device.type, enabled=False):
            raw = self.out(F.gelu(self.hidden(self.norm(features.to(self.out.weight.dtype)))))
            raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
            logits, means, scales = raw.unflatten(-1, (3, self.dim_y, -1)).unbind(-3)  # 3 x (*batch, M, D_y, C)
            return GaussianMixture(F.log_softmax(logits, -1), means, F.softplus(scales) + MIN_SD)


class GaussianHead(GaussianMixtureHead):
    """Features to one Gaussian per output dimension (the paper's plain alternative)."""

    def __init__(self, width: int, hidden_width: int, dim_y: int):
        super().__init__(width, hidden_width, dim_y, num_components=1)

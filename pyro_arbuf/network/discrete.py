"""Predictives of discrete outcomes: categories and counts, on values `(*batch,)` of floating dtype.

What `GaussianMixture` does for real numbers: log probabilities, distribution functions, draws from given noise.
"""

from collections.abc import Callable

import torch
from torch import Size, Tensor

from pyro_arbuf.network.predictives import GaussianMixture

SUMMED = 64  # counts whose part in a moment is summed; beyond, the sum is an integral


class CategoricalPredictive:
    """Categories 0 .. n-1 with given probabilities.

    Args:
        log_probs: `(*batch, n)` normalised.
    """

    has_implicit_draw = False

    def __init__(self, log_probs: Tensor):
        self.log_probs = log_probs

    @property
    def batch_shape(self) -> Size:
        """Of the values."""
        return self.log_probs.shape[:-1]

    @property
    def num_components(self) -> int:
        """Categories n."""
        return self.log_probs.shape[-1]

    @property
    def probs(self) -> Tensor:
        """Probabilities `(*batch, n)`."""
        return self.log_probs.exp()

    @property
    def mean(self) -> Tensor:
        """Mean of the category's number, for two categories the probability of the second."""
        return (self.probs * self._numbers).sum(-1)

    @property
    def variance(self) -> Tensor:
        """Variance of the category's number."""
        return (self.probs * (self._numbers - self.mean.unsqueeze(-1)) ** 2).sum(-1)

    @property
    def _numbers(self) -> Tensor:
        return torch.arange(self.num_components, device=self.log_probs.device, dtype=self.log_probs.dtype)

    def expand(self, batch_shape: Size) -> "CategoricalPredictive":
        """The same predictive with a larger batch shape, nothing copied."""
        return CategoricalPredictive(self.log_probs.expand(*batch_shape, -1))

    def map(self, change: Callable[[Tensor], Tensor]) -> "CategoricalPredictive":
        """The same predictives in another arrangement of the batch."""
        return CategoricalPredictive(change(self.log_probs))

    def affine(self, loc: Tensor, scale: Tensor) -> "CategoricalPredictive":
        """Itself: categories have no units."""
        return self

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probabilities `(*batch,)`; -inf outside 0 .. n-1, NaN of NaN."""
        index = value.detach().round().nan_to_num(-1.0)
        known = (index >= 0) & (index < self.num_components) & (index == value)
        index = torch.where(known, index, 0.0).long().unsqueeze(-1)
        log_probs, index = torch.broadcast_tensors(self.log_probs, index)
        return _where_known(known, log_probs.gather(-1, index[..., :1]).squeeze(-1), value)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function `(*batch,)`."""
        below = (self.probs * (self._numbers <= value.unsqueeze(-1))).sum(-1).clamp(max=1.0)
        return below.masked_fill(value.isnan(), torch.nan)

    def icdf(self, value: Tensor) -> Tensor:
        """The smallest category whose distribution function reaches a probability."""
        below = self.probs.cumsum(-1)[..., :-1] < torch.as_tensor(value).unsqueeze(-1)
        return below.sum(-1).to(self.log_probs.dtype)

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """The category that `uniform` in [0, 1) stands for, by inversion; `normal` is not used."""
        cumulative = self.probs.cumsum(-1)
        chosen = (uniform.unsqueeze(-1) * cumulative[..., -1:] >= cumulative).sum(-1)
        return chosen.clamp(max=self.num_components - 1).to(self.log_probs.dtype)

    def implicit_draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Raises NotImplementedError: a category has no derivative."""
        raise NotImplementedError("draws of categories have no derivative; build the distribution with rsample=False")

    def below(self, value: Tensor) -> Tensor:
        """Probability of a smaller value."""
        return self.cdf(value - 1)


class CountPredictive:
    r"""Counts 0, 1, 2, ... without a largest one: a mixture of Gaussians on g(y) = log(1 + y), cut into intervals.

    .. math:: P(0) = F(g(1/2)), \quad P(k) = F(g(k + 1/2)) - F(g(k - 1/2))

    Args:
        mixture: F, of batch shape `*batch`.
    """

    has_implicit_draw = False

    def __init__(self, mixture: GaussianMixture):
        self.mixture = mixture

    @property
    def batch_shape(self) -> Size:
        """Of the values."""
        return self.mixture.batch_shape

    @property
    def num_components(self) -> int:
        """Components C."""
        return self.mixture.num_components

    def expand(self, batch_shape: Size) -> "CountPredictive":
        """The same predictive with a larger batch shape, nothing copied."""
        return CountPredictive(self.mixture.expand(batch_shape))

    def map(self, change: Callable[[Tensor], Tensor]) -> "CountPredictive":
        """The same predictives in another arrangement of the batch."""
        return CountPredictive(self.mixture.map(change))

    def affine(self, loc: Tensor, scale: Tensor) -> "CountPredictive":
        """The predictive whose mixture is that of loc + scale * g(y)."""
        return CountPredictive(self.mixture.affine(loc, scale))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probabilities `(*batch,)`; -inf of what is no count, NaN of NaN."""
        count = value.detach().round().nan_to_num(-1.0)
        known = (count >= 0) & (count == value) & count.isfinite()
        count = torch.where(known, count, 0.0)
        width = torch.log1p(1 / (count + 0.5))  # of the count's interval, exact for large counts too
        inner = self.mixture.log_mass(torch.log1p((count - 0.5).clamp(min=-0.5)), width)
        first = self.mixture.log_mass_below(torch.log1p(count + 0.5))
        return _where_known(known, torch.where(count == 0, first, inner), value)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function `(*batch,)`."""
        below = self.mixture.cdf(torch.log1p(value.floor().clamp(min=0.0) + 0.5))
        return torch.where(value < 0, 0.0, below)

    def icdf(self, value: Tensor) -> Tensor:
        """The smallest count whose distribution function reaches a probability."""
        return _count(self.mixture.icdf(value))

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """The count in whose interval the mixture's draw lies."""
        return _count(self.mixture.draw(uniform, normal))

    def implicit_draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Raises NotImplementedError: a count has no derivative."""
        raise NotImplementedError("draws of counts have no derivative; build the distribution with rsample=False")

    def below(self, value: Tensor) -> Tensor:
        """Probability of a smaller value."""
        return self.cdf(value - 1)

    @property
    def mean(self) -> Tensor:
        """Mean: the sum of P(Y > k), which beyond 64 is the integral over a mixture of log-normals."""
        return self._moments[0].to(self.mixture.means.dtype)

    @property
    def variance(self) -> Tensor:
        """Variance; infinite where the square overflows."""
        mean, square = self._moments
        variance = (square - mean.square()).clamp(min=0.0)
        return variance.masked_fill(~square.isfinite(), torch.inf).to(self.mixture.means.dtype)

    @property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and mean square, the sum of (2 k + 1) P(Y > k), `(*batch,)`, in float64: variances are differences."""
        mixture = self.mixture.map(lambda parameter: parameter.double())
        numbers = torch.arange(SUMMED, device=mixture.means.device, dtype=torch.float64)
        above = torch.stack([1 - mixture.cdf(torch.log1p(k + 0.5)) for k in numbers])  # (64, *batch)
        last = torch.log1p(numbers.new_tensor(SUMMED))
        none, first, second = (mixture.exponential_moment(power, last) for power in range(3))  # E[(1 + y)^p; y > 64]
        square = torch.tensordot(2 * numbers + 1, above, 1) + second - 2 * first + (1 - SUMMED**2) * none
        return above.sum(0) + first - (1 + SUMMED) * none, square


def _where_known(known: Tensor, log_prob: Tensor, value: Tensor) -> Tensor:
    """Log probabilities of values that there are; of others -inf, and NaN of NaN."""
    return log_prob.masked_fill(~known, -torch.inf).masked_fill(value.isnan(), torch.nan)


def _count(g: Tensor) -> Tensor:
    return torch.ceil(torch.expm1(g) - 0.5).clamp(0.0, torch.finfo(g.dtype).max)

"""The head of outcomes of several dimensions, or of kinds other than real numbers, and its predictive.

Dimensions are predicted one after the other, each given those before it: h_d = f + sum over e < d of U_e,d phi(y_e),
with f what the target has read. Deviation: the paper's dimensions are independent given f. Knows nothing of contexts,
buffers or orders.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from pyro_arbuf.network.outcomes import Outcome, Real, at_most, one_hot
from pyro_arbuf.network.predictives import Predictive

NUM_FREQUENCIES, MAX_FREQUENCY = 12, 16.0  # of a number's features, radians per standard deviation


class ChainedHead(nn.Module):
    """Features of a target to the predictive of its D_y outcome dimensions, in their order.

    Args:
        width: Feature width d.
        hidden_width: Hidden width of the MLP.
        outcomes: What every dimension is.
        num_components: Components C of the mixtures.
    """

    def __init__(self, width: int, hidden_width: int, outcomes: Sequence[Outcome], num_components: int):
        super().__init__()
        self.outcomes, self.width = tuple(outcomes), width
        self.norm = nn.LayerNorm(width, bias=False)
        self.hidden = nn.Linear(width, hidden_width)
        self.second = nn.Linear(hidden_width, hidden_width) if len(self.outcomes) > 1 else nn.Identity()
        layers = [nn.Linear(hidden_width, each.num_raw(num_components)) for each in self.outcomes]
        self.out, self.largest = nn.ModuleList(layers), max(layer.out_features for layer in layers)
        for layer, outcome in zip(layers, self.outcomes, strict=True):
            nn.init.normal_(layer.weight, std=0.3 * hidden_width**-0.5)
            layer.bias = nn.Parameter(outcome.initial(num_components))
        magnitudes = torch.logspace(0.0, math.log10(MAX_FREQUENCY), NUM_FREQUENCIES)
        self.frequencies = nn.Parameter(magnitudes.repeat(len(self.outcomes) - 1, 1))
        self.links = nn.ModuleList()
        for e, outcome in enumerate(self.outcomes[:-1]):
            num_features = outcome.num_categories or 2 + 2 * NUM_FREQUENCIES
            self.links.append(nn.Linear(num_features, (len(self.outcomes) - 1 - e) * width, bias=False))

    def forward(self, features: Tensor) -> "ChainedPredictive":
        """The predictive, batch shape `(*batch, M, D_y)`, of features `(*batch, M, d)`."""
        zero = features.new_zeros(len(self.outcomes), dtype=torch.promote_types(features.dtype, torch.float32))
        return ChainedPredictive(self, features, zero, zero + 1)

    def link(self, e: int, value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """What a value `(*batch,)` of dimension e adds to the features of those behind, `(*batch, D_y - 1 - e, d)`."""
        outcome = self.outcomes[e]
        if outcome.num_categories:
            phi = one_hot(value, outcome.num_categories)
        else:
            z = at_most((outcome.number(value) - loc) / scale, value)
            squashed = torch.asinh(z).unsqueeze(-1)
            phase = squashed * self.frequencies[e]
            phi = torch.cat([z.unsqueeze(-1), squashed, torch.sin(phase), torch.cos(phase)], -1)
        return self.links[e](phi).unflatten(-1, (-1, self.width))

    def predictives(self, features: Tensor, first: int, last: int) -> list[Predictive]:
        """Standardised predictives of dimensions `first` .. `last` - 1, of features `(*batch, last - first, d)`."""
        with torch.autocast(features.device.type, enabled=False):
            hidden = F.gelu(self.hidden(self.norm(features.to(self.norm.weight.dtype))))
            if len(self.outcomes) > 1:
                hidden = hidden + F.gelu(self.second(hidden))
            found = []
            for d in range(first, last):
                raw = self.out[d](hidden[..., d - first, :])
                raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
                found.append(self.outcomes[d].predictive(raw))
            return found


class ChainedPredictive:
    """The predictive of an outcome of D_y dimensions: each dimension given those before it, on values `(*batch, D_y)`.

    Args:
        head: That predicts.
        features: `(*batch, d)`.
        loc: Location of every dimension's number, broadcasts to `(*batch, D_y)`.
        scale: Scale, likewise.
    """

    def __init__(self, head: ChainedHead, features: Tensor, loc: Tensor, scale: Tensor):
        self.head, self.features, self.loc, self.scale = head, features, loc, scale
        self.dim = len(head.outcomes)

    @property
    def batch_shape(self) -> Size:
        """Of the values, `(*batch, D_y)`."""
        return Size((*self.features.shape[:-1], self.dim))

    @property
    def has_implicit_draw(self) -> bool:
        """Whether every dimension is a real number, so that draws have a derivative."""
        return all(isinstance(outcome, Real) for outcome in self.head.outcomes)

    def expand(self, batch_shape: Size) -> "ChainedPredictive":
        """The same predictives with a larger batch shape, nothing copied."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return ChainedPredictive(self.head, self.features.expand(*batch_shape[:-1], -1), loc, scale)

    def map(self, change: Callable[[Tensor], Tensor]) -> "ChainedPredictive":
        """The same predictives in another arrangement of the batch; `change` leaves the last dimension in place."""
        whole = self.expand(self.batch_shape)
        return ChainedPredictive(self.head, *(change(part) for part in (whole.features, whole.loc, whole.scale)))

    def affine(self, loc: Tensor, scale: Tensor) -> "ChainedPredictive":
        """The predictives of outcomes whose numbers are loc + scale * those of these."""
        return ChainedPredictive(self.head, self.features, loc + scale * self.loc, scale * self.scale)

    def _given(self, value: Tensor) -> list[Predictive]:
        """The predictive of every dimension given the values before it, in one pass."""
        features = self.features.unsqueeze(-2).expand(*self.features.shape[:-1], self.dim, -1)
        for e in range(self.dim - 1):
            added = self.head.link(e, value[..., e], self.loc[..., e], self.scale[..., e])
            features = features + F.pad(added, (0, 0, e + 1, 0))
        found = self.head.predictives(features, 0, self.dim)
        return [each.affine(self.loc[..., d], self.scale[..., d]) for d, each in enumerate(found)]

    def _one_by_one(self, draw: Callable[[Predictive, int], Tensor]) -> Tensor:
        """Values `(*batch, D_y)`, each drawn from its predictive given those before it."""
        added, values = self.features.new_zeros(()), []
        for d in range(self.dim):
            later = self.features.unsqueeze(-2) + added[..., d:, :] if d else self.features.unsqueeze(-2)
            (predictive,) = self.head.predictives(later[..., :1, :], d, d + 1)
            value = draw(predictive.affine(self.loc[..., d], self.scale[..., d]), d)
            values.append(value)
            if d + 1 < self.dim:
                link = self.head.link(d, value, self.loc[..., d], self.scale[..., d])
                added = added + F.pad(link, (0, 0, d + 1, 0))
        return torch.stack(values, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of every dimension given those before it, `(*batch, D_y)` nats."""
        return torch.stack([each.log_prob(value[..., d]) for d, each in enumerate(self._given(value))], -1)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function of every dimension given those before it (Rosenblatt's map)."""
        return torch.stack([each.cdf(value[..., d]) for d, each in enumerate(self._given(value))], -1)

    def below(self, value: Tensor) -> Tensor:
        """Probability of a smaller value in every dimension, given those before it."""
        return torch.stack([each.below(value[..., d]) for d, each in enumerate(self._given(value))], -1)

    @property
    def num_components(self) -> int:
        """Numbers of the largest dimension's predictive, as a measure of the memory that draws take."""
        return self.head.largest

    @property
    def mean(self) -> Tensor:
        """Mean of a scalar outcome, `(*batch, 1)`; raises NotImplementedError for a vector."""
        return self._only().mean.unsqueeze(-1)

    @property
    def variance(self) -> Tensor:
        """Variance of a scalar outcome, `(*batch, 1)`; raises NotImplementedError for a vector."""
        return self._only().variance.unsqueeze(-1)

    def _only(self) -> Predictive:
        if self.dim > 1:
            raise NotImplementedError(
                "the dimensions of a vector outcome depend on each other, so their moments have no closed form; use "
                "d.moments(num_samples)"
            )
        return self.first

    @property
    def first(self) -> Predictive:
        """The predictive of the first dimension, which depends on no other."""
        return self._given(self.features.new_zeros(self.batch_shape))[0]

    def icdf(self, value: Tensor) -> Tensor:
        """Inverse of Rosenblatt's map: the outcome whose conditional distribution functions are `value`."""
        return self._one_by_one(lambda each, d: each.icdf(value[..., d] if value.dim() else value))

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """The outcome that given noise stands for, dimension by dimension."""
        return self._one_by_one(lambda each, d: each.draw(uniform[..., d], normal[..., d]))

    def implicit_draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """`draw` with a gradient, which reaches later dimensions through earlier ones."""
        return self._one_by_one(lambda each, d: each.implicit_draw(uniform[..., d], normal[..., d]))

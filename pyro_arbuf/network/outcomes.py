"""What one dimension of an outcome is: a real number, one of n categories, or a count.

A kind says which values there are, how a value enters a token, how many numbers a head needs for it, and which
predictive those numbers are. Another kind is one class with these methods and a row of `KINDS`. Deviation: the paper
has real numbers only. Knows nothing of networks.
"""

import dataclasses
import re
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from pyro_arbuf.network.discrete import CategoricalPredictive, CountPredictive
from pyro_arbuf.network.predictives import GaussianMixture, Predictive

MIN_SD = 1e-3


class Outcome(Protocol):
    """What every kind says of one dimension, whose values are `(*batch,)` of floating dtype."""

    @property
    def support(self) -> constraints.Constraint:
        """Constraint of one value."""
        ...

    @property
    def values(self) -> str:
        """The values in words, for messages."""
        ...

    @property
    def num_categories(self) -> int:
        """Categories n; 0 where values are numbers, which have a size."""
        ...

    def number(self, value: Tensor) -> Tensor:
        """The number that is standardised and embedded; of categories, 0."""
        ...

    def num_raw(self, num_components: int) -> int:
        """How many numbers of a head are a predictive with C components."""
        ...

    def initial(self, num_components: int) -> Tensor:
        """Such numbers, `(num_raw,)`, before training."""
        ...

    def predictive(self, raw: Tensor) -> Predictive:
        """The predictive that `(*batch, num_raw)` numbers are, in standardised units."""
        ...


@dataclasses.dataclass(frozen=True)
class Real:
    """A real number: a mixture of Gaussians."""

    support = constraints.real
    values = "real numbers"
    num_categories = 0

    def number(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def num_raw(self, num_components: int) -> int:
        """Weights, means and scales."""
        return 3 * num_components

    def initial(self, num_components: int) -> Tensor:
        """Means from -1 to 1."""
        means = torch.linspace(-1.0, 1.0, num_components) if num_components > 1 else torch.zeros(1)
        return torch.cat([torch.zeros(num_components), means, torch.zeros(num_components)])

    def predictive(self, raw: Tensor) -> GaussianMixture:
        """Mixture of Gaussians."""
        logits, means, scales = raw.unflatten(-1, (3, -1)).unbind(-2)
        return GaussianMixture(F.log_softmax(logits, -1), means, F.softplus(scales) + MIN_SD)


@dataclasses.dataclass(frozen=True)
class Categorical:
    """One of n categories, 0 .. n-1: a choice.

    Attributes:
        num_categories: n, at least 2.
    """

    num_categories: int

    @property
    def support(self) -> constraints.Constraint:
        """Integers from 0 to n-1."""
        return constraints.integer_interval(0, self.num_categories - 1)

    @property
    def values(self) -> str:
        """The values in words."""
        return f"the categories 0 to {self.num_categories - 1}"

    def number(self, value: Tensor) -> Tensor:
        """Zero: a category has no size."""
        return torch.zeros_like(value)

    def num_raw(self, num_components: int) -> int:
        """A logit for each category."""
        return self.num_categories

    def initial(self, num_components: int) -> Tensor:
        """Equal probabilities."""
        return torch.zeros(self.num_categories)

    def predictive(self, raw: Tensor) -> CategoricalPredictive:
        """Softmax over the categories."""
        return CategoricalPredictive(F.log_softmax(raw, -1))


@dataclasses.dataclass(frozen=True)
class Count:
    """A count 0, 1, 2, ... without a largest one: a mixture of Gaussians of log(1 + y), cut into intervals."""

    support = constraints.nonnegative_integer
    values = "counts 0, 1, 2, ..."
    num_categories = 0

    def number(self, value: Tensor) -> Tensor:
        """log(1 + y)."""
        return torch.log1p(value.clamp(min=0.0))

    def num_raw(self, num_components: int) -> int:
        """Those of the mixture."""
        return Real().num_raw(num_components)

    def initial(self, num_components: int) -> Tensor:
        """Those of the mixture."""
        return Real().initial(num_components)

    def predictive(self, raw: Tensor) -> CountPredictive:
        """Mixture of Gaussians of log(1 + y), cut into intervals."""
        return CountPredictive(Real().predictive(raw))


def one_hot(value: Tensor, num_categories: int) -> Tensor:
    """Categories `(*batch,)` as `(*batch, n)` zeros and a one, in their dtype; without gradient."""
    index = value.detach().nan_to_num().round().clamp(0, num_categories - 1).long()
    return F.one_hot(index, num_categories).to(value.dtype)


KINDS = {"real": Real, "categorical": Categorical, "count": Count}


def outcome_of(text: str) -> Outcome:
    """The kind that a configuration names: "real", "count", "categorical(3)".

    Raises:
        ValueError: If it names none.
    """
    found = re.fullmatch(r"([a-z_]+)(?:\((\d+)\))?", text) if isinstance(text, str) else None
    if found is None or found[1] not in KINDS:
        raise ValueError(
            f"outcomes must be among {[*KINDS]}, categories with their number: 'categorical(3)'; got {text!r}"
        )
    try:
        outcome = KINDS[found[1]](*([int(found[2])] if found[2] else []))
    except TypeError:
        raise ValueError(
            f"outcomes must say how many categories there are, 'categorical(3)', and nothing else; got {text!r}"
        ) from None
    if 0 < outcome.num_categories < 2:
        raise ValueError(f"outcomes must have at least 2 categories; got {text!r}")
    return outcome


def at_most(standardised: Tensor, y: Tensor) -> Tensor:
    """Standardised outcomes up to a limit, NaN where the outcome is infinite.

    Beyond 1e15 (in float32) layer norms see the direction of a token only, so the limit stands for all that is larger;
    but squares would overflow there, and targets read after one of density 0 would be NaN.
    """
    limit = torch.finfo(standardised.dtype).max ** 0.4
    return standardised.clamp(-limit, limit).masked_fill(y.isinf(), torch.nan)

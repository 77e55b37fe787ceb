r"""What came shortly before a trial of a series: sums of the outcomes before it, whose weights fade with the lag.

A token of the trial at time t is told, beside its own input and outcome,

.. math:: \sum_{s < t} (1 - \rho_r) \rho_r^{t - s - 1} v(y_s), \qquad r = 1..R,

over the trials s that it may read. The first rate is 0: that sum is the trial just before, and a constant among the
numbers v says whether it is known. The others are the recency-weighted sums of models of learning. A token of a pair
thus holds products of neighbours before any attention. Knows nothing of how outcomes become numbers, nor of attention.

Deviation: a token of the paper holds its own input and outcome alone.

Source:
    Lagged values as inputs: Salinas et al. (2020), "DeepAR". Fading sums: Gu et al. (2022), "On the parameterization
    and initialization of diagonal state space models".
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_arbuf.network.tracing import is_traced

LONGEST = 512  # lags, beyond which a sum no longer sees a trial
SLOWEST = 0.97  # the last of the rates


class Trail(NamedTuple):
    """Trials that later ones may read.

    Attributes:
        time: `(*batch, N)`, in units of one trial.
        values: `(*batch, N, V)` numbers of their outcomes, 0 where there is no trial.
    """

    time: Tensor
    values: Tensor

    def followed_by(self, other: "Trail") -> "Trail":
        """These trials and others behind them, of batches that broadcast."""
        times, values = zip(self, other, strict=True)
        batch = torch.broadcast_shapes(*(time.shape[:-1] for time in times))
        of_values = torch.broadcast_shapes(*(value.shape[:-2] for value in values))
        return Trail(
            torch.cat([time.expand(*batch, -1) for time in times], -1),
            torch.cat([value.expand(*of_values, -1, -1) for value in values], -2),
        )

    def of_draws(self) -> "Trail":
        """Those of a context, `(B, N)`, as the draws of its tasks read them, `(B, 1, N)`."""
        return Trail(self.time.unsqueeze(1), self.values.unsqueeze(1))

    def select(self, tasks: slice | Tensor) -> "Trail":
        """Those of some tasks, a slice or `(B',)` int64."""
        return Trail(self.time[tasks], self.values[tasks])


def extended(trail: Trail | None, other: Trail | None) -> Trail | None:
    """A trail and another behind it; `None` = of no trial."""
    return other if trail is None else trail if other is None else trail.followed_by(other)


def fading_rates(number: int) -> Tensor:
    """Rates `(R,)`: 0, then from 0.5 to 0.97 at equal ratios of 1 - rate; by halves, nearly, for R = 6."""
    later = 1 - torch.logspace(-1, math.log2(1 - SLOWEST), max(number - 1, 1), 2.0)
    return torch.cat([torch.zeros(1), later])[:number]


class Traces(nn.Module):
    """Fading sums over the trials of a trail.

    Args:
        number: Rates R.
        num_features: Features of an outcome.
        num_numbers: The first of them, which enter the sums as they are.
        hidden_width: Of the layer that makes others.
        num_learned: Learned numbers of an outcome that enter the sums besides.
    """

    weights: Tensor  # (R, lag)

    def __init__(self, number: int, num_features: int, num_numbers: int, hidden_width: int, num_learned: int = 8):
        super().__init__()
        self.num_numbers = num_numbers
        self.value_in = nn.Linear(num_features, hidden_width)
        self.value_out = nn.Linear(hidden_width, num_learned)
        rates = fading_rates(number)
        weights = (1 - rates).unsqueeze(-1) * rates.unsqueeze(-1) ** torch.arange(LONGEST)
        self.register_buffer("weights", F.pad(weights, (1, 1)), persistent=False)  # nothing at lag 0, nor far off
        self.num_values = 1 + num_numbers + num_learned
        self.size = number * self.num_values

    def values(self, features: Tensor, known: Tensor) -> Tensor:
        """Numbers `(*batch, N, V)` of outcomes, of their features and of which are trials, `(*batch, N)` bool."""
        learned = self.value_out(F.gelu(self.value_in(features)))
        own = features[..., : self.num_numbers]
        return torch.cat([torch.ones_like(own[..., :1]), own, learned], -1) * known.unsqueeze(-1)

    def forward(self, time: Tensor, trail: Trail, visible: Tensor | None = None) -> Tensor:
        """The sums `(*batch, Q, size)` at times `(*batch, Q)`; one of a batch where it would hold the same sums.

        Args:
            time: In units of one trial.
            trail: What may be read: of it the trials that are earlier.
            visible: `(*batch, Q, N)` bool, which of them; `None` = all.
        """
        lags = _of_all(time).unsqueeze(-1) - _of_all(trail.time).unsqueeze(-2)
        lags = lags.round().clamp(0, LONGEST + 1).long()
        lags = lags if visible is None else lags * visible
        weights = self.weights[:, lags].movedim(0, -3)  # (*batch, R, Q, N)
        sums = weights.flatten(-3, -2) @ trail.values
        return sums.unflatten(-2, weights.shape[-3:-1]).transpose(-3, -2).flatten(-2)

    def just_before(self, sums: Tensor) -> Tensor:
        """Numbers `(*batch, Q, D)` of the trial just before, of the sums; 0 where it is unknown."""
        return sums[..., 1 : 1 + self.num_numbers]

    def squashed(self, sums: Tensor) -> Tensor:
        """The same sums, those of numbers far out on a logarithmic scale."""
        rates = sums.unflatten(-1, (-1, self.num_values))
        known, numbers, learned = rates.tensor_split((1, 1 + self.num_numbers), -1)
        return torch.cat([known, torch.asinh(numbers), learned], -1).flatten(-2)


def _of_all(time: Tensor) -> Tensor:
    """Times `(Q,)` where those of a batch `(*batch, Q)` are the same, so that one table of lags serves all; else these.

    Only where a value may decide without waiting for a device.
    """
    if time.dim() == 1 or not time.numel() or time.device.type != "cpu" or is_traced():
        return time
    first = time.flatten(0, -2)[0]
    return first if bool((time == first).all()) else time

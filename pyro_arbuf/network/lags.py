r"""How far apart two trials of a series are, as attention sees it: rotary angles, and heads that begin at a lag.

Queries and keys are turned by angles that grow with the trial's time, so that their product depends on the difference
of two times alone:

.. math:: (R(t) q) \cdot (R(s) k) = q \cdot R(s - t) k.

A head has a bias before it is turned. Those of the first head let a trial read the one before it from the first step of
training on, those of the second its neighbourhood; the others begin without. A series is otherwise learned late, as a
set of trials says nothing of neighbours. What has no time, a latent or an empty context, is neither turned nor biased.
Knows nothing of inputs or of attention.

Deviation: the paper's contexts have no order, and only the slots of its buffer have positions.

Source:
    Su et al. (2021), "RoFormer: enhanced transformer with rotary position embedding".
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SLOWEST = 0.02  # radians per trial, of the slowest angle; the fastest turns by pi
LAG, PEAKS = 1.0, (16.0, 5.0)  # trials; logits of the first heads' biases at their lag and at lag 0


class Turn(NamedTuple):
    """Angles of tokens, and whether they have a time.

    Attributes:
        cos: `(*batch, 1, T, n)` of n angles.
        sin: The same.
        timed: `(*batch, 1, T, 1)`, 1 where a token has a time, else 0.
    """

    cos: Tensor
    sin: Tensor
    timed: Tensor

    def part(self, rows: slice) -> "Turn":
        """Of some of the tokens."""
        return Turn(*(each[..., rows, :] for each in self))


def turn_frequencies(fastest: float, head_width: int) -> Tensor:
    """Frequencies `(h / 2,)` of the angles, radians per unit of time, from the fastest to a 157th of it."""
    slowest = fastest * SLOWEST / math.pi
    return torch.logspace(math.log10(fastest), math.log10(slowest), head_width // 2)


def turn_of(time: Tensor, timed: Tensor, frequencies: Tensor) -> Turn:
    """Angles of tokens with times `(*batch, T)`; `timed` says which have one, the same shape, 1 or 0."""
    angle = ((time * timed).unsqueeze(-1) * frequencies).unsqueeze(-3)
    return Turn(angle.cos(), angle.sin(), timed.unsqueeze(-1).unsqueeze(-3))


def joined_turns(first: Turn | None, second: Turn | None, num_draws: int) -> Turn | None:
    """Angles `(B, S, 1, T, n)` of some tokens and of others behind them, for S draws; `None` = of none."""
    present = [turn for turn in (first, second) if turn is not None]
    if not present:
        return None
    parts = (
        torch.cat([each.expand(-1, num_draws, -1, -1, -1) for each in same], -2) for same in zip(*present, strict=True)
    )
    return Turn(*parts)


def turned(heads: Tensor, bias: Tensor, turn: Turn) -> Tensor:
    """Queries or keys `(*batch, H, T, h)` with the bias `(H, 1, h)` of their heads, turned."""
    return rotated(heads + bias * turn.timed, turn.cos, turn.sin)


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys `(*batch, T, h)`, turned in n planes by angles of cosines and sines `(*batch, T, n)`."""
    n = cos.shape[-1]
    first, second = heads[..., :n], heads[..., n : 2 * n]
    return torch.cat([first * cos - second * sin, first * sin + second * cos, heads[..., 2 * n :]], -1)


def first_biases(num_heads: int, frequencies: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Biases of queries and keys, `(H, 1, h)` each, before training."""
    n = len(frequencies)
    query, key = (torch.zeros(num_heads, 1, head_width) for _ in range(2))
    angles = [LAG * math.pi / frequencies[0] * frequencies, torch.zeros(n)]  # by which a key lags behind
    for head, (peak, angle) in enumerate(zip(PEAKS, angles, strict=True)):
        if head < num_heads - 1:  # one at least begins free
            size = math.sqrt(peak / n * math.sqrt(head_width))
            query[head, 0, :n] = size
            key[head, 0, :n], key[head, 0, n : 2 * n] = size * angle.cos(), size * angle.sin()
    return query, key

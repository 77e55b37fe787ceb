"""Positions of the buffer's slots: what tells tokens and queries how the slots follow one another.

Positions are added to the tokens that enter the buffer (`LearnedPositions`, `NoPositions`), or seen by attention as the
distance of a slot to the query that reads it (`RotaryPositions`, `LinearBias`). The former belong to the embedder, the
latter to the blocks, and a network has one kind: `added_positions` and `relative_positions` make it. A slot is at
distance 0 of the queries that see it and none after it. Knows nothing of what tokens hold.

Deviation: the paper's slots have learned positions; new networks of functions have none.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pyro_arbuf.network.attention import BufferQueries
from pyro_arbuf.network.lags import rotated
from pyro_arbuf.network.visibility import per_draw

SlotPositions = Literal["learned", "none", "rotary", "linear"]
KINDS_OF = {"buffer": get_args(SlotPositions), "lbanp-buffer": ("learned", "none")}  # of others: learned
BASE = 1e4  # the slowest angle turns about as many times more slowly than the fastest, of one radian per slot


class LearnedPositions(nn.Module):
    """A learned vector for each slot, added to the token that fills it: there are no slots beyond those.

    Args:
        buffer_size: Slots K.
        width: Token width d.
    """

    def __init__(self, buffer_size: int, width: int):
        super().__init__()
        self.slot = nn.Parameter(torch.randn(buffer_size, width) * 0.02)

    def forward(self, tokens: Tensor, first_slot: int) -> Tensor:
        """Tokens `(*batch, T, d)` that fill the slots `first_slot`, `first_slot + 1`, ... (counted from 0).

        Raises:
            ValueError: If there are not so many slots.
        """
        last = first_slot + tokens.shape[-2]
        if last > len(self.slot):
            raise ValueError(f"the buffer must hold at most {len(self.slot)} tokens; got {last}")
        return tokens + self.slot[first_slot : first_slot + tokens.shape[-2]]


class NoPositions(nn.Module):
    """Slots that are not told apart: the mask alone says which pairs came before."""

    def forward(self, tokens: Tensor, first_slot: int) -> Tensor:
        """The tokens `(*batch, T, d)` as they are."""
        return tokens


class RotaryPositions(nn.Module):
    """Keys of slots and the queries that read them are turned, so that a product depends on their distance.

    What reads the context is not turned, so that what is read of it depends on no slot.

    Args:
        head_width: Numbers h of a head.

    Source:
        Su et al. (2021), "RoFormer: enhanced transformer with rotary position embedding".
    """

    frequencies: Tensor

    def __init__(self, head_width: int):
        super().__init__()
        n = head_width // 2
        self.register_buffer("frequencies", BASE ** (-torch.arange(n) / n), persistent=False)

    def keys(self, keys: Tensor, first_slot: int) -> Tensor:
        """Keys `(*batch, T, h)` of the slots `first_slot`, `first_slot + 1`, ... (counted from 0), turned by them."""
        slot = torch.arange(first_slot + 1, first_slot + keys.shape[-2] + 1, device=keys.device)
        return self._turned(keys, slot)

    def queries(self, q: Tensor, prefix_len: Tensor | None, num_slots: int) -> BufferQueries:
        """How queries read the slots: turned by the last one that they see.

        Args:
            q: `(B, S, H, Q, h)`.
            prefix_len: int64 `(Q,)`, `(B, Q)` or `(B, S, Q)`, slots that each sees; `None` = all of them.
            num_slots: Slots K that are filled.
        """
        return BufferQueries(self._turned(q, last_slot(q, prefix_len, num_slots)))

    def _turned(self, heads: Tensor, slot: Tensor) -> Tensor:
        """Queries or keys `(*batch, T, h)` at slots that broadcast against `(*batch, T)`."""
        angle = slot.to(heads.dtype).unsqueeze(-1) * self.frequencies.to(heads.dtype)
        return rotated(heads, angle.cos(), angle.sin())


class LinearBias(nn.Module):
    """Scores of slots fall with their distance, at a fixed rate for each head.

    Args:
        num_heads: Heads H.

    Source:
        Press, Smith, Lewis (2022), "Train short, test long: attention with linear biases".
    """

    slopes: Tensor

    def __init__(self, num_heads: int):
        super().__init__()
        slopes = 2.0 ** (-8 * torch.arange(1, num_heads + 1) / num_heads)
        self.register_buffer("slopes", slopes.view(-1, 1, 1), persistent=False)

    def keys(self, keys: Tensor, first_slot: int) -> Tensor:
        """Keys of slots, as they are."""
        return keys

    def queries(self, q: Tensor, prefix_len: Tensor | None, num_slots: int) -> BufferQueries:
        """How queries read the slots, whose scores their distance lowers; arguments as `RotaryPositions` has them."""
        slot = torch.arange(1, num_slots + 1, device=q.device)
        distance = (last_slot(q, prefix_len, num_slots).unsqueeze(-1) - slot).clamp(min=0)  # (..., Q, K)
        return BufferQueries(q, -self.slopes.to(q.dtype) * distance.to(q.dtype))


RelativePositions = RotaryPositions | LinearBias


def last_slot(q: Tensor, prefix_len: Tensor | None, num_slots: int) -> Tensor:
    """The last slot, counted from 1, that queries `(B, S, H, Q, h)` see, broadcasting against `(B, S, H, Q)`."""
    if prefix_len is None:
        return torch.tensor(num_slots, device=q.device).expand(1, 1, 1, 1)
    return per_draw(prefix_len).unsqueeze(2)


def added_positions(kind: SlotPositions, buffer_size: int, width: int) -> nn.Module:
    """What is added to tokens that enter the buffer."""
    return LearnedPositions(buffer_size, width) if kind == "learned" else NoPositions()


def relative_positions(kind: SlotPositions, width: int, num_heads: int) -> RelativePositions | None:
    """What attention sees of slots; `None` = nothing."""
    if kind == "rotary":
        return RotaryPositions(width // num_heads)
    return LinearBias(num_heads) if kind == "linear" else None


def check_slot_positions(kind: object, architecture: str, head_width: float) -> None:
    """Checks the kind of positions of a network's slots.

    Raises:
        ValueError: If it is unknown, the architecture does not have it, or heads are too narrow to turn.
    """
    if kind not in get_args(SlotPositions):
        raise ValueError(f"slot_positions must be one of {', '.join(get_args(SlotPositions))}; got {kind!r}")
    known = KINDS_OF.get(architecture, ("learned",))
    if kind not in known:
        raise ValueError(
            f"slot_positions must be {' or '.join(map(repr, known))} where architecture={architecture!r}; got {kind!r}"
        )
    if kind == "rotary" and head_width < 2:
        raise ValueError(f"slot_positions='rotary' needs heads at least 2 wide; got heads of {head_width:g}")

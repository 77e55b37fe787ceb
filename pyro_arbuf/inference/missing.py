"""Observations whose outcome is missing (NaN): refused, or left out of a context.

Knows nothing of how a context is encoded.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pyro_arbuf.inference.validation import check_kinds, check_y, may_look_at
from pyro_arbuf.network.network import Network
from pyro_arbuf.network.tracing import is_traced
from pyro_arbuf.network.visibility import context_mask
from pyro_arbuf.user_warnings import warn


def check_outcomes(name: str, y: object, model: Network, nan: Literal["raise", "drop"]) -> Tensor:
    """Checks observed outcomes as `check_y` does, and returns what it does; with `nan="drop"`, NaN may be among them.

    Raises:
        ValueError: As `check_y`.
    """
    y = check_y(name, y, model, finite=False)
    if may_look_at(y):
        wrong = ~torch.isfinite(y) if nan == "raise" else torch.isinf(y)
        if bool(wrong.any()):
            what, remedy = "infinite", "drop them"
            if nan == "raise":
                what, remedy = "NaN or infinite", 'leave those pairs out, as net.condition(..., nan="drop") does'
            raise ValueError(f"{name} must be finite; got {int(wrong.sum())} {what} of {y.numel()} values; {remedy}")
    check_kinds(name, y, model.config)
    return y


def drop_missing(x: Tensor, y: Tensor, context_len: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Leaves out the pairs of which any outcome dimension is NaN; the others keep their order.

    Args:
        x: `(B, N, D_x)`.
        y: `(B, N, D_y)`.
        context_len: `(B,)` int64, pairs per task, padding behind them; `None` = all N.

    Returns:
        Pairs as few as the fullest task needs (under a trace, which keeps shapes fixed: N), zeros behind those of the
        others, and their number per task, `None` if all have the same.
    """
    there, known = ~y.isnan().any(-1), ~y.isnan().all(-1)
    if context_len is not None:
        real = context_mask(context_len, y.shape[1])
        there, known = there & real, known & real
    lengths = there.sum(1)
    if not is_traced() and bool((known.any(1) & (lengths == 0)).any()):
        missing = y.isnan().all(1).any(0).nonzero().flatten().tolist()
        where = f"; y[..., {missing[0]}] has no value at all" if missing else ""
        warn(
            'nan="drop" leaves a context without any pair, as each of its pairs has NaN in some outcome dimension'
            f"{where}: predictions are those of the prior; fill in the missing values",
        )
    first = torch.argsort(there.logical_not().to(torch.uint8), dim=1, stable=True)
    behind = ~there.gather(1, first).unsqueeze(-1)
    x, y = (t.gather(1, first.unsqueeze(-1).expand_as(t)).masked_fill(behind, 0.0) for t in (x, y))
    if is_traced():
        return x, y, lengths
    longest = int(lengths.max()) if len(lengths) else 0
    same = bool((lengths == longest).all())
    return x[:, :longest], y[:, :longest], None if same else lengths

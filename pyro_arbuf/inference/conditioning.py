"""From a user's observations and latents to a Context: checked, padded, broadcast, encoded.

Knows nothing of how a model embeds or reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

import torch
from torch import Size, Tensor

from pyro_arbuf.inference.context import Context, check_mode, encode_pairs
from pyro_arbuf.inference.data import y_tensor
from pyro_arbuf.inference.labels import NO_LABELS, read_labels
from pyro_arbuf.inference.missing import check_outcomes, drop_missing
from pyro_arbuf.inference.same_rows import check_same_rows
from pyro_arbuf.inference.series import check_begins, check_series
from pyro_arbuf.inference.tables import (
    TableMap,
    fit_map,
    map_pairs,
    warn_coarse_outcomes,
    warn_equal_outcomes,
    warn_other_unit,
)
from pyro_arbuf.inference.trained_range import (
    warn_other_observation,
    warn_outside,
    warn_outside_counts,
    warn_spacing,
)
from pyro_arbuf.inference.validation import (
    broadcast_batches,
    check_latents,
    check_x,
    may_look_at,
)
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import code, latent_locations, pad_outcome
from pyro_arbuf.network.network import Network
from pyro_arbuf.network.visibility import context_mask


class Pairs(NamedTuple):
    """Checked observations, in the user's units.

    Attributes:
        x: `(B, N, D_x)`, batch flattened, zeros where padded.
        y: `(B, N, D_y)`, likewise.
        context_len: `(B,)` int64, pairs per task; `None` = N for all.
        batch_shape: Of B elements.
    """

    x: Tensor
    y: Tensor
    context_len: Tensor | None
    batch_shape: Size


def make_context(
    model: Network,
    x: Tensor | Sequence[Tensor] | None,
    y: Tensor | Mapping[str, Tensor] | Sequence[Tensor | Mapping[str, Tensor]] | None,
    latents: Mapping[str, Tensor | float] | None = None,
    nan: Literal["raise", "drop"] = "raise",
) -> Context:
    """Checks observations and encodes them; see `ArBufferModel.condition`."""
    config = model.config
    check_mode(model)
    outcomes = _stacked(x, y, model)
    given = [t for v in (x, outcomes) for t in (v if _is_list(v) else (v,))]
    tracked = any(isinstance(t, Tensor) and t.requires_grad for t in given)
    labels = read_labels(x, y, config)
    x, y, context_len, batch_shape = check_pairs(model, x, outcomes, nan)
    tracked = tracked and (nan == "raise" or x.shape[1] > 0)  # where all is missing, nothing has a gradient
    maps = fit_map(config, x, y, context_len)
    if config.missing_x:
        warn_equal_outcomes(maps, y, context_len)
    if maps is not None:
        dtype = next(model.parameters()).dtype
        warn_coarse_outcomes(maps, y.shape[-1], dtype)
        x, y = map_pairs(maps, x, y, context_len, dtype)
        warn_other_unit(maps, y, context_len, config)
    numbers, names = check_latents(latents or {}, model)
    tracked = tracked or numbers.requires_grad
    shape = broadcast_batches({"x and y": batch_shape, "latents": numbers.shape[:-1]})
    if shape.numel() == 0:
        raise ValueError(f"x, y and latents must hold at least one task; got the batch shape {tuple(shape)}")
    _compare_with_training(x, y, context_len, config)
    x, y = code(x, config.latents).clone(), y.clone()  # the user's own may change; a clone keeps the graph
    if names:
        locations = latent_locations(config.latents, names, config.dim_x, y)
        values = pad_outcome(numbers, config.dim_y or 1)
        x, y = (_in_front(part, t, batch_shape, shape) for part, t in ((locations, x), (values, y)))
        if context_len is not None:
            context_len = context_len.view(batch_shape).expand(shape).flatten() + len(locations)
        batch_shape = shape
    statistics = maps.statistics if isinstance(maps, TableMap) else None
    labels = labels if x.shape[1] else NO_LABELS
    return encode_pairs(model, x, y, context_len, batch_shape, batch_shape, names, tracked, statistics, labels)


def _compare_with_training(x: Tensor, y: Tensor, context_len: Tensor | None, config: ModelConfig) -> None:
    """Warns where pairs, in the network's units, are none that it was trained with; checks the order of a series."""
    real = slice(None) if context_len is None else context_mask(context_len, x.shape[1])
    if not (config.missing_x and x.shape[1] < 2):  # which networks of tables are trained with besides
        warn_outside_counts("num_context", x.shape[1], config.num_context)
    for name, value in (("x", x), ("y", y)):
        if may_look_at(value):
            warn_outside(name, value[real], config)
    warn_spacing(x, config, context_len)
    if not check_series(x, config, context_len):
        check_begins(x, config, context_len)
    warn_other_observation(y, config)


def check_pairs(model: Network, x: Any, y: Any, nan: Literal["raise", "drop"] = "raise") -> Pairs:
    """Checks observations of a user, see `make_context`, and leaves out those that may be missing."""
    pairs = _flat_pairs(model, x, _stacked(x, y, model), nan)
    if nan == "drop":
        pairs = Pairs(*drop_missing(*pairs[:3]), pairs.batch_shape)
    if model.config.missing_x and not pairs.x.shape[1]:
        # Without rows, nothing is known of columns, and nothing has a gradient.
        pairs = pairs._replace(x=pairs.x[..., :1].detach(), y=pairs.y.detach())
    return pairs


def _stacked(x: object, y: object, model: Network) -> Any:
    """Outcomes, those that are given by site or as arrays and tables as tensors; the rest is checked later."""
    check_same_rows(x, y)
    if _is_list(y):
        return [y_tensor(f"y[{i}]", each, model) for i, each in enumerate(y)]
    return y_tensor("y", y, model)


def _flat_pairs(
    model: Network,
    x: Tensor | Sequence[Tensor] | None,
    y: Tensor | Sequence[Tensor] | None,
    nan: Literal["raise", "drop"],
) -> Pairs:
    """Checks pairs of a user."""
    if nan not in ("raise", "drop"):
        raise ValueError(f"nan must be 'raise' or 'drop'; got {nan!r}")
    if (x is None) != (y is None):
        without = "torch.arange(n)[:, None].float()" if model.config.sequential else "torch.zeros(n, 1)"
        raise ValueError(
            "x and y must be given together; got one of them; condition() without both is N = 0, and a program without "
            f"inputs has x = {without}"
        )
    if x is None:
        weight, dim_y = next(model.parameters()), model.config.dim_y
        x = weight.new_zeros(0, model.config.dim_x)
        y = weight.new_zeros((0,) if dim_y is None else (0, dim_y))
    if _is_list(x) or _is_list(y):
        x, y, context_len = _pad(model, x, y, nan)
        return Pairs(x, y, context_len, Size([x.shape[0]]))
    x, y = check_x("x", x, model), check_outcomes("y", y, model, nan)
    batch_shape = _check_pair(x, y, model.config)
    x, y = (t.expand(*batch_shape, *t.shape[-2:]).reshape(batch_shape.numel(), *t.shape[-2:]) for t in (x, y))
    return Pairs(x, y, None, batch_shape)


def _in_front(new: Tensor, pairs: Tensor, batch_shape: Size, shape: Size) -> Tensor:
    """Rows `(*batch, P', .)` in front of `(B, N, .)` of `batch_shape`, for every element of `shape`, flattened."""
    pairs = pairs.view(*batch_shape, *pairs.shape[1:])
    both = torch.cat([t.expand(*shape, *t.shape[-2:]) for t in (new, pairs)], -2)
    return both.reshape(shape.numel(), *both.shape[-2:])


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple)


def _check_pair(x: Tensor, y: Tensor, config: ModelConfig) -> Size:
    if x.shape[-2] != y.shape[-2]:
        hint = ""
        if config.dim_y is None:
            hint = "; the network has one outcome, so y has shape (*batch, points), with no dimension for the outcome"
            hint += ": use y.squeeze(-1)" if y.shape[-2] == 1 and y.dim() > 2 else ""
        raise ValueError(f"x and y must have the same number of points N; got {x.shape[-2]} and {y.shape[-2]}{hint}")
    return broadcast_batches({"x": x.shape[:-2], "y": y.shape[:-2]})


def _pad(model: Network, x: object, y: object, nan: Literal["raise", "drop"]) -> tuple[Tensor, Tensor, Tensor]:
    """Checks lists of contexts of different lengths and pads them with zeros: x, y and the lengths."""
    if any(_is_list(v) and len(v) and isinstance(v[0], int | float | list | tuple) for v in (x, y)):
        raise ValueError(
            "x and y must be tensors, arrays or tables, or lists of these, one for each context; got lists of numbers; "
            "use torch.as_tensor of both"
        )
    if not (_is_list(x) and _is_list(y) and len(x) == len(y) > 0):
        got = [f"{len(v)} tensors" if _is_list(v) else type(v).__name__ for v in (x, y)]
        raise ValueError(f"x and y must be lists of the same length >= 1, or both tensors; got {got[0]} and {got[1]}")
    checked = [
        (check_x(f"x[{i}]", a, model), check_outcomes(f"y[{i}]", b, model, nan))
        for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]
    for i, (a, b) in enumerate(checked):
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[0]:
            shapes = f"{tuple(x[i].shape)} and {tuple(y[i].shape)}"
            raise ValueError(
                f"x[{i}] and y[{i}] must have shapes (N, D_x) and (N[, D_y]) with the same N; got {shapes}; of several "
                "draws of y make tensors, x padded by 0 and y by NaN, and condition(x, y, nan='drop') on them"
            )
    numbers = [a.shape[1] for a, _ in checked]
    if len(set(numbers)) > 1:  # only of tables can they differ
        raise ValueError(f"x must be a list of tables of the same number of columns; got {numbers} columns")
    lengths = torch.tensor([a.shape[0] for a, _ in checked], device=checked[0][0].device)
    pad = torch.nn.utils.rnn.pad_sequence
    x_padded = pad([a for a, _ in checked], batch_first=True)
    y_padded = pad([b for _, b in checked], batch_first=True)
    return x_padded, y_padded, lengths

"""Context: observations checked, padded and encoded once; an object the user holds (PYRO.md, "Contexts and caches").

All checks of a user's tensors are here. Knows nothing of how a model embeds or reads.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Size, Tensor

from pyro_arbuf.cache import ContextCache
from pyro_arbuf.config import ModelConfig
from pyro_arbuf.visibility import context_mask

if TYPE_CHECKING:
    from pyro_arbuf.model import ArBufferModel

Fingerprint = tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Context:
    """Observations encoded by a model: what `ArBufferModel.condition` returns. Read-only.

    Attributes:
        model: The model that made it.
        x: `(B, N, D_x)`, batch flattened, zeros where padded.
        y: `(B, N, D_y)`, batch flattened, zeros where padded.
        context_len: `(B,)` int64, pairs per task; `None` = N for all.
        batch_shape: `*batch`, with B elements.
        cache: Keys and values of every layer.
        fingerprint: Of the weights that made it.
    """

    model: ArBufferModel
    x: Tensor
    y: Tensor
    context_len: Tensor | None
    batch_shape: Size
    cache: ContextCache
    fingerprint: Fingerprint

    @property
    def num_context(self) -> int:
        """Number of pairs N, of the longest context where they differ."""
        return self.x.shape[1]

    def __repr__(self) -> str:
        return f"Context(num_context={self.num_context}, batch_shape={tuple(self.batch_shape)})"


def check_current(context: Context, model: ArBufferModel | None = None) -> None:
    """Checks that a context was made by this model with the weights it has now, where they are now.

    Args:
        context: The context.
        model: The model about to use it; `None` = the one that made it.

    Raises:
        RuntimeError: If another model made it, the weights have changed or moved since, or gradients are wanted of
            weights that were not tracked when it was made.
    """
    remedy = "make it anew with context = model.condition(x, y)"
    if model is not None and context.model is not model:
        raise RuntimeError(f"this Context was made by another model; {remedy}")
    weight = next(context.model.parameters())
    if (weight.dtype, weight.device) != (context.x.dtype, context.x.device):
        raise RuntimeError(
            f"the model is {weight.dtype} on {weight.device} now, this Context {context.x.dtype} on "
            f"{context.x.device}; {remedy}"
        )
    trainable = torch.is_grad_enabled() and any(p.requires_grad for p in context.model.parameters())
    if trainable and not context.cache.keys[0].requires_grad:
        raise RuntimeError(
            "the model is trainable but this Context was made without gradients, which would be silently incomplete; "
            "condition inside the function that is differentiated, or freeze the model with requires_grad_(False)"
        )
    if fingerprint(context.model) != context.fingerprint:
        raise RuntimeError(f"the model's weights have changed since this Context was made; {remedy}")


@torch.no_grad()
def fingerprint(model: ArBufferModel) -> Fingerprint:
    """A cheap checksum of the weights: their norms. Version counters would miss fused optimisers and `.data`."""
    return tuple(torch.stack(torch._foreach_norm(list(model.parameters()), 2, torch.float64)).tolist())


def make_context(
    model: ArBufferModel, x: Tensor | Sequence[Tensor] | None, y: Tensor | Sequence[Tensor] | None
) -> Context:
    """Checks observations and encodes them; see `ArBufferModel.condition`."""
    config = model.config
    if (x is None) != (y is None):
        raise ValueError("x and y must be given together; got one of them; condition() without both is N = 0")
    if x is None:
        weight = next(model.parameters())
        x = weight.new_zeros(0, config.dim_x)
        y = weight.new_zeros((0,) if config.dim_y is None else (0, config.dim_y))
    if isinstance(x, list | tuple) or isinstance(y, list | tuple):
        x, y, context_len = _pad(model, x, y)
        batch_shape = Size([x.shape[0]])
    else:
        x, y = check_x("x", x, model), check_y("y", y, model)
        batch_shape = _check_pair(x, y, config)
        context_len = None
        x = x.expand(*batch_shape, *x.shape[-2:]).reshape(batch_shape.numel(), *x.shape[-2:])
        y = y.expand(*batch_shape, *y.shape[-2:]).reshape(batch_shape.numel(), *y.shape[-2:])
    if batch_shape.numel() == 0:
        raise ValueError(f"x and y must hold at least one task; got the batch shape {tuple(batch_shape)}")
    real = slice(None) if context_len is None else context_mask(context_len, x.shape[1])
    warn_outside("num_context", x.shape[1], config.num_context, stacklevel=4)
    warn_outside("x", x[real], config.x_range, stacklevel=4)
    warn_outside("y", y[real], config.y_range, stacklevel=4)
    cache = model.encode(x, y, context_len)
    return Context(model, x, y, context_len, batch_shape, cache, fingerprint(model))


def _check_pair(x: Tensor, y: Tensor, config: ModelConfig) -> Size:
    if x.shape[-2] != y.shape[-2]:
        hint = ""
        if config.dim_y is None and y.shape[-2] == 1 and y.dim() > 2:
            hint = "; the outcome is scalar, y has shape (*batch, points): use y.squeeze(-1)"
        raise ValueError(f"x and y must have the same number of points N; got {x.shape[-2]} and {y.shape[-2]}{hint}")
    return broadcast_batches({"x": x.shape[:-2], "y": y.shape[:-2]})


def _pad(model: ArBufferModel, x: object, y: object) -> tuple[Tensor, Tensor, Tensor]:
    """Checks lists of contexts of different lengths and pads them with zeros: x, y and the lengths."""
    if not (isinstance(x, list | tuple) and isinstance(y, list | tuple) and len(x) == len(y) > 0):
        got = [f"{len(v)} tensors" if isinstance(v, list | tuple) else type(v).__name__ for v in (x, y)]
        raise ValueError(f"x and y must be lists of the same length >= 1, or both tensors; got {got[0]} and {got[1]}")
    checked = [
        (check_x(f"x[{i}]", a, model), check_y(f"y[{i}]", b, model)) for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]
    for i, (a, b) in enumerate(checked):
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[0]:
            shapes = f"{tuple(x[i].shape)} and {tuple(y[i].shape)}"
            raise ValueError(
                f"x[{i}] and y[{i}] must have shapes (N, D_x) and (N[, D_y]) with the same N; got {shapes}"
            )
    lengths = torch.tensor([a.shape[0] for a, _ in checked], device=checked[0][0].device)
    pad = torch.nn.utils.rnn.pad_sequence
    x_padded = pad([a for a, _ in checked], batch_first=True)
    y_padded = pad([b for _, b in checked], batch_first=True)
    return x_padded, y_padded, lengths


def broadcast_batches(shapes: dict[str, Size]) -> Size:
    """Broadcasts named batch shapes.

    Raises:
        ValueError: If they do not broadcast; names the arguments.
    """
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        got = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"batch shapes must broadcast; got {got}; use unsqueeze to align them") from None


def check_tensor(name: str, value: object, model: ArBufferModel, finite: bool = True) -> Tensor:
    """Checks type, dtype, device and finiteness of a user's tensor and casts it to the model's dtype.

    Raises:
        ValueError: Naming the argument, the rule and what was got.
    """
    weight = next(model.parameters())
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor; got {type(value).__name__}; use torch.as_tensor({name})")
    if not value.is_floating_point():
        hint = ""
        if name.startswith("y"):
            hint = "; outcomes are continuous: for counts or choices use a latent and a Pyro likelihood on top"
        raise ValueError(f"{name} must have a floating dtype; got {value.dtype}; use {name}.float(){hint}")
    if value.device != weight.device:
        raise ValueError(
            f"{name} must be on the model's device {weight.device}; got {value.device}; "
            f"use {name}.to('{weight.device}') or model.to('{value.device}')"
        )
    if finite and not bool(torch.isfinite(value).all()):
        count = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name} must be finite; got {count} NaN or infinite of {value.numel()} values; drop them")
    return value.to(weight.dtype)


def check_x(name: str, x: object, model: ArBufferModel, finite: bool = True) -> Tensor:
    """Checks inputs `(*batch, T, D_x)`."""
    dim_x = model.config.dim_x
    if isinstance(x, Tensor) and (x.dim() < 2 or x.shape[-1] != dim_x):
        hint = f"; use {name}.unsqueeze(-1)" if dim_x == 1 else ""
        raise ValueError(f"{name} must have shape (*batch, points, {dim_x}); got {tuple(x.shape)}{hint}")
    return check_tensor(name, x, model, finite)


def check_y(name: str, y: object, model: ArBufferModel, finite: bool = True) -> Tensor:
    """Checks outcomes `(*batch, T)` or `(*batch, T, D_y)` and returns `(*batch, T, D_y)`, D_y = 1 for scalars."""
    dim_y = model.config.dim_y
    if isinstance(y, Tensor) and dim_y is None and y.dim() < 1:
        raise ValueError(f"{name} must have shape (*batch, points); got {tuple(y.shape)}")
    if isinstance(y, Tensor) and dim_y is not None and (y.dim() < 2 or y.shape[-1] != dim_y):
        hint = f"; use {name}.unsqueeze(-1)" if dim_y == 1 else ""
        raise ValueError(f"{name} must have shape (*batch, points, {dim_y}); got {tuple(y.shape)}{hint}")
    y = check_tensor(name, y, model, finite)
    return y.unsqueeze(-1) if dim_y is None else y


def check_targets(x: object, model: ArBufferModel, check_values: bool) -> Tensor:
    """Checks target inputs `(*batch, M, D_x)`, M >= 1, and warns outside the trained ranges of x and M.

    Values are looked at only where validation is on: an exception would kill a chain.
    """
    x = check_x("x", x, model, check_values)
    if x.shape[-2] == 0:
        raise ValueError(f"x must hold at least one target (M >= 1); got shape {tuple(x.shape)}")
    # The user's line is behind two __init__ and the __call__ of Pyro's metaclass.
    if check_values:
        warn_outside("x", x, model.config.x_range, stacklevel=6)
    warn_outside("num_targets", x.shape[-2], model.config.num_targets, stacklevel=6)
    return x


def warn_outside(name: str, value: Tensor | int, trained: tuple[float, float] | None, stacklevel: int) -> None:
    """Warns where something lies outside the range it had in training (`trained = None`: nothing is known)."""
    if trained is None or (isinstance(value, Tensor) and value.numel() == 0):
        return
    low, high = (value, value) if isinstance(value, int) else (float(t) for t in torch.aminmax(value.detach()))
    if low < trained[0] or high > trained[1]:
        got = f"{low}" if isinstance(value, int) else f"[{low:.4g}, {high:.4g}]"
        remedy = "densities are unreliable there"
        if isinstance(value, Tensor):
            remedy += (
                f"; rescale {name} affinely into the range (for y = a + b z, log p(y) = log p(z) - log b per "
                "outcome; x needs no correction)"
            )
        warnings.warn(
            f"{name} lies outside the trained range {list(trained)}: got {got}; {remedy}", stacklevel=stacklevel
        )

"""Checks of a user's tensors: argument, rule, expected, got, remedy; before any compute.

Knows the configuration and the weights' dtype and device of a model, and nothing of contexts.
"""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import SupportsIndex, cast

import torch
from torch import Size, Tensor

from pyro_arbuf.inference.data import column_hint, columns_of, x_tensor, y_tensor
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import Latent
from pyro_arbuf.network.network import Network
from pyro_arbuf.network.rules import LARGEST_SIZE
from pyro_arbuf.network.tracing import is_traced


@contextlib.contextmanager
def inference_scope() -> Iterator[None]:
    """What all densities and draws run in: full precision, and quiet under a trace.

    Autocast is switched off: it costs a density 0.01 nats per target and more. The tracer's warnings about branches in
    Python are silenced: ours look at shapes, which a trace keeps fixed.
    """
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
        yield


def may_look_at(value: Tensor) -> bool:
    """Whether values may decide anything: those of data, not of latents (an exception kills a chain) or a trace."""
    return not (value.requires_grad or is_traced())


def expanded_shape(name: str, shape: Size, new_shape: Sequence[int]) -> Size:
    """Checks that a batch shape broadcasts to a new one, and returns that.

    Raises:
        ValueError: If it does not.
    """
    new_shape = Size(new_shape)
    try:
        reachable = torch.broadcast_shapes(shape, new_shape) == new_shape
    except RuntimeError:
        reachable = False
    if not reachable:
        raise ValueError(f"expand: {name} must be one that {tuple(shape)} broadcasts to; got {tuple(new_shape)}")
    return new_shape


def broadcast_batches(shapes: dict[str, Size]) -> Size:
    """Broadcasts named batch shapes.

    Raises:
        ValueError: If they do not broadcast; names the arguments.
    """
    first = next(iter(shapes.values()))
    if all(shape == first for shape in shapes.values()):  # torch takes its time for these too
        return first
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        got = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"batch shapes must broadcast; got {got}; use unsqueeze to align them") from None


def check_tensor(name: str, value: object, model: Network, finite: bool = True) -> Tensor:
    """Checks type, dtype, device and, of data, finiteness of a user's tensor and casts it to the model's dtype.

    Raises:
        ValueError: Naming the argument, the rule and what was got.
    """
    weight = next(model.parameters())
    return _checked(name, value, weight, finite).to(weight.dtype)


def _checked(name: str, value: object, weight: Tensor, finite: bool) -> Tensor:
    """What `check_tensor` checks, in the user's dtype; `weight` is one of the model's."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor; got {type(value).__name__}; use {_as_tensor(name, value)}")
    if not value.is_floating_point():
        hint = ""
        if name.startswith("y"):
            hint = "; the network's outcome is a real number: counts and choices need a network of their kind"
        raise ValueError(f"{name} must have a floating dtype; got {value.dtype}; use {name}.float(){hint}")
    if value.device != weight.device:
        raise ValueError(
            f"{name} must be on the model's device {weight.device}; got {value.device}; "
            f"use {name}.to('{weight.device}') or model.to('{value.device}')"
        )
    if finite and may_look_at(value) and not bool(torch.isfinite(value).all()):
        count = int((~torch.isfinite(value)).sum())
        remedy = "drop their rows of x and y; only outcomes may be missing" if name.startswith("x") else "drop them"
        raise ValueError(f"{name} must be finite; got {count} NaN or infinite of {value.numel()} values; {remedy}")
    return value


def _as_tensor(name: str, value: object) -> str:
    """What makes a tensor of a value, or an array or a table that is taken."""
    of_rows = isinstance(value, list) and len(value) > 0 and isinstance(value[0], Mapping)
    if name[0] in "xy" and (isinstance(value, Mapping) or of_rows):
        return f"pd.DataFrame({name})"
    if hasattr(value, "to_pandas"):
        return f"{name}.to_pandas()"
    if isinstance(value, list | tuple) and value and all(hasattr(each, "to_numpy") for each in value):
        return f"np.stack([each.to_numpy() for each in {name}]), the batch in front, or a distribution for each"
    return f"torch.as_tensor({name})"


def check_x(name: str, x: object, model: Network, finite: bool = True) -> Tensor:
    """Checks inputs of a user.

    Of tables, the number of columns is free from 1 to D_x, and NaN is a missing cell.

    Returns:
        `(*batch, T, D_x)`, still in the user's units: float64 where a map to the network's follows, else in the dtype
        of the weights.
    """
    config, weight, given, x = model.config, next(model.parameters()), x, x_tensor(name, x, model)
    if isinstance(x, Tensor):
        _check_number_of_columns(name, x, given, config)
    x = _checked(name, x, weight, finite and not config.missing_x)
    if finite and config.missing_x and may_look_at(x) and bool(x.isinf().any()):
        labels = columns_of(given)
        where = x.isinf().flatten(0, -2).any(0).nonzero().flatten().tolist()
        columns = "" if labels is None else f", in the columns {[labels[i] for i in where]}"
        raise ValueError(
            f"{name} must hold finite numbers, or NaN where a cell is missing; got {int(x.isinf().sum())} infinite of "
            f"{x.numel()} values{columns}; make them NaN"
        )
    return x.to(_dtype_before_maps(config, weight))


def _check_number_of_columns(name: str, x: Tensor, given: object, config: ModelConfig) -> None:
    dim_x, columns = config.dim_x, x.shape[-1] if x.dim() > 1 else 0
    if config.missing_x and not 1 <= columns <= dim_x:
        hint = column_hint(name, given, dim_x if x.dim() > 1 else 1)
        if hasattr(given, "to_frame") and x.dim() == 1:
            hint = f": use {name}.to_frame() if it is one column, table.iloc[[i]] if it is one row of a table"
        elif x.dim() == 1:
            hint += f" if it is one column, {name}[None] if it is one row"
        raise ValueError(
            f"{name} must have shape (*batch, rows, columns); got {tuple(x.shape)}; the network takes 1 to {dim_x} "
            f"columns{hint}"
        )
    if not config.missing_x and columns != dim_x:
        have = "one input column" if dim_x == 1 else f"{dim_x} input columns"
        raise ValueError(
            f"{name} must have shape (*batch, points, {dim_x}); got {tuple(x.shape)}; the network has {have}"
            f"{column_hint(name, given, dim_x)}"
        )


def _dtype_before_maps(config: ModelConfig, weight: Tensor) -> torch.dtype:
    """Of a user's numbers: float64 where they are mapped to the network's."""
    return torch.float64 if config.standardised_by_context or config.unit_map is not None else weight.dtype


def check_sample_shape(sample_shape: object) -> Size:
    """Checks the shape of draws.

    Raises:
        ValueError: If it is no sequence of integers of at least 0.
    """
    if not isinstance(sample_shape, Sequence) or isinstance(sample_shape, str):
        remedy = f"; for {sample_shape} draws write ({sample_shape},)" if isinstance(sample_shape, int) else ""
        raise ValueError(f"sample_shape must be a tuple of integers; got {sample_shape!r}{remedy}")
    return Size([check_count("every number in sample_shape", n, 0) for n in sample_shape])


def check_count(name: str, value: object, least: int = 1) -> int:
    """Checks a number of draws, orders or the like; NumPy's integers are taken too.

    Raises:
        ValueError: If it is no integer of at least `least`.
    """
    try:
        count = operator.index(cast(SupportsIndex, value))
    except TypeError:
        count = None
    if count is None or isinstance(value, bool) or count < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
    return count


def check_buffer_size(buffer_size: object, model: Network) -> int:
    """Checks the number of targets between two absorptions; `None` = the model's K.

    Raises:
        ValueError: If it is no integer in 1..K; where slots have no learned positions, of at least 1.
    """
    slots = model.buffer_size
    buffer_size = slots if buffer_size is None else buffer_size
    most = slots if model.config.slot_positions == "learned" else LARGEST_SIZE
    if isinstance(buffer_size, bool) or not isinstance(buffer_size, int) or not 1 <= buffer_size <= most:
        rule = f"in 1..{slots} (the model's K)" if most == slots else ">= 1"
        raise ValueError(f"buffer_size must be an integer {rule}; got {buffer_size!r}")
    return buffer_size


def check_draft(draft: object, rsample: bool, buffer_size: int) -> bool:
    """Checks whether targets can be drafted and verified.

    Raises:
        ValueError: If `draft` is no bool, draws are to have gradients, or blocks of targets have one target each.
    """
    if not isinstance(draft, bool):
        raise ValueError(f"draft must be True or False; got {draft!r}; all targets of a block are drafted together")
    if draft and rsample:
        raise ValueError("draft=True needs rsample=False, as accepting a draft has no derivative; got rsample=True")
    if draft and buffer_size == 1:
        raise ValueError(
            "draft=True needs buffer_size of at least 2; got 1: with one target between two absorptions there is none "
            "to draft ahead; leave draft out, or raise buffer_size"
        )
    return draft


def check_kinds(name: str, values: Tensor, config: ModelConfig) -> None:
    """Checks that outcomes `(*batch, T, D_y)` are of their kinds; NaN is passed over.

    Raises:
        ValueError: If a category or a count is none; says which dimension, and what its values are.
    """
    if config.all_real or not may_look_at(values):
        return
    for d, kind in enumerate(config.kinds):
        column = values[..., d]
        wrong = column[~kind.support.check(column) & ~column.isnan()]
        if len(wrong):
            which = name if config.dim_y is None else f"{name}[..., {d}]"
            raise ValueError(
                f"{which} must hold {kind.values}; got {wrong[:4].tolist()} among its values; code categories as 0, 1, "
                "..., and give counts as they are"
            )


def check_y(name: str, y: object, model: Network, finite: bool = True, at_latents: bool = False) -> Tensor:
    """Checks outcomes `(*batch, T)` or `(*batch, T, D_y)` of a user.

    Integers and booleans are taken where a dimension is discrete. `at_latents` says that they are numbers of latents,
    which have no units.

    Returns:
        `(*batch, T, D_y)`, D_y = 1 for scalars, still in the user's units: float64 where a map to the network's
        follows, else in the dtype of the weights.
    """
    config, dim_y, weight = model.config, model.config.dim_y, next(model.parameters())
    given, y = y, y_tensor(name, y, model)
    if isinstance(y, Tensor) and not config.all_real and not y.is_floating_point() and not y.is_complex():
        y = y.to(weight.dtype)
    if isinstance(y, Tensor) and dim_y is None and y.dim() < 1:
        raise ValueError(f"{name} must have shape (*batch, points); got {tuple(y.shape)}")
    if isinstance(y, Tensor) and dim_y is not None and (y.dim() < 2 or y.shape[-1] != dim_y):
        have = "one outcome dimension" if dim_y == 1 else f"{dim_y} outcome dimensions"
        raise ValueError(
            f"{name} must have shape (*batch, points, {dim_y}); got {tuple(y.shape)}; the network has {have}"
            f"{column_hint(name, given, dim_y)}"
        )
    y = _checked(name, y, weight, finite)
    y = (y.unsqueeze(-1) if dim_y is None else y).to(weight.dtype if at_latents else _dtype_before_maps(config, weight))
    if finite:
        check_kinds(name, y, config)
    return y


def check_latent(name: str, latent: Latent, value: Tensor) -> None:
    """Checks shape `(*batch, *shape)` and support of a latent's values."""
    if value.shape[max(value.dim() - len(latent.shape), 0) :] != latent.shape:
        want = ", ".join(["*batch", *map(str, latent.shape)])
        raise ValueError(f"{name} must have shape ({want}); got {tuple(value.shape)}")
    if not may_look_at(value):
        return
    outside = ~latent.contains(value)
    if bool(outside.any()):
        got = value[outside].flatten()[:4].tolist()
        raise ValueError(f"{name} must lie in its support, {latent.support}; got {got} among its values")


def check_latents(latents: Mapping[str, object], model: Network) -> tuple[Tensor, tuple[str, ...]]:
    """Checks values of latents; returns them unconstrained, `(*batch, P')`, and their names, in the model's order."""
    known = model.config.latents
    have = f"the model's latents are {list(model.latents)}" if known else "the model has none"
    if not isinstance(latents, Mapping):
        raise ValueError(f"latents must be a dict of the model's latents; got {type(latents).__name__}; {have}")
    unknown = [name for name in latents if name not in model.latents]
    if unknown:
        raise ValueError(f"latents must be a dict of the model's latents; got {unknown[0]!r}; {have}")
    weight = next(model.parameters())
    parts = []
    for latent in known:
        if latent.name not in latents:
            continue
        name, value = f"latents[{latent.name!r}]", latents[latent.name]
        if isinstance(value, int | float):
            value = torch.tensor(float(value), device=weight.device)
        value = check_tensor(name, value, model)
        check_latent(name, latent, value)
        parts.append(latent.unconstrain(value))
    if not parts:
        return weight.new_zeros(0).detach(), ()
    names = tuple(latent.name for latent in known if latent.name in latents)
    shape = broadcast_batches({f"latents[{n!r}]": p.shape[:-1] for n, p in zip(names, parts, strict=True)})
    return torch.cat([part.expand(*shape, -1) for part in parts], -1), names


def check_targets(x: object, model: Network, check_values: bool) -> Tensor:
    """Checks target inputs `(*batch, M, D_x)`, M >= 1.

    Values are looked at only where validation is on: an exception would kill a chain.

    Returns:
        What `check_x` returns: the user's numbers.
    """
    own = check_x("x", x, model, check_values)
    if own.shape[-2] == 0:
        raise ValueError(f"x must hold at least one target (M >= 1); got shape {tuple(own.shape)}")
    return own

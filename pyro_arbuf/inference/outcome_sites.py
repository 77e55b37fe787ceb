"""Outcomes that are several sites of one plate, such as a choice and a response time: by name, and as one vector.

A configuration names the site of every outcome dimension: "y" for all, or ("choice", "rt"). Knows nothing of Pyro.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from pyro_arbuf.network.config import ModelConfig

Value = TypeVar("Value")


def stack_sites(y: Value | Mapping[str, object], columns: str | Sequence[str]) -> Value | Tensor:
    """Outcomes given by site as one tensor; what is no dict comes back as it is.

    Args:
        y: By site: `(*batch, n)` of a scalar, `(*batch, n, d)` of a vector; integers and booleans too.
        columns: Site of every outcome dimension, or the one site of all of them.

    Returns:
        `(*batch, n, D_y)`, the sites side by side in the order of `columns`; of one site, its value.

    Raises:
        ValueError: If a site is missing or unknown, no tensor, or of another shape than the others.

    Example:
        >>> stack_sites({"rt": torch.tensor([0.4, 0.7]), "choice": torch.tensor([1, 0])}, ("choice", "rt"))
        tensor([[1.0000, 0.4000],
                [0.0000, 0.7000]])
    """
    if not isinstance(y, Mapping):
        return y
    names = [columns] if isinstance(columns, str) else list(dict.fromkeys(columns))
    if set(y) != set(names):
        raise ValueError(f"y by site must hold the network's outcome, {names}; got {list(y)}")
    parts = [y[name] for name in names]
    for name, part in zip(names, parts, strict=True):
        if not isinstance(part, Tensor):
            raise ValueError(f"y[{name!r}] must be a tensor; got {type(part).__name__}; use torch.as_tensor")
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if isinstance(columns, str):
        return tensors[0]
    sizes = [list(columns).count(name) for name in names]
    tensors = [part if size > 1 else part.unsqueeze(-1) for part, size in zip(tensors, sizes, strict=True)]
    shapes = {name: tuple(part.shape) for name, part in zip(names, tensors, strict=True)}
    fits = [part.dim() > 1 and part.shape[-1] == size for part, size in zip(tensors, sizes, strict=True)]
    if not all(fits) or len({shape[:-1] for shape in shapes.values()}) > 1:
        want = {name: f"(*batch, n{f', {size}' * (size > 1)})" for name, size in zip(names, sizes, strict=True)}
        got = {name: tuple(part.shape) for name, part in y.items() if isinstance(part, Tensor)}
        raise ValueError(f"y by site must have shapes {want}, the same batch and n for all; got {got}")
    dtype = tensors[0].dtype
    for part in tensors[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    return torch.cat([part.to(dtype) for part in tensors], -1)


def split_sites(y: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """Outcomes as a network has them, by site: the other way round; categories are integers.

    Args:
        y: `(*batch, n)` or `(*batch, n, D_y)`.
        config: Of the network.

    Returns:
        By site, `(*batch, n)` or `(*batch, n, d)`.
    """
    columns = config.outcome
    if isinstance(columns, str):
        kinds = set(config.kinds)
        return {columns: y.long() if all(kind.num_categories for kind in kinds) else y}
    found = {}
    for name in dict.fromkeys(columns):
        which = [d for d, column in enumerate(columns) if column == name]
        value = y[..., which] if len(which) > 1 else y[..., which[0]]
        found[name] = value.long() if all(config.kinds[d].num_categories for d in which) else value
    return found

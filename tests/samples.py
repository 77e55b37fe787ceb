"""Random tensors that a seed fixes, and the shape of a model's outcomes."""

import torch
from torch import Tensor

from pyro_arbuf.model import ArBufferModel


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal values, the same ones in every dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def outcome(model: ArBufferModel) -> tuple[int, ...]:
    """Event dimensions of one outcome, `()` or `(D_y,)`."""
    return () if model.config.dim_y is None else (model.config.dim_y,)

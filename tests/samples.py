"""Random tensors that a seed fixes, and the shape of a model's outcomes."""

import torch
from torch import Tensor

from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal values, the same ones in every dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def outcome(model: ArBufferModel) -> tuple[int, ...]:
    """Event dimensions of one outcome, `()` or `(D_y,)`."""
    return () if model.config.dim_y is None else (model.config.dim_y,)


def draw_outcomes(config: ModelConfig, *shape: int, seed: int = 1) -> Tensor:
    """Random outcomes `(*shape, D_y)` of a configuration's kinds."""
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for kind in config.kinds:
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        if kind.num_categories:
            normal = torch.randint(kind.num_categories, shape, generator=generator).double()
        elif kind.support.is_discrete:
            normal = torch.poisson(torch.full(shape, 2.5, dtype=torch.float64), generator)
        columns.append(normal)
    return torch.stack(columns, -1)

"""Tiny models in float64, all sizes different: B=2, S=3, K=4, N=5, M=6, D_x=2, and D_y = scalar or 3."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyro
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.chained import ChainedHead
from pyro_arbuf.network.config import ModelConfig

CONFIG = ModelConfig(
    dim_x=2,
    buffer_size=4,
    width=14,
    num_layers=3,
    num_heads=2,
    mlp_width=15,
    embedding_width=11,
    num_frequencies=8,
    max_frequency=3.0,
    head_width=13,
    num_components=9,
    chained=False,
)
VARIANTS = {
    "scalar-mixture": CONFIG,
    "vector-mixture": dataclasses.replace(CONFIG, dim_y=3),
    "scalar-gaussian": dataclasses.replace(CONFIG, head="gaussian"),
    "vector-gaussian": dataclasses.replace(CONFIG, dim_y=3, head="gaussian"),
}


class Task(NamedTuple):
    """Random values for B = 2 tasks; outcomes always have their feature dimension D_y."""

    x_context: Tensor  # (B, N, D_x)
    y_context: Tensor  # (B, N, D_y)
    x_target: Tensor  # (B, M, D_x)
    y_target: Tensor  # (B, M, D_y)


SLOTS = "embedder.positions.slot"


def random_model(config: ModelConfig, seed: int = 0) -> ArBufferModel:
    """A frozen float64 model whose random weights are large enough that everything it may read matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ArBufferModel(config).double()
        with torch.no_grad():
            weights = dict(model.named_parameters())
            names = [name for name in weights if name != SLOTS]
            names.insert(names.index("embedder.role") + 1, SLOTS)  # some tests need the very weights of this order
            for name in names:
                weight = weights[name]
                if "norm" in name:
                    weight.normal_(1.0, 0.2)
                elif name.startswith(("embedder.role", SLOTS, "embedder.empty")):
                    weight.normal_(0.0, 0.7)
                elif weight.dim() == 1:
                    weight.normal_(0.0, 0.3)
                elif name != "embedder.frequencies":
                    weight.normal_(0.0, 1.2 * weight.shape[1] ** -0.5)
            # Scales of neither spikes nor plateaus: quadrature and importance sampling stay cheap.
            layers = model.head.out if isinstance(model.head, ChainedHead) else [model.head.out]
            for parameter in (parameter for layer in layers for parameter in (layer.weight, layer.bias)):
                parameter[2 * len(parameter) // 3 :] *= 0.3
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    pyro.clear_param_store()  # a test may run after any other in one process


@pytest.fixture
def _fresh_accelerator() -> Iterator[None]:
    """For tests that train: accelerate keeps one state per process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.fixture(scope="session")
def build_model() -> Callable[..., ArBufferModel]:
    """`build_model(seed=0, **fields)`: a tiny model with some fields of its configuration replaced."""

    def build(seed: int = 0, **fields: object) -> ArBufferModel:
        return random_model(dataclasses.replace(CONFIG, **fields), seed)

    return build


@pytest.fixture(scope="session", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> ArBufferModel:
    """Scalar and vector outcomes, mixture and Gaussian heads."""
    return random_model(VARIANTS[request.param])


@pytest.fixture(scope="session")
def scalar_model() -> ArBufferModel:
    """Scalar outcome, mixture head."""
    return random_model(VARIANTS["scalar-mixture"])


@pytest.fixture(scope="session")
def vector_model() -> ArBufferModel:
    """Outcome with D_y = 3, mixture head."""
    return random_model(VARIANTS["vector-mixture"])


@pytest.fixture(scope="module", params=["scalar", "vector"])
def net(request: pytest.FixtureRequest) -> ArBufferModel:
    """Scalar and vector outcomes, mixture head."""
    return request.getfixturevalue(f"{request.param}_model")


@pytest.fixture
def draw_task() -> Callable[..., Task]:
    """`draw_task(model, num_context=5, num_targets=6, num_tasks=2)`: random inputs and outcomes."""

    def draw(model: ArBufferModel, num_context: int = 5, num_targets: int = 6, num_tasks: int = 2) -> Task:
        dim_x, dim_y = model.config.dim_x, model.config.dim_y or 1
        sizes = [(num_context, dim_x), (num_context, dim_y), (num_targets, dim_x), (num_targets, dim_y)]
        return Task(*(torch.randn(num_tasks, *size, dtype=torch.float64) for size in sizes))

    return draw

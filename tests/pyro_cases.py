"""Cases of Pyro's own kinds of checks: B=2 subjects, N=5, M=6, K=7 (4 where absorbed), D_x=2, D_y=3.

Five of real outcomes, and one each of categories, counts, and vectors that mix kinds.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import pyro
import samples
from torch import Size, Tensor

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel

B, N, M, DIM_X = 2, 5, 6, 2
REAL = {
    "scalar": {"buffer_size": 7},
    "vector": {"buffer_size": 7, "dim_y": 3},
    "batched": {"buffer_size": 7},
    "several_orders": {"buffer_size": 7},
    "above_buffer": {"buffer_size": 4},
}
DISCRETE = {
    "category": {"buffer_size": 7, "chained": True, "outcomes": ("categorical(3)",)},
    "count": {"buffer_size": 4, "chained": True, "outcomes": ("count",)},
}
MIXED = {"mixed": {"buffer_size": 7, "chained": True, "dim_y": 3, "outcomes": ("categorical(2)", "real", "count")}}
NETS = REAL | DISCRETE | MIXED


draw = functools.cache(samples.draw)  # drawn once: a trace would record the drawing itself


class Case(NamedTuple):
    """A joint and an observation of it."""

    net: ArBufferModel
    context: Context  # batch shape `batch`
    x: Tensor  # (*batch, M, D_x)
    y: Tensor  # (*batch, *event), integers where the outcome is a category
    batch: Size
    orders: Tensor | None

    def joint(self, x: Tensor | None = None, context: Context | None = None, **options: object) -> ArBufferJoint:
        """The joint, with other inputs or another context where they are given."""
        context = self.context if context is None else context
        return ArBufferJoint(context, self.x if x is None else x, orders=self.orders, **options)

    def plates(self, name: str = "subjects") -> contextlib.AbstractContextManager:
        """The plate of the subjects, if there are any."""
        return pyro.plate(name, *self.batch) if self.batch else contextlib.nullcontext()

    @property
    def event_dim(self) -> int:
        """Dimensions of one event."""
        return self.y.dim() - len(self.batch)

    @property
    def is_real(self) -> bool:
        """Whether all that is observed is real numbers: what has a density, and draws that are all different."""
        return self.net.config.all_real

    def is_new(self, draws: Tensor, count: int) -> bool:
        """Whether so many events are different from each other; of discrete ones some may be the same by chance."""
        found = len(draws.flatten(0, -self.event_dim - 1).unique(dim=0))
        return found == count if self.is_real else count // 2 <= found <= count

    def moved(self, y: Tensor, shift: Tensor | float) -> Tensor:
        """Outcomes whose real dimensions are shifted; the others have no neighbours."""
        real = y.new_tensor([not kind.support.is_discrete for kind in self.net.config.kinds])
        return y + shift * (real.squeeze(-1) if self.net.config.dim_y is None else real)

    def condition(self, *more: int, shift: Tensor | float = 0.0) -> Context:
        """Contexts of batch shape `(*more, *batch)`; shifted are real outcomes, or else the inputs."""
        batch = (*more, *self.batch)
        x, y = draw(*batch, N, DIM_X, seed=2), draw_values(self.net, *batch, N, seed=3)
        if any(not kind.support.is_discrete for kind in self.net.config.kinds):
            return self.net.condition(x, self.moved(y, shift))
        return self.net.condition(x + shift, y)


@functools.cache
def draw_values(net: ArBufferModel, *shape: int, seed: int) -> Tensor:
    """Outcomes as users have them."""
    if net.config.all_real:
        return draw(*shape, *samples.outcome(net), seed=seed)
    y = net.config.squeeze_outcome(samples.draw_outcomes(net.config, *shape, seed=seed))
    return y.long() if net.config.dim_y is None and net.config.kinds[0].num_categories else y


def make_case(name: str, build_model: Callable[..., ArBufferModel]) -> Case:
    """One of them."""
    net, batch = build_model(**NETS[name]), Size([B] if name in ("batched", "count") else [])
    x, y = draw(*batch, M, DIM_X, seed=1), draw_values(net, *batch, M, seed=0)
    orders = random_orders(M, 3) if name in ("several_orders", "category") else None
    case = Case(net, None, x, y, batch, orders)
    return case._replace(context=case.condition())

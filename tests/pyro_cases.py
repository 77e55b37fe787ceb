"""The five cases of Pyro's own kinds of checks: B=2 subjects, N=5, M=6, K=7 (4 where absorbed), D_x=2, D_y=3."""

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
NETS = {
    "scalar": {"buffer_size": 7},
    "vector": {"buffer_size": 7, "dim_y": 3},
    "batched": {"buffer_size": 7},
    "several_orders": {"buffer_size": 7},
    "above_buffer": {"buffer_size": 4},
}


draw = functools.cache(samples.draw)  # drawn once: a trace would record the drawing itself


class Case(NamedTuple):
    """A joint and an observation of it."""

    net: ArBufferModel
    context: Context  # batch shape `batch`
    x: Tensor  # (*batch, M, D_x)
    y: Tensor  # (*batch, *event)
    batch: Size
    orders: Tensor | None

    def joint(self, x: Tensor | None = None, context: Context | None = None, **options: object) -> ArBufferJoint:
        """The joint, with other inputs or another context where they are given."""
        context = self.context if context is None else context
        return ArBufferJoint(context, self.x if x is None else x, orders=self.orders, **options)

    def plates(self) -> contextlib.AbstractContextManager:
        """The plate of the subjects, if there are any."""
        return pyro.plate("subjects", *self.batch) if self.batch else contextlib.nullcontext()

    @property
    def event_dim(self) -> int:
        """Dimensions of one event."""
        return self.y.dim() - len(self.batch)

    def condition(self, *more: int, shift: Tensor | float = 0.0) -> Context:
        """Contexts of batch shape `(*more, *batch)`, their outcomes shifted."""
        batch = (*more, *self.batch)
        y = draw(*batch, N, *samples.outcome(self.net), seed=3)
        return self.net.condition(draw(*batch, N, DIM_X, seed=2), y + shift)


def make_case(name: str, build_model: Callable[..., ArBufferModel]) -> Case:
    """One of the five."""
    net, batch = build_model(**NETS[name]), Size([B] if name == "batched" else [])
    x, y = draw(*batch, M, DIM_X, seed=1), draw(*batch, M, *samples.outcome(net), seed=0)
    orders = random_orders(M, 3) if name == "several_orders" else None
    case = Case(net, None, x, y, batch, orders)
    return case._replace(context=case.condition())

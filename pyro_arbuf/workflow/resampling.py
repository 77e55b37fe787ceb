"""`predictive_resampling`: the martingale posterior of a functional of the population, by rolling a joint forward.

Knows nothing of programs and their latents: what is asked of is the population, which every network predicts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Size, Tensor

from pyro_arbuf.display import Table, cells, labels, shown_as_table
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.chain import grow_context
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.layout import MAX_TOKENS, chunks
from pyro_arbuf.inference.validation import check_count, check_y
from pyro_arbuf.random_state import seeded


@dataclass(frozen=True, eq=False)
class Population:
    """The observed rows and those that were drawn after them, in several draws: what a functional is computed from.

    Attributes:
        x: `(S, *batch, N + T, D_x)`, in the user's units, the N observed rows first.
        y: `(S, *batch, N + T)` or `(S, *batch, N + T, D_y)`, in the user's units.
        observed: The context of the N observed rows.
        drawn: Inputs and outcomes of the T others as the network has them, `(S, *batch, T, .)`.
    """

    x: Tensor
    y: Tensor
    observed: Context
    drawn: tuple[Tensor, Tensor]

    @cached_property
    def context(self) -> Context:
        """All rows as a context, batch shape `(S, *batch)`: for functionals of what the network predicts then.

        `ArBufferMarginals(population.context, grid).mean` is the mean curve of the population, for every draw.
        """
        x, y = self.drawn
        return grow_context(self.observed, x, y, y.shape[:-2])


def _summary(found: "MartingalePosterior") -> tuple[str, Table]:
    draws, shape = found.draws.double(), found.draws.shape[1:]
    low, high = torch.quantile(draws, draws.new_tensor([0.05, 0.95]), 0)
    numbers = {"mean": draws.mean(0), "sd": draws.std(0), "5 %": low, "95 %": high}
    largest = (found.drift / found.drift_error).nan_to_num(0.0, torch.inf, -torch.inf).abs().max().item()
    drift = f"drift of the outcome after row {found.num_early} within {largest:.1f} standard errors"
    table = {"functional": labels(shape)} | {name: cells(value) for name, value in numbers.items()}
    return f"MartingalePosterior({len(draws)} draws; {drift})", table


@shown_as_table(_summary)
class MartingalePosterior(NamedTuple):
    """The martingale posterior of a functional, and whether the rows that it rests on were a martingale.

    Attributes:
        draws: `(S, *batch, ...)`, what the functional returned, draw after draw.
        drift: `(*batch,)` or `(*batch, D_y)`, units of y: mean outcome of the later rows minus that of the first
            `num_early`. Its expectation is 0 where the network's predictions are those of exchangeable rows.
        drift_error: Its standard error, of the same shape.
        num_early: The rows that lie within what the network was trained on, N and the rows together; half of the rows
            where all of them do, or none.
    """

    draws: Tensor
    drift: Tensor
    drift_error: Tensor
    num_early: int


@torch.no_grad()
def predictive_resampling(
    context: Context,
    x_sampler: Callable[[Size], Tensor],
    functional: Callable[[Population], Tensor],
    num_rows: int,
    num_draws: int,
    buffer_size: int | None = None,
    seed: int | None = None,
) -> MartingalePosterior:
    r"""Draws from the martingale posterior of a functional of the population, with neither likelihood nor prior stated.

    Each draw predicts T rows after the N observed ones, one given all before it, and computes the functional of all
    N + T: what it would be, had the population been seen. Rows go through the buffer, and join the context block by
    block.

    .. math:: y_{N+t} \sim p(y \mid x_{N+t}, (x, y)_{1 .. N+t-1}), \qquad \theta = \theta((x, y)_{1 .. N+T})

    The population has N + T rows, and its draws are those of a larger one only where T is much larger than N: the
    variance of a mean, for one, is T / (N + T) of what it is in the limit.

    Args:
        context: The observed rows, of a network of exchangeable ones; a batch of contexts must have one N.
        x_sampler: Draws inputs of new rows: called with `(num_draws, *batch, num_rows)`, returns this shape and D_x
            behind it, as the `sample` of a distribution with event shape `(D_x,)` does. Rows are to be exchangeable,
            like the observed ones. A network without inputs has `lambda shape: torch.zeros(*shape, 1)`.
        functional: From a `Population` of some of the draws to one number or tensor for each, of batch shape
            `(draws, *batch)`, e.g. `lambda population: population.y.mean(-1)`.
        num_rows: Rows T to be drawn, at least 2.
        num_draws: Draws S, at least 2.
        buffer_size: Rows between two absorptions, as for `ArBufferJoint`.
        seed: Makes the result a function of it and leaves the caller's random state as it was; `None` = the global
            state.

    Returns:
        Draws of the functional, and the drift of the outcome with its standard error.

    Raises:
        ValueError: If an argument breaks its rule, contexts have different numbers of rows, the network is one of
            series, or what `x_sampler` or `functional` returns has another shape.

    Source:
        Fong, Holmes, Walker (2023), "Martingale posterior distributions".

    Example:
        >>> from pyro_arbuf.model import ArBufferModel, ModelConfig
        >>> net = ArBufferModel(ModelConfig()).requires_grad_(False)
        >>> ctx, uniform = net.condition(torch.rand(5, 1), torch.zeros(5)), lambda shape: torch.rand(*shape, 1)
        >>> predictive_resampling(ctx, uniform, lambda population: population.y.mean(-1), 20, 10).draws.shape
        torch.Size([10])
    """
    _check_context(context)
    num_rows, num_draws = check_count("num_rows", num_rows, 2), check_count("num_draws", num_draws, 2)
    for name, given in (("x_sampler", x_sampler), ("functional", functional)):
        if not callable(given):
            raise ValueError(f"{name} must be a function; got {given!r}")
    with seeded(seed):
        joint = _roller(context, x_sampler, Size([num_draws, *context.batch_shape, num_rows]), buffer_size)
        y = joint.sample()
        draws = torch.cat([_value(functional, population) for population in _populations(joint, y)])
    num_early = _num_early(context, num_rows)
    early, late = y.double().split([num_early, num_rows - num_early], dim=-len(joint.event_shape))
    drift = late.mean(-len(joint.event_shape)) - early.mean(-len(joint.event_shape))
    return MartingalePosterior(draws, drift.mean(0), drift.std(0) / num_draws**0.5, num_early)


def _check_context(context: object) -> None:
    if not isinstance(context, Context):
        raise ValueError(
            f"context must be a Context; got {type(context).__name__}; make one with net.condition(x_obs, y_obs)"
        )
    if context.model.config.sequential:
        raise ValueError(
            "predictive_resampling needs exchangeable rows, whose outcomes then have no drift; got a network of a "
            "series; draw how it goes on with ArBufferJoint(ctx, x).sample((num_draws,))"
        )
    length = context.context_len
    if length is not None and bool((length != context.x.shape[1]).any()):
        lengths = (length - context.num_given).tolist()
        raise ValueError(
            f"contexts of a batch must have the same number of rows; got {lengths[:4]} among their numbers; condition "
            "those of one length together, or each alone"
        )


def _roller(
    context: Context, x_sampler: Callable[[Size], Tensor], shape: Size, buffer_size: int | None
) -> ArBufferJoint:
    """The joint of the new rows of every draw, in the order in which they are drawn."""
    x = x_sampler(shape)
    found = tuple(getattr(x, "shape", ()))
    if found[:-1] != tuple(shape):
        raise ValueError(
            f"x_sampler must return inputs of shape {tuple(shape)} with D_x behind it when called with that shape; got "
            f"{found or type(x).__name__}; draw one row of inputs for every element"
        )
    return ArBufferJoint(context, x, torch.arange(shape[-1])[None], buffer_size)


def _num_early(context: Context, num_rows: int) -> int:
    """How many of the new rows are the early ones, at least 1 and at most all but 1."""
    config = context.model.config
    most = config.num_context[1] - context.num_context
    most = most if config.num_targets is None else min(most, config.num_targets[1])
    return most if 0 < most < num_rows else num_rows // 2


def _populations(joint: ArBufferJoint, y: Tensor) -> Iterator[Population]:
    """Observed and drawn rows, as many draws at a time as fixed memory holds when they are encoded."""
    context, batch = joint.context, joint.context.batch_shape
    x_seen, y_seen = _observed(joint, y)
    values = joint._mapped(check_y("y", y, context.model))  # (S, *batch, T, D_y)
    num_rows = context.num_context + joint.event_shape[0]
    for part in chunks(len(y), max(1, MAX_TOKENS // (num_rows * batch.numel()))):
        x_part, y_part = joint.x[part], y[part]
        lead = (len(y_part), *batch)
        x_all = torch.cat([x_seen.expand(*lead, *x_seen.shape[-2:]), x_part], -2)
        event = len(joint.event_shape)
        y_all = torch.cat([y_seen.expand(*lead, *y_seen.shape[-event:]), y_part], -event)
        yield Population(x_all, y_all, context, (joint._x[part], values[part]))


def _observed(joint: ArBufferJoint, y: Tensor) -> tuple[Tensor, Tensor]:
    """Observed rows in the user's units, `(*tasks, N, D_x)` and `(*tasks, N)` or `(*tasks, N, D_y)`; `y` is drawn."""
    context = joint.context
    x_seen, y_seen, _ = context.observations
    x_seen, y_seen = (part.view(*context.task_shape, *part.shape[1:]) for part in (x_seen, y_seen))
    if not context.num_context:  # of a table without rows the columns are those of the targets
        x_seen = joint.x.new_zeros(*context.task_shape, 0, joint.x.shape[-1])
    if context.maps is not None:
        x_seen = context.maps.user_x(x_seen)
    return x_seen.to(joint.x), joint._in_user_units(y_seen).to(y.dtype)


def _value(functional: Callable[[Population], Tensor], population: Population) -> Tensor:
    """What the functional gives for each draw; checked."""
    value, lead = functional(population), population.drawn[1].shape[:-2]
    if not isinstance(value, Tensor) or value.shape[: len(lead)] != lead:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"functional must return a tensor of batch shape (draws, *batch), here {tuple(lead)}; got {got}; compute "
            "along the last dimensions, as population.y.mean(-1) does"
        )
    return value

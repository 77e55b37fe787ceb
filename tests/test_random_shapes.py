"""3,000 random shapes, orders, block lengths and batches against the independent reference."""

import dataclasses
import functools
import random

import pytest
import reference
import torch
from conftest import CONFIG, random_model
from samples import draw
from torch import Size, Tensor

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel

SMALL = dataclasses.replace(CONFIG, width=6, num_layers=2, mlp_width=5, embedding_width=4, num_frequencies=2)
FULL = [(), (2,), (3,), (2, 3), (2, 1, 3), (3, 2)]


@functools.cache
def network(dim_x: int, dim_y: int | None, buffer_size: int, head: str) -> ArBufferModel:
    fields = {"dim_x": dim_x, "dim_y": dim_y, "buffer_size": buffer_size, "head": head, "head_width": 5}
    return random_model(dataclasses.replace(SMALL, num_components=3, **fields))


def part_of(shape: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    """A batch shape that broadcasts to `shape`."""
    part = shape[rng.randint(0, len(shape)) :]
    return tuple(rng.choice([1, n]) for n in part)


def expected_density(
    net: ArBufferModel, contexts: list[tuple[Tensor, Tensor]], x: Tensor, y: Tensor, shape: Size, orders: Tensor, k: int
) -> Tensor:
    """By the reference, from one context, or from one per element of the last batch dimension."""
    x, y = x.expand(*shape, *x.shape[-2:]), y.expand(*shape, *y.shape[-2:])
    weights, heads = net.state_dict(), net.config.num_heads
    if len(contexts) == 1:
        pairs = (t.expand(*shape, *t.shape[-2:]) for t in contexts[0])
        return reference.log_prob(weights, heads, *pairs, x, y, orders.tolist(), k)
    parts = [
        reference.log_prob(
            weights,
            heads,
            *(t.expand(*shape[:-1], *t.shape[-2:]) for t in pairs),
            x[..., b, :, :],
            y[..., b, :, :],
            orders.tolist(),
            k,
        )
        for b, pairs in enumerate(contexts)
    ]
    return torch.stack(parts, -1)


def check(seed: int) -> None:
    rng = random.Random(seed)
    dim_x, dim_y, slots = rng.randint(1, 3), rng.choice([None, None, 1, 2, 3]), rng.randint(1, 5)
    net = network(dim_x, dim_y, slots, rng.choice(["mixture", "gaussian"]))
    num_targets, num_context, k = (
        rng.randint(1, 6),
        rng.choice([0, 1, 2, 3, 5]),
        rng.choice([None, rng.randint(1, slots)]),
    )
    orders = rng.choice([None, random_orders(num_targets, rng.randint(1, 2), seed)])
    shape, width = rng.choice(FULL), dim_y or 1
    lengths = [rng.randint(0, 4) for _ in range(rng.randint(1, 3))] if rng.random() < 0.3 else None
    if lengths is not None:
        shape = (*rng.choice([(), (2,)]), len(lengths))
    batch = {name: part_of(shape, rng) for name in ("x_context", "y_context", "x", "y")}
    x = draw(*batch["x"], num_targets, dim_x, seed=seed)
    y = draw(*batch["y"], num_targets, width, seed=seed + 1)
    squeeze = net.config.squeeze_outcome
    if lengths is not None:
        contexts = [(draw(n, dim_x, seed=seed + 2 + n), draw(n, width, seed=seed + 3 + n)) for n in lengths]
        context = net.condition([a for a, _ in contexts], [squeeze(b) for _, b in contexts])
    else:
        pairs = (
            draw(*batch["x_context"], num_context, dim_x, seed=seed + 2),
            draw(*batch["y_context"], num_context, width, seed=seed + 3),
        )
        contexts, context = [pairs], net.condition(pairs[0], squeeze(pairs[1]))
    if rng.random() < 0.3:
        context = context.expand(torch.broadcast_shapes(context.batch_shape, shape))
    joint = ArBufferJoint(context, x, orders, k)
    shape = torch.broadcast_shapes(joint.batch_shape, batch["y"])
    got = joint.log_prob(squeeze(y))
    expected = expected_density(net, contexts, x, y, shape, joint.orders, joint.buffer_size)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=lambda text: f"seed {seed}: {text}")
    if len(joint.orders) == 1:
        torch.testing.assert_close(joint.log_prob_factors(squeeze(y)).sum(-1), expected, rtol=1e-9, atol=1e-9)


# By chance a batch of M.
@pytest.mark.filterwarnings("ignore::pyro_arbuf.distributions.base.PlateOverTargetsWarning")
@pytest.mark.parametrize("part", [pytest.param(part, marks=pytest.mark.slow) for part in range(1, 31)] + [0])
def test_density_of_a_random_shape_is_the_reference(part: int) -> None:
    for seed in range(100 * part, 100 * part + (100 if part else 25)):
        check(seed)

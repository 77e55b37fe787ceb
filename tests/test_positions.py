"""Positions of slots: one law for every kind, buffers longer than in training, and what attention sees of distances."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.testing import assert_close

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferModel, ModelConfig
from pyro_arbuf.network.cache import BufferCache
from pyro_arbuf.network.positions import LearnedPositions, LinearBias, RotaryPositions

UNLIMITED = pytest.mark.parametrize("kind", ["none", "rotary", "linear"])
N, M, K = 4, 7, 4


def random_net(kind: str, **fields: object) -> ArBufferModel:
    """A frozen net in float64, whose weights are large enough that what it reads matters."""
    net = tiny.tiny_model(1, slot_positions=kind, **fields).double()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.dim() >= 2:
                weight.mul_(1.5)
    return net.eval().requires_grad_(False)


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    return 2 * torch.rand(N, 1, dtype=torch.float64) - 1, torch.randn(N, dtype=torch.float64)


@pytest.fixture
def new() -> tuple[Tensor, Tensor]:
    return 2 * torch.rand(M, 1, dtype=torch.float64) - 1, torch.randn(M, dtype=torch.float64)


@UNLIMITED
def test_density_is_that_of_one_target_after_the_other(kind: str, pairs: tuple, new: tuple) -> None:
    net, (x, y) = random_net(kind), new
    ctx = net.condition(*pairs)
    one_pass = ArBufferJoint(ctx, x, torch.arange(M)[None], M).log_prob_factors(y)
    cache, buffer, last, found = ctx.cache, BufferCache(), None, []
    embedded = net.embed_targets(cache, x[None, None])
    for k in range(M):
        here = embedded[:, :, k : k + 1]
        predictive, buffer = net.predict(cache, buffer, last, here)
        found.append(predictive.log_prob(y[k].view(1, 1, 1, 1)).flatten())
        last = (here, y[k].view(1, 1, 1, 1))
    assert_close(one_pass.flatten(), torch.cat(found), rtol=1e-10, atol=1e-10)


@UNLIMITED
def test_sampled_law_is_the_scored_law(kind: str, pairs: tuple, new: tuple) -> None:
    joint = ArBufferJoint(random_net(kind).condition(*pairs), new[0])
    draws = joint.sample((4000,))
    other = Independent(Normal(draws.mean(0), 1.5 * draws.std(0)), 1)
    values = torch.cat([draws, other.sample((4000,))])
    ratio = 2 * torch.sigmoid(other.log_prob(values) - joint.log_prob(values))  # of mean 1 under their equal mixture
    halves = ratio.view(2, -1)
    error = (halves.var(1).sum() / 4 / halves.shape[1]).sqrt()
    assert abs(ratio.mean() - 1) < 5 * error
    assert error < 0.02


@UNLIMITED
def test_gradients_do_not_change_the_density(kind: str, pairs: tuple, new: tuple) -> None:
    (x, y), ctx = new, random_net(kind).condition(*pairs)
    value = y.clone().requires_grad_()
    found = ArBufferJoint(ctx, x).log_prob(value)
    assert_close(found.detach(), ArBufferJoint(ctx, x).log_prob(y), rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(found, value)
    step = 1e-6 * torch.eye(M, dtype=torch.float64)
    slope = (ArBufferJoint(ctx, x).log_prob(y + step) - ArBufferJoint(ctx, x).log_prob(y - step)) / 2e-6
    assert_close(gradient, slope, rtol=1e-5, atol=1e-6)


@UNLIMITED
def test_buffer_may_be_longer_than_in_training(kind: str, pairs: tuple, new: tuple) -> None:
    net, (x, y) = random_net(kind), new
    ctx, orders = net.condition(*pairs), torch.arange(M)[None]
    short, long = (ArBufferJoint(ctx, x, orders, size).log_prob_factors(y) for size in (K, M))
    assert net.buffer_size == K
    assert_close(short[:K], long[:K], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(short[K:], long[K:])  # absorbed there, in the buffer here
    assert ArBufferJoint(ctx, x, buffer_size=M).sample((3,)).shape == (3, M)


def test_learned_positions_end_with_the_buffer(pairs: tuple, new: tuple) -> None:
    ctx = random_net("learned").condition(*pairs)
    with pytest.raises(ValueError, match=rf"buffer_size must be an integer in 1\.\.{K} \(the model's K\); got {M}"):
        ArBufferJoint(ctx, new[0], buffer_size=M)
    with pytest.raises(ValueError, match=r"buffer_size must be an integer >= 1; got 0$"):
        ArBufferJoint(random_net("none").condition(*pairs), new[0], buffer_size=0)


def test_learned_positions_hold_no_more_tokens_than_slots() -> None:
    positions = LearnedPositions(4, 8)
    assert positions(torch.zeros(2, 4, 8), 0).shape == (2, 4, 8)
    for tokens, first in ((2, 3), (1, 4)):
        with pytest.raises(ValueError, match=f"the buffer must hold at most 4 tokens; got {tokens + first}"):
            positions(torch.zeros(2, tokens, 8), first)


def test_without_positions_the_order_of_slots_is_unknown(pairs: tuple, new: tuple) -> None:
    """Of two pairs before a target, either may be the first one, up to what the second has read of the first."""
    net, (x, y) = random_net("none", num_layers=1), new
    orders = torch.tensor([[[0, 1, 2]], [[1, 0, 2]]])
    ctx = net.condition(*pairs)
    last = [ArBufferJoint(ctx, x[:3], each, 3).log_prob_factors(y[:3])[2] for each in orders]
    assert_close(*last, rtol=1e-10, atol=1e-10)


def test_rotary_products_depend_on_the_distance_alone() -> None:
    rotary, q, key = RotaryPositions(6).double(), *torch.randn(2, 1, 1, 1, 1, 6, dtype=torch.float64)

    def product(slot: int, last: int) -> Tensor:
        return (rotary.queries(q, torch.tensor([last]), 9).q * rotary.keys(key, slot - 1)).sum()

    assert_close(product(1, 3), product(5, 7), rtol=1e-10, atol=1e-10)
    assert abs(product(1, 3) - product(1, 4)) > 1e-3
    assert_close(product(4, 4), (q * key).sum(), rtol=1e-10, atol=1e-10)
    angle = torch.tensor([1.0, 10 ** (-4 / 3), 10 ** (-8 / 3)], dtype=torch.float64) * 2
    a, b = (torch.complex(each[..., :3], each[..., 3:]) for each in (q, key))
    assert_close(product(1, 3), (a * torch.polar(torch.ones_like(angle), angle) * b.conj()).real.sum())


def test_linear_bias_falls_with_the_distance() -> None:
    q = torch.zeros(1, 1, 2, 2, 3)
    offset = LinearBias(2).queries(q, torch.tensor([1, 3]), 3).offset
    assert offset is not None
    assert offset.tolist() == [[[[[0, 0, 0], [-2 / 16, -1 / 16, 0]], [[0, 0, 0], [-2 / 256, -1 / 256, 0]]]]]


def test_kind_is_saved_and_older_files_have_learned_positions(tmp_path: Path) -> None:
    net = tiny.tiny_model(slot_positions="rotary")
    pyro_arbuf.save(net, tmp_path / "net")
    assert pyro_arbuf.load(tmp_path / "net").config.slot_positions == "rotary"
    assert "embedder.positions.slot" not in net.state_dict()
    parts = json.loads(tiny.CONFIG.to_json())
    del parts["architecture"]["slot_positions"]
    assert ModelConfig.from_json(json.dumps(parts)).slot_positions == "learned"


def test_kinds_are_checked() -> None:
    with pytest.raises(ValueError, match="slot_positions must be one of learned, none, rotary, linear; got 'alibi'"):
        ModelConfig(slot_positions="alibi")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must be 'learned' where architecture='tnp-a'; got 'none'"):
        ModelConfig(architecture="tnp-a", slot_positions="none")
    with pytest.raises(ValueError, match="'rotary' needs heads at least 2 wide; got heads of 1"):
        ModelConfig(width=4, num_heads=4, slot_positions="rotary")


@UNLIMITED
def test_kind_is_trained(kind: str, tmp_path: Path) -> None:
    source = dataclasses.replace(tiny.line_source(), config=dataclasses.replace(tiny.CONFIG, slot_positions=kind))
    net, state = tiny.tiny_fit(
        tmp_path / "state.safetensors", 5, model=tiny.tiny_model(slot_positions=kind), source=source
    )
    assert state.step == 5 and math.isfinite(net(source.batch(9)).item())

"""Tests of the chain: what it asks of a network and of a predictive, and of nothing else."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.blocks import Noise
from pyro_arbuf.inference.chain import (
    leave_one_out,
    pit_joint,
    predict_marginals,
    rsample_joint,
    sample_joint,
    score_joint,
)
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.layout import cut, place_last
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.cache import Buffer, BufferCache, ContextCache

EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, S, K, N, M, R = 2, 3, 4, 5, 6, 2
LENGTHS = [2, N]


def _noise(dim_y: int, num_orders: int = R) -> Noise:
    shape = B, S, M, dim_y
    uniform, normal = torch.rand(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    return Noise(uniform, normal, torch.randint(num_orders, (B, S)))


# Embeddings that use the context --------------------------------------------------------------------------------------


class Summarising(ArBufferModel):
    """A network whose targets are embedded beside a summary of their context: its sums, as padding is zero."""

    calls: int = 0

    def encode(self, x: Tensor, y: Tensor, context_len: Tensor | None = None) -> ContextCache:
        cache = super().encode(x, y, context_len)
        return cache._replace(summary=(x.sum(1), torch.sin(y.sum((1, 2)))))

    def embed_targets(self, cache: ContextCache, x: Tensor) -> Tensor:
        self.calls += 1
        of_x, of_y = cache.summary
        shift = torch.cat([of_x, of_y[:, None]], -1).repeat(1, 5)[:, : self.config.width]
        return super().embed_targets(cache, x) + torch.tanh(shift)[:, None, None]


@pytest.fixture
def summarising(scalar_model) -> Summarising:
    net = Summarising(scalar_model.config).double().requires_grad_(False)
    net.load_state_dict(scalar_model.state_dict())
    return net


def _condition(net: ArBufferModel, task) -> Context:
    y = task.y_context.squeeze(-1) if net.config.dim_y is None else task.y_context
    return net.condition(*([a[:n] for a, n in zip(t, LENGTHS, strict=True)] for t in (task.x_context, y)))


def _one_by_one(net, x_context, y_context, x, y, order, buffer_size) -> Iterator[tuple[int, object]]:
    """Every target with its predictive, all that it depends on encoded and embedded anew; y may be filled meanwhile."""
    for k, target in enumerate(order.tolist()):
        first = k // buffer_size * buffer_size
        absorbed, buffered = order[:first], order[first:k]
        pairs = torch.cat([x[absorbed], x_context]), torch.cat([y[absorbed], y_context])
        cache = net.encode(*(t[None] for t in pairs))
        entering = (net.embed_targets(cache, x[None, None, buffered]), y[None, None, buffered]) if k > first else None
        embedded = net.embed_targets(cache, x[None, None, target : target + 1])
        prefix_len = torch.tensor([k - first])
        yield target, net.predict(cache, BufferCache(), entering, embedded, prefix_len)[0]


@pytest.mark.parametrize("buffer_size", [1, 2, K])
@pytest.mark.parametrize("per_draw", [False, True])
def test_targets_are_embedded_given_the_context_that_they_are_read_against(
    summarising, draw_task, buffer_size, per_draw
):
    net, task, orders, noise = summarising, draw_task(summarising), random_orders(M, R), _noise(1)
    x = torch.randn(B, S, M, 2, dtype=torch.float64) if per_draw else task.x_target[:, None]
    y = torch.randn(B, S, M, 1, dtype=torch.float64)
    context = _condition(net, task)
    scores = score_joint(context, x, y, orders, buffer_size)
    below, pit = pit_joint(context, x, y, orders, buffer_size)
    assert torch.equal(below, pit)  # of a real outcome
    draws = sample_joint(context, x, orders, buffer_size, noise)
    assert_close(score_joint(context, x, y, orders, buffer_size, max_tokens=1), scores, **EXACT)
    assert_close(sample_joint(context, x, orders, buffer_size, noise, max_tokens=1), draws, **EXACT)
    assert_close(rsample_joint(context, x, orders, buffer_size, noise), draws, **EXACT)
    for b, s in torch.cartesian_prod(torch.arange(B), torch.arange(S)).tolist():
        given = task.x_context[b, : LENGTHS[b]], task.y_context[b, : LENGTHS[b]], x[b, s if per_draw else 0]
        for r, order in enumerate(orders):
            for target, predictive in _one_by_one(net, *given, y[b, s], order, buffer_size):
                assert_close(scores[b, s, r, target], predictive.log_prob(y[b, s, target])[0, 0, 0], **EXACT)
                assert_close(pit[b, s, r, target], predictive.cdf(y[b, s, target])[0, 0, 0], **EXACT)
        drawn = torch.zeros(M, 1, dtype=torch.float64)
        steps = _one_by_one(net, *given, drawn, orders[noise.order[b, s]], buffer_size)
        for k, (target, predictive) in enumerate(steps):
            uniform, normal = (t[b, s, k][None, None, None] for t in noise[:2])
            drawn[target] = predictive.draw(uniform, normal)[0, 0, 0]
        assert_close(draws[b, s], drawn, **EXACT)


def test_marginals_and_leaving_one_out_embed_given_their_context(summarising, draw_task):
    net, task = summarising, draw_task(summarising)
    marginals = predict_marginals(_condition(net, task), task.x_target[:, None])
    left_out = leave_one_out(net, task.x_context, task.y_context, N)
    for b, n in enumerate(LENGTHS):
        x, y = task.x_context[b, :n], task.y_context[b, :n]
        for m in range(M):
            (_, alone), *_ = _one_by_one(net, x, y, task.x_target[b], task.y_target[b], torch.tensor([m]), 1)
            assert_close(marginals.means[b, :, m], alone.means[0, :, 0], **EXACT)
        x, y, others = task.x_context[b], task.y_context[b], ~torch.eye(N, dtype=torch.bool)
        for i in range(N):
            (_, alone), *_ = _one_by_one(net, x[others[i]], y[others[i]], x, y, torch.tensor([i]), 1)
            assert_close(left_out[b, i], alone.log_prob(y[i])[0, 0, 0, 0], **EXACT)


def test_a_part_of_the_contexts_has_its_own_summaries(summarising, draw_task):
    task = draw_task(summarising)
    whole = _condition(summarising, task)
    densities = ArBufferJoint(whole, task.x_target[1], buffer_size=2).log_prob(task.y_target[1, :, 0])
    alone = ArBufferJoint(whole[1], task.x_target[1], buffer_size=2).log_prob(task.y_target[1, :, 0])
    assert_close(alone, densities[1], **EXACT)


@pytest.mark.parametrize("walk", [sample_joint, score_joint], ids=["sampled", "scored"])
def test_targets_are_embedded_once_where_the_context_does_not_matter(
    scalar_model, draw_task, walk: Callable[..., Tensor], monkeypatch
):
    calls = []
    embed = ArBufferModel.embed_targets
    monkeypatch.setattr(ArBufferModel, "embed_targets", lambda self, *given: calls.append(0) or embed(self, *given))
    task, noise = draw_task(scalar_model), _noise(1)
    context, x = _condition(scalar_model, task), task.x_target[:, None]
    rest = (random_orders(M, R), 2, noise) if walk is sample_joint else (noise.normal, random_orders(M, R), 2)
    walk(context, x, *rest, max_tokens=1)
    assert len(calls) == 1


# Predictives whose dimensions depend on each other --------------------------------------------------------------------


class Dependent:
    """A predictive that predicts the dimensions one after the other: dimension d adds half of the one before it."""

    def __init__(self, base):
        self.base = base

    def expand(self, shape: torch.Size) -> "Dependent":
        return Dependent(self.base.expand(shape))

    def _innovations(self, y: Tensor) -> Tensor:
        return y - 0.5 * torch.nn.functional.pad(y[..., :-1], (1, 0))

    def log_prob(self, y: Tensor) -> Tensor:
        return self.base.log_prob(self._innovations(y))

    def cdf(self, y: Tensor) -> Tensor:
        return self.base.cdf(self._innovations(y))

    below = cdf

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        dims = []
        for innovation in self.base.draw(uniform, normal).unbind(-1):
            dims.append(innovation + 0.5 * dims[-1] if dims else innovation)
        return torch.stack(dims, -1)


class DependentNet(ArBufferModel):
    def predict(self, *given) -> tuple[Dependent, Buffer]:
        predictive, buffer = super().predict(*given)
        return Dependent(predictive), buffer


@pytest.mark.parametrize("num_draws", [1, S])
@pytest.mark.parametrize("buffer_size", [2, K])
def test_draws_of_dependent_dimensions_go_back_to_their_noise(build_model, draw_task, buffer_size, num_draws):
    like = build_model(dim_y=3, head="gaussian")
    net = DependentNet(like.config).double().requires_grad_(False)
    net.load_state_dict(like.state_dict())
    task, orders = draw_task(net), random_orders(M, 1)
    noise = Noise(*(t[:, :num_draws] for t in _noise(3, 1)))
    context, x = _condition(net, task), task.x_target[:, None]
    draws = sample_joint(context, x, orders, buffer_size, noise)
    pit = pit_joint(context, x, draws, orders, buffer_size)[1][:, :, 0]
    assert_close(pit[:, :, orders[0]], torch.special.ndtr(noise.normal), **EXACT)
    densities = score_joint(context, x, draws, orders, buffer_size)
    apart = (densities - score_joint(_condition(like, task), x, draws, orders, buffer_size)).abs()
    assert apart[..., 0].max() < 1e-10 and apart[..., 1:].max() > 1e-2


# Pieces and missing targets -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), most=st.integers(0, 60))
def test_pieces_are_of_bounded_size_and_join_to_the_whole(sizes, most):
    whole = torch.randn(*sizes, 2)
    pieces = cut(sizes, most)
    parts = [whole[here] for here in pieces]
    assert all(part[..., 0].numel() <= max(1, most) for part in parts)
    assert torch.equal(pieces.join(parts), whole)


def test_missing_targets_come_last_in_every_order_of_every_draw():
    orders, missing = random_orders(M, R), torch.rand(B, S, M) < 0.4
    placed = place_last(orders[None, None], missing)
    assert placed.shape == (B, S, R, M)
    for b, s, r in torch.cartesian_prod(torch.arange(B), torch.arange(S), torch.arange(R)).tolist():
        order = orders[r].tolist()
        expected = [i for i in order if not missing[b, s, i]] + [i for i in order if missing[b, s, i]]
        assert placed[b, s, r].tolist() == expected


@pytest.mark.parametrize("buffer_size", [2, K])
def test_scores_with_missing_targets_are_those_of_the_rest_in_every_order(scalar_model, draw_task, buffer_size):
    task, orders = draw_task(scalar_model), random_orders(M, R)
    context, x, y = _condition(scalar_model, task), task.x_target[:, None], torch.randn(B, S, M, 1, dtype=torch.float64)
    missing = torch.zeros(B, S, M, dtype=torch.bool)
    missing[0, 1, 2] = missing[1, 0, 0] = missing[1, 0, 5] = True
    scores = score_joint(context, x, y, orders, buffer_size, missing)
    pit = pit_joint(context, x, y, orders, buffer_size, missing)[1]
    assert torch.equal(pit[..., 0].isnan(), missing[:, :, None].expand(-1, -1, R, -1))
    assert (scores[missing[:, :, None].expand(-1, -1, R, -1)] == 0).all()
    for b, s in [(0, 0), (0, 1), (1, 0)]:
        keep = ~missing[b, s]
        renumbered = keep.cumsum(0) - 1
        rest = torch.stack([renumbered[order[keep[order]]] for order in orders])
        here = slice(b, b + 1)
        alone = _condition(scalar_model, task)[here]
        expected = score_joint(alone, x[here, :, keep], y[here, s : s + 1, keep], rest, buffer_size)
        assert_close(scores[b, s][:, keep], expected[0, 0], **EXACT)

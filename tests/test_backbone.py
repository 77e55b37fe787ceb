"""Tests of the two directions of information: `encode_context` and `read`."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf.network.backbone import Backbone
from pyro_arbuf.network.cache import BufferCache, ContextCache

EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, S, N, K, M, WIDTH = 2, 3, 5, 4, 6, 14
PREFIX_LEN = torch.tensor([0, 4, 1, 3, 2, 0])


@pytest.fixture
def backbone(scalar_model) -> Backbone:
    return scalar_model.backbone


def _tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, dtype=torch.float64)


def _assert_equal_caches(got: BufferCache | ContextCache, expected: BufferCache | ContextCache) -> None:
    for a, b in zip((*got.keys, *got.values), (*expected.keys, *expected.values), strict=True):
        assert_close(a, b, **EXACT)


def test_shapes(backbone):
    cache = backbone.encode_context(_tokens(B, N))
    features, buffer = backbone.read(cache, BufferCache(), _tokens(B, S, K), _tokens(B, S, M), PREFIX_LEN)
    assert features.shape == (B, S, M, WIDTH)
    assert buffer.num_slots == K and BufferCache().num_slots == 0
    assert all(t.shape == (B, 2, N, 7) for t in cache.keys + cache.values) and len(cache.keys) == 3
    assert all(t.shape == (B, S, 2, K, 7) for t in buffer.keys + buffer.values) and len(buffer.keys) == 3


@pytest.mark.parametrize("steps", [(1, 1, 1, 1), (2, 1, 1), (1, 3), (4,)])
def test_buffer_filled_in_steps_equals_one_pass(backbone, steps):
    cache, entering, targets = backbone.encode_context(_tokens(B, N)), _tokens(B, S, K), _tokens(B, S, M)
    features, buffer = backbone.read(cache, BufferCache(), None, targets)
    for step in (0, *steps):
        if step:
            new = entering[:, :, buffer.num_slots : buffer.num_slots + step]
            features, buffer = backbone.read(cache, buffer, new, targets)
        prefix_len = torch.full((M,), buffer.num_slots)
        at_once, _ = backbone.read(cache, BufferCache(), entering, targets, prefix_len)
        assert_close(features, at_once, **EXACT)
    _, whole = backbone.read(cache, BufferCache(), entering, targets)
    _assert_equal_caches(buffer, whole)


def test_no_prefix_length_means_every_slot(backbone):
    cache, entering, targets = backbone.encode_context(_tokens(B, N)), _tokens(B, S, K), _tokens(B, S, M)
    features, buffer = backbone.read(cache, BufferCache(), entering, targets)
    expected, _ = backbone.read(cache, BufferCache(), entering, targets, torch.full((M,), K))
    assert_close(features, expected, **EXACT)
    assert_close(backbone.read(cache, buffer, None, targets)[0], expected, **EXACT)


def test_prefix_length_applies_to_stored_and_new_slots(backbone):
    cache, entering, targets = backbone.encode_context(_tokens(B, N)), _tokens(B, S, K), _tokens(B, S, M)
    expected, _ = backbone.read(cache, BufferCache(), entering, targets, PREFIX_LEN)
    for stored in range(1, K + 1):
        _, buffer = backbone.read(cache, BufferCache(), entering[:, :, :stored], targets)
        new = entering[:, :, stored:] if stored < K else None
        assert_close(backbone.read(cache, buffer, new, targets, PREFIX_LEN)[0], expected, **EXACT)


def test_prefix_length_per_task(backbone):
    tokens, entering, targets = _tokens(B, N), _tokens(B, S, K), _tokens(B, S, M)
    prefix_len = torch.tensor([[0, 4, 1, 3, 2, 0], [3, 0, 2, 2, 4, 1]])
    features, _ = backbone.read(backbone.encode_context(tokens), BufferCache(), entering, targets, prefix_len)
    for b in range(B):
        one = slice(b, b + 1)
        cache = backbone.encode_context(tokens[one])
        alone, _ = backbone.read(cache, BufferCache(), entering[one], targets[one], prefix_len[b])
        assert_close(features[one], alone, **EXACT)


@pytest.mark.parametrize("stored", [0, 2, K])
def test_prefix_length_per_draw_equals_one_draw_at_a_time_gradients_included(backbone, stored):
    leaves = context, entering, targets = _tokens(B, N), _tokens(B, S, K), _tokens(B, S, M)
    for leaf in leaves:
        leaf.requires_grad_()
    prefix_len, weights = torch.randint(K + 1, (B, S, M)), torch.randn(B, S, M, WIDTH)

    def read(draws: slice, prefix_len: Tensor) -> Tensor:
        cache, own = backbone.encode_context(context), entering[:, draws]
        _, buffer = backbone.read(cache, BufferCache(), own[:, :, :stored] if stored else None, targets[:, draws])
        new = own[:, :, stored:] if stored < K else None
        return backbone.read(cache, buffer, new, targets[:, draws], prefix_len)[0]

    at_once = read(slice(None), prefix_len)
    alone = [read(slice(s, s + 1), prefix_len[:, s]) for s in range(S)]  # lengths per task
    kept = [read(slice(s, s + 1), prefix_len[:, s : s + 1]) for s in range(S)]
    for one_by_one in (torch.cat(alone, 1), torch.cat(kept, 1)):
        assert_close(at_once, one_by_one, **EXACT)
        gradients = (torch.autograd.grad((f * weights).sum(), leaves, retain_graph=True) for f in (at_once, one_by_one))
        for got, expected in zip(*gradients, strict=True):
            assert_close(got, expected, **EXACT)
    with torch.no_grad():
        assert_close(read(slice(None), prefix_len), at_once.detach(), **EXACT)


def test_predictions_take_prefix_lengths_per_draw(model, draw_task):
    task, y = draw_task(model, num_targets=M), torch.randn(B, S, K, model.config.dim_y or 1, dtype=torch.float64)
    cache, prefix_len = model.encode(*task[:2]), torch.randint(K + 1, (B, S, M))
    embedded = model.embed_targets(cache, task.x_target[:, None])
    predictive, _ = model.predict(cache, BufferCache(), (embedded[:, :, :K], y), embedded, prefix_len)
    for s in range(S):
        pairs = (embedded[:, :, :K], y[:, s : s + 1])
        alone, _ = model.predict(cache, BufferCache(), pairs, embedded, prefix_len[:, s])
        assert_close(predictive.mean[:, s : s + 1], alone.mean, **EXACT)


def test_draws_may_differ_in_their_prefix_alone(backbone):
    cache, entering, targets = backbone.encode_context(_tokens(B, N)), _tokens(B, 1, K), _tokens(B, 1, M)
    prefix_len = torch.randint(K + 1, (B, S, M))
    features, buffer = backbone.read(cache, BufferCache(), entering, targets, prefix_len)
    for s in range(S):
        expected, _ = backbone.read(cache, BufferCache(), entering, targets, prefix_len[:, s])
        assert_close(features[:, s : s + 1], expected, **EXACT)
    _, shared = backbone.read(cache, BufferCache(), entering, targets)
    assert shared.num_draws == 1 and buffer.num_draws == S
    assert_close(backbone.read(cache, shared, None, targets, prefix_len)[0], features, **EXACT)


def test_many_draws_equal_one_draw_at_a_time(backbone):
    cache, entering, targets = backbone.encode_context(_tokens(B, N)), _tokens(B, S, K), _tokens(B, S, M)
    features, buffer = backbone.read(cache, BufferCache(), entering, targets, PREFIX_LEN)
    for s in range(S):
        one = slice(s, s + 1)
        alone, own = backbone.read(cache, BufferCache(), entering[:, one], targets[:, one], PREFIX_LEN)
        assert_close(features[:, one], alone, **EXACT)
        kept = BufferCache(tuple(t[:, one] for t in buffer.keys), tuple(t[:, one] for t in buffer.values))
        _assert_equal_caches(kept, own)


def test_targets_shared_by_the_draws_are_read_per_draw(backbone):
    cache, entering, targets = backbone.encode_context(_tokens(B, N)), _tokens(B, S, K), _tokens(B, 1, M)
    features, _ = backbone.read(cache, BufferCache(), entering, targets, PREFIX_LEN)
    expected, _ = backbone.read(cache, BufferCache(), entering, targets.expand(B, S, M, -1), PREFIX_LEN)
    assert_close(features, expected, **EXACT)


def test_reading_leaves_caches_as_they_are(backbone):
    cache, targets = backbone.encode_context(_tokens(B, N)), _tokens(B, S, M)
    _, buffer = backbone.read(cache, BufferCache(), _tokens(B, S, 2), targets)
    before = [t.clone() for t in (*cache.keys, *cache.values, *buffer.keys, *buffer.values)]
    _, longer = backbone.read(cache, buffer, _tokens(B, S, 1), targets)
    after = [*cache.keys, *cache.values, *buffer.keys, *buffer.values]
    assert buffer.num_slots == 2 and longer.num_slots == 3
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_context_has_no_positions(backbone):
    tokens, order = _tokens(B, N), torch.tensor([3, 0, 4, 2, 1])
    cache, permuted = backbone.encode_context(tokens), backbone.encode_context(tokens[:, order])
    expected = ContextCache(*(tuple(t[:, :, order] for t in part) for part in cache[:2]))
    _assert_equal_caches(permuted, expected)


def test_padding_of_the_context_is_never_read(backbone):
    tokens, entering, targets = _tokens(B, N), _tokens(B, S, K), _tokens(B, S, M)
    lengths = torch.tensor([2, 5])
    cache = backbone.encode_context(tokens, lengths)
    features, _ = backbone.read(cache, BufferCache(), entering, targets, PREFIX_LEN)
    for b, length in enumerate(lengths.tolist()):
        one = slice(b, b + 1)
        alone = backbone.encode_context(tokens[one, :length])
        real = ContextCache(*(tuple(t[one, :, :length] for t in part) for part in cache[:2]))
        _assert_equal_caches(real, alone)
        expected, _ = backbone.read(alone, BufferCache(), entering[one], targets[one], PREFIX_LEN)
        assert_close(features[one], expected, **EXACT)


def _influence(output: Tensor, tokens: Tensor) -> Tensor:
    """`(T,)` largest gradient of anything in `output` with respect to each token of `(B, [S,] T, d)`."""
    (gradient,) = torch.autograd.grad((output * torch.randn_like(output)).sum(), tokens, retain_graph=True)
    return gradient.abs().amax([d for d in range(gradient.dim()) if d != gradient.dim() - 2])


@pytest.mark.parametrize("num_draws", [1, S])
def test_target_is_influenced_by_itself_the_context_and_its_prefix_only(backbone, num_draws):
    context, entering, targets = (
        t.requires_grad_() for t in (_tokens(B, N), _tokens(B, num_draws, K), _tokens(B, num_draws, M))
    )
    cache = backbone.encode_context(context)
    features, _ = backbone.read(cache, BufferCache(), entering, targets, PREFIX_LEN)
    for m in range(M):
        assert (_influence(features[:, :, m], context) > 1e-6).all()
        on_buffer, visible = _influence(features[:, :, m], entering), int(PREFIX_LEN[m])
        assert (on_buffer[:visible] > 1e-6).all() and (on_buffer[visible:] == 0).all()
        on_targets = _influence(features[:, :, m], targets)
        assert on_targets[m] > 1e-6 and on_targets[torch.arange(M) != m].eq(0).all()


@pytest.mark.parametrize("num_draws", [1, S])
def test_draws_and_tasks_do_not_influence_each_other(backbone, num_draws):
    context, entering, targets = (
        t.requires_grad_() for t in (_tokens(B, N), _tokens(B, num_draws, K), _tokens(B, num_draws, M))
    )
    features, _ = backbone.read(backbone.encode_context(context), BufferCache(), entering, targets, PREFIX_LEN)
    for b, s in itertools.product(range(B), range(num_draws)):
        gradients = torch.autograd.grad(features[b, s].sum(), (context, entering, targets), retain_graph=True)
        assert gradients[0][b].ne(0).any() and gradients[0][1 - b].eq(0).all()
        for gradient in gradients[1:]:
            own = gradient[b, s].clone()
            gradient[b, s] = 0
            assert own.ne(0).any() and gradient.eq(0).all()


@pytest.mark.parametrize("num_draws", [1, S])
def test_buffer_slot_is_influenced_by_the_context_itself_and_earlier_slots_only(backbone, num_draws):
    context, entering, targets = (
        t.requires_grad_() for t in (_tokens(B, N), _tokens(B, num_draws, K), _tokens(B, num_draws, M))
    )
    _, buffer = backbone.read(backbone.encode_context(context), BufferCache(), entering, targets, PREFIX_LEN)
    for keys in (buffer.keys[-1], buffer.values[-1]):
        for j in range(K):
            assert (_influence(keys[..., j, :], context) > 1e-6).all()
            on_buffer = _influence(keys[..., j, :], entering)
            assert (on_buffer[: j + 1] > 1e-6).all() and (on_buffer[j + 1 :] == 0).all()
            (on_targets,) = torch.autograd.grad(keys[..., j, :].sum(), targets, retain_graph=True, allow_unused=True)
            assert on_targets is None or on_targets.eq(0).all()


def test_context_is_influenced_by_neither_buffer_nor_targets(backbone):
    context, entering, targets = (t.requires_grad_() for t in (_tokens(B, N), _tokens(B, S, K), _tokens(B, S, M)))
    cache = backbone.encode_context(context)
    backbone.read(cache, BufferCache(), entering, targets, PREFIX_LEN)
    total = sum(t.sum() for t in (*cache.keys, *cache.values))
    assert torch.autograd.grad(total, (entering, targets), retain_graph=True, allow_unused=True) == (None, None)
    for n in range(N):
        assert (_influence(cache.keys[-1][..., n, :], context) > 1e-6).all()


def test_shared_targets_read_every_draws_buffer(backbone):
    cache, entering, targets = backbone.encode_context(_tokens(B, N)), _tokens(B, S, K), _tokens(B, 1, M)
    _, buffer = backbone.read(cache, BufferCache(), entering, targets)
    features, _ = backbone.read(cache, buffer, None, targets, PREFIX_LEN)
    expected, _ = backbone.read(cache, buffer, None, targets.expand(-1, S, -1, -1), PREFIX_LEN)
    assert_close(features, expected, **EXACT)


# Queries that grow with the number of keys ----------------------------------------------------------------------------


@pytest.fixture
def scaled() -> Backbone:
    torch.manual_seed(2)
    return Backbone(WIDTH, 3, 2, 9, scaled=True).double().requires_grad_(False)


@pytest.mark.parametrize("steps", [(1, 1, 1, 1), (1, 3), (4,)])
def test_scaled_buffer_filled_in_steps_equals_one_pass(scaled, steps):
    test_buffer_filled_in_steps_equals_one_pass(scaled, steps)


@pytest.mark.parametrize("per_draw", [False, True])
def test_scaled_queries_count_the_slots_that_they_read(scaled, per_draw):
    cache, entering, targets = scaled.encode_context(_tokens(B, N)), _tokens(B, S, K), _tokens(B, S, M)
    prefix_len = torch.randint(K + 1, (B, S, M)) if per_draw else torch.randint(K + 1, (B, M))
    features, _ = scaled.read(cache, BufferCache(), entering, targets, prefix_len)
    for b, s, m in itertools.product(range(B), range(S), range(M)):
        length = int(prefix_len[b, s, m] if per_draw else prefix_len[b, m])
        prefix = entering[b : b + 1, s : s + 1, :length] if length else None
        alone, _ = scaled.read(
            cache.select(slice(b, b + 1)), BufferCache(), prefix, targets[b : b + 1, s : s + 1, m : m + 1]
        )
        assert_close(features[b, s, m], alone[0, 0, 0], **EXACT)


def test_scaled_queries_do_not_count_padding(scaled):
    tokens, targets, lengths = _tokens(B, N), _tokens(B, S, M), torch.tensor([2, N])
    cache = scaled.encode_context(tokens, lengths)
    features, _ = scaled.read(cache, BufferCache(), _tokens(B, S, 1), targets, torch.zeros(M, dtype=torch.int64))
    for b, n in enumerate(lengths.tolist()):
        alone = scaled.encode_context(tokens[b : b + 1, :n])
        expected, _ = scaled.read(alone, BufferCache(), None, targets[b : b + 1])
        assert_close(features[b : b + 1], expected, **EXACT)


def test_scaled_attention_is_that_of_a_longer_context_sharpened_by_the_ratio_of_logarithms(scaled):
    block = scaled.blocks[0]
    tokens = _tokens(B, N)
    plain = block.q(tokens)
    assert_close(block.q(tokens, torch.tensor([[64.0]])), plain, rtol=1e-6, atol=1e-6)
    ratio = torch.log1p(torch.tensor(256.0)) / torch.log1p(torch.tensor(64.0))
    assert_close(block.q(tokens, torch.tensor([[256.0]])), ratio.double() * plain, rtol=1e-6, atol=1e-6)

"""Tests of caches: a part of the tasks, and buffers that write into storage instead of growing."""

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.testing import assert_close

from pyro_arbuf.network.backbone import Backbone
from pyro_arbuf.network.cache import Buffer, BufferCache, ContextCache, JoinedBuffer, PreallocatedBuffer

EXACT = {"rtol": 1e-12, "atol": 1e-12}
B, S, N, K, WIDTH = 2, 3, 5, 4, 14
LENGTHS = pytest.mark.parametrize("lengths", [None, [2, N]], ids=["full", "padded"])


@pytest.fixture
def backbone(scalar_model) -> Backbone:
    return scalar_model.backbone


def _tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, dtype=torch.float64)


def _decode(backbone: Backbone, cache: ContextCache, buffer: Buffer, entering: Tensor, targets: Tensor) -> Tensor:
    """Features `(B, S, K + 1, d)`: target k read with k pairs in the buffer."""
    features, pair = [], None
    for k in range(targets.shape[2]):
        read, buffer = backbone.read(cache, buffer, pair, targets[:, :, k : k + 1])
        features.append(read)
        pair = entering[:, :, k : k + 1]
    assert buffer.num_slots == K and buffer.num_draws == entering.shape[1]
    again, _ = backbone.read(cache, buffer, None, targets[:, :, -1:])
    assert_close(again, features[-1], **EXACT)
    return torch.cat(features, 2)


def _cache(backbone: Backbone, lengths: list[int] | None) -> ContextCache:
    return backbone.encode_context(_tokens(B, N), None if lengths is None else torch.tensor(lengths))


@LENGTHS
@pytest.mark.parametrize("num_draws", [1, S])
def test_decoding_into_storage_equals_a_growing_buffer(backbone, lengths, num_draws):
    cache, entering, targets = _cache(backbone, lengths), _tokens(B, num_draws, K), _tokens(B, num_draws, K + 1)
    before = [t.clone() for t in (*cache.keys, *cache.values)]
    expected = _decode(backbone, cache, BufferCache(), entering, targets)
    buffers = [PreallocatedBuffer(K, {}), *([JoinedBuffer(K, cache, {})] if num_draws == 1 else [])]
    for buffer in buffers:
        with torch.inference_mode():
            assert_close(_decode(backbone, cache, buffer, entering, targets), expected, **EXACT)
    assert all(torch.equal(a, b) for a, b in zip(before, (*cache.keys, *cache.values), strict=True))


@LENGTHS
def test_joined_buffer_is_read_where_it_stands(backbone, lengths):
    cache, targets = _cache(backbone, lengths), _tokens(B, 1, 1)
    buffer = JoinedBuffer(K, cache, {})
    for k in range(K):
        _, buffer = backbone.read(cache, buffer, _tokens(B, 1, 1), targets)
        (keys, values), slots, length = buffer.sources(cache, 1, buffer.stored(1))
        assert slots is None and keys.shape == values.shape == (B, 2, k + 1 + N, 7)
        assert keys.untyped_storage().data_ptr() == buffer.storage[1][0].untyped_storage().data_ptr()
        assert torch.equal(keys[:, :, k + 1 :], cache.keys[1]) and torch.equal(values[:, :, k + 1 :], cache.values[1])
        assert length is None if lengths is None else length.tolist() == [n + k + 1 for n in lengths]


def test_joined_buffer_takes_no_prefix_length_and_no_other_context(backbone):
    cache, other, targets = _cache(backbone, None), _cache(backbone, None), _tokens(B, 1, 1)
    buffer = JoinedBuffer(K, cache, {})
    with pytest.raises(AssertionError, match="every slot is read"):
        backbone.read(cache, buffer, None, targets, torch.tensor([0]))
    with pytest.raises(AssertionError, match="one pair at a time"):
        backbone.read(cache, buffer, _tokens(B, 1, 2), targets)
    with pytest.raises(AssertionError, match="keys of one context"):
        backbone.read(other, buffer, _tokens(B, 1, 1), targets)


def test_joined_buffer_serves_transforms(backbone):
    cache, entering, targets = _cache(backbone, None), _tokens(S, B, 1, K), _tokens(B, 1, K + 1)
    one_by_one = [_decode(backbone, cache, BufferCache(), each, targets) for each in entering]

    def decode(each: Tensor) -> Tensor:
        buffer, features, pair = JoinedBuffer(K, cache, {}), [], None
        for k in range(K + 1):
            read, buffer = backbone.read(cache, buffer, pair, targets[:, :, k : k + 1])
            features.append(read)
            pair = each[:, :, k : k + 1]
        return torch.cat(features, 2)

    assert_close(vmap(decode)(entering), torch.stack(one_by_one), **EXACT)


@pytest.mark.parametrize("tasks", [slice(1, 2), torch.tensor([1, 0, 1])], ids=["slice", "index"])
def test_selecting_tasks_selects_everything_of_theirs(backbone, tasks):
    summary = (torch.randn(B, 3), torch.randn(B, N, 2))
    cache = _cache(backbone, [2, N])._replace(summary=summary)
    part = cache.select(tasks)
    for got, of_all in zip((*part.keys, *part.values), (*cache.keys, *cache.values), strict=True):
        assert torch.equal(got, of_all[tasks])
    assert torch.equal(part.context_len, cache.context_len[tasks])
    assert all(torch.equal(got, of_all[tasks]) for got, of_all in zip(part.summary, summary, strict=True))
    assert torch.equal(cache._replace(summary=summary[0]).select(tasks).summary, summary[0][tasks])
    assert cache._replace(summary=None).select(tasks).summary is None

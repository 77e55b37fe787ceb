"""Tests of attention: three bodies, one definition."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from pyro_arbuf.network.attention import BufferQueries, KeysValues, attend, attend_merged, attend_plain, attend_stock

EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, S, H, Q, N, K, h = 2, 3, 4, 6, 5, 7, 8
PREFIXES = {
    "none": None,
    "per query": torch.tensor([0, 7, 3, 1, 0, 6]),
    "per task": torch.tensor([[0, 7, 3, 1, 0, 6], [2, 0, 7, 5, 4, 1]]),
    "per draw": torch.randint(K + 1, (B, S, Q), generator=torch.Generator().manual_seed(0)),
}
LENGTHS = {"full": None, "padded": torch.tensor([1, 4])}


def _tensors(num_draws: int, sizes=(B, H, Q, N, K, h)) -> tuple[Tensor, KeysValues, KeysValues]:
    b, heads, queries, context, slots, width = sizes
    q = torch.randn(b, num_draws, heads, queries, width, dtype=torch.float64)
    context_kv = tuple(torch.randn(b, heads, context, width, dtype=torch.float64) for _ in range(2))
    buffer_kv = tuple(torch.randn(b, num_draws, heads, slots, width, dtype=torch.float64) for _ in range(2))
    return q, context_kv, buffer_kv


def _of_draws(prefix_len: Tensor | None, num_draws: int) -> Tensor | None:
    return prefix_len if prefix_len is None or prefix_len.dim() < 3 else prefix_len[:, :num_draws]


def _naive(q, context_kv, buffer_kv=None, prefix_len=None, context_len=None) -> Tensor:
    """One query at a time: the readable keys in a list, one softmax over them."""
    out = torch.empty_like(q)
    num_context = context_kv[0].shape[-2]
    for b, s, head, i in itertools.product(*(range(n) for n in q.shape[:-1])):
        length = num_context if context_len is None else int(context_len[b])
        keys, values = (t[b, head, :length] for t in context_kv)
        if buffer_kv is not None:
            visible = buffer_kv[0].shape[-2]
            if prefix_len is not None:
                visible = int(prefix_len[(b, s, i) if prefix_len.dim() == 3 else (b, i)[2 - prefix_len.dim() :]])
            keys = torch.cat([keys, buffer_kv[0][b, s, head, :visible]])
            values = torch.cat([values, buffer_kv[1][b, s, head, :visible]])
        weights = torch.exp(keys @ q[b, s, head, i] / q.shape[-1] ** 0.5)
        out[b, s, head, i] = (weights[:, None] * values).sum(0) / weights.sum()
    return out


@pytest.mark.parametrize("context_len", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("prefix_len", PREFIXES.values(), ids=PREFIXES.keys())
@pytest.mark.parametrize("num_draws", [1, S])
def test_all_bodies_equal_the_definition(num_draws, prefix_len, context_len):
    q, context_kv, buffer_kv = _tensors(num_draws)
    arguments = (q, context_kv, buffer_kv, _of_draws(prefix_len, num_draws), context_len)
    expected = _naive(*arguments)
    for body in (attend, attend_plain, attend_merged, *([attend_stock] if num_draws == 1 else [])):
        assert_close(body(*arguments), expected, **EXACT, msg=lambda m, body=body: f"{body.__name__}: {m}")


@pytest.mark.parametrize("context_len", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("num_draws", [1, S])
def test_empty_buffer_is_attention_to_the_context(num_draws, context_len):
    q, context_kv, _ = _tensors(num_draws)
    expected = _naive(q, context_kv, context_len=context_len)
    for body in (attend, attend_plain, attend_merged, *([attend_stock] if num_draws == 1 else [])):
        assert_close(body(q, context_kv, context_len=context_len), expected, **EXACT)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*(st.integers(1, 4) for _ in range(6))),
    num_draws=st.integers(1, 4),
    padded=st.booleans(),
    prefix=st.sampled_from(["none", "per query", "per task", "per draw"]),
    seed=st.integers(0, 2**16),
)
def test_bodies_agree_for_all_shapes(sizes, num_draws, padded, prefix, seed):
    torch.manual_seed(seed)
    num_tasks, _, num_queries, num_context, num_slots, _ = sizes
    per_draw = (num_tasks, num_draws, num_queries)
    shape = {"none": None, "per query": per_draw[2:], "per task": per_draw[::2], "per draw": per_draw}[prefix]
    prefix_len = None if shape is None else torch.randint(num_slots + 1, shape)
    context_len = torch.randint(1, num_context + 1, (num_tasks,)) if padded else None
    arguments = (*_tensors(num_draws, sizes), prefix_len, context_len)
    expected = _naive(*arguments)
    for body in (attend, attend_plain, attend_merged):
        assert_close(body(*arguments), expected, **EXACT)


def _gradients(body, q, context_kv, buffer_kv, *rest) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in (q, *context_kv, *buffer_kv)]
    out = body(leaves[0], tuple(leaves[1:3]), tuple(leaves[3:]), *rest)
    return torch.autograd.grad((out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum(), leaves)


@pytest.mark.parametrize("context_len", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("prefix_len", PREFIXES.values(), ids=PREFIXES.keys())
def test_gradients_of_stock_equal_those_of_plain(prefix_len, context_len):
    arguments = (*_tensors(1), _of_draws(prefix_len, 1), context_len)
    for stock, plain in zip(_gradients(attend_stock, *arguments), _gradients(attend_plain, *arguments), strict=True):
        assert_close(stock, plain, **EXACT)


@pytest.mark.parametrize("context_len", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("prefix_len", PREFIXES.values(), ids=PREFIXES.keys())
def test_gradients_of_many_draws_equal_those_of_the_definition(prefix_len, context_len):
    arguments = (*_tensors(S), prefix_len, context_len)
    for got, expected in zip(_gradients(attend, *arguments), _gradients(_naive, *arguments), strict=True):
        assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("which", range(5), ids=["q", "context keys", "context values", "buffer keys", "buffer values"])
def test_gradient_is_not_dropped_when_one_tensor_alone_needs_it(which):
    q, context_kv, buffer_kv = _tensors(S)
    expected = _gradients(_naive, q, context_kv, buffer_kv, PREFIXES["per task"])[which]
    leaves = [q, *context_kv, *buffer_kv]
    leaves[which] = leaves[which].clone().requires_grad_()
    out = attend(leaves[0], tuple(leaves[1:3]), tuple(leaves[3:]), PREFIXES["per task"])
    (out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum().backward()
    assert_close(leaves[which].grad, expected, **EXACT)


@pytest.mark.parametrize("num_draws", [1, 3])
def test_gradcheck(num_draws):
    q, context_kv, buffer_kv = _tensors(num_draws, sizes=(2, 1, 4, 2, 3, 2))
    prefix_len, context_len = torch.tensor([[0, 3, 1, 2], [2, 2, 0, 1]]), torch.tensor([2, 1])

    def flat(q, context_keys, context_values, buffer_keys, buffer_values):
        buffer = (buffer_keys, buffer_values)
        return attend(q, (context_keys, context_values), buffer, prefix_len, context_len)

    assert gradcheck(flat, [t.requires_grad_() for t in (q, *context_kv, *buffer_kv)])


@pytest.mark.parametrize("num_draws", [1, S])
def test_without_gradients_the_result_is_the_same(num_draws):
    q, context_kv, buffer_kv = _tensors(num_draws)
    with_grad = attend(q.clone().requires_grad_(), context_kv, buffer_kv, PREFIXES["per query"])
    with torch.no_grad():
        without = attend(q, context_kv, buffer_kv, PREFIXES["per query"])
    assert with_grad.requires_grad and not without.requires_grad
    assert_close(without, with_grad.detach(), **EXACT)


@pytest.mark.parametrize("body", [attend, attend_plain, attend_merged])
def test_large_scores_do_not_overflow(body):
    q, context_kv, buffer_kv = _tensors(S)
    out = body(300 * q, context_kv, buffer_kv, PREFIXES["per query"])
    assert torch.isfinite(out).all()
    assert_close(out, attend_plain(300 * q, context_kv, buffer_kv, PREFIXES["per query"]), **EXACT)


@pytest.mark.parametrize("num_draws", [1, S])
@pytest.mark.parametrize("grad", [False, True])
def test_hidden_keys_have_exactly_no_influence(num_draws, grad):
    q, context_kv, buffer_kv = _tensors(num_draws)
    q.requires_grad_(grad)
    prefix_len, context_len = PREFIXES["per query"].clamp(max=4), LENGTHS["padded"]
    first = attend(q, context_kv, buffer_kv, prefix_len, context_len)
    for t in context_kv:
        t[0, :, 1:] = 1e3
        t[1, :, 4:] = 1e3
    for t in buffer_kv:
        t[..., 4:, :] = 1e3
    assert torch.equal(attend(q, context_kv, buffer_kv, prefix_len, context_len), first)


@pytest.mark.parametrize("context_len", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("prefix_len", PREFIXES.values(), ids=PREFIXES.keys())
@pytest.mark.parametrize("num_draws", [1, S])
@pytest.mark.parametrize("with_offset", [False, True])
def test_queries_of_their_own_read_the_buffer_in_one_softmax(num_draws, prefix_len, context_len, with_offset):
    q, context_kv, buffer_kv = _tensors(num_draws)
    own, offset = torch.randn_like(q), torch.randn_like(q[..., :1])
    args = (_of_draws(prefix_len, num_draws), context_len)
    # One longer query, of which the keys of the context meet one part, and those of the buffer the others.
    longer = torch.cat([q, own, h**0.5 * with_offset * offset], -1) * ((2 * h + 1) / h) ** 0.5
    keys = F.pad(context_kv[0], (0, h + 1)), F.pad(F.pad(buffer_kv[0], (h, 0)), (0, 1), value=1.0)
    values = (F.pad(each[1], (0, h + 1)) for each in (context_kv, buffer_kv))
    expected = _naive(longer, *zip(keys, values, strict=True), *args)[..., :h]
    queries = BufferQueries(own, offset if with_offset else None)
    for body in (attend, attend_plain, attend_merged):
        assert_close(body(q, context_kv, buffer_kv, *args, queries), expected, **EXACT)


def test_queries_of_their_own_play_no_role_where_the_buffer_is_empty():
    for num_draws in (1, S):
        q, context_kv, _ = _tensors(num_draws)
        for body in (attend_plain, attend_merged):
            assert torch.equal(body(q, context_kv, buffer_queries=BufferQueries(q + 1)), body(q, context_kv))

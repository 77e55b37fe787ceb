"""One softmax over [context | buffer], with the context shared by all draws and never copied.

Three bodies behind `attend`, equal to rounding and tested so:
- `attend_plain`: exact, differentiable, any number of draws; the definition, and what a trace or a transform takes.
- `attend_stock`: one draw per context (training, encoding): keys concatenated, PyTorch's fused kernel. Where such a
  draw is decoded step by step nothing is concatenated: a `JoinedBuffer` gives buffer and context as one longer context.
- `attend_merged`: many draws without gradients: fused attention to the shared context, small attention to each draw's
  buffer, merged by log-sum-exp (flash-decoding; Hydragen, Juravsky et al. 2024).
Knows nothing of roles, layers or embeddings.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_arbuf.network.cache import KeysValues
from pyro_arbuf.network.tracing import is_traced, is_transformed
from pyro_arbuf.network.visibility import context_mask, slot_mask


class BufferQueries(NamedTuple):
    """How queries read the buffer, where otherwise than they read the context.

    Attributes:
        q: `(B, S, H, Q, h)` queries against the keys of the buffer.
        offset: Added to the scores of slots, so that they get more of a query's attention or less; it broadcasts
            against `(B, S, H, Q, K)`. `None` = 0.
    """

    q: Tensor
    offset: Tensor | None = None

    def scores(self, keys: Tensor) -> Tensor:
        """Scores `(B, S, H, Q, K)` of keys `(B, S, H, K, h)`."""
        found = self.q @ keys.mT * int(self.q.shape[-1]) ** -0.5
        return found if self.offset is None else found + self.offset


def attend(
    q: Tensor,
    context_kv: KeysValues,
    buffer_kv: KeysValues | None = None,
    prefix_len: Tensor | None = None,
    context_len: Tensor | None = None,
    buffer_queries: BufferQueries | None = None,
) -> Tensor:
    r"""Attends to the whole context and to a prefix of the buffer, with one softmax over both.

    The context's keys and values are shared by the S draws of a task; the buffer is each draw's own.

    Args:
        q: `(B, S, H, Q, h)` queries.
        context_kv: Keys and values of the context, each `(B, H, N, h)`, N >= 1.
        buffer_kv: Keys and values of the buffer, each `(B, S, H, K, h)`; `None` = empty.
        prefix_len: int64 `(Q,)`, `(B, Q)` or `(B, S, Q)`, visible buffer slots per query; `None` = all of them.
        context_len: `(B,)` int64, real context tokens per task, at least 1; `None` = all N.
        buffer_queries: Of queries that read the buffer otherwise than the context; `None` = as the context.

    Returns:
        `(B, S, H, Q, h)`.

    Source:
        Hassan et al. (2026), Appendix A.2; log-sum-exp merge as in flash-decoding.
    """
    if buffer_queries is None and q.shape[1] == 1 and not is_transformed():
        return attend_stock(q, context_kv, buffer_kv, prefix_len, context_len)
    tensors = (q, *context_kv, *(buffer_kv or ()), *(buffer_queries or ()))
    if is_traced() or (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
        return attend_plain(q, context_kv, buffer_kv, prefix_len, context_len, buffer_queries)
    return attend_merged(q, context_kv, buffer_kv, prefix_len, context_len, buffer_queries)


def attend_plain(
    q: Tensor,
    context_kv: KeysValues,
    buffer_kv: KeysValues | None = None,
    prefix_len: Tensor | None = None,
    context_len: Tensor | None = None,
    buffer_queries: BufferQueries | None = None,
) -> Tensor:
    """`attend` by its definition: two score blocks, one softmax over their concatenation, two products."""
    scale = int(q.shape[-1]) ** -0.5  # int: a traced size would give a float32 scale
    keys, values = context_kv
    num_context = keys.shape[-2]
    scores = torch.einsum("bshqc,bhnc->bshqn", q, keys) * scale  # (B, S, H, Q, N)
    if context_len is not None:
        mask = context_mask(context_len, num_context)[:, None, None, None]
        scores = scores.masked_fill(~mask, -torch.inf)
    if buffer_kv is None:
        return torch.einsum("bshqn,bhnc->bshqc", torch.softmax(scores, -1), values)
    buffer_keys, buffer_values = buffer_kv
    buffer_scores = (buffer_queries or BufferQueries(q)).scores(buffer_keys)  # (B, S, H, Q, K)
    if prefix_len is not None:
        buffer_scores = buffer_scores.masked_fill(
            ~slot_mask(prefix_len, buffer_keys.shape[-2]).unsqueeze(2), -torch.inf
        )
    weights = torch.softmax(torch.cat([scores, buffer_scores], -1), -1)
    from_context = torch.einsum("bshqn,bhnc->bshqc", weights[..., :num_context], values)
    return from_context + weights[..., num_context:] @ buffer_values


def attend_stock(
    q: Tensor,
    context_kv: KeysValues,
    buffer_kv: KeysValues | None = None,
    prefix_len: Tensor | None = None,
    context_len: Tensor | None = None,
) -> Tensor:
    """`attend` for one draw per context (S = 1) by PyTorch's fused kernel over the concatenated keys."""
    q = q.squeeze(1)  # (B, H, Q, h)
    keys, values = context_kv
    num_context, num_slots = keys.shape[-2], 0
    if buffer_kv is not None:
        num_slots = buffer_kv[0].shape[-2]
        keys, values = (torch.cat([c, b.squeeze(1)], -2) for c, b in zip(context_kv, buffer_kv, strict=True))
    mask = None
    if num_slots and prefix_len is not None:
        mask = F.pad(slot_mask(prefix_len, num_slots), (num_context, 0), value=True)  # (B or 1, 1, Q, N + K)
    if context_len is not None:
        real = F.pad(context_mask(context_len, num_context), (0, num_slots), value=True)[:, None, None]
        mask = real if mask is None else mask & real
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).unsqueeze(1)


def attend_merged(
    q: Tensor,
    context_kv: KeysValues,
    buffer_kv: KeysValues | None = None,
    prefix_len: Tensor | None = None,
    context_len: Tensor | None = None,
    buffer_queries: BufferQueries | None = None,
) -> Tensor:
    """`attend` without gradients: the draws are folded into the queries, so the context is read once for all of them.

    The log-sum-exp of a fused kernel has no derivative in PyTorch (it is dropped silently), hence `no_grad` only.
    """
    B, S, H, Q, h = q.shape
    folded = q.transpose(1, 2).reshape(B, H, S * Q, h)
    out, lse = _attend_with_lse(folded, *context_kv, context_len)
    out = out.view(B, H, S, Q, h)
    if buffer_kv is None:
        return out.transpose(1, 2)
    keys, values = (t.transpose(1, 2) for t in buffer_kv)  # (B, H, S, K, h)
    if buffer_queries is None:
        scores = BufferQueries(folded.view(B, H, S, Q, h)).scores(keys)  # (B, H, S, Q, K)
    else:
        scores = buffer_queries.scores(buffer_kv[0]).transpose(1, 2)
    if prefix_len is not None:
        scores = scores.masked_fill(~slot_mask(prefix_len, scores.shape[-1]).unsqueeze(1), -torch.inf)
    # The whole context enters the softmax as one more key, with its log-sum-exp as the score.
    weights = torch.softmax(torch.cat([lse.view(B, H, S, Q, 1), scores], -1), -1)
    return (weights[..., :1] * out + weights[..., 1:] @ values).transpose(1, 2)


def _attend_with_lse(q: Tensor, keys: Tensor, values: Tensor, context_len: Tensor | None) -> KeysValues:
    """Attention to `(B, H, N, h)` keys and its log-sum-exp `(B, H, Q)`, by the fused kernel of the device."""
    bias = None
    if context_len is not None:
        mask = context_mask(context_len, keys.shape[-2])[:, None, None]
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, keys, values, attn_mask=bias)[:2]
    if q.device.type == "cuda" and q.dtype != torch.float64 and q.shape[-1] % 8 == 0 and bias is None:
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, keys, values, None, True)[:2]
        return out, lse[..., : q.shape[-2]]  # the kernel pads the queries of its log-sum-exp
    scores = q @ keys.mT * int(q.shape[-1]) ** -0.5
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores, -1) @ values, torch.logsumexp(scores, -1)

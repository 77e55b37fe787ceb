"""Who may read what: the one statement of requirements R2 and R4 (paper, section 3).

R1 and R3 hold by construction: the context is encoded by a function that never receives buffer or targets. What is
left is one integer per query, its prefix length v: the query sees the whole context and the first v buffer slots.

Deviation: a slot reads itself too, see `buffer_prefix_len`.
"""

import torch
from torch import Tensor


def prefix_mask(prefix_len: Tensor, num_slots: int) -> Tensor:
    """Says which buffer slots each query may read.

    A query with prefix length v reads slots 0 .. v-1 and nothing else. This comparison is the only statement of
    requirements R2 and R4; R1 and R3 hold by construction.

    Args:
        prefix_len: `(*batch, Q)` int64, visible slots per query, 0 <= v <= num_slots: the same for all, per task or per
            draw.
        num_slots: Number of buffer slots in the keys.

    Returns:
        `(*batch, Q, num_slots)` bool, `True` = may be read.

    Source:
        Hassan et al. (2026), Appendix A.2, blocks (3) and (5).

    Example:
        >>> prefix_mask(torch.tensor([0, 2]), 3)
        tensor([[False, False, False],
                [ True,  True, False]])
    """
    return torch.arange(num_slots, device=prefix_len.device) < prefix_len.unsqueeze(-1)


def slot_mask(prefix_len: Tensor, num_slots: int) -> Tensor:
    """Which buffer slots each query may read, `(B or 1, S or 1, Q, K)`, of lengths per query, task or draw.

    Args:
        prefix_len: int64 `(Q,)`, `(B, Q)` or `(B, S, Q)`, visible slots per query.
        num_slots: Number of buffer slots K in the keys.
    """
    return prefix_mask(per_draw(prefix_len), num_slots)


def per_draw(prefix_len: Tensor) -> Tensor:
    """Lengths `(B or 1, S or 1, Q)` of lengths `(Q,)`, `(B, Q)` or `(B, S, Q)`, those of a task shared by its draws."""
    lead = (1,) * (3 - prefix_len.dim())
    return prefix_len.view(*prefix_len.shape[:-1], *lead, prefix_len.shape[-1])


def buffer_prefix_len(first_slot: int, num_tokens: int, device: torch.device | None = None) -> Tensor:
    """Prefix lengths of buffer tokens entering slots `first_slot`, `first_slot + 1`, ...: slot j (from 1) has v = j.

    The paper's text lets slot j read slots < j; like TNP-A and the authors' code it reads itself too. The
    factorisation is the same, no softmax is ever empty, and decoding needs no mask.

    Args:
        first_slot: Number of slots filled before.
        num_tokens: Number of tokens that enter.
        device: Where the result lives.

    Returns:
        `(num_tokens,)` int64.

    Example:
        >>> buffer_prefix_len(2, 3)
        tensor([3, 4, 5])
    """
    return torch.arange(first_slot + 1, first_slot + num_tokens + 1, device=device)


def chain_prefix_len(num_targets: int, device: torch.device | None = None) -> Tensor:
    """Prefix lengths of the targets of a joint density: target k (from 1) sees the k - 1 before it.

    Args:
        num_targets: Number of targets in the chain.
        device: Where the result lives.

    Returns:
        `(num_targets,)` int64.

    Example:
        >>> chain_prefix_len(3)
        tensor([0, 1, 2])
    """
    return torch.arange(num_targets, device=device)


def context_mask(context_len: Tensor, num_context: int) -> Tensor:
    """Says which context tokens are real where contexts of different lengths share a batch.

    Args:
        context_len: `(B,)` int64, number of real tokens per task.
        num_context: Number of tokens after padding.

    Returns:
        `(B, num_context)` bool, `True` = may be read.

    Example:
        >>> context_mask(torch.tensor([1, 3]), 3)
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    return torch.arange(num_context, device=context_len.device) < context_len.unsqueeze(-1)

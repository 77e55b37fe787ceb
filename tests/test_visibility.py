"""Tests of the masks against the four rules, written out."""

import pytest
import torch
from reference import dense_mask

from pyro_arbuf.network.visibility import buffer_prefix_len, chain_prefix_len, context_mask, prefix_mask


@pytest.mark.parametrize("num_slots", [0, 4])
def test_query_reads_exactly_the_slots_before_its_prefix_length(num_slots):
    prefix_len = torch.randint(num_slots + 1, (2, 3, 6))
    mask = prefix_mask(prefix_len, num_slots)
    assert mask.shape == (2, 3, 6, num_slots) and mask.dtype == torch.bool
    assert torch.equal(mask.sum(-1), prefix_len)
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(6)).tolist():
        length = int(prefix_len[tuple(index)])
        assert mask[tuple(index)].tolist() == [slot < length for slot in range(num_slots)]


def test_buffer_slot_reads_itself_and_the_slots_before():
    assert buffer_prefix_len(2, 3).tolist() == [3, 4, 5]
    assert torch.equal(prefix_mask(buffer_prefix_len(0, 4), 4), dense_mask(0, 4, []))


def test_chain_target_reads_the_slots_before_it():
    mask = prefix_mask(chain_prefix_len(4), 3)
    assert torch.equal(mask, dense_mask(0, 3, [0, 1, 2, 3])[3:, :3])


def test_context_mask_hides_padding_only():
    assert context_mask(torch.tensor([1, 3, 0]), 3).tolist() == [[True, False, False], [True] * 3, [False] * 3]


def test_prefix_lengths_are_int64():
    assert buffer_prefix_len(0, 2).dtype == chain_prefix_len(2).dtype == torch.int64

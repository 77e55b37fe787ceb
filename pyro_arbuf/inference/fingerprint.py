"""Fingerprint: by what a Context knows the weights that made it, read on their device before every density and draw.

Knows nothing of networks or contexts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.network.tracing import is_traced, unrecorded, unwrapped

EXACT = 2**22  # numbers of a network, up to which all of them count
SMALL = 2**13  # numbers of a tensor, likewise, in a larger network
COLUMNS = 1021  # of the checksum's table: prime, so that permuted rows and columns of a weight are seen


class Fingerprint(NamedTuple):
    """A checksum of tensors.

    Of up to `EXACT` numbers it holds all. Of more it holds a fixed sample, so that it costs little beside a density:
    every vector, every small tensor and one row of every other. It then sees a step of an optimiser, other weights, and
    a change of a whole tensor or of a whole column; it misses a change of single numbers or rows that it does not hold.

    Attributes:
        total: The checksum.
        sample: Views of what it holds of many numbers, kept so that they need not be found again; empty = none are.
        addresses: Of the tensors they are views of; while these stay, the views show what the tensors hold now.
    """

    total: int
    sample: tuple[Tensor, ...] = ()
    addresses: tuple[int, ...] = ()

    def matches(self, tensors: Sequence[Tensor]) -> bool:
        """Whether tensors hold what the checksum was taken of."""
        in_place = bool(self.addresses) and not is_traced() and self.addresses == _addresses(tensors)
        with unrecorded():
            return self.total == (_checksum(self.sample) if in_place else _checksum(_counted(unwrapped(tensors))))


def take_fingerprint(tensors: Sequence[Tensor]) -> Fingerprint:
    """The fingerprint of a network's weights and buffers, in their order.

    Version counters would miss fused optimisers and `.data`. Under `torch.func` the bits are those below its wrappers,
    which can be read.
    """
    addresses = () if is_traced() or _number(tensors) <= EXACT else _addresses(tensors)
    with unrecorded():
        counted = _counted(unwrapped(tensors))
        return Fingerprint(_checksum(counted), tuple(counted) if addresses else (), addresses)


def _number(tensors: Sequence[Tensor]) -> int:
    return sum(map(Tensor.numel, tensors))


def _addresses(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Where contiguous tensors are; empty where one is not, as flat it would be a copy."""
    return tuple(map(Tensor.data_ptr, tensors)) if all(map(Tensor.is_contiguous, tensors)) else ()


@torch.no_grad()
def _counted(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What counts, flat; rows, as they are contiguous, another one in every tensor."""
    if _number(tensors) > EXACT:
        tensors = [
            tensor if tensor.dim() < 2 or tensor.numel() <= SMALL else tensor[61 * i % len(tensor)]
            for i, tensor in enumerate(tensors)
        ]
    return [tensor if tensor.dim() == 1 else tensor.flatten() for tensor in tensors]  # a call each, twice a density


@torch.no_grad()
def _checksum(flat: Sequence[Tensor]) -> int:
    """The bits, summed over the rows of a table, whose columns then count differently."""
    padding = flat[0].new_zeros(-_number(flat) % (2 * COLUMNS))
    numbers = torch.cat([*flat, padding])
    numbers = numbers.float() if numbers.element_size() < 4 else numbers
    sums = numbers.view(torch.int64).view(-1, COLUMNS).sum(0)
    return int((sums * torch.arange(1, 2 * COLUMNS, 2, device=sums.device)).sum())

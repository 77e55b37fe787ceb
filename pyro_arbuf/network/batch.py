"""Batch: what a training step shows a network: contexts, buffers, targets, and what each target may read."""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Data sets of equal sizes, split by role.

    Attributes:
        x_context: `(B, N, D_x)`.
        y_context: `(B, N, D_y)`.
        x_buffer: `(B, K, D_x)`, in the order in which the buffer holds them.
        y_buffer: `(B, K, D_y)`.
        x_target: `(B, M, D_x)`; pairs of the buffer may be targets too.
        y_target: `(B, M, D_y)`.
        prefix_len: `(M,)` or `(B, M)` int64, buffer slots that each target may read, 0 <= v <= K.
    """

    x_context: Tensor
    y_context: Tensor
    x_buffer: Tensor
    y_buffer: Tensor
    x_target: Tensor
    y_target: Tensor
    prefix_len: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))

"""Dropout in the blocks of a network, for the time of a training step; the blocks themselves know nothing of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from pyro_arbuf.network.backbone import Block
from pyro_arbuf.random_state import seeded


@contextmanager
def dropped_out(model: nn.Module, rate: float, seed: int) -> Iterator[None]:
    """Drops out what attention adds to a token, and the hidden units of the MLP, in every block of a model.

    Args:
        model: The model, whose weights stay as they are.
        rate: Share that is dropped; 0 = nothing.
        seed: Of what is dropped; the random states are given back.

    Source:
        Srivastava et al. (2014), "Dropout".
    """
    if not rate:
        yield
        return

    def thinned(module: nn.Module, args: tuple[Tensor], result: Tensor) -> Tensor:
        return F.dropout(result, rate)

    def thinned_hidden(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (F.dropout(args[0], rate),)

    blocks = [block for block in model.modules() if isinstance(block, Block)]
    hooks = [block.out.register_forward_hook(thinned) for block in blocks]
    hooks += [block.down.register_forward_pre_hook(thinned_hidden) for block in blocks]
    try:
        with seeded(seed):
            yield
    finally:
        for hook in hooks:
            hook.remove()

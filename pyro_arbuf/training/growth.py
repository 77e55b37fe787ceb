"""`grow`: a network with more blocks or wider MLPs that predicts what the smaller one did, to train it further.

New blocks and new hidden units start with outputs of zero. Training then goes on from what was learned, where a network
of random weights would have to learn it again.

Source:
    Chen, Goodfellow, Shlens (2016), "Net2Net: accelerating learning via knowledge transfer".
"""

import dataclasses
from typing import TypeVar

import torch

from pyro_arbuf.network.network import Network

AnyNetwork = TypeVar("AnyNetwork", bound=Network)
GROWN = ("num_layers", "mlp_width")
ZEROED = ("out.weight", "down.weight", "down.bias")  # what a block adds to its tokens


def grow(net: AnyNetwork, num_layers: int | None = None, mlp_width: int | None = None) -> AnyNetwork:
    """Returns a network of larger sizes with the same predictions, up to rounding.

    Args:
        net: A network of architecture "buffer" or "tnp-d", which is left as it is.
        num_layers: Blocks L, at least as many as it has; `None` = as it has. New blocks stand behind the others.
        mlp_width: Hidden width of the blocks' MLP, at least what it is; `None` = what it is.

    Returns:
        The larger network, on the same device, all of whose weights require gradients.

    Raises:
        ValueError: If a size is smaller than that of `net`, or its blocks are not all there is between tokens.

    Example:
        >>> import pyro_arbuf
        >>> larger = grow(pyro_arbuf.load("gp-1d-noisy"), num_layers=8)
        >>> larger.config.num_layers
        8
    """
    if net.config.architecture not in ("buffer", "tnp-d"):
        raise ValueError(
            f"net must be of architecture 'buffer' or 'tnp-d', whose blocks alone can grow; got "
            f"{net.config.architecture!r}; train a new one of the larger size"
        )
    given = {"num_layers": num_layers, "mlp_width": mlp_width}
    sizes = {name: size for name, size in given.items() if size is not None}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < getattr(net.config, name):
            raise ValueError(f"{name} must be an integer of at least {getattr(net.config, name)}, net's; got {size!r}")
    like = next(net.parameters())
    larger = type(net)(dataclasses.replace(net.config, **sizes)).to(like.device, like.dtype)
    old, new = net.state_dict(), larger.state_dict()
    with torch.no_grad():
        for name, value in new.items():
            if name.startswith("backbone.blocks.") and name.endswith(ZEROED):
                value.zero_()  # unless there is an old weight to put there
            if name in old:
                value[tuple(slice(size) for size in old[name].shape)] = old[name]
    return larger

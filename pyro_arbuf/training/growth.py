"""`grow`: a network with more blocks, wider tokens or wider MLPs that predicts what the smaller one did.

New blocks and new hidden units start with outputs of zero. In wider tokens every number stands several times, and what
reads them adds up the copies with weights that differ, so that training pulls them apart. It then goes on from what was
learned, where a network of random weights would have to learn it again.

Source:
    Chen, Goodfellow, Shlens (2016), "Net2Net: accelerating learning via knowledge transfer".
"""

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor, nn

from pyro_arbuf.network.network import Network

AnyNetwork = TypeVar("AnyNetwork", bound=Network)
GROWN = ("num_layers", "mlp_width", "width")
ZEROED = ("out.weight", "down.weight", "down.bias")  # what a block adds to its tokens
APART = 0.1  # by how much the weights of copies differ, in standard deviations of what they were made of


def grow(
    net: AnyNetwork, num_layers: int | None = None, mlp_width: int | None = None, width: int | None = None
) -> AnyNetwork:
    """Returns a network of larger sizes with the same predictions, up to rounding.

    Args:
        net: A network of architecture "buffer" or "tnp-d", which is left as it is.
        num_layers: Blocks L, at least as many as it has; `None` = as it has. New blocks stand behind the others.
        mlp_width: Hidden width of the blocks' MLP, at least what it is; `None` = what it is.
        width: Token width d, a multiple of what it is. There are as many times more heads, and MLPs are as many times
            wider, of which `mlp_width` must be no less. `None` = what it is.

    Returns:
        The larger network, on the same device, all of whose weights require gradients.

    Raises:
        ValueError: If a size is smaller than that of `net` or no multiple of it, its blocks are not all there is
            between tokens, or `width` is given and what a head sees of slots depends on the number of heads.

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
    net = net if width is None else _widened(net, width)
    given = {"num_layers": num_layers, "mlp_width": mlp_width}
    sizes = {name: size for name, size in given.items() if size is not None}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < getattr(net.config, name):
            raise ValueError(f"{name} must be an integer of at least {getattr(net.config, name)}, net's; got {size!r}")
    larger = _of_sizes(net, **sizes)
    old, new = net.state_dict(), larger.state_dict()
    with torch.no_grad():
        for name, value in new.items():
            if name.startswith("backbone.blocks.") and name.endswith(ZEROED):
                value.zero_()  # unless there is an old weight to put there
            if name in old:
                value[tuple(slice(size) for size in old[name].shape)] = old[name]
    return larger


def _of_sizes(net: AnyNetwork, **sizes: int) -> AnyNetwork:
    """A new network of other sizes, of the same class, on the same device."""
    like = next(net.parameters())
    return type(net)(dataclasses.replace(net.config, **sizes)).to(like.device, like.dtype)


def _widened(net: AnyNetwork, width: int) -> AnyNetwork:
    """The network with every number of a token, and every hidden unit of a block, several times."""
    own = net.config.width
    if isinstance(width, bool) or not isinstance(width, int) or width < own or width % own:
        raise ValueError(f"width must be a multiple of {own}, net's; got {width!r}")
    if net.config.slot_positions == "linear":
        raise ValueError("width cannot grow in a network of slot_positions='linear', where it says what a head sees")
    times = width // own
    sizes = {"num_heads": times * net.config.num_heads, "mlp_width": times * net.config.mlp_width}
    wider = _of_sizes(net, width=width, **sizes)
    linear = {f"{name}.weight" for name, module in wider.named_modules() if isinstance(module, nn.Linear)}
    state = wider.state_dict()
    for name, value in net.state_dict().items():
        for axis, size in enumerate(state[name].shape):
            if size != value.shape[axis]:
                value = _copied(value, axis, times, own, read=name in linear and axis == 1)
        state[name] = value
    wider.load_state_dict(state)
    return wider


def _copied(value: Tensor, axis: int, times: int, width: int, read: bool) -> Tensor:
    """Numbers `times` times along an axis, in blocks of `width` where it holds such; what reads copies as parts of it.

    Args:
        value: The weights.
        axis: Along which they grow.
        times: How often every number stands.
        width: Of the tokens; several of them side by side grow each by itself.
        read: Whether the weights multiply copies, whose products then have to add up to what they were.
    """
    size = value.shape[axis]
    blocks = value.unflatten(axis, (-1, width if size % width == 0 else size))
    copies = blocks.unsqueeze(axis + 1).repeat_interleave(times, axis + 1)
    if read:
        apart = APART * value.std(correction=0) * torch.randn_like(copies)
        copies = copies / times + apart - apart.mean(axis + 1, keepdim=True)
    return copies.flatten(axis, axis + 2)

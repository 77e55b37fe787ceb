"""Kinds of buffers that are added to a set model, and what training might leave of them."""

import torch

from pyro_arbuf.baselines.added_buffer import TNPDBuffer

KINDS = {
    "adapters": {"rank": 3},
    "gate": {"rank": None, "gated_read": True},
    "both": {"rank": 2, "gated_read": True},
}


def changed(net: TNPDBuffer) -> TNPDBuffer:
    """The network with random numbers in place of what was added, as training might leave it."""
    with torch.no_grad():
        for weight in net.added:
            weight.copy_(0.3 * torch.randn(weight.shape))
    return net.requires_grad_(False)

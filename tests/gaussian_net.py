"""An untrained network of the conjugate Gaussian program, whose posterior is a wide law."""

import torch

from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.latents import Latent

LATENTS = (Latent("tau", lower=0.0), Latent("mu"))
FIELDS = {"dim_x": 1, "latents": LATENTS, "prior": "gaussian", "num_context": (0, 20), "num_targets": (1, 20)}
X = torch.zeros(3, 1, dtype=torch.float64)
Y = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64)


def wide(net: ArBufferModel, sd: float = 1.6) -> ArBufferModel:
    """The same network in place: the law of every latent number has about mean 0 and this standard deviation."""
    with torch.no_grad():
        out = net.latent_head.out
        out.weight *= 0.03
        logits, means, scales = out.bias.view(3, -1)
        logits *= 0.1
        means.zero_()
        scales.fill_(torch.tensor(sd).expm1().log())
    return net

"""From target features to the predictive of one target.

Output dimensions are independent given what the target read. Computed in at least float32 whatever the features are.
Knows nothing of contexts, buffers or orders.

Deviation: the paper's mixture head, with a layer norm in front of it and component means that start apart, so that
they divide the outcomes among them; latents have a head of their own.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_arbuf.network.chained import ChainedHead
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.outcomes import MIN_SD
from pyro_arbuf.network.predictives import GaussianMixture, Predictive


class Head(Protocol):
    """What a head is: a module that turns features `(*batch, M, d)` into predictives `(*batch, M, D_y)`."""

    def __call__(self, features: Tensor) -> Predictive: ...  # noqa: D102


class GaussianMixtureHead(nn.Module):
    """Features to a mixture of C Gaussians per output dimension.

    Args:
        width: Feature width d.
        hidden_width: Hidden width of the MLP.
        dim_y: Output dimensions D_y.
        num_components: Components C.
    """

    def __init__(self, width: int, hidden_width: int, dim_y: int, num_components: int):
        super().__init__()
        self.dim_y = dim_y
        self.norm = nn.LayerNorm(width, bias=False)
        self.hidden = nn.Linear(width, hidden_width)
        self.out = nn.Linear(hidden_width, 3 * dim_y * num_components)
        nn.init.normal_(self.out.weight, std=0.3 * hidden_width**-0.5)
        with torch.no_grad():
            bias = torch.zeros(3, dim_y, num_components)
            bias[1] = torch.linspace(-1.0, 1.0, num_components) if num_components > 1 else 0.0
            self.out.bias.copy_(bias.flatten())

    def forward(self, features: Tensor) -> GaussianMixture:
        """The predictive, batch shape `(*batch, M, D_y)`, of features `(*batch, M, d)`."""
        with torch.autocast(features.device.type, enabled=False):
            raw = self.out(F.gelu(self.hidden(self.norm(features.to(self.out.weight.dtype)))))
            raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
            logits, means, scales = raw.unflatten(-1, (3, self.dim_y, -1)).unbind(-3)  # 3 x (*batch, M, D_y, C)
            return GaussianMixture(F.log_softmax(logits, -1), means, F.softplus(scales) + MIN_SD)


def make_head(config: ModelConfig) -> Head:
    """The head that a configuration describes."""
    width, hidden_width, dim_y = config.width, config.head_width, config.dim_y or 1
    num_components = config.num_components if config.head == "mixture" else 1
    if config.all_real and (dim_y == 1 or not config.chained):
        return GaussianMixtureHead(width, hidden_width, dim_y, num_components)
    return ChainedHead(width, hidden_width, config.kinds, num_components)

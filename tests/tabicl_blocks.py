"""TabICL's in-context transformer as the blocks of a set model of this package.

An example of blocks that somebody else wrote: what differs from `Block` is that three matrices are stored as one, that
every map has a bias, and that queries are scaled by two small networks, of the number of rows they read and of the
query itself (Qu et al. 2026, "TabICLv2"). Rows are embedded and outcomes predicted by the modules of this package.
"""

from collections.abc import Iterable

import torch
from tabicl._model.encoders import Encoder
from torch import Tensor, nn

from pyro_arbuf import ModelConfig
from pyro_arbuf.baselines.tnp_d import TNPD
from pyro_arbuf.network.backbone import Backbone, Block
from pyro_arbuf.network.lags import Turn


class TabICLBlock(Block):
    """A block of TabICL, of whose modules it is made.

    Args:
        block: A `MultiheadAttentionBlock` with the scaling of queries "qassmax-mlp-elementwise".
    """

    def __init__(self, block: nn.Module):
        nn.Module.__init__(self)
        attention = block.attn
        self.num_heads = attention.num_heads
        self.norm_attention, self.norm_mlp, self.up, self.down = block.norm1, block.norm2, block.linear1, block.linear2
        self.out, self.scaling, self.query_bias, self.key_bias = attention.out_proj, attention.ssmax_layer, None, None
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
            linear.load_state_dict({"weight": weight, "bias": bias})
            setattr(self, name, linear)

    def q(self, normed: Tensor, num_keys: Tensor | None = None, turn: Turn | None = None) -> Tensor:
        """Queries, scaled by a function of the number of rows that each of them reads."""
        assert num_keys is not None
        queries = super().q(normed, None, turn)
        length = self._heads(self.scaling.base_mlp(num_keys.to(normed.dtype).log().unsqueeze(-1)))
        return queries * length * (1 + torch.tanh(self.scaling.query_mlp(queries)))

    @property
    def sharpness(self) -> None:
        """Not what scales these queries."""
        return None


class TabICLBackbone(Backbone):
    """`Backbone` over blocks of TabICL, which are told how many rows a query reads."""

    def __init__(self, blocks: Iterable[nn.Module]):
        nn.Module.__init__(self)
        self.scaled, self.relative, self.one_query = True, None, True
        self.blocks = nn.ModuleList(TabICLBlock(block) for block in blocks)


def make_encoder(config: ModelConfig) -> Encoder:
    """TabICL's in-context transformer of a configuration's sizes, of random weights, none of which is zero."""
    sizes = (config.num_layers, config.width, config.num_heads, config.mlp_width)
    encoder = Encoder(*sizes, ssmax="qassmax-mlp-elementwise", zero_init=False)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return encoder.eval()


def set_model(config: ModelConfig, encoder: Encoder) -> TNPD:
    """A set model of architecture "tnp-d" whose blocks are those of an in-context transformer."""
    return TNPD(config, backbone=TabICLBackbone(encoder.blocks))

"""LBANP: a context compressed into a fixed number of latent tokens, with and without a buffer (Feng et al. 2023)."""

import torch
from torch import Tensor, nn

from pyro_arbuf.baselines.attention_layer import AttentionLayer
from pyro_arbuf.baselines.tnp_d import TNPD
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.attention import attend
from pyro_arbuf.network.backbone import Backbone
from pyro_arbuf.network.cache import ContextCache
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.lags import Turn

NUM_LATENTS = 32


class LatentBackbone(Backbone):
    """Blocks in which latent tokens stand for the context: they read it, buffer and targets read them.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config.width, config.num_layers, config.num_heads, config.mlp_width, config.scaled_queries)
        self.latents = nn.Parameter(torch.randn(1, NUM_LATENTS, config.width) * 0.5)
        layers = (AttentionLayer(config.width, config.num_heads, config.num_layers) for _ in self.blocks)
        self.gather = nn.ModuleList(layers)

    def encode_context(
        self, tokens: Tensor, context_len: Tensor | None = None, turn: Turn | None = None
    ) -> ContextCache:
        """Compresses tokens `(B, N, d)` into keys and values of as many latents for every N."""
        keys, values, layers = [], [], self._layers
        latents = self.latents.expand(tokens.shape[0], -1, -1)
        num_keys = self._num_keys(latents, None, NUM_LATENTS)
        for block, gather in zip(layers, self.gather, strict=True):
            latents = gather(latents, tokens, context_len)
            normed = block.norm_attention(latents)
            kv = block.kv(normed)  # 2 x (B, H, P, h)
            keys.append(kv[0])
            values.append(kv[1])
            if block is not layers[-1]:
                latents = block.update(latents, attend(block.q(normed, num_keys).unsqueeze(1), kv).squeeze(1))
        return ContextCache(tuple(keys), tuple(values))


class LBANP(TNPD):
    """A set model whose targets read 32 latent tokens, which in every layer read the context and each other.

    It differs from the published one in what all networks here share (embedder, blocks, mixture head), and in that
    latents read the context by attention without an MLP of its own; layers are fewer than those of a network without
    latents, so that both have as many parameters.

    Source:
        Feng, Hajimirsadeghi, Bengio, Ahmed (2023), "Latent bottlenecked attentive neural processes".
    """

    architecture = "lbanp"

    def __init__(self, config: ModelConfig):
        super().__init__(config, backbone=LatentBackbone(config))


class LBANPBuffer(ArBufferModel):
    """`LBANP` with the buffer of this package: its slots and targets read the latents; absorbing compresses anew.

    It differs from the published one as `LBANP` does from its own. The paper does not say how many latents it has.

    Source:
        Hassan et al. (2026), the experiment with a latent bottleneck.
    """

    architecture = "lbanp-buffer"

    def __init__(self, config: ModelConfig):
        super().__init__(config, backbone=LatentBackbone(config))

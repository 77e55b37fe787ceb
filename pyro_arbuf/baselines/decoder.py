"""A decoder: context and predicted pairs as one causal sequence, which is not invariant to its order."""

from torch import Tensor

from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.attention import attend
from pyro_arbuf.network.backbone import Backbone
from pyro_arbuf.network.cache import ContextCache
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.embedding import Embedder
from pyro_arbuf.network.lags import Turn
from pyro_arbuf.network.rules import LARGEST_SIZE
from pyro_arbuf.network.visibility import chain_prefix_len


class SequenceEmbedder(Embedder):
    """Pairs that look alike wherever they stand: those of the buffer go on where the context ends."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        del self.positions

    def buffer(self, embedded_x: Tensor, y: Tensor, first_slot: int, told: Tensor | None = None) -> Tensor:
        """Tokens `(*batch, T, d)` of pairs that follow the context."""
        return self.context(embedded_x, y, told)


class CausalBackbone(Backbone):
    """Blocks whose context is read causally: token n reads tokens 1 .. n."""

    def encode_context(
        self, tokens: Tensor, context_len: Tensor | None = None, turn: Turn | None = None
    ) -> ContextCache:
        """Encodes the context as a sequence; padding stands behind it, where no real token reads."""
        keys, values, layers = [], [], self._layers
        before = chain_prefix_len(tokens.shape[-2], tokens.device)  # of the tokens behind the first, with itself
        num_keys = self._num_keys(tokens, None, 1, query_len=before)
        for block in layers:
            normed = block.norm_attention(tokens)
            kv = block.kv(normed)  # 2 x (B, H, N, h)
            keys.append(kv[0])
            values.append(kv[1])
            if block is not layers[-1]:
                # All read the first token, and those behind it as slots of a buffer are read.
                first, later = (kv[0][..., :1, :], kv[1][..., :1, :]), (kv[0][:, None, :, 1:], kv[1][:, None, :, 1:])
                attended = attend(block.q(normed, num_keys).unsqueeze(1), first, later, before)
                tokens = block.update(tokens, attended.squeeze(1))
        return ContextCache(tuple(keys), tuple(values), context_len)


class Decoder(ArBufferModel):
    """A transformer that reads its context as a sequence, and predicts targets from it and from the pairs after it.

    Permuting the context changes its predictions. As the sequence simply goes on, nothing is ever absorbed: one pair
    more in the buffer is one pair more at the end of the context. (With a `buffer_size` given, absorbed pairs would
    stand in front of the context's.)

    It differs from a published decoder in what all networks here share: targets are queries of their own, which
    nothing reads, and it is trained on the same batches as a network with a buffer. It has no positions: the points of
    a function have no order to be learned, and the causal mask tells the tokens apart.
    """

    architecture = "decoder"

    def __init__(self, config: ModelConfig):
        sizes = (config.width, config.num_layers, config.num_heads, config.mlp_width, config.scaled_queries)
        super().__init__(config, SequenceEmbedder(config), CausalBackbone(*sizes))

    @property
    def buffer_size(self) -> int:
        """Any number of targets."""
        return LARGEST_SIZE

"""ArBufferModel = Embedder + Backbone + head; what a user conditions becomes a Context (DESIGN sections 1, 6 and 7b).

Knows nothing of orders, of blocks of targets, or of Pyro.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_arbuf.backbone import Backbone
from pyro_arbuf.cache import Buffer, BufferCache, ContextCache
from pyro_arbuf.config import ModelConfig
from pyro_arbuf.context import Context, make_context
from pyro_arbuf.embedding import Embedder
from pyro_arbuf.heads import GaussianHead, GaussianMixture, GaussianMixtureHead
from pyro_arbuf.validation import inference_scope


class ArBufferModel(nn.Module):
    """A set model with a causal autoregressive buffer.

    Args:
        config: Sizes, head and trained ranges.

    Source:
        Hassan et al. (2026), section 3.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        dim_y = config.dim_y or 1
        self.embedder = Embedder(
            config.dim_x,
            dim_y,
            config.width,
            config.embedding_width,
            config.buffer_size,
            config.num_frequencies,
            config.max_frequency,
        )
        self.backbone = Backbone(config.width, config.num_layers, config.num_heads, config.mlp_width)
        if config.head == "mixture":
            self.head = GaussianMixtureHead(config.width, config.head_width, dim_y, config.num_components)
        else:
            self.head = GaussianHead(config.width, config.head_width, dim_y)

    def encode(self, x: Tensor, y: Tensor, context_len: Tensor | None = None) -> ContextCache:
        """Encodes contexts; where one has no pair, the empty-context token stands in.

        Args:
            x: `(B, N, D_x)`, zeros where padded.
            y: `(B, N, D_y)`, zeros where padded.
            context_len: `(B,)` int64, real pairs per task, the padding behind them; `None` = all N.

        Returns:
            Keys and values of every layer, of max(N, 1) tokens.
        """
        empty = self.embedder.empty_context
        if x.shape[1] == 0:
            return self.backbone.encode_context(empty.expand(x.shape[0], 1, -1))
        tokens = self.embedder.context(self.embedder.inputs(x), y)
        if context_len is not None:
            first = torch.arange(x.shape[1], device=x.device) == 0
            tokens = torch.where(((context_len == 0)[:, None] & first)[..., None], empty, tokens)
            context_len = context_len.clamp(min=1)
        return self.backbone.encode_context(tokens, context_len)

    def predict(
        self,
        cache: ContextCache,
        buffer: Buffer,
        pairs: tuple[Tensor, Tensor] | None,
        embedded_target: Tensor,
        prefix_len: Tensor | None = None,
    ) -> tuple[GaussianMixture, Buffer]:
        """Appends pairs to the buffer and predicts targets from the context and a prefix of the buffer.

        Args:
            cache: The encoded context.
            buffer: The buffer so far.
            pairs: Embedded inputs `(B, S or 1, T, d)` and outcomes `(B, S, T, D_y)` that enter; `None` = none.
            embedded_target: E_x of the targets, `(B, S or 1, M, d)`.
            prefix_len: int64 `(M,)` or `(B, M)`; `None` = the whole buffer.

        Returns:
            The predictive, batch shape `(B, S, M, D_y)`, and the longer buffer.
        """
        entering = None if pairs is None else self.embedder.buffer(*pairs, buffer.num_slots)
        target_tokens = self.embedder.target(embedded_target)
        features, buffer = self.backbone.read(cache, buffer, entering, target_tokens, prefix_len)
        return self.head(features), buffer

    def forward(
        self,
        x_context: Tensor,
        y_context: Tensor,
        x_buffer: Tensor,
        y_buffer: Tensor,
        x_target: Tensor,
        y_target: Tensor,
        prefix_len: Tensor,
    ) -> Tensor:
        """Teacher-forced log densities: the training forward, the same functions as everything else.

        Args:
            x_context: `(B, N, D_x)`.
            y_context: `(B, N, D_y)`.
            x_buffer: `(B, K, D_x)`.
            y_buffer: `(B, K, D_y)`.
            x_target: `(B, M, D_x)`.
            y_target: `(B, M, D_y)`.
            prefix_len: int64 `(M,)` or `(B, M)`.

        Returns:
            `(B, M)` nats per target.
        """
        cache = self.encode(x_context, y_context)
        pairs = (self.embedder.inputs(x_buffer)[:, None], y_buffer[:, None]) if x_buffer.shape[1] else None
        embedded_target = self.embedder.inputs(x_target)[:, None]
        predictive, _ = self.predict(cache, BufferCache(), pairs, embedded_target, prefix_len)
        return predictive.log_prob(y_target[:, None]).sum(-1).squeeze(1)  # (B, M)

    def condition(
        self, x: Tensor | Sequence[Tensor] | None = None, y: Tensor | Sequence[Tensor] | None = None
    ) -> Context:
        """Encodes observations once, for any number of draws and densities.

        Args:
            x: `(*batch, N, D_x)` inputs; or a list of B tensors `(N_b, D_x)` of different lengths; `None` = no
                observation (N = 0).
            y: `(*batch, N)` for a scalar outcome, `(*batch, N, D_y)` for a vector outcome; or a list of B such
                tensors without batch.

        Returns:
            A `Context` of batch shape `*batch`, or `(B,)` for lists. Permuting the N pairs changes nothing.

        Raises:
            ValueError: If a shape, dtype or device is wrong, or a value is NaN or infinite.

        Example:
            >>> model = ArBufferModel(ModelConfig()).requires_grad_(False)
            >>> model.condition(torch.zeros(5, 1), torch.zeros(5)).num_context
            5
        """
        with inference_scope():
            return make_context(self, x, y)

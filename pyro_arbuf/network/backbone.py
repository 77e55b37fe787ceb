"""The transformer: one kind of block and two directions of information, `encode_context` and `read`.

`encode_context` never receives buffer or targets (R1, R3); in `read` targets are never projected to keys (R4), buffer
tokens are, and they see slots up to their own (R2). Training, density and decoding all go through these two functions.
Knows nothing of inputs, outcomes or heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_arbuf.network.attention import attend
from pyro_arbuf.network.cache import Buffer, ContextCache, JoinedBuffer, KeysValues
from pyro_arbuf.network.lags import Turn, first_biases, joined_turns, turned
from pyro_arbuf.network.positions import RelativePositions
from pyro_arbuf.network.visibility import buffer_prefix_len

SHARP_FROM = 64  # keys that a query reads before scaling matters: there it starts as a factor of 1


class Block(nn.Module):
    """Pre-norm transformer block: the only one in the package.

    Args:
        width: Token width d.
        num_heads: Heads H.
        mlp_width: Hidden width of the MLP.
        scaled: Whether queries grow with the logarithm of the number of keys they read, by a learned factor per head.
        frequencies: `(h / 2,)` of the angles by which queries and keys of a series are turned; `None` = they are not.
    """

    def __init__(
        self, width: int, num_heads: int, mlp_width: int, scaled: bool = False, frequencies: Tensor | None = None
    ):
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width, bias=False)
        self.norm_mlp = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)
        self.sharpness = nn.Parameter(torch.full((num_heads, 1, 1), 1 / math.log1p(SHARP_FROM))) if scaled else None
        self.query_bias = self.key_bias = None
        if frequencies is not None:
            biases = first_biases(num_heads, frequencies, width // num_heads)
            self.query_bias, self.key_bias = (nn.Parameter(bias) for bias in biases)

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)  # (*batch, H, T, h)

    def kv(self, normed: Tensor, turn: Turn | None = None) -> KeysValues:
        """Keys and values `(*batch, H, T, h)` of normalised tokens `(*batch, T, d)`; of a series with their angles."""
        keys = self._heads(self.key(normed))
        if turn is not None and self.key_bias is not None:
            keys = turned(keys, self.key_bias, turn)
        return keys, self._heads(self.value(normed))

    def q(self, normed: Tensor, num_keys: Tensor | None = None, turn: Turn | None = None) -> Tensor:
        """Queries `(*batch, H, T, h)` of normalised tokens `(*batch, T, d)`.

        Args:
            normed: The tokens.
            num_keys: Keys that each of them reads, broadcasting against `(*batch, T)`; used where queries are scaled.
            turn: Their angles; `None` = they have no time.
        """
        queries = self._heads(self.query(normed))
        if turn is not None and self.query_bias is not None:
            queries = turned(queries, self.query_bias, turn)
        if self.sharpness is None or num_keys is None:
            return queries
        length = torch.log1p(num_keys.to(queries.dtype)).unsqueeze(-1).unsqueeze(-3)  # (*batch, 1, T, 1)
        return queries * (self.sharpness * length)

    def update(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Adds what was read, `(*batch, H, T, h)`, and the MLP of the result to tokens `(*batch, T, d)`."""
        tokens = tokens + self.out(attended.transpose(-2, -3).flatten(-2))
        return tokens + self.down(F.gelu(self.up(self.norm_mlp(tokens))))


def make_blocks(
    width: int,
    num_layers: int,
    num_heads: int,
    mlp_width: int,
    scaled: bool = False,
    frequencies: Tensor | None = None,
) -> list[Block]:
    """Blocks of a stack, whose branches start small."""
    blocks = [Block(width, num_heads, mlp_width, scaled, frequencies) for _ in range(num_layers)]
    for block in blocks:
        for branch in (block.out, block.down):
            nn.init.normal_(branch.weight, std=(2 * num_layers * branch.in_features) ** -0.5)
    return blocks


def most_draws(buffer: Buffer, prefix_len: Tensor | None, *tokens: Tensor | None) -> int:
    """Number of draws S of what is read together; tokens `(B, S or 1, T, d)`, lengths as `Backbone.read` takes them."""
    found = [part.shape[1] for part in tokens if part is not None and part.shape[-2]]
    of_lengths = prefix_len.shape[1] if prefix_len is not None and prefix_len.dim() == 3 else 1
    return max(buffer.num_draws, of_lengths, *found)


class Backbone(nn.Module):
    """A stack of blocks over context, buffer and targets.

    Args:
        width: Token width d.
        num_layers: Number of blocks L.
        num_heads: Number of heads H; divides `width`.
        mlp_width: Hidden width of the blocks' MLP.
        scaled: Whether queries grow with the logarithm of the number of keys they read.
        frequencies: Of the angles of a series, see `Block`.
        relative: What attention sees of how far back a slot lies; `None` = nothing.

    Source:
        Scaled queries: Nakanishi (2025), scalable-softmax.
    """

    def __init__(
        self,
        width: int,
        num_layers: int,
        num_heads: int,
        mlp_width: int,
        scaled: bool = False,
        frequencies: Tensor | None = None,
        relative: RelativePositions | None = None,
    ):
        super().__init__()
        self.scaled, self.relative = scaled, relative
        self.one_query = relative is None  # tokens read buffer and context alike: their keys may stand side by side
        self.blocks = nn.ModuleList(make_blocks(width, num_layers, num_heads, mlp_width, scaled, frequencies))

    @property
    def _layers(self) -> list[Block]:
        layers = [block for block in self.blocks if isinstance(block, Block)]
        if len(layers) < len(self.blocks):
            kinds = [type(block).__name__ for block in self.blocks]
            raise ValueError(
                f"backbone.blocks must all be of subclasses of pyro_arbuf.network.backbone.Block; got {kinds}; derive "
                "the class from Block, and keep what it wraps as an attribute"
            )
        return layers

    def encode_context(
        self, tokens: Tensor, context_len: Tensor | None = None, turn: Turn | None = None
    ) -> ContextCache:
        """Encodes the context once: every token reads every other, and where they stand plays no role.

        Args:
            tokens: `(B, N, d)` embedded context, N >= 1.
            context_len: `(B,)` int64, real tokens per task, the padding behind them; `None` = all N.
            turn: Angles of the tokens of a series, of batch `(B,)`.

        Returns:
            The keys and values of every layer.
        """
        keys, values, layers = [], [], self._layers
        num_keys = self._num_keys(tokens, context_len, tokens.shape[-2])
        for block in layers:
            normed = block.norm_attention(tokens)
            kv = block.kv(normed, turn)  # 2 x (B, H, N, h)
            keys.append(kv[0])
            values.append(kv[1])
            if block is not layers[-1]:  # nobody reads the context's own output of the last layer
                attended = attend(block.q(normed, num_keys, turn).unsqueeze(1), kv, context_len=context_len)
                tokens = block.update(tokens, attended.squeeze(1))
        return ContextCache(tuple(keys), tuple(values), context_len)

    def read(
        self,
        cache: ContextCache,
        buffer: Buffer,
        buffer_tokens: Tensor | None,
        target_tokens: Tensor,
        prefix_len: Tensor | None = None,
        buffer_turn: Turn | None = None,
        target_turn: Turn | None = None,
    ) -> tuple[Tensor, Buffer]:
        """Reads targets against the cached context and a prefix of the buffer, after appending tokens to the buffer.

        Args:
            cache: The encoded context of B tasks.
            buffer: What the buffer holds already.
            buffer_tokens: `(B, S or 1, T, d)` tokens that enter the buffer, in order; `None` = none.
            target_tokens: `(B, S or 1, M, d)`.
            prefix_len: int64 `(M,)`, `(B, M)` or `(B, S, M)`, visible slots per target; `None` = every slot, the new
                ones too.
            buffer_turn: Angles of the tokens that enter, of a series; of batch `(B, S or 1)`.
            target_turn: Angles of the targets, likewise.

        Returns:
            Target features `(B, S, M, d)` and the longer buffer.
        """
        assert prefix_len is None or not isinstance(buffer, JoinedBuffer), "of a joined buffer every slot is read"
        num_new = 0 if buffer_tokens is None else buffer_tokens.shape[-2]
        num_slots, num_context = buffer.num_slots + num_new, cache.keys[0].shape[-2]
        num_draws = most_draws(buffer, prefix_len, buffer_tokens, target_tokens)
        tokens, query_len = target_tokens.expand(-1, num_draws, -1, -1), prefix_len
        if buffer_tokens is not None and num_new:
            tokens = torch.cat([buffer_tokens.expand(-1, num_draws, -1, -1), tokens], -2)
            if num_new > 1 or prefix_len is not None:
                own = buffer_prefix_len(buffer.num_slots, num_new, tokens.device)
                targets = own.new_full(target_tokens.shape[-2:-1], num_slots) if prefix_len is None else prefix_len
                query_len = torch.cat([own.expand(*targets.shape[:-1], -1), targets], -1)
        grown, layers, turn = [], self._layers, joined_turns(buffer_turn if num_new else None, target_turn, num_draws)
        for layer, block in enumerate(layers):
            normed = block.norm_attention(tokens)
            if num_new:
                # Contiguous: a strided input would become one small product per draw instead of one large one.
                entering = None if turn is None else turn.part(slice(num_new))
                keys, values = block.kv(normed[..., :num_new, :].contiguous(), entering)
                keys = keys if self.relative is None else self.relative.keys(keys, buffer.num_slots)
                grown.append(buffer.append(layer, keys, values))
            if num_new and block is layers[-1]:  # of the last layer only the targets' output is wanted
                tokens, normed = (t[..., num_new:, :].contiguous() for t in (tokens, normed))
                query_len, turn = prefix_len, None if turn is None else turn.part(slice(num_new, None))
            num_keys = self._num_keys(tokens, cache.context_len, num_context, num_slots, query_len)
            slots = grown[layer] if num_new else buffer.stored(layer)
            context_kv, buffer_kv, context_len = buffer.sources(cache, layer, slots)
            q = block.q(normed, num_keys, turn)
            of_buffer = None
            if self.relative is not None and buffer_kv is not None:
                of_buffer = self.relative.queries(q, query_len, num_slots)
            attended = attend(q, context_kv, buffer_kv, query_len, context_len, of_buffer)  # (B, S, H, Q, h)
            tokens = block.update(tokens, attended)
        return tokens, buffer.extended(grown) if num_new else buffer

    def _num_keys(
        self,
        tokens: Tensor,
        context_len: Tensor | None,
        num_context: int,
        num_slots: int = 0,
        query_len: Tensor | None = None,
    ) -> Tensor | None:
        """Keys that tokens `(B, ..., T, d)` read, broadcasting against `(B, ..., T)`; padding does not count."""
        if not self.scaled:
            return None
        own = tokens.new_tensor(float(num_context)) if context_len is None else context_len.to(tokens.dtype)
        own = own.view(-1, *(1,) * (tokens.dim() - 2))
        if query_len is None:
            return own + num_slots
        lead = (1,) * (tokens.dim() - 1 - query_len.dim())
        return own + query_len.view(*query_len.shape[:-1], *lead, query_len.shape[-1])

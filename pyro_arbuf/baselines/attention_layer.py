"""AttentionLayer: attention without an MLP, for what baselines have besides their blocks."""

from torch import Tensor, nn

from pyro_arbuf.network.visibility import context_mask


class AttentionLayer(nn.Module):
    """Tokens that read others, or each other, by pre-norm attention.

    Args:
        width: Token width d.
        num_heads: Heads H; divides `width`.
        num_layers: Layers of its stack, by which the branch starts small.
    """

    def __init__(self, width: int, num_heads: int, num_layers: int):
        super().__init__()
        self.norm_tokens = nn.LayerNorm(width, bias=False)
        self.norm_others = nn.LayerNorm(width, bias=False)
        self.attention = nn.MultiheadAttention(width, num_heads, bias=False, batch_first=True)
        nn.init.normal_(self.attention.out_proj.weight, std=(num_layers * width) ** -0.5)

    def forward(self, tokens: Tensor, others: Tensor, others_len: Tensor | None = None) -> Tensor:
        """The tokens `(B, T, d)`, to which what they read has been added.

        Args:
            tokens: That read.
            others: `(B, N, d)` that are read, N >= 1.
            others_len: `(B,)` int64, how many of them are real, at least 1; `None` = all N.
        """
        padding = None if others_len is None else ~context_mask(others_len, others.shape[1])
        keys = self.norm_others(others)
        read, _ = self.attention(self.norm_tokens(tokens), keys, keys, key_padding_mask=padding, need_weights=False)
        return tokens + read

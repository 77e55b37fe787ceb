"""Rows of tables as tokens: every column summed up from the context, every row read across its columns.

    context   inducing points of a column read its cells and outcomes        -> keys and values, the summary
    any row   its cells read the summary of their columns; learned tokens read the cells, the row's embedding

The summary is made of the context alone, so rows of buffer and targets are cheap, and nothing of one enters another's
embedding. Columns have no order and any number: permuting them changes nothing. Columns that look alike would be taken
for one another, so each is told apart by the rank of its correlation with the outcome in the context.

Deviation: in the style of TabICL (Qu et al. 2025), which the paper's row encoder has the sizes of, with one block over
columns in place of three, fewer inducing points, and ranks in place of rotary positions of columns, which depend on
their order. Knows nothing of roles, buffers or outcomes' predictives.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_arbuf.network.attention import attend
from pyro_arbuf.network.backbone import Block, make_blocks
from pyro_arbuf.network.parts import Architecture
from pyro_arbuf.network.visibility import context_mask

Summary = tuple[Tensor, Tensor, Tensor]
TIE = 1e-4  # correlations closer than this have one rank
MAX_CELLS = 2**15  # that are embedded at once: more leave the processor's cache, and take half as long again


class RowEncoder(nn.Module):
    """Embeds rows of tables, given a summary of the columns of their context.

    Args:
        config: Sizes; `dim_x` is the largest number of columns it is made for.
    """

    def __init__(self, config: Architecture):
        super().__init__()
        width, heads, self.dim_x = config.column_width, config.column_heads, config.dim_x
        count, dim_y = config.num_frequencies, config.dim_y or 1
        self.frequencies = nn.Parameter(torch.logspace(math.log10(0.5), math.log10(config.max_frequency), count))
        self.cell = nn.Linear(2 + 2 * count, width)
        self.pair_in = nn.Linear(2 + 2 * count + 2 * dim_y, 2 * width)
        self.pair_out = nn.Linear(2 * width, width)
        self.inducing = nn.Parameter(torch.randn(config.num_inducing, width) * 0.5)
        self.no_row = nn.Parameter(torch.randn(width) * 0.5)
        self.gather = Block(width, heads, 2 * width, config.scaled_queries)
        self.spread = Block(width, heads, 2 * width)
        self.rank = nn.Parameter(torch.randn(config.dim_x, width) * 0.5)
        self.cls = nn.Parameter(torch.randn(config.num_cls, width) * 0.5)
        self.blocks = nn.ModuleList(make_blocks(width, config.row_layers, heads, 2 * width))
        self.norm = nn.LayerNorm(width, bias=False)
        self.out = nn.Linear(config.num_cls * width, config.width)

    def summary(self, x: Tensor, y: Tensor, context_len: Tensor | None = None) -> Summary:
        """Sums up the columns of contexts.

        Args:
            x: `(B, N, D)`, NaN where a cell is missing. Of N = 0 all columns have one summary.
            y: `(B, N, D_y)`.
            context_len: `(B,)` int64, real rows per table, the padding behind them; `None` = all N.

        Returns:
            Keys and values of the inducing points, `(B, D, H, I, h)` each, and the columns' ranks embedded,
            `(B, D, d')`; with 1 in place of D where N = 0.
        """
        x = x if x.shape[1] else x[..., :1]
        B, N, D = x.shape
        squashed = torch.asinh(y)
        outcome = torch.cat([squashed, torch.sin(2 * squashed)], -1).unsqueeze(1).expand(-1, D, -1, -1)
        pairs = torch.cat([self._features(x.mT), outcome], -1)  # (B, D, N, .)
        pairs = self.pair_out(F.gelu(self.pair_in(pairs)))
        # One token more: a column without rows has a summary, and one with few knows that they are few.
        tokens = torch.cat([self.no_row.expand(B, D, 1, -1), pairs], 2).flatten(0, 1)
        length = None if context_len is None else (context_len + 1).repeat_interleave(D)
        num_keys = torch.full((1, 1), N + 1, device=x.device) if length is None else length.unsqueeze(-1)
        points = self.inducing.expand(B * D, -1, -1)
        queries = self.gather.q(self.gather.norm_attention(points), num_keys).unsqueeze(1)
        kv = self.gather.kv(self.gather.norm_attention(tokens))
        points = self.gather.update(points, attend(queries, kv, context_len=length).squeeze(1))
        keys, values = self.spread.kv(self.spread.norm_attention(points))  # (B * D, H, I, h)
        ranks = self.rank[column_ranks(x, y, context_len).clamp(max=self.dim_x - 1)]
        return keys.unflatten(0, (B, D)), values.unflatten(0, (B, D)), ranks

    def forward(self, x: Tensor, summary: Summary) -> Tensor:
        """Embedded rows `(B, ..., T, d)` of rows `(B, ..., T, D)`, given what `summary` returned for their contexts."""
        rows = x.flatten(1, -2)  # (B, R, D)
        tasks = max(1, MAX_CELLS // max(1, rows[0].numel()))
        pieces = zip(rows.split(tasks), *(part.split(tasks) for part in summary), strict=True)
        return torch.cat([self._embed(piece, *of_piece) for piece, *of_piece in pieces]).view(*x.shape[:-1], -1)

    def _embed(self, rows: Tensor, *summary: Tensor) -> Tensor:
        """Embedded rows `(B * R, d)` of rows `(B, R, D)`."""
        B, _, D = rows.shape
        keys, values, ranks = (part.expand(-1, D, *part.shape[2:]).flatten(0, 1) for part in summary)
        cells = self.cell(self._features(rows.mT)).flatten(0, 1) + ranks.unsqueeze(1)  # (B * D, R, d')
        queries = self.spread.q(self.spread.norm_attention(cells)).unsqueeze(1)
        cells = self.spread.update(cells, attend(queries, (keys, values)).squeeze(1))
        cells = cells.unflatten(0, (B, D)).transpose(1, 2).flatten(0, 1)  # (B * R, D, d')
        return self._across(cells)

    def _across(self, cells: Tensor) -> Tensor:
        """Reads rows of cells `(R, D, d')` into `(R, d)`: blocks without positions, of which the last reads only."""
        num_cls = len(self.cls)
        tokens = torch.cat([self.cls.expand(len(cells), -1, -1), cells], 1)
        for block in self.blocks:
            assert isinstance(block, Block)
            normed = block.norm_attention(tokens)
            kv = block.kv(normed)
            if block is self.blocks[-1]:
                tokens, normed = tokens[:, :num_cls], normed[:, :num_cls]
            tokens = block.update(tokens, attend(block.q(normed).unsqueeze(1), kv).squeeze(1))
        return self.out(self.norm(tokens).flatten(1))

    def _features(self, cells: Tensor) -> Tensor:
        """Features `(*batch, 2 + 2 F)` of cells `(*batch,)`: number, sines and cosines of it, or that it is missing."""
        missing = cells.isnan()
        number = cells.masked_fill(missing, 0.0).unsqueeze(-1)
        phase = number * self.frequencies
        features = torch.cat([number, phase.sin(), phase.cos()], -1).masked_fill(missing.unsqueeze(-1), 0.0)
        return torch.cat([features, missing.unsqueeze(-1).to(number.dtype)], -1)


def column_ranks(x: Tensor, y: Tensor, context_len: Tensor | None = None) -> Tensor:
    """How many columns are more correlated with the outcome than each is, in absolute value; nearly equal ones tie.

    Args:
        x: `(B, N, D)`, NaN where a cell is missing.
        y: `(B, N, D_y)`.
        context_len: `(B,)` int64, real rows per table; `None` = all N.

    Returns:
        `(B, D)` int64, from 0.

    Example:
        >>> y = torch.tensor([[[0.0], [1.0], [2.0]]])
        >>> column_ranks(torch.cat([torch.ones(1, 3, 1), y, -y], -1), y)
        tensor([[2, 0, 0]])
    """
    with torch.no_grad():
        here = torch.ones_like(x[..., :1], dtype=torch.bool)
        if context_len is not None:
            here = context_mask(context_len, x.shape[1]).unsqueeze(-1)
        x, y = _centred(x, here & ~x.isnan()), _centred(y, here.expand_as(y))
        product = (x.mT @ y).square()  # (B, D, D_y)
        size = x.square().sum(1).unsqueeze(-1) * y.square().sum(1).unsqueeze(-2)
        correlation = (product / size.clamp(min=1e-12)).sum(-1).sqrt()
        return (correlation.unsqueeze(-2) > correlation.unsqueeze(-1) + TIE).sum(-1)


def _centred(values: Tensor, here: Tensor) -> Tensor:
    """Values `(B, N, D)` less their mean over the rows where they are there, 0 elsewhere."""
    values = values.masked_fill(~here, 0.0)
    mean = values.sum(1, keepdim=True) / here.sum(1, keepdim=True).clamp(min=1)
    return (values - mean).masked_fill(~here, 0.0)

"""What training on tables draws from: tables of a prior, each standardised by its own context.

A network so trained only ever sees standardised numbers. The batch of a step is a function of (settings, step,
process). Knows nothing of networks or of any particular prior.

Deviation: half of the batches are split along a column, so that targets lie beyond the context, as they do in
forecasting; fewer than 8 rows are drawn in 5 % of the batches only, then 0 or 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.preprocessing import table_statistics
from pyro_arbuf.training.sources import (
    EMPTY_CONTEXT_SHARE,
    VALIDATION_BATCH,
    VALIDATION_SEED,
    Pairs,
    chain_batch,
    check_drawn,
    check_positive,
    curriculum,
    mixed_seed,
    split_points,
)

TablePrior = Callable[[int, int, torch.Generator, int], Pairs]
ALONG_COLUMN = 0.5  # share of the batches
FIRST = 0.8  # share of their tables that are split along the first column, which may be an index
FARTHEST = 30.0  # standard deviations of the context, of an outcome
VALIDATION_ROWS, VALIDATION_COLUMNS, VALIDATION_DRAWS = (16, 64, 256), (4, 10), 4


@dataclass(frozen=True, eq=False)
class TableSource:
    """Tables of a prior, standardised by their contexts.

    Attributes:
        prior: Called with a number of tables B, a number of rows T, a generator and a number of columns D, it returns
            exchangeable rows x `(B, T, D)`, NaN where a cell is missing, and y `(B, T, D_y)` (D_y = 1 for a scalar
            outcome), float32.
        config: Of a network for its tables; all numbers of columns from 1 to D_x are drawn.
        batch_size: Tables B per step and process.
        num_targets: Fresh targets per table; the K rows of the buffer are targets too.
        seed: Of the data stream.

    Raises:
        ValueError: If `batch_size` or `num_targets` is not positive, or when drawing, if the prior's tensors do not
            have the shapes of the configuration.
    """

    prior: TablePrior
    config: ModelConfig
    batch_size: int = 32
    num_targets: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(batch_size=self.batch_size, num_targets=self.num_targets)

    @property
    def settings(self) -> dict[str, Any]:
        """Seed and sizes."""
        return {"seed": self.seed, "batch_size": self.batch_size, "num_targets": self.num_targets}

    def batch(self, step: int, process: int = 0) -> Batch:
        """Tables with N and D drawn for all processes, K = the buffer's size, targets as `curriculum` has them."""
        sizes = torch.Generator().manual_seed(mixed_seed(self.seed, step, 0))
        num_context = draw_num_rows(self.config.num_context, sizes)
        num_columns = int(torch.randint(1, self.config.dim_x + 1, (), generator=sizes))
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, step, process + 1))
        parts = (num_context, self.config.buffer_size, self.num_targets)
        x, y = self._draw(self.batch_size, sum(parts), generator, num_columns)
        if torch.rand((), generator=sizes) < ALONG_COLUMN:
            x, y = along_column(x, y, num_context, generator)
        context, buffer, fresh = standardised(split_points(x, y, parts), generator)
        return curriculum(context, buffer, fresh, generator)

    def validation(self) -> list[Batch]:
        """64 tables for each of three numbers of rows and two of columns, or D_x, with K targets."""
        batches = []
        for num_context in VALIDATION_ROWS:
            for num_columns in sorted({min(number, self.config.dim_x) for number in VALIDATION_COLUMNS}):
                generator = torch.Generator().manual_seed(VALIDATION_SEED + 100 * num_context + num_columns)
                parts = (num_context, self.config.buffer_size)
                draws = (VALIDATION_BATCH, sum(parts), generator, num_columns)
                drawn = [self._draw(*draws) for _ in range(VALIDATION_DRAWS)]
                x, y = (torch.cat(each) for each in zip(*drawn, strict=True))
                context, chain = standardised(split_points(x, y, parts), generator)
                batches.append(chain_batch(context, chain))
        return batches

    def _draw(self, batch_size: int, num_rows: int, generator: torch.Generator, num_columns: int) -> Pairs:
        drawn = self.prior(batch_size, num_rows, generator, num_columns)
        check_drawn(drawn, (batch_size, num_rows), num_columns, self.config, "dim_y")
        return drawn


def draw_num_rows(trained: tuple[int, int], generator: torch.Generator) -> int:
    """Draws N for one batch: log-uniform on the trained range, but 0 or 1 in 5 % of the batches."""
    uniform, position = torch.rand(2, generator=generator).tolist()
    if uniform < EMPTY_CONTEXT_SHARE:
        return int(position < 0.5)
    low, high = max(trained[0], 1), trained[1]
    return min(int(low * ((high + 1) / low) ** position), high)


def along_column(x: Tensor, y: Tensor, num_context: int, generator: torch.Generator) -> Pairs:
    """Rows sorted by a column, the first N as a context, the others in random order.

    The column is the first, where a prior puts what orders rows, in 80 % of the tables, and else a random one.

    How rows are split depends on their inputs alone, so the law of an outcome given its inputs is unchanged.

    Args:
        x: `(B, T, D)`; missing cells are sorted as 0.
        y: `(B, T, D_y)`.
        num_context: Rows N that stay in front.
        generator: Source of randomness.
    """
    B, T, D = x.shape
    column = torch.randint(D, (B, 1, 1), generator=generator)
    column = column.masked_fill(torch.rand(B, 1, 1, generator=generator) < FIRST, 0).expand(-1, T, -1)
    order = x.gather(-1, column).squeeze(-1).nan_to_num(0.0).argsort(1)  # (B, T)
    beyond = order[:, num_context:]
    shuffled = beyond.gather(1, torch.rand(beyond.shape, generator=generator).argsort(1))
    order = torch.cat([order[:, :num_context], shuffled], 1).unsqueeze(-1)
    return x.gather(1, order.expand_as(x)), y.gather(1, order.expand_as(y))


def standardised(parts: list[Pairs], generator: torch.Generator) -> list[Pairs]:
    """Parts of tables, the first of which is the context, standardised by it.

    A table with an outcome more than 30 standard deviations of its context from the mean is replaced by another one:
    few rows may be nearly equal by chance, and what is far then would rule the gradient.

    Args:
        parts: x `(B, T, D)` and y `(B, T, D_y)` each.
        generator: Source of randomness.
    """
    statistics = table_statistics(*parts[0])
    mapped = [(statistics.map_x(x), statistics.map_y(y)) for x, y in parts]
    far = torch.stack([(y.abs() > FARTHEST).flatten(1).any(1) for _, y in mapped]).any(0)
    others = torch.multinomial((~far).float() + 1e-9, len(far), True, generator=generator)
    chosen = torch.where(far, others, torch.arange(len(far)))
    return [(x[chosen], y[chosen]) for x, y in mapped]

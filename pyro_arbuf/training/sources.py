"""What training draws from: the protocol, and function priors with their curriculum (paper, section 3).

The batch of a step is a function of (settings, step, process). Knows nothing of networks or of any particular prior.

Deviation: the buffer's slots are targets too, see `curriculum`; N + 16 is log-uniform and 5 % of the batches have an
empty context, see `draw_num_context`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.visibility import chain_prefix_len

EMPTY_CONTEXT_SHARE = 0.05
VALIDATION_CONTEXTS = (8, 16, 32, 64, 128)
VALIDATION_TARGETS = 16
VALIDATION_SEED = 2**31
VALIDATION_BATCH, VALIDATION_DRAWS = 16, 8  # several small draws: a prior may share something within a batch

Prior = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
Pairs = tuple[Tensor, Tensor]


class TaskSource(Protocol):
    """What training draws from: a prior of functions, a program, a fixed set of simulations or of data."""

    @property
    def config(self) -> ModelConfig:
        """The configuration of a network for its tasks."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What a resumed run must agree with, as JSON can hold it: seed, batch_size, num_targets and more."""
        ...

    def batch(self, step: int, process: int = 0) -> Batch:
        """The batch of a step in a process: a pure function of both and of the settings.

        Sizes are the same for all processes of a step.
        """
        ...

    def validation(self) -> list[Batch]:
        """The fixed validation set: the targets are the buffer's pairs, each scored as `log_prob` scores a chain."""
        ...


@dataclass(frozen=True, eq=False)
class PriorSource:
    """Tasks of a prior of functions.

    Attributes:
        prior: Called with a number of functions B, a number of points T and a generator, it returns exchangeable points
            x `(B, T, D_x)` and y `(B, T, D_y)` (D_y = 1 for a scalar outcome), float32.
        config: Of a network for its tasks.
        batch_size: Functions B per step and process.
        num_targets: Fresh targets per function; the K pairs of the buffer are targets too.
        seed: Of the data stream.

    Raises:
        ValueError: If `batch_size` or `num_targets` is not positive, or when drawing, if the prior's tensors do not
            have the shapes of the configuration.
    """

    prior: Prior
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
        """Functions with N drawn for all processes, K = the buffer's size, and targets as `curriculum` has them."""
        sizes = torch.Generator().manual_seed(mixed_seed(self.seed, step, 0))
        num_context = draw_num_context(self.config.num_context[1], sizes)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, step, process + 1))
        parts = (num_context, self.config.buffer_size, self.num_targets)
        context, buffer, fresh = split_points(*self._draw(self.batch_size, sum(parts), generator), parts)
        return curriculum(context, buffer, fresh, generator)

    def validation(self) -> list[Batch]:
        """For each of `validation_contexts`, 128 functions with 16 targets, or K if the buffer holds fewer."""
        batches = []
        num_targets = min(VALIDATION_TARGETS, self.config.buffer_size)
        for num_context in validation_contexts(self.config):
            generator = torch.Generator().manual_seed(VALIDATION_SEED + num_context)
            num_points = num_context + VALIDATION_TARGETS + 1  # one more than is used, as recorded scores had it
            drawn = [self._draw(VALIDATION_BATCH, num_points, generator) for _ in range(VALIDATION_DRAWS)]
            x, y = (torch.cat(parts) for parts in zip(*drawn, strict=True))
            context, chain, _ = split_points(x, y, (num_context, num_targets, num_points - num_context - num_targets))
            batches.append(chain_batch(context, chain))
        return batches

    def _draw(self, batch_size: int, num_points: int, generator: torch.Generator) -> Pairs:
        x, y = self.prior(batch_size, num_points, generator)
        drawn = x.unsqueeze(-1) if x.dim() == 2 else x, y.unsqueeze(-1) if y.dim() == 2 else y
        check_drawn(drawn, (batch_size, num_points), self.config.dim_x, self.config, "dim_x and dim_y")
        return drawn


def check_drawn(pairs: Pairs, size: tuple[int, int], dim_x: int, config: ModelConfig, fields: str) -> None:
    """Raises ValueError unless a prior drew x `(*size, D_x)` and y `(*size, D_y)` of their kinds.

    Args:
        pairs: What it drew.
        size: Numbers of functions and of points that it was asked for.
        dim_x: Columns of x.
        config: Of the network.
        fields: What of the configuration says other dimensions.
    """
    expected = tuple((*size, dim) for dim in (dim_x, config.dim_y or 1))
    got = tuple(tuple(part.shape) for part in pairs)
    if got != expected:
        remedy = f"mend it, or {fields} of its configuration"
        if [(shape[0], *shape[2:]) for shape in got if shape] == [(shape[0], *shape[2:]) for shape in expected]:
            remedy = f"draw as many points as are asked for: a step needs up to {config.num_context[1]} observed ones"
        raise ValueError(
            f"the prior {config.prior!r} must return x and y of shapes {expected[0]} and {expected[1]}; got "
            f"{got[0]} and {got[1]}; {remedy}"
        )
    for column, kind in zip(pairs[1].unbind(-1), config.kinds, strict=True):
        if not kind.support.is_discrete:  # all that is finite is a real number
            continue
        wrong = column[column.isfinite() & ~kind.support.check(column)]
        if len(wrong):
            raise ValueError(
                f"the prior {config.prior!r} must draw outcomes that are {kind.values}; got {wrong[0].item():g}, in a "
                f"batch of {size[0]} functions; mend it"
            )


def split_points(x: Tensor, y: Tensor, sizes: tuple[int, ...]) -> list[Pairs]:
    """Splits exchangeable points x `(B, T, D_x)` and y `(B, T, D_y)` into parts of the given sizes, T in all."""
    return list(zip(x.split(sizes, 1), y.split(sizes, 1), strict=True))


def curriculum(context: Pairs, buffer: Pairs, fresh: Pairs, generator: torch.Generator) -> Batch:
    """Gives every target its prefix length, and lets the buffer's own pairs be targets too.

    Half of the fresh targets have v = 0, half v ~ Uniform{1..K}; slot j = 1..K is a target with v = j - 1, so its own
    pair is unseen. (With the slots as targets the chain that `log_prob` scores is trained as it is used.)

    Args:
        context: N pairs x `(B, N, D_x)` and y `(B, N, D_y)`.
        buffer: K pairs, likewise.
        fresh: M targets, likewise.
        generator: Source of randomness.

    Returns:
        A batch of M + K targets, the fresh ones first; prefix lengths `(M + K,)`.
    """
    num_slots, num_fresh = buffer[0].shape[1], fresh[0].shape[1]
    prefix_len = torch.randint(1, num_slots + 1, (num_fresh,), generator=generator)
    prefix_len[: num_fresh // 2] = 0
    x, y = (torch.cat(parts, 1) for parts in zip(fresh, buffer, strict=True))
    return Batch(*context, *buffer, x, y, torch.cat([prefix_len, chain_prefix_len(num_slots)]))


def chain_batch(context: Pairs, chain: Pairs) -> Batch:
    """A batch whose targets are the buffer's own pairs: slot j = 1..K is a target with v = j - 1."""
    return Batch(*context, *chain, *chain, chain_prefix_len(chain[0].shape[1]))


def draw_num_context(max_context: int, generator: torch.Generator) -> int:
    """Draws N for one batch: 0 in 5 % of the batches, else N + 16 log-uniform, so that small N are common and cheap."""
    uniform, log_position = torch.rand(2, generator=generator).tolist()
    if uniform < EMPTY_CONTEXT_SHARE:
        return 0
    return min(int(17 * ((max_context + 17) / 17) ** log_position) - 16, max_context)


def validation_contexts(config: ModelConfig) -> list[int]:
    """Context sizes of the validation set: those of 8, 16, 32, 64, 128 in the trained range, or its end."""
    largest = config.num_context[1]
    return [n for n in VALIDATION_CONTEXTS if n <= largest] or [largest]


def mixed_seed(*numbers: int) -> int:
    """One 32-bit seed from several numbers (torch's CPU generator uses no more)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def check_positive(**values: float | None) -> None:
    """Raises ValueError, naming it, if a number is given and not positive and finite."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive{' and finite' * (value > 0)}; got {value}")


def check_finite(batch: Batch, what: str, missing_x: bool = False) -> None:
    """Raises ValueError, naming the part and the share of data sets, if a batch holds NaN or infinite values.

    Args:
        batch: The batch.
        what: What it is, for the message.
        missing_x: Whether inputs may be NaN.
    """
    for name, value in zip(Batch._fields, batch, strict=True):
        finite = ~value.isinf() if missing_x and name.startswith("x_") else torch.isfinite(value)
        if not bool(finite.all()):
            bad = int((~finite).flatten(1).any(1).sum())
            raise ValueError(
                f"{what} must be finite; {name} holds NaN or infinite values in {bad} of its {len(value)} data sets; "
                "mend the prior or simulator that draws them"
            )

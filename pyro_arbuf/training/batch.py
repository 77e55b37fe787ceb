"""Tasks, and how a training step gets its batch: roles, prefix lengths, fixed validation sets (paper, section 3).

The batch of a step is a function of (seed, step, process). Knows nothing of models or of any particular prior.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.visibility import chain_prefix_len

EMPTY_CONTEXT_SHARE = 0.05
VALIDATION_CONTEXTS = (8, 16, 32, 64, 128)
VALIDATION_TARGETS = 16
VALIDATION_SEED = 2**31


class Task(NamedTuple):
    """A batch of data sets, split by role.

    Attributes:
        x_context: `(B, N, D_x)`.
        y_context: `(B, N, D_y)`.
        x_buffer: `(B, K, D_x)`, in the order in which the buffer holds them.
        y_buffer: `(B, K, D_y)`.
        x_target: `(B, M, D_x)`.
        y_target: `(B, M, D_y)`.
    """

    x_context: Tensor
    y_context: Tensor
    x_buffer: Tensor
    y_buffer: Tensor
    x_target: Tensor
    y_target: Tensor


Prior = Callable[[int, int, int, int, torch.Generator], Task]
Batch = tuple[Task, tuple[Tensor, Tensor, Tensor]]  # tasks; inputs, outcomes and prefix lengths of their targets


def split_task(x: Tensor, y: Tensor, num_context: int, num_buffer: int) -> Task:
    """Splits exchangeable points `(B, N + K + M, .)` into context, buffer and targets, in this order."""
    sizes = (num_context, num_buffer, x.shape[1] - num_context - num_buffer)
    (x_context, x_buffer, x_target), (y_context, y_buffer, y_target) = x.split(sizes, 1), y.split(sizes, 1)
    return Task(x_context, y_context, x_buffer, y_buffer, x_target, y_target)


def curriculum(task: Task, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Gives every target its prefix length, and lets the buffer's own pairs be targets too.

    Half of the targets have v = 0, half v ~ Uniform{1..K}; slot j = 1..K is a target with v = j - 1, so its own pair is
    unseen. (With the slots as targets the chain that `log_prob` scores is trained as it is used.)

    Args:
        task: Tasks with K buffer pairs and M targets.
        generator: Source of randomness.

    Returns:
        Inputs `(B, M + K, D_x)`, outcomes `(B, M + K, D_y)` and prefix lengths `(M + K,)`.
    """
    num_slots, num_targets = task.x_buffer.shape[1], task.x_target.shape[1]
    x = torch.cat([task.x_target, task.x_buffer], 1)
    y = torch.cat([task.y_target, task.y_buffer], 1)
    prefix_len = torch.randint(1, num_slots + 1, (num_targets,), generator=generator)
    prefix_len[: num_targets // 2] = 0
    return x, y, torch.cat([prefix_len, chain_prefix_len(num_slots)])


def draw_num_context(max_context: int, generator: torch.Generator) -> int:
    """Draws N for one batch: 0 in 5 % of the batches, else N + 16 log-uniform, so that small N are common and cheap."""
    uniform, log_position = torch.rand(2, generator=generator).tolist()
    if uniform < EMPTY_CONTEXT_SHARE:
        return 0
    return min(int(17 * ((max_context + 17) / 17) ** log_position) - 16, max_context)


def draw_batch(
    prior: Prior, config: ModelConfig, batch_size: int, num_targets: int, seed: int, step: int, process: int = 0
) -> Batch:
    """Draws the batch of a step: a pure function of (seed, step, process); N is the same for all processes.

    Returns:
        The tasks and their targets as `curriculum` gives them.
    """
    sizes = torch.Generator().manual_seed(mixed_seed(seed, step, 0))
    num_context = draw_num_context(config.num_context[1], sizes)
    generator = torch.Generator().manual_seed(mixed_seed(seed, step, process + 1))
    task = prior(batch_size, num_context, config.buffer_size, num_targets, generator)
    return task, curriculum(task, generator)


def check_finite(task: Task, what: str) -> None:
    """Raises ValueError, naming the part and the share of data sets, if a task holds NaN or infinite values."""
    for name, value in zip(Task._fields, task, strict=True):
        finite = torch.isfinite(value)
        if not bool(finite.all()):
            bad = int((~finite).flatten(1).any(1).sum())
            raise ValueError(
                f"{what} must be finite; {name} holds NaN or infinite values in {bad} of its {len(value)} data sets; "
                "mend the prior or simulator that draws them"
            )


def mixed_seed(*numbers: int) -> int:
    """One 32-bit seed from several numbers (torch's CPU generator uses no more)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def validation_tasks(prior: Prior, config: ModelConfig, batch_size: int = 16, num_batches: int = 8) -> list[Task]:
    """The fixed validation set: for each of `validation_contexts`, several small batches.

    Several, because a prior may share something (a kernel class) within a batch.
    """
    tasks = []
    for num_context in validation_contexts(config):
        generator = torch.Generator().manual_seed(VALIDATION_SEED + num_context)
        batches = [prior(batch_size, num_context, VALIDATION_TARGETS, 1, generator) for _ in range(num_batches)]
        tasks.append(Task(*(torch.cat(parts) for parts in zip(*batches, strict=True))))
    return tasks


def validation_contexts(config: ModelConfig) -> list[int]:
    """Context sizes of the validation set: those of 8, 16, 32, 64, 128 in the trained range, or its end."""
    largest = config.num_context[1]
    return [n for n in VALIDATION_CONTEXTS if n <= largest] or [largest]

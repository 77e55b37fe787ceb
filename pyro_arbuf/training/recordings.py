"""What training on recordings draws from: trials of several channels, at equal distances of time.

Each task is a trial, whose outcomes are standardised by its context. Half of the batches are split at random
(interpolation), half along time (forecasting). The batch of a step is a function of (settings, step, process). Knows
nothing of networks or of any particular recording.

Deviation: trials are varied, see `varied`, as they are few; targets are drawn from those that follow the context
directly, see `targets_anywhere`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.preprocessing import outcome_statistics
from pyro_arbuf.network.visibility import chain_prefix_len
from pyro_arbuf.training.sources import (
    VALIDATION_SEED,
    Pairs,
    chain_batch,
    check_positive,
    draw_num_context,
    mixed_seed,
    split_points,
)

FORECASTING, COARSE, SHUFFLED = 0.5, 0.25, 0.25  # shares of batches; of those that forecast; of those again
COARSE_STRIDE = 2  # every second sample, as of half the sampling rate
BEYOND = 16  # points behind those of the buffer
SUMS, SCALE_SD = 0.5, 0.25  # share of trials that are sums of two; sd of the logarithm of an amplitude
VALIDATION_CONTEXTS, VALIDATION_WINDOWS = (8, 32, 128), 2


@dataclass(frozen=True, eq=False)
class RecordingSource:
    """Trials of recordings, standardised by their contexts.

    Attributes:
        trials: `(R, T, D_y)` to train on, samples at the distance `config.x_spacing`, float32.
        held_out: `(R', T, D_y)` to validate on, of other subjects.
        config: Of a network for them.
        mirror: Which channel every channel becomes where left and right are exchanged; empty = they never are.
        batch_size: Trials B per step and process.
        num_targets: Fresh targets per trial; the K pairs of the buffer are targets too.
        seed: Of the data stream.

    Raises:
        ValueError: If `batch_size` or `num_targets` is not positive, the trials do not have the configuration's
            channels, or have fewer samples than its largest context, its buffer and 16 more.
    """

    trials: Tensor
    held_out: Tensor
    config: ModelConfig
    mirror: tuple[int, ...] = ()
    batch_size: int = 32
    num_targets: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(batch_size=self.batch_size, num_targets=self.num_targets)
        least, dim_y = self.config.num_context[1] + self.config.buffer_size + BEYOND, self.config.dim_y or 1
        for name in ("trials", "held_out"):
            count, length, channels = getattr(self, name).shape
            if count == 0 or length < least or channels != dim_y:
                raise ValueError(
                    f"{name} must hold at least one trial of at least {least} samples of {dim_y} channels; got {count} "
                    f"trials of {length} samples of {channels} channels"
                )

    @property
    def settings(self) -> dict[str, Any]:
        """Seed and sizes, those of the data too."""
        sizes = {"seed": self.seed, "batch_size": self.batch_size, "num_targets": self.num_targets}
        return sizes | {"trials": list(self.trials.shape), "held_out": list(self.held_out.shape)}

    def batch(self, step: int, process: int = 0) -> Batch:
        """Trials with N and the task drawn for all processes, K = the buffer's size, targets by `targets_anywhere`."""
        sizes = torch.Generator().manual_seed(mixed_seed(self.seed, step, 0))
        num_context = draw_num_context(self.config.num_context[1], sizes)
        forecasting, coarse, shuffled = torch.rand(3, generator=sizes).lt(torch.tensor([FORECASTING, COARSE, SHUFFLED]))
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, step, process + 1))
        y = varied(self.trials, self.batch_size, self.mirror, generator)
        num_slots, stride = self.config.buffer_size, 1
        num_points = num_context + num_slots + BEYOND
        if forecasting:
            fits = coarse and num_points * COARSE_STRIDE <= y.shape[1]
            index = draw_windows(y, num_points, COARSE_STRIDE if fits else stride, generator)
            if shuffled:
                order = num_context + torch.randperm(num_slots, generator=generator)
                index[:, num_context : num_context + num_slots] = index[:, order]
        else:
            index = draw_subsets(y, num_points, generator)
        context, rest = self._split(y, index, num_context)
        return targets_anywhere(context, rest, num_slots, self.num_targets, generator)

    def validation(self) -> list[Batch]:
        """For each of `VALIDATION_CONTEXTS`, interpolation and forecasting in two windows of every trial, K targets."""
        batches, y = [], self.held_out.repeat(VALIDATION_WINDOWS, 1, 1)
        largest = self.config.num_context[1]
        for num_context in [n for n in VALIDATION_CONTEXTS if n <= largest] or [largest]:
            for draw in (draw_subsets, draw_windows):
                generator = torch.Generator().manual_seed(VALIDATION_SEED + num_context)
                index = draw(y, num_context + self.config.buffer_size, generator=generator)
                batches.append(chain_batch(*self._split(y, index, num_context)))
        return batches

    def _split(self, y: Tensor, index: Tensor, num_context: int) -> list[Pairs]:
        """Context and other pairs at samples `(B, n)` of trials `(B, T, D_y)`, standardised by the context."""
        x = (index * (self.config.x_spacing or 1.0)).unsqueeze(-1).to(y.dtype)
        y = y.gather(1, index.unsqueeze(-1).expand(-1, -1, y.shape[-1]))
        statistics = outcome_statistics(y[:, :num_context], *self.config.context_scale)
        return split_points(x, statistics.map_y(y), (num_context, index.shape[1] - num_context))


def varied(trials: Tensor, batch_size: int, mirror: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws trials that differ from those recorded, but have their spectra and their relations between channels.

    Half of them are sums of two trials, cos(a) one + sin(a) other, as potentials of independent sources add up. All
    have an amplitude of their own, log-normal with sd 0.25, and a random sign; in half of them left and right are
    exchanged.

    Args:
        trials: `(R, T, D_y)`.
        batch_size: Trials B that are drawn.
        mirror: Which channel every channel becomes where left and right are exchanged; empty = they never are.
        generator: Source of randomness.

    Returns:
        `(B, T, D_y)`.
    """
    one, other = trials[torch.randint(len(trials), (2, batch_size), generator=generator)]
    summed, angle, mirrored, sign = torch.rand(4, batch_size, 1, 1, generator=generator)
    angle = torch.where(summed < SUMS, angle * torch.pi / 2, torch.zeros(()))
    y = angle.cos() * one + angle.sin() * other
    if mirror:
        y = torch.where(mirrored < 0.5, y[..., list(mirror)], y)
    amplitude = (SCALE_SD * torch.randn(batch_size, 1, 1, generator=generator)).exp()
    return torch.where(sign < 0.5, -amplitude, amplitude) * y


def draw_windows(y: Tensor, num_points: int, stride: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Draws windows, int64 `(B, n)`: n successive samples, or every `stride`-th, of trials `(B, T, D_y)`."""
    length = (num_points - 1) * stride + 1
    first = torch.randint(y.shape[1] - length + 1, (len(y), 1), generator=generator)
    return first + stride * torch.arange(num_points)


def draw_subsets(y: Tensor, num_points: int, generator: torch.Generator | None = None) -> Tensor:
    """Draws n different samples in random order, int64 `(B, n)`, of trials `(B, T, D_y)`."""
    return torch.rand(y.shape[:2], generator=generator).argsort(1)[:, :num_points]


def targets_anywhere(
    context: Pairs, others: Pairs, num_slots: int, num_fresh: int, generator: torch.Generator
) -> Batch:
    """Fills the buffer with the first of the other pairs, in their order, and draws targets among all of them.

    A fresh target has v = 0 in half of the cases, else v uniform on 1 .. the number of slots before its own pair, which
    stays unseen. The slots are targets too: slot j with v = j - 1.

    Args:
        context: N pairs x `(B, N, D_x)` and y `(B, N, D_y)`.
        others: At least K pairs, likewise.
        num_slots: Buffer slots K.
        num_fresh: Fresh targets M.
        generator: Source of randomness.

    Returns:
        A batch of M + K targets, the fresh ones first; prefix lengths `(M + K,)`.
    """
    which = torch.randint(others[0].shape[1], (num_fresh,), generator=generator)
    before = which.clamp(max=num_slots)
    prefix_len = torch.minimum((torch.rand(num_fresh, generator=generator) * before).long() + 1, before)
    prefix_len[: num_fresh // 2] = 0
    x, y = (torch.cat([part[:, which], part[:, :num_slots]], 1) for part in others)
    x_buffer, y_buffer = (part[:, :num_slots] for part in others)
    return Batch(*context, x_buffer, y_buffer, x, y, torch.cat([prefix_len, chain_prefix_len(num_slots)]))

"""A tiny training run: model, prior and the script that a test starts in a process of its own and kills."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.training.loop import fit
from pyro_arbuf.training.run_state import RunState
from pyro_arbuf.training.sources import PriorSource

CONFIG = ModelConfig(
    buffer_size=4,
    width=12,
    num_layers=2,
    num_heads=2,
    mlp_width=14,
    embedding_width=10,
    num_frequencies=3,
    max_frequency=3.0,
    head_width=13,
    num_components=3,
    num_context=(0, 8),
)


def tiny_model(seed: int = 0, **fields: object) -> ArBufferModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ArBufferModel(dataclasses.replace(CONFIG, **fields))


def lines(batch_size: int, num_points: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Straight lines through the origin with noise of sd 0.1."""
    x = 2 * torch.rand(batch_size, num_points, 1, generator=generator) - 1
    slope = torch.randn(batch_size, 1, 1, generator=generator)
    return x, slope * x + 0.1 * torch.randn(x.shape, generator=generator)


def line_source(**settings: int) -> PriorSource:
    """Straight lines, in small batches."""
    return PriorSource(lines, CONFIG, **{"batch_size": 3, "num_targets": 6} | settings)


class Changed:
    """A source whose batches a test looks at or changes: `change(batch, step, process)` is what is drawn instead."""

    def __init__(self, change: Callable[[Batch, int, int], Batch], validation: list[Batch] | None = None) -> None:
        self.source, self.change = line_source(), change
        self.config, self.settings, self.fixed = self.source.config, self.source.settings, validation

    def batch(self, step: int, process: int = 0) -> Batch:
        return self.change(self.source.batch(step, process), step, process)

    def validation(self) -> list[Batch]:
        return self.source.validation() if self.fixed is None else self.fixed


def unchanged(batch: Batch, step: int, process: int) -> Batch:
    return batch


def tiny_fit(
    state_path: Path,
    steps: int = 20,
    resume: bool = False,
    on_checkpoint: Callable[[RunState], None] | None = None,
    model: ArBufferModel | None = None,
    source: PriorSource | Changed | None = None,
    **options: object,
) -> tuple[ArBufferModel, RunState]:
    """Trains a tiny model, from other initial weights where it resumes: only the state may matter."""
    model = tiny_model(seed=int(resume)) if model is None else model
    source = line_source() if source is None else source
    cadence = {"validate_every": 5, "checkpoint_minutes": 0.0} | options
    state = fit(model, source, state_path, steps=steps, resume=resume, on_checkpoint=on_checkpoint, **cadence)
    return model, state


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    resume = sys.argv[4:] == ["resume"]
    path, steps = Path(sys.argv[1]), int(sys.argv[2])
    tiny_fit(path, steps, resume and path.exists(), on_checkpoint=lambda state: print(state.step, flush=True))

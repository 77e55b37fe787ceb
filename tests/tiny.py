"""A tiny training run: model, prior and the script that a test starts in a process of its own and kills."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.training.batch import Task, split_task
from pyro_arbuf.training.loop import TrainingState, fit

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


def lines(batch_size: int, num_context: int, num_buffer: int, num_targets: int, generator: torch.Generator) -> Task:
    """Straight lines through the origin with noise of sd 0.1."""
    x = 2 * torch.rand(batch_size, num_context + num_buffer + num_targets, 1, generator=generator) - 1
    slope = torch.randn(batch_size, 1, 1, generator=generator)
    return split_task(x, slope * x + 0.1 * torch.randn(x.shape, generator=generator), num_context, num_buffer)


def tiny_fit(
    state_path: Path,
    steps: int = 20,
    resume: bool = False,
    on_checkpoint: Callable[[TrainingState], None] | None = None,
    model: ArBufferModel | None = None,
    **options: object,
) -> tuple[ArBufferModel, TrainingState]:
    """Trains a tiny model, from other initial weights where it resumes: only the state may matter."""
    model = tiny_model(seed=int(resume)) if model is None else model
    sizes = {"batch_size": 3, "num_targets": 6, "validate_every": 5, "checkpoint_minutes": 0.0} | options
    state = fit(model, lines, state_path, steps=steps, resume=resume, on_checkpoint=on_checkpoint, **sizes)
    return model, state


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    resume = sys.argv[4:] == ["resume"]
    path, steps = Path(sys.argv[1]), int(sys.argv[2])
    tiny_fit(path, steps, resume and path.exists(), on_checkpoint=lambda state: print(state.steps, flush=True))

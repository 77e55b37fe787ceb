"""Training batches of a program: which latents and trials are context, buffer and targets.

Three kinds of batches, by what is asked: the posterior (latents are the chain), the likelihood (all latents are
context), the data (trials are the chain). In each a random subset of the latents may be given. Knows nothing of models.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import pad_outcome
from pyro_arbuf.network.visibility import chain_prefix_len
from pyro_arbuf.programs.simulator import Simulations, Simulator
from pyro_arbuf.random_state import seeded
from pyro_arbuf.training.batch import (
    EMPTY_CONTEXT_SHARE,
    VALIDATION_SEED,
    Batch,
    Task,
    curriculum,
    draw_num_context,
    mixed_seed,
)

POSTERIOR_SHARE, SINGLE_POSTERIOR_SHARE = 0.5, 0.8  # of the batches, the second for one observation per data set
LIKELIHOOD_SHARE = 0.4  # of the other batches; the rest asks for data
SOME_GIVEN_SHARE = 0.3  # of the posterior and data batches
LIKELIHOOD_BATCH = 4  # times the batch size: such a context holds P tokens only
VALIDATION_DATASETS = 128


class Bank(NamedTuple):
    """A fixed set of simulations, where simulating is slow or not to be repeated.

    Attributes:
        drawn: Simulations to train on.
        held_out: Simulations to validate on.
    """

    drawn: Simulations
    held_out: Simulations


def make_bank(simulator: Simulator, num_simulations: int, num_trials: int, seed: int) -> Bank:
    """Draws a fixed set of simulations, of which 2 %, at least 1 and at most 1,000, are held out.

    Raises:
        ValueError: If there are fewer than two.
    """
    if num_simulations < 2:
        raise ValueError(f"num_simulations must be at least 2, one of them held out; got {num_simulations}")
    with seeded(seed):
        drawn = simulator.draw(num_simulations, num_trials)
    held_out = max(1, min(1000, num_simulations // 50))
    return Bank(*(Simulations(*(part[rows] for part in drawn)) for rows in (slice(held_out, None), slice(held_out))))


def draw_simulations(source: Simulator | Bank, num_datasets: int, num_trials: int) -> Simulations:
    """Draws data sets from a program, or from a bank: random ones, a random subset of the trials of each."""
    if isinstance(source, Simulator):
        return source.draw(num_datasets, num_trials)
    rows = torch.randint(len(source.drawn.latents), (num_datasets,))
    latents, x, y = (part[rows] for part in source.drawn)
    if x.shape[1] > 1:
        trials = torch.rand(x.shape[:2]).argsort(1)[:, :num_trials, None]  # exchangeable: any order
        x, y = (t.gather(1, trials.expand(-1, -1, t.shape[-1])) for t in (x, y))
    return Simulations(latents, x, y)


def draw_program_batch(
    source: Simulator | Bank,
    config: ModelConfig,
    batch_size: int,
    num_targets: int,
    seed: int,
    step: int,
    process: int = 0,
    posterior_share: float | None = None,
) -> Batch:
    """Draws the batch of a step from a program; called as `training.batch.draw_batch` is.

    `posterior_share` of the batches ask for the posterior; `None` = 0.5, and 0.8 for one observation per data set.

    Returns:
        Coded tasks (inputs with their location column) and their targets with prefix lengths.
    """
    sizes = torch.Generator().manual_seed(mixed_seed(seed, step, 0))
    kind, some, share, empty = torch.rand(4, generator=sizes).tolist()
    single, num_latents = config.num_context[1] == 1, config.num_latents
    num_context = int(empty >= EMPTY_CONTEXT_SHARE) if single else draw_num_context(config.num_context[1], sizes)
    num_given = 1 + int(share * (num_latents - 1)) if some < SOME_GIVEN_SHARE and num_latents > 1 else 0
    with seeded(mixed_seed(seed, step, process + 1)):
        if posterior_share is None:
            posterior_share = SINGLE_POSTERIOR_SHARE if single else POSTERIOR_SHARE
        if kind < posterior_share:
            drawn = draw_simulations(source, batch_size, max(num_context, 1))
            return _posterior_batch(drawn, config, num_context, num_given)
        if kind < posterior_share + LIKELIHOOD_SHARE * (1 - posterior_share):
            size = 1 if single else config.buffer_size + num_targets
            return _data_batch(draw_simulations(source, LIKELIHOOD_BATCH * batch_size, size), config, 0, num_latents, 0)
        if single:
            return _data_batch(draw_simulations(source, batch_size, 1), config, 0, num_given, 0)
        drawn = draw_simulations(source, batch_size, num_context + config.buffer_size + num_targets)
        return _data_batch(drawn, config, num_context, num_given, config.buffer_size)


def program_validation(source: Simulator | Bank, config: ModelConfig) -> list[Task]:
    """The fixed validation set: posteriors at two sizes of context, the likelihood, and data at three sizes."""
    largest = config.num_context[1]
    source = Bank(source.held_out, source.held_out) if isinstance(source, Bank) else source
    slots = 1 if largest == 1 else config.buffer_size
    asked = [(n, None) for n in dict.fromkeys((max(1, largest // 4), largest))]
    sizes = dict.fromkeys((0, largest // 4, max(0, largest - slots))) if slots > 1 else (0,)
    asked += [(0, config.num_latents), *((n, 0) for n in sizes)]
    tasks = []
    with seeded(VALIDATION_SEED):
        for num_context, num_given in asked:
            size = num_context + (0 if num_given is None else slots)
            drawn = draw_simulations(source, VALIDATION_DATASETS, size)
            if num_given is None:
                tasks.append(_posterior_batch(drawn, config, num_context, 0)[0])
            else:
                tasks.append(_data_batch(drawn, config, num_context, num_given, slots)[0])
    return tasks


def _coded(drawn: Simulations, config: ModelConfig) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Coded pairs of the latents, in a random order per data set, and of the trials."""
    latents, x, y = drawn
    order = torch.rand(latents.shape).argsort(1)  # (B, P)
    locations = F.pad((order + 1).unsqueeze(-1).to(x.dtype), (config.dim_x, 0))
    return (locations, pad_outcome(latents.gather(1, order), config.dim_y or 1)), (F.pad(x, (0, 1)), y)


def _posterior_batch(drawn: Simulations, config: ModelConfig, num_context: int, num_given: int) -> Batch:
    """The latents that are not given are the chain: slot j is a target with v = j - 1."""
    (x_latent, y_latent), (x, y) = _coded(drawn, config)
    x_context = torch.cat([x_latent[:, :num_given], x[:, :num_context]], 1)
    y_context = torch.cat([y_latent[:, :num_given], y[:, :num_context]], 1)
    chain = (x_latent[:, num_given:], y_latent[:, num_given:])
    task = Task(x_context, y_context, *chain, x[:, :0], y[:, :0])
    return task, (*chain, chain_prefix_len(chain[0].shape[1]))


def _data_batch(drawn: Simulations, config: ModelConfig, num_context: int, num_given: int, num_slots: int) -> Batch:
    """Trials are buffer and targets; the latents that are not given are targets too, at every prefix length."""
    (x_latent, y_latent), (x, y) = _coded(drawn, config)
    stop = num_context + num_slots
    parts = []
    for latent, trial in ((x_latent, x), (y_latent, y)):
        context = torch.cat([latent[:, :num_given], trial[:, :num_context]], 1)
        targets = torch.cat([trial[:, stop:], latent[:, num_given:]], 1)
        parts.append((context, trial[:, num_context:stop], targets))
    task = Task(*(part for pair in zip(*parts, strict=True) for part in pair))
    if num_slots == 0:
        return task, (task.x_target, task.y_target, torch.zeros(task.x_target.shape[1], dtype=torch.int64))
    # So that half of the latents read no buffer, like half of the trials.
    shuffled = torch.randperm(task.x_target.shape[1])
    task = task._replace(x_target=task.x_target[:, shuffled], y_target=task.y_target[:, shuffled])
    return task, curriculum(task, torch.Generator().manual_seed(int(torch.randint(2**31, ()))))

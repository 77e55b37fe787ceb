"""ProgramSource: training batches of a program: which latents and trials are context, buffer and targets.

Three kinds of batches, by what is asked: the posterior (latents are the chain), the likelihood (all latents are
context), the data (trials are the chain). In each a random subset of the latents may be given. Trials of a series keep
their order: contexts are the first ones, the buffer holds those directly after. Knows nothing of models.

Deviation: the paper trains on data batches alone. A likelihood batch of independent trials has no buffer; where trials
depend on each other given the latents it is a data batch with all latents given.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import pad_outcome
from pyro_arbuf.programs.same_law import Bank, Simulations, hold_out, joined, some_trials
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.random_state import seeded
from pyro_arbuf.training.sources import (
    EMPTY_CONTEXT_SHARE,
    VALIDATION_SEED,
    Pairs,
    chain_batch,
    check_positive,
    curriculum,
    draw_num_context,
    mixed_seed,
)

POSTERIOR_SHARE, SINGLE_POSTERIOR_SHARE = 0.5, 0.8  # of the batches, the second for one observation per data set
LIKELIHOOD_SHARE, SINGLE_LIKELIHOOD_SHARE = 0.4, 0.7  # of the other batches, likewise; the rest asks for data
ORDERED_SHARE = 0.75  # of the data sets whose posterior is asked for: latents in their own order
SOME_GIVEN_SHARE = 0.3  # of the posterior and data batches
LIKELIHOOD_BATCH = 4  # times the batch size: such a context holds P tokens only
VALIDATION_DATASETS = 128
MOST_OF_A_DESIGN = 8  # data sets that share their inputs, where a program runs for many with the same ones


def make_bank(simulator: Simulator, num_simulations: int, num_trials: int, seed: int) -> Bank:
    """Draws a fixed set of simulations, of which 2 %, at least 1 and at most 1,000, are held out.

    Raises:
        ValueError: If there are fewer than two.
    """
    if num_simulations < 2:
        raise ValueError(f"num_simulations must be at least 2, one of them held out; got {num_simulations}")
    with seeded(seed):
        drawn = draw_designs(simulator, num_simulations, num_trials)
    return hold_out(drawn, max(1, min(1000, num_simulations // 50)))


def draw_designs(simulator: Simulator, num_datasets: int, num_trials: int) -> Simulations:
    """Draws data sets whose inputs differ, also where those of one run share them: then in several runs."""
    most = MOST_OF_A_DESIGN if simulator.mode == "datasets" else num_datasets
    sizes = [len(part) for part in torch.arange(num_datasets).split(most)]
    return joined([simulator.draw(size, num_trials) for size in sizes])


def draw_simulations(source: Simulator | Bank, num_datasets: int, num_trials: int, series: bool = False) -> Simulations:
    """Draws data sets from a program, or from a bank: random ones, some trials of each.

    Args:
        source: The program, or the bank.
        num_datasets: Data sets B.
        num_trials: Trials n of each.
        series: Whether trials keep their order, and those of a bank are the first n; else those of a bank, and of a
            program whose inputs stand in an order, come in random order: the first ones become the context.
    """
    if isinstance(source, Simulator):
        drawn = source.draw(num_datasets, num_trials)
        if not source.has_ordered_inputs:
            return drawn
    else:
        rows = torch.randint(len(source.drawn.latents), (num_datasets,))
        drawn = Simulations(*(part[rows] for part in source.drawn))
    return some_trials(drawn, num_trials, series)


@dataclass(frozen=True, eq=False)
class ProgramSource:
    """Tasks of a program: of its posterior, its likelihood and its data.

    Attributes:
        simulations: Where data sets come from: a program, or a fixed set of its simulations.
        config: Of a network of the program.
        batch_size: Data sets per step and process (4 times as many where the likelihood is asked for).
        num_targets: Fresh trials per data set.
        seed: Of the data stream.
        posterior_share: Of the batches, that ask for the posterior; `None` = 0.5, and 0.8 for one observation per data
            set.
        posterior_alone: Whether the validation set of a bank of one observation per data set asks for posteriors and
            nothing else: most batches do, and the density of an outcome vector is so much larger that it would
            outweigh them.

    Raises:
        ValueError: If `batch_size` or `num_targets` is not positive.
    """

    simulations: Simulator | Bank
    config: ModelConfig
    batch_size: int = 32
    num_targets: int = 48
    seed: int = 0
    posterior_share: float | None = None
    posterior_alone: bool = False

    def __post_init__(self) -> None:
        check_positive(batch_size=self.batch_size, num_targets=self.num_targets)

    @property
    def settings(self) -> dict[str, Any]:
        """Seed and sizes, the share of the posterior, and the number of fixed simulations (`None` = new ones)."""
        fixed = sum(len(part.latents) for part in self.simulations) if isinstance(self.simulations, Bank) else None
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "num_targets": self.num_targets,
            "posterior_share": self.posterior_share,
            "num_simulations": fixed,
        }

    def batch(self, step: int, process: int = 0) -> Batch:
        """Coded pairs (inputs with their location column) of one kind of batch, and all sizes, for all processes."""
        config, num_latents = self.config, self.config.num_latents
        sizes = torch.Generator().manual_seed(mixed_seed(self.seed, step, 0))
        kind, some, share, empty = torch.rand(4, generator=sizes).tolist()
        single = config.one_observation
        num_context = int(empty >= EMPTY_CONTEXT_SHARE) if single else draw_num_context(config.num_context[1], sizes)
        num_given = 1 + int(share * (num_latents - 1)) if some < SOME_GIVEN_SHARE and num_latents > 1 else 0
        posterior_share = self.posterior_share
        if posterior_share is None:
            posterior_share = SINGLE_POSTERIOR_SHARE if single else POSTERIOR_SHARE
        with seeded(mixed_seed(self.seed, step, process + 1)):
            if kind < posterior_share and num_latents:
                return _posterior_batch(
                    self._draw(self.batch_size, max(num_context, 1)), config, num_context, num_given
                )
            likelihood_share = SINGLE_LIKELIHOOD_SHARE if single else LIKELIHOOD_SHARE
            asks_likelihood = kind < posterior_share + likelihood_share * (1 - posterior_share)
            if asks_likelihood and num_latents and not config.dependent:
                size = 1 if single else config.buffer_size + self.num_targets
                return _prefix_free_batch(self._draw(LIKELIHOOD_BATCH * self.batch_size, size), config, num_latents)
            if single:
                return _prefix_free_batch(self._draw(self.batch_size, 1), config, num_given)
            num_given = num_latents if asks_likelihood else num_given
            num_context = min(num_context, self._num_trials - 2)
            num_slots = min(config.buffer_size, max(1, (self._num_trials - num_context) // 2))
            drawn = self._draw(self.batch_size, num_context + num_slots + self.num_targets)
            return _data_batch(drawn, config, num_context, num_given, num_slots)

    def validation(self) -> list[Batch]:
        """Posteriors at two sizes of context, the likelihood, and data at three sizes; of a bank, what is held out.

        With `posterior_alone` it is one batch, of the posteriors of all that is held out.
        """
        largest, held_out = self.config.num_context[1], self.simulations
        if isinstance(held_out, Bank):
            if self.posterior_alone:
                with seeded(VALIDATION_SEED):
                    return [_posterior_batch(held_out.held_out, self.config, 1, 0, ordered=1.0)]
            held_out = Bank(held_out.held_out, held_out.held_out)
        slots = 1 if self.config.one_observation else min(self.config.buffer_size, self._num_trials)
        sizes = tuple(dict.fromkeys((0, largest // 4, max(0, largest - slots)))) if slots > 1 else (0,)
        asked: list[tuple[int, int | None]] = []
        if self.config.latents:
            asked += [(n, None) for n in dict.fromkeys((max(1, largest // 4), largest))]
            asked += [(n, self.config.num_latents) for n in (sizes if self.config.dependent else (0,))]
        asked += [(n, 0) for n in sizes]
        batches = []
        with seeded(VALIDATION_SEED):
            for num_context, num_given in asked:
                num_context = num_context if num_given is None else min(num_context, self._num_trials - slots)
                size = num_context + (0 if num_given is None else slots)
                drawn = draw_simulations(held_out, VALIDATION_DATASETS, size, self.config.sequential)
                if num_given is None:
                    batches.append(_posterior_batch(drawn, self.config, num_context, 0, ordered=1.0))
                else:
                    batch = _data_batch(drawn, self.config, num_context, num_given, slots)
                    batches.append(chain_batch(batch[:2], batch[2:4]))
        return batches

    @property
    def _num_trials(self) -> int:
        """Most trials of a data set."""
        return self.simulations.drawn.x.shape[1] if isinstance(self.simulations, Bank) else sys.maxsize

    def _draw(self, num_datasets: int, num_trials: int) -> Simulations:
        return draw_simulations(self.simulations, num_datasets, num_trials, self.config.sequential)


def _coded(drawn: Simulations, config: ModelConfig, first: int = 0, ordered: float = 0.0) -> tuple[Pairs, Pairs]:
    """Coded pairs of the latents, in a random order per data set, and of the trials.

    Args:
        drawn: The data sets.
        config: Of the network.
        first: Latents from this one on are in their own order in some data sets.
        ordered: The share of these data sets.
    """
    latents, x, y = drawn
    if not config.latents:
        return (x[:, :0], y[:, :0]), (x, y)
    order = torch.rand(latents.shape).argsort(1)  # (B, P)
    if ordered:
        some, rest = torch.rand(len(order), 1) < ordered, order[:, first:]
        order = torch.cat([order[:, :first], torch.where(some, rest.sort(1).values, rest)], 1)
    locations = F.pad((order + 1).unsqueeze(-1).to(x.dtype), (config.dim_x, 0))
    return (locations, pad_outcome(latents.gather(1, order), config.dim_y or 1)), (F.pad(x, (0, 1)), y)


def _part(pairs: Pairs, start: int, stop: int | None) -> Pairs:
    return pairs[0][:, start:stop], pairs[1][:, start:stop]


def _joined(first: Pairs, second: Pairs) -> Pairs:
    return torch.cat([first[0], second[0]], 1), torch.cat([first[1], second[1]], 1)


def _posterior_batch(
    drawn: Simulations, config: ModelConfig, num_context: int, num_given: int, ordered: float = ORDERED_SHARE
) -> Batch:
    """The latents that are not given are the chain: slot j is a target with v = j - 1."""
    latents, trials = _coded(drawn, config, num_given, ordered if config.ordered_latents else 0.0)
    context = _joined(_part(latents, 0, num_given), _part(trials, 0, num_context))
    return chain_batch(context, _part(latents, num_given, None))


def _prefix_free_batch(drawn: Simulations, config: ModelConfig, num_given: int) -> Batch:
    """No buffer: from the latents that are given, all trials and the other latents are predicted, each by itself."""
    latents, trials = _coded(drawn, config)
    targets = _joined(trials, _part(latents, num_given, None))
    prefix_len = torch.zeros(targets[0].shape[1], dtype=torch.int64)
    return Batch(*_part(latents, 0, num_given), *_part(trials, 0, 0), *targets, prefix_len)


def _data_batch(drawn: Simulations, config: ModelConfig, num_context: int, num_given: int, num_slots: int) -> Batch:
    """Trials are buffer and targets; the latents that are not given are targets too, at every prefix length.

    Of a series the slots are targets a second time, at all prefix lengths before their own: its forecasts several
    trials ahead. No target ever reads a trial after it.
    """
    latents, trials = _coded(drawn, config)
    stop = num_context + num_slots
    context = _joined(_part(latents, 0, num_given), _part(trials, 0, num_context))
    fresh = _joined(_part(trials, stop, None), _part(latents, num_given, None))
    # So that half of the latents read no buffer, like half of the trials.
    shuffled = torch.randperm(fresh[0].shape[1])
    fresh = (fresh[0][:, shuffled], fresh[1][:, shuffled])
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    buffer = _part(trials, num_context, stop)
    batch = curriculum(context, buffer, fresh, generator)
    if not config.sequential:
        return batch
    ahead = (torch.rand(num_slots, generator=generator) * torch.arange(1, num_slots + 1)).long()  # of slot j, 0..j-1
    targets = _joined(buffer, (batch.x_target, batch.y_target))
    return batch._replace(x_target=targets[0], y_target=targets[1], prefix_len=torch.cat([ahead, batch.prefix_len]))

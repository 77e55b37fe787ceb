"""Compares recipes of training on a fixed set of simulations of sbibm's tasks, over seeds, at equal CPU seconds.

    python benchmarks/recipe_simulations.py lotka_volterra --budget 10000 --minutes 2 --variants base average=0

A variant is `base`, which is what `amortize` does, or settings of it joined by commas: average (decay of the average of
the weights; 0 = none, and then no early end), cooled=0 (where a network stops gaining it does not go on at a lower
rate), further=0 (and no second network begins, either), ordered=0 (latents are predicted in random orders), and
num_y_frequencies (waves of the outcome). `--budget 0` trains on new simulations in every step. A seed is that of the
simulations, the weights and the batches. All are scored by the joint density of the latents, of 1,500 new data sets
that are the same for all seeds; differences to the first variant are paired. Finished networks are kept in the folder:
the same command goes on where it was stopped. Prints a table, then one JSON line.
"""

import dataclasses
import functools
import os
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import tyro
from kept import kept_or_made
from recipe import read_settings, report
from sbi import quiet
from sbi_tasks import TASKS
from tqdm import tqdm

from pyro_arbuf.programs import training_rounds
from pyro_arbuf.programs.program_batches import ProgramSource
from pyro_arbuf.programs.same_law import hold_out
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.training_rounds import Plan, program_source, train_network
from pyro_arbuf.random_state import seeded
from pyro_arbuf.training.loop import fit

SCORED, SCORED_SEED = 1_500, 40_000


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a variant; those of `amortize` by default.

    Attributes:
        average: Decay per step of the average of the weights; 0 = the last ones, for all of the time.
        cooled: Whether a network that has stopped gaining goes on at a lower learning rate.
        further: Whether anything is trained once it has stopped gaining.
        ordered: Whether latents are mostly predicted in their own order.
        num_y_frequencies: Waves of the outcome; `None` = as many as `amortize` takes.
    """

    average: float = training_rounds.BANK_AVERAGE
    cooled: bool = True
    further: bool = True
    ordered: bool = True
    num_y_frequencies: int | None = None


def read_recipe(text: str) -> Recipe:
    """The recipe that a variant names."""
    kinds = {"average": float, "num_y_frequencies": int} | dict.fromkeys(("cooled", "further", "ordered"), int)
    return Recipe(**read_settings(text, kinds))


def train_and_score(task: str, recipe: Recipe, budget: int, minutes: float, seed: int) -> dict[str, Any]:
    """Joint log densities of the latents of each scored data set, nats, and the steps of the network."""
    simulator = Simulator(TASKS[task].program)
    sizes = {} if recipe.num_y_frequencies is None else {"num_y_frequencies": recipe.num_y_frequencies}
    plan = Plan((0, 1), task, minutes, None, budget or None, seed, None, None, sizes)
    with seeded(SCORED_SEED):
        config = dataclasses.replace(plan.config_of(simulator), ordered_latents=bool(recipe.ordered))
        scored = hold_out(simulator.draw(SCORED, 1), SCORED)
    further = {} if recipe.further else {"MOST_USED": 0.0}
    further |= {} if recipe.cooled else {"COOLER": ()}
    counted = functools.partial(fit, clock=time.process_time)
    with mock.patch.multiple(training_rounds, BANK_AVERAGE=recipe.average, fit=counted, **further), seeded(seed):
        source = program_source(simulator, config, plan)
        model, state = train_network(source, minutes, None, None, False, seed, None)
    (batch,) = ProgramSource(scored, config, posterior_alone=True).validation()
    with torch.no_grad():
        return {"scores": model.score(batch).flatten(1).sum(1).tolist(), "steps": state.step}


def main(
    task: Annotated[str, tyro.conf.Positional],
    variants: list[str],
    budget: int = 10_000,
    minutes: float = 2.0,
    seeds: tuple[int, ...] = (0, 1, 2),
    folder: Path = Path("runs/recipe_simulations"),
    threads: int = 1,
) -> None:
    """Compares variants of the recipe for programs of one observation.

    Args:
        task: Of sbibm, a name of `sbi_tasks.TASKS`.
        variants: `base`, and settings joined by commas; the others are compared with the first.
        budget: Number of simulations; 0 = new ones in every step.
        minutes: CPU minutes of each variant and seed, at most: a network that stops gaining may end before.
        seeds: Of the simulations, the weights and the batches.
        folder: Where scores are kept.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    quiet()
    recipes = {text: read_recipe(text) for text in variants}
    folder.mkdir(parents=True, exist_ok=True)
    by_seed: dict[int, dict[str, Any]] = {seed: {} for seed in seeds}
    for seed, text in tqdm([(seed, text) for seed in seeds for text in variants], desc=task):
        make = functools.partial(train_and_score, task, recipes[text], budget, minutes, seed)
        with Path(os.devnull).open("w") as silent, redirect_stdout(silent):
            by_seed[seed][text] = kept_or_made(folder, task, [task, text, budget, minutes, seed], make)
    report(f"{task}, {budget or 'new'} simulations", variants, minutes, by_seed, "nats per data set")


if __name__ == "__main__":
    tyro.cli(main)

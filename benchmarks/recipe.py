"""Compares recipes of training at equal CPU seconds: variants take turns, a few steps at a time, on one core.

    python benchmarks/recipe.py gp-1d --minutes 10 --variants base ema=0.998 learning_rate=3e-3,ema=0.998 --seeds 0 1 2

A variant is `base`, which is what `fit` does, or settings of it joined by commas: learning_rate, warmup, final_decay
(the share of the run at its end over which the rate falls), ema (decay of an average of the weights, which is then
scored), batch_size, late_batch_size (in the second half), num_targets, start (a network whose weights it begins with
where they fit, as `amortize` does), and width, num_layers, num_heads, mlp_width of the network. All variants are scored
on one validation set, of functions that none is trained on. `--start` takes the weights that all of them start from.
Finished seeds are kept in the folder: the same command goes on where it was stopped. Prints a table, then one
JSON line.
"""

import copy
import dataclasses
import functools
import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from kept import kept_or_made, weights_key
from torch import Tensor
from tqdm import tqdm

from pyro_arbuf import ArBufferModel, load
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.programs.sources import make_source
from pyro_arbuf.programs.warm_start import copy_weights
from pyro_arbuf.random_state import seeded
from pyro_arbuf.training.loop import MAX_GRADIENT_NORM, WARMUP, make_optimizers
from pyro_arbuf.training.sources import TaskSource

SIZES = ("width", "num_layers", "num_heads", "mlp_width")
STEPS_PER_TURN = 5


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a variant; those of the shipped recipe by default.

    Attributes:
        learning_rate: Peak, of Muon and AdamW.
        warmup: Share of the run over which it rises.
        final_decay: Share of the run at its end over which it falls to zero, as a cosine.
        ema: Decay per step of the average of the weights that is scored; 0 = the last weights.
        batch_size: Data sets per step.
        late_batch_size: The same in the second half of the run; `None` = no other.
        num_targets: Fresh targets per data set.
        start: A network whose weights it begins with where they fit; `None` = random ones.
        sizes: Fields of the network's configuration.
    """

    learning_rate: float = 6e-3
    warmup: float = WARMUP
    final_decay: float = 1.0
    ema: float = 0.0
    batch_size: int = 32
    late_batch_size: int | None = None
    num_targets: int = 48
    start: str | None = None
    sizes: tuple[tuple[str, int], ...] = ()

    def rate(self, progress: float) -> float:
        """The learning rate at a progress between 0 and 1."""
        start = 1 - self.final_decay
        falling = max(0.0, min(1.0, progress) - start) / self.final_decay
        return self.learning_rate * min(1.0, progress / self.warmup + 0.01) * 0.5 * (1 + math.cos(math.pi * falling))


def read_recipe(text: str) -> Recipe:
    """The recipe that a variant names."""
    kinds: dict[str, Any] = dict.fromkeys(("learning_rate", "warmup", "final_decay", "ema"), float)
    kinds |= {"start": str} | dict.fromkeys(("batch_size", "late_batch_size", "num_targets", *SIZES), int)
    found = read_settings(text, kinds)
    sizes = tuple((name, found.pop(name)) for name in SIZES if name in found)
    return Recipe(**found, sizes=sizes)


def read_settings(text: str, kinds: dict[str, Any]) -> dict[str, Any]:
    """The settings of a variant, each of its kind; none for `base`.

    Raises:
        ValueError: If a setting is unknown, or its value is missing or of another kind.
    """
    found = {}
    for setting in [] if text == "base" else text.split(","):
        name, _, value = setting.partition("=")
        try:
            if not value:
                raise ValueError
            found[name] = kinds[name](value)
        except (KeyError, ValueError):
            expected = ", ".join(f"{known}={kind.__name__}" for known, kind in kinds.items())
            message = f"a variant must be 'base' or settings of {expected}; got {setting!r} in {text!r}"
            raise ValueError(message) from None
    return found


class Run:
    """A network in training by a recipe, on a budget of CPU seconds."""

    def __init__(self, name: str, recipe: Recipe, seed: int, budget: float, start: str | None):
        self.recipe, self.budget, self.used, self.steps, self.peak = recipe, budget, 0.0, 0, 0
        self.sources: dict[int, TaskSource] = {}
        for size in {recipe.batch_size, recipe.late_batch_size or recipe.batch_size}:
            self.sources[size] = make_source(name, size, recipe.num_targets, seed)
        config = self.sources[recipe.batch_size].config
        with seeded(seed):
            self.model = ArBufferModel(dataclasses.replace(config, **dict(recipe.sizes)))
        if start is not None:
            if recipe.sizes:
                raise ValueError(f"a variant must have the sizes of --start {start}; got {dict(recipe.sizes)}")
            self.model = load(start, trainable=True).train()
        if recipe.start is not None:
            copy_weights(self.model, recipe.start)
        self.average = copy.deepcopy(self.model)
        self.optimizers = make_optimizers(self.model, recipe.learning_rate, recipe.learning_rate)

    @property
    def progress(self) -> float:
        """Share of the budget that is used."""
        return self.used / self.budget

    def turn(self) -> None:
        """A few steps, their CPU seconds counted."""
        started = time.process_time()
        for _ in range(STEPS_PER_TURN):
            self._step()
        self.used += time.process_time() - started

    def _step(self) -> None:
        recipe, progress = self.recipe, self.progress
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(progress)
        late = recipe.late_batch_size if progress > 0.5 else None
        loss = self.model(self.sources[late or recipe.batch_size].batch(self.steps))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.steps += 1
        if recipe.ema:
            decay = min(recipe.ema, self.steps / (self.steps + 10))  # the first weights fade at once
            with torch.no_grad():
                pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
                for mean, last in pairs:
                    mean.lerp_(last, 1 - decay)

    @torch.no_grad()
    def score(self, batches: list[Batch]) -> Tensor:
        """Mean log density per target of each data set, nats, by the weights that the recipe ships."""
        model = self.average if self.recipe.ema else self.model
        return torch.cat([model.score(batch).flatten(1).mean(1) for batch in batches])


def train_and_score(name: str, variants: list[str], seed: int, minutes: float, start: str | None) -> dict[str, Any]:
    """Trains all variants from one seed, turn by turn, and scores them on one set: `(functions,)` each."""
    runs = {text: Run(name, read_recipe(text), seed, 60 * minutes, start) for text in variants}
    bar = tqdm(total=100 * len(runs), desc=f"seed {seed}", unit="%", bar_format="{l_bar}{bar}|{elapsed}<{remaining}")
    while unfinished := [run for run in runs.values() if run.progress < 1]:
        least = min(unfinished, key=lambda run: run.progress)
        least.turn()
        done = sum(min(run.progress, 1.0) for run in runs.values())
        bar.update(min(100 * done, bar.total) - bar.n)
    bar.close()
    batches = make_source(name).validation()
    return {text: {"scores": run.score(batches).tolist(), "steps": run.steps} for text, run in runs.items()}


def main(
    name: Annotated[str, tyro.conf.Positional],
    variants: list[str],
    minutes: float = 10.0,
    seeds: tuple[int, ...] = (0,),
    start: str | None = None,
    folder: Path = Path("runs/recipe"),
    threads: int = 1,
) -> None:
    """Compares variants of the recipe.

    Args:
        name: A shipped model, whose prior the networks are trained on.
        variants: `base`, and settings joined by commas, e.g. `learning_rate=3e-3,ema=0.998`; the others are compared
            with the first.
        minutes: CPU minutes of each variant and seed.
        seeds: Of the weights and data.
        start: Folder or name of weights that all variants start from; not given = from scratch.
        folder: Where finished seeds are kept.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    for text in variants:
        read_recipe(text)
    folder.mkdir(parents=True, exist_ok=True)
    by_seed = {}
    for seed in seeds:
        make = functools.partial(train_and_score, name, variants, seed, minutes, start)
        settings = [name, variants, minutes, seed, start and weights_key(load(start))]
        by_seed[seed] = kept_or_made(folder, name, settings, make)
    report(name, variants, minutes, by_seed)


def report(
    name: str, variants: list[str], minutes: float, by_seed: dict[int, Any], unit: str = "nats per target"
) -> None:
    """Prints the table and the JSON line: scores, differences to the first variant, errors over functions and seeds."""
    rows = {}
    print(
        f"{name}, {minutes:g} CPU minutes each, {len(by_seed)} seeds: {unit}, standard errors in the last two columns"
    )
    print("| variant | steps | density | minus the first | over functions | over seeds |\n|---|---|---|---|---|---|")
    for text in variants:
        scores = torch.tensor([found[text]["scores"] for found in by_seed.values()], dtype=torch.float64)
        first = torch.tensor([found[variants[0]]["scores"] for found in by_seed.values()], dtype=torch.float64)
        gaps = scores - first
        over_functions = (gaps.mean(0).std() / math.sqrt(gaps.shape[1])).item()
        over_seeds = (gaps.mean(1).std() / math.sqrt(len(gaps))).item() if len(gaps) > 1 else math.nan
        steps = sum(found[text]["steps"] for found in by_seed.values()) // len(by_seed)
        rows[text] = [steps, scores.mean().item(), gaps.mean().item(), over_functions, over_seeds]
        print(f"| {text} | {steps} | " + " | ".join(f"{value:.4f}" for value in rows[text][1:]) + " |")
    print(json.dumps({"benchmark": "recipe", "name": name, "minutes": minutes, "seeds": [*by_seed], "variants": rows}))


if __name__ == "__main__":
    tyro.cli(main)

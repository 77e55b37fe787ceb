"""How a network of a program is trained: its source of simulations, its start, and rounds for one observation."""

import dataclasses
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from pyro_arbuf.baselines.architectures import make_model
from pyro_arbuf.checkpoint import load, save
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.programs.banks import kept_bank
from pyro_arbuf.programs.configuration import program_config
from pyro_arbuf.programs.program_batches import ProgramSource
from pyro_arbuf.programs.reports import describe_training, starting_weights
from pyro_arbuf.programs.same_law import Bank, Simulations, joined
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.programs.truncated_prior import (
    TruncatedSimulator,
    check_prior,
    describe_share,
    draw_latents,
    find_region,
)
from pyro_arbuf.programs.warm_start import copy_weights, start_of
from pyro_arbuf.random_state import seeded
from pyro_arbuf.training.loop import LEARNING_RATE, fit
from pyro_arbuf.training.run_state import FROM_SCRATCH, RunState
from pyro_arbuf.training.sources import TaskSource

TARGETS = 32  # fresh trials per data set and step
STATE = "state.safetensors"
COOLED_STATE = "state_cooled_{}.safetensors"
SECOND_STATE = "state_regularised.safetensors"
COOLER = (0.25, 0.0625)  # of the peak learning rate, where a network goes on that has stopped gaining
COOLING = 0.2  # of the time that is left, at most, for each of them
BANK_AVERAGE = 0.99  # on a fixed set of simulations
REGULARISED = {"dropout": 0.1, "weight_decay": 1.0, "patience": None}  # the second network
SINGLE_LOOKS, LOOKS = (50, 20), (250, 6)  # steps between validations, and how many without a better one end a run
MOST_USED = 0.75  # of the time, for another run to begin
MOVED, STRETCHED = 0.5, 1.5  # in scales, and times: more than chance makes of a location and scale that are estimated
Columns = tuple[tuple[float, ...] | None, tuple[float, ...] | None]
ROUND = "round_{}"  # folder of a round's network, in that of the last one


class Plan(NamedTuple):
    """How a network of a program is trained: arguments of `amortize`."""

    num_context: tuple[int, int]
    name: str
    minutes: float | None
    steps: int | None
    num_simulations: int | None
    seed: int
    batch_size: int | None
    start_from: str | Path | None
    sizes: dict[str, Any]

    def config_of(self, simulator: Simulator) -> ModelConfig:
        """The configuration of the network, by simulations of the program."""
        return program_config(simulator, self.num_context, self.name, **self.sizes)

    def of_round(self, number: int, rounds: int, observation: tuple[tuple[float, ...], ...]) -> "Plan":
        """That of one round, counted from 0: an equal share of everything, with a seed of its own."""
        share = [None if n is None else max(2, n // rounds) for n in (self.steps, self.num_simulations)]
        sizes = self.sizes | ({"observation": observation} if number else {})
        return self._replace(
            minutes=None if self.minutes is None else self.minutes / rounds,
            steps=share[0],
            num_simulations=share[1],
            seed=self.seed + number,
            sizes=sizes,
        )


def train_program(
    simulator: Simulator,
    config: ModelConfig,
    plan: Plan,
    folder: str | Path | None,
    resume: bool,
    kept: Simulations | None = None,
) -> tuple[ArBufferModel, RunState, ProgramSource]:
    """Trains a network of a program, on simulations of earlier rounds too; its state, and what it was trained on."""
    if resume and folder is not None:
        config = _with_statistics_of(config, Path(folder) / STATE)
    start = start_of(config, plan.start_from)
    begins_at = starting_weights(start, folder if resume else None)
    print(describe_training(simulator, config, plan.minutes, plan.steps, plan.num_simulations, begins_at))
    place = None if folder is None else Path(folder)
    source = program_source(simulator, config, plan, place, resume, kept)
    model, state = train_network(source, plan.minutes, plan.steps, folder, resume, plan.seed, start)
    model.simulator = simulator
    return model, state, source


def train_in_rounds(
    simulator: Simulator,
    plan: Plan,
    folder: str | Path | None,
    resume: bool,
    observation: tuple[Any, Any],
    rounds: int,
) -> tuple[ArBufferModel, RunState]:
    """What `amortize` does for one observation: rounds of simulations, each from where the posterior so far has mass.

    The network of an earlier round is kept in a folder of its own, so that a run can go on in the one where it was
    stopped. Rounds before that one are not trained on, as the later ones follow from them.
    """
    check_prior(simulator)
    config = plan.config_of(simulator)
    with seeded(plan.seed):
        untrained = ArBufferModel(config).eval()
    observed = tuple(tuple(row) for row in untrained.condition(*observation).y[0].tolist())
    model, state, simulations, kept, region = untrained, RunState(), simulator, None, None
    places = [None if folder is None else Path(folder) / ROUND.format(i + 1) for i in range(rounds - 1)]
    places.append(None if folder is None else Path(folder))
    begun = [resume and place is not None and (place / STATE).exists() for place in places]
    for number, place in enumerate(places):
        last = number == rounds - 1
        print(f"round {number + 1} of {rounds}")
        share = plan.of_round(number, rounds, observed)
        if place is not None and begun[number] and not last and begun[number + 1]:
            # What the next round began with depends on this network, so that it is not trained on.
            model = load(place)
            source = program_source(simulations, model.config, share, place, True, kept)
        else:
            config = share.config_of(simulations) if number else config
            model, state, source = train_program(simulations, config, share, place, begun[number], kept)
        if last:
            break
        with seeded(plan.seed + number), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*outside the trained range.*")  # said before the first round
            region = find_region(simulator, model.condition(*observation), region)
            print(f"the next round simulates from {describe_share(region)} of the prior, around the posterior so far")
            simulations = TruncatedSimulator(simulator, region, draw_latents(region))
        if isinstance(source.simulations, Bank):
            inside = region.holds(source.simulations.drawn.latents)
            kept = Simulations(*(part[inside] for part in source.simulations.drawn))
    return model, state


def train_network(
    source: TaskSource,
    minutes: float | None,
    steps: int | None,
    folder: str | Path | None,
    resume: bool,
    seed: int,
    start: str | Path | None,
) -> tuple[ArBufferModel, RunState]:
    """A network of a source's configuration trained on it, frozen, with the best weights, and the state of its run.

    On a fixed set of simulations a network stops gaining while the learning rate is high: it begins to know them by
    heart, or the rate is too high for it. Then it goes on from its best weights at a lower rate, twice, each time for
    at most a fifth of the time that is left. In the rest a second one begins, with dropout and weight decay. The best
    one by the simulations that are held out is returned.
    """
    attempt = _Attempt(source, folder, seed, start)
    if not (isinstance(source, ProgramSource) and isinstance(source.simulations, Bank)):
        return attempt.train(STATE, minutes, steps, resume)
    options = _options_of_a_bank(source.config, attempt.begun(STATE) if resume else None)
    model, state = attempt.train(STATE, minutes, steps, resume, **options)
    left = _Left(minutes, steps).without(state)
    runs = [(COOLED_STATE.format(i), factor) for i, factor in enumerate(COOLER, 1)] + [(SECOND_STATE, None)]
    for name, factor in runs if options else runs[-1:]:
        if left.used > MOST_USED:
            break
        what = "a second network is regularised" if factor is None else f"it goes on at {factor:g} of the learning rate"
        print(f"simulations that are held out are predicted no better by the network; {what}")
        cooler = {} if factor is None else {"learning_rate": factor * LEARNING_RATE}
        own = left if factor is None else left.share(COOLING)
        begun = resume and attempt.begun(name).exists()
        limits = (own.minutes, own.steps, begun, state.best_score, None if factor is None else model)
        found, its_state = attempt.train(name, *limits, **options | (REGULARISED if factor is None else cooler))
        left = left.without(its_state)
        if its_state.best_score > state.best_score:
            model, state = found, its_state
    return model, state


class _Left(NamedTuple):
    """The time that is left to runs on a fixed set of simulations, and the share of it that is used."""

    minutes: float | None
    steps: int | None
    used: float = 0.0

    def without(self, state: RunState) -> "_Left":
        """After a run."""
        limits = [(state.minutes, self.minutes), (state.step, self.steps)]
        share = max(spent / limit for spent, limit in limits if limit)
        minutes = None if self.minutes is None else max(0.0, self.minutes - state.minutes)
        steps = None if self.steps is None else max(0, self.steps - state.step)
        return _Left(minutes, steps, self.used + share * (1 - self.used))

    def share(self, share: float) -> "_Left":
        """A share of it."""
        steps = None if self.steps is None else max(1, int(self.steps * share))
        return self._replace(minutes=None if self.minutes is None else self.minutes * share, steps=steps)


class _Attempt(NamedTuple):
    """What all networks that are trained on one source have in common: arguments of `train_network`."""

    source: TaskSource
    folder: str | Path | None
    seed: int
    start: str | Path | None

    def begun(self, name: str) -> Path:
        """The file of a run's state."""
        assert self.folder is not None
        return Path(self.folder) / name

    def train(
        self,
        name: str,
        minutes: float | None,
        steps: int | None,
        resume: bool,
        least: float = -math.inf,
        begin_at: ArBufferModel | None = None,
        **options: Any,
    ) -> tuple[ArBufferModel, RunState]:
        """One network, whose state has that name; it is kept in the folder once its score is above `least`."""
        with seeded(self.seed):
            model = make_model(self.source.config)
        origin = None
        if begin_at is not None:
            model.load_state_dict(begin_at.state_dict())
        elif self.start is not None and not resume:
            copy_weights(model, self.start)
            origin = FROM_SCRATCH | {"started_from": str(self.start)}

        def keep(state: RunState) -> None:
            if self.folder is not None and state.best_score > least:
                save(model, self.folder, state.best_weights)

        with tempfile.TemporaryDirectory() as scratch:
            path = Path(self.folder or scratch) / name
            limits = {"minutes": minutes, "steps": steps}
            state = fit(model, self.source, path, **limits, resume=resume, origin=origin, on_checkpoint=keep, **options)
        model.load_state_dict(state.best_weights)
        model.cpu().eval().requires_grad_(False)
        return model, state


def _options_of_a_bank(config: ModelConfig, begun: Path | None) -> dict[str, Any]:
    """How `fit` stops early on a fixed set of simulations: by the average of the weights, looked at often.

    What a network learns of the set alone shows in the simulations that are held out long before the learning rate has
    fallen. A run that was begun without an average goes on without.
    """
    average = BANK_AVERAGE if begun is None else RunState.read(begun).setup.get("average", 0.0)
    if not average:
        return {}
    every, patience = SINGLE_LOOKS if config.one_observation else LOOKS
    return {"average": average, "validate_every": every, "patience": patience}


def program_source(
    simulator: Simulator,
    config: ModelConfig,
    plan: Plan,
    folder: Path | None = None,
    resume: bool = False,
    kept: Simulations | None = None,
) -> ProgramSource:
    """What the network is trained on: new data sets in every step, or a fixed set of them and of those kept."""
    simulations: Simulator | Bank = simulator
    if plan.num_simulations is not None:
        largest = config.num_context[1]
        trials = max(1, largest) if simulator.single else largest + config.buffer_size + TARGETS
        simulations = kept_bank(simulator, plan.num_simulations, trials, plan.seed, folder, resume)
        if kept is not None:
            simulations = simulations._replace(drawn=joined([simulations.drawn, kept]))
    batch_size = plan.batch_size
    if batch_size is None:
        batch_size = 128 if simulator.single else 32
    alone = plan.num_simulations is not None and config.one_observation and bool(config.latents)
    return ProgramSource(simulations, config, batch_size, TARGETS, plan.seed, posterior_alone=alone)


def _with_statistics_of(config: ModelConfig, state_path: Path) -> ModelConfig:
    """A configuration with the locations, scales and ranges of the run that it continues.

    They are estimated from simulations, which differ from call to call where the program has a generator of its own.

    Raises:
        ValueError: If they differ by so much that the program must be another one.
    """
    begun = ModelConfig.from_json(RunState.read(state_path).setup.get("config", "{}"))
    names = ["x_range", "y_range"]
    names += ["x_loc", "x_scale"] if begun.dim_x == config.dim_x else []
    names += ["y_loc", "y_scale"] if begun.dim_y == config.dim_y else []
    before, now = ([dataclasses.replace(each, loc=None, scale=None) for each in c.latents] for c in (begun, config))
    if before == now:  # what differs otherwise is for `fit` to name
        names += ["latents"]
        _check_same_law(begun, config, state_path.parent)
    return dataclasses.replace(config, **{field: getattr(begun, field) for field in names})


def _check_same_law(begun: ModelConfig, config: ModelConfig, folder: Path) -> None:
    """Raises ValueError if a latent or outcome of a run has other quartiles now, as of a program that was edited."""
    for old, new in zip(begun.latents, config.latents, strict=True):
        _check_same_units(f"latent {old.name!r}", (old.loc, old.scale), (new.loc, new.scale), folder)
    _check_same_units("outcome", (begun.y_loc, begun.y_scale), (config.y_loc, config.y_scale), folder)


def _check_same_units(name: str, old: Columns, new: Columns, folder: Path) -> None:
    """The same of one latent or of the outcome: location and scale of each dimension; `None` = not known."""
    columns = [column or () for column in (*old, *new)]
    for was_at, was_wide, loc, scale in zip(*columns, strict=False):
        if abs(loc - was_at) > MOVED * was_wide or not 1 / STRETCHED < scale / was_wide < STRETCHED:
            raise ValueError(
                f"{folder} holds a run of a program whose {name} had location {was_at:.3g} and scale {was_wide:.3g}, "
                f"and now has {loc:.3g} and {scale:.3g}; take another folder, or the program as it was"
            )

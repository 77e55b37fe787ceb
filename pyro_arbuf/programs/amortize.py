"""amortize: a Pyro program, or a prior as a plain function, to one trained network."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_arbuf.baselines.architectures import TRAINED_ON_CHAINS
from pyro_arbuf.checkpoint import CONFIG, check_is_folder
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.programs.configuration import PROGRAM_FIELDS
from pyro_arbuf.programs.function_prior import (
    FunctionPrior,
    check_no_program_arguments,
    describe_prior,
    is_function_prior,
    prior_report,
    probe,
)
from pyro_arbuf.programs.reports import starting_weights, training_report
from pyro_arbuf.programs.simulator import Program, Simulator
from pyro_arbuf.programs.sources import shipped_programs
from pyro_arbuf.programs.training_rounds import (
    ROUND,
    STATE,
    Plan,
    train_in_rounds,
    train_network,
    train_program,
)
from pyro_arbuf.programs.truncated_prior import check_rounds
from pyro_arbuf.programs.warm_start import AUTO, start_of
from pyro_arbuf.training.sources import PriorSource

DEFAULT_MINUTES = 8.0


@torch.inference_mode(False)
@torch.enable_grad()
def amortize(
    program: Callable[..., Any],
    inputs: Any = None,
    latents: Sequence[str] | None = None,
    outcome: str | Sequence[str] = "y",
    num_context: tuple[int, int] = (0, 100),
    minutes: float | None = None,
    steps: int | None = None,
    num_simulations: int | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    report: bool = True,
    vectorized: bool | None = None,
    start_from: str | Path | None = AUTO,
    observation: tuple[Any, Any] | None = None,
    rounds: int = 2,
    simulations: Mapping[str, Any] | None = None,
    **sizes: Any,
) -> ArBufferModel:
    """Trains a network on simulations of a Pyro program, or on a prior of functions, with progress bar and report.

    Before training it prints what will be trained: latents, sites integrated out, outcome, inputs, ranges.

    The program samples its latents, then the outcome of n trials at inputs x `(n, D_x)`; it needs no density. Trials
    are in a plate; or they are a series, one event of n of them, or a loop over the sites y_0 to y_(n-1). One network
    then gives the posterior (`ArBufferPosterior`), the likelihood (`likelihood`), predictions (`ArBufferJoint`) and the
    evidence (`log_evidence`).

    A prior of functions is a plain function with the parameters `batch_size`, `num_points` and `generator`, and further
    ones only with defaults. It returns x `(B, T)` or `(B, T, D_x)` and y `(B, T)` or `(B, T, D_y)`, T points of each of
    B functions in random order, and draws all that is random from the generator. Its network has no latents.

    Args:
        program: The program, or the function.
        inputs: Draws random inputs: called with a number of trials n, returns a tensor, array or table `(n, D_x)`. Or
            the rows `(R, D_x)` of a design, which trials are drawn from, with replacement. `None` = no inputs (x is
            one constant 0; of a series it is the number of each trial, 0 to n - 1).
        latents: Sites whose posterior is wanted; others are integrated out. `None` = all continuous sites outside
            plates and loops over trials; `[]` = none: predictions and evidence alone.
        outcome: The site of the outcome, a number or a vector per trial: real numbers, counts (Poisson,
            NegativeBinomial, Geometric, Binomial) or categories (Bernoulli, Categorical). Several sites of one plate,
            `("choice", "rt")`, are one vector outcome, each site predicted given those before it.
        num_context: Range (0, n) of the number of trials; (0, 1) for a program of one observation.
        minutes: Training time; 8 where neither `minutes` nor `steps` is given.
        steps: Number of steps; with both limits, whichever is reached first.
        num_simulations: Trains on a fixed set of so many data sets; `None` = new ones in every step.
        folder: Where the network and the state of the run are kept, written every few minutes; `None` = nowhere.
        resume: Continue the run in `folder`.
        seed: Seed of weights and simulations.
        batch_size: Data sets per step; `None` = 32, and 128 for a program of one observation.
        report: Whether calibration, what was learned beyond the prior, and self-consistency are measured and printed at
            the end, with a verdict.
        vectorized: Whether the program is written for leading batch dimensions, as for `Simulator`; `None` = tried
            once, and what was found is printed.
        start_from: Where the weights begin: "auto" = at those of a shipped network of programs of the same kind, if
            the sizes are the same, and at random ones for a program of one observation; a name or folder that `load`
            takes = at those; `None` = at random ones. Layers of other shapes, and those that read the inputs of another
            program, begin at random ones in any case.
        observation: Inputs x `(n, D_x)` and outcomes y of one data set. The network is then for the posterior of that
            one alone: what `minutes`, `steps` and `num_simulations` allow is divided among several rounds, and from the
            second on latents are drawn from the prior truncated to where the posterior has mass so far. Simulations
            inside are kept from round to round.
        rounds: Number of rounds, at least 2; used with `observation`.
        simulations: Trains on data sets that are stored already, as for `Simulator`; the program then says which prior
            and which outcome they are of, and is not run for more.
        **sizes: Fields of `ModelConfig`, e.g. `width=128`; `architecture="lbanp-buffer"` is for contexts of thousands,
            where there are no latents; of a plain function also `outcomes="count"` or `"categorical(n)"`, where its y
            are no real numbers.

    Returns:
        The network, frozen, in eval mode, on the CPU; its `simulator` is the program, `None` for a plain function.

    Raises:
        ValueError: If the program cannot be amortised, an argument breaks its rule, or `folder` holds a network.
        RuntimeError: If training diverges.
    """
    if minutes is None and steps is None:
        minutes = DEFAULT_MINUTES
    plain = callable(program) and is_function_prior(program)
    if plain:
        named = None if outcome == "y" else outcome
        check_no_program_arguments(
            inputs=inputs,
            latents=latents or None,
            outcome=named,
            num_simulations=num_simulations,
            simulations=None if simulations is None else type(simulations).__name__,
            vectorized=vectorized,
            observation=observation,
        )
    first = None if folder is None else Path(folder) / ("." if observation is None else ROUND.format(1))
    for place in dict.fromkeys((folder, first)):
        _check_folder(place, resume)
    _check_arguments(program, minutes, steps, num_simulations, seed, batch_size, sizes, plain)
    check_rounds(observation, rounds)
    _check_simulations(simulations, num_simulations, observation)
    if first is not None:
        if resume and not (first / STATE).exists():
            raise ValueError(f"resume=True needs the state of a run; there is none in {first}; start without resume")
        first.mkdir(parents=True, exist_ok=True)
    if plain:
        return _amortize_prior(
            program, num_context, minutes, steps, folder, resume, seed, batch_size, report, start_from, sizes
        )
    simulator = Simulator(program, inputs, latents, outcome, vectorized, simulations)
    if simulator.stored is not None:
        num_simulations = len(simulator.stored)
    name = _name_of(program, inputs, simulations)
    plan = Plan(num_context, name, minutes, steps, num_simulations, seed, batch_size, start_from, sizes)
    if observation is None:
        model, state, _ = train_program(simulator, plan.config_of(simulator), plan, folder, resume)
    else:
        model, state = train_in_rounds(simulator, plan, folder, resume, observation, rounds)
    if report:
        print(training_report(model, state.best_score, state.step, state.history, folder))
    return model


def _amortize_prior(
    function: Callable[..., Any],
    num_context: tuple[int, int],
    minutes: float | None,
    steps: int | None,
    folder: str | Path | None,
    resume: bool,
    seed: int,
    batch_size: int | None,
    report: bool,
    start_from: str | Path | None,
    sizes: dict[str, Any],
) -> ArBufferModel:
    """What `amortize` does with a prior as a plain function."""
    probed = probe(function, num_context, **sizes)
    start = start_of(probed.config, start_from)
    print(describe_prior(probed, minutes, steps, starting_weights(start, folder if resume else None)))
    source = PriorSource(FunctionPrior(function), probed.config, batch_size or 32, seed=seed)
    model, state = train_network(source, minutes, steps, folder, resume, seed, start)
    if report:
        print(prior_report(model, source, state.best_score, state.step, state.history, folder))
    return model


def _check_folder(folder: str | Path | None, resume: bool) -> None:
    """Raises ValueError if there is no folder to resume from, or a new run would replace the network in it."""
    if folder is None:
        if resume:
            raise ValueError("resume=True needs the folder of the run; got folder=None")
        return
    check_is_folder(Path(folder))
    if not resume and (Path(folder) / CONFIG).exists():
        raise ValueError(
            f"folder must hold no network yet, which a new run would replace; got {folder}; use resume=True to go on "
            "with the run in it, or another folder"
        )


def _check_simulations(simulations: object, num_simulations: object, observation: object) -> None:
    """Raises ValueError if stored simulations come with what asks for others."""
    asked = {"num_simulations": num_simulations, "observation": observation}
    names = [name for name, value in asked.items() if value is not None]
    if simulations is not None and names:
        raise ValueError(
            f"simulations are all that a network is trained on; got {' and '.join(names)} too, which ask for others; "
            "leave one of them out"
        )


def _name_of(program: Program, inputs: object, simulations: object) -> str:
    """The name of a program: of a shipped one with its own inputs the shipped name, which no other one has."""
    name, shipped = getattr(program, "__name__", type(program).__name__), shipped_programs()
    for row, recipe in shipped.items():
        if recipe.program is program and recipe.inputs is inputs and simulations is None:
            return row
    return f"{getattr(program, '__module__', 'user')}.{name}" if name.replace("_", "-") in shipped else name


def _check_arguments(
    program: object,
    minutes: object,
    steps: object,
    num_simulations: object,
    seed: object,
    batch_size: object,
    sizes: dict[str, Any],
    plain: bool,
) -> None:
    """Raises ValueError before any simulation; of a plain function, the kinds of its outcomes may be chosen."""
    if not callable(program):
        raise ValueError(f"program must be a function; got {type(program).__name__}")
    if minutes is not None and (not isinstance(minutes, int | float) or not minutes > 0):
        raise ValueError(f"minutes must be a positive number; got {minutes!r}")
    least = {"steps": (steps, 1), "num_simulations": (num_simulations, 2), "batch_size": (batch_size, 1)}
    for name, (value, low) in (least | {"seed": (seed, 0)}).items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise ValueError(f"{name} must be an integer of at least {low}; got {value!r}")
    free = {field.name for field in dataclasses.fields(ModelConfig)} - (
        PROGRAM_FIELDS - ({"outcomes"} if plain else set())
    )
    if (name := sizes.get("architecture")) in TRAINED_ON_CHAINS:
        raise ValueError(
            f"architecture must not be {name!r} here, which is trained on chains of targets; use 'buffer', or "
            f"'lbanp-buffer' for contexts of thousands; of a shipped prior, pyro-arbuf train trains {name!r}"
        )
    if sizes.get("architecture") == "tnp-d-buffer":
        raise ValueError(
            "architecture must not be 'tnp-d-buffer' here, which adds a buffer to trained weights and leaves them as "
            "they are; train a 'tnp-d', give it to pyro_arbuf.add_buffer, and train what was added by fit"
        )
    if not set(sizes) <= free:
        raise ValueError(f"sizes must be among {sorted(free)}; got {sorted(set(sizes) - free)}")

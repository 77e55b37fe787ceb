"""amortize: a Pyro program, or a prior as a plain function, to one trained network."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_arbuf.checkpoint import CONFIG, save
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.programs.configuration import PROGRAM_FIELDS, program_config
from pyro_arbuf.programs.function_prior import (
    FunctionPrior,
    check_no_program_arguments,
    describe_prior,
    is_function_prior,
    prior_report,
    probe,
)
from pyro_arbuf.programs.program_batches import Bank, ProgramSource, make_bank
from pyro_arbuf.programs.reports import describe_training, training_report
from pyro_arbuf.programs.simulator import Program, Simulator
from pyro_arbuf.programs.sources import shipped_programs
from pyro_arbuf.programs.warm_start import AUTO, copy_weights, start_of
from pyro_arbuf.random_state import seeded
from pyro_arbuf.training.loop import fit
from pyro_arbuf.training.run_state import FROM_SCRATCH, RunState
from pyro_arbuf.training.sources import PriorSource, TaskSource

DEFAULT_MINUTES = 8.0
TARGETS = 32  # fresh trials per data set and step
STATE = "state.safetensors"


@torch.inference_mode(False)
@torch.enable_grad()
def amortize(
    program: Callable[..., Any],
    inputs: Callable[[int], Tensor] | None = None,
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
        inputs: Draws random inputs: called with a number of trials n, returns `(n, D_x)`; `None` = no inputs (x is one
            constant 0; of a series it is the number of each trial, 0 to n - 1).
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
            the sizes are the same; a name or folder that `load` takes = at those; `None` = at random ones. Layers of
            other shapes, and those that read the inputs of another program, begin at random ones in any case.
        **sizes: Fields of `ModelConfig`, e.g. `width=128`; of a plain function also `outcomes="count"` or
            `"categorical(n)"`, where its y are no real numbers.

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
            vectorized=vectorized,
        )
    _check_folder(folder, resume)
    _check_arguments(program, inputs, minutes, steps, num_simulations, seed, batch_size, sizes, plain)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if resume and not (Path(folder) / STATE).exists():
            raise ValueError(f"resume=True needs the state of a run; there is none in {folder}; start without resume")
    if plain:
        return _amortize_prior(
            program, num_context, minutes, steps, folder, resume, seed, batch_size, report, start_from, sizes
        )
    simulator = Simulator(program, inputs, latents, outcome, vectorized)
    config = program_config(simulator, num_context, _name_of(program), **sizes)
    if resume and folder is not None:
        config = _with_statistics_of(config, Path(folder) / STATE)
    start = start_of(config, start_from)
    print(describe_training(simulator, config, minutes, steps, num_simulations, start))
    source = _source(simulator, config, num_simulations, seed, batch_size)
    model, state = _train(source, minutes, steps, folder, resume, seed, start)
    model.simulator = simulator
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
    print(describe_prior(probed, minutes, steps, start))
    source = PriorSource(FunctionPrior(function), probed.config, batch_size or 32, seed=seed)
    model, state = _train(source, minutes, steps, folder, resume, seed, start)
    if report:
        print(prior_report(model, source, state.best_score, state.step, state.history, folder))
    return model


def _train(
    source: TaskSource,
    minutes: float | None,
    steps: int | None,
    folder: str | Path | None,
    resume: bool,
    seed: int,
    start: str | Path | None,
) -> tuple[ArBufferModel, RunState]:
    """A network of a source's configuration trained on it, frozen, with the best weights, and the state of its run."""
    with seeded(seed):
        model = ArBufferModel(source.config)
    origin = None
    if start is not None and not resume:
        copy_weights(model, start)
        origin = FROM_SCRATCH | {"started_from": str(start)}

    def keep(state: RunState) -> None:
        if folder is not None:
            save(model, folder, state.best_weights)

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(folder or scratch) / STATE
        limits = {"minutes": minutes, "steps": steps}
        state = fit(model, source, path, **limits, resume=resume, origin=origin, on_checkpoint=keep)
    model.load_state_dict(state.best_weights)
    model.cpu().eval().requires_grad_(False)
    return model, state


def _check_folder(folder: str | Path | None, resume: bool) -> None:
    """Raises ValueError if there is no folder to resume from, or a new run would replace the network in it."""
    if resume and folder is None:
        raise ValueError("resume=True needs the folder of the run; got folder=None")
    if folder is not None and not resume and (Path(folder) / CONFIG).exists():
        raise ValueError(
            f"folder must hold no network yet, which a new run would replace; got {folder}; use resume=True to go on "
            "with the run in it, or another folder"
        )


def _name_of(program: Program) -> str:
    """The name of a program, told apart from a shipped one of the same name that it is not."""
    name, shipped = getattr(program, "__name__", type(program).__name__), shipped_programs()
    if name in shipped and shipped[name].program is not program:
        return f"{getattr(program, '__module__', 'user')}.{name}"
    return name


def _source(
    simulator: Simulator, config: ModelConfig, num_simulations: int | None, seed: int, batch_size: int | None
) -> ProgramSource:
    """What the network is trained on: new data sets in every step, or a fixed set of them."""
    simulations: Simulator | Bank = simulator
    if num_simulations is not None:
        largest = config.num_context[1]
        trials = max(1, largest) if simulator.single else largest + config.buffer_size + TARGETS
        simulations = make_bank(simulator, num_simulations, trials, seed)
    if batch_size is None:
        batch_size = 128 if simulator.single else 32
    return ProgramSource(simulations, config, batch_size, TARGETS, seed)


def _with_statistics_of(config: ModelConfig, state_path: Path) -> ModelConfig:
    """A configuration with the locations, scales and ranges of the run that it continues.

    They are estimated from simulations, which differ from call to call where the program has a generator of its own.
    """
    begun = ModelConfig.from_json(RunState.read(state_path).setup.get("config", "{}"))
    names = ["x_range", "y_range"]
    names += ["x_loc", "x_scale"] if begun.dim_x == config.dim_x else []
    names += ["y_loc", "y_scale"] if begun.dim_y == config.dim_y else []
    before, now = ([dataclasses.replace(each, loc=None, scale=None) for each in c.latents] for c in (begun, config))
    names += ["latents"] if before == now else []  # what differs otherwise is for `fit` to name
    return dataclasses.replace(config, **{field: getattr(begun, field) for field in names})


def _check_arguments(
    program: object,
    inputs: object,
    minutes: object,
    steps: object,
    num_simulations: object,
    seed: object,
    batch_size: object,
    sizes: dict[str, Any],
    plain: bool,
) -> None:
    """Raises ValueError before any simulation; of a plain function, the kinds of its outcomes may be chosen."""
    for name, value in {"program": program, "inputs": inputs}.items():
        if not callable(value) and not (name == "inputs" and value is None):
            raise ValueError(f"{name} must be a function; got {type(value).__name__}")
    if minutes is not None and (not isinstance(minutes, int | float) or not minutes > 0):
        raise ValueError(f"minutes must be a positive number; got {minutes!r}")
    least = {"steps": (steps, 1), "num_simulations": (num_simulations, 2), "batch_size": (batch_size, 1)}
    for name, (value, low) in (least | {"seed": (seed, 0)}).items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise ValueError(f"{name} must be an integer of at least {low}; got {value!r}")
    free = {field.name for field in dataclasses.fields(ModelConfig)} - (
        PROGRAM_FIELDS - ({"outcomes"} if plain else set())
    )
    if not set(sizes) <= free:
        raise ValueError(f"sizes must be among {sorted(free)}; got {sorted(set(sizes) - free)}")

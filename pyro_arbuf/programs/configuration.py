"""From a Pyro program to the configuration of its network, and whether a program is that of a network."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from pyro_arbuf.inference.description import describe_outcome
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import Latent, rounded
from pyro_arbuf.network.outcomes import outcome_of
from pyro_arbuf.programs.notes import growing_columns
from pyro_arbuf.programs.scales import (
    NUM_FOR_SCALES,
    check_resolution,
    middle_and_scale,
    one_or_each,
    range_of_inputs,
    range_of_outcomes,
    rounded_all,
)
from pyro_arbuf.programs.simulator import Simulator
from pyro_arbuf.random_state import seeded

PROGRAM_FIELDS = {"dim_x", "dim_y", "prior", "x_range", "y_range", "num_context", "num_targets", "latents", "outcome"}
PROGRAM_FIELDS |= {
    "x_loc",
    "x_scale",
    "y_loc",
    "y_scale",
    "evidence_rmse",
    "evidence_trials",
    "outcomes",
    "observation",
    "ordered_latents",
}
PROGRAM_FIELDS |= {"user_x_loc", "user_x_scale", "user_y_loc", "user_y_scale", "user_dates", "user_durations"}
PROGRAM_FIELDS |= {"sequential", "dependent", "ordered_latents"}  # none of them is for the user to choose
KEPT_TRIALS = 8  # of a data set whose outcomes are standardised
NUM_FOR_RANGES = 256  # data sets
MOST_NUMBERS = 10**6  # in memory at a time
MOST_DIMS_OF_WAVES = 3  # of one observation: more dimensions have few directions in which a fast wave tells anything
SIZES = {"width": 64, "num_layers": 4, "num_heads": 4, "num_y_frequencies": 16, "max_frequency": 8.0}
SERIES_SIZES = {"num_frequencies": 64, "num_traces": 6}  # neighbours are told apart, in a range of hundreds of them


def check_program(simulator: Simulator, config: ModelConfig, narrower: bool = False) -> None:
    """Raises ValueError if a program's latents, inputs or outcome are not those of a network; names the difference.

    Args:
        simulator: Of the program.
        config: Of the network.
        narrower: Whether supports of latents may be parts of those of the network.
    """
    names, wanted = ([latent.name for latent in each.latents] for each in (simulator, config))
    if names != wanted:
        raise ValueError(
            f"the program must have the network's latents in its order, {wanted}; got {names}; choose them by "
            f"pyro_arbuf.Simulator(program, inputs, latents={wanted}), or rename the sites of the program"
        )
    for got, want in zip(simulator.latents, config.latents, strict=True):
        fits = got.lies_in(want) if narrower else _support(got) == _support(want)
        if got.shape != want.shape or not fits:
            raise ValueError(
                f"the program must have the network's latents: {want.name!r} must have shape {want.shape} and be "
                f"{_support(want)}; got shape {got.shape}, {_support(got)}; use the program it was trained on, or a "
                f"prior of the same support{' or a part of it' * narrower}: between bounds dist.AffineBeta is one"
            )
    if simulator.dim_x != config.dim_x:
        raise ValueError(
            f"the program must have inputs of {config.dim_x} columns, as the network; got {simulator.dim_x}; give "
            "those by pyro_arbuf.Simulator(program, inputs)"
        )
    kinds = (simulator.outcomes, () if config.all_real else config.outcomes)
    outcomes = [describe_outcome(each.dim_y, of) for each, of in zip((simulator, config), kinds, strict=True)]
    if outcomes[0] != outcomes[1]:
        raise ValueError(
            f"the program's outcome must be {outcomes[1]}, as the network's; got {outcomes[0]}; use the program that "
            "the network was trained on"
        )
    series = simulator.trials == "series"
    if series != config.sequential:
        words = [("a series" if each else "no series") for each in (config.sequential, series)]
        raise ValueError(
            f"the program's trials must be {words[0]}, as those of the network; got {words[1]}; use the program that "
            "the network was trained on"
        )


def outcome_names(config: ModelConfig) -> str | tuple[str, ...]:
    """The one site of a network's outcome, or its sites in their order, as a `Simulator` takes them."""
    return config.outcome if isinstance(config.outcome, str) else tuple(dict.fromkeys(config.outcome))


def _support(latent: Latent) -> str:
    """A support in words."""
    if latent.simplex:
        return "a probability vector"
    low, high = latent.lower, latent.upper
    if low is None and high is None:
        return "any real number"
    if low is not None and high is not None:
        return f"between {low} and {high}"
    return f"above {low}" if high is None else f"below {high}"


def program_config(simulator: Simulator, num_context: tuple[int, int], prior: str = "", **sizes: Any) -> ModelConfig:
    """The configuration of a model of a program: its latents, standardisation and ranges, from prior simulations.

    Args:
        simulator: The program.
        num_context: Trained range of the number of trials N.
        prior: Name of the program.
        **sizes: Fields of `ModelConfig`.

    Raises:
        ValueError: If `num_context` is no range from 0, or exceeds 1 for a program of one observation, or the latents
            do not fit into the buffer.
    """
    integers = isinstance(num_context, tuple) and [type(number) for number in num_context] == [int, int]
    if not integers or num_context[0] != 0 or num_context[1] < 1 or (simulator.single and num_context[1] > 1):
        rule = "(0, 1) for a program of one observation" if simulator.single else "(0, n) with n >= 1"
        raise ValueError(f"num_context must be {rule}; got {num_context}")
    if simulator.stored is not None:
        simulator.stored.check_context(num_context[1])
    ahead = sizes.get("buffer_size", 16) if simulator.trials == "series" else 0
    measured = _measure(simulator, num_context[1], ahead)
    num_latents = sum(latent.size for latent in simulator.latents)
    fields: dict[str, Any] = (
        SIZES
        | {"buffer_size": max(16, num_latents)}
        | ({"num_y_frequencies": 0} if simulator.single and (simulator.dim_y or 1) > MOST_DIMS_OF_WAVES else {})
        | _series_sizes(simulator, measured["x_scale"], num_context[1] + ahead)
    )
    fields |= sizes
    if fields["buffer_size"] < num_latents:
        raise ValueError(f"buffer_size must hold all {num_latents} latent numbers; got {fields['buffer_size']}")
    return ModelConfig(
        dim_x=simulator.dim_x,
        dim_y=simulator.dim_y,
        outcomes=simulator.outcomes,
        prior=prior,
        num_context=num_context,
        num_targets=(1, num_context[1]),
        latents=simulator.latents,
        outcome=simulator.outcome,
        sequential=simulator.trials == "series",
        dependent=simulator.trials in ("series", "exchangeable"),
        ordered_latents=True,
        **measured,
        **fields,
    )


def _series_sizes(simulator: Simulator, x_scale: Sequence[float], num_trials: int) -> dict[str, Any]:
    """Sizes for a series whose inputs tell the order: frequencies up to pi over the spacing of the scaled index.

    Attention sees the lags of the column that grows by the smallest steps. A series whose inputs tell no order has the
    sizes of all programs.
    """
    if simulator.trials != "series":
        return {}
    with seeded(0):
        x = simulator.inputs(max(num_trials, 2))
    spacing = x.diff(dim=0).median(0).values / torch.tensor(x_scale)
    growing = growing_columns(x)
    if not bool(growing.any()):
        return {}
    column = int(torch.where(growing, spacing, torch.inf).argmin())
    top = math.pi / spacing[column].item()
    return SERIES_SIZES | {"max_frequency": rounded(top, top, 6), "lag_column": column}


def _measure(simulator: Simulator, num_trials: int, ahead: int) -> dict[str, Any]:
    """Location, scale and range of inputs (moments) and outcomes (quantiles) at a number of trials.

    The range of the inputs includes some trials ahead, which forecasts are asked for.

    Those of counts are locations and scales of log(1 + y), and those of categories are 0 and 1. Outcomes are those of a
    few trials of each data set, from the first to the last. What is in memory at a time is bounded, whatever the number
    of trials.
    """
    numbers = num_trials * max(simulator.dim_x, simulator.dim_y or 1)
    mode = simulator.mode if simulator.stored is None else "datasets"
    num_datasets = min(NUM_FOR_SCALES[mode], max(MOST_NUMBERS // numbers, NUM_FOR_RANGES))
    kept = torch.linspace(0, num_trials - 1, min(num_trials, KEPT_TRIALS)).round().long()
    with seeded(0):
        sizes = [len(part) for part in torch.arange(num_datasets).split(max(1, min(128, MOST_NUMBERS // numbers)))]
        drawn = torch.cat([simulator.draw(size, num_trials).y[:, kept] for size in sizes]).double()
        x = [
            simulator.inputs(num_trials + ahead).double()
            for _ in range(max(16, min(NUM_FOR_RANGES, MOST_NUMBERS // numbers)))
        ]
    x, y = torch.cat(x), drawn.flatten(0, 1)
    x_loc, x_scale = x.mean(0), x.std(0, correction=0)
    x_scale = torch.where(x_scale > 1e-12 * x_loc.abs(), x_scale, 1.0)
    kinds = [outcome_of(kind) for kind in simulator.outcome_sites.kinds]
    y_loc, y_scale = middle_and_scale(torch.stack([k.number(y[:, d]) for d, k in enumerate(kinds)], -1))
    check_resolution("each column of the inputs", x_loc, x_scale)
    check_resolution(f"the outcome {simulator.outcome_sites}", y_loc, y_scale)
    few = drawn[:NUM_FOR_RANGES].flatten(0, 1).unbind(-1)
    return {
        "x_loc": rounded_all(x_loc, x_scale),
        "x_scale": rounded_all(x_scale),
        "y_loc": rounded_all(y_loc, y_scale),
        "y_scale": rounded_all(y_scale),
        "x_range": one_or_each([range_of_inputs(column) for column in x.unbind(-1)]),
        "y_range": one_or_each([range_of_outcomes(*pair) for pair in zip(few, kinds, strict=True)]),
    }

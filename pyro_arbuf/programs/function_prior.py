"""A prior of one's own as a plain function: told from a program, probed before training, described, reported on.

Such a function draws points of many functions at once, `draw(batch_size, num_points, generator) -> x, y`. Knows nothing
of Pyro, of folders or of training steps.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_arbuf.inference.description import describe_outcome, short_ranges
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.positions import KINDS_OF
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.programs.consistency import subset_gap
from pyro_arbuf.programs.random_order import check_random_order
from pyro_arbuf.programs.reports import (
    STILL_RISING,
    rise_at_the_end,
    to_go_on,
    training_limits,
    what_was_reached,
)
from pyro_arbuf.programs.scales import (
    check_resolution,
    middle_and_scale,
    one_or_each,
    range_of_inputs,
    range_of_outcomes,
    rounded_all,
)
from pyro_arbuf.random_state import seeded
from pyro_arbuf.training.sources import PriorSource, check_drawn

PARAMETERS = ("batch_size", "num_points", "generator")
SIZES = {"width": 64, "num_layers": 4, "num_heads": 4, "max_frequency": 32.0}
DRAWS_FOR_SCALES, FUNCTIONS, POINTS = 64, 32, 16  # a prior may share something within a draw
FUNCTIONS_FOR_RANGES, POINTS_FOR_RANGES = 256, 8  # as of programs
# Of functions whose order is looked at; points more than are observed, as training asks for them; most points.
FUNCTIONS_FOR_ORDER, MORE_POINTS, MOST_POINTS = 16, 64, 128


@dataclass(frozen=True, eq=False)
class FunctionPrior:
    """A user's function as training calls it: shapes with all dimensions, single precision.

    Attributes:
        function: Called with `batch_size`, `num_points` and `generator` by name, it returns x `(B, T)` or
            `(B, T, D_x)` and y `(B, T)` or `(B, T, D_y)`.
    """

    function: Callable[..., tuple[Tensor, Tensor]]

    def __call__(self, batch_size: int, num_points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Points x `(B, T, D_x)` and y `(B, T, D_y)`, float32."""
        drawn = self.function(batch_size=batch_size, num_points=num_points, generator=generator)
        x, y = (t.unsqueeze(-1) if t.dim() == 2 else t for t in drawn)
        return x.detach().float(), y.detach().float()


class Probed(NamedTuple):
    """What was found out about a function prior by drawing from it.

    Attributes:
        config: Of its network.
        notes: What a user should know.
    """

    config: ModelConfig
    notes: tuple[str, ...]


def is_function_prior(function: Callable[..., Any]) -> bool:
    """Whether a callable is a prior as a plain function; any other is a program.

    Raises:
        ValueError: If it has two of the three parameters, so that it is probably meant as one, and is none.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY)}
    further = [n for n, p in parameters.items() if n not in PARAMETERS and n in named and p.default is p.empty]
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_ONLY]
    present = [name for name in PARAMETERS if name in parameters]
    if len(present) == len(PARAMETERS) and not further and not positional:
        return True
    if len(present) >= 2:
        raise ValueError(
            f"a prior as a plain function must have the parameters {', '.join(PARAMETERS)}, and further ones only with "
            f"defaults; got {', '.join(parameters)}; rename or add them, as in draw({', '.join(PARAMETERS)})"
        )
    return False


def check_no_program_arguments(**given: object) -> None:
    """Raises ValueError if arguments are given that only a program has; `None` is not given."""
    foreign = [name for name, value in given.items() if value is not None]
    if foreign:
        others = (
            "give the kinds of its outcomes by outcomes=..." if "outcome" in foreign else "write it as a Pyro program"
        )
        raise ValueError(
            f"{', '.join(foreign)} must not be given for a prior as a plain function, which draws inputs and outcomes "
            f"itself and has no latents; got {', '.join(f'{name}={given[name]!r}' for name in foreign)}; leave "
            f"{'it' if len(foreign) == 1 else 'them'} out, or {others}"
        )


def name_of_prior(function: Callable[..., Any]) -> str:
    """The function's name, with its module where a shipped model has that name."""
    name = getattr(function, "__name__", type(function).__name__)
    return f"{getattr(function, '__module__', 'user')}.{name}" if name in RECIPES else name


def probe(function: Callable[..., Any], num_context: tuple[int, int], **sizes: Any) -> Probed:
    """Draws from a function prior before it is trained on, and finds the configuration of its network.

    Args:
        function: The prior.
        num_context: Trained range (0, n) of the number of observed points.
        **sizes: Fields of `ModelConfig`, `outcomes` among them: "count" or "categorical(n)" for a scalar outcome, or a
            tuple with the kind of every dimension.

    Raises:
        ValueError: If what it draws breaks a rule: shapes, dtype, finiteness, randomness from the generator alone,
            points in random order, outcomes that vary and are of their kinds; or an argument breaks its rule.
    """
    integers = isinstance(num_context, tuple) and [type(number) for number in num_context] == [int, int]
    if not integers or num_context[0] != 0 or num_context[1] < 1:
        raise ValueError(f"num_context must be (0, n) with n >= 1; got {num_context}")
    outcomes = sizes.pop("outcomes", ())
    outcomes = (outcomes,) if isinstance(outcomes, str) else tuple(outcomes) if isinstance(outcomes, list) else outcomes
    x, y = _probe_once(function, bool(outcomes))
    dim_x, dim_y = (x.shape[-1] if x.dim() == 3 else 1), (y.shape[-1] if y.dim() == 3 else None)
    plain = ModelConfig(dim_x=dim_x, dim_y=dim_y, outcomes=outcomes)  # checks the outcomes
    prior = FunctionPrior(function)
    measured, notes = _measure(prior, plain)
    if sizes.get("architecture", "buffer") in KINDS_OF:
        sizes = {"slot_positions": "none"} | sizes
    fields = measured | SIZES | sizes
    names = {"prior": name_of_prior(function), "num_context": num_context, "num_targets": (1, num_context[1])}
    config = ModelConfig(dim_x=dim_x, dim_y=dim_y, outcomes=outcomes, **names, **fields)
    _check_as_trained(prior, config)
    return Probed(config, notes)


def _check_as_trained(prior: FunctionPrior, config: ModelConfig) -> None:
    """Raises ValueError unless functions of about as many points as training asks for have them all in random order."""
    num_points = min(config.num_context[1] + MORE_POINTS, MOST_POINTS)
    drawn = [prior(FUNCTIONS_FOR_ORDER, num_points, generator) for generator in _generators()]
    for pair in drawn:
        check_drawn(pair, (FUNCTIONS_FOR_ORDER, num_points), config.dim_x, config, "dim_x and dim_y")
    check_random_order([x.double() for x, _ in drawn])


def _probe_once(function: Callable[..., Any], discrete: bool) -> tuple[Tensor, Tensor]:
    """Points of a few functions, as the function returns them; raises ValueError where they break a rule."""

    def call(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return function(batch_size=3, num_points=5, generator=generator)

    with seeded(0):  # gives the global random state back
        drawn, again, other = call(1), call(1), call(2)
    for each in (drawn, again, other):
        _check_pair(each)
    (x, y), name = drawn, name_of_prior(function)
    if not x.is_floating_point():
        raise ValueError(f"x of {name} must have a floating dtype; got {x.dtype}; return x.float()")
    if y.is_complex() or not (y.is_floating_point() or discrete):
        raise ValueError(
            f"y of {name} must have a floating dtype where outcomes are real numbers; got {y.dtype}; return y.float() "
            "if they are, or pass outcomes='count' or outcomes='categorical(n)' for counts or one of n categories"
        )
    for label, value in (("x", x), ("y", y)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{label} of {name} must be finite; got NaN or infinite values; mend the function")
    if not all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True)):
        raise ValueError(
            f"{name} must draw all that is random from its generator; two calls with generators of one seed "
            "returned other points; pass generator=generator to torch.rand and the like, and seed NumPy's by "
            "torch.randint(2**31, (), generator=generator).item()"
        )
    if all(torch.equal(a, b) for a, b in zip(drawn, other, strict=True)):
        raise ValueError(
            f"{name} must draw from its generator; two calls with generators of different seeds returned the same "
            "points; pass generator=generator to torch.rand, torch.randn and the like, and set no seed of your own"
        )
    return x, y


def _check_pair(drawn: object) -> None:
    """Raises ValueError unless 3 functions of 5 points have the right types and shapes."""
    rule = "a prior as a plain function must return two tensors, x (B, T) or (B, T, D_x) and y (B, T) or (B, T, D_y)"
    if not isinstance(drawn, tuple | list) or len(drawn) != 2:
        raise ValueError(f"{rule}; got {type(drawn).__name__}; end it with `return x, y`")
    for label, value in zip("xy", drawn, strict=True):
        if not isinstance(value, Tensor):
            got = type(value).__name__
            raise ValueError(f"{rule}; got {label} of type {got}; use torch.as_tensor({label})")
        if value.dim() not in (2, 3) or tuple(value.shape[:2]) != (3, 5) or value.numel() == 0:
            raise ValueError(
                f"{rule}; got {label} of shape {tuple(value.shape)} for batch_size = 3 and num_points = 5; put the "
                "functions in the first dimension and their points in the second"
            )


def _measure(prior: FunctionPrior, config: ModelConfig) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Locations, scales and ranges of inputs and outcomes, and notes on them, from many functions of a few points."""
    drawn = [prior(FUNCTIONS, POINTS, generator) for generator in _generators()]
    x, y = (torch.cat(parts).double() for parts in zip(*drawn, strict=True))
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"x must be finite; got {x[~torch.isfinite(x)][0].item()} among its values; mend the function")
    notes = []
    for d, kind in enumerate(config.kinds):
        column, which = y[..., d], "y" if config.dim_y is None else f"y[..., {d}]"
        wrong = column[~kind.support.check(column)]
        if len(wrong):
            raise ValueError(f"{which} must hold {kind.values}; got {wrong[:4].tolist()} among its values")
        if not bool((column != column[0, 0]).any()):
            raise ValueError(f"{which} must vary; got {column[0, 0].item():g} at all points; leave that dimension out")
        if config.outcomes == () and bool((column == column.round()).all()):
            notes.append(
                f"{which} holds integers only, and is taken as a real number; for counts pass outcomes='count'"
            )
    x_flat, y_flat = x.flatten(0, 1), y.flatten(0, 1)
    x_loc, x_scale = x_flat.mean(0), x_flat.std(0, correction=0)
    varies = x_scale > 1e-12 * x_loc.abs()
    notes += [f"x[..., {d}] is constant" for d in (~varies).nonzero().flatten().tolist()]
    x_scale = torch.where(varies, x_scale, 1.0)
    numbers = torch.stack([kind.number(y_flat[:, d]) for d, kind in enumerate(config.kinds)], -1)
    y_loc, y_scale = middle_and_scale(numbers)
    check_resolution("each column of x", x_loc, x_scale)
    check_resolution("the outcome y", y_loc, y_scale)
    few = y[:FUNCTIONS_FOR_RANGES, :POINTS_FOR_RANGES].flatten(0, 1).unbind(-1)
    fields = {
        "x_loc": rounded_all(x_loc, x_scale),
        "x_scale": rounded_all(x_scale),
        "y_loc": rounded_all(y_loc, y_scale),
        "y_scale": rounded_all(y_scale),
        "x_range": one_or_each([range_of_inputs(column) for column in x_flat.unbind(-1)]),
        "y_range": one_or_each([range_of_outcomes(*pair) for pair in zip(few, config.kinds, strict=True)]),
    }
    return fields, tuple(notes)


def _generators() -> list[torch.Generator]:
    """One for each draw, the same every time."""
    return [torch.Generator().manual_seed(seed) for seed in range(DRAWS_FOR_SCALES)]


def describe_prior(probed: Probed, minutes: float | None, steps: int | None, begins_at: str) -> str:
    """What will be trained, as a few lines of text.

    Args:
        probed: What `probe` returns.
        minutes: Limit of the training; `None` = none.
        steps: Likewise.
        begins_at: What `starting_weights` returns.
    """
    config = probed.config
    words = describe_outcome(config.dim_y, config.outcomes)
    lines = {
        "prior": f"a plain function of {', '.join(PARAMETERS)}; no latents",
        "outcome": f"y, {'one number' if words == 'a number' else words} per point",
        "inputs": f"{config.dim_x} column{'s' if config.dim_x > 1 else ''} in {short_ranges(config.x_range)}",
        "trained range": f"{config.num_context[0]} to {config.num_context[1]} observed points, outcomes in "
        f"{short_ranges(config.y_range)}",
        "training": f"{training_limits(minutes, steps)}, on new functions in every step, from {begins_at}",
    }
    notes = [f"  note: {note}" for note in probed.notes]
    return "\n".join([f"amortize {config.prior}:", *(f"  {name}: {text}" for name, text in lines.items()), *notes])


@torch.no_grad()
def prior_report(
    net: ArBufferModel,
    source: PriorSource,
    validation: float,
    steps: int,
    history: Sequence[Mapping[str, float]] = (),
    folder: str | Path | None = None,
) -> str:
    """What was learned, as a few lines of text; the last is the verdict.

    Args:
        net: The network.
        source: What it was trained on.
        validation: Its validation density, nats per target.
        steps: Of its training.
        history: What `fit` returns as history.
        folder: Where the state of the run is kept; `None` = nowhere.
    """
    rise, config = rise_at_the_end(history), net.config
    lines = [what_was_reached(config.prior, steps, validation, rise)]
    if config.num_context[1] >= 4:
        x, y = source.prior(1, config.num_context[1], torch.Generator().manual_seed(0))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*outside the trained range.*")
            gap = subset_gap(net, x[0], config.squeeze_outcome(y[0]))
        lines.append(f"subset gap: {gap.dropped:.4f} dropped, {gap.reordered:.4f} reordered, nats per target")
    verdict = "The validation density has levelled off."
    if rise is None or rise > STILL_RISING:
        verdict = "The run was too short to say whether the validation density has levelled off."
        verdict = verdict if rise is None else "The validation density was still improving."
        verdict += f" To train longer: amortize(..., {to_go_on(folder)}) with more minutes or steps."
    return "\n".join([*lines, f"verdict: {verdict}"])

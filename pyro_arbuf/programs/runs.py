"""Runs of a Pyro program: single ones, or many data sets at once in an outer plate; failed ones are drawn anew.

Knows nothing of models.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_arbuf.network.latents import Latent, unconstrained
from pyro_arbuf.programs.inputs import Inputs
from pyro_arbuf.programs.outcome import ProgramOutcome
from pyro_arbuf.programs.same_law import Simulations, joined
from pyro_arbuf.progress import progress_bar
from pyro_arbuf.workflow.trace_sites import nodes

Program = Callable[[Tensor], Any]
Mode = Literal["inputs", "datasets", "loop"]
FAILURES = (ValueError, RuntimeError, ArithmeticError)  # torch's LinAlgError is the second, numpy's the first
PLATE = "_datasets"
MOST_FAILED, LEAST_SIMULATED = 0.01, 10_000  # a larger share stops; as many failures as of the second are always free
MOST_TRIES = 10  # for one data set
SEVERAL_TRIALS = 8  # of a run that says whether a program fails for one trial alone


class _AllDrawn(BaseException):
    """The sites that are wanted have been drawn."""


class _UntilDrawn(Messenger):
    """Ends a run where the last one of some sites has been drawn."""

    def __init__(self, names: Collection[str]):
        super().__init__()
        self._left = set(names)

    def _pyro_post_sample(self, msg: Any) -> None:
        self._left.discard(msg["name"])
        if not self._left:
            raise _AllDrawn


def trace_until(program: Program, names: Collection[str], x: Tensor) -> poutine.Trace:
    """A trace of a run that ends where the last of some sites is drawn: what a simulator does then may take long."""

    def begun(x: Tensor) -> None:
        with _UntilDrawn(names):
            program(x)

    handler = poutine.trace(begun)
    with contextlib.suppress(_AllDrawn):
        handler(x)
    return handler.trace


def continued(x: Tensor, num_trials: int) -> Tensor:
    """So many rows of inputs `(n, D_x)`, those after the last one by the last step: a program may need them to grow."""
    step = x[-1] - x[-2] if len(x) > 1 else torch.ones_like(x[-1])
    after = torch.arange(1, max(0, num_trials - len(x)) + 1, dtype=x.dtype, device=x.device)
    return torch.cat([x[:num_trials], x[-1] + after[:, None] * step])


def run_program(
    program: Program,
    x: Tensor,
    plate: tuple[int, int] | None = None,
    given: Mapping[str, Tensor] | None = None,
    until: Collection[str] | None = None,
) -> poutine.Trace:
    """A trace of a program, nothing of it visible to an enclosing program.

    Args:
        program: The program.
        x: Inputs, as the program gets them.
        plate: Size and dimension of an outer plate of data sets; `None` = one data set without a plate.
        given: Values of sites, in the shapes they have in this run.
        until: Sites after which the run may end; `None` = it runs to its end.
    """
    with poutine.block(), _quietly(), contextlib.ExitStack() as stack:
        if plate is not None:
            stack.enter_context(pyro.plate(PLATE, plate[0], dim=plate[1]))
        conditioned = poutine.condition(program, dict(given or {}))
        return poutine.trace(conditioned).get_trace(x) if until is None else trace_until(conditioned, until, x)


def probe(program: Program, inputs: Inputs, num_trials: int) -> poutine.Trace:
    """A trace of one run at inputs of its own; one that fails is tried again, its last error is the program's."""
    try:
        for _ in range(2):
            with contextlib.suppress(*FAILURES):
                return run_program(program, inputs(num_trials))
        return run_program(program, inputs(num_trials))
    except (AttributeError, TypeError) as error:
        if "numpy" not in str(error):
            raise
        raise ValueError(
            "the program must give pyro.sample and pyro.deterministic tensors; got a NumPy array "
            f"({type(error).__name__}: {first_line(error)}); use torch.as_tensor(values, dtype=torch.float32)"
        ) from error


@dataclasses.dataclass(eq=False)
class ProgramRuns:
    """A program, what is known of its sites, and the count of its failures, which alone changes.

    A data set fails where the program raises one of `FAILURES` or gives a number that is not finite, such as a latent
    that rounds to the bound of its support. It is drawn anew, with new inputs.

    Attributes:
        program: The program.
        inputs: Draws inputs `(n, D_x)` of n trials.
        outcome: Its outcome.
        latents: In order.
        nesting: Number of the program's own batch dimensions, at least 1.
        simulated: Data sets simulated so far, failed ones included.
        failed: Data sets that failed; an error of many data sets at once counts as one.
    """

    program: Program
    inputs: Inputs
    outcome: ProgramOutcome
    latents: tuple[Latent, ...]
    nesting: int
    simulated: int = 0
    failed: int = 0

    def run(
        self,
        x: Tensor,
        plate: int | None = None,
        given: Mapping[str, Tensor] | None = None,
        until: Collection[str] | None = None,
    ) -> poutine.Trace:
        """A trace of one run, as `run_program`; `plate` is the number of data sets in an outer plate."""
        return run_program(self.program, x, None if plate is None else (plate, -1 - self.nesting), given, until)

    def in_plate(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of latents, `(S, *shape)` each, in the shapes they have in a run in the outer plate."""
        ones = (1,) * self.nesting
        return {name: value.reshape(len(value), *ones, *value.shape[1:]) for name, value in values.items()}

    def draw_inputs(self, num_datasets: int, num_trials: int, mode: Mode) -> Tensor:
        """Inputs `(B, n, D_x)`, of each data set or the same for all."""
        one = mode == "datasets" or num_datasets == 1
        x = torch.stack([self.inputs(num_trials) for _ in range(1 if one else num_datasets)])
        return x.expand(num_datasets, -1, -1)

    def traces(self, values: Mapping[str, Tensor], x: Tensor, mode: Mode) -> list[poutine.Trace]:
        """Runs at given latents: one of all data sets, or one of each.

        Args:
            values: All latents, `(S, *shape)` each.
            x: `(S, n, D_x)` inputs, the same for all in mode "datasets".
            mode: How to run the program.
        """
        if mode == "loop":
            rows = [{name: value[i] for name, value in values.items()} for i in range(len(x))]
            pairs = progress_bar(
                list(zip(x, rows, strict=True)), desc="simulations", delay=5, leave=False, disable=None
            )
            return [self.run(each, given=row) for each, row in pairs]
        return [self.run(x[0] if mode == "datasets" else x, len(x), self.in_plate(values))]

    def outcomes(self, values: Mapping[str, Tensor], x: Tensor, mode: Mode) -> Tensor:
        """Outcomes `(S, n, D_y)` at given latents; arguments as for `traces`."""
        return self._outcome(self.traces(values, x, mode), x.shape[1])

    def tried(self, values: Mapping[str, Tensor], x: Tensor, mode: Mode) -> Tensor:
        """The same, NaN of data sets for which the program raised."""
        size = len(x) // 2
        try:
            if mode == "loop" and size:
                size = 1  # each by itself in any case
            else:
                return self.outcomes(values, x, mode).float()
        except FAILURES:
            if not size:
                return x.new_full((1, x.shape[1], self.outcome.dim_y or 1), torch.nan).float()
        starts = range(0, len(x), size)
        parts = ({name: value[i : i + size] for name, value in values.items()} for i in starts)
        return torch.cat([self.tried(part, x[i : i + size], mode) for i, part in zip(starts, parts, strict=True)])

    def redraw_failed(self, y: Tensor, again: Callable[[Tensor], Tensor]) -> None:
        """Draws data sets among outcomes `(S, n, D_y)` anew, in place, as long as they fail.

        Args:
            y: NaN or infinite where a data set failed.
            again: Draws those outcomes again that a mask `(S,)` says.

        Raises:
            ValueError: If too many fail.
        """
        bad = self._count_failed(y, MOST_TRIES)
        for tries in reversed(range(MOST_TRIES)):
            if not bool(bad.any()):
                return
            found = again(bad)
            y[bad] = found
            bad[bad.clone()] = self._count_failed(found, tries)

    def _count_failed(self, y: Tensor, tries: int) -> Tensor:
        """Which data sets `(S,)` of outcomes failed; `tries` is how often they may still be drawn anew."""
        self.simulated += len(y)
        bad = ~y.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            what = f"got NaN or infinite ones, or an error, in {int(bad.sum())} of {len(y)} data sets"
            self._count(int(bad.sum()), f"simulate finite numbers at the given latents; {what}", tries, None)
        return bad

    def simulate(self, x: Tensor, mode: Mode) -> Simulations:
        """Data sets with inputs `(B, n, D_x)`, which must be the same for all in mode "datasets".

        Raises:
            ValueError: If too many fail, or data sets of one trial all do.
        """
        try:
            if mode == "loop":
                rows = progress_bar(x, desc="simulations", delay=5, leave=False, disable=None)
                return joined([self._simulate(each[None], mode, MOST_TRIES) for each in rows])
            return self._simulate(x, mode, MOST_TRIES)
        except Exception:
            error = self._error_of_one_trial() if x.shape[1] == 1 and not self.outcome.single else None
            if error is None:
                raise
            raise ValueError(
                "the program must run for one row of x, as data sets of one trial are simulated; it raised "
                f"{type(error).__name__}: {first_line(error)}; make it draw the outcome of a single trial too"
            ) from error

    def _error_of_one_trial(self) -> Exception | None:
        """What single runs of one trial raise, where they all do and a run of several does not; `None` = nothing."""
        found = None
        for num_trials in (SEVERAL_TRIALS, *(1,) * MOST_TRIES):
            try:
                self.run(self.inputs(num_trials))
                failed = None
            except Exception as error:  # whatever a program raises where it lacks trials, such as an AssertionError
                failed = error
            if (failed is None) == (num_trials == 1):
                return None
            found = failed
        return found

    def _simulate(self, x: Tensor, mode: Mode, tries: int) -> Simulations:
        """Data sets of one run; where that raises, of one run for each half of them."""
        self.simulated += len(x)
        try:
            trace = self.run(x[0]) if mode == "loop" else self.run(x[0] if mode == "datasets" else x, len(x))
            drawn = self._read([trace], x)
        except FAILURES as error:
            rule = f"run for the latents of its prior; it raised {type(error).__name__}: {first_line(error)}"
            self._count(1, rule, tries, error)
            if len(x) > 1:
                halves = x.split(len(x) - len(x) // 2)
                return joined([self._simulate(half, mode, tries) for half in halves])
            return self._simulate(self.draw_inputs(1, x.shape[1], mode), mode, tries - 1)
        bad = {name: ~torch.isfinite(part).flatten(1).all(1) for name, part in drawn._asdict().items()}
        rows = torch.stack(list(bad.values())).any(0)
        count = int(rows.sum())
        if count:
            got = ", ".join(f"{name} of {int(part.sum())}" for name, part in bad.items() if bool(part.any()))
            rule = f"simulate finite numbers; got NaN or infinite ones in {got} of {len(x)} data sets"
            self._count(count, rule, tries, None)
            again = self._simulate(self.draw_inputs(count, x.shape[1], mode), mode, tries - 1)
            drawn = Simulations(*(part.index_put((rows,), new) for part, new in zip(drawn, again, strict=True)))
        return drawn

    def _read(self, traces: Sequence[poutine.Trace], x: Tensor) -> Simulations:
        values = {
            s.name: torch.cat([nodes(t)[s.name]["value"].reshape(-1, *s.shape) for t in traces]) for s in self.latents
        }
        numbers = unconstrained(self.latents, values).float() if values else x.new_zeros(len(x), 0)
        return Simulations(numbers, x.float(), self._outcome(traces, x.shape[1]).float())

    def _outcome(self, traces: Sequence[poutine.Trace], num_trials: int) -> Tensor:
        return torch.cat([self.outcome.numbers(trace, num_trials) for trace in traces])

    def _count(self, count: int, rule: str, tries: int, error: Exception | None) -> None:
        """Counts failures, and raises ValueError where they are too many."""
        self.failed += count
        if tries == 0 or self.failed > MOST_FAILED * max(self.simulated, LEAST_SIMULATED):
            raise ValueError(
                f"the program must {rule}; bound the prior, or clamp what the program returns ({self.failed} of "
                f"{self.simulated} data sets failed so far, and {MOST_FAILED:.0%} may)"
            ) from error


def first_line(error: Exception) -> str:
    """What an error says, without the shapes of all sites that Pyro appends."""
    return str(error).partition("\n")[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without Pyro's validation, and its warnings about plates."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

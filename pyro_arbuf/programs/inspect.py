"""What a Pyro program is, found out by running it: its sites, how it may be run, what its user should know.

Knows nothing of models.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.poutine import Trace

from pyro_arbuf.network.latents import Latent
from pyro_arbuf.programs.computed_outcome import ProgramWithComputedOutcome
from pyro_arbuf.programs.inputs import Inputs, read_inputs, trial_index, unfit_signature
from pyro_arbuf.programs.law_notes import law_notes, priors_of_inputs
from pyro_arbuf.programs.notes import Dependence, find_dependence, outside_trials, program_notes
from pyro_arbuf.programs.outcome import ProgramOutcome, Trials, read_outcome
from pyro_arbuf.programs.runs import Mode, Program, ProgramRuns, probe
from pyro_arbuf.programs.scales import NUM_FOR_SCALES, standardised
from pyro_arbuf.programs.sites import (
    batch_dimensions,
    check_observed,
    drawn_in_a_loop,
    may_be_latent,
    other_sites,
    read_latents,
    varies_in_shape,
)
from pyro_arbuf.programs.stored_simulations import StoredSimulations, read_simulations, stored_inputs
from pyro_arbuf.programs.value_notes import value_notes
from pyro_arbuf.programs.vectorization import choose_mode
from pyro_arbuf.random_state import seeded

PROBES = (3, 4, 5, 3, 4, 5, 3, 4)  # numbers of trials of the runs that tell what a program does
KEPT_TRIALS = 8  # of the data sets whose latents are standardised
GIVEN = "Data sets are those that were given; the program is not run for more."


@dataclasses.dataclass(frozen=True)
class ProgramInspection:
    """What was found out about a program.

    Attributes:
        program: The program, its outcome a sample site also where it is computed.
        latents: In order, standardised by prior draws.
        integrated_out: Names of the other sites but the outcome.
        outcome_sites: What the outcome's sites are, and how its trials depend on each other.
        inputs: Draws the inputs: as given, or those of a program without any.
        dim_x: D_x, columns of the inputs.
        dim_y: D_y; `None` for a scalar outcome.
        nesting: Number of the program's own batch dimensions, at least 1.
        mode: Data sets run at once, each with its own inputs ("inputs") or all with the same ("datasets"), or one by
            one ("loop").
        mode_reason: Why this mode, as a sentence.
        notes: What the program's user should know, each a whole sentence with a remedy.
        stored: Simulations that its user gave; `None` = none.
        priors_of_inputs: Names of latents whose prior depends on the inputs.
    """

    program: Program
    latents: tuple[Latent, ...]
    integrated_out: tuple[str, ...]
    outcome_sites: ProgramOutcome
    inputs: Inputs
    dim_x: int
    dim_y: int | None
    nesting: int
    mode: Mode
    mode_reason: str
    notes: tuple[str, ...]
    stored: StoredSimulations | None = None
    priors_of_inputs: tuple[str, ...] = ()

    @property
    def trials(self) -> Trials:
        """How the trials of a data set depend on each other given the latents, see `ProgramOutcome`."""
        return self.outcome_sites.trials

    @property
    def single(self) -> bool:
        """Whether a data set is one observation."""
        return self.outcome_sites.single


@torch.no_grad()
def inspect_program(
    program: Program,
    inputs: Any = None,
    latents: Sequence[str] | None = None,
    outcome: str | Sequence[str] = "y",
    vectorized: bool | None = None,
    simulations: Mapping[str, object] | None = None,
) -> ProgramInspection:
    """Finds out what a program is, from its runs alone.

    The result is a function of the arguments: runs draw from a seed of their own, random states are given back, and
    nothing is stored anywhere.

    Args:
        program: The program.
        inputs: As for `Simulator`, as are the next three.
        latents: Sites whose posterior is wanted; `None` = all continuous sites outside plates.
        outcome: The site of the outcome, or several.
        vectorized: Whether many data sets are run at once; `None` = where that gives what single runs give.
        simulations: As for `Simulator`; with them the program is run a few times, for its sites alone.

    Raises:
        ValueError: If there is no such outcome or latent, or the latent is discrete, in a plate, or varies in shape or
            support; if a site is observed, a latent constant, too many data sets fail, or the program does not run for
            many data sets at once although `vectorized` says so.
    """
    if vectorized is not None and not isinstance(vectorized, bool):
        raise ValueError(f"vectorized must be True, False or None (found out); got {vectorized!r}")
    _check_parameters(program)
    program = ProgramWithComputedOutcome(program, (outcome,) if isinstance(outcome, str) else tuple(outcome))
    if simulations is not None:
        inputs = stored_inputs(simulations) or inputs
        vectorized = bool(vectorized)
    with seeded(0):
        inputs, dim_x, traces, sites = _read_outcome(program, inputs, outcome)
        nesting, names = batch_dimensions(traces), sites.site_names(max(PROBES))
        found = read_latents(latents, names, traces)
        runs = ProgramRuns(program, inputs, sites, found, nesting)
        mode, mode_reason = choose_mode(runs, vectorized)
        stored = None if simulations is None else read_simulations(simulations, found, sites, inputs)
        if stored is None:
            x = runs.draw_inputs(NUM_FOR_SCALES[mode], 1 if sites.single else KEPT_TRIALS, mode)
            drawn = runs.simulate(x, mode) if found else None
            dependence = find_dependence(runs, traces, PROBES, mode)
        else:
            drawn, mode_reason = stored.draw(NUM_FOR_SCALES["inputs"], stored.num_trials), GIVEN
            inputs = stored.inputs
            together = () if sites.trials in ("series", "vector") else outside_trials(runs, traces, PROBES)
            dependence = Dependence(shared=tuple(together))
        found = standardised(found, drawn.latents) if found and drawn is not None else ()
        notes = program_notes(runs, traces, PROBES, dependence, latents is None)
        of_inputs = priors_of_inputs(runs)
        notes = (*notes, *law_notes(runs, traces, of_inputs))
        notes = notes if drawn is None else (*notes, *value_notes(sites, drawn.y))
    rest = other_sites([*(latent.name for latent in found), *names], traces)
    if dependence.found:
        sites = sites._replace(trials="exchangeable")
    sizes = (inputs, dim_x, sites.dim_y, nesting)
    return ProgramInspection(program, found, rest, sites, *sizes, mode, mode_reason, notes, stored, of_inputs)


def to_have_a_density(runs: ProgramRuns, integrated_out: Sequence[str]) -> str:
    """What to do where the density of all sites is needed: not all of them can be latents."""
    with seeded(0):
        traces = [probe(runs.program, runs.inputs, n) for n in ((1, 1) if runs.outcome.single else (3, 4))]
    loops = drawn_in_a_loop(traces)
    possible = [name for name in integrated_out if name not in loops and may_be_latent(name, traces)]
    possible = [name for name in possible if not varies_in_shape(name, traces)]
    if not possible:
        return "write the program without them"
    if len(possible) == len(integrated_out):
        return "name them among latents=[...], or write the program without them"
    return f"name {possible} among latents=[...], and write the program without the others"


def _read_outcome(
    program: Program, inputs: object, outcome: str | Sequence[str]
) -> tuple[Inputs, int, list[Trace], ProgramOutcome]:
    """The inputs, with their number of columns, runs of several numbers of trials, and the outcome they show."""
    given, dim_x = read_inputs(inputs)
    traces = [probe(program, given, num_trials) for num_trials in PROBES]
    check_observed(traces)
    sites = read_outcome(outcome, traces, PROBES)
    if sites.trials == "series" and inputs is not None and not callable(inputs):
        raise ValueError(
            "inputs of a series must be a function of the number of trials, as rows of a design are drawn in random "
            f"order; got {type(inputs).__name__}; use inputs=lambda n: x[:n] for those of one series"
        )
    if inputs is None and sites.trials == "series":
        given = trial_index
        traces = [probe(program, given, num_trials) for num_trials in PROBES]
    return given, dim_x, traces, sites


def _check_parameters(program: Program) -> None:
    """Raises ValueError unless a program can be called with its inputs alone, as far as its signature says."""
    unfit = unfit_signature(program)
    if unfit is not None:
        got = ", ".join(unfit.parameters) or "none"
        raise ValueError(
            f"a program must take its inputs x alone, as in program(x); got the parameters {got}, and others need "
            "defaults; a prior as a plain function has the parameters batch_size, num_points, generator"
        )

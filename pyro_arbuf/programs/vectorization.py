"""Whether a program gives the same data sets many at once as one by one, and what differs where it does not.

Three kinds of checks: densities of all sites of a run of many, put into single runs; where those say nothing, what
changes when one input or latent does, under the same seed; moments of the simulations. Where an outcome is discrete,
its log probabilities change although its values seldom do. Knows nothing of models.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import torch
from pyro.poutine import Trace
from torch import Size, Tensor

from pyro_arbuf.network.outcomes import outcome_of
from pyro_arbuf.programs.kinds import REAL
from pyro_arbuf.programs.outcome import OutcomeSite, loop_sites
from pyro_arbuf.programs.runs import Mode, ProgramRuns, first_line, probe
from pyro_arbuf.programs.same_law import independent, same_law
from pyro_arbuf.programs.sites import program_sites
from pyro_arbuf.random_state import NoiseByLine, seeded
from pyro_arbuf.workflow.at_once import NOT_AT_ONCE, explained
from pyro_arbuf.workflow.trace_sites import nodes

NUM_COMPARED, RUN_SIZE = 256, 16
NUM_AT_ONCE = 11  # data sets of the runs whose shapes and densities are compared
NUM_TRIALS = 7
SEEDS_OF_VALUES, FEW_SEEDS = 16, 2  # where values seldom show an influence, and elsewhere
LEAST = {"siblings": 8, "itself": 8, "latents": 5}  # changes that show it then: by chance in less than 2 of 100 cases
MOST_NATS, MOST_RELATIVE = 3e-3, 1e-4  # per trial, between densities; rounding is far below, a wrong input far above
TRIED = (*NOT_AT_ONCE, ArithmeticError)  # what a try may raise: the last says that a data set failed, as some may
OR_DRAWS = "or changed how many random numbers are drawn"
UNSEEDED = (
    "it gave other outcomes under the same seed, so that nothing can be compared (draw them by torch's or numpy's "
    "global generator)"
)
ONE_BY_ONE = (
    "This was raised while data sets were tried at once or compared with single runs; vectorized=False runs the "
    "program one by one."
)
LABELS: dict[Mode, str] = {"inputs": "with inputs of their own", "datasets": "with the same inputs for all of them"}


def choose_mode(runs: ProgramRuns, vectorized: bool | None) -> tuple[Mode, str]:
    """How many data sets are run at once, each with its inputs, all with the same, or one by one; and why.

    Args:
        runs: The program.
        vectorized: What the user says: `True` = many, each with its inputs; `False` = one by one; `None` = found out.

    Returns:
        The mode, and its reason as a sentence.

    Raises:
        ValueError: If the program is said to run for many data sets at once, and does not.
    """
    if vectorized is None:
        with explained(ONE_BY_ONE):
            return find_mode(runs)
    if not vectorized:
        return "loop", "Data sets are simulated one by one, as vectorized=False says."
    with seeded(0), explained(ONE_BY_ONE):
        fault = _fault_of_shapes(runs)
    if fault is not None:
        ones = ", ".join("S" if i == 0 else "1" for i in range(1 + runs.nesting))
        raise ValueError(
            "vectorized=True needs a program that runs for S data sets at once, with x (S, n, D_x) and latents "
            f"({ones}, *shape); of {NUM_AT_ONCE} data sets {fault}; read x[..., 0] for x[:, 0] and x.shape[-2] for "
            "len(x), or leave vectorized=None, which tries other ways too"
        )
    return "inputs", "Many data sets are simulated at once, each with inputs of its own, as vectorized=True says."


def find_mode(runs: ProgramRuns) -> tuple[Mode, str]:
    """The fastest mode that gives what single runs give, and its reason as a sentence."""
    num_trials = 1 if runs.outcome.single else NUM_TRIALS
    faults = []
    for mode, label in LABELS.items():
        fault = _fault(runs, mode, num_trials)
        if fault is None and not faults:
            return mode, "Many data sets are simulated at once, each with inputs of its own, as single runs agreed."
        if fault is None:
            return mode, f"Many data sets are simulated at once, all with the same inputs, because {faults[0]}."
        faults.append(f"{label} {fault}")
    return "loop", f"Data sets are simulated one by one, which is slow, because {'; '.join(faults)}."


def _fault_of_shapes(runs: ProgramRuns) -> str | None:
    """What is wrong with the shapes of runs of many data sets, each with its inputs; `None` = nothing."""
    if not runs.outcome.single:
        trace, fault = _run_many(runs, runs.draw_inputs(NUM_AT_ONCE, NUM_TRIALS, "inputs"), "inputs")
        fault = fault if trace is None else _shape_fault(runs, trace, NUM_TRIALS)
        if fault is not None or _needs_several_trials(runs):
            return fault
    trace, fault = _run_many(runs, runs.draw_inputs(NUM_AT_ONCE, 1, "inputs"), "inputs")
    return fault if trace is None else _shape_fault(runs, trace, 1)


def _fault(runs: ProgramRuns, mode: Mode, num_trials: int) -> str | None:
    """What is wrong with a way to run many data sets; `None` = nothing."""
    x = runs.draw_inputs(NUM_AT_ONCE, num_trials, "inputs")
    x = x if mode == "inputs" else x[:1].expand_as(x)
    trace, fault = _run_many(runs, x, mode)
    if trace is None:
        return fault
    with seeded(0):
        fault = _shape_fault(runs, trace, num_trials) or _density_fault(runs, trace, x, mode)
        if fault is None and num_trials > 1:
            fault = _fault_of_one_trial(runs, mode)
    if fault is not None:
        return fault
    x = runs.draw_inputs(NUM_COMPARED, num_trials, mode)
    alone = runs.simulate(x, "loop")
    if mode == "inputs":
        x = runs.draw_inputs(NUM_COMPARED, num_trials, mode)
    tried = dataclasses.replace(runs)  # failures of this way of running are not the program's
    try:
        together = tried.simulate(x, mode)
        with seeded(0):
            several = [tried.simulate(part, mode) for part in x.split(RUN_SIZE)]
    except NOT_AT_ONCE as error:
        return f"it failed ({first_line(error)})"
    if not same_law(alone, together):
        return "the moments of data sets differed from those of single runs"
    return None if independent(several, alone) else "data sets of one run were correlated"


def _run_many(runs: ProgramRuns, x: Tensor, mode: Mode) -> tuple[Trace | None, str]:
    """A run of many, and why there is none: rare failures of single data sets get three tries."""
    trace, fault = None, ""
    for _ in range(3):
        try:
            trace = runs.run(x if mode == "inputs" else x[0], len(x))
            sites = [nodes(trace).get(name) for name in runs.outcome.site_names(x.shape[1])]
            if all(site and bool(torch.isfinite(site["value"]).all()) for site in sites):
                break
        except TRIED as error:  # it runs alone, so it cannot run this way
            fault = f"it raised {type(error).__name__} ({first_line(error)})"
    return trace, fault


def _shape_fault(runs: ProgramRuns, trace: Trace, num_trials: int) -> str | None:
    lead = (NUM_AT_ONCE, *(1,) * runs.nesting)
    expected: dict[str, tuple[int, ...]] = {latent.name: (*lead, *latent.shape) for latent in runs.latents}
    for site in runs.outcome.sites:
        shape = runs.outcome.shape(site, num_trials)
        # In a plate the last batch dimension is that of the trials; those of series and single vectors are events.
        in_plate = not runs.outcome.single and runs.outcome.trials != "series"
        expected |= dict.fromkeys(site.names(num_trials), (*(lead[:-1] if in_plate else lead), *shape))
        count = len(loop_sites(site.name, trace)) if site.loop else num_trials
        if count != num_trials:  # a single run may draw its first sites however few trials there are
            alone = len(loop_sites(site.name, probe(runs.program, runs.inputs, num_trials)))
            if count != alone:
                return f"it drew {count} sites {site.name}_0, ... in place of {alone}"
    for name, shape in expected.items():
        got = tuple(nodes(trace)[name]["value"].shape) if name in nodes(trace) else "no such site"
        if got != shape:
            return f"site {name!r} had shape {got} in place of {shape}"
    return None


def _fault_of_one_trial(runs: ProgramRuns, mode: Mode) -> str | None:
    """The same checks for data sets of one trial, whose dimension a program may lose; not where it needs several."""
    if _needs_several_trials(runs):
        return None
    x = runs.draw_inputs(NUM_AT_ONCE, 1, mode)
    trace, fault = _run_many(runs, x, mode)
    if trace is not None:
        fault = _shape_fault(runs, trace, 1) or _density_fault(runs, trace, x, mode)
    return f"for one trial {fault}" if fault else None


def _needs_several_trials(runs: ProgramRuns) -> bool:
    """Whether a single run of one trial fails."""
    try:
        runs.run(runs.inputs(1))
    except Exception:  # whatever a program raises where it lacks trials, such as an AssertionError
        return True
    return False


def _density_fault(runs: ProgramRuns, trace: Trace, x: Tensor, mode: Mode) -> str | None:
    """Compares the densities of the sites of a run of many with those of single runs at the same values.

    Where the outcome has no density, or one that depends on more than latents, inputs and other sites, inputs and
    latents are changed instead.
    """
    sites, shapes = program_sites(trace), _shapes(probe(runs.program, runs.inputs, x.shape[1]))
    names = [name for name in shapes if name in sites]
    for name in names:
        got, want = tuple(sites[name]["value"].shape), shapes[name]
        if sites[name]["value"].numel() != len(x) * want.numel():
            return f"site {name!r} had shape {got} for {len(x)} data sets where one has {tuple(want)}"
    rows = [{name: sites[name]["value"][i].reshape(shapes[name]) for name in names} for i in range(len(x))]
    try:
        alone = [log_densities(program_sites(runs.run(*pair))) for pair in zip(x, [None] * len(x), rows, strict=True)]
        again = [log_densities(program_sites(runs.run(x[i], None, rows[i]))) for i in range(2)]
    except TRIED as error:
        return f"its values raised {type(error).__name__} in a single run ({first_line(error)})"
    many = log_densities(sites)
    if not all(
        _usable(runs.outcome.site_names(x.shape[1]), *pair) for pair in zip(alone, again + alone[2:], strict=True)
    ):
        values = {latent.name: sites[latent.name]["value"].reshape(len(x), *latent.shape) for latent in runs.latents}
        return _influence_fault(runs, values, x, mode, _shows_all(runs, trace, x.shape[1]))
    for name in names:
        if name not in many or any(name not in one for one in alone):
            continue
        single = torch.stack([one[name].flatten() for one in alone])
        if many[name].numel() != single.numel():
            return f"the density of site {name!r} had {many[name].numel()} numbers in place of {single.numel()}"
        part = many[name].reshape(single.shape)
        if not torch.allclose(part, single, MOST_RELATIVE, MOST_NATS, equal_nan=True):
            gap = (part - single).abs().nan_to_num(torch.inf).max().item()
            return f"the density of site {name!r} differed from that of single runs by up to {gap:.2g} nats"
    return None


def _usable(outcome: Sequence[str], one: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> bool:
    """Whether the outcome's sites have a density, and all densities are functions of the values of sites."""
    finite = all(name in one and bool(torch.isfinite(one[name]).all()) for name in outcome)
    return finite and one.keys() == again.keys() and all(torch.equal(one[name], again[name]) for name in one)


def _shapes(trace: Trace) -> dict[str, Size]:
    return {name: site["value"].shape for name, site in program_sites(trace).items()}


def log_densities(sites: Mapping[str, dict]) -> dict[str, Tensor]:
    """Log densities of the values of those sites that have one."""
    found = {}
    for name, site in sites.items():
        with contextlib.suppress(NotImplementedError):
            found[name] = site["fn"].log_prob(site["value"]).double()
    return found


def _influence_fault(
    runs: ProgramRuns, values: Mapping[str, Tensor], x: Tensor, mode: Mode, shows_all: bool
) -> str | None:
    """Compares what changes, under the same seed, with one trial's inputs or one data set's latents.

    Over some trials, data sets and seeds, as a single outcome need not show a change. Two seeds are enough, unless
    discrete values alone can show a change, one way of running never showed what the other showed now and then, or
    latents reached nothing: then sixteen, and a fault needs several changes. A loop over torch's random calls may end
    earlier for other inputs. A program whose numbers the seed does not fix cannot be compared, and is found at fault;
    so is one that draws more or fewer of them by other means.
    """

    def shown(seed: int, given: Mapping[str, Tensor], x: Tensor, way: Mode) -> Tensor:
        with seeded(seed), NoiseByLine():
            return torch.cat([_shown(runs, trace, x.shape[1]) for trace in runs.traces(given, x, way)])

    found = {name: ([], []) for name in ("itself", "siblings", "latents")}  # whether it changed: alone, many
    num_trials = x.shape[1]
    least, trials = LEAST, {0, num_trials // 2, num_trials - 1}
    for seed, b, trial in itertools.product(range(SEEDS_OF_VALUES), (1, len(x) - 2), trials):
        shown_at_all = not values or any(map(any, found["latents"]))
        if shows_all and seed >= FEW_SEEDS and shown_at_all and not any(_seldom(*pair) for pair in found.values()):
            least = dict.fromkeys(LEAST, 1)
            break
        moved = _with_other_inputs(x, b, trial, mode)
        swapped = {name: value.index_copy(0, torch.tensor([b]), value[b - 1 : b]) for name, value in values.items()}
        for k, rows in enumerate((slice(b, b + 1), slice(None))):
            way, one = ("loop", 0) if k == 0 else (mode, b)
            given, other = ({name: value[rows] for name, value in each.items()} for each in (values, swapped))
            try:
                y = shown(seed, given, x[rows], way)
                if seed == trial == 0 and bool(_changed(y, shown(seed, given, x[rows], way)).any()):
                    return UNSEEDED
                of_inputs = _changed(y, shown(seed, given, moved[rows], way))
                of_latents = _changed(y, shown(seed, other, x[rows], way) if trial == 0 else y)
            except TRIED as error:
                return f"it raised {type(error).__name__} for other inputs or latents ({first_line(error)})"
            found["itself"][k].append(bool(of_inputs[one, trial]))
            found["latents"][k].extend([bool(of_latents[one].any())] if trial == 0 else [])
            of_inputs[:, trial] &= mode == "inputs"  # of all data sets where they share them
            of_inputs[one, trial] = False
            found["siblings"][k].append(bool(of_inputs.any()))
            of_latents[one] = False
            if of_latents.any():
                return f"the latents of one data set reached others, {OR_DRAWS}"
    reasons = {"siblings": f"the inputs of one trial reached others, {OR_DRAWS}"}
    reasons |= {"itself": "the inputs of a trial did not reach it"}
    reasons |= {"latents": "the latents of a data set did not reach it"}
    times = {name: [sum(each) for each in found[name]] for name in reasons}
    return next(
        (text for name, text in reasons.items() if min(times[name]) == 0 and max(times[name]) >= least[name]), None
    )


def _seldom(alone: Sequence[bool], many: Sequence[bool]) -> bool:
    """Whether one way of running never showed an influence that the other showed in some comparisons."""
    fewer, more = sorted((alone, many), key=sum)
    return any(more) and not any(fewer) and not all(more)


def _shown(runs: ProgramRuns, trace: Trace, num_trials: int) -> Tensor:
    """What of a run's outcomes shows an influence, `(S, n, .)`: log probabilities of discrete ones, or their values."""
    parts = [runs.outcome.numbers(trace, num_trials).double()]
    sizes = [site.size or 1 for site in runs.outcome.sites]
    columns = dict(zip(runs.outcome.names, parts[0].split(sizes, -1), strict=True))
    found = [_log_masses(runs, trace, site, num_trials) for site in runs.outcome.sites]
    shown = [columns[s.name] if part is None else part for s, part in zip(runs.outcome.sites, found, strict=True)]
    return torch.cat(shown, -1)


def _shows_all(runs: ProgramRuns, trace: Trace, num_trials: int) -> bool:
    """Whether every discrete site of the outcome has log probabilities, which show any influence."""
    sites = (site for site in runs.outcome.sites if site.kind != REAL)
    return all(_log_masses(runs, trace, site, num_trials) is not None for site in sites)


def _log_masses(runs: ProgramRuns, trace: Trace, outcome: OutcomeSite, num_trials: int) -> Tensor | None:
    """Log probabilities `(S, n, .)` of some values of a discrete site; `None` = it is none, or they are not finite.

    A series has no probability of each trial by itself.
    """
    if outcome.kind == REAL or runs.outcome.trials == "series":
        return None
    site = nodes(trace)[outcome.name]
    number = outcome_of(outcome.kind).num_categories or 2  # of counts, 0 and 1
    try:
        found = [site["fn"].log_prob(torch.full_like(site["value"], k)).double() for k in range(number)]
    except (NotImplementedError, ValueError):  # no density, or a value outside the support where that is checked
        return None
    masses = torch.stack([part.reshape(-1, num_trials) for part in found], -1)
    return masses if bool(masses.isfinite().all()) else None


def _with_other_inputs(x: Tensor, b: int, trial: int, mode: Mode) -> Tensor:
    """Inputs `(B, n, D_x)` with those of one trial moved to the farthest ones of all trials."""
    pool = x.flatten(0, 1)
    distance = ((pool - x[b, trial]).abs() / pool.std(0).clamp(min=1e-30)).sum(-1)
    moved = x.clone()
    moved[b if mode == "inputs" else slice(None), trial] = pool[distance.argmax()]
    return moved


def _changed(before: Tensor, after: Tensor) -> Tensor:
    """Which outcomes `(S, n)`, of `(S, n, .)`, are not the same, by more than rounding."""
    every = before.flatten(0, 1)
    spread = (every - every.median(0).values).abs().median(0).values
    return ((before - after).abs() > 1e-5 * spread).any(-1)

"""What a program's user should know before training: what is integrated out, and which trials depend on each other.

Read from traces where they tell; measured on simulations where they do not. Knows nothing of models.
"""

import contextlib
from collections.abc import Sequence, Set
from typing import NamedTuple

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_arbuf.programs.runs import FAILURES, Mode, ProgramRuns
from pyro_arbuf.programs.sites import (
    fixed_plates,
    is_of_trials,
    may_be_latent,
    other_sites,
    program_sites,
    varies_in_shape,
)
from pyro_arbuf.programs.vectorization import NUM_TRIALS, log_densities
from pyro_arbuf.random_state import seeded
from pyro_arbuf.workflow.trace_sites import nodes

NUM_GROUPS = 8  # of data sets with the same latents and inputs
GROUP_SIZE: dict[Mode, int] = {"inputs": 128, "datasets": 128, "loop": 16}
LATER_SIZE: dict[Mode, int] = {"inputs": 1024, "datasets": 1024, "loop": 32}  # of those with more trials
LEAST_SPREAD = 0.3  # of ranks, as a share of that without ties: below, a few rare events would look like a correlation
NUM_CHANGES = 8  # values of a site that are tried
MOST_DRAWS = 200  # of a site, to find another value of it: enough for one of 3 data sets in 100
NUM_INPUTS = 64  # sets of inputs whose steps are averaged
CLOSER_STEPS = 0.7  # of the steps of a series, those of one that is twice as long: a fixed range has a half
JOINT = "which depend on each other given the latents: their likelihood is a joint density, by ArBufferJoint"
UNORDERED = (
    "The trials are a series, but no column of the inputs grows from trial to trial, so that the network cannot tell "
    "their order; unless it does not matter, add the number of the trial as a column: inputs that return "
    "torch.cat([torch.arange(n)[:, None], x], -1), of which the program may leave the first aside."
)
CLOSER = (
    "The series lies closer together in x the more trials it has, so that no distance in x stands for the next trial, "
    "which the network has to learn at every distance; unless the law is one of distances in x, give the number of "
    "the trial, 0 to n - 1, or steps of one size, as the column that grows."
)
LATER = (
    "The law of a trial depends on the trials after it, on their inputs or on their number: with as many trials again "
    "behind them, the outcomes of the same trials had another law. Data sets of different sizes have different laws "
    "then, and one network learns a mixture of them; center or scale the inputs outside the program, and use a column "
    "of x in place of t / n."
)


class Dependence(NamedTuple):
    """What makes trials depend on each other given the latents, beyond what a series says.

    Attributes:
        shared: Sites that are integrated out and shared by all trials of a data set.
        correlation: Rank correlation of trials where there is no such site; 0 = none was found.
        order_matters: Whether the law of some trial depends on where it stands.
        later_matters: Whether the law of some trial depends on those after it, their inputs or their number.
    """

    shared: tuple[str, ...] = ()
    correlation: float = 0.0
    order_matters: bool = False
    later_matters: bool = False

    @property
    def found(self) -> bool:
        """Whether trials depend on each other."""
        return bool(self.shared) or self.correlation != 0


def find_dependence(runs: ProgramRuns, traces: Sequence[Trace], num_trials: Sequence[int], mode: Mode) -> Dependence:
    """Finds out whether trials of one plate depend on each other given the latents, or on their order.

    Of these and of series, whether they depend on trials after them.

    Args:
        runs: The program.
        traces: Of single runs.
        num_trials: Of each of them.
        mode: How many data sets are run at once.
    """
    if runs.outcome.single:
        return Dependence()
    if runs.outcome.trials == "series":
        with seeded(0):
            return Dependence(later_matters=_differ(_with_more_trials(runs, mode)))
    shared = outside_trials(runs, traces, num_trials)
    with seeded(0):
        common = tuple(name for name in shared if _matters(runs, name, shared))
        replicates = _replicates(runs, mode)
        later = _differ(_with_more_trials(runs, mode))
    return Dependence(common, 0.0 if common else _correlation(replicates), _differ(replicates), later)


def outside_trials(runs: ProgramRuns, traces: Sequence[Trace], num_trials: Sequence[int]) -> list[str]:
    """Sites that are integrated out and are not one value per trial."""
    rest = other_sites((*(latent.name for latent in runs.latents), *runs.outcome.names), traces)
    return [name for name in rest if runs.outcome.single or not is_of_trials(name, traces, num_trials)]


def program_notes(
    runs: ProgramRuns,
    traces: Sequence[Trace],
    num_trials: Sequence[int],
    dependence: Dependence,
    all_continuous: bool,
) -> tuple[str, ...]:
    """What was found, each a sentence with a remedy.

    Args:
        runs: The program.
        traces: Of single runs.
        num_trials: Of each of them.
        dependence: What `find_dependence` returns.
        all_continuous: Whether the latents are all continuous sites outside plates, as the user named none.
    """
    notes = []
    if runs.outcome.trials == "series":
        return (*_trial_notes(dependence, None), *_order_notes(runs, max(num_trials)))
    if not runs.latents:  # nothing is given, so that all trials depend on each other
        return tuple(_trial_notes(dependence._replace(shared=(), correlation=0.0), None))
    shared = outside_trials(runs, traces, num_trials)
    for name in shared if all_continuous else ():
        for plate, size in fixed_plates(name, traces).items():
            notes.append(
                f"Site {name!r} is inside the plate {plate!r} of fixed size {size}, so it is integrated out and has "
                f"no posterior; to have one, draw it outside the plate with .expand([{size}]).to_event(1)."
            )
    if any(varies_in_shape(name, traces) for name in shared):
        return (*notes, *_trial_notes(dependence, None))
    return (*notes, *_trial_notes(dependence, {name for name in shared if may_be_latent(name, traces)}))


def growing_columns(x: Tensor) -> Tensor:
    """Which columns of inputs `(n, D_x)` grow from trial to trial, `(D_x,)` bool."""
    return (x[1:] > x[:-1]).all(0)


def _order_notes(runs: ProgramRuns, num_trials: int) -> list[str]:
    """Notes on inputs of a series that tell its order badly, or not at all."""
    growing = growing_columns(runs.inputs(num_trials))
    if not bool(growing.any()):
        return [UNORDERED]
    with seeded(0), contextlib.suppress(Exception):  # inputs need not be for so many trials
        steps, closer = (
            torch.stack([runs.inputs(n).diff(dim=0).median(0).values for _ in range(NUM_INPUTS)]).mean(0)
            for n in (NUM_TRIALS, 2 * NUM_TRIALS)
        )
        return [CLOSER] if bool((closer < CLOSER_STEPS * steps)[growing].all()) else []
    return []


def _trial_notes(dependence: Dependence, possible: Set[str] | None) -> list[str]:
    """Notes on trials that depend on each other given the latents, on their order, or on those after them.

    Args:
        dependence: What was found.
        possible: Sites integrated out that can be latents as they are; `None` = one of them grows with the number of
            trials and never can.
    """
    notes = []
    if dependence.shared:
        names, one = ", ".join(map(repr, dependence.shared)), len(dependence.shared) == 1
        it = "it" if one else "them"
        plate = f"make {it} continuous, with .expand([d]).to_event(1) in place of a plate, and "
        remedy = ""
        if possible is not None:
            as_is = possible >= set(dependence.shared)
            remedy = f"; to have independent trials, {'' if as_is else plate}name {it} among latents=[...]"
        notes.append(
            f"{'Site' if one else 'Sites'} {names} {'is' if one else 'are'} integrated out but shared by all trials of "
            f"a data set, {JOINT}{remedy}."
        )
    elif dependence.correlation:
        notes.append(
            f"The trials of a data set depend on each other given the latents (rank correlation "
            f"{dependence.correlation:.2f}), although no site that is integrated out says why, so that their "
            "likelihood is a joint density, by ArBufferJoint; if trials depend on those before, draw them as a series, "
            "one event of n trials; if they share something, draw it by pyro.sample and name it among latents=[...]."
        )
    if dependence.order_matters:
        notes.append(
            "The trials are not exchangeable: with the inputs in reverse order, the outcomes at the same inputs had "
            "another law, but the network ignores the order of trials; give what tells trials apart, such as their "
            "index, as a column of x, or draw the trials as a series, one event of n of them."
        )
    return [*notes, LATER] if dependence.later_matters else notes


def _matters(runs: ProgramRuns, name: str, shared: Sequence[str]) -> bool:
    """Whether a shared site changes the law of some trial, all other sites held fixed.

    It is taken to do so where a density that would tell is missing.
    """
    skipped, compared = {*shared, *(latent.name for latent in runs.latents)}, False
    for seed in range(NUM_CHANGES):
        with contextlib.suppress(*FAILURES):
            x = runs.inputs(NUM_TRIALS)
            one = program_sites(runs.run(x))
            if name not in one:
                return True
            fixed, found = {known: site["value"] for known, site in one.items()}, []
            other = _another_value(runs, name, x, fixed[name])
            if other is None:
                return True
            for value in (fixed[name], other):
                with seeded(seed):
                    sites = program_sites(runs.run(x, given=fixed | {name: value}))
                found.append(log_densities({known: site for known, site in sites.items() if known not in skipped}))
            before, after = found
            told = all(name in before and bool(torch.isfinite(before[name]).all()) for name in runs.outcome.names)
            if not told or before.keys() != after.keys():
                return True
            if any(not torch.equal(before[known], after[known]) for known in before):
                return True
            compared = True
    return not compared


def _another_value(runs: ProgramRuns, name: str, x: Tensor, value: Tensor) -> Tensor | None:
    """Another value of a site than this one, or this one where none was drawn; `None` = a run lacks the site."""
    for _ in range(MOST_DRAWS):
        sites = program_sites(runs.run(x))
        if name not in sites:
            return None
        if not torch.equal(sites[name]["value"], value):
            return sites[name]["value"]
    return value


class _Replicates(NamedTuple):
    """Outcomes `(R, n, D_y)` at the same latents, trial by trial at the same inputs.

    Attributes:
        plain: With these inputs alone, in their own order.
        changed: With the inputs in reverse order, put back, or with more trials behind them, left out.
    """

    plain: Tensor
    changed: Tensor


def _replicates(runs: ProgramRuns, mode: Mode) -> list[_Replicates]:
    """Several groups of data sets in their own order and in reverse; those that fail are left out."""
    found = []
    for _ in range(NUM_GROUPS):
        with contextlib.suppress(*FAILURES):
            x = runs.inputs(NUM_TRIALS)
            values, many = _repeated(runs, x, GROUP_SIZE[mode])
            pair = (runs.outcomes(values, many, mode), runs.outcomes(values, many.flip(1), mode).flip(1))
            found += _finite(*pair)
    return found


def _with_more_trials(runs: ProgramRuns, mode: Mode) -> list[_Replicates]:
    """Several groups of data sets by themselves and with as many trials again; those that fail are left out."""
    found = []
    for _ in range(NUM_GROUPS):
        with contextlib.suppress(Exception):  # a program need not run for so many trials
            x = runs.inputs(2 * NUM_TRIALS)
            values, many = _repeated(runs, x[:NUM_TRIALS], LATER_SIZE[mode])
            longer = runs.outcomes(values, x.expand(len(many), *x.shape), mode)
            found += _finite(runs.outcomes(values, many, mode), longer[:, :NUM_TRIALS])
    return found


def _repeated(runs: ProgramRuns, x: Tensor, size: int) -> tuple[dict[str, Tensor], Tensor]:
    """Latents of one run at inputs `(n, D_x)`, and these, for so many data sets."""
    trace = runs.run(x)
    values = {s.name: nodes(trace)[s.name]["value"].expand(size, *s.shape) for s in runs.latents}
    return values, x.expand(size, *x.shape)


def _finite(plain: Tensor, changed: Tensor) -> list[_Replicates]:
    """The data sets without numbers that are not finite; none, if they are less than half of them."""
    kept = [y[torch.isfinite(y).flatten(1).all(1)].double() for y in (plain, changed)]
    return [_Replicates(*kept)] if min(map(len, kept)) >= len(plain) // 2 else []


def _ranks(y: Tensor) -> Tensor:
    """Ranks `(2, R, n, D_y)` of the outcomes of a trial and of their distances from its median, ties in the middle."""
    y = torch.stack([y, (y - y.median(0).values).abs()]).movedim(1, -1).contiguous()
    ordered = y.sort(-1).values
    ranks = torch.searchsorted(ordered, y).double() + torch.searchsorted(ordered, y, right=True).double()
    return (0.5 * ranks).movedim(-1, 1)


def _correlation(replicates: Sequence[_Replicates]) -> float:
    """The largest mean rank correlation of two trials, of neighbours or of all; 0 within 5 standard errors of it."""
    found, count = [], 0
    for y in (y for pair in replicates for y in pair):
        z = _ranks(y)
        # Of ranks without ties the standard deviation is R / sqrt(12); that of rare events is taken for larger.
        z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True).clamp(min=LEAST_SPREAD * len(y) / 12**0.5)
        n = z.shape[2]
        pairs = ((z.sum(2) ** 2 - (z**2).sum(2)) / (n * (n - 1))).mean(1)
        found.append(torch.stack([(z[:, :, 1:] * z[:, :, :-1]).mean((1, 2)), pairs]))  # (2, 2, D_y)
        count += len(y)
    if not found:
        return 0.0
    error = torch.tensor([1 / (n - 1), 2 / (n * (n - 1))], dtype=torch.float64).div(count).sqrt()[:, None, None]
    mean = torch.stack(found).mean(0)
    mean = torch.where(mean.abs() > 5 * error, mean, 0.0).flatten()
    return mean[mean.abs().argmax()].item()


def _differ(replicates: Sequence[_Replicates]) -> bool:
    """Whether the outcomes of some trial, or those of all on average, have another law after the change."""
    squares = []
    for plain, changed in replicates:
        ranks = _ranks(torch.cat([plain, changed]))
        one, other = torch.cat([ranks, ranks.mean(2, keepdim=True)], 2).split([len(plain), len(changed)], 1)
        error = one.var(1) / len(plain) + other.var(1) / len(changed)
        squares.append((one.mean(1) - other.mean(1)) ** 2 / error.clamp(min=1e-12))
    count = len(squares)
    return bool(squares) and bool((sum(squares) > count + 8 * (2 * count) ** 0.5).any())

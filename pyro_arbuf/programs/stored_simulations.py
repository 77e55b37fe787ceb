"""Simulations that a user has stored: read by site, checked, and given out as data sets of the program.

Knows nothing of models.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from pyro_arbuf.network.latents import Latent
from pyro_arbuf.network.outcomes import outcome_of
from pyro_arbuf.programs.inputs import Inputs
from pyro_arbuf.programs.outcome import ProgramOutcome
from pyro_arbuf.programs.runs import continued
from pyro_arbuf.programs.same_law import Bank, Simulations, hold_out, some_trials
from pyro_arbuf.programs.sites import in_short
from pyro_arbuf.user_warnings import warn

INPUTS = "inputs"
FEWEST, FEWEST_TRIALS = 100, 2
HELD_OUT, FEWEST_HELD_OUT, MOST_HELD_OUT = 0.02, 100, 1000  # the second, or a fifth where there are few
LARGEST_DISTANCE = 2.7  # of two distribution functions, times sqrt(nm / (n + m)): beyond it in 1 of 10^6 cases
OTHER_PRIOR = (
    "The stored values of latent {name!r} have another distribution than the program's prior (their distribution "
    "functions are {distance:.2f} apart), and the posterior will be that under the stored ones; give the program the "
    "prior that they were drawn from, unless simulations that failed make the difference."
)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredSimulations:
    """Data sets to train on, and those that are held out.

    Attributes:
        bank: Both.
        series: Whether trials keep their order; else fewer of them are random ones.
    """

    bank: Bank
    series: bool

    def __len__(self) -> int:
        return sum(len(part.latents) for part in self.bank)

    @property
    def num_held_out(self) -> int:
        """Data sets that are held out."""
        return len(self.bank.held_out.latents)

    @property
    def num_trials(self) -> int:
        """Trials of each data set."""
        return self.bank.drawn.x.shape[1]

    def inputs(self, num_trials: int) -> Tensor:
        """Inputs `(n, D_x)` of one data set; of a series those after its last trial go on by the last step."""
        x = self.bank.drawn.x
        row = torch.randint(len(x), (1,))
        if self.series or num_trials > self.num_trials:
            return continued(x[row][0], num_trials)
        return some_trials(Simulations(*(part[row] for part in self.bank.drawn)), num_trials, False).x[0]

    def draw(self, num_datasets: int, num_trials: int) -> Simulations:
        """Random ones of those to train on.

        Raises:
            ValueError: If they have fewer trials.
        """
        self._check_trials(num_trials)
        rows = torch.randint(len(self.bank.drawn.latents), (num_datasets,))
        return some_trials(Simulations(*(part[rows] for part in self.bank.drawn)), num_trials, self.series)

    def held_out(self, num_datasets: int, num_trials: int) -> Callable[[slice], Simulations]:
        """Gives the data sets of a slice of 0..D - 1: those that are held out, in a random order, none twice.

        Raises:
            ValueError: If there are fewer, or they have fewer trials.
        """
        self._check_trials(num_trials)
        if num_datasets > self.num_held_out:
            raise ValueError(
                f"num_datasets must be at most {self.num_held_out}, the stored simulations that are held out; got "
                f"{num_datasets}; use num_datasets={self.num_held_out}, or store more"
            )
        order, held_out = torch.randperm(self.num_held_out), self.bank.held_out
        return lambda rows: some_trials(Simulations(*(p[order[rows]] for p in held_out)), num_trials, self.series)

    def check_context(self, num_context: int) -> None:
        """Raises ValueError if a context of so many trials is larger than a data set."""
        if num_context > self.num_trials:
            raise ValueError(
                f"num_context must end at the {self.num_trials} trials of a stored simulation, or before; got "
                f"{num_context}; use num_context=(0, {self.num_trials})"
            )

    def _check_trials(self, num_trials: int) -> None:
        if num_trials > self.num_trials:
            raise ValueError(
                f"num_trials must be at most {self.num_trials}, the trials of a stored simulation; got {num_trials}; "
                f"use num_trials={self.num_trials}"
            )


def stored_inputs(simulations: Mapping[str, object]) -> Inputs | None:
    """Draws inputs as those of a stored data set, as long as nothing is known of the program; `None` = none stored.

    Raises:
        ValueError: If they are no `(S, n, D_x)`.
    """
    if not isinstance(simulations, Mapping):
        raise ValueError(
            f"simulations must be a dict of stored values by site; got {type(simulations).__name__}; use "
            '{"theta": theta, "y": y}'
        )
    if INPUTS not in simulations:
        return None
    x = _numbers(INPUTS, simulations[INPUTS]).float().to(torch.get_default_device())
    if x.dim() != 3 or not x.numel():
        raise ValueError(
            f"simulations[{INPUTS!r}] must have shape (S, n, D_x), the inputs of n trials of each of S data sets; got "
            f"{tuple(x.shape)}; use .unsqueeze(-1) for one column, and .expand(S, n, D_x) for the same in all of them"
        )
    x = x[x.isfinite().flatten(1).all(1)]
    if not len(x):
        raise ValueError(f"simulations[{INPUTS!r}] must be finite in some data sets; got none; store finite inputs")
    return lambda num_trials: continued(x[torch.randint(len(x), (1,))][0], num_trials)


def read_simulations(
    simulations: Mapping[str, object], latents: tuple[Latent, ...], outcome: ProgramOutcome, inputs: Inputs
) -> StoredSimulations:
    """Reads what a user has stored; a part is held out, which depends on what the data sets hold, not on their order.

    Data sets with a number that is not finite, or a latent at a bound of its support, are left out, with a warning.

    Args:
        simulations: By site, S data sets each: latents in their own supports `(S, *shape)`, outcomes `(S, n)` or
            `(S, n, d)`, of one observation without n; and `"inputs"` `(S, n, D_x)` where the program reads any.
        latents: Of the program.
        outcome: Of the program.
        inputs: Draws its inputs; they are those of all data sets where none are stored.

    Raises:
        ValueError: If a site is missing or unknown, or has another shape or values than the program says.
    """
    values = _values(simulations, [*(latent.name for latent in latents), *outcome.names])
    size = len(values[outcome.names[0]])
    y, num_trials = _outcomes({name: values[name] for name in outcome.names}, outcome, size)
    theta = [_unconstrained(latent, values[latent.name], size) for latent in latents]
    numbers = torch.cat(theta, -1).float() if theta else y.new_zeros(size, 0)
    drawn = Simulations(numbers, _inputs(values.get(INPUTS), inputs, size, num_trials), y)
    finite = torch.stack([part.isfinite().flatten(1).all(1) for part in drawn]).all(0)
    count = int(finite.sum())
    if count < FEWEST:
        raise ValueError(
            f"simulations must hold at least {FEWEST} data sets of finite numbers; got {count} of {size}; store more"
        )
    if count < size:
        warn(
            f"{size - count} of {size} stored simulations hold a number that is not finite, or a latent at a bound of "
            "its support, and are left out; the posterior is then one given that a simulation does not fail."
        )
    drawn = Simulations(*(part[finite] for part in drawn))
    order = _hash(drawn).argsort(stable=True)
    held_out = min(MOST_HELD_OUT, max(int(HELD_OUT * count), min(FEWEST_HELD_OUT, count // 5)))
    home = torch.get_default_device()
    bank = hold_out(Simulations(*(part[order].to(home) for part in drawn)), held_out)
    return StoredSimulations(bank, outcome.trials == "series")


def notes_of_stored(latents: tuple[Latent, ...], stored: Tensor, prior: Tensor) -> tuple[str, ...]:
    """A note on each latent that was not drawn from the program's prior, by Kolmogorov and Smirnov's test.

    Args:
        latents: Of the program.
        stored: Their unconstrained numbers `(S, P)`.
        prior: Draws `(R, P)` of the program's prior.
    """
    found, first = [], 0
    for latent in latents:
        columns = range(first, first + latent.size)
        first += latent.size
        distance = max(_distance(stored[:, i], prior[:, i]) for i in columns)
        if distance * (len(stored) * len(prior) / (len(stored) + len(prior))) ** 0.5 > LARGEST_DISTANCE:
            found.append(OTHER_PRIOR.format(name=latent.name, distance=distance))
    return tuple(found)


def _distance(one: Tensor, other: Tensor) -> float:
    """The largest distance of two empirical distribution functions."""
    places = torch.cat([one, other]).sort().values
    shares = [torch.searchsorted(part.sort().values, places, right=True) / len(part) for part in (one, other)]
    return (shares[0] - shares[1]).abs().max().item()


def _values(simulations: Mapping[str, object], names: list[str]) -> dict[str, Tensor]:
    """Numbers by site, and of the inputs, all of one size."""
    unknown = [name for name in simulations if name not in (*names, INPUTS)]
    missing = [name for name in names if name not in simulations]
    if missing or unknown:
        raise ValueError(
            f"simulations must hold the latents and the outcome, {names}, and may hold {INPUTS!r}; missing {missing}, "
            f"unknown {in_short(unknown)}; rename these or leave them out, and stack trials of a loop"
        )
    values = {name: _numbers(name, value) for name, value in simulations.items()}
    sizes = {name: len(value) for name, value in values.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"simulations must hold the same number of data sets S at every site; got {sizes}; the first dimension is S"
        )
    return values


def _hash(drawn: Simulations) -> Tensor:
    """A pseudo-random integer `(S,)` for each data set, a function of its latents and outcomes alone."""
    numbers = torch.cat([drawn.latents, drawn.y.flatten(1)], 1).contiguous()
    factors = 2 * (torch.arange(1, numbers.shape[1] + 1, device=numbers.device) * 2654435761) + 1
    found = (numbers.view(torch.int32).long() * factors).sum(1)
    for shift in (30, 27):
        found = (found ^ (found >> shift)) * 0x3F58476D1CE4E5B9
    return found ^ (found >> 31)


def _numbers(name: str, value: object) -> Tensor:
    try:
        numbers = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError):
        kind = f"{type(value).__name__} of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(
            f"simulations[{name!r}] must be numbers, one row of one length for each data set; got {kind}; use "
            "np.asarray(values, dtype=np.float32)"
        ) from None
    if numbers.is_complex() or not numbers.dim() or numbers.layout != torch.strided:
        raise ValueError(
            f"simulations[{name!r}] must be real numbers, one row for each data set; got {numbers.dtype} of shape "
            f"{tuple(numbers.shape)} ({numbers.layout}); use a dense tensor"
        )
    return numbers.cpu()


def _unconstrained(latent: Latent, value: Tensor, size: int) -> Tensor:
    """Unconstrained numbers `(S, P_l)`, NaN where the value is at a bound of the support or not finite."""
    if value.shape != (size, *latent.shape):
        raise ValueError(
            f"simulations[{latent.name!r}] must have shape {(size, *latent.shape)}, the latent of each data set; got "
            f"{tuple(value.shape)}; use .squeeze(-1) or .reshape"
        )
    value = value.float()
    bounds = (0.0,) if latent.simplex else (latent.lower, latent.upper)
    at_bound = torch.stack([value == bound for bound in bounds if bound is not None] or [value != value]).any(0)
    failed = (at_bound | ~value.isfinite()).reshape(size, -1).any(1)
    wrong = ~latent.contains(value) & ~failed
    if bool(wrong.any()):
        got = f"{value[wrong][0].tolist()} in {int(wrong.sum())} of {size} data sets"
        raise ValueError(
            f"simulations[{latent.name!r}] must lie in the support of its prior, {latent.support}; got {got}; store "
            f"{'rows divided by their sums' if latent.simplex else 'values, not transformed ones'}"
        )
    return latent.unconstrain(value).masked_fill(failed[:, None], torch.nan)


def _outcomes(values: Mapping[str, Tensor], outcome: ProgramOutcome, size: int) -> tuple[Tensor, int]:
    """Outcomes `(S, n, D_y)`, and n."""
    parts, first = [], next(iter(values.values()))
    trials = () if outcome.single else tuple(first.shape[1:2])  # n, or nothing where it was left out
    too_few = not outcome.single and sum(trials) < FEWEST_TRIALS
    for site in outcome.sites:
        value, kind = values[site.name], outcome_of(site.kind)
        if too_few or value.shape != (size, *trials, *site.shape):
            words = ", ".join(("S", *(() if outcome.single else ("n",)), *map(str, site.shape)))
            rule = "" if outcome.single else f", n at least {FEWEST_TRIALS} and the same for all sites"
            raise ValueError(
                f"simulations[{site.name!r}] must have shape ({words}{',' * (words == 'S')}){rule}; got "
                f"{tuple(value.shape)}; use .squeeze(-1) or .reshape"
            )
        value = value.float()
        wrong = value.isfinite() & ~kind.support.check(value)
        if bool(wrong.any()):
            raise ValueError(
                f"simulations[{site.name!r}] must hold {kind.values}, as the program's distribution says; got "
                f"{value[wrong][0].item():g}; store what the program draws"
            )
        parts.append(value.reshape(size, *(trials or (1,)), site.size or 1))
    return torch.cat(parts, -1), parts[0].shape[1]


def _inputs(stored: Tensor | None, inputs: Inputs, size: int, num_trials: int) -> Tensor:
    """Inputs `(S, n, D_x)`: those stored, or the ones of every data set of a program without any."""
    if stored is not None:
        if stored.shape[:2] != (size, num_trials):
            raise ValueError(
                f"simulations[{INPUTS!r}] must have shape {(size, num_trials)} and a column for each input, as the "
                f"outcome has {size} data sets of {num_trials} trials; got {tuple(stored.shape)}; use .expand for all"
            )
        return stored.float()
    x = inputs(num_trials).cpu()
    if not torch.equal(x, inputs(num_trials).cpu()):
        raise ValueError(
            f"simulations must hold {INPUTS!r}, as the inputs of this program are random; store the (S, n, D_x) that "
            "the outcomes were simulated at"
        )
    return x.expand(size, -1, -1).float()

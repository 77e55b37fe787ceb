"""Simulations that a user has stored: read by site, checked, and given out as data sets of the program.

Knows nothing of models.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from pyro_arbuf.network.latents import Latent
from pyro_arbuf.network.outcomes import outcome_of
from pyro_arbuf.programs.outcome import ProgramOutcome
from pyro_arbuf.programs.runs import Inputs
from pyro_arbuf.programs.same_law import Bank, Simulations, hold_out
from pyro_arbuf.random_state import seeded

INPUTS = "inputs"
FEWEST = 2
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
    """

    bank: Bank

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

    def draw(self, num_datasets: int, num_trials: int) -> Simulations:
        """Random ones of those to train on, the first trials of each.

        Raises:
            ValueError: If they have fewer trials.
        """
        self.check_trials(num_trials)
        rows = torch.randint(len(self.bank.drawn.latents), (num_datasets,))
        return _some(self.bank.drawn, rows, num_trials)

    def held_out(self, num_datasets: int, num_trials: int) -> Callable[[slice], Simulations]:
        """Gives the data sets of a slice of 0..D - 1: those that are held out, in a random order, none twice.

        Raises:
            ValueError: If there are fewer, or they have fewer trials.
        """
        self.check_trials(num_trials)
        if num_datasets > self.num_held_out:
            raise ValueError(
                f"num_datasets must be at most {self.num_held_out}, the stored simulations that are held out; got "
                f"{num_datasets}; store more, or pass program=pyro_arbuf.Simulator(program, inputs), for new ones"
            )
        order = torch.randperm(self.num_held_out)
        return lambda rows: _some(self.bank.held_out, order[rows], num_trials)

    def check_trials(self, num_trials: int) -> None:
        """Raises ValueError if a data set has fewer trials."""
        if num_trials > self.num_trials:
            raise ValueError(
                f"num_trials must be at most {self.num_trials}, the trials of a stored simulation; got {num_trials}; "
                f"use num_context=(0, {self.num_trials}) or fewer"
            )


def _some(drawn: Simulations, rows: Tensor, num_trials: int) -> Simulations:
    return Simulations(drawn.latents[rows], drawn.x[rows, :num_trials], drawn.y[rows, :num_trials])


def stored_inputs(simulations: Mapping[str, object]) -> Inputs | None:
    """Draws inputs as those of a stored data set, again from its first trial where more are asked; `None` = none.

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
    x = _numbers(INPUTS, simulations[INPUTS]).float()
    if x.dim() != 3 or not x.numel():
        raise ValueError(
            f"simulations[{INPUTS!r}] must have shape (S, n, D_x), the inputs of n trials of each of S data sets; got "
            f"{tuple(x.shape)}; use .unsqueeze(-1) for one column, and .expand(S, n, D_x) for the same in all of them"
        )
    return lambda num_trials: x[torch.randint(len(x), ())][torch.arange(num_trials) % x.shape[1]]


def read_simulations(
    simulations: Mapping[str, object], latents: tuple[Latent, ...], outcome: ProgramOutcome, inputs: Inputs
) -> StoredSimulations:
    """Reads what a user has stored; a fiftieth, at least 1 and at most 1,000, is held out at random.

    Data sets with a number that is not finite are left out, with a warning.

    Args:
        simulations: By site, S data sets each: latents in their own supports `(S, *shape)`, outcomes `(S, n)` or
            `(S, n, d)`, of one observation without n; and `"inputs"` `(S, n, D_x)` where the program reads any.
        latents: Of the program.
        outcome: Of the program.
        inputs: Draws its inputs; they are those of all data sets where none are stored.

    Raises:
        ValueError: If a site is missing or unknown, or has another shape or values than the program says.
    """
    names = [*(latent.name for latent in latents), *outcome.names]
    unknown = [name for name in simulations if name not in (*names, INPUTS)]
    missing = [name for name in names if name not in simulations]
    if missing or unknown:
        raise ValueError(
            f"simulations must hold the program's latents and outcome, {names}, and {INPUTS!r} if it reads any; "
            f"missing {missing}, unknown {unknown}; rename them, or choose others by latents=[...] and outcome="
        )
    values = {name: _numbers(name, value) for name, value in simulations.items()}
    size = len(values[names[-1]])
    y, num_trials = _outcomes({name: values[name] for name in outcome.names}, outcome, size)
    theta = [_unconstrained(latent, values[latent.name], size) for latent in latents]
    numbers = torch.cat(theta, -1).float() if theta else y.new_zeros(size, 0)
    drawn = Simulations(numbers, _inputs(values.get(INPUTS), inputs, size, num_trials), y)
    finite = torch.stack([part.isfinite().flatten(1).all(1) for part in drawn]).all(0)
    if int(finite.sum()) < FEWEST:
        raise ValueError(
            f"simulations must hold at least {FEWEST} data sets of finite numbers, one of them held out; got "
            f"{int(finite.sum())} of {size}"
        )
    if not bool(finite.all()):
        warnings.warn(
            f"{int((~finite).sum())} of {size} stored simulations hold numbers that are not finite, and are left out; "
            "the posterior is then one given that a simulation does not fail.",
            UserWarning,
            stacklevel=2,
        )
    home = torch.get_default_device()
    with seeded(0):
        rows = finite.nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows))]
    return StoredSimulations(hold_out(Simulations(*(part[rows.to(part.device)].to(home) for part in drawn))))


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


def _numbers(name: str, value: object) -> Tensor:
    try:
        numbers = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"simulations[{name!r}] must be a tensor or an array of numbers; got {type(value).__name__}, which is none "
            f"({error}); use one row for each data set, all of one length"
        ) from None
    if numbers.is_complex() or not numbers.dim():
        raise ValueError(
            f"simulations[{name!r}] must be real numbers, one row for each data set; got {numbers.dtype} of shape "
            f"{tuple(numbers.shape)}"
        )
    return numbers.cpu()


def _unconstrained(latent: Latent, value: Tensor, size: int) -> Tensor:
    if value.shape != (size, *latent.shape):
        raise ValueError(
            f"simulations[{latent.name!r}] must have shape {(size, *latent.shape)}, the latent of each data set; got "
            f"{tuple(value.shape)}"
        )
    value = value.double()
    wrong = ~latent.contains(value) & value.isfinite().reshape(size, -1).all(1).reshape(size)
    if bool(wrong.any()):
        raise ValueError(
            f"simulations[{latent.name!r}] must lie in the support of its prior, as {latent.support} says; got "
            f"{value[wrong][0].tolist()} in {int(wrong.sum())} of {size} data sets; store values, not transformed ones"
        )
    return latent.unconstrain(value)


def _outcomes(values: Mapping[str, Tensor], outcome: ProgramOutcome, size: int) -> tuple[Tensor, int]:
    """Outcomes `(S, n, D_y)`, and n."""
    parts, trials = [], [] if outcome.single else [next(iter(values.values())).shape[1:2]]
    for site in outcome.sites:
        value, kind = values[site.name], outcome_of(site.kind)
        want = (size, *(trials[0] if trials else ()), *site.shape)
        if value.shape != want or (trials and (not trials[0] or trials[0][0] < FEWEST)):
            words = ("S", *(() if outcome.single else ("n",)), *map(str, site.shape))
            raise ValueError(
                f"simulations[{site.name!r}] must have shape ({', '.join(words)}), the same S"
                f"{'' if outcome.single else f' and n, at least {FEWEST},'} as the others; got {tuple(value.shape)}"
            )
        value = value.float()
        wrong = value.isfinite() & ~kind.support.check(value)
        if bool(wrong.any()):
            raise ValueError(
                f"simulations[{site.name!r}] must hold {kind.values}, as the program's distribution says; got "
                f"{value[wrong][0].item():g}"
            )
        parts.append(value.reshape(size, 1 if outcome.single else trials[0][0], site.size or 1))
    return torch.cat(parts, -1), parts[0].shape[1]


def _inputs(stored: Tensor | None, inputs: Inputs, size: int, num_trials: int) -> Tensor:
    """Inputs `(S, n, D_x)`: those stored, or the ones of every data set of a program without any."""
    if stored is not None:
        if stored.shape[:2] != (size, num_trials):
            raise ValueError(
                f"simulations[{INPUTS!r}] must have shape {(size, num_trials)} and a column for each input, as the "
                f"outcome has {size} data sets of {num_trials} trials; got {tuple(stored.shape)}"
            )
        return stored.float()
    x = inputs(num_trials)
    if not torch.equal(x, inputs(num_trials)):
        raise ValueError(
            f"simulations must hold {INPUTS!r}, as the inputs of this program are random; store the (S, n, D_x) that "
            "the outcomes were simulated at"
        )
    return x.expand(size, -1, -1).float()

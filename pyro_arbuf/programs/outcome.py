"""The outcome of a program, by its traces: its sites, and which of its trials may depend on each other.

One site or several of one plate, real numbers, categories or counts; or a series, which is one event of as many trials
as the data set has, or a loop over trials with a site for each. Knows nothing of models.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from pyro.poutine import Trace
from torch import Size, Tensor

from pyro_arbuf.inference.outcome_sites import stack_sites
from pyro_arbuf.programs.kinds import REAL, kind_of
from pyro_arbuf.programs.sites import program_sites
from pyro_arbuf.workflow.trace_sites import Site, nodes, numbered

Trials = Literal["independent", "exchangeable", "series", "vector"]
LOOP = "[0..n-1]"  # behind the name of a site that stands for the sites of a loop, in messages


class OutcomeSite(NamedTuple):
    """A site of the outcome.

    Attributes:
        name: Of the site; of a loop, what its sites "y_0", "y_1", ... have in common.
        size: Numbers per trial of a vector; `None` = one number.
        kind: "real", "count" or "categorical(3)", of all its numbers.
        dtype: Of values that are integers or booleans; `None` = they are floating numbers.
        loop: Whether every trial is a site of its own, drawn in a loop over trials.
    """

    name: str
    size: int | None
    kind: str
    dtype: torch.dtype | None
    loop: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one trial's value."""
        return () if self.size is None else (self.size,)

    def names(self, num_trials: int) -> list[str]:
        """Names of the sites in a run of so many trials."""
        return [f"{self.name}_{i}" for i in range(num_trials)] if self.loop else [self.name]


class ProgramOutcome(NamedTuple):
    """The outcome of a program.

    Attributes:
        sites: In the order of the network's outcome dimensions, at least one.
        trials: How the trials of a data set depend on each other given the latents: "independent"; "exchangeable",
            they share a site that is integrated out; "series", each may depend on those before it; "vector", a data
            set is one observation, without a dimension of trials.
    """

    sites: tuple[OutcomeSite, ...]
    trials: Trials = "independent"

    def __str__(self) -> str:
        return ", ".join(repr(site.name) for site in self.sites)

    @property
    def single(self) -> bool:
        """Whether a data set is one observation, without a dimension of trials."""
        return self.trials == "vector"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sites, a loop's in short."""
        return tuple(site.name for site in self.sites)

    def site_names(self, num_trials: int) -> list[str]:
        """Names of the sites in a run of so many trials."""
        return [name for site in self.sites for name in site.names(num_trials)]

    @property
    def dim_y(self) -> int | None:
        """D_y; `None` for a scalar outcome."""
        if len(self.sites) == 1:
            return self.sites[0].size
        return sum(site.size or 1 for site in self.sites)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of every dimension."""
        return tuple(site.kind for site in self.sites for _ in range(site.size or 1))

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Kinds as a configuration has them: empty where all are real."""
        return self.kinds if any(kind != REAL for kind in self.kinds) else ()

    @property
    def columns(self) -> str | tuple[str, ...]:
        """The one site, or the site of every dimension."""
        if len(self.sites) == 1:
            return self.sites[0].name
        return tuple(site.name for site in self.sites for _ in range(site.size or 1))

    def shape(self, site: OutcomeSite, num_trials: int) -> tuple[int, ...]:
        """Of a site's values in a single run; of a loop, of each of its sites."""
        return site.shape if self.single or site.loop else (num_trials, *site.shape)

    def numbers(self, trace: Trace, num_trials: int) -> Tensor:
        """The outcomes `(S, n, D_y)` of a run, floating."""
        parts = [self.column(trace, site, num_trials) for site in self.sites]
        dtype = parts[0].dtype if parts[0].is_floating_point() else torch.get_default_dtype()
        for part in parts[1:]:
            dtype = torch.promote_types(dtype, part.dtype)
        return torch.cat([part.to(dtype) for part in parts], -1)

    def column(self, trace: Trace, site: OutcomeSite, num_trials: int) -> Tensor:
        """The values `(S, n, size)` of one site in a run."""
        values = [nodes(trace)[name]["value"] for name in site.names(num_trials)]
        if not site.loop:
            return values[0].reshape(-1, num_trials, site.size or 1)
        return torch.stack([value.reshape(-1, site.size or 1) for value in values], 1)

    def values(self, y: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outcomes `(n,)` or `(n, D_y)` of one data set, or by site, as a run has them, by the run's sites."""
        together = stack_sites(y, self.columns)
        if self.dim_y is None:
            together = together.unsqueeze(-1)
        if not together.is_floating_point():
            together = together.to(torch.get_default_dtype())
        found = {}
        parts = together.split([site.size or 1 for site in self.sites], -1)
        for site, part in zip(self.sites, parts, strict=True):
            value = part if site.size is not None else part.squeeze(-1)
            value = value if site.dtype is None else value.to(site.dtype)
            if site.loop:
                found |= dict(zip(site.names(len(value)), value.unbind(0), strict=True))
            else:
                found[site.name] = value[0] if self.single else value
        return found


def read_outcome(outcome: str | Sequence[str], traces: Sequence[Trace], num_trials: Sequence[int]) -> ProgramOutcome:
    """Reads what the outcome is from runs of different numbers of trials.

    Whether independent trials share a site that is integrated out is not told here.

    Args:
        outcome: Name of the site, or of several sites of one plate; of a loop, what "y_0", "y_1", ... have in common.
        traces: Of the runs.
        num_trials: Of each run.

    Raises:
        ValueError: If there is no such site, or it is of another shape, or of another kind of values.
    """
    names = [outcome] if isinstance(outcome, str) else list(outcome)
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"outcome must be a site, or a tuple of different sites, at least one; got {outcome!r}")
    read = [_read(name, traces, num_trials) for name in names]
    found = {site.name: trials for site, trials in read}
    if len(set(found.values())) > 1:
        words = {"independent": "a value per trial in a plate", "series": "a series", "vector": "one observation"}
        each = ", ".join(f"{name!r} is {words[trials]}" for name, trials in found.items())
        raise ValueError(
            f"the sites of the outcome must be in one plate of trials, or all be series; got sites that differ: "
            f"{each}; draw them all inside that plate, or all in one loop over trials"
        )
    return ProgramOutcome(tuple(site for site, _ in read), read[0][1])


def _read(name: str, traces: Sequence[Trace], num_trials: Sequence[int]) -> tuple[OutcomeSite, Trials]:
    """Reads one site of the outcome, or a loop over trials."""
    if all(name in program_sites(trace) for trace in traces):
        return _read_site(name, [nodes(trace)[name] for trace in traces], num_trials)
    if all(loop_sites(name, trace) for trace in traces):
        return _read_loop(name, traces, num_trials), "series"
    raise ValueError(
        f"outcome must be a sample site of every run of the program; got {name!r} among "
        f"{list(program_sites(traces[0]))}; name it with outcome=..., and draw it by pyro.sample, or "
        "record what is computed by pyro.deterministic"
    )


def _read_site(name: str, sites: Sequence[Site], num_trials: Sequence[int]) -> tuple[OutcomeSite, Trials]:
    """Reads a site that holds all trials, and how they depend on each other as far as it tells."""
    kind = kind_of(name, sites)
    events = [Size(site["fn"].event_shape) for site in sites]
    shapes = [tuple(site["value"].shape) for site in sites]
    dtype = _dtype(sites)
    if len(set(events)) > 1:
        _check_series(name, events, shapes, num_trials)
        return OutcomeSite(name, events[0][1] if len(events[0]) > 1 else None, kind, dtype), "series"
    event = events[0]
    single = all(shape == event for shape in shapes)
    if len(event) > 1:
        raise ValueError(
            f"the outcome {name!r} must be a number or a vector per trial; got an event of shape {tuple(event)}; "
            f"flatten it to a vector of {event.numel()} and draw that with .to_event(1)"
        )
    if not (single or shapes == [(n, *event) for n in num_trials]):
        raise ValueError(
            f"the outcome {name!r} must have shape (n,) or (n, D_y) for inputs (n, D_x), or the event's shape for "
            f"one observation; got {shapes[0]} for n = {num_trials[0]}, {shapes[1]} for n = {num_trials[1]}; draw it "
            'inside pyro.plate("trials", x.shape[-2])'
        )
    return OutcomeSite(name, event[0] if event else None, kind, dtype), "vector" if single else "independent"


def _check_series(
    name: str, events: Sequence[Size], shapes: Sequence[tuple[int, ...]], num_trials: Sequence[int]
) -> None:
    """Raises ValueError unless an event that grows is one number or vector for each trial, and nothing repeats it."""
    fits = all(event == (n, *event[1:2]) for event, n in zip(events, num_trials, strict=True))
    if not fits or len({event[1:] for event in events}) > 1:
        raise ValueError(
            f"the outcome {name!r} must be one event of n trials, (n,) or (n, D_y) for inputs (n, D_x), to be a "
            f"series, or an event of fixed size to be one observation; got events of shape {tuple(events[0])} for "
            f"n = {num_trials[0]}, {tuple(events[1])} for n = {num_trials[1]}; draw one number or vector per row of x"
        )
    if any(tuple(event) != shape for event, shape in zip(events, shapes, strict=True)):
        raise ValueError(
            f"the outcome {name!r} must be one series per data set; got values of shape {shapes[0]} for events of "
            f"shape {tuple(events[0])}; draw it outside plates, or several series as the columns of one, (n, D_y)"
        )


def _read_loop(name: str, traces: Sequence[Trace], num_trials: Sequence[int]) -> OutcomeSite:
    """Reads the sites "y_0", "y_1", ... of a loop over trials."""
    found = []
    for trace, n in zip(traces, num_trials, strict=True):
        names = loop_sites(name, trace)
        if sorted(names) != sorted(f"{name}_{i}" for i in range(n)):
            raise ValueError(
                f"a loop over trials must draw {name}_0 to {name}_(n-1), one site for each of n rows of x; got "
                f"{names} for n = {n}; draw them by pyro.sample(f'{name}_{{i}}', ...) for i in range(x.shape[-2])"
            )
        found += [nodes(trace)[f"{name}_{i}"] for i in range(n)]
    events = {tuple(site["fn"].event_shape) for site in found}
    shapes = {tuple(site["value"].shape) for site in found}
    if len(events) > 1 or shapes != events or len(next(iter(events))) > 1:
        raise ValueError(
            f"the sites {name}_0, {name}_1, ... must each be a number, or a vector of one size, outside plates; got "
            f"values of shapes {sorted(shapes)}, events of shapes {sorted(events)}; draw one trial in each"
        )
    event = events.pop()
    return OutcomeSite(name, event[0] if event else None, kind_of(f"{name}{LOOP}", found), _dtype(found), loop=True)


def loop_sites(name: str, trace: Trace) -> list[str]:
    """Names of a run's sites that are called `name` with a number behind it."""
    return numbered(name, program_sites(trace))


def _dtype(sites: Sequence[Site]) -> torch.dtype | None:
    """Of values that are never floating; `None` = some are."""
    return None if any(site["value"].is_floating_point() for site in sites) else sites[0]["value"].dtype

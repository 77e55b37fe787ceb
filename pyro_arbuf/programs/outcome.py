"""The outcome of a program: one site or several of one plate, real numbers, categories or counts, by their traces.

Knows nothing of models.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributions as td
from pyro.poutine import Trace
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_arbuf.inference.outcome_sites import stack_sites
from pyro_arbuf.programs.sites import program_sites, support_of
from pyro_arbuf.workflow.trace_sites import Site, nodes, unwrapped

MOST_CATEGORIES = 20  # of whole numbers from 0 on; more are counts, unless the site is a Categorical
REAL = "real"


class OutcomeSite(NamedTuple):
    """A site of the outcome.

    Attributes:
        name: Of the site.
        size: Numbers per trial of a vector; `None` = one number.
        kind: "real", "count" or "categorical(3)", of all its numbers.
        dtype: Of values that are integers or booleans; `None` = they are floating numbers.
    """

    name: str
    size: int | None
    kind: str
    dtype: torch.dtype | None


class ProgramOutcome(NamedTuple):
    """The outcome of a program.

    Attributes:
        sites: In the order of the network's outcome dimensions, at least one.
        single: Whether a data set is one observation, without a dimension of trials.
    """

    sites: tuple[OutcomeSite, ...]
    single: bool

    def __str__(self) -> str:
        return ", ".join(repr(site.name) for site in self.sites)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sites."""
        return tuple(site.name for site in self.sites)

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
        """Of a site's values in a single run."""
        return (*(() if self.single else (num_trials,)), *(() if site.size is None else (site.size,)))

    def numbers(self, trace: Trace, num_trials: int) -> Tensor:
        """The outcomes `(S, n, D_y)` of a run, floating."""
        parts = [nodes(trace)[site.name]["value"].reshape(-1, num_trials, site.size or 1) for site in self.sites]
        dtype = parts[0].dtype if parts[0].is_floating_point() else torch.get_default_dtype()
        for part in parts[1:]:
            dtype = torch.promote_types(dtype, part.dtype)
        return torch.cat([part.to(dtype) for part in parts], -1)

    def values(self, y: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outcomes `(n,)` or `(n, D_y)` of one data set, or by site, as a run has them, by site."""
        together = stack_sites(y, self.columns)
        if self.dim_y is None:
            together = together.unsqueeze(-1)
        if not together.is_floating_point():
            together = together.to(torch.get_default_dtype())
        found = {}
        parts = together.split([site.size or 1 for site in self.sites], -1)
        for site, part in zip(self.sites, parts, strict=True):
            value = part if site.size is not None else part.squeeze(-1)
            value = value[0] if self.single else value
            found[site.name] = value if site.dtype is None else value.to(site.dtype)
        return found


def read_outcome(outcome: str | Sequence[str], traces: Sequence[Trace], num_trials: Sequence[int]) -> ProgramOutcome:
    """Reads what the outcome is from runs of different numbers of trials.

    Args:
        outcome: Name of the site, or of several sites of one plate.
        traces: Of the runs.
        num_trials: Of each run.

    Raises:
        ValueError: If there is no such site, or it is a series, of another shape, or of another kind of values.
    """
    names = [outcome] if isinstance(outcome, str) else list(outcome)
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"outcome must be a site, or a tuple of different sites, at least one; got {outcome!r}")
    for name in names:
        if any(name not in program_sites(trace) for trace in traces):
            raise ValueError(
                f"outcome must be a sample site of every run of the program; got {name!r}; it has "
                f"{list(program_sites(traces[0]))}; name it with outcome=..., and draw it by pyro.sample"
            )
    read = [_read_site(name, [nodes(trace)[name] for trace in traces], num_trials) for name in names]
    singles = {site.name: single for site, single in read}
    if len(set(singles.values())) > 1:
        each = [name for name, single in singles.items() if not single]
        raise ValueError(
            f"the sites of the outcome must be in one plate of trials; got {each} with a value per trial, and "
            f"{[name for name in names if name not in each]} without; draw them all inside that plate"
        )
    return ProgramOutcome(tuple(site for site, _ in read), all(singles.values()))


def _read_site(name: str, sites: Sequence[Site], num_trials: Sequence[int]) -> tuple[OutcomeSite, bool]:
    """Reads a site of the outcome, and whether it is one observation."""
    kind = _kind(name, sites)
    event = Size(sites[0]["fn"].event_shape)
    events = [tuple(site["fn"].event_shape) for site in sites]
    if len(set(events)) > 1:
        raise ValueError(
            f"the trials of the outcome {name!r} must be independent given the latents and x, each a value of its "
            f"own; got one event that grows with the number of trials, of shape {events[0]} for n = {num_trials[0]}, "
            f"{events[1]} for n = {num_trials[1]}; if they are independent, draw them inside "
            'pyro.plate("trials", x.shape[-2]) without to_event; a series, whose trials depend on each other, is not '
            "supported yet"
        )
    shapes = [tuple(site["value"].shape) for site in sites]
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
            'inside pyro.plate("trials", x.shape[-2]), where its trials are independent given the latents and x'
        )
    dtype = None if sites[0]["value"].is_floating_point() else sites[0]["value"].dtype
    return OutcomeSite(name, event[0] if event else None, kind, dtype), single


def _kind(name: str, sites: Sequence[Site]) -> str:
    """What the values of a site are, by its distribution in several runs, or by their dtype where that says nothing.

    Raises:
        ValueError: If they are neither real numbers, nor counts, nor categories from 0 on.
    """
    supports = [_base_support(site) for site in sites]
    values = [site["value"] for site in sites]
    if not any(support is not None and support.is_discrete for support in supports):
        if all(value.is_floating_point() for value in values):
            return REAL
        if all(value.dtype == torch.bool for value in values):
            return "categorical(2)"
        if all(bool((value >= 0).all()) for value in values):
            return "count"
        raise ValueError(_wrong_values(name, "whole numbers, some of them negative", "shift them to start at 0"))
    if all(isinstance(support, type(constraints.boolean)) for support in supports):
        return "categorical(2)"
    if all(hasattr(support, "lower_bound") for support in supports):
        return _kind_of_integers(name, sites[0], supports)
    got = f"{type(unwrapped(sites[0])).__name__}, of support {supports[0]}"
    remedy = "draw it as real numbers, or as whole numbers from 0 on"
    if isinstance(supports[0], type(constraints.one_hot)):
        remedy = "draw the number of the category by Categorical"
    elif isinstance(unwrapped(sites[0]), td.Multinomial):
        remedy = "draw its counts as several sites, each by Binomial given those before it"
    raise ValueError(_wrong_values(name, got, remedy))


def _kind_of_integers(name: str, site: Site, supports: Sequence[Any]) -> str:
    """Categories, if whole numbers from 0 to one small bound; counts, if they are those of something or unbounded."""
    law = unwrapped(site)
    lows = torch.cat([torch.as_tensor(support.lower_bound).flatten() for support in supports])
    highs = torch.cat([torch.as_tensor(getattr(s, "upper_bound", torch.inf)).flatten().double() for s in supports])
    if bool((lows < 0).any()):
        got = f"{type(law).__name__}, whole numbers from {int(lows.min())} on"
        raise ValueError(_wrong_values(name, got, f"shift it to start at 0: draw y + {-int(lows.min())}"))
    number = 1 + highs[0].item() if len(highs.unique()) == 1 and not bool(lows.any()) else torch.inf
    if isinstance(law, td.Categorical):
        if not 2 <= number < torch.inf:
            got = f"Categorical with {', '.join(f'{1 + int(high)}' for high in highs.unique())} categories"
            raise ValueError(_wrong_values(name, got, "give it the same categories in every run, at least 2"))
        return f"categorical({int(number)})"
    most = 2 if hasattr(law, "total_count") else MOST_CATEGORIES  # a number of successes is a count
    return f"categorical({int(number)})" if 2 <= number <= most else "count"


def _base_support(site: Site) -> Any:
    """The support of single numbers of a site; `None` = it does not say."""
    support: Any = support_of(site)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _wrong_values(name: str, got: str, remedy: str) -> str:
    return (
        f"the outcome {name!r} must be real numbers, counts 0, 1, 2, ..., or categories 0, 1, ..., n-1 with one n for "
        f"all trials; got {got}; {remedy}"
    )

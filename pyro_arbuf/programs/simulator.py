"""A Pyro program as a source of data sets: many at once where it can, and its densities where it has them.

Knows nothing of models.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_arbuf.inference.outcome_sites import stack_sites
from pyro_arbuf.inference.validation import check_count
from pyro_arbuf.network.latents import Latent, constrained
from pyro_arbuf.programs.inspect import inspect_program, to_have_a_density
from pyro_arbuf.programs.law_notes import check_own_prior
from pyro_arbuf.programs.runs import Mode, Program, ProgramRuns, probe
from pyro_arbuf.programs.same_law import Simulations
from pyro_arbuf.programs.sites import in_short
from pyro_arbuf.programs.stored_simulations import notes_of_stored
from pyro_arbuf.random_state import seeded
from pyro_arbuf.user_warnings import warn
from pyro_arbuf.workflow.at_once import is_computed
from pyro_arbuf.workflow.trace_sites import nodes

NUM_OF_PRIOR = 256  # draws that stored latents are compared with


class Simulator:
    """A Pyro program whose outcome is simulated given its latents; a density is not needed.

    The program takes inputs x `(n, D_x)`, samples its latents, then the outcome of n trials: inside a plate of n; or
    as a series, one event of n trials or a loop over them with the sites y_0 to y_(n-1); or, for one observation per
    data set, without a plate. It is run for many data sets at once, inside an
    outer plate, or one by one: as `vectorized` says, or as `inspect_program` finds out. Data sets for which it raises a
    ValueError, RuntimeError or ArithmeticError, or gives a number that is not finite, are drawn anew and counted; the
    share that may fail is 1 %, of at least 10,000.

    Args:
        program: The program.
        inputs: Draws random inputs: called with a number of trials n, returns a tensor, array or table `(n, D_x)`. Or
            the rows `(R, D_x)` of a design, which trials are drawn from, with replacement. `None` = no inputs (x is
            one constant 0; of a series it is the number of each trial, 0 to n - 1).
        latents: Sites whose posterior is wanted, in order; the others are integrated out by simulation. `None` = all
            continuous sites of one shape outside plates and loops over trials; `[]` = none: predictions and evidence
            alone.
        outcome: The site of the outcome: a number or a vector per trial, real numbers, counts or categories, by its
            distribution. Several sites of one plate, `("choice", "rt")`, are the dimensions of one vector outcome, each
            predicted given those before it. What is computed, such as summary statistics, is recorded as a site by
            `pyro.deterministic`.
        vectorized: `True` = the program is written for leading batch dimensions: it gets x `(S, n, D_x)`, its latents
            are `(S, 1, *shape)`, and it reads x[..., 0] and x.shape[-2]. Many data sets are simulated at once, each
            with inputs of its own; only shapes are checked, on a small run, so that data sets do not reach each other
            is your word. `False` = one by one, nothing is tried. `None` = tried once: many at once, each with inputs of
            its own or all with the same, if shapes, densities and moments are those of single runs. A RuntimeError,
            ValueError, IndexError or TypeError means one by one; `mode_reason` says what was found.
        simulations: Data sets that are stored already, S of them, by site: latents in their own supports `(S, *shape)`,
            outcomes `(S, n)` or `(S, n, d)`, of one observation without n, and `"inputs"` `(S, n, D_x)`, if any.
            Data sets are drawn from these, and the program is run a few times, for its sites.

    Attributes:
        latents: Standardised by prior draws.
        inputs: What draws the inputs.
        trials: "independent" given the latents; "exchangeable", dependent on each other, as they share what is
            integrated out; "series", each depends on those before; "vector", a data set is one observation.
        single: Whether a data set is one observation.
        mode: Data sets run at once, with own inputs ("inputs") or the same ("datasets"), or one by one ("loop").
        mode_reason: Why this mode, as a sentence.
        notes: What was found in the program and its user should know, each a whole sentence with a remedy; each is
            also issued as a UserWarning when the simulator is made.
        integrated_out: Names of the other sites.
        priors_of_inputs: Names of latents whose prior depends on the inputs.
        outcome_sites: What the outcome's sites are.
        stored: The simulations that were given; `None` = none.

    Raises:
        ValueError: If there is no such outcome or latent, or the latent is discrete, in a plate, or varies in shape or
            support; if a site is observed, a latent constant, too many data sets fail, or the program does not run for
            many data sets at once although `vectorized` says so; if stored simulations are not those of the program.
    """

    def __init__(
        self,
        program: Program,
        inputs: Any = None,
        latents: Sequence[str] | None = None,
        outcome: str | Sequence[str] = "y",
        vectorized: bool | None = None,
        simulations: Mapping[str, object] | None = None,
    ):
        found = inspect_program(program, inputs, latents, outcome, vectorized, simulations)
        self.program, self.outcome_sites, self.outcome = program, found.outcome_sites, found.outcome_sites.columns
        self.inputs, self.trials, self.single = found.inputs, found.trials, found.single
        self.latents, self.integrated_out = found.latents, found.integrated_out
        self.priors_of_inputs = found.priors_of_inputs
        self.dim_x, self.dim_y, self.nesting = found.dim_x, found.dim_y, found.nesting
        self.mode: Mode = found.mode
        self.mode_reason, self.notes, self.stored = found.mode_reason, found.notes, found.stored
        self._runs = ProgramRuns(found.program, self.inputs, found.outcome_sites, found.latents, found.nesting)
        if self.stored is not None and self.latents:
            with seeded(0):
                prior = self.draw_prior(NUM_OF_PRIOR)
            self.notes += notes_of_stored(self.latents, self.stored.bank.drawn.latents, prior)
        for note in self.notes:
            warn(note)

    def __repr__(self) -> str:
        return f"Simulator(latents={[s.name for s in self.latents]}, outcome={self.outcome!r}, mode={self.mode!r})"

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Kind of every outcome dimension, "real", "count" or "categorical(3)"; empty = all real."""
        return self.outcome_sites.outcomes

    @functools.cached_property
    def has_ordered_inputs(self) -> bool:
        """Whether inputs grow or fall from row to row, or are the same in every call, as on a grid."""
        with seeded(0):
            x, again = self.inputs(16), self.inputs(16)
        moves = x.diff(dim=0)
        return bool(((moves >= 0).all(0) ^ (moves <= 0).all(0)).any() | (moves.any() & (x == again).all()))

    @functools.cached_property
    def has_density(self) -> bool:
        """Whether an outcome's density is known: nothing is integrated out or stored, its distributions have one."""
        if self.integrated_out or self.stored is not None:
            return False
        num_trials = 1 if self.single else 3
        with seeded(0), torch.no_grad():
            trace = probe(self._runs.program, self.inputs, num_trials)
        sites = [nodes(trace)[name] for name in self.outcome_sites.site_names(num_trials)]
        try:
            for site in sites:
                site["fn"].log_prob(site["value"])
        except NotImplementedError:
            return False
        return not any(map(is_computed, sites))

    @property
    def simulated(self) -> int:
        """Data sets that `draw` has simulated, failed ones included."""
        return self._runs.simulated

    @property
    def failed(self) -> int:
        """Data sets of them that failed: the program raised, or gave a number that is not finite; drawn anew."""
        return self._runs.failed

    @property
    def failure_share(self) -> float:
        """Share of failed data sets, 0 before the first one."""
        return self.failed / max(1, self.simulated)

    @torch.no_grad()
    def draw(self, num_datasets: int, num_trials: int) -> Simulations:
        """Draws data sets, of the stored ones where there are any, by torch's global generator; failed ones anew.

        Args:
            num_datasets: Data sets B.
            num_trials: Trials n of each; 1 for a program of one observation.

        Raises:
            ValueError: If a number is no positive integer, a program of one observation is asked for more, or more than
                1 % of the data sets have failed so far, and more than 100.
        """
        num_datasets, num_trials = check_count("num_datasets", num_datasets), check_count("num_trials", num_trials)
        if self.single and num_trials > 1:
            raise ValueError(f"num_trials must be 1, as the program has one observation; got {num_trials}")
        if self.stored is not None:
            return self.stored.draw(num_datasets, num_trials)
        return self._simulate(self._runs.draw_inputs(num_datasets, num_trials, self.mode))

    def unseen(self, num_datasets: int, num_trials: int) -> Callable[[slice], Simulations]:
        """Gives the data sets of a slice of 0..D - 1, for checks: new ones, or of those stored the ones held out."""
        if self.stored is not None:
            return self.stored.held_out(num_datasets, num_trials)
        return lambda rows: self.draw(rows.stop - rows.start, num_trials)

    def most_unseen(self, number: int) -> int:
        """So many data sets for checks, or fewer where fewer are held out."""
        return number if self.stored is None else min(number, self.stored.num_held_out)

    @torch.no_grad()
    def draw_at(self, x: Tensor, num_datasets: int) -> Simulations:
        """Draws data sets at inputs x `(n, D_x)`, failed ones anew with others; not where simulations are stored."""
        self.check_runs()
        return self._simulate(x.to(torch.get_default_device()).expand(num_datasets, *x.shape))

    def check_runs(self) -> None:
        """Raises ValueError where simulations are stored: those that the program gives may be others."""
        if self.stored is not None:
            raise ValueError(
                "program must be run here, for its density or for new simulations; got stored simulations alone, which "
                "are all that is known of it; pass program=pyro_arbuf.Simulator(program, inputs), which runs it"
            )

    def _simulate(self, x: Tensor) -> Simulations:
        """Data sets with inputs `(B, n, D_x)`, and latents of the prior."""
        return self._runs.simulate(x, self.mode)

    @torch.no_grad()
    def draw_prior(self, num_draws: int) -> Tensor:
        """Draws unconstrained latents `(S, P)` of the prior; what the program simulates from them is not run."""
        names = [latent.name for latent in self.latents]
        x = self._runs.draw_inputs(num_draws, 1, self.mode)
        if self.mode == "loop":
            traces = [self._runs.run(each, until=names) for each in x]
        else:
            traces = [self._runs.run(x[0] if self.mode == "datasets" else x, num_draws, until=names)]
        parts = []
        for latent in self.latents:
            values = [nodes(trace)[latent.name]["value"].reshape(-1, *latent.shape) for trace in traces]
            parts.append(latent.unconstrain(torch.cat(values)))
        return torch.cat(parts, -1).float()

    @torch.no_grad()
    def draw_given(self, latents: Tensor, x: Tensor) -> Simulations:
        """Draws outcomes at inputs x `(n, D_x)` for given unconstrained latents `(B, P)`, a data set for each.

        Data sets that fail are drawn anew at the same latents.

        Raises:
            ValueError: If too many fail, as for `draw`, or simulations are stored.
        """
        self.check_runs()
        home = torch.get_default_device()  # where the program makes its tensors
        latents, x = latents.to(home), x.to(home).expand(len(latents), *x.shape)
        y = self._outcomes(latents, x)
        self._runs.redraw_failed(y, lambda bad: self._outcomes(latents[bad], x[bad]))
        return Simulations(latents.float(), x.float(), y)

    def _outcomes(self, latents: Tensor, x: Tensor) -> Tensor:
        """Outcomes `(B, n, D_y)` at unconstrained latents `(B, P)` and inputs `(B, n, D_x)`; NaN where they fail."""
        values = {name: value for name, (value, _) in constrained(self.latents, latents).items()}
        return self._runs.tried(values, x, self.mode)

    def log_prior(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log density of the program's own prior at latents.

        Args:
            values: All latents, `(S, *shape)` each, in their own supports.

        Returns:
            `(S,)` nats, in the space of the supports.

        Raises:
            ValueError: If a value is missing or of wrong shape, or the density depends on inputs or sites that are
                integrated out.
        """
        self._check_values(values, "prior")
        check_own_prior(self.priors_of_inputs)
        with seeded(0):
            density = self._log_density(values, self.inputs(1), None)
        if self.integrated_out:
            with seeded(1):
                again = self._log_density(values, self.inputs(1), None)
            if not torch.equal(density, again):
                raise ValueError(
                    f"the prior of the latents must not depend on sites that are integrated out; got one that does on "
                    f"some of {list(self.integrated_out)}; name those among latents=[...]"
                )
        return density

    def log_joint(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Log density of the program at latents and an outcome, which needs the outcome's density.

        Args:
            values: All latents, `(S, *shape)` each, in their own supports.
            x: `(n, D_x)` inputs.
            y: `(n,)` or `(n, D_y)` outcomes, or a dict of them by site.

        Returns:
            `(S,)` nats, in the space of the supports.

        Raises:
            ValueError: If the outcome has no density, sites are integrated out, or a shape is wrong.
        """
        self.check_runs()
        self._check_values(values, "joint density")
        if self.integrated_out:
            remedy = to_have_a_density(self._runs, self.integrated_out)
            raise ValueError(
                f"the density of the program needs all its sites; {in_short(self.integrated_out)} are integrated out "
                f"by simulation, which has no density; {remedy}"
            )
        y = stack_sites(y, self.outcome)
        event = () if self.dim_y is None else (self.dim_y,)
        length = 1 if self.single else len(x)
        if x.dim() != 2 or x.shape[1] != self.dim_x or len(x) != length or y.shape != (length, *event):
            want = f"({length if self.single else 'n'}, {self.dim_x}) and ({', '.join(map(str, (length, *event)))})"
            raise ValueError(f"x and y must have shapes {want}; got {tuple(x.shape)} and {tuple(y.shape)}")
        return self._log_density(values, x, y)

    @torch.no_grad()
    def _log_density(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor | None) -> Tensor:
        """Log density `(S,)` of latents and an outcome, or, without running what comes after them, of latents alone."""
        home = torch.get_default_device()  # where the program makes its tensors
        x, given = x.to(home), {} if y is None else self.outcome_sites.values(y.to(home))
        until = list(values) if y is None else None
        device, num_draws = values[self.latents[0].name].device, len(values[self.latents[0].name])
        values = {latent.name: values[latent.name].to(home) for latent in self.latents}
        if self.mode == "loop":
            rows = [{name: value[i] for name, value in values.items()} for i in range(num_draws)]
            traces = (self._runs.run(x, given=row | given, until=until) for row in rows)
            totals = [self._total(trace, [*rows[0], *given], 1) for trace in traces]
            return torch.cat(totals).to(device)
        shaped = self._runs.in_plate(values)
        x = x.expand(num_draws, *x.shape) if self.mode == "inputs" else x
        trace = self._runs.run(x, num_draws, shaped | given, until)
        return self._total(trace, [*shaped, *given], num_draws).to(device)

    def _total(self, trace: poutine.Trace, names: list[str], num_draws: int) -> Tensor:
        """Sum `(S,)` of the log densities of some sites."""
        total = torch.zeros(num_draws, device=nodes(trace)[names[0]]["value"].device)
        for site in (nodes(trace)[name] for name in names):
            try:
                part = scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])
            except NotImplementedError:
                raise ValueError(
                    f"the density of site {site['name']!r} is needed; its distribution {type(site['fn']).__name__} has "
                    "no log_prob"
                ) from None
            total = total + part.reshape(num_draws, -1).sum(-1)
        return total

    def _check_values(self, values: Mapping[str, Tensor], what: str) -> None:
        if not self.latents:
            raise ValueError(
                f"the {what} of latents needs a program with latents; got one with latents=[]; name them in "
                "latents=[...], or leave that out for all continuous sites"
            )
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        num_draws = next(iter(shapes.values()))[:1] if shapes else ()
        if not num_draws or shapes != {latent.name: (*num_draws, *latent.shape) for latent in self.latents}:
            want = {latent.name: ("S", *latent.shape) for latent in self.latents}
            raise ValueError(f"values must hold all latents, of shapes {want}; got {shapes}")


def unconstrained_log_prior(simulator: Simulator, latents: Sequence[Latent], unconstrained: Tensor) -> Tensor:
    """Log density `(S,)` of a program's own prior at unconstrained latents `(S, P)`, nats in their space.

    Raises:
        ValueError: As `Simulator.log_prior`.
    """
    sites = constrained(latents, unconstrained)
    density = simulator.log_prior({name: value for name, (value, _) in sites.items()})
    return density + sum(jacobian for _, jacobian in sites.values())

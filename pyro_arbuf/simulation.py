"""A Pyro program as a source of data sets: many at once where it can, and its densities where it has them.

Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_arbuf.latents import Latent, rounded
from pyro_arbuf.program_sites import check_observed, continuous_latents, program_sites, read_latent, read_outcome
from pyro_arbuf.random_state import seeded
from pyro_arbuf.same_law import Simulations, independent, same_law

Program = Callable[[Tensor], Any]
Mode = Literal["inputs", "datasets", "loop"]
PROBES = (3, 4, 5, 3, 4, 5, 3, 4)  # numbers of trials of the runs that tell what a program does
NUM_COMPARED, RUN_SIZE = 256, 16
NUM_FOR_SCALES = 2048
PLATE = "_datasets"
MOST_REDRAWN = 0.01  # of the data sets of a draw, or one


class Simulator:
    """A Pyro program whose outcome is simulated given its latents; a density is not needed.

    The program takes inputs x `(n, D_x)`, samples its latents, then the outcome of n exchangeable trials: inside a
    plate of n, or, for one observation per data set, without a plate. It is run for many data sets at once inside an
    outer plate where that gives the right shapes and the moments of single runs; one by one otherwise. Data sets with a
    number that is not finite are drawn anew while they are at most one, or 1 %, of those asked for.

    Args:
        program: The program.
        inputs: Draws random inputs: called with a number of trials n, returns `(n, D_x)`; `None` = no inputs (x is one
            constant 0).
        latents: Sites whose posterior is wanted, in order; the others are integrated out by simulation. `None` = all
            continuous sites outside plates.
        outcome: The site of the outcome.

    Attributes:
        latents: Standardised by prior draws.
        single: Whether a data set is one observation.
        mode: Data sets run at once, each with its own inputs ("inputs") or all with the same ("datasets"), or one by
            one ("loop").
        mode_reason: Why this mode, as one sentence.
        notes: What was found in the program and its user should know, each a whole sentence with a remedy; each is
            also issued as a UserWarning when the simulator is made.
        integrated_out: Names of the other sites.

    Raises:
        ValueError: If there is no such outcome or latent, or it is discrete, in a plate, or varies in shape or support;
            if a site is observed, a latent constant, or a simulated number not finite.
    """

    def __init__(
        self,
        program: Program,
        inputs: Callable[[int], Tensor] | None = None,
        latents: Sequence[str] | None = None,
        outcome: str = "y",
    ):
        self.program, self.outcome = program, outcome
        self.inputs = _no_inputs if inputs is None else inputs
        with seeded(0), torch.no_grad():
            self.dim_x = self._check_inputs()
            traces = [self._run(self.inputs(n)) for n in PROBES]
            check_observed(traces)
            self.single, self.dim_y = read_outcome(outcome, traces, PROBES)
            sites = [item for trace in traces for item in program_sites(trace).items()]
            frames = [frame for _, site in sites for frame in site["cond_indep_stack"]]
            self.nesting = max([1] + [-frame.dim for frame in frames if frame.vectorized])
            names = continuous_latents(outcome, traces[0]) if latents is None else list(latents)
            if not names or len(set(names)) < len(names) or isinstance(latents, str):
                raise ValueError(f"latents must be a list of different sites, at least one; got {latents!r}")
            self.latents = tuple(read_latent(name, outcome, traces) for name in names)
            self.integrated_out = tuple(dict.fromkeys(name for name, _ in sites if name not in (*names, outcome)))
            self.mode: Mode = self._find_mode()
            self.mode_reason = "Data sets are simulated in the fastest way that agreed with single runs."
            self.notes: tuple[str, ...] = ()
            self.latents, scales = self._standardise()
            self.x_loc, self.x_scale, self.y_loc, self.y_scale = scales

    def __repr__(self) -> str:
        return f"Simulator(latents={[s.name for s in self.latents]}, outcome={self.outcome!r}, mode={self.mode!r})"

    @torch.no_grad()
    def draw(self, num_datasets: int, num_trials: int) -> Simulations:
        """Draws data sets with torch's global generator.

        Args:
            num_datasets: Data sets B.
            num_trials: Trials n of each; 1 for a program of one observation.

        Raises:
            ValueError: If a number is not positive, or a program of one observation is asked for more.
        """
        if num_datasets < 1 or num_trials < 1 or (self.single and num_trials > 1):
            rule = "num_trials = 1, as the program has one observation" if self.single else "num_trials >= 1"
            raise ValueError(f"draw needs num_datasets >= 1 and {rule}; got {num_datasets} and {num_trials}")
        return self._simulate(self._draw_inputs(num_datasets, num_trials, self.mode), self.mode)

    def log_prior(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log density of the program's own prior at latents.

        Args:
            values: All latents, `(S, *shape)` each, in their own supports.

        Returns:
            `(S,)` nats, in the space of the supports.

        Raises:
            ValueError: If a value is missing or of wrong shape, or the density depends on sites that are integrated
                out.
        """
        self._check_values(values)
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

    def log_joint(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Log density of the program at latents and an outcome, which needs the outcome's density.

        Args:
            values: All latents, `(S, *shape)` each, in their own supports.
            x: `(n, D_x)` inputs.
            y: `(n,)` or `(n, D_y)` outcomes.

        Returns:
            `(S,)` nats, in the space of the supports.

        Raises:
            ValueError: If the outcome has no density, sites are integrated out, or a shape is wrong.
        """
        self._check_values(values)
        if self.integrated_out:
            raise ValueError(
                f"the density of the program needs all its sites; {list(self.integrated_out)} are integrated out by "
                "simulation, which has no density; name them among latents=[...], or write the program without them"
            )
        event = () if self.dim_y is None else (self.dim_y,)
        length = 1 if self.single else len(x)
        if x.dim() != 2 or x.shape[1] != self.dim_x or len(x) != length or y.shape != (length, *event):
            want = f"({length if self.single else 'n'}, {self.dim_x}) and ({', '.join(map(str, (length, *event)))})"
            raise ValueError(f"x and y must have shapes {want}; got {tuple(x.shape)} and {tuple(y.shape)}")
        return self._log_density(values, x, y)

    @torch.no_grad()
    def _log_density(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor | None) -> Tensor:
        home = torch.get_default_device()  # where the program makes its tensors
        x, given = x.to(home), {} if y is None else {self.outcome: (y[0] if self.single else y).to(home)}
        device, num_draws = values[self.latents[0].name].device, len(values[self.latents[0].name])
        values = {latent.name: values[latent.name].to(home) for latent in self.latents}
        if self.mode == "loop":
            runs = [{name: value[i] for name, value in values.items()} for i in range(num_draws)]
            totals = [self._total(self._run(x, given=run | given), [*run, *given], 1) for run in runs]
            return torch.cat(totals).to(device)
        ones = (1,) * self.nesting
        shaped = {name: value.reshape(num_draws, *ones, *value.shape[1:]) for name, value in values.items()}
        x = x.expand(num_draws, *x.shape) if self.mode == "inputs" else x
        return self._total(self._run(x, num_draws, shaped | given), [*shaped, *given], num_draws).to(device)

    def _total(self, trace: poutine.Trace, names: list[str], num_draws: int) -> Tensor:
        """Sum `(S,)` of the log densities of some sites."""
        total = torch.zeros(num_draws, device=trace.nodes[names[0]]["value"].device)
        for site in (trace.nodes[name] for name in names):
            try:
                part = scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])
            except NotImplementedError:
                raise ValueError(
                    f"the density of site {site['name']!r} is needed; its distribution {type(site['fn']).__name__} has "
                    "no log_prob"
                ) from None
            total = total + part.reshape(num_draws, -1).sum(-1)
        return total

    def _check_values(self, values: Mapping[str, Tensor]) -> None:
        shapes = {name: tuple(value.shape) for name, value in values.items()}
        num_draws = next(iter(shapes.values()))[:1] if shapes else ()
        if not num_draws or shapes != {latent.name: (*num_draws, *latent.shape) for latent in self.latents}:
            want = {latent.name: ("S", *latent.shape) for latent in self.latents}
            raise ValueError(f"values must hold all latents, of shapes {want}; got {shapes}")

    def _check_inputs(self) -> int:
        x = self.inputs(7)
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[0] != 7 or not x.is_floating_point():
            got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"inputs(num_trials) must return a floating tensor (num_trials, D_x); got {got} for 7")
        return x.shape[1]

    def _run(self, x: Tensor, plate: int | None = None, given: Mapping[str, Tensor] | None = None) -> poutine.Trace:
        """A trace of the program, nothing of it visible to an enclosing program."""
        with poutine.block(), _quietly(), contextlib.ExitStack() as stack:
            if plate is not None:
                stack.enter_context(pyro.plate(PLATE, plate, dim=-1 - self.nesting))
            return poutine.trace(poutine.condition(self.program, given or {})).get_trace(x)

    def _draw_inputs(self, num_datasets: int, num_trials: int, mode: Mode) -> Tensor:
        one = mode == "datasets" or num_datasets == 1
        x = torch.stack([self.inputs(num_trials) for _ in range(1 if one else num_datasets)])
        return x.expand(num_datasets, -1, -1)

    def _simulate(self, x: Tensor, mode: Mode, tries: int = 3) -> Simulations:
        """Data sets with inputs `(B, n, D_x)`, which must be the same for all in mode "datasets".

        A few with numbers that are not finite, such as a latent that rounds to the bound of its support, are replaced.
        """
        together = x[0] if mode == "datasets" else x
        traces = [self._run(each) for each in x] if mode == "loop" else [self._run(together, len(x))]
        values = {s: torch.cat([t.nodes[s.name]["value"].reshape(-1, *s.shape) for t in traces]) for s in self.latents}
        latents = [latent.unconstrain(value) for latent, value in values.items()]
        y = torch.cat([t.nodes[self.outcome]["value"].reshape(-1, x.shape[1], self.dim_y or 1) for t in traces])
        drawn = Simulations(torch.cat(latents, -1).float(), x.float(), y.float())
        bad = {name: ~torch.isfinite(part).flatten(1).all(1) for name, part in drawn._asdict().items()}
        rows = torch.stack(list(bad.values())).any(0)
        count = int(rows.sum())
        if count > max(1, MOST_REDRAWN * len(x)) or (count and not tries):
            got = ", ".join(f"{name} of {int(part.sum())}" for name, part in bad.items() if bool(part.any()))
            raise ValueError(
                f"the program must simulate finite numbers; got NaN or infinite ones in {got} of {len(x)} data sets; "
                "bound the prior, or clamp what the program returns"
            )
        if count:
            again = self._simulate(x[rows], mode, tries - 1)
            drawn = Simulations(*(part.index_put((rows,), new) for part, new in zip(drawn, again, strict=True)))
        return drawn

    def _find_mode(self) -> Mode:
        """How many data sets at once: each with its inputs, all with the same inputs, or one by one."""
        num_trials = 1 if self.single else 7
        modes: tuple[Mode, ...] = ("inputs", "datasets")
        for mode in modes:
            x = self._draw_inputs(11, num_trials, "inputs")
            try:
                trace = self._run(x if mode == "inputs" else x[0], 11)
            except Exception:
                continue  # it runs alone, so it cannot run this way: any error of the program's own says so
            lead = (11, *(1,) * self.nesting)
            event = () if self.dim_y is None else (self.dim_y,)
            expected = {s.name: (*lead, *s.shape) for s in self.latents}
            expected[self.outcome] = (*lead[:-1], num_trials, *event)
            if any(n not in trace.nodes or trace.nodes[n]["value"].shape != s for n, s in expected.items()):
                continue
            x = self._draw_inputs(NUM_COMPARED, num_trials, mode)
            alone = self._simulate(x, "loop")
            if mode == "inputs":
                x = self._draw_inputs(NUM_COMPARED, num_trials, mode)
            together = self._simulate(x, mode)
            with seeded(0):
                runs = [self._simulate(part, mode) for part in x.split(RUN_SIZE)]
            if same_law(alone, together) and independent(runs, alone):
                return mode
        return "loop"

    def _standardise(self) -> tuple[tuple[Latent, ...], tuple[tuple[float, ...], ...]]:
        """Latents with location and scale under the prior; those of inputs (moments) and outcomes (quantiles)."""
        drawn = self.draw(NUM_FOR_SCALES if self.mode != "loop" else NUM_COMPARED, 1 if self.single else 8)
        loc, scale = drawn.latents.mean(0), drawn.latents.std(0)
        latents, first = [], 0
        for latent in self.latents:
            rows = slice(first, first + latent.size)
            if not bool((scale[rows] > 0).all()):
                raise ValueError(f"latents must vary under the prior; site {latent.name!r} is constant; fix it instead")
            standard = {"loc": _rounded(loc[rows], scale[rows]), "scale": _rounded(scale[rows])}
            latents.append(dataclasses.replace(latent, **standard))
            first += latent.size
        x, y = drawn.x.flatten(0, 1), drawn.y.flatten(0, 1)
        x_scale = x.std(0)
        x_scale = torch.where(x_scale > 0, x_scale, 1.0)
        low, middle, high = torch.quantile(y[:50_000], y.new_tensor([0.25, 0.5, 0.75]), 0)
        y_scale = torch.maximum((high - low) / 1.349, 0.2 * y.std(0))
        y_scale = torch.where(y_scale > 0, y_scale, 1.0)
        scales = (_rounded(x.mean(0), x_scale), _rounded(x_scale), _rounded(middle, y_scale), _rounded(y_scale))
        return tuple(latents), scales


def _no_inputs(num_trials: int) -> Tensor:
    return torch.zeros(num_trials, 1)


def _rounded(values: Tensor, scales: Tensor | None = None) -> tuple[float, ...]:
    """Few digits, of locations as many as their scales need."""
    scales = values if scales is None else scales
    return tuple(rounded(value, scale) for value, scale in zip(values.tolist(), scales.tolist(), strict=True))


@contextlib.contextmanager
def _quietly():
    """Without Pyro's validation, and its warnings about plates."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

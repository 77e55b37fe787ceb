"""A Pyro program as a source of data sets: what its latents are, and many data sets at once where it can.

Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_arbuf.latents import Latent
from pyro_arbuf.predictive import seeded

Program = Callable[[Tensor], Any]
PROBES = (3, 4, 5, 3, 4, 5, 3, 4)  # numbers of trials of the runs that tell what a program does
NUM_COMPARED = 256
NUM_FOR_SCALES = 2048
PLATE = "_datasets"


class Simulations(NamedTuple):
    """Data sets drawn from a program.

    Attributes:
        latents: `(B, P)`, unconstrained.
        x: `(B, n, D_x)` inputs.
        y: `(B, n, D_y)` outcomes, D_y = 1 for a scalar outcome.
    """

    latents: Tensor
    x: Tensor
    y: Tensor


class Simulator:
    """A Pyro program whose outcome is simulated given its latents; a density is not needed.

    The program takes inputs x `(n, D_x)`, samples its latents, then the outcome of n exchangeable trials: inside a
    plate of n, or, for one observation per data set, without a plate. It is run for many data sets at once inside an
    outer plate where that gives the right shapes and the moments of single runs; one by one otherwise.

    Args:
        program: The program.
        inputs: Draws random inputs: called with a number of trials n, returns `(n, D_x)`; `None` = no inputs (x is one
            constant 0).
        latents: Sites whose posterior is wanted, in order; the others are integrated out by simulation. `None` = all
            continuous sites outside plates.
        outcome: The site of the outcome.

    Raises:
        ValueError: If there is no such outcome or latent, or it is discrete, in a plate, or varies in shape or support.
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
            self.single, self.dim_y = self._check_outcome(traces)
            frames = [frame for _, site in _sites(traces[0]) for frame in site["cond_indep_stack"]]
            self.nesting = max([1] + [-frame.dim for frame in frames if frame.vectorized])
            names = self._names(traces[0]) if latents is None else list(latents)
            sites = [self._check_latent(name, traces) for name in names]
            if not sites:
                raise ValueError("latents must name at least one site; got none; the program has no continuous latent")
            self.latents = tuple(sites)
            self.mode: Literal["inputs", "datasets", "loop"] = self._find_mode()
            self.latents, scales = self._standardise()
            self.x_loc, self.x_scale, self.y_loc, self.y_scale = scales

    def __repr__(self) -> str:
        return f"Simulator(latents={[s.name for s in self.latents]}, outcome={self.outcome!r}, mode={self.mode!r})"

    def draw(self, num_datasets: int, num_trials: int) -> Simulations:
        """Draws data sets with torch's global generator.

        Args:
            num_datasets: Data sets B.
            num_trials: Trials n of each; 1 for a program of one observation.
        """
        return self._draw(num_datasets, num_trials, self.mode)

    def log_prior(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log density of the program's own prior at latents.

        Args:
            values: All latents, `(S, *shape)` each, in their own supports.

        Returns:
            `(S,)` nats, in the space of the supports.
        """
        return self._log_density(values, self.inputs(1), None)

    def log_joint(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Log density of the program at latents and an outcome, which needs the outcome's density.

        Args:
            values: All latents, `(S, *shape)` each, in their own supports.
            x: `(n, D_x)` inputs.
            y: `(n,)` or `(n, D_y)` outcomes.

        Returns:
            `(S,)` nats, in the space of the supports.

        Raises:
            ValueError: If the outcome has no density.
        """
        return self._log_density(values, x, y)

    def _log_density(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor | None) -> Tensor:
        num_draws = len(next(iter(values.values())))
        names = [latent.name for latent in self.latents]
        dims = self.nesting

        def density(fixed: dict[str, Tensor], size: int | None) -> Tensor:
            given = fixed if y is None else fixed | {self.outcome: y[0] if self.single else y}
            program = poutine.condition(self.program, given)
            with torch.no_grad(), _quietly(), contextlib.ExitStack() as stack:
                if size is not None:
                    stack.enter_context(pyro.plate(PLATE, size, dim=-1 - dims))
                trace = poutine.trace(program).get_trace(x)
                total = torch.zeros(() if size is None else (size,))
                for name in names + ([] if y is None else [self.outcome]):
                    site = trace.nodes[name]
                    try:
                        part = site["fn"].log_prob(site["value"])
                    except NotImplementedError:
                        raise ValueError(
                            f"the density of site {name!r} is needed; its distribution {type(site['fn']).__name__} has "
                            "no log_prob"
                        ) from None
                    if site["scale"] is not None:
                        part = part * site["scale"]
                    total = total + (part.sum() if size is None else part.reshape(size, -1).sum(-1))
                return total

        if self.mode == "loop":
            rows = [density({k: v[i] for k, v in values.items()}, None) for i in range(num_draws)]
            return torch.stack(rows)
        shaped = {
            latent.name: values[latent.name].reshape(num_draws, *(1,) * dims, *latent.shape) for latent in self.latents
        }
        return density(shaped, num_draws)

    def _check_inputs(self) -> int:
        x = self.inputs(7)
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[0] != 7 or not x.is_floating_point():
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"inputs(num_trials) must return a floating tensor (num_trials, D_x); got {got} for 7")
        return x.shape[1]

    def _run(self, x: Tensor, plate: int | None = None) -> poutine.Trace:
        """A trace of the program, nothing of it visible to an enclosing program."""
        with poutine.block(), _quietly(), contextlib.ExitStack() as stack:
            if plate is not None:
                stack.enter_context(pyro.plate(PLATE, plate, dim=-1 - self.nesting))
            return poutine.trace(self.program).get_trace(x)

    def _names(self, trace: poutine.Trace) -> list[str]:
        names = []
        for name, site in _sites(trace):
            if name == self.outcome or any(f.vectorized for f in site["cond_indep_stack"]) or site["is_observed"]:
                continue
            if site["fn"].support.is_discrete:
                if site["infer"].get("enumerate") is None:
                    raise ValueError(
                        f"latents must be continuous; site {name!r} is discrete: mark it with infer={{'enumerate': "
                        "'parallel'}} or leave it out of latents=[...] to have it integrated out"
                    )
                continue
            names.append(name)
        return names

    def _check_outcome(self, traces: list[poutine.Trace]) -> tuple[bool, int | None]:
        known = [name for name, _ in _sites(traces[0])]
        if any(self.outcome not in trace.nodes for trace in traces):
            raise ValueError(f"outcome must be a sample site of the program; got {self.outcome!r}; it has {known}")
        event = traces[0].nodes[self.outcome]["fn"].event_shape
        if traces[0].nodes[self.outcome]["fn"].support.is_discrete:
            raise ValueError(
                f"the outcome {self.outcome!r} must be continuous; its distribution is discrete: counts and choices "
                "need another head"
            )
        shapes = [tuple(trace.nodes[self.outcome]["value"].shape) for trace in traces]
        single = all(shape == tuple(event) for shape in shapes)
        if len(event) > 1 or not (single or all(s == (n, *event) for s, n in zip(shapes, PROBES, strict=True))):
            raise ValueError(
                f"the outcome {self.outcome!r} must have shape (n,) or (n, D_y) for inputs (n, D_x), or the event's "
                f"shape for one observation; got {shapes[0]} for n = {PROBES[0]}, {shapes[1]} for n = {PROBES[1]}; put "
                'it into pyro.plate("trials", x.shape[-2])'
            )
        return single, event[0] if event else None

    def _check_latent(self, name: str, traces: list[poutine.Trace]) -> Latent:
        known = [known for known, _ in _sites(traces[0]) if known != self.outcome]
        if any(name not in trace.nodes or trace.nodes[name]["type"] != "sample" for trace in traces):
            raise ValueError(f"latents must be sample sites of every run of the program; got {name!r}; it has {known}")
        sites = [trace.nodes[name] for trace in traces]
        if sites[0]["is_observed"] or name == self.outcome:
            raise ValueError(f"latents must be latent sites of the program; got {name!r}, which is observed")
        shapes = {tuple(site["value"].shape) for site in sites}
        if len(shapes) > 1:
            raise ValueError(
                f"latents must have one shape; site {name!r} varies: {sorted(shapes)}; leave it out of latents=[...] "
                "to have it integrated out"
            )
        if sites[0]["fn"].support.is_discrete:
            raise ValueError(
                f"latents must be continuous; site {name!r} is discrete; leave it out of latents=[...] to have it "
                "integrated out"
            )
        if shapes != {tuple(sites[0]["fn"].event_shape)}:
            raise ValueError(
                f"latents must be outside plates; site {name!r} has shape {shapes.pop()} and event shape "
                f"{tuple(sites[0]['fn'].event_shape)}; use .expand([d]).to_event(1) for a vector"
            )
        found = {_latent(name, site) for site in sites}
        if len(found) > 1:
            raise ValueError(
                f"latents must have one support; that of site {name!r} varies from run to run; sample a standardised "
                "latent and transform it"
            )
        return found.pop()

    def _draw(self, num_datasets: int, num_trials: int, mode: str) -> Simulations:
        if mode == "loop":
            inputs = [self.inputs(num_trials) for _ in range(num_datasets)]
            traces = [self._run(x) for x in inputs]
            x = torch.stack(inputs)
        else:
            one = mode == "datasets" or num_datasets == 1
            x = torch.stack([self.inputs(num_trials) for _ in range(1 if one else num_datasets)])
            traces = [self._run(x[0] if mode == "datasets" else x, num_datasets)]
            x = x.expand(num_datasets, -1, -1)
        values = {s: torch.cat([t.nodes[s.name]["value"].reshape(-1, *s.shape) for t in traces]) for s in self.latents}
        latents = [latent.unconstrain(value) for latent, value in values.items()]
        shape = (-1, num_trials, self.dim_y or 1)
        y = torch.cat([t.nodes[self.outcome]["value"].reshape(shape) for t in traces])
        return Simulations(torch.cat(latents, -1).float(), x.float(), y.float())

    def _find_mode(self) -> Literal["inputs", "datasets", "loop"]:
        """How many data sets at once: each with its inputs, all with the same inputs, or one by one."""
        alone = None
        for mode in ("inputs", "datasets"):
            num_datasets, num_trials = 11, 1 if self.single else 7
            try:
                x = torch.stack([self.inputs(num_trials) for _ in range(num_datasets)])
                trace = self._run(x if mode == "inputs" else x[0], num_datasets)
            except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError):
                continue  # it cannot run this way: any error of the program's own says so
            lead = (num_datasets, *(1,) * self.nesting)
            event = () if self.dim_y is None else (self.dim_y,)
            expected = {s.name: (*lead, *s.shape) for s in self.latents}
            expected[self.outcome] = (*lead[:-1], num_trials, *event)
            if any(trace.nodes[n]["value"].shape != shape for n, shape in expected.items() if n in trace.nodes):
                continue
            alone = alone or self._draw(NUM_COMPARED, num_trials, "loop")
            if _same_law(alone, self._draw(NUM_COMPARED, num_trials, mode)):
                return mode
        return "loop"

    def _standardise(self) -> tuple[tuple[Latent, ...], tuple[tuple[float, ...], ...]]:
        """Location and scale of latents, inputs and outcomes under the prior: medians and interquartile ranges."""
        drawn = self.draw(NUM_FOR_SCALES if self.mode != "loop" else NUM_COMPARED, 1 if self.single else 8)
        loc, scale = drawn.latents.mean(0), drawn.latents.std(0)
        latents, first = [], 0
        for latent in self.latents:
            rows = slice(first, first + latent.size)
            standard = {"loc": _rounded(loc[rows]), "scale": _rounded(scale[rows])}
            latents.append(dataclasses.replace(latent, **standard))
            first += latent.size
        x, y = drawn.x.flatten(0, 1), drawn.y.flatten(0, 1)
        x_scale = x.std(0)
        x_scale = torch.where(x_scale > 0, x_scale, 1.0)
        low, middle, high = torch.quantile(y[:50_000], torch.tensor([0.25, 0.5, 0.75]), 0)
        y_scale = torch.maximum((high - low) / 1.349, 0.2 * y.std(0))
        y_scale = torch.where(y_scale > 0, y_scale, 1.0)
        scales = (_rounded(x.mean(0)), _rounded(x_scale), _rounded(middle), _rounded(y_scale))
        return tuple(latents), scales


def _no_inputs(num_trials: int) -> Tensor:
    return torch.zeros(num_trials, 1)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in values.tolist())


@contextlib.contextmanager
def _quietly():
    """Without Pyro's validation, and its warnings about plates."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _sites(trace: poutine.Trace) -> list[tuple[str, dict]]:
    """Sample sites that are no plates."""
    return [(n, s) for n, s in trace.nodes.items() if s["type"] == "sample" and not poutine.util.site_is_subsample(s)]


def _latent(name: str, site: dict) -> Latent:
    """The latent that a site's support makes.

    Raises:
        ValueError: If no unconstrained space is known for the support.
    """
    support, shape = site["fn"].support, tuple(site["fn"].event_shape)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.real or support is constraints.real_vector:
        return Latent(name, shape)
    if isinstance(support, type(constraints.simplex)):
        return Latent(name, shape, simplex=True)
    bounds = {
        bound: getattr(support, f"{bound}_bound") for bound in ("lower", "upper") if hasattr(support, f"{bound}_bound")
    }
    values = {bound: torch.as_tensor(value) for bound, value in bounds.items()}
    if not values or not isinstance(
        support,
        constraints.interval
        | constraints.half_open_interval
        | constraints.greater_than
        | constraints.greater_than_eq
        | constraints.less_than,
    ):
        raise ValueError(
            f"latents must have a real, bounded or simplex support; that of site {name!r} is {support}; transform it, "
            "or leave it out of latents=[...]"
        )
    if any(value.numel() > 1 and len(value.unique()) > 1 for value in values.values()):
        raise ValueError(f"latents must have the same bounds in all dimensions; those of site {name!r} differ")
    return Latent(name, shape, **{b: float(f"{float(v.flatten()[0]):.6g}") for b, v in values.items()})


def _same_law(a: Simulations, b: Simulations) -> bool:
    """Whether moments agree within 5 standard errors: of latents, of outcomes within a data set, and of both."""

    def features(drawn: Simulations, loc: Tensor, scale: Tensor) -> Tensor:
        y = torch.asinh((drawn.y - loc) / scale)  # (B, n, D_y); heavy tails have no moments
        theta = torch.asinh(drawn.latents - a.latents.median(0).values)
        mean, spread = y.mean(1), (y * y).mean(1)
        neighbours = (mean[1:] * mean[:-1]).mean(-1, keepdim=True)  # data sets are independent of each other
        mixed = (theta.unsqueeze(-1) * torch.cat([mean, spread], -1).unsqueeze(-2)).flatten(1)
        return torch.cat([theta, theta**2, mean, mean**2, spread, mixed], -1)[1:], neighbours

    scale = (a.y - a.y.median()).abs().median().clamp(min=1e-12)
    loc = a.y.median()
    for one, other in zip(features(a, loc, scale), features(b, loc, scale), strict=True):
        error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
        if bool(((one.mean(0) - other.mean(0)).abs() > 5 * error + 1e-6).any()):
            return False
    return True

"""Outcomes that a program computes, such as summary statistics: recorded by `pyro.deterministic`, not drawn.

Knows nothing of models.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import pyro.distributions as dist
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_arbuf.workflow.trace_sites import is_deterministic


@dataclasses.dataclass(frozen=True)
class ProgramWithComputedOutcome:
    """A program whose outcome is a sample site, also where the program records it by `pyro.deterministic`.

    There the site is drawn from a point mass, so that it is simulated, shaped and checked like any other. What is one
    trial's value and what is a batch is not known of a recorded one, whose event dimensions are all of it unless the
    program says otherwise. So they are those that the first run has, which must be of one data set.

    Attributes:
        program: The program.
        outcome: Names of the sites of the outcome; of a loop over trials, what they have in common.
        event_dims: Event dimensions of what is recorded, by outcome, from the first run on.
    """

    program: Callable[[Tensor], Any]
    outcome: Collection[str]
    event_dims: dict[str, int] = dataclasses.field(default_factory=dict, compare=False)

    def __call__(self, x: Tensor) -> Any:
        """A run of the program."""
        with _AsSampled(self.outcome, self.event_dims):
            return self.program(x)


class _AsSampled(Messenger):
    """Makes recorded sites sample sites."""

    def __init__(self, names: Collection[str], event_dims: dict[str, int]):
        super().__init__()
        self.names, self.event_dims = names, event_dims

    def _pyro_sample(self, msg: Any) -> None:
        name, value = msg["name"], msg["value"]
        stem, _, number = name.rpartition("_")
        outcome = stem if number.isdecimal() and name not in self.names else name
        if outcome not in self.names or not is_deterministic(msg) or not isinstance(value, Tensor):
            return
        plates = [-frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized and frame.dim is not None]
        own = min(len(msg["fn"].event_shape), value.dim() - max(plates, default=0))
        event_dim = self.event_dims.setdefault(outcome, max(0, own))
        msg["fn"] = dist.Delta(value, event_dim=event_dim)
        msg["value"], msg["is_observed"] = None, False
        msg["infer"] = {key: each for key, each in msg["infer"].items() if key != "_deterministic"}

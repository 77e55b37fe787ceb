"""The program of a network with the data of a context put in: its outcomes observed, its given latents fixed."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_arbuf.inference.outcome_sites import split_sites
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.random_state import restored_random_state
from pyro_arbuf.workflow.trace_sites import Site, is_deterministic, numbered, sample_sites


class ProgramWithData:
    """A program that observes the data of one data set at its outcome.

    The outcome is a site of all trials, of one observation, or, where there is none of its name, of a loop over trials,
    "y_0", "y_1" and so on. Values have the dtype of those that the site draws. Given latents are fixed, and no sites
    of the model that this is.

    Args:
        program: The program, a function of x.
        y: `(n,)` or `(n, D_y)` outcomes, as the network has them.
        given: Values of latents in their own supports.
        config: Of the network.
        names: Of the sites of the program, from `names_of_sites`.

    Raises:
        ValueError: If the sites of a loop are not numbered as its trials are.
    """

    def __init__(
        self, program: Callable, y: Tensor, given: Mapping[str, Tensor], config: ModelConfig, names: Collection[str]
    ):
        home = torch.get_default_device()  # where the program makes its tensors
        outcomes = {name: value.to(home) for name, value in split_sites(y, config).items()}
        self.program = program
        self.outcomes = tuple(outcomes)
        self._data: dict[str, Tensor] = {}
        for name, value in outcomes.items():
            observed = value[0] if config.one_observation else value
            self._data[name] = observed
            if loop := _loop_sites(name, names):
                self._data |= dict(zip(_checked_loop(name, loop, observed), observed.unbind(), strict=True))
        self.given = {name: value.to(home) for name, value in given.items()}
        self._dtypes: dict[str, torch.dtype] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A run of the program."""
        with _DataMessenger(self.value_of, self.given):
            return self.program(*args, **kwargs)

    def value_of(self, site: Site) -> Tensor | None:
        """What was observed at a site; `None` = it is none of the outcome.

        Raises:
            ValueError: If the outcome is computed.
        """
        name = site["name"]
        if name not in self._data:
            return None
        if is_deterministic(site):
            raise ValueError(
                f"a program must draw its outcome to be given with a posterior; got {name!r}, which is computed by "
                "pyro.deterministic and has no density; call to_datatree(posterior) without it"
            )
        if name not in self._dtypes:
            with restored_random_state():
                self._dtypes[name] = site["fn"].sample().dtype
        return self._data[name].to(self._dtypes[name])


def names_of_sites(program: Callable, latents: Mapping[str, Tensor], args: tuple) -> list[str]:
    """Names of the sites of a run of a program at values of its latents; random states are given back."""
    with torch.no_grad(), restored_random_state():
        return list(sample_sites(poutine.trace(poutine.condition(program, dict(latents))).get_trace(*args)))


def _loop_sites(name: str, names: Collection[str]) -> list[str]:
    """Sites of a loop over trials, which are called as the outcome is, with a number behind it; none beside its own."""
    return [] if name in names else numbered(name, names)


def _checked_loop(name: str, loop: list[str], observed: Tensor) -> list[str]:
    """Sites of a loop in the order of the trials.

    Raises:
        ValueError: If they are not numbered from 0 to n-1.
    """
    num_trials = len(observed) if observed.dim() else 0
    expected = [f"{name}_{i}" for i in range(num_trials)]
    missing, others = ([each for each in a if each not in b] for a, b in ((expected, loop), (loop, expected)))
    if missing or others:
        got = f"no {missing[0]}" if missing else f"{others[0]} too"
        raise ValueError(
            f"a program must draw the {num_trials} observations at one site {name!r}, or in a loop at {name}_0 to "
            f"{name}_{num_trials - 1}; got {got}; number them from 0 to n-1, one for each row of x"
        )
    return expected


class _DataMessenger(Messenger):
    """Puts values in at the sites of a program; given latents are hidden from whatever runs it."""

    def __init__(self, value_of: Callable[[Site], Tensor | None], given: Mapping[str, Tensor]):
        super().__init__()
        self._value_of, self._given = value_of, given

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self._given:
            msg["value"], msg["is_observed"], msg["stop"] = self._given[msg["name"]], True, True
            return
        value = self._value_of(msg)
        if value is not None:
            msg["value"], msg["is_observed"] = value, True

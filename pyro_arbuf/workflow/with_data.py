"""The program of a network with the data of a context put in: its outcomes observed, its given latents fixed."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_arbuf.inference.outcome_sites import split_sites
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.random_state import restored_random_state
from pyro_arbuf.workflow.trace_sites import Site, is_deterministic


class ProgramWithData:
    """A program that observes the data of one data set at its outcome.

    The outcome is a site of all trials, of one observation, or of a loop over trials, "y_0", "y_1" and so on. Values
    have the dtype of those that the site draws. Given latents are fixed, and no sites of the model that this is.

    Args:
        program: The program, a function of x.
        y: `(n,)` or `(n, D_y)` outcomes, as the network has them.
        given: Values of latents in their own supports.
        config: Of the network.
    """

    def __init__(self, program: Callable, y: Tensor, given: Mapping[str, Tensor], config: ModelConfig):
        home = torch.get_default_device()  # where the program makes its tensors
        outcomes = {name: value.to(home) for name, value in split_sites(y, config).items()}
        self.program = program
        self.data = {name: value[0] if config.one_observation else value for name, value in outcomes.items()}
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
        stem, _, number = name.rpartition("_")
        if name not in self.data and not (stem in self.data and number.isdecimal()):
            return None
        if is_deterministic(site):
            raise ValueError(
                f"a program must draw its outcome to be given with a posterior; got {name!r}, which is computed by "
                "pyro.deterministic and has no density; call to_datatree(posterior) without it"
            )
        if name not in self._dtypes:
            with restored_random_state():
                self._dtypes[name] = site["fn"].sample().dtype
        value = self.data[name] if name in self.data else self.data[stem][int(number)]
        return value.to(self._dtypes[name])


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

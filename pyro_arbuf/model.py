"""ArBufferModel: a Network to which a user gives observations, which become a Context.

Knows nothing of orders, of blocks of targets, or of Pyro.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from torch import Tensor

from pyro_arbuf.display import as_html, facts
from pyro_arbuf.inference.conditioning import make_context
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.description import describe_network
from pyro_arbuf.inference.units import Stated, configure_units
from pyro_arbuf.inference.validation import inference_scope
from pyro_arbuf.network.backbone import Backbone
from pyro_arbuf.network.config import ModelConfig, names_of
from pyro_arbuf.network.embedding import Embedder
from pyro_arbuf.network.heads import Head
from pyro_arbuf.network.network import Network
from pyro_arbuf.network.parts import Measured


class ArBufferModel(Network):
    """A set model with a causal autoregressive buffer.

    Args:
        config: Sizes, head and trained ranges.
        embedder: In place of the one that the configuration describes; likewise the other parts, see `Network`.
        backbone: Likewise.
        head: Likewise.

    Raises:
        ValueError: If a location is so large that its scale is lost beside it, or the configuration is of another
            architecture.

    Attributes:
        simulator: The `Simulator` of the program it was amortised from; dropped when pickled or copied.

    Source:
        Hassan et al. (2026), section 3.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedder: Embedder | None = None,
        backbone: Backbone | None = None,
        head: Head | None = None,
    ):
        super().__init__(config, embedder, backbone, head)
        self.simulator: object | None = None

    def __repr__(self) -> str:
        """What it takes and was trained on; its modules are `net.backbone` and the like."""
        lines = "".join(f"\n  {what}: {text}" for what, text in describe_network(self).items())
        return f"{type(self).__name__}({lines}\n)"

    def _repr_html_(self) -> str:
        return as_html(type(self).__name__, facts(describe_network(self)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"simulator": None}  # programs are often local functions, which cannot be pickled

    def replace_measured(self, **measured: float | None) -> None:
        """Stores what was measured on this network in its configuration, which nothing else may change.

        Args:
            **measured: `evidence_rmse`, nats, and `evidence_trials`, for how many trials; `None` = not measured.

        Raises:
            ValueError: If another field of the configuration is named.
        """
        others = sorted(set(measured) - set(names_of(Measured)))
        if others:
            raise ValueError(f"only {names_of(Measured)} of a network's configuration can be replaced; got {others}")
        self.__dict__["config"] = dataclasses.replace(self.config, **measured)

    def in_units(
        self,
        x: Any = None,
        y: Any = None,
        *,
        x_range: Any = None,
        x_loc: Any = None,
        x_scale: Any = None,
        y_loc: Any = None,
        y_scale: Any = None,
    ) -> Self:
        """The same network speaking the user's units: an affine map of every input column and real outcome dimension.

        Everything that takes or returns inputs or outcomes is then in these units: draws, densities (with the
        Jacobian), moments, cross-validation, evidence. Units replace those that the network had; `in_units()` takes
        them away. What is neither given nor stated stays as the network has it.

        Args:
            x: Inputs, of observations and of targets: a tensor, an array, a table, or a list of them, which are pooled.
                The range of each column is put onto the one that the network was trained on.
            y: Outcomes, likewise; NaN is skipped. Their mean and standard deviation are put onto those of the
                network's own outcomes, 0 and 1 where it does not say.
            x_range: Instead of `x`, the pair of numbers or dates that is put onto the trained range; for several
                columns a tuple of pairs, `None` for a column that stays as it is.
            x_loc: Instead of `x`, an input of the user is x_loc + x_scale times the network's; a number or a date, or
                one for every column; `None` = 0.
            x_scale: Likewise, a number or a duration; `None` = 1.
            y_loc: Instead of `y`, an outcome of the user is y_loc + y_scale times the network's; a number, or one for
                every dimension; `None` = 0, and for categories and counts.
            y_scale: Likewise; `None` = 1.

        Returns:
            A network of the same modules and weights.

        Raises:
            ValueError: If units of x or y are given in two ways, data have fewer than 2 rows, do not vary or require
                gradients, the network does not say its trained range, has latents (which take stated factors only), or
                its outcome is no real number, or a scale is too fine beside its location.

        Example:
            >>> import torch
            >>> model = ArBufferModel(ModelConfig(x_range=(-2.0, 2.0))).requires_grad_(False)
            >>> years, degrees = torch.tensor([1980.0, 2005.0, 2030.0]), torch.tensor([13.9, 14.3, 14.7])
            >>> net = model.in_units(x=years, y=degrees)
            >>> net.condition(years[:, None], degrees).x.flatten().tolist()
            [-2.0, 0.0, 2.0]
        """
        config = configure_units(self.config, x, y, Stated(x_range, x_loc, x_scale, y_loc, y_scale))
        new = copy.copy(self)  # of the same class and modules
        held = {name: copy.copy(value) for name, value in self.__dict__.items() if isinstance(value, dict)}
        new.__dict__.update(held, config=config, simulator=self.simulator)
        return new

    def condition(
        self,
        x: Any = None,
        y: Any = None,
        latents: Mapping[str, Tensor | float] | None = None,
        nan: Literal["raise", "drop"] = "raise",
    ) -> Context:
        """Encodes observations once, for any number of draws and densities.

        Args:
            x: `(*batch, N, D_x)` inputs, in the units of the network or, after `in_units`, of the user; or a list of B
                tensors `(N_b, D_x)` of different lengths; `None` = no observation (N = 0). Tensors, NumPy arrays,
                pandas tables and xarray arrays are taken, here and wherever inputs and outcomes are. Of a network of
                tables `(*batch, N, D)`, 1 <= D <= D_x, in any units and NaN where a cell is missing; the context
                standardises them and is what its targets are standardised by.
            y: `(*batch, N)` for a scalar outcome, `(*batch, N, D_y)` for a vector outcome; or a list of B such
                tensors without batch. Of several sites, ("choice", "rt"), also a dict of them, each `(*batch, N)`.
            latents: Values `(*batch, *shape)` of some of `net.latents`, in their own supports, which are then given
                like observations; `None` = none.
            nan: What an outcome that is NaN does: `"raise"` a ValueError; `"drop"` leaves its pair out, also where only
                one dimension of the outcome is NaN. Contexts of a batch may then hold different numbers of pairs.

        Returns:
            A `Context` of batch shape `*batch`, or `(B,)` for lists. Permuting the N pairs changes nothing.

        Raises:
            ValueError: If a shape, dtype or device is wrong, a value is infinite, or NaN and neither dropped nor a
                missing cell, or a latent is unknown or outside its support.

        Example:
            >>> import torch
            >>> model = ArBufferModel(ModelConfig()).requires_grad_(False)
            >>> model.condition(torch.zeros(5, 1), torch.zeros(5)).num_context
            5
        """
        with inference_scope():
            return make_context(self, x, y, latents, nan)

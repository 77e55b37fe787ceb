"""ArBufferModel: a Network to which a user gives observations, which become a Context.

Knows nothing of orders, of blocks of targets, or of Pyro.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from pyro_arbuf.inference.conditioning import make_context
from pyro_arbuf.inference.context import Context
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
        ValueError: If a location is so large that its scale is lost beside it.

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

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"simulator": None}  # programs are often local functions, which cannot be pickled

    def replace_measured(self, **measured: float | None) -> None:
        """Stores what was measured on this network in its configuration, which nothing else may change.

        Args:
            **measured: `evidence_rmse`, nats; `None` = not measured.

        Raises:
            ValueError: If another field of the configuration is named.
        """
        others = sorted(set(measured) - set(names_of(Measured)))
        if others:
            raise ValueError(f"only {names_of(Measured)} of a network's configuration can be replaced; got {others}")
        self.__dict__["config"] = dataclasses.replace(self.config, **measured)

    def condition(
        self,
        x: Tensor | Sequence[Tensor] | None = None,
        y: Tensor | Mapping[str, Tensor] | Sequence[Tensor | Mapping[str, Tensor]] | None = None,
        latents: Mapping[str, Tensor | float] | None = None,
        nan: Literal["raise", "drop"] = "raise",
    ) -> Context:
        """Encodes observations once, for any number of draws and densities.

        Args:
            x: `(*batch, N, D_x)` inputs; or a list of B tensors `(N_b, D_x)` of different lengths; `None` = no
                observation (N = 0).
            y: `(*batch, N)` for a scalar outcome, `(*batch, N, D_y)` for a vector outcome; or a list of B such
                tensors without batch. Of several sites, ("choice", "rt"), also a dict of them, each `(*batch, N)`.
            latents: Values `(*batch, *shape)` of some of `net.latents`, in their own supports, which are then given
                like observations; `None` = none.
            nan: What an outcome that is NaN does: `"raise"` a ValueError; `"drop"` leaves its pair out, also where only
                one dimension of the outcome is NaN. Contexts of a batch may then hold different numbers of pairs.

        Returns:
            A `Context` of batch shape `*batch`, or `(B,)` for lists. Permuting the N pairs changes nothing.

        Raises:
            ValueError: If a shape, dtype or device is wrong, a value is infinite, or NaN and not dropped, or a latent
                is unknown or outside its support.

        Example:
            >>> import torch
            >>> model = ArBufferModel(ModelConfig()).requires_grad_(False)
            >>> model.condition(torch.zeros(5, 1), torch.zeros(5)).num_context
            5
        """
        with inference_scope():
            return make_context(self, x, y, latents, nan)

"""The learned likelihood from NumPy arrays to NumPy arrays: its value, and its gradients by one backward pass.

What every bridge calls. Knows nothing of JAX or PyTensor.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Size, Tensor

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.inference.data import x_tensor, y_tensor
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs.likelihood import likelihood
from pyro_arbuf.random_state import seeded
from pyro_arbuf.user_warnings import warn

COARSE = 1e-3  # of a network's units: by so much may inputs be rounded


class StandIn(NamedTuple):
    """What is known of an array while its numbers are not.

    Attributes:
        shape: Of the array.
    """

    shape: tuple[int, ...]


class ArrayLikelihood(NamedTuple):
    """The likelihood of a network as functions of arrays: inputs, outcomes, then all latents in the network's order.

    Arrays are `(*batch, n, D_x)`, `(*batch, n)` or `(*batch, n, D_y)`, and `(*batch, *shape)`; batches broadcast. The
    network computes in the dtype of its weights. Latents outside their support give NaN, as an exception would end a
    chain.

    Attributes:
        net: A network with latents.
        dtype: Of results.
        nan: What a NaN outcome does, as for `likelihood`.
        validate_args: Whether values of inputs and outcomes are checked in each call.
    """

    net: ArBufferModel
    dtype: str
    nan: Literal["raise", "drop"] = "raise"
    validate_args: bool = False

    @property
    def event_rank(self) -> int:
        """Dimensions of one event of outcomes."""
        return 1 if self.net.config.dim_y is None else 2

    @property
    def latent_ranks(self) -> list[int]:
        """Dimensions of one value of every latent."""
        return [len(latent.shape) for latent in self.net.config.latents]

    def rehearse(
        self, x: Any, latents: Mapping[str, tuple[int, ...]], y: Any = None
    ) -> ArBufferMarginals | ArBufferJoint:
        """Gives a user the errors and warnings of a call before another library makes it, where they are hard to read.

        Args:
            x: Inputs, an array or a table; or a `StandIn`.
            latents: Shapes of values, by name.
            y: Outcomes, likewise; `None` = not yet known.

        Returns:
            The likelihood at latents that mean nothing, which has its shapes.

        Raises:
            ValueError: As `likelihood` and its `log_prob`.
        """
        weight = next(self.net.parameters())

        def stand_in(shape: tuple[int, ...]) -> Tensor:
            return weight.new_zeros(shape).requires_grad_()  # so that nobody looks at the values

        given = {name: stand_in(shape) for name, shape in latents.items()}
        x, y = (stand_in(value.shape) if isinstance(value, StandIn) else value for value in (x, y))
        law = likelihood(self.net, x, given, nan=self.nan, validate_args=True)
        if y is not None:
            law.log_prob(y)
        return law

    def x_array(self, x: Any) -> np.ndarray:
        """Inputs that a rehearsal has checked, as an array."""
        return torch.as_tensor(x_tensor("x", x, self.net)).numpy(force=True)

    def warn_rounded(self, x: np.ndarray, rounded: np.ndarray) -> None:
        """Warns where inputs are rounded by more than a network that has units may pass over."""
        units = self.net.config.unit_map
        if units is None or units.x is None:
            return
        moved = np.abs(rounded.astype(np.float64) - x) / np.asarray(units.x[1])
        if moved.size and moved.max() > COARSE:
            warn(
                f"x is rounded to {rounded.dtype.name}, by up to {moved.max():.2g} of the network's units; "
                'let JAX keep float64 by jax.config.update("jax_enable_x64", True), or take the location off x and out '
                "of in_units"
            )

    def y_array(self, y: Any) -> np.ndarray:
        """Outcomes that a rehearsal has checked, as an array; sites side by side."""
        return torch.as_tensor(y_tensor("y", y, self.net)).numpy(force=True)

    def log_prob(self, x: Any, y: Any, *values: Any) -> np.ndarray:
        """Log densities, `(*batch,)` nats per event."""
        leaves = self._leaves(x, y, values)
        with torch.no_grad():
            return self._array(self._density(x, y, leaves))

    def log_prob_and_gradients(self, x: Any, y: Any, *values: Any) -> tuple[np.ndarray, ...]:
        """Log densities `(*batch,)`, then their derivatives by each latent, `(*batch, *shape)`.

        Elements of a batch do not depend on each other: one backward pass from their sum gives the gradients of all.
        """
        leaves = self._leaves(x, y, values)
        with torch.enable_grad():
            density = self._density(x, y, leaves)
            gradients = torch.autograd.grad(density.sum(), leaves)
        return tuple(self._array(result) for result in (density, *gradients))

    def sample(self, seeds: Any, x: Any, *values: Any) -> np.ndarray:
        """Outcomes `(*batch, n)` or `(*batch, n, D_y)`, a function of all seeds `(*batch,)`, which broadcast too."""
        shape = np.broadcast_shapes(np.shape(seeds), np.shape(x)[:-2], *self._batches(values))
        with torch.no_grad(), seeded(int(np.random.SeedSequence(np.ravel(seeds).tolist()).generate_state(1)[0])):
            return self._array(self._law(x, self._tensors(values)).expand(Size(shape)).sample())

    def _density(self, x: Any, y: Any, leaves: list[Tensor]) -> Tensor:
        return self._law(x, leaves).log_prob(_data(y).to(leaves[0].device))

    def _law(self, x: Any, leaves: list[Tensor]) -> ArBufferMarginals | ArBufferJoint:
        given = dict(zip(self.net.latents, leaves, strict=True))
        return likelihood(
            self.net, _data(x).to(leaves[0].device), given, nan=self.nan, validate_args=self.validate_args
        )

    def _leaves(self, x: Any, y: Any, values: tuple[Any, ...]) -> list[Tensor]:
        """Latents of every element of the batch, each a leaf of its own."""
        batch = np.broadcast_shapes(
            np.shape(x)[:-2], np.shape(y)[: np.ndim(y) - self.event_rank], *self._batches(values)
        )
        events = [np.shape(v)[np.ndim(v) - rank :] for v, rank in zip(values, self.latent_ranks, strict=True)]
        return self._tensors([np.broadcast_to(v, batch + event) for v, event in zip(values, events, strict=True)])

    def _batches(self, values: tuple[Any, ...]) -> list[tuple[int, ...]]:
        ranks = zip(values, self.latent_ranks, strict=True)
        return [np.shape(value)[: np.ndim(value) - rank] for value, rank in ranks]

    def _tensors(self, values: Any) -> list[Tensor]:
        """Latents as tensors that require gradients, at which nobody looks."""
        weight = next(self.net.parameters())
        return [_data(value).to(weight).requires_grad_() for value in values]

    def _array(self, result: Tensor) -> np.ndarray:
        return result.numpy(force=True).astype(self.dtype)


def _data(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value, dtype=np.float64))  # a copy: what other libraries hand over is read-only

"""Context: observations encoded once; an object the user holds.

Knows nothing of how a model embeds or reads, nor of a user's arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn

from pyro_arbuf.display import as_html, facts
from pyro_arbuf.inference.fingerprint import Fingerprint, take_fingerprint
from pyro_arbuf.inference.labels import NO_LABELS, Labels
from pyro_arbuf.inference.tables import Maps, make_map
from pyro_arbuf.inference.validation import expanded_shape, inference_scope
from pyro_arbuf.network.cache import ContextCache
from pyro_arbuf.network.network import Network
from pyro_arbuf.network.preprocessing import Statistics
from pyro_arbuf.network.tracing import is_traced


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Context:
    """Observations encoded by a model: what `ArBufferModel.condition` returns. Read-only.

    Made from a frozen model and plain tensors it is graph-free: encode once, use anywhere, pickle. Made from inputs
    that require gradients, or by a trainable model, it is live: part of one autograd graph, to be made inside the
    function that is differentiated (a Pyro model), used there and dropped.

    Attributes:
        model: The model that made it.
        x: `(B, N, D_x)`, in the network's units, batch flattened, zeros where padded; of a model with latents with
            their location column, the latents given among the rows that are no padding; of tables standardised, NaN
            where a cell is missing, and of one column where N = 0.
        y: `(B, N, D_y)`, in the network's units, batch flattened, zeros where padded.
        context_len: `(B,)` int64, pairs per task; `None` = N for all.
        task_shape: Batch shape of what is stored, B elements.
        batch_shape: `*batch`; `task_shape` broadcasts to it.
        cache: Keys and values of every layer.
        fingerprint: Of the weights that made it: of large networks, of a sample of them.
        latents: Names of the latents that are given.
        tracked: Whether an input required gradients when it was made.
        graph: Node of the autograd graph of a live context; `None` = graph-free.
        statistics: Of tables and recordings, of the observations that `condition` was given, `(B, 1, .)` each, float64:
            they stay where others join the context later.
        labels: What tables of the observations said of their columns.
    """

    model: Network
    x: Tensor
    y: Tensor
    context_len: Tensor | None
    task_shape: Size
    batch_shape: Size
    cache: ContextCache
    fingerprint: Fingerprint
    latents: tuple[str, ...] = ()
    tracked: bool = False
    graph: torch.autograd.graph.Node | None = None
    statistics: Statistics | None = None
    labels: Labels = NO_LABELS

    @property
    def maps(self) -> Maps | None:
        """The map between a user's numbers and the network's, which may be one per task; `None` = they are the same."""
        return make_map(self.model.config, self.statistics, self.task_shape)

    @property
    def num_columns(self) -> int | None:
        """Columns that targets have to have; `None` = any number, of tables without rows."""
        config = self.model.config
        return None if config.missing_x and not self.x.shape[1] else self.x.shape[-1]

    def x_like(self, x: Tensor) -> Tensor:
        """Inputs `(B, N, D)` of the pairs; where there are none, of the columns that other inputs `(*, D)` have."""
        return self.x if self.x.shape[1] else self.x.new_zeros(len(self.x), 0, x.shape[-1])

    @property
    def num_context(self) -> int:
        """Number of observed pairs N, of the longest context where they differ; latents do not count."""
        return self.x.shape[1] - self.num_given

    @property
    def num_given(self) -> int:
        """Number of latent locations that are given."""
        return sum(latent.size for latent in self.model.config.latents if latent.name in self.latents)

    @property
    def observations(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs `(B, N, D_x)`, outcomes `(B, N, D_y)`, `(B,)` lengths of the pairs, in the network's units."""
        length = None if self.context_len is None else self.context_len - self.num_given
        observed = ~self._at_latent
        return self.x[:, observed, : self.model.config.dim_x], self.y[:, observed], length

    @property
    def given(self) -> Tensor:
        """Unconstrained numbers `(B, P')` of the latents that are given, in the order of their locations."""
        return self.y[:, self._at_latent, 0]

    @property
    def _at_latent(self) -> Tensor:
        """Which of the N + P' rows are latents, `(N + P',)` bool: the same ones in all tasks."""
        return (self.x[0, :, self.model.config.dim_x :] > 0).any(-1)

    @property
    def live(self) -> bool:
        """Whether it is part of an autograd graph."""
        return self.graph is not None

    def __repr__(self) -> str:
        latents = f", latents={list(self.latents)}" if self.latents else ""
        return f"Context(num_context={self.num_context}, batch_shape={tuple(self.batch_shape)}{latents})"

    def _repr_html_(self) -> str:
        lines = {
            "observed": f"{'' if self.context_len is None else 'up to '}{self.num_context} pairs",
            "batch": str(tuple(self.batch_shape)) if self.batch_shape else "none: one data set",
            "network": f"prior {self.model.config.prior or 'not declared'}",
            "gradients": "live: to be used once" if self.live else "none: use it anywhere",
        }
        return as_html("Context", facts(lines | ({"given latents": ", ".join(self.latents)} if self.latents else {})))

    def __getitem__(self, index: Any) -> Context:
        """The contexts at an index of the batch: a plate's subsample, or a discrete latent's choice.

        Args:
            index: Whatever indexes a tensor of shape `*batch`: an integer, a slice, an int64 tensor of any shape.

        Returns:
            A Context of the indexed batch shape.

        Raises:
            ValueError: If there is no batch, the index lies outside it, or it selects nothing.
        """
        rows = torch.arange(self.x.shape[0], device=self.x.device).view(self.task_shape).expand(self.batch_shape)
        try:
            rows = rows[index]
        except (IndexError, TypeError) as error:
            raise ValueError(
                f"index must fit the batch shape {tuple(self.batch_shape)} of this Context; {error}"
            ) from None
        if rows.numel() == 0:
            raise ValueError(f"index must select at least one context; got the batch shape {tuple(rows.shape)}")
        return self._select(rows)

    def __iter__(self) -> Iterator[Context]:
        """The contexts along the first dimension of the batch."""
        if not self.batch_shape:
            raise ValueError("only a Context with a batch can be iterated over; got batch_shape ()")
        return (self[i] for i in range(self.batch_shape[0]))

    def expand(self, *batch_shape: int | Sequence[int]) -> Context:
        """The same contexts with a larger batch shape; nothing is copied.

        Args:
            batch_shape: New batch shape, to which the present one broadcasts: integers or one sequence.

        Raises:
            ValueError: If it does not.
        """
        shape = [size for part in batch_shape for size in ([part] if isinstance(part, int) else part)]
        return dataclasses.replace(self, batch_shape=expanded_shape("batch_shape", self.batch_shape, shape))

    def to(self, *args: Any, **kwargs: Any) -> Context:
        """These contexts on the device and in the dtype that the model has been moved to, encoded anew there.

        Args:
            *args: As `torch.Tensor.to` takes them.
            **kwargs: Likewise.

        Raises:
            ValueError: If the model is not there: `net.to(...)` comes first.
        """
        weight = next(self.model.parameters())
        x, y = self.x.to(*args, **kwargs), self.y.to(*args, **kwargs)
        if (x.dtype, x.device) != (weight.dtype, weight.device):
            raise ValueError(
                f"a Context goes where its model is, {weight.dtype} on {weight.device}; got {x.dtype} on {x.device}; "
                "move the model first with net.to(...)"
            )
        length = None if self.context_len is None else self.context_len.to(x.device)
        own = self.statistics
        moved = None if own is None else own._make(part.to(x.device) for part in own)
        shapes = (self.task_shape, self.batch_shape)
        given = (self.latents, self.tracked, moved, self.labels)
        return encode_pairs(self.model, x, y, length, *shapes, *given)

    def _select(self, rows: Tensor) -> Context:
        """The contexts at flat row numbers, of the batch shape of `rows`."""
        flat = rows.flatten()
        own = self.statistics
        statistics = None if own is None else own._make(part[flat] for part in own)
        return dataclasses.replace(
            self,
            x=self.x[flat],
            y=self.y[flat],
            context_len=None if self.context_len is None else self.context_len[flat],
            task_shape=rows.shape,
            batch_shape=rows.shape,
            cache=self.cache.select(flat),  # which has lengths of its own: an empty context is one token
            statistics=statistics,
        )

    def __getstate__(self) -> dict[str, object]:
        if self.live:
            raise RuntimeError(
                "a live Context (made from inputs or weights that require gradients) cannot be pickled or copied; "
                "make it where it is used with net.condition(x, y)"
            )
        check_current(self)
        return {k: v for k, v in self.__dict__.items() if k not in ("cache", "fingerprint")}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Encodes anew: keys and values are many times the size of what they come from."""
        self.__dict__.update(state)
        with torch.no_grad(), inference_scope():
            cache = self.model.encode(self.x, self.y, self.context_len)
        self.__dict__.update(cache=cache, fingerprint=take_fingerprint(constants(parts(self.model))))


class _Freed(torch.autograd.Function):
    """Identity whose node tells whether backward has freed the graph it is in."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(tensor)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient


def encode_pairs(
    model: Network,
    x: Tensor,
    y: Tensor,
    context_len: Tensor | None,
    task_shape: Size,
    batch_shape: Size,
    latents: tuple[str, ...],
    tracked: bool,
    statistics: Statistics | None = None,
    labels: Labels = NO_LABELS,
) -> Context:
    """Encodes checked pairs `(B, N, .)` of B tasks as a Context, live where gradients reach its keys."""
    with inference_scope():
        cache, graph = model.encode(x, y, context_len), None
    if cache.keys[0].requires_grad:
        first = cache.keys[0] if is_traced() else _Freed.apply(cache.keys[0])
        cache, graph = cache._replace(keys=(first, *cache.keys[1:])), first.grad_fn
    checksum = take_fingerprint(constants(parts(model)))
    shapes = (task_shape, batch_shape)
    return Context(model, x, y, context_len, *shapes, cache, checksum, latents, tracked, graph, statistics, labels)


def check_current(context: Context) -> None:
    """Checks that a context was made with the weights its model has now, where they are now.

    As far as a `Fingerprint` shows it: of a network of more than 4 million numbers a change of a few rows may pass.

    Raises:
        RuntimeError: If the weights have changed or moved since, gradients are wanted that it does not carry, or
            backward has gone through it already.
    """
    remedy = "make it anew with context = model.condition(x, y)"
    inside = "condition inside the function that is differentiated"
    modules = parts(context.model)
    weights = constants(modules)
    weight = next(context.model.parameters())
    _check_modules(modules, weight)
    if (weight.dtype, weight.device) != (context.x.dtype, context.x.device):
        raise RuntimeError(
            f"the model is {weight.dtype} on {weight.device} now, this Context {context.x.dtype} on "
            f"{context.x.device}; {remedy}"
        )
    if torch.is_grad_enabled() and not context.live:
        if context.tracked:
            raise RuntimeError(
                "this Context was made without gradients (torch.no_grad) from inputs that require them, so gradients "
                f"would be silently incomplete; {inside}, or condition on x.detach(), y.detach()"
            )
        if any(w.requires_grad for w in weights):
            raise RuntimeError(
                "the model is trainable but this Context was made without gradients, which would be silently "
                f"incomplete; {inside}, or freeze the model with requires_grad_(False)"
            )
    if torch.is_grad_enabled() and _is_freed(context):
        raise RuntimeError(
            f"backward has gone through this live Context already: it serves one gradient; {inside}, once per call"
        )
    if not context.fingerprint.matches(weights):
        raise RuntimeError(f"the model's weights have changed since this Context was made; {remedy}")


def _is_freed(context: Context) -> bool:
    if is_traced() or context.graph is None or context.graph.name() != "_FreedBackward":  # or it was made in a trace
        return False
    try:
        return not context.graph.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    except RuntimeError:  # how torch says it
        return True


def check_mode(model: Network) -> None:
    """Checks that the model can give densities: exact enough, and the same ones twice.

    Raises:
        RuntimeError: If its weights have half precision, or a dropout layer is in training mode.
    """
    _check_modules(parts(model), next(model.parameters()))


def _check_modules(modules: Sequence[nn.Module], weight: Tensor) -> None:
    if weight.element_size() < 4:
        raise RuntimeError(
            f"the model's weights must be float32 or float64; got {weight.dtype}, which costs densities 0.01 nats per "
            "target and more; use net.float()"
        )
    dropout = torch.nn.modules.dropout._DropoutNd
    if any(isinstance(m, dropout) and m.training and m.p > 0 for m in modules):
        raise RuntimeError("the model has dropout in training mode, so its densities are random; call model.eval()")


def parts(model: Network) -> list[nn.Module]:
    """The modules of a network: as `modules()` has them, in a third of the time, as every density asks for them."""
    found: list[nn.Module] = [model]
    for module in found:  # which grows
        found += [part for part in module._modules.values() if part is not None]
    return found


def constants(modules: Sequence[nn.Module]) -> list[Tensor]:
    """What an encoding depends on besides the data, of a network's modules: weights and standardisation."""
    return [
        tensor
        for m in modules
        for held in (m._parameters, m._buffers)
        for tensor in held.values()
        if tensor is not None
    ]

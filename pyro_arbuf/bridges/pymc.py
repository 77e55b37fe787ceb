# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""The learned likelihood as a PyTensor operation, for PyMC. Needs PyMC, the extra `pymc`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pyro_arbuf.bridges.arrays import ArrayLikelihood
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.programs.likelihood import check_given

try:
    import pytensor
    import pytensor.tensor as pt
    from pytensor.gradient import DisconnectedType, grad_not_implemented, grad_undefined
    from pytensor.graph.basic import Apply, Variable
    from pytensor.graph.op import Op
except ImportError as error:
    raise ImportError("pyro_arbuf.bridges.pymc needs PyMC; pip install 'pyro-arbuf[pymc]'") from error


def log_likelihood(
    net: ArBufferModel,
    x: Any,
    latents: Mapping[str, Any],
    y: Any,
    nan: Literal["raise", "drop"] = "raise",
) -> pt.TensorVariable:
    """Log density of a program's outcomes given all its latents, as `pyro_arbuf.likelihood` has it, in PyTensor.

    Write `pm.Potential("y", log_likelihood(net, x, latents, y).sum())` inside a PyMC model. Value and gradient come
    together from torch. There are first derivatives by the latents, and no others.

    Args:
        net: A network with latents.
        x: `(*batch, n, D_x)` inputs, in the units of the network; numbers, or a variable such as `pm.Data`.
        latents: Values `(*batch, *shape)` of all latents, in their own supports.
        y: `(*batch, n)` or `(*batch, n, D_y)` outcomes, in the units of the network, likewise.
        nan: What a NaN outcome does: `"raise"` a ValueError, or `"drop"` the trial.

    Returns:
        `(*batch,)` nats per event, of PyTensor's `floatX`; the network computes in the dtype of its weights.

    Raises:
        ValueError: As `pyro_arbuf.likelihood`; of shapes that PyTensor does not know yet, when they are computed with.

    Example:
        >>> import pyro_arbuf, torch
        >>> net = pyro_arbuf.load("gaussian")
        >>> latents = {"mu": pt.zeros(3), "tau": 1.0}
        >>> log_likelihood(net, torch.zeros(5, 1), latents, torch.zeros(5)).eval().shape
        (3,)
    """
    check_given(net, latents)
    ours = ArrayLikelihood(net, pytensor.config.floatX, nan, validate_args=True)
    values = {name: pt.as_tensor(value, dtype=pytensor.config.floatX) for name, value in latents.items()}
    shapes = {name: value.type.shape for name, value in values.items()}
    if not any(isinstance(data, Variable) for data in (x, y)) and None not in sum(shapes.values(), ()):
        ours.rehearse(x, shapes, y)
    x = x if isinstance(x, Variable) else pt.constant(ours.x_array(x))
    y = y if isinstance(y, Variable) else pt.constant(ours.y_array(y))
    ordered = [values[name] for name in net.latents]
    return _LogLikelihood(ours)(x, y, *_of_one_batch(ours, x, y, ordered))[0]


def _of_one_batch(
    ours: ArrayLikelihood, x: pt.TensorVariable, y: pt.TensorVariable, values: Sequence[pt.TensorVariable]
) -> list[pt.TensorVariable]:
    """Latents broadcast to the batch of all arguments, so that PyTensor sums gradients over what repeats."""
    ranks = [2, ours.event_rank, *ours.latent_ranks]
    batches = [value[(..., *(0,) * rank)] for value, rank in zip((x, y, *values), ranks, strict=True)]
    if not any(batch.ndim for batch in batches):
        return list(values)
    batch = pt.broadcast_shape(*batches)
    events = [value.shape[value.ndim - rank :] for value, rank in zip(values, ours.latent_ranks, strict=True)]
    return [pt.broadcast_to(value, (*batch, *event)) for value, event in zip(values, events, strict=True)]


class _LogLikelihood(Op):
    """Log densities of inputs, outcomes and latents of one batch, then their derivatives by every latent."""

    __props__ = ("ours",)

    def __init__(self, ours: ArrayLikelihood):
        self.ours = ours

    def __str__(self) -> str:
        return "LogLikelihood"

    def make_node(self, x: Any, y: Any, *values: Any) -> Apply:
        """One node of the graph."""
        rank = values[0].ndim - self.ours.latent_ranks[0]
        outputs = [pt.tensor(dtype=values[0].dtype, shape=values[0].type.shape[:rank])]
        return Apply(self, [x, y, *values], [*outputs, *(value.type() for value in values)])

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: Any) -> None:
        """Computes all outputs in torch."""
        for storage, result in zip(output_storage, self.ours.log_prob_and_gradients(*inputs), strict=True):
            storage[0] = result

    def L_op(self, inputs: Any, outputs: Any, output_grads: Any) -> list[Any]:  # noqa: N802
        """Derivatives by the latents; those by data, and derivatives of derivatives, are errors of PyTensor."""
        weight, *second = output_grads
        if not all(isinstance(each.type, DisconnectedType) for each in second):
            text = "the bridge to torch has first derivatives only"
            return [grad_not_implemented(self, index, value, text) for index, value in enumerate(inputs)]
        text = "inputs and outcomes must be data; the bridge to torch has derivatives by latents only"
        data = [grad_undefined(self, index, inputs[index], text) for index in range(2)]
        ranks = zip(outputs[1:], self.ours.latent_ranks, strict=True)
        return [*data, *(pt.shape_padright(weight, rank) * gradient for gradient, rank in ranks)]

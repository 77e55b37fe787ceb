"""Whether operations are recorded or transformed rather than only run: then no value and no gradient flag may decide.

What requires gradients now says nothing of what a recorded function will be differentiated by later. Knows nothing of
models or users.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils import _python_dispatch


def is_transformed() -> bool:
    """Whether `torch.func` (grad, vmap, jacrev, jvp, ...) or forward differentiation is at work.

    Their tensors hide what they hold from Python, and fused attention has neither batching rules nor tangents.
    """
    if torch.compiler.is_compiling():  # Dynamo cannot look below
        return False
    return _functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def is_traced() -> bool:
    """Whether anything records or transforms: `torch.jit.trace`, compile, export, `make_fx` or `torch.func`."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or is_transformed()
        or torch._C._len_torch_dispatch_stack() > 0  # make_fx and its kind
    )


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """A scope in which nothing is recorded or transformed: for numbers that depend on no input of the function."""
    if torch.compiler.is_compiling():
        yield
        return
    state = torch._C._get_tracing_state()
    with contextlib.ExitStack() as stack:
        if is_transformed():
            stack.enter_context(torch._C._DisableFuncTorch())
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(_python_dispatch._disable_current_modes())
        torch._C._set_tracing_state(None)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            torch._C._set_tracing_state(state)  # pyright: ignore[reportAttributeAccessIssue]


def unwrapped(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """What `torch.func` has wrapped, for use where nothing is recorded; any other tensors as they are."""
    while is_transformed() and any(map(_functorch.is_functorch_wrapped_tensor, tensors)):
        inner, wrapped = _functorch.get_unwrapped, _functorch.is_functorch_wrapped_tensor
        tensors = [inner(tensor) if wrapped(tensor) else tensor for tensor in tensors]
    return tensors

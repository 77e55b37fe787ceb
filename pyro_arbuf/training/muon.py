"""Muon of all matrices of one shape at once.

`torch.optim.Muon` takes one matrix after the other, in bfloat16, which on a CPU costs a fifth of a step of a small
network. Here those of one shape are one batched product, in their own precision; settings and state are torch's.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon`, several times as fast for many small matrices; arguments and state dict are the same.

    Its rate is that of AdamW: an update of an (A, B) matrix is scaled by 0.2 sqrt(max(A, B)).

    Args:
        matrices: The parameters, all of two dimensions.
        lr: Learning rate.
        weight_decay: Times the learning rate, the share by which a step shrinks them.

    Raises:
        ValueError: If a parameter has not two dimensions.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, weight_decay: float = 0.0):
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for matrices in alike.values():
                self._update(matrices, group)
        return loss

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """The step of matrices of one shape."""
        gradients = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
        momenta = []
        for matrix, gradient in zip(matrices, gradients, strict=True):
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
            momenta.append(self.state[matrix]["momentum_buffer"].lerp_(gradient, 1 - group["momentum"]))
        updates = gradients.lerp(torch.stack(momenta), group["momentum"])
        updates = orthogonalized(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = group["lr"] * 0.2 * max(matrices[0].shape) ** 0.5
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonalized(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton-Schulz steps towards the nearest matrix with orthonormal rows or columns, of each matrix `(n, A, B)`."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    found = matrices.mT if tall else matrices
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, gram, found, beta=a)
    return found.mT if tall else found

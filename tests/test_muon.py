"""Muon of all matrices of one shape at once, against torch's and a plain one in float64."""

import pytest
import torch
from torch import Tensor, nn

from pyro_arbuf.training.muon import BatchedMuon

SHAPES = [(6, 6), (9, 4), (6, 6), (4, 9), (6, 6)]


def matrices(dtype: torch.dtype) -> list[nn.Parameter]:
    """Matrices of several shapes; the last one gets no gradient."""
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(*shape, generator=generator).to(dtype)) for shape in SHAPES]


def loss(weights: list[nn.Parameter]) -> Tensor:
    return sum(((weight - 0.3 * k).pow(4)).sum() for k, weight in enumerate(weights[:-1]))  # pyright: ignore


def plain_step(weight: Tensor, gradient: Tensor, momentum: Tensor, rate: float) -> None:
    """Keller Jordan's Muon of one matrix, with Nesterov momentum of 0.95 and the rate of AdamW."""
    momentum.copy_(0.95 * momentum + 0.05 * gradient)
    update = 0.05 * gradient + 0.95 * momentum
    left, values, right = torch.linalg.svd(update / update.norm(), full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    weight -= rate * 0.2 * max(weight.shape) ** 0.5 * (left * values) @ right


def test_steps_are_those_of_the_plain_version() -> None:
    weights = matrices(torch.float64)
    expected, momenta = [w.detach().clone() for w in weights], [torch.zeros_like(w) for w in weights]
    optimizer = BatchedMuon(weights, lr=0.02)
    for _ in range(4):
        optimizer.zero_grad()
        loss(weights).backward()
        for k in range(len(SHAPES) - 1):
            plain_step(expected[k], weights[k].grad, momenta[k], 0.02)  # pyright: ignore[reportArgumentType]
        optimizer.step()
    for weight, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach(), other, atol=1e-10, rtol=0)


def test_state_goes_on_where_that_of_torch_stopped() -> None:
    weights, others = matrices(torch.float32), matrices(torch.float32)
    first = torch.optim.Muon(others, lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    second = BatchedMuon(weights, lr=0.02)
    for optimizer, mine in ((first, others), (second, weights)):
        loss(mine).backward()
        optimizer.step()
    for weight, other in zip(weights, others, strict=True):
        assert (weight - other).norm() < 0.01 * (other - 0.3).norm()  # torch rounds to bfloat16
    second.load_state_dict(first.state_dict())
    second.step()
    assert second.state_dict()["param_groups"] == first.state_dict()["param_groups"]


def test_closure_s_loss_comes_back() -> None:
    weights = matrices(torch.float32)
    optimizer = BatchedMuon(weights, lr=0.02)

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss(weights)
        total.backward()
        return total

    before = optimizer.step(closure)
    assert closure() < before


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="only supports 2D parameters"):
        BatchedMuon([nn.Parameter(torch.zeros(3))], lr=0.02)

"""Fingerprints: of few numbers every change is seen, of many any change of a whole tensor or column."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_arbuf.inference import fingerprint
from pyro_arbuf.inference.context import check_current, constants, parts
from pyro_arbuf.inference.fingerprint import take_fingerprint
from tests.tiny import tiny_model


def tensors_of_a_network() -> list[Tensor]:
    return constants(parts(tiny_model().eval().requires_grad_(False)))


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Tensors of a network that counts as large, most matrices too."""
    monkeypatch.setattr(fingerprint, "EXACT", 100)
    monkeypatch.setattr(fingerprint, "SMALL", 40)
    return tensors_of_a_network()


def negate(tensor: Tensor) -> None:
    tensor.data.neg_()


def write_elsewhere(tensor: Tensor) -> None:
    tensor.data = tensor.data + 1.0


def add_to_a_column(tensor: Tensor) -> None:
    tensor.data[..., -1] += 0.1


def permute_columns(tensor: Tensor) -> None:
    tensor.data = tensor.data.roll(1, -1)


CHANGES = pytest.mark.parametrize("change", [negate, write_elsewhere, add_to_a_column, permute_columns])


def assert_every_change_is_seen(tensors: list[Tensor], change: Callable[[Tensor], None]) -> None:
    before = take_fingerprint(tensors)
    for tensor in tensors:
        old = tensor.clone()
        change(tensor)
        assert torch.equal(tensor, old) or not before.matches(tensors)
        tensor.data = old
        assert before.matches(tensors)


@CHANGES
def test_change_of_a_whole_tensor_or_column_is_seen_in_a_large_network(
    change: Callable[[Tensor], None], large: list[Tensor]
) -> None:
    assert_every_change_is_seen(large, change)


@CHANGES
def test_change_of_a_whole_tensor_or_column_is_seen(change: Callable[[Tensor], None]) -> None:
    assert_every_change_is_seen(tensors_of_a_network(), change)


def test_change_of_any_single_number_is_seen_in_a_network_of_usual_size() -> None:
    tensors = tensors_of_a_network()
    before = take_fingerprint(tensors)
    for tensor in tensors:
        for index in torch.randperm(tensor.numel())[:5].tolist():
            flat = tensor.view(-1)
            old = flat[index].item()
            flat[index] = old + 0.01
            assert not before.matches(tensors)
            flat[index] = old
    assert before.matches(tensors)


def test_of_a_large_network_few_numbers_are_read_in_place(large: list[Tensor]) -> None:
    taken = take_fingerprint(large)
    assert sum(map(Tensor.numel, taken.sample)) < 0.5 * sum(map(Tensor.numel, large))
    places = {tensor.untyped_storage().data_ptr() for tensor in large}
    assert all(part.is_contiguous() and part.untyped_storage().data_ptr() in places for part in taken.sample)
    matrix = next(tensor for tensor in large if tensor.dim() == 2 and tensor.numel() > 40)
    matrix[61 * large_index(large, matrix) % len(matrix) - 1, 0] += 1.0  # the row before the one that is read
    assert taken.matches(large)  # as documented


def large_index(tensors: list[Tensor], wanted: Tensor) -> int:
    return next(i for i, tensor in enumerate(tensors) if tensor is wanted)


def test_rows_of_transposed_matrices_are_read_where_they_are_now(large: list[Tensor]) -> None:
    for tensor in large:
        if tensor.dim() == 2:
            tensor.data = tensor.data.t().contiguous().t()  # flat it would be a copy
    before = take_fingerprint(large)
    assert not before.sample and before.matches(large)
    for tensor in large:
        negate(tensor)
        assert not before.matches(large) or not tensor.any()
        negate(tensor)


def test_square_matrix_transposed_in_its_place_is_seen(large: list[Tensor]) -> None:
    before = take_fingerprint(large)
    for tensor in large:
        if tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]:
            address = tensor.data_ptr()
            tensor.data = tensor.data.t()
            assert tensor.data_ptr() == address and not before.matches(large)
            tensor.data = tensor.data.t()


def test_step_of_an_optimiser_is_seen_in_a_large_network(large: list[Tensor]) -> None:
    model = tiny_model()
    context = model.eval().requires_grad_(False).condition(torch.rand(5, 1), torch.rand(5))
    check_current(context)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True).step()
    with pytest.raises(RuntimeError, match="weights have changed since this Context was made"):
        check_current(context)


def test_moved_weights_are_seen_and_weights_moved_back_are_the_same(large: list[Tensor]) -> None:
    model = tiny_model().eval().requires_grad_(False)
    context = model.condition(torch.rand(5, 1), torch.rand(5))
    model.double()
    with pytest.raises(RuntimeError, match=r"the model is torch\.float64 on cpu now"):
        check_current(context)
    model.float()
    check_current(context)

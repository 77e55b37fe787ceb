"""Tests of orders of targets."""

import math

import pytest
import torch

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.orders import (
    average_orders,
    check_index,
    check_orders,
    inverse_orders,
    paired_error,
    random_orders,
    restrict_orders,
)


def test_random_orders_are_permutations():
    orders = random_orders(6, 40, seed=3)
    assert orders.shape == (40, 6) and orders.dtype == torch.int64
    assert (orders.sort(-1).values == torch.arange(6)).all()
    assert len({tuple(row) for row in orders.tolist()}) > 30


def test_random_orders_is_a_pure_function():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = random_orders(6, 4, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(random_orders(6, 4, seed=5), first)
    assert not torch.equal(random_orders(6, 4, seed=6), first)


def test_fewer_orders_are_the_first_of_more():
    assert torch.equal(random_orders(6, 8)[:3], random_orders(6, 3))


def test_all_orders_are_equally_likely():
    counts = torch.zeros(3, 3)
    for row in random_orders(3, 6000).tolist():
        for place, target in enumerate(row):
            counts[place, target] += 1
    assert (counts - 2000).abs().max() < 5 * (6000 * (1 / 3) * (2 / 3)) ** 0.5


def test_inverse_undoes_an_order():
    orders = random_orders(6, 5, seed=1)
    y = torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(y.gather(-1, orders).gather(-1, inverse_orders(orders)), y)


@pytest.mark.parametrize(("num_targets", "num_orders"), [(0, 1), (1, 0)])
def test_counts_below_one_are_errors(num_targets, num_orders):
    with pytest.raises(ValueError, match="at least 1"):
        random_orders(num_targets, num_orders)


@pytest.mark.parametrize(
    ("orders", "got"),
    [
        ([[0, 1, 2]], "list"),
        (torch.tensor([[0.0, 1.0, 2.0]]), "float32"),
        (torch.tensor([[0, 1, 2]], dtype=torch.int32), "int32"),
        (torch.tensor([0, 1, 2]), r"shape \(3,\)"),
        (torch.tensor([[0, 1]]), r"shape \(1, 2\)"),
        (torch.empty(0, 3, dtype=torch.int64), r"shape \(0, 3\)"),
        (torch.tensor([[0, 1, 2], [0, 2, 2]]), r"row 1 is \[0, 2, 2\]"),
        (torch.tensor([[1, 2, 3]]), "row 0"),
    ],
)
def test_wrong_orders_are_errors_that_say_what_is_wrong(orders, got):
    with pytest.raises(ValueError, match=f"orders must be an int64 tensor of shape .R, 3.*{got}"):
        check_orders(orders, 3)


def test_right_orders_are_returned_as_they_are():
    orders = random_orders(3, 2)
    assert check_orders(orders, 3) is orders


def test_restricted_orders_keep_who_comes_before_whom():
    orders, kept = random_orders(6, 5), [0, 2, 3, 5]
    keep = torch.tensor([m in kept for m in range(6)])
    expected = [[kept.index(m) for m in order if m in kept] for order in orders.tolist()]
    assert restrict_orders(orders, keep).tolist() == expected


@pytest.mark.parametrize("keep", [torch.ones(4, dtype=torch.bool), torch.arange(4) == 2])
def test_restriction_to_all_or_one(keep):
    orders = random_orders(4, 3)
    expected = orders if keep.all() else torch.zeros(3, 1, dtype=torch.int64)
    assert torch.equal(restrict_orders(orders, keep), expected)


@pytest.mark.parametrize("count", [2.0, True, "2"])
def test_counts_that_are_no_integers_are_errors(count):
    with pytest.raises(ValueError, match=f"num_orders must be an integer of at least 1; got {count!r}"):
        random_orders(3, count)
    with pytest.raises(ValueError, match=f"num_targets must be an integer of at least 1; got {count!r}"):
        random_orders(count, 3)


@pytest.mark.parametrize("num_orders", [16, 64])
@pytest.mark.parametrize("sd", [0.3, 3.0, 10.0])
def test_error_over_orders_covers_the_spread_between_sets_of_orders(sd, num_orders):
    """Log densities of the orders N(0, sd^2), 400 sets of them: the delta method alone says 1 nat at most."""
    log_prob_orders = sd * torch.randn(400, num_orders, dtype=torch.float64)
    spread = average_orders(log_prob_orders)
    between = spread.log_prob.std()
    assert 0.85 < spread.standard_error.mean() / between < 2.0
    both = (spread.standard_error[:200].square() + spread.standard_error[200:].square()).sqrt()
    inside = (spread.log_prob[:200] - spread.log_prob[200:]).abs() < 1.96 * both
    assert inside.double().mean() > 0.9
    assert (spread.effective_orders > num_orders / 4).all() == (sd == 0.3)


@pytest.mark.parametrize("num_orders", [16, 64])
@pytest.mark.parametrize("sd", [0.3, 3.0, 10.0])
def test_paired_error_covers_the_spread_of_differences(sd, num_orders):
    shared = sd * torch.randn(400, num_orders, dtype=torch.float64)
    first, second = (shared + 0.5 * sd * torch.randn(400, num_orders, dtype=torch.float64) for _ in range(2))
    error = paired_error(first, second)
    between = (average_orders(first).log_prob - average_orders(second).log_prob).std()
    assert 0.85 < error.mean() / between < 2.0
    assert (paired_error(first, first) == 0).all()


def test_error_over_even_orders_is_that_of_the_delta_method():
    log_prob_orders = 0.3 * torch.randn(3, 8, dtype=torch.float64)
    density = log_prob_orders.exp()
    spread = average_orders(log_prob_orders)
    expected = density.std(-1) / density.mean(-1) / math.sqrt(8)
    torch.testing.assert_close(spread.standard_error, expected)
    torch.testing.assert_close(spread.effective_orders, density.sum(-1).square() / density.square().sum(-1))


@pytest.mark.parametrize("num_orders", [2, 3, 5])
def test_few_orders_far_apart_have_an_error_that_grows_with_their_distance(num_orders):
    log_prob_orders = torch.tensor([0.0] + [-30.0] * (num_orders - 1), dtype=torch.float64)
    errors = [average_orders(scale * log_prob_orders).standard_error for scale in (1, 2)]
    assert 15 < errors[0] < 30 < errors[1] < 60


@pytest.mark.parametrize("index", [[4, 1], (4, 1), torch.tensor([4, 1]), range(4, 0, -3)])
def test_index_is_returned_in_the_order_given(index):
    chosen = check_index(index, 6)
    assert chosen.tolist() == [4, 1] and chosen.dtype == torch.int64


@pytest.mark.parametrize("index", [[], (), torch.zeros(0, dtype=torch.int64)])
def test_empty_index_is_allowed(index):
    assert check_index(index, 6).shape == (0,)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")
def test_trace_keeps_the_orders(scalar_model):
    """Traced once and called again: the same orders, whatever the state of the global generator."""
    x, context = torch.randn(6, 2, dtype=torch.float64), scalar_model.condition()

    def density(y: torch.Tensor) -> torch.Tensor:
        return ArBufferJoint(context, x, orders=random_orders(6, 3)).log_prob(y)

    trace = torch.jit.trace(density, (torch.zeros(6, dtype=torch.float64),), check_trace=False)
    y = torch.randn(4, 6, dtype=torch.float64)
    assert random_orders(6, 3).unique(dim=0).shape == (3, 6)
    for value in y:
        torch.testing.assert_close(trace(value), density(value), rtol=1e-10, atol=1e-10)


def test_at_least_one_order_counts_whatever_the_rounding():
    per_order = torch.tensor([[-3e6, -4e6, -5e6, -3.5e6], [-3e7 + 1, -3e7, -3e7 - 1, -3e7 + 2]])  # float32
    assert (average_orders(per_order).effective_orders >= 1).all()

"""Fading sums over earlier trials: by their definition, and read from the past that a token may read alone."""

import dataclasses
import math

import pytest
import torch

from pyro_arbuf import ArBufferJoint
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.traces import LONGEST, Traces, Trail, extended, fading_rates

SPACING = 0.5
SIZES = {"width": 16, "num_layers": 2, "num_heads": 2, "mlp_width": 8, "embedding_width": 8, "head_width": 8}


@pytest.fixture(scope="module")
def traces():
    torch.manual_seed(0)
    return Traces(3, num_features=4, num_numbers=2, hidden_width=5, num_learned=1).double().requires_grad_(False)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    config = ModelConfig(
        **SIZES,
        buffer_size=4,
        num_components=2,
        num_frequencies=4,
        max_frequency=math.pi / SPACING,
        sequential=True,
        dependent=True,
        lag_column=0,
        num_traces=2,
    )
    return ArBufferModel(config).double().requires_grad_(False)


def test_sums_are_those_of_the_definition_and_skip_what_is_no_trial(traces):
    features = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    known = torch.tensor([True, True, False, True, True, True])
    times = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0, 9.0], dtype=torch.float64)
    values = traces.values(features, known)
    got = traces(torch.tensor([4.0, 5.0], dtype=torch.float64), Trail(times, values)).view(2, 3, -1)
    for q, t in enumerate((4.0, 5.0)):
        for r, rate in enumerate(fading_rates(3).tolist()):
            past = [
                (t - s, v) for s, v, real in zip(times.tolist(), values, known.tolist(), strict=True) if s < t and real
            ]
            expected = sum((1 - rate) * rate ** (lag - 1) * v for lag, v in past)
            torch.testing.assert_close(got[q, r], expected + torch.zeros(4, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(values[:2, 1:3], features[:2, :2])  # the first features enter as they are
    assert values[2].eq(0).all()


def test_the_first_sum_is_the_trial_before_and_says_whether_it_is_known(traces):
    values = traces.values(torch.ones(1, 4, dtype=torch.float64), torch.ones(1, dtype=torch.bool))
    trail = Trail(torch.zeros(1, dtype=torch.float64), values)
    after, later = traces(torch.tensor([1.0, 2.0], dtype=torch.float64), trail).view(2, 3, -1)[:, 0]
    torch.testing.assert_close(after, values[0])
    assert later.eq(0).all()


def test_what_is_far_off_or_hidden_or_not_earlier_counts_for_nothing(traces):
    values = torch.ones(3, 4, dtype=torch.float64)
    trail = Trail(torch.tensor([0.0, 700.0, 701.0], dtype=torch.float64), values)
    now = torch.tensor([LONGEST + 1.0], dtype=torch.float64)
    assert traces(now, trail).eq(0).all()
    seen = traces(torch.tensor([702.0], dtype=torch.float64), trail, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(seen, traces(torch.tensor([702.0], dtype=torch.float64), Trail(*(t[:2] for t in trail))))


def test_sums_of_tasks_with_the_same_times_are_those_of_each(traces):
    generator = torch.Generator().manual_seed(2)
    times, values = torch.arange(5, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64, generator=generator)
    now, visible = torch.tensor([2.0, 6.0], dtype=torch.float64), torch.rand(2, 5, generator=generator) < 0.7
    each = torch.stack([traces(now, Trail(times, own), visible) for own in values])
    same = traces(now.expand(3, -1), Trail(times.expand(3, -1), values), visible)
    torch.testing.assert_close(same, each, rtol=1e-12, atol=1e-12)
    shifts = torch.tensor([[0.0], [3.0], [1.0]], dtype=torch.float64)
    shifted = traces(now + shifts, Trail(times + shifts, values), visible)  # the same lags, the times of none another's
    torch.testing.assert_close(shifted, each, rtol=1e-12, atol=1e-12)


def test_trails_of_tasks_and_draws_are_joined():
    first = Trail(torch.zeros(2, 1, 3), torch.zeros(2, 4, 3, 5))
    both = extended(first, Trail(torch.ones(2, 1, 1), torch.ones(2, 1, 1, 5)))
    assert both is not None and both.time.shape == (2, 1, 4) and both.values.shape == (2, 4, 4, 5)
    assert extended(None, first) is first and extended(first, None) is first and extended(None, None) is None


def test_no_target_reads_an_outcome_behind_it_in_the_chain(net):
    x = SPACING * torch.arange(9, dtype=torch.float64)[:, None]
    y = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    joint = ArBufferJoint(net.condition(x[:3], y[:3].detach()), x[3:])
    factors = joint.log_prob_factors(y[3:])
    for k in range(6):
        (gradient,) = torch.autograd.grad(factors[k], y, retain_graph=True)
        assert gradient[4 + k :].eq(0).all() and gradient[3 : 4 + k].ne(0).all()


@pytest.mark.parametrize("num_draws", [1, 4])
def test_forecasts_beyond_a_gap_are_drawn_from_the_density_that_is_scored(net, num_draws):
    x, y = SPACING * torch.arange(9, dtype=torch.float64)[:, None], torch.randn(9, dtype=torch.float64)
    joint = ArBufferJoint(net.condition(x[:3], y[:3]), x[5:])
    torch.manual_seed(3)
    drawn = joint.sample((num_draws,))  # decoded step by step
    torch.manual_seed(3)
    again = ArBufferJoint(net.condition(x[:3], y[:3]), x[5:], rsample=True).rsample((num_draws,))  # scored at once
    torch.testing.assert_close(drawn, again, rtol=1e-10, atol=1e-10)


def test_traces_need_lags(net):
    with pytest.raises(ValueError, match="num_traces must be 0 in a network that sees no lags"):
        dataclasses.replace(net.config, lag_column=None)

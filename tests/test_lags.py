"""Attention that sees lags: of times it knows differences alone, and what has no time is as it was."""

import dataclasses
import math

import pytest
import torch

from pyro_arbuf import ArBufferJoint, amortize
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.lags import first_biases, turn_frequencies, turn_of, turned
from pyro_arbuf.network.latents import Latent
from pyro_arbuf.priors.ar1 import ar1

K, N, M = 3, 5, 8
SIZES = {"width": 16, "num_layers": 2, "num_heads": 2, "mlp_width": 8, "embedding_width": 8, "head_width": 8}
SPACING = 0.5  # of the trials, standardised
X = 1 + 2 * SPACING * torch.arange(N + M, dtype=torch.float64)[:, None]
Y = torch.randn(N + M, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    config = ModelConfig(
        **SIZES,
        buffer_size=K,
        num_components=2,
        num_frequencies=4,
        max_frequency=math.pi / SPACING,
        x_loc=(1.0,),
        x_scale=(2.0,),
        sequential=True,
        dependent=True,
        lag_column=0,
        num_traces=3,
        latents=(Latent("a"), Latent("b", lower=0.0)),
    )
    return ArBufferModel(config).double().requires_grad_(False)


def turned_products(q, k, times, shift=0.0):
    frequencies = turn_frequencies(math.pi, q.shape[-1]).double()
    turn = turn_of(times + shift, torch.ones_like(times), frequencies)
    biases = [bias.double() for bias in first_biases(2, frequencies, q.shape[-1])]
    return turned(q, biases[0], turn) @ turned(k, biases[1], turn).mT


def test_products_of_turned_queries_and_keys_depend_on_differences_of_times():
    q, k = torch.randn(2, 2, N, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    times = torch.tensor([0.0, 1.0, 2.0, 5.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(turned_products(q, k, times), turned_products(q, k, times, shift=3.7))


def test_the_first_head_begins_by_reading_the_trial_before():
    nothing, times = torch.zeros(2, 20, 16, dtype=torch.float64), torch.arange(20, dtype=torch.float64)
    before, free = (turned_products(nothing, nothing, times) / 4).softmax(-1)
    assert (before.diagonal(offset=-1) > 0.6).all()
    torch.testing.assert_close(free, torch.full_like(free, 1 / 20))  # of two heads the last one begins free


def test_absorbed_trials_are_read_as_those_of_a_context(net):
    together = ArBufferJoint(net.condition(X[:N], Y[:N]), X[N : N + 2 * K]).log_prob(Y[N : N + 2 * K])
    first = ArBufferJoint(net.condition(X[:N], Y[:N]), X[N : N + K]).log_prob(Y[N : N + K])
    then = ArBufferJoint(net.condition(X[: N + K], Y[: N + K]), X[N + K : N + 2 * K])
    torch.testing.assert_close(together, first + then.log_prob(Y[N + K : N + 2 * K]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_draws", [1, 4])
def test_draws_step_by_step_are_those_of_teacher_forcing(net, num_draws):
    joint = ArBufferJoint(net.condition(X[:N], Y[:N]), X[N:], rsample=True)
    torch.manual_seed(3)
    drawn = joint.sample((num_draws,))
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, joint.rsample((num_draws,)), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:x of a series skips trials")
def test_an_empty_context_has_no_time_alone_and_beside_others(net):
    alone = ArBufferJoint(net.condition(), X[:K]).log_prob(Y[:K])
    beside = ArBufferJoint(net.condition([X[:0], X[:N]], [Y[:0], Y[:N]]), X[:K]).log_prob(Y[:K])
    torch.testing.assert_close(beside[0], alone, rtol=1e-12, atol=1e-12)


def test_latents_are_not_turned(net):
    location = torch.tensor([[[9.0, 1.0], [9.0, 2.0], [9.0, 0.0]]], dtype=torch.float64)
    turn = net.embedder.turn(net.embedder.inputs(location))
    assert turn.timed.flatten().tolist() == [0.0, 0.0, 1.0]
    assert turn.part(slice(2)).cos.eq(1).all() and turn.part(slice(2)).sin.eq(0).all()


def test_a_program_whose_trials_are_numbered_has_lags_of_one_trial():
    sizes = SIZES | {"buffer_size": 4, "num_components": 2}
    config = amortize(ar1, num_context=(0, 20), steps=1, report=False, **sizes).config
    assert config.lag_column == 0 and config.x_scale is not None
    assert config.max_frequency / config.x_scale[0] == pytest.approx(math.pi, rel=1e-4)


@pytest.mark.parametrize("wrong", [1, -1, True, 0.0])
def test_a_column_that_is_none_is_refused(net, wrong):
    with pytest.raises(ValueError, match="lag_column must be the number of an input column, below 1"):
        dataclasses.replace(net.config, lag_column=wrong)

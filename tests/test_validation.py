"""What a user gets wrong most: counts for shapes, columns, numbers that a network cannot tell apart."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from latent_nets import SCALAR
from samples import draw

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import Latent

N, M = 5, 6


@pytest.fixture(scope="module")
def column_net(build_model):
    """One input column, one outcome."""
    return build_model(dim_x=1)


DISTRIBUTIONS = {
    "joint": lambda net: ArBufferJoint(net.condition(), draw(M, 2), rsample=True),
    "marginals": lambda net: ArBufferMarginals(net.condition(), draw(M, 2)),
    "posterior": lambda net: ArBufferPosterior(net.condition(), rsample=True),
}
WRONG_SHAPES = {
    5: "sample_shape must be a tuple of integers; got 5; for 5 draws write (5,)",
    2.0: "sample_shape must be a tuple of integers; got 2.0",
    (2.0,): "every number in sample_shape must be an integer of at least 0; got 2.0",
    (-1,): "every number in sample_shape must be an integer of at least 0; got -1",
    (True,): "every number in sample_shape must be an integer of at least 0; got True",
    "ab": "sample_shape must be a tuple of integers; got 'ab'",
}


@pytest.mark.parametrize("shape", WRONG_SHAPES)
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_number_for_a_shape_of_draws_is_refused_with_the_shape_to_write(kind, shape, build_model):
    d = DISTRIBUTIONS[kind](build_model(**SCALAR))
    for method in [d.sample, *([d.rsample] if d.has_rsample else [])]:
        with pytest.raises(ValueError, match=re.escape(WRONG_SHAPES[shape])):
            method(shape)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_shapes_of_draws_are_any_sequence_of_integers(kind, build_model):
    d = DISTRIBUTIONS[kind](build_model(**SCALAR))
    for shape in ((2,), [2], torch.Size([2]), (np.int64(2),)):
        assert d.sample(shape).shape == (2, 6)


@pytest.mark.parametrize("number", [2.0, "5", None, 1, True])
def test_moments_and_orders_of_no_whole_number_are_refused(number, column_net):
    joint = ArBufferJoint(column_net.condition(), draw(M, 1))
    with pytest.raises(ValueError, match=f"num_samples must be an integer of at least 2; got {number!r}"):
        joint.moments(number)
    if number != 1 or number is True:
        with pytest.raises(ValueError, match=f"num_orders must be an integer of at least 1; got {number!r}"):
            random_orders(M, number)
    assert joint.moments(np.int64(3)).mean.shape == (M,)


@pytest.mark.parametrize("what", ["mean", "variance"])
def test_moments_of_a_posterior_say_what_to_call(what, build_model):
    posterior = ArBufferPosterior(build_model(**SCALAR).condition())
    with pytest.raises(NotImplementedError, match=r"no closed form; use d.sample\(\(1000,\)\).*own supports"):
        getattr(posterior, what)


# Columns


def test_four_columns_for_a_network_of_one_are_not_told_to_unsqueeze(column_net):
    rule = r"x must have shape \(\*batch, points, 1\); got \(5, 4\); the network has one input column: give one"
    with pytest.raises(ValueError, match=rule):
        column_net.condition(draw(N, 4), draw(N))
    with pytest.raises(ValueError, match=rule):
        ArBufferJoint(column_net.condition(), draw(N, 4))
    with pytest.raises(ValueError, match=r"got \(5,\); the network has one input column: use x.unsqueeze\(-1\)$"):
        column_net.condition(draw(N), draw(N))


def test_one_column_for_a_network_of_several_is_not_told_to_unsqueeze(scalar_model):
    with pytest.raises(ValueError, match=r"got \(5,\); the network has 2 input columns$"):
        scalar_model.condition(draw(N), draw(N))


def test_two_outcomes_for_a_network_of_one_are_told_so(column_net, build_model):
    with pytest.raises(ValueError, match=r"got 5 and 2; the network has one outcome, so y has shape \(\*batch, poi"):
        column_net.condition(draw(N, 1), draw(N, 2))
    for kind in (ArBufferJoint, ArBufferMarginals):
        with pytest.raises(ValueError, match=r"\(\*batch, 5\); got \(5, 2\); the network has one outcome, .* 2 col"):
            kind(column_net.condition(), draw(N, 1)).log_prob(draw(N, 2))
    one = build_model(dim_x=1, dim_y=1)
    with pytest.raises(ValueError, match=r"got \(5, 2\); the network has one outcome dimension: give one of the 2 col"):
        one.condition(draw(N, 1), draw(N, 2))


# Numbers that float32 cannot tell apart

FAR = {
    "x": {"x_loc": (1e9,), "x_scale": (3.0,)},
    "y": {"y_loc": (-1e9,), "y_scale": (3.0,)},
    "latent 'm'": {"latents": (Latent("m", loc=(2e7,), scale=(1.0,)),)},
}


@pytest.mark.parametrize("name", FAR)
def test_network_whose_numbers_are_lost_beside_their_location_is_refused(name):
    with pytest.raises(ValueError, match=f"the scale of {name} must be at least 1e-05 of its.*subtract the location"):
        ArBufferModel(ModelConfig(**FAR[name]))
    torch.set_default_dtype(torch.float64)
    try:
        ArBufferModel(ModelConfig(**FAR[name]))
    finally:
        torch.set_default_dtype(torch.float32)


def test_years_are_told_apart():
    ArBufferModel(dataclasses.replace(ModelConfig(), x_loc=(2019.987,), x_scale=(0.2,)))

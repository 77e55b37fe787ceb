"""Outcomes whose squares overflow have density 0, and poison nothing."""

import pytest
import torch
from latent_nets import SCALAR, VECTOR
from samples import draw, outcome
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.orders import random_orders

N, M = 5, 6
SIZES = [(torch.float32, 1e19), (torch.float32, -1e25), (torch.float32, 3e38), (torch.float64, -1e300)]
KINDS = {
    "plain": {},
    "vector": {"dim_y": 3},
    "chained": {"dim_y": 3, "chained": True},
    "latents": SCALAR,
    "vector with latents": VECTOR,
}


@pytest.fixture(params=KINDS)
def fields(request):
    return KINDS[request.param]


def far(y, size):
    y = y.clone()
    y.view(-1)[1] = size
    return y


USES = {
    "joint": lambda c, x: ArBufferJoint(c, x).log_prob,
    "joint in blocks": lambda c, x: ArBufferJoint(c, x, buffer_size=2).log_prob,
    "joint in orders": lambda c, x: ArBufferJoint(c, x, random_orders(M, 3)).log_prob,
    "marginals": lambda c, x: ArBufferMarginals(c, x).log_prob,
}


@pytest.mark.parametrize(("dtype", "size"), SIZES)
@pytest.mark.parametrize("use", USES)
def test_log_density_of_an_outcome_far_out_is_minus_infinity(use, dtype, size, fields, build_model):
    net = build_model(**fields).to(dtype)
    try:
        x, y = draw(N, 2, dtype=dtype), draw(N, *outcome(net), dtype=dtype, seed=1)
        log_prob = USES[use](net.condition(x, y), draw(M, 2, seed=2, dtype=dtype))
        target = far(draw(M, *outcome(net), seed=3, dtype=dtype), size).requires_grad_()
        density = log_prob(target)
        (gradient,) = torch.autograd.grad(density, target)
        assert density == -torch.inf or (density < -1e30 and density.isfinite())
        assert not gradient.isnan().any()
    finally:
        net.double()


@pytest.mark.parametrize(("dtype", "size"), SIZES)
def test_only_the_far_outcome_has_a_density_of_zero(dtype, size, build_model):
    net = build_model().to(dtype)
    try:
        joint = ArBufferJoint(net.condition(), draw(M, 2, dtype=dtype), torch.arange(M)[None])
        y = far(draw(M, seed=3, dtype=dtype), size)
        for factors in (joint.log_prob_factors(y), joint.log_prob_conditionals(y)):
            assert not factors.isnan().any()
            assert factors[[0, 2, 3, 4, 5]].abs().max() < 1e30
        assert joint.log_prob_factors(y)[1] < -1e30 and not joint.pit(y).isnan().any()
        context = net.condition(draw(N, 2, dtype=dtype), far(draw(N, seed=4, dtype=dtype), size))
        assert ArBufferJoint(context, draw(M, 2, dtype=dtype)).log_prob(draw(M, dtype=dtype)).isfinite()
    finally:
        net.double()


@pytest.mark.parametrize(("dtype", "size"), SIZES)
def test_log_density_of_a_latent_far_out_is_minus_infinity(dtype, size, build_model):
    net = build_model(**SCALAR).to(dtype)
    try:
        value = far(draw(6, dtype=dtype), size).requires_grad_()
        density = ArBufferPosterior(net.condition()).log_prob(value)
        assert density < -1e30 and not torch.autograd.grad(density, value)[0].isnan().any()
    finally:
        net.double()


def test_far_outcome_is_read_as_its_limit(build_model):
    """What is read after an outcome far out no longer depends on how far out it is."""
    joint = ArBufferJoint(build_model().condition(), draw(M, 2), torch.arange(M)[None])
    first, *others = (joint.log_prob_factors(far(draw(M, seed=3), size))[2:] for size in (1e13, 1e15, 1e140))
    for other in others:
        assert_close(other, first, rtol=1e-9, atol=1e-9)

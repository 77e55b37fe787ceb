"""Targets of equal inputs are read once, and their densities and gradients are those of each read alone."""

import copy

import pytest
import torch
from latent_nets import NETS, SCALAR, values
from samples import draw, draw_outcomes
from torch.testing import assert_close

from pyro_arbuf import ArBufferMarginals, ArBufferPosterior
from pyro_arbuf.inference.layout import distinct, repeated

B, S, M = 2, 3, 7
LEVELS = draw(3, 2, seed=1)
WHICH = torch.tensor([[2, 0, 0, 1, 0, 2, 2], [1, 1, 0, 2, 2, 2, 0]])
UNSCALED = {name: field for name, field in SCALAR.items() if name not in ("y_loc", "y_scale")} | {"chained": True}
KINDS = NETS | {
    "chained": UNSCALED | {"dim_y": 3, "outcomes": ("categorical(3)", "count", "real")},
    "count": UNSCALED | {"outcomes": ("count",)},
    "categories": UNSCALED | {"outcomes": ("categorical(3)",)},
}


def close(got, expected):
    assert_close(got, expected, rtol=0, atol=1e-10)


def gradient(density, latents, **options):
    return torch.autograd.grad(density.sum(), list(latents.values()), **options)


def given(*batch):
    return {name: value.requires_grad_() for name, value in values(*batch).items()}


@pytest.mark.parametrize("num_draws", [1, S])
def test_what_holds_of_distinct_inputs_is_put_back_in_their_place(num_draws):
    x = LEVELS[WHICH[:, None].expand(-1, num_draws, -1)]
    own, which = distinct(x)
    assert own.shape == (B, 1, 3, 2) and which.shape == x.shape[:-1]
    assert torch.equal(repeated(own, which), x)
    assert torch.equal(repeated(own[..., None, :], which), x[..., None, :])


def test_inputs_that_differ_or_are_differentiated_are_left_as_they_are():
    assert distinct(draw(B, 1, M, 2)) is None
    assert distinct(LEVELS[WHICH[:, None, :5]]) is None  # three of five: nothing is gained
    assert distinct(LEVELS[WHICH[:, None]].requires_grad_()) is None
    assert distinct(torch.full((1, 1, M, 2), torch.nan)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_likelihood_of_equal_inputs_is_that_of_each_alone_with_its_gradient(build_model, kind):
    net, latents, x = build_model(**KINDS[kind]), given(B), LEVELS[WHICH]
    y = draw_outcomes(net.config, B, M)
    y = y if net.config.dim_y else y.squeeze(-1)
    context = net.condition(latents=latents)
    together = ArBufferMarginals(context, x).log_prob_factors(y)
    alone = [ArBufferMarginals(context, x[:, m, None]).log_prob_factors(y[:, m, None]) for m in range(M)]
    close(together, torch.cat(alone, -1))
    gradients = gradient(together, latents, retain_graph=True), gradient(torch.cat(alone, -1), latents)
    for got, expected in zip(*gradients, strict=True):
        close(got, expected)


@pytest.mark.parametrize("batch", [(), (S, 1), (S, B)])
def test_equal_inputs_broadcast_as_others_do(build_model, batch):
    net = build_model(**SCALAR)
    x, y = LEVELS[WHICH].expand(*batch[:1], B, M, 2), draw(B, M)
    law = ArBufferMarginals(net.condition(latents=values(*batch)), x)
    apart = ArBufferMarginals(
        net.condition(latents=values(*batch)), x.clone().requires_grad_()
    )  # which is not looked at
    assert law.batch_shape == apart.batch_shape
    close(law.log_prob(y), apart.log_prob(y))
    close(law.mean, apart.mean)
    torch.manual_seed(0)
    draws = law.sample((4,))
    torch.manual_seed(0)
    close(draws, apart.sample((4,)))


@pytest.mark.parametrize("kind", ["scalar", "vector", "chained"])
def test_frozen_network_computes_what_a_trainable_one_does(build_model, kind):
    frozen = build_model(**KINDS[kind])
    trainable = copy.deepcopy(frozen).requires_grad_()
    x, y = draw(M, 2, seed=3), draw_outcomes(frozen.config, M)
    y = y if frozen.config.dim_y else y.squeeze(-1)
    found = []
    for net in (frozen, trainable):
        latents = given()
        density = ArBufferMarginals(net.condition(latents=latents), x).log_prob(y)
        numbers = draw(net.config.num_latents, seed=4)
        posterior = ArBufferPosterior(net.condition(x, y)).log_prob(numbers)
        found.append((density, posterior, *gradient(density, latents)))
    for one, other in zip(*found, strict=True):
        close(one, other)

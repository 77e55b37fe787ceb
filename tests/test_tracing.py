"""Traces, transforms and compilation: what is recorded or transformed gives the eager values and gradients."""

import copy
import pickle

import pytest
import torch
from latent_nets import SCALAR, values
from samples import draw
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.network.tracing import is_traced

S, N, K, M = 3, 5, 4, 6
X, Y, X_TARGET, Y_TARGETS = draw(N, 2, seed=1), draw(N, seed=2), draw(M, 2, seed=3), draw(S, M, seed=4)
ORDERS, LATENTS, POINTS = random_orders(M, 2), values(S), draw(S, 6, seed=6)
EXACT = {"rtol": 1e-9, "atol": 1e-9}
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def net(build_model):
    return build_model(**SCALAR)


def joint_of(net, targets):
    return ArBufferJoint(net.condition(X, Y), X_TARGET, ORDERS).log_prob(targets)


def joint_in_blocks_of(net, targets):
    return ArBufferJoint(net.condition(X, Y), X_TARGET, buffer_size=2).log_prob(targets)


def joint_at_inputs(net, x):
    return ArBufferJoint(net.condition(X, Y), x).log_prob(Y_TARGETS)


def joint_of_context(net, y):
    return ArBufferJoint(net.condition(X, y), X_TARGET, ORDERS, 2).log_prob(Y_TARGETS)


def factors_of_context(net, y):
    return ArBufferJoint(net.condition(X, y), X_TARGET).log_prob_factors(Y_TARGETS)


def conditionals_of(net, targets):
    return ArBufferJoint(net.condition(X, Y), X_TARGET).log_prob_conditionals(targets)


def pit_of(net, targets):
    return ArBufferJoint(net.condition(X, Y), X_TARGET).pit(targets)


def marginals_of_context(net, y):
    return ArBufferMarginals(net.condition(X, y), X_TARGET.expand(S, M, 2)).log_prob(Y_TARGETS)


def likelihood_of_latents(net, rates):
    given = LATENTS | {"rate": rates.exp()}
    return ArBufferMarginals(net.condition(X, Y, latents=given), X_TARGET).log_prob(Y_TARGETS)


def joint_given_latents(net, rates):
    return ArBufferJoint(net.condition(latents={"rate": rates[0].exp()}), X_TARGET).log_prob(Y_TARGETS)


def posterior_of(net, draws):
    return ArBufferPosterior(net.condition(X, Y)).log_prob(draws)  # P = 6 > K = 4: absorbs


def posterior_of_context(net, y):
    return ArBufferPosterior(net.condition(X, y)).log_prob(POINTS)


def reparameterised(net, y):
    torch.manual_seed(1)
    return ArBufferJoint(net.condition(X, y), X_TARGET, rsample=True).rsample((S,))


DENSITIES = {
    joint_of: Y_TARGETS,
    joint_in_blocks_of: Y_TARGETS,
    joint_at_inputs: X_TARGET,
    joint_of_context: Y,
    factors_of_context: Y,
    conditionals_of: Y_TARGETS,
    pit_of: Y_TARGETS,
    marginals_of_context: Y,
    likelihood_of_latents: draw(S, seed=5),
    joint_given_latents: draw(S, seed=5),
    posterior_of: POINTS,
    posterior_of_context: Y,
}
SOME = [joint_in_blocks_of, joint_at_inputs, joint_of_context, likelihood_of_latents, posterior_of_context]
OF_SOME = pytest.mark.parametrize("density", SOME, ids=lambda f: f.__name__)
OF_ALL = pytest.mark.parametrize("density", DENSITIES, ids=lambda f: f.__name__)


def gradient_of(function, at):
    leaf = at.clone().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(
        (value * torch.linspace(1, 2, value.numel()).view_as(value)).sum(), leaf
    )[0]


# torch.jit.trace


@OF_ALL
def test_trace_taken_without_gradients_is_differentiated_exactly(density, net):
    at = DENSITIES[density]
    trace = torch.jit.trace(lambda t: density(net, t), (0.7 * at,), check_trace=False)
    for got, expected in zip(gradient_of(trace, at), gradient_of(lambda t: density(net, t), at), strict=True):
        assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("scope", [torch.no_grad, torch.enable_grad])
def test_trace_of_reparameterised_draws_is_differentiated_exactly(scope, net):
    with scope():
        trace = torch.jit.trace(lambda t: reparameterised(net, t), (Y,), check_trace=False)
    torch.manual_seed(1)
    got = gradient_of(trace, Y)
    for g, expected in zip(got, gradient_of(lambda t: reparameterised(net, t), Y), strict=True):
        assert_close(g, expected, **EXACT)


DRAWS = {
    "joint": lambda net, y: ArBufferJoint(net.condition(X, y), X_TARGET).sample((S,)),
    "marginals": lambda net, y: ArBufferMarginals(net.condition(X, y), X_TARGET).sample((S,)),
    "posterior": lambda net, y: ArBufferPosterior(net.condition(X, y)).sample((S,)),
}


def quantile(net, y):
    return ArBufferMarginals(net.condition(X, y), X_TARGET).icdf(0.3)


def test_trace_of_quantiles_is_differentiated_exactly(net):
    trace = torch.jit.trace(lambda t: quantile(net, t), (Y,), check_trace=False)
    for got, expected in zip(gradient_of(trace, Y), gradient_of(lambda t: quantile(net, t), Y), strict=True):
        assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("case", DRAWS)
def test_traced_draws_carry_no_gradient(case, net):
    trace = torch.jit.trace(lambda t: DRAWS[case](net, t), (Y,), check_trace=False)
    assert not trace(Y.clone().requires_grad_()).requires_grad
    assert not DRAWS[case](net, Y.clone().requires_grad_()).requires_grad


# What counts as traced


def test_everything_that_records_or_transforms_is_seen():
    seen = []

    def look(t):
        seen.append(is_traced())
        return t.sum()

    look(Y)
    torch.jit.trace(look, (Y,), check_trace=False)
    grad(look)(Y)
    vmap(look)(Y_TARGETS)
    make_fx(look)(Y)
    with torch.autograd.forward_ad.dual_level():
        look(torch.autograd.forward_ad.make_dual(Y, Y))
    look(Y)
    assert seen == [False, True, True, True, True, True, False]


def test_graph_recorded_without_gradients_is_differentiated_exactly(net):
    context = net.condition(X, Y)

    def density(t):
        return ArBufferMarginals(context, t).log_prob(Y_TARGETS)

    at = X_TARGET.expand(S, M, 2)
    graph = make_fx(density)(at)
    for got, expected in zip(gradient_of(graph, at), gradient_of(density, at), strict=True):
        assert_close(got, expected, **EXACT)


# torch.func


@OF_ALL
def test_functional_gradient_is_the_eager_one(density, net):
    at = DENSITIES[density]
    expected = gradient_of(lambda t: density(net, t).sum(), at)[1]
    assert_close(grad(lambda t: density(net, t).sum())(at), expected, **EXACT)


@OF_SOME
def test_functional_jacobians_are_the_eager_one(density, net):
    at = DENSITIES[density]
    expected = torch.autograd.functional.jacobian(lambda t: density(net, t), at)
    assert_close(jacrev(lambda t: density(net, t))(at), expected, **EXACT)


def test_forward_and_second_derivatives_are_taken(net):
    def density(y):
        return joint_of_context(net, y).sum()

    assert_close(jacfwd(density)(Y), gradient_of(density, Y)[1], **EXACT)
    second, step = hessian(density)(Y), draw(N, seed=8)
    ahead, behind = (gradient_of(density, Y + sign * 1e-5 * step)[1] for sign in (1, -1))
    assert_close(second @ step, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-6)


@OF_SOME
def test_vmap_is_the_loop(density, net):
    at = torch.stack([DENSITIES[density], 0.6 * DENSITIES[density], -DENSITIES[density]])
    assert_close(vmap(lambda t: density(net, t))(at), torch.stack([density(net, t) for t in at]), **EXACT)
    expected = torch.stack([gradient_of(lambda t: density(net, t).sum(), t)[1] for t in at])
    assert_close(vmap(grad(lambda t: density(net, t).sum()))(at), expected, **EXACT)


def test_functional_gradient_of_weights_is_the_eager_one(net):
    class Density(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, y):
            return joint_of_context(self.net, y).sum()

    module, name = Density(), "net.backbone.blocks.0.key.weight"
    got = grad(lambda weight: functional_call(module, {name: weight}, (Y,)))(net.backbone.blocks[0].key.weight.detach())
    trainable = copy.deepcopy(net).requires_grad_(True)
    (expected,) = torch.autograd.grad(joint_of_context(trainable, Y).sum(), trainable.backbone.blocks[0].key.weight)
    assert_close(got, expected, **EXACT)


def test_context_made_before_a_transform_is_current_inside(net):
    context = net.condition(X, Y)
    joint = ArBufferJoint(context, X_TARGET)
    expected = gradient_of(lambda t: joint.log_prob(t).sum(), Y_TARGETS)[1]
    assert_close(vmap(grad(joint.log_prob))(Y_TARGETS), expected, **EXACT)


# The checksum of a Context


def test_weights_changed_inside_a_transform_are_noticed(net):
    net = copy.deepcopy(net)
    context = net.condition(X, Y)
    with torch.no_grad():
        net.head.out.bias[0] += 1
    with pytest.raises(RuntimeError, match="weights have changed since this Context was made"):
        grad(lambda t: ArBufferJoint(context, X_TARGET).log_prob(t))(Y_TARGETS[0])


CHANGES = {
    "two rows swapped": lambda net: net.backbone.blocks[1].value.weight.copy_(
        net.backbone.blocks[1].value.weight[[1, 0, *range(2, 14)]]
    ),
    "two columns swapped": lambda net: net.backbone.blocks[1].value.weight.copy_(
        net.backbone.blocks[1].value.weight[:, [1, 0, *range(2, 14)]]
    ),
    "two layers swapped": lambda net: net.backbone.blocks.insert(0, net.backbone.blocks.pop(2)),
    "another location": lambda net: net.embedder.y_loc[0].add_(1e-6),
    "another scale": lambda net: net.embedder.x_scale.mul_(1.001),
    "one bit": lambda net: net.head.out.bias[:1].copy_(torch.nextafter(net.head.out.bias[:1], torch.zeros(1).double())),
}


@pytest.mark.parametrize("case", CHANGES)
def test_context_notices_a_change_of_its_network(case, net):
    net = copy.deepcopy(net)
    context = net.condition(X, Y)
    ArBufferJoint(pickle.loads(pickle.dumps(context)), X_TARGET).log_prob(Y_TARGETS)
    with torch.no_grad():
        CHANGES[case](net)
    with pytest.raises(RuntimeError, match="weights have changed since this Context was made"):
        ArBufferJoint(context, X_TARGET).log_prob(Y_TARGETS)


# torch.compile


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at all tensors
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("density", [joint_of_context, marginals_of_context], ids=lambda f: f.__name__)
def test_live_context_inside_a_compiled_function_is_not_taken_for_a_used_one(density, backend, net):
    torch.compiler.reset()
    at, compiled = DENSITIES[density], torch.compile(lambda t: density(net, t), backend=backend)
    for _ in range(2):
        for got, expected in zip(gradient_of(compiled, at), gradient_of(lambda t: density(net, t), at), strict=True):
            assert_close(got, expected, **EXACT)

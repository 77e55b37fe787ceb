"""Live contexts: part of one autograd graph, used where they are made; everything else is refused, never silent."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from samples import draw, outcome
from torch import Tensor, nn
from torch.testing import assert_close

from pyro_arbuf.distributions.joint import ArBufferJoint, ArBufferMarginals
from pyro_arbuf.inference.context import Context
from pyro_arbuf.model import ArBufferModel

B, S, N, K, M, DIM_X = 2, 3, 5, 4, 6, 2
LENGTHS = [2, N]
BOTH = pytest.mark.parametrize("distribution", [ArBufferJoint, ArBufferMarginals])


@pytest.fixture
def trainable(scalar_model: ArBufferModel) -> ArBufferModel:
    return copy.deepcopy(scalar_model).requires_grad_(True)


def observed(model: ArBufferModel, *batch: int) -> tuple[Tensor, Tensor]:
    return draw(*batch, N, DIM_X, seed=2), draw(*batch, N, *outcome(model), seed=3)


def live_context(model: ArBufferModel, *batch: int) -> tuple[Context, Tensor]:
    """A live context, and the outcomes whose gradient it carries."""
    x, y = observed(model, *batch)
    y.requires_grad_()
    return model.condition(x, y), y


USES = {
    "log_prob": lambda context: ArBufferJoint(context, draw(M, DIM_X)).log_prob(draw(M)),
    "pit": lambda context: ArBufferJoint(context, draw(M, DIM_X)).pit(draw(M)),
    "conditionals": lambda context: ArBufferJoint(context, draw(M, DIM_X)).log_prob_conditionals(draw(M)),
    "rsample": lambda context: ArBufferJoint(context, draw(M, DIM_X), rsample=True).rsample(),
    "marginals": lambda context: ArBufferMarginals(context, draw(M, DIM_X)).log_prob(draw(M)),
    "condition": lambda context: ArBufferJoint(context, draw(M, DIM_X)).condition([1], draw(1)),
}
use_it = pytest.mark.parametrize("use", USES)


# What is live


def test_context_is_live_where_an_input_requires_gradients(net: ArBufferModel) -> None:
    x, y = observed(net)
    leaf = y.clone().requires_grad_()
    assert net.condition(x, leaf).live and net.condition(x.clone().requires_grad_(), y).live
    assert net.condition([x, x], [y, leaf]).live
    assert not net.condition(x, y).live and not net.condition(x, leaf.detach()).live and not net.condition().live
    with torch.no_grad():
        assert not net.condition(x, leaf).live


def test_context_of_a_trainable_model_is_live(trainable: ArBufferModel) -> None:
    assert trainable.condition(*observed(trainable)).live and trainable.condition().live


def test_latents_outside_the_trained_ranges_do_not_warn(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(x_range=(-1.0, 1.0), y_range=(-1.0, 1.0))
    x, y = (5 * t for t in observed(net))
    leaf_x, leaf_y = (t.clone().requires_grad_() for t in (x, y))
    ArBufferJoint(net.condition(leaf_x, leaf_y), leaf_x)  # a warning would be an error
    with pytest.warns(UserWarning, match="x lies outside") as caught:
        net.condition(x, leaf_y)
    assert len(caught) == 1


# Gradients

LIVE = {
    "plain": (lambda model, x, y: model.condition(x[0], y[0]), ()),
    "lists": (lambda model, x, y: model.condition([x[0, :2], x[1]], [y[0, :2], y[1]]), (B,)),
    "index": (lambda model, x, y: model.condition(x, y)[1], ()),
    "repeated_index": (lambda model, x, y: model.condition(x, y)[torch.tensor([[1, 0, 1]])], (1, 3)),
    "expand": (lambda model, x, y: model.condition(x, y).expand(S, B), (S, B)),
    "to": (lambda model, x, y: model.condition(x, y).to(torch.float64), (B,)),
    "expand_and_index": (lambda model, x, y: model.condition(x, y).expand(S, B)[:2, 1], (2,)),
}


@BOTH
@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize("case", LIVE)
def test_gradient_through_a_live_context(case: str, which: str, distribution: type, net: ArBufferModel) -> None:
    make, batch = LIVE[case]
    given = dict(zip("xy", observed(net, B), strict=True))
    target, weight = draw(*batch, M, *outcome(net), seed=7), draw(*batch, seed=5)

    def density(leaf: Tensor) -> Tensor:
        context = make(net, **(given | {which: leaf}))
        assert context.live == torch.is_grad_enabled() and context.batch_shape == batch
        return (distribution(context, draw(M, DIM_X)).log_prob(target) * weight).sum()

    leaf, direction = given[which].clone().requires_grad_(), draw(*given[which].shape, seed=6)
    (gradient,) = torch.autograd.grad(density(leaf), leaf)
    with torch.no_grad():
        slope = (density(leaf + 1e-5 * direction) - density(leaf - 1e-5 * direction)) / 2e-5
    assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["backbone.blocks.0.key.weight", "embedder.y_in.weight", "head.out.bias"])
def test_gradient_with_respect_to_weights(name: str, trainable: ArBufferModel) -> None:
    weight = trainable.get_parameter(name)

    def density() -> Tensor:
        context = trainable.condition(*observed(trainable))
        return ArBufferJoint(context, draw(M, DIM_X)).log_prob(draw(M))

    (gradient,) = torch.autograd.grad(density(), weight)
    values, direction = [], draw(*weight.shape, seed=6)
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            weight += step * direction
            values.append(density())
    assert_close((gradient * direction).sum(), (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-7)


@BOTH
def test_density_given_a_live_context_is_that_given_a_plain_one(distribution: type, net: ArBufferModel) -> None:
    context, y_context = live_context(net, B)
    plain, y = net.condition(observed(net, B)[0], y_context.detach()), draw(S, B, M, *outcome(net))
    densities = [distribution(c, draw(M, DIM_X)).log_prob(y) for c in (context, context, plain)]
    assert torch.equal(densities[0], densities[1])
    assert_close(densities[0], densities[2], rtol=1e-10, atol=1e-10)


def test_samples_given_a_live_context_carry_no_graph(scalar_model: ArBufferModel) -> None:
    context, _ = live_context(scalar_model)
    assert not ArBufferJoint(context, draw(M, DIM_X)).sample((S,)).requires_grad


# Used once


@pytest.mark.parametrize("derived", ["itself", "index", "expand"])
@pytest.mark.parametrize("use", sorted(USES.keys() - {"conditionals"}))  # those encode anew
def test_live_context_is_refused_after_backward(use: str, derived: str, scalar_model: ArBufferModel) -> None:
    context, _ = live_context(scalar_model, 1)
    later = {"itself": context, "index": context[0], "expand": context.expand(S, 1)}[derived]
    USES["log_prob"](context).sum().backward()
    rule = "backward has gone through this live Context already.*condition inside the function that is differentiated"
    with pytest.raises(RuntimeError, match=rule):
        USES[use](later)


@use_it
def test_live_context_serves_again_where_the_graph_is_retained(use: str, scalar_model: ArBufferModel) -> None:
    context, y = live_context(scalar_model)
    USES["log_prob"](context).backward(retain_graph=True)
    first, y.grad = y.grad, None
    USES[use](context)
    USES["log_prob"](context).backward()
    assert_close(y.grad, first, rtol=1e-12, atol=1e-12)


@use_it
def test_live_context_serves_without_gradients_after_backward(use: str, scalar_model: ArBufferModel) -> None:
    context, _ = live_context(scalar_model)
    USES["log_prob"](context).backward()
    with torch.no_grad():
        USES[use](context)
    ArBufferJoint(context, draw(M, DIM_X)).sample()


def test_gradient_that_passes_a_live_context_by_leaves_it_usable(scalar_model: ArBufferModel) -> None:
    (context, y_context), x = live_context(scalar_model), draw(M, DIM_X).requires_grad_()
    torch.autograd.grad(ArBufferJoint(context, x).log_prob(draw(M)), x)
    (gradient,) = torch.autograd.grad(USES["log_prob"](context), y_context)
    assert gradient.abs().min() > 0


# Never stored


@pytest.mark.parametrize("store", [pickle.dumps, copy.deepcopy, copy.copy])
def test_live_context_is_not_stored(store: Callable[[Context], object], scalar_model: ArBufferModel) -> None:
    context, _ = live_context(scalar_model)
    with pytest.raises(RuntimeError, match=r"a live Context .* cannot be pickled or copied; make it where it is used"):
        store(context)


# Gradients that would be missing


@use_it
@pytest.mark.parametrize("derived", ["itself", "index", "expand", "to"])
@pytest.mark.parametrize("which", ["x", "y", "list"])
def test_inputs_that_lost_their_gradients_are_refused(
    which: str, derived: str, use: str, scalar_model: ArBufferModel
) -> None:
    x, y = observed(scalar_model, 1)
    (x if which == "x" else y).requires_grad_()
    with torch.no_grad():
        context = scalar_model.condition(list(x), list(y)) if which == "list" else scalar_model.condition(x, y)
        derive = {"index": lambda: context[0], "expand": lambda: context.expand(S, 1)}
        derive |= {"to": lambda: context.to(torch.float64), "itself": lambda: context}
        context = derive[derived]()
        USES[use](context)
    rule = r"made without gradients \(torch.no_grad\) from inputs that require them.*condition inside the function"
    with pytest.raises(RuntimeError, match=rule):
        USES[use](context)


@use_it
def test_trainable_model_refuses_contexts_without_gradients(use: str, trainable: ArBufferModel) -> None:
    with torch.no_grad():
        context = trainable.condition(*observed(trainable))
        USES[use](context)
    with pytest.raises(RuntimeError, match="the model is trainable but this Context was made without gradients"):
        USES[use](context)
    trainable.requires_grad_(False)
    USES[use](context)


def test_given_pairs_that_lost_their_gradients_are_refused(scalar_model: ArBufferModel) -> None:
    y = draw(1).requires_grad_()
    with torch.no_grad():
        rest = ArBufferJoint(scalar_model.condition(), draw(M, DIM_X)).condition([1], y)
    with pytest.raises(RuntimeError, match="made without gradients"):
        rest.log_prob(draw(M - 1))


# Random models


class Dropout(nn.Module):
    """A head behind dropout."""

    def __init__(self, head: nn.Module, p: float):
        super().__init__()
        self.dropout, self.head = nn.Dropout(p), head

    def forward(self, features: Tensor) -> object:
        return self.head(self.dropout(features))


@pytest.mark.parametrize("use", ["make", "sample", *USES])
def test_dropout_in_training_mode_is_refused(use: str, scalar_model: ArBufferModel) -> None:
    model = copy.deepcopy(scalar_model)
    model.head = Dropout(model.head, 0.5)
    uses = USES | {
        "make": lambda context: model.condition(context.x[0], context.y[0, :, 0]),
        "sample": lambda context: ArBufferJoint(context, draw(M, DIM_X)).sample(),
    }
    context = model.eval().condition(*observed(model))
    uses[use](context)
    model.train()
    with pytest.raises(RuntimeError, match=r"dropout in training mode.*call model.eval\(\)"):
        uses[use](context)


def test_dropout_of_nothing_is_fine_in_training_mode(scalar_model: ArBufferModel) -> None:
    model = copy.deepcopy(scalar_model)
    model.head = Dropout(model.head, 0.0)
    USES["log_prob"](model.train().condition(*observed(model)))

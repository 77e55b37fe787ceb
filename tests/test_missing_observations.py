"""condition(x, y, nan="drop"): contexts of the pairs that are there, whatever is missing of a batch."""

import dataclasses
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from conftest import CONFIG, random_model
from latent_nets import LATENTS
from samples import draw, draw_outcomes, outcome
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf import ArBufferJoint, ArBufferPosterior
from pyro_arbuf.inference.context import Context
from pyro_arbuf.model import ArBufferModel

EXACT = {"rtol": 1e-12, "atol": 1e-12}
B, S, N, M, DIM_X = 4, 3, 5, 6, 2
MISSING = torch.zeros(B, N, dtype=torch.bool)
pytestmark = pytest.mark.filterwarnings('ignore:nan="drop" leaves a context without any pair')
MISSING[0, [1, 3]] = MISSING[2] = MISSING[3, 0] = True  # two, none, all, one


def observed(model: ArBufferModel) -> tuple[Tensor, Tensor]:
    """Inputs `(B, N, D_x)`, and outcomes with NaN where missing, in one dimension of a vector only."""
    x, y = draw(B, N, DIM_X, seed=2), draw(B, N, *outcome(model), seed=3)
    first = y if model.config.dim_y is None else y[..., 1]
    first[MISSING] = torch.nan
    return x, y


def kept(x: Tensor, y: Tensor, b: int) -> tuple[Tensor, Tensor]:
    return x[b, ~MISSING[b]], y[b, ~MISSING[b]]


def joint(context: Context) -> ArBufferJoint:
    return ArBufferJoint(context, draw(M, DIM_X, seed=5))


def test_each_context_of_a_batch_is_that_of_its_kept_pairs(net: ArBufferModel) -> None:
    x, y = observed(net)
    together = net.condition(x, y, nan="drop")
    assert together.context_len.tolist() == (~MISSING).sum(1).tolist() and together.batch_shape == (B,)
    values = draw(S, B, M, *outcome(net), seed=6)
    torch.manual_seed(1)
    sampled = joint(together).sample((S,))
    for b in range(B):
        alone = joint(net.condition(*kept(x, y, b)))
        assert_close(joint(together).log_prob(values)[:, b], alone.log_prob(values[:, b]), **EXACT)
        assert_close(joint(together[b]).log_prob(values[:, b]), alone.log_prob(values[:, b]), **EXACT)
    torch.manual_seed(1)
    again = joint(net.condition(*zip(*(kept(x, y, b) for b in range(B)), strict=True))).sample((S,))
    assert_close(sampled, again, **EXACT)


def test_a_single_context_is_that_of_its_kept_pairs(net: ArBufferModel) -> None:
    x, y = observed(net)
    dropped, alone = net.condition(x[0], y[0], nan="drop"), net.condition(*kept(x, y, 0))
    assert dropped.context_len is None and dropped.num_context == N - 2
    torch.manual_seed(1)
    sampled = joint(dropped).sample((S,))
    torch.manual_seed(1)
    assert torch.equal(sampled, joint(alone).sample((S,)))
    assert torch.equal(joint(dropped).log_prob(sampled), joint(alone).log_prob(sampled))


def test_all_missing_is_the_empty_context(net: ArBufferModel) -> None:
    x, y = observed(net)
    values = draw(M, *outcome(net), seed=6)
    dropped = net.condition(x[2], y[2], nan="drop")
    assert dropped.num_context == 0
    assert torch.equal(joint(dropped).log_prob(values), joint(net.condition()).log_prob(values))


def test_nothing_missing_changes_nothing(net: ArBufferModel) -> None:
    x, y = draw(B, N, DIM_X, seed=2), draw(B, N, *outcome(net), seed=3)
    values = draw(B, M, *outcome(net), seed=6)
    densities = [joint(net.condition(x, y, **options)).log_prob(values) for options in ({}, {"nan": "drop"})]
    assert torch.equal(*densities)


def test_batch_dimensions_keep_their_shape(scalar_model: ArBufferModel) -> None:
    x, y = observed(scalar_model)
    flat = joint(scalar_model.condition(x, y, nan="drop")).log_prob(draw(M))
    folded = scalar_model.condition(x.unflatten(0, (2, 2)), y.unflatten(0, (2, 2)), nan="drop")
    assert_close(joint(folded).log_prob(draw(M)), flat.view(2, 2), **EXACT)
    shared = joint(scalar_model.condition(x[0], y, nan="drop")).log_prob(draw(M))  # one x for all
    assert_close(shared[3], joint(scalar_model.condition(x[0, 1:], y[3, 1:])).log_prob(draw(M)), **EXACT)


def test_lists_of_contexts_drop_theirs(net: ArBufferModel) -> None:
    x, y = observed(net)
    lengths = [N, 3, 2, 4]
    pairs = [[t[b, : lengths[b]] for b in range(B)] for t in (x, y)]
    values = draw(B, M, *outcome(net), seed=6)
    together = joint(net.condition(*pairs, nan="drop")).log_prob(values)
    for b in range(B):
        there = ~MISSING[b, : lengths[b]]
        alone = joint(net.condition(pairs[0][b][there], pairs[1][b][there]))
        assert_close(together[b], alone.log_prob(values[b]), **EXACT)


def test_live_contexts_keep_the_gradients_of_what_is_kept(net: ArBufferModel) -> None:
    x, y = (t.requires_grad_() for t in observed(net))
    values = draw(B, M, *outcome(net), seed=6)
    context = net.condition(x, y, nan="drop")
    assert context.live
    found = torch.autograd.grad(joint(context).log_prob(values).sum(), (x, y))
    assert all((gradient[2] == 0).all() for gradient in found)
    for b in (0, 1, 3):
        alone = joint(net.condition(*kept(x, y, b))).log_prob(values[b])
        expected = torch.autograd.grad(alone, (x, y), allow_unused=True)
        expected = [torch.zeros_like(t) if g is None else g for t, g in zip((x, y), expected, strict=True)]
        for got, want in zip(found, expected, strict=True):
            assert_close(got[b], want[b], **EXACT)
            assert (got[b][MISSING[b]] == 0).all() and got.isfinite().all()


def test_live_context_of_nothing_is_the_empty_one(net: ArBufferModel) -> None:
    x, y = (t[2].requires_grad_() for t in observed(net))
    context = net.condition(x, y, nan="drop")
    values = draw(M, *outcome(net), seed=6)
    assert not context.live and torch.equal(joint(context).log_prob(values), joint(net.condition()).log_prob(values))


def test_traces_keep_the_densities_whatever_is_missing(scalar_model: ArBufferModel) -> None:
    x, y = observed(scalar_model)
    x_target, values = draw(M, DIM_X, seed=5), draw(M, seed=6)

    def density(y: Tensor, x: Tensor = x[0]) -> Tensor:
        return ArBufferJoint(scalar_model.condition(x, y, nan="drop"), x_target).log_prob(values)

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    traced = torch.jit.trace(density, (y[0],), check_trace=False)
    for b in range(B):
        assert_close(traced(y[b]), density(y[b, ~MISSING[b]], x[0, ~MISSING[b]]), **EXACT)


def test_sites_by_name_drop_trials_of_which_one_is_missing() -> None:
    kinds = {"dim_y": 2, "outcomes": ("categorical(2)", "real"), "outcome": ("choice", "rt"), "chained": True}
    net = random_model(dataclasses.replace(CONFIG, **kinds))
    x, y = draw(N, DIM_X, seed=2), draw_outcomes(net.config, N, seed=3)
    choice, rt = y[:, 0].long(), y[:, 1].clone()
    rt[[0, 4]] = torch.nan
    dropped = net.condition(x, {"choice": choice, "rt": rt}, nan="drop")
    values = draw_outcomes(net.config, M, seed=4)
    assert torch.equal(joint(dropped).log_prob(values), joint(net.condition(x[1:4], y[1:4])).log_prob(values))
    with pytest.raises(ValueError, match=r"y\[..., 0\] must hold the categories 0 to 1; got \[3.0\]"):
        net.condition(x, {"choice": choice + 2 * (torch.arange(N) == 1), "rt": rt}, nan="drop")


def test_latents_can_be_given_beside(build_model: Callable[..., ArBufferModel]) -> None:
    net = build_model(latents=LATENTS)
    name, rest = net.latents[0], net.latents[1:]
    x, y = observed(net)
    value = LATENTS[0].constrain(draw(LATENTS[0].size, seed=8))[0].reshape(LATENTS[0].shape)
    together = ArBufferPosterior(net.condition(x, y, latents={name: value}, nan="drop"))
    assert rest
    drawn = draw(*together.event_shape, seed=9)
    for b in range(B):
        alone = ArBufferPosterior(net.condition(*kept(x, y, b), latents={name: value}))
        assert_close(together.log_prob(drawn)[b], alone.log_prob(drawn), **EXACT)


def test_default_refuses_and_names_the_remedy(net: ArBufferModel) -> None:
    x, y = observed(net)
    count = int(MISSING.sum())
    rule = rf"y must be finite; got {count} NaN or infinite of {y.numel()} values; leave those pairs out, as net"
    with pytest.raises(ValueError, match=rule):
        net.condition(x, y)
    with pytest.raises(ValueError, match=r'y\[1\] must be finite; .*nan="drop"'):
        net.condition([x[1], x[0]], [y[1], y[0]])


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_values_are_refused_all_the_same(net: ArBufferModel, value: float) -> None:
    x, y = observed(net)
    y.view(-1)[-1] = value
    with pytest.raises(ValueError, match=rf"y must be finite; got 1 infinite of {y.numel()} values"):
        net.condition(x, y, nan="drop")


def test_missing_inputs_are_refused_all_the_same(net: ArBufferModel) -> None:
    x, y = observed(net)
    x[0, 1, 0] = torch.nan  # where y is missing, too
    with pytest.raises(ValueError, match="x must be finite; got 1 NaN"):
        net.condition(x, y, nan="drop")


def test_nan_is_one_of_two_words(net: ArBufferModel) -> None:
    with pytest.raises(ValueError, match="nan must be 'raise' or 'drop'; got 'ignore'"):
        net.condition(*observed(net), nan="ignore")


def test_a_channel_without_values_that_empties_a_context_is_warned_of(model: ArBufferModel) -> None:
    x, y = observed(model)
    if model.config.dim_y is None:  # nothing that was observed is lost
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert model.condition(x[2], y[2], nan="drop").num_context == 0
        return
    with pytest.warns(
        UserWarning, match=r"each of its pairs has NaN .*; y\[\.\.\., 1\] has no value at all: predictions are"
    ):
        assert model.condition(x[2], y[2], nan="drop").num_context == 0
    y[2, 0, 1], y[2, 0, 0] = 0.3, torch.nan
    with pytest.warns(UserWarning, match="in some outcome dimension: predictions are those of the prior; fill in"):
        model.condition(x[2], y[2], nan="drop")

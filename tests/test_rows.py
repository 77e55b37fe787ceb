"""Rows of tables: exchangeable columns, missing cells, a summary of the context alone, and the chain over them."""

import dataclasses

import pytest
import tiny
import torch
from torch import Size, Tensor
from torch.testing import assert_close

from pyro_arbuf.checkpoint import load, save
from pyro_arbuf.inference.blocks import Noise
from pyro_arbuf.inference.chain import leave_one_out, predict_marginals, rsample_joint, sample_joint, score_joint
from pyro_arbuf.inference.context import Context, encode_pairs
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.cache import BufferCache
from pyro_arbuf.network.latents import Latent
from pyro_arbuf.network.predictives import Predictive
from pyro_arbuf.network.rows import column_ranks

EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, S, N, K, M, D, MAX_D = 2, 3, 7, 4, 6, 3, 5
ROWS = {"inputs": "rows", "dim_x": MAX_D, "column_width": 8, "num_inducing": 3, "num_cls": 2, "scaled_queries": True}


@pytest.fixture(scope="module")
def net() -> ArBufferModel:
    """A network of tables whose blocks and head do something."""
    net = tiny.tiny_model(**ROWS, max_frequency=4.0).double().requires_grad_(False)
    net.head.out.weight *= 5
    for block in (*net.backbone.blocks, *net.embedder.rows.blocks, net.embedder.rows.spread):
        block.out.weight *= 3
    return net


@pytest.fixture
def table() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of context and targets, with a missing cell in every part of every table."""
    torch.manual_seed(4)
    x, x_target = torch.randn(B, N, D, dtype=torch.float64), torch.randn(B, M, D, dtype=torch.float64)
    x[:, 1, 0] = x[:, 2, 1] = x_target[:, 3, 2] = x_target[:, 0, 0] = torch.nan
    y = x.nan_to_num(0.0).sum(-1, keepdim=True) + 0.3 * torch.randn(B, N, 1, dtype=torch.float64)
    return x, y, x_target, torch.randn(B, M, 1, dtype=torch.float64)


def condition(net: ArBufferModel, x: Tensor, y: Tensor, length: Tensor | None = None) -> Context:
    """A Context of standardised rows."""
    with torch.no_grad():
        return encode_pairs(net, x, y, length, Size([len(x)]), Size([len(x)]), (), False)


def joint(net: ArBufferModel, table: tuple[Tensor, ...], buffer_size: int = K) -> Tensor:
    """Factors of the joint density of targets in one order, `(B, M)`."""
    x, y, x_target, y_target = table
    order = random_orders(M, 1)
    return score_joint(condition(net, x, y), x_target[:, None], y_target[:, None], order, buffer_size)[:, 0, 0, :, 0]


def marginal(net: ArBufferModel, x: Tensor, y: Tensor, x_target: Tensor) -> Predictive:
    """Predictive of targets by themselves, of batch shape `(B, 1, M, 1)`."""
    cache = net.encode(x, y)
    return net.predict(cache, BufferCache(), None, net.embed_targets(cache, x_target[:, None]))[0]


# Columns --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer_size", [1, K])
def test_permuting_columns_changes_no_density(net, table, buffer_size):
    order = torch.tensor([2, 0, 1])
    permuted = (table[0][..., order], table[1], table[2][..., order], table[3])
    assert_close(joint(net, permuted, buffer_size), joint(net, table, buffer_size), **EXACT)


def test_columns_that_look_alike_are_told_apart_by_the_outcome(net):
    """Columns that hold the same numbers in another order: exchanging their cells at a target matters."""
    torch.manual_seed(1)
    first = torch.randn(1, 20, 1, dtype=torch.float64)
    x = torch.cat([first, first[:, torch.randperm(20)]], -1)
    y, target = first.clone(), torch.tensor([[[1.0, -1.0]]]).double()
    densities = [marginal(net, x, y, t).log_prob(y[:, None, :1]) for t in (target, target.flip(-1))]
    assert (densities[0] - densities[1]).abs().item() > 1e-3


def test_ranks_are_of_correlations_and_equal_columns_share_one(table):
    x, y = table[0].nan_to_num(0.0), table[1]
    wanted = torch.stack([torch.corrcoef(torch.cat([x[b], y[b]], -1).T)[-1, :-1].abs() for b in range(B)])
    ranks = column_ranks(x, y)
    assert_close(ranks, wanted.argsort(descending=True, dim=-1).argsort(-1))
    twice = column_ranks(torch.cat([x, -3 * x], -1), y)
    assert_close(twice, torch.cat([2 * ranks, 2 * ranks], -1))
    assert (column_ranks(x[:, :1], y[:, :1]) == 0).all()
    assert_close(column_ranks(torch.cat([x, 9 * x], 1), torch.cat([y, 5 - y], 1), torch.full((B,), N)), ranks)


@pytest.mark.parametrize("num_columns", [1, 2, MAX_D, MAX_D + 2])
@pytest.mark.parametrize("num_rows", [0, 1, N])
def test_any_number_of_columns_and_rows_has_a_finite_joint(net, num_columns, num_rows):
    torch.manual_seed(0)
    x, x_target = (torch.randn(B, n, num_columns, dtype=torch.float64) for n in (num_rows, M))
    y, y_target = (torch.randn(B, n, 1, dtype=torch.float64) for n in (num_rows, M))
    for buffer_size in (1, K):
        assert joint(net, (x, y, x_target, y_target), buffer_size).isfinite().all()


def test_without_rows_all_columns_are_alike(net, table):
    x, y, x_target, y_target = table
    densities = [
        marginal(net, x[:, :0], y[:, :0], t).log_prob(y_target[:, None]) for t in (x_target, x_target.flip(-1))
    ]
    assert_close(*densities, **EXACT)


# Missing cells --------------------------------------------------------------------------------------------------------


def test_a_missing_cell_is_no_number(net, table):
    x, y, x_target, _ = table
    at = torch.zeros(1, 1, M, 1, dtype=torch.float64)
    with_missing = marginal(net, x, y, x_target).log_prob(at)
    with_zero = marginal(net, x, y, x_target.nan_to_num(0.0)).log_prob(at)
    has = x_target.isnan().any(-1)
    changed = ((with_missing - with_zero).abs() > 1e-4)[:, 0, :, 0]
    assert torch.equal(changed, has)
    assert (marginal(net, x.nan_to_num(0.0), y, x_target).log_prob(at) - with_missing).abs().min() > 1e-6


def test_columns_and_rows_may_be_missing_altogether(net, table):
    x, y, x_target, y_target = (part.clone() for part in table)
    x[..., 1], x[:, 3], x_target[:, 2] = torch.nan, torch.nan, torch.nan
    assert joint(net, (x, y, x_target, y_target)).isfinite().all()


def test_gradients_are_finite_where_cells_are_missing(table):
    net = tiny.tiny_model(**ROWS).double()
    x, x_target = table[0].clone().requires_grad_(), table[2].clone().requires_grad_()
    marginal(net, x, table[1], x_target).log_prob(table[3][:, None]).sum().backward()
    for part in (x, x_target):
        assert part.grad is not None and part.grad.isfinite().all() and (part.grad[part.isnan()] == 0).all()
        assert (part.grad[~part.isnan()] != 0).all()
    rows = net.embedder.rows
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rows.parameters())


# What depends on what -------------------------------------------------------------------------------------------------


def test_targets_do_not_enter_each_other_s_marginals(net, table):
    x, y, x_target, y_target = table
    x_target = x_target.nan_to_num(0.5).requires_grad_()
    density = marginal(net, x, y, x_target).log_prob(y_target[:, None])[:, 0, :, 0]
    for m in range(M):
        (slope,) = torch.autograd.grad(density[:, m].sum(), x_target, retain_graph=True)
        others = torch.arange(M) != m
        assert (slope[:, others] == 0).all() and (slope[:, m] != 0).all()


def test_factors_of_a_joint_depend_on_earlier_targets_only(net, table):
    x, y, x_target, y_target = table
    leaf, order = x_target.nan_to_num(0.5).requires_grad_(), random_orders(M, 1)
    cache = net.encode(x, y)
    placed, values = leaf[:, order[0]][:, None], y_target[:, order[0]][:, None]
    embedded = net.embed_targets(cache, placed)
    pairs = (embedded[:, :, :K], values[:, :, :K])
    predictive, _ = net.predict(cache, BufferCache(), pairs, embedded[:, :, :K], torch.arange(K))
    density = predictive.log_prob(values[:, :, :K])[:, 0, :, 0]
    for k in range(K):
        (slope,) = torch.autograd.grad(density[:, k].sum(), leaf, retain_graph=True)
        reached = (slope != 0).all(-1)[:, order[0]]
        assert torch.equal(reached, (torch.arange(M) <= k).expand(B, -1))


def test_summary_is_of_the_context_and_rows_are_embedded_one_by_one(net, table):
    x, y, x_target, _ = table
    x, y = x.nan_to_num(0.1).requires_grad_(), y.clone().requires_grad_()
    cache = net.encode(x, y)
    assert isinstance(cache.summary, tuple)
    for part in cache.summary[:2]:
        slopes = torch.autograd.grad(part.square().sum(), (x, y), retain_graph=True)
        assert all((slope != 0).all() for slope in slopes)
    together = net.embed_targets(cache, x_target[:, None])
    for m in range(M):
        assert_close(net.embed_targets(cache, x_target[:, None, m : m + 1]), together[:, :, m : m + 1], **EXACT)


def test_permuting_rows_and_padding_the_context_change_nothing(net, table):
    x, y, x_target, y_target = table
    order = torch.randperm(N)
    assert_close(joint(net, (x[:, order], y[:, order], x_target, y_target)), joint(net, table), **EXACT)
    lengths = torch.tensor([0, N - 2])
    padded = condition(net, x, y, lengths)
    got = predict_marginals(padded, x_target[:, None]).log_prob(y_target[:, None])
    for b, n in enumerate(lengths.tolist()):
        alone = marginal(net, x[b : b + 1, :n], y[b : b + 1, :n], x_target[b : b + 1])
        assert_close(got[b : b + 1], alone.log_prob(y_target[b : b + 1, None]), **EXACT)


# The chain ------------------------------------------------------------------------------------------------------------


def one_by_one(net: ArBufferModel, context, x: Tensor, y: Tensor, order: Tensor, buffer_size: int):
    """Every target of a table in turn with its predictive, all that it depends on encoded and embedded anew."""
    for k, target in enumerate(order.tolist()):
        first = k // buffer_size * buffer_size
        absorbed, buffered = order[:first], order[first:k]
        pairs = torch.cat([x[absorbed], context[0]]), torch.cat([y[absorbed], context[1]])
        cache = net.encode(*(t[None] for t in pairs))
        entering = (net.embed_targets(cache, x[None, None, buffered]), y[None, None, buffered]) if k > first else None
        embedded = net.embed_targets(cache, x[None, None, target : target + 1])
        yield target, net.predict(cache, BufferCache(), entering, embedded, torch.tensor([k - first]))[0]


@pytest.mark.parametrize("buffer_size", [1, K])
def test_chain_over_rows_equals_encoding_anew_at_every_step(net, table, buffer_size):
    x, y, x_target, _ = table
    orders, context = random_orders(M, 2), condition(net, x, y)
    values = torch.randn(B, S, M, 1, dtype=torch.float64)
    scores = score_joint(context, x_target[:, None], values, orders, buffer_size)
    noise = Noise(torch.rand_like(values), torch.randn_like(values), torch.randint(2, (B, S)))
    with torch.inference_mode():
        draws = sample_joint(context, x_target[:, None], orders, buffer_size, noise)
    assert_close(rsample_joint(context, x_target[:, None], orders, buffer_size, noise), draws, **EXACT)
    for b, s in ((0, 1), (1, 2)):
        for r, order in enumerate(orders):
            for target, predictive in one_by_one(net, (x[b], y[b]), x_target[b], values[b, s], order, buffer_size):
                assert_close(scores[b, s, r, target], predictive.log_prob(values[b, s, target])[0, 0, 0], **EXACT)
        drawn = torch.zeros(M, 1, dtype=torch.float64)
        steps = one_by_one(net, (x[b], y[b]), x_target[b], drawn, orders[noise.order[b, s]], buffer_size)
        for k, (target, predictive) in enumerate(steps):
            uniform, normal = (t[b, s, k][None, None, None] for t in noise[:2])
            drawn[target] = predictive.draw(uniform, normal)[0, 0, 0]
        assert_close(draws[b, s], drawn, **EXACT)


def test_leaving_one_out_embeds_by_the_other_rows(net, table):
    x, y, *_ = table
    got = leave_one_out(net, x, y, N)
    for i in range(N):
        others = [j for j in range(N) if j != i]
        alone = marginal(net, x[:, others], y[:, others], x[:, i : i + 1])
        assert_close(got[:, i], alone.log_prob(y[:, None, i : i + 1]).flatten(), **EXACT)


@pytest.mark.parametrize("max_cells", [1, N * D])
def test_embedding_task_by_task_changes_nothing(net, table, max_cells, monkeypatch):
    whole = joint(net, table)
    monkeypatch.setattr("pyro_arbuf.network.rows.MAX_CELLS", max_cells)
    assert_close(joint(net, table), whole, **EXACT)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_densities_are_traced_and_transformed(net, table):
    x, y, x_target, y_target = table
    x_target = x_target.nan_to_num(0.5)

    def density(x_context: Tensor, x_target: Tensor) -> Tensor:
        return marginal(net, x_context[None], y[:1], x_target[None]).log_prob(y_target[:1, None])[0, 0, :, 0]

    x = x.nan_to_num(0.1)
    leaves = x[0].requires_grad_(), x_target[0].requires_grad_()
    eager = density(*leaves)
    for which in (0, 1):
        slopes = torch.stack([torch.autograd.grad(value, leaves[which], retain_graph=True)[0] for value in eager])
        assert_close(torch.func.jacrev(density, which)(*leaves), slopes, **EXACT)
    several = torch.stack([leaves[1].detach(), leaves[1].detach() + 0.3])
    assert_close(
        torch.func.vmap(density, (None, 0))(leaves[0].detach(), several),
        torch.stack([density(leaves[0], each) for each in several]).detach(),
        **EXACT,
    )
    traced = torch.jit.trace(density, (leaves[0].detach(), several[1]), check_trace=False)
    assert_close(traced(*(leaf.detach() for leaf in leaves)), eager.detach(), **EXACT)


# Configuration --------------------------------------------------------------------------------------------------------


def test_network_of_tables_is_saved_and_loaded(net, table, tmp_path):
    save(net, tmp_path / "tables")
    again = load(tmp_path / "tables")
    assert again.config == net.config and again.config.missing_x and not tiny.CONFIG.missing_x
    assert_close(joint(again.double(), table), joint(net, table), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": "columns"}, "inputs must be 'features' or 'rows'; got 'columns'"),
        ({"column_heads": 3}, "column_width must be a multiple of column_heads = 3; got 8"),
        ({"latents": (Latent("a"),)}, r"inputs='rows' is for real outcomes without latents; got latents \['a'\]"),
        ({"outcomes": ("count",)}, r"inputs='rows' is for real outcomes .* and outcomes \('count',\)"),
        ({"x_loc": (0.0,) * MAX_D, "x_scale": (1.0,) * MAX_D}, "x_loc and x_scale must be None where inputs='rows'"),
        ({"num_cls": 0}, "num_cls must be an integer >= 1; got 0"),
        ({"scaled_queries": 1}, "scaled_queries must be True or False; got 1"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny.CONFIG, **(ROWS | fields))

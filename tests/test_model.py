"""Tests of the model: training, one-pass density and decoding are one function, equal to `reference.py`."""

import copy
import dataclasses
import pickle

import pytest
import reference
import torch
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.cache import BufferCache
from pyro_arbuf.network.embedding import Embedder
from pyro_arbuf.network.heads import GaussianMixtureHead

EXACT = {"rtol": 1e-10, "atol": 1e-10}
B, S, K, N, M = 2, 3, 4, 5, 6
PREFIX_LEN = torch.tensor([0, 4, 1, 3, 2, 0])


def _pairs(model: ArBufferModel, num_pairs: int = K) -> tuple[Tensor, Tensor]:
    sizes = model.config.dim_x, model.config.dim_y or 1
    return tuple(torch.randn(B, num_pairs, size, dtype=torch.float64) for size in sizes)


def _reference(model, task, buffer, prefix_len) -> reference.Mixture:
    return reference.predictive(
        model.state_dict(), model.config.num_heads, *task[:2], *buffer, task.x_target, prefix_len.tolist()
    )


def _embed(model: ArBufferModel, x: Tensor) -> Tensor:
    return model.embedder.inputs(x)[:, None]


def _assert_same_mixture(predictive, expected: reference.Mixture) -> None:
    for got, parameter in zip((predictive.log_weights.exp(), predictive.means, predictive.sds), expected, strict=True):
        assert_close(got.squeeze(1), parameter, **EXACT)


@pytest.mark.parametrize("num_slots", [0, 1, K])
@pytest.mark.parametrize("num_context", [0, 1, N])
def test_training_forward_equals_the_reference(model, draw_task, num_context, num_slots):
    task, buffer = draw_task(model, num_context), _pairs(model, num_slots)
    prefix_len = PREFIX_LEN.clamp(max=num_slots)
    expected = _reference(model, task, buffer, prefix_len).log_prob(task.y_target).sum(-1)
    assert_close(model.score(Batch(*task[:2], *buffer, *task[2:], prefix_len)), expected, **EXACT)


def test_training_forward_takes_prefix_lengths_per_task(model, draw_task):
    task, buffer = draw_task(model), _pairs(model)
    prefix_len = torch.tensor([[0, 4, 1, 3, 2, 0], [3, 0, 2, 2, 4, 1]])
    log_prob = model.score(Batch(*task[:2], *buffer, *task[2:], prefix_len))
    for b in range(B):
        mixture = _reference(model, task, buffer, prefix_len[b])
        assert_close(log_prob[b], mixture.log_prob(task.y_target).sum(-1)[b], **EXACT)


@pytest.mark.parametrize("num_context", [0, N])
@pytest.mark.parametrize("num_targets", [1, 3, K, K + 1])
def test_training_forward_equals_one_pass_equals_decoding(model, draw_task, num_context, num_targets):
    task = draw_task(model, num_context, num_targets)
    pairs = task.x_target[:, :-1], task.y_target[:, :-1]
    chain = torch.arange(num_targets)
    training = model.score(Batch(*task[:2], *pairs, *task[2:], chain))

    cache, embedded = model.encode(*task[:2]), _embed(model, task.x_target)
    entering = (embedded[:, :, :-1], task.y_target[:, None, :-1]) if num_targets > 1 else None
    one_pass, _ = model.predict(cache, BufferCache(), entering, embedded, chain)
    assert_close(one_pass.log_prob(task.y_target[:, None]).sum(-1).squeeze(1), training, **EXACT)
    _assert_same_mixture(one_pass, _reference(model, task, pairs, chain))

    buffer, pair = BufferCache(), None
    for k in range(num_targets):
        here = slice(k, k + 1)
        predictive, buffer = model.predict(cache, buffer, pair, embedded[:, :, here])
        y = task.y_target[:, None, here]
        assert_close(predictive.log_prob(y).sum((1, 2, 3)), training[:, k], **EXACT)
        pair = embedded[:, :, here], y


def test_prediction_with_an_empty_buffer_is_the_set_model(model, draw_task):
    task = draw_task(model)
    predictive, buffer = model.predict(model.encode(*task[:2]), BufferCache(), None, _embed(model, task.x_target))
    _assert_same_mixture(predictive, _reference(model, task, _pairs(model, 0), torch.zeros(M, dtype=torch.int64)))
    assert buffer.num_slots == 0


def test_gradients_of_the_weights_equal_those_of_the_reference(model, draw_task):
    model = copy.deepcopy(model).requires_grad_(True)
    task, buffer, names = draw_task(model), _pairs(model), [name for name, _ in model.named_parameters()]
    weights = dict(model.named_parameters())
    ours = model.score(Batch(*task[:2], *buffer, *task[2:], PREFIX_LEN)).sum()
    mixture = reference.predictive(
        weights, model.config.num_heads, *task[:2], *buffer, task.x_target, PREFIX_LEN.tolist()
    )
    theirs = mixture.log_prob(task.y_target).sum()
    gradients = (torch.autograd.grad(loss, list(weights.values()), allow_unused=True) for loss in (ours, theirs))
    for name, got, expected in zip(names, *gradients, strict=True):
        if name == "embedder.empty_context":
            assert got is None and expected is None
        else:
            assert_close(got, expected, **EXACT, msg=lambda m, name=name: f"{name}: {m}")
            assert got.abs().max() > 1e-6, name


def _influences(model, task, buffer) -> list[Tensor]:
    """For every argument with points, `(M, T)`: largest gradient of log density m with respect to point t."""
    leaves = [t.requires_grad_() for t in (*task[:2], *buffer, *task[2:])]
    log_prob = model.score(Batch(*leaves, PREFIX_LEN))
    rows = [torch.autograd.grad(log_prob[:, m].sum(), leaves, retain_graph=True) for m in range(M)]
    return [torch.stack([row[i].abs().amax((0, 2)) for row in rows]) for i in range(len(leaves))]


def test_density_is_influenced_by_what_the_rules_allow_and_by_nothing_else(model, draw_task):
    influences = _influences(model, draw_task(model), _pairs(model))
    visible = reference.dense_mask(N, K, PREFIX_LEN.tolist())[N + K :]
    own = torch.eye(M, dtype=torch.bool)
    for influence, allowed in zip(influences, [visible[:, :N]] * 2 + [visible[:, N:-M]] * 2 + [own] * 2, strict=True):
        assert torch.equal(influence != 0, allowed)
        assert influence[allowed].min() > 1e-8


def test_buffer_is_read_in_order(model, draw_task):
    task, (x_buffer, y_buffer), last = draw_task(model), _pairs(model), torch.tensor([0, 4, 0, 4, 3, 4])
    order = torch.tensor([2, 0, 1, 3])
    first = model.score(Batch(*task[:2], x_buffer, y_buffer, *task[2:], last))
    second = model.score(Batch(*task[:2], x_buffer[:, order], y_buffer[:, order], *task[2:], last))
    assert_close(second[:, last == 0], first[:, last == 0], **EXACT)
    assert ((second - first)[:, last > 0].abs() > 1e-8).all()


def test_permuting_the_context_changes_nothing(model, draw_task):
    task, buffer, order = draw_task(model), _pairs(model), torch.randperm(N)
    permuted = model.score(Batch(task.x_context[:, order], task.y_context[:, order], *buffer, *task[2:], PREFIX_LEN))
    assert_close(permuted, model.score(Batch(*task[:2], *buffer, *task[2:], PREFIX_LEN)), **EXACT)


def test_permuting_the_targets_permutes_their_densities(model, draw_task):
    task, buffer, order = draw_task(model), _pairs(model), torch.randperm(M)
    targets = task.x_target[:, order], task.y_target[:, order]
    permuted = model.score(Batch(*task[:2], *buffer, *targets, PREFIX_LEN[order]))
    assert_close(permuted, model.score(Batch(*task[:2], *buffer, *task[2:], PREFIX_LEN))[:, order], **EXACT)


def test_training_density_integrates_to_one(scalar_model, draw_task):
    task = draw_task(scalar_model, num_targets=1, num_tasks=1)
    buffer = tuple(t[:1] for t in _pairs(scalar_model))
    y = torch.linspace(-12, 12, 241, dtype=torch.float64)
    many = (*task[:2], *buffer, task.x_target)
    parts = (t.expand(len(y), -1, -1) for t in many)
    log_prob = scalar_model.score(Batch(*parts, y[:, None, None], torch.tensor([3])))
    assert_close(torch.trapezoid(log_prob.exp().squeeze(-1), y), torch.ones((), dtype=torch.float64), **EXACT)


def test_padding_of_a_context_is_never_read(model, draw_task):
    task = draw_task(model)
    lengths = torch.tensor([0, 3])
    embedded = _embed(model, task.x_target)
    padded, _ = model.predict(model.encode(*task[:2], lengths), BufferCache(), None, embedded)
    for b, length in enumerate(lengths.tolist()):
        one = slice(b, b + 1)
        cache = model.encode(task.x_context[one, :length], task.y_context[one, :length])
        alone, _ = model.predict(cache, BufferCache(), None, embedded[one])
        for name in ("log_weights", "means", "sds"):
            assert_close(getattr(padded, name)[one], getattr(alone, name), **EXACT)


def test_empty_context_token_is_read_only_where_the_context_is_empty(model, draw_task):
    model = copy.deepcopy(model)
    token = model.embedder.empty_context.requires_grad_(True)
    task = draw_task(model)
    predictive, _ = model.predict(
        model.encode(*task[:2], torch.tensor([0, 3])), BufferCache(), None, _embed(model, task.x_target)
    )
    influence = [torch.autograd.grad(predictive.means[b].sum(), token, retain_graph=True)[0] for b in range(B)]
    assert influence[0].abs().max() > 1e-6 and influence[1].eq(0).all()


def test_conditioning_encodes_the_observations_once(model, draw_task):
    task = draw_task(model)
    y = task.y_context.squeeze(-1) if model.config.dim_y is None else task.y_context
    context = model.condition(task.x_context, y)
    assert context.batch_shape == (B,) and context.num_context == N and context.context_len is None
    expected = model.encode(*task[:2])
    for got, tensor in zip(
        (*context.cache.keys, *context.cache.values), (*expected.keys, *expected.values), strict=True
    ):
        assert_close(got, tensor, **EXACT)
    assert model.condition().num_context == 0 and model.condition().batch_shape == ()
    assert not hasattr(model, "cache") and all("cache" not in name for name, _ in model.named_buffers())


def test_assigning_a_configuration_is_refused(scalar_model):
    config = scalar_model.config
    with pytest.raises(AttributeError, match=r"net.config is read-only.*load_state_dict\(net.state_dict\(\)\)"):
        scalar_model.config = dataclasses.replace(config, x_loc=(5.0, 5.0), x_scale=(2.0, 2.0))
    assert scalar_model.config is config


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_measured_error_is_stored_and_copied(scalar_model, duplicate):
    net = copy.deepcopy(scalar_model)
    net.replace_measured(evidence_rmse=1.2)
    assert net.config == dataclasses.replace(scalar_model.config, evidence_rmse=1.2)
    assert duplicate(net).config == net.config and scalar_model.config.evidence_rmse is None
    with pytest.raises(ValueError, match=r"only \['evidence_rmse', .* of a network's.*got \['num_context', 'x_loc'\]"):
        net.replace_measured(evidence_rmse=1.0, x_loc=(0.0, 0.0), num_context=(0, 3))


class NoPositions(torch.nn.Module):
    """Buffer tokens as they are."""

    def forward(self, tokens: Tensor, first_slot: int) -> Tensor:
        return tokens


def test_network_is_assembled_from_the_parts_it_is_given(scalar_model):
    config = scalar_model.config
    embedder, head = Embedder(config), GaussianMixtureHead(config.width, config.head_width, 1, 1)
    embedder.positions = NoPositions()
    net = ArBufferModel(config, embedder=embedder, head=head)
    assert net.embedder is embedder and net.head is head
    assert "embedder.positions.slot" not in net.state_dict()
    embedded, y = embedder.inputs(torch.randn(1, 2, config.dim_x)), torch.randn(1, 2, 1)
    one, other = (embedder.buffer(embedded, y, first_slot) for first_slot in (0, 2))
    assert torch.equal(one, other)
    predictive, buffer = net.predict(
        net.encode(torch.randn(1, 3, config.dim_x), torch.randn(1, 3, 1)), BufferCache(), None, embedded[:, None]
    )
    assert predictive.num_components == 1 and buffer.num_slots == 0


def test_loss_is_minus_the_mean_score_and_a_call_is_the_loss(model, draw_task):
    task, buffer = draw_task(model), _pairs(model)
    batch = Batch(*task[:2], *buffer, *task[2:], PREFIX_LEN)
    assert torch.equal(model.loss(batch), -model.score(batch).mean()) and torch.equal(model(batch), model.loss(batch))

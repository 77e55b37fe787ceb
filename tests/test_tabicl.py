"""A buffer added to somebody else's transformer, TabICL's: its own predictions, one law, and training that pays."""

import copy
import dataclasses
from pathlib import Path

import pytest
import tabicl_blocks
import tiny
import torch
from added_buffers import KINDS, changed
from tabicl._model.encoders import Encoder
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf import ArBufferJoint, ArBufferMarginals, add_buffer
from pyro_arbuf.baselines.tnp_d import TNPD
from pyro_arbuf.network.cache import BufferCache
from pyro_arbuf.training.loop import fit

CONFIG = dataclasses.replace(tiny.CONFIG, architecture="tnp-d", scaled_queries=True)
EACH = pytest.mark.parametrize("kind", KINDS)
N, M = 5, 3


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(2)
    return tabicl_blocks.make_encoder(CONFIG).double()


@pytest.fixture
def base(encoder: Encoder) -> TNPD:
    return tabicl_blocks.set_model(CONFIG, copy.deepcopy(encoder)).double().eval().requires_grad_(False)


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Observations, new inputs and their outcomes."""
    x = 2 * torch.rand(N + M, 1, dtype=torch.float64) - 1
    y = torch.randn(N + M, dtype=torch.float64)
    return x[:N], y[:N], x[N:], y[N:]


@pytest.mark.parametrize("num_rows", [1, N, 40])
def test_blocks_give_what_tabicl_gives(encoder: Encoder, base: TNPD, num_rows: int) -> None:
    rows = torch.randn(2, num_rows + M, CONFIG.width, dtype=torch.float64)
    with torch.no_grad():
        expected = encoder(rows, train_size=num_rows)[:, num_rows:]
        cache = base.backbone.encode_context(rows[:, :num_rows])
        found, _ = base.backbone.read(cache, BufferCache(), None, rows[:, None, num_rows:])
    assert expected.std() > 0.5
    assert_close(found.squeeze(1), expected, rtol=1e-12, atol=1e-12)


@EACH
def test_empty_buffer_predicts_bit_for_bit_as_before(base: TNPD, kind: str, data: tuple[Tensor, ...]) -> None:
    x, y, x_new, values = data
    added = add_buffer(base, **KINDS[kind])
    for net in (added.requires_grad_(False), changed(added)):
        expected, found = (ArBufferMarginals(each.condition(x, y), x_new) for each in (base, net))
        assert torch.equal(found.log_prob_factors(values), expected.log_prob_factors(values))
        assert torch.equal(found.mean, expected.mean)


@EACH
def test_draws_and_density_are_of_one_law(base: TNPD, kind: str, data: tuple[Tensor, ...]) -> None:
    """Pairs that enter one by one, as they are drawn, are scored as those that enter together."""
    x, y, x_new, _ = data
    net, order = changed(add_buffer(base, **KINDS[kind])), torch.arange(M)[None]
    context = net.condition(x, y)
    drawn = ArBufferJoint(context, x_new, orders=order, rsample=True).rsample((4,))
    together = ArBufferJoint(context, x_new, orders=order).log_prob_factors(drawn)
    for k in range(M):
        before = ArBufferJoint(context, x_new[: k + 1], orders=order[:, : k + 1]).log_prob_factors(drawn[:, : k + 1])
        assert_close(before[:, k], together[:, k], rtol=1e-10, atol=1e-10)
    other = ArBufferJoint(context, x_new, orders=order).sample((4000,))
    density = ArBufferJoint(context, x_new, orders=order)
    shifted = other + 0.3
    ratio = (density.log_prob(shifted) - density.log_prob(other)).exp()  # of mean 1: a shift keeps volumes
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 4000**0.5 < 0.2


def test_of_one_block_it_reads_before_training_as_exact_re_encoding_does(data: tuple[Tensor, ...]) -> None:
    """The number of rows that scales a query counts the slots it reads."""
    x, y, x_new, values = data
    config = dataclasses.replace(CONFIG, num_layers=1)
    base = tabicl_blocks.set_model(config, tabicl_blocks.make_encoder(config)).double().eval().requires_grad_(False)
    exact, found = (
        ArBufferJoint(net.requires_grad_(False).condition(x, y), x_new, orders=torch.arange(M)[None])
        for net in (base, add_buffer(base))
    )
    assert_close(found.log_prob_factors(values), exact.log_prob_factors(values), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("_fresh_accelerator")
def test_training_changes_what_was_added_and_raises_the_density(encoder: Encoder, tmp_path: Path) -> None:
    base = tabicl_blocks.set_model(CONFIG, encoder).float()
    source = tiny.line_source()
    fit(base, dataclasses.replace(source, config=base.config), tmp_path / "base.safetensors", steps=200)
    net = add_buffer(base, rank=4, gated_read=True)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = [source.batch(1_000 + i) for i in range(20)]

    def score() -> float:
        with torch.no_grad():
            return sum(net.loss(batch).item() for batch in batches) / len(batches)

    untrained = score()
    fit(net, dataclasses.replace(source, config=net.config), tmp_path / "net.safetensors", steps=200)
    assert score() < untrained
    trained = {id(weight) for weight in net.added}
    for name, weight in net.named_parameters():
        assert torch.equal(weight, before[name]) != (id(weight) in trained), name

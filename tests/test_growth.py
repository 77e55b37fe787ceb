"""A grown network predicts what the smaller one did, and what is new in it is trained."""

import pytest
import tiny
import torch
from torch.testing import assert_close

from pyro_arbuf import ArBufferJoint
from pyro_arbuf.baselines import make_model
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.training.growth import grow


@pytest.mark.parametrize("sizes", [{"num_layers": 4}, {"mlp_width": 20}, {"num_layers": 3, "mlp_width": 15}, {}])
def test_larger_network_predicts_the_same(sizes: dict[str, int]) -> None:
    net = tiny.tiny_model().double().eval()
    larger = grow(net, **sizes)
    assert {name: getattr(larger.config, name) for name in sizes} == sizes
    x, y = torch.rand(9, 1, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    found = [ArBufferJoint(each.condition(x[:3], y[:3]), x[3:]).log_prob(y[3:]) for each in (net, larger)]
    assert_close(*found, rtol=1e-12, atol=1e-12)
    assert all(weight.requires_grad for weight in larger.parameters())


def test_what_is_new_is_trained() -> None:
    larger, batch = grow(tiny.tiny_model(), 3, 20), tiny.line_source().batch(0)
    optimizer = torch.optim.SGD(larger.parameters(), 0.1)
    for _ in range(2):  # the first step moves what a new block adds, the second what it reads
        optimizer.zero_grad()
        larger(batch).backward()
        optimizer.step()
    block = larger.backbone.get_submodule("blocks.2")
    for name in ("query", "key", "value", "out", "up", "down"):
        assert block.get_parameter(f"{name}.weight").grad.abs().max() > 0
    assert larger.backbone.get_parameter("blocks.0.up.weight").grad[-1].abs().max() > 0


def test_sizes_that_do_not_grow_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_layers must be an integer of at least 2, net's; got 1$"):
        grow(tiny.tiny_model(), num_layers=1)
    with pytest.raises(ValueError, match=r"mlp_width must be an integer of at least 14, net's; got 14\.5$"):
        grow(tiny.tiny_model(), mlp_width=14.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"whose blocks alone can grow; got 'lbanp'; train a new one of the larger"):
        grow(make_model(ModelConfig(architecture="lbanp")))

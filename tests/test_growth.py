"""A grown network predicts what the smaller one did, and what is new in it is trained."""

import pytest
import tiny
import torch
from torch.testing import assert_close

from pyro_arbuf import ArBufferJoint
from pyro_arbuf.baselines import make_model
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.latents import Latent
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


WIDE = {
    "a number": {},
    "a vector": {"dim_y": 3},
    "a vector, scored whole": {"dim_y": 3, "chained": False},
    "choices": {"dim_y": 2, "outcomes": ("categorical(3)", "real")},
    "latents": {"latents": (Latent("mu"), Latent("sigma", lower=0.0))},
    "a series": {"lag_column": 0, "num_traces": 3},
    "a table": {"inputs": "rows", "dim_x": 2, "scaled_queries": True},
    "rotary slots": {"slot_positions": "rotary"},
    "MLPs of two tokens' width": {"mlp_width": 24},
}


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("fields", WIDE.values(), ids=WIDE)
def test_wider_tokens_predict_the_same(fields: dict[str, object], times: int) -> None:
    net = tiny.tiny_model(**fields).double().eval()
    wider = grow(net, width=12 * times)
    sizes = (net.config.width, net.config.num_heads, net.config.mlp_width)
    assert (wider.config.width, wider.config.num_heads, wider.config.mlp_width) == tuple(times * n for n in sizes)
    dim_x, dim_y = net.config.dim_x, net.config.dim_y or 1
    x, y = torch.rand(9, dim_x + bool(net.config.latents), dtype=torch.float64), torch.rand(9, dim_y).double().round()
    if net.config.latents:
        x[:, -1] = torch.tensor([0, 0, 1, 0, 0, 2, 1, 0, 2])
    batch = Batch(*(part[None] for part in (x[:3], y[:3], x[3:7], y[3:7], x[7:], y[7:])), torch.tensor([2, 4]))
    assert_close(wider.score(batch), net.score(batch), rtol=1e-9, atol=1e-9)


def test_copies_are_pulled_apart_by_training() -> None:
    wider, batch = grow(tiny.tiny_model(), width=24), tiny.line_source().batch(0)
    optimizer = torch.optim.SGD(wider.parameters(), 0.1)
    wider(batch).backward()
    optimizer.step()
    value = wider.backbone.get_parameter("blocks.0.value.weight")
    assert (value[:12] - value[12:]).abs().max() > 1e-6


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
    for width in (6, 18, 24.0):
        with pytest.raises(ValueError, match=rf"width must be a multiple of 12, net's; got {width}$"):
            grow(tiny.tiny_model(), width=width)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="width cannot grow in a network of slot_positions='linear'"):
        grow(tiny.tiny_model(slot_positions="linear"), width=24)
    with pytest.raises(ValueError, match="mlp_width must be an integer of at least 28, net's; got 20"):
        grow(tiny.tiny_model(), mlp_width=20, width=24)
    with pytest.raises(ValueError, match=r"whose blocks alone can grow; got 'lbanp'; train a new one of the larger"):
        grow(make_model(ModelConfig(architecture="lbanp")))

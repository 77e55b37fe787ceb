"""A buffer added to a set model: the set model stays as it is, one law of draws and densities, saving, training."""

import dataclasses
import pickle
from pathlib import Path

import pytest
import tiny
import torch
from added_buffers import KINDS, changed
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.testing import assert_close

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferMarginals, ArBufferModel, add_buffer, cli
from pyro_arbuf.baselines import make_model, matched_config
from pyro_arbuf.baselines.added_buffer import TNPDBuffer
from pyro_arbuf.baselines.tnp_d import TNPD
from pyro_arbuf.network.backbone import Backbone, Block
from pyro_arbuf.network.cache import BufferCache
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.embedding import Embedder
from pyro_arbuf.network.heads import make_head
from pyro_arbuf.network.visibility import chain_prefix_len
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.training.loop import fit

EACH = pytest.mark.parametrize("kind", KINDS)
N, M, K = 5, 3, tiny.CONFIG.buffer_size


def set_model(**fields: object) -> ArBufferModel:
    """A set model in float64, whose weights are large enough that what it reads matters."""
    torch.manual_seed(1)
    net = make_model(dataclasses.replace(tiny.CONFIG, architecture="tnp-d", **fields)).double()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.dim() >= 2:
                weight.mul_(1.5)
    return net.eval().requires_grad_(False)


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    return 2 * torch.rand(N, 1, dtype=torch.float64) - 1, torch.randn(N, dtype=torch.float64)


@pytest.fixture
def x_new() -> Tensor:
    return torch.tensor([[-0.4], [0.1], [0.7]], dtype=torch.float64)


def predicted(net: ArBufferModel, x: Tensor, y: Tensor, x_new: Tensor, values: Tensor) -> list[Tensor]:
    """Marginals at fresh targets, and the density of the first target of a joint."""
    context = net.condition(x, y)
    marginals = ArBufferMarginals(context, x_new)
    first = ArBufferJoint(context, x_new[:1])
    torch.manual_seed(3)
    draws = first.sample((4,))
    return [marginals.mean, marginals.variance, marginals.log_prob_factors(values), first.log_prob(values[:1]), draws]


@EACH
def test_empty_buffer_predicts_bit_for_bit_as_the_set_model(
    kind: str, pairs: tuple[Tensor, Tensor], x_new: Tensor
) -> None:
    base, values = set_model(), torch.randn(M, dtype=torch.float64)
    untrained = add_buffer(base, **KINDS[kind])
    for net in (untrained.requires_grad_(False), changed(untrained)):
        for x, y in (pairs, (pairs[0][:0], pairs[1][:0])):
            expected, found = (predicted(each, x, y, x_new, values) for each in (base, net))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@EACH
@pytest.mark.usefixtures("_fresh_accelerator")
def test_fit_trains_what_was_added_and_nothing_else(kind: str, tmp_path: Path) -> None:
    base = set_model().float()
    net = add_buffer(base, **KINDS[kind])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fit(net, dataclasses.replace(tiny.line_source(), config=net.config), tmp_path / "state.safetensors", steps=3)
    trained = {id(weight) for weight in net.added}
    for name, weight in net.named_parameters():
        assert torch.equal(weight, before[name]) != (id(weight) in trained), name
    x, y, x_new, values = torch.rand(N, 1), torch.randn(N), torch.rand(M, 1), torch.randn(M)
    expected, found = (predicted(each, x, y, x_new, values) for each in (base, net.requires_grad_(False)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@EACH
def test_every_added_weight_gets_a_gradient_and_no_other(kind: str) -> None:
    net = changed(add_buffer(set_model().float(), **KINDS[kind])).requires_grad_(True)
    net(tiny.line_source().batch(1)).backward()
    added = {id(weight) for weight in net.added}
    for name, weight in net.named_parameters():
        assert (weight.grad is not None and bool(weight.grad.any())) == (id(weight) in added), name


@EACH
def test_trained_are_the_targets_that_read_the_buffer(kind: str) -> None:
    net, batch = changed(add_buffer(set_model().float(), **KINDS[kind])), tiny.line_source().batch(1)
    assert (batch.prefix_len == 0).any()
    assert_close(net.loss(batch), -net.score(batch)[:, batch.prefix_len > 0].mean(), rtol=1e-5, atol=1e-5)
    per_task = batch._replace(prefix_len=batch.prefix_len.expand(len(batch.x_context), -1))
    assert_close(net.loss(per_task), -net.score(batch).mean(), rtol=1e-5, atol=1e-5)


def test_of_one_layer_it_reads_before_training_as_exact_re_encoding_does(
    pairs: tuple[Tensor, Tensor], x_new: Tensor
) -> None:
    base, values = set_model(num_layers=1), torch.randn(M, dtype=torch.float64)
    exact, found = (
        ArBufferJoint(net.requires_grad_(False).condition(*pairs), x_new, orders=torch.arange(M)[None])
        for net in (base, add_buffer(base))
    )
    assert_close(found.log_prob_factors(values), exact.log_prob_factors(values), rtol=1e-10, atol=1e-10)


@EACH
@pytest.mark.parametrize("fields", [{}, {"scaled_queries": True}, {"lag_column": 0}], ids=["sets", "scaled", "series"])
def test_pairs_that_enter_one_by_one_or_together_are_read_alike(kind: str, fields: dict[str, object]) -> None:
    net = changed(add_buffer(set_model(**fields), **KINDS[kind]))
    x, y = torch.rand(2, N, 1, dtype=torch.float64), torch.randn(2, N, 1, dtype=torch.float64)
    new, values = torch.rand(2, 1, M, 1, dtype=torch.float64), torch.randn(2, 4, M, 1, dtype=torch.float64)
    cache = net.encode(x, y, torch.tensor([N, 2]))
    embedded, buffer, pair = net.embed_targets(cache, new), BufferCache(), None
    before = (embedded[:, :, :-1], values[:, :, :-1])
    together, _ = net.predict(cache, buffer, before, embedded, chain_prefix_len(M))
    for k in range(M):
        here = embedded[:, :, k : k + 1]
        predictive, buffer = net.predict(cache, buffer, pair, here)
        found, expected = predictive.log_prob(values[:, :, k : k + 1]), together.log_prob(values)[:, :, k : k + 1]
        assert_close(found.expand(expected.shape), expected, rtol=1e-10, atol=1e-10)
        pair = (here, values[:, :, k : k + 1])


@EACH
def test_target_reads_pairs_before_it_and_no_others(kind: str, pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    net = changed(add_buffer(set_model(), **KINDS[kind]))
    values = torch.randn(M, dtype=torch.float64, requires_grad=True)
    factors = ArBufferJoint(net.condition(*pairs), x_new, orders=torch.arange(M)[None]).log_prob_factors(values)
    for k in range(M):
        (gradient,) = torch.autograd.grad(factors[k], values, retain_graph=True)
        assert ((gradient != 0) == (torch.arange(M) <= k)).all()


@pytest.mark.parametrize(("kind", "buffer_size"), [("adapters", None), ("gate", None), ("both", 2)])
def test_sampled_law_is_the_scored_law(
    kind: str, buffer_size: int | None, pairs: tuple[Tensor, Tensor], x_new: Tensor
) -> None:
    net = changed(add_buffer(set_model(), **KINDS[kind]))
    joint = ArBufferJoint(net.condition(*pairs), x_new, buffer_size=buffer_size)
    draws = joint.sample((4000,))
    other = Independent(Normal(draws.mean(0), 1.5 * draws.std(0)), 1)
    values = torch.cat([draws, other.sample((4000,))])
    p, q = joint.log_prob(values), other.log_prob(values)
    ratio = 2 * torch.sigmoid(q - p)  # 2 q / (p + q), of mean 1 under the equal mixture of p and q
    halves = ratio.view(2, -1)
    error = (halves.var(1).sum() / 4 / halves.shape[1]).sqrt()
    assert abs(ratio.mean() - 1) < 5 * error and error < 0.02


@EACH
def test_one_draw_and_many_are_drawn_alike(kind: str, pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    net = changed(add_buffer(set_model(), **KINDS[kind]))
    drawn = []
    for rsample in (False, True):  # with derivatives, and for many draws, by other bodies of attention
        joint = ArBufferJoint(net.condition(*pairs), x_new, orders=torch.arange(M)[None], rsample=rsample)
        torch.manual_seed(0)
        drawn.append((joint.rsample if rsample else joint.sample)((1,)))
    assert_close(*drawn, rtol=1e-10, atol=1e-10)


@EACH
def test_it_is_saved_with_the_set_model_and_loaded(kind: str, tmp_path: Path) -> None:
    net = changed(add_buffer(set_model().float(), **KINDS[kind])).in_units(y_loc=2.0, y_scale=3.0)
    pyro_arbuf.save(net, tmp_path / "net")
    found = pyro_arbuf.load(tmp_path / "net", trainable=True)
    assert type(found) is TNPDBuffer and found.config == net.config
    assert f"{K} slots, added to a frozen set model" in repr(found)
    assert {id(w) for w in found.parameters() if w.requires_grad} == {id(weight) for weight in found.added}
    for name, value in net.state_dict().items():
        assert torch.equal(value, found.state_dict()[name])
    with safe_open(tmp_path / "net" / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 (not a mapping)
    assert stored == sum(weight.numel() for weight in net.parameters())  # nothing twice


@EACH
def test_context_and_network_are_pickled(kind: str, pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    net, values = changed(add_buffer(set_model(), **KINDS[kind])), torch.randn(M, dtype=torch.float64)
    context = net.condition(*pairs)
    expected = ArBufferJoint(context, x_new).log_prob(values)
    for found in (pickle.loads(pickle.dumps(context)), pickle.loads(pickle.dumps(net)).condition(*pairs)):
        assert torch.equal(ArBufferJoint(found, x_new).log_prob(values), expected)


@pytest.mark.parametrize(("kind", "rank", "heads"), [("adapters", 3, 0), ("gate", 0, 2), ("both", 2, 2)])
def test_number_of_added_weights(kind: str, rank: int, heads: int) -> None:
    net, width, num_layers = add_buffer(set_model(), **KINDS[kind]), tiny.CONFIG.width, tiny.CONFIG.num_layers
    matrices = 4 * num_layers - 1  # queries, keys, values and outputs, which the last block does not have
    expected = K * width + matrices * 2 * width * rank + num_layers * heads * (width + 1)
    assert sum(w.numel() for w in net.parameters() if w.requires_grad) == expected
    assert sum(w.numel() for w in net.added) == expected


def test_default_adds_at_most_a_tenth() -> None:
    base = make_model(matched_config(RECIPES["gp-1d-noisy"].config, "tnp-d"))
    net = add_buffer(base)
    assert sum(weight.numel() for weight in net.added) < 0.1 * sum(weight.numel() for weight in net.parameters())


def test_set_model_is_left_as_it_is(pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    base = set_model()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    changed(add_buffer(base))
    assert base.config.architecture == "tnp-d"
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_what_cannot_be_added_is_an_error() -> None:
    base = set_model()
    with pytest.raises(ValueError, match=r"of architecture 'tnp-d'; got 'buffer'; it has a buffer, which fit trains"):
        add_buffer(tiny.tiny_model())
    with pytest.raises(ValueError, match=r"of architecture 'tnp-d'; got 'tnp-d-buffer'; it has a buffer"):
        add_buffer(add_buffer(base))
    with pytest.raises(ValueError, match=r"of architecture 'tnp-d'; got 'decoder'$"):
        add_buffer(make_model(dataclasses.replace(tiny.CONFIG, architecture="decoder")))
    with pytest.raises(ValueError, match=r"net must be an ArBufferModel; got str"):
        add_buffer("tnp-d")
    for rank in (0, 1, 17, 2.0, True):
        with pytest.raises(ValueError, match=r"rank must be an integer in 2\.\.16, or None; got"):
            add_buffer(base, rank=rank)
    with pytest.raises(ValueError, match=r"rank must not be None where gated_read=False"):
        add_buffer(base, rank=None)
    for fields, message in (
        ({"adapter_rank": 1}, r"adapter_rank must be an integer in 2\.\.16, or 0"),
        ({"adapter_rank": 0}, r"adapter_rank must not be 0 where gated_read=False"),
        ({"gated_read": 1}, r"gated_read must be True or False; got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(tiny.CONFIG, architecture="tnp-d-buffer", **fields)


@pytest.mark.usefixtures("_fresh_accelerator")
def test_command_adds_a_buffer_to_a_set_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = dataclasses.replace(tiny.CONFIG, x_range=(-2.0, 2.0), num_targets=(1, 9))
    monkeypatch.setitem(RECIPES, "sawtooth", RECIPES["sawtooth"]._replace(config=sizes))
    monkeypatch.chdir(tmp_path)
    pyro_arbuf.save(set_model(x_range=(-2.0, 2.0)).float(), "set-model")

    def run(*arguments: str) -> None:
        options = ["--batch-size", "2", "--num-targets", "3", "--steps", "2", *arguments]
        monkeypatch.setattr("sys.argv", ["pyro-arbuf", "train", "sawtooth", *options])
        cli.main()

    added = ("--from", "set-model", "--architecture", "tnp-d-buffer", "--output", "net")
    run(*added, "--adapter-rank", "2", "--gated-read")
    net, base = pyro_arbuf.load("net"), pyro_arbuf.load("set-model")
    assert type(net) is TNPDBuffer and (net.config.adapter_rank, net.config.gated_read) == (2, True)
    assert all(torch.equal(value, net.state_dict()[n]) for n, value in base.state_dict().items() if "slot" not in n)
    run("--from", "net", "--output", "net")  # trained further, it stays what it is
    assert pyro_arbuf.load("net").config.adapter_rank == 2
    for arguments, message in (
        (("--architecture", "tnp-d-buffer", "--output", "other"), "adds a buffer to trained weights"),
        (("--adapter-rank", "2", "--output", "other"), "--adapter-rank are for a buffer that is added"),
        ((*added[:2], "--gated-read", "--output", "other"), "--gated-read are for a buffer that is added"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(*arguments)


SET_CONFIG = dataclasses.replace(tiny.CONFIG, architecture="tnp-d")
SIZES = (tiny.CONFIG.width, tiny.CONFIG.num_layers, tiny.CONFIG.num_heads, tiny.CONFIG.mlp_width)


class SmoothBlock(Block):
    """A block of the same weights and of another function."""

    def update(self, tokens: Tensor, attended: Tensor) -> Tensor:
        tokens = tokens + self.out(attended.transpose(-2, -3).flatten(-2))
        return tokens + self.down(torch.tanh(self.up(self.norm_mlp(tokens))))


class FinalNorm(Backbone):
    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.final = torch.nn.LayerNorm(sizes[0])

    def read(self, *args: object, **options: object) -> tuple:
        tokens, buffer = super().read(*args, **options)
        return self.final(tokens), buffer


class Squashed(Embedder):
    def context(self, embedded_x: Tensor, y: Tensor, told: Tensor | None = None) -> Tensor:
        return torch.tanh(super().context(embedded_x, y, told))


class NormHead(torch.nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm, self.head = torch.nn.LayerNorm(config.width), make_head(config)

    def forward(self, features: Tensor) -> object:
        return self.head(self.norm(features))


class Own(TNPD):
    def encode(self, x: Tensor, y: Tensor, context_len: Tensor | None = None) -> object:
        return super().encode(x, 2 * y, context_len)


class Helpful(TNPD):
    def describe(self) -> str:
        return "a set model with a method more"


def of_blocks(*kinds: type) -> Backbone:
    backbone = Backbone(*SIZES)
    backbone.blocks = torch.nn.ModuleList(kind(SIZES[0], *SIZES[2:]) for kind in kinds)
    return backbone


def built(**parts: object) -> TNPD:
    torch.manual_seed(1)
    net = TNPD(SET_CONFIG, **parts).double().eval().requires_grad_(False)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return net


@pytest.mark.parametrize(
    "parts",
    [
        {"head": NormHead(SET_CONFIG)},
        {"backbone": of_blocks(SmoothBlock, SmoothBlock)},
        {"backbone": Backbone(*SIZES, scaled=True)},
    ],
    ids=["head", "blocks", "scaled"],
)
def test_blocks_and_head_of_ones_own_are_kept(parts, pairs, x_new):
    base, values = built(**parts), torch.randn(3, dtype=torch.float64)
    new = changed(add_buffer(base))
    for own, kept in zip(*(predicted(net, *pairs, x_new, values) for net in (base, new)), strict=True):
        assert torch.equal(own, kept)
    assert next(new.head.parameters()) is not next(base.head.parameters())


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (lambda: built(backbone=FinalNorm(*SIZES)), "backbone: FinalNorm"),
        (lambda: built(embedder=Squashed(SET_CONFIG)), "embedder: Squashed"),
        (lambda: Own(SET_CONFIG), "net: Own"),
    ],
)
def test_parts_that_would_be_left_behind_are_refused(net, named):
    with pytest.raises(ValueError, match="no parts of your own but blocks and a head") as caught:
        add_buffer(net())
    assert named in str(caught.value)


def test_a_block_without_the_maps_that_adapters_change_is_refused():
    backbone = of_blocks(Block, Block)
    backbone.blocks[1].query = torch.nn.Sequential(backbone.blocks[1].query)
    with pytest.raises(ValueError, match="query, key, value, out, which adapters change; block 1, a Block, has not"):
        add_buffer(built(backbone=backbone))


def test_a_backbone_of_other_blocks_or_of_another_number_is_refused(pairs):
    with pytest.raises(ValueError, match="num_layers = 2 blocks; got 1"):
        built(backbone=of_blocks(Block))
    net = built()
    net.backbone.blocks[1] = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"must all be of subclasses of .*Block; got \['Block', 'Linear'\]"):
        net.condition(*pairs)


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (lambda: built(backbone=of_blocks(SmoothBlock, SmoothBlock)), "backbone.blocks.0: SmoothBlock"),
        (lambda: add_buffer(built(backbone=of_blocks(Block, SmoothBlock))), "backbone.blocks.1: SmoothBlock"),
        (lambda: built(embedder=Squashed(SET_CONFIG)), "embedder: Squashed"),
        (lambda: built(backbone=Backbone(SIZES[0], SIZES[1], 3, SIZES[3])), "backbone.blocks.0: Block"),
        (lambda: Own(SET_CONFIG), "the network: Own"),
    ],
)
def test_a_network_of_ones_own_parts_is_not_loaded_as_another_one(net, named, tmp_path):
    own = net()
    pyro_arbuf.save(own, tmp_path)
    with pytest.raises(ValueError, match="load builds networks of this package's parts") as caught:
        pyro_arbuf.load(tmp_path)
    assert named in str(caught.value)
    own.load_state_dict(load_file(tmp_path / "model.safetensors"))  # as the message says


def test_a_network_with_methods_more_is_loaded_without_them(tmp_path, pairs, x_new):
    own = Helpful(SET_CONFIG).requires_grad_(False)
    pyro_arbuf.save(own, tmp_path)
    context, same = (net.condition(pairs[0].float(), pairs[1].float()) for net in (own, pyro_arbuf.load(tmp_path)))
    assert torch.equal(ArBufferMarginals(context, x_new.float()).mean, ArBufferMarginals(same, x_new.float()).mean)
    assert add_buffer(own).config.architecture == "tnp-d-buffer"


def test_a_module_beside_the_head_is_refused():
    net = built()
    net.head_of_others = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="head_of_others: Linear"):
        add_buffer(net)


def test_a_backbone_that_has_the_methods_alone_will_do(pairs, x_new):
    class Wrapped(torch.nn.Module):
        def __init__(self, backbone: Backbone):
            super().__init__()
            self.inner, self.encode_context, self.read = backbone, backbone.encode_context, backbone.read

    net = built(backbone=Wrapped(Backbone(*SIZES)))
    assert ArBufferMarginals(net.condition(*pairs), x_new).mean.isfinite().all()

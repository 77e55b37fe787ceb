"""The baselines are what they are said to be, have one law, as many parameters as ours, and go through the house."""

import dataclasses
from pathlib import Path

import pyro
import pytest
import tiny
import torch
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.testing import assert_close

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferMarginals, ArBufferModel, ModelConfig, cli
from pyro_arbuf.baselines import GaussianJoint, make_model, matched_config
from pyro_arbuf.baselines.architectures import ARCHITECTURES, num_parameters
from pyro_arbuf.baselines.latent_bottleneck import NUM_LATENTS
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.programs.sources import make_source

# The buffer of a "tnp-d-buffer" is added to trained weights and not compared at equal size: test_added_buffer.py.
BASELINES = tuple(name for name in ARCHITECTURES if name not in ("buffer", "tnp-d-buffer"))
EACH = pytest.mark.parametrize("name", BASELINES)
N, M = 5, 3


def random_net(name: str, **fields: object) -> ArBufferModel:
    """A frozen net in float64, whose weights are large enough that what it reads matters."""
    torch.manual_seed(1)
    net = make_model(dataclasses.replace(tiny.CONFIG, architecture=name, **fields)).double()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.dim() >= 2:
                weight.mul_(1.5)
    return net.eval().requires_grad_(False)


def joint_of(net: ArBufferModel, context: pyro_arbuf.Context, x: Tensor) -> ArBufferJoint | GaussianJoint:
    return (GaussianJoint if net.config.architecture == "tnp-nd" else ArBufferJoint)(context, x)


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    return 2 * torch.rand(N, 1, dtype=torch.float64) - 1, torch.randn(N, dtype=torch.float64)


@pytest.fixture
def x_new() -> Tensor:
    return torch.tensor([[-0.4], [0.1], [0.7]], dtype=torch.float64)


@pytest.mark.parametrize("prior", ["gp-1d", "eeg"])  # sawtooth has the sizes of gp-1d
@EACH
def test_baseline_has_as_many_parameters(name: str, prior: str) -> None:
    config = RECIPES[prior].config
    if config.lag_column is not None and name in ("decoder", "lbanp", "lbanp-buffer"):
        with pytest.raises(ValueError, match=r"must have lag_column=None, as its attention sees no lags; got 0"):
            matched_config(config, name)
        return
    assert abs(num_parameters(matched_config(config, name)) / num_parameters(config) - 1) < 0.05


@EACH
def test_sampled_law_is_the_scored_law(name: str, pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    net = random_net(name)
    joint = joint_of(net, net.condition(*pairs), x_new)
    draws = joint.sample((4000,))
    other = Independent(Normal(draws.mean(0), 1.5 * draws.std(0)), 1)
    values = torch.cat([draws, other.sample((4000,))])
    p, q = joint.log_prob(values), other.log_prob(values)
    ratio = 2 * torch.sigmoid(q - p)  # 2 q / (p + q), of mean 1 under the equal mixture of p and q
    halves = ratio.view(2, -1)
    error = (halves.var(1).sum() / 4 / halves.shape[1]).sqrt()
    assert abs(ratio.mean() - 1) < 5 * error
    assert error < 0.02


@EACH
def test_context_has_an_order_in_the_decoder_alone(name: str, pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    net, (x, y), values = random_net(name), pairs, torch.randn(M, dtype=torch.float64)
    turned = torch.arange(N - 1, -1, -1)
    first, other = (joint_of(net, net.condition(x[i], y[i]), x_new) for i in (slice(None), turned))
    difference = (first.log_prob(values) - other.log_prob(values)).abs()
    assert difference > 1e-3 if name == "decoder" else difference < 1e-10


@EACH
def test_contexts_of_different_lengths_share_a_batch(name: str, pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    net, (x, y), values = random_net(name), pairs, torch.randn(M, dtype=torch.float64)
    lengths = (N, 2, 0)
    together = joint_of(net, net.condition([x[:n] for n in lengths], [y[:n] for n in lengths]), x_new).log_prob(values)
    alone = [joint_of(net, net.condition(x[:n], y[:n]), x_new).log_prob(values) for n in lengths]
    assert_close(together, torch.stack(alone), rtol=1e-10, atol=1e-10)


@EACH
def test_joint_is_a_site_of_a_pyro_model(name: str, pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    net = random_net(name)
    context = net.condition(*pairs)

    def model() -> Tensor:
        with pyro.plate("subjects", 4):
            return pyro.sample("y", joint_of(net, context.expand(4), x_new))

    trace = pyro.poutine.trace(model).get_trace()
    values = trace.nodes["y"]["value"]
    assert values.shape == (4, M)
    assert_close(trace.log_prob_sum(), joint_of(net, context, x_new).log_prob(values).sum(), rtol=1e-10, atol=1e-10)


@EACH
def test_density_is_one_in_the_users_units(name: str, pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    net, (x, y), values = random_net(name), pairs, torch.randn(M, dtype=torch.float64)
    own = net.in_units(y_loc=3.0, y_scale=2.0)
    density = joint_of(own, own.condition(x, 3 + 2 * y), x_new).log_prob(3 + 2 * values)
    expected = joint_of(net, net.condition(x, y), x_new).log_prob(values)
    assert_close(density, expected - M * torch.tensor(2.0).double().log(), rtol=1e-10, atol=1e-10)


@EACH
def test_baseline_saves_and_loads(name: str, tmp_path: Path) -> None:
    net = make_model(dataclasses.replace(tiny.CONFIG, architecture=name))
    pyro_arbuf.save(net, tmp_path / "net")
    found = pyro_arbuf.load(tmp_path / "net")
    assert type(found) is type(net) is ARCHITECTURES[name] and found.config == net.config
    assert f"the architecture is {name}" in repr(found)
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in found.state_dict().items())


@EACH
@pytest.mark.usefixtures("_fresh_accelerator")
def test_command_trains_a_baseline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = dataclasses.replace(tiny.CONFIG, x_range=(-2.0, 2.0), num_targets=(1, 9))
    monkeypatch.setitem(RECIPES, "sawtooth", RECIPES["sawtooth"]._replace(config=sizes))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> None:
        options = ["--output", "net", "--batch-size", "2", "--num-targets", "3", *arguments]
        monkeypatch.setattr("sys.argv", ["pyro-arbuf", "train", "sawtooth", *options])
        cli.main()

    run("--architecture", name, "--steps", "2")
    first = pyro_arbuf.load("net")
    assert type(first) is ARCHITECTURES[name] and first.config.prior == "sawtooth"
    run("--from", "net", "--steps", "1", "--learning-rate", "1e-4")
    assert type(pyro_arbuf.load("net")) is ARCHITECTURES[name]
    with pytest.raises(SystemExit):
        run("--from", "net", "--architecture", "buffer", "--steps", "1")


@EACH
def test_every_weight_that_is_used_gets_a_gradient(name: str) -> None:
    source = make_source("sawtooth", 2, 3, architecture=name)
    net = make_model(source.config)
    net(source.batch(1)).backward()
    without = {key for key, weight in net.named_parameters() if weight.grad is None}
    unused = {"embedder.empty_context"} | ({"embedder.positions.slot"} if name in ("tnp-d", "lbanp") else set())
    assert without <= unused


def draw_batch(num_slots: int, num_targets: int) -> Batch:
    def draw(count: int) -> tuple[Tensor, Tensor]:
        return torch.rand(2, count, 1, dtype=torch.float64), torch.randn(2, count, 1, dtype=torch.float64)

    context, buffer, fresh = draw(N), draw(num_slots), draw(num_targets)
    return Batch(*context, *buffer, *fresh, torch.arange(num_targets) % (num_slots + 1))


@pytest.mark.parametrize("name", ["tnp-d", "lbanp"])
def test_a_network_without_buffer_trains_its_marginals_and_re_encodes(name: str, x_new: Tensor) -> None:
    net, batch = random_net(name), draw_batch(4, M)
    context = net.condition(batch.x_context, batch.y_context.squeeze(-1))
    marginals = ArBufferMarginals(context, batch.x_target)
    assert_close(net.score(batch), marginals.log_prob_factors(batch.y_target.squeeze(-1)), rtol=1e-10, atol=1e-10)
    x, y, values = batch.x_context[0], batch.y_context[0, :, 0], torch.randn(M, dtype=torch.float64)
    joint = ArBufferJoint(net.condition(x, y), x_new, orders=torch.arange(M)[None])
    steps = []
    for k in range(M):
        grown = net.condition(torch.cat([x, x_new[:k]]), torch.cat([y, values[:k]]))
        steps.append(ArBufferMarginals(grown, x_new[k : k + 1]).log_prob(values[k : k + 1]))
    assert_close(joint.log_prob_factors(values), torch.stack(steps), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"buffer_size must be an integer in 1\.\.1"):
        ArBufferJoint(net.condition(x, y), x_new, buffer_size=2)


def test_tnp_d_has_the_weights_of_a_network_with_a_buffer() -> None:
    buffer = tiny.tiny_model()
    make_model(dataclasses.replace(tiny.CONFIG, architecture="tnp-d")).load_state_dict(buffer.state_dict())


def test_tnp_a_trains_the_chain_that_its_joint_scores() -> None:
    net, batch = random_net("tnp-a"), draw_batch(4, M)
    joint = ArBufferJoint(
        net.condition(batch.x_context, batch.y_context.squeeze(-1)), batch.x_buffer, orders=torch.arange(4)[None]
    )
    assert_close(net.score(batch), joint.log_prob_factors(batch.y_buffer.squeeze(-1)), rtol=1e-10, atol=1e-10)


def test_tnp_a_reads_pairs_before_a_target_and_no_others() -> None:
    net, batch = random_net("tnp-a"), draw_batch(4, M)
    y = batch.y_buffer.clone().requires_grad_()
    for k in range(4):
        (gradient,) = torch.autograd.grad(net.score(batch._replace(y_buffer=y))[0, k], y, retain_graph=True)
        assert ((gradient[0, :, 0] != 0) == (torch.arange(4) <= k)).all()


@pytest.mark.parametrize("name", ["tnp-a", "tnp-nd"])
def test_chains_of_training_are_as_long_as_ours_has_targets(name: str) -> None:
    config = make_source("gp-1d", 2, 48, architecture=name).config
    assert config.buffer_size == RECIPES["gp-1d"].config.buffer_size + 48


def test_pair_in_the_buffer_of_a_decoder_is_one_at_the_end_of_its_context(
    pairs: tuple[Tensor, Tensor], x_new: Tensor
) -> None:
    net, (x, y), values = random_net("decoder"), pairs, torch.randn(M, dtype=torch.float64)
    factors = ArBufferJoint(net.condition(x, y), x_new, orders=torch.arange(M)[None]).log_prob_factors(values)
    for k in range(M):
        grown = net.condition(torch.cat([x, x_new[:k]]), torch.cat([y, values[:k]]))
        marginal = ArBufferMarginals(grown, x_new[k : k + 1]).log_prob(values[k : k + 1])
        assert_close(factors[k], marginal, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["lbanp", "lbanp-buffer"])
def test_latents_stand_for_contexts_of_any_length(name: str) -> None:
    net = random_net(name)
    for n in (0, 1, 40):
        cache = net.encode(torch.rand(2, n, 1, dtype=torch.float64), torch.rand(2, n, 1, dtype=torch.float64))
        assert {key.shape[-2] for key in cache.keys} == {NUM_LATENTS} and cache.context_len is None


def test_latents_compress_absorbed_pairs_anew(pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    net, (x, y), values = random_net("lbanp-buffer"), pairs, torch.randn(M, dtype=torch.float64)
    options = {"orders": torch.arange(M)[None], "buffer_size": 2}
    joint = ArBufferJoint(net.condition(x, y), x_new, **options)
    grown = net.condition(torch.cat([x, x_new[:2]]), torch.cat([y, values[:2]]))
    last = ArBufferMarginals(grown, x_new[2:]).log_prob(values[2:])
    assert_close(joint.log_prob_factors(values)[2], last, rtol=1e-10, atol=1e-10)


def test_tnp_nd_trains_the_joint_that_it_scores() -> None:
    net, batch = random_net("tnp-nd", dim_y=2), draw_batch(4, M)
    batch = batch._replace(**{name: getattr(batch, name).expand(-1, -1, 2) for name in ("y_context", "y_buffer")})
    joint = GaussianJoint(net.condition(batch.x_context, batch.y_context), batch.x_buffer)
    assert_close(net.score(batch).sum(1), joint.log_prob(batch.y_buffer), rtol=1e-10, atol=1e-10)


def test_gaussian_joint_has_the_moments_of_its_draws(pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    net = random_net("tnp-nd").in_units(y_loc=1.0, y_scale=3.0)
    joint = GaussianJoint(net.condition(*pairs), x_new)
    draws = joint.sample((20_000,))
    assert ((draws.mean(0) - joint.mean).abs() < 5 * (joint.variance / 20_000).sqrt()).all()
    assert_close(draws.var(0), joint.variance, rtol=0.06, atol=0.0)
    assert joint.expand((2,)).sample().shape == (2, M) and joint.expand((2,)).mean.shape == (2, M)


def test_gaussian_joint_standardises_as_its_network_does(pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    values = torch.randn(M, dtype=torch.float64)
    plain, scaled = (
        random_net("tnp-nd", y_loc=loc, y_scale=scale) for loc, scale in (((0.0,), (1.0,)), ((2.0,), (3.0,)))
    )
    scaled.load_state_dict(plain.state_dict())
    x, y = pairs
    expected = GaussianJoint(plain.condition(x, y), x_new).log_prob(values)
    found = GaussianJoint(scaled.condition(x, 2 + 3 * y), x_new).log_prob(2 + 3 * values)
    assert_close(found, expected - M * torch.tensor(3.0).double().log(), rtol=1e-10, atol=1e-10)


def test_tnp_nd_says_which_distribution_is_its_own(pairs: tuple[Tensor, Tensor], x_new: Tensor) -> None:
    context, other = (random_net(name).condition(*pairs) for name in ("tnp-nd", "tnp-d"))
    for kind in (ArBufferJoint, ArBufferMarginals):
        with pytest.raises(ValueError, match=r"predicts all targets at once.*GaussianJoint\(context, x\)"):
            kind(context, x_new)
    with pytest.raises(ValueError, match=r"architecture 'tnp-nd'; got one of 'tnp-d'; use ArBufferJoint"):
        GaussianJoint(other, x_new)


def test_architectures_are_checked() -> None:
    with pytest.raises(ValueError, match=r"architecture must be one of buffer, tnp-d, .*; got 'tnp'"):
        ModelConfig(architecture="tnp")
    with pytest.raises(ValueError, match=r"architecture='tnp-a' is for priors of functions and for recordings"):
        ModelConfig(architecture="tnp-a", inputs="rows")
    with pytest.raises(ValueError, match=r"config\.architecture must be 'buffer' for ArBufferModel; got 'tnp-a'"):
        ArBufferModel(ModelConfig(architecture="tnp-a"))
    with pytest.raises(ValueError, match=r"architecture must be 'buffer' for 'ddm'; got 'tnp-d'"):
        make_source("ddm", architecture="tnp-d")


def test_scaled_queries_of_a_causal_context_count_what_each_reads() -> None:
    net = random_net("decoder", scaled_queries=True)
    x, y = torch.rand(1, N, 1, dtype=torch.float64), torch.rand(1, N, 1, dtype=torch.float64)
    long, short = net.encode(x, y), net.encode(x[:, :2], y[:, :2])
    for longer, shorter in zip(long.keys, short.keys, strict=True):
        assert_close(longer[:, :, :2], shorter, rtol=1e-12, atol=1e-12)

"""Draft and verify: the law of plain decoding for every kind of outcome, and counts that add up."""

import dataclasses
import itertools

import pytest
import torch
from conftest import CONFIG, random_model
from samples import draw, draw_outcomes
from scipy.stats import chisquare, ks_2samp, kstest
from torch import Size, Tensor
from torch.testing import assert_close

from pyro_arbuf import load
from pyro_arbuf.distributions import joint as joint_module
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference import draft_verify
from pyro_arbuf.inference.blocks import draw_noise
from pyro_arbuf.inference.context import Context
from pyro_arbuf.inference.draft_verify import draft_joint, draw_keys, residual, stream
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.cache import Buffer, ContextCache
from pyro_arbuf.network.chained import ChainedHead
from pyro_arbuf.network.discrete import CategoricalPredictive, CountPredictive
from pyro_arbuf.network.predictives import GaussianMixture, Predictive

B, S, N, K, M, DIM_X = 2, 3, 5, 4, 6, 2
KINDS = {
    "real": {},
    "categorical": {"outcomes": ("categorical(3)",)},
    "count": {"outcomes": ("count",)},
    "vector of reals": {"dim_y": 2},
    "independent dimensions": {"dim_y": 2, "chained": False},
    "mixed vector": {"dim_y": 3, "outcomes": ("categorical(2)", "real", "count")},
}
of_every_kind = pytest.mark.parametrize("kind", KINDS)


def network(kind: str) -> ArBufferModel:
    """Random weights, whose later targets depend on earlier ones enough that many drafts are rejected."""
    net = random_model(dataclasses.replace(CONFIG, **{"chained": True} | KINDS[kind]))
    for layer in net.head.out if isinstance(net.head, ChainedHead) else [net.head.out]:
        layer.weight[: 2 * len(layer.weight) // 3] *= 4  # probabilities and means, not standard deviations
    return net


def context_of(net: ArBufferModel, num_context: int = N) -> Context:
    y = net.config.squeeze_outcome(draw_outcomes(net.config, num_context, seed=2))
    return net.condition(draw(num_context, DIM_X, seed=1), y)


def joint_of(kind: str, num_targets: int = M, **options: object) -> ArBufferJoint:
    return ArBufferJoint(context_of(network(kind)), draw(num_targets, DIM_X, seed=3), **options)


def key_of(count: int, seed: int = 0) -> Tensor:
    limits = torch.iinfo(torch.int64)
    return torch.randint(limits.min, limits.max, (count,), generator=torch.Generator().manual_seed(seed))


# The law --------------------------------------------------------------------------------------------------------------


def uniform_p_values(pit: Tensor) -> list[float]:
    """That each of many numbers is uniform, and that the sum of normal scores of each draw has its distribution."""
    columns = pit.double().flatten(1)
    scores = torch.special.ndtri(columns.clamp(1e-12, 1 - 1e-12)).sum(1) / columns.shape[1] ** 0.5
    return [kstest(column.numpy(), "uniform").pvalue for column in columns.T] + [kstest(scores.numpy(), "norm").pvalue]


def statistics_of(draws: Tensor) -> list[Tensor]:
    """Numbers of each draw that tell what it is jointly: targets, differences of neighbours, the sum."""
    values = draws.double().flatten(1)
    return [*values.T, *values.diff(dim=1).T, values.sum(1)]


def check_law(d: ArBufferJoint, num_draws: int) -> None:
    """Uniform and independent under the teacher-forced conditionals, and distributed as plain decoding's draws."""
    torch.manual_seed(5)
    found, plain = d.sample_drafted((num_draws,)), d.sample((num_draws,))
    pit = d.pit(found.draws, seed=11).flatten(1)
    assert min(uniform_p_values(pit)) > 1e-4
    correlation = torch.corrcoef(pit.T) - torch.eye(pit.shape[1], dtype=pit.dtype)
    assert correlation.abs().max() < 5 / num_draws**0.5
    pairs = zip(statistics_of(plain), statistics_of(found.draws), strict=True)
    assert min(ks_2samp(a.numpy(), b.numpy(), method="asymp").pvalue for a, b in pairs) > 1e-4
    assert 0.5 < found.accepted.sum() / found.verified.sum() < 0.99  # some drafts are accepted, some are not


@of_every_kind
def test_draws_have_the_law_of_plain_decoding(kind: str) -> None:
    check_law(joint_of(kind), 500)


@pytest.mark.slow
@of_every_kind
def test_a_hundred_thousand_draws_have_the_law_of_plain_decoding(kind: str) -> None:
    check_law(joint_of(kind), 100_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gp-1d-noisy", "gp-1d", "sawtooth"])
def test_draws_of_shipped_networks_in_single_precision_have_the_law_of_plain_decoding(name: str) -> None:
    x, x_new = torch.linspace(-1.9, 1.7, 9)[:, None], torch.linspace(-1.5, 1.9, 16)[:, None]
    check_law(ArBufferJoint(load(name).condition(x, torch.sin(3 * x[:, 0]).abs()), x_new), 10_000)


@of_every_kind
def test_sampled_law_is_the_scored_law(kind: str) -> None:
    """The share 2 q / (p + q) averages to one under the mixture of the joint p and the marginals q."""
    d = joint_of(kind, orders=random_orders(M, 2))
    other = d.marginals()
    values = torch.cat([d.sample_drafted((500,)).draws, other.sample((500,))])
    share = 2 * torch.sigmoid(other.log_prob(values) - d.log_prob(values)).view(2, -1)
    error = (share.var(1).sum() / 4 / share.shape[1]).sqrt()
    assert abs(share.mean() - 1) < 5 * error < 0.15


@pytest.mark.parametrize("batch", [(), (B,)])
def test_batches_of_contexts_of_different_lengths_and_orders(batch: tuple[int, ...]) -> None:
    net, num_draws = network("real"), 300
    x, y = draw(B, N, DIM_X, seed=1), draw(B, N, seed=2)
    context = net.condition([x[0], x[1, :2]], [y[0], y[1, :2]])
    d = ArBufferJoint(context, draw(*batch, M, DIM_X, seed=3), draft=True).expand([S, B])
    found = d.sample_drafted((num_draws,))
    assert found.draws.shape == (num_draws, S, B, M) and found.passes.shape == (num_draws, S, B)
    pit = d.pit(found.draws)
    assert min(uniform_p_values(pit.flatten(0, 1)[:, b])[-1] for b in range(B)) > 1e-3
    assert found.passes.double().mean((0, 1)).diff().abs() > 0.01  # as their contexts differ


def test_latents_are_drafted_too() -> None:
    net = load("gaussian").double()
    context = net.condition(torch.zeros(N, 1, dtype=torch.float64), draw(N, seed=2))
    found = (d := ArBufferPosterior(context)._joint).sample_drafted((200,))
    assert min(uniform_p_values(d.pit(found.draws)[..., :1])) > 1e-4 and (found.verified == 1).all()


def test_series_are_drafted_in_their_order() -> None:
    net = load("ar1").double()
    x = torch.arange(12, dtype=torch.float64)[:, None]
    y = draw(6, seed=2)
    d = ArBufferJoint(net.condition(x[:6], y), x[6:], draft=True)
    pit = d.pit(d.sample((400,)))
    assert min(uniform_p_values(pit)) > 1e-4


# Equality with plain decoding -----------------------------------------------------------------------------------------


class Forgetful(ArBufferModel):
    """A network that never reads its buffer: what drafts come from is what verifies them."""

    def predict(
        self,
        cache: ContextCache,
        buffer: Buffer,
        pairs: tuple[Tensor, Tensor] | None,
        embedded_target: Tensor,
        prefix_len: Tensor | None = None,
    ) -> tuple[Predictive, Buffer]:
        return super().predict(cache, buffer, None, embedded_target)


@pytest.mark.parametrize("kind", ["real", "categorical", "mixed vector"])
@pytest.mark.parametrize("num_targets", [1, K, 2 * K + 1])
def test_where_the_draft_is_the_verifier_draws_are_those_of_plain_decoding(kind: str, num_targets: int) -> None:
    net = network(kind)
    forgetful = Forgetful(net.config).double()
    forgetful.load_state_dict(net.state_dict())
    forgetful.requires_grad_(False)
    d = ArBufferJoint(context_of(forgetful), draw(num_targets, DIM_X, seed=3), random_orders(num_targets, 2))
    torch.manual_seed(1)
    plain = d.sample((50,))
    torch.manual_seed(1)
    found = d.sample_drafted((50,))
    assert_close(found.draws, plain, rtol=1e-10, atol=1e-10)
    assert (found.accepted == found.verified).all() and (found.verified == num_targets - -(-num_targets // K)).all()
    assert (found.passes == 2 * (num_targets // K) + num_targets % K).all()  # a block of one target needs no verifying


def test_the_first_target_of_a_block_is_that_of_plain_decoding() -> None:
    d = joint_of("real", orders=torch.arange(M)[None])
    torch.manual_seed(1)
    plain = d.sample((20,))
    torch.manual_seed(1)
    assert_close(d.sample_drafted((20,)).draws[:, 0], plain[:, 0], rtol=1e-10, atol=1e-10)


# Numbers --------------------------------------------------------------------------------------------------------------


@of_every_kind
def test_counts_add_up(kind: str) -> None:
    """A block takes a pass for its drafts, one for each rejection, and one more unless the last target was rejected."""
    found = joint_of(kind, draft=True).sample_drafted((200,))
    rejected = found.verified - found.accepted
    extra = found.passes - 2 - rejected  # two blocks
    assert found.draws.shape[:1] == found.passes.shape == (200,)
    assert (found.verified == M - 2).all() and (extra >= 0).all() and (extra <= 2).all()
    assert (rejected[extra == 0] >= 2).all() and (extra > 0).any()


def test_sampling_by_drafts_is_opt_in() -> None:
    d, plain = joint_of("real", draft=True), joint_of("real")
    torch.manual_seed(1)
    found = d.sample((7,))
    torch.manual_seed(1)
    assert torch.equal(found, plain.sample_drafted((7,)).draws)
    torch.manual_seed(1)
    assert not torch.equal(found, plain.sample((7,)))
    assert d.expand([3]).draft and d.condition([0], draw(1)).draft and not plain.draft


def test_chunks_change_nothing() -> None:
    net, orders = network("mixed vector"), random_orders(M, 3)
    context, x = context_of(net), draw(1, 1, M, DIM_X, seed=3)
    noise = draw_noise(Size([7]), Size([]), (M, 3), 3, x)
    keys = draw_keys(noise)
    whole, parts = (draft_joint(context, x, orders, K, noise, keys, most) for most in (2**14, 1))
    for a, b in zip(whole, parts, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_no_draws_are_empty() -> None:
    found = joint_of("real").sample_drafted((0,))
    assert found.draws.shape == (0, M) and found.passes.shape == (0,)


def test_a_trace_decodes_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many passes there are depends on values, which a trace may not look at."""
    monkeypatch.setattr(joint_module, "is_traced", lambda: True)
    draws = []
    for draft in (True, False):
        torch.manual_seed(1)
        draws.append(joint_of("real", draft=draft).sample((3,)))
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draft": 4}, r"draft must be True or False; got 4; all targets of a block are drafted together"),
        ({"draft": True, "rsample": True}, r"draft=True needs rsample=False"),
        ({"draft": True, "buffer_size": 1}, r"draft=True needs buffer_size of at least 2; got 1"),
    ],
)
def test_misuse_is_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        joint_of("real", **options)


# Residuals ------------------------------------------------------------------------------------------------------------


def mixtures(shift: float) -> tuple[GaussianMixture, GaussianMixture]:
    weights = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    means = torch.tensor([[-1.0, 0.2, 2.0]], dtype=torch.float64)
    sds = torch.tensor([[0.7, 0.2, 0.4]], dtype=torch.float64)
    return GaussianMixture(weights, means, sds), GaussianMixture(weights.flip(-1), means + shift, 1.3 * sds)


def many(predictive: Predictive, count: int) -> Predictive:
    return predictive.map(lambda part: part.expand(count, *part.shape).clone())


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_residual_of_mixtures_has_its_density(shift: float) -> None:
    p, q = mixtures(shift)
    drawn = residual(many(p, 4000), many(q, 4000), key_of(4000), torch.float64).squeeze(-1)
    grid = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    density = (p.log_prob(grid).exp() - q.log_prob(grid).exp()).clamp(min=0)
    below = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, grid)])
    places = (below / below[-1])[torch.searchsorted(grid, drawn)]
    assert kstest(places.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("kind", ["categorical", "count"])
def test_residual_of_numbers_has_its_probabilities(kind: str) -> None:
    if kind == "categorical":
        rows = torch.tensor([[[0.1, 0.4, 0.2, 0.3]], [[0.3, 0.1, 0.15, 0.45]]], dtype=torch.float64).log()
        p, q = (CategoricalPredictive(row) for row in rows)
    else:
        q, p = (CountPredictive(mixture) for mixture in mixtures(0.4))
    numbers = torch.arange(4 if kind == "categorical" else 400, dtype=torch.float64)
    expected = (p.log_prob(numbers).exp() - q.log_prob(numbers).exp()).clamp(min=0)
    drawn = residual(many(p, 4000), many(q, 4000), key_of(4000), torch.float64).squeeze(-1)
    found = torch.bincount(drawn.long(), minlength=len(numbers)).double()
    assert (found[expected == 0] == 0).all()
    often = expected / expected.sum() * 4000 > 5
    found, expected = found[often], expected[often]
    assert chisquare(found.numpy(), (expected * found.sum() / expected.sum()).numpy()).pvalue > 1e-3


def test_residual_of_laws_that_hardly_differ_is_still_exact() -> None:
    """Two normal laws a ten-thousandth apart: a residual takes ten thousand tries, and lies on one side."""
    one = torch.zeros(200, 1, 1, dtype=torch.float64)
    p, q = (GaussianMixture(one, one + mean, one + 1) for mean in (1e-4, 0.0))
    drawn = residual(p, q, key_of(200), torch.float64).squeeze(-1)
    assert drawn.min() > 0.5e-4 and kstest((drawn - 0.5e-4).numpy(), "rayleigh").pvalue > 1e-3


@pytest.mark.parametrize("mean", [0.0, torch.nan])
def test_residual_of_equal_laws_ends(mean: float) -> None:
    zero = torch.zeros(3, 1, 2)
    same = GaussianMixture(zero + 0.5**0.5, zero + mean, zero + 1)
    drawn = residual(same, same, key_of(3), torch.float32)
    assert drawn.shape == (3, 1) and bool(drawn.isnan().all()) == (mean != 0)


def test_residual_ends_where_rounding_makes_one_law_the_larger_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_verify, "MILLIONS", 2**17)
    log_probs = torch.tensor([[0.25, 0.75]] * 3).log()
    p, q = (CategoricalPredictive((log_probs + more).unsqueeze(1)) for more in (0.0, 1e-5))
    assert residual(p, q, key_of(3), torch.float32).shape == (3, 1)


def test_streams_are_splitmix64() -> None:
    """The first numbers of the reference implementation for the seeds 0 and 1234567."""
    known = {0: (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F), 1234567: (6457827717110365317,)}
    for seed, numbers in known.items():
        expected = [(number >> 12) / 2**52 + 2.0**-53 for number in numbers]
        assert stream(torch.tensor(seed), 0, len(numbers)).tolist() == expected
    assert torch.equal(stream(key_of(4), 2, 3), stream(key_of(4), 0, 5)[:, 2:])


def test_streams_are_uniform_and_independent() -> None:
    numbers = stream(key_of(2000), 5, 6)
    assert min(uniform_p_values(numbers)) > 1e-3
    assert all(abs(torch.corrcoef(numbers[:, [i, j]].T)[0, 1]) < 0.1 for i, j in itertools.combinations(range(6), 2))

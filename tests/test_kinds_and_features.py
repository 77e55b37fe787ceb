"""The table of kinds of outcomes and features: every cell works, or raises what docs/outcomes.md says."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import CONFIG, random_model
from gaussian_net import LATENTS, wide
from pyro.infer import MCMC, NUTS
from samples import draw, draw_outcomes
from torch import Tensor
from torch.testing import assert_close

from pyro_arbuf import (
    check_model,
    exact_loo,
    load,
    log_evidence,
    loo_conditionals,
    predictive,
    refine,
    save,
    to_datatree,
)
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.distributions.posterior import ArBufferPosterior
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel

PAGE = Path(__file__).parent.parent / "docs" / "outcomes.md"
N, K, M, DIM_X = 5, 4, 6, 2
EXACT = {"rtol": 1e-9, "atol": 1e-9}
ZERO = torch.zeros((), dtype=torch.float64)
KINDS = {
    "real": {},
    "categorical": {"outcomes": ("categorical(3)",)},
    "count": {"outcomes": ("count",)},
    "vector of reals": {"dim_y": 2},
    "mixed vector": {"dim_y": 3, "outcomes": ("categorical(2)", "real", "count")},
}
DISCRETE, VECTORS = ("categorical", "count", "mixed vector"), ("vector of reals", "mixed vector")


@functools.cache
def network(kind: str, latents: bool = False) -> ArBufferModel:
    fields = KINDS[kind] | ({"latents": LATENTS} if latents else {})
    net = random_model(dataclasses.replace(CONFIG, chained=True, **fields))
    return wide(net) if latents else net


def outcomes(net: ArBufferModel, *shape: int, seed: int = 0) -> Tensor:
    """As users have them; categories as integers."""
    y = net.config.squeeze_outcome(draw_outcomes(net.config, *shape, seed=seed))
    return y.long() if net.config.dim_y is None and net.config.kinds[0].num_categories else y


class Setting:
    """A joint of one kind, an observation of it, and what it was made of."""

    def __init__(self, kind: str, latents: bool = False) -> None:
        self.kind, self.net = kind, network(kind, latents)
        self.x_context, self.y_context = draw(N, DIM_X, seed=1), outcomes(self.net, N, seed=2)
        self.x, self.y = draw(M, DIM_X, seed=3), outcomes(self.net, M, seed=4)
        self.context = self.net.condition(self.x_context, self.y_context)

    def joint(self, **options: object) -> ArBufferJoint:
        return ArBufferJoint(self.context, self.x, **options)

    def given(self, index: list[int]) -> ArBufferJoint:
        """The joint of the other targets with these in the context, in the order given."""
        rest = [i for i in range(M) if i not in index]
        pairs = torch.cat([self.x_context, self.x[index]]), torch.cat([self.y_context, self.y[index]])
        return ArBufferJoint(self.net.condition(*pairs), self.x[rest], torch.arange(len(rest))[None])

    def program(self, y: Tensor | None = None, offset: bool = True) -> None:
        """A latent offset of the inputs."""
        moved = pyro.sample("offset", dist.Normal(ZERO, 1.0)) if offset else ZERO
        pyro.sample("y", ArBufferJoint(self.context, self.x + moved[..., None, None]), obs=y)


# One function per feature: it proves that the feature works -----------------------------------------------------------


def scores(s: Setting) -> None:
    exact = s.joint(orders=torch.arange(M)[None], buffer_size=1)
    one_by_one = [s.given([*range(i)]).marginals().log_prob_factors(s.y[i:])[0] for i in range(M)]
    assert_close(exact.log_prob(s.y), torch.stack(one_by_one).sum(), **EXACT)  # absorbs after every target
    factors = s.joint().log_prob_factors(s.y)
    assert_close(factors.sum(), s.joint().log_prob(s.y), **EXACT)


def samples(s: Setting) -> None:
    drawn = s.joint().sample((7,))
    assert drawn.shape == (7, *s.y.shape) and drawn.dtype == s.y.dtype
    assert s.joint().support.check(drawn).all() and s.joint().log_prob(drawn).isfinite().all()


def drafts(s: Setting) -> None:
    torch.manual_seed(1)
    found = s.joint().sample_drafted((7,))
    torch.manual_seed(1)
    assert torch.equal(s.joint(draft=True).sample((7,)), found.draws)
    assert found.draws.dtype == s.y.dtype and s.joint().support.check(found.draws).all()
    assert ((found.passes >= 4) & (found.passes <= M)).all()  # at least two for each of two blocks


def reparameterises(s: Setting) -> None:
    x = s.x.clone().requires_grad_()
    drawn = ArBufferJoint(s.context, x, rsample=True).rsample((3,))
    assert torch.autograd.grad(drawn.double().sum(), x)[0].abs().min() > 0


def averages_orders(s: Setting) -> None:
    orders = random_orders(M, 3)
    each = torch.stack([s.joint(orders=order[None]).log_prob(s.y) for order in orders])
    assert_close(s.joint(orders=orders).log_prob(s.y), each.logsumexp(0) - math.log(3), **EXACT)
    assert s.joint(orders=orders).order_spread(s.y).log_prob_orders.shape == (3,)


def drops_missing(s: Setting) -> None:
    y = s.y.double()
    y[2] = torch.nan
    keep = [i for i in range(M) if i != 2]
    dropped = ArBufferJoint(s.context, s.x, torch.arange(M)[None], nan="drop").log_prob(y)
    assert_close(dropped, ArBufferJoint(s.context, s.x[keep], torch.arange(M - 1)[None]).log_prob(s.y[keep]), **EXACT)


def transforms_to_uniform(s: Setting) -> None:
    u = s.joint().pit(s.joint().sample((50,)), seed=1)
    assert u.shape == (50, *s.y.shape) and 0 <= u.min() < 0.1 and 0.9 < u.max() <= 1


def conditionals(s: Setting) -> None:
    expected = [s.given([j for j in range(M) if j != i]).log_prob(s.y[[i]]) for i in range(M)]
    assert_close(s.joint().log_prob_conditionals(s.y), torch.stack(expected), **EXACT)


def conditions(s: Setting) -> None:
    rest = s.joint(orders=torch.arange(M)[None]).condition([4, 1], s.y[[4, 1]])
    assert_close(rest.log_prob(s.y[[0, 2, 3, 5]]), s.given([4, 1]).log_prob(s.y[[0, 2, 3, 5]]), **EXACT)


def has_moments(s: Setting) -> None:
    torch.manual_seed(1)
    found = s.joint().moments(50)
    torch.manual_seed(1)
    assert_close(found.mean, s.joint().sample((50,)).double().mean(0), **EXACT)


def has_mean_and_variance(s: Setting) -> None:
    d = s.joint().marginals()
    drawn = d.sample((4000,)).double()
    error = (d.variance / 4000).sqrt()
    assert ((drawn.mean(0) - d.mean) / error).abs().max() < 5


def has_distribution_function(s: Setting) -> None:
    d = s.joint().marginals()
    below = d.cdf(s.y)
    assert below.shape == s.y.shape and below.min() > 0 and below.max() <= 1 + 1e-12
    assert_close(d.icdf((below - 1e-9).clamp(min=1e-300)), s.y.double(), rtol=1e-4, atol=1e-4)


def has_probabilities(s: Setting) -> None:
    probs = s.joint().marginals().probs
    assert_close(probs.sum(-1), torch.ones(M, dtype=torch.float64), **EXACT)


def enumerates(s: Setting) -> None:
    s.joint().enumerate_support()


def is_observed_by_nuts(s: Setting) -> None:
    mcmc = MCMC(NUTS(s.program, max_tree_depth=2), num_samples=3, warmup_steps=2, disable_progbar=True)
    mcmc.run(s.y)
    assert mcmc.get_samples()["offset"].isfinite().all()


def is_latent_of_nuts(s: Setting) -> None:
    kernel = NUTS(functools.partial(s.program, offset=False), max_tree_depth=1)
    MCMC(kernel, num_samples=1, warmup_steps=1, disable_progbar=True).run()


def predicts(s: Setting) -> None:
    drawn = predictive(s.program, {"offset": draw(7)}, s.y, seed=0)["y"]
    assert drawn.shape == (7, *s.y.shape) and drawn.dtype == s.y.dtype


def leaves_one_out_exactly(s: Setting) -> None:
    result = exact_loo(s.net, s.x_context, s.y_context)
    rest = slice(1, None)
    first = ArBufferMarginals(s.net.condition(s.x_context[rest], s.y_context[rest]), s.x_context[:1])
    assert_close(torch.from_numpy(result.elpd_i.values)[0], first.log_prob(s.y_context[:1]), **EXACT)


def leaves_one_out_by_conditionals(s: Setting) -> None:
    found = loo_conditionals(s.program, {"offset": draw(3)}, s.y, num_ratio_draws=2)
    assert found.log_likelihood["y"].shape == (3, M) and found.ratio_gap["y"].isfinite().all()


def fills_a_tree(s: Setting) -> None:
    tree = to_datatree({"offset": draw(3)}, s.program, s.y)
    for group in ("posterior_predictive", "observed_data"):
        assert tree[group]["y"].dtype == s.y.numpy().dtype
    alone = to_datatree(s.joint(), observed=s.y, num_samples=4)
    assert alone["constant_data/y_context"].dtype == s.y.numpy().dtype


def is_checked(s: Setting) -> None:
    assert check_model(s.program, s.y) == []


def takes_no_context(s: Setting) -> None:
    joint = ArBufferJoint(s.net.condition(), s.x)
    assert_close(joint.log_prob(s.y), joint.log_prob_factors(s.y).sum(), **EXACT)


def finds_latents(s: Setting) -> None:
    posterior = ArBufferPosterior(s.context, rsample=True)
    drawn = posterior.rsample((4,))
    assert drawn.shape == (4, 2) and posterior.log_prob(drawn).isfinite().all()
    assert posterior.sites(drawn)["tau"].min() > 0


def is_likelihood_of_latents(s: Setting) -> None:
    tau = torch.tensor([0.7, 1.3], dtype=torch.float64, requires_grad=True)
    mu = torch.zeros(2, dtype=torch.float64)
    density = ArBufferMarginals(s.net.condition(latents={"tau": tau, "mu": mu}), s.x).log_prob(s.y)
    assert torch.autograd.grad(density.sum(), tau)[0].abs().min() > 0


def has_evidence(s: Setting) -> None:
    assert log_evidence(s.net, s.x_context, s.y_context, num_orders=3).value.isfinite()


def laws(kind: str, tau: Tensor, mu: Tensor) -> dict[str, dist.TorchDistribution]:
    """Of a trial's outcome by site, given two latents."""
    mu, tau = torch.broadcast_tensors(mu, tau)
    choice = dist.Categorical(logits=torch.stack([0 * mu, mu, tau][: 2 if kind == "mixed vector" else 3], -1))
    real, count = dist.Normal(mu, tau), dist.Poisson(tau * mu.exp())
    pair = dist.Normal(mu.unsqueeze(-1).expand(*mu.shape, 2), tau.unsqueeze(-1)).to_event(1)
    one = {"real": real, "categorical": choice, "count": count, "vector of reals": pair}
    return {"choice": choice, "real": real, "count": count} if kind == "mixed vector" else {"y": one[kind]}


def is_refined(s: Setting) -> None:
    sites = ("choice", "real", "count") if s.kind == "mixed vector" else "y"
    net = wide(random_model(dataclasses.replace(s.net.config, outcome=sites)))
    y = s.y_context.clamp(max=5)

    def program(x: Tensor) -> None:
        tau = pyro.sample("tau", dist.LogNormal(ZERO, 0.5))
        mu = pyro.sample("mu", dist.Normal(ZERO, 1.0))
        with pyro.plate("trials", x.shape[-2]):
            for name, law in laws(s.kind, tau, mu).items():
                pyro.sample(name, law)

    fine = refine(program, net.condition(s.x_context, y), 4000, 50, seed=0)
    assert fine.draws["mu"].shape == (50,) and fine.draws["tau"].min() > 0
    z = torch.linspace(-5, 5, 201, dtype=torch.float64)
    tau, mu = (grid.reshape(-1, 1) for grid in torch.meshgrid((0.5 * z).exp(), z, indexing="ij"))
    columns = dict(zip(laws(s.kind, tau, mu), y.unbind(-1), strict=True)) if s.kind == "mixed vector" else {"y": y}
    likelihood = sum(law.log_prob(columns[name]).sum(-1) for name, law in laws(s.kind, tau, mu).items())
    prior = torch.log_softmax(-0.5 * z**2, 0)
    exact = (likelihood + (prior[:, None] + prior).flatten()).logsumexp(0)
    assert abs(fine.log_evidence - exact) < 5 * fine.log_evidence_standard_error < 1


def is_saved(s: Setting, folder: Path) -> None:
    save(s.net, folder / "net")
    again = load(str(folder / "net")).double()
    assert again.config == s.net.config
    found = ArBufferJoint(again.condition(s.x_context, s.y_context), s.x).log_prob(s.y)
    assert_close(found, s.joint().log_prob(s.y), rtol=1e-5, atol=1e-5)  # weights are saved in single precision


def runs_on_cuda(s: Setting) -> None:
    x_context, y_context, x, y = (t.cuda() for t in (s.x_context, s.y_context, s.x, s.y))
    net = random_model(s.net.config).cuda()
    d = ArBufferJoint(net.condition(x_context, y_context), x)
    assert_close(d.log_prob(y).cpu(), s.joint().log_prob(s.y), **EXACT)
    assert_close(d.pit(y, seed=1).cpu(), s.joint().pit(s.y, seed=1), **EXACT)
    assert d.support.check(d.sample((7,))).all()


class Feature(NamedTuple):
    """A row of the table.

    Attributes:
        check: Proves that it works for a setting.
        refused: Kinds for which it raises.
        error: Class and words of what it raises.
        latents: Whether the network has latents.
    """

    check: Callable
    refused: tuple[str, ...] = ()
    error: tuple[type[Exception], str | None] = (Exception, None)
    latents: bool = False


NO_DERIVATIVE = (NotImplementedError, "draws of categories and counts have no derivative")
NO_LATENT = (NotImplementedError, "categories or counts cannot be latents|cannot handle discrete sample site")
NOT_REAL = (AttributeError, "probs is for categories; this network's outcome holds")
FEATURES = {
    "`log_prob`, `log_prob_factors`, absorption": Feature(scores),
    "`sample`": Feature(samples),
    "`draft=True`, `sample_drafted`": Feature(drafts),
    "`rsample`": Feature(reparameterises, DISCRETE, NO_DERIVATIVE),
    "several orders, `order_spread`": Feature(averages_orders),
    '`nan="drop"`': Feature(drops_missing),
    "`pit`": Feature(transforms_to_uniform),
    "`log_prob_conditionals`": Feature(conditionals),
    "`condition`": Feature(conditions),
    "`moments`": Feature(has_moments),
    "`marginals().mean`, `.variance`": Feature(has_mean_and_variance, VECTORS, (NotImplementedError, "moments")),
    "`marginals().cdf`, `.icdf`": Feature(has_distribution_function),
    "`marginals().probs`": Feature(has_probabilities, ("real", "count", "vector of reals"), NOT_REAL),
    "`enumerate_support`": Feature(enumerates, tuple(KINDS), (NotImplementedError, None)),  # torch's own, without words
    "observed in NUTS, SVI, Importance": Feature(is_observed_by_nuts),
    "latent of NUTS": Feature(is_latent_of_nuts, DISCRETE, NO_LATENT),
    "`predictive`": Feature(predicts),
    "`exact_loo`": Feature(leaves_one_out_exactly),
    "`loo_conditionals`": Feature(leaves_one_out_by_conditionals),
    "`to_datatree`, `to_inference_data`": Feature(fills_a_tree),
    "`check_model`": Feature(is_checked),
    "empty context": Feature(takes_no_context),
    "`ArBufferPosterior` of latents": Feature(finds_latents, latents=True),
    "likelihood of latents, its gradient": Feature(is_likelihood_of_latents, latents=True),
    "`log_evidence`": Feature(has_evidence, latents=True),
    "`refine`": Feature(is_refined, latents=True),
    "`save`, `load`": Feature(is_saved),
    "GPU": Feature(runs_on_cuda),
}
on_cuda = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
CELLS = [
    pytest.param(name, kind, marks=on_cuda if name == "GPU" else (), id=f"{name.replace('`', '')}-{kind}")
    for name in FEATURES
    for kind in KINDS
]


@pytest.mark.filterwarnings("ignore:the log evidence rests on few of its 3 orders")  # of an untrained network
@pytest.mark.parametrize(("name", "kind"), CELLS)
def test_every_cell_of_the_table_holds(name: str, kind: str, tmp_path: Path) -> None:
    feature = FEATURES[name]
    setting = Setting(kind, feature.latents)
    more = (tmp_path,) if feature.check is is_saved else ()
    if kind not in feature.refused:
        feature.check(setting, *more)
        return
    error, words = feature.error
    with pytest.raises((error, ValueError) if feature.error == NO_LATENT else error, match=words):
        feature.check(setting, *more)


def test_the_page_has_the_same_table() -> None:
    rows = [["", *KINDS], ["---"] * (1 + len(KINDS))]
    rows += [[name, *("no" if kind in f.refused else "yes" for kind in KINDS)] for name, f in FEATURES.items()]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    assert table in PAGE.read_text(), table

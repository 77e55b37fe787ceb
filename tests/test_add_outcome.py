"""CONTRIBUTING's "Add an outcome": another kind is one class, its predictive, and a row of `KINDS`.

The kind added here is an amount: exactly zero, or a positive real number (rain on a day, what a customer spends).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIG
from samples import draw
from torch import Size, Tensor
from torch.distributions import constraints
from torch.testing import assert_close

from pyro_arbuf import load, save
from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.inference.orders import random_orders
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.network.config import ModelConfig
from pyro_arbuf.network.outcomes import KINDS, Real
from pyro_arbuf.network.predictives import GaussianMixture

# The file that a contributor writes: `network/amount.py` -------------------------------------------------------------

ZERO = -3.0  # the number that stands for zero among the logarithms


class AmountPredictive:
    """Zero with a probability, else the exponential of a mixture of Gaussians.

    Args:
        logit: `(*batch,)`, of zero.
        mixture: Of log(y) where y > 0, batch shape `*batch`.
    """

    has_implicit_draw = False

    def __init__(self, logit: Tensor, mixture: GaussianMixture):
        self.logit, self.mixture = logit, mixture

    @property
    def batch_shape(self) -> Size:
        """Of the values."""
        return self.mixture.batch_shape

    @property
    def num_components(self) -> int:
        """Components C of the mixture."""
        return self.mixture.num_components

    def expand(self, batch_shape: Size) -> "AmountPredictive":
        """The same predictive with a larger batch shape, nothing copied."""
        return AmountPredictive(self.logit.expand(batch_shape), self.mixture.expand(batch_shape))

    def map(self, change: Callable[[Tensor], Tensor]) -> "AmountPredictive":
        """The same predictives in another arrangement of the batch."""
        return AmountPredictive(change(self.logit.unsqueeze(-1)).squeeze(-1), self.mixture.map(change))

    def affine(self, loc: Tensor, scale: Tensor) -> "AmountPredictive":
        """The predictive of the outcome whose logarithm is loc + scale * log(y)."""
        return AmountPredictive(self.logit, self.mixture.affine(loc, scale))

    @property
    def zero(self) -> Tensor:
        """Probability of zero."""
        return torch.sigmoid(self.logit)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of zero, log density elsewhere; -inf below."""
        log = value.clamp(min=torch.finfo(value.dtype).tiny).log()
        positive = F.logsigmoid(-self.logit) + self.mixture.log_prob(log) - log
        return torch.where(value == 0, F.logsigmoid(self.logit), positive).masked_fill(value < 0, -torch.inf)

    def cdf(self, value: Tensor) -> Tensor:
        """Distribution function."""
        log = value.clamp(min=torch.finfo(value.dtype).tiny).log()
        positive = torch.where(value > 0, self.mixture.cdf(log), 0.0)
        return torch.where(value < 0, 0.0, self.zero + (1 - self.zero) * positive)

    def below(self, value: Tensor) -> Tensor:
        """Probability of a smaller value."""
        return torch.where(value == 0, 0.0, self.cdf(value))

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles."""
        rest = ((torch.as_tensor(value) - self.zero) / (1 - self.zero)).clamp(1e-9, 1 - 1e-9)
        return torch.where(torch.as_tensor(value) <= self.zero, 0.0, self.mixture.icdf(rest).exp())

    def draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """What given noise stands for: zero where `uniform` is small, else the rest of it picks the component."""
        rest = (uniform - self.zero) / (1 - self.zero)
        return torch.where(rest < 0, 0.0, self.mixture.draw(rest.clamp(0.0, 1.0), normal).exp())

    def implicit_draw(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Raises NotImplementedError: zero has no derivative."""
        raise NotImplementedError("draws of amounts have no derivative; build the distribution with rsample=False")

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return (1 - self.zero) * self.mixture.exponential_moment(1, self._lowest)

    @property
    def variance(self) -> Tensor:
        """Variance."""
        return (1 - self.zero) * self.mixture.exponential_moment(2, self._lowest) - self.mean.square()

    @property
    def _lowest(self) -> Tensor:
        return self.logit.new_tensor(-1e6)


@dataclasses.dataclass(frozen=True)
class Amount:
    """Zero or a positive real number."""

    support = constraints.nonnegative
    values = "amounts, 0 or more"
    num_categories = 0

    def number(self, value: Tensor) -> Tensor:
        """log(y), and a small number for zero."""
        return torch.where(value > 0, value.clamp(min=torch.finfo(value.dtype).tiny).log(), ZERO)

    def num_raw(self, num_components: int) -> int:
        """A logit beside the mixture."""
        return 1 + Real().num_raw(num_components)

    def initial(self, num_components: int) -> Tensor:
        """Zero in half of the cases."""
        return F.pad(Real().initial(num_components), (1, 0))

    def predictive(self, raw: Tensor) -> AmountPredictive:
        """Zero, or the exponential of a mixture of Gaussians."""
        return AmountPredictive(raw[..., 0], Real().predictive(raw[..., 1:]))


# Its test ------------------------------------------------------------------------------------------------------------

N, M = 5, 6
NETS = {"amount": ("amount",), "choice and amount": ("categorical(2)", "amount")}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ArBufferModel:
    """Built from a configuration that names the kind, trained two steps, frozen."""
    monkeypatch.setitem(KINDS, "amount", Amount)
    outcomes = NETS[request.param]
    config = dataclasses.replace(
        CONFIG, chained=True, outcomes=outcomes, dim_y=len(outcomes) if len(outcomes) > 1 else None
    )
    assert ModelConfig.from_json(config.to_json()) == config
    torch.manual_seed(0)
    net = ArBufferModel(config).double()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    losses = [train(net, optimiser) for _ in range(3)]
    assert losses[2] < losses[0]
    return net.eval().requires_grad_(False)


def amounts(net: ArBufferModel, *shape: int, seed: int = 0) -> Tensor:
    """Random outcomes `(*shape, D_y)`: a third of the amounts are zero."""
    y = draw(*shape, net.config.dim_y or 1, seed=seed)
    y[..., -1] = torch.where(y[..., -1] < -0.4, 0.0, (0.5 * y[..., -1]).exp())
    if net.config.dim_y:
        y[..., 0] = (y[..., 0] > 0).double()
    return y


def train(net: ArBufferModel, optimiser: torch.optim.Optimizer) -> float:
    """A step on the same random data."""
    (x_context, x_buffer, x), (y_context, y_buffer, y) = (
        [draws(3, size, seed=size) for size in (5, 4, 6)]
        for draws in (lambda *s, seed: draw(*s, 2, seed=seed), lambda *s, seed: amounts(net, *s, seed=seed))
    )
    optimiser.zero_grad()
    loss = net.loss(Batch(x_context, y_context, x_buffer, y_buffer, x, y, torch.arange(6) % 5))
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    optimiser.step()
    return loss.item()


def joint(net: ArBufferModel, **options: object) -> ArBufferJoint:
    y = net.config.squeeze_outcome(amounts(net, N, seed=7))
    return ArBufferJoint(net.condition(draw(N, 2, seed=8), y), draw(M, 2, seed=9), **options)


def test_all_its_values_have_probability_one(net: ArBufferModel) -> None:
    predictive = Amount().predictive(draw(1, 1 + 3 * 4, seed=3))
    grid = torch.cat([torch.zeros(1).double(), torch.logspace(-6, 6, 40_001, dtype=torch.float64)])
    density = predictive.log_prob(grid).exp()
    assert density[0].item() + torch.trapezoid(density[1:], grid[1:]).item() == pytest.approx(1.0, abs=1e-4)
    assert predictive.cdf(grid[-1:]).item() == pytest.approx(1.0, abs=1e-4)
    assert_close(predictive.icdf(predictive.cdf(grid[15_000:25_000:1000])), grid[15_000:25_000:1000])
    assert predictive.mean.item() == pytest.approx(torch.trapezoid(density * grid, grid).item(), rel=1e-2)


def test_what_is_sampled_is_what_is_scored(net: ArBufferModel) -> None:
    """The share 2 q / (p + q) averages to one under the mixture of the joint p and the marginals q."""
    d = joint(net, orders=random_orders(M, 2))
    other, num_draws = d.marginals(), 2000
    drawn, back = d.sample((num_draws,)), other.sample((num_draws,))
    assert d.support.check(drawn).all() and (drawn[..., -1] == 0).any() and (drawn[..., -1] > 0).any()
    of_draws, of_back = (2 * torch.sigmoid(other.log_prob(y) - d.log_prob(y)) for y in (drawn, back))
    error = ((of_draws.var() + of_back.var()) / num_draws).sqrt()
    assert (of_draws.mean() + of_back.mean() - 2).abs() < 4.5 * error


def test_its_probability_integral_transform_is_uniform(net: ArBufferModel) -> None:
    d = joint(net)
    u = d.pit(d.sample((2000,)), seed=1).flatten()
    grid = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    assert ((u[:, None] < grid).double().mean(0) - grid).abs().max() < 4.5 * 0.5 / 2000**0.5


def test_it_is_conditioned_dropped_and_left_out(net: ArBufferModel) -> None:
    d, y = joint(net, orders=torch.arange(M)[None], nan="drop"), net.config.squeeze_outcome(amounts(net, M))
    assert d.condition([0, 3], y[[0, 3]]).log_prob(y[[1, 2, 4, 5]]).isfinite()
    assert d.log_prob_conditionals(y).shape == (M,) and d.moments(20).mean.isfinite().all()
    y[2] = torch.nan
    keep = [0, 1, 3, 4, 5]
    assert_close(d.log_prob(y), ArBufferJoint(d.context, d.x[keep], torch.arange(5)[None]).log_prob(y[keep]))


def test_values_that_are_none_are_refused_in_its_own_words(net: ArBufferModel) -> None:
    y = net.config.squeeze_outcome(amounts(net, M))
    y.view(M, -1)[1, -1] = -2.0
    with pytest.raises(ValueError, match="must hold amounts, 0 or more; got"):
        joint(net).log_prob(y)


def test_it_is_saved_and_loaded(net: ArBufferModel, tmp_path: Path) -> None:
    save(net, tmp_path / "net")
    again, y = load(str(tmp_path / "net")).double(), net.config.squeeze_outcome(amounts(net, M))
    assert again.config.outcomes == net.config.outcomes
    assert_close(joint(again).log_prob(y), joint(net).log_prob(y), rtol=1e-5, atol=1e-5)

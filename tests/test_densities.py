"""Which densities are pointwise, and what masks hide of them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.workflow.densities import hidden_by_masks, pointwise_log_prob

B, M = 2, 6


def site_of(fn, name="y"):
    return poutine.trace(fn).get_trace().nodes[name]


@pytest.fixture
def task(scalar_model, draw_task):
    return draw_task(scalar_model)


def test_a_single_joint_event_has_no_pointwise_density(scalar_model, task):
    joint = ArBufferJoint(scalar_model.condition(), task.x_target[0])
    assert pointwise_log_prob(site_of(lambda: pyro.sample("y", joint, obs=task.y_target[0, :, 0]))) is None
    dense = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
    assert pointwise_log_prob(site_of(lambda: pyro.sample("y", dense, obs=torch.zeros(3)))) is None


def test_joints_in_a_plate_have_one_density_per_subject(scalar_model, task):
    joint = ArBufferJoint(scalar_model.condition(task.x_context, task.y_context[..., 0]), task.x_target)
    y = task.y_target[..., 0]

    def plate():
        with pyro.plate("subject", B):
            pyro.sample("y", joint, obs=y)

    torch.testing.assert_close(pointwise_log_prob(site_of(plate)), joint.log_prob(y))
    as_event = site_of(lambda: pyro.sample("y", joint.to_event(1), obs=y))
    torch.testing.assert_close(pointwise_log_prob(as_event), joint.log_prob(y))


def test_marginals_have_one_density_per_target_with_its_jacobian(scalar_model, task):
    marginals = ArBufferMarginals(scalar_model.condition(), task.x_target[0])
    y = task.y_target[0, :, 0]
    wrapped = dist.TransformedDistribution(marginals, dist.transforms.AffineTransform(1.0, 2.0, event_dim=1))
    found = pointwise_log_prob(site_of(lambda: pyro.sample("y", wrapped, obs=y)))
    torch.testing.assert_close(found, marginals.log_prob_factors((y - 1) / 2) - torch.tensor(2.0).log())


def test_missing_targets_have_no_density(vector_model, draw_task):
    task = draw_task(vector_model)
    y = task.y_target.clone()
    y[0, 1, 2] = torch.nan
    marginals = ArBufferMarginals(vector_model.condition(), task.x_target, nan="drop")
    found = pointwise_log_prob(site_of(lambda: pyro.sample("y", marginals, obs=y)))
    assert found.isnan().nonzero().tolist() == [[0, 1]]
    y[0, :, 0], y[1, 3, 0] = torch.nan, torch.nan
    joint = ArBufferJoint(vector_model.condition(), task.x_target, nan="drop")
    found = pointwise_log_prob(site_of(lambda: pyro.sample("y", joint, obs=y)))
    assert found.isnan().tolist() == [True, False]


@pytest.mark.parametrize("inside", [False, True])
def test_masked_events_have_no_density(inside):
    mask = torch.tensor([True, False, True])

    def masked():
        fn = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
        with pyro.plate("subject", 3), poutine.mask(mask=True if inside else mask):
            pyro.sample("y", fn.mask(mask) if inside else fn, obs=torch.zeros(3, 2))

    assert pointwise_log_prob(site_of(masked)).isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]


LEFT, INNER = torch.tensor([True, False, True]), torch.tensor([[True, True], [True, True], [False, True]])
INSIDE = {
    "inner": (lambda fn: fn.mask(INNER).to_event(1), [[True, True], [True, True], [False, True]]),
    "both": (lambda fn: fn.mask(INNER).to_event(1).mask(LEFT), [[True, True], [False, False], [False, True]]),
    "all": (lambda fn: fn.mask(INNER).to_event(1).mask(LEFT).to_event(1), [[True, True], [False] * 2, [False, True]]),
    "none": (lambda fn: fn.mask(False).to_event(2), [[False, False]] * 3),
}


@pytest.mark.parametrize("case", INSIDE)
def test_masks_inside_events_hide_their_own_members(case):
    wrapped, seen = INSIDE[case]
    fn = wrapped(dist.Normal(torch.zeros(3, 2), 1.0))
    site = site_of(lambda: pyro.sample("y", fn, obs=torch.zeros(3, 2)))
    assert (~pointwise_log_prob(site).isnan()).tolist() == (~hidden_by_masks(site)).tolist() == seen

"""The same numbers on a CUDA device as on the CPU."""

import pytest
import torch

from pyro_arbuf import (
    ArBufferJoint,
    ArBufferMarginals,
    ArBufferModel,
    ArBufferPosterior,
    ModelConfig,
    Simulator,
    calibrate,
    log_evidence,
    random_orders,
    refine,
    self_consistency,
)
from pyro_arbuf.network.attention import attend, attend_plain
from pyro_arbuf.priors import gp_1d
from pyro_arbuf.priors.gaussian import gaussian
from pyro_arbuf.programs.configuration import program_config
from pyro_arbuf.programs.program_batches import ProgramSource
from pyro_arbuf.training.loop import fit
from pyro_arbuf.training.sources import PriorSource

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def net():
    torch.manual_seed(0)
    config = ModelConfig(buffer_size=4, width=32, num_layers=2, num_heads=2, mlp_width=48)
    return ArBufferModel(config).eval().requires_grad_(False)


@pytest.mark.parametrize("num_targets", [3, 6])
def test_density_on_cuda_equals_density_on_cpu(net, num_targets):
    x, y, x_new = torch.randn(5, 1), torch.randn(5), torch.randn(num_targets, 1)
    values = torch.randn(7, num_targets)
    orders = random_orders(num_targets, 3)
    expected = ArBufferJoint(net.condition(x, y), x_new, orders=orders).log_prob(values)
    net.cuda()
    on_cuda = ArBufferJoint(net.condition(x.cuda(), y.cuda()), x_new.cuda(), orders=orders).log_prob(values.cuda())
    torch.testing.assert_close(on_cuda.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_queries_of_a_joint_on_cuda_equal_those_on_cpu(net):
    x, y, x_new, value = torch.randn(2, 5, 1), torch.randn(2, 5), torch.randn(6, 1), torch.randn(3, 2, 6)

    def answers(device):
        context = net.to(device).condition(x.to(device), y.to(device))
        d, z = ArBufferJoint(context, x_new.to(device), nan="drop", rsample=True), value.to(device)
        missing = z.masked_fill(z > 1, torch.nan)
        rest = d.condition([4, 1], z[..., [4, 1]])
        chosen = ArBufferJoint(context[torch.tensor([1, 1, 0])], x_new.to(device)).log_prob(z[:, 0])
        densities = (
            d.log_prob_conditionals(z),
            d.pit(z),
            d.log_prob(missing),
            rest.log_prob(z[..., [0, 2, 3, 5]]),
            chosen,
        )
        assert d.rsample((7,)).shape == (7, 2, 6) and torch.isfinite(rest.sample()).all()
        return [answer.cpu() for answer in densities]

    for on_cpu, on_cuda in zip(answers("cpu"), answers("cuda"), strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-3, atol=1e-3)


def test_context_follows_its_model_to_cuda(net):
    x, y, x_new, value = torch.randn(5, 1), torch.randn(5), torch.randn(3, 1), torch.randn(3)
    context = net.condition(x, y)
    expected = ArBufferJoint(context, x_new).log_prob(value)
    net.cuda()
    moved = ArBufferJoint(context.to("cuda"), x_new.cuda()).log_prob(value.cuda())
    torch.testing.assert_close(moved.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_contexts_of_different_lengths_on_cuda(net):
    net.cuda()
    xs, ys = [torch.randn(n, 1).cuda() for n in (3, 0, 5)], [torch.randn(n).cuda() for n in (3, 0, 5)]
    x_new, value = torch.randn(6, 1).cuda(), torch.randn(6).cuda()
    together = ArBufferJoint(net.condition(xs, ys), x_new).log_prob(value)
    alone = torch.stack(
        [ArBufferJoint(net.condition(x, y), x_new).log_prob(value) for x, y in zip(xs, ys, strict=True)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_merged_attention_on_cuda_equals_plain():
    q, k, v = (torch.randn(2, *s, 16, device="cuda") for s in ((33, 2, 3), (2, 40), (2, 40)))
    buffer = tuple(torch.randn(2, 33, 2, 4, 16, device="cuda") for _ in range(2))
    prefix_len = torch.tensor([0, 2, 4], device="cuda")
    with torch.no_grad():
        torch.testing.assert_close(
            attend(q, (k, v), buffer, prefix_len), attend_plain(q, (k, v), buffer, prefix_len), rtol=1e-3, atol=1e-3
        )


def test_sampling_on_cuda_has_the_moments_of_the_cpu(net):
    x_new = torch.linspace(-1, 1, 3)[:, None]
    expected = ArBufferJoint(net.condition(), x_new).moments(20_000)
    net.cuda()
    moments = ArBufferJoint(net.condition(), x_new.cuda()).moments(20_000)
    torch.testing.assert_close(moments.mean.cpu(), expected.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(moments.covariance.cpu(), expected.covariance, atol=0.1, rtol=0.05)


@pytest.fixture
def program_net():
    torch.manual_seed(0)
    simulator = Simulator(gaussian)
    sizes = {"width": 32, "num_layers": 2, "num_heads": 2, "mlp_width": 48, "buffer_size": 4}
    net = ArBufferModel(program_config(simulator, (0, 20), **sizes)).eval().requires_grad_(False)
    net.simulator = simulator
    return net


def test_inference_on_cuda_equals_inference_on_cpu(program_net):
    x, y, latents = torch.zeros(9, 1), torch.randn(9), torch.randn(7, 2)

    def answers(device):
        net, at, data = program_net.to(device), x.to(device), y.to(device)
        posterior = ArBufferPosterior(net.condition(at, data))
        sites = posterior.sites(latents.to(device))
        likelihood = ArBufferMarginals(net.condition(latents=sites), at).log_prob(data)
        evidence = log_evidence(net, at, data, num_orders=4).value
        return [part.cpu() for part in (posterior.log_prob(latents.to(device)), likelihood, evidence)]

    for on_cpu, on_cuda in zip(answers("cpu"), answers("cuda"), strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:k-hat")
def test_checks_of_a_network_on_cuda_run_its_program(program_net):
    net, x, y = program_net.cuda(), torch.zeros(9, 1).cuda(), torch.randn(9).cuda()
    assert torch.isfinite(self_consistency(net, x, y, num_draws=5).values).all()
    assert calibrate(net, num_datasets=8, num_draws=9).ranks.shape == (8, 2)
    refined = refine(gaussian, net.condition(x, y), 200, 50, seed=0)
    assert refined.draws["mu"].shape == (50,) and refined.weights.device.type == "cuda"


def test_training_of_a_program_runs_on_cuda(program_net, tmp_path):
    source = ProgramSource(program_net.simulator, program_net.config, batch_size=4, num_targets=5)
    assert fit(program_net.requires_grad_(True), source, tmp_path / "state.safetensors", steps=3).step == 3


def test_training_runs_on_cuda(net, tmp_path):
    source = PriorSource(gp_1d, net.config, batch_size=4, num_targets=5)
    assert fit(net.requires_grad_(True), source, tmp_path / "state.safetensors", steps=3).step == 3

"""Curriculum, data stream, priors, `fit` and its resumable state."""

import dataclasses
import importlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path

import pytest
import tiny
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyro_arbuf.distributions.joint import ArBufferJoint
from pyro_arbuf.network.backbone import Block
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.priors import gp, gp_1d, gp_1d_noisy, sawtooth
from pyro_arbuf.progress import progress_bar
from pyro_arbuf.training import loop as training
from pyro_arbuf.training import run_state, sources
from pyro_arbuf.training.dropout import dropped_out
from pyro_arbuf.training.loop import learning_rate_factor, make_optimizers, validate
from pyro_arbuf.training.run_state import RunState
from pyro_arbuf.training.sources import PriorSource, curriculum, draw_num_context, split_points

B, N, K, M = 2, 5, 4, 7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one state per process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


# Curriculum and data stream


def numbered_pairs(num_targets: int = M) -> list[tuple[Tensor, Tensor]]:
    """Context, buffer and fresh pairs whose outcomes tell which pair they belong to: y = 100 x."""
    x = torch.arange(float(B * (N + K + num_targets))).view(B, -1, 1)
    return split_points(x, 100 * x, (N, K, num_targets))


def numbered_batch(seed: int = 0, num_targets: int = M) -> Batch:
    return curriculum(*numbered_pairs(num_targets), generator(seed))


def test_half_of_the_targets_see_no_buffer_and_half_see_a_prefix_of_it() -> None:
    draws = torch.stack([numbered_batch(seed).prefix_len for seed in range(200)])
    fresh = draws[:, :M]
    assert (fresh[:, : M // 2] == 0).all()
    assert fresh[:, M // 2 :].unique().tolist() == list(range(1, K + 1))


def test_prefixes_of_the_buffered_half_are_uniform() -> None:
    seen = torch.cat([numbered_batch(seed).prefix_len[M // 2 : M] for seed in range(1000)])
    share = seen.bincount(minlength=K + 1)[1:] / len(seen)
    assert (share - 1 / K).abs().max() < 5 * (1 / K * (1 - 1 / K) / len(seen)) ** 0.5


def test_slots_are_targets_that_do_not_see_their_own_pair() -> None:
    assert numbered_batch().prefix_len[M:].tolist() == list(range(K))


def test_targets_are_the_fresh_ones_then_the_buffer_each_with_its_outcome() -> None:
    _, (x_buffer, _), (x_fresh, _) = numbered_pairs()
    batch = numbered_batch()
    assert torch.equal(batch.x_target, torch.cat([x_fresh, x_buffer], 1))
    assert torch.equal(batch.y_target, 100 * batch.x_target) and batch.prefix_len.shape == (M + K,)


def test_one_fresh_target_is_enough() -> None:
    assert numbered_batch(num_targets=1).prefix_len.shape == (1 + K,)


def test_split_gives_every_point_one_role() -> None:
    parts = [x for x, _ in numbered_pairs()]
    assert [x.shape for x in parts] == [(B, N, 1), (B, K, 1), (B, M, 1)]
    assert len(torch.cat(parts, 1).unique()) == B * (N + K + M)


def test_number_of_context_pairs_covers_zero_to_the_largest_and_stays_inside() -> None:
    source = generator()
    counts = torch.tensor([draw_num_context(128, source) for _ in range(20000)])
    assert counts.min() == 0 and counts.max() == 128 and len(counts.unique()) == 129
    share = (counts == 0).double().mean().item()
    assert abs(share - sources.EMPTY_CONTEXT_SHARE) < 5 * (0.05 * 0.95 / 20000) ** 0.5


def test_small_contexts_are_more_common_than_large_ones() -> None:
    source = generator()
    counts = torch.tensor([draw_num_context(128, source) for _ in range(5000)])
    assert (counts <= 32).sum() > (counts > 96).sum()


@pytest.mark.parametrize("max_context", [0, 1, 2])
def test_number_of_context_pairs_of_a_tiny_range_stays_inside(max_context: int) -> None:
    source = generator()
    counts = {draw_num_context(max_context, source) for _ in range(500)}
    assert counts == set(range(max_context + 1))


def line_batch(seed: int = 1, step: int = 3, process: int = 0) -> Batch:
    return tiny.line_source(batch_size=B, num_targets=M, seed=seed).batch(step, process)


def test_batch_is_a_pure_function_of_seed_and_step() -> None:
    torch.manual_seed(1)
    first = line_batch()
    state = torch.get_rng_state()
    second = line_batch()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 4}, {"process": 1}])
def test_batch_differs_between_seeds_steps_and_processes(change: dict[str, int]) -> None:
    first, second = line_batch().y_target[:, :M], line_batch(**change).y_target[:, :M]
    assert not torch.isclose(first, second).any()


def test_processes_share_the_number_of_context_pairs() -> None:
    for step in range(20):
        assert len({line_batch(step=step, process=process).x_context.shape for process in range(3)}) == 1


@pytest.mark.parametrize("name", ["batch_size", "num_targets"])
def test_sizes_of_a_source_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive; got 0"):
        tiny.line_source(**{name: 0})


def test_prior_of_other_shapes_than_its_configuration_says_is_named() -> None:
    source = dataclasses.replace(tiny.line_source(), config=dataclasses.replace(tiny.CONFIG, dim_x=2, prior="lines"))
    with pytest.raises(
        ValueError, match=r"the prior 'lines' must return .* \(3, \d+, 2\) and .* got \(3, \d+, 1\) and"
    ):
        source.batch(0)


def test_validation_set_is_fixed_and_within_the_trained_range() -> None:
    first, second = (tiny.line_source().validation() for _ in range(2))
    assert [batch.x_context.shape[1] for batch in first] == [8]
    assert torch.equal(first[0].y_buffer, second[0].y_buffer)


def test_validation_score_is_the_joint_density_per_target() -> None:
    model, (batch,) = tiny.tiny_model().requires_grad_(False), tiny.line_source().validation()
    assert batch.x_buffer.shape == batch.x_target.shape == (128, K, 1)
    context = model.condition(batch.x_context, batch.y_context[..., 0])
    joint = ArBufferJoint(context, batch.x_buffer, orders=torch.arange(K)[None])
    score = joint.log_prob(batch.y_buffer[..., 0]).mean().item() / K
    assert validate(model, [batch])[0] == pytest.approx(score, abs=1e-5)


# Priors


PRIORS = pytest.mark.parametrize("prior", [gp_1d, gp_1d_noisy, sawtooth])


@PRIORS
def test_prior_has_the_shapes_of_points(prior: sources.Prior) -> None:
    x, y = prior(B, N + K + M, generator())
    assert x.shape == y.shape == (B, N + K + M, 1)
    assert {x.dtype, y.dtype} == {torch.float32} and x.isfinite().all() and y.isfinite().all()


@PRIORS
def test_prior_draws_from_its_generator_alone(prior: sources.Prior) -> None:
    state = torch.get_rng_state()
    first, second = (prior(B, N + K + M, generator(1)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.isclose(first[1], prior(B, N + K + M, generator(2))[1]).any()


@PRIORS
def test_inputs_are_uniform_on_the_range(prior: sources.Prior) -> None:
    x = prior(2000, K, generator())[0].flatten().double()
    assert -2 <= x.min() < -1.99 and 1.99 < x.max() <= 2
    assert x.mean().abs() < 5 * (16 / 12 / len(x)) ** 0.5
    assert (x.square().mean() - 4 / 3).abs() < 5 * x.square().std() / len(x) ** 0.5


def kernel_formula(distance: Tensor, kernel: int) -> Tensor:
    if kernel == 0:
        return torch.exp(-0.5 * distance**2)
    root = math.sqrt(3) if kernel == 1 else math.sqrt(5)
    square = 0 if kernel == 1 else 5 / 3 * distance**2
    return (1 + root * distance + square) * torch.exp(-root * distance)


def expected_covariance(distance: Tensor, kernel: int) -> Tensor:
    """Mean over variance U[0.5, 1.5] and lengthscale U[0.1, 1]."""
    lengthscales = 0.1 + 0.9 * (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    return kernel_formula(distance[:, None] / lengthscales, kernel).mean(-1)


@pytest.mark.parametrize("kernel", [0, 1, 2])
def test_gp_has_the_covariance_of_its_kernel(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gp, "KERNEL_WEIGHTS", tuple(float(k == kernel) for k in range(3)))
    x, y = (t.double().squeeze(-1) for t in gp_1d(60000, 2, generator(kernel)))
    distance, product = (x[:, 0] - x[:, 1]).abs(), y[:, 0] * y[:, 1]
    residual = product - expected_covariance(distance, kernel)
    for low, high in [(0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.0), (1.0, 2.0), (2.0, 4.0)]:
        part = residual[(low <= distance) & (distance < high)]
        assert part.mean().abs() < 5 * part.std() / len(part) ** 0.5
    assert (y.square().mean() - 1 - 1e-5).abs() < 5 * y.square().std() / y.numel() ** 0.5


def test_gp_lengthscale_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = []
    monkeypatch.setattr(gp, "KERNEL_WEIGHTS", (1.0, 0.0, 0.0))
    monkeypatch.setattr(gp, "correlation", lambda d, kernel: scaled.append(d) or torch.exp(-d))
    x = gp_1d(4000, 2, generator())[0].double().squeeze(-1)
    lengthscale = (x[:, 0] - x[:, 1]).abs() / scaled[0][:, 0, 1]
    assert 0.0999 < lengthscale.min() < 0.105 and 0.995 < lengthscale.max() < 1.0001
    assert (lengthscale.mean() - 0.55).abs() < 5 * 0.9 / math.sqrt(12 * 4000)


def test_gp_variance_is_uniform() -> None:
    y = gp_1d(60000, 1, generator())[1].flatten().double()
    fourth = y**4  # E y^4 = 3 E v^2 for v ~ U[0.5, 1.5]
    assert (fourth.mean() - 3 * (1 + 1 / 12)).abs() < 5 * fourth.std() / len(y) ** 0.5


def test_kernels_differ_enough_for_the_covariance_test() -> None:
    distance = torch.tensor([0.45], dtype=torch.float64)
    values = torch.cat([expected_covariance(distance, kernel) for kernel in range(3)])
    assert (values[:, None] - values)[~torch.eye(3, dtype=torch.bool)].abs().min() > 0.01


def test_gp_chooses_kernels_by_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(gp, "correlation", lambda d, kernel: chosen.append(kernel) or torch.exp(-d))
    source = generator()
    for _ in range(1500):
        gp_1d(1, 2, source)
    share = torch.tensor(chosen).bincount(minlength=3) / 1500
    expected = torch.tensor([0.4, 0.3, 0.3])
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / 1500).sqrt()).all()


def test_gp_draws_the_kernel_class_of_every_function_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    monkeypatch.setattr(gp, "correlation", lambda d, kernel: sizes.update({kernel: len(d)}) or torch.exp(-d))
    gp_1d(3000, 2, generator())
    assert sum(sizes.values()) == 3000
    for kernel, weight in enumerate([0.4, 0.3, 0.3]):
        assert abs(sizes[kernel] / 3000 - weight) < 5 * (weight * (1 - weight) / 3000) ** 0.5


def noise_scales(prior: sources.Prior, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Variances of a GP whose kernel is zero: the noise alone."""
    monkeypatch.setattr(gp, "correlation", lambda d, kernel: torch.zeros_like(d))
    return prior(3000, 60, generator())[1].squeeze(-1).double().var(-1)


def test_gp_has_the_papers_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert noise_scales(gp_1d, monkeypatch).mean().item() == pytest.approx(1e-5, rel=0.02)


def test_noise_of_the_noisy_gp_is_log_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    log_sd = 0.5 * noise_scales(gp_1d_noisy, monkeypatch).log()
    low, high = math.log(0.003), math.log(0.5)
    bias = -0.5 / 59  # of the logarithm of a variance estimated from 60 points
    assert abs(log_sd.mean().item() - (low + high) / 2 - bias) < 5 * (high - low) / math.sqrt(12 * 3000)
    assert log_sd.std().item() == pytest.approx((high - low) / math.sqrt(12), rel=0.03)
    assert low - 0.5 < log_sd.min() and log_sd.max() < high + 0.5


def test_sawtooth_lies_between_zero_and_one_up_to_its_noise() -> None:
    y = sawtooth(2000, 20, generator())[1]
    assert -0.55 < y.min() < -0.1 and 1.1 < y.max() < 1.55
    assert ((y > -0.3) & (y < 1.3)).double().mean() > 0.999


def test_sawtooth_has_the_moments_of_a_uniform_phase_and_its_noise() -> None:
    y = sawtooth(20000, 1, generator())[1].flatten().double()
    noise = (0.1**3 - 0.05**3) / 3 / 0.05  # E sd^2 for sd ~ U[0.05, 0.1]
    assert (y.mean() - 0.5).abs() < 5 * y.std() / len(y) ** 0.5
    squared = (y - 0.5) ** 2
    assert (squared.mean() - 1 / 12 - noise).abs() < 5 * squared.std() / len(y) ** 0.5


def test_sawtooth_rises_or_falls_with_a_slope_of_three_to_five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("pyro_arbuf.priors.sawtooth"), "NOISE_SD", (0.0, 0.0))
    x, y = sawtooth(200, 400, generator())
    order = x.argsort(1)
    x, y = x.gather(1, order).squeeze(-1), y.gather(1, order).squeeze(-1)
    slope = (y.diff() / x.diff()).median(1).values
    assert 2.9 < slope.abs().min() < 3.3 and 4.7 < slope.abs().max() < 5.1
    assert 0.3 < (slope > 0).double().mean() < 0.7


# fit


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], RunState, Path]:
    """A run of 20 steps without interruption: last weights, result and state file."""
    path = tmp_path_factory.mktemp("runs") / "tiny" / "state.safetensors"
    model, state = tiny.tiny_fit(path)
    return {name: value.clone() for name, value in model.state_dict().items()}, state, path


class KilledError(Exception):
    pass


def kill_at(step: int) -> Callable[[RunState], None]:
    def on_checkpoint(state: RunState) -> None:
        if state.step == step:
            raise KilledError

    return on_checkpoint


def test_loss_falls(tmp_path: Path) -> None:
    source, options = tiny.line_source(batch_size=16), {"learning_rate": 1e-2, "validate_every": 8}
    _, state = tiny.tiny_fit(tmp_path / "state.safetensors", 40, source=source, checkpoint_minutes=1.0, **options)
    losses = [entry["loss"] for entry in state.history]
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.2
    assert state.history[-1]["validation"] > state.history[0]["validation"]


def test_best_weights_have_the_best_score(straight: tuple) -> None:
    state = straight[1]
    model = tiny.tiny_model()
    model.load_state_dict(state.best_weights)
    scores = validate(model, tiny.line_source().validation())
    assert sum(scores) / len(scores) == pytest.approx(state.best_score, abs=1e-6)
    assert state.best_score >= max(entry["validation"] for entry in state.history)


def test_history_has_an_entry_per_validation(straight: tuple) -> None:
    assert [entry["step"] for entry in straight[1].history] == [5, 10, 15, 20] and straight[1].step == 20


def test_killed_and_resumed_run_equals_the_straight_one(straight: tuple, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    with pytest.raises(KilledError):
        tiny.tiny_fit(path, on_checkpoint=kill_at(10))
    torch.manual_seed(7)
    model, state = tiny.tiny_fit(path, resume=True)
    assert_equal(model.state_dict(), straight[0])
    assert_equal(state.best_weights, straight[1].best_weights)
    assert state.history == straight[1].history and state.best_score == straight[1].best_score


def test_resumed_run_keeps_the_best_weights_of_before(tmp_path: Path) -> None:
    path, ruinous = tmp_path / "state.safetensors", {"learning_rate": 3.0}
    with pytest.raises(KilledError):
        tiny.tiny_fit(path, on_checkpoint=kill_at(10), **ruinous)
    _, state = tiny.tiny_fit(path, resume=True, **ruinous)
    assert_equal(state.best_weights, dict(tiny.tiny_model().state_dict()))


def test_average_of_the_weights_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    passed: list[dict[str, Tensor]] = []
    options = {"validate_every": 4, "checkpoint_minutes": 0.0}
    model, last = tiny.tiny_model(), tmp_path / "last.safetensors"

    def note(batch: Batch, step: int, process: int) -> Batch:
        passed.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        return batch

    state = training.fit(model, tiny.Changed(note), tmp_path / "state.safetensors", steps=12, average=0.5, **options)
    passed.append({name: weight.detach().clone() for name, weight in model.named_parameters()})  # after the last step
    average = passed[1]
    for step, weights in enumerate(passed[2:], 2):
        decay = min(0.5, step / (step + 10))
        average = {name: decay * average[name] + (1 - decay) * weight for name, weight in weights.items()}
    for name, weight in average.items():
        torch.testing.assert_close(state.average[name], weight)
    model.load_state_dict(state.average, strict=False)
    scores = validate(model, tiny.line_source().validation())
    assert sum(scores) / len(scores) == pytest.approx(state.history[-1]["validation"], abs=1e-6)
    plain, _ = tiny.tiny_fit(last, 12, **options)  # the average changes nothing of how weights are trained
    assert_equal({name: weight.detach() for name, weight in plain.named_parameters()}, passed[-1])


def test_killed_and_resumed_run_equals_the_straight_one_with_an_average(tmp_path: Path) -> None:
    path, average = tmp_path / "state.safetensors", {"average": 0.8}
    _, straight = tiny.tiny_fit(tmp_path / "straight.safetensors", **average)
    with pytest.raises(KilledError):
        tiny.tiny_fit(path, on_checkpoint=kill_at(10), **average)
    _, state = tiny.tiny_fit(path, resume=True, **average)
    assert_equal(state.average, straight.average)
    assert_equal(state.best_weights, straight.best_weights)
    with pytest.raises(ValueError, match=r"average was 0\.8 and is None"):
        tiny.tiny_fit(path, resume=True)


@pytest.mark.parametrize("name", ["average", "dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_average_and_dropout_are_below_one(name: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be at least 0 and below 1; got {value}"):
        tiny.tiny_fit(tmp_path / "state.safetensors", **{name: value})


def test_dropout_is_of_a_step_alone_and_of_a_seed() -> None:
    model, batch = tiny.tiny_model(), tiny.line_source().batch(1)
    torch.manual_seed(3)
    state = torch.get_rng_state()

    def score(rate: float, seed: int) -> Tensor:
        with dropped_out(model, rate, seed):
            return model.score(batch)

    plain = model.score(batch)
    assert torch.equal(score(0.0, 1), plain)
    first, again, other = score(0.2, 1), score(0.2, 1), score(0.2, 2)
    assert torch.equal(first, again) and not torch.isclose(first, plain).all() and not torch.equal(first, other)
    assert torch.equal(model.score(batch), plain) and torch.equal(torch.get_rng_state(), state)


def test_weight_decay_shrinks_every_weight_before_a_step() -> None:
    plain, decayed = tiny.tiny_model(), tiny.tiny_model()
    for model, options in ((plain, {}), (decayed, {"weight_decay": 2.0})):
        model(tiny.line_source().batch(1)).backward()
        for optimizer in make_optimizers(model, 0.01, 0.01, **options):
            optimizer.step()
    begun = tiny.tiny_model().parameters()
    pairs = zip(plain.parameters(), decayed.parameters(), begun, strict=True)
    for without, with_decay, start in pairs:
        if without.grad is not None:
            torch.testing.assert_close(with_decay, without - 0.02 * start)


def test_dropped_units_are_scaled_up() -> None:
    block = Block(8, 2, 6)
    tokens, attended = torch.randn(1, 5, 8), torch.randn(1, 2, 5, 4)
    draws = []
    for seed in range(4000):
        with torch.no_grad(), dropped_out(block, 0.3, seed):
            draws.append(block.out(attended.transpose(-2, -3).flatten(-2)))
    draws = torch.stack(draws)
    expected = block.out(attended.transpose(-2, -3).flatten(-2)).detach()
    assert (draws == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - expected).abs() < 5 * error).all()
    with dropped_out(block, 0.3, 0):
        assert not torch.equal(block.update(tokens, attended), block.update(tokens, attended))


def test_killed_and_resumed_run_equals_the_straight_one_with_dropout(tmp_path: Path) -> None:
    path, dropout = tmp_path / "state.safetensors", {"dropout": 0.2}
    model, straight = tiny.tiny_fit(tmp_path / "straight.safetensors", **dropout)
    with pytest.raises(KilledError):
        tiny.tiny_fit(path, on_checkpoint=kill_at(10), **dropout)
    torch.manual_seed(11)
    resumed, state = tiny.tiny_fit(path, resume=True, **dropout)
    assert_equal(dict(resumed.state_dict()), dict(model.state_dict()))
    assert state.history == straight.history
    with pytest.raises(ValueError, match=r"dropout was 0\.2 and is None"):
        tiny.tiny_fit(path, resume=True)


def test_run_ends_where_patience_does(tmp_path: Path) -> None:
    ruinous = {"learning_rate": 3.0, "validate_every": 2, "patience": 3}
    _, state = tiny.tiny_fit(tmp_path / "state.safetensors", 40, **ruinous)
    scores = [entry["validation"] for entry in state.history]
    ended = [n for n in range(4, len(scores) + 1) if max(scores[n - 3 : n]) <= max(scores[: n - 3])]
    assert state.step < 40 and ended == [len(scores)]
    _, again = tiny.tiny_fit(tmp_path / "state.safetensors", 40, resume=True, **ruinous)
    assert again.step == state.step
    with pytest.raises(ValueError, match="patience must be positive; got 0"):
        tiny.tiny_fit(tmp_path / "state.safetensors", patience=0)


def test_every_step_draws_the_batch_of_its_number(tmp_path: Path) -> None:
    path, steps = tmp_path / "state.safetensors", []
    source = tiny.Changed(lambda batch, step, process: (steps.append(step), batch)[1])
    with pytest.raises(KilledError):
        tiny.tiny_fit(path, source=source, on_checkpoint=kill_at(10))
    tiny.tiny_fit(path, source=source, resume=True)
    assert steps == list(range(20))


def test_run_killed_by_the_system_at_any_moment_resumes_to_the_same_weights(tmp_path: Path) -> None:
    steps, threads = 60, torch.get_num_threads()
    path = tmp_path / "state.safetensors"
    command = [sys.executable, tiny.__file__, str(path), str(steps), str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            for _ in range(random.Random().randint(1, 7)):
                assert process.stdout.readline(), "the run ended before it was killed"
            time.sleep(random.Random().uniform(0, 0.04))
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode in (-signal.SIGKILL, 0)  # 0: it was the faster one; to be resumed all the same
    model, _ = tiny.tiny_fit(path, steps, resume=True)
    expected, _ = tiny.tiny_fit(tmp_path / "straight.safetensors", steps)
    assert_equal(model.state_dict(), expected.state_dict())


def test_finished_run_resumes_to_itself(straight: tuple) -> None:
    model, state = tiny.tiny_fit(straight[2], resume=True)
    assert_equal(model.state_dict(), straight[0])
    assert state.step == 20


def test_resumed_run_goes_on_where_more_steps_are_asked_for(straight: tuple, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(straight[2].read_bytes())
    _, state = tiny.tiny_fit(path, 30, resume=True)
    assert [entry["step"] for entry in state.history] == [5, 10, 15, 20, 25, 30]


def test_clock_of_a_resumed_run_goes_on(straight: tuple) -> None:
    assert 0 < straight[1].minutes <= tiny.tiny_fit(straight[2], resume=True)[1].minutes


def test_run_stops_when_its_minutes_are_used(tmp_path: Path) -> None:
    ticks = count()

    def clock() -> float:
        """A second more each time it is looked at."""
        return float(next(ticks))

    _, state = tiny.tiny_fit(tmp_path / "state.safetensors", steps=10**6, minutes=1.0, clock=clock)
    assert 60 <= state.seconds < 80 and 0 < state.step < 60


def test_state_is_written_whenever_the_caller_is_told(tmp_path: Path) -> None:
    path, seen = tmp_path / "state.safetensors", []

    def on_checkpoint(state: RunState) -> None:
        with safe_open(path, "pt") as file:
            seen.append((state.step, json.loads(file.metadata()["record"])["step"]))

    tiny.tiny_fit(path, on_checkpoint=on_checkpoint)
    assert seen == [(0, 0), (5, 5), (10, 10), (15, 15), (20, 20)]


def test_state_is_written_at_the_end_however_short_the_run(tmp_path: Path) -> None:
    seen = []
    tiny.tiny_fit(
        tmp_path / "state.safetensors", 7, checkpoint_minutes=1e6, on_checkpoint=lambda state: seen.append(state.step)
    )
    assert seen == [0, 7] and (tmp_path / "state.safetensors").exists()


def test_nothing_in_a_run_is_a_pickle(straight: tuple) -> None:
    files = sorted(path for path in straight[2].parent.rglob("*") if path.is_file())[::-1]
    assert [path.name for path in files] == ["state.safetensors", "state.lock"] and files[1].stat().st_size == 0
    assert files[0].read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
    with safe_open(files[0], "pt") as file:
        assert json.loads(file.metadata()["record"])["step"] == 20


# The state file


def write_half(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    Path(path).write_bytes(b"half a fi")
    raise OSError("disk full")


def refuse(*args: object) -> None:
    raise OSError("killed")


@pytest.mark.parametrize(("owner", "name", "crash"), [(run_state, "save_file", write_half), (os, "replace", refuse)])
def test_crash_while_the_state_is_written_leaves_the_old_one(
    owner: object, name: str, crash: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tmp_path / "state.safetensors", tiny.tiny_model()
    RunState(step=1).save(path, model, make_optimizers(model))
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"cannot be written \((disk full|killed)\)"):
        patch.setattr(owner, name, crash)
        RunState(step=2).save(path, tiny.tiny_model(1), make_optimizers(model))
    other = tiny.tiny_model(2)
    assert RunState.load(path, other, make_optimizers(other)) == RunState(step=1)
    assert_equal(other.state_dict(), model.state_dict())


def test_state_restores_weights_optimizers_best_and_record(tmp_path: Path) -> None:
    model, other = tiny.tiny_model(), tiny.tiny_model(1)
    optimizers, restored = make_optimizers(model), make_optimizers(other)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    best = tiny.tiny_model(2).state_dict()
    state = RunState({"seed": 3}, {"steps": 2}, 7, 1.5, [{"loss": 0.5}], -0.25, 0.75, best)
    state.save(tmp_path / "state.safetensors", model, optimizers)
    got = RunState.load(tmp_path / "state.safetensors", other, restored)
    assert dataclasses.replace(got, best_weights={}) == dataclasses.replace(state, best_weights={})
    assert_equal(got.best_weights, best)
    assert_equal(other.state_dict(), model.state_dict())
    for before, after in zip(optimizers, restored, strict=True):
        before, after = before.state_dict()["state"], after.state_dict()["state"]
        assert before.keys() == after.keys() and len(before) > 0
        for parameter in before:
            assert_equal(after[parameter], before[parameter])


def test_every_weight_has_one_optimizer() -> None:
    model = tiny.tiny_model()
    groups = [p for optimizer in make_optimizers(model) for group in optimizer.param_groups for p in group["params"]]
    assert len(groups) == len({id(p) for p in groups}) == len(list(model.parameters()))


# Warm start, schedule, mistakes


def test_warm_start_keeps_the_given_weights_unless_it_beats_them(straight: tuple, tmp_path: Path) -> None:
    given = straight[1].best_weights
    model = tiny.tiny_model()
    model.load_state_dict(given)
    _, state = tiny.tiny_fit(tmp_path / "state.safetensors", 5, model=model, learning_rate=3.0)
    assert_equal(state.best_weights, given)
    assert state.best_score == straight[1].best_score
    assert state.history[-1]["validation"] < state.best_score


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(i / 1000) for i in range(1001)]
    peak = max(range(1001), key=factors.__getitem__)
    assert 0 < factors[0] <= 0.011 and 0.99 < max(factors) <= 1 and peak <= 31
    assert all(a < b for a, b in pairwise(factors[: peak + 1]))
    assert all(a > b for a, b in pairwise(factors[peak:]))
    assert factors[-1] == pytest.approx(0, abs=1e-12) and learning_rate_factor(1.5) == pytest.approx(0, abs=1e-12)


def test_learning_rate_follows_the_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = [], []
    monkeypatch.setattr(training, "make_optimizers", lambda *args: made.extend(make_optimizers(*args)) or made)

    def note(batch: Batch, step: int, process: int) -> Batch:
        seen.append([group["lr"] for optimizer in made for group in optimizer.param_groups])
        return batch

    training.fit(tiny.tiny_model(), tiny.Changed(note), tmp_path / "s.safetensors", steps=4, learning_rate=0.5)
    expected = [0.5 * learning_rate_factor(step / 4) for step in range(4)]
    assert seen == [[rate, rate] for rate in expected]


def test_limits_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fit needs minutes= or steps="):
        training.fit(tiny.tiny_model(), tiny.line_source(), tmp_path / "state.safetensors")


@pytest.mark.parametrize("name", ["steps", "minutes", "validate_every", "learning_rate"])
def test_limits_must_be_positive(name: str, tmp_path: Path) -> None:
    for value, rule in ((0, "positive; got 0"), (math.nan, "positive; got nan"), (math.inf, "positive and finite")):
        with pytest.raises(ValueError, match=f"{name} must be {rule}"):
            training.fit(
                tiny.tiny_model(), tiny.line_source(), tmp_path / "s.safetensors", **{"steps": 1} | {name: value}
            )


def test_resume_needs_a_state(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume=True needs the state of a run; there is none at"):
        tiny.tiny_fit(tmp_path / "state.safetensors", resume=True)


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 4}, {"num_targets": 5}])
def test_state_of_another_run_is_refused(change: dict[str, int], straight: tuple) -> None:
    with pytest.raises(ValueError, match="belongs to another run"):
        tiny.tiny_fit(straight[2], resume=True, source=tiny.line_source(**change))


@pytest.mark.parametrize("change", [{"prior": "other"}, {"width": 14}, {"num_layers": 1}])
def test_state_of_another_model_is_refused(change: dict[str, object], straight: tuple) -> None:
    with pytest.raises(ValueError, match="belongs to another run"):
        tiny.tiny_fit(straight[2], resume=True, model=tiny.tiny_model(**change))


def test_a_new_run_keeps_the_state_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    for seed in (0, 1):
        tiny.tiny_fit(path, 5, source=tiny.line_source(seed=seed))
    assert path.exists() and path.with_suffix(".previous.safetensors").exists()


def test_a_new_run_that_cannot_start_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    _, before = tiny.tiny_fit(path, 5)
    monkeypatch.setattr(run_state, "save_file", write_half)
    with pytest.raises(ValueError, match="What was there before is unchanged"):
        tiny.tiny_fit(path, 5, source=tiny.line_source(seed=1))
    monkeypatch.undo()
    _, again = tiny.tiny_fit(path, 5, resume=True)
    assert again.history == before.history


def drawn_with(part: str, value: float, first: int) -> tiny.Changed:
    """Lines in batches whose second data set holds a value from a step on."""

    def change(batch: Batch, step: int, process: int) -> Batch:
        if step >= first:
            getattr(batch, part)[1] = value
        return batch

    return tiny.Changed(change)


def test_a_diverged_run_says_so(tmp_path: Path) -> None:
    message = (
        r"not finite at step 5 although the data is: training diverged; .* prior with a learning rate below 0\.006"
    )
    with pytest.raises(RuntimeError, match=message):
        tiny.tiny_fit(tmp_path / "state.safetensors", 5, source=drawn_with("y_target", 1e30, 3))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["y_context", "x_buffer", "y_target"])
def test_nan_from_a_prior_is_reported_as_data_at_its_step(part: str, value: float, tmp_path: Path) -> None:
    message = f"the batch of step 7 must be finite; {part} holds NaN or infinite values in 1 of its 3 data sets; mend"
    with pytest.raises(ValueError, match=message):
        tiny.tiny_fit(tmp_path / "state.safetensors", source=drawn_with(part, value, 7))
    assert RunState.read(tmp_path / "state.safetensors").step == 5


def test_nan_in_the_validation_set_is_found_before_training(tmp_path: Path) -> None:
    (batch,) = tiny.line_source().validation()
    batch.y_context[3, 2] = math.nan
    message = "the validation set with 8 context pairs must be finite; y_context holds NaN .* in 1 of its 128 data sets"
    with pytest.raises(ValueError, match=message):
        tiny.tiny_fit(tmp_path / "state.safetensors", source=tiny.Changed(tiny.unchanged, [batch]))
    assert not (tmp_path / "state.safetensors").exists()


def test_validation_that_overflows_is_found_before_training_and_leaves_the_earlier_state(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    tiny.tiny_fit(path, 5)
    before = path.read_bytes()
    (batch,) = tiny.line_source().validation()
    batch.y_target[:] = 1e30
    with pytest.raises(ValueError, match="validation density of the weights at the start must be finite"):
        tiny.tiny_fit(path, source=tiny.Changed(tiny.unchanged, [batch]))
    assert path.read_bytes() == before


# Ctrl-C, locks, what cannot be written


def interrupted_at(wanted: int, press: Callable[[], None]) -> tiny.Changed:
    def change(batch: Batch, step: int, process: int) -> Batch:
        if step == wanted:
            press()
        return batch

    return tiny.Changed(change)


def raise_interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own answer to Ctrl-C, which a process started in the background of a script does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("press", "reached"), [(raise_interrupt, 3), (press_ctrl_c, 4)])
def test_ctrl_c_before_the_first_checkpoint_saves_and_the_run_resumes_to_the_same_weights(
    press: Callable[[], None], reached: int, straight: tuple, tmp_path: Path
) -> None:
    path, seen = tmp_path / "state.safetensors", []
    options = {"checkpoint_minutes": 1e6}
    with pytest.raises(KeyboardInterrupt):
        tiny.tiny_fit(path, on_checkpoint=seen.append, source=interrupted_at(3, press), **options)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [state.step for state in seen] == [0, reached]
    model = tiny.tiny_model()
    model.load_state_dict(seen[-1].best_weights)
    (score,) = validate(model, tiny.line_source().validation())
    assert score == pytest.approx(seen[-1].best_score, abs=1e-6) and score > seen[0].best_score  # trained ones
    model, state = tiny.tiny_fit(path, resume=True, **options)
    assert_equal(model.state_dict(), straight[0])
    assert state.history == straight[1].history


@pytest.mark.usefixtures("interruptible")
def test_second_ctrl_c_within_a_step_interrupts_at_once(tmp_path: Path) -> None:
    def press_twice() -> None:
        for _ in range(2):
            press_ctrl_c()
            time.sleep(0.01)

    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        tiny.tiny_fit(path, source=interrupted_at(7, press_twice))
    assert RunState.read(path).step == 7


def test_second_run_on_one_state_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    path, refused = tmp_path / "state.safetensors", []

    def second(state: RunState) -> None:
        with pytest.raises(ValueError, match="belongs to a run that is still going on"):
            tiny.tiny_fit(path, resume=True)
        refused.append(state.step)

    tiny.tiny_fit(path, 5, on_checkpoint=second)
    assert refused == [0, 5]
    tiny.tiny_fit(path, 5, resume=True)


def test_state_that_cannot_be_written_is_found_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    undrawn = tiny.Changed(lambda *args: pytest.fail("a step was drawn"))
    with pytest.raises(ValueError, match="cannot be written"):
        tiny.tiny_fit(tmp_path / "a file" / "state.safetensors", source=undrawn)
    monkeypatch.setattr(run_state, "save_file", write_half)
    with pytest.raises(ValueError, match=r"cannot be written \(disk full\)"):
        tiny.tiny_fit(tmp_path / "state.safetensors", source=undrawn)


def test_output_that_fails_later_leaves_a_state_to_resume(straight: tuple, tmp_path: Path) -> None:
    def fail(state: RunState) -> None:
        if state.step == 10:
            raise ValueError("the output cannot be written")

    path = tmp_path / "state.safetensors"
    with pytest.raises(ValueError, match="the output cannot be written"):
        tiny.tiny_fit(path, on_checkpoint=fail)
    model, _ = tiny.tiny_fit(path, resume=True)
    assert_equal(model.state_dict(), straight[0])


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".state.safetensors.abc.tmp").touch()
    tiny.tiny_fit(tmp_path / "state.safetensors", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.lock", "state.safetensors"]


def test_flipped_bit_in_a_state_is_found(straight: tuple, tmp_path: Path) -> None:
    content = bytearray(straight[2].read_bytes())
    content[-100] ^= 4
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged.* does not have its checksum"):
        tiny.tiny_fit(tmp_path / "state.safetensors", resume=True)


def test_changed_number_in_the_record_of_a_state_is_found(straight: tuple, tmp_path: Path) -> None:
    content = straight[2].read_bytes()
    changed = content.replace(b'\\"step\\": 20, \\"seconds', b'\\"step\\": 10, \\"seconds')
    assert changed != content
    (tmp_path / "state.safetensors").write_bytes(changed)
    with pytest.raises(ValueError, match="does not have its checksum"):
        tiny.tiny_fit(tmp_path / "state.safetensors", resume=True)


def test_setup_of_another_run_is_named_by_its_fields(straight: tuple) -> None:
    message = r"another run: batch_size was 3 and is 4, config\.width was 12 and is 14; call it as it was begun"
    with pytest.raises(ValueError, match=message):
        tiny.tiny_fit(straight[2], resume=True, source=tiny.line_source(batch_size=4), model=tiny.tiny_model(width=14))


def test_run_that_an_older_version_began_is_resumed(straight: tuple) -> None:
    setup = RunState.read(straight[2]).setup
    parts = json.loads(setup["config"])
    for field in ("slot_positions", "adapter_rank", "gated_read"):
        del parts["architecture"][field]
    before = RunState(setup=setup | {"config": json.dumps(parts)})
    before.check_setup(straight[2], setup)
    parts["architecture"]["slot_positions"] = "none"
    with pytest.raises(ValueError, match=r"another run: config\.slot_positions was 'none' and is 'learned'; call"):
        RunState(setup=setup | {"config": json.dumps(parts)}).check_setup(straight[2], setup)


def test_run_begun_from_other_weights_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    origins = [{"started_from": "x", "folder": f"/{i}/x", "steps": 7, "minutes": 1.0} for i in range(2)]
    tiny.tiny_fit(path, 5, origin=origins[0])
    with pytest.raises(ValueError, match="another run: started_from was '/0/x' and is '/1/x'"):
        tiny.tiny_fit(path, 10, resume=True, origin=origins[1])
    tiny.tiny_fit(path, 10, resume=True, origin=origins[0])


@pytest.mark.parametrize(("value", "shown"), [("1", False), (None, True)])
def test_progress_bar_is_hidden_by_tqdm_disable(
    value: str | None, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if value is not None:
        monkeypatch.setenv("TQDM_DISABLE", value)
    tiny.tiny_fit(tmp_path / "state.safetensors", 2)
    assert bool(capsys.readouterr().err) == shown
    list(progress_bar(range(3)))
    assert bool(capsys.readouterr().err) == shown
    list(progress_bar(range(3), disable=True))
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_run_killed_at_twenty_random_moments_resumes_to_the_same_weights(tmp_path: Path) -> None:
    steps, threads, path = 400, torch.get_num_threads(), tmp_path / "state.safetensors"
    killed = 0
    for attempt in range(20):
        command = [sys.executable, tiny.__file__, str(path), str(steps), str(threads), *["resume"] * (attempt > 0)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            try:
                for _ in range(random.Random().randint(1, 4)):
                    process.stdout.readline()
                time.sleep(random.Random().uniform(0, 0.04))
            finally:
                process.send_signal(signal.SIGKILL)
        assert process.returncode in (-signal.SIGKILL, 0)
        killed += process.returncode != 0
    assert killed >= 15
    model, _ = tiny.tiny_fit(path, steps, resume=True)
    expected, _ = tiny.tiny_fit(tmp_path / "straight.safetensors", steps)
    assert_equal(model.state_dict(), expected.state_dict())


# Several processes


def worker(path: Path, resume: bool, kill_at_step: int | None) -> None:
    """What each of two processes runs: notes its batches, is perhaps killed, and leaves its weights."""
    torch.set_num_threads(1)  # OpenMP hangs after a fork

    def note(batch: Batch, step: int, process: int) -> Batch:
        torch.save(batch.y_context, path.parent / f"batch-{step}-{process}.pt")
        return batch

    def kill(state: RunState) -> None:
        if state.step == kill_at_step:
            os._exit(9)

    model, _ = tiny.tiny_fit(path, 20, resume=resume, source=tiny.Changed(note), on_checkpoint=kill)
    torch.save(model.state_dict(), path.with_suffix(f".{PartialState().process_index}.pt"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_draw_different_streams_and_resume_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else accelerate chooses, and warns that it has
    straight, killed = tmp_path / "straight" / "state.safetensors", tmp_path / "killed" / "state.safetensors"
    killed.parent.mkdir()
    straight.parent.mkdir()
    debug_launcher(worker, (straight, False, None), num_processes=2)
    with pytest.raises(Exception, match="process 0 terminated with exit code 9"):
        debug_launcher(worker, (killed, False, 10), num_processes=2)
    assert not killed.with_suffix(".0.pt").exists()
    debug_launcher(worker, (killed, True, None), num_processes=2)
    for step in range(20):
        first, second = (torch.load(straight.parent / f"batch-{step}-{process}.pt") for process in range(2))
        assert first.shape == second.shape and not (first.numel() and torch.isclose(first, second).any())
    assert RunState.read(killed).setup["num_processes"] == 2
    weights = [torch.load(path.with_suffix(f".{process}.pt")) for path in (straight, killed) for process in range(2)]
    for other in weights[1:]:
        assert_equal(other, weights[0])


def test_a_model_of_tiny_contexts_has_a_validation_set() -> None:
    config = dataclasses.replace(tiny.CONFIG, num_context=(0, 3))
    assert [batch.x_context.shape[1] for batch in PriorSource(tiny.lines, config).validation()] == [3]


@pytest.mark.parametrize("content", [b"", b"not a state", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_or_foreign_state_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.safetensors is no state of a run"):
        tiny.tiny_fit(path, resume=True)


def test_resumed_run_tells_at_once_what_it_has(straight: tuple) -> None:
    seen: list[RunState] = []
    tiny.tiny_fit(straight[2], resume=True, on_checkpoint=seen.append)
    assert seen[0].best_score == straight[1].best_score


def test_origin_of_a_warm_start_is_kept(tmp_path: Path) -> None:
    origin = {"started_from": "tiny", "steps": 70, "minutes": 1.0}
    path = tmp_path / "state.safetensors"
    tiny.tiny_fit(path, 5, origin=origin)
    _, state = tiny.tiny_fit(path, 10, resume=True)
    assert state.origin == origin


def test_state_told_at_a_checkpoint_does_not_change_afterwards(tmp_path: Path) -> None:
    seen: list[RunState] = []
    tiny.tiny_fit(tmp_path / "state.safetensors", 10, on_checkpoint=seen.append)
    assert [(state.step, len(state.history)) for state in seen] == [(0, 0), (5, 1), (10, 2)]


def test_state_told_at_a_checkpoint_keeps_its_average(tmp_path: Path) -> None:
    seen: list[tuple[RunState, dict[str, torch.Tensor]]] = []

    def note(state: RunState) -> None:
        seen.append((state, {name: weight.clone() for name, weight in state.average.items()}))

    tiny.tiny_fit(tmp_path / "state.safetensors", 10, on_checkpoint=note, average=0.9)
    assert any(average for _, average in seen)
    for state, average in seen:
        assert all(torch.equal(state.average[name], weight) for name, weight in average.items())


def test_patience_does_not_wait_for_validations_that_are_not_numbers() -> None:
    history = [{"step": i, "loss": 0.0, "validation": value} for i, value in enumerate([1.0, *[math.nan] * 3])]
    assert RunState(history=history).exhausted(2) and not RunState(history=history[:2]).exhausted(2)


def test_record_with_other_fields_is_no_state(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_file({}, path, metadata={"record": json.dumps({"step": 1})})
    with pytest.raises(ValueError, match="is no state of a run, or of an older version"):
        RunState.read(path)


def test_frozen_weights_are_refused(tmp_path: Path) -> None:
    net = tiny.tiny_model().requires_grad_(False)
    with pytest.raises(ValueError, match="all are frozen; use load"):
        training.fit(net, tiny.line_source(), tmp_path / "state.safetensors", steps=1)

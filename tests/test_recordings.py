"""Recordings: their file, what training on them draws, and what a user's own recording is told."""

import dataclasses
import json
import math
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import xarray as xr
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from torch.testing import assert_close
from trials import simulated, write_trials

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferMarginals, ArBufferModel, cli, exact_loo, random_orders
from pyro_arbuf.network.preprocessing import outcome_statistics
from pyro_arbuf.priors.eeg import CHANNELS, MIRROR, TEST, TRAINING, VALIDATION, eeg, read_eeg
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.programs.sources import make_source
from pyro_arbuf.training.recordings import (
    BEYOND,
    RecordingSource,
    draw_subsets,
    draw_windows,
    targets_anywhere,
    varied,
)

B, K, M, D, RATE = 3, 4, 9, 2, 32.0
CONFIG = dataclasses.replace(
    tiny.CONFIG,
    dim_y=D,
    lag_column=0,
    max_frequency=math.pi * RATE,
    y_loc=(0.0,) * D,
    y_scale=(5.0,) * D,
    y_scale_weight=8.0,
    x_range=(0.0, 2.0),
    x_spacing=1 / RATE,
    y_range=(-50.0, 50.0),
    num_context=(0, 12),
    num_targets=(1, 9),
)


def clean(num_trials: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(simulated(num_trials, 64, seed)).mT[..., :D].contiguous()


@pytest.fixture
def source() -> RecordingSource:
    return RecordingSource(clean(5), clean(2, 1), CONFIG, (1, 0), B, M)


@pytest.fixture
def net() -> ArBufferModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ArBufferModel(CONFIG).double().requires_grad_(False)


@pytest.fixture
def trial() -> tuple[Tensor, Tensor]:
    """Times in seconds and two channels."""
    return torch.arange(13, dtype=torch.float64)[:, None] / RATE, clean(1, 2)[0, :13].double()


# The file


def test_file_is_read_by_subject_and_flat_channels_leave_their_trial_out(tmp_path):
    path = write_trials(tmp_path / "file.npz")
    with np.load(path) as file:
        y, subject = file["y"].copy(), file["subject"]
    y[1, 4] = 3.0  # not recorded
    np.savez(path, y=y, subject=subject)
    subjects = read_eeg(path)
    assert set(subjects) == {*TRAINING, *VALIDATION, *TEST}
    assert [len(subjects[name]) for name in TRAINING[:2]] == [2, 3]
    assert_close(subjects[TRAINING[0]], torch.from_numpy(y[[0, 2]]).mT)
    training, validation = eeg(path)
    assert training.shape == (20, 256, 7) and torch.equal(validation, subjects[VALIDATION[0]])


def test_subjects_are_split_without_overlap_and_by_group():
    names = TRAINING + VALIDATION + TEST
    assert len(set(names)) == 12 and (len(TRAINING), len(VALIDATION), len(TEST)) == (7, 1, 4)
    assert sum("co2a" in name for name in TEST) == 2 and sum("co2a" in name for name in TRAINING) in (3, 4)
    assert sorted(MIRROR) == list(range(7)) and all(MIRROR[MIRROR[c]] == c for c in range(7))
    assert all(abs(int(CHANNELS[c][1:]) - int(CHANNELS[MIRROR[c]][1:])) == 1 for c in range(1, 7))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": np.ones((2, 7, 9))}, "must hold y and subject; .* lacks \\['subject'\\]"),
        ({"y": np.ones((2, 6, 9)), "subject": ["a", "a"]}, r"y must have shape \(trials, 7, samples\) .* \(2, 6, 9\)"),
        ({"y": np.full((2, 7, 9), np.nan), "subject": ["a", "a"]}, "y must be finite"),
        (
            {"y": np.random.default_rng(0).normal(size=(2, 7, 9)), "subject": ["a", "a"]},
            "must hold co2a0000364, .* lac",
        ),
    ],
)
def test_wrong_files_are_named(arrays, words, tmp_path):
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        make_source("eeg", data=tmp_path / "file.npz")


def test_file_must_be_given_where_it_is_needed_and_nowhere_else(tmp_path):
    with pytest.raises(ValueError, match="'eeg' is trained on recordings, which are not shipped; give their file"):
        make_source("eeg")
    with pytest.raises(ValueError, match="'gp-1d' needs none; leave out their file"):
        make_source("gp-1d", data=tmp_path)
    with pytest.raises(ValueError, match="there is none at"):
        make_source("eeg", data=tmp_path / "absent.npz")


# What training draws


def test_training_draws_from_its_own_trials_and_validation_from_others(source):
    nothing = torch.full_like(source.trials, torch.nan)
    for step in range(20):
        assert dataclasses.replace(source, held_out=nothing).batch(step).y_target.isfinite().all()
    for batch in dataclasses.replace(source, trials=nothing).validation():
        assert batch.y_target.isfinite().all()


def test_trials_must_have_channels_and_enough_samples(source):
    least = 12 + K + BEYOND
    for trials in (source.trials[..., :1], source.trials[:0], source.trials[:, : least - 1]):
        with pytest.raises(ValueError, match=f"trials must hold at least one trial of at least {least} samples of 2"):
            dataclasses.replace(source, trials=trials)


def test_windows_are_successive_samples_and_subsets_are_different_ones():
    y, generator = torch.zeros(200, 64, D), torch.Generator().manual_seed(0)
    for stride in (1, 2):
        index = draw_windows(y, 20, stride, generator)
        assert (index.diff(dim=1) == stride).all()
        assert index.min() == 0 and index.max() == 63
    index = draw_subsets(y, 20, generator)
    assert all(len(set(row)) == 20 for row in index.tolist()) and (index.diff(dim=1) < 0).any()


def test_batches_interpolate_or_forecast_on_the_grid_of_samples(source):
    forecasts = 0
    for step in range(60):
        batch = source.batch(step)
        samples = [x * RATE for x in (batch.x_context, batch.x_buffer, batch.x_target)]
        assert all(torch.equal(each, each.round()) for each in samples)
        assert all(each.min() >= 0 and each.max() < 64 for each in samples if each.numel())
        if batch.x_context.shape[1] > 2:
            forecasts += bool((batch.x_buffer.amin(1) > batch.x_context.amax(1)).all())
    assert 15 < forecasts < 45


def test_targets_never_see_themselves():
    others = torch.arange(K + BEYOND).expand(B, -1).unsqueeze(-1).float(), torch.randn(B, K + BEYOND, D)
    context = torch.zeros(B, 2, 1), torch.zeros(B, 2, D)
    generator = torch.Generator().manual_seed(0)
    lengths = []
    for _ in range(50):
        batch = targets_anywhere(context, others, K, M, generator)
        assert torch.equal(batch.x_buffer, others[0][:, :K])
        for target, v in enumerate(batch.prefix_len.tolist()):
            where = batch.x_target[0, target].item()
            assert where not in batch.x_buffer[0, :v]
            assert torch.equal(batch.y_target[:, target], others[1][:, int(where)])
        assert batch.prefix_len[M:].tolist() == list(range(K)) and not batch.prefix_len[: M // 2].any()
        lengths += batch.prefix_len[M // 2 : M].tolist()
    assert set(lengths) == set(range(K + 1))


def test_varied_trials_have_the_spectrum_of_those_recorded():
    trials = torch.from_numpy(simulated(40, 128)).mT
    drawn = varied(trials, 4000, MIRROR, torch.Generator().manual_seed(0))
    power, expected = (
        (each.square().mean(0)) for each in (torch.fft.rfft(part, dim=1).abs() for part in (drawn, trials))
    )
    expected = (expected + expected[..., list(MIRROR)]) / 2 * math.exp(2 * 0.25**2)
    assert_close(power, expected, rtol=0.15, atol=0)
    assert abs((drawn.mean(1) > 0).double().mean() - 0.5) < 0.05  # a random sign


# Standardised by the context


def test_many_samples_are_standardised_and_few_are_nearly_not():
    y = 3 + 2 * torch.randn(1, 100_000, 1, dtype=torch.float64)
    many = outcome_statistics(y, (5.0,), 8.0)
    assert_close(many.map_y(y).std(), torch.tensor(5.0, dtype=torch.float64), rtol=1e-3, atol=0)
    one = outcome_statistics(y[:, :1], (5.0,), 8.0)
    assert_close(one.y_loc, y[:, :1])
    assert_close(one.y_scale, torch.full_like(one.y_scale, math.sqrt(8 / 9)))
    none = outcome_statistics(y[:, :0], (5.0,), 8.0)
    assert_close(none.map_y(y), y, rtol=0, atol=0)


def test_padding_changes_no_statistics():
    y = torch.randn(1, 5, D, dtype=torch.float64)
    padded = torch.cat([y, torch.full((1, 3, D), 1e6, dtype=torch.float64)], 1)
    own, other = (outcome_statistics(*a) for a in ((y, (5.0, 6.0), 8.0), (padded, (5.0, 6.0), 8.0, torch.tensor([5]))))
    assert_close(own, other, rtol=1e-14, atol=0)


def test_batches_are_standardised_by_their_contexts(source):
    for step in range(12):
        y = source.batch(step).y_context.double()
        if y.shape[1]:
            assert_close(y.mean(1), torch.zeros(B, D, dtype=torch.float64), rtol=0, atol=1e-5)
            assert y.square().mean(1).max() < 25 * (1 + 8 / y.shape[1])


def test_densities_are_of_the_user_s_unit(net, trial):
    x, y = trial
    context = net.condition(x[:8], y[:8])
    ratio = ((y[:8] - y[:8].mean(0)).square().sum(0) / 25 + 8).div(16).sqrt()
    assert_close(context.y, ((y[:8] - y[:8].mean(0)) / ratio).unsqueeze(0))
    joint = ArBufferJoint(context, x[8:])
    for size in (K, 1):
        own = ArBufferJoint(context, x[8:], buffer_size=size).log_prob(y[8:])
        nano = net.in_units(y_scale=1000.0)
        other = ArBufferJoint(nano.condition(x[:8], 1000 * y[:8]), x[8:], buffer_size=size).log_prob(1000 * y[8:])
        assert_close(own, other + 5 * D * math.log(1000))
    milliseconds = net.in_units(x_scale=1000.0)
    other = ArBufferJoint(milliseconds.condition(1000 * x[:8], y[:8]), 1000 * x[8:])
    assert_close(joint.log_prob(y[8:]), other.log_prob(y[8:]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = joint.sample((5,))
        torch.manual_seed(0)
        assert_close(draws, other.sample((5,)))
    assert draws.shape == (5, 5, D)


def test_marginal_density_integrates_to_one_in_microvolt(trial):
    x, y = trial
    net = ArBufferModel(dataclasses.replace(CONFIG, y_range=None)).double().requires_grad_(False)
    first = ArBufferMarginals(net.condition(x[:8], y[:8]), x[8:9])
    grid = torch.linspace(-120, 120, 481, dtype=torch.float64)
    mass = first.log_prob(torch.cartesian_prod(grid, grid).unsqueeze(-2)).exp().sum() * 0.5**2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


def test_statistics_stay_where_targets_join_the_context(net, trial):
    x, y = trial
    context = net.condition(x[:8], y[:8])
    joint = ArBufferJoint(context, x[8:]).condition([0, 1], y[8:10])
    assert_close(joint.context.statistics, context.statistics)
    assert all(row in joint.context.y[0].tolist() for row in context.y[0].tolist())


def test_leaving_out_standardises_anew(net, trial):
    x, y = trial
    found = exact_loo(net, x[:6], y[:6])
    for i in range(6):
        rest = [j for j in range(6) if j != i]
        alone = ArBufferMarginals(net.condition(x[rest], y[rest]), x[i : i + 1]).log_prob(y[i : i + 1])
        assert found.elpd_i.values[i] == pytest.approx(alone.item(), abs=1e-9)


def test_contexts_of_different_lengths_are_those_alone_and_are_pickled(net, trial):
    x, y = trial
    both = net.condition([x[:8], x[:5]], [y[:8], y[:5]])
    assert_close(pickle.loads(pickle.dumps(both)).statistics, both.statistics)
    joint = ArBufferJoint(both, x[8:]).log_prob(y[8:])
    alone = [ArBufferJoint(net.condition(x[:n], y[:n]), x[8:]).log_prob(y[8:]) for n in (8, 5)]
    assert_close(joint, torch.stack(alone))
    assert_close(ArBufferJoint(both[1], x[8:]).log_prob(y[8:]), alone[1])


def test_flat_channels_and_few_samples_have_a_density(net, trial):
    x, y = trial
    flat = y.clone()
    flat[:, 1] = 3.0
    for n in (0, 1, 2, 7):
        assert ArBufferJoint(net.condition(x[:n], flat[:n]), x[8:]).log_prob(y[8:]).isfinite()
    with pytest.warns(UserWarning, match=r"a channel of y has a standard deviation below .* dead channels"):
        assert ArBufferJoint(net.condition(x[:8], flat[:8]), x[8:]).log_prob(y[8:]).isfinite()


# Other recordings


def test_recordings_as_in_training_are_taken_without_a_warning(net, trial):
    x, y = trial
    ArBufferJoint(net.condition(x[:8], y[:8]), x[8:])  # warnings are errors
    coarse = x[::2]
    ArBufferJoint(net.condition(coarse[:4], y[::2][:4]), coarse[4:])
    ArBufferJoint(net.condition([x[:8], x[:3]], [y[:8], y[:3]]), x[8:])
    nothing = net.condition()
    assert ArBufferJoint(nothing, x[:3]).log_prob(y[:3]).isfinite()


def test_higher_sampling_rates_are_warned_of_in_the_user_s_unit(net, trial):
    x, y = trial
    with pytest.warns(UserWarning, match=r"closer to each other than 0\.03125, the trained spacing.*every second"):
        net.condition(x[:8] / 2, y[:8])
    context = net.in_units(x_scale=1000.0).condition(1000 * x[:8], y[:8])
    with pytest.warns(UserWarning, match=r"closer to each other than 31\.25, the"):
        ArBufferJoint(context, 1000 * x[8:] / 2)


def test_targets_closer_to_the_context_than_samples_are_warned_of(net, trial):
    x, y = trial
    with pytest.warns(UserWarning, match=r"closer to each other than 0\.03125, the trained spacing"):
        ArBufferJoint(net.condition(x[:8], y[:8]), x[2:3] + 0.5 * (x[1] - x[0]))
    several = net.condition([x[:8], x[:3]], [y[:8], y[:3]])  # the second has nothing near the targets
    with pytest.warns(UserWarning, match="the trained spacing"):
        ArBufferJoint(several, torch.stack([x[5:6], x[5:6] + 0.5 * (x[1] - x[0])])[[1, 0]])
    ArBufferJoint(several, torch.stack([x[9:10], x[5:6] + 0.5 * (x[1] - x[0])]))
    ArBufferJoint(net.condition(), x[:1])


def test_two_samples_at_one_time_are_warned_of(net, trial):
    x, y = trial
    with pytest.warns(UserWarning, match=r"holds equal points, .* give trials as a batch of contexts, and times that"):
        net.condition(torch.cat([x[:4], x[:4]]), y[:8])
    coarse = x[:8].float() + 1e7
    with pytest.warns(UserWarning, match="holds equal points"):
        net.in_units(x_loc=1e7).condition(coarse, y[:8])
    net.in_units(x_loc=1e7).condition(x[:8] + 1e7, y[:8])
    ArBufferJoint(net.condition([x[:8], x[:3]], [y[:8], y[:3]]), x[[9, 9]])  # padding is none, targets may be equal


def test_closeness_is_not_looked_for_in_a_transformed_function(net, trial):
    x, y = trial

    def density(observed: Tensor) -> Tensor:
        return ArBufferJoint(net.condition(x[:8], observed), x[8:]).log_prob(y[8:])

    several = torch.stack([y[:8], y[:8] + 0.1])
    torch.testing.assert_close(torch.vmap(density)(several), torch.stack([density(each) for each in several]))


@pytest.mark.parametrize("units", [{"x": torch.tensor([0.0, 9.0])}, {"x_range": (0.0, 9.0)}])
def test_time_is_not_stretched_onto_the_trained_range(net, units):
    with pytest.raises(ValueError, match=r"time of a recording has a unit, .* state x_scale, your units in a second"):
        net.in_units(**units)


def test_longer_recordings_are_warned_of(net, trial):
    x, y = trial
    with pytest.warns(UserWarning, match=r"trained range \[0.0, 2.0\].*give pieces of a long recording"):
        net.condition(x[:8] + 2, y[:8])
    ArBufferJoint(net.in_units(x_loc=2.0).condition(x[:8] + 2, y[:8]), x[8:] + 2)
    with pytest.warns(UserWarning, match=r"num_context lies outside the trained range \[0, 12\]"):
        net.condition(x[:13], y[:13])


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 100.0])
def test_other_units_of_the_outcome_are_warned_of(factor, net, trial):
    x, y = trial[0], factor * trial[1]
    with pytest.warns(UserWarning, match=r"deviation below 0\.1 or above 100, as no recording.*in_units\(y=\.\.\.\)"):
        net.condition(x[:8], y[:8])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.in_units(y=y).condition(x[:8], y[:8])
        net.in_units(y_scale=factor).condition([x[:8], x[:1]], [y[:8], y[:1]])


def test_one_channel_in_another_unit_is_warned_of(net, trial):
    x, y = trial[0], trial[1].clone()
    for factor in (0.0, 1e-6, 1e3):
        y[:, 1] = factor * trial[1][:, 1]
        with pytest.warns(UserWarning, match="a channel of y has a standard deviation below 0.1 or above 100"):
            net.condition(x[:8], y[:8])


def test_an_artefact_is_warned_of(net, trial):
    x, y = trial[0][:12], trial[1][:12].clone()
    narrow = ArBufferModel(dataclasses.replace(CONFIG, y_range=(-9.0, 9.0))).double().requires_grad_(False)
    y[3] = 90.0
    with pytest.warns(UserWarning, match=r"numbers that their context standardises.*look for artefacts"):
        narrow.condition(x, y)


def test_other_numbers_of_channels_are_an_error(net, trial):
    x, y = trial
    for wrong in (y[:, :1], y.repeat(1, 2)):
        with pytest.raises(ValueError, match=r"y must have shape \(\*batch, points, 2\).*2 outcome dimensions"):
            net.condition(x, wrong)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"y_scale_weight": 0.0}, "y_scale_weight must be a positive number"),
        ({"y_loc": None, "y_scale": None}, "y_scale_weight must be a positive number, beside y_loc and y_scale"),
        ({"y_loc": (1.0, 0.0)}, "y_loc must be 0 where contexts standardise outcomes"),
        ({"outcomes": ("real", "count")}, "y_scale_weight is for real outcomes"),
        ({"x_spacing": -1.0}, "x_spacing must be a positive number"),
        ({"dim_x": 2}, "x_spacing must be a positive number, in a network of one input column"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIG, **fields)


# The command line


def test_train_and_evaluate_take_a_file(tmp_path: Path, monkeypatch, capsys):
    small = {name: getattr(tiny.CONFIG, name) for name in ("width", "num_layers", "num_heads", "mlp_width")}
    for name in ("eeg", "eeg-independent"):
        config = dataclasses.replace(RECIPES[name].config, num_context=(0, 8), buffer_size=4, **small)
        monkeypatch.setitem(RECIPES, name, RECIPES[name]._replace(config=config))
    data = ["--data", str(write_trials(tmp_path / "file.npz"))]
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["pyro-arbuf", *arguments])
        try:
            cli.main()
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            PartialState._reset_state()

    run("train", "eeg", *data, "--output", "net", "--steps", "2", "--batch-size", "2", "--num-targets", "3")
    net = pyro_arbuf.load("net")
    assert net.config.prior == "eeg" and net.config.y_scale_weight == 8 and net.config.x_spacing == 1 / 256
    capsys.readouterr()
    run("evaluate", "net", *data)
    score = json.loads(capsys.readouterr().out.splitlines()[-1])["validation"]
    assert score == pytest.approx(json.loads(Path("net/training.json").read_text())["validation"], abs=2e-4)
    with pytest.raises(SystemExit, match="which are not shipped; give their file"):
        run("evaluate", "net")
    warm = ["train", "eeg", *data, "--output", "warm", "--from", "net", "--steps", "1", "--batch-size", "2"]
    run(*warm)
    assert pyro_arbuf.load("warm").config == net.config


def test_columns_of_a_table_may_have_any_order_by_their_names():
    frames = pytest.importorskip("pandas").DataFrame
    net = pyro_arbuf.load("eeg")
    seconds = torch.arange(24)[:, None] / 256
    y = 6 * torch.randn(24, 7, generator=torch.Generator().manual_seed(0)).cumsum(0) / 5
    named = frames(y.numpy(), columns=["Fz", *CHANNELS[1:]])[["F6", "F1", "Fz", "F3", "F4", "F5", "F2"]]
    by_name = ArBufferJoint(net.condition(seconds[:16], named[:16]), seconds[16:])
    by_place = ArBufferJoint(net.condition(seconds[:16], y[:16]), seconds[16:])
    assert_close(by_name.log_prob(named[16:]).float(), by_place.log_prob(y[16:]))


def test_draws_of_the_shipped_network_share_what_was_drawn_before_them():
    net = pyro_arbuf.load("eeg")
    seconds = torch.arange(40)[:, None] / 256
    y = 6 * torch.sin(20 * seconds + torch.arange(7) / 7)
    ctx = net.condition(seconds[:32], y[:32])
    joint = ArBufferJoint(ctx, seconds[32:], orders=torch.arange(8)[None])
    torch.manual_seed(0)
    draws = joint.sample((200,))
    above = joint.log_prob(draws) - ArBufferMarginals(ctx, seconds[32:]).log_prob(draws)
    assert above.mean() > 5 * above.std() / 200**0.5  # draws of the joint are likelier under it


@pytest.mark.parametrize(("rate", "message"), [(256, None), (128, None), (512, "closer"), (300, "closer")])
def test_the_shipped_network_warns_of_rates_that_it_has_not_seen(rate, message):
    net = pyro_arbuf.load("eeg")
    seconds = torch.arange(32)[:, None] / rate
    y = 6 * torch.randn(32, 7, generator=torch.Generator().manual_seed(0)).cumsum(0) / 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net.condition(seconds, y)
    found = [str(warning.message) for warning in caught]
    assert (found == []) if message is None else any(message in text for text in found)


def test_times_rounded_to_milliseconds_are_no_higher_rate():
    net = pyro_arbuf.load("eeg")
    y = 6 * torch.sin(torch.arange(32.0)[:, None] / 9 + torch.arange(7) / 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctx = net.condition((torch.arange(32)[:, None] / 256).round(decimals=3), y)
        ArBufferJoint(ctx, (torch.arange(32, 40)[:, None] / 256).round(decimals=3))


def test_durations_and_dates_need_their_unit_stated():
    pandas = pytest.importorskip("pandas")
    net, y = pyro_arbuf.load("eeg"), 6 * torch.sin(torch.arange(32.0)[:, None] / 9 + torch.arange(7) / 7)
    seconds = torch.arange(32)[:, None] / 256
    durations = pandas.DataFrame({"time": pandas.to_timedelta(seconds[:, 0].numpy(), unit="s")})
    start, second = pandas.Timestamp("2020-01-01"), pandas.Timedelta("1s")
    for x in (durations, durations + start):
        with pytest.raises(ValueError, match=r"x must hold seconds.*x_scale=pd.Timedelta\('1s'\)"):
            net.condition(x, y)
    expected = ArBufferJoint(net.condition(seconds[:20], y[:20]), seconds[20:]).log_prob(y[20:])
    units = net.in_units(x_scale=second)
    found = ArBufferJoint(units.condition(durations[:20], y[:20]), durations[20:]).log_prob(y[20:])
    assert_close(found.float(), expected, rtol=1e-3, atol=1e-2)
    dated = net.in_units(x_loc=start, x_scale=second)
    found = ArBufferJoint(dated.condition(start + durations[:20], y[:20]), start + durations[20:]).log_prob(y[20:])
    assert_close(found.float(), expected, rtol=1e-3, atol=1e-2)


NAMES = dataclasses.replace(CONFIG, outcome=("FZ", "F1"))


@pytest.mark.parametrize("names", [["Fpz", "FZ"], ["F1", "other"]])
def test_a_known_channel_in_another_place_is_an_error(trial, names):
    net = ArBufferModel(NAMES).double().requires_grad_(False)
    frame = pd.DataFrame(trial[1][:8].numpy(), columns=names)
    rule = (
        r"y must have columns called FZ, F1, or all of them in this order; got .* stands elsewhere; rename or reorder"
    )
    with pytest.raises(ValueError, match=rule):
        net.condition(trial[0][:8], frame)


def test_channels_of_xarray_and_tables_are_put_in_order(trial):
    net, (x, y) = ArBufferModel(NAMES).double().requires_grad_(False), (trial[0][:8], trial[1][:8].numpy())
    known = net.condition(x, y).y
    turned = xr.DataArray(y[:, ::-1], dims=("time", "channel"), coords={"channel": ["F1", "FZ"]})
    for given in (turned, turned.to_pandas(), pd.DataFrame(y, columns=["FZ", "unknown"])):
        assert torch.equal(net.condition(x, given).y, known)
    with pytest.raises(
        ValueError, match=r"must have the 2 columns of the network's outcome, FZ, F1; got 3, \['FZ', 'F1', 't'\]"
    ):
        net.condition(x, turned.to_pandas()[["FZ", "F1"]].assign(t=0.0))
    with pytest.raises(ValueError, match=r"its first dimension is 2: use y\.T if it is transposed"):
        net.condition(x, torch.from_numpy(y).mT)


def test_command_line_forecasts_a_recording_in_the_order_of_time(trial, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net, (x, y) = ArBufferModel(NAMES).requires_grad_(False), (part.float() for part in trial)
    pyro_arbuf.save(net, "net")
    table = pd.DataFrame({"FZ": y[:11, 0], "F1": y[:11, 1], "t": x[:11, 0]})
    pd.concat([table[:8], table[8:][::-1]]).to_csv("data.csv", index=False)  # targets against the order of time
    command = ["pyro-arbuf", "predict", "net", "data.csv", "--x", "t", "--y", "FZ", "F1", "--held-out", "3"]

    def shown() -> str:
        monkeypatch.setattr("sys.argv", command)
        cli.main()
        return capsys.readouterr().out

    ahead = ArBufferJoint(net.condition(x[:8], y[:8]), x[8:11], orders=torch.arange(3)[None]).log_prob(y[8:11])
    assert f"joint log density {ahead.item():.3f} nats" in shown()
    table.iloc[[0, 1, 3, 4, 5, 7, 8, 9, 2, 6, 10]].to_csv("data.csv", index=False)  # some lie between: no forecast
    x, y = x[:11], y[:11]
    seen, new = torch.tensor([0, 1, 3, 4, 5, 7, 8, 9]), torch.tensor([2, 6, 10])
    joint = ArBufferJoint(net.condition(x[seen], y[seen]), x[new], orders=random_orders(3, 16))
    assert f"joint log density {joint.log_prob(y[new]).item():.3f} nats" in shown()
    command += ["--units", "fit"]
    with pytest.raises(SystemExit, match="--units must be keep for a network of recordings"):
        shown()

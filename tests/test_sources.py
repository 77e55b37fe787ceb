"""Every row of the table of shipped models is a source that training can use, and so is a row added by a stranger."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from trials import write_trials

import pyro_arbuf
from pyro_arbuf import cli
from pyro_arbuf.cli.evaluate import evaluate
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.batch import Batch
from pyro_arbuf.priors.recipes import RECIPES, PriorRecipe, RecordingRecipe
from pyro_arbuf.programs.program_batches import ProgramSource
from pyro_arbuf.programs.sources import make_source
from pyro_arbuf.training.loop import validate
from pyro_arbuf.training.recordings import RecordingSource
from pyro_arbuf.training.sources import PriorSource, check_finite
from pyro_arbuf.training.tables import TableSource

B, M = 2, 3
STEPS = range(6)
SIZES = ("width", "num_layers", "num_heads", "mlp_width", "embedding_width", "num_frequencies", "head_width")
SMALL = {name: getattr(tiny.CONFIG, name) for name in SIZES} | {"num_components": 3}


Source = PriorSource | TableSource | RecordingSource | ProgramSource


@pytest.fixture(scope="module", params=RECIPES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    data = None
    if isinstance(RECIPES[request.param], RecordingRecipe):
        data = write_trials(tmp_path_factory.mktemp("recordings") / "file.npz")
    return make_source(request.param, batch_size=B, num_targets=M, seed=1, data=data)


def same(first: Iterable[Tensor], second: Iterable[Tensor]) -> bool:
    """Whether all numbers are equal, and the same ones missing."""
    return all(torch.equal(a.nan_to_num(1e9), b.nan_to_num(1e9)) for a, b in zip(first, second, strict=True))


def check_batch(batch: Batch, source: Source) -> None:
    """Shapes and prefix lengths of a batch are those of the configuration; nothing is NaN but what may be missing."""
    config = source.config
    dim_x, dim_y = config.dim_x + bool(config.latents), config.dim_y or 1  # inputs of programs have a location column
    if config.missing_x:  # the number of columns is free
        assert 1 <= batch.x_context.shape[-1] <= dim_x
        dim_x = batch.x_context.shape[-1]
    size = len(batch.x_context)
    for x, y in (batch[0:2], batch[2:4], batch[4:6]):
        assert x.shape == (size, x.shape[1], dim_x) and y.shape == (size, x.shape[1], dim_y)
        assert x.dtype == y.dtype == torch.get_default_dtype()
    num_slots, num_targets = batch.x_buffer.shape[1], batch.x_target.shape[1]
    assert batch.x_context.shape[1] <= config.num_context[1] + config.num_latents and num_slots <= config.buffer_size
    assert batch.prefix_len.dtype == torch.int64 and batch.prefix_len.shape in ((num_targets,), (size, num_targets))
    assert num_targets > 0 and batch.prefix_len.min() >= 0 and batch.prefix_len.max() <= num_slots
    check_finite(batch, "the batch", config.missing_x)


def test_batches_fit_the_configuration(source: Source) -> None:
    for step in STEPS:
        check_batch(source.batch(step), source)


def test_batch_is_a_function_of_settings_step_and_process_alone(source: Source) -> None:
    for step in STEPS:
        torch.manual_seed(step)
        state = torch.get_rng_state()
        first = source.batch(step, process=1)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(100)
        assert same(first, dataclasses.replace(source).batch(step, process=1))


@pytest.mark.parametrize("change", ["step", "process", "seed"])
def test_another_step_process_or_seed_draws_other_data(source: Source, change: str) -> None:
    other = dataclasses.replace(source, seed=2) if change == "seed" else source
    for step in STEPS:
        changed = other.batch(step + 10 * (change == "step"), process=int(change == "process"))
        shared = set(source.batch(step).y_target.flatten().tolist()) & set(changed.y_target.flatten().tolist())
        whole = {value for value in shared if value % 1 == 0}  # choices and counts may be the same
        assert not shared - ({0.0} if source.config.all_real else whole)  # latents are padded with zeros
        assert not same(source.batch(step), changed)


def test_processes_have_equal_sizes(source: Source) -> None:
    for step in STEPS:
        assert len({tuple(part.shape for part in source.batch(step, process)) for process in range(3)}) == 1


def test_validation_is_fixed_and_scores_the_buffer_s_own_pairs(source: Source) -> None:
    first, second = source.validation(), dataclasses.replace(source, seed=2).validation()
    assert len(first) > 0 and all(same(one, two) for one, two in zip(first, second, strict=True))
    for batch in first:
        check_batch(batch, source)
        assert same(batch[4:6], batch[2:4])  # (x, y) of the targets and of the buffer
        assert batch.prefix_len.tolist() == list(range(batch.x_buffer.shape[1]))


def test_settings_are_json_and_name_what_a_resumed_run_must_agree_with(source: Source) -> None:
    settings = json.loads(json.dumps(source.settings))
    assert settings == source.settings and settings.items() >= {"seed": 1, "batch_size": B, "num_targets": M}.items()


def test_network_of_the_configuration_takes_its_batches(source: Source) -> None:
    model = ArBufferModel(dataclasses.replace(source.config, **SMALL))
    assert model.config.prior in RECIPES
    for step in STEPS:
        batch = source.batch(step)
        assert model.score(batch).shape == batch.x_target.shape[:2]
        assert torch.isfinite(model(batch))
    assert all(math.isfinite(score) for score in validate(model, source.validation()))


def test_unknown_name_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"name must be one of \['gp-1d', .*; got 'gp-9d'"):
        make_source("gp-9d")


# A new prior: one file, one row


NEW_PRIOR = '''
"""Waves: y = a sin(x + phase) at two input features, of which the second does nothing."""

import math

import torch


def waves(batch_size, num_points, generator):
    x = 2 * math.pi * torch.rand(batch_size, num_points, 2, generator=generator)
    amplitude, phase = torch.rand(2, batch_size, 1, 1, generator=generator)
    noise = 0.1 * torch.randn(batch_size, num_points, 1, generator=generator)
    return x, (0.5 + amplitude) * torch.sin(x[..., :1] + 6 * phase) + noise
'''


@pytest.fixture
def _waves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A prior in a file of its own, and its row in the table."""
    (tmp_path / "waves.py").write_text(NEW_PRIOR)
    monkeypatch.syspath_prepend(tmp_path)
    import waves

    config = dataclasses.replace(tiny.CONFIG, dim_x=2, x_range=(0.0, 6.3), y_range=(-2.0, 2.0), num_targets=(1, 9))
    monkeypatch.setitem(RECIPES, "waves", PriorRecipe(waves.waves, config))
    yield
    del sys.modules["waves"]
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one state per process
    PartialState._reset_state()


@pytest.mark.usefixtures("_waves")
def test_new_prior_is_one_file_and_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    check_batch(make_source("waves", B, M).batch(0), make_source("waves", B, M))
    monkeypatch.setattr("sys.argv", ["pyro-arbuf", "train", "waves", "--output", "waves", "--steps", "2"])
    cli.main()
    net = pyro_arbuf.load("./waves")
    assert net.config.prior == "waves" and net.config.width == tiny.CONFIG.width
    x, y = torch.rand(5, 2), torch.rand(5)
    draws = pyro_arbuf.ArBufferJoint(net.condition(x, y), torch.rand(3, 2)).sample((7,))
    assert draws.shape == (7, 3) and draws.isfinite().all()
    capsys.readouterr()
    evaluate("./waves")
    score = json.loads(capsys.readouterr().out.splitlines()[-1])["validation"]
    assert score == pytest.approx(json.loads(Path("waves/training.json").read_text())["validation"], abs=2e-4)

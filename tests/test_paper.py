"""The benchmark of the paper's comparison: its numbers are what they are said to be, and the command runs."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from test_eeg_baselines import write_trials

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferMarginals
from pyro_arbuf.baselines import make_model
from pyro_arbuf.network.predictives import GaussianMixture
from pyro_arbuf.random_state import seeded
from pyro_arbuf.training.run_state import RunState

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def functions():
    generator = torch.Generator().manual_seed(0)
    x, y = (part.double() for part in tiny.lines(2, 5 + 10, generator))
    return x[:, :5], y[:, :5], x[:, 5:], y[:, 5:]


def frozen(name):
    torch.manual_seed(0)
    config = dataclasses.replace(tiny.CONFIG, architecture=name, buffer_size=16)
    return make_model(config).double().eval().requires_grad_(False)


def test_a_law_of_independent_targets_is_consistent(load, functions, monkeypatch):
    systems = load("paper_systems")
    monkeypatch.setattr(systems.System, "joint", lambda self, context, x, orders: ArBufferMarginals(context, x))
    net, system = frozen("buffer"), systems.System("buffer")
    assert systems.order_gap(net, system, functions) < 1e-12 and systems.rest_gap(net, system, functions) < 1e-12


def test_one_target_more_is_integrated_out(load, functions, monkeypatch):
    systems = load("paper_systems")
    net, system = frozen("buffer"), systems.SYSTEMS["buffer K=16"]
    found = systems.rest_gap(net, system, functions)
    x_context, y_context, x, y = functions
    context, n = net.condition(x_context, y_context.squeeze(-1)), systems.SUBSET
    orders = torch.arange(n + 1)[None]
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    joint = ArBufferJoint(context, torch.cat([x[:, n : n + 1], x[:, :n]], 1), orders)
    values = torch.cat([grid.view(-1, 1, 1).expand(-1, 2, 1), y[:, :n, 0].expand(len(grid), -1, -1)], -1)
    implied = torch.trapezoid(joint.log_prob(values).exp(), grid, dim=0).log()
    alone = ArBufferJoint(context, x[:, :n], orders[:, :-1]).log_prob(y[:, :n, 0])
    expected = ((alone - implied).abs().mean() / n).item()
    assert found == pytest.approx(expected, rel=0.02) and found > 1e-5


def test_gaussian_of_fewer_targets_is_the_marginal_of_one(load, functions):
    systems = load("paper_systems")
    net, system = frozen("tnp-nd"), systems.SYSTEMS["TNP-ND"]
    gap = systems.rest_gap(net, system, functions)
    net.backbone.among_targets = torch.nn.ModuleList()  # targets do not read each other: one consistent Gaussian
    assert systems.rest_gap(net, system, functions) < 1e-10 < gap


def test_published_draws_of_tnp_a_are_those_of_its_joint(load, monkeypatch):
    speed = load("paper_speed")
    net, (x, y, x_new) = frozen("tnp-a"), (torch.rand(n, 1, dtype=torch.float64) for n in (5, 5, 4))
    monkeypatch.setattr(GaussianMixture, "sample", lambda self: self.mean)
    monkeypatch.setattr(GaussianMixture, "draw", lambda self, uniform, normal: self.mean)
    joint = ArBufferJoint(net.condition(x, y[:, 0]), x_new, orders=torch.arange(4)[None])
    published = speed.re_encoded_draws(net, x, y[:, 0], x_new, 2)
    torch.testing.assert_close(published, joint.sample((2,)), rtol=1e-10, atol=1e-10)


def test_differences_are_paired(load):
    page = load("paper_page")
    cells = {8: {"oracle": [3.0, 1.0], "buffer K=16": [2.5, 0.5], "TNP-A": [1.5, 0.5]}}
    found = page.summarise(cells)
    assert found["TNP-A"]["ours minus it"] == pytest.approx((0.5, 0.5)) and found["TNP-A"]["per N"] == {"8": 1.0}
    assert found["buffer K=16"]["oracle minus it"] == pytest.approx((0.5, 0.0))
    assert found["oracle"]["mean"] == pytest.approx((2.0, 1.0)) and set(found["oracle"]) == {"per N", "mean"}


def test_errors_of_the_same_units_at_every_n_do_not_average_out(load):
    """Four subjects that differ by as much at both N: the mean over N knows them no better than one N does."""
    page, subjects = load("paper_page"), [1.0, 2.0, 4.0, 5.0]
    cells = {n: {"buffer K=16": [value + n for value in subjects]} for n in (8, 16)}
    alone = torch.tensor(subjects).std().item() / 2
    mean, error = page.summarise(cells, same_units=True)["buffer K=16"]["mean"]
    assert (mean, error) == pytest.approx((15.0, alone))
    assert page.summarise(cells)["buffer K=16"]["mean"] == pytest.approx((15.0, alone / 2**0.5))


def test_figures_of_the_paper_are_of_systems_that_are_measured(load):
    paper, page = load("paper"), load("paper_page")
    for (task, number), published in page.PUBLISHED.items():
        (cells, *_) = paper.make_cells(task, (8, 8, 8, 1), (number,), (8,))
        assert set(published) <= set(cells[0].systems)


def test_a_run_keeps_the_tables_of_other_tasks(load, tmp_path):
    page, paper = load("paper_page"), load("paper")
    path = tmp_path / "PAPER.md"
    path.write_text("A remark.\n\n<!-- paper.py -->\nold\n<!-- end -->\nAnother.\n")
    for number, task in enumerate(("eeg forecasting", "gp-1d")):
        results = page.read_results(path)
        systems = page.summarise({8: {"buffer K=16": [1.0 + number, 3.0], "TNP-A": [1.0, 1.5]}})
        results["tables"][f"{task}, M = 16"] = {"rests on": "2 of them", "systems": systems}
        results["training"][task.split()[0]] = {
            "buffer": {"parameters": 10_000, "minutes": 2, "steps": 5_000, "validation": 1.0}
        }
        text = page.write_page(path, results, paper.TASKS)
    written = path.read_text()
    assert (
        written.startswith("A remark.") and written.endswith("Another.\n") and text in written and "old" not in written
    )
    assert written.index("### gp-1d, M = 16") < written.index("### eeg forecasting, M = 16")
    assert "| buffer K=16 | 2.000 | 2.000 (1.000) |  | 0.85 |" in written
    assert "| gp-1d | buffer | 10,000 | 2 | 5,000 | 1.000 |" in written
    assert path.with_suffix(".png").stat().st_size > 9000


def test_page_is_what_its_numbers_say(load, tmp_path):
    page, paper = load("paper_page"), load("paper")
    committed = FOLDER / "PAPER.md"
    shutil.copy(committed, tmp_path)
    text = page.write_page(tmp_path / "PAPER.md", page.read_results(committed), paper.TASKS)
    assert text in committed.read_text()


def test_data_sets_of_two_programs_are_not_the_same_ones(load):
    """They are counted as independent."""
    readings = load("paper_readings")
    first, second = (readings.draw_trials(name, 2, 3)[1] for name in ("multisensory-rho1", "multisensory-rho43"))
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.9


def test_a_mean_over_splits_is_of_the_four_series(load, monkeypatch, tmp_path):
    readings = load("paper_readings")
    worth = dict(zip(readings.SERIES, (1.0, 2.0, 3.0, 6.0), strict=True))
    monkeypatch.setattr(readings, "draw_rows", lambda data, series, num_context, size: worth[series])
    monkeypatch.setattr(readings, "log_prob", lambda net, system, rows, orders: torch.tensor([rows, 2 * rows]))
    found = readings.score_readings(readings.TABLES, "independent", 16, 2, torch.arange(32)[None], tmp_path)
    assert found == [3.0, 6.0]


def test_exact_prediction_of_trials_is_the_ratio_of_evidences(load):
    readings = load("paper_readings")
    trials = readings.draw_trials("multisensory-rho1", 2, 1)
    x_context, y_context, x, y = trials
    found = readings.exact_prediction("multisensory-rho1", trials)
    prior = torch.distributions.MultivariateNormal(torch.zeros(7).double(), torch.eye(7).double())
    with seeded(0):
        z = prior.sample((4000,))
    evidence = load("multisensory_evidence")
    before, after = (
        evidence.log_likelihood(z, a, b[:, 0], 1.0, 1.0).logsumexp(0)
        for a, b in ((x_context[0], y_context[0]), (torch.cat([x_context, x], 1)[0], torch.cat([y_context, y], 1)[0]))
    )
    assert found.item() == pytest.approx((after - before).item() / 16, abs=0.05)


@pytest.mark.slow
def test_paper_writes_a_page_and_goes_on_where_it_was_stopped(load, capsys, tmp_path, monkeypatch):
    paper, systems = load("paper"), load("paper_systems")
    path = write_trials(tmp_path / "file.npz", per_subject=2)
    tasks = ("sawtooth", "eeg interpolation", "eeg forecasting")
    sizes = {"num_functions": 2, "num_trials": 2, "num_orders": 2, "num_targets": (3, 17), "num_context": (4,)}
    page = tmp_path / "PAPER.md"
    settings = {"folder": tmp_path / "runs", "minutes": 0.01, "data": path, "page": page, "small": True}
    page.write_text("A remark.\n\n<!-- paper.py -->\nold\n<!-- end -->\nAnother.\n")
    paper.main(tasks, **settings, **sizes)
    *table, line = capsys.readouterr().out.strip().splitlines()
    result = json.loads(line)["tasks"]
    assert set(result) == {"sawtooth, M = 3", "sawtooth, M = 17", "eeg interpolation, M = 3", "eeg forecasting, M = 3"}
    assert set(result["sawtooth, M = 3"]["systems"]) == {"oracle", *systems.SYSTEMS}
    assert set(result["eeg forecasting, M = 3"]["systems"]) == set(systems.EEG_SYSTEMS)
    assert sum(row.startswith("| sawtooth | ") for row in table) == 7 and (tmp_path / "PAPER.png").stat().st_size > 9000
    text = page.read_text()
    assert text.startswith("A remark.") and text.endswith("Another.\n") and "### sawtooth, M = 17" in text
    states = {file: RunState.read(file).step for file in (tmp_path / "runs").rglob("state.safetensors")}
    monkeypatch.setattr(paper, "log_prob", None)  # nothing is scored again
    paper.main(tasks, **settings, **sizes)
    assert capsys.readouterr().out.strip().splitlines() == [*table, line]
    assert states == {file: RunState.read(file).step for file in states} and len(states) == 11


@pytest.mark.slow
def test_speed_of_the_paper_prints_tables_and_one_line_of_json(load, capsys, monkeypatch, tmp_path):
    speed = load("paper_speed")
    monkeypatch.setattr(speed, "GRID", ((8, 2),))
    monkeypatch.setattr(speed, "STEP_FUNCTIONS", 1)
    page = tmp_path / "PAPER.md"
    speed.main(repeats=1, page=page)
    *table, line = capsys.readouterr().out.strip().splitlines()
    result = json.loads(line)
    assert set(result["training step, N = 16"]) == set(speed.ARCHITECTURES)
    assert {"draws", "densities", "memory MiB"} == set(result["N = 8, B = 2"])
    assert (
        sum(row.startswith("| buffer") for row in table) == 3 and "### Draws and densities, N = 8" in page.read_text()
    )
    assert (tmp_path / "PAPER_speed.png").stat().st_size > 9000


def test_a_source_without_slots_as_targets_has_fresh_ones_alone(load):
    ablations = load("paper_ablations")
    source = tiny.line_source(num_targets=6)
    batch, whole = ablations.FreshTargets(source).batch(3), source.batch(3)
    assert batch.x_target.shape[1] == 6 == len(batch.prefix_len) and whole.x_target.shape[1] == 10
    assert torch.equal(batch.x_buffer, whole.x_buffer)
    assert not (batch.x_target[:, :, None] == batch.x_buffer[:, None]).any()


@pytest.mark.slow
def test_ablations_of_the_paper_go_on_where_they_were_stopped(load, capsys, tmp_path, monkeypatch):
    ablations = load("paper_ablations")
    settings = {"folder": tmp_path, "minutes": 0.01, "num_functions": 2, "num_context": (4,), "small": True}
    settings["page"] = tmp_path / "PAPER.md"
    ablations.main("sawtooth", **settings)
    *table, line = capsys.readouterr().out.strip().splitlines()
    found = json.loads(line)["variants"]
    assert found["orders: 16"][1] == pytest.approx([0.0, 0.0]) and len(found) == 8 + 5 + 2 + 2
    assert found["buffer size: 16"][0] == pytest.approx(found["orders: 16"][0], abs=1e-4)
    monkeypatch.setattr(load("paper_systems"), "fit", None)  # nothing is trained again
    ablations.main("sawtooth", **settings)
    assert capsys.readouterr().out.strip().splitlines() == [*table, line]


def test_share_of_the_gain_is_zero_of_independent_and_one_of_exact_predictions(load):
    added = load("add_buffer")
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[1] = scores[0] + 1 + scores[1] ** 2
    scores[2] = 0.75 * scores[1] + 0.25 * scores[0]
    found = added.recovered(scores, [added.INDEPENDENT, added.EXACT, "rank-8"])
    for (share, error), expected in zip(found.values(), (0.0, 1.0, 0.75), strict=True):
        assert share == pytest.approx(expected) and error == pytest.approx(0.0, abs=1e-12)


def test_networks_of_longer_buffers_start_at_the_same_weights(load):
    longer = load("longer_buffers")
    shipped = pyro_arbuf.load("gp-1d-noisy").state_dict()
    for kind in longer.KINDS.values():
        net = longer.begin(kind, "gp-1d-noisy", small=False)
        assert (net.config.slot_positions, net.config.scaled_queries) == kind
        own = net.state_dict()
        assert set(shipped) - set(own) <= {"embedder.positions.slot"}
        assert all(torch.equal(value, shipped[name]) for name, value in own.items() if "sharpness" not in name)


def test_loss_of_a_longer_buffer_is_paired(load):
    exact = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = load("longer_buffers").losses({"8, 4, 1": exact.tolist(), "8, 4, 2": (exact - 0.25).tolist()})
    assert found == {"8, 4, 2": pytest.approx((0.25, 0.0), abs=1e-12)}


@pytest.mark.slow
def test_longer_buffers_are_trained_once_and_written_into_a_page(load, capsys, tmp_path, monkeypatch):
    longer, page = load("longer_buffers"), tmp_path / "page.md"
    page.write_text("A remark.\n\n<!-- longer_buffers.py -->\n<!-- end -->\n")
    for name, value in {"BUFFERS": ((6, 3),), "SLOTS": (3, 6), "TRAINED": (4,), "CONTEXTS": (4, 5)}.items():
        monkeypatch.setattr(longer, name, value)
    settings = {"folder": tmp_path, "minutes": 0.01, "page": page, "small": True, "num_functions": 2, "num_orders": 2}
    settings["repeats"] = 0
    longer.main(("learned", "none, scaled"), **settings)
    *table, line = capsys.readouterr().out.strip().splitlines()
    found = json.loads(line)["systems"]
    assert set(found["none, scaled"]["lost"]) == {"6, 3, 3", "6, 3, 6"} and set(found["learned"]["gaps"]) == {"4", "5"}
    assert "| 6 | 3 | 6 |" in page.read_text() and page.with_suffix(".png").stat().st_size > 9000
    monkeypatch.setattr(load("paper_systems"), "fit", None)  # nothing is trained again
    longer.main(("learned", "none, scaled"), **settings)
    assert capsys.readouterr().out.strip().splitlines() == [*table, line]


@pytest.mark.slow
def test_added_buffers_are_trained_once_and_written_into_a_page(load, capsys, tmp_path, monkeypatch):
    added, page = load("add_buffer"), tmp_path / "page.md"
    page.write_text("A remark.\n\n<!-- add_buffer.py -->\n<!-- end -->\n")
    settings = {"folder": tmp_path, "base_minutes": 0.01, "minutes": 0.01, "page": page, "small": True}
    sizes = {"num_functions": 2, "num_orders": 2, "num_context": (4,)}
    added.main(("rank-2", "gate"), **settings, **sizes)
    *table, line = capsys.readouterr().out.strip().splitlines()
    found = json.loads(line)["systems"]
    assert set(found) == {added.INDEPENDENT, added.EXACT, added.UNTRAINED, "rank-2", "gate", added.JOINT}
    assert found["gate"]["trained"] < found["rank-2"]["trained"] and "| rank-2 |" in page.read_text()
    assert page.with_suffix(".png").stat().st_size > 9000
    monkeypatch.setattr(load("paper_systems"), "fit", None)  # nothing is trained again
    added.main(("rank-2", "gate"), **settings, **sizes)
    assert capsys.readouterr().out.strip().splitlines() == [*table, line]

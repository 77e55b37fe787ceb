"""The tasks of the sbibm benchmark are what they claim to be, and their table is written and gone on with."""

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from pyro import poutine
from scipy.integrate import solve_ivp

from pyro_arbuf import Simulator

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def test_populations_solve_the_differential_equations(benchmark):
    rates = torch.tensor([[0.9, 0.05, 0.9, 0.05], [0.5, 0.1, 1.5, 0.02]], dtype=torch.float64)
    found = benchmark("sbi_tasks").populations(rates)
    for (a, b, g, d), logarithms in zip(rates.tolist(), found, strict=True):

        def slope(_, u, a=a, b=b, g=g, d=d):
            return [a * u[0] - b * u[0] * u[1], d * u[0] * u[1] - g * u[1]]

        solved = solve_ivp(slope, (0, 20), [30.0, 1.0], t_eval=2.1 * np.arange(10), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(logarithms.numpy(), np.log(solved.y).reshape(-1), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "variance"),
    [("gaussian_linear_uniform", (10,), 1 / 3 + 0.1), ("gaussian_mixture", (2,), 400 / 12 + 0.505)],
)
def test_outcomes_have_the_variance_of_the_task(benchmark, name, shape, variance):
    simulator = Simulator(benchmark("sbi_tasks").TASKS[name].program)
    assert simulator.single
    torch.manual_seed(0)
    y = simulator.draw(20_000, 1).y[:, 0]
    assert y.shape[1:] == shape
    torch.testing.assert_close(y.var(0), torch.full(shape, variance), rtol=0.05, atol=0)


def test_noise_of_the_populations_is_ten_percent(benchmark):
    tasks = benchmark("sbi_tasks")
    torch.manual_seed(0)
    trace = poutine.trace(tasks.lotka_volterra).get_trace(torch.zeros(1, 1))
    assert trace.nodes["theta"]["value"].shape == (4,) and trace.nodes["y"]["value"].shape == (20,)
    residual = trace.nodes["y"]["value"] - tasks.populations(trace.nodes["theta"]["value"])
    assert residual.abs().max() < 0.5
    assert tasks.TASKS["lotka_volterra"].coded(torch.ones(20)).eq(0).all()


def fake_files(folder: Path, rows: int = 20) -> Path:
    generator = np.random.default_rng(0)
    for number in range(1, 11):
        path = folder / "sbibm" / "tasks" / "two_moons" / "files" / f"num_observation_{number}"
        path.mkdir(parents=True)
        pd.DataFrame(generator.normal(size=(1, 2)), columns=["data_1", "data_2"]).to_csv(
            path / "observation.csv", index=False
        )
        draws = pd.DataFrame(generator.normal(size=(rows, 2)), columns=["parameter_1", "parameter_2"])
        draws.to_csv(path / "reference_posterior_samples.csv.bz2", index=False)
    return folder


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_the_table_is_written_and_gone_on_with(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark("sbi_table"), "NUM_OBSERVATIONS", 2)
    files, page = fake_files(tmp_path / "files"), tmp_path / "SBI.md"
    page.write_text("Words.\n\n| task | an older table |\n")
    short = tmp_path / "README.md"
    short.write_text("Before.\n<!-- sbi_table.py -->\n<!-- end -->\nAfter.\n")
    options = {"files": files, "tasks": ("two_moons",), "budgets": (100,), "minutes": (0.01,), "num_draws": 20}
    options |= {"folder": tmp_path / "runs", "page": page, "threads": torch.get_num_threads()}
    options["short_pages"] = (short,)
    benchmark("sbi_table").main(**options)
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])["two_moons, 100"]
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores)
    text = page.read_text()
    assert text.startswith("Words.\n\n| task | 100 simulations |") and f"| two_moons | {np.mean(scores):.3f} (" in text
    text = short.read_text()
    assert text.startswith("Before.\n<!-- sbi_table.py -->\n| C2ST on sbibm") and text.endswith(
        "<!-- end -->\nAfter.\n"
    )
    assert f"| two_moons | {np.mean(scores):.3f} (" in text and "| 0.53 | 0.55 |" in text
    kept = tmp_path / "runs" / "two_moons-100" / "scores-20.json"
    kept.write_text(json.dumps(scores[:1]))
    benchmark("sbi_table").main(**options)  # the last observation is scored anew, of the draws that were kept
    assert json.loads(kept.read_text()) == scores
    options |= {"folder": tmp_path / "other runs", "budgets": (200,)}
    benchmark("sbi_table").main(**options)  # elsewhere: what was scored before stays in the table
    assert "| 100 simulations | CPU seconds | 200 simulations |" in page.read_text()
    assert f"| two_moons | {np.mean(scores):.3f} (" in page.read_text()


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_the_shipped_network_is_scored_by_the_same_protocol(benchmark, tmp_path, capsys, monkeypatch):
    sbi = benchmark("sbi")
    monkeypatch.setattr(sbi, "NUM_OBSERVATIONS", 2)
    monkeypatch.setattr(sbi, "likelihood_gap", lambda net: (0.1, 0.01))
    sbi.main("two-moons", files=fake_files(tmp_path), threads=torch.get_num_threads())
    *table, line = capsys.readouterr().out.splitlines()
    mean, _ = json.loads(line)["c2st"]
    assert f"10,000 draws | {mean:.3f} (" in "".join(table) and 0.5 <= mean <= 1


def test_missing_files_are_named_before_training(benchmark, tmp_path):
    with pytest.raises(ValueError, match=r"files must be a folder with the package sbibm; .* make sbibm"):
        benchmark("sbi_table").main(folder=tmp_path / "runs", files=tmp_path)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match=r"; make sbibm"):
        benchmark("sbi").main("gaussian-linear", files=tmp_path)

"""Every tutorial runs as written, in its quick form."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trials import write_trials

from pyro_arbuf import ArBufferModel, ModelConfig, save

FOLDER = Path(__file__).parent.parent / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9]*.py"))


def run(path: Path, **variables: str) -> str:
    of_users = ("SHAMS_AV", "EEG", "BIKE_SHARING")
    environment = {name: value for name, value in os.environ.items() if name not in of_users}
    environment |= {"SMOKE_TEST": "1"} | variables
    done = subprocess.run([sys.executable, str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path):
    assert "figure:" in run(path)


@pytest.mark.slow
def test_multisensory_tutorial_reads_human_data(tmp_path):
    path, generator = tmp_path / "reports.csv", np.random.default_rng(0)
    locations = generator.choice([-12.995, -6.5819, 0.0, 6.5819, 12.995], (375, 2))
    reported = np.arange(375) % 2
    y = np.where(reported == 1, locations[:, 0], locations[:, 1]) + generator.normal(0, 3, 375)
    ones, zeros = np.ones(375), np.zeros(375)
    table = np.column_stack([ones, reported, locations, y, ones, zeros])
    np.savetxt(path, table, "%g", delimiter=",", header="subject,r_type,s_A,s_V,y,bisensory,split", comments="")
    printed = run(FOLDER / "05_model_comparison_multisensory.py", SHAMS_AV=str(path))
    assert "observer 1 " in printed
    assert "1 observers: log evidence" in printed


@pytest.mark.slow
def test_eeg_tutorial_reads_recordings(tmp_path):
    printed = run(FOLDER / "07_eeg_forecast.py", EEG=str(write_trials(tmp_path / "file.npz")))
    assert "co2a0000370, trial 0: " in printed


@pytest.mark.slow
def test_tutorial_of_tables_reads_the_real_hires(tmp_path):
    path, generator = tmp_path / "hour.csv", np.random.default_rng(0)
    hour = np.delete(np.tile(np.arange(24), 20), [30, 31])  # a day may lack hours
    columns = {"hr": hour, "cnt": generator.poisson(20.0, len(hour))}
    rest = ("weekday", "workingday", "weathersit", "temp", "hum", "windspeed")
    table = columns | {name: generator.random(len(hour)) for name in rest}
    np.savetxt(path, np.column_stack(list(table.values())), "%g", delimiter=",", header=",".join(table), comments="")
    sizes = {"width": 8, "num_layers": 1, "num_heads": 2, "mlp_width": 8, "embedding_width": 8, "head_width": 8}
    rows = {"inputs": "rows", "column_width": 8, "num_inducing": 2, "row_layers": 1, "num_cls": 1, "num_frequencies": 0}
    save(ArBufferModel(ModelConfig(dim_x=16, buffer_size=32, **sizes, **rows)), tmp_path / "net")
    script = FOLDER / "06_tables_total_of_a_day.py"
    assert "real hires: 20 days" in run(script, BIKE_SHARING=str(path), TABULAR=str(tmp_path / "net"))

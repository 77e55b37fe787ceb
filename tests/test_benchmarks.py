"""The benchmarks' baselines are what they claim to be, and the commands run."""

import importlib
import json
from pathlib import Path

import pytest
import torch

import pyro_arbuf
from pyro_arbuf import ArBufferJoint
from pyro_arbuf.training.loop import learning_rate_factor

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def test_baseline_of_speed_is_exact_autoregression(benchmark):
    speed = benchmark("speed")
    net = pyro_arbuf.load("sawtooth").double()
    x, y, x_new = (torch.rand(n, 1, dtype=torch.float64) for n in (7, 7, 5))
    values = torch.rand(3, 5, dtype=torch.float64)
    joint = ArBufferJoint(net.condition(x, y[:, 0]), x_new, orders=torch.arange(5)[None], buffer_size=1)
    density = speed.exact_ar(net, x[None], y[None], x_new, values, 3)
    torch.testing.assert_close(density, joint.log_prob(values), rtol=1e-10, atol=1e-10)
    assert speed.exact_ar(net, x[None], y[None], x_new, None, 3).shape == (3, 5)


def test_copied_context_draws_from_the_same_joint(benchmark):
    speed = benchmark("speed")
    net = pyro_arbuf.load("sawtooth")
    x, y, x_new = (torch.rand(n, 1) for n in (7, 7, 3))
    joint = ArBufferJoint(net.condition(x, y[:, 0]), x_new, orders=torch.arange(3)[None])
    copied, shared = speed.copied_context(net, x[None], y[None], x_new, 4000), joint.sample((4000,))
    error = (copied.var(0) / 4000 + shared.var(0) / 4000).sqrt()
    assert ((copied.mean(0) - shared.mean(0)).abs() < 5 * error).all()


def test_quality_prints_a_table_and_one_line_of_json(benchmark, capsys):
    benchmark("quality").main("sawtooth", num_functions=3, num_orders=2, num_context=(0, 8))
    *table, line = capsys.readouterr().out.strip().splitlines()
    result = json.loads(line)
    assert set(result["per N"]["8"]) == {"oracle", "buffer K=16", "buffer K=4", "exact AR", "independent"}
    assert any(row.startswith("| mean |") for row in table)


def test_functions_of_quality_are_the_same_every_time(benchmark):
    quality = benchmark("quality")
    first, again = (quality.draw_functions("gp-1d", 3, 4, 2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_c2st_is_half_for_one_law_and_one_for_disjoint_ones(benchmark):
    sbi = benchmark("sbi")
    torch.manual_seed(0)
    a, b = torch.randn(2, 200, 2)
    assert abs(sbi.c2st(a, b) - 0.5) < 0.1
    assert sbi.c2st(a, b + 20) > 0.99


@pytest.mark.slow
def test_sbi_prints_a_table_and_one_line_of_json(benchmark, capsys):
    benchmark("sbi").main("gaussian", num_sets=2)
    *table, line = capsys.readouterr().out.strip().splitlines()
    assert set(json.loads(line)) == {"benchmark", "c2st", "evidence_rmse", "gap"}
    assert sum(row.startswith("| ") for row in table) >= 10


def test_reference_of_pairs_is_the_mean_likelihood_under_the_prior(benchmark):
    outcomes = benchmark("outcomes")
    torch.manual_seed(0)
    y = outcomes.law_of_pairs(torch.tensor(0.7)).sample((6,))
    exact, rho = outcomes.exact_pair(y), 2 * torch.rand(100_000, dtype=torch.float64) - 1
    likelihood = outcomes.law_of_pairs(rho).log_prob(y.double()[:, None]).sum(0)
    weights = (likelihood - likelihood.max()).exp()
    error = weights.std() / weights.mean() / len(rho) ** 0.5
    assert abs(exact.log_evidence - (weights.mean().log() + likelihood.max())) < 5 * error
    assert abs(exact.sample(20_000).mean() - (weights * rho).sum() / weights.sum()) < 0.02


@pytest.mark.slow
def test_outcomes_goes_on_where_it_was_stopped(benchmark, capsys, tmp_path):
    outcomes = benchmark("outcomes")
    outcomes.main("pair", tmp_path, minutes=0.02, num_sets=1, small=True)
    first = (tmp_path / "pair" / "scores.jsonl").read_text()
    capsys.readouterr()
    outcomes.main("pair", tmp_path, minutes=0.02, num_sets=2, small=True)
    *table, line = capsys.readouterr().out.strip().splitlines()
    assert (tmp_path / "pair" / "scores.jsonl").read_text().startswith(first)
    assert len(json.loads(line)["c2st"]) == 2 and any(row.startswith("| evidence RMSE, 2 sets") for row in table)


@pytest.mark.slow
def test_imports_prints_a_table_and_one_line_of_json(benchmark, capsys):
    benchmark("imports").main(repeats=1)
    *table, line = capsys.readouterr().out.strip().splitlines()
    result = json.loads(line)
    assert set(result) == {"import pyro", "import pyro_arbuf", "ratio"} and min(result.values()) > 0
    assert [row.split()[:2] for row in table[1:3]] == [["import", "pyro"], ["import", "pyro_arbuf"]]


@pytest.mark.slow
def test_checks_prints_a_table_and_one_line_of_json(benchmark, capsys):
    benchmark("checks").main(repeats=2)
    *table, line = capsys.readouterr().out.strip().splitlines()
    result = json.loads(line)
    assert list(result) == ["published, width 128", "width 512"] and len(table) == 4
    assert all(0 < share < 1 for share in result.values())


def test_reference_of_sbi_is_complete(benchmark):
    table = benchmark("pandas").read_csv(FOLDER / "multisensory_evidence.csv")
    names = ["multisensory-rho1", "multisensory-rho43"]
    assert set(table.model) == set(table.simulated_from) == set(names)
    assert len(table) == len(table.drop_duplicates(["simulated_from", "index", "model"])) == 60
    assert (table.standard_error < 0.1).all() and (table.k_hat < 0.7).all()


def test_the_base_recipe_is_that_of_fit(benchmark):
    recipe = benchmark("recipe").read_recipe("base")
    for progress in (0.0, 0.02, 0.4, 1.0):
        assert recipe.rate(progress) == pytest.approx(6e-3 * learning_rate_factor(progress))


def test_a_recipe_whose_rate_falls_late_stays_at_its_peak_before(benchmark):
    recipe = benchmark("recipe").read_recipe("learning_rate=2e-3,final_decay=0.25,width=8")
    assert [recipe.rate(p) for p in (0.1, 0.75)] == pytest.approx([2e-3, 2e-3])
    assert recipe.rate(0.875) == pytest.approx(1e-3) and recipe.rate(1.0) == pytest.approx(0.0, abs=1e-12)
    assert recipe.sizes == (("width", 8),)


def test_recipes_take_turns_by_cpu_seconds_and_are_kept(benchmark, capsys, tmp_path):
    sizes = "width=8,num_layers=1,num_heads=2,mlp_width=8,batch_size=2,num_targets=3"
    settings = {"minutes": 0.005, "folder": tmp_path}
    num_threads = torch.get_num_threads()
    benchmark("recipe").main("sawtooth", [sizes, f"{sizes},ema=0.9"], threads=num_threads, **settings)
    first = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    benchmark("recipe").main("sawtooth", [sizes, f"{sizes},ema=0.9"], threads=num_threads, **settings)
    assert capsys.readouterr().out.strip().splitlines()[-1] == json.dumps(first)
    assert len(list(tmp_path.iterdir())) == 1

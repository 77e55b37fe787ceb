"""The benchmarks' baselines are what they claim to be, and the commands run."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, checkpoint
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
    (kept,) = (tmp_path / "pair").glob("scores-*.json")
    first = json.loads(kept.read_text())
    capsys.readouterr()
    outcomes.main("pair", tmp_path, minutes=0.02, num_sets=2, small=True)
    *table, line = capsys.readouterr().out.strip().splitlines()
    assert json.loads(kept.read_text())[: len(first)] == first
    assert len(json.loads(line)["c2st"]) == 2 and any(row.startswith("| evidence RMSE, 2 sets") for row in table)


def small_tables(folder: Path) -> None:
    """A table of 80 rows, of which the outcome is the sum of two columns and noise, under the name of a public one."""
    x = np.random.default_rng(0).normal(size=(80, 4))
    x[:, 3] = x[:, 0] + x[:, 1] + 0.1 * x[:, 3]
    (folder / "tetouan").mkdir()
    columns = ["Temperature", "Humidity", "Wind Speed", "Zone 1 Power Consumption"]
    np.savez(folder / "tetouan" / "tetouan.npz", X=x, columns=columns)


@pytest.mark.slow
def test_tabular_says_what_is_missing_and_goes_on_where_it_was_stopped(benchmark, capsys, tmp_path, monkeypatch):
    tabular = benchmark("tabular")
    small_tables(tmp_path)
    pyro_arbuf.save(tiny.tiny_model(inputs="rows", dim_x=5, column_width=8, buffer_size=32), tmp_path / "net")
    settings = {"model": str(tmp_path / "net"), "data": tmp_path, "num_splits": 2, "num_rows": (16,)}
    tabular.main(tmp_path / "scores", **settings)
    *table, line = capsys.readouterr().out.strip().splitlines()
    assert sum("is left out" in row for row in table) == 4
    result = json.loads(line)["forecasting, N = 16"]
    assert set(result) == {"buffer minus independent", "exact AR minus buffer", "ahead of GP", "ahead of ridge"}
    monkeypatch.setattr(tabular, "network_scores", None)  # nothing is computed again
    monkeypatch.setattr(tabular, "rival_scores", None)
    tabular.main(tmp_path / "scores", **settings)
    assert capsys.readouterr().out.strip().splitlines() == [*table, line]
    pyro_arbuf.save(tiny.tiny_model(1, inputs="rows", dim_x=5, column_width=8, buffer_size=32), tmp_path / "net")
    with pytest.raises(TypeError):  # other weights are scored anew
        tabular.main(tmp_path / "scores", **settings)


def test_rivals_of_tabular_are_the_laws_they_are_said_to_be(benchmark):
    rivals = benchmark("tabular_rivals")
    rng = np.random.default_rng(1)
    x, noise = rng.normal(size=(240, 2)), rng.normal(size=240)
    y = x @ [0.8, 0.4] + 0.3 * noise
    context, targets = (x[:200], y[:200]), (x[200:], y[200:])
    truth = -0.5 * (noise[200:] ** 2).sum() - 40 * (np.log(0.3) + 0.5 * np.log(2 * np.pi))
    prepared = rivals.prepared(context, targets)
    assert np.allclose(prepared[0][0].std(0), 1) and np.allclose(prepared[0][0].mean(0), 0)
    assert abs(rivals.bayesian_ridge(*prepared) - truth) < 5
    assert abs(rivals.gaussian_process(*prepared) - truth) < 5
    assert -40 < rivals.forest(*prepared) - truth < 5
    missing = x[:200].copy()
    missing[3, 0], missing[:, 1] = np.nan, np.nan
    filled = rivals.prepared((missing, y[:200]), targets)
    assert all(np.isfinite(part[0]).all() for part in filled)


def test_density_of_the_forest_is_one_of_the_outcome(benchmark):
    rivals = benchmark("tabular_rivals")
    weights = np.random.default_rng(0).dirichlet(np.ones(5), 1)
    nodes = np.linspace(-40, 40, 20_001)
    density = np.exp(rivals._mixture(nodes, np.linspace(-1, 2, 5), np.repeat(weights, len(nodes), 0), 0.2))
    assert abs(np.trapezoid(density, nodes) - 1) < 1e-6


@pytest.mark.slow
def test_figure_of_sixteen_tables_is_drawn(benchmark, capsys, tmp_path):
    benchmark("sixteen_tables").main(tmp_path / "prior.png")
    assert (tmp_path / "prior.png").stat().st_size > 10_000
    assert json.loads(capsys.readouterr().out)["tables"] == 16


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


def test_a_variant_has_the_sizes_of_the_weights_it_starts_from(benchmark):
    recipe = benchmark("recipe")
    with pytest.raises(ValueError, match=r"must have the sizes of --start gp-1d; got \{'width': 8\}"):
        recipe.Run("gp-1d", recipe.read_recipe("width=8"), 0, 1.0, "gp-1d")
    run = recipe.Run("gp-1d", recipe.read_recipe("ema=0.9"), 0, 1.0, "gp-1d")
    assert run.model.training and all(weight.requires_grad for weight in run.model.parameters())


def test_the_first_data_sets_of_outcomes_do_not_depend_on_how_many_there_are(benchmark, monkeypatch):
    outcomes, sets = benchmark("outcomes"), []
    case = outcomes.CASES["poisson"]._replace(score=lambda net, *observed: observed)
    monkeypatch.setattr(outcomes, "kept_scores", lambda folder, net, number, score: [score(i) for i in range(number)])
    for number in (1, 3):
        sets.append(outcomes.score_all(case, None, Path(), number))
    torch.testing.assert_close(sets[0][0], sets[1][0], rtol=0, atol=0)
    assert not torch.equal(sets[1][0][0], sets[1][1][0])


def test_recipes_of_fixed_simulations_are_compared_over_seeds_and_kept(benchmark, capsys, tmp_path):
    variants = ["base", "average=0,further=0", "ordered=0,num_y_frequencies=2", "cooled=0"]
    settings = {"budget": 60, "minutes": 0.002, "seeds": (0, 1), "folder": tmp_path}
    settings["threads"] = torch.get_num_threads()
    benchmark("recipe_simulations").main("gaussian_mixture", variants, **settings)
    printed = capsys.readouterr().out.strip().splitlines()
    assert len(printed) == 3 + len(variants) + 1, "what amortize prints is silenced"
    found = json.loads(printed[-1])
    assert list(found["variants"]) == variants and found["variants"]["base"][2] == 0.0
    assert all(np.isfinite(row).all() for row in found["variants"].values())
    kept = {path: path.read_text() for path in tmp_path.iterdir()}
    assert len(kept) == 2 * len(variants)
    benchmark("recipe_simulations").main("gaussian_mixture", variants, **settings)
    assert capsys.readouterr().out.strip().splitlines() == printed
    assert {path: path.read_text() for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize(
    ("name", "text"),
    [("recipe", "start="), ("recipe", "width=wide")]
    + [("recipe_simulations", text) for text in ("averge=0", "average", "cooled=no", "average=0,")],
)
def test_a_recipe_that_is_unknown_is_named(benchmark, name, text):
    with pytest.raises(ValueError, match="a variant must be 'base' or settings of") as caught:
        benchmark(name).read_recipe(text)
    assert text.split(",")[-1] in str(caught.value)


def test_weights_are_averaged_where_that_is_better_than_both_ends(benchmark, capsys, tmp_path):
    """Ends that differ from good weights by opposite noise: their mean is the good weights."""
    torch.manual_seed(0)
    good = tiny.tiny_model(prior="gp-1d")
    noise = {name: 0.3 * torch.randn_like(weight) for name, weight in good.state_dict().items()}
    for name, sign in (("first", 1), ("second", -1)):
        ends = {name: weight + sign * noise[name] for name, weight in good.state_dict().items()}
        checkpoint.save(good, tmp_path / name, ends)
        run = {"prior": "gp-1d", "steps": 3, "minutes": 2.0, "validation": -9.0}
        (tmp_path / name / "training.json").write_text(json.dumps(run | {"runs": [run]}))
    folders = [str(tmp_path / name) for name in ("first", "second")]
    main, shares = benchmark("average_weights").main, (0.0, 0.5, 1.0)
    main(*folders, output=tmp_path / "mean", shares=shares, threads=torch.get_num_threads())
    scores = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["scores"]
    assert scores["0.5"] > max(scores["0.0"], scores["1.0"])
    net = pyro_arbuf.load(tmp_path / "mean")
    torch.testing.assert_close(net.state_dict(), good.state_dict())
    record = json.loads((tmp_path / "mean" / "training.json").read_text())
    assert record["validation"] == record["runs"][-1]["validation"] == pytest.approx(scores["0.5"], abs=1e-4)
    assert (record["steps"], record["minutes"], record["runs"][-1]["averaged"]) == (3, 2.0, 2)


def test_only_weights_of_one_size_are_averaged(benchmark, tmp_path):
    for name, width in (("first", 8), ("second", 16)):
        checkpoint.save(tiny.tiny_model(prior="gp-1d", width=width), tmp_path / name)
    with pytest.raises(ValueError, match="must be networks of one size"):
        benchmark("average_weights").main(*(str(tmp_path / name) for name in ("first", "second")))


def test_what_more_training_would_buy_is_read_from_the_runs(benchmark, capsys, tmp_path):
    folder, runs = tmp_path / "net", [(10.0, 1.0), (20.0, None), (30.0, 1.2), (0.0, 1.3)]
    folder.mkdir()
    record = {"runs": [{"minutes": minutes, "validation": score} for minutes, score in runs]}
    (folder / "training.json").write_text(json.dumps(record))
    card = "<!-- quality.py -->\n| mean | 2.0 | 1.9 | 1.9 | 1.9 | 1.5 | 0.100 (0.003) | 0.05 (0.00) |\n<!-- end -->\n"
    (folder / "README.md").write_text(card)
    benchmark("more_training").main(tmp_path, plot=tmp_path / "runs.png")
    printed = capsys.readouterr().out
    gained = 0.3 / np.log2(6)
    assert f"| `net` | 10 → 60 | 1.000 → 1.300 | 0.400 → 0.100 | {gained:.3f} |" in printed
    assert (tmp_path / "runs.png").stat().st_size > 0


def test_intervals_of_predictive_resampling_cover_as_stated(benchmark):
    resampling = benchmark("predictive_resampling")
    draws = torch.randn(20, 20_000, generator=torch.Generator().manual_seed(0))
    compared = resampling.Compared(draws[0], draws[1:], draws[1:])
    assert compared.covered(compared.draws).double().mean().item() == pytest.approx(0.9, abs=5 * (0.09 / 20_000) ** 0.5)


def test_exact_curves_have_the_mean_of_the_oracle(benchmark, monkeypatch):
    """The density of an observation is that of the curve with noise, so their means are equal."""
    resampling, oracle = benchmark("predictive_resampling"), benchmark("oracle")
    place = torch.tensor([[0.7]])
    monkeypatch.setattr(resampling, "GRID", place)
    monkeypatch.setattr(resampling, "NUM_EXACT", 4096)
    x, y = torch.tensor([[-1.0], [0.2], [1.1]]).double(), torch.tensor([0.4, -0.9, 1.2]).double()
    curves, effective = resampling.exact_curves(x, y)
    values = torch.linspace(-5, 5, 51).double()
    many = (part.expand(len(values), -1) for part in (x.T, y[None], place.T.double()))
    density = oracle.gp_log_prob(*many, values[:, None]).exp()
    error = curves.std().item() / min(effective, len(curves)) ** 0.5
    assert curves.mean().item() == pytest.approx(((density * values).sum() / density.sum()).item(), abs=5 * error)


@pytest.mark.slow
def test_predictive_resampling_prints_tables_and_one_line_of_json(benchmark, capsys, tmp_path):
    plot = tmp_path / "population.png"
    benchmark("predictive_resampling").main(num_sets=10, num_beyond=10, num_functions=2, plot=plot)
    *table, line = capsys.readouterr().out.strip().splitlines()
    result = json.loads(line)
    assert set(result["rows"]) == {"mean", "standard deviation", "mean of the curve", "maximum"}
    assert set(result["drift"]) == {"50 rows", "150 rows"} and plot.stat().st_size > 10_000
    assert sum(row.startswith("| maximum |") for row in table) == 1


@pytest.mark.slow
def test_large_contexts_measures_speed_and_trains_both(benchmark, capsys, tmp_path, monkeypatch):
    large = benchmark("large_contexts")
    monkeypatch.setattr(large, "LARGEST", 32)
    large.main(num_context=(16, 32), plot=tmp_path / "thousands.png")
    *table, line = capsys.readouterr().out.strip().splitlines()
    assert set(json.loads(line)["cells"]["32"]) == {"full attention", "latent bottleneck"}
    assert sum("| ratio |" in row for row in table) == 2 and (tmp_path / "thousands.png").stat().st_size > 10_000
    large.main(num_context=(16,), minutes=0.01, folder=tmp_path / "runs", num_functions=2)
    assert set(json.loads(capsys.readouterr().out.strip().splitlines()[-1])["loss"]) == {"16"}


@pytest.mark.slow
def test_diagnostics_fail_on_a_narrowed_posterior_and_are_written_into_the_card(
    benchmark, capsys, tmp_path, monkeypatch
):
    diagnostics = benchmark("diagnostics")
    monkeypatch.setattr(diagnostics, "SIMULATIONS", 200)
    (tmp_path / "README.md").write_text("A remark.\n\n<!-- diagnostics.py -->\n<!-- end -->\n")
    monkeypatch.setattr(diagnostics, "find_model", lambda name: tmp_path)
    diagnostics.main(("psychometric",), num_datasets=60, num_trials=40, update_card=True)
    *_, line = capsys.readouterr().out.strip().splitlines()
    rows = {what: float(p) for what, p, _ in json.loads(line)["networks"]["psychometric"]}
    assert len(rows) == 9 and rows["ranks, all, of a posterior made a third narrower"] < 0.01
    assert "| calibration around the data |" in (tmp_path / "README.md").read_text()

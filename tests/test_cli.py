"""The command line, run in this process on a tiny model."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file
from torch.testing import assert_close

from pyro_arbuf import checkpoint, cli
from pyro_arbuf.checkpoint import load, save
from pyro_arbuf.cli import models as models_module
from pyro_arbuf.cli import train as train_module
from pyro_arbuf.cli.train import state_of
from pyro_arbuf.distributions.marginals import ArBufferMarginals
from pyro_arbuf.model import ArBufferModel
from pyro_arbuf.network.latents import Latent
from pyro_arbuf.priors.recipes import RECIPES
from pyro_arbuf.programs.sources import make_source, shipped_programs
from pyro_arbuf.training.loop import make_optimizers
from pyro_arbuf.training.run_state import RunState
from pyro_arbuf.training.sources import PriorSource

BATCHES = ["--batch-size", "2", "--num-targets", "3"]
SIZES = [*BATCHES, "--width", "12", "--num-layers", "1", "--num-heads", "2"]
FILES = ["config.json", "loss.png", "model.safetensors", "training.json"]


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one state per process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs `pyro-arbuf` with arguments in an empty folder; only the sizes of the models differ from the real ones."""
    config = tiny.tiny_model(x_range=(-2.0, 2.0), y_range=(-6.0, 6.0), num_targets=(1, 9)).config
    for name in RECIPES.keys() - shipped_programs().keys():
        monkeypatch.setitem(RECIPES, name, RECIPES[name]._replace(config=config))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["pyro-arbuf", *arguments])
        cli.main()

    return call


def train(run: Callable[..., None], *arguments: str, prior: str = "gp-1d") -> None:
    run("train", prior, "--output", "trained", "--steps", "4", *SIZES, *arguments)


def test_train_writes_a_model_that_loads(run: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    train(run)
    assert sorted(path.name for path in Path("trained").iterdir()) == FILES
    assert Path("trained/loss.png").read_bytes().startswith(b"\x89PNG")
    model = load("trained")
    assert model.config.prior == "gp-1d" and model.config.num_layers == 1
    record = json.loads(Path("trained/training.json").read_text())
    assert record["prior"] == "gp-1d" and record["steps"] == 4 and record["started_from"] is None
    printed = capsys.readouterr().out
    assert f"trained: {record['validation']:.3f} nats per target" in printed and "after 4 steps" in printed


@pytest.mark.parametrize("prior", ["gp-1d-noisy", "sawtooth"])
def test_train_knows_every_prior(prior: str, run: Callable[..., None]) -> None:
    train(run, prior=prior)
    assert load("trained").config.prior == prior


def test_train_keeps_its_state_under_runs(run: Callable[..., None]) -> None:
    train(run)
    (state,) = Path("runs").rglob("*.safetensors")
    assert state == state_of(Path("runs"), Path("trained")) and state.parent.name.startswith("trained-")


def test_same_seed_trains_the_same_model(run: Callable[..., None]) -> None:
    weights = []
    for name in ("a", "b"):
        run("train", "gp-1d", "--output", name, "--steps", "2", *SIZES)
        weights.append(Path(name, "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_resume_goes_on(run: Callable[..., None]) -> None:
    train(run)
    run("train", "gp-1d", "--output", "trained", "--steps", "6", *SIZES, "--resume")
    assert json.loads(Path("trained/training.json").read_text())["steps"] == 6


def test_from_starts_with_the_given_weights_and_counts_their_steps(run: Callable[..., None]) -> None:
    train(run)
    # A learning rate that ruins the weights: what was given stays the best.
    run("train", "sawtooth", "--output", "warm", "--from", "trained", "--steps", "3", *SIZES, "--learning-rate", "9")
    given, kept = load("trained"), load("warm")
    assert kept.config.prior == "sawtooth"
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in kept.state_dict().items())
    record = json.loads(Path("warm/training.json").read_text())
    assert record["started_from"] == "trained" and record["steps"] == 7
    first, second = record["runs"]
    assert (first["prior"], first["steps"], first["batch_size"]) == ("gp-1d", 4, 2)
    assert (second["prior"], second["steps"], second["learning_rate"]) == ("sawtooth", 3, 9.0)
    assert record["validation"] == second["validation"] and record["minutes"] >= second["minutes"]


def test_average_of_the_weights_is_kept_recorded_and_resumed(run: Callable[..., None]) -> None:
    train(run)
    begun = ["train", "gp-1d", "--output", "averaged", *SIZES, "--average", "0.9"]
    run(*begun, "--steps", "3")
    run(*begun, "--steps", "4", "--resume")
    record = json.loads(Path("averaged/training.json").read_text())
    assert record["runs"][0]["average"] == 0.9 and record["steps"] == 4
    assert "average" not in json.loads(Path("trained/training.json").read_text())["runs"][0]
    assert any(name.startswith("average.") for name in load_file(state_of(Path("runs"), Path("averaged"))))
    with pytest.raises(SystemExit, match=r"average was 0\.9 and is None"):
        run("train", "gp-1d", "--output", "averaged", *SIZES, "--steps", "5", "--resume")
    with pytest.raises(SystemExit, match="average must be at least 0 and below 1; got 1"):
        run("train", "gp-1d", "--output", "other", *SIZES, "--steps", "1", "--average", "1")


def test_from_takes_weights_whose_record_does_not_say_how_long_they_took(run: Callable[..., None]) -> None:
    train(run)
    Path("trained/training.json").write_text('{"validation": 1.0}')
    run("train", "gp-1d", "--output", "warm", "--from", "trained", "--steps", "3", *SIZES)
    assert json.loads(Path("warm/training.json").read_text())["steps"] == 3


def test_evaluate_prints_a_table_and_a_json_line(run: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    save(tiny.tiny_model(prior="gp-1d"), "saved")
    run("evaluate", "saved")
    head, row, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["N", "joint", "(nats", "per", "target)"]
    num_context, score = row.split()
    got = json.loads(line)
    assert num_context == "8" and float(score) == pytest.approx(got["validation"], abs=1e-3)
    assert got["model"] == "saved" and got["prior"] == "gp-1d"


def test_evaluate_takes_another_prior(run: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    save(tiny.tiny_model(prior="gp-1d"), "saved")
    run("evaluate", "saved", "--prior", "sawtooth")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["prior"] == "sawtooth"


def test_evaluate_scores_as_training_does(run: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    train(run)
    capsys.readouterr()
    run("evaluate", "trained")
    score = json.loads(capsys.readouterr().out.splitlines()[-1])["validation"]
    assert score == pytest.approx(json.loads(Path("trained/training.json").read_text())["validation"], abs=2e-4)


# Priors that are programs


@pytest.fixture(autouse=True)
def _small_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "two-moons", RECIPES["two-moons"]._replace(num_simulations=60))


@pytest.mark.parametrize("prior", ["gaussian", "two-moons"])
def test_train_knows_programs(prior: str, run: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    train(run, prior=prior)
    assert sorted(path.name for path in Path("trained").iterdir()) == FILES
    config, recipe = load("trained").config, RECIPES[prior]
    assert config.prior == prior and config.num_context == recipe.num_context and config.num_latents >= 2
    assert config.width == 12 and config.num_layers == 1 and config.num_heads == 2
    record = json.loads(Path("trained/training.json").read_text())
    capsys.readouterr()
    run("evaluate", "trained")
    head, *rows, line = capsys.readouterr().out.splitlines()
    assert head.endswith("(nats per target)") and len(rows) == (3 if prior == "two-moons" else 6)
    scores = [float(row.split()[1]) for row in rows]
    assert sum(scores) / len(scores) == pytest.approx(record["validation"], abs=2e-3)
    assert json.loads(line)["validation"] == pytest.approx(record["validation"], abs=2e-4)


def test_program_s_network_has_its_own_default_sizes(run: Callable[..., None]) -> None:
    run("train", "gaussian", "--output", "trained", "--steps", "1", "--batch-size", "2", "--width", "12")
    config = load("trained").config
    assert config.num_layers == 4 and config.num_heads == 4


def test_training_on_a_program_resumes_and_warm_starts(run: Callable[..., None]) -> None:
    train(run, prior="gaussian")
    run("train", "gaussian", "--output", "trained", "--steps", "6", *SIZES, "--resume")
    assert json.loads(Path("trained/training.json").read_text())["steps"] == 6
    # A learning rate that ruins the weights: what was given stays the best.
    warm = ["--from", "trained", "--steps", "2", *SIZES, "--learning-rate", "9"]
    run("train", "gaussian", "--output", "warm", *warm)
    given, kept = load("trained"), load("warm")
    assert kept.config == given.config
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in kept.state_dict().items())
    with pytest.raises(
        SystemExit, match=r"a model of the prior 'ddm' must have dim_x = 1, dim_y = None, latents .*drift"
    ):
        run("train", "ddm", "--output", "other", *warm)
    with pytest.raises(SystemExit, match=r"a model of the prior 'gp-1d' must have .* latents \[\]; trained has"):
        run("evaluate", "trained", "--prior", "gp-1d")
    assert not Path("other").exists()


def test_warm_start_keeps_the_standardisation_of_its_weights(run: Callable[..., None]) -> None:
    config = make_source("gaussian").config
    latents = tuple(replace(latent, loc=(0.5,)) for latent in config.latents)
    fields = {"width": 12, "num_layers": 1, "num_heads": 2, "y_scale": (2.0,), "y_loc": (0.3,), "latents": latents}
    save(ArBufferModel(replace(config, **fields)), "trained")
    run("train", "gaussian", "--output", "warm", "--from", "trained", "--steps", "1", *SIZES, "--learning-rate", "9")
    given, kept = load("trained"), load("warm")
    assert kept.config == given.config and kept.config.y_scale == (2.0,)
    x, y = torch.zeros(1, 1), torch.ones(1)
    same = [ArBufferMarginals(net.condition(), x).log_prob(y) for net in (given, kept)]
    assert torch.equal(*same)


def test_warm_start_and_its_resumed_parts_draw_from_one_stream_of_their_own(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run)
    seeds, steps, fit = [], [], train_module.fit

    def spy(model: ArBufferModel, source: PriorSource, *arguments: object, **options: object) -> RunState:
        seeds.append(source.seed)
        return fit(model, source, *arguments, **options)

    monkeypatch.setattr(train_module, "fit", spy)
    warm = ["train", "gp-1d", "--output", "trained", "--from", "./trained", *SIZES]
    for number, resumed in (("2", []), ("3", ["--resume"]), ("5", ["--auto-resume"])):
        run(*warm, "--steps", number, *resumed)
        steps.append(json.loads(Path("trained/training.json").read_text())["steps"])
    assert seeds == [4, 4, 4] and steps == [6, 7, 9]  # the steps that its weights had are added to the seed


def test_warm_start_grows_the_weights_and_refuses_other_sizes(run: Callable[..., None]) -> None:
    train(run)
    warm = ["train", "gp-1d", "--from", "./trained", "--steps", "1", *BATCHES]
    run(*warm, "--output", "larger", "--num-layers", "2", "--mlp-width", "30")
    config = load("./larger").config
    assert (config.num_layers, config.mlp_width, config.width) == (2, 30, 12)
    run(*warm, "--output", "wider", "--width", "24")
    config = load("./wider").config
    assert (config.width, config.num_heads, config.mlp_width) == (24, 4, 28)
    run(*warm, "--output", "longer", "--slot-positions", "none", "--learning-rate", "1e-9")
    own, net = load("trained"), load("./longer")
    assert net.config.slot_positions == "none" and "embedder.positions.slot" not in net.state_dict()
    assert_close(net.state_dict(), {name: own.state_dict()[name] for name in net.state_dict()})
    for options, rule in (
        (("--mlp-width", "5"), "mlp_width must be an integer of at least 14, net's; got 5"),
        (("--width", "16"), "width must be a multiple of 12, net's; got 16"),
        (("--num-heads", "3"), r"--num-heads must be 2, as the weights of \./trained have it; got 3"),
    ):
        with pytest.raises(SystemExit, match=rule):
            run(*warm, "--output", "other", *options)


def test_models_lists_the_shipped_ones(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for owner in (checkpoint, models_module):
        monkeypatch.setattr(owner, "models_folder", lambda: Path("shipped"))
    config = {"x_range": (-2.0, 2.0), "outcomes": ("categorical(3)",)}
    for name in ("second", "first"):
        save(tiny.tiny_model(**config), Path("shipped", name))
    Path("shipped/first/training.json").write_text('{"validation": -0.98765}')
    Path("shipped/first/README.md").write_text(
        "# first\n\nIt is\nfor tests.\n\nMore.\n\n| mean | 9 | 8 | 7 |\n\n"
        "<!-- quality.py -->\n| mean | 1 | 0.069 (0.003) | 2 |\n\n| another | table | 3 | 4 |\n"
    )
    run("models")
    head, _, headings, first, second, *legend = capsys.readouterr().out.splitlines()
    assert head == "shipped in shipped:"
    assert headings.split() == ["model", "observed", "x", "outcome", "latents", "score", "gap", "for"]
    cells = ["first", "0", "to", "8", "-2", "to", "2", "one", "of", "3", "categories"]
    assert first.split() == [*cells, "-0.988", "0.069", "(0.003)", "It", "is", "for", "tests."]
    assert second.split() == ["second", *cells[1:]] and any("nats per target" in line for line in legend)


def test_outputs_of_one_name_have_states_of_their_own(run: Callable[..., None]) -> None:
    for folder in ("ex1", "ex2"):
        run("train", "gp-1d", "--output", f"{folder}/model", "--steps", "2", *SIZES)
    assert len(list(Path("runs").rglob("state.safetensors"))) == 2 and not list(Path("runs").rglob("*previous*"))
    run("train", "gp-1d", "--output", "ex1/model", "--steps", "3", *SIZES, "--resume")
    run("train", "gp-1d", "--output", "ex2/../ex2/model", "--steps", "4", *SIZES, "--resume")  # the same folder
    steps = [json.loads(Path(folder, "model/training.json").read_text())["steps"] for folder in ("ex1", "ex2")]
    assert steps == [3, 4]


def test_warm_start_does_not_replace_another_model(run: Callable[..., None]) -> None:
    for name in ("x", "y"):
        save(tiny.tiny_model(prior="gp-1d"), name)
    before = Path("y/model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="y holds a model, which a new run would replace with other weights"):
        run("train", "gp-1d", "--output", "y", "--from", "x", "--steps", "1", *BATCHES)
    assert Path("y/model.safetensors").read_bytes() == before
    run("train", "gp-1d", "--output", "y", "--from", "./y", "--steps", "1", *BATCHES)  # improves y itself
    run("train", "gp-1d", "--output", "y", "--from", "x", "--steps", "1", *BATCHES, "--overwrite")


def test_auto_resume_starts_a_run_and_goes_on_with_it(run: Callable[..., None]) -> None:
    for steps in (2, 4):
        run("train", "gp-1d", "--output", "trained", "--steps", str(steps), *SIZES, "--auto-resume")
        assert json.loads(Path("trained/training.json").read_text())["steps"] == steps
    Path("other").mkdir()
    save(tiny.tiny_model(prior="gp-1d"), "other")
    with pytest.raises(SystemExit, match="other holds a model"):
        run("train", "gp-1d", "--output", "other", "--steps", "1", *SIZES, "--auto-resume")


def test_output_that_is_a_file_is_found_before_training(run: Callable[..., None]) -> None:
    Path("o").write_text("mine")
    with pytest.raises(SystemExit, match="folder must be a folder, or not exist yet; got the file 'o'"):
        run("train", "gp-1d", "--output", "o", "--steps", "1000000", *SIZES)
    assert Path("o").read_text() == "mine"


def test_planted_links_are_not_written_through_by_training(run: Callable[..., None]) -> None:
    Path("trained").mkdir()
    names = ["training.json", "training.json.tmp", "loss.png", "config.json.tmp"]
    for name in names:
        Path(name).write_text("mine")
        Path("trained", name).symlink_to(Path(name).resolve())
    train(run)
    assert [Path(name).read_text() for name in names] == ["mine"] * 4
    assert json.loads(Path("trained/training.json").read_text())["steps"] == 4


@pytest.fixture
def own_program(run: Callable[..., None]) -> Path:
    """The folder of a network of a program of the user's."""
    latent = Latent("slope", (), None, None, False, (0.0,), (1.0,))
    save(tiny.tiny_model(prior="my_program", latents=(latent,), num_y_frequencies=2), "own")
    return Path("own")


def test_evaluate_prints_what_amortize_recorded_of_the_user_s_own_program(
    own_program: Path, run: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    model = tiny.tiny_model()
    state = RunState(best_score=-1.23456, step=70)
    state.save(own_program / "state.safetensors", model, make_optimizers(model))
    run("evaluate", "own")
    head, scores, line = capsys.readouterr().out.splitlines()
    assert "a network of your own program 'my_program'. Recorded by its training, not measured now" in head
    assert scores.startswith("-1.235 nats per target, after 70 steps; in Python, pyro_arbuf.calibrate(")
    assert json.loads(line) == {"model": "own", "prior": "my_program", "recorded_validation": -1.2346}


def test_evaluate_says_how_to_measure_the_user_s_own_program(own_program: Path, run: Callable[..., None]) -> None:
    with pytest.raises(
        SystemExit, match=r"your own program 'my_program'.*calibrate\(pyro_arbuf\.load\('own'\), program="
    ):
        run("evaluate", "own")


@pytest.mark.parametrize(
    "command", [["evaluate", "gp-1d"], ["train", "gp-1d", "--output", "o", "--steps", "1", "--from", "gp-1d"]]
)
def test_name_that_is_shipped_and_a_folder_is_a_mistake(command: list[str], run: Callable[..., None]) -> None:
    save(tiny.tiny_model(prior="gp-1d"), "gp-1d")
    with pytest.raises(SystemExit, match=r"write '\./gp-1d' for the folder"):
        run(*command)
    run("evaluate", "./gp-1d")


WRONG_USE = {
    "unknown_command": (["fly"], "fly"),
    "unknown_prior": (["train", "gp-9d", "--output", "o", "--steps", "1"], "gp-9d"),
    "no_output": (["train", "gp-1d", "--steps", "1"], "--output"),
    "unknown_option": (["train", "gp-1d", "--output", "o", "--stepz", "1"], "--stepz"),
    "no_number": (["train", "gp-1d", "--output", "o", "--steps", "many"], "--steps"),
    "precision": (["train", "gp-1d", "--output", "o", "--steps", "1", "--mixed-precision", "fp8"], "fp8"),
}


@pytest.mark.parametrize("case", WRONG_USE)
def test_wrong_use_is_explained(case: str, run: Callable[..., None], capsys: pytest.CaptureFixture) -> None:
    arguments, named = WRONG_USE[case]
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert named in "".join(capsys.readouterr())
    assert not Path("o").exists()


MISTAKES = {
    "batch_size": (["train", "gp-1d", "--output", "o", "--batch-size", "0"], "batch_size must be positive; got 0"),
    "no_limit": (["train", "gp-1d", "--output", "o"], "fit needs minutes= or steps="),
    "zero_steps": (["train", "gp-1d", "--output", "o", "--steps", "0"], "steps must be positive; got 0"),
    "no_minutes": (["train", "gp-1d", "--output", "o", "--minutes", "nan"], "minutes must be positive; got nan"),
    "no_threads": (["train", "gp-1d", "--output", "o", "--steps", "1", "--threads", "0"], "threads must be positive"),
    "seed": (["train", "gp-1d", "--output", "o", "--steps", "1", "--seed", "-1"], "seed must be an integer in 0.."),
    "heads": (["train", "gp-1d", "--output", "o", "--steps", "1", "--width", "13"], "multiple of num_heads = 2"),
    "no_state": (["train", "gp-1d", "--output", "o", "--steps", "1", "--resume"], "there is none at runs/o-"),
    "no_weights": (["train", "gp-1d", "--output", "o", "--steps", "1", "--from", "nowhere"], "known networks"),
    "unknown_model": (["evaluate", "nowhere"], "known networks"),
    "prior_not_known": (
        ["evaluate", "saved"],
        "--prior must be one of gp-1d, gp-1d-noisy, sawtooth, tabular, eeg, ",
    ),
    "no_latents": (["evaluate", "saved", "--prior", "gaussian"], "a model of the prior 'gaussian' must have dim_x = 1"),
    "from_other": (["train", "two-moons", "--output", "o", "--steps", "1", "--from", "saved"], "saved has dim_x = 1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_ends_with_its_message_and_no_traceback(case: str, run: Callable[..., None]) -> None:
    save(tiny.tiny_model(), "saved")
    arguments, message = MISTAKES[case]
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert message in caught.value.code and "\n" not in caught.value.code
    assert not Path("o").exists()


def test_run_from_scratch_does_not_replace_a_model(run: Callable[..., None]) -> None:
    train(run)
    before = Path("trained/model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="--from trained"):
        train(run)
    assert Path("trained/model.safetensors").read_bytes() == before
    train(run, "--overwrite")

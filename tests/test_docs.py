"""The code of every page of the documentation runs as written, and the pages name what exists."""

import functools
import json
import re
import tomllib
from pathlib import Path

import matplotlib
import pyro
import pytest
import torch
from prose import too_long

import pyro_arbuf
from pyro_arbuf import ArBufferJoint, ArBufferMarginals, ArBufferModel
from pyro_arbuf.cli.commands import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TESTED_ELSEWHERE = {"dependent_trials", "numpyro_and_pymc", "outcomes", "own_priors", "tables", "units"}  # their needs
PAGES = [path for folder in ("", "concepts", "how-to", "developer") for path in sorted((DOCS / folder).glob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text() and page.stem not in TESTED_ELSEWHERE]

SMALL = dict.fromkeys(("width", "mlp_width", "embedding_width", "head_width"), 8)
SMALL |= {"num_layers": 1, "num_heads": 2, "buffer_size": 4, "steps": 1, "minutes": None, "report": False}
FEWER = {
    "amortize": SMALL,
    "calibrate": {"num_datasets": 20, "num_draws": 19},
    "tarp": {"num_datasets": 20, "num_draws": 19},
    "posterior_sbc": {"num_datasets": 20, "num_draws": 19},
    "local_c2st": {"num_datasets": 50, "num_draws": 50, "num_null": 2},
    "check_observation": {"num_sets": 20, "num_draws": 20},
    "measure_evidence_error": {"num_datasets": 5, "num_draws": 200, "num_orders": 2},
}
HOW_TO = sorted(set((DOCS / "how-to").glob("*.md")) - {DOCS / "how-to" / "index.md"})
INDEPENDENT_GAPS = {"0.273 (0.006)", "0.508 (0.008)", "0.137 (0.004)"}  # a card has the densities that they differ by
NUTS_RUN = r"num_samples=\d+, warmup_steps=\d+"


def run(text: str, name: str) -> None:
    """Runs the blocks of a page one after the other, in one namespace."""
    names: dict[str, object] = {}
    pyro.set_rng_seed(0)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, name, "exec"), names)


@pytest.fixture
def reader(monkeypatch, tmp_path):
    """The state of somebody who tries a page, which does not outlive the test."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    pyro.clear_param_store()


def with_options(call, options):
    """The same function with some options replaced, whether or not it is called with them."""
    return functools.wraps(call)(lambda *args, **given: call(*args, **(given | options)))


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page, reader, monkeypatch):
    """With fewer draws and one step of training: only numbers in calls are changed, no line is."""
    for name, options in FEWER.items():
        monkeypatch.setattr(pyro_arbuf, name, with_options(getattr(pyro_arbuf, name), options))
    run(re.sub(NUTS_RUN, "num_samples=4, warmup_steps=2", page.read_text()), page.name)


@pytest.mark.slow  # runs of NUTS as they are written, up to minutes
@pytest.mark.parametrize(
    "page", [p for p in WITH_CODE if re.search(NUTS_RUN, p.read_text())], ids=lambda page: page.stem
)
def test_nuts_of_a_page_runs_as_written(page, reader):
    run(page.read_text(), page.name)


def test_there_are_how_to_pages_and_the_index_lists_each_twice():
    index = (DOCS / "how-to" / "index.md").read_text()
    assert len(HOW_TO) >= 25
    for page in HOW_TO:
        assert f"]({page.name})" in index and f"\n{page.stem}\n" in index, page.name  # in the list and in the menu


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_is_one_question_with_code(page):
    lines = page.read_text().splitlines()
    assert lines[0].startswith("# ") and lines[0].endswith("?")
    assert [line for line in lines if line.startswith("# ") and "?" in line] == lines[:1] and "```python" in lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_sentences_are_short_and_images_have_texts(page):
    text = page.read_text()
    if page.stem != "tables":
        assert too_long(text) == []
    images = re.findall(r"!\[([^]]*)\]\(([^)]*)\)", text)
    assert all(len(alt.split()) > 5 and (page.parent / path).is_file() for alt, path in images)


def test_every_figure_of_a_tutorial_is_described():
    figures = tomllib.loads((DOCS / "tutorials" / "figures.toml").read_text())
    assert set(figures) == {path.stem for path in (ROOT / "tutorials").glob("[0-9]*.py")}
    assert all(len(figure["alt"].split()) > 10 for figure in figures.values())
    assert [text for figure in figures.values() for text in too_long(figure.get("reading", ""))] == []


def test_the_reference_holds_every_public_name_once():
    listed = re.findall(r"^   (\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(pyro_arbuf.__all__)


def test_llms_txt_names_what_exists():
    text = (DOCS / "llms.txt").read_text()
    known = {name for kind in (ArBufferJoint, ArBufferMarginals, ArBufferModel) for name in dir(kind)}
    known |= set(pyro_arbuf.__all__) | {"pyro_arbuf"}
    named = {name for code in re.findall(r"`([^`]*)`", text) for name in re.findall(r"^(?:net\.)?(\w+)", code)}
    assert len(named) > 25 and named - known == set()
    pages = re.findall(r"\]\(([\w/-]+)\.html\)", text)
    assert len(pages) > 10 and [page for page in pages if not (DOCS / f"{page}.md").is_file()] == []


def test_commands_on_pages_are_those_of_the_command_line():
    text = "\n".join(page.read_text() for page in PAGES)
    commands = re.findall(r"pyro-arbuf ([a-z]+)", text)
    assert len(commands) > 3 and set(commands) <= set(COMMANDS)


def test_measured_numbers_are_those_of_the_cards():
    """A row whose first cell names a card, and those below it without a name, hold numbers of that card."""
    name, checked = "", 0
    for line in (DOCS / "measured.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        link = re.match(r"\[.*\]\(models/([\w-]+)\.md\)", cells[0]) if cells else None
        name = link.group(1) if link else name if cells and not cells[0] else ""
        if not name:
            continue
        card = (ROOT / "models" / name / "README.md").read_text()
        numbers = [number for cell in cells[1:] for number in re.findall(r"0\.\d+ \(0\.\d+\)", cell)]
        numbers = [number for number in numbers if number not in INDEPENDENT_GAPS]
        assert [number for number in numbers if number not in card] == [], (name, line)
        checked += len(numbers)
    assert checked > 12


def test_minutes_of_the_page_on_training_are_those_of_the_records():
    rows = re.findall(r"^\| \[([\w-]+)\]\(models/.*$", (DOCS / "training.md").read_text(), re.MULTILINE)
    lines = {
        name: line for name in rows for line in (DOCS / "training.md").read_text().splitlines() if f"[{name}](" in line
    }
    assert len(lines) > 6
    for name, line in lines.items():
        record = json.loads((ROOT / "models" / name / "training.json").read_text())
        assert f"| {record['minutes']:.0f} | {record['steps']:,} |" in line, name

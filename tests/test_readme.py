"""The README's code runs as written."""

import re
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from prose import sentences, too_long

import pyro_arbuf
from pyro_arbuf import shipped_models

README = Path(__file__).parent.parent / "README.md"


def test_code_of_the_readme_runs():
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        pyro.set_rng_seed(0)
        exec(compile(block, str(README), "exec"), names)
    assert names["curves"].shape == (1000, 8) and 13.5 < names["curves"].mean() < 15
    assert names["density"].isfinite()
    assert names["draws"]["drift"].shape == (1000,)


def test_readme_is_a_screen_and_a_half():
    assert len(README.read_text().splitlines()) <= 110


def test_no_sentence_of_the_readme_has_more_than_thirty_words():
    text = README.read_text()
    assert len(sentences(text)) > 50 and too_long(text) == []
    assert len(too_long("Short. " + "word " * 31 + "end. Then `code` follows.")) == 1


def test_links_of_the_readme_exist():
    links = re.findall(r"\]\(([^)#]+)", README.read_text())
    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://") and not (README.parent / link).is_file()] == []


def test_numbers_of_the_readme_are_those_of_the_page_of_numbers():
    measured = (README.parent / "docs" / "measured.md").read_text()
    table = README.read_text().split("## Measured")[1].split("\n\n")[1]
    table += README.read_text().split("<!-- sbi_table.py -->")[1].split("<!-- end -->")[0]
    numbers = re.findall(r"\d+\.\d+ \(\d+\.\d+\)|\d+\.\d+ x|(?<=; )\d+(?= \|)|0\.09", table)
    assert len(numbers) >= 6 and [number for number in numbers if number not in measured] == []


def test_code_of_the_page_of_outcomes_runs():
    (block,) = re.findall(r"```python\n(.*?)```", (README.parent / "docs" / "outcomes.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, "docs/outcomes.md", "exec"), names)
    assert names["d"].sample((5,)).dtype == torch.int64 and names["d"].marginals().probs.shape == (2, 2)


def test_code_of_the_page_of_dependent_trials_runs():
    text = (README.parent / "docs" / "dependent_trials.md").read_text()
    program, calls = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    sizes = "width=8, num_layers=1, num_heads=2, mlp_width=8, embedding_width=8, head_width=8, buffer_size=4"
    program = program.replace("num_context=(0, 200)", f"num_context=(0, 6), steps=1, report=False, {sizes}")
    names: dict[str, object] = {"pyro": pyro, "dist": dist, "pyro_arbuf": pyro_arbuf, "x": torch.arange(4.0)[:, None]}
    names |= {"x_next": torch.arange(4.0, 6.0)[:, None], "y": torch.tensor([0.3, -0.1, 0.4, 0.2])}
    names |= {name: getattr(pyro_arbuf, name) for name in ("ArBufferJoint", "ArBufferPosterior")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a network of one step is too far from the posterior for `refine`
        exec(compile(program, "docs/dependent_trials.md", "exec"), names)
        exec(compile(calls, "docs/dependent_trials.md", "exec"), names)


def test_code_of_the_page_of_units_runs_and_the_page_is_short():
    page = (README.parent / "docs" / "units.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, "docs/units.md", "exec"), names)
    assert names["draws"].shape == (100, 10) and 13.5 < names["draws"].mean() < 15
    assert names["density"].isfinite().all() and names["stated"].config.user_y_scale == (0.4,)
    assert len(page.splitlines()) <= 60


def test_every_shipped_model_is_in_the_table_of_models():
    table = (README.parent / "models" / "README.md").read_text()
    assert all(f"[card]({name}/README.md)" in table for name in shipped_models())

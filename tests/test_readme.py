"""The README's code runs as written."""

import re
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_arbuf
from pyro_arbuf import shipped_models

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.filterwarnings(r"ignore:\s*ArviZ is undergoing:FutureWarning")
@pytest.mark.parametrize("num_samples", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_code_of_the_readme_runs(num_samples):
    names: dict[str, object] = {}
    numbers = "num_samples=200, warmup_steps=100"
    assert numbers in README.read_text()
    text = README.read_text().replace(numbers, f"num_samples={num_samples}, warmup_steps={num_samples // 2}")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        torch.manual_seed(0)  # a block's data do not hang on the rounding of NUTS in the one before
        exec(compile(block, str(README), "exec"), names)
    assert names["curves"].shape == (1000, 12) and names["density"].shape == (1000,)
    assert names["degrees"].shape == (1000, 10) and 0 < names["degrees"].mean() < 18
    assert names["replicated"].shape == (num_samples, 12) and set(names["idata"].posterior) == {"offset"}


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

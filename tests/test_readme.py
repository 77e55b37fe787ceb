"""The README's code runs as written."""

import re
from pathlib import Path

import pytest
import torch

from pyro_arbuf import shipped_models

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.filterwarnings(r"ignore:\s*ArviZ is undergoing:FutureWarning")
def test_code_of_the_readme_runs():
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        torch.manual_seed(0)  # a block's data do not hang on the rounding of NUTS in the one before
        exec(compile(block, str(README), "exec"), names)
    assert names["curves"].shape == (1000, 12) and names["density"].shape == (1000,)
    assert names["replicated"].shape == (200, 12) and set(names["idata"].posterior) == {"offset"}


def test_code_of_the_page_of_outcomes_runs():
    (block,) = re.findall(r"```python\n(.*?)```", (README.parent / "docs" / "outcomes.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, "docs/outcomes.md", "exec"), names)
    assert names["d"].sample((5,)).dtype == torch.int64 and names["d"].marginals().probs.shape == (2, 2)


def test_every_shipped_model_is_in_the_table_of_models():
    table = (README.parent / "models" / "README.md").read_text()
    assert all(f"[card]({name}/README.md)" in table for name in shipped_models())

"""The README's code runs as written."""

import re
from pathlib import Path

import pytest

from pyro_arbuf import shipped_models

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
def test_code_of_the_readme_runs(block):
    names: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), names)
    assert names["curves"].shape == (1000, 12) and names["density"].shape == (1000,)


def test_every_shipped_model_is_in_the_table_of_models():
    table = (README.parent / "models" / "README.md").read_text()
    assert all(f"[card]({name}/README.md)" in table for name in shipped_models())

"""The code of every page of the documentation runs as written, and the pages name what exists."""

import functools
import re
from pathlib import Path

import matplotlib
import pyro
import pytest
import torch

import pyro_arbuf

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TESTED_ELSEWHERE = {"dependent_trials", "outcomes", "own_priors", "tables", "units"}  # by what they need
PAGES = [path for folder in ("", "concepts", "how-to", "developer") for path in sorted((DOCS / folder).glob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text() and page.stem not in TESTED_ELSEWHERE]

SMALL = dict.fromkeys(("width", "mlp_width", "embedding_width", "head_width"), 8)
SMALL |= {"num_layers": 1, "num_heads": 2, "buffer_size": 4, "steps": 1, "minutes": None, "report": False}
FEWER = {
    "amortize": SMALL,
    "calibrate": {"num_datasets": 20, "num_draws": 19},
    "measure_evidence_error": {"num_datasets": 5, "num_draws": 200, "num_orders": 2},
}
NUTS_RUN = r"num_samples=\d+, warmup_steps=\d+"


def run(page: Path) -> None:
    """Runs the blocks of a page one after the other, in one namespace."""
    text = re.sub(NUTS_RUN, "num_samples=4, warmup_steps=2", page.read_text())
    names: dict[str, object] = {}
    pyro.set_rng_seed(0)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page, monkeypatch, tmp_path):
    """With fewer draws and one step of training: only numbers of calls are changed, no line is."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    for name, options in FEWER.items():
        call = getattr(pyro_arbuf, name)
        monkeypatch.setattr(pyro_arbuf, name, shortened(call, options))
    threads = torch.get_num_threads()
    try:
        run(page)
    finally:
        torch.set_num_threads(threads)
        pyro.clear_param_store()


def shortened(call, options):
    """The same function with some options replaced, where it is called with them or not."""
    return functools.wraps(call)(lambda *args, **given: call(*args, **(given | options)))

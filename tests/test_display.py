"""What objects show of themselves: small tables, no tensors."""

import sys
from collections.abc import Callable

import pytest
import torch

from pyro_arbuf import (
    ArBufferJoint,
    ArBufferMarginals,
    ArBufferModel,
    ArBufferPosterior,
    Calibration,
    Evidence,
    EvidenceComparison,
    EvidenceError,
    LooConditionals,
    ModelConfig,
    Moments,
    OrderSpread,
    Refined,
    SelfConsistency,
    SubsetGap,
)
from pyro_arbuf.display import MOST_ROWS, align, as_html
from pyro_arbuf.network.latents import Latent
from pyro_arbuf.progress import progress_bar

MANY = torch.arange(40.0)
LATENTS = (Latent("slope", (), None, None, False, (0.0,), (1.0,)),)


def results() -> dict[str, object]:
    """One of each kind of result, with many numbers."""
    levels, some = (0.5, 0.9), torch.tensor([0.25, 0.75])
    coverage, ranks = torch.stack([some, some]), torch.zeros(9, 2, dtype=torch.int64)
    calibration = (["a", "b"], ranks, 99, some, levels, coverage, some, some, MANY, ranks[:, 0])
    draws = {"a": MANY, "b": MANY[:, None].expand(40, 2)}
    return {
        "Evidence": Evidence(MANY, MANY),
        "EvidenceComparison": EvidenceComparison(
            {"m": Evidence(some[0], some[1])}, {"m": 0.0}, {"m": 0.5}, "not resolved", "it is not measured"
        ),
        "EvidenceError": EvidenceError(0.5, 0.1, MANY, None),
        "Calibration": Calibration(*calibration),
        "SelfConsistency": SelfConsistency(MANY, 1.5, 0.25),
        "SubsetGap": SubsetGap(0.5, 0.25),
        "Refined": Refined(draws, draws, MANY, 0.25, 30.0, -5.0, 0.1),
        "OrderSpread": OrderSpread(MANY[:, None].expand(40, 16), MANY, MANY, MANY),
        "Moments": Moments(MANY, MANY, MANY[:, None] * MANY),
        "LooConditionals": LooConditionals({"y": MANY[:, None].expand(40, 7)}, {"y": MANY[:, None].expand(40, 7)}),
    }


@pytest.mark.parametrize("name", results())
def test_results_are_small_tables_without_tensors(name: str) -> None:
    result = results()[name]
    text, page = repr(result), result._repr_html_()  # pyright: ignore[reportAttributeAccessIssue]
    assert text.startswith(name) and "tensor" not in text + page
    assert 2 <= len(text.splitlines()) <= MOST_ROWS + 3
    assert page.startswith(f"<div><strong>{name}") and page.count("<tr>") == len(text.splitlines()) - 1


def test_numbers_without_a_batch_have_no_index() -> None:
    lines = repr(Evidence(torch.tensor(-1.5), torch.tensor(0.25))).splitlines()
    assert lines == ["Evidence, nats", "log evidence  standard error", "-1.5                    0.25"]
    assert "(1, 0)" in repr(Evidence(torch.zeros(2, 2), torch.zeros(2, 2)))
    assert "28 more" in repr(Evidence(MANY, MANY))


def test_latents_are_summarised_by_element() -> None:
    lines = repr(results()["Refined"]).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["a", "b[0]", "b[1]"] and lines[2].split()[1:] == [
        "19.5",
        "11.69",
    ]


@pytest.fixture
def net() -> ArBufferModel:
    return ArBufferModel(ModelConfig(prior="p<q", x_range=(-2.0, 2.0), latents=LATENTS)).requires_grad_(False)


def test_networks_say_what_they_take(net: ArBufferModel) -> None:
    text = repr(net.in_units(y_loc=3.0, y_scale=2.0))
    assert text.splitlines()[0] == "ArBufferModel(" and len(text.splitlines()) < 15
    assert "  x: 1 column, -2 to 2" in text and "  latents: slope" in text and "y = 3 + 2 times its own" in text
    assert "<td>p&lt;q</td>" in net._repr_html_() and "trainable" in repr(net.requires_grad_(True))


def test_wide_inputs_show_a_few_ranges() -> None:
    wide = ArBufferModel(ModelConfig(dim_x=6, x_range=tuple((0.0, float(i + 1)) for i in range(6))))
    assert "x: 6 columns, 0 to 1, 0 to 2, 0 to 3, 0 to 4 and 2 more" in repr(wide)


@pytest.mark.parametrize("kind", [ArBufferJoint, ArBufferMarginals])
def test_distributions_and_contexts_have_tables_for_notebooks(kind: Callable, net: ArBufferModel) -> None:
    x = torch.zeros(3, 5, 1)
    context = net.condition(x, x[..., 0], latents={"slope": 0.5})
    page = kind(context, x)._repr_html_()
    assert kind.__name__ in page and "<td>5, " in page and "<td>(3,)</td>" in page and "\n" not in repr(context)
    assert "<td>5 pairs</td>" in context._repr_html_() and "<td>slope</td>" in context._repr_html_()
    live = net.condition(x.requires_grad_(), x.detach()[..., 0])._repr_html_()
    assert "live" in live and "given" not in live


def test_posteriors_name_their_latents(net: ArBufferModel) -> None:
    page = ArBufferPosterior(net.condition())._repr_html_()
    assert "ArBufferPosterior given 0 pairs" in page and "<td>slope</td><td>a number</td>" in page


def test_tables_are_aligned_and_escaped() -> None:
    table = {"name": ["a", "bcd"], "n": ["100", "2"]}
    assert align(table, left=["name"]) == "name    n\na     100\nbcd     2"
    assert as_html("x < y", {"<": ["&"]}).count("&lt;") == 2


def test_bars_are_shown_in_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    assert not progress_bar(range(2), disable=None, leave=False).disable
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert progress_bar(range(2), disable=None).disable

"""The cards of the shipped models have one form and short sentences, and their code runs as written."""

import functools
import re
from pathlib import Path

import pyro
import pytest
from prose import GENERATED, HEADINGS, hand_written, too_long

import pyro_arbuf

MODELS = Path(__file__).parent.parent / "models"
CARDS = sorted(MODELS.glob("*/README.md"))
EACH_CARD = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)


@EACH_CARD
def test_a_card_says_what_it_is_for_and_has_the_headings_of_all_in_their_order(card):
    title, first, *_ = card.read_text().split("\n\n")
    assert title == f"# {card.parent.name}" and first[0].isalnum()  # `pyro-arbuf models` shows the first paragraph
    assert re.findall(r"^## (.*)$", card.read_text(), re.MULTILINE) == HEADINGS


@EACH_CARD
def test_a_card_has_its_generated_parts_below_its_score(card):
    tables = GENERATED.findall(card.read_text())
    assert len(tables) in (1, 2) and "<!-- diagnostics.py -->" not in tables[0]
    assert all(table in card.read_text().split(f"## {HEADINGS[5]}")[1].split("\n## ")[0] for table in tables)


@EACH_CARD
def test_what_is_written_by_hand_in_a_card_is_short(card):
    text = hand_written(card.read_text())
    assert too_long(text) == []
    assert len([line for line in text.splitlines() if line.strip()]) <= 66


def test_sentences_of_the_list_of_models_are_short():
    assert too_long((MODELS / "README.md").read_text()) == []


def test_generated_parts_do_not_count_as_written_by_hand():
    long = "A word " + "and another " * 20 + "end."
    assert hand_written(f"Before.\n\n<!-- eeg.py -->\n{long}\n<!-- end -->\n\nAfter.").split() == ["Before.", "After."]
    assert too_long(hand_written(f"<!-- eeg.py -->\nShort.\n<!-- end -->\n\n{long}")) == [long]


@EACH_CARD
def test_links_of_a_card_exist(card):
    links = re.findall(r"\]\(([^)#]+)", card.read_text())
    assert "loss.png" in links and [link for link in links if not (card.parent / link).is_file()] == []


@EACH_CARD
def test_code_of_a_card_runs(card, monkeypatch):
    """With fewer draws by default where the posterior is corrected: no line is changed."""
    fewer = functools.partial(pyro_arbuf.refine, num_draws=500, num_resampled=50)
    monkeypatch.setattr(pyro_arbuf, "refine", fewer)
    (block,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    pyro.set_rng_seed(0)
    exec(compile(block, str(card), "exec"), {})

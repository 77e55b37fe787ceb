"""Sentences of a page in Markdown, counted as somebody reads them aloud."""

import re

GENERATED = re.compile(r"<!-- \w+\.py -->.*?<!-- end -->", re.DOTALL)  # what a benchmark writes into a card
HEADINGS = [  # of a card
    "What it is for",
    "Prior",
    "Input ranges",
    "How to use it",
    "How it was trained",
    "Measured score",
    "Where it fails, and what to do then",
]


def hand_written(card: str) -> str:
    """A card without what its benchmark wrote."""
    return GENERATED.sub("", card)


def sentences(text: str) -> list[str]:
    """Sentences of prose, lists and cells of tables; code blocks and images are left out, inline code is one word."""
    text = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)  # indented code
    text = re.sub(r"`[^`]*`", "Code", text)
    text = re.sub(r"!\[[^]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    found = []
    for part in re.split(r"\n\s*\n|\n(?=[-#|] ?|\d+\. )", text):
        for cell in part.split("|"):
            found += re.split(r"(?<=[.?!:])[*)]*\s+(?=[*(A-Z\"])", cell)
    return [" ".join(sentence.split()) for sentence in found if sentence.strip()]


def too_long(text: str, most: int = 30) -> list[str]:
    """Sentences of more than so many words."""
    return [sentence for sentence in sentences(text) if len(sentence.split()) > most]

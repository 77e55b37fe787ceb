"""`pyro-arbuf models`."""

import re
from pathlib import Path

from pyro_arbuf.checkpoint import models_folder, read_config, shipped_models
from pyro_arbuf.cli.record import read_record
from pyro_arbuf.display import align
from pyro_arbuf.inference.description import describe_outcome, show_ranges

CARD = "README.md"
LEGEND = """
observed: numbers of observed pairs in training; x: range of the inputs.
score: joint log density of the validation set, nats per target; it compares networks of one prior only.
gap: how far that is below the exact prediction, nats per target (standard error); the card says the rest."""


def models() -> None:
    """Lists the shipped models: what each is for, its trained ranges and its score.

    pyro-arbuf models
    """
    rows = [_row(models_folder() / name) for name in shipped_models()]
    print(f"shipped in {models_folder()}:\n")
    if rows:
        print(align({heading: [row[heading] for row in rows] for heading in rows[0]}, left=list(rows[0])))
        print(LEGEND)


def _row(folder: Path) -> dict[str, str]:
    config, score = read_config(folder), read_record(folder).get("validation")
    ranges = sorted(set(show_ranges(config.x_range).split(", ")))
    return {
        "model": folder.name,
        "observed": "{} to {}".format(*config.num_context),
        "x": f"{ranges[0]} and others" if len(ranges) > 1 else "none" if ranges == ["0 to 0"] else ranges[0],
        "outcome": describe_outcome(config.dim_y, config.outcomes),
        "latents": str(config.num_latents or ""),
        "score": "" if score is None else f"{score:.3f}",
        "gap": measured_gap(folder / CARD),
        "for": _first_paragraph(folder / CARD),
    }


def _first_paragraph(card: Path) -> str:
    """What a card says first, below its title."""
    parts = re.split(r"\n\s*\n", card.read_text(encoding="utf-8")) if card.is_file() else []
    return " ".join(parts[1].split()) if len(parts) > 1 else ""


def measured_gap(card: Path) -> str:
    """The mean gap to the exact prediction that `benchmarks/quality.py` wrote into a card."""
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    found = re.search(r"<!-- quality\.py -->.*?^\| mean \|([^\n]*)$", text, re.MULTILINE | re.DOTALL)
    return found[1].split("|")[-3].strip() if found else ""

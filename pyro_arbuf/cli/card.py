"""`pyro-arbuf card`: a model card for a network of the user's own, to be filled in."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_arbuf.checkpoint import read_config
from pyro_arbuf.cli.models import CARD
from pyro_arbuf.cli.options import check_folder
from pyro_arbuf.cli.record import read_record
from pyro_arbuf.files import write_atomically
from pyro_arbuf.inference.description import describe_outcome, short_ranges
from pyro_arbuf.network.config import ModelConfig

TEMPLATE = """---
library_name: pyro-arbuf
tags: [pyro, probabilistic-programming, neural-processes]
license: FILL IN
---

# {title}

FILL IN: in one sentence, what this network predicts.

## What it is for

FILL IN: the data that it is made for, and the question that it answers about them.

## Prior

{prior}

## Input ranges

{ranges}

Outside these ranges predictions are unreliable, and the package warns.

## How to use it

```python
import pyro_arbuf

net = pyro_arbuf.load("FILL IN: ./folder, or hf:owner/name")
context = net.condition(x, y)  # {shapes}
{call}
```

## How it was trained

{training}

## Measured score

{score}FILL IN: what `pyro-arbuf check FOLDER` prints, and a comparison with a known answer.

## Where it fails, and what to do then

FILL IN: data that it should not be used for, how a user would notice, and what the user can do.
"""


def card(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    overwrite: bool = False,
) -> None:
    """Writes a model card in Markdown, as the Hugging Face Hub shows it, with what the network's folder knows.

    What only you know is marked FILL IN.

    pyro-arbuf card my_prior

    Args:
        folder: Of the network: config.json, model.safetensors and, where there is one, training.json.
        output: The file; README.md in the folder if not given.
        overwrite: Let the card replace another file.
    """
    if not folder.is_dir():
        raise ValueError(f"FOLDER must be a folder of a network of your own; got {folder}, which is none")
    output = folder / CARD if output is None else output
    check_folder("--output", output)
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists, and a new card would replace it; use --overwrite, or another --output")
    text = card_of(folder.resolve().name, read_config(folder), read_record(folder))
    write_atomically(output, lambda file: file.write_text(text, encoding="utf-8"))
    print(f"{output}: fill in what is marked FILL IN, {text.count('FILL IN')} places")


def card_of(title: str, config: ModelConfig, record: dict[str, Any]) -> str:
    """The text of a card.

    Args:
        title: Name of the network.
        config: Of the network.
        record: What training.json says; empty where there is none.
    """
    prior, call = _law_and_call(config)
    size = (
        f"The network has width {config.width}, {config.num_layers} layers and K = {config.buffer_size} buffer slots."
    )
    training = f"FILL IN: how long, and on what machine. {size}"
    if "steps" in record and "minutes" in record:
        training = f"Training took {record['steps']:,} steps and {record['minutes']:g} minutes. {size}"
    validation = record.get("validation")
    return TEMPLATE.format(
        title=title,
        prior=prior,
        shapes=f"x (n, {config.dim_x}), y {'(n,)' if config.dim_y is None else f'(n, {config.dim_y})'}",
        call=call,
        ranges="\n".join(f"- {sentence}" for sentence in _ranges(config)),
        training=training,
        score="" if validation is None else f"The score in validation was {validation:.4f} nats per target.\n\n",
    )


def _law_and_call(config: ModelConfig) -> tuple[str, str]:
    """What a network was trained on, to be filled in, and the line of code that asks it."""
    known = config.prior or "FILL IN"
    if not config.latents:
        call = "draws = pyro_arbuf.ArBufferJoint(context, x_new).sample((1000,))  # joint predictions"
        return f"The prior is {known}. FILL IN: the law of its functions or tables.", call
    names = ", ".join(f'"{latent.name}"' for latent in config.latents)
    law = "FILL IN: their laws, the law of the outcome, and where the program is."
    call = (
        "posterior = pyro_arbuf.ArBufferPosterior(context)\n"
        "values = posterior.sites(posterior.sample((1000,)))  # 1,000 draws of each latent"
    )
    return f"The program is {known}, with the latents {names}. {law}", call


def _ranges(config: ModelConfig) -> list[str]:
    """What a network was trained on, in sentences."""
    counts = {"The context has": (config.num_context, "observed pairs"), "There are": (config.num_targets, "targets")}
    told = [f"{start} {pair[0]} to {pair[1]} {what}." for start, (pair, what) in counts.items() if pair is not None]
    columns = f"{config.dim_x} column{'s' * (config.dim_x > 1)}"
    outcome = describe_outcome(config.dim_y, config.outcomes)
    return [
        *told,
        f"The input x has {columns}: {short_ranges(config.x_range)}.",
        f"The outcome y is {outcome}: {short_ranges(config.y_range)}.",
    ]

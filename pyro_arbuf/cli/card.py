"""`pyro-arbuf card`: a model card for a network of the user's own, to be filled in."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from pyro_arbuf.checkpoint import find_model, read_config
from pyro_arbuf.cli.models import CARD, read_record
from pyro_arbuf.files import write_atomically
from pyro_arbuf.inference.description import describe_outcome, show_ranges
from pyro_arbuf.network.config import ModelConfig

TEMPLATE = """---
library_name: pyro-arbuf
tags: [pyro, probabilistic-programming, neural-processes]
license: FILL IN
---

# {title}

FILL IN: in one sentence, what this network predicts, and for which data.

{prior}

## Use

```python
import pyro_arbuf

net = pyro_arbuf.load("FILL IN: ./folder, or hf:owner/name")
context = net.condition(x, y)  # {shapes}
{call}
```

## Trained ranges

| what | range in training |
|---|---|
{ranges}

Outside these ranges predictions are unreliable, and the package warns.

## Training

{training}

## Measured

{score}FILL IN: what `pyro-arbuf check FOLDER` prints, and a comparison with a known answer.

## Where it fails

FILL IN: data that it should not be used for, and how a user would notice.
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
    output = find_model(folder) / CARD if output is None else output
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
    ranges = {"observed pairs": config.num_context, "targets": config.num_targets}
    rows = {what: "not declared" if pair is None else f"{pair[0]} to {pair[1]}" for what, pair in ranges.items()}
    rows["x"] = f"{config.dim_x} column{'s' * (config.dim_x > 1)}: {show_ranges(config.x_range)}"
    rows["y"] = f"{describe_outcome(config.dim_y, config.outcomes)}: {show_ranges(config.y_range)}"
    call = "draws = pyro_arbuf.ArBufferJoint(context, x_new).sample((1000,))  # joint predictions"
    prior = f"**Prior.** {config.prior or 'FILL IN'}. FILL IN: what its functions or tables are like."
    if config.latents:
        names = ", ".join(latent.name for latent in config.latents)
        prior = (
            f"**Program.** {config.prior or 'FILL IN'}, with the latents {names}. FILL IN: the program, or where it is."
        )
        call = "posterior = pyro_arbuf.ArBufferPosterior(context)  # posterior.sites(posterior.sample((1000,)))"
    size = f"{config.num_layers} layers of width {config.width}, {config.buffer_size} buffer slots"
    training = f"FILL IN: how long, and on what machine. The network has {size}."
    if "steps" in record and "minutes" in record:
        training = f"{record['steps']:,} steps, {record['minutes']:g} minutes. The network has {size}."
    validation = record.get("validation")
    return TEMPLATE.format(
        title=title,
        prior=prior,
        shapes=f"x (n, {config.dim_x}), y {'(n,)' if config.dim_y is None else f'(n, {config.dim_y})'}",
        call=call,
        ranges="\n".join(f"| {what} | {text} |" for what, text in rows.items()),
        training=training,
        score="" if validation is None else f"Validation: {validation:.4f} nats per target.\n\n",
    )

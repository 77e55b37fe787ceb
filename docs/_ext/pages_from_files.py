"""Pages that are written from other files of the repository before Sphinx reads its sources.

A tutorial's page is its script: the docstring, the figure that is kept beside it, then the code cell by cell.
A model's page is its card. Both are written anew by every build, and neither is kept in the repository.
"""

import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).parent.parent.parent
LOGGER = logging.getLogger(__name__)


def tutorial_page(script: Path, figure: dict[str, str]) -> str:
    """The page of a tutorial.

    Args:
        script: The tutorial. Its docstring begins with the question that it answers; a cell begins with `# %% Title`.
        figure: `alt`, what the figure shows, and optionally `reading`, how it is to be read.
    """
    docstring, code = re.fullmatch(r'"""(.*?)"""\n(.*)', script.read_text(), re.DOTALL).groups()
    question, rest = docstring.split("?", 1)
    image = f"![{figure['alt']}](../../tutorials/{script.stem}.png){{.wide}}"
    parts = [f"# {question}?", rest.strip(), image, figure.get("reading", ""), f"## The script, `{script.name}`"]
    for cell in code.split("\n# %% ")[1:]:
        title, body = cell.split("\n", 1)
        parts += [f"### {title}", f"```python\n{body.strip()}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_tutorials(folder: Path) -> None:
    """Writes a page for every script in `tutorials/`; one without an entry in figures.toml is a warning."""
    figures = tomllib.loads((folder / "figures.toml").read_text())
    for script in sorted((ROOT / "tutorials").glob("[0-9]*.py")):
        if script.stem not in figures:
            LOGGER.warning("docs/tutorials/figures.toml must say what the figure of %s shows: alt = '...'", script.stem)
        text = tutorial_page(script, figures.get(script.stem, {"alt": script.stem}))
        write_if_changed(folder / f"{script.stem}.md", text)


def write_cards(folder: Path) -> None:
    """Writes a page for the card of every shipped model, with its links to other files of the repository mended."""
    cards = sorted((ROOT / "models").glob("*/README.md"))
    for card in cards:
        name = card.parent.name
        text = card.read_text().replace("[loss.png](loss.png)", "the figure below")
        text = re.sub(r"\]\((\w+\.png)\)", rf"](../../models/{name}/\1)", text)
        loss = f"![Training loss and validation density of {name} over the steps](../../models/{name}/loss.png)"
        write_if_changed(folder / f"{name}.md", f"{text}\n## Loss in training\n\n{loss}\n")
    index = (ROOT / "models" / "README.md").read_text()
    index = re.sub(r"\]\(([\w-]+)/README\.md\)", r"](\1.md)", index)
    index = re.sub(r"\]\((\w+\.png)\)", r"](../../models/\1)", index)
    recipe = (ROOT / "models" / "RECIPE.md").read_text().replace("(README.md#", "(index.md#")
    write_if_changed(folder / "RECIPE.md", recipe)
    toctree = "\n".join([*(card.parent.name for card in cards), "RECIPE"])
    write_if_changed(folder / "index.md", f"{index}\n```{{toctree}}\n:hidden:\n\n{toctree}\n```\n")


def write_if_changed(path: Path, text: str) -> None:
    """Writes a page; one that is the same is left alone, so that Sphinx need not read it again."""
    path.parent.mkdir(exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def write_pages(app: Sphinx) -> None:
    """Writes all of them."""
    write_tutorials(Path(app.srcdir) / "tutorials")
    write_cards(Path(app.srcdir) / "models")


def skip_fields(app: Sphinx, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Leaves out the fields of named tuples one by one: their docstrings explain them under "Attributes"."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages, priority=100)  # before autosummary looks for pages
    app.connect("autodoc-skip-member", skip_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

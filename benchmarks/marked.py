"""The part of a page that a benchmark writes, between two comments."""

from pathlib import Path

from pyro_arbuf.files import write_atomically

END = "<!-- end -->"


def write_marked(page: Path, benchmark: str, text: str) -> None:
    """Replaces what stands in a page between `<!-- BENCHMARK.py -->` and `<!-- end -->`, at its end if that is new.

    Args:
        page: The file, in Markdown.
        benchmark: Name of the script.
        text: What takes its place, ending with a line break.

    Raises:
        ValueError: If the page has the first comment and not the second.
    """
    start = f"<!-- {benchmark}.py -->"
    old = page.read_text(encoding="utf-8")
    before, _, rest = (old if start in old else f"{old}\n{start}{END}\n").partition(start)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{page} must have {END} behind {start}, where the text of the script ends; got none")
    write_atomically(page, lambda file: file.write_text(f"{before}{start}\n{text}{END}{after}", encoding="utf-8"))

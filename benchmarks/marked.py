"""The part of a page that a benchmark writes, between two comments."""

from pathlib import Path

END = "<!-- end -->"


def write_marked(page: Path, benchmark: str, text: str) -> None:
    """Replaces what stands in a page between `<!-- BENCHMARK.py -->` and `<!-- end -->`, at its end if that is new.

    Args:
        page: The file, in Markdown.
        benchmark: Name of the script.
        text: What takes its place, ending with a line break.
    """
    start = f"<!-- {benchmark}.py -->"
    old = page.read_text()
    before, _, rest = (old if start in old else f"{old}\n{start}{END}\n").partition(start)
    page.write_text(f"{before}{start}\n{text}{END}{rest.partition(END)[2]}")
